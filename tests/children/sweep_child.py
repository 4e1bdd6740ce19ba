"""Sweeps for tests: what workers import, and one as a process of its own that can be killed:

python sweep_child.py OUT MODEL MODEL ...
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import executor_metrics
from circuit_cases import case
from executor_metrics import MARK, values

import attnsparse as asp
from attnsparse.tasks import CustomMetric

OPTIONS = {"n_bootstrap": 30, "n_random": 2}
TASK = case("gated", (6, 6, 6, 6)).task


def slow(logits, prompts):
    """Takes a little for each block of prompts, as the core does between two looks at the clock."""
    Path(os.environ[MARK]).write_text("begun")
    time.sleep(0.3)
    return values(logits, prompts)


METRICS = {**executor_metrics.METRICS, "slow": CustomMetric(slow, name="m")}


def sweep_all(out: str | Path, models: list[str], **options):
    """Three seeds of a task of fixed prompts."""
    return asp.sweep(
        models, TASK, range(3), out=out, **{**OPTIONS, "threads": 1, "progress": False, **options}
    )


if __name__ == "__main__":
    sweep_all(sys.argv[1], sys.argv[2:])
