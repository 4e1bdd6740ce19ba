"""How well logits solve a task: one number for each prompt, computed in the core.

Results are not averaged, because effects are ratios of means and not means of ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._core_types import Metric
from .._engine import core_for

if TYPE_CHECKING:
    from ..model.model import Model
    from .task import Task

_CORE = core_for("float64")

METRICS: tuple[str, ...] = tuple(_CORE.metric_names())
"""All metrics in which effects of ablations can be measured."""
TASK_METRICS = tuple(name for name, of_answers in _CORE.metric_names().items() if of_answers)
"""Metrics that a task can have as its own: they need nothing but its answers and wrong answers."""


def last_logits(model: Model, task: Task, corrupted: bool = False) -> NDArray[np.floating]:
    """Run a model on a task and return its logits after the last token of each prompt.

    Parameters
    ----------
    model : Model
        The model to run.
    task : Task
        n prompts.
    corrupted : bool, default False
        Run the corrupted prompts instead of the clean ones.

    Returns
    -------
    ndarray of shape (n, n_vocab)
        Logits in the model's dtype.
    """
    run = model.run(list(task.corrupted if corrupted else task.clean), record=(), logits="last")
    return np.stack([run[i].logits for i in range(len(task))])


def metric(logits: ArrayLike, task: Task) -> NDArray[np.float64]:
    """Compute the task's own metric (`Task.metric`) for each prompt.

    Parameters
    ----------
    logits : array_like of shape (n, n_vocab)
        Logits after the last token of each prompt, see `last_logits`.
    task : Task
        n prompts with their answers.

    Returns
    -------
    ndarray of shape (n,)
        A difference of logits or of probabilities.

    Raises
    ------
    ValueError
        If the shape of `logits` does not fit the task.
    """
    return _values(task.metric, logits, task)


def logit_difference(logits: ArrayLike, task: Task) -> NDArray[np.float64]:
    """Compute the mean logit of the answers minus that of the wrong answers, for each prompt.

    Parameters
    ----------
    logits : array_like of shape (n, n_vocab)
        Logits after the last token of each prompt, see `last_logits`.
    task : Task
        n prompts with their answers. If its metric is "logit_diff_max", the largest logit of the wrong
        answers is subtracted instead of their mean.

    Returns
    -------
    ndarray of shape (n,)
        Differences of logits.

    Raises
    ------
    ValueError
        If the shape of `logits` does not fit the task.
    """
    return _values("logit_diff_max" if task.metric == "logit_diff_max" else "logit_diff", logits, task)


def probability_difference(logits: ArrayLike, task: Task) -> NDArray[np.float64]:
    """Compute the total probability of the answers minus that of the wrong answers, for each prompt.

    Parameters
    ----------
    logits : array_like of shape (n, n_vocab)
        Logits after the last token of each prompt, see `last_logits`.
    task : Task
        n prompts with their answers.

    Returns
    -------
    ndarray of shape (n,)
        Differences in -1..1. Probabilities are taken over the whole vocabulary.

    Raises
    ------
    ValueError
        If the shape of `logits` does not fit the task.
    """
    return _values("prob_diff", logits, task)


def log_probability(logits: ArrayLike, task: Task) -> NDArray[np.float64]:
    """Compute the log-probability of all answers together, for each prompt.

    Parameters
    ----------
    logits : array_like of shape (n, n_vocab)
        Logits after the last token of each prompt, see `last_logits`.
    task : Task
        n prompts with their answers.

    Returns
    -------
    ndarray of shape (n,)
        Natural logarithms (nats).

    Raises
    ------
    ValueError
        If the shape of `logits` does not fit the task.
    """
    return _values("log_prob", logits, task)


def rank(logits: ArrayLike, task: Task) -> NDArray[np.int64]:
    """Count the tokens of the vocabulary that are more likely than the best answer, for each prompt.

    Parameters
    ----------
    logits : array_like of shape (n, n_vocab)
        Logits after the last token of each prompt, see `last_logits`.
    task : Task
        n prompts with their answers.

    Returns
    -------
    ndarray of shape (n,)
        Counts; 0 where an answer is the most likely token.

    Raises
    ------
    ValueError
        If the shape of `logits` does not fit the task.
    """
    rows = _checked(logits, task)
    return np.array([int((row > row[a].max()).sum()) for row, a in zip(rows, task.answers)])


def top1(logits: ArrayLike, task: Task) -> NDArray[np.bool_]:
    """Tell whether the most likely token is an answer, for each prompt.

    Parameters
    ----------
    logits : array_like of shape (n, n_vocab)
        Logits after the last token of each prompt, see `last_logits`.
    task : Task
        n prompts with their answers.

    Returns
    -------
    ndarray of bool of shape (n,)
        True where `rank` is 0.

    Raises
    ------
    ValueError
        If the shape of `logits` does not fit the task.
    """
    return np.equal(rank(logits, task), 0)


def kl_divergence(logits: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Compute KL(reference || logits) of the next-token distributions, for each prompt.

    Parameters
    ----------
    logits : array_like of shape (n, n_vocab)
        Logits of the model with something changed.
    reference : array_like of shape (n, n_vocab)
        Logits of the model as it is.

    Returns
    -------
    ndarray of shape (n,)
        Divergences in nats.

    Raises
    ------
    ValueError
        If the shapes are not both (n, n_vocab).
    """
    rows, wanted = (np.ascontiguousarray(array, np.float64) for array in (logits, reference))
    if rows.shape != wanted.shape or rows.ndim != 2:
        raise ValueError(
            f"logits and reference must have the same shape (n, V), got {rows.shape} and {wanted.shape}"
        )
    nothing = packed([[] for _ in rows])
    divergence: NDArray[np.float64] = _CORE.metric_values(rows, Metric("kl", *nothing, *nothing, wanted))
    return divergence


def packed(rows: Sequence[ArrayLike]) -> tuple[np.ndarray, np.ndarray]:
    """Starts (int64 [n + 1]) and ids (int32) of rows one after the other, as the core takes them."""
    ids = [np.asarray(row, np.int32) for row in rows]
    starts = np.zeros(len(rows) + 1, np.int64)
    starts[1:] = np.add.accumulate([len(row) for row in ids])
    return starts, np.concatenate(ids)


def _values(kind: str, logits: ArrayLike, task: Task) -> NDArray[np.float64]:
    rows = _checked(logits, task)
    found: NDArray[np.float64] = _CORE.metric_values(
        rows, Metric(kind, *packed(task.answers), *packed(task.wrong))
    )
    return found


def _checked(logits: ArrayLike, task: Task) -> NDArray[np.float64]:
    rows = np.ascontiguousarray(logits, np.float64)
    if rows.ndim != 2 or len(rows) != len(task):
        raise ValueError(
            f"logits must have shape ({len(task)}, V), the last token of each prompt, got {rows.shape}"
        )
    largest = max(int(ids.max()) for ids in (*task.answers, *task.wrong))
    if rows.shape[1] <= largest:
        raise ValueError(f"logits must cover token {largest:,} of the task, got {rows.shape[1]:,} tokens")
    return rows
