"""Starting weights of a new model: a pure function of its config and a seed."""

from __future__ import annotations

import math

import numpy as np

from .. import _random
from .config import Config


def initial_weights(config: Config, seed: int, std: float | str = 0.02) -> dict[str, np.ndarray]:
    """Weights as in GPT-2 (float32, name -> array with the shape that `config` says): `Model.initialised`.

    Array i of `config.parameter_shapes()` has a random stream of its own.
    """
    if std != "fan_in" and not (isinstance(std, (int, float)) and 0 < std < math.inf):
        raise ValueError(f"std must be a number above 0 or 'fan_in', got {std!r:.60}")
    weights = {}
    for index, (name, shape) in enumerate(config.parameter_shapes().items()):
        if name.endswith(".bias"):
            weights[name] = np.zeros(shape, np.float32)
        elif len(shape) == 1:
            weights[name] = np.ones(shape, np.float32)
        else:
            scale = _scale(name, shape, std) / (math.sqrt(2 * config.n_layer) if "c_proj" in name else 1.0)
            normal = _random.normal(shape, seed, _random.WEIGHTS, index)
            weights[name] = (scale * normal).astype(np.float32)
    return weights


def _scale(name: str, shape: tuple[int, ...], std: float | str) -> float:
    if std != "fan_in":
        return float(std)
    if name in ("wte.weight", "wpe.weight"):
        return 0.02
    return 1 / math.sqrt(shape[1] if name == "lm_head.weight" else shape[0])
