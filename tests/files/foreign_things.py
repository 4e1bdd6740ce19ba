"""What people try to load that is no GPT-2 checkpoint: one row each, for test_what_people_load.py."""

from __future__ import annotations

import pickle
import tarfile
from typing import NamedTuple

import numpy as np
import tiny_checkpoints as tiny
import torch_by_hand as h
from bundle_by_hand import around
from safetensors_by_hand import entry, file_bytes, from_arrays

from attnsparse.errors import ConfigError, FormatError, UnsafeFileError

ARRAYS = tiny.weights()
HEAD = np.ones((1, 8), np.float32)


class Row(NamedTuple):
    """A thing that is loaded as `name` of a folder with `files` ('' is the folder itself)."""

    thing: str
    name: str
    files: dict[str, object]
    error: type
    code: str | None
    words: str


class Module:
    """Stands for a module of the user's program."""


def whole_module(protocol: int = 2) -> bytes:
    return h.archive(pickle.dumps(Module(), protocol=protocol), {})


def tar() -> bytes:
    info = tarfile.TarInfo("pickle")
    return info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)


def lists(*arrays: tuple[str, str, list[int]]) -> bytes:
    """A .safetensors file with tensors of any type, full of zeros."""
    header, at = {}, 0
    sizes = {"F8_E4M3": 1, "F32": 4, "C64": 8, "I8": 1}
    for name, dtype, shape in arrays:
        end = at + sizes[dtype] * int(np.prod(shape))
        header[name] = entry(at, end, shape, dtype)
        at = end
    return file_bytes(header, bytes(at))


def other_family(name: str) -> dict[str, object]:
    return {"model.safetensors": from_arrays({name: HEAD})}


CONFIG = {"config.json": tiny.plain_config()}
WEIGHTS = {"model.safetensors": from_arrays(ARRAYS)}
BASE = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
LOST = FileNotFoundError
FLOAT8 = {name: array for name, array in ARRAYS.items() if name != "h.0.mlp.c_fc.weight"}


def float8() -> bytes:
    whole = [(name, "F32", list(a.shape)) for name, a in FLOAT8.items()]
    return lists(*whole, ("h.0.mlp.c_fc.weight", "F8_E4M3", [8, 12]))


