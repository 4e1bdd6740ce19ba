"""Exact and first-order effects of heads, heads at positions, and attention edges on a task's metric.

Everything here is a forward pass (or a gradient) of the real model with some items ablated, computed in the C
core: what lies before a change is taken from the clean run, what comes after is recomputed, and many such
variants are computed together. Items are whole-number arrays: heads [n, 2] (layer, head), heads at positions
[n, 3] (layer, head, position), attention edges [n, 4] (layer, head, query, key). Results are float64 with one
column for every prompt of the task, so that means, intervals and normalisations are left to the caller.

Ablations: "zero" (z of a head, or an attention entry, is 0), "mean" (z at its position, or the entry's
contribution A v, is its mean over reference prompts), "counterfactual" (what it is in the task's corrupted
prompt). A metric is read after the last token: "logit_diff", "logit_diff_max", "prob_diff" as in
`tasks.Task`, "log_prob" (nats, all answers together) or "kl" (from the whole model's distribution to the
ablated one's, nats); None is the task's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._display import progress_bar
from ..model.interventions import ABLATIONS
from ..model.run import DEFAULT_MAX_BYTES
from ..tasks.metrics import METRICS
from . import effects_sweep
from .effects_sweep import (
    BLOCK_BYTES,
    KEPT,
    NEVER,
    Setting,
    Sweep,
    blocks,
    check_model_and_task,
    one_length,
    open_entries,
)

if TYPE_CHECKING:
    from ..model.model import Model
    from ..tasks.task import Task

__all__ = [
    "ABLATIONS",
    "METRICS",
    "UNITS",
    "attribution",
    "candidates",
    "keep_only",
    "keep_without",
    "knock_out",
    "metric_values",
]

UNITS = effects_sweep.UNITS
"""What is ablated as a whole: "head", "head_position" (a head at one position), "edge" (an entry)."""

_COLUMNS = {2: "head", 3: "head_position", 4: "edge"}
_BLOCK_TOKENS = 4096  # of one backward pass


def metric_values(
    model: Model, task: Task, *, metric: str | None = None, threads: int | None = None
) -> np.ndarray:
    """The metric of the whole model on every prompt: float64 [prompts]."""
    sweep = Sweep(model, task, "head", "zero", None, metric, threads)
    config = model.config
    order = np.full((config.n_layer, config.n_head), KEPT)
    values = sweep.values(order, lambda length: np.array([[config.n_layer - 1, length - 1, 0, 0, 0, -1]]), 1)
    return values[0]


def candidates(model: Model, task: Task, unit: str, threads: int | None = None) -> np.ndarray:
    """Every item that can have an effect: int32 [n, 2 | 3 | 4], in the order layer, head, query, key.

    All heads; all heads at all positions; all edges that are open in at least one clean prompt (in a dense
    model all of them). Prompts must have one length, except for heads: ValueError.
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
    items: Any,
    ablation: str = "zero",
    *,
    reference: Any = None,
    metric: str | None = None,
    threads: int | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """The metric with each item alone ablated, exactly: float64 [items, prompts].

    reference: prompts (a Task's clean ones, or a list) that means are taken over; default: those of `task`.
    The effect of an item is `metric_values(...)` minus its row.
    """
    chosen, unit = checked_items(model, task, items)
    sweep = Sweep(model, task, unit, ablation, reference, metric, threads)
    return _each_alone(sweep, chosen, sweep.order(chosen, others=KEPT), progress, "knock-out")


