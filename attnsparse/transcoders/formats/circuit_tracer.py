"""Reads transcoders as circuit-tracer keeps them (safety-research/circuit-tracer, v0.1 to v0.4).

A folder with config.yaml (model_name, model_kind, feature_input_hook, feature_output_hook, scan, activation,
k, transcoders) and one of:

* layer_{i}.safetensors: W_enc [F, E], W_dec [F, E], b_enc, b_dec, W_skip [E, E] (x @ W_skip.T),
  activation_function.threshold [F] (then JumpReLU, else ReLU or, as config.yaml says, top-k);
* W_enc_{i}.safetensors with W_enc_{i} [F, E], b_enc_{i}, b_dec_{i}, threshold_{i}, and W_dec_{i}.safetensors
  with W_dec_{i} [F, n_layer - i, E]: a cross-layer transcoder;
* a list `transcoders` of files in the folder: as above, or GemmaScope's .npz (W_enc [E, F], W_dec [F, E],
  threshold), or GemmaScope 2's (w_enc [E, F], w_dec [F, E] or, cross-layer, [F, n_layer, E], threshold,
  affine_skip_connection used as x @ it). In the YAML files of v0.1 the list has entries {id, layer,
  filepath}, and W_dec is [E, F].

Matrices with as many features as dimensions are taken in the order of their layout; otherwise a
transposed one is found by its shape. GemmaScope's JumpReLU is max(pre, 0) where pre > threshold, so a
threshold below 0 counts as 0. circuit-tracer keeps the k largest values of top-k whatever their sign,
here only positive ones count. circuit-tracer runs its models without weight processing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import ConfigError, FormatError, file_error, quoted
from ...io.limits import Limits
from ...io.strict_json import shown
from ...io.strict_yaml import read_yaml
from ..stored import DecoderPart, EncoderPart, Row, StoredLayer, WeightFile
from .layout import (
    CROSS_LAYER,
    SET,
    StoredSet,
    TensorNames,
    add_layer,
    check_no_gap,
    check_output_hook,
    input_hook,
    one_layer,
    same_width,
    settle_activation,
    sizes,
    text_value,
    whole,
)

CONFIG = "config.yaml"
_KEYS = ("model_name", "model_kind", "feature_input_hook", "feature_output_hook", "scan", "scan_name",
         "transcoders", "activation", "k", "repo_id", "revision", "subfolder")  # fmt: skip
_OURS = "attnsparse_"  # keys that begin so may be there
N_FEATURES = _OURS + "n_features"  # number of real features of each layer; the rest are padding
_ACTIVATIONS = {"relu": "relu", "jump_relu": "jump_relu", "jumprelu": "jump_relu", "topk": "topk"}
_ENTRY_KEYS = {"id", "layer", "filepath"}
_PLAIN = TensorNames("W_enc", "W_dec", "b_enc", "b_dec", "activation_function.threshold", "W_skip")
_SCOPE = TensorNames("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "")
_SCOPE_2 = TensorNames("w_enc", "w_dec", "b_enc", "b_dec", "threshold", "affine_skip_connection")
_LAYER_IN_NAME = re.compile(r"(?:^|/)layer_(\d{1,4})(?=[./_]|$)")
_LAYER_FILE = re.compile(r"layer_(0|[1-9]\d{0,3})\.(?:safetensors|npz)")
_ENCODER_FILE = re.compile(r"W_enc_(0|[1-9]\d{0,3})\.safetensors")
_DECODER_FILE = re.compile(r"W_dec_(0|[1-9]\d{0,3})\.safetensors")


def is_here(folder: Path) -> bool:
    """Whether a folder holds files of this layout."""
    return (folder / CONFIG).is_file() or any(
        _LAYER_FILE.fullmatch(item.name) or _ENCODER_FILE.fullmatch(item.name) for item in folder.iterdir()
    )


def read(where: Path, limits: Limits) -> StoredSet:
    """The set in a folder, or that a YAML file describes whose files lie in the same folder.

    Raises FormatError (yaml_*, layer_file and what the readers of weights do), ConfigError (config_*,
    unknown_key, hook, missing_layer, duplicate_layer, extra_layer, missing_tensor, unexpected_tensor,
    tensor_shape).
    """
    folder = where if where.is_dir() else where.parent
    config_path = where / CONFIG if where.is_dir() else where
    config = read_yaml(config_path, limits=limits) if config_path.is_file() else {}
    _check_keys(config, config_path)
    numbered = _numbered(folder, _ENCODER_FILE)
    kind = config.get("model_kind", CROSS_LAYER if numbered and not config else SET)
    if kind not in (SET, CROSS_LAYER):
        text = f"model_kind must be {SET} or {CROSS_LAYER}, got {shown(kind)}"
        raise file_error(ConfigError, "config_value", config_path, text, field="model_kind")
    transposed_decoder = False
    if config.get("transcoders") is not None:
        files, transposed_decoder = _listed(config["transcoders"], folder, config_path)
    elif kind == SET:
        files = _any_layer(_numbered(folder, _LAYER_FILE), folder, "layer_0.safetensors")
    else:
        files = _any_layer(numbered, folder, "W_enc_0.safetensors")
    if kind == SET:
        read_layer = _set_reader(config, transposed_decoder)
        found = {layer: read_layer(WeightFile(path, limits)) for layer, path in files.items()}
        return _described(config, config_path, kind, folder, found)
    check_no_gap(files, config_path if "transcoders" in config else folder)
    if "transcoders" in config:
        opened = {layer: WeightFile(path, limits) for layer, path in files.items()}
        found = {layer: _scope_2_cross_layer(file, layer, len(opened)) for layer, file in opened.items()}
    else:
        found = _cross_layers(files, folder, limits)
    return _described(config, config_path, kind, folder, found)


def _described(
    config: dict[str, Any], path: Path, kind: str, folder: Path, found: dict[int, tuple[StoredLayer, int]]
) -> StoredSet:
    """Put layers and configuration together."""
    where = str(path if config else folder)
    layers = _without_filling(
        config.get(N_FEATURES), {number: layer for number, (layer, _) in found.items()}, path
    )
    width = same_width({number: width for number, (_, width) in found.items()}, where)
    result = StoredSet(where, layers, width, None, kind, n_layer=len(layers) if kind == CROSS_LAYER else None)
    activation = config.get("activation")
    if activation is not None and (not isinstance(activation, str) or activation not in _ACTIVATIONS):
        text = f"activation must be one of {', '.join(_ACTIVATIONS)}, got {shown(activation)}"
        raise file_error(ConfigError, "config_value", path, text, field="activation")
    declared = None if activation is None else _ACTIVATIONS[activation]
    result.activation = settle_activation(layers, declared, where)
    if result.activation == "topk":
        result.top_k = whole(config.get("k"), path, "k")
    elif any("k" in layer.encoder[0].file.tensors for layer in layers.values()):
        text = "the layers were saved with top-k; add `activation: topk` and `k:` to config.yaml"
        raise file_error(ConfigError, "config_missing", where, text, field="k")
    if not config:
        return result
    for name in ("feature_input_hook", "feature_output_hook"):
        if name not in config:
            raise file_error(ConfigError, "config_missing", path, f"{name} is missing", field=name)
    result.input_hook = input_hook(config["feature_input_hook"], path, "feature_input_hook")
    check_output_hook(config["feature_output_hook"], path, "feature_output_hook")
    result.model_name = text_value(config.get("model_name", ""), path, "model_name")
    scan = config.get("scan", config.get("scan_name")) or ""
    parts = scan if isinstance(scan, list) else [scan]
    result.scan = ",".join(text_value(part, path, "scan") for part in parts)
    return result


def _without_filling(counts: Any, layers: dict[int, StoredLayer], path: Path) -> dict[int, StoredLayer]:
    """The layers with their real features alone; ConfigError `config_type` for counts that cannot be."""
    if counts is None:
        return layers
    sizes = [layer.n_features for layer in layers.values()]
    good = isinstance(counts, list) and len(counts) == len(sizes)
    if not good or not all(type(n) is int and 1 <= n <= most for n, most in zip(counts, sizes)):
        text = f"{N_FEATURES} must have a number in 1..n for each of the {len(sizes)} layers, n being the "
        raise file_error(ConfigError, "config_type", path, f"{text}number in its file", field=N_FEATURES)
    return {number: _first(layer, n) for (number, layer), n in zip(layers.items(), counts)}


def _first(layer: StoredLayer, n: int) -> StoredLayer:
    """The first n features of a layer whose weights lie in one part."""
    encoder, decoder = layer.encoder[0]._replace(n_features=n), layer.decoder[0]._replace(n_features=n)
    return layer._replace(encoder=(encoder,), decoder=(decoder,))


def _check_keys(config: dict[str, Any], path: Path) -> None:
    for key in config:
        if key not in _KEYS and not key.startswith(_OURS):
            text = f"key {quoted(key)} is not known; known: {', '.join(_KEYS)}"
            raise file_error(ConfigError, "unknown_key", path, text, field=key)


# ------------------------------------------------------------------------------------------- files


def _numbered(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    """Layer -> file for the files of a folder whose names match."""
    found: dict[int, Path] = {}
    for item in sorted(folder.iterdir()):
        match = pattern.fullmatch(item.name)
        if match:
            add_layer(found, int(match[1]), item, folder)
    return found


def _any_layer(found: dict[int, Path], folder: Path, example: str) -> dict[int, Path]:
    """What was found, by rising layer; ConfigError `missing_layer` if that is nothing."""
    if not found:
        text = f"no {example} in this folder, nor one of another layer"
        raise file_error(ConfigError, "missing_layer", folder, text, field="layer 0")
    return dict(sorted(found.items()))


def _listed(entries: Any, folder: Path, path: Path) -> tuple[dict[int, Path], bool]:
    """The files that `transcoders:` names, by rising layer, and whether it is a list of v0.1."""
    if not isinstance(entries, list) or not entries:
        text = f"transcoders must be a list of files, got {shown(entries)}"
        raise file_error(ConfigError, "config_type", path, text, field="transcoders")
    old = isinstance(entries[0], dict)
    found: dict[int, Path] = {}
    for index, entry in enumerate(entries):
        field = f"transcoders[{index}]"
        if not old:
            found[index] = _file_of(entry, folder, path, field)
            _check_place(entry, index, path, field)
            continue
        if not isinstance(entry, dict) or not set(entry) <= _ENTRY_KEYS or "filepath" not in entry:
            text = f"{field} must have layer and filepath (and id), got {shown(entry)}"
            raise file_error(ConfigError, "config_type", path, text, field=field)
        layer = entry.get("layer")
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < 512:
            text = f"{field}: layer must be an integer in 0..511, got {shown(layer)}"
            raise file_error(ConfigError, "config_type", path, text, field=field)
        add_layer(found, layer, _file_of(entry["filepath"], folder, path, field), path)
    return dict(sorted(found.items())), old


def _check_place(name: str, index: int, path: Path, field: str) -> None:
    """ConfigError `config_value` if a file's name gives it another layer than its place in the list does."""
    numbers = {int(number) for number in _LAYER_IN_NAME.findall(name)}
    if numbers and index not in numbers:
        text = f"{field} is {quoted(name)}, but its place says layer {index}; for a set of some layers "
        text += "write entries {layer: ..., filepath: ...}"
        raise file_error(ConfigError, "config_value", path, text, field=field)


