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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .batch import Batch, as_batch
from .engine import checked_threads
from .progress import progress_bar
from .run import DEFAULT_MAX_BYTES

if TYPE_CHECKING:
    from .model import Model
    from .tasks_object import Task

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

UNITS = ("head", "head_position", "edge")
ABLATIONS = ("zero", "mean", "counterfactual")
METRICS = ("logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl")

_COLUMNS = {2: "head", 3: "head_position", 4: "edge"}
_BLOCK_BYTES = 2**28  # activations of the clean prompts that are held at once
_BLOCK_TOKENS = 4096  # of one backward pass
_VARIANTS = 8192  # of one call into the core; the bar moves after each
_CLOSED = np.int32(2**31 - 1)  # rank of entries that no variant keeps and nothing replaces (asp.h)
_NEVER = np.int32(2**31 - 2)  # rank of items that no variant keeps


def metric_values(
    model: Model, task: Task, *, metric: str | None = None, threads: int | None = None
) -> np.ndarray:
    """The metric of the whole model on every prompt: float64 [prompts]."""
    config = model.config
    order = np.full((config.n_layer, config.n_head), -1, np.int32)
    sweep = _Sweep(model, task, "head", "zero", None, metric, threads)
    values = sweep.values(order, lambda length: np.array([[config.n_layer - 1, length - 1, 0, 0, 0, -1]]), 1)
    return values[0]


def candidates(model: Model, task: Task, unit: str, threads: int | None = None) -> np.ndarray:
    """Every item that can have an effect: int32 [n, 2 | 3 | 4], in the order layer, head, query, key.

    All heads; all heads at all positions; all edges that are open in at least one clean prompt (in a dense
    model all of them). Prompts must have one length, except for heads: ValueError.
    """
    config = model.config
    heads = (config.n_layer, config.n_head)
    if _one_of("unit", unit, UNITS) == "head":
        return np.argwhere(np.ones(heads, bool)).astype(np.int32)
    length = _one_length(task)
    if unit == "head_position":
        return np.argwhere(np.ones((*heads, length), bool)).astype(np.int32)
    if not config.gated:
        return np.argwhere(np.broadcast_to(np.tri(length, dtype=bool), (*heads, length, length))).astype(
            np.int32
        )
    is_open = np.zeros((*heads, length, length), bool)
    for first, last in _blocks(task, config.n_layer * config.n_head * length, _BLOCK_BYTES):
        run = model.run(list(task.clean[first:last]), record="gate", logits="none", threads=threads)
        is_open |= run.gate.any(axis=0)
    return np.argwhere(is_open).astype(np.int32)


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
    sweep = _Sweep(model, task, unit, ablation, reference, metric, threads)
    order = sweep.order(chosen, others=np.int32(-1))
    last_layer = model.config.n_layer - 1

    def variants(length: int) -> np.ndarray:
        rows = np.zeros((len(chosen) + 1, 6), np.int64)
        rows[:-1, 0] = chosen[:, 0]
        if unit != "head":
            rows[:-1, 1], rows[:-1, 2] = chosen[:, 2], chosen[:, 0] < last_layer
        rows[:, 4], rows[:, 5] = len(chosen), np.append(np.arange(len(chosen)), -1)
        rows[-1, :2] = last_layer, length - 1  # nothing ablated
        return rows

    values = sweep.values(
        order, variants, len(chosen) + 1, progress, "knock-out", _reaches(unit, chosen, last_layer)
    )
    return values[:-1]


