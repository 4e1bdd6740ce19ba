"""Exact and first-order effects of heads, heads at positions, and attention edges on a task's metric.

Everything here is a forward pass (or a gradient) of the real model with some items ablated, computed in the C
core: what lies before a change is taken from the clean run, what comes after is recomputed, and many such
variants are computed together. Items are integer arrays: heads [n, 2] (layer, head), heads at positions
[n, 3] (layer, head, position), attention edges [n, 4] (layer, head, query, key). Results are float64 with one
column for every prompt of the task, so that means, intervals and normalisations are left to the caller.

Ablations: "zero" (z of a head, or an attention entry, is 0), "mean" (z at its position, or the entry's
contribution A v, is its mean over reference prompts), "counterfactual" (what it is in the task's corrupted
prompt). A metric is read after the last token: "logit_diff", "logit_diff_max", "prob_diff" as in
`tasks.Task`, "log_prob" (nats, all answers together) or "kl" (from the whole model's distribution to the
ablated one's, nats), or a `tasks.CustomMetric`; None is the task's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _check
from .._display import progress_bar
from ..model.interventions import ABLATIONS
from ..model.run import DEFAULT_MAX_BYTES
from ..tasks.metrics import METRICS
from .choices import UNITS
from .effects_sweep import (
    BLOCK_BYTES,
    KEPT,
    NEVER,
    AblationSetting,
    AblationSweep,
    blocks,
    check_model_and_task,
    one_length,
    open_entries,
)

if TYPE_CHECKING:
    from ..model.model import Model
    from ..tasks.custom import CustomMetric
    from ..tasks.task import Task

__all__ = [
    "ABLATIONS",
    "METRICS",
    "UNITS",
    "attribution",
    "candidates",
    "keep_only",
    "knock_out",
    "leave_one_out",
    "metric_values",
]

_COLUMNS = {2: "head", 3: "head_position", 4: "edge"}
_BLOCK_TOKENS = 4096  # of one backward pass


def metric_values(
    model: Model, task: Task, *, metric: str | CustomMetric | None = None, threads: int | None = None
) -> np.ndarray:
    """Measure the metric of the whole model on every prompt.

    Parameters
    ----------
    model : Model
    task : Task
        Its clean prompts are run.
    metric : {"logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl"} or CustomMetric, optional
        Default: the task's own.
    threads : int, optional
        Default: the number set by `set_num_threads`.

    Returns
    -------
    numpy.ndarray
        float64 [prompts].
    """
    sweep = AblationSweep(model, task, "head", "zero", None, metric, threads)
    config = model.config
    order = np.full((config.n_layer, config.n_head), KEPT)
    values = sweep.values(order, lambda length: np.array([[config.n_layer - 1, length - 1, 0, 0, 0, -1]]), 1)
    whole: np.ndarray = values[0]
    return whole


def candidates(model: Model, task: Task, unit: str, threads: int | None = None) -> np.ndarray:
    """List every item that can have an effect.

    Parameters
    ----------
    model : Model
    task : Task
        Its prompts must have one length, except for "head".
    unit : {"head", "head_position", "edge"}
        All heads; all heads at all positions; all edges that are open in at least one clean prompt (in a
        dense model all of them).
    threads : int, optional
        Default: the number set by `set_num_threads`.

    Returns
    -------
    numpy.ndarray
        int32 [n, 2 | 3 | 4]: layer, head; with position; or layer, head, query, key; in this order.

    Raises
    ------
    ValueError
        For another unit, and for prompts of different lengths.
    """
    check_model_and_task(model, task)
    config = model.config
    heads = (config.n_layer, config.n_head)
    if _check.choice(unit, "unit", UNITS) == "head":
        return np.argwhere(np.ones(heads, bool)).astype(np.int32)
    length = one_length(task)
    if unit == "head_position":
        return np.argwhere(np.ones((*heads, length), bool)).astype(np.int32)
    if not config.gated:
        return np.argwhere(np.broadcast_to(np.tri(length, dtype=bool), (*heads, length, length))).astype(
            np.int32
        )
    return np.argwhere(open_entries(model, task, threads)).astype(np.int32)


def knock_out(
    model: Model,
    task: Task,
    items: npt.ArrayLike,
    ablation: str = "zero",
    *,
    reference: Task | Iterable[Any] | None = None,
    metric: str | CustomMetric | None = None,
    threads: int | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Measure the metric with each item alone ablated, exactly.

    Parameters
    ----------
    model : Model
    task : Task
        Its clean prompts are run; all of one length, except for heads with another ablation than "mean".
    items : integer array [n, 2 | 3 | 4]
        Heads (layer, head), heads at positions (layer, head, position) or attention edges (layer, head,
        query, key), all different; everything counts from 0.
    ablation : {"zero", "mean", "counterfactual"}, default "zero"
        What replaces an ablated item.
    reference : Task or sequence of prompts, optional
        Prompts that "mean" averages over, as long as those of `task`. Default: the clean prompts of `task`.
    metric : {"logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl"} or CustomMetric, optional
        Default: the task's own.
    threads : int, optional
        Default: the number set by `set_num_threads`.
    progress : bool, optional
        Show a bar on stderr. Default: in terminals and notebooks only.

    Returns
    -------
    numpy.ndarray
        float64 [items, prompts]. The effect of an item is `metric_values(...)` minus its row.

    Raises
    ------
    ValueError
        For items of another shape or given twice, unknown names, prompts of different lengths.
    IndexError
        For an item that the model or the prompts do not have.
    TypeError
        For arguments of another type.
    """
    chosen, unit = checked_items(model, task, items)
    sweep = AblationSweep(model, task, unit, ablation, reference, metric, threads)
    return _each_alone(sweep, chosen, sweep.order(chosen, others=KEPT), progress, "knock-out")


