"""Reads config.json in every layout of GPT-2-like checkpoints, and writes our own.

Layouts: Hugging Face GPT-2 (`n_embd`, `n_positions`, ...), TransformerLens and the sparse checkpoints
(`d_model`, `n_layers`, `use_sparse_attn`, ...), nanoGPT (`block_size`, ...). Ours is Hugging Face's, with
names that begin with `attnsparse_` for what that layout cannot express. A key that is not read is ignored if
it cannot change a number that the model computes; others (another model type, rotary positions, ...) are
errors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ConfigError, file_error
from ..io.limits import Limits
from ..io.regular_file import read_small
from ..io.strict_json import parse_object, shown
from .config import OPTIONAL, Config, check_kind

CONFIG_VERSION = 1

# our field -> its names in the layouts
_SIZES = {
    "n_layer": ("n_layer", "n_layers", "num_hidden_layers"),
    "n_head": ("n_head", "n_heads", "num_attention_heads"),
    "d_model": ("n_embd", "d_model", "hidden_size"),
    "d_head": ("attnsparse_d_head", "d_head"),
    "d_mlp": ("n_inner", "d_mlp"),
    "n_ctx": ("n_positions", "max_position_embeddings", "n_ctx", "block_size"),
    "n_vocab": ("vocab_size", "d_vocab"),
}
_FLAGS = {
    "ln_eps": ("layer_norm_epsilon", "eps"),
    "activation": ("activation_function", "act_fn"),
    "gated": ("attnsparse_gated", "use_sparse_attn"),
    "gate_bias": ("attnsparse_gate_bias",),
    "self_closed": ("attnsparse_self_closed",),
    "tied": ("tie_word_embeddings",),
    "bias": ("attnsparse_bias", "bias"),
    "unembed_bias": ("attnsparse_unembed_bias",),
    "scale_attn": ("scale_attn_weights", "use_attn_scale"),
    "scale_by_inverse_layer": ("scale_attn_by_inverse_layer_idx",),
    "window": ("attnsparse_window",),
    "top_k": ("attnsparse_top_k",),
    "min_weight": ("attnsparse_min_weight",),
}
_KINDS = {"ln_eps": "float", "gate_bias": "float", "activation": "str"}
_KINDS |= {"window": "int", "top_k": "int", "min_weight": "float"}
_ACTIVATIONS = {"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}
_MODEL_TYPES = ("gpt2", "attnsparse")

# keys that change the computation -> the values that are supported
_MUST_BE = {
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "attn_only": (False,),
    "parallel_attn_mlp": (False,),
    "gated_mlp": (False,),
    "use_local_attn": (False,),
    "final_rms": (False,),
    "post_embedding_ln": (False,),
    "positional_embedding_type": ("standard",),
    "attention_dir": ("causal",),
    "normalization_type": ("LN", "LNPre"),
    "n_key_value_heads": (None,),
    "num_experts": (None,),
    "use_qk_norm": (False,),
    "attn_scores_soft_cap": (-1.0, -1, None),
    "output_logits_soft_cap": (-1.0, -1, None),
    "quantization_config": (None,),
}
_GPT2_VOCABULARIES = {50_257, 50_304}  # the same tokens, without and with rows that no token uses


def read_config_json(folder: Path, limits: Limits) -> tuple[Path, dict[str, Any] | None]:
    """The parsed config.json of a folder, None if there is none, and its path."""
    path = folder / "config.json"
    if not path.exists():
        return path, None
    return path, parse_object(read_small(path, "max_config_bytes", limits=limits), path, limits=limits)


def read_config(
    values: Mapping[str, Any], path: str | os.PathLike[str], seen: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The fields of `Config` that a parsed config.json (or nanoGPT's model_args) determines.

    In a config of Hugging Face or nanoGPT, missing keys have the defaults of these programs. `seen` are sizes
    that the weights show: of two keys that disagree, they determine which one is unused, as transformers does
    not use n_ctx beside n_positions.

    Raises ConfigError: config_value (unsupported or contradictory), config_type (wrong kind), config_version.
    """
    _refuse_unsupported(values, path)
    seen = seen or {}
    fields: dict[str, Any] = {}
    for name, aliases in (_SIZES | _FLAGS).items():
        value = _only_value(values, name, aliases, path, seen)
        if value is not None:
            fields[name] = value
    if is_hugging_face(values) and "n_ctx" in seen and not {"n_positions", "max_position_embeddings",
                                                            "block_size"} & values.keys():  # fmt: skip
        fields.pop("n_ctx", None)  # transformers does not read n_ctx
    if "activation" in fields:
        fields["activation"] = _activation(fields["activation"], path)
    elif "block_size" in values:
        fields["activation"] = "gelu"  # nanoGPT's GELU is the exact one
    elif is_hugging_face(values):
        fields["activation"] = "gelu_new"  # the default of GPT2Config
    derive_head_width(fields, path)
    if "d_model" in fields:
        fields.setdefault("d_mlp", 4 * fields["d_model"])
    scale = values.get("attn_scale", -1.0)  # TransformerLens: the divisor of scores, -1 for sqrt(d_head)
    usual = math.sqrt(fields.get("d_head", 1))
    usable = isinstance(scale, int | float) and type(scale) is not bool and abs(scale) < 1e30
    if not usable or (scale != -1 and not math.isclose(scale, usual, rel_tol=1e-6)):
        _raise_file_error(
            "config_value",
            path,
            "attn_scale",
            f"is {shown(scale)}; only sqrt(d_head)={usual:.6g} is supported",
        )
    return fields


