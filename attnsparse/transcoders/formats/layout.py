"""What the readers of transcoder formats share: the description of a set, hooks, layers, single layers."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import ConfigError, file_error, quoted
from ...io.limits import Limits
from ...io.strict_json import shown
from ..arrays import layers_text
from ..stored import DecoderPart, EncoderPart, Row, StoredLayer, WeightFile

SET, CROSS_LAYER = "transcoder_set", "cross_layer_transcoder"
NORMALIZED, RESID_MID, MLP_IN = "ln2.hook_normalized", "hook_resid_mid", "mlp.hook_in"
#: TransformerLens's and circuit-tracer's names of one tensor each
INPUT_HOOKS = {
    NORMALIZED: NORMALIZED,  # the MLP's LayerNorm before its weight and bias
    RESID_MID: RESID_MID,
    "hook_mlp_in": RESID_MID,  # a copy of it
    MLP_IN: MLP_IN,  # the LayerNorm's output, with weight and bias
}
OUTPUT_HOOKS = ("hook_mlp_out", "mlp.hook_out")
_BLOCK = re.compile(r"blocks\.(\d{1,4}|\{layer\})\.")


@dataclasses.dataclass
class StoredSet:
    """What a reader found; `read_set` makes `Transcoders` of it."""

    path: str
    layers: dict[int, StoredLayer]  #: by the model's numbers, rising
    d_model: int
    input_hook: str | None  #: a value of INPUT_HOOKS, None if no file says
    kind: str = SET
    activation: str = "relu"
    top_k: int | None = None
    model_name: str = ""
    scan: str = ""
    processed: bool | None = False  #: trained on a model with processed weights; None if no file says
    n_layer: int | None = None  #: layers of the model, if the files say so


def split_hook(hook: Any) -> tuple[int | None, str]:
    """Layer and rest of a hook's name: "blocks.3.ln2.hook_normalized" is (3, "ln2.hook_normalized")."""
    match = _BLOCK.match(hook) if isinstance(hook, str) else None
    if match is None:
        return None, hook
    return (int(match[1]) if match[1].isdigit() else None), hook[match.end() :]


def input_hook(hook: Any, path: str | os.PathLike[str], field: str) -> str:
    """The value of INPUT_HOOKS for a name from a file; ConfigError `hook` for any other."""
    name = split_hook(hook)[1]
    if not isinstance(name, str) or name not in INPUT_HOOKS:
        text = f"{field} is {shown(hook)}; transcoders can read {', '.join(INPUT_HOOKS)}"
        raise file_error(ConfigError, "hook", path, text, field=field)
    return INPUT_HOOKS[name]


def check_output_hook(hook: Any, path: str | os.PathLike[str], field: str) -> None:
    """ConfigError `hook` if a name from a file is not that of an MLP's output."""
    name = split_hook(hook)[1]
    if not isinstance(name, str) or name not in OUTPUT_HOOKS:
        text = f"{field} is {shown(hook)}; transcoders can write to {' or '.join(OUTPUT_HOOKS)}"
        raise file_error(ConfigError, "hook", path, text, field=field)


def layer_of_hooks(
    config: dict[str, Any],
    hooks: tuple[str, str],
    numbers: tuple[str, str],
    path: str | os.PathLike[str],
    prefix: str = "",
) -> int:
    """The layer of one dictionary whose config names the hook it reads, the one it writes, and maybe,
    in two more fields, their layers; checks that all agree. prefix: begins the messages."""
    input_hook(config[hooks[0]], path, hooks[0])
    check_output_hook(config[hooks[1]], path, hooks[1])
    found = {name: split_hook(config[name])[0] for name in hooks}
    found |= {name: config[name] for name in numbers if config.get(name) is not None}
    layer = found[hooks[0]]
    other = [name for name, n in found.items() if layer is None or isinstance(n, bool) or n != layer]
    if layer is None or other:
        text = f"{prefix}{other[0]} gives layer {shown(found[other[0]])}, {hooks[0]} gives {shown(layer)}"
        raise file_error(ConfigError, "hook", path, text, field=other[0])
    return layer


