"""The loss by which the recipes are judged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def token_loss(logits: NDArray[np.floating], targets: NDArray[np.integer]) -> NDArray[np.float64]:
    """Cross-entropy (...) in nats of targets (...) under logits (..., V), computed in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, targets[..., None], axis=-1)[..., 0]
    losses: NDArray[np.float64] = np.log(np.exp(shifted).sum(axis=-1)) - chosen
    return losses