def _each_alone(
    sweep: AblationSweep, items: np.ndarray, order: np.ndarray, progress: bool | None, text: str
) -> np.ndarray:
    """The metric with each item ablated on top of what the order always ablates: [items, prompts]."""
    last_layer, with_positions = sweep.model.config.n_layer - 1, sweep.unit != "head"
    others = 2 if (order >= NEVER).any() else 1

    def variants(length: int) -> np.ndarray:
        rows = np.zeros((len(items) + 1, 6), np.int64)
        rows[:-1, 0] = items[:, 0]
        if with_positions:
            rows[:-1, 1], rows[:-1, 2] = items[:, 2], others * (items[:, 0] < last_layer)
        rows[:, 4], rows[:, 5] = len(items), np.append(np.arange(len(items)), -1)
        rows[-1, :2] = last_layer, length - 1  # no item ablated
        return rows

    def reaches(length: int) -> np.ndarray:
        """Not an item of the last layer before the last token: nothing reads it."""
        return np.append((items[:, 0] < last_layer) | (items[:, 2] == length - 1), True)

    found = sweep.values(
        order,
        variants,
        len(items) + 1,
        progress,
        text,
        reaches if with_positions else None,
        start_ablated=others == 2,
    )
    return found[:-1]


def keep_only(
    model: Model,
    task: Task,
    items: npt.ArrayLike,
    sizes: Sequence[int] | np.ndarray,
    ablation: str = "zero",
    *,
    reference: Task | Iterable[Any] | None = None,
    metric: str | CustomMetric | None = None,
    threads: int | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Measure the metric with `items[:n]` kept and everything else of the unit ablated.

    Parameters
    ----------
    model : Model
    task : Task
        Its clean prompts are run; all of one length, except for heads with another ablation than "mean".
    items : integer array [n, 2 | 3 | 4]
        Heads (layer, head), heads at positions (layer, head, position) or attention edges (layer, head,
        query, key), all different; everything counts from 0.
    sizes : sequence of int
        The n, each in 0..len(items).
    ablation : {"zero", "mean", "counterfactual"}, default "zero"
        What replaces an ablated item.
    reference : Task or sequence of prompts, optional
        Prompts that "mean" averages over, as long as those of `task`. Default: the clean prompts of `task`.
    metric : {"logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl"} or CustomMetric, optional
        Default: the task's own.
    threads : int, optional
        Default: the number set by `set_num_threads`.
    progress : bool, optional
        Show a bar on stderr. Default: in terminals and notebooks only.

    Returns
    -------
    numpy.ndarray
        float64 [sizes, prompts].

    Raises
    ------
    ValueError
        For items of another shape or given twice, unknown names, prompts of different lengths.
    IndexError
        For an item that the model or the prompts do not have.
    TypeError
        For arguments of another type.

    Notes
    -----
    Items that are not listed are always ablated; embeddings and MLPs stay. Entries of a gated model whose
    gates are closed in all clean prompts of the task are not edges: they contribute nothing, whatever their
    mean or their value in the corrupted prompt.
    """
    chosen, unit = checked_items(model, task, items)
    counts = np.asarray(sizes)
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise TypeError(f"sizes must be a flat sequence of integers, got {sizes!r:.60}")
    if counts.size and not (counts.min() >= 0 and counts.max() <= len(chosen)):
        worst = int(counts.max()) if counts.max() > len(chosen) else int(counts.min())
        raise ValueError(f"sizes must be in 0..{len(chosen)}, the number of items, got {worst}")
    sweep = AblationSweep(model, task, unit, ablation, reference, metric, threads)
    rows = np.zeros((len(counts), 6), np.int64)
    rows[:, 4], rows[:, 5] = counts, -1
    return sweep.values(sweep.order(chosen, others=NEVER), lambda _: rows, len(rows), progress, "keep only")


def leave_one_out(
    model: Model,
    task: Task,
    items: npt.ArrayLike,
    ablation: str = "zero",
    *,
    reference: Task | Iterable[Any] | None = None,
    metric: str | CustomMetric | None = None,
    threads: int | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Measure the metric with all `items` kept except each one in turn.

    Everything else of the unit is ablated, as in `keep_only`. Backward elimination consists of this.

    Parameters
    ----------
    model : Model
    task : Task
        Its clean prompts are run; all of one length, except for heads with another ablation than "mean".
    items : integer array [n, 2 | 3 | 4]
        Heads (layer, head), heads at positions (layer, head, position) or attention edges (layer, head,
        query, key), all different; everything counts from 0.
    ablation : {"zero", "mean", "counterfactual"}, default "zero"
        What replaces an ablated item.
    reference : Task or sequence of prompts, optional
        Prompts that "mean" averages over, as long as those of `task`. Default: the clean prompts of `task`.
    metric : {"logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl"} or CustomMetric, optional
        Default: the task's own.
    threads : int, optional
        Default: the number set by `set_num_threads`.
    progress : bool, optional
        Show a bar on stderr. Default: in terminals and notebooks only.

    Returns
    -------
    numpy.ndarray
        float64 [items, prompts].

    Raises
    ------
    ValueError
        For items of another shape or given twice, unknown names, prompts of different lengths.
    IndexError
        For an item that the model or the prompts do not have.
    TypeError
        For arguments of another type.
    """
    chosen, unit = checked_items(model, task, items)
    sweep = AblationSweep(model, task, unit, ablation, reference, metric, threads)
    order = sweep.order(chosen, others=NEVER)
    return _each_alone(sweep, chosen, order, progress, "leave one out")


def attribution(
    model: Model,
    task: Task,
    unit: str,
    ablation: str = "zero",
    *,
    steps: int = 1,
    path: str = "value",
    reference: Task | Iterable[Any] | None = None,
    metric: str | CustomMetric | None = None,
    threads: int | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Estimate the effects of all items to first order, averaged over prompts.

    Parameters
    ----------
    model : Model
    task : Task
        Its clean prompts are run; all of one length, except for heads with another ablation than "mean".
    unit : {"head", "head_position", "edge"}
        What an item is.
    ablation : {"zero", "mean", "counterfactual"}, default "zero"
        What would replace an item.
    steps : int, default 1
        1: the derivative of the metric with respect to a factor m of each item, from what it is ablated to
        (0) to what it is (1), at the whole model: gradient times difference (attribution patching). k: the
        derivative averaged along m = (j - 1/2)/k of all items at once (integrated gradients), whose sum over
        items tends to m(M) - m(0) with growing k.
    path : {"value", "gate"}, default "value"
        "gate" (edges of a gated model): instead, to first order, what the metric would lose if the gate logit
        g of each entry were moved to the threshold: g P (dm/dA) sigmoid'(g), straight-through as in training.
    reference : Task or sequence of prompts, optional
        Prompts that "mean" averages over, as long as those of `task`. Default: the clean prompts of `task`.
    metric : {"logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl"} or CustomMetric, optional
        Default: the task's own.
    threads : int, optional
        Default: the number set by `set_num_threads`.
    progress : bool, optional
        Show a bar on stderr. Default: in terminals and notebooks only.

    Returns
    -------
    numpy.ndarray
        float64 [L, H], [L, H, T] or [L, H, query, key], by unit. Positive: the item supports the metric.

    Raises
    ------
    ValueError
        For unknown names, numbers out of range, and path="gate" with anything but edges of a gated model,
        ablation="zero" and steps=1.
    TypeError
        For arguments of another type.

    Notes
    -----
    Gates stay as they are along the way: their step has no derivative.

    References
    ----------
    Syed et al., "Attribution Patching Outperforms Automated Circuit Discovery", 2023. Sundararajan et al.,
    "Axiomatic Attribution for Deep Networks", 2017. The gate's path: arXiv 2512.05865.
    """
    _check.choice(unit, "unit", UNITS)
    _check.choice(path, "path", ("value", "gate"))
    steps = _check.integer(steps, "steps", 1, 2**31 - 1)
    setting = AblationSetting(model, task, unit, ablation, reference, metric, threads)
    config = model.config
    if path == "gate" and (unit != "edge" or not config.gated or ablation != "zero" or steps != 1):
        kind = "gated" if config.gated else "dense"
        raise ValueError(
            "path='gate' is for attention edges of a gated model, with ablation='zero' and steps=1; got "
            f"unit={unit!r}, ablation={ablation!r}, steps={steps} and a {kind} model"
        )
    if unit != "head":
        one_length(task)
    closed = setting.leave_out_closed() if unit == "edge" and config.gated else None
    total = np.zeros(())
    per_token = config.n_layer * (12 * config.d_model + 4 * config.d_mlp) * model.dtype.itemsize
    parts = list(blocks(task, per_token, BLOCK_BYTES, _BLOCK_TOKENS))
    with progress_bar(progress, len(task), "attribution", "prompt") as bar:
        for first, last in parts:
            batch = setting.batch(task.clean[first:last])
            total = total + model._core.attribution(
                batch.tokens, batch.offsets, UNITS.index(unit), steps, path == "gate",
                setting.reference(first, last), closed, setting.metric(batch, first, last),
                DEFAULT_MAX_BYTES, setting.threads,
            )  # fmt: skip
            if bar is not None:
                bar.update(last - first)
    return total / len(task)


# ------------------------------------------------------------------------------------------ checks


def checked_items(model: Model, task: Task, items: npt.ArrayLike) -> tuple[np.ndarray, str]:
    """Items as int32 [n, 2 | 3 | 4] and their unit; IndexError, TypeError or ValueError say what is wrong."""
    check_model_and_task(model, task)
    try:
        array = np.asarray(items)
    except ValueError:
        raise ValueError("items must all have the same number of columns") from None
    if array.ndim != 2 or array.shape[1] not in _COLUMNS:
        raise ValueError(
            "items must have shape [n, 2] (layer, head), [n, 3] (layer, head, position) or [n, 4] (layer, "
            f"head, query, key), got {array.shape}"
        )
    if array.dtype.kind not in "iu":
        raise TypeError(f"items must be integers, got {array.dtype}")
    unit, config = _COLUMNS[array.shape[1]], model.config
    limits = [config.n_layer, config.n_head]
    if unit != "head":
        limits += [one_length(task)] * (array.shape[1] - 2)
    for column, (limit, name) in enumerate(zip(limits, ("layer", "head", "position", "key"))):
        bad = np.flatnonzero((array[:, column] < 0) | (array[:, column] >= limit))
        if len(bad):
            value = int(array[bad[0], column])
            raise IndexError(f"item {int(bad[0])} has {name} {value}, which is out of range 0..{limit - 1}")
    if unit == "edge" and (array[:, 3] > array[:, 2]).any():
        at = int(np.argmax(array[:, 3] > array[:, 2]))
        raise IndexError(f"item {at} has key {int(array[at, 3])} after its query {int(array[at, 2])}")
    chosen = np.ascontiguousarray(array, np.int32)
    if len(np.unique(chosen, axis=0)) != len(chosen):
        raise ValueError(_repeated(chosen))
    return chosen, unit


def _repeated(items: np.ndarray) -> str:
    """The first row that repeats one before it."""
    _, first, which = np.unique(items, axis=0, return_index=True, return_inverse=True)
    before = first[which.ravel()]
    row = int(np.argmax(before < np.arange(len(items))))
    return f"items must be unique; row {row} repeats row {int(before[row])}"