def whole(value: Any, path: str | os.PathLike[str], field: str, most: int = 2**31 - 1) -> int:
    """An integer in 1..most from a file; ConfigError `config_type`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        text = f"{field} must be an integer in 1..{most:,}, got {shown(value)}"
        raise file_error(ConfigError, "config_type", path, text, field=field)
    return value


def text_value(value: Any, path: str | os.PathLike[str], field: str) -> str:
    """A string from a file; ConfigError `config_type`."""
    if not isinstance(value, str):
        text = f"{field} must be a string, got {shown(value)}"
        raise file_error(ConfigError, "config_type", path, text, field=field)
    return value


def check_no_gap(found: dict[int, Path], path: str | os.PathLike[str]) -> None:
    """ConfigError `missing_layer` unless there is a file for layers 0, 1, ...: a cross-layer transcoder."""
    for layer in range(len(found)):
        if layer not in found:
            text = f"layer {layer} is missing, found {layers_text(sorted(found))}; a cross-layer transcoder "
            text += "has all layers"
            raise file_error(ConfigError, "missing_layer", path, text, field=f"layer {layer}")


def add_layer(found: dict[int, Path], layer: int, file: Path, path: str | os.PathLike[str]) -> None:
    """found[layer] = file; ConfigError `duplicate_layer` if there is one already."""
    if layer in found:
        text = f"two transcoders for layer {layer}: {quoted(found[layer].name)} and {quoted(file.name)}"
        raise file_error(ConfigError, "duplicate_layer", path, text, field=f"layer {layer}")
    found[layer] = file


def sizes(file: WeightFile, b_enc: str, b_dec: str) -> tuple[int, int]:
    """F and E, the lengths of the two biases; ConfigError missing_tensor, tensor_shape."""
    numbers = []
    for name in (b_enc, b_dec):
        shape = file.need(name, None)
        if len(shape) != 1 or shape[0] < 1:
            file.raise_file_error(
                "tensor_shape", f"tensor {quoted(name)} has shape {list(shape)}, expected a vector", name
            )
        numbers.append(shape[0])
    return numbers[0], numbers[1]


def same_width(widths: Mapping[int, int], path: str | os.PathLike[str]) -> int:
    """The one width E of all layers; ConfigError `tensor_shape` if they differ."""
    first = next(iter(widths))
    for layer, width in widths.items():
        if width != widths[first]:
            text = f"layer {layer} has d_model={width}, layer {first} has {widths[first]}"
            raise file_error(ConfigError, "tensor_shape", path, text, field=f"layer {layer}")
    return widths[first]


class TensorNames(NamedTuple):
    """What a layout calls the tensors of a layer; "" for what it does not have."""

    w_enc: str
    w_dec: str
    b_enc: str
    b_dec: str
    threshold: str
    skip: str


def one_layer(
    file: WeightFile,
    names: TensorNames,
    *,
    transposed_encoder: bool,
    transposed_decoder: bool = False,
    transposed_skip: bool = False,
    threshold: str = "stored",
    known: Sequence[str] = (),
) -> tuple[StoredLayer, int]:
    """A layer whose encoder and decoder lie in one file, and E.

    The encoder is stored [F, E] or, if `transposed_encoder`, [E, F]; the decoder likewise. With F = E the two
    cannot be told apart and the layout's own order is taken. `known` are further tensors that may be there.
    """
    n, width = sizes(file, names.b_enc, names.b_dec)
    why = f" (b_enc has {n:,} features, b_dec has width {width:,})"
    file.need(names.w_enc, (width, n) if transposed_encoder else (n, width), why)
    file.need(names.w_dec, (width, n) if transposed_decoder else (n, width), why)
    has_threshold, has_skip = names.threshold in file.tensors, names.skip in file.tensors
    if has_threshold:
        file.need(names.threshold, (n,), why)
    if has_skip:
        file.need(names.skip, (width, width), why)
    file.only((*names, *known))
    encoder = EncoderPart(file, n, names.w_enc, names.b_enc, names.threshold if has_threshold else None,
                          transposed=transposed_encoder)  # fmt: skip
    layer = StoredLayer(
        encoder=(encoder,),
        decoder=(DecoderPart(file, n, names.w_dec, transposed=transposed_decoder),),
        output=(Row(file, names.b_dec),),
        threshold=threshold,
        skip=(file, names.skip, transposed_skip) if has_skip else None,
    )
    return layer, width


def settle_activation(layers: Mapping[int, StoredLayer], declared: str | None, path: str) -> str:
    """ "relu", "jump_relu" or "topk": what was declared, else what the thresholds say.

    Raises ConfigError config_value if the two contradict each other, missing_tensor and unexpected_tensor if
    only some layers have thresholds.
    """
    having = {number: layer.encoder[0].threshold is not None for number, layer in layers.items()}
    first = next(iter(having))
    for number, has in having.items():
        if has != having[first]:
            which = "missing_tensor" if having[first] else "unexpected_tensor"
            with_them, without = (first, number) if having[first] else (number, first)
            text = f"layer {with_them} has thresholds, layer {without} has none; all must have them or none"
            raise file_error(ConfigError, which, layers[number].encoder[0].file.path, text, field="threshold")
    if declared == "jump_relu" and not having[first]:
        text = "the activation is jump_relu but there are no thresholds"
        raise file_error(ConfigError, "missing_tensor", path, text, field="threshold")
    if declared in ("relu", "topk") and having[first]:
        text = f"the activation is {declared} but there are thresholds, which only jump_relu has"
        raise file_error(ConfigError, "config_value", path, text, field="activation")
    return declared or ("jump_relu" if having[first] else "relu")


def check_size(layers: Mapping[int, StoredLayer], d_model: int, path: str, limits: Limits) -> None:
    """LimitError `weight_limit` if one layer's encoder is above max_weight_bytes."""
    n_bytes = 4 * d_model * max(layer.n_features for layer in layers.values())
    what = f"an encoder of {n_bytes:,} bytes"
    limits.check("max_weight_bytes", n_bytes, path, what, code="weight_limit")
