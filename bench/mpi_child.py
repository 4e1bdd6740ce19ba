"""One of the processes of `python -m bench mpi`: `mpirun -n N python -m bench.mpi_child ROW`.

The first one prints the median seconds of a step's pieces as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import numpy as np
from mpi4py import MPI

from attnsparse import Trainer, TrainingOptions
from attnsparse.training.data import Batch

from .mpi import PARTS, ROWS, Shape
from .train import MULTIPLIER, TAU
from .work import random_model, random_tokens


class Text:
    """The same random tokens at every step."""

    digest = "random"

    def __init__(self, shape: Shape) -> None:
        tokens = random_tokens(shape.config, shape.n_sequences, shape.length)
        offsets = np.arange(shape.n_sequences + 1, dtype=np.int64) * shape.length
        weights = np.ones(tokens.size, np.float32)
        self._batch = (tokens.ravel(), offsets, np.roll(tokens, -1, axis=1).ravel(), weights)

    def batch(self, step: int, micro: int) -> Batch:
        return self._batch


class Timed:
    """An object whose methods are timed: method -> seconds of all calls, and of the processor."""

    def __init__(self, of: Any) -> None:
        self._of, self.seconds = of, dict.fromkeys(("gradients", "combine", "update", "adopt"), 0.0)
        self.processor = dict(self.seconds)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        if name not in self.seconds:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            begin, before = time.perf_counter(), time.process_time()
            result = found(*args, **kwargs)
            self.seconds[name] += time.perf_counter() - begin
            self.processor[name] += time.process_time() - before
            return result

        return call


def main() -> None:
    shape = ROWS[sys.argv[1]]
    options = TrainingOptions(
        steps=100, parts=PARTS, lr=1e-4, weight_decay=0.1, tau=TAU, multiplier=MULTIPLIER
    )
    comm = MPI.COMM_WORLD
    trainer = Trainer(random_model(shape.config), Text(shape), options, threads=1, comm=comm)
    trainer._engine = engine = Timed(trainer._engine)  # type: ignore[assignment]
    found: list[dict[str, float]] = []
    for step in range(shape.steps + 1):
        before, used = dict(engine.seconds), dict(engine.processor)
        comm.Barrier()
        begin = time.perf_counter()
        trainer.step()
        whole = time.perf_counter() - begin
        took = {name: engine.seconds[name] - before[name] for name in before}
        used = {name: engine.processor[name] - used[name] for name in used}
        update = took["combine"] + took["update"] + took["adopt"]
        gradients = max(comm.allgather(took["gradients"]))  # for the slowest of them all wait
        one = {
            "gradients": gradients,
            "update": update,
            "passing": max(whole - gradients - update, 1e-6),
            "processor": sum(comm.allgather(used["gradients"])),
            "processor_update": sum(comm.allgather(sum(used.values()) - used["gradients"])),
        }
        if step:
            found.append(one)
    if comm.rank == 0:
        print(json.dumps({name: statistics.median(one[name] for one in found) for name in found[0]}))


if __name__ == "__main__":
    main()
