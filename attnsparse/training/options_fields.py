"""What the options of all kinds of training share: reading and writing as JSON, and checks of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from . import schedules
from .schedules import PerLayer, Pieces, Schedule, Warmup


def to_json(options: Any) -> dict[str, Any]:
    """All fields of a dataclass of options as JSON values."""
    result = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if hasattr(value, "to_json"):
            value = value.to_json()
        result[field.name] = list(value) if isinstance(value, tuple) else value
    return result


def from_json(
    kind: type, data: Mapping[str, Any], what: str, of_schedules: Iterable[str], of_tuples: Iterable[str]
) -> dict[str, Any]:
    """Arguments of `kind` from what `to_json` gave. Raises ValueError that begins with `what`."""
    known = {field.name: field for field in fields(kind)}
    unknown = [name for name in data if name not in known]
    missing = [name for name in known if name not in data and known[name].default is MISSING]
    if unknown or missing:
        raise ValueError(f"{what}: unknown {unknown[:3]}, missing {missing[:3]}")
    values = dict(data)
    for name in of_schedules:
        if values.get(name) is not None:
            values[name] = schedules.from_json(values[name])
    for name in of_tuples:
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    return values


def first_difference(options: Any, other: Any) -> str | None:
    """Name of the first field in which two options differ, or None."""
    for field in fields(options):
        if getattr(options, field.name) != getattr(other, field.name):
            return field.name
    return None


def turning_steps(schedule: Schedule | PerLayer | None, steps: int) -> set[int]:
    """Steps in 0..steps among which a schedule has its smallest and largest values; between two neighbours
    it rises or falls all the way, `Pieces` in a straight line."""
    places: list[float] = []
    if isinstance(schedule, Pieces):
        places = [position * steps for position, _ in schedule.points]
    elif isinstance(schedule, Warmup):
        places = [schedule.steps_up - 1, schedule.steps_up, schedule.begin * steps]
    elif isinstance(schedule, PerLayer):
        return set().union(*(turning_steps(one, steps) for *_, one in schedule.ranges))
    around = {math.floor(place) + n for place in places for n in (-1, 0, 1)}
    return {0, steps - 1, steps} | {step for step in around if 0 <= step <= steps}


def check_range(name: str, schedule: Schedule | PerLayer | None, steps: int, low: float, high: float) -> None:
    """ValueError that names the option unless the schedule stays in low..high for the whole run."""
    if schedule is None:
        return
    every = [one for *_, one in schedule.ranges] if isinstance(schedule, PerLayer) else [schedule]
    for one in every:
        for step in sorted(turning_steps(one, steps)):
            if not low <= one.at(step, steps) <= high:
                value = one.at(step, steps)
                raise ValueError(f"{name} must stay in {low:g}..{high:g}, is {value:g} at step {step}")
