"""How `effects` asks the core: what ablated items are replaced by, the metric, variants of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _check
from .._core_types import Interventions, Metric, Reference
from .._display import progress_bar
from ..model.batch import Batch, as_batch
from ..model.interventions import ABLATIONS
from ..model.model import Model
from ..model.run import DEFAULT_MAX_BYTES
from ..tasks.custom import CustomMetric, chosen_metric
from ..tasks.metrics import packed
from ..tasks.task import Task
from .choices import UNITS

KEPT = np.int32(-1)  # rank of items that no variant ablates
NEVER = np.int32(2**31 - 2)  # of items that every variant ablates
CLOSED = np.int32(2**31 - 1)  # of entries that every variant ablates and nothing replaces (asp.h)
BLOCK_BYTES = 2**28  # activations of the clean prompts that are held at once
_VARIANTS = 8192  # of one call into the core; the bar moves after each


def one_length(task: Task, what: str = "items with positions") -> int:
    """Tokens of every prompt; ValueError if they differ, saying what needs prompts of one length."""
    lengths = [len(row) for row in task.clean]
    for i, length in enumerate(lengths):
        if length != lengths[0]:
            raise ValueError(
                f"{what} need prompts of one length: in task {task.name!r} prompt 0 has "
                f"{lengths[0]} tokens, prompt {i} has {length}; take a subset"
            )
    return lengths[0]


def blocks(
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


def open_entries(model: Model, task: Task, threads: int | None) -> np.ndarray:
    """bool [L, H, query, key]: the gate is open in at least one clean prompt."""
    config, length = model.config, one_length(task)
    found = np.zeros((config.n_layer, config.n_head, length, length), bool)
    for first, last in blocks(task, config.n_layer * config.n_head * length, BLOCK_BYTES):
        run = model.run(list(task.clean[first:last]), record="gate", logits="none", threads=threads)
        found |= run.gate.any(axis=0)
    return found


def check_model_and_task(model: object, task: object) -> None:
    """TypeError if they are something else."""
    _check.instance(model, Model, "model")
    _check.instance(task, Task, "task")


@dataclass
class AblationSetting:
    """What ablated items are replaced by, and the metric, as the core takes them."""

    model: Model
    task: Task
    unit: str
    ablation: str
    reference_prompts: Any
    metric_asked: str | CustomMetric | None
    threads_asked: int | None

    def __post_init__(self) -> None:
        check_model_and_task(self.model, self.task)
        _check.choice(self.ablation, "ablation", ABLATIONS)
        self.measured = chosen_metric(self.metric_asked, self.task)
        self.threads = _check.threads(self.threads_asked)
        self.means: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
        if self.ablation == "mean":
            self.means = self._means()
        if self.reference_prompts is not None and self.ablation != "mean":
            raise ValueError(f"reference is for ablation='mean' alone, got ablation={self.ablation!r}")

    def batch(self, prompts: Iterable[Any]) -> Batch:
        return as_batch(self.model, list(prompts) if isinstance(prompts, Iterator) else prompts, False)

    def run(self, batch: Batch, names: tuple[str, ...], logits: int = 0, changes: Any = None) -> Any:
        return self.model._core.run(
            batch.tokens, batch.offsets, names, logits, DEFAULT_MAX_BYTES, None, self.threads, changes
        )

    def reference_run(self, batch: Batch) -> Any:
        """A run that recorded what ablated items of the unit are replaced by."""
        return self.run(batch, ("z", "pattern", "qkv") if self.unit == "edge" else ("z",))

    def _means(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Mean z [L, T, H, D] and, for edges, mean contributions A v [L, H, T, T, D] over the reference."""
        length = one_length(self.task, "means are taken per position, so they")
        given = self.task if self.reference_prompts is None else self.reference_prompts
        prompts = getattr(given, "clean", given)
        if isinstance(prompts, str) or not isinstance(prompts, Iterable):
            raise TypeError(f"reference must be a Task or a list of prompts, got {type(given).__name__}")
        batch = self.batch(prompts)
        for i, n in enumerate(batch.lengths.tolist()):
            if n != length:
                raise ValueError(
                    f"means are taken per position: reference prompt {i} has {n} tokens, the task {length}"
                )
        run = self.reference_run(batch)
        z = run.array("z")
        mean = z.reshape(len(z), len(batch), length, *z.shape[2:]).mean(axis=1, dtype=np.float64)
        return mean.astype(z.dtype), run.mean_entries() if self.unit == "edge" else None

    def leave_out_closed(self) -> np.ndarray | None:
        """Take entries that no clean prompt opens out of the means; return them if prompts are paired."""
        if self.ablation == "zero":
            return None
        closed = ~open_entries(self.model, self.task, self.threads_asked)
        if self.ablation == "counterfactual":
            return closed
        _, means = self.means
        assert means is not None  # of edges
        entries = np.where(closed[..., None], 0, means).astype(self.model.dtype)
        self.means = np.ascontiguousarray(entries.sum(axis=3).swapaxes(1, 2)), entries
        return None

    def reference(self, first: int, last: int) -> Reference:
        """What ablated items of prompts first..last-1 are replaced by."""
        if self.ablation != "counterfactual":
            return Reference(None, *self.means)
        batch = self.batch(self.task.corrupted[first:last])
        return Reference(self.reference_run(batch))

    def metric(self, batch: Batch, first: int, last: int) -> Metric:
        """The metric of prompts first..last-1; "kl" compares with the logits of the whole model."""
        answers, wrong = packed(self.task.answers[first:last]), packed(self.task.wrong[first:last])
        if isinstance(self.measured, CustomMetric):
            own = self.measured.for_prompts(range(first, last))
            return Metric("custom", *answers, *wrong, custom=own)
        logits = self.run(batch, (), 1).array("logits") if self.measured == "kl" else None
        return Metric(self.measured, *answers, *wrong, logits)


