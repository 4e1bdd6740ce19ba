"""Models whose metric is a sum that can be done by hand, to ask `find_circuit` about.

The metric of a prompt is its gain times (base + the weights of the items that are not ablated + what pairs
are worth, of which one item is enough). Items are heads, of a dense model on prompts of one token, or edges
to the last token, of a model in which no other gate is open. A head with the weight w adds w times the gain
to one coordinate of the residual stream, which the unembedding reads; a pair adds to a coordinate of its own,
of which the last MLP passes on at most the gain. LayerNorm is the identity, as in planted.py: one more
coordinate keeps the mean at 0 and ln_eps is huge.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracle

import attnsparse as asp
from attnsparse.circuits.circuit import Circuit
from attnsparse.circuits.find import find_circuit
from attnsparse.model.tokenizer import Tokenizer
from attnsparse.tasks.task import Task

Item = tuple[int, ...]
LN_EPS, LN_WEIGHT = 2.0**80, 2.0**40
SURE = 1024.0  # a score after which softmax is exactly 0 and 1
N_WORDS = 40  # tokens of prompts, each with a gain of its own; the answer and the wrong one follow
WORDS = (*(f" w{i}" for i in range(N_WORDS)), " yes", " no")
OUT, GAIN, FIRST = 0, 1, 2  # coordinates: what the unembedding reads, the gain; then pairs, then positions


@dataclass(frozen=True)
class Toy:
    """The sum; see the module."""

    weights: Mapping[Item, float]
    pairs: Sequence[tuple[float, tuple[Item, ...]]] = ()
    """Worth and items, each of which is enough."""
    base: float = 0.0
    spread: float = 0.0
    """Of the gains of prompts around 1."""
    scale: float = 1.0
    """Factor of the whole sum."""

    @property
    def is_of_edges(self) -> bool:
        """Whether the items are edges."""
        return len(next(iter(self.weights))) == 4

    @property
    def n_tokens(self) -> int:
        """Of each prompt."""
        return next(iter(self.weights))[2] + 1 if self.is_of_edges else 1

    def gains(self, task: Task) -> np.ndarray:
        """Of the prompts of a task."""
        return self._gains()[[row[-1] for row in task.clean]]

    def _gains(self) -> np.ndarray:
        return 1 + self.spread * np.random.default_rng(0).normal(size=N_WORDS)

    def model(self) -> asp.Model:
        """The model, in float64."""
        n_layer, n_head = (1 + max(item[i] for item in self.weights) for i in (0, 1))
        first_position = FIRST + len(self.pairs)
        config = oracle.full_config(
            n_layer=n_layer, n_head=n_head, d_model=first_position + self.n_tokens + 1, d_head=1,
            d_mlp=2 * max(1, len(self.pairs)), n_ctx=self.n_tokens, n_vocab=len(WORDS), activation="relu",
            tied=False, ln_eps=LN_EPS, gated=self.is_of_edges, gate_bias=-SURE / 2 * self.is_of_edges,
        )  # fmt: skip
        weights = {name: np.zeros(shape) for name, shape in oracle.parameter_shapes(config).items()}
        for name in weights:
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                weights[name][:] = LN_WEIGHT
        weights["wte.weight"][:N_WORDS, GAIN] = self._gains()
        weights["wte.weight"][:, OUT] = self.base * weights["wte.weight"][:, GAIN]
        weights["wpe.weight"][:, first_position:-1] = np.eye(self.n_tokens)
        weights["lm_head.weight"][N_WORDS, OUT] = self.scale
        write = self._write_edges if self.is_of_edges else self._write_heads
        write(weights, n_head, first_position)
        self._write_pairs(weights, n_layer)
        for name, into in weights.items():
            if name in ("wte.weight", "wpe.weight") or name.endswith("c_proj.weight"):
                into[:, -1] = -into[:, :-1].sum(1)
        return asp.Model(asp.Config.from_dict(config), weights, _tokenizer(), "toy", "float64")

    def _write_heads(self, weights: dict[str, np.ndarray], n_head: int, _: int) -> None:
        for (layer, head), weight in self.weights.items():
            weights[f"h.{layer}.attn.c_attn.weight"][GAIN, 2 * n_head + head] = 1.0
            weights[f"h.{layer}.attn.c_proj.weight"][head, OUT] = weight
            for i, (_, items) in enumerate(self.pairs):
                weights[f"h.{layer}.attn.c_proj.weight"][head, FIRST + i] = (layer, head) in items

    def _write_edges(self, weights: dict[str, np.ndarray], n_head: int, first_position: int) -> None:
        heads = {item[:2] for item in self.weights}
        for layer, head in heads:
            block = weights[f"h.{layer}.attn.c_attn.weight"][first_position:-1]
            keys = [item[3] for item in self.weights if item[:2] == (layer, head)]
            block[self.n_tokens - 1, head] = SURE
            block[:, n_head + head] = -1.0
            block[keys, n_head + head] = 1.0
            for key in keys:
                weight = self.weights[(layer, head, self.n_tokens - 1, key)]
                block[key, 2 * n_head + head] = len(keys) * weight  # the pattern is even over the keys
            weights[f"h.{layer}.attn.c_proj.weight"][head, OUT] = 1.0

    def _write_pairs(self, weights: dict[str, np.ndarray], n_layer: int) -> None:
        """min(x, gain) = relu(x) - relu(x - gain) of what the items of each pair add up to."""
        into, out = (weights[f"h.{n_layer - 1}.mlp.{name}.weight"] for name in ("c_fc", "c_proj"))
        for i, (worth, _) in enumerate(self.pairs):
            into[FIRST + i, 2 * i : 2 * i + 2] = 1.0
            into[GAIN, 2 * i + 1] = -1.0
            out[2 * i : 2 * i + 2, OUT] = worth, -worth


def rows(items: np.ndarray) -> list[Item]:
    """Items as tuples."""
    return [tuple(row) for row in np.asarray(items).tolist()]


def heads(*weights: float, per_layer: int = 4) -> dict[Item, float]:
    """Heads in order with these weights, all heads of a model; in one layer if layers would not be full."""
    per_layer = len(weights) if len(weights) % per_layer else per_layer
    return {divmod(i, per_layer): weight for i, weight in enumerate(weights)}


def edges(*weights: float, n_heads: int = 4) -> dict[Item, float]:
    """Edges to the last token with these weights, in the order of candidates."""
    n_keys = -(-len(weights) // n_heads)
    return {(0, i // n_keys, n_keys - 1, i % n_keys): weight for i, weight in enumerate(weights)}


@functools.cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_words(WORDS)


@functools.cache
def toy_task(n: int = 12, seed: int = 0, n_tokens: int = 1) -> Task:
    """n prompts of one word, said as often as there are tokens; the first half is for ranking."""
    chosen = np.random.default_rng(seed).permutation(N_WORDS)[: 2 * n].astype(np.int32)
    clean, corrupted = (tuple(np.full(n_tokens, w, np.int32) for w in chosen[i::2]) for i in (0, 1))
    answers, wrong = ((np.array([N_WORDS + i], np.int32),) * n for i in (0, 1))
    is_ranking = np.arange(n) < n // 2
    return Task("toy", "logit_diff", _tokenizer(), clean, corrupted, answers, wrong, ("",) * n, is_ranking)


def with_toy(
    weights: Mapping[Item, float],
    toy: Mapping[str, Any] | None = None,
    task: Task | None = None,
    **options: Any,
) -> tuple[Circuit, Toy]:
    """What `find_circuit` finds in a toy of these weights and further fields, and the toy."""
    made = Toy(weights, **(toy or {}))
    task = toy_task(n_tokens=made.n_tokens) if task is None else task
    unit = "edge" if made.is_of_edges else "head"
    found = find_circuit(made.model(), task, **{"unit": unit, "n_random": 0, "n_bootstrap": 50, **options})
    return found, made
