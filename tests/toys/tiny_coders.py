"""A training run of transcoders small enough to be repeated hundreds of times."""

from __future__ import annotations

import tiny_training as tiny

from attnsparse.training import schedules
from attnsparse.transcoders.options import TranscoderOptions
from attnsparse.transcoders.trainer import TranscoderTrainer


def options(steps: int, **changes) -> TranscoderOptions:
    """Everything changes on the way."""
    chosen = {
        "steps": steps,
        "n_features": (20, 24),
        "lr": schedules.Warmup(1e-2, 5, "linear", begin=0.6, final=0.1),
        "sparsity": schedules.linear(1e-3, 5e-3, 0.0, 0.5),
        "l0": schedules.linear(8, 3),
        "dead_after": 3,
        "aux_k": 4,
        "seed": 3,
    }
    return TranscoderOptions(**{**chosen, **changes})


def made(steps: int, threads: int = 1, **changes) -> TranscoderTrainer:
    return TranscoderTrainer(tiny.model(), tiny.data(batch=8), options(steps, **changes), threads=threads)