class AblationSweep(AblationSetting):
    """Evaluates variants of all prompts of a task."""

    def order(self, items: np.ndarray, others: np.int32) -> np.ndarray:
        """Rank of every item of the unit, flat; `others` for those that are not listed."""
        config = self.model.config
        shape: tuple[int, ...] = (config.n_layer, config.n_head)
        if self.unit != "head":
            shape += (one_length(self.task),) * (items.shape[1] - 2)
        order = np.full(shape, others, np.int32)
        if self.unit == "edge" and self.model.config.gated and self.ablation != "zero" and others == NEVER:
            order[...] = CLOSED
            order[open_entries(self.model, self.task, self.threads_asked)] = others
        order[tuple(items.T)] = np.arange(len(items), dtype=np.int32)
        return order

    def values(
        self,
        order: np.ndarray,
        variants: Callable[[int], np.ndarray],
        n: int,
        progress: bool | None = False,
        text: str = "",
        reaches: Callable[[int], np.ndarray] | None = None,
        start_ablated: bool = False,
    ) -> np.ndarray:
        """The metric of n variants of each prompt: float64 [n, prompts].

        variants(T) -> int64 [n, 6]: start layer, first position, narrow, begin, end, except (`asp_variant`).
        reaches(T) -> bool [n]: the others have the value of the last variant.
        start_ablated: variants differ from a run in which all that the order always ablates is ablated.
        """
        values = np.empty((n, len(self.task)))
        config = self.model.config
        width = config.n_head * config.d_head
        per_token = 8 * ((config.n_layer + 1) * config.d_model + 3 * config.n_layer * width)
        with progress_bar(progress, n * len(self.task), text, "run") as bar:
            for first, last in blocks(self.task, per_token, BLOCK_BYTES):
                batch, reference = self.batch(self.task.clean[first:last]), self.reference(first, last)
                changes = self._always(order, batch, reference) if start_ablated else None
                clean, metric = self.run(batch, ("resid", "qkv"), 0, changes), self.metric(batch, first, last)
                rows, columns, listed = self._listed(batch, variants, reaches, n)
                for begin in range(0, len(rows), _VARIANTS):
                    part = slice(begin, begin + _VARIANTS)
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
                    for b, length in enumerate(batch.lengths.tolist()):
                        missed = ~reaches(length)
                        values[missed, first + b] = values[-1, first + b]
        return values

    def _always(self, order: np.ndarray, batch: Batch, reference: Reference) -> Interventions:
        """Interventions of a run (see `_core.Model.run`) that ablate what the order always ablates."""
        config, n = self.model.config, len(batch)
        of_heads, of_entries = np.zeros((0, 4), np.int64), np.zeros((0, 5), np.int64)
        head_values = np.zeros((0, config.d_head), self.model.dtype)
        entry_values: np.ndarray | None = head_values
        looks_back = np.tri(order.shape[-1], dtype=bool) if self.unit == "edge" else True
        places = np.argwhere((order >= NEVER) & looks_back)
        sequence = np.repeat(np.arange(n), len(places))
        if self.unit == "edge":
            layer, head, query, key = np.tile(places, (n, 1)).T
            of_entries = np.stack([layer, sequence, head, query, key], axis=1)
            values = self._entries(batch, reference, sequence, layer, head, query, key)
            entry_values = (
                None if values is None else values * (order < CLOSED)[layer, head, query, key, None]
            )
        else:
            if self.unit == "head":
                each = [
                    np.argwhere(np.broadcast_to(order[..., None] >= NEVER, (*order.shape, t)))
                    for t in batch.lengths
                ]
                sequence = np.repeat(np.arange(n), [len(rows) for rows in each])
                layer, head, position = np.concatenate(each).T
            else:
                layer, head, position = np.tile(places, (n, 1)).T
            of_heads = np.stack([layer, sequence, head, position], axis=1)
            head_values = self._z(batch, reference, layer, sequence, head, position)
        nothing = np.zeros((0, config.d_model), self.model.dtype)
        mlps, resids = np.zeros((0, 3), np.int64), np.zeros((0, 4), np.int64)
        return Interventions(of_heads, head_values, of_entries, entry_values, mlps, nothing, resids, nothing)

    def _z(
        self, batch: Batch, reference: Any, layer: Any, sequence: Any, head: Any, position: Any
    ) -> np.ndarray:
        """What z [n, D] of ablated heads is."""
        run, mean, _ = reference
        z: np.ndarray
        if run is not None:
            z = run.array("z")[layer, batch.offsets[sequence] + position, head]
            return z
        if mean is not None:
            z = mean[layer, position, head]
            return z
        return np.zeros((len(layer), self.model.config.d_head), self.model.dtype)

    def _entries(
        self, batch: Batch, reference: Any, sequence: Any, layer: Any, head: Any, query: Any, key: Any
    ) -> np.ndarray | None:
        """What ablated entries contribute, [n, D]; None for nothing."""
        run, _, mean = reference
        found: np.ndarray
        if run is None:
            if mean is None:
                return None
            found = mean[layer, head, query, key]
            return found
        config, length = self.model.config, int(batch.lengths[0])
        pattern = run.array("pattern").reshape(len(batch), config.n_layer, config.n_head, length, length)
        values = run.array("qkv")[layer, batch.offsets[sequence] + key, 2, head]
        found = pattern[sequence, layer, head, query, key][:, None] * values
        return found

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