def _file_of(entry: Any, folder: Path, path: Path, field: str) -> Path:
    """The file in `folder` that an entry of `transcoders:` names."""
    name = text_value(entry, path, field)
    remote = name.startswith("hf://")
    if remote:  # hf://owner/repository/file?revision=...
        name = "/".join(name.partition("?")[0].removeprefix("hf://").split("/")[2:])
    parts = name.split("/")
    if set(name) & set("\\:\0") or any(not part or part.startswith(".") for part in parts):
        text = f"{field} is {quoted(entry)}, which is not a path inside the folder of {path.name}"
        raise file_error(FormatError, "layer_file", path, text, field=field)
    file = folder.joinpath(*parts)
    if not os.path.isfile(file):  # no file either if the system cannot have such a name
        what = f"{quoted(entry)} is on the Hugging Face hub" if remote else f"{quoted(entry)} is not here"
        text = f"{field}: {what}; download it to {quoted(name)} in the folder of {path.name}, then load that"
        raise file_error(ConfigError, "missing_layer", path, text, field=field)
    return file


# ------------------------------------------------------------------------------------------- layers


def _set_reader(
    config: dict[str, Any], transposed_decoder: bool
) -> Callable[[WeightFile], tuple[StoredLayer, int]]:
    def read_layer(file: WeightFile) -> tuple[StoredLayer, int]:
        if _SCOPE_2.w_enc in file.tensors:
            return one_layer(
                file, _SCOPE_2, transposed_encoder=True, transposed_skip=True, threshold="positive"
            )
        if file.path.endswith(".npz"):
            return one_layer(file, _SCOPE, transposed_encoder=True, threshold="positive")
        return one_layer(
            file, _PLAIN, transposed_encoder=False, transposed_decoder=transposed_decoder, known=("k",)
        )

    return read_layer


