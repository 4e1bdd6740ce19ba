"""Schedules: a number for every optimiser step of a run.

A schedule is a small frozen dataclass with `at(step, steps)`, a pure function of the step (from 0) and the
length of the run, computed in float64, and a dict form that gives the same schedule back. Learning rate,
gate bias, edge weight, tau and the limits of the multiplier are all given this way. Gate bias and edge weight
may differ from layer to layer: see `PerLayer`.

Positions inside a run are fractions of it (0 the start, 1 the end), so that a recipe can be shortened without
being rewritten; only warm-up counts steps, because it depends on the optimiser and not on the length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .. import _check

MOST_STEPS = 10**12  # of a run: far above any, and every step a number that a float holds exactly


@dataclass(frozen=True)
class Constant:
    """The same value at every step.

    Parameters
    ----------
    value : float
        The value.
    """

    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _check.number(self.value, "value"))

    def at(self, step: int, steps: int) -> float:
        """The value at a step.

        Parameters
        ----------
        step : int
            Optimiser step, from 0.
        steps : int
            Steps of the whole run.

        Returns
        -------
        float
        """
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """The schedule as JSON values.

        Returns
        -------
        dict
            `from_dict` reads it back.
        """
        return {"kind": "constant", "value": self.value}


@dataclass(frozen=True)
class Pieces:
    """Straight lines between points, constant before the first and after the last.

    ``Pieces(((0, 5), (0.25, 0)))`` falls from 5 to 0 over the first quarter of the run.

    Parameters
    ----------
    points : sequence of (float, float)
        (position, value): positions are fractions of the run in 0..1, in rising order. Two points at one
        position make a jump; from that position on the later one holds.

    Raises
    ------
    ValueError
        For no points, or positions outside 0..1 or out of order.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        points = tuple((_check.number(p, "position"), _check.number(v, "value")) for p, v in self.points)
        if not points:
            raise ValueError("points is empty: a piecewise-linear schedule needs at least one")
        positions = [p for p, _ in points]
        if min(positions) < 0 or max(positions) > 1:
            raise ValueError(f"positions must be fractions of the run in 0..1, got {positions}")
        if positions != sorted(positions):
            raise ValueError(f"positions must be in rising order, got {positions}")
        object.__setattr__(self, "points", points)

    def at(self, step: int, steps: int) -> float:
        """The value at a step.

        Parameters
        ----------
        step : int
            Optimiser step, from 0.
        steps : int
            Steps of the whole run.

        Returns
        -------
        float
            At the position ``step / steps``.
        """
        position = step / steps
        before = self.points[0]
        for point in self.points:
            if point[0] > position:
                if before[0] > position:  # still left of the first point
                    return point[1]
                share = (position - before[0]) / (point[0] - before[0])
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1]

    def to_dict(self) -> dict[str, Any]:
        """The schedule as JSON values.

        Returns
        -------
        dict
            `from_dict` reads it back.
        """
        return {"kind": "pieces", "points": [list(point) for point in self.points]}


