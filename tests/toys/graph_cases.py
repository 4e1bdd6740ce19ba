"""Small random models with transcoders, for the tests of the attribution graph."""

from __future__ import annotations

import numpy as np
import oracle
import oracle_graph as og
from numpy.typing import ArrayLike

TOKENS = (3, 1, 4, 1)
N_VOCAB = oracle.DEFAULTS["n_vocab"]
MARGIN = 1e-3

# name -> (changes of oracle.DEFAULTS, options of oracle_graph.random_coders)
CASES = {
    "dense": ({}, {}),
    "gated": ({"gated": True, "gate_bias": -0.2, "n_layer": 3}, {}),
    "cross-layer, jump": ({"n_layer": 3, "gated": True}, {"cross": True, "activation": "jump_relu"}),
    "skip, untied": ({"n_layer": 3, "tied": False, "unembed_bias": True, "d_head": 3}, {"skip": True}),
    "topk, no bias": ({"bias": False, "n_layer": 3}, {"activation": "topk", "top_k": 2, "skip": True}),
    "no scale": ({"scale_attn": False, "n_head": 3, "d_head": 2, "activation": "gelu"}, {"cross": True}),
    "resid_mid": (
        {"scale_by_inverse_layer": True},
        {"input_hook": og.RESIDUAL, "cross": True, "skip": True},
    ),
}


def some_kept(layer: int, position: int, feature: int) -> bool:
    """Two features of three."""
    return (layer + position + feature) % 3 != 0


def frozen_model(name: str, seed: int = 0, tokens: ArrayLike = TOKENS) -> og.Frozen:
    """A case with random weights that are numbers of float32, and 4 to 7 features in each layer."""
    config_changes, coder_options = CASES[name]
    config, rng = oracle.full_config(**config_changes), np.random.default_rng(seed)
    weights = oracle.random_model(rng, config)
    weights = {key: value.astype(np.float32).astype(np.float64) for key, value in weights.items()}
    n_features = [int(n) for n in rng.integers(4, 8, config["n_layer"])]
    return og.Frozen(config, weights, tokens, og.random_coders(rng, config, n_features, **coder_options))


def any_model(seed: int) -> og.Frozen:
    """Any sizes, down to 1, and any options."""
    rng = np.random.default_rng(seed)

    def below(*bounds: int) -> int:
        return int(rng.integers(*bounds))

    switches = ("gated", "tied", "bias", "unembed_bias", "scale_attn", "scale_by_inverse_layer")
    config = oracle.full_config(
        n_layer=below(1, 5), n_head=below(1, 4), d_model=below(3, 14), d_head=below(1, 6), d_mlp=below(1, 9),
        n_vocab=below(3, 20), gate_bias=float(rng.choice([0, -0.3, 5])),
        **{name: bool(below(2)) for name in switches},
    )  # fmt: skip
    weights = oracle.random_model(rng, config)
    activation = ("relu", "jump_relu", "topk")[below(3)]
    coders = og.random_coders(
        rng, config, [below(1, 12) for _ in range(config["n_layer"])], cross=bool(below(2)),
        skip=bool(below(2)), activation=activation, top_k=2 if activation == "topk" else None,
        input_hook=(og.NORMALIZED, og.RESIDUAL)[below(2)],
    )  # fmt: skip
    tokens = rng.integers(0, config["n_vocab"], below(1, 9))
    return og.Frozen(config, weights, tokens, coders)


def is_clear(frozen: og.Frozen) -> bool:
    """Whether rounding in float32 cannot open a gate, wake a feature or change which are the top k."""
    if frozen.config["gated"] and abs(frozen.run["scores"] + frozen.config["gate_bias"]).min() < MARGIN:
        return False
    coders = frozen.coders
    for layer, pre in enumerate(frozen.features().pre):
        edge = coders["threshold"][layer] if coders["activation"] == "jump_relu" else 0.0
        ordered = np.sort(pre, axis=1)
        steps = np.diff(ordered, axis=1) if coders["activation"] == "topk" else np.inf
        if abs(pre - edge).min() < MARGIN or np.min(steps) < MARGIN:
            return False
    return True


def clear_model(name: str, number: int, tokens: ArrayLike = TOKENS) -> og.Frozen:
    """The case with the `number`-th seed that makes it clear."""
    found = (frozen_model(name, seed, tokens) for seed in range(1000))
    return [next(frozen for frozen in found if is_clear(frozen)) for _ in range(number + 1)][-1]
