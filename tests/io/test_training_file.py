"""The checkpoint file: every damaged bit is found, a save is whole or has not happened, messages help."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from places import FIXTURES

from attnsparse.errors import CheckpointError, FormatError, LimitError
from attnsparse.io import atomic as saving
from attnsparse.io import training_file
from attnsparse.io.limits import Limits

GOLDEN = FIXTURES / "training-v1.ckpt"
META = {"step": 3, "multiplier": 0.1, "ema": None, "name": "ä"}


def tensors(n: int = 70) -> dict[str, np.ndarray]:
    return {
        "a": np.arange(n, dtype=np.float32).reshape(-1, 7),
        "empty": np.zeros((0, 3), np.float64),
        "scalar": np.array(-4, np.int64),
    }


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "step-000003.ckpt"
    training_file.save(path, META, tensors())
    return path


def assemble(header: object, body: bytes = b"", *, version: int = 1, total: int | None = None) -> bytes:
    """A file with a valid first checksum around any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    padding = bytes(-(64 + len(text)) % 64)
    length = 64 + len(text) + len(padding) + len(body) if total is None else total
    fields = struct.pack("<8sIIQQ", b"ASPTRAIN", version, 0, length, len(text))
    return fields + hashlib.sha256(fields + text).digest() + text + padding + body


def entry(**changes) -> dict:
    return {"name": "x", "dtype": "float32", "shape": [2], "sha256": "0" * 64, **changes}


def code(data: bytes, **options) -> str:
    with pytest.raises(FormatError) as caught:
        training_file.parse(data, "run/step-000400.ckpt", **options)
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)
    assert type(pickle.loads(pickle.dumps(caught.value))) is type(caught.value)
    return caught.value.code


def test_contents_come_back(path):
    found = training_file.load(path)
    assert found.meta == META
    assert list(found.tensors) == list(tensors())
    for name, array in tensors().items():
        assert found.tensors[name].dtype == array.dtype
        assert found.tensors[name].shape == array.shape
        assert found.tensors[name].tobytes() == array.tobytes()
        assert not found.tensors[name].flags.writeable


def test_same_contents_same_bytes(path, tmp_path):
    training_file.save(tmp_path / "again.ckpt", dict(reversed(META.items())), tensors())
    assert (tmp_path / "again.ckpt").read_bytes() == path.read_bytes()


def test_layout(path):
    data = path.read_bytes()
    magic, version, zero, total, header = struct.unpack("<8sIIQQ", data[:32])
    assert (magic, version, zero, total) == (b"ASPTRAIN", 1, 0, len(data))
    assert len(data) % 64 == 0
    assert sorted(json.loads(data[64 : 64 + header])) == ["meta", "tensors"]
    assert data.find(tensors()["a"].tobytes()) % 64 == 0


def test_big_endian_and_strided_arrays_are_stored_alike(path, tmp_path):
    given = tensors()
    given["a"] = np.repeat(given["a"], 2, axis=1)[:, ::2].astype(">f4")
    training_file.save(tmp_path / "b.ckpt", META, given)
    assert (tmp_path / "b.ckpt").read_bytes() == path.read_bytes()


def test_every_single_bit_flip_is_found(tmp_path):
    """R3: all bits of a file of 16 KiB."""
    path = tmp_path / "a.ckpt"
    training_file.save(path, META, tensors(3990))
    data = bytearray(path.read_bytes())
    assert len(data) >= 16 * 1024
    missed = []
    for bit in range(8 * len(data)):
        data[bit >> 3] ^= 1 << (bit & 7)
        try:
            training_file.parse(data)
            missed.append(bit)
        except FormatError:
            pass
        data[bit >> 3] ^= 1 << (bit & 7)
    training_file.parse(data)
    assert missed == []


def test_every_prefix_is_refused(path):
    """R2."""
    data = path.read_bytes()
    for length in range(len(data)):
        assert code(data[:length]) in ("too_short", "truncated")
    assert code(data + b"\0") == "trailing_data"


def test_named_damage(path):
    data = path.read_bytes()
    assert code(b"") == "too_short"
    assert code(b"\x80" + data[1:]) == "magic"
    assert code(data[:40] + b"\0\0" + data[42:]) == "checksum"
    assert code(assemble({}, version=2)) == "version"
    assert code(assemble({}, version=0)) == "version"
    assert code(assemble(b"{")) == "json_syntax"
    assert code(assemble(b"[]")) == "json_type"
    assert code(assemble(b'{"meta":{"x":' + b"[" * 500 + b"]" * 500 + b'},"tensors":[]}')) == "json_depth"
    assert code(assemble(b'{"meta":{},"meta":{},"tensors":[]}')) == "duplicate_name"
    assert code(assemble(b'{"meta":{"x":NaN},"tensors":[]}')) == "json_syntax"
    assert code(assemble({"meta": {}})) == "header_value"
    assert code(assemble({"meta": {}, "tensors": [], "more": 1})) == "header_value"
    assert code(assemble({"meta": {}, "tensors": [3]})) == "header_value"
    for change in (
        {"shape": [-1]}, {"shape": [True]}, {"shape": [1.0]}, {"shape": 2}, {"shape": [1] * 9}, {"name": ""},
        {"name": 3}, {"name": "x" * 2000}, {"sha256": 1},
    ):  # fmt: skip
        assert code(assemble({"meta": {}, "tensors": [entry(**change)]})) == "header_value"
    assert code(assemble({"meta": {}, "tensors": [entry(dtype="object")]})) == "dtype"
    assert code(assemble({"meta": {}, "tensors": [entry(dtype=["float32"])]})) == "dtype"
    assert code(assemble({"meta": {}, "tensors": [entry(), entry()]}, bytes(128))) == "duplicate_name"
    assert code(assemble({"meta": {}, "tensors": [entry()]})) == "size_mismatch"
    assert code(assemble({"meta": {}, "tensors": [entry(shape=[2**62, 2**62, 16])]})) == "size_overflow"
    assert code(assemble({"meta": {}, "tensors": [entry(shape=[0, 2**63])]})) == "size_overflow"
    assert code(assemble({"meta": {}, "tensors": [entry(shape=[10**300] * 8)]})) == "size_overflow"
    assert code(assemble({"meta": {}, "tensors": [entry()]}, bytes(64))) == "checksum"
    right = hashlib.sha256(bytes(8)).hexdigest()
    assert code(assemble({"meta": {}, "tensors": [entry(sha256=right)]}, bytes(63) + b"\1")) == "padding"
    training_file.parse(assemble({"meta": {}, "tensors": [entry(sha256=right)]}, bytes(64)))