def _reaches(unit: str, items: np.ndarray, last_layer: int) -> Any:
    """Which variants of `knock_out` can matter at all: not those of the last layer before the last token."""
    if unit == "head":
        return None
    return lambda length: np.append((items[:, 0] < last_layer) | (items[:, 2] == length - 1), True)


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
        raise TypeError("sizes must be a flat sequence of whole numbers")
    if counts.size and not (counts.min() >= 0 and counts.max() <= len(chosen)):
        raise ValueError(f"sizes must be in 0..{len(chosen)}, the number of items")
    sweep = _Sweep(model, task, unit, ablation, reference, metric, threads)
    rows = np.zeros((len(counts), 6), np.int64)
    rows[:, 4], rows[:, 5] = counts, -1
    return sweep.values(sweep.order(chosen, others=_NEVER), lambda _: rows, len(rows), progress, "keep only")


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
    sweep = _Sweep(model, task, unit, ablation, reference, metric, threads)
    rows = np.zeros((len(chosen), 6), np.int64)
    rows[:, 4], rows[:, 5] = len(chosen), np.arange(len(chosen))
    return sweep.values(
        sweep.order(chosen, others=_NEVER), lambda _: rows, len(rows), progress, "keep without"
    )


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
    config = model.config
    _one_of("unit", unit, UNITS)
    _one_of("path", path, ("value", "gate"))
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r:.60}")
    if path == "gate" and (unit != "edge" or not config.gated):
        raise ValueError("path='gate' is for attention edges of a gated model")
    if unit != "head":
        _one_length(task)
    setting = _Setting(model, task, unit, ablation, reference, metric, threads)
    total: Any = 0
    per_token = config.n_layer * (12 * config.d_model + 4 * config.d_mlp) * model.dtype.itemsize
    blocks = list(_blocks(task, per_token, _BLOCK_BYTES, _BLOCK_TOKENS))
    with progress_bar(progress, len(task), "attribution", "prompt") as bar:
        for first, last in blocks:
            batch = setting.batch(task.clean[first:last])
            total = total + model._core.attribution(
                batch.tokens, batch.offsets, UNITS.index(unit), steps, path == "gate",
                setting.reference(first, last), setting.metric(batch, first, last),
                DEFAULT_MAX_BYTES, setting.threads,
            )  # fmt: skip
            if bar is not None:
                bar.update(last - first)
    return total / len(task)


# ------------------------------------------------------------------------------------------ checks


def checked_items(model: Model, task: Task, items: Any) -> tuple[np.ndarray, str]:
    """Items as int32 [n, 2 | 3 | 4] and their unit; IndexError, TypeError or ValueError say what is wrong."""
    array = np.asarray(items)
    if array.ndim != 2 or array.shape[1] not in _COLUMNS:
        raise ValueError(
            "items must have shape [n, 2] (layer, head), [n, 3] (layer, head, position) or [n, 4] (layer, "
            f"head, query, key), got {array.shape}"
        )
    if array.dtype.kind not in "iu":
        raise TypeError(f"items must be whole numbers, got {array.dtype}")
    unit, config = _COLUMNS[array.shape[1]], model.config
    limits = [config.n_layer, config.n_head]
    if unit != "head":
        limits += [_one_length(task)] * (array.shape[1] - 2)
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


def _one_of(name: str, value: Any, known: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r:.60}")
    return value


def _one_length(task: Task) -> int:
    """Tokens of every prompt; ValueError if they differ."""
    lengths = [len(row) for row in task.clean]
    for i, length in enumerate(lengths):
        if length != lengths[0]:
            raise ValueError(
                f"items with positions need prompts of one length: in task {task.name!r} prompt 0 has "
                f"{lengths[0]} tokens, prompt {i} has {length}; take a subset or unit='head'"
            )
    return lengths[0]


