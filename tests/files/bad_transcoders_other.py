"""Bad sets of transcoders as SAELens, Dunefsky et al. and CLT-Forge lay them out: see bad_transcoders.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tiny_transcoders as tiny
import torch_by_hand
from bad_transcoders import BadSet, with_nan, without
from safetensors_by_hand import from_arrays

from attnsparse.errors import ConfigError, FormatError, NonFiniteError, UnsafeFileError

E, L = tiny.E, tiny.L
SAE, SAE_WEIGHTS = tiny.saelens()
PT, PT_WEIGHTS = tiny.pt()
PT_NAMES = sorted(PT)
FORGE, _ = tiny.clt_forge()
FORGE_RANKS, _ = tiny.clt_forge(ranks=2)
FLAT, _ = tiny.clt_forge(crossing=False)
ZEROS = np.zeros(E, np.float32)


def _saelens() -> list[BadSet]:
    folder = "gpt2-small-layer-1/"

    def value(name: str, code: str, error: type = ConfigError, drop: str = "", **changes: Any) -> BadSet:
        settings = without(tiny.saelens_config(1, tiny.COUNTS[1]) | changes, drop)
        return BadSet("SAELens: " + name, error, code, SAE | {folder + "cfg.json": settings})

    def tensors(name: str, code: str, error: type = ConfigError, **changes: Any) -> BadSet:
        arrays = tiny.saelens_layer(SAE_WEIGHTS, 1) | changes
        kept = {key: array for key, array in arrays.items() if array is not None}
        return BadSet(
            "SAELens: " + name, error, code, SAE | {folder + "sae_weights.safetensors": from_arrays(kept)}
        )

    config = folder + "cfg.json"
    other = tiny.saelens_config(1, tiny.COUNTS[1], hook_name="blocks.1.hook_resid_mid")
    return [
        value("a sparse autoencoder", "config_missing", drop="hook_name_out"),
        value("no hook_name", "config_missing", drop="hook_name"),
        value("input hook of attention", "hook", hook_name="blocks.1.attn.hook_z"),
        value("another output hook", "hook", hook_name_out="blocks.1.hook_resid_post"),
        value("output of another layer", "hook", hook_name_out="blocks.2.hook_mlp_out"),
        value("hook_layer of another layer", "hook", hook_layer=2),
        value("hook_layer is true", "hook", hook_layer=True),
        value("layer 0 twice", "duplicate_layer", hook_name="blocks.0.ln2.hook_normalized", hook_layer=0,
              hook_name_out="blocks.0.hook_mlp_out", hook_layer_out=0),
        value("b_dec taken from the input", "config_value", apply_b_dec_to_input=True),
        value("b_dec perhaps taken from the input", "config_value", drop="apply_b_dec_to_input"),
        value("normalised activations", "config_value", normalize_activations="layer_norm"),
        value("normalised activations, old key", "config_value", normalize_activations=True),
        value("normalised activations, a number", "config_value", normalize_activations=0),
        value("reshaped activations", "config_value", reshape_activations="hook_z"),
        value("a factor from fine-tuning", "config_value", finetuning_scaling_factor=True),
        value("scaled by the decoder's norm", "config_value", rescale_acts_by_decoder_norm=True),
        value("one head", "config_value", hook_head_index=3),
        value("a gated autoencoder", "config_value", architecture="gated"),
        value("another activation", "config_value", activation_fn_str="tanh-relu"),
        value("one layer with top-k", "config_value", activation_fn_str="topk",
              activation_fn_kwargs={"k": 3}),
        value("top-k without k", "config_type", activation_fn_str="topk"),
        value("d_sae of another size", "config_value", d_sae=9),
        value("d_out of another size", "config_value", d_out=5),
        value("d_in is text", "config_type", d_in="6"),
        value("metadata is a list", "config_type", metadata=[1]),
        BadSet("SAELens: layers read different hooks", ConfigError, "hook", SAE | {config: other}),
        BadSet("SAELens: cfg.json cut short", FormatError, "json_syntax", SAE | {config: '{"a": 1'}),
        BadSet("SAELens: cfg.json is a list", FormatError, "json_type", SAE | {config: "[]"}),
        BadSet("SAELens: no weights", ConfigError, "missing_layer",
               without(SAE, folder + "sae_weights.safetensors")),
        tensors("W_enc transposed", "tensor_shape", W_enc=SAE_WEIGHTS.w_enc[1]),
        tensors("a b_dec_out", "unexpected_tensor", b_dec_out=ZEROS),
        tensors("a scaling_factor", "unexpected_tensor", scaling_factor=SAE_WEIGHTS.b_enc[1]),
        tensors("no b_dec", "missing_tensor", b_dec=None),
        tensors("NaN", "nonfinite", NonFiniteError, b_enc=with_nan(SAE_WEIGHTS.b_enc[1])),
    ]  # fmt: skip


def _pt() -> list[BadSet]:
    name, h = PT_NAMES[1], torch_by_hand
    good = tiny.pt_layer(PT_WEIGHTS, 1, ZEROS)

    def value(what: str, code: str, error: type = ConfigError, drop: str = "", **changes: Any) -> BadSet:
        settings = without(tiny.pt_settings(1) | changes, drop)
        return BadSet(".pt: " + what, error, code, PT | {name: tiny.pt_file(good, settings)})

    def tensors(what: str, code: str, error: type = ConfigError, **changes: Any) -> BadSet:
        kept = {key: array for key, array in (good | changes).items() if array is not None}
        return BadSet(".pt: " + what, error, code, PT | {name: tiny.pt_file(kept, tiny.pt_settings(1))})

    def pickle(what: str, code: str, cfg: bytes, error: type = UnsafeFileError) -> BadSet:
        state, storages = h.state_dict(good)
        data = h.archive(h.finished(h.plain_dict({"cfg": cfg, "state_dict": state})), storages)
        return BadSet(".pt: " + what, error, code, PT | {name: data})

    own, empty = h.name(*tiny.PT_CLASS), h.plain_dict({"a": b"N"})
    system = h.name("os", "system")
    return [
        value("no hook_point", "config_missing", drop="hook_point"),
        value("a sparse autoencoder", "config_missing", out_hook_point=None),
        value("is_transcoder is false", "config_value", is_transcoder=False),
        value("input hook of attention", "hook", hook_point="blocks.1.attn.hook_z"),
        value("a hook without a layer", "hook", hook_point="ln2.hook_normalized"),
        value("another output hook", "hook", out_hook_point="blocks.1.hook_attn_out"),
        value("output of another layer", "hook", out_hook_point="blocks.2.hook_mlp_out"),
        value("hook_point_layer of another layer", "hook", hook_point_layer=2),
        value("one layer reads another hook", "hook", hook_point="blocks.1.hook_resid_mid"),
        value("layer 0 twice", "duplicate_layer", hook_point="blocks.0.ln2.hook_normalized",
              hook_point_layer=0, out_hook_point="blocks.0.hook_mlp_out", out_hook_point_layer=0),
        value("d_in of another size", "config_value", d_in=7),
        value("d_out is text", "config_type", d_out="6"),
        BadSet(".pt: no cfg", ConfigError, "config_missing", PT | {name: tiny.pt_file(good, None)}),
        BadSet(".pt: a plain state dict", ConfigError, "config_missing", PT | {name: h.torch_file(good)}),
        BadSet(".pt: an old pickle", FormatError, "magic", PT | {name: b"\x80\x02}q\x00."}),
        BadSet(".pt: cut short", FormatError, "truncated", PT | {name: PT[name][:-30]}),
        tensors("no b_dec", "missing_tensor", b_dec=None),
        tensors("no b_dec_out", "missing_tensor", b_dec_out=None),
        tensors("b_dec of another width", "tensor_shape", b_dec=ZEROS[1:]),
        tensors("W_enc transposed", "tensor_shape", W_enc=np.ascontiguousarray(good["W_enc"].T)),
        tensors("W_dec transposed", "tensor_shape", W_dec=np.ascontiguousarray(good["W_dec"].T)),
        tensors("one tensor too many", "unexpected_tensor", threshold=good["b_enc"]),
        tensors("integers", "dtype", FormatError, b_enc=np.ones(7, np.int64)),
        tensors("NaN in b_dec", "nonfinite", NonFiniteError, b_dec=with_nan(ZEROS)),
        tensors("NaN in W_dec", "nonfinite", NonFiniteError, W_dec=with_nan(good["W_dec"])),
        pickle("cfg of another class", "global", h.name("subprocess", "Popen") + b")\x81" + empty + b"b"),
        pickle("cfg of a class of that name", "global", h.name("evil", tiny.PT_CLASS[1]) + b")\x81"),
        pickle("cfg made with arguments", "call", own + b"(" + h.text("x") + b"t\x81" + empty + b"b"),
        pickle("cfg made by a call", "call", own + b")R" + empty + b"b"),
        pickle("an object of a container", "call", h.name("collections", "OrderedDict") + b")\x81"),
        pickle("a function in cfg", "global", own + b")\x81" + h.plain_dict({"f": system}) + b"b"),
        pickle("a device made of a list", "call", own + b")\x81" + h.plain_dict(
            {"d": h.name("torch", "device") + b"]\x85R"}) + b"b"),
        pickle("state that is no dict", "call", own + b")\x81" + h.text("x") + b"b"),
    ]  # fmt: skip


def _clt_forge() -> list[BadSet]:
    arrays = tiny.clt_forge_arrays()
    n = arrays["b_enc"].shape[1]

    def value(name: str, code: str, error: type = ConfigError, drop: str = "", **changes: Any) -> BadSet:
        settings = without(tiny.clt_forge_config(n) | changes, drop)
        return BadSet("CLT-Forge: " + name, error, code, FORGE | {"clt_cfg.json": settings})

    def tensors(name: str, code: str, error: type = ConfigError, **changes: Any) -> BadSet:
        kept = {key: array for key, array in (arrays | changes).items() if array is not None}
        return BadSet(
            "CLT-Forge: " + name, error, code, FORGE | {"clt_weights.safetensors": from_arrays(kept)}
        )

    def ranks(name: str, code: str, files: Mapping[str, Any]) -> BadSet:
        return BadSet("CLT-Forge: " + name, ConfigError, code, files)

    scale = "estimated_norm_scaling_factor_in"
    return [
        value("no n_layers", "config_missing", drop="n_layers"),
        value("no cross_layer_decoders", "config_missing", drop="cross_layer_decoders"),
        value("n_layers is text", "config_type", n_layers="3"),
        value("n_layers is 2", "tensor_shape", n_layers=2),
        value("n_layers is 10^9", "config_type", n_layers=10**9),
        value("d_latent of another size", "config_value", d_latent=9),
        value("d_in of another size", "tensor_shape", d_in=5),
        value("cross_layer_decoders is 1", "config_type", cross_layer_decoders=1),
        value("decoders per layer only", "tensor_shape", cross_layer_decoders=False),
        value("top-k", "config_value", activation_fn="topk", k=3),
        value("feature sharding without ranks", "missing_layer", feature_sharding=True),
        value("feature_sharding is null", "config_type", feature_sharding=None),
        value("model_name is a list", "config_type", model_name=[]),
        BadSet("CLT-Forge: cfg is a list", FormatError, "json_type", FORGE | {"clt_cfg.json": "[]"}),
        BadSet("CLT-Forge: a key twice", FormatError, "duplicate_name", FORGE | {
            "clt_cfg.json": '{"n_layers": 3, "n_layers": 4}'}),
        ranks("no weights", "missing_layer", without(FORGE, "clt_weights.safetensors")),
        ranks("rank 0 missing", "missing_layer", without(FORGE_RANKS, "rank0_clt_weights.safetensors")),
        ranks("the last rank missing", "config_value",
              without(FORGE_RANKS, "rank1_clt_weights.safetensors")),
        ranks("cross-layer decoders left out", "tensor_shape",
              FLAT | {"clt_cfg.json": tiny.clt_forge_config(n)}),
        tensors("no log_threshold", "missing_tensor", log_threshold=None),
        tensors("no scaling factor", "missing_tensor", **{scale: None}),
        tensors("an unknown tensor", "unexpected_tensor", W_skip=np.zeros((L, E, E), np.float32)),
        tensors("W_enc as [L, F, E]", "tensor_shape", W_enc=arrays["W_enc"].transpose(0, 2, 1)),
        tensors("W_dec as [N, E, F]", "tensor_shape", W_dec=arrays["W_dec"].transpose(0, 2, 1)),
        tensors("b_dec per layer", "tensor_shape", b_dec=arrays["b_dec"][:L]),
        tensors("a scaling factor of 0", "config_value", **{scale: np.zeros(L, np.float32)}),
        tensors("a scaling factor of NaN", "nonfinite", NonFiniteError, **{scale: np.full(L, np.nan, "f4")}),
        tensors("NaN in W_enc", "nonfinite", NonFiniteError, W_enc=with_nan(arrays["W_enc"])),
        tensors("NaN in W_dec", "nonfinite", NonFiniteError, W_dec=with_nan(arrays["W_dec"])),
        tensors("a threshold of infinity", "nonfinite", NonFiniteError,
                log_threshold=with_nan(arrays["log_threshold"], np.inf)),
    ]  # fmt: skip


SETS = [*_saelens(), *_pt(), *_clt_forge()]
