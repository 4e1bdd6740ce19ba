"""A training run small enough to be repeated hundreds of times, also as a process of its own:

    python tiny_training.py FOLDER STEPS UNTIL THREADS EVERY

goes on with the last checkpoint in FOLDER, or starts, up to step UNTIL of STEPS, saving every EVERY steps and
at the end. It says "started" before the first step.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import attnsparse as asp
from attnsparse.model.initial_weights import initial_weights
from attnsparse.training import schedules
from attnsparse.training.checkpoint import checkpoint_name, checkpoint_steps
from attnsparse.training.data import SequenceData
from attnsparse.training.options import TrainingOptions
from attnsparse.training.trainer import Trainer

SHAPE = {"n_layer": 2, "n_head": 2, "d_model": 12, "d_head": 5, "d_mlp": 16, "n_ctx": 9, "n_vocab": 11}


def model(gated: bool = True, seed: int = 3) -> asp.Model:
    config = asp.Config(**SHAPE, gated=gated)
    return asp.Model(config, initial_weights(config, seed, std=0.3), name="tiny")


def data(batch: int = 3, seed: int = 5) -> SequenceData:
    """Ten sequences of 1 to 9 tokens: an epoch ends in the middle of a batch."""
    random = np.random.default_rng(1)
    lengths = [9, 1, 4, 7, 2, 9, 5, 3, 8, 6]
    return SequenceData(
        [random.integers(0, SHAPE["n_vocab"], n) for n in lengths],
        batch,
        seed=seed,
        loss_weights=[random.integers(0, 3, n) for n in lengths],
    )


def options(steps: int, **changes: Any) -> TrainingOptions:
    """All of them change on the way: rate, dropout, bias per layer, price of edges, slack, limits."""
    chosen: dict[str, Any] = {
        "steps": steps,
        "seed": 7,
        "accumulation": 2,
        "lr": schedules.Warmup(3e-3, 5, "linear", begin=0.6, final=0.1),
        "weight_decay": 0.1,
        "entry_dropout": 0.05,
        "head_dropout": schedules.jump(0.2, 0.0, 0.6),
        "attn_out_dropout": 0.05,
        "mlp_out_dropout": 0.05,
        "tau": 2.0,
        "slack": schedules.linear(0.3, 0.0, 0.0, 0.5),
        "multiplier": 0.5,
        "multiplier_min": schedules.jump(0.1, 0.6, 0.7),
        "multiplier_max": 2.0,
        "geco_rate": 0.1,
        "gate_bias": schedules.per_layer({"0": schedules.linear(3, 0, 0, 0.4), "1": 1.0}),
        "edge_weight": schedules.per_layer([2.0, schedules.linear(0.5, 1.0)]),
    }
    return TrainingOptions(**{**chosen, **changes})


def continued(folder: Path, steps: int, threads: int, every: int = 0) -> Trainer:
    """The run in `folder`, from its last checkpoint or from the start."""
    how: dict[str, Any] = {"threads": threads, "folder": folder, "checkpoint_every": every}
    if checkpoint_steps(folder):
        return Trainer.resume(folder, data(), options(steps), **how)
    return Trainer(model(), data(), options(steps), **how)


def main() -> None:
    folder, (steps, until, threads, every) = Path(sys.argv[1]), map(int, sys.argv[2:])
    trainer = continued(folder, steps, threads, every)
    print("started", flush=True)
    trainer.train(progress=False, until=until)
    trainer.save(folder / checkpoint_name(trainer.step_count))


if __name__ == "__main__":
    main()
