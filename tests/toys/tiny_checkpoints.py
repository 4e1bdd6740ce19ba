"""Tiny weights under the names of every layout that is read, made from one set of parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from attnsparse.io.safetensors_file import write_safetensors
from attnsparse.model.config import Config
from attnsparse.model.hf_config import hugging_face_config

TINY = Config(n_layer=2, n_head=2, d_model=8, d_head=4, d_mlp=12, n_ctx=6, n_vocab=11)
HF_KEYS = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "n_inner", "activation_function",
           "layer_norm_epsilon", "model_type")  # fmt: skip

Arrays = dict[str, np.ndarray]


def weights(config: Config = TINY, seed: int = 0) -> Arrays:
    """Random float32 parameters under our names."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in config.parameter_shapes().items()}


def prefixed(arrays: Mapping[str, np.ndarray], prefix: str = "transformer.") -> Arrays:
    """The same under Hugging Face's longer names."""
    return {name if name.startswith("lm_head") else prefix + name: array for name, array in arrays.items()}


def plain_config(config: Config = TINY, **more: object) -> dict[str, object]:
    """A config.json as Hugging Face writes it for GPT-2, without our own fields."""
    whole = hugging_face_config(config, None)
    return {key: whole[key] for key in HF_KEYS} | more


def nanogpt(arrays: Mapping[str, np.ndarray], prefix: str = "transformer.") -> Arrays:
    """nanoGPT's names: linear weights stored [out, in], the head always there."""
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    result = {name: array.T if name.endswith(linear) else array for name, array in arrays.items()}
    result.setdefault("lm_head.weight", arrays["wte.weight"])
    head = prefix.removesuffix("transformer.")
    return {(head if name.startswith("lm_head") else prefix) + name: array for name, array in result.items()}


def transformer_lens(
    arrays: Mapping[str, np.ndarray], config: Config = TINY, *, folded: bool = False
) -> Arrays:
    """A TransformerLens state dict; with `folded` without LayerNorm parameters (LNPre)."""
    width, heads, head = config.d_model, config.n_head, config.d_head
    result = {"embed.W_E": arrays["wte.weight"], "pos_embed.W_pos": arrays["wpe.weight"]}
    norms = {"ln_final": "ln_f"}
    for layer in range(config.n_layer):
        at, own = f"blocks.{layer}.", f"h.{layer}."
        norms |= {at + "ln1": own + "ln_1", at + "ln2": own + "ln_2"}
        weight = arrays[own + "attn.c_attn.weight"].reshape(width, 3, heads, head)
        bias = arrays[own + "attn.c_attn.bias"].reshape(3, heads, head)
        for index, letter in enumerate("QKV"):
            result[f"{at}attn.W_{letter}"] = weight[:, index].transpose(1, 0, 2)
            result[f"{at}attn.b_{letter}"] = bias[index]
        result[at + "attn.W_O"] = arrays[own + "attn.c_proj.weight"].reshape(heads, head, width)
        result[at + "attn.b_O"] = arrays[own + "attn.c_proj.bias"]
        result[at + "attn.mask"] = np.tril(np.ones((config.n_ctx, config.n_ctx), bool))
        result[at + "attn.IGNORE"] = np.array(-1e5, np.float32)
        result[at + "mlp.W_in"], result[at + "mlp.b_in"] = (
            arrays[own + "mlp.c_fc.weight"],
            arrays[own + "mlp.c_fc.bias"],
        )
        result[at + "mlp.W_out"] = arrays[own + "mlp.c_proj.weight"]
        result[at + "mlp.b_out"] = arrays[own + "mlp.c_proj.bias"]
    if not folded:
        for theirs, ours in norms.items():
            result[theirs + ".w"], result[theirs + ".b"] = arrays[ours + ".weight"], arrays[ours + ".bias"]
    result["unembed.W_U"] = arrays.get("lm_head.weight", arrays["wte.weight"]).T
    result["unembed.b_U"] = arrays.get("lm_head.bias", np.zeros(config.n_vocab, np.float32))
    return result


def write_folder(folder: Path, arrays: Mapping[str, np.ndarray], config: Mapping[str, object] | None) -> Path:
    """model.safetensors and config.json in a new folder, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(
        folder / "model.safetensors", {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    )
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder
