"""A small circuit made by hand, for tests of its file."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from attnsparse.circuits.circuit import Circuit


def example(unit: str = "edge", **changes: Any) -> Circuit:
    """A circuit of 3 items, 4 sizes and 2 prompts."""
    items = {"head": [[0, 1], [1, 0], [1, 1]], "head_position": [[0, 1, 2], [1, 0, 0], [1, 0, 1]]}
    values = np.array([[0.0, 0.5], [1.0, 2.0], [3.0, 4.0], [4.0, 5.5]])
    mean = values.mean(axis=1)
    effect = (mean - mean[0]) / (mean[-1] - mean[0])
    fields = {
        "model_name": "tiny ä",
        "model_digest": "ab" * 32,
        "task_name": 'copy "x"\n',
        "task_digest": "cd" * 32,
        "unit": unit,
        "method": "ig",
        "ablation": "mean",
        "normalize": "mib",
        "metric": "prob_diff",
        "options": {
            "rank_by": "absolute",
            "steps": 10,
            "greedy_step": 0.1,
            "n_bootstrap": 100,
            "n_random": 2,
            "confidence": 0.95,
            "seed": 2**64 - 1,
            "sizes": [0, 1, 2, 3],
            "reference": "ef" * 32,
            "n_ranking": 7,
        },
        "items": np.array(items.get(unit, [[0, 1, 2, 1], [1, 0, 3, 3], [1, 0, 3, 0]]), np.int32),
        "scores": np.array([0.3, -0.2, 1 / 3]),
        "sizes": np.arange(4),
        "values": values,
        "full": values[3].copy(),
        "empty": values[0].copy(),
        "effect": effect,
        "effect_low": effect - 0.1,
        "effect_high": effect + 0.1,
        "random_effect": np.array([0, np.nan, 0.5, 1]),
        "random_low": np.array([0, np.nan, 0.4, 1]),
        "random_high": np.array([0, np.nan, 0.6, 1]),
        "position_labels": ("<bos>", "a", "b", "c"),
    }
    return Circuit(**{**fields, **changes})


def assert_same(one: Circuit, other: Circuit) -> None:
    for field in dataclasses.fields(Circuit):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert type(a) is type(b), field.name
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), field.name
            assert not b.flags.writeable
        else:
            assert a == b, field.name
