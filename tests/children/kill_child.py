"""python kill_child.py KILLS STEPS: kill -9 at random moments of a training run. Prints its findings.

The killed processes are forks of this one, which computes nothing itself: starting Python would take longer
than what is tested. Every third kill waits for a save to begin; the longest delays hit what comes after it.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import reliability
import tiny_training
from bundle_by_hand import contents

from attnsparse.training import trainer as trainer_module
from attnsparse.training.checkpoint import checkpoint_name, checkpoint_steps
from attnsparse.training.data import SequenceData
from attnsparse.training.trainer import Trainer

EVERY, KEEP = 3, 2


class Announced:
    """The data of tiny_training; tells another process which step begins, so that all before are done."""

    def __init__(self, data: SequenceData, shared: mmap.mmap) -> None:
        self.data, self.digest, self.shared = data, data.digest, shared

    def batch(self, step: int, micro: int = 0) -> tuple:
        self.shared[:8] = step.to_bytes(8, "little")
        return self.data.batch(step, micro)


def forked(work: Callable[[], None]) -> int:
    """Number of a process that does `work` and nothing else."""
    process = os.fork()
    if process:
        return process
    try:
        work()
    finally:
        os._exit(0)


def run(folder: Path, steps: int, shared: mmap.mmap, saves: int) -> None:
    """Go on with the run in `folder`; writes a byte to `saves` before each save."""
    real = trainer_module.write_bundle

    def save(*arguments: object) -> None:
        os.write(saves, b".")
        real(*arguments)

    trainer_module.write_bundle = save
    how = {"threads": 1, "folder": folder, "checkpoint_every": EVERY, "keep": KEEP}
    data, options = Announced(tiny_training.data(), shared), tiny_training.options(steps)
    if checkpoint_steps(folder):
        trainer = Trainer.resume(folder, data, **how)
    else:
        trainer = Trainer(tiny_training.model(), data, options, **how)
    os.write(saves, b"s")
    trainer.train(progress=False)


def finish(folder: Path, steps: int) -> None:
    tiny_training.continued(folder, steps, threads=1).train(progress=False).save(
        folder / checkpoint_name(steps)
    )


class Run:
    """One run that is killed again and again."""

    def __init__(self, steps: int) -> None:
        self.folder, self.steps = reliability.new_folder(), steps
        self.shared, self.moments = mmap.mmap(-1, 8), random.Random(1)
        self.wrong: list[str] = []
        self.half_saves = 0

    def kill(self, in_a_save: bool) -> None:
        begins, saves = os.pipe()
        process = forked(lambda: run(self.folder, self.steps, self.shared, saves))
        os.close(saves)
        for _ in range(1 + in_a_save * self.moments.randrange(1, 4)):
            if not select.select([begins], [], [], 60)[0]:
                self.wrong.append("no sign of life")
            elif not os.read(begins, 1):
                break  # the run is over
        time.sleep(self.moments.uniform(0, 0.004 if in_a_save else 0.1))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(begins)
        self.check(int.from_bytes(self.shared[:8], "little"))

    def check(self, done: int) -> None:
        """`done` steps were finished, and saved where that was due."""
        saved, left = checkpoint_steps(self.folder), list(self.folder.glob(".*"))
        self.half_saves += len(left)
        if len(saved) > KEEP + 1 or len(left) > 1:
            self.wrong.append(f"checkpoints {saved}, temporary files {left}")
        if done >= EVERY and not (saved and saved[-1] >= done - done % EVERY):
            self.wrong.append(f"{done} steps done, saved {saved}")
        for step in saved:
            try:
                contents(self.folder / checkpoint_name(step))
            except (ValueError, OSError) as error:
                self.wrong.append(str(error))


def main() -> None:
    kills, steps = map(int, sys.argv[1:])
    whole, killed, n_saves = reliability.new_folder(), Run(steps), 0
    for i in range(kills):
        in_a_save = i % 3 == 0
        n_saves += in_a_save
        killed.kill(in_a_save)
    reached = checkpoint_steps(killed.folder)[-1]
    for folder in (whole, killed.folder):
        os.waitpid(forked(lambda folder=folder: finish(folder, steps)), 0)
    ends = [(folder / checkpoint_name(steps)).read_bytes() for folder in (whole, killed.folder)]
    if ends[0] != ends[1] or list(killed.folder.glob(".*")):
        killed.wrong.append("the run ended otherwise, or left temporary files")
    found = {"aimed": n_saves, "half_saves": killed.half_saves, "reached": reached, "wrong": killed.wrong}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