def _cross_layers(files: dict[int, Path], folder: Path, limits: Limits) -> dict[int, tuple[StoredLayer, int]]:
    decoders = _numbered(folder, _DECODER_FILE)
    for layer in decoders:
        if layer >= len(files):
            text = f"{decoders[layer].name} has no W_enc_{layer}.safetensors beside it"
            raise file_error(ConfigError, "extra_layer", folder, text, field=f"layer {layer}")
    found = {}
    for layer, path in files.items():
        if layer not in decoders:
            text = f"W_dec_{layer}.safetensors is missing"
            raise file_error(ConfigError, "missing_layer", folder, text, field=f"layer {layer}")
        encoder, decoder = WeightFile(path, limits), WeightFile(decoders[layer], limits)
        found[layer] = _cross_layer(encoder, decoder, layer, len(files))
    return found


def _cross_layer(
    encoder: WeightFile, decoder: WeightFile, layer: int, n_layer: int
) -> tuple[StoredLayer, int]:
    w_enc, w_dec, b_enc, b_dec, threshold = (
        f"{name}_{layer}" for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    )
    n, width = sizes(encoder, b_enc, b_dec)
    why = f" (b_enc has {n:,} features, b_dec has width {width:,}, {n_layer} layers)"
    encoder.need(w_enc, (n, width), why)
    decoder.need(w_dec, (n, n_layer - layer, width), why)
    has_threshold = threshold in encoder.tensors
    if has_threshold:
        encoder.need(threshold, (n,), why)
    encoder.only((w_enc, b_enc, b_dec, threshold))
    decoder.only((w_dec,))
    part = EncoderPart(encoder, n, w_enc, b_enc, threshold if has_threshold else None)
    return _writes_on(part, decoder, w_dec, Row(encoder, b_dec), n_layer - layer, n_layer - layer), width


