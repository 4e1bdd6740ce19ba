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

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _check
from .._display import stage_bars
from ..model.interventions import ABLATIONS
from ..model.model import Model
from ..model.run import DEFAULT_MAX_BYTES
from ..tasks.custom import CustomMetric
from ..tasks.metrics import METRICS
from ..tasks.task import Task
from .asked import effect_options, packed_task, told_options
from .choices import UNITS
from .effect_work import EffectWork
from .resumed import in_values, summed, sweep_question

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
    asked = packed_task(model, task, metric)
    return model._core.whole(asked, _check.threads(threads))


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
    asked = packed_task(model, task, None)
    return model._core.candidates(asked, _check.choice(unit, "unit", UNITS), _check.threads(threads))


def knock_out(
    model: Model,
    task: Task,
    items: npt.ArrayLike,
    ablation: str = "zero",
    *,
    reference: Task | Iterable[Any] | None = None,
    metric: str | CustomMetric | None = None,
    resume: str | os.PathLike[str] | None = None,
    executor: Any = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
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
    resume : path, optional
        File that keeps the rows that are measured; its name gets the ending .search.safetensors unless it
        ends in .safetensors. It is written about every 30 seconds, on Ctrl-C, and at the end. If it exists,
        the call continues from there and finds the same bits as without the stop. It is not removed. The
        functions of a `CustomMetric` are known by its name alone.
    executor : concurrent.futures.Executor or Dask Client, optional
        Whose workers measure the rows, in pieces that do not depend on their number: the bits are those of a
        call without. See docs/cluster.md.
    max_bytes : int, default 4 GiB
        What the call may allocate; with less, it takes fewer prompts at a time.
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
    FormatError
        If the file `resume` is damaged, or with the code question if it is of another call.
    OSError
        If that file cannot be read or written.
    RuntimeError
        For a piece that failed three times in the workers of an executor, unless it is one of the above.
    """
    chosen, unit = _checked_items(items)
    asked = packed_task(model, task, metric)
    options = effect_options(model, unit, ablation, reference, max_bytes)
    job = EffectWork(model, task.name, asked, options, threads).knock_out(chosen)

    def question() -> dict[str, Any]:
        given = {"items": chosen, **told_options(options)}
        return sweep_question(model, task, metric, "knock-out", **given)

    with stage_bars(progress) as tell:
        return in_values(job, tell, executor, resume, question)


def keep_only(
    model: Model,
    task: Task,
    items: npt.ArrayLike,
    sizes: Sequence[int] | np.ndarray,
    ablation: str = "zero",
    *,
    reference: Task | Iterable[Any] | None = None,
    metric: str | CustomMetric | None = None,
    resume: str | os.PathLike[str] | None = None,
    executor: Any = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
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
    resume : path, optional
        File that keeps the rows that are measured; its name gets the ending .search.safetensors unless it
        ends in .safetensors. It is written about every 30 seconds, on Ctrl-C, and at the end. If it exists,
        the call continues from there and finds the same bits as without the stop. It is not removed. The
        functions of a `CustomMetric` are known by its name alone.
    executor : concurrent.futures.Executor or Dask Client, optional
        Whose workers measure the rows, in pieces that do not depend on their number: the bits are those of a
        call without. See docs/cluster.md.
    max_bytes : int, default 4 GiB
        What the call may allocate; with less, it takes fewer prompts at a time.
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
    FormatError
        If the file `resume` is damaged, or with the code question if it is of another call.
    OSError
        If that file cannot be read or written.
    RuntimeError
        For a piece that failed three times in the workers of an executor, unless it is one of the above.

    Notes
    -----
    Items that are not listed are always ablated; embeddings and MLPs stay. Entries of a gated model whose
    gates are closed in all clean prompts of the task are not edges: they contribute nothing, whatever their
    mean or their value in the corrupted prompt.
    """
    chosen, unit = _checked_items(items)
    counts = _check.array(sizes, "sizes")
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise TypeError(f"sizes must be a flat sequence of integers, got {_check.shown(sizes)}")
    asked = packed_task(model, task, metric)
    options = effect_options(model, unit, ablation, reference, max_bytes)
    counts = _whole_numbers(counts, np.int64)
    job = EffectWork(model, task.name, asked, options, threads).keep_only(chosen, counts)

    def question() -> dict[str, Any]:
        given = {"items": chosen, "sizes": counts, **told_options(options)}
        return sweep_question(model, task, metric, "keep only", **given)

    with stage_bars(progress) as tell:
        return in_values(job, tell, executor, resume, question)


def leave_one_out(
    model: Model,
    task: Task,
    items: npt.ArrayLike,
    ablation: str = "zero",
    *,
    reference: Task | Iterable[Any] | None = None,
    metric: str | CustomMetric | None = None,
    resume: str | os.PathLike[str] | None = None,
    executor: Any = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
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
    resume : path, optional
        File that keeps the rows that are measured; its name gets the ending .search.safetensors unless it
        ends in .safetensors. It is written about every 30 seconds, on Ctrl-C, and at the end. If it exists,
        the call continues from there, and finds the same bits as without the stop or the file. It is not
        removed. The functions of a `CustomMetric` are known by its name alone.
    executor : concurrent.futures.Executor or Dask Client, optional
        Whose workers measure the rows, in pieces that do not depend on their number: the bits are those of a
        call without. See docs/cluster.md.
    max_bytes : int, default 4 GiB
        What the call may allocate; with less, it takes fewer prompts at a time.
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
    FormatError
        If the file `resume` is damaged, or with the code question if it is of another call.
    OSError
        If that file cannot be read or written.
    RuntimeError
        For a piece that failed three times in the workers of an executor, unless it is one of the above.
    """
    chosen, unit = _checked_items(items)
    asked = packed_task(model, task, metric)
    options = effect_options(model, unit, ablation, reference, max_bytes)
    job = EffectWork(model, task.name, asked, options, threads).leave_one_out(chosen)

    def question() -> dict[str, Any]:
        given = {"items": chosen, **told_options(options)}
        return sweep_question(model, task, metric, "leave one out", **given)

    with stage_bars(progress) as tell:
        return in_values(job, tell, executor, resume, question)


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
    resume: str | os.PathLike[str] | None = None,
    executor: Any = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
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
    resume : path, optional
        File that keeps the sums over the prompts that are done; its name gets the ending
        .search.safetensors unless it ends in .safetensors. It is written about every 30 seconds, on Ctrl-C,
        and at the end. If it exists, the call continues from there and finds the same bits as without the
        stop. It is refused with another `max_bytes`. It is not removed. The functions of a `CustomMetric` are
        known by its name alone.
    executor : concurrent.futures.Executor or Dask Client, optional
        Whose workers compute the sums, in pieces that do not depend on their number: the bits are those of a
        call without. See docs/cluster.md.
    max_bytes : int, default 4 GiB
        What the call may allocate; with less, it takes fewer prompts at a time.
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
    FormatError
        If the file `resume` is damaged, or with the code question if it is of another call.
    OSError
        If that file cannot be read or written.
    RuntimeError
        For a piece that failed three times in the workers of an executor, unless it is one of the above.

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
    asked = packed_task(model, task, metric)
    options = effect_options(model, unit, ablation, reference, max_bytes)
    config = model.config
    if path == "gate" and (unit != "edge" or not config.gated or ablation != "zero" or steps != 1):
        kind = "gated" if config.gated else "dense"
        raise ValueError(
            "path='gate' is for attention edges of a gated model, with ablation='zero' and steps=1; got "
            f"unit={unit!r}, ablation={ablation!r}, steps={steps} and a {kind} model"
        )
    job = EffectWork(model, task.name, asked, options, threads).attribution(steps, path == "gate")

    def question() -> dict[str, Any]:
        # unlike values, the last bits of sums can depend on how many prompts fit into the memory at once
        given = {"path": path, "steps": steps, "max_bytes": max_bytes, **told_options(options)}
        return sweep_question(model, task, metric, "attribution", **given)

    with stage_bars(progress) as tell:
        return summed(job, tell, executor, resume, question) / len(task)


def _checked_items(items: npt.ArrayLike) -> tuple[np.ndarray, str]:
    """Items as int32 [n, 2 | 3 | 4] and their unit; TypeError or ValueError say what is wrong."""
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
    return _whole_numbers(array, np.int32), _COLUMNS[array.shape[1]]


def _whole_numbers(array: np.ndarray, kind: type[np.signedinteger[Any]]) -> np.ndarray:
    """Integers of a kind; those beyond it stay out of range of what they count."""
    limits = np.iinfo(kind)
    return np.ascontiguousarray(np.clip(array, limits.min, limits.max), kind)
