"""How well logits solve a task: one number for each prompt, in NumPy.

Results are not averaged, because effects are ratios of means and not means of ratios.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from ..model.model import Model
    from .task import Task

TASK_METRICS = ("logit_diff", "logit_diff_max", "prob_diff")
"""Metrics that a task can have as its own: they need nothing but its answers and wrong answers."""
METRICS = (*TASK_METRICS, "log_prob", "kl")
"""All metrics in which effects of ablations can be measured."""


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
    if task.metric == "prob_diff":
        return probability_difference(logits, task)
    return logit_difference(logits, task)


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
    rows = _checked(logits, task)
    reduce = np.max if task.metric == "logit_diff_max" else np.mean
    return np.array([row[a].mean() - reduce(row[w]) for row, a, w in zip(rows, task.answers, task.wrong)])


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
    rows = np.exp(_log_softmax(_checked(logits, task)))
    return np.array([row[a].sum() - row[w].sum() for row, a, w in zip(rows, task.answers, task.wrong)])


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
    rows = _log_softmax(_checked(logits, task))
    return np.array([np.logaddexp.reduce(row[a]) for row, a in zip(rows, task.answers)])


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
    rows, wanted = (_log_softmax(np.asarray(array, np.float64)) for array in (logits, reference))
    if rows.shape != wanted.shape or rows.ndim != 2:
        raise ValueError(
            f"logits and reference must have the same shape (n, V), got {rows.shape} and {wanted.shape}"
        )
    divergence: NDArray[np.float64] = (np.exp(wanted) * (wanted - rows)).sum(axis=1)
    return divergence


def _checked(logits: ArrayLike, task: Task) -> NDArray[np.float64]:
    rows = np.asarray(logits, np.float64)
    if rows.ndim != 2 or len(rows) != len(task):
        raise ValueError(
            f"logits must have shape ({len(task)}, V), the last token of each prompt, got {rows.shape}"
        )
    largest = max(int(ids.max()) for ids in (*task.answers, *task.wrong))
    if rows.shape[1] <= largest:
        raise ValueError(f"logits must cover token {largest:,} of the task, got {rows.shape[1]:,} tokens")
    return rows


def _log_softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = rows - rows.max(axis=1, keepdims=True)
    logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs
