"""What fuzzing begins from: small good files of every format, made on the spot, and places to put files."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import tiny_checkpoints as tiny
import tiny_transcoders
import torch_by_hand
from safetensors_by_hand import from_arrays

from attnsparse.io.bundle import Schema, bundle_pieces
from attnsparse.model.hf_config import hugging_face_config
from attnsparse.model.tokenizer import Tokenizer

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

_folder: dict[int, Path] = {}


def folder() -> Path:
    """An empty folder of this process in memory."""
    if os.getpid() not in _folder:
        memory = Path("/dev/shm")
        made = Path(tempfile.mkdtemp(prefix="attnsparse-", dir=memory if memory.is_dir() else None))
        _folder[os.getpid()] = made
        atexit.register(shutil.rmtree, made, ignore_errors=True)
    return _folder[os.getpid()]


def place(name: str, data: bytes) -> Path:
    """`data` under a file name in that folder."""
    path = folder() / name
    path.write_bytes(data)
    return path


def pack(files: dict[str, bytes]) -> bytes:
    """Several files in one run of bytes."""
    parts = [name.encode() + b"\0" + struct.pack("<I", len(data)) + data for name, data in files.items()]
    return b"".join(parts)


def unpack(data: bytes) -> dict[str, bytes]:
    """The files of `pack`; of other bytes whatever comes of it."""
    files, at = {}, 0
    while at < len(data) and len(files) < 40:
        end = data.find(b"\0", at)
        if end < 0:
            break
        name = data[at:end].decode("utf-8", "replace").replace("/", "_")[:80]
        size = int.from_bytes(data[end + 1 : end + 5], "little")
        at = end + 5 + size
        if name not in ("", ".", ".."):
            files[name] = data[end + 5 : at]
    return files


EXAMPLE = Schema("example", 1, "")
ARRAYS = {"a": np.ones((2, 3), np.float32), "b.c": np.zeros(4, np.float16), "m": np.ones((2, 2), bool)}


def safetensors_seeds() -> list[bytes]:
    more = {"s": np.array(1.5), "e": np.zeros((0, 3), np.float32), "é": np.arange(6, dtype=np.float16)}
    named = json.loads(from_arrays(ARRAYS)[8:].partition(b"}}")[0] + b"}}") | {"__metadata__": {"a": "b"}}
    text = json.dumps(named).encode()
    with_metadata = len(text).to_bytes(8, "little") + text + bytes(24 + 8 + 4)
    return [from_arrays(ARRAYS), from_arrays(more), from_arrays({}), with_metadata]


def torch_seeds() -> list[bytes]:
    h = torch_by_hand
    opcodes, storages = h.state_dict(ARRAYS)
    views = {"t": h.tensor("0", "FloatStorage", 6, 1, [1, 2, 2], [9, 1, 2]),
             "u": h.tensor("0", "FloatStorage", 6, 0, [0, 2], [2, 1])}  # fmt: skip
    beside = h.plain_dict({"model_args": h.plain_dict({"n_layer": b"K\x02", "bias": b"\x88"}),
                           "model": h.ordered_dict(views), "iter_num": b"K\x05"})  # fmt: skip
    files, _ = tiny_transcoders.pt()
    return [h.archive(h.finished(opcodes), storages), h.torch_file({"s": np.array(2.0)}),
            h.archive(h.finished(beside), {"0": bytes(24)}), next(iter(files.values()))]  # fmt: skip


def config_seeds() -> list[bytes]:
    nano = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6, "bias": False, "vocab_size": 11}
    lens = {"d_model": 8, "n_layers": 2, "n_heads": 2, "d_head": 4, "act_fn": "gelu", "eps": 1e-5,
            "n_ctx": 6, "use_sparse_attn": True, "attn_scale": -1.0, "d_vocab": 11,
            "normalization_type": "LN"}  # fmt: skip
    ours = hugging_face_config(tiny.TINY, None)
    return [json.dumps(values).encode() for values in (ours, nano, lens, tiny.plain_config())]


def tokenizer_seeds() -> list[bytes]:
    words = json.loads(Tokenizer.from_words(["a", " b", "c", " "], bos="c").to_json())
    signs = {sign: index for index, sign in enumerate("abcdefgh")} | {"ab": 8}
    bpe = {"type": "BPE", "vocab": signs, "merges": [["a", "b"]], "dropout": None, "unk_token": None,
           "byte_fallback": False}  # fmt: skip
    piece = {"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##", "vocab": signs,
             "max_input_chars_per_word": 100}  # fmt: skip
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["b", -1.0]], "byte_fallback": True}
    parts = {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
             "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                         "use_regex": True}, "added_tokens": [],
             "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
             "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
             "padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
                         "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}}  # fmt: skip
    made = [words, *(words | parts | {"model": model} for model in (bpe, piece, unigram))]
    fixed = {"pre_tokenizer": {"type": "FixedLength", "length": 2}, "decoder": {"type": "Fuse"}}
    made.append(words | {"model": bpe, "added_tokens": []} | fixed)
    vocabulary = b"v" + json.dumps(signs | {"<|endoftext|>": 9}).encode() + b"\0#version: 0.2\na b\n"
    return [*(json.dumps(values).encode() for values in made), vocabulary]


def bundle_seeds() -> list[bytes]:
    arrays = {"a": np.arange(9, dtype=np.float32), "e": np.zeros((0, 2)), "n": np.array(-4, np.int64)}
    fields = {"step": 3, "name": "ä", "rates": [0.1, None]}
    return [b"".join(bundle_pieces(EXAMPLE, *each)) for each in ((fields, arrays), ({}, {}))]


def npz_seeds() -> list[bytes]:
    fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    return [tiny_transcoders.npz(a=np.ones((2, 3), np.float32), b=np.arange(4.0), n=np.arange(3), f=fortran),
            tiny_transcoders.npz(s=np.array(1.0), e=np.zeros((0, 3), np.float16))]  # fmt: skip


def yaml_seeds() -> list[bytes]:
    plain = "model_name: tiny\nlayers:\n  - 1\n  - {a: 0x10, b: 1_000, c: 1e5}\nnone: ~\n'q': \"\\u2603\"\n"
    dates = "d: 2020-01-01\nt: 2001-12-14t21:59:43.10-05:00\nf: |\n  text\n  more\ng: >-\n  folded\n"
    return [tiny_transcoders.config().encode(), plain.encode(), dates.encode()]


def circuit_seeds() -> list[bytes]:
    return [(FIXTURES / "circuit-v1.circuit.safetensors").read_bytes()]


def graph_seeds() -> list[bytes]:
    return [(FIXTURES / "v1/graph/g.graph.safetensors").read_bytes()]


def training_seeds() -> list[bytes]:
    return [(FIXTURES / "v1/training/a.checkpoint.safetensors").read_bytes()]


def _bytes(content: object) -> bytes:
    if isinstance(content, bytes):
        return content
    return (content if isinstance(content, str) else json.dumps(content)).encode()


def model_seeds() -> list[bytes]:
    arrays, config = tiny.weights(), json.dumps(tiny.plain_config()).encode()
    nano = json.dumps({"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6, "vocab_size": 11,
                       "n_inner": 12}).encode()  # fmt: skip
    lens = tiny.transformer_lens(arrays)
    index = json.dumps({"weight_map": dict.fromkeys(arrays, "model-1.safetensors")}).encode()
    words = Tokenizer.from_words(list("abcdefghijk")).to_json().encode()
    return [
        pack({"config.json": config, "model.safetensors": from_arrays(arrays), "tokenizer.json": words}),
        pack({"config.json": nano, "ckpt.pt": torch_by_hand.torch_file(tiny.nanogpt(arrays))}),
        pack({"config.json": json.dumps({"n_ctx": 6, "act_fn": "gelu"}).encode(), "final.pth":
              torch_by_hand.torch_file(lens)}),
        pack({"config.json": config, "model.safetensors.index.json": index, "model-1.safetensors":
              from_arrays(arrays)}),
    ]  # fmt: skip


def transcoder_seeds() -> list[bytes]:
    t = tiny_transcoders
    sets = (
        t.circuit_tracer,
        t.circuit_tracer_v01,
        t.cross_layer,
        t.saelens,
        t.pt,
        t.clt_forge,
        t.gemma_scope,
    )
    made = []
    for write in sets:
        files, _ = write()
        packed = {name.replace("/", "|"): _bytes(content) for name, content in files.items()}
        if all(name.count("|") <= 1 for name in packed):
            made.append(pack(packed))
    return made
