"""Thousands of damaged files of every format: each is read, or refused with one of the named errors, soon."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import tiny_checkpoints as tiny
import torch_by_hand
from safetensors_by_hand import from_arrays

from attnsparse.errors import ConfigError, FormatError
from attnsparse.io.safetensors_file import SafetensorsFile
from attnsparse.io.strict_json import parse_object
from attnsparse.io.tensor_source import FLOAT_TYPES
from attnsparse.io.torch_file import TorchFile
from attnsparse.model.config import Config
from attnsparse.model.hf_config import read_config
from attnsparse.model.tokenizer import Tokenizer

ARRAYS = {"a": np.ones((2, 3), np.float32), "b.c": np.zeros(4, np.float16), "m": np.ones((2, 2), bool)}
OPCODES, STORAGES = torch_by_hand.state_dict(ARRAYS)
PICKLE = torch_by_hand.finished(OPCODES)
CONFIG = json.dumps(tiny.plain_config(attnsparse_gated=True, attnsparse_gate_bias=0.5)).encode()
VOCABULARY = json.dumps({sign: index for index, sign in enumerate("abcdefgh")} | {"ab": 8}).encode()
WORDS = Tokenizer.from_words(["a", " b", "c"], bos="c").to_json().encode()
SIDECARS = {
    "tokenizer_config.json": {
        "bos_token": "c",
        "added_tokens_decoder": {"3": {"content": "d", "lstrip": True}},
    },
    "special_tokens_map.json": {
        "eos_token": {"content": "a", "special": True},
        "extra_special_tokens": ["c"],
    },
    "added_tokens.json": {"d": 3, "e": 4},
    "config.json": {"bos_token_id": 2, "model_type": "gpt2"},
}
TOKENS = [b"", b"0", b"-1", b"1e999", b"18446744073709551616", b"null", b"true", b'""', b"[]", b"{}", b"[",
    b"}", b",",
          b'"F32"', b'"BF16"', b"\\ud800", b"\xff", b"\x00", b"(", b")", b"t", b"R", b"b", b"Q", b"}", b"]",
          b"u", b"s",
          b"a", b"e", b"0", b"2", b"N", b"h\x00", b"q\x00", b"\x85", b"\x86", b"\x87", b"\x93", b".",
          b"\x8a\x08" + b"\xff" * 8,
          b"J\xff\xff\xff\xff", b"cos\nsystem\n", b"X\x02\x00\x00\x00hi", b"PK\x03\x04"]  # fmt: skip


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` after one to three changes: bytes, a bit, a token put in, a part taken out or repeated."""
    result = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(result) + 1))
        end = min(len(result), at + int(rng.integers(1, 9)))
        kind = rng.integers(0, 7)
        if kind == 0:
            result[at:end] = rng.bytes(end - at)
        elif kind == 1 and at < len(result):
            result[at] ^= 1 << int(rng.integers(0, 8))
        elif kind in (2, 3):
            result[at : end if kind == 3 else at] = TOKENS[rng.integers(0, len(TOKENS))]
        elif kind == 4:
            del result[at:end]
        elif kind == 5:
            result[at:at] = result[at:end] * int(rng.integers(1, 4))
        elif rng.integers(0, 8) == 0:
            del result[at:]
    return bytes(result)


def read_all(source) -> None:
    """Read every tensor that could be a weight."""
    with source:
        for name, info in source.tensors.items():
            if info.dtype in FLOAT_TYPES:
                source.read(name)


def read_safetensors(folder, rng) -> None:
    data = from_arrays(ARRAYS)
    length = int.from_bytes(data[:8], "little")
    header = mutated(data[8 : 8 + length], rng)
    whole = len(header).to_bytes(8, "little") + header + data[8 + length :]
    (folder / "x.safetensors").write_bytes(whole if rng.integers(0, 4) else mutated(data, rng))
    read_all(SafetensorsFile(folder / "x.safetensors"))


def read_torch(folder, rng) -> None:
    if rng.integers(0, 3):
        data = torch_by_hand.archive(mutated(PICKLE, rng), STORAGES)
    else:
        data = mutated(torch_by_hand.archive(PICKLE, STORAGES), rng)
    (folder / "x.pth").write_bytes(data)
    read_all(TorchFile(folder / "x.pth"))


def read_configs(folder, rng) -> None:
    fields = read_config(parse_object(mutated(CONFIG, rng), folder / "config.json"), folder / "config.json")
    Config(
        **(
            {"n_layer": 1, "n_head": 1, "d_model": 1, "d_head": 1, "d_mlp": 1, "n_ctx": 1, "n_vocab": 1}
            | fields
        )
    )


def read_vocabulary(folder, rng) -> None:
    (folder / "vocab.json").write_bytes(mutated(VOCABULARY, rng))
    (folder / "merges.txt").write_bytes(mutated(b"#version: 0.2\na b\n", rng))
    Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt")


def read_tokenizer(folder, rng) -> None:
    (folder / "tokenizer.json").write_bytes(mutated(WORDS, rng))
    Tokenizer.load(folder / "tokenizer.json")


def read_sidecars(folder, rng) -> None:
    (folder / "tokenizer.json").write_bytes(WORDS)
    for name, values in SIDECARS.items():
        data = json.dumps(values).encode()
        (folder / name).write_bytes(data if rng.integers(0, 3) else mutated(data, rng))
    Tokenizer.load(folder).to_files()


FORMATS = [read_safetensors, read_torch, read_configs, read_vocabulary, read_tokenizer, read_sidecars]


def run(read, folder, seed: int, count: int) -> None:
    """Read `count` mutated files; only named errors may come out, and both outcomes must occur."""
    rng = np.random.default_rng(seed)
    outcomes = {"read": 0, "refused": 0}
    messages = []
    for index in range(count):
        begin = time.process_time()
        try:
            read(folder, rng)
            outcomes["read"] += 1
        except (FormatError, ConfigError) as error:
            outcomes["refused"] += 1
            messages.append(str(error))
        assert time.process_time() - begin < 2, index
    assert all(len(message) <= 300 and message.isprintable() for message in messages)
    print(f"{read.__name__}: {outcomes}")
    assert min(outcomes.values()) > 0


@pytest.mark.parametrize("read", FORMATS)
def test_mutated_files(tmp_path, read):
    run(read, tmp_path, 0, 400)


@pytest.mark.slow
@pytest.mark.parametrize("read", FORMATS)
def test_many_mutated_files(tmp_path, read):
    run(read, tmp_path, 1, 100_000)
