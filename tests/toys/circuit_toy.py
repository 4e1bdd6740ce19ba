"""A stand-in for `attnsparse.circuits.effects` whose metric is a sum that can be done by hand.

The metric of a prompt is its gain times (base + the weights of the items that are not ablated + what groups
are worth): a group of kind "any" counts if one of its items is there, a group of kind "all" if all are. Every
call is noted with the digest of its task.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import reliability

import attnsparse as asp
from attnsparse import tasks
from attnsparse.circuits import find as circuit
from attnsparse.circuits.circuit import Circuit
from attnsparse.circuits.find import find_circuit
from attnsparse.recipes.demo_text import demo_tokenizer

Item = tuple[int, ...]


@dataclass
class Toy:
    """Takes the place of the module; see `with_toy`."""

    weights: Mapping[Item, float]
    groups: Sequence[tuple[str, float, tuple[Item, ...]]] = ()
    base: float = 0.0
    spread: float = 0.0  # of the gains of prompts around 1
    calls: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    @property
    def items(self) -> np.ndarray:
        return np.array(list(self.weights), np.int32)

    def gains(self, task) -> np.ndarray:
        seeds = [list(row.tobytes()) for row in task.clean]
        return 1 + self.spread * np.array([np.random.default_rng(seed).normal() for seed in seeds])

    def worth(self, kept: set[Item]) -> float:
        combine = {"any": any, "all": all}
        groups = sum(w for kind, w, items in self.groups if combine[kind](item in kept for item in items))
        return self.base + sum(w for item, w in self.weights.items() if item in kept) + groups

    def _values(self, name: str, task, sets: Sequence[Sequence[Item]], **options: Any) -> np.ndarray:
        self.calls.append((name, task.digest, options))
        return np.array([self.worth(set(kept)) for kept in sets])[:, None] * self.gains(task)

    # --- the functions of attnsparse.circuits.effects

    def candidates(self, model, task, unit, threads=None):
        return self.items

    def metric_values(self, model, task, *, metric=None, threads=None):
        return self._values("metric_values", task, [list(self.weights)], metric=metric, threads=threads)[0]

    def knock_out(self, model, task, items, ablation="zero", **options):
        every = rows(self.items)
        sets = [[other for other in every if other != item] for item in rows(items)]
        return self._values("knock_out", task, sets, ablation=ablation, **options)

    def keep_only(self, model, task, items, sizes, ablation="zero", **options):
        sets = [rows(items)[:n] for n in sizes]
        return self._values("keep_only", task, sets, ablation=ablation, n=len(sizes), **options)

    def leave_one_out(self, model, task, items, ablation="zero", **options):
        every = rows(items)
        sets = [[other for other in every if other != item] for item in every]
        return self._values("leave_one_out", task, sets, ablation=ablation, n=len(items), **options)

    def attribution(self, model, task, unit, ablation="zero", *, steps=1, **options):
        self.calls.append(("attribution", task.digest, {"ablation": ablation, "steps": steps, **options}))
        scores = np.zeros(self.items.max(axis=0) + 1)
        for item, weight in self.weights.items():
            scores[item] = weight * self.gains(task).mean()
        return scores


def rows(items: np.ndarray) -> list[Item]:
    return [tuple(row) for row in np.asarray(items).tolist()]


def heads(*weights: float, per_layer: int = 4) -> dict[Item, float]:
    """Heads in order with these weights."""
    return {divmod(i, per_layer): weight for i, weight in enumerate(weights)}


@functools.cache
def toy_model() -> asp.Model:
    return reliability.model()


@functools.cache
def toy_task(n: int = 12, seed: int = 0) -> tasks.Task:
    return tasks.make_task("ioi", demo_tokenizer(), n=n, seed=seed)


def with_toy(
    weights: Mapping[Item, float],
    toy: Mapping[str, Any] | None = None,
    task: tasks.Task | None = None,
    **options: Any,
) -> tuple[Circuit, Toy]:
    """What `find_circuit` finds with a toy of these weights and further fields, and the toy."""
    made = Toy(weights, **(toy or {}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circuit, "effects", made)
        found = find_circuit(toy_model(), task or toy_task(), **{"n_random": 0, "n_bootstrap": 50, **options})
    return found, made
