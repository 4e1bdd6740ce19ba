"""Effects of items on a task as work that is cut into pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._core_types import EffectOptions
from .._core_types import Task as PackedTask
from ..model.model import Model
from .asked import check_lengths
from .choices import UNITS
from .pieces import CoreWork, Job, cut, cut_sums


@dataclass(frozen=True)
class EffectWork:
    """What is measured on the prompts of a task with some options: methods give the work and its pieces."""

    model: Model
    task_name: str
    task: PackedTask
    options: EffectOptions
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.options.ablation == "mean":
            check_lengths(self.task, "means are taken per position, so they")
        elif self.options.unit != "head":
            check_lengths(self.task, "items with positions")

    @property
    def n_prompts(self) -> int:
        """Of the task."""
        return len(self.task.offsets) - 1

    def knock_out(self, items: np.ndarray) -> Job:
        """Each item ablated alone."""
        self._check_items(items)
        return self._rows("knock-out", "knock_out", (), items, self._apart(False))

    def keep_only(self, items: np.ndarray, sizes: np.ndarray) -> Job:
        """The first so many items kept."""
        apart = self._apart(not self.options.others_stay)
        return self._rows("keep only", "keep_only", (items,), sizes, apart)

    def leave_one_out(self, items: np.ndarray) -> Job:
        """All items kept but one in turn."""
        numbers = np.arange(len(items))
        return self._rows("leave one out", "leave_one_out", (items,), numbers, self._apart(True))

    def attribution(self, steps: int, through_gate: bool) -> Job:
        """First-order effects of all items, summed over prompts."""
        after = (self.options, steps, through_gate)
        work = self._work("attribution", "attribution", (), None, after)
        config, length = self.model.config, int(self.task.offsets[1])
        shape = (config.n_layer, config.n_head, *[length] * UNITS.index(self.options.unit))
        return Job(work, cut_sums(self.n_prompts, self._apart(True)), shape)

    def _apart(self, closes: bool) -> bool:
        """Whether prompts can be measured without the others: no mean is taken over all of them, and, if
        what none of them opens is closed, nothing depends on that."""
        o = self.options
        depends = closes and o.unit == "edge" and o.ablation != "zero" and self.model.config.gated
        return o.ablation != "mean" and not depends

    def _rows(self, stage: str, function: str, before: tuple[Any, ...], rows: np.ndarray, apart: bool) -> Job:
        work = self._work(stage, function, before, rows, (self.options,))
        shape = (len(rows), self.n_prompts)
        return Job(work, cut(*shape, apart), shape)

    def _work(
        self,
        stage: str,
        function: str,
        before: tuple[Any, ...],
        rows: np.ndarray | None,
        after: tuple[Any, ...],
    ) -> CoreWork:
        return CoreWork(
            self.model, self.task_name, stage, function, self.task, before, rows, after, self.threads
        )

    def _check_items(self, items: np.ndarray) -> None:
        """IndexError for items that are not there, ValueError for one that is listed twice: a piece sees some
        of them only."""
        config, longest = self.model.config, int(np.diff(self.task.offsets).max())
        limits = [config.n_layer, config.n_head, longest, longest][: items.shape[1]]
        for column, (name, limit) in enumerate(zip(("layer", "head", "position", "key"), limits)):
            out = np.flatnonzero((items[:, column] < 0) | (items[:, column] >= limit))
            if len(out):
                found = f"{name} {items[out[0], column]}, which is out of range 0..{limit - 1}"
                raise IndexError(f"item {out[0]} has {found}")
        late = np.flatnonzero(np.diff(items[:, 2:], axis=1) > 0)  # nothing without a query and a key
        if len(late):
            query, key = items[late[0], 2:]
            raise IndexError(f"item {late[0]} has key {key} after its query {query}")
        places = np.ravel_multi_index(tuple(items.T), limits)
        _, first, inverse = np.unique(places, return_index=True, return_inverse=True)
        again = np.flatnonzero(first[inverse] != np.arange(len(items)))
        if len(again):
            row = again[0]
            raise ValueError(f"items must be unique; row {row} repeats row {first[inverse[row]]}")
