"""Sweeps for tests: what workers import, and one as a process of its own that can be killed:

python sweep_child.py OUT MODEL MODEL ...
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from circuit_cases import case

import attnsparse as asp
from attnsparse.tasks import CustomMetric

MARK = "ATTNSPARSE_TEST_MARK"
OPTIONS = {"n_bootstrap": 30, "n_random": 2}
TASK = case("gated", (6, 6, 6, 6)).task


def values(logits, prompts):
    return logits[:, 3] - logits[:, 1]


def failing(logits, prompts):
    raise ZeroDivisionError("no such logit")


def killing(logits, prompts):
    """Ends its process the second time."""
    mark = Path(os.environ[MARK])
    with open(mark, "a") as file:
        file.write(".")
    if len(mark.read_text()) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return values(logits, prompts)


def endless(logits, prompts):
    """Computes until it is interrupted, as the core does, whose calls can take long."""
    Path(os.environ[MARK]).write_text("begun")
    begun = time.monotonic()
    while time.monotonic() - begun < 60:
        np.ones(1000).sum()
    return values(logits, prompts)


def slow(logits, prompts):
    """Takes a little for each block of prompts, as the core does between two looks at the clock."""
    Path(os.environ[MARK]).write_text("begun")
    time.sleep(0.3)
    return values(logits, prompts)


METRICS = {
    name: CustomMetric(globals()[name], name="m")
    for name in ("values", "failing", "killing", "endless", "slow")
}


def sweep_all(out: str | Path, models: list[str], **options):
    """Three seeds of a task of fixed prompts."""
    return asp.sweep(
        models, TASK, range(3), out=out, **{**OPTIONS, "threads": 1, "progress": False, **options}
    )


if __name__ == "__main__":
    sweep_all(sys.argv[1], sys.argv[2:])
