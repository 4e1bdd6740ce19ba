"""Gradients of a loss, or of any linear function of the logits, for weights and activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .batch import Batch
from .recorded import CORE_NAMES, Recorded

if TYPE_CHECKING:
    from .. import _core as core_types
    from .model import Model

ACTIVATIONS = (
    "pattern",
    "scores",
    "q",
    "k",
    "v",
    "z",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "mlp_pre",
    "mlp_post",
)
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
    threads: int | None,
) -> Gradients:
    """See `Model.gradients`."""
    names = _check.names(wrt, "wrt")
    for name in names:
        if name not in (*ACTIVATIONS, "parameters"):
            known = ", ".join(("parameters", *ACTIVATIONS))
            raise ValueError(f"wrt: unknown name {name!r:.60}; choose from {known}")
    _check.choice(gate_gradient, "gate_gradient", GATE_GRADIENTS)
    if dlogits is not None:
        if targets is not None or loss_mask is not None:
            raise ValueError("give either dlogits, or targets and loss_mask, not both")
        dlogits = _dlogits(batch, dlogits, model.config.n_vocab, model.dtype)
        targets = weights = None
    else:
        own_targets = targets is not None
        targets = loss_targets(batch, targets)
        weights = loss_weights(batch, loss_mask, own_targets, model.dtype)
    records = tuple({CORE_NAMES[name] for name in names if name != "parameters"})
    core = model._core.gradients(
        batch.tokens,
        batch.offsets,
        records,
        parameters="parameters" in names,
        dlogits=dlogits,
        targets=targets,
        weights=weights,
        straight_through=GATE_GRADIENTS[gate_gradient],
        max_bytes=_check.byte_limit(max_bytes),
        threads=_check.threads(threads),
    )
    return Gradients(model, core, batch, "parameters" in names)


def _dlogits(batch: Batch, dlogits: Any, n_vocab: int, dtype: np.dtype[Any]) -> np.ndarray:
    """(all tokens, V), or (batch, T, V) of equally long prompts."""
    array, n = _check.reals(dlogits, "dlogits", dtype), len(batch.tokens)
    shapes: list[tuple[int, ...]] = [(n, n_vocab)]
    if len(set(batch.lengths.tolist())) == 1:
        shapes.append((len(batch), n // len(batch), n_vocab))
    if array.shape not in shapes:
        raise ValueError(f"dlogits must have shape {' or '.join(map(str, shapes))}, got {array.shape}")
    return array.reshape(n, n_vocab)


def loss_targets(batch: Batch, targets: Any) -> np.ndarray:
    """Given targets, one per token; by default the next token (and 0, never used, after the last)."""
    if targets is not None:
        given = np.asarray(targets)
        if given.dtype.kind not in "iu":
            raise TypeError(f"targets must be integers, got {given.dtype}")
        # an id that does not fit is out of range for any vocabulary, also after this
        return np.ascontiguousarray(np.clip(given.ravel(), -(2**31), 2**31 - 1), dtype=np.int32)
    following = np.zeros(len(batch.tokens), np.int32)
    following[:-1] = batch.tokens[1:]
    return following


def loss_weights(batch: Batch, loss_mask: Any, own_targets: bool, dtype: np.dtype[Any]) -> np.ndarray:
    """Given weights, one per token; by default 1, and 0 after the last token of a prompt."""
    n = len(batch.tokens)
    if loss_mask is None:
        weights = np.ones(n, dtype)
    else:
        weights = _check.reals(loss_mask, "loss_mask", dtype).ravel().copy()
        if len(weights) != n:
            raise ValueError(f"loss_mask must have one number for each of the {n} tokens, got {len(weights)}")
        if not np.all(weights >= 0) or not np.all(np.isfinite(weights)):
            raise ValueError("loss_mask must be finite and not negative")
    if not own_targets:
        weights[batch.offsets[1:] - 1] = 0
    return weights


class Gradients(Recorded):
    """Gradients of one scalar, as read-only arrays with the shapes of the activations in `Run`.

    Made by `Model.gradients`. The arrays are those named in `wrt`; others raise AttributeError. The gradient
    of `pattern` is that of each entry A that is used (before the multiplication with v); that of `scores`
    goes through softmax, and through the gate on request.
    """

    _core: core_types.Gradients

    def __init__(
        self,
        model: Model,
        core: core_types.Gradients,
        batch: Batch,
        has_parameters: bool,
        index: int | None = None,
    ) -> None:
        super().__init__(model, core, batch, index)
        self._has_parameters = has_parameters

    def __getitem__(self, i: int) -> Gradients:
        index = self._prompt_index(i)
        return Gradients(self.model, self._core, self._batch, self._has_parameters, index)

    def __iter__(self) -> Iterator[Gradients]:
        return (self[i] for i in range(len(self)))

    def _how_to_record(self, name: str) -> str:
        return f"ask for it with wrt={name!r} (these have: {', '.join(self.recorded) or 'none'})"

    @property
    def loss(self) -> float:
        """The scalar that was differentiated."""
        return self._core.loss

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """Gradient of every weight array by name; AttributeError unless `wrt` includes "parameters"."""
        if not self._has_parameters:
            raise AttributeError('these gradients are not of the weights; ask with wrt="parameters"')
        return {name: self._core.parameter(name) for name in self.model._core.names}

    def __repr__(self) -> str:
        what = [*(["parameters"] if self._has_parameters else []), *self.recorded]
        return f"Gradients(loss={self.loss:.6g}, of {', '.join(what)})"
