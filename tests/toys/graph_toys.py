"""Small models with random transcoders, for the tests of graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import reliability

import attnsparse as asp
from attnsparse.transcoders.arrays import ArraySource
from attnsparse.transcoders.transcoders import Transcoders

PROMPT = np.array([3, 1, 4, 1, 5, 9], np.int32)


def random_transcoders(
    model: asp.Model,
    n_features: int = 24,
    seed: int = 0,
    *,
    cross_layer: bool = False,
    skip: bool = False,
    activation: str = "relu",
    **options: Any,
) -> Transcoders:
    """About a tenth of the features are active at each token."""
    rng = np.random.default_rng(seed)
    n_layer, width = model.config.n_layer, model.config.d_model

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    layers = range(n_layer)
    writes = [(n_layer - i,) if cross_layer else () for i in layers]
    source = ArraySource(
        [normal(n_features, width) / np.float32(np.sqrt(width)) for _ in layers],
        [normal(n_features) * 0.1 - 1 for _ in layers],
        [normal(n_features, *w, width) * 0.3 for w in writes],
        [normal(width) * 0.1 for _ in layers],
        threshold=[np.full(n_features, 0.2, np.float32)] * n_layer if activation == "jump_relu" else None,
        skip=[normal(width, width) * 0.05 for _ in layers] if skip else None,
    )
    if activation == "topk":
        options.setdefault("top_k", 3)
    return Transcoders(source, activation=activation, name="random", **options)


def toy(dtype: str = "float32", **changes: Any) -> tuple[asp.Model, Transcoders]:
    """A model of reliability.SHAPE and transcoders for it."""
    model = reliability.model(dtype=dtype, **changes)
    return model, random_transcoders(model)


def toy_graph(dtype: str = "float32", **options: Any) -> asp.Graph:
    """The graph of PROMPT."""
    return asp.attribution_graph(*toy(dtype), PROMPT, progress=False, **options)
