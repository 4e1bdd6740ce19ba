"""Runs one row: ours between two measurements of the machine's limits, then the peers, and the verdict."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .limits import Limits, measure_limits
from .timing import Times, progress, time_calls

#: a peer's call, ready to be timed; made when it is needed, so that models do not fill memory together
Peers = Mapping[str, Callable[[], Callable[[], Any]]]


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    rows: tuple[str, ...]  #: names of rows; empty: all
    repeats: int
    threads: int
    peers: bool
    folders: tuple[str, ...] = ()  #: of trained demo models; empty: the shipped ones
    small: bool = False  #: lens_demos, generate: a model of two layers, to see that they work

    def wants(self, row: str) -> bool:
        """Whether this row is to be measured."""
        return not self.rows or row in self.rows


@dataclass(frozen=True)
class Goal:
    """A goal in milliseconds, and the limit in milliseconds on the machine for which it was set.

    Only their ratio is used: what we may take over the limit, on any machine.
    """

    goal: float
    limit: float

    @property
    def ratio(self) -> float:
        """Allowed time over the limit."""
        return self.goal / self.limit


def measure_row(
    label: str,
    ours: Callable[[], Any],
    peers: Peers,
    needs: tuple[float, float],
    goal: Goal | None,
    options: Options,
) -> dict[str, Any]:
    """One row of a table. needs: operations and bytes without which it cannot be done.

    The limit is the better of two measurements, just before and just after our calls, because the speed of a
    shared machine changes from minute to minute.
    """
    progress(label)
    before = measure_limits(options.threads)
    times = time_calls(ours, options.repeats)
    limits = before.best(measure_limits(options.threads))
    row = {"row": label, **judge(times, limits, needs, goal)}
    for name, prepare in peers.items():
        progress(f"{label}: {name}")
        row[name] = time_calls(prepare(), options.repeats).best / times.best
        gc.collect()
    return row


def judge(times: Times, limits: Limits, needs: tuple[float, float], goal: Goal | None) -> dict[str, Any]:
    """Milliseconds, ratio to the limit, allowed ratio, and whether it holds."""
    limit = limits.seconds(*needs)
    ratio = times.best / limit
    return {
        "best_ms": 1e3 * times.best,
        "median_ms": 1e3 * times.median,
        "limit_ms": 1e3 * limit,
        "ratio": ratio,
        "allowed": goal.ratio if goal else None,
        "holds": ratio <= goal.ratio if goal else None,
        "gflop": needs[0] / 1e9,
        "gbyte": needs[1] / 1e9,
        "gflop_per_second": limits.flops / 1e9,
        "gbyte_per_second": limits.read / 1e9,
    }


COLUMNS = {
    "row": "row",
    "best_ms": "best ms",
    "median_ms": "median ms",
    "limit_ms": "limit ms",
    "ratio": "ours/limit",
    "allowed": "goal/limit",
    "holds": "holds",
}