def test_limits_are_named():
    with pytest.raises(LimitError, match="max_header_bytes") as caught:
        training_file.parse(assemble({"meta": {}, "tensors": []}), limits=Limits(max_header_bytes=10))
    assert caught.value.code == "header_limit"
    assert code(assemble({"meta": {}, "tensors": []}), limits=Limits(max_json_keys=1)) == "json_limit"
    two = assemble({"meta": {}, "tensors": [entry(), entry(name="y")]})
    with pytest.raises(CheckpointError, match="max_tensors=1"):
        training_file.parse(two, limits=Limits(max_tensors=1))


def test_message_names_the_tensor_and_an_intact_sibling(path):
    damaged = bytearray(path.read_bytes())
    damaged[damaged.find(tensors()["a"].tobytes()) + 5] ^= 1
    other = path.with_name("step-000004.ckpt")
    other.write_bytes(damaged)
    with pytest.raises(CheckpointError) as caught:
        training_file.load(other)
    text = "step-000004.ckpt: tensor 'a' fails its checksum; step-000003.ckpt in the same folder is intact"
    assert str(caught.value) == text
    assert (caught.value.code, caught.value.field, caught.value.path) == ("checksum", "a", str(other))
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError) as caught:
        training_file.load(other)
    assert "intact" not in str(caught.value)


def test_newer_version_says_update(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(assemble({}, version=7))
    with pytest.raises(CheckpointError, match="newer attnsparse: checkpoint version 7"):
        training_file.load(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        training_file.load(tmp_path / "none.ckpt")
    with pytest.raises(IsADirectoryError):
        training_file.load(tmp_path)
    os.mkfifo(tmp_path / "pipe.ckpt")
    with pytest.raises(CheckpointError) as caught:
        training_file.load(tmp_path / "pipe.ckpt")
    assert caught.value.code == "not_a_file"


@pytest.mark.parametrize(
    ("meta", "arrays"),
    [
        ({"x": float("nan")}, {}),
        ({}, {"x": np.zeros(2, np.float16)}),
        ({}, {"x": np.array(["a"])}),
        ({}, {"": np.zeros(2)}),
        ({}, {"x" * 2000: np.zeros(2)}),
        ({}, {"x": np.zeros((1,) * 9)}),
    ],
)
def test_what_the_format_does_not_take_is_not_written(tmp_path, meta, arrays):
    with pytest.raises(ValueError):
        training_file.save(tmp_path / "a.ckpt", meta, arrays)
    assert list(tmp_path.iterdir()) == []


FAULTS = [
    ("open", 1),
    ("open", 2),
    ("open", 3),
    ("write", 1),
    ("write", 4),
    ("fsync", 1),
    ("fsync", 2),
    ("replace", 1),
]


@pytest.mark.parametrize(("function", "nth"), FAULTS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_leaves_the_old_file(path, monkeypatch, function, nth, number):
    """R21, with the fault put in between Python and the system."""
    before, calls, real = path.read_bytes(), [0], getattr(os, function)

    def failing(*args, **kwargs):
        calls[0] += 1
        if calls[0] == nth:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(saving.os, function, failing)
    with pytest.raises(OSError) as caught:
        training_file.save(path, {"step": 4}, tensors())
    monkeypatch.undo()
    assert caught.value.errno == number
    assert caught.value.filename == str(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    renamed = (function, nth) in (("open", 3), ("fsync", 2))  # only the folder's own entry was not confirmed
    assert ("untouched" in str(caught.value)) is not renamed
    assert (path.read_bytes() == before) is not renamed
    training_file.load(path)


def test_short_writes_are_continued(path, monkeypatch, tmp_path):
    real = os.write
    monkeypatch.setattr(saving.os, "write", lambda fd, data: real(fd, memoryview(data)[:7]))
    training_file.save(tmp_path / "b.ckpt", META, tensors())
    monkeypatch.undo()
    assert (tmp_path / "b.ckpt").read_bytes() == path.read_bytes()


def test_ctrl_c_in_a_save_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(saving.os, "fsync", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        training_file.save(path, {"step": 4}, tensors())
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


def _interrupt(*args):
    raise KeyboardInterrupt


def test_stale_temporary_files_are_removed(path):
    stale = path.with_name(f".{path.name}.123{saving.TEMPORARY}")
    stale.write_bytes(b"half")
    assert saving.remove_stale(path.parent) == [stale]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs the source tree")
def test_released_version_1_is_read():
    """R23: this file was written by version 0.1.0 and must load for ever."""
    found = training_file.load(GOLDEN)
    assert found.meta == META
    assert found.tensors["a"].tobytes() == tensors()["a"].tobytes()
