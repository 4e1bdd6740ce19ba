"""How a call is timed, and how the table of results looks."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEAST_SECONDS = 0.5  #: short calls are repeated until they have taken this long in all, ...
MOST_CALLS = 200  #: ... or this many times
LONG_SECONDS = 20.0  #: once calls have taken this long in all, two of them are enough


@dataclass(frozen=True)
class Times:
    """Seconds of one call: the best of all, and their median."""

    best: float
    median: float


def time_calls(call: Callable[[], Any], repeats: int) -> Times:
    """Time `call` about `repeats` times after one warm-up; short calls more often, very long ones less.

    What `call` returns is let go inside the timed span, so giving memory back is part of its time.
    """
    call()
    seconds: list[float] = []
    while not _enough(len(seconds), sum(seconds), repeats):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return Times(min(seconds), statistics.median(seconds))


def _enough(n_calls: int, seconds: float, repeats: int) -> bool:
    if n_calls < repeats:
        return n_calls >= 2 and seconds > LONG_SECONDS
    return seconds > LEAST_SECONDS or n_calls >= MOST_CALLS


def progress(text: str) -> None:
    """Say on stderr what is being measured, so that stdout holds nothing but tables."""
    print(f"  {text} ...", file=sys.stderr, flush=True)


def print_table(title: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print `rows` under `title`. columns: key of a row -> heading; columns empty in all rows go."""
    used = {key: heading for key, heading in columns.items() if any(row.get(key) is not None for row in rows)}
    cells = [list(used.values()), *([_cell(row.get(key)) for key in used] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    print(f"\n{title}")
    for index, line in enumerate(cells):
        first, *rest = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        )
        print("  ".join([first, *rest]).rstrip())
        if index == 0:
            print("  ".join("-" * width for width in widths))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
