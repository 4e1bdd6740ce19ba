"""Prompts and models for tests of generation."""

import numpy as np
from alone import bits_are_promised
from circuit_cases import Case, case

CLOSE = {"float32": 5e-6, "float64": 1e-14}  # of the largest logit, where bits are not promised
RAGGED = ([1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 0] * 3)


def larger_case(name: str, n_ctx: int = 60) -> Case:
    """A case with a longer context."""
    one = case(name)
    config = dict(one.config, n_ctx=n_ctx)
    weights = dict(one.weights)
    weights["wpe.weight"] = 0.7 * np.random.default_rng(3).standard_normal((n_ctx, config["d_model"]))
    weights["wpe.weight"] = weights["wpe.weight"].astype(np.float32).astype(np.float64)
    return Case(config, weights, one.task)


def same_logits(found: np.ndarray, expected: np.ndarray) -> bool:
    """Bits where they are promised; else close."""
    if bits_are_promised() and found.dtype == np.float32:
        return found.tobytes() == expected.tobytes()
    return np.abs(found - expected).max() <= CLOSE[str(found.dtype)] * np.abs(expected).max()