def _blocks(
    task: Task, bytes_per_token: int, most_bytes: int, most_tokens: int = 2**62
) -> Iterator[tuple[int, int]]:
    """Ranges of prompts, at least one each, within the limits."""
    first = tokens = 0
    most = min(most_tokens, max(1, most_bytes // bytes_per_token))
    for i, row in enumerate(task.clean):
        if i > first and tokens + len(row) > most:
            yield first, i
            first, tokens = i, 0
        tokens += len(row)
    yield first, len(task)


# ------------------------------------------------------------------------------------------ settings


@dataclass
class _Setting:
    """What ablated items are replaced by, and the metric, as the core takes them."""

    model: Model
    task: Task
    unit: str
    ablation: str
    reference_prompts: Any
    metric_name: str | None
    threads_asked: int | None

    def __post_init__(self) -> None:
        _one_of("ablation", self.ablation, ABLATIONS)
        self.kind = (
            self.task.metric if self.metric_name is None else _one_of("metric", self.metric_name, METRICS)
        )
        self.threads = checked_threads(self.threads_asked)
        self.means = self._means() if self.ablation == "mean" else (None, None)
        if self.reference_prompts is not None and self.ablation != "mean":
            raise ValueError(f"reference prompts are for ablation='mean', this is {self.ablation!r}")

    def batch(self, prompts: Sequence[Any]) -> Batch:
        return as_batch(self.model, list(prompts), False)

    def run(self, batch: Batch, names: tuple[str, ...], logits: int = 0) -> Any:
        return self.model._core.run(
            batch.tokens, batch.offsets, names, logits, DEFAULT_MAX_BYTES, None, self.threads
        )

    def _means(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Mean z [L, T, H, D] and, for edges, mean contributions A v [L, H, T, T, D] over the reference."""
        length = _one_length(self.task)
        given = self.task if self.reference_prompts is None else self.reference_prompts
        batch = self.batch(getattr(given, "clean", given))
        for i, n in enumerate(batch.lengths.tolist()):
            if n != length:
                raise ValueError(
                    f"means are taken per position: reference prompt {i} has {n} tokens, the task {length}"
                )
        run = self.run(batch, ("z", "pattern", "qkv") if self.unit == "edge" else ("z",))
        z = run.array("z")
        mean = z.reshape(len(z), len(batch), length, *z.shape[2:]).mean(axis=1, dtype=np.float64)
        return mean.astype(z.dtype), run.mean_entries() if self.unit == "edge" else None

    def reference(self, first: int, last: int) -> tuple[Any, Any, Any]:
        """(paired run, mean z, mean entries) for prompts first..last-1, None what does not apply."""
        if self.ablation != "counterfactual":
            return (None, *self.means)
        batch = self.batch(self.task.corrupted[first:last])
        return self.run(batch, ("z", "pattern", "qkv") if self.unit == "edge" else ("z",)), None, None

    def metric(self, batch: Batch, first: int, last: int) -> tuple[Any, ...]:
        """(kind, answer starts, answers, wrong starts, wrong, logits of the whole model for "kl")."""
        logits = self.run(batch, (), 1).array("logits") if self.kind == "kl" else None
        return (
            self.kind,
            *_packed(self.task.answers[first:last]),
            *_packed(self.task.wrong[first:last]),
            logits,
        )


def _packed(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Starts (int64 [n + 1]) and ids (int32) of rows one after the other."""
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return starts, np.ascontiguousarray(np.concatenate(rows), np.int32)


class _Sweep(_Setting):
    """Evaluates variants of all prompts of a task."""

    def order(self, items: np.ndarray, others: np.int32) -> np.ndarray:
        """Rank of every item of the unit, flat; `others` for those that are not listed."""
        config = self.model.config
        shape: tuple[int, ...] = (config.n_layer, config.n_head)
        if self.unit != "head":
            shape += (_one_length(self.task),) * (items.shape[1] - 2)
        order = np.full(shape, others, np.int32)
        if self.unit == "edge" and self.model.config.gated and self.ablation != "zero" and others == _NEVER:
            order[...] = _CLOSED
            order[tuple(candidates(self.model, self.task, "edge", self.threads_asked).T)] = others
        order[tuple(items.T)] = np.arange(len(items), dtype=np.int32)
        return order

    def values(
        self,
        order: np.ndarray,
        variants: Any,
        n: int,
        progress: bool | None = False,
        text: str = "",
        reaches: Any = None,
    ) -> np.ndarray:
        """The metric of n variants of each prompt: float64 [n, prompts].

        variants(T) -> int64 [n, 6]: start layer, first position, narrow, begin, end, except (`asp_variant`).
        reaches(T) -> bool [n]: the others have the value of the last variant.
        """
        values = np.empty((n, len(self.task)))
        config = self.model.config
        per_token = (
            (config.n_layer + 1) * config.d_model + 3 * config.n_layer * config.n_head * config.d_head
        ) * 8
        with progress_bar(progress, n * len(self.task), text, "run") as bar:
            for first, last in _blocks(self.task, per_token, _BLOCK_BYTES):
                batch = self.batch(self.task.clean[first:last])
                fixed = (
                    self.run(batch, ("resid", "qkv")),
                    self.reference(first, last),
                    self.metric(batch, first, last),
                )
                rows, columns, listed = self._listed(batch, variants, reaches, n)
                for begin in range(0, len(rows), _VARIANTS):
                    part = slice(begin, begin + _VARIANTS)
                    clean, reference, metric = fixed
                    values[rows[part], first + columns[part]] = self.model._core.sweep(
                        clean,
                        listed[part],
                        UNITS.index(self.unit),
                        order.ravel(),
                        reference,
                        metric,
                        self.threads,
                    )
                    if bar is not None:
                        bar.update(len(rows[part]))
                if reaches is not None:
                    for b in range(last - first):
                        missed = ~reaches(int(batch.lengths[b]))
                        values[missed, first + b] = values[-1, first + b]
        return values

    @staticmethod
    def _listed(
        batch: Batch, variants: Any, reaches: Any, n: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row and column of each variant among the values, and what the core reads, prompt by prompt."""
        rows, columns, listed = [], [], []
        for b, length in enumerate(batch.lengths.tolist()):
            chosen = np.arange(n) if reaches is None else np.flatnonzero(reaches(length))
            rows.append(chosen)
            columns.append(np.full(len(chosen), b))
            listed.append(np.insert(variants(length)[chosen], 0, b, axis=1))
        return (
            np.concatenate(rows),
            np.concatenate(columns),
            np.ascontiguousarray(np.concatenate(listed), np.int64),
        )
