"""What reading costs: memory and time of the worst files that fit the limits, and of checks (R7)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reliability
import torch_by_hand as h
from bundle_by_hand import around, forged
from reliability import report
from safetensors_by_hand import entry, file_bytes

from attnsparse.io.safetensors_file import SafetensorsFile
from attnsparse.io.torch_file import TorchFile

MIB = 2**20


def header_of(n: int) -> bytes:
    """A safetensors header of `n` tensors of one number each."""
    row = '"layer.{}.weight":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}'
    return ("{" + ",".join(row.format(i, 4 * i, 4 * i + 4) for i in range(n)) + "}").encode()


def tensors(n: int) -> bytes:
    return file_bytes(header_of(n), bytes(4 * n))


def bundle_of_tensors(n: int) -> bytes:
    """A bundle with `n` tensors of no numbers."""
    empty = np.zeros(0, np.float32)
    return forged("circuit", {}, {f"layer.{i}.weight": empty for i in range(n)})


def numbers(n: int) -> bytes:
    return file_bytes(b'{"a":[' + b"0," * (n - 1) + b"0]}")


def objects(n: int) -> bytes:
    return file_bytes(b'{"a":[' + b"{}," * (n - 1) + b"{}]}")


def nested(n: int) -> bytes:
    return file_bytes(b'{"a":' + b"[" * n + b"]" * n + b"}")


def escapes(n: int) -> bytes:
    return file_bytes(b'{"__metadata__":{"a":"' + b"\\u0041" * n + b'"}}')


def strings(n: int) -> bytes:
    return file_bytes(b'{"a":[' + b",".join([b'"' + b"\xe2\x98\x83" * 20 + b'"'] * n) + b"]}")


def pickled(opcodes: Callable[[int], bytes]) -> Callable[[int], bytes]:
    return lambda n: h.archive(h.finished(opcodes(n)), {})


def zip_entries(n: int) -> bytes:
    return h.archive(h.finished(b"N"), dict.fromkeys(map(str, range(n)), b""))


def torch_tensors(n: int) -> bytes:
    good = h.tensor("0", "FloatStorage", 1, 0, [1], [1])
    return h.archive(h.finished(h.ordered_dict({f"t{i}": good for i in range(n)})), {"0": bytes(4)})


def vocabulary(n: int) -> bytes:
    values = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(n)}, "unk_token": "w0"},
    }
    return json.dumps(values).encode()


def merges(n: int) -> bytes:
    return b"#version\n" + b"a b\n" * n


# name: (ending, made from a number, that number for the largest file that the limits let through)
WORST = {
    "tensors": ("safetensors", tensors, 100_000),
    "bundle: tensors": ("circuit.safetensors", bundle_of_tensors, 80_000),
    "bundle: values": ("circuit.safetensors", lambda n: around('{"a":[' + "0," * n + "0]}"), 1_900_000),
    "bundle: escapes": ("circuit.safetensors", lambda n: around('{"a":"' + "\\u0041" * n + '"}'), 1_900_000),
    "numbers in a list": ("safetensors", numbers, 1_999_000),
    "empty objects": ("safetensors", objects, 990_000),
    "nested": ("safetensors", nested, 1_000_000),
    "escapes": ("safetensors", escapes, 1_000_000),
    "strings": ("safetensors", strings, 250_000),
    "pickle: lists": ("pth", pickled(lambda n: b"]" * n + b"a" * (n - 1)), 900_000),
    "pickle: memo": ("pth", pickled(lambda n: b"N" + b"\x94" * n), 900_000),
    "pickle: tuples": ("pth", pickled(lambda n: b"N" + b"\x85" * n), 3_900_000),
    "pickle: pairs": ("pth", pickled(lambda n: b"}(" + b"".join(h.number(i) + b"N" for i in range(n)) + b"u"),
                      450_000),
    "torch: tensors": ("pth", torch_tensors, 20_000),
    "zip entries": ("pth", zip_entries, 60_000),
    "vocabulary": ("json", vocabulary, 200_000),
    "merges": ("txt", merges, 999_000),
    "yaml": ("yaml", lambda n: b"a: [" + b"0," * n + b"]", 32_000),
    "yaml: keys": ("yaml", lambda n: b"".join(b"k%d: 0\n" % i for i in range(n)), 6_000),
    "config": ("config", lambda n: b'{"a":[' + b"0," * n + b"0]}", 500_000),
}  # fmt: skip
# slower than a second and 100 MB/s at their limits: steps of a pickle, YAML and lines of merges are read in
# Python, and max_pickle_opcodes, max_yaml_bytes and max_merges bound them
SECONDS = {"pickle: tuples": 3, "pickle: lists": 2, "torch: tensors": 2, "yaml": 2, "yaml: keys": 2,
           "merges": 2, "tensors": 2, "zip entries": 2}  # fmt: skip
# more than twice the file and 64 MiB: Python objects for a few bytes each, which the same limits bound
EXTRA = {"pickle: tuples": 200 * MIB, "merges": 200 * MIB, "vocabulary": 120 * MIB, "tensors": 100 * MIB,
         "bundle: tensors": 100 * MIB,
         "pickle: lists": 60 * MIB, "pickle: memo": 60 * MIB, "pickle: pairs": 40 * MIB,
         "empty objects": 50 * MIB}  # fmt: skip


def cost(folder: Path, name: str, share: float) -> dict:
    ending, make, largest = WORST[name]
    path = folder / f"x.{ending}"
    (folder / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    data = make(max(1, int(largest * share)))
    path.write_bytes(data)
    return reliability.child("costs_child.py", str(path), timeout=300) | {"n": len(data)}


def check_cost(name: str, found: dict) -> None:
    slow = SECONDS.get(name, 1 + found["n"] / 100e6)
    large = 2 * found["n"] + 64 * MIB + EXTRA.get(name, 0)
    assert found["seconds"] < 3 * slow, (name, found)  # the machine may be busy
    assert found["bytes"] < large, (name, found)


@pytest.mark.parametrize("name", ["pickle: lists", "nested"])
def test_a_tenth_of_the_worst_is_cheap(tmp_path, name):
    check_cost(name, cost(tmp_path, name, 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("name", WORST)
def test_the_worst_file_within_the_limits(tmp_path, name):
    """At half the size and at the whole: bounded, and not worse than proportional."""
    half, whole = cost(tmp_path, name, 0.5), cost(tmp_path, name, 1)
    ratio = whole["seconds"] / max(half["seconds"], 0.02)
    text = f"{name}: {whole['n'] / 1e6:.1f} MB ({whole['code']}) in {whole['seconds']:.2f} s"
    report("R7", f"{text}, +{whole['bytes'] / MIB:.0f} MiB; twice the file {ratio:.2f} times the time")
    check_cost(name, whole)
    assert ratio < 3.5


@pytest.mark.slow
def test_checks_are_a_small_part_of_a_load(tmp_path):
    """Opening (all checks but checksums) against reading 500 MB; torch's checksums beside it."""
    n, sides = 100, (1250, 1000)
    size = 4 * 1250 * 1000
    path = tmp_path / "x.safetensors"
    header = file_bytes({f"t{i}": entry(size * i, size * (i + 1), sides) for i in range(n)})
    path.write_bytes(header)
    os.truncate(path, len(header) + n * size)
    out = np.empty(sides, np.float32)

    def seconds(work: Callable[[], None]) -> float:
        times = []
        for _ in range(5):
            begin = time.process_time()
            work()
            times.append(time.process_time() - begin)
        return min(times)

    def load() -> None:
        with SafetensorsFile(path) as file:
            for name in file.tensors:
                file.read_into(name, out)

    def plain() -> None:
        with open(path, "rb", buffering=0) as file:
            file.seek(len(header))
            for _ in range(n):
                file.readinto(memoryview(out).cast("B"))

    load()
    checks, whole, bare = seconds(lambda: SafetensorsFile(path).close()), seconds(load), seconds(plain)
    share = f"opening with all checks {1000 * checks:.1f} ms of {1000 * whole:.0f} ms"
    report("R7", f"500 MB of safetensors: {share} ({checks / whole:.2%}); bare reading {1000 * bare:.0f} ms")
    assert checks < 0.02 * whole
    arrays = {f"t{i}": np.zeros((5000, 1000), np.float32) for i in range(5)}
    (tmp_path / "x.pth").write_bytes(h.torch_file(arrays))

    def load_torch() -> None:
        with TorchFile(tmp_path / "x.pth") as file:
            for name in file.tensors:
                file.read(name)

    checked = seconds(load_torch)
    report("R7", f"100 MB of a torch file with its checksums (CRC-32): {1000 * checked:.0f} ms")
