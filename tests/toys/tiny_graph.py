"""Small graphs: one written down by hand with random numbers, and one traced through a small model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import reliability

import attnsparse as asp
from attnsparse.graphs.build import attribution_graph
from attnsparse.graphs.graph import Graph
from attnsparse.graphs.heads import ScoreSplit
from attnsparse.transcoders.arrays import ArraySource
from attnsparse.transcoders.transcoders import Transcoders

WORDS = ["The", " opposite", " of", ' "', "large", '"', " is", "small", " tall", " short", "<bos>", " old"]
PROMPT = 'The opposite of "large" is "'
L, T, H, D = 8, 3, 2, 4  # layers, tokens, heads, head width of `example`
FEATURES = ((0, 1, 7), (0, 1, 9), (1, 2, 0), (7, 2, 3))  # layer, position, number


def model(seed: int = 0, **changes: Any) -> asp.Model:
    """A gated model of two layers that knows WORDS."""
    tokenizer = asp.Tokenizer.from_words(WORDS, bos="<bos>")
    plain = reliability.model(seed, n_vocab=len(WORDS), **changes)
    return asp.Model(
        plain.config, plain.parameters(), tokenizer=tokenizer, name="spoken", dtype=str(plain.dtype)
    )


def transcoders(
    of: asp.Model, n_features: int = 24, seed: int = 0, cross: bool = False, **options: Any
) -> Transcoders:
    """Random ones of which about a third is active."""
    rng = np.random.default_rng(seed)
    n_layer, e = of.config.n_layer, of.config.d_model

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    layers = range(n_layer)
    source = ArraySource(
        [draw(n_features, e) / np.float32(np.sqrt(e)) for _ in layers],
        [draw(n_features) * np.float32(0.1) - np.float32(0.5) for _ in layers],
        [draw(n_features, n_layer - i, e) if cross else draw(n_features, e) for i in layers],
        [draw(e) * np.float32(0.1) for _ in layers],
        threshold=[np.full(n_features, 0.3, np.float32)] * n_layer
        if options.get("activation") == "jump_relu"
        else None,
    )
    return Transcoders(source, **{"activation": "relu", "name": "random", "scan": "spoken-random"} | options)


def traced(dtype: str = "float32", **options: Any) -> Graph:
    """The graph of PROMPT in `model`, with splits."""
    spoken = model(dtype=dtype)
    options = {"n_splits": 3, "max_n_logits": 4, "threads": 1} | options
    return attribution_graph(spoken, transcoders(spoken), PROMPT, **options)


def example(dtype: str = "float32", **changes: Any) -> Graph:
    """Four features, all errors, tokens, positions, bias, other and two logits; random numbers."""
    rng = np.random.default_rng(0)
    f, errors, tokens = len(FEATURES), L * T, np.array([5, 5, 11], np.int32)
    kinds = {"feature": f, "error": errors, "token": T, "position": T, "bias": 1, "other": 1, "logit": 2}
    kind = tuple(name for name, count in kinds.items() for _ in range(count))
    n, placed, targets = len(kind), f + errors + 2 * T, f + 2
    blank, none = np.full(2, -1), np.full(2 * T, -1)
    layer, position, number = np.array(FEATURES).T
    counts = np.zeros(n, np.int64)
    counts[[0, 1, 2, 3, n - 2, n - 1]] = (4, 3, 5, 6, 10, 9)
    source = np.concatenate([np.sort(rng.choice(n - 2, count, replace=False)) for count in counts])
    value = np.full(n, np.nan)
    value[[0, 1, 2, 3, n - 2, n - 1]] = (1.5, 0.1, 2.0, 0.7, 3.25, 1.0)
    probability = np.full(n, np.nan)
    probability[-2:] = (0.625, 0.2)
    pairs = rng.standard_normal((4, 4))
    numbers = {
        "layer": np.concatenate([layer, np.repeat(np.arange(L), T), none, blank, [L, L]]),
        "position": np.concatenate(
            [position, np.tile(np.arange(T), L), np.arange(T), np.arange(T), blank, [T - 1] * 2]
        ),
        "feature": np.concatenate([number, np.full(errors, -1), tokens, np.full(T, -1), blank, [3, 4]]),
    }
    reals = {
        "value": value, "probability": probability, "weights": rng.standard_normal(len(source)),
        "pattern": rng.random((L, H, T, T)), "carried": rng.standard_normal((placed, L, H, D)),
        "received": rng.standard_normal((targets, L, H, D)),
        "received_alone": rng.standard_normal((targets, L, H, D)),
    }  # fmt: skip
    fields: dict[str, Any] = {
        "model_name": "tiny ä", "model_digest": "ab" * 32, "transcoders_name": "coders", "scan": "tiny",
        "prompt": 'a "b"\n', "tokens": tokens, "token_strings": ('"', '"', " é\n"), "prepend_bos": False,
        "n_layer": L, "n_head": H, "options": {"target": None, "max_n_logits": 10, "desired_logit_prob": 0.95,
                                              "max_feature_nodes": 4, "n_active": 9},
        "kind": kind,
        "labels": (*(f"label {i} <b>" for i in range(n - 2)), 'Output " x" (p=0.625)', 'Output " y" (p=0.2)'),
        "start": np.concatenate([[0], np.cumsum(counts)]), "source": source.astype(np.int32),
        "closure": float("inf"), "closure_absolute": 1e-7,
        "splits": (
            ScoreSplit(1, 0, 2, 1, float(pairs.sum()), float("nan"), np.array([0, 5, 29, n - 4]), pairs),
            ScoreSplit(0, 1, 2, 0, 4.0, 3.5, np.array([n - 4]), np.full((1, 1), 4.0)),
        ),
        **{name: array.astype(np.int32) for name, array in numbers.items()},
        **{name: array.astype(dtype) for name, array in reals.items()},
    }  # fmt: skip
    return Graph(**fields | changes)


def assert_same(one: Graph, other: Graph, leave_out: tuple[str, ...] = ()) -> None:
    """Every field equal to the bit, but `origin` and what is left out."""
    for field in dataclasses.fields(Graph):
        if field.name in ("origin", *leave_out):
            continue
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "splits":
            assert len(a) == len(b)
            for x, y in zip(a, b):
                assert repr((x.layer, x.head, x.query, x.key, x.score, x.gate_logit)) == repr(
                    (y.layer, y.head, y.query, y.key, y.score, y.gate_logit)
                )
                assert np.array_equal(x.nodes, y.nodes)
                assert x.pairs.tobytes() == y.pairs.tobytes()
        elif isinstance(a, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), field.name
            assert not b.flags.writeable, field.name
        else:
            assert type(a) is type(b), field.name
            assert (repr(a) if isinstance(a, float) else a) == (repr(b) if isinstance(b, float) else b), (
                field.name
            )
