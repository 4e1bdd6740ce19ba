"""Gradients of a loss, or of any linear function of the logits, for weights and activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .batch import Batch
from .run import CORE_NAMES, Run

if TYPE_CHECKING:
    from .model import Model

ACTIVATIONS = ("pattern", "scores", "q", "k", "v", "z", "resid_pre", "resid_mid", "resid_post", "mlp_pre", "mlp_post")
GATE_GRADIENTS = {"none": False, "straight-through": True}


def compute_gradients(
    model: Model,
    batch: Batch,
    dlogits: np.ndarray | None,
    targets: Any,
    loss_mask: Any,
    wrt: str | Sequence[str],
    gate_gradient: str,
    max_bytes: int,
    threads: int,
) -> Gradients:
    """See `Model.gradients`."""
    names = [wrt] if isinstance(wrt, str) else list(wrt)
    for name in names:
        if name not in (*ACTIVATIONS, "parameters"):
            raise ValueError(f"wrt: no gradient for {name!r}; known: parameters, {', '.join(ACTIVATIONS)}")
    if gate_gradient not in GATE_GRADIENTS:
        raise ValueError(f"gate_gradient must be 'none' or 'straight-through', got {gate_gradient!r}")
    if dlogits is not None:
        if targets is not None or loss_mask is not None:
            raise ValueError("give either dlogits, or targets and loss_mask, not both")
        dlogits = np.ascontiguousarray(dlogits, dtype=model.dtype).reshape(-1, model.config.n_vocab)
        targets = weights = None
    else:
        targets, weights = _targets(batch, targets), _weights(batch, loss_mask, targets is not None, model.dtype)
    records = tuple({CORE_NAMES[name] for name in names if name != "parameters"})
    core = model._core.gradients(
        batch.tokens, batch.offsets, records, "parameters" in names, dlogits, targets, weights,
        GATE_GRADIENTS[gate_gradient], max_bytes, threads,
    )  # fmt: skip
    return Gradients(model, core, batch, "parameters" in names)


def _targets(batch: Batch, targets: Any) -> np.ndarray:
    """Given targets, one per token; by default the next token (and 0, never used, after the last)."""
    if targets is not None:
        return np.ascontiguousarray(np.asarray(targets).ravel(), dtype=np.int32)
    following = np.zeros(len(batch.tokens), np.int32)
    following[:-1] = batch.tokens[1:]
    return following


def _weights(batch: Batch, loss_mask: Any, own_targets: bool, dtype: np.dtype) -> np.ndarray:
    n = len(batch.tokens)
    if loss_mask is None:
        weights = np.ones(n, dtype)
    else:
        weights = np.array(loss_mask, dtype=dtype).ravel()
        if len(weights) != n:
            raise ValueError(f"loss_mask must have one number for each of the {n} tokens, got {len(weights)}")
        if not np.all(weights >= 0) or not np.all(np.isfinite(weights)):
            raise ValueError("loss_mask must be finite and not negative")
    if not own_targets:
        weights[batch.offsets[1:] - 1] = 0
    return weights


class Gradients(Run):
    """Gradients as read-only zero-copy arrays, with the shapes of the activations in `Run`.

    `parameters` is a dict name -> array; `loss` is the scalar that was differentiated.  Activations are the
    arrays named in `wrt`; others raise AttributeError.  The gradient of `pattern` is that of each entry A
    that is used (before the multiplication with v); of `scores`, through softmax (and gate if asked).
    """

    def __init__(self, model: Model, core: Any, batch: Batch, has_parameters: bool, index: int | None = None) -> None:
        """Made by `Model.gradients`."""
        super().__init__(model, core, batch, "none", index)
        self._has_parameters = has_parameters

    def __getitem__(self, i: int) -> Gradients:
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"prompt {i} of gradients with {n}")
        index = self._index if self._index is not None else i % n
        return Gradients(self.model, self._core, self._batch, self._has_parameters, index)

    @property
    def loss(self) -> float:
        """The scalar that was differentiated."""
        return self._core.loss

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """Gradient of every weight array by name."""
        if not self._has_parameters:
            raise AttributeError('these gradients are not of the weights; ask with wrt="parameters"')
        return {name: self._core.parameter(name) for name in self.model._core.names}

    def _has_edges(self) -> bool:
        return False

    def __repr__(self) -> str:
        what = [*(["parameters"] if self._has_parameters else []), *self.recorded]
        return f"Gradients(loss={self.loss:.6g}, of {', '.join(what)})"

    _repr_html_ = None
