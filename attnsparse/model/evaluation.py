"""Quality of a model on given sequences, with hard gates and no noise, as in use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

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
    with progress_bar(progress, len(rows), "evaluation", "sequence") as bar:
        return evaluated(rows, weights, measured(model, rows, weights, batch, None, bar))


class SequenceMeasured(NamedTuple):
    """What was found on one sequence: its weighted loss, and the fields of `Evaluation`."""

    loss: float
    right: bool
    open_edges: int
    self_edges: int


def measured(
    model: Model,
    rows: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    batch: int,
    threads: int | None,
    bar: Any = None,
) -> list[SequenceMeasured]:
    """Each of the rows, which `checked_rows` gave; no bit depends on the others, or on `batch`."""
    found = []
    for begin in range(0, len(rows), batch):
        run = model.run(rows[begin : begin + batch], record=("gate", "logits"), threads=threads)
        for i, row in enumerate(rows[begin : begin + batch]):
            alone = run[i]
            chosen = np.flatnonzero(weights[begin + i][1:] > 0)
            logits, targets = alone.logits[chosen], row[chosen + 1]
            found.append(
                SequenceMeasured(
                    float((token_losses(logits, targets) * weights[begin + i][chosen + 1]).sum()),
                    bool((logits.argmax(axis=1) == targets).all()),
                    int(np.count_nonzero(alone.gate)),
                    int(np.count_nonzero(np.diagonal(alone.gate, axis1=2, axis2=3))),
                )
            )
        if bar is not None:
            bar.update(min(batch, len(rows) - begin))
    return found


def evaluated(
    rows: Sequence[np.ndarray], weights: Sequence[np.ndarray], found: Sequence[SequenceMeasured]
) -> Evaluation:
    """What was found on all rows, put together in their order."""
    total = sum(float(row[1:].sum()) for row in weights)
    loss = 0.0
    for one in found:
        loss += one.loss
    right, edges, own = (np.array(column) for column in list(zip(*found))[1:])
    return Evaluation(loss / total, right, edges, own, sum(map(len, rows)))


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
