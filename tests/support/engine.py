"""Helpers of the tests that compare the C core with the oracle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import oracle
import oracle_training as ot
from hypothesis import strategies as st

import attnsparse as asp

RECORDED = (
    *oracle.PER_LAYER,
    "embed",
    "pos_embed",
    "ln_final_scale",
    "ln_final_normalized",
    "logits",
    "token_loss",
)
TOLERANCE = {"float32": 3e-5, "float64": 1e-12}
CLOSED, OPEN = -1e6, 1e6
WRT = ("parameters", *ot.PATH_ACTIVATIONS)
SMALL = 1e-3  # see gradient_error


def build(config: Mapping, weights: Mapping[str, np.ndarray], dtype: str = "float32") -> asp.Model:
    """The engine's model of an oracle configuration and its weights."""
    weights = {name: np.asarray(value, dtype) for name, value in weights.items()}
    return asp.Model(asp.Config.from_dict(dict(config)), weights, dtype=dtype)


def rounded_model(seed: int, config: Mapping) -> dict[str, np.ndarray]:
    """random_model whose weights are exactly representable in float32."""
    weights = oracle.random_model(np.random.default_rng(seed), config)
    return {name: value.astype(np.float32).astype(np.float64) for name, value in weights.items()}


def random_tokens(seed: int, config: Mapping, n_tokens: int) -> np.ndarray:
    """Token ids (n_tokens,) int32."""
    return np.random.default_rng(seed).integers(0, config["n_vocab"], n_tokens).astype(np.int32)


def gates_are_clear(config: Mapping, run: Mapping, margin: float = 1e-3) -> bool:
    """No gate logit so close to 0 that rounding in float32 could flip the gate."""
    g = run["scores"] + config["gate_bias"]
    return not config["gated"] or np.abs(g).min() > margin


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """max |found - expected| / max |expected|; entries of -inf must be the same and are left out.

    Infinite if a shape, a bool or a place of -inf differs or anything found is NaN."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return np.inf
    if expected.dtype == bool:
        return 0.0 if found.dtype == bool and np.array_equal(found, expected) else np.inf
    masked = np.isneginf(expected)
    if not np.array_equal(np.isneginf(found), masked) or np.isnan(found).any():
        return np.inf
    difference = np.abs(np.where(masked, 0.0, found) - np.where(masked, 0.0, expected)).max(initial=0.0)
    size = np.abs(np.where(masked, 0.0, expected)).max(initial=0.0)
    return 0.0 if difference == 0 else difference / max(size, 1e-300)


def errors(run: asp.Run, expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Relative error of every recorded array of one prompt."""
    return {name: relative_error(getattr(run, name), expected[name]) for name in RECORDED}


def gradient_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Euclidean |found - expected| / |expected|; infinite for another shape or NaN.

    A gradient that is 0 by cancellation (scores of a single key, closed gates) is measured against SMALL:
    all gradients here are made of terms of size about 1."""
    found = np.asarray(found)
    if found.shape != expected.shape or np.isnan(found).any():
        return np.inf
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), SMALL)


def gradient_errors(found: asp.Gradients, expected: ot.Gradients) -> dict[str, float]:
    """Errors of all parameters and all activations, by name."""
    assert set(found.parameters) == set(expected.parameters)
    pairs = {name: (found.parameters[name], value) for name, value in expected.parameters.items()}
    pairs |= {name: (getattr(found, name), value) for name, value in expected.activations.items()}
    return {name: gradient_error(*pair) for name, pair in pairs.items()}


def oracle_gradients(
    config: Mapping, weights: Mapping, tokens: np.ndarray, dlogits: np.ndarray, straight_through: bool
) -> ot.Gradients:
    """The oracle's gradients of sum(dlogits * logits), gates as at evaluation."""
    run = oracle.forward(config, weights, tokens)
    g = ot.evaluation_gate_logits(config, run) if straight_through and config["gated"] else None
    return ot.backward(config, weights, tokens, run, dlogits, gate_logits=g)


def micro_batches(
    seed: int, config: Mapping, lengths: tuple = ((7, 1), (4, 9, 3)), dtype: str = "float32"
) -> list[ot.Micro]:
    """Micro-batches of random tokens with targets and weights 0, 1 or 2, in the type of the core."""
    rng, found = np.random.default_rng(seed), []
    for group in lengths:
        n = sum(group)
        tokens, targets = rng.integers(0, config["n_vocab"], (2, n)).astype(np.int32)
        offsets = np.cumsum((0, *group), dtype=np.int64)
        found.append((tokens, offsets, targets, rng.integers(0, 3, n).astype(dtype)))
    return found


def step_arguments(options: ot.Options) -> dict:
    """The oracle's options as keyword arguments of the core's Trainer.step."""
    arguments = dataclasses.asdict(options)
    kinds = ("self_edge_weight", "previous_edge_weight", "first_edge_weight")
    arguments |= dict(zip(kinds, arguments.pop("kind_weight"), strict=True))
    names = ("entry_dropout", "head_dropout", "attn_out_dropout", "mlp_out_dropout")
    arguments |= dict(zip(names, arguments.pop("dropout")))
    for name in ("gate_bias", "edge_weight", *kinds):
        if arguments[name] is not None:
            arguments[name] = [float(value) for value in arguments[name]]
    return arguments


@st.composite
def cases(draw, max_tokens: int = 12) -> tuple[dict, int, np.ndarray]:
    """A random small configuration, a seed for its weights, and a prompt that fits it."""
    n_ctx = draw(st.integers(1, max_tokens))
    gated = draw(st.booleans())
    config = oracle.full_config(
        n_layer=draw(st.integers(1, 3)),
        n_head=draw(st.integers(1, 4)),
        d_model=draw(st.integers(3, 33)),
        d_head=draw(st.sampled_from([1, 2, 3, 5, 8, 16, 17])),
        d_mlp=draw(st.integers(1, 37)),
        n_ctx=n_ctx,
        n_vocab=draw(st.integers(2, 40)),
        activation=draw(st.sampled_from(["gelu_new", "gelu", "relu"])),
        gated=gated,
        self_closed=gated and draw(st.booleans()),
        gate_bias=draw(st.sampled_from([0.0, 0.0, -0.5, 0.7, CLOSED, OPEN])),
        tied=draw(st.booleans()),
        bias=draw(st.booleans()),
        unembed_bias=draw(st.booleans()),
        scale_attn=draw(st.booleans()),
        scale_by_inverse_layer=draw(st.booleans()),
    )
    seed = draw(st.integers(0, 2**31))
    return config, seed, random_tokens(seed, config, draw(st.integers(1, n_ctx)))
