"""Scores, circuits and curves of component edges, made without a model."""

from __future__ import annotations

import numpy as np

from attnsparse.circuits import ComponentCircuit, ComponentCurve, ComponentScores
from attnsparse.circuits.components import names as names
from attnsparse.circuits.components.file import exists

GRID = (0.01, 0.1, 0.5, 1.0)
RANDOM = ((0.0, 0.1, 0.2, 1.0), (0.0, 0.0, 0.4, 1.0))


def fake_component_scores(
    n_layer: int = 3, n_head: int = 2, *, seed: int = 0, level: str = "edge", name: str = "fake"
) -> ComponentScores:
    """Normal scores; a third is 0."""
    shape = names.Shape(n_layer, n_head)
    there, rng = exists(shape), np.random.default_rng(seed)
    scores = rng.normal(size=there.shape) * (rng.random(there.shape) < 0.67) * there
    return ComponentScores(
        scores=scores,
        senders=tuple(names.senders(shape)),
        receivers=tuple(names.receivers(shape)),
        n_before=there.sum(0),
        level=level,
        method="eap",
        ablation="counterfactual",
        direction="noising",
        steps=1,
        gate="none",
        metric="logit_diff",
        model=name,
        task=name,
    )


def fake_component_circuit(
    n_layer: int = 3, n_head: int = 2, *, seed: int = 0, given: np.ndarray | None = None, name: str = "fake"
) -> ComponentCircuit:
    """Of such scores."""
    scores = fake_component_scores(n_layer, n_head, seed=seed).scores
    return ComponentCircuit(scores, n_layer, n_head, 8, given=given, method="eap", model=name, task=name)


def fake_component_curve(
    curve=(0.0, 0.6, 1.05, 1.0),
    *,
    kept=(0, 8, 50, 100),
    spread: float = 0.2,
    seed: int = 0,
    name: str = "fake",
    random: bool = False,
) -> ComponentCurve:
    """A curve whose faithfulness on the mean of its prompts is `curve`.

    spread: how much single prompts differ from it, where the curve is neither 0 nor 1. random: with two
    random rankings, of faithfulness RANDOM.
    """
    shape, n_prompts = np.asarray(curve, np.float64), 12
    noise = np.random.default_rng(seed).normal(0, spread, (1, n_prompts)) * (4 * shape * (1 - shape))[:, None]
    noise -= noise.mean(axis=1, keepdims=True)
    full, empty = np.full(n_prompts, 20.0), np.full(n_prompts, -4.0)
    return ComponentCurve(
        shares=np.array(GRID),
        requested=np.array([int(share * 100) for share in GRID]),
        kept=np.array(kept),
        values=empty + (full - empty) * (shape[:, None] + noise),
        full=full,
        empty=empty,
        ablation="counterfactual",
        direction="noising",
        gate="none",
        metric="logit_diff",
        model=name,
        task=name,
        **(_random_rankings(n_prompts) if random else {}),
    )


def _random_rankings(n_prompts: int) -> dict[str, np.ndarray]:
    values = -4.0 + 24.0 * np.repeat(np.array(RANDOM)[:, :, None], n_prompts, axis=2)
    return {"random_values": values, "random_kept": np.array([(0, 0, 30, 100), (0, 0, 40, 100)])}
