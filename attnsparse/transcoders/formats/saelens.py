"""Reads transcoders as SAELens keeps them: a folder per layer with cfg.json and sae_weights.safetensors.

W_enc [E, F], W_dec [F, E], b_enc [F], b_dec [E], threshold [F] of JumpReLU (max(pre, 0) where pre >
threshold, so a threshold below 0 counts as 0), W_skip [E, E] (x @ W_skip.T). Keys of cfg.json, at its top
level (SAELens up to 5) or under "metadata" (6): hook_name, hook_name_out, model_name; architecture,
activation_fn(_str) with k, d_in, d_sae, d_out. Everything that would make the function another one is
refused: b_dec taken from the input, normalised or reshaped activations, a fine-tuning factor, activations
scaled by the decoder's norm. Other keys are about training and are not looked at. A sparsity.safetensors
beside the weights is not read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...errors import ConfigError, file_error, quoted
from ...io.limits import Limits
from ...io.regular_file import read_small
from ...io.strict_json import parse_object, shown
from ..stored import StoredLayer, WeightFile
from .layout import (
    NORMALIZED,
    StoredSet,
    TensorNames,
    add_layer,
    input_hook,
    layer_of_hooks,
    one_layer,
    same_width,
    settle_activation,
    text_value,
    whole,
)

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_NAMES = TensorNames("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip")
_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_ARCHITECTURES = (*_TRANSCODERS, "standard", "jumprelu", "topk")
_ACTIVATIONS = {"relu": None, "topk": "topk"}  # of what comes before a threshold
# values that leave the function as it is
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "normalize_activations": (None, False, "none"),
    "reshape_activations": (None, "none"),
    "finetuning_scaling_factor": (None, False),
    "rescale_acts_by_decoder_norm": (None, False),
    "hook_head_index": (None,),
    "hook_head_index_out": (None,),
}


def is_here(folder: Path) -> bool:
    """Whether a folder is one layer of this layout, or holds such folders."""
    return bool(_folders(folder))


def _folders(folder: Path) -> list[Path]:
    if (folder / CONFIG).is_file():
        return [folder]
    return sorted(item for item in folder.iterdir() if (item / CONFIG).is_file())


def read(folder: Path, limits: Limits) -> StoredSet:
    """The set whose layers lie in the folders inside `folder`, or in itself.

    Raises FormatError, LimitError and ConfigError as the other readers do, with the codes config_missing,
    config_type, config_value, hook, missing_layer (no weights), duplicate_layer, missing_tensor,
    unexpected_tensor, tensor_shape.
    """
    places: dict[int, Path] = {}
    configs: dict[Path, dict[str, Any]] = {}
    for item in _folders(folder):
        path = item / CONFIG
        config = parse_object(read_small(path, "max_config_bytes", limits=limits), path, limits=limits)
        configs[item] = _flat(config, path)
        add_layer(places, _layer(configs[item], path), item, folder)
    places = dict(sorted(places.items()))
    folders = list(places.values())
    layers, widths, activations = {}, {}, set()
    for number, item in places.items():
        _check_neutral(configs[item], item / CONFIG)
        layers[number], widths[number] = _read_layer(item, configs[item], limits)
        activations.add(_activation(configs[item], item / CONFIG))
    if len(activations) > 1:
        text = f"layers differ in activation or k: {', '.join(map(str, sorted(activations, key=str)))}"
        raise file_error(ConfigError, "config_value", folder, text, field="activation_fn")
    (kind, k) = activations.pop()
    hooks = {input_hook(configs[item]["hook_name"], item / CONFIG, "hook_name") for item in folders}
    if len(hooks) > 1:
        text = f"layers read different hooks: {', '.join(sorted(hooks))}"
        raise file_error(ConfigError, "hook", folder, text, field="hook_name")
    first = configs[folders[0]]
    hook = hooks.pop()
    return StoredSet(
        str(folder),
        layers,
        same_width(widths, folder),
        hook,
        activation=settle_activation(layers, kind, str(folder)),
        top_k=k,
        model_name=text_value(first.get("model_name") or "", folders[0] / CONFIG, "model_name"),
        processed=False if hook == NORMALIZED else None,
    )


def _flat(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The keys of cfg.json with those of its metadata beside them."""
    result = dict(config)
    for name in ("metadata", "meta"):
        inner = config.get(name)
        if isinstance(inner, dict):
            result = inner | result
        elif inner is not None:
            text = f"{name} must be an object, got {shown(inner)}"
            raise file_error(ConfigError, "config_type", path, text, field=name)
    return result


