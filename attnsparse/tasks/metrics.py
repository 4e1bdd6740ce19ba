"""How well logits do a task: one number for every prompt, in NumPy.

`logits` are those after the last token of each prompt, as `Model.run(list(task.clean), logits="last")` has
them: shape (n, V), row i for prompt i. Results are float64 [n]; averages are left to the caller, because
effects are ratios of means and not means of ratios.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..model.model import Model
    from .task import Task

TASK_METRICS = ("logit_diff", "logit_diff_max", "prob_diff")
"""Metrics that a task can have as its own: they need nothing but its answers and wrong answers."""
METRICS = (*TASK_METRICS, "log_prob", "kl")
"""All metrics that effects of ablations can be measured in."""


def last_logits(model: Model, task: Task, corrupted: bool = False) -> np.ndarray:
    """Logits (n, V) of a model after the last token of each prompt."""
    run = model.run(list(task.corrupted if corrupted else task.clean), record=(), logits="last")
    return np.stack([run[i].logits for i in range(len(task))])


def metric(logits: Any, task: Task) -> np.ndarray:
    """The task's own metric: see `Task.metric`."""
    if task.metric == "prob_diff":
        return probability_difference(logits, task)
    return logit_difference(logits, task)


def logit_difference(logits: Any, task: Task) -> np.ndarray:
    """Mean logit of the answers minus the mean of the wrong ones, or minus the largest of the wrong ones if
    the task's metric is "logit_diff_max"."""
    rows = _checked(logits, task)
    reduce = np.max if task.metric == "logit_diff_max" else np.mean
    return np.array([row[a].mean() - reduce(row[w]) for row, a, w in zip(rows, task.answers, task.wrong)])


def probability_difference(logits: Any, task: Task) -> np.ndarray:
    """Probability of all answers together minus that of all wrong ones, among the whole vocabulary."""
    rows = np.exp(_log_softmax(_checked(logits, task)))
    return np.array([row[a].sum() - row[w].sum() for row, a, w in zip(rows, task.answers, task.wrong)])


def log_probability(logits: Any, task: Task) -> np.ndarray:
    """Log-probability (nats) of all answers together."""
    rows = _log_softmax(_checked(logits, task))
    return np.array([np.logaddexp.reduce(row[a]) for row, a in zip(rows, task.answers)])


def rank(logits: Any, task: Task) -> np.ndarray:
    """How many tokens of the vocabulary are above the best answer: int64 [n], 0 is top-1."""
    rows = _checked(logits, task)
    return np.array([int((row > row[a].max()).sum()) for row, a in zip(rows, task.answers)])


def top1(logits: Any, task: Task) -> np.ndarray:
    """Whether the most likely token is an answer: bool [n]."""
    return rank(logits, task) == 0


def kl_divergence(logits: Any, reference: Any) -> np.ndarray:
    """KL(reference || logits) of each prompt's next-token distribution in nats; both (n, V)."""
    rows, wanted = (_log_softmax(np.asarray(array, np.float64)) for array in (logits, reference))
    if rows.shape != wanted.shape or rows.ndim != 2:
        raise ValueError(f"both must have the same shape (n, V), got {rows.shape} and {wanted.shape}")
    return (np.exp(wanted) * (wanted - rows)).sum(axis=1)


def metric_gradient(logits: Any, task: Task) -> np.ndarray:
    """Gradient of each prompt's metric with respect to its last logits: float64 (n, V)."""
    rows = _checked(logits, task)
    gradient = np.zeros_like(rows)
    if task.metric == "prob_diff":
        probabilities = np.exp(_log_softmax(rows))
        for into, p, a, w in zip(gradient, probabilities, task.answers, task.wrong):
            into -= (p[a].sum() - p[w].sum()) * p
            into[a] += p[a]
            into[w] -= p[w]
        return gradient
    for into, row, a, w in zip(gradient, rows, task.answers, task.wrong):
        into[a] = 1 / len(a)
        if task.metric == "logit_diff_max":
            into[w[np.argmax(row[w])]] = -1
        else:
            into[w] = -1 / len(w)
    return gradient


def _checked(logits: Any, task: Task) -> np.ndarray:
    rows = np.asarray(logits, np.float64)
    if rows.ndim != 2 or len(rows) != len(task):
        raise ValueError(
            f"logits must have shape ({len(task)}, V), the last token of each prompt, got {rows.shape}"
        )
    largest = max(int(ids.max()) for ids in (*task.answers, *task.wrong))
    if rows.shape[1] <= largest:
        raise ValueError(f"logits of {rows.shape[1]:,} tokens, but the task has token {largest:,}")
    return rows


def _log_softmax(rows: np.ndarray) -> np.ndarray:
    shifted = rows - rows.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