def _each_alone(
    sweep: Sweep, items: np.ndarray, order: np.ndarray, progress: bool | None, text: str
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
    items: Any,
    sizes: Sequence[int] | np.ndarray,
    ablation: str = "zero",
    *,
    reference: Any = None,
    metric: str | None = None,
    threads: int | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """The metric with `items[:n]` kept, everything else of the unit ablated: float64 [sizes, prompts].

    sizes: the n, each in 0..len(items). Items that are not listed are always ablated; embeddings and MLPs
    stay. Entries of a gated model whose gates are closed in all clean prompts of the task are no edges: they
    contribute nothing, whatever their mean or their value in the corrupted prompt.
    """
    chosen, unit = checked_items(model, task, items)
    counts = np.asarray(sizes)
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise TypeError("sizes must be a flat sequence of integers")
    if counts.size and not (counts.min() >= 0 and counts.max() <= len(chosen)):
        raise ValueError(f"sizes must be in 0..{len(chosen)}, the number of items")
    sweep = Sweep(model, task, unit, ablation, reference, metric, threads)
    rows = np.zeros((len(counts), 6), np.int64)
    rows[:, 4], rows[:, 5] = counts, -1
    return sweep.values(sweep.order(chosen, others=NEVER), lambda _: rows, len(rows), progress, "keep only")


def keep_without(
    model: Model,
    task: Task,
    items: Any,
    ablation: str = "zero",
    *,
    reference: Any = None,
    metric: str | None = None,
    threads: int | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """The metric with all `items` kept except each one in turn: float64 [items, prompts].

    Everything else of the unit is ablated, as in `keep_only`. Backward elimination is made of this.
    """
    chosen, unit = checked_items(model, task, items)
    sweep = Sweep(model, task, unit, ablation, reference, metric, threads)
    order = sweep.order(chosen, others=NEVER)
    return _each_alone(sweep, chosen, order, progress, "keep without")


def attribution(
    model: Model,
    task: Task,
    unit: str,
    ablation: str = "zero",
    *,
    steps: int = 1,
    path: str = "value",
    reference: Any = None,
    metric: str | None = None,
    threads: int | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """First-order effects of all items, mean over prompts: float64 [L, H], [L, H, T] or [L, H, query, key].

    Every item gets a factor m between what it is ablated to (0) and what it is (1). steps=1: the derivative
    of the metric with respect to m at the whole model, which is gradient times difference (attribution
    patching). steps=k: the derivative averaged along m = (j - 1/2)/k of all items at once (integrated
    gradients, Sundararajan et al. 2017), whose sum over items tends to m(M) - m(0) with growing k. Positive:
    the item supports the metric. Gates stay as they are along the way: their step has no derivative.

    path="gate" (edges of a gated model): instead, to first order, what the metric would lose if the gate
    logit g of each entry were moved to the threshold: g P (dm/dA) sigmoid'(g), straight-through as in
    training (method of arXiv 2512.05865).
    """
    _check.choice(unit, "unit", UNITS)
    _check.choice(path, "path", ("value", "gate"))
    if not 1 <= _check.integer(steps, "steps") < 2**31:
        raise ValueError(f"steps must be in 1..2^31-1, got {steps}")
    setting = Setting(model, task, unit, ablation, reference, metric, threads)
    config = model.config
    if path == "gate" and (unit != "edge" or not config.gated or ablation != "zero" or steps != 1):
        raise ValueError(
            "path='gate' is for attention edges of a gated model, with ablation='zero' and steps=1"
        )
    if unit != "head":
        one_length(task)
    closed = setting.leave_out_closed() if unit == "edge" and config.gated else None
    total: Any = 0
    per_token = config.n_layer * (12 * config.d_model + 4 * config.d_mlp) * model.dtype.itemsize
    parts = list(blocks(task, per_token, BLOCK_BYTES, _BLOCK_TOKENS))
    with progress_bar(progress, len(task), "attribution", "prompt") as bar:
        for first, last in parts:
            batch = setting.batch(task.clean[first:last])
            total = total + model._core.attribution(
                batch.tokens, batch.offsets, UNITS.index(unit), int(steps), path == "gate",
                setting.reference(first, last), closed, setting.metric(batch, first, last),
                DEFAULT_MAX_BYTES, setting.threads,
            )  # fmt: skip
            if bar is not None:
                bar.update(last - first)
    return total / len(task)


# ------------------------------------------------------------------------------------------ checks


def checked_items(model: Model, task: Task, items: Any) -> tuple[np.ndarray, str]:
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
        raise ValueError("items must differ from each other; some stand twice")
    return chosen, unit
