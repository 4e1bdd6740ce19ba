"""One of the processes of test_mpi.py, or one alone:

    python mpi_child.py FOLDER JSON

trains the runs of CASES that JSON names, each in FOLDER/NAME, from the last checkpoint if there is one. The
first process says what came of it, one JSON line for each run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tiny_training as tiny

import attnsparse as asp
from attnsparse.training.checkpoint import checkpoint_name, checkpoint_steps

STEPS = 12
HELD_OUT = [np.arange(n) * 7 % 11 for n in (5, 9, 3, 2, 8)]
CASES: dict[str, dict[str, Any]] = {
    "hard": {"parts": 4, "accumulation": 1, "constraint": "hard", "evaluate_every": 4},
    "held-out": {"parts": 6, "accumulation": 2, "constraint": "held-out", "evaluate_every": 3},
    "edges64": {"parts": 5, "constraint": "edges", "tau": None, "edges_per_token": 3.0, "dtype": "float64"},
    "dense": {"parts": 7, "gated": False, "evaluate_every": 4},
}
DENSE = {
    "steps": STEPS, "seed": 7, "accumulation": 2, "weight_decay": 0.1, "entry_dropout": 0.1,
    "head_dropout": 0.1, "attn_out_dropout": 0.1,
}  # fmt: skip


class Failing:
    """Data that fail, or that kill their process, once at a step."""

    def __init__(self, data: Any, step: int, how: str) -> None:
        self._data, self._step, self._how = data, step, how
        self.digest = data.digest

    def batch(self, step: int, micro: int) -> Any:
        if step == self._step:
            self._step = -1
            if self._how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("no such text")
        return self._data.batch(step, micro)


def trainer(name: str, folder: Path, comm: Any, data: Any, how: dict[str, Any]) -> asp.Trainer:
    changes = dict(CASES[name])
    dtype, gated = changes.pop("dtype", "float32"), changes.pop("gated", True)
    model = tiny.model(gated)
    weights = {key: value.astype(dtype) for key, value in model.parameters().items()}
    model = asp.Model(model.config, weights, name="tiny", dtype=dtype)
    options = tiny.options(STEPS, **changes) if gated else asp.TrainingOptions(**{**DENSE, **changes})
    more = {"folder": folder, "checkpoint_every": 5, "comm": comm, **how}
    if options.evaluate_every:
        more |= {"held_out": HELD_OUT, "keep_best": True}
    resume = bool(checkpoint_steps(folder))
    resume = resume if comm is None else comm.bcast(resume)
    if resume:
        return asp.Trainer.resume(folder, data, options, **more)
    return asp.Trainer(model, data, options, **more)


def train(name: str, folder: Path, comm: Any, plan: dict[str, Any]) -> dict[str, Any]:
    rank = 0 if comm is None else comm.rank
    data: Any = tiny.data(batch=6, seed=5 if rank != plan.get("other_data") else 6)
    if rank == plan.get("fails"):
        data = Failing(data, plan["at"], plan["how"])
    said: dict[str, Any] = {"rank": rank}
    try:
        run = trainer(name, folder, comm, data, plan.get("trainer", {}))
        for attempt in range(2):
            try:
                run.train(progress=False, until=plan.get("until"))
            except (Exception, KeyboardInterrupt) as error:
                said |= {"error": f"{type(error).__name__}: {error}", "step": run.step_count}
                if attempt or not plan.get("again"):
                    break
        if run.step_count < STEPS and "error" not in said:
            run.save(folder / checkpoint_name(run.step_count))
        said["threads"] = run._processes.threads()
    except (Exception, KeyboardInterrupt) as error:
        said["error"] = f"{type(error).__name__}: {error}"
    return said


def main() -> None:
    folder, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
    comm = None
    if plan.get("comm", True):
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
    for name in plan.get("cases", CASES):
        found = train(name, folder / name, comm, plan)
        everyone = [found] if comm is None else comm.gather(found)
        if everyone is not None:
            print(json.dumps(everyone), flush=True)


if __name__ == "__main__":
    main()
