"""Right and wrong uses of a training step in pieces; see public_calls.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import reliability
from public_objects import Everything, uses


def pieces(e: Everything, last: str, **changes: Any) -> Any:
    """What the last piece gives of a step in two parts, by one process; `changes` of what it is given."""
    trainer, options = e.core_trainer, reliability.step_options(threads=1)
    given = {"parts": 2, "first": 0, "count": 2, "table": np.array([[0, 2]], np.int64), **changes}
    table = given.pop("table")
    try:
        numbers, ((_, _, data),) = trainer.gradients([e.batch], **given, **options)
        if last == "gradients":
            return data
        squares = trainer.combine(table, data.copy())
        if last == "combine":
            return squares
        weights = np.empty_like(data)
        found = trainer.update((numbers, changes.get("squares", squares), weights), **options)
        if last == "update":
            return found
        return trainer.adopt(weights)
    finally:
        trainer.abandon()


PIECES_CALLS = {
    "_core.Trainer.gradients": uses(
        lambda e: pieces(e, "gradients"),
        wrong=(
            lambda e: pieces(e, "gradients", first=1),
            lambda e: pieces(e, "gradients", parts=0),
            lambda e: pieces(e, "gradients", count=0),
        ),
        cost=5,
    ),
    "_core.Trainer.combine": uses(
        lambda e: pieces(e, "combine"),
        wrong=(
            lambda e: pieces(e, "combine", table=np.array([[0, 1]], np.int64)),
            lambda e: pieces(e, "combine", table=np.array([[0, 1, 1]], np.int64)),
            lambda e: pieces(e, "combine", table=np.array([[0, 1], [1, 1]], np.int64)),
            lambda e: e.core_trainer.combine(np.array([[0, 2]], np.int64), np.zeros(3, np.float32)),
        ),
        cost=5,
    ),
    "_core.Trainer.update": uses(
        lambda e: pieces(e, "update"),
        wrong=(
            lambda e: pieces(e, "update", squares=np.zeros(1)),
            lambda e: e.core_trainer.update(3, **reliability.step_options()),
            lambda e: e.core_trainer.update((1, 2), **reliability.step_options()),
        ),
        cost=5,
    ),
    "_core.Trainer.adopt": uses(
        lambda e: pieces(e, "adopt"),
        wrong=(
            lambda e: e.core_trainer.adopt(np.zeros(3, np.float32)),
            lambda e: e.core_trainer.adopt(np.zeros(e.core_trainer.slice(0)[1], np.float32)),
        ),
        cost=5,
    ),
    "_core.Trainer.abandon": uses(lambda e: e.core_trainer.abandon()),
    "_core.Trainer.slice": uses(
        lambda e: e.core_trainer.slice(0),
        wrong=(lambda e: e.core_trainer.slice(1), lambda e: e.core_trainer.slice("a")),
    ),
    "_core.Trainer.slice_moments": uses(lambda e: e.core_trainer.slice_moments()),
    "_core.Trainer.place": uses(
        lambda e: e.core_trainer.place("wte.weight"), wrong=(lambda e: e.core_trainer.place("x"),)
    ),
}
