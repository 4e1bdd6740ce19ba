"""A metric of the user's own: functions of logits, which the core asks as it asks its own metrics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .. import _check
from .metrics import METRICS

if TYPE_CHECKING:
    from .task import Task

Rows: TypeAlias = Callable[[np.ndarray, np.ndarray], Any]

LONGEST_NAME = 80  # characters


@dataclass(frozen=True, eq=False)
class CustomMetric:
    """A metric of your own, for `metric=` of `find_circuit` and of the functions in `circuits`.

    It is slower than the metrics of the core, because all logits go through Python, and takes part in the
    same sweeps, rankings and intervals. An exception that it raises ends the call and reaches the caller
    unchanged.

    Parameters
    ----------
    values : function
        ``values(logits, prompts)`` returns n numbers. logits [n, n_vocab] are those after the last token of n
        prompts, each with some items ablated, in the model's dtype; prompts int64 [n] is the prompt of the
        task of each row, which may occur many times. Both are copies that the function may keep or change.
    gradient : function, optional
        ``gradient(logits, prompts)`` returns [n, n_vocab]: the derivative of each row's value with respect to
        its logits. Required for first-order effects (methods "attribution" and "ig") alone.
    name : str, default "custom"
        Shown in tables and stored with circuits; none of `METRICS`.
    smaller_is_better : bool, default False
        Whether an item supports the task if the metric grows without it, as with "kl".

    Raises
    ------
    TypeError, ValueError
        The message names the argument.

    Examples
    --------
    The logit of the first answer alone, with its gradient:

    >>> def values(logits, prompts):
    ...     return [row[task.answers[i][0]] for row, i in zip(logits, prompts)]
    >>> def gradient(logits, prompts):
    ...     found = np.zeros_like(logits)
    ...     for row, i in zip(found, prompts):
    ...         row[task.answers[i][0]] = 1
    ...     return found
    >>> metric = asp.tasks.CustomMetric(values, gradient, name="first answer")
    >>> asp.find_circuit(model, task, metric=metric, method="ig")
    """

    values: Rows
    gradient: Rows | None = None
    _: KW_ONLY
    name: str = "custom"
    smaller_is_better: bool = False

    def __post_init__(self) -> None:
        for name, function in (("values", self.values), ("gradient", self.gradient)):
            if not callable(function) and not (name == "gradient" and function is None):
                raise TypeError(f"{name} must be a function of logits and prompts, got {function!r:.60}")
        if not isinstance(self.name, str) or not 0 < len(self.name) <= LONGEST_NAME:
            raise ValueError(f"name must be a string of 1..{LONGEST_NAME} characters, got {self.name!r:.100}")
        if self.name in METRICS:
            raise ValueError(f"name must differ from the metrics of the package, got {self.name!r}")
        _check.flag(self.smaller_is_better, "smaller_is_better")

    def for_prompts(self, indices: Sequence[int] | np.ndarray) -> CustomMetric:
        """Return the metric of a part of a task, whose prompt i is prompt `indices[i]` of the whole.

        Parameters
        ----------
        indices : sequence of int
            As of `Task.subset`.

        Returns
        -------
        CustomMetric
        """
        prompts_of = np.asarray(indices, np.int64)
        gradient = None if self.gradient is None else functools.partial(_of_part, self.gradient, prompts_of)
        return replace(self, values=functools.partial(_of_part, self.values, prompts_of), gradient=gradient)

    # --- what the core asks (csrc/python/py_metric.c)

    def row_values(self, logits: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """The checked result of `values`, as the core requests it.

        Parameters
        ----------
        logits : numpy.ndarray
            [n, n_vocab], after the last token of each prompt.
        prompts : numpy.ndarray
            int64 [n], the prompt of the task of each row.

        Returns
        -------
        numpy.ndarray
            float64 [n].

        Raises
        ------
        TypeError, ValueError
            If `values` does not return n real numbers.
        """
        found = self._numbers(self.values(logits, prompts), "values")
        if found.shape != (len(prompts),):
            text = f"one value for each of {len(prompts)} rows of logits, got an array of shape {found.shape}"
            raise ValueError(f"metric {self.name!r} must give {text}")
        return np.ascontiguousarray(found, np.float64)

    def row_gradients(self, logits: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """The checked result of `gradient`, as the core requests it.

        Parameters
        ----------
        logits : numpy.ndarray
            [n, n_vocab], after the last token of each prompt.
        prompts : numpy.ndarray
            int64 [n], the prompt of the task of each row.

        Returns
        -------
        numpy.ndarray
            [n, n_vocab] in the dtype of the logits.

        Raises
        ------
        TypeError, ValueError
            If `gradient` does not return real numbers of this shape.
        """
        assert self.gradient is not None  # the core has asked
        dtype, shape = logits.dtype, logits.shape
        found = self._numbers(self.gradient(logits, prompts), "a gradient")
        if found.shape != shape:
            text = f"a gradient of shape {shape}, got an array of shape {found.shape}"
            raise ValueError(f"metric {self.name!r} must give {text}")
        return np.ascontiguousarray(found, dtype)

    def _numbers(self, found: npt.ArrayLike, what: str) -> np.ndarray:
        array = np.asarray(found)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"metric {self.name!r} must give {what} of real numbers, got {array.dtype}")
        return array


def _of_part(function: Rows, prompts_of: np.ndarray, logits: np.ndarray, prompts: np.ndarray) -> Any:
    return function(logits, prompts_of[prompts])


def chosen_metric(metric: object, task: Task) -> str | CustomMetric:
    """What `metric=` says, the task's own for None; ValueError for anything that is no metric."""
    if metric is None:
        return task.metric
    if isinstance(metric, CustomMetric):
        return metric
    if not isinstance(metric, str) or metric not in METRICS:
        names = ", ".join(map(repr, METRICS))
        raise ValueError(f"metric must be one of {names}, or a CustomMetric, got {_check.shown(metric)}")
    return metric


def smaller_is_better(metric: str | CustomMetric) -> bool:
    """Whether the whole model has the smallest value; a divergence from it does."""
    return metric.smaller_is_better if isinstance(metric, CustomMetric) else metric == "kl"


def metric_name(metric: str | CustomMetric) -> str:
    """As tables and files have it."""
    return metric if isinstance(metric, str) else metric.name
