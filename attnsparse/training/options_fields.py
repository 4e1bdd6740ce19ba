"""What the options of all kinds of training share: fields that know their range, and a form as a dict.

An option is a dataclass field whose metadata hold a `check(value, name)`, which gives the value in its plain
form; a schedule has a range besides, in which it must stay for the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, TypeVar

from .. import _check
from . import schedules
from .schedules import PerLayer, Pieces, Schedule, Warmup

MOST = 1e15  # largest value of an option; larger ones would turn finite weights into infinity
Check = Callable[[Any, str], Any]
Self = TypeVar("Self", bound="Options")


def checked(check: Check) -> dict[str, Any]:
    """Metadata of a field whose values go through `check(value, name)`."""
    return {"check": check}


def integer(low: int, high: int) -> dict[str, Any]:
    """Metadata of a field for an integer in low..high."""
    return checked(lambda value, name: _check.integer(value, name, low, high))


def number(low: float, high: float = MOST) -> dict[str, Any]:
    """Metadata of a field for a number in low..high."""
    return checked(lambda value, name: _check.number(value, name, low, high))


def schedule(
    low: float, high: float = MOST, *, optional: bool = False, per_layer: bool = False
) -> dict[str, Any]:
    """Metadata of a field for a number or a schedule that stays in low..high."""

    def check(value: Any, name: str) -> Any:
        if (optional and value is None) or (per_layer and isinstance(value, PerLayer)):
            return value
        return schedules.as_schedule(value, name)

    return checked(check) | {"range": (low, high)}


def decays(value: Any, name: str) -> tuple[float, float]:
    """The check of Adam's two decays."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{name} must be two numbers, got {_check.shown(value)}")
    first, second = (_check.number(beta, name, 0.0, 0.9999999) for beta in value)
    return first, second


@dataclass(frozen=True)
class Options:
    """Options of a run as one frozen value: every field is checked when it is made.

    Parameters
    ----------
    steps : int
        Optimiser steps of the whole run, at least 1. Schedules are laid over this length.
    """

    steps: int

    _what: ClassVar[str] = "options"

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", _check.integer(self.steps, "steps", 1, schedules.MOST_STEPS))
        for item in fields(self):
            if "check" in item.metadata:
                value = item.metadata["check"](getattr(self, item.name), item.name)
                object.__setattr__(self, item.name, value)
        for item in fields(self):
            if "range" in item.metadata:
                check_range(item.name, getattr(self, item.name), self.steps, *item.metadata["range"])

    def to_dict(self) -> dict[str, Any]:
        """All options as JSON values.

        Returns
        -------
        dict of str to value
            `from_dict` reads it back.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls: type[Self], data: Mapping[str, Any]) -> Self:
        """Read options back.

        Parameters
        ----------
        data : mapping of str to value
            What `to_dict` returned.

        Returns
        -------
        options of this class

        Raises
        ------
        TypeError, ValueError
            For unknown, missing or wrong options; the message names them.
        """
        known = {item.name: item for item in fields(cls)}
        unknown = [name for name in data if name not in known]
        missing = [name for name in known if name not in data and known[name].default is MISSING]
        if unknown or missing:
            raise ValueError(f"{cls._what}: unknown {unknown[:3]}, missing {missing[:3]}")
        return cls(**{name: _read(known[name].metadata, value) for name, value in data.items()})

    def difference(self, other: Options) -> str | None:
        """The first option in which two runs differ.

        Parameters
        ----------
        other : Options
            Options of the same class.

        Returns
        -------
        str or None
            Its name; None if all are equal.
        """
        names = (item.name for item in fields(self))
        return next((name for name in names if getattr(self, name) != getattr(other, name)), None)


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


def _read(metadata: Mapping[str, Any], value: Any) -> Any:
    if "range" in metadata and value is not None:
        return schedules.from_dict(value)
    return tuple(value) if isinstance(value, list) else value


def turning_steps(schedule: float | Schedule | PerLayer | None, steps: int) -> set[int]:
    """Steps in 0..steps among which a schedule has its smallest and largest values; between two neighbours
    it rises or falls all the way, `Pieces` in a straight line."""
    places: list[float] = []
    if isinstance(schedule, Pieces):
        places = [position * steps for position, _ in schedule.points]
    elif isinstance(schedule, Warmup):
        places = [schedule.steps_up - 1, schedule.steps_up, schedule.begin * steps]
    elif isinstance(schedule, PerLayer):
        return {step for *_, one in schedule.ranges for step in turning_steps(one, steps)}
    around = {math.floor(place) + n for place in places for n in (-1, 0, 1)}
    return {0, steps - 1, steps} | {step for step in around if 0 <= step <= steps}


def check_range(
    name: str, schedule: float | Schedule | PerLayer | None, steps: int, low: float, high: float
) -> None:
    """ValueError that names the option unless the schedule stays in low..high for the whole run."""
    if schedule is None:
        return
    every = [one for *_, one in schedule.ranges] if isinstance(schedule, PerLayer) else [schedule]
    for one in every:
        for step in sorted(turning_steps(one, steps)):
            value = schedules.value_at(one, step, steps)
            if not low <= value <= high:
                raise ValueError(f"{name} must stay in {low:g}..{high:g}, is {value:g} at step {step}")