@dataclass(frozen=True)
class Warmup:
    """A learning rate: linear warm-up, then level or falling to a share of the peak at the end of the run.

    Step i of the warm-up has ``peak * (i + 1) / steps_up``.

    Parameters
    ----------
    peak : float
        Rate after the warm-up.
    steps_up : int, default 0
        Steps of the warm-up.
    decay : {"constant", "linear", "cosine"}, default "constant"
        Shape of the fall.
    begin : float, default 0
        Fraction of the run, 0..1, at which the fall begins, or the end of the warm-up if that is later.
    final : float, default 0
        Share of the peak, 0..1, that is reached at step = steps, one after the last.

    Raises
    ------
    TypeError, ValueError
        The message names the argument.
    """

    peak: float
    steps_up: int = 0
    decay: str = "constant"
    begin: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check.choice(self.decay, "decay", ("constant", "linear", "cosine"))
        plain = {
            "peak": _check.number(self.peak, "peak"),
            "steps_up": _check.integer(self.steps_up, "steps_up", 0, MOST_STEPS),
            "begin": _check.share(self.begin, "begin"),
            "final": _check.share(self.final, "final"),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def at(self, step: int, steps: int) -> float:
        """The value at a step.

        Parameters
        ----------
        step : int
            Optimiser step, from 0.
        steps : int
            Steps of the whole run.

        Returns
        -------
        float
        """
        if step < self.steps_up:
            return self.peak * (step + 1) / self.steps_up
        begin = max(self.begin * steps, self.steps_up)
        if self.decay == "constant" or step <= begin:
            return self.peak
        gone = min((step - begin) / (steps - begin), 1.0)
        left = 1 - gone if self.decay == "linear" else (1 + math.cos(math.pi * gone)) / 2
        return self.peak * (self.final + (1 - self.final) * left)

    def to_dict(self) -> dict[str, Any]:
        """The schedule as JSON values.

        Returns
        -------
        dict
            `from_dict` reads it back.
        """
        return {
            "kind": "warmup",
            "peak": self.peak,
            "steps_up": self.steps_up,
            "decay": self.decay,
            "begin": self.begin,
            "final": self.final,
        }


Schedule: TypeAlias = Constant | Pieces | Warmup


@dataclass(frozen=True)
class PerLayer:
    """One schedule for each layer; most easily made by `per_layer`.

    Parameters
    ----------
    ranges : sequence of (int, int, schedule)
        (first layer, last layer, schedule), the last layer included. They must cover the layers from 0 on
        without gap or overlap.

    Raises
    ------
    TypeError, ValueError
        For ranges that leave a gap or overlap, and for other objects.
    """

    ranges: tuple[tuple[int, int, Schedule], ...]

    def __post_init__(self) -> None:
        ranges = tuple((_layer(a), _layer(b), as_schedule(s)) for a, b, s in self.ranges)
        following = 0
        for first, last, _ in ranges:
            if first != following or last < first:
                raise ValueError(
                    f"layer ranges must cover the layers from 0 on in order, got {first}-{last} "
                    f"where layer {following} was expected"
                )
            following = last + 1
        if not ranges:
            raise ValueError("ranges is empty: a per-layer schedule needs at least one")
        object.__setattr__(self, "ranges", ranges)

    @property
    def n_layer(self) -> int:
        """Number of layers covered."""
        return self.ranges[-1][1] + 1

    def at(self, step: int, steps: int, n_layer: int) -> list[float]:
        """The value of each layer at a step.

        Parameters
        ----------
        step : int
            Optimiser step, from 0.
        steps : int
            Steps of the whole run.
        n_layer : int
            Layers of the model.

        Returns
        -------
        list of float
            `n_layer` values.

        Raises
        ------
        ValueError
            If the schedule covers another number of layers.
        """
        if n_layer != self.n_layer:
            raise ValueError(f"the per-layer schedule covers {self.n_layer} layers, the model has {n_layer}")
        values: list[float] = []
        for first, last, schedule in self.ranges:
            values += [schedule.at(step, steps)] * (last - first + 1)
        return values

    def to_dict(self) -> dict[str, Any]:
        """The schedule as JSON values.

        Returns
        -------
        dict
            `from_dict` reads it back.
        """
        return {"kind": "per_layer", "ranges": [[a, b, s.to_dict()] for a, b, s in self.ranges]}


def per_layer(schedules: Mapping[str, float | Schedule] | Sequence[float | Schedule]) -> PerLayer:
    """Schedules that differ from layer to layer.

    Parameters
    ----------
    schedules : sequence or mapping
        Schedules or numbers: one for each layer, or ranges such as ``{"0-7": 1.0, "8-11": 0.5}``.

    Returns
    -------
    PerLayer

    Raises
    ------
    ValueError
        For ranges that leave a gap or overlap.
    """
    if isinstance(schedules, Mapping):
        ranges = []
        for key, schedule in schedules.items():
            first, _, last = str(key).partition("-")
            if not first.isdecimal() or (last and not last.isdecimal()):
                raise ValueError(f'a range of layers must look like "3" or "0-7", got {key!r}')
            ranges.append((int(first), int(last or first), as_schedule(schedule)))
        return PerLayer(tuple(sorted(ranges, key=lambda item: item[0])))
    return PerLayer(tuple((layer, layer, as_schedule(s)) for layer, s in enumerate(schedules)))


def as_schedule(value: Any, name: str = "value") -> Schedule:
    """A number or a schedule as a schedule.

    Parameters
    ----------
    value : float, Constant, Pieces or Warmup
        A number means the same at every step.
    name : str, default "value"
        What messages call it.

    Returns
    -------
    Constant, Pieces or Warmup
        `value` itself if it is a schedule.

    Raises
    ------
    TypeError
        For a `PerLayer` and for other objects.
    """
    if isinstance(value, (Constant, Pieces, Warmup)):
        return value
    if isinstance(value, PerLayer):
        raise TypeError(f"{name} cannot differ from layer to layer; give one schedule or a number")
    return Constant(_check.number(value, name))


def value_at(schedule: float | Schedule, step: int, steps: int) -> float:
    """Value at `step` (from 0) of a run of `steps`; a number has it at every step."""
    return as_schedule(schedule).at(step, steps)


def layer_values(schedule: float | Schedule | PerLayer, step: int, steps: int, n_layer: int) -> list[float]:
    """One value for each layer at a step.

    Parameters
    ----------
    schedule : float, schedule or PerLayer
        If it is not per layer, all layers have the same value.
    step : int
        Optimiser step, from 0.
    steps : int
        Steps of the whole run.
    n_layer : int
        Layers of the model.

    Returns
    -------
    list of float
        `n_layer` values.

    Raises
    ------
    ValueError
        If a `PerLayer` covers another number of layers.
    """
    if isinstance(schedule, PerLayer):
        return schedule.at(step, steps, n_layer)
    return [value_at(schedule, step, steps)] * n_layer


def linear(start: float, stop: float, begin: float = 0.0, end: float = 1.0) -> Pieces:
    """A straight line from one value to another, level before and after it.

    Parameters
    ----------
    start, stop : float
        The two values.
    begin, end : float, default 0.0 and 1.0
        Fractions of the run, 0..1, between which the line lies.

    Returns
    -------
    Pieces
    """
    return Pieces(((begin, start), (end, stop)))


def jump(before: float, after: float, position: float) -> Pieces:
    """One value up to a position, another from there on.

    Parameters
    ----------
    before, after : float
        The two values.
    position : float
        Fraction of the run, 0..1.

    Returns
    -------
    Pieces
    """
    return Pieces(((0.0, before), (position, before), (position, after)))


def from_dict(data: Any) -> Schedule | PerLayer:
    """Read a schedule back.

    Parameters
    ----------
    data : mapping
        What the `to_dict` of a schedule returned.

    Returns
    -------
    Constant, Pieces, Warmup or PerLayer

    Raises
    ------
    ValueError
        For anything else.
    """
    kinds = {"constant": Constant, "pieces": Pieces, "warmup": Warmup, "per_layer": PerLayer}
    if not isinstance(data, Mapping) or data.get("kind") not in kinds:
        raise ValueError(f"not a schedule: {str(data)[:80]!r}; kinds are {', '.join(kinds)}")
    fields = {name: value for name, value in data.items() if name != "kind"}
    kind: type[Schedule] | type[PerLayer] = kinds[data["kind"]]
    try:
        if kind is Pieces:
            fields["points"] = tuple((p, v) for p, v in fields["points"])
        elif kind is PerLayer:
            fields["ranges"] = tuple((a, b, from_dict(s)) for a, b, s in fields["ranges"])
        return kind(**fields)
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a {data['kind']} schedule: {str(error)[:120]}") from error


def _layer(value: object) -> int:
    return _check.integer(value, "a layer", 0, 2**31 - 1)
