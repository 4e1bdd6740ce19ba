"""Quality of a model on given sequences, with hard gates and no noise, as in use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _check
from .._display import progress_bar
from .._engine import core_for
from .batch import sequence_ids

if TYPE_CHECKING:
    from .config import Config
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
    self_edges : numpy.ndarray
        int64 [n]: those among them from a token to itself.
    n_tokens : int
        Tokens of all sequences.
    """

    cross_entropy: float
    right: np.ndarray
    open_edges: np.ndarray
    self_edges: np.ndarray
    n_tokens: int

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
    sequences: Iterable[Any] | np.ndarray,
    loss_weights: Sequence[Any] | None,
    batch: int,
    progress: bool | None,
) -> Evaluation:
    """See `Model.evaluate`."""
    batch = _check.integer(batch, "batch", 1)
    given = _check.items(sequences, "sequences", "texts or sequences of token ids")
    reads = model.tokenizer is not None
    ids = [model.to_tokens(str(item)) if reads and isinstance(item, str) else item for item in given]
    rows, weights = checked_rows(model.config, ids, loss_weights, ("sequences", "loss_weights"))
    total = sum(float(row[1:].sum()) for row in weights)
    loss = 0.0
    right: list[bool] = []
    edges: list[int] = []
    own: list[int] = []
    with progress_bar(progress, len(rows), "evaluation", "sequence") as bar:
        for begin in range(0, len(rows), batch):
            run = model.run(rows[begin : begin + batch], record=("gate", "logits"))
            for i, row in enumerate(rows[begin : begin + batch]):
                alone = run[i]
                chosen = np.flatnonzero(weights[begin + i][1:] > 0)
                logits, targets = alone.logits[chosen], row[chosen + 1]
                loss += float((token_losses(logits, targets) * weights[begin + i][chosen + 1]).sum())
                right.append(bool((logits.argmax(axis=1) == targets).all()))
                edges.append(int(np.count_nonzero(alone.gate)))
                own.append(int(np.count_nonzero(np.diagonal(alone.gate, axis1=2, axis2=3))))
            if bar is not None:
                bar.update(min(batch, len(rows) - begin))
    n_tokens = sum(map(len, rows))
    return Evaluation(loss / total, np.array(right), np.array(edges), np.array(own), n_tokens)


def checked_rows(
    config: Config, sequences: Any, loss_weights: Any, names: tuple[str, str]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids, int32 [T], and the weights of predicting them, float64 [T], of each sequence.

    names: of the two arguments, for TypeError, ValueError and IndexError.
    """
    rows = sequence_ids(config, sequences, names[0])
    if not rows:
        raise ValueError(f"{names[0]} must hold at least one sequence")
    if loss_weights is None:
        weights = [np.ones(len(row)) for row in rows]
    else:
        given = _check.items(loss_weights, names[1], "rows of numbers")
        weights = [_check.reals(row, f"{names[1]}[{i}]", np.float64) for i, row in enumerate(given)]
    if [row.shape for row in rows] != [row.shape for row in weights]:
        raise ValueError(f"{names[1]} must have one number for each token of {names[0]}")
    if not all((np.isfinite(row) & (row >= 0)).all() for row in weights):
        raise ValueError(f"{names[1]} must be finite and not negative")
    if not any((row[1:] > 0).any() for row in weights):
        raise ValueError(
            f"{names[0]} must have a token after the first of a sequence, with a weight above 0 in {names[1]}"
        )
    return rows, weights


def token_losses(
    logits: npt.NDArray[np.floating[Any]], targets: npt.NDArray[np.integer[Any]], threads: int = 0
) -> npt.NDArray[np.float64]:
    """Cross-entropy (...) in nats of targets (...) under logits (..., V), computed in float64.

    IndexError for a target that is no token.
    """
    rows = np.ascontiguousarray(logits).reshape(-1, logits.shape[-1])
    ids = np.ascontiguousarray(targets, np.int32).ravel()
    found: npt.NDArray[np.float64] = core_for(str(logits.dtype)).token_losses(rows, ids, threads)
    return found.reshape(targets.shape)
