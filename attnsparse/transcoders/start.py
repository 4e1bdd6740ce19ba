"""First weights of transcoders: features that represent tokens of the text, chosen far from each other.

A row of the text gives a feature what it reads (the input, centred) and what it writes (the output, centred).
Rows are drawn as in k-means++ (Arthur & Vassilvitskii 2007): the probability of a row is its squared
distance from the nearest one that was drawn before, so that rare tokens get features too. A feature begins to
be active where the input points nearly as its own row does: one that is active everywhere soon loses to
others and dies.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .. import _random
from ..errors import ConfigError

if TYPE_CHECKING:
    from .transcoders import Transcoders

NEAR = 0.6
"""A feature is active where the input, centred, reaches this share of its own row along that row."""
_PRODUCTS_AT_ONCE = 2**25
SAMPLE = 512  # rows that activations are computed for


def first_weights(
    inputs: np.ndarray, outputs: np.ndarray, scale: float, n_features: int, seed: int, layer: int
) -> dict[str, np.ndarray]:
    """w_enc [F, E], b_enc [F], w_dec [F, E], b_dec [E] (float64) for one layer.

    inputs, outputs [N, E]: rows of the text.  scale: the standard deviation that outputs are divided by.
    Features beyond the number of different rows get random directions. No product here is left to BLAS, so
    bits do not depend on threads.
    """
    x, y = inputs.astype(np.float64), outputs.astype(np.float64) / scale
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    x, y = x - mean_x, y - mean_y
    pairs = np.concatenate([rows / max(math.sqrt((rows**2).mean()), 1e-30) for rows in (x, y)], axis=1)
    chosen = spread_rows(pairs.astype(np.float32), n_features, seed, layer)
    random = _random.normal((2, n_features, x.shape[1]), seed, _random.TRANSCODERS, layer)
    read, written = random / np.linalg.norm(random, axis=-1, keepdims=True)
    n = len(chosen)
    size, length = (np.maximum(np.linalg.norm(rows[chosen], axis=1, keepdims=True), 1e-30) for rows in (x, y))
    read[:n] = x[chosen] / size**2 * length / (1 - NEAR)
    written[:n] = y[chosen] / length
    bias = -(read * mean_x).sum(axis=1)
    bias[:n] -= length[:, 0] * NEAR / (1 - NEAR)
    gain = _best_gain(x[:: _stride(x)] + mean_x, y[:: _stride(x)], read, bias, written)
    return {"w_enc": gain * read, "b_enc": gain * bias, "w_dec": written, "b_dec": mean_y}


def _stride(rows: np.ndarray) -> int:
    return max(1, len(rows) // SAMPLE)


def _few_rows(x: np.ndarray, w_enc: np.ndarray) -> list[slice]:
    """All rows of x, so few at a time that Ctrl-C is heard soon."""
    step = max(1, _PRODUCTS_AT_ONCE // w_enc.size)
    return [slice(begin, begin + step) for begin in range(0, len(x), step)]


def _best_gain(
    x: np.ndarray, y: np.ndarray, w_enc: np.ndarray, b_enc: np.ndarray, w_dec: np.ndarray
) -> float:
    """What activations are multiplied by so that all features together, which were made to serve alone, come
    nearest to the centred outputs y."""
    found = np.empty_like(y)
    for rows in _few_rows(x, w_enc):
        active = np.maximum(np.einsum("ne,fe->nf", x[rows], w_enc) + b_enc, 0)
        found[rows] = np.einsum("nf,fe->ne", active, w_dec)
    gain = float((found * y).sum() / max(float((found**2).sum()), 1e-30))
    return min(max(gain, 1e-3), 1.0)


def spread_rows(rows: np.ndarray, n: int, seed: int, layer: int) -> np.ndarray:
    """Numbers of `n` rows [N, E] far from each other and from 0 (int64, in the order they were drawn); fewer
    if fewer are different."""
    draws = _random.raw(n, seed, _random.TRANSCODERS, layer, 1) / 2.0**64
    nearest = np.einsum("ij,ij->i", rows, rows).astype(np.float64)
    chosen: list[int] = []
    for draw in draws:
        total = np.cumsum(nearest)
        if not total[-1] > 0 or not math.isfinite(total[-1]):
            break
        row = int(np.searchsorted(total, draw * total[-1], side="right"))
        chosen.append(min(row, len(rows) - 1))
        away = rows - rows[chosen[-1]]
        np.minimum(nearest, np.einsum("ij,ij->i", away, away), out=nearest)
    return np.array(chosen, np.int64)


def check_start(start: Transcoders, n_features: tuple[int, ...]) -> None:
    """ConfigError (config_value) unless training can continue from `start`."""
    if start.cross_layer or start.input_hook != "ln2.hook_normalized":
        text = "training starts from transcoders of one layer each that read ln2.hook_normalized"
        raise ConfigError(text, code="config_value", field="start")
    if start.n_features != n_features:
        text = f"start has {start.n_features} features, the options say {n_features}"
        raise ConfigError(text, code="config_value", field="n_features")
    if any(start.source.skip(layer) is not None for layer in start.layers):
        raise ConfigError("start has a skip matrix, which is not trained", code="config_value", field="start")


def weights_of(start: Transcoders, layer: int, scale: float) -> dict[str, np.ndarray]:
    """The weights of a layer of `start` as `first_weights` gives them; log_threshold if it has thresholds."""
    encoder = start.source.encoder(layer)
    rows = start.source.decoder_rows(layer, np.arange(start.n_features[layer]))[:, 0].astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    factor = np.maximum(norms, 1e-30) / scale  # what moves from the decoder's rows to the activations
    weights = {
        "w_enc": encoder.w_enc * factor[:, None],
        "b_enc": encoder.b_enc * factor,
        "w_dec": rows / np.maximum(norms, 1e-30)[:, None],
        "b_dec": start.source.output_bias(layer).astype(np.float64) / scale,
    }
    if encoder.threshold is not None:
        weights["log_threshold"] = np.log(np.maximum(encoder.threshold * factor, 1e-9))
    return weights


def common_threshold(weights: dict[str, np.ndarray], inputs: np.ndarray, l0: float) -> float:
    """The threshold above which rows of `inputs` [N, E] have `l0` features on average (at least 1e-3)."""
    x = inputs[:: _stride(inputs)].astype(np.float64)
    pre = np.empty((len(x), len(weights["w_enc"])))
    for rows in _few_rows(x, weights["w_enc"]):
        pre[rows] = np.einsum("ne,fe->nf", x[rows], weights["w_enc"]) + weights["b_enc"]
    kept = min(max(round(l0 * len(x)), 1), pre.size)
    return max(float(np.partition(pre, pre.size - kept, axis=None)[pre.size - kept]), 1e-3)
