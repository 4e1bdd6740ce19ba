"""Shapes that are measured, their weights and tokens, and the arithmetic and memory traffic they need."""

from __future__ import annotations

import numpy as np

from attnsparse import Config, Model

GPT2_SMALL = Config(n_layer=12, n_head=12, d_model=768, d_head=64, d_mlp=3072, n_ctx=1024, n_vocab=50257)


def random_model(config: Config) -> Model:
    """Matrices normal with deviation 0.02, biases 0, LayerNorm weights 1; written in place."""
    model = Model(config, name="random")
    rng = np.random.default_rng(0)
    for name, shape in config.parameter_shapes().items():
        weights = model._core._writable(name)
        if len(shape) == 2:
            rng.standard_normal(out=weights, dtype=np.float32)
            weights *= np.float32(0.02)
        elif not name.endswith(".bias"):
            weights[...] = 1
    return model


def random_tokens(config: Config, n_sequences: int, length: int) -> np.ndarray:
    """int32 [n_sequences, length]."""
    return np.random.default_rng(1).integers(0, config.n_vocab, (n_sequences, length)).astype(np.int32)


def forward_flops(config: Config, n_sequences: int, length: int) -> float:
    """Operations of the matrix products of one forward pass, logits of all positions.

    Two for each weight of a matrix and each token, and 4 d_head for each head and causal pair (score and
    weighted value); LayerNorm, softmax and activation are not counted.
    """
    width = config.n_head * config.d_head
    layer = 4 * config.d_model * width + 2 * config.d_model * config.d_mlp
    matrices = config.n_layer * layer + config.n_vocab * config.d_model
    pairs = n_sequences * length * length / 2
    return 2.0 * matrices * n_sequences * length + config.n_layer * 4 * width * pairs


def forward_bytes(config: Config, n_sequences: int, length: int) -> float:
    """Bytes that must be moved at least once: the weights read, patterns and logits written."""
    tokens = n_sequences * length
    patterns = config.n_layer * config.n_head * tokens * length
    return 4.0 * (config.n_parameters() + patterns + tokens * config.n_vocab)


def generation_flops(config: Config, n_sequences: int, length: int, n_new: int) -> float:
    """Operations of a forward pass of every token but the last new one, logits of the new ones only."""
    n_tokens = length + n_new - 1
    unread = n_sequences * (length - 1)
    return forward_flops(config, n_sequences, n_tokens) - 2.0 * config.n_vocab * config.d_model * unread


def generation_bytes(config: Config, n_sequences: int, length: int, n_new: int) -> float:
    """Bytes that must be moved at least once: in every pass the weights without those of positions, keys
    and values so far."""
    matrices = config.n_parameters() - config.n_ctx * config.d_model
    width, n_tokens = config.n_head * config.d_head, length + n_new
    cached = 2 * config.n_layer * width * n_sequences * sum(range(length, n_tokens))
    return 4.0 * (matrices * n_new + cached)


def sweep_flops(config: Config, length: int) -> float:
    """Operations of a sweep over all heads of one prompt that recomputes only what lies after each change.

    A head of layer l leaves n_layer - l layers to be computed again; no unembedding.
    """
    layer = (
        forward_flops(config, 1, length) - 2.0 * config.n_vocab * config.d_model * length
    ) / config.n_layer
    return layer * config.n_head * config.n_layer * (config.n_layer + 1) / 2


def step_flops(config: Config, n_sequences: int, length: int) -> float:
    """Forward and backward: each product has two more of the same size in the backward pass."""
    return 3 * forward_flops(config, n_sequences, length)


def step_bytes(config: Config) -> float:
    """The weights read forwards and backwards, their gradient written; AdamW reads weight, gradient and both
    moments, and writes weight and moments."""
    return 4.0 * config.n_parameters() * (2 + 1 + 4 + 3)
