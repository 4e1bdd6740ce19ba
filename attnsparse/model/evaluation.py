"""Quality of a model on given sequences, with hard gates and no noise, as in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check

if TYPE_CHECKING:
    from .model import Model


@dataclass(frozen=True)
class Evaluation:
    """What `Model.evaluate` found on n sequences.

    Attributes
    ----------
    cross_entropy : float
        Nats per predicted token, weighted.
    right : numpy.ndarray
        bool [n]: every token of weight above 0 is the most likely one, given the true tokens before it.
    open_edges : numpy.ndarray
        int64 [n]: entries whose gate is open, of all layers and heads (dense: all causal ones).
    """

    cross_entropy: float
    right: np.ndarray
    open_edges: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of sequences that are right."""
        return float(self.right.mean())

    def __repr__(self) -> str:
        return (
            f"Evaluation({len(self.right):,} sequences: cross-entropy {self.cross_entropy:.4g}, "
            f"{100 * self.accuracy:.2f} % right, open edges {np.median(self.open_edges):g} median, "
            f"{self.open_edges.max()} most)"
        )


def evaluate(
    model: Model, sequences: Sequence[Any], loss_weights: Sequence[Any] | None, batch: int
) -> Evaluation:
    """See `Model.evaluate`."""
    batch = _check.integer(batch, "batch", 1)
    rows = [np.asarray(row) for row in sequences]
    if loss_weights is None:
        weights = [np.ones(len(row)) for row in rows]
    else:
        weights = [np.asarray(row, np.float64) for row in loss_weights]
    if not rows or [len(row) for row in rows] != [len(row) for row in weights]:
        raise ValueError(
            "sequences must hold at least one sequence, and loss_weights one number for each of its tokens"
        )
    total = sum(float(row[1:].sum()) for row in weights)
    if total <= 0:
        raise ValueError("loss_weights must be above 0 for at least one token that is predicted")
    loss = 0.0
    right: list[bool] = []
    edges: list[int] = []
    for begin in range(0, len(rows), batch):
        run = model.run(rows[begin : begin + batch], record=("gate", "logits"))
        for i, row in enumerate(rows[begin : begin + batch]):
            alone = run[i]
            chosen = np.flatnonzero(weights[begin + i][1:] > 0)
            losses, hits = _compare(alone.logits[chosen], row[chosen + 1])
            loss += float(losses @ weights[begin + i][chosen + 1])
            right.append(bool(hits.all()))
            edges.append(int(np.count_nonzero(alone.gate)))
    return Evaluation(loss / total, np.array(right), np.array(edges))


def _compare(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cross-entropy in nats (n,), whether the target is the most likely token (n,)) of logits (n, V)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(targets)), targets]
    return np.log(np.exp(shifted).sum(axis=1)) - chosen, logits.argmax(axis=1) == targets
