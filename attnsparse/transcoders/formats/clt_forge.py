"""Reads CLT-Forge's checkpoints (LLM-Interp/CLT-Forge): clt_cfg.json and clt_weights.safetensors.

W_enc [L, E, F], b_enc [L, F], log_threshold [L, F]; W_dec [L(L+1)/2, F, E] and b_dec [L(L+1)/2, E] by pairs
(source, target) in the order (0, 0), (0, 1), ..., (1, 1), ...; without cross_layer_decoders [L, F, E] and
[L, E]. With feature_sharding the features are split over rank0_clt_weights.safetensors, rank1_...; b_dec
is the same in all. Read as CLT-Forge hands its sets to circuit-tracer: JumpReLU with threshold
exp(log_threshold), W_enc * estimated_norm_scaling_factor_in of the layer, W_dec /
estimated_norm_scaling_factor_out of the target, b_dec summed per target and divided likewise, b_enc as it
is; from ln2.hook_normalized to hook_mlp_out of the model without weight processing. Arithmetic is in
float32, CLT-Forge's in the type of the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, file_error
from ...io.limits import Limits
from ...io.regular_file import read_small
from ...io.strict_json import parse_object, shown
from ..stored import DecoderPart, EncoderPart, Row, StoredLayer, WeightFile
from .layout import CROSS_LAYER, NORMALIZED, SET, StoredSet, add_layer, text_value, whole

CONFIG, WEIGHTS = "clt_cfg.json", "clt_weights.safetensors"
_RANK_FILE = re.compile(r"rank(0|[1-9]\d{0,3})_clt_weights\.safetensors")
_SCALES = ("estimated_norm_scaling_factor_in", "estimated_norm_scaling_factor_out")
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "log_threshold", "layer_mask", "feature_count", *_SCALES)


def is_here(folder: Path) -> bool:
    """Whether a folder is such a checkpoint."""
    return (folder / CONFIG).is_file()


def read(folder: Path, limits: Limits) -> StoredSet:
    """The set in a checkpoint's folder.

    Raises FormatError and LimitError as the readers of JSON and safetensors do, ConfigError config_missing,
    config_type, config_value, missing_layer (a rank), missing_tensor, unexpected_tensor, tensor_shape.
    """
    path = folder / CONFIG
    config = parse_object(read_small(path, "max_config_bytes", limits=limits), path, limits=limits)
    for name in ("n_layers", "d_in", "d_latent", "cross_layer_decoders"):
        if name not in config:
            raise file_error(ConfigError, "config_missing", path, f"{name} is missing", field=name)
    for name in ("cross_layer_decoders", "feature_sharding"):
        if not isinstance(config.get(name, False), bool):
            text = f"{name} must be true or false, got {shown(config[name])}"
            raise file_error(ConfigError, "config_type", path, text, field=name)
    if config.get("activation_fn", "jumprelu") != "jumprelu":
        text = f"activation_fn is {shown(config['activation_fn'])}; only jumprelu is read"
        raise file_error(ConfigError, "config_value", path, text, field="activation_fn")
    n_layer = whole(config["n_layers"], path, "n_layers", 512)
    width, n = whole(config["d_in"], path, "d_in"), whole(config["d_latent"], path, "d_latent")
    crossing = config["cross_layer_decoders"]
    files = [WeightFile(item, limits) for item in _weights(folder, config)]
    counts = [_check_file(file, n_layer, width, crossing) for file in files]
    if sum(counts) != n:
        text = f"d_latent={n:,} but the weights have {sum(counts):,} features"
        if len(files) > 1:
            text += f" in {len(files)} ranks; is one missing?"
        raise file_error(ConfigError, "config_value", path, text, field="d_latent")
    scales = [files[0].vector(name, 0, n_layer) for name in _SCALES]
    if not all((scale > 0).all() for scale in scales):
        files[0].raise_file_error("config_value", "a norm scaling factor is not above 0", _SCALES[0])
    layers = {i: _layer(files, counts, i, n_layer, crossing, scales) for i in range(n_layer)}
    kind = CROSS_LAYER if crossing else SET
    name = text_value(config.get("model_name", ""), path, "model_name")
    return StoredSet(
        str(folder), layers, width, NORMALIZED, kind, "jump_relu", model_name=name, n_layer=n_layer
    )


def _weights(folder: Path, config: dict[str, Any]) -> list[Path]:
    if not config.get("feature_sharding", False):
        file = folder / WEIGHTS
        if not file.is_file():
            text = f"{WEIGHTS} is missing"
            raise file_error(ConfigError, "missing_layer", folder, text, field=WEIGHTS)
        return [file]
    found: dict[int, Path] = {}
    for item in sorted(folder.iterdir()):
        match = _RANK_FILE.fullmatch(item.name)
        if match:
            add_layer(found, int(match[1]), item, folder)
    for rank in range(max(1, len(found))):
        if rank not in found:
            text = f"rank{rank}_{WEIGHTS} is missing; the features are split over several of them"
            raise file_error(ConfigError, "missing_layer", folder, text, field=f"rank{rank}")
    return [found[rank] for rank in range(len(found))]


def _check_file(file: WeightFile, n_layer: int, width: int, crossing: bool) -> int:
    """Check the shapes of one file; returns its number of features."""
    shape = file.need("b_enc", None)
    if len(shape) != 2 or shape[0] != n_layer or not shape[1]:
        file.raise_file_error(
            "tensor_shape", f"tensor 'b_enc' has shape {list(shape)}, expected [{n_layer}, F]", "b_enc"
        )
    n = shape[1]
    pairs = n_layer * (n_layer + 1) // 2 if crossing else n_layer
    why = f" (n_layers={n_layer}, d_in={width}, {n:,} features)"
    file.need("W_enc", (n_layer, width, n), why)
    file.need("log_threshold", (n_layer, n), why)
    file.need("W_dec", (pairs, n, width), why)
    file.need("b_dec", (pairs, width), why)
    for name in _SCALES:
        file.need(name, (n_layer,), why)
    file.only(_NAMES)
    return n


def _layer(
    files: Sequence[WeightFile],
    counts: Sequence[int],
    layer: int,
    n_layer: int,
    crossing: bool,
    scales: Sequence[np.ndarray],
) -> StoredLayer:
    """The places of one layer's weights, whose features come from all files in turn."""

    def pair(source: int, target: int) -> int:
        return source * n_layer - source * (source - 1) // 2 + target - source if crossing else source

    encoder, decoder = [], []
    width = files[0].tensors["b_dec"].shape[1]
    for file, n in zip(files, counts):
        encoder.append(
            EncoderPart(file, n, "W_enc", "b_enc", "log_threshold", layer * width, transposed=True, row=layer)
        )
        decoder.append(DecoderPart(file, n, "W_dec", pair(layer, layer) * n, 1, n))
    n_targets = n_layer - layer if crossing else 1
    return StoredLayer(
        tuple(encoder),
        tuple(decoder),
        tuple(
            Row(files[0], "b_dec", pair(source, layer))
            for source in (range(layer + 1) if crossing else [layer])
        ),
        n_targets,
        input_scale=float(scales[0][layer]),
        output_scales=scales[1][layer : layer + n_targets],
        threshold="exp",
    )
