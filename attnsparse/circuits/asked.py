"""Tasks and options of effects as the core takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .. import _check
from .._core_types import EffectOptions, Metric
from .._core_types import Task as PackedTask
from ..model.batch import as_batch
from ..model.interventions import ABLATIONS
from ..model.model import Model
from ..tasks.custom import CustomMetric, chosen_metric
from ..tasks.metrics import packed
from ..tasks.task import Task


def packed_task(model: Model, task: Task, metric: str | CustomMetric | None) -> PackedTask:
    """The task with a metric, None for its own."""
    _check.instance(model, Model, "model")
    _check.instance(task, Task, "task")
    chosen = chosen_metric(metric, task)
    clean, corrupted = as_batch(model, task.clean, False), as_batch(model, task.corrupted, False)
    kind, custom = (chosen, None) if isinstance(chosen, str) else ("custom", chosen)
    of_task = Metric(kind, *packed(task.answers), *packed(task.wrong), custom=custom)
    return PackedTask(clean.tokens, clean.offsets, corrupted.tokens, of_task)


def part_of_task(task: PackedTask, first: int, end: int) -> PackedTask:
    """Prompts first..end - 1 of a task."""
    if (first, end) == (0, len(task.offsets) - 1):
        return task
    tokens = slice(*task.offsets[[first, end]])
    m = task.metric
    metric = Metric(
        m.kind,
        *_part_of_rows(m.answer_start, m.answers, first, end),
        *_part_of_rows(m.wrong_start, m.wrong, first, end),
        custom=None if m.custom is None else m.custom.for_prompts(np.arange(first, end)),
    )
    offsets = task.offsets[first : end + 1] - task.offsets[first]
    corrupted = None if task.corrupted is None else task.corrupted[tokens]
    return PackedTask(task.tokens[tokens], offsets, corrupted, metric)


def _part_of_rows(starts: np.ndarray, ids: np.ndarray, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    return starts[first : end + 1] - starts[first], ids[slice(*starts[[first, end]])]


def check_lengths(task: PackedTask, what: str) -> None:
    """ValueError for prompts of different lengths, which `what` does not have."""
    lengths = np.diff(task.offsets)
    others = np.flatnonzero(lengths != lengths[0])
    if len(others):
        raise ValueError(
            f"{what} need prompts of one length: prompt 0 has {lengths[0]} tokens, prompt {others[0]} has "
            f"{lengths[others[0]]}; take a subset"
        )


def effect_options(
    model: Model, unit: str, ablation: str, reference: Task | Iterable[Any] | None, max_bytes: int
) -> EffectOptions:
    """What an item is and what replaces it."""
    _check.choice(ablation, "ablation", ABLATIONS)
    max_bytes = _check.integer(max_bytes, "max_bytes", 1, 2**63 - 1)
    if reference is None:
        return EffectOptions(unit, ablation, max_bytes)
    if ablation != "mean":
        raise ValueError(f"reference is for ablation='mean' alone, got ablation={ablation!r}")
    batch = as_batch(model, reference_prompts(reference), False)
    return EffectOptions(unit, ablation, max_bytes, batch.tokens, batch.offsets)


def told_options(options: EffectOptions) -> dict[str, Any]:
    """What a file says of them: the limit of memory changes no bit."""
    return {name: value for name, value in options._asdict().items() if name != "max_bytes"}


def reference_prompts(reference: Task | Iterable[Any]) -> Any:
    """Prompts that means are taken over: the clean ones of a task, or those that are given."""
    prompts = getattr(reference, "clean", reference)
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        raise TypeError(f"reference must be a Task or a list of prompts, got {type(reference).__name__}")
    return list(prompts) if isinstance(prompts, Iterator) else prompts
