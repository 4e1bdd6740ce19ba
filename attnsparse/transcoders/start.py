"""First weights of transcoders: of rows of the text that are far from each other, or of a set that exists.

The arithmetic is in csrc/transcoder/first_weights.c; the random numbers are drawn here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _random
from .._engine import core_for
from ..errors import ConfigError

if TYPE_CHECKING:
    from .transcoders import Transcoders

NAMES = ("w_enc", "b_enc", "w_dec", "b_dec")


def first_weights(
    inputs: np.ndarray,
    outputs: np.ndarray,
    scale: float,
    n_features: int,
    seed: int,
    layer: int,
    threads: int,
) -> dict[str, np.ndarray]:
    """w_enc [F, E], b_enc [F], w_dec [F, E], b_dec [E] (float64) for one layer; chosen (int64 [F]): numbers
    of the rows that became features, in the order they were drawn, -1 for features with random directions.

    inputs, outputs [N, E]: rows of the text.  scale: the standard deviation that outputs are divided by.
    """
    draws = _random.raw(n_features, seed, _random.TRANSCODERS, layer, 1) / 2.0**64
    random = _random.normal((2, n_features, inputs.shape[1]), seed, _random.TRANSCODERS, layer)
    core = core_for(str(inputs.dtype))
    found = core.first_weights_from_text(inputs, outputs, scale, draws, random, threads)
    return dict(zip((*NAMES, "chosen"), found))


def check_start(start: Transcoders, n_features: tuple[int, ...], cross_layer: bool) -> None:
    """ConfigError (config_value) unless training can continue from `start`."""
    if start.input_hook != "ln2.hook_normalized":
        text = (
            f"training starts from transcoders that read ln2.hook_normalized, these read {start.input_hook}"
        )
        raise ConfigError(text, code="config_value", field="start")
    if start.cross_layer and not cross_layer:
        text = "start is a cross-layer transcoder: pass cross_layer=True, or transcoders of one layer each"
        raise ConfigError(text, code="config_value", field="start")
    if start.n_features != n_features:
        text = f"start has {start.n_features} features, the options say {n_features}"
        raise ConfigError(text, code="config_value", field="n_features")
    if any(start.source.skip(layer) is not None for layer in start.layers):
        raise ConfigError("start has a skip matrix, which is not trained", code="config_value", field="start")


def weights_of(
    start: Transcoders, layer: int, scales: np.ndarray, core: Any, threads: int
) -> dict[str, np.ndarray]:
    """The weights of a layer of `start` as `first_weights` gives them, but w_dec [F, W E]; log_threshold too
    if it has thresholds.  scales: of the outputs of this and all later layers.
    """
    encoder = start.source.encoder(layer)
    rows = start.source.decoder_rows(layer, np.arange(start.n_features[layer]))
    bias = start.source.output_bias(layer)
    found = core.first_weights_from_set(
        encoder.w_enc, encoder.b_enc, rows, bias, encoder.threshold, scales[: rows.shape[1]], threads
    )
    return dict(zip((*NAMES, "log_threshold"), found))