def _scope_2_cross_layer(file: WeightFile, layer: int, n_layer: int) -> tuple[StoredLayer, int]:
    names = _SCOPE_2
    n, width = sizes(file, names.b_enc, names.b_dec)
    why = f" (b_enc has {n:,} features, b_dec has width {width:,}, {n_layer} layers)"
    file.need(names.w_enc, (width, n), why)
    file.need(names.w_dec, (n, n_layer, width), why)
    file.need(names.threshold, (n,), why)
    file.only(names)
    part = EncoderPart(file, n, names.w_enc, names.b_enc, names.threshold, transposed=True)
    stored = _writes_on(part, file, names.w_dec, Row(file, names.b_dec), n_layer - layer, n_layer, layer)
    if names.skip in file.tensors:
        file.need(names.skip, (width, width), why)
        stored = stored._replace(skip=(file, names.skip, True))
    return stored._replace(threshold="positive"), width


def _writes_on(
    encoder: EncoderPart,
    file: WeightFile,
    weight: str,
    bias: Row,
    n_targets: int,
    stored_targets: int,
    first: int = 0,
) -> StoredLayer:
    """A layer of a cross-layer transcoder, stored [F, stored_targets, E], of which the first are left out."""
    decoder = DecoderPart(file, encoder.n_features, weight, first, stored_targets)
    return StoredLayer((encoder,), (decoder,), (bias,), n_targets)
