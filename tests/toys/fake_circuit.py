"""Circuits with a given curve, made without a model."""

from __future__ import annotations

import numpy as np

from attnsparse import _core
from attnsparse._core_types import Curve
from attnsparse.circuits.circuit import Circuit


def fake_circuit(
    curve,
    sizes=None,
    *,
    unit: str = "head",
    n_prompts: int = 12,
    spread: float = 0.0,
    seed: int = 0,
    random: bool = False,
    task: str = "copy",
    ablation: str = "zero",
    name: str = "fake",
    n_bootstrap: int = 200,
) -> Circuit:
    """A circuit whose explained effect at sizes (0, 1, ... unless given) is `curve` on the mean of prompts.

    spread: how much single prompts differ from it, where the curve is neither 0 nor 1.
    """
    curve = np.asarray(curve, np.float64)
    sizes = np.arange(len(curve)) if sizes is None else np.asarray(sizes, np.int64)
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, spread, (1, n_prompts)) * (4 * curve * (1 - curve))[:, None]
    noise -= noise.mean(axis=1, keepdims=True)
    full, empty = np.full(n_prompts, 20.0), np.full(n_prompts, -4.0)
    values = empty + (full - empty) * (curve[:, None] + noise)
    measured = Curve(values, full, empty, "mib")
    low, high = _core.curve_band(_core.curve_bootstrap(measured, n_bootstrap, 0), 0.95)
    n = int(sizes[-1])
    items = np.stack([np.arange(n) // 12, np.arange(n) % 12], axis=1)
    if unit == "edge":
        items = np.concatenate([items, np.full((n, 1), 9), np.full((n, 1), 4)], axis=1)
    known = sizes / n if random else np.full(len(sizes), np.nan)
    return Circuit(
        model_name=name,
        model_digest="a" * 64,
        task_name=task,
        task_digest="b" * 64,
        unit=unit,
        method="exact",
        ablation=ablation,
        normalize="mib",
        metric="logit_diff",
        options={
            "rank_by": "absolute",
            "steps": 10,
            "greedy_step": 0.1,
            "n_bootstrap": n_bootstrap,
            "n_random": 2 if random else 0,
            "confidence": 0.95,
            "seed": 0,
            "sizes": None,
            "reference": None,
            "n_ranking": n_prompts,
        },
        items=items.astype(np.int32),
        scores=np.linspace(1, 0, n),
        sizes=sizes.astype(np.int64),
        values=values,
        full=full,
        empty=empty,
        effect=_core.curve_effect(measured),
        effect_low=low,
        effect_high=high,
        random_effect=known,
        random_low=known,
        random_high=known,
    )
