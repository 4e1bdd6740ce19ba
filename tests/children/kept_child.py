"""Runs, gradients and training steps whose arrays are large: python kept_child.py prints a digest of them.

In a process of its own all memory is fresh. test_memory.py calls `digest` where memory holds what earlier
calls left there, and wants the same.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import reliability
from reliability import bits_of_model, bits_of_run, micro_batch, step_options

import attnsparse as asp

LENGTHS = (24, 1, 17) * 24
WRT = ("parameters", "pattern", "scores", "q", "z", "resid_pre", "resid_mid", "mlp_pre", "mlp_post")


def prompts() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 96, n).astype(np.int32) for n in LENGTHS]


def use(model: asp.Model, dtype: str) -> dict[str, bytes]:
    """Every recorded array, alone and together, edges, gradients, and two steps of training."""
    found = {}
    for i, record in enumerate(
        [("all", "edges"), "attention", "edges", ("scores", "gate"), "token_loss", "result"]
    ):
        run = model.run(prompts(), record, logits=("all", "last", "none")[i % 3])
        found |= {f"{i} {name}": value for name, value in bits_of_run(run).items()}
    gradients = model.gradients(prompts(), wrt=WRT, gate_gradient="straight-through")
    found |= {f"d {name}": value for name, value in bits_of_run(gradients).items()}
    found |= {f"d {name}": value.tobytes() for name, value in gradients.parameters.items()}
    trainer = reliability.CORES[dtype].Trainer(model._core)
    for seed in range(2):
        try:
            trainer.step([micro_batch(LENGTHS, dtype=dtype, seed=seed)], **step_options())
        except asp.TrainingDiverged:
            found["diverged"] = b"1"
    return found | bits_of_model(model, trainer)


def digest(dtype: str) -> str:
    """SHA-256 of `use` with the usual model."""
    found = use(reliability.model(dtype=dtype), dtype)
    return hashlib.sha256(b"".join(found[name] for name in sorted(found))).hexdigest()


def leave_nan(dtype: str) -> None:
    """The same calls with a model of NaN, so that NaN is what they leave in memory."""
    model = reliability.model(dtype=dtype)
    model.assign({name: np.full_like(array, np.nan) for name, array in model.parameters().items()})
    assert "diverged" in use(model, dtype)


if __name__ == "__main__":
    print(json.dumps({dtype: digest(dtype) for dtype in ("float32", "float64")}))
