"""What a text model is worth on held-out windows, with hard gates and no noise; errors over windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ..model.model import Model


class Mean(NamedTuple):
    """A mean over windows and its standard error."""

    value: float
    error: float


class Measured(NamedTuple):
    """losses: nats per predicted token of each window [n]; the edges of all heads for each token, those from
    a token to itself, and the share of all entries (0..1) that they are. In a model without a gate, edges are
    the entries that its softmax is over."""

    losses: np.ndarray
    edges_per_token: Mean
    self_edges_per_token: Mean
    open_share: Mean

    @property
    def cross_entropy(self) -> Mean:
        """Nats per predicted token."""
        return mean(self.losses)


def measure(model: Model, windows: np.ndarray) -> Measured:
    """A model on windows of equal length (int [n, T])."""
    found = [model.evaluate([window], progress=False) for window in windows]
    losses = np.array([one.cross_entropy for one in found])
    edges = np.array([one.open_edges[0] for one in found], np.float64)
    own = np.array([one.self_edges[0] for one in found], np.float64)
    length = windows.shape[1]
    entries = model.config.n_layer * model.config.n_head * length * (length + 1) // 2
    return Measured(losses, mean(edges / length), mean(own / length), mean(edges / entries))


def mean(values: np.ndarray) -> Mean:
    """The mean of two or more numbers and its standard error."""
    return Mean(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))
