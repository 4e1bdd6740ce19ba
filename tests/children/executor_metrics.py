"""Metrics that workers import: one that computes, and ones that fail, kill their worker or take long."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from attnsparse.circuits import pieces
from attnsparse.tasks import CustomMetric

MARK = "ATTNSPARSE_TEST_MARK"


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
    """Computes until it is interrupted, as the core does, whose pieces can take long."""
    Path(os.environ[MARK]).write_text("begun")
    begun = time.monotonic()
    while time.monotonic() - begun < 60:
        np.ones(1000).sum()
    return values(logits, prompts)


def slow(logits, prompts):
    """Takes a while, after which its cluster is gone."""
    Path(os.environ[MARK]).write_text("begun")
    time.sleep(0.5)
    return values(logits, prompts)


METRICS = {
    name: CustomMetric(globals()[name], name="m")
    for name in ("values", "failing", "killing", "endless", "slow")
}


def threads_to_use(*unused: object) -> int:
    """Threads with which a piece would compute in this process."""
    return pieces.threads_here()


def threads_of_process() -> int:
    """Threads that this process has now."""
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[17])
