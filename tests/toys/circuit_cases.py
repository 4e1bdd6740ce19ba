"""Random models and tasks on which the package's interventions and effects are compared with the oracle's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import engine
import numpy as np
import oracle
import oracle_circuits as oc

import attnsparse as asp
from attnsparse.model.tokenizer import Tokenizer
from attnsparse.tasks.task import Task

CONFIGS = {
    "dense": {"n_layer": 3, "d_head": 3, "n_head": 3},
    "gated": {"gated": True, "gate_bias": 0.1, "n_layer": 2, "n_head": 3, "d_head": 5},
    "one layer, untied": {
        "n_layer": 1,
        "gated": True,
        "gate_bias": -0.2,
        "tied": False,
        "unembed_bias": True,
    },
    "relu, layer scale": {"activation": "relu", "scale_by_inverse_layer": True, "gated": True},
    "no bias, gelu": {"bias": False, "activation": "gelu", "d_model": 13, "n_head": 1, "d_head": 13},
    "all closed": {"gated": True, "gate_bias": engine.CLOSED},
    "self closed": {"gated": True, "self_closed": True, "gate_bias": 0.1},
}
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}  # of the largest expected value


@dataclasses.dataclass(frozen=True)
class Case:
    """One model in both writings, and a task."""

    config: Mapping
    weights: Mapping[str, np.ndarray]
    task: Task

    def model(self, dtype: str = "float64") -> asp.Model:
        """The package's model."""
        return engine.build(self.config, self.weights, dtype)

    def ask(self, question, *arguments, **options):
        """A function of the oracle about this case."""
        return question(self.config, self.weights, self.task, *arguments, **options)


def random_task(config: Mapping, lengths: Sequence[int], seed: int = 0, metric: str = "logit_diff") -> Task:
    """Random prompts, two right and three wrong answers each; the first half for ranking."""
    rng, n, n_vocab = np.random.default_rng(seed), len(lengths), config["n_vocab"]
    clean, corrupted = (
        tuple(rng.integers(0, n_vocab, t).astype(np.int32) for t in lengths) for _ in range(2)
    )
    ids = [rng.permutation(n_vocab)[:5].astype(np.int32) for _ in lengths]
    answers, wrong = tuple(row[:2].copy() for row in ids), tuple(row[2:].copy() for row in ids)
    tokenizer = Tokenizer.from_words([chr(ord("a") + i) for i in range(n_vocab)], split="characters")
    first_half = np.arange(n) < (n + 1) // 2
    return Task("random", metric, tokenizer, clean, corrupted, answers, wrong, ("",) * n, first_half)


def case(name: str, lengths: Sequence[int] = (5, 5, 5), seed: int = 0, metric: str = "logit_diff") -> Case:
    """A random model of `CONFIGS[name]` whose weights are exact in float32."""
    config = oracle.full_config(**CONFIGS[name])
    return Case(config, engine.rounded_model(seed, config), random_task(config, lengths, seed, metric))


def some(items: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """n of the items in random order."""
    return items[np.random.default_rng(seed).permutation(len(items))[:n]]


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """max |found - expected| / max |expected|, but never measured against less than 0.01: metrics here have
    size about 1. Infinite for another shape, another type than float64, or NaN."""
    found = np.asarray(found)
    if found.shape != expected.shape or found.dtype != np.float64 or np.isnan(found).any():
        return np.inf
    return np.abs(found - expected).max(initial=0.0) / max(np.abs(expected).max(initial=0.0), 0.01)


__all__ = ["CONFIGS", "TOLERANCE", "Case", "case", "error", "oc", "random_task", "some"]
