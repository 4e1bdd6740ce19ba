"""Reads the transcoders of Dunefsky, Chlenski and Nanda (2024) as transcoder_circuits saves them: `.pt`
files.

One file per layer, {"cfg", "state_dict"}: W_enc [E, F], b_enc [F], W_dec [F, E], b_dec [E], b_dec_out
[E]. `cfg` is an object of their class LanguageModelSAERunnerConfig (read as data) or a dict. The function
is

    relu((x - b_dec) @ W_enc + b_enc) @ W_dec + b_dec_out.

What is converted: b_dec is folded into the bias of the encoder, b_enc - b_dec @ W_enc, and the bias of
the output is b_dec_out. What needs no conversion: the published sets read ln2.hook_normalized, which is
the same tensor in the model they were trained on, TransformerLens's processed gpt2-small (LayerNorm
folded into the next weights, writing weights centred), as in the raw one: centred, divided by its scale,
before weight and bias. What cannot be converted: they were trained on MLP outputs whose mean over the E
dimensions the processing had taken out. That mean is predicted by nothing here, so with a raw model it is
part of the error. It has no effect on logits or on other features that read a LayerNorm, which takes
means out, but explained variance counts it.

Where processing does change what is read (a hook other than ln2.hook_normalized), `processed` must be given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import ConfigError, file_error
from ...io.limits import Limits
from ...io.torch_nodes import PickledObject
from ..stored import Row, StoredLayer, WeightFile
from .layout import (
    NORMALIZED,
    StoredSet,
    TensorNames,
    add_layer,
    input_hook,
    layer_of_hooks,
    one_layer,
    same_width,
    text_value,
    whole,
)

_RECORDS = frozenset(("sae_training.config.LanguageModelSAERunnerConfig",))
_NAMES = TensorNames("W_enc", "W_dec", "b_enc", "b_dec_out", "", "")


def is_here(folder: Path) -> bool:
    """Whether a folder holds `.pt` files."""
    return any(item.suffix == ".pt" for item in folder.iterdir())


def read(where: Path, limits: Limits) -> StoredSet:
    """The set in one file (of one layer) or in the `.pt` files of a folder.

    Raises FormatError (UnsafeFileError, LimitError) as the reader of torch files does, and ConfigError
    config_missing, config_type, config_value, hook, duplicate_layer, missing_tensor, unexpected_tensor,
    tensor_shape.
    """
    paths = sorted(item for item in where.iterdir() if item.suffix == ".pt") if where.is_dir() else [where]
    opened = {path: WeightFile(path, limits, _RECORDS) for path in paths}
    configs = {path: _config(file, path) for path, file in opened.items()}
    places: dict[int, Path] = {}
    for path, config in configs.items():
        add_layer(places, _layer(config, path), path, where)
    places = dict(sorted(places.items()))
    ordered = list(places.values())
    found = {layer: _read_layer(opened[path], configs[path], path) for layer, path in places.items()}
    hooks = {input_hook(configs[path]["hook_point"], path, "hook_point") for path in ordered}
    if len(hooks) > 1:
        text = f"layers read different hooks: {', '.join(sorted(hooks))}"
        raise file_error(ConfigError, "hook", where, text, field="hook_point")
    hook = hooks.pop()
    return StoredSet(
        str(where),
        {number: layer for number, (layer, _) in found.items()},
        same_width({number: width for number, (_, width) in found.items()}, where),
        hook,
        model_name=text_value(configs[ordered[0]].get("model_name") or "", ordered[0], "model_name"),
        processed=True if hook == NORMALIZED else None,
    )


def _config(file: WeightFile, path: Path) -> dict[str, Any]:
    config = file.beside.get("cfg")
    values = config.values if isinstance(config, PickledObject) else config
    if not isinstance(values, dict):
        text = "no 'cfg' beside the weights, so neither layer nor hooks are known; save {'cfg', 'state_dict'}"
        raise file_error(ConfigError, "config_missing", path, text, field="cfg")
    for name in ("hook_point", "out_hook_point"):
        if values.get(name) is None:
            what = "; it is a sparse autoencoder, not a transcoder" if name == "out_hook_point" else ""
            raise file_error(ConfigError, "config_missing", path, f"cfg: {name} is missing{what}", field=name)
    return values


def _layer(config: dict[str, Any], path: Path) -> int:
    hooks, numbers = ("hook_point", "out_hook_point"), ("hook_point_layer", "out_hook_point_layer")
    return layer_of_hooks(config, hooks, numbers, path, "cfg: ")


def _read_layer(file: WeightFile, config: dict[str, Any], path: Path) -> tuple[StoredLayer, int]:
    if config.get("is_transcoder") is False:
        text = "cfg: is_transcoder is false; a sparse autoencoder reads what it writes"
        raise file_error(ConfigError, "config_value", path, text, field="is_transcoder")
    layer, width = one_layer(file, _NAMES, transposed_encoder=True, known=("b_dec",))
    file.need("b_dec", (width,))
    for name, own in (("d_in", width), ("d_out", width), ("d_sae", layer.n_features)):
        if config.get(name) is not None and whole(config[name], path, name) != own:
            text = f"cfg: {name}={config[name]} but the weights have {own}"
            raise file_error(ConfigError, "config_value", path, text, field=name)
    return layer._replace(subtract=Row(file, "b_dec")), width