ROWS = [
    Row(
        "LoRA adapter",
        "",
        {"adapter_config.json": {}, "adapter_model.safetensors": from_arrays({BASE: HEAD})},
        ConfigError,
        "other_model",
        "merge_and_unload",
    ),
    Row(
        "LoRA adapter with a config beside",
        "",
        CONFIG | {"adapter_config.json": {}, "adapter_model.bin": b"x"},
        ConfigError,
        "other_model",
        "merge_and_unload",
    ),
    Row(
        "LoRA adapter beside its base",
        "",
        CONFIG | WEIGHTS | {"adapter_config.json": {}, "adapter_model.bin": b"x"},
        ConfigError,
        "other_model",
        "merge_and_unload",
    ),
    Row(
        "8-bit weights with their scales",
        "",
        CONFIG | {"model.safetensors": from_arrays(ARRAYS | {"h.0.attn.c_attn.weight_scale": HEAD})},
        ConfigError,
        "unexpected_tensor",
        "model.dequantize()",
    ),
    Row(
        "settings of a training beside the weights",
        "m.pt",
        {"m.pt": h.archive(pickle.dumps({"args": Module()}, protocol=2), {})},
        UnsafeFileError,
        "global",
        "model.state_dict()",
    ),
    Row(
        "NumPy number beside the weights",
        "m.pt",
        {"m.pt": h.archive(pickle.dumps({"best": np.float64(2)}, protocol=2), {})},
        UnsafeFileError,
        "global",
        "model.state_dict()",
    ),
    Row(
        "file of a LoRA adapter",
        "adapter_model.safetensors",
        {"adapter_config.json": {}, "adapter_model.safetensors": from_arrays({BASE: HEAD})},
        ConfigError,
        "other_model",
        "merge_and_unload",
    ),
    Row(
        "LoRA weights under another name",
        "w.safetensors",
        {"w.safetensors": from_arrays({BASE: HEAD})},
        ConfigError,
        "other_model",
        "merge_and_unload",
    ),
    Row(
        "LoRA weights in a model",
        "",
        CONFIG | {"model.safetensors": from_arrays(ARRAYS | {"h.0.attn.c_attn.lora_A.weight": HEAD})},
        ConfigError,
        "unexpected_tensor",
        "merge_and_unload",
    ),
    *(
        Row(
            f"weights of {kind} without a config",
            "model.safetensors",
            other_family(name),
            ConfigError,
            "other_model",
            kind,
        )
        for kind, name in [
            ("Pythia", "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"),
            ("LLaMA", "model.layers.0.mlp.gate_proj.weight"),
            ("GPT-J", "transformer.h.0.attn.q_proj.weight"),
            ("OPT", "model.decoder.layers.0.fc1.weight"),
            ("BERT", "bert.encoder.layer.0.output.dense.weight"),
            ("BLOOM", "h.0.self_attention.query_key_value.bias"),
            ("GPT-Neo", "transformer.h.0.attn.attention.q_proj.weight"),
            ("Mamba", "backbone.layers.0.mixer.A_log"),
            ("T5", "decoder.block.0.layer.0.SelfAttention.q.weight"),
            ("FSDP", "_fsdp_wrapped_module._flat_param"),
        ]
    ),
    Row("whole module", "m.pt", {"m.pt": whole_module()}, UnsafeFileError, "global", "model.state_dict()"),
    Row(
        "file from before torch 1.6",
        "m.bin",
        {"m.bin": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(50)},
        FormatError,
        "magic",
        "torch.save(torch.load(path, weights_only=True), path)",
    ),
    Row("tar of torch 0.3", "m.pth", {"m.pth": tar()}, FormatError, "magic", "torch.save(torch.load("),
    Row(
        "dict by plain pickle",
        "m.pt",
        {"m.pt": pickle.dumps({"a": 1})},
        FormatError,
        "magic",
        "torch.save(weights, path)",
    ),
    Row("float8", "", CONFIG | {"model.safetensors": float8()}, FormatError, "dtype", "8-bit floats"),
    Row(
        "quantized by GPTQ",
        "",
        {"config.json": tiny.plain_config(quantization_config={"bits": 4})} | WEIGHTS,
        ConfigError,
        "config_value",
        "dequantize()",
    ),
    Row("GGUF", "m.gguf", {"m.gguf": b"GGUF" + bytes(60)}, FormatError, "magic", "GGUF"),
    Row("folder with GGUF", "", {"m-q4.gguf": b"GGUF"}, LOST, None, "GGUF"),
    Row("GGUF called .bin", "m.bin", {"m.bin": b"GGUF" + bytes(60)}, FormatError, "magic", "gguf_file=name"),
    Row("ONNX", "m.onnx", {"m.onnx": b"\x08\x07"}, FormatError, "magic", "exported from"),
    Row("TensorFlow", "tf_model.h5", {"tf_model.h5": b"\x89HDF"}, FormatError, "magic", "from_tf=True"),
    Row("folder of TensorFlow", "", CONFIG | {"tf_model.h5": b"\x89HDF"}, LOST, None, "from_tf=True"),
    Row(
        "checkpoint of TensorFlow",
        "",
        {"model.ckpt.index": b"", "model.ckpt.meta": b"", "checkpoint": b""},
        LOST,
        None,
        "load_tf_weights_in_gpt2",
    ),
    Row("Flax", "", CONFIG | {"flax_model.msgpack": b"\x81"}, LOST, None, "from_flax=True"),
    Row("zip of a folder", "m.zip", {"m.zip": b"PK\x03\x04"}, FormatError, "magic", "unpack it"),
    Row("gzip", "m.bin", {"m.bin": b"\x1f\x8b" + bytes(60)}, FormatError, "magic", "unpack it"),
    Row(
        "llm.c",
        "gpt2_124M.bin",
        {"gpt2_124M.bin": b"\xc6\xd7\x34\x01" + bytes(1020)},
        FormatError,
        "magic",
        "export_hf.py",
    ),
    Row(
        "NumPy arrays", "m.npz", {"m.npz": b"PK\x03\x04"}, FormatError, "magic", "safetensors.numpy.save_file"
    ),
    Row("empty folder", "", {}, LOST, None, "no weights in this folder; looked for model.safetensors"),
    Row("folder with a tokenizer alone", "", {"tokenizer.json": {}}, LOST, None, "no weights in this folder"),
    Row(
        "folder of runs",
        "",
        {"checkpoint-5/config.json": {}, "checkpoint-5/model.safetensors": b""},
        LOST,
        None,
        "'checkpoint-5'",
    ),
    Row("DeepSpeed", "", {"zero_to_fp32.py": b"", "latest": b""}, LOST, None, "python zero_to_fp32.py . out"),
    Row("FSDP", "", {".metadata": b"", "__0_0.distcp": b""}, LOST, None, "dcp_to_torch"),
    Row("repository in the cache", "", {"snapshots/abc/config.json": {}}, LOST, None, "snapshots"),
    Row(
        "index without its shards",
        "",
        CONFIG
        | {
            "model.safetensors.index.json": {"weight_map": {"wte.weight": "model-00001-of-00002.safetensors"}}
        },
        FormatError,
        "shard_missing",
        "incomplete download",
    ),
    Row(
        "Git LFS pointer",
        "",
        CONFIG | {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid 1"},
        FormatError,
        "magic",
        "git lfs pull",
    ),
    Row(
        "Git LFS pointer as .bin",
        "",
        CONFIG | {"pytorch_model.bin": b"version https://git-lfs.github.com/spec/v1"},
        FormatError,
        "magic",
        "git lfs pull",
    ),
    Row(
        "HTML page",
        "m.bin",
        {"m.bin": b"<!DOCTYPE html>" + bytes(99)},
        FormatError,
        "magic",
        "download went wrong",
    ),
    Row(
        "unfinished download",
        "m.incomplete",
        {"m.incomplete": b"abc"},
        FormatError,
        "magic",
        "download it again",
    ),
    Row("folder with an unfinished download", "", {"a.incomplete": b"abc"}, LOST, None, "download it again"),
    Row(
        "cut download",
        "",
        CONFIG | {"model.safetensors": WEIGHTS["model.safetensors"][:5000]},
        FormatError,
        "bad_offsets",
        "incomplete download",
    ),
    Row(
        "something else of ours under the name of a training checkpoint",
        "step-1.checkpoint.safetensors",
        {"step-1.checkpoint.safetensors": around({"schema": "circuit"})},
        FormatError,
        "magic",
        "this is 'circuit' of attnsparse, expected 'training checkpoint'",
    ),
    Row(
        "our training checkpoint under another name",
        "a.safetensors",
        {"a.safetensors": around({"schema": "training checkpoint"})},
        FormatError,
        "magic",
        "the ending .checkpoint.safetensors",
    ),
    Row("config.json itself", "config.json", CONFIG, FormatError, "magic", "give the folder"),
    Row(
        "safetensors called .bin",
        "m.bin",
        {"m.bin": WEIGHTS["model.safetensors"]},
        FormatError,
        "magic",
        "rename it to .safetensors",
    ),
]
