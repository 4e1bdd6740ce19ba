"""How good a model is on given sequences, as it is used: hard gates, no noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .model import Model


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found on n sequences.

    cross_entropy: nats per predicted token, weighted.
    right bool [n]: every token of weight above 0 is the most likely one, given the true tokens before it.
    open_edges int64 [n]: entries whose gate is open, of all layers and heads (dense: all causal ones).
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
    model: Model,
    sequences: Sequence[Any],
    loss_weights: Sequence[Any] | None = None,
    *,
    batch: int = 256,
) -> Evaluation:
    """Run `model` on token `sequences` and compare with the next tokens.

    sequences: a list of arrays of token ids, lengths may differ, or one array [n, T].
    loss_weights: like `sequences`, weight of predicting that token (default 1); that of a first token is not
    used, because nothing comes before it.
    batch: sequences run at once.
    Raises ValueError for no sequences, weights of other lengths, or no weight above 0.
    """
    rows = [np.asarray(row) for row in sequences]
    if loss_weights is None:
        weights = [np.ones(len(row)) for row in rows]
    else:
        weights = [np.asarray(row, np.float64) for row in loss_weights]
    if not rows or [len(row) for row in rows] != [len(row) for row in weights]:
        raise ValueError("need sequences, and as many loss weights as tokens")
    total = sum(float(row[1:].sum()) for row in weights)
    if total <= 0:
        raise ValueError("no token to be predicted has a loss weight above 0")
    loss, right, edges = 0.0, [], []
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