def hugging_face_config(config: Config, bos_id: int | None) -> dict[str, Any]:
    """The config.json that we write: the fields of GPT2Config, and the rest under `attnsparse_` names."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.d_model,
        "n_positions": config.n_ctx,
        "n_ctx": config.n_ctx,
        "n_inner": config.d_mlp,
        "vocab_size": config.n_vocab,
        "activation_function": config.activation,
        "layer_norm_epsilon": config.ln_eps,
        "scale_attn_weights": config.scale_attn,
        "scale_attn_by_inverse_layer_idx": config.scale_by_inverse_layer,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": config.tied,
        "add_cross_attention": False,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "float32",
        "bos_token_id": bos_id,
        "eos_token_id": bos_id,
        "attnsparse_version": CONFIG_VERSION,
        "attnsparse_gated": config.gated,
        "attnsparse_gate_bias": config.gate_bias,
        "attnsparse_d_head": config.d_head,
        "attnsparse_bias": config.bias,
        "attnsparse_unembed_bias": config.unembed_bias,
        **{f"attnsparse_{name}": getattr(config, name) for name in OPTIONAL if getattr(config, name)},
    }


def is_hugging_face(values: Mapping[str, Any]) -> bool:
    """True for a config of transformers, in which a missing key has the default of GPT2Config."""
    return any(key in values for key in ("model_type", "n_embd", "hidden_size"))


def is_ours(values: Mapping[str, Any]) -> bool:
    """True if this config.json was written by attnsparse."""
    return "attnsparse_version" in values


def derive_head_width(fields: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Fill in n_head or d_head from the other; ConfigError if heads then do not divide the width."""
    width, n_head, d_head = (fields.get(name) for name in ("d_model", "n_head", "d_head"))
    if width and n_head and not d_head:
        if width % n_head:
            _raise_file_error(
                "config_value", path, "n_embd", f"={width} is not a multiple of n_head={n_head}", join=""
            )
        fields["d_head"] = width // n_head
    if width and d_head and not n_head:
        if width % d_head:
            _raise_file_error(
                "config_value", path, "d_model", f"={width} is not a multiple of d_head={d_head}", join=""
            )
        fields["n_head"] = width // d_head


def _refuse_unsupported(values: Mapping[str, Any], path: Any) -> None:
    version = values.get("attnsparse_version", CONFIG_VERSION)
    if type(version) is not int or version < 1:
        _raise_file_error(
            "config_type", path, "attnsparse_version", f"must be an integer, got {shown(version)}"
        )
    if version > CONFIG_VERSION:
        text = f"is {shown(version)}, this attnsparse reads up to {CONFIG_VERSION}; update attnsparse"
        _raise_file_error("config_version", path, "attnsparse_version", text)
    known = {alias for names in (_SIZES | _FLAGS).values() for alias in names}
    for key in values:
        if key.startswith("attnsparse_") and key not in known and key != "attnsparse_version":
            _raise_file_error("config_value", path, key, "is not a field that this attnsparse knows")
    model_type = values.get("model_type", "gpt2")
    if model_type not in _MODEL_TYPES:
        _raise_file_error(
            "config_value",
            path,
            "model_type",
            f"is {shown(model_type)}; only GPT-2's architecture is read, for example "
            'asp.load("openai-community/gpt2")',
        )
    for key, allowed in _MUST_BE.items():
        value = values.get(key, allowed[0])
        if key == "quantization_config" and value is not None:
            text = (
                "says that the weights are quantized; save them in full: model.dequantize().save_pretrained"
            )
            _raise_file_error("config_value", path, key, text)
        if value not in allowed or type(value) not in {type(item) for item in allowed}:
            _raise_file_error(
                "config_value", path, key, f"is {shown(value)}; only {shown(allowed[0])} is supported"
            )


def _only_value(
    values: Mapping[str, Any], name: str, aliases: tuple[str, ...], path: Any, seen: Mapping[str, int]
) -> Any:
    """The value of a field under any of its names that is present and not null.

    If two disagree, the first, which transformers reads, is used if the weights show it; otherwise this is
    an error.
    """
    kind = "int" if name in _SIZES else _KINDS.get(name, "bool")
    present = [key for key in aliases if values.get(key) is not None]
    # types first: comparing lists and objects of a hostile file could take forever
    found = [check_kind(name, values[key], kind, path=path, label=key) for key in present]
    for key, value in zip(present, found):
        padded = name == "n_vocab" and {found[0], value, seen.get(name)} == _GPT2_VOCABULARIES
        if value != found[0] and found[0] != seen.get(name) and not padded:
            shows = f"; the weights show {seen[name]}" if name in seen else "; they mean the same"
            text = f"is {shown(found[0])} but {key} is {shown(value)}{shows}"
            _raise_file_error("config_value", path, present[0], text)
    return found[0] if found else None


def _activation(name: str, path: Any) -> str:
    if name not in _ACTIVATIONS:
        _raise_file_error(
            "config_value",
            path,
            "activation_function",
            f"{shown(name)} is not supported; supported: {', '.join(_ACTIVATIONS)}",
        )
    return _ACTIVATIONS[name]


def _raise_file_error(code: str, path: Any, field: str, text: str, join: str = " ") -> NoReturn:
    raise file_error(
        ConfigError, code, path, f"{field if len(field) < 80 else shown(field)}{join}{text}", field=field
    )
