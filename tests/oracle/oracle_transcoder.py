"""Transcoders in plain NumPy float64: what csrc/encode.c and csrc/features.c compute, written once more.

A dictionary of a model is a `Coder`: dense arrays, layer by layer. Nothing here is shared with the package.
Letters: L layers, T tokens, E model width, F features, W layers that a layer's features write to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import oracle
from oracle import Array


@dataclass
class Coder:
    """Weights of all layers; decoder [F, W, E] with W = 1, or L - layer."""

    w_enc: list[Array]
    b_enc: list[Array]
    w_dec: list[Array]
    output_bias: list[Array]
    threshold: list[Array] | None
    skip: list[Array | None]
    activation: str
    top_k: int | None
    input_name: str  # "ln2_normalized" or "resid_mid"

    @property
    def n_layer(self) -> int:
        return len(self.w_enc)


def random_coder(
    seed: int,
    n_layer: int,
    d_model: int,
    n_features: int | list[int],
    activation: str = "relu",
    *,
    top_k: int | None = None,
    cross_layer: bool = False,
    skip: bool = False,
    input_name: str = "ln2_normalized",
) -> Coder:
    """Random weights, exact in float32, of which about a quarter is active; no array is zero."""
    rng = np.random.default_rng(seed)
    counts = [n_features] * n_layer if isinstance(n_features, int) else n_features

    def draw(*shape: int, scale: float) -> Array:
        return (scale * rng.standard_normal(shape)).astype(np.float32).astype(np.float64)

    layers = range(n_layer)
    return Coder(
        [draw(f, d_model, scale=d_model**-0.5) for f in counts],
        [draw(f, scale=0.3) - 0.5 for f in counts],
        [draw(f, n_layer - i if cross_layer else 1, d_model, scale=f**-0.5) for i, f in enumerate(counts)],
        [draw(d_model, scale=0.3) for _ in layers],
        [draw(f, scale=0.4) for f in counts] if activation == "jump_relu" else None,
        [draw(d_model, d_model, scale=0.3 * d_model**-0.5) if skip else None for _ in layers],
        activation,
        top_k,
        input_name,
    )


def pre_activations(coder: Coder, layer: int, x: Array) -> Array:
    """x W_enc^T + b_enc: [T, F]."""
    return x @ coder.w_enc[layer].T + coder.b_enc[layer]


def encode(coder: Coder, layer: int, x: Array) -> Array:
    """Activations [T, F], 0 where a feature is not active."""
    pre = pre_activations(coder, layer, x)
    if coder.activation == "relu":
        return np.maximum(pre, 0.0)
    if coder.activation == "jump_relu":
        return np.where(pre > coder.threshold[layer], pre, 0.0)
    kept = np.zeros_like(pre)
    for row, values in enumerate(pre):
        order = sorted(range(len(values)), key=lambda j: (-values[j], j))
        for j in order[: coder.top_k]:
            kept[row, j] = max(values[j], 0.0)
    return kept


def margin(coder: Coder, layer: int, x: Array) -> float:
    """How far the nearest pre-activation is from changing what is active; relu has no such jump."""
    pre = pre_activations(coder, layer, x)
    if coder.activation == "jump_relu":
        return np.abs(pre - coder.threshold[layer]).min()
    if coder.activation == "topk" and coder.top_k < pre.shape[1]:
        falling = -np.sort(-pre, axis=1)
        return (falling[:, coder.top_k - 1] - falling[:, coder.top_k]).min()
    return np.inf


def write(coder: Coder, target: int, xs: list[Array], activations: list[Array]) -> Array:
    """What all layers up to `target` write to its MLP output: [T, E]."""
    out = np.zeros_like(xs[target]) + coder.output_bias[target]
    if coder.skip[target] is not None:
        out = out + xs[target] @ coder.skip[target].T
    for layer in range(target + 1):
        if target - layer < coder.w_dec[layer].shape[1]:
            out = out + activations[layer] @ coder.w_dec[layer][:, target - layer]
    return out


def find(coder: Coder, run: Mapping[str, Array]) -> tuple[list[Array], Array]:
    """(activations of each layer [T, F], reconstruction [L, T, E]) on the activations of a run."""
    xs = list(run[coder.input_name])
    activations = [encode(coder, layer, x) for layer, x in enumerate(xs)]
    return activations, np.stack([write(coder, layer, xs, activations) for layer in range(coder.n_layer)])


def replaced(
    config: Mapping,
    weights: Mapping,
    tokens,
    coder: Coder,
    errors: Array | None = None,
    change: Callable[[int, Array], Array] = lambda layer, activations: activations,
) -> dict[str, Array]:
    """The forward pass with all MLPs replaced: in one layer after the other, the difference is added.

    change(layer, activations [T, F]) gives those that are written.
    """
    inject = {"mlp_out": np.zeros((coder.n_layer, len(tokens), config["d_model"]))}
    xs: list[Array] = []
    activations: list[Array] = []
    for layer in range(coder.n_layer):
        run = oracle.forward(config, weights, tokens, inject=inject)
        xs.append(run[coder.input_name][layer])
        activations.append(change(layer, encode(coder, layer, xs[layer])))
        wanted = write(coder, layer, xs, activations) + (0 if errors is None else errors[layer])
        inject["mlp_out"][layer] = wanted - run["mlp_out"][layer]
    return oracle.forward(config, weights, tokens, inject=inject)