def _layer(config: dict[str, Any], path: Path) -> int:
    """The layer that a folder is of; checks both hooks."""
    for name in ("hook_name", "hook_name_out"):
        if name not in config:
            what = "; it is a sparse autoencoder, not a transcoder" if name == "hook_name_out" else ""
            text = f"{name} is missing{what}"
            raise file_error(ConfigError, "config_missing", path, text, field=name)
    return layer_of_hooks(config, ("hook_name", "hook_name_out"), ("hook_layer", "hook_layer_out"), path)


def _check_neutral(config: dict[str, Any], path: Path) -> None:
    architecture = config.get("architecture", "standard")
    if architecture not in _ARCHITECTURES:
        text = f"architecture must be one of {', '.join(_ARCHITECTURES)}, got {shown(architecture)}"
        raise file_error(ConfigError, "config_value", path, text, field="architecture")
    for name, allowed in _NEUTRAL.items():
        value = config.get(name)
        if not any(value is item or (type(value) is type(item) and value == item) for item in allowed):
            text = f"{name} is {shown(value)}; only transcoders without it are read"
            raise file_error(ConfigError, "config_value", path, text, field=name)
    # SAELens takes it from the input unless the config says otherwise or the class is a transcoder
    if config.get("apply_b_dec_to_input", architecture not in _TRANSCODERS) is not False:
        text = "apply_b_dec_to_input must be false: b_dec is the bias of the output; found true or nothing"
        raise file_error(ConfigError, "config_value", path, text, field="apply_b_dec_to_input")


def _read_layer(folder: Path, config: dict[str, Any], limits: Limits) -> tuple[StoredLayer, int]:
    path = folder / CONFIG
    weights = folder / WEIGHTS
    if not weights.is_file():
        text = f"{quoted(folder.name)} has {CONFIG} but no {WEIGHTS}"
        raise file_error(ConfigError, "missing_layer", folder, text, field=WEIGHTS)
    file = WeightFile(weights, limits)
    layer, width = one_layer(file, _NAMES, transposed_encoder=True, threshold="positive")
    _check_parts(file, config.get("architecture", "standard"))
    for name, own in (("d_in", width), ("d_out", width), ("d_sae", layer.n_features)):
        if name in config and whole(config[name], path, name) != own:
            text = f"{name}={config[name]} but the weights have {own}"
            raise file_error(ConfigError, "config_value", path, text, field=name)
    return layer, width


def _check_parts(file: WeightFile, architecture: str) -> None:
    """ConfigError missing_tensor if the file lacks a tensor that the architecture is named after."""
    for word, name in (("jumprelu", "threshold"), ("skip", "W_skip")):
        if word in architecture.split("_") and name not in file.tensors:
            text = f"tensor '{name}' is missing, which the architecture {architecture} has"
            file.raise_file_error("missing_tensor", text, name)


def _activation(config: dict[str, Any], path: Path) -> tuple[str | None, int | None]:
    """What cfg.json says: ("topk", k), or (None, None) for ReLU with or without thresholds."""
    name = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if config.get("architecture") == "topk":
        name = "topk"
    match = re.fullmatch(r"relu|topk", name) if isinstance(name, str) else None
    if match is None:
        text = f"activation_fn must be relu or topk, got {shown(name)}"
        raise file_error(ConfigError, "config_value", path, text, field="activation_fn")
    if name == "relu":
        return None, None
    arguments = config.get("activation_fn_kwargs")
    k = config.get("k", arguments.get("k") if isinstance(arguments, dict) else None)
    return "topk", whole(k, path, "k")
