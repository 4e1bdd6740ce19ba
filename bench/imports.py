"""Time to import attnsparse in fresh processes, and NumPy alone beside it."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

from .child import ROOT
from .judge import Options
from .timing import print_table, progress

ROWS = ("import",)
PROCESSES = 10
MOST_SECONDS = 0.3
_CODE = "import time; begin = time.perf_counter(); import {}; print(time.perf_counter() - begin)"


def run(options: Options) -> list[dict[str, Any]]:
    """Median of ten processes each, after one that warms the page cache."""
    rows = []
    for module, goal in (("numpy", None), ("attnsparse", MOST_SECONDS)):
        progress(f"importing {module}")
        seconds = [_import_seconds(module) for _ in range(PROCESSES + 1)][1:]
        median = statistics.median(seconds)
        rows.append({
            "name": "import",
            "row": f"import {module}",
            "best_ms": 1e3 * min(seconds),
            "median_ms": 1e3 * median,
            "goal_ms": 1e3 * goal if goal else None,
            "holds": median < goal if goal else None,
        })  # fmt: skip
    columns = {"row": "row", "best_ms": "best ms", "median_ms": "median ms", "goal_ms": "goal ms"}
    columns["holds"] = "holds"
    print_table(f"Import, {PROCESSES} fresh processes", columns, rows)
    return rows


def _import_seconds(module: str) -> float:
    command = [sys.executable, "-c", _CODE.format(module)]
    return float(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)
