"""The container of circuits, graphs and checkpoints: every damaged bit is found, a save is whole or has not
happened, any tool can read it, messages help."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import own_formats
import pytest
import safetensors.numpy
import tiny_circuit
import tiny_graph
import tiny_training
from bundle_by_hand import around, content, contents, forged, resealed, sealed, unsealed
from places import FIXTURES
from reliability import report
from tiny_coders import made

import attnsparse as asp
from attnsparse.circuits import circuit_file
from attnsparse.errors import CheckpointError, FormatError, LimitError
from attnsparse.graphs import graph_file
from attnsparse.io import atomic, bundle, bundle_fields
from attnsparse.io.bundle import Bundle, Schema, write_bundle
from attnsparse.io.limits import Limits
from attnsparse.training import checkpoint
from attnsparse.training.trainer import Trainer
from attnsparse.transcoders import checkpoint as coder_checkpoint

GOLDEN = FIXTURES / "bundle-v1.safetensors"
SCHEMA = Schema("example", 1, ".example.safetensors")
FIELDS = {"step": 3, "multiplier": 0.1, "ema": None, "name": "ä"}


def tensors(n: int = 70) -> dict[str, np.ndarray]:
    return {
        "scalar": np.array(-4, np.int64),
        "a": np.arange(n, dtype=np.float32).reshape(-1, 7),
        "empty": np.zeros((0, 3), np.float64),
        "few": np.array([3, 1], np.int32),
    }


@pytest.fixture
def path(tmp_path) -> Path:
    write_bundle(tmp_path / "x", SCHEMA, FIELDS, tensors())
    return tmp_path / "x.example.safetensors"


def read(path: Path, **options: Any) -> Any:
    with Bundle(path, SCHEMA, **options) as found:
        return found.fields, found.read_all()


def code(folder: Path, data: bytes, **options: Any) -> str:
    """The error about these bytes, whose message is one line and whose attributes are pickled."""
    (folder / "y.safetensors").write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read(folder / "y.safetensors", **options)
    error = caught.value
    assert len(str(error)) <= 300
    assert str(error).isprintable()
    assert str(error).startswith("y.safetensors: ")
    assert pickle.loads(pickle.dumps(error)).code == error.code
    return error.code


# ---- there and back


def test_contents_come_back(path):
    fields, arrays = read(path)
    assert fields == FIELDS
    assert set(arrays) == set(tensors())
    for name, array in tensors().items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.tobytes()
        assert not arrays[name].flags.writeable


def test_any_tool_can_read_it(path):
    with safetensors.safe_open(path, "np") as file:
        text = json.loads(file.metadata()["attnsparse"])
    assert sorted(text) == ["fields", "schema", "tensors", "version"]
    assert (text["schema"], text["version"], text["fields"]) == ("example", 1, FIELDS)
    for name, array in safetensors.numpy.load_file(path).items():
        assert array.tobytes() == tensors()[name].tobytes()


def test_same_contents_same_bytes(path, tmp_path):
    write_bundle(tmp_path / "y", SCHEMA, *read(path))
    assert (tmp_path / "y.example.safetensors").read_bytes() == path.read_bytes()
    write_bundle(tmp_path / "y", SCHEMA, FIELDS, dict(reversed(tensors().items())))
    assert (tmp_path / "y.example.safetensors").read_bytes() == path.read_bytes()


def test_every_tensor_lies_at_a_multiple_of_its_element(path):
    header, _ = unsealed(path.read_bytes())
    assert (8 + len(header)) % 8 == 0
    for name, entry in json.loads(header).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % (int(entry["dtype"][1:]) // 8) == 0


def test_big_endian_and_strided_arrays_are_stored_alike(path, tmp_path):
    given = tensors()
    given["a"] = np.repeat(given["a"], 2, axis=1)[:, ::2].astype(">f4")
    write_bundle(tmp_path / "y", SCHEMA, FIELDS, given)
    assert (tmp_path / "y.example.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["g", "gpt2.v1", "a.json", "b.circuit"])
def test_names_of_files(tmp_path, name):
    write_bundle(tmp_path / name, SCHEMA, {}, {})
    assert os.listdir(tmp_path) == [f"{name}.example.safetensors"]
    assert read(tmp_path / name) == read(tmp_path / f"{name}.example.safetensors") == ({}, {})


def test_the_file_of_the_first_version_is_read():
    """R23: files of version 1 load for ever."""
    found = contents(GOLDEN)
    assert found.fields == FIELDS
    assert found.tensors["a"].tobytes() == tensors()["a"].tobytes()


def test_a_text_longer_than_one_string_may_be(tmp_path):
    fields = {"labels": ["x" * 1000] * 2000}
    write_bundle(tmp_path / "y", SCHEMA, fields, {})
    assert read(tmp_path / "y")[0] == fields


# ---- all that is saved in it


class Kept(NamedTuple):
    """One kind of file: `save` writes one into a folder and gives its path, `load` reads it."""

    save: Callable[[Path], Path]
    load: Callable[[Path], Any]
    error: type[FormatError]


def saved(make: Callable[[], Any]) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        make().save(folder / "x.safetensors")
        return folder / "x.safetensors"

    return save


@functools.cache
def trained() -> Any:
    trainer = made(3)
    trainer.train()
    return trainer


KEPT = {
    "circuit": Kept(saved(tiny_circuit.example), asp.load_circuit, FormatError),
    "graph": Kept(saved(tiny_graph.example), asp.load_graph, FormatError),
    "training": Kept(
        saved(lambda: own_formats.trainer(0)),
        lambda path: Trainer.resume(path, tiny_training.data(), threads=1),
        CheckpointError,
    ),
    "transcoder training": Kept(saved(trained), lambda path: trained().load(path), CheckpointError),
}
each_kind = pytest.mark.parametrize("kind", KEPT)


def refused(kind: str, path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        KEPT[kind].load(path)
    error = caught.value
    assert len(str(error)) <= 300
    assert str(error).isprintable()
    assert str(error).startswith("x.safetensors: ")
    assert isinstance(error, KEPT[kind].error)
    return error.code


@each_kind
def test_the_same_object_gives_the_same_bytes(tmp_path, kind):
    (tmp_path / "again").mkdir()
    first, again = (KEPT[kind].save(folder) for folder in (tmp_path, tmp_path / "again"))
    assert first.read_bytes() == again.read_bytes()
    loaded = KEPT[kind].load(first)
    if loaded is not None:  # a trainer of transcoders loads into itself
        loaded.save(again)
        assert first.read_bytes() == again.read_bytes()
    assert safetensors.numpy.load_file(first)


@each_kind
def test_every_prefix_is_refused(tmp_path, kind):
    """R2: every prefix of a header, some of the tensors."""
    path = KEPT[kind].save(tmp_path)
    data = path.read_bytes()
    begin = len(data) - len(unsealed(data)[1])
    codes = set()
    for length in [*range(len(data) - 1, begin, -11), *range(begin, -1, -7)]:
        os.truncate(path, length)
        codes.add(refused(kind, path))
    assert (
        {"too_short", "truncated", "bad_offsets"}
        <= codes
        <= {"too_short", "truncated", "bad_offsets", "magic"}
    )
    path.write_bytes(data + b"\0")
    assert refused(kind, path) == "trailing_data"


@each_kind
def test_bit_flips_are_found(tmp_path, kind):
    """R3: some bits of every kind of file; all of the container are below."""
    path = KEPT[kind].save(tmp_path)
    data = bytearray(path.read_bytes())
    for bit in range(0, 8 * len(data), 211):
        data[bit >> 3] ^= 1 << (bit & 7)
        path.write_bytes(data)
        refused(kind, path)
        data[bit >> 3] ^= 1 << (bit & 7)
    path.write_bytes(data)
    KEPT[kind].load(path)


@each_kind
def test_files_of_the_other_kinds_are_told_apart(tmp_path, kind):
    for other in KEPT.keys() - {kind}:
        path = KEPT[other].save(tmp_path)
        assert refused(kind, path) == "magic"
    with pytest.raises(FormatError, match="circuit, graph or training checkpoint of attnsparse") as caught:
        asp.load(path)
    assert caught.value.code == "magic"
    safetensors.numpy.save_file({"a": np.ones(3)}, path)
    assert refused(kind, path) == "magic"


@each_kind
def test_newer_versions_say_so(tmp_path, kind):
    path = KEPT[kind].save(tmp_path)
    metadata = json.loads(unsealed(path.read_bytes())[0])["__metadata__"]
    schema = json.loads(metadata["attnsparse"])["schema"]
    for version, wanted in ((2, "newer attnsparse: .* version 2, this one reads up to 1; update"),
                            (0, "integer from 1 on"), (True, "got true"), (None, "got null")):  # fmt: skip
        path.write_bytes(around({"schema": schema, "version": version, "more": 1}))
        with pytest.raises(KEPT[kind].error, match=wanted) as caught:
            KEPT[kind].load(path)
        assert caught.value.code == "version"


@pytest.mark.filterwarnings("ignore::UserWarning")  # of another build
@each_kind
def test_random_changes_with_right_checksums_never_do_anything_else(tmp_path, kind):
    """Any header with a right checksum: a FormatError, or an object."""
    path, random = KEPT[kind].save(tmp_path), Random(0)
    header, body = unsealed(path.read_bytes())
    for _ in range(150):
        changed = bytearray(header)
        for _ in range(random.choice((1, 1, 2))):
            changed[random.randrange(100, len(changed))] = random.choice(b'0129.,[]{}:"\\-eE xuntf\xff')
        path.write_bytes(sealed(bytes(changed), body))
        with contextlib.suppress(FormatError):
            KEPT[kind].load(path)


# ---- damage


def test_every_single_bit_flip_is_found(tmp_path):
    """R3: all bits of a file of 16 KiB."""
    path = tmp_path / "x.safetensors"
    write_bundle(path, SCHEMA, FIELDS, tensors(3899))
    data = path.read_bytes()
    assert len(data) >= 16 * 1024
    missed, descriptor = [], os.open(path, os.O_WRONLY)
    for bit in range(8 * len(data)):
        at = bit >> 3
        os.pwrite(descriptor, bytes([data[at] ^ 1 << (bit & 7)]), at)
        try:
            read(path)
            missed.append(bit)
        except FormatError:
            pass
        os.pwrite(descriptor, data[at : at + 1], at)
    os.close(descriptor)
    read(path)
    assert missed == []
    report("R3", f"bundle: all {8 * len(data):,} flips of a bit of {len(data):,} bytes found")


def good() -> dict[str, Any]:
    return content("example", FIELDS, tensors())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "json_syntax"), ("{", "json_syntax"), ("[]", "json_type"), ("{}", "magic"),
        ('{"schema":"a","schema":"b"}', "duplicate_name"),
        ('{"schema":"example","version":NaN}', "json_syntax"),
        ('{"a":' + "[" * 500 + "]" * 500 + "}", "json_depth"), ({"schema": "circuit"}, "magic"),
        ({"schema": 3}, "magic"), ({"schema": "example"}, "version"),
        ({"schema": "example", "version": 1}, "header_value"), (good() | {"more": 1}, "header_value"),
        (good() | {"fields": []}, "header_value"), (good() | {"tensors": None}, "header_value"),
        (good() | {"tensors": {}}, "unexpected_tensor"),
        (good() | {"tensors": good()["tensors"] | {"b": "0" * 64}}, "missing_tensor"),
        (good() | {"tensors": good()["tensors"] | {"a": "0" * 64}}, "checksum"),
        (good() | {"tensors": good()["tensors"] | {"a": "0" * 63}}, "header_value"),
        (good() | {"tensors": good()["tensors"] | {"a": "AB" * 32}}, "header_value"),
        (good() | {"tensors": good()["tensors"] | {"a": 3}}, "header_value"),
    ],
)  # fmt: skip
def test_texts_that_are_no_bundle(tmp_path, text, wanted):
    assert code(tmp_path, around(text, tensors())) == wanted


def test_headers_that_are_no_bundle(tmp_path, path):
    data = path.read_bytes()
    assert code(tmp_path, b"") == "too_short"
    assert code(tmp_path, b"PK\x03\x04" + bytes(100)) == "magic"
    assert code(tmp_path, data[:100] + bytes([data[100] ^ 1]) + data[101:]) in ("checksum", "json_syntax")
    assert code(tmp_path, resealed(data)[:-1]) == "bad_offsets"
    read(path)
    header, body = unsealed(data)
    for before, after in (
        (b'{"__metadata__":{"sha256":"', b'{ "__metadata__":{"sha256":"'),
        (b'"sha256":"', b'"sha256" :"'),
        (b'"sha256":"' + b"0" * 64, b'"sha256":"' + b"0" * 63),
        (b'"sha256":"' + b"0" * 64 + b'",', b""),
    ):
        assert before in header
        assert code(tmp_path, sealed(header.replace(before, after, 1), body)) == "checksum"
    for name in ("F16", "BOOL"):
        array = np.zeros(2, {"F16": "f2", "BOOL": bool}[name])
        assert code(tmp_path, forged("example", {}, {"x": array})) == "dtype"
    entry = {"dtype": "I64", "shape": [3], "data_offsets": [0, 24]}
    assert code(
        tmp_path, around(content("example", {}, {"x": np.zeros(3)}), {"x": np.zeros(2)}, x=entry)
    ) == ("bad_offsets")
    read_back = forged("example", {"a": [1.5]}, {"x": np.arange(3)})
    (tmp_path / "z.safetensors").write_bytes(read_back)
    assert read(tmp_path / "z.safetensors")[0] == {"a": [1.5]}


def test_limits_are_named(tmp_path, path):
    data = path.read_bytes()
    for name, limit in (("max_header_bytes", "header_limit"), ("max_json_keys", "json_limit"),
                        ("max_string_bytes", "json_limit"), ("max_tensors", "tensor_limit")):  # fmt: skip
        with pytest.raises(LimitError, match=name) as caught:
            read(path, limits=Limits(**{name: 3}))
        assert caught.value.code == limit
    assert code(tmp_path, data, limits=Limits(max_json_values=3)) == "json_limit"
    with pytest.raises(TypeError, match="limits"):
        read(path, limits=3)


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path / "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=r"none(\.example)?\.safetensors"):
            read(path)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(IsADirectoryError):
        read(tmp_path / "folder.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(FormatError) as caught:
        read(tmp_path / "pipe.safetensors")
    assert caught.value.code == "not_a_file"
    for wrong in (3, None, b"c"):
        with pytest.raises(TypeError, match="path must be a string or a path, got"):
            read(wrong)


@pytest.mark.parametrize("kind", ["training", "transcoder training"])
def test_the_message_names_the_tensor_and_an_intact_sibling(tmp_path, kind):
    path = KEPT[kind].save(tmp_path)
    whole = path.rename(tmp_path / "w.safetensors")
    damaged = bytearray(whole.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    (tmp_path / "y.safetensors").write_bytes(damaged)
    KEPT["circuit"].save(tmp_path).rename(tmp_path / "z.safetensors")
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError) as caught:
        KEPT[kind].load(path)
    text = r"fails its checksum; w.safetensors in the same folder is intact"
    assert str(caught.value).endswith(text)
    assert (caught.value.code, caught.value.path) == ("checksum", str(path))
    assert repr(caught.value.field) in str(caught.value)
    whole.write_bytes(damaged)
    with pytest.raises(CheckpointError) as caught:
        KEPT[kind].load(path)
    assert "intact" not in str(caught.value)


# ---- writing


@pytest.mark.parametrize(
    ("fields", "arrays"),
    [
        ({"x": float("nan")}, {}),
        ({"x": "y" * 17 * 2**20}, {}),
        ({}, {"x": np.zeros(2, np.float16)}),
        ({}, {"x": np.zeros(2, bool)}),
        ({}, {"x": np.array(["a"])}),
        ({}, {"": np.zeros(2)}),
        ({}, {"__metadata__": np.zeros(2)}),
        ({}, {"x" * 2000: np.zeros(2)}),
        ({}, {"x": np.zeros((1,) * 9)}),
    ],
)
def test_what_the_container_does_not_take_is_not_written(tmp_path, fields, arrays):
    with pytest.raises(ValueError):
        write_bundle(tmp_path / "x", SCHEMA, fields, arrays)
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

    monkeypatch.setattr(atomic.os, function, failing)
    with pytest.raises(OSError) as caught:
        write_bundle(path, SCHEMA, {"step": 4}, tensors())
    monkeypatch.undo()
    assert caught.value.errno == number
    assert caught.value.filename == str(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    renamed = (function, nth) in (("open", 3), ("fsync", 2))  # only the folder's own entry was not confirmed
    assert ("untouched" in str(caught.value)) is not renamed
    assert (path.read_bytes() == before) is not renamed
    read(path)


def test_short_writes_are_continued(path, monkeypatch, tmp_path):
    real = os.write
    monkeypatch.setattr(atomic.os, "write", lambda fd, data: real(fd, memoryview(data)[:7]))
    write_bundle(tmp_path / "b", SCHEMA, FIELDS, tensors())
    monkeypatch.undo()
    assert (tmp_path / "b.example.safetensors").read_bytes() == path.read_bytes()


def test_ctrl_c_in_a_save_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(atomic.os, "fsync", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(path, SCHEMA, {"step": 4}, tensors())
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


def _interrupt(*args):
    raise KeyboardInterrupt


def test_stale_temporary_files_are_removed(path):
    stale = path.with_name(f".{path.name}.123{atomic.TEMPORARY}")
    stale.write_bytes(b"half")
    assert atomic.remove_stale(path.parent) == [stale]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_file_that_is_written_to_while_it_is_read_is_refused(path, monkeypatch):
    real = bundle.Bundle.verify

    def verify(self: Bundle) -> None:
        real(self)
        os.utime(path, ns=(1, 1))

    monkeypatch.setattr(bundle.Bundle, "verify", verify)
    with pytest.raises(FormatError, match="was written to while it was read"):
        read(path)


def test_the_reader_does_not_unpickle():
    for module in (bundle, bundle_fields, circuit_file, graph_file, checkpoint, coder_checkpoint):
        source = Path(module.__file__).read_text()
        assert "pickle" not in source
        assert "np.load" not in source


@pytest.mark.parametrize(
    ("kind", "module", "more"),
    [
        (asp.Circuit, circuit_file, set()),
        (asp.Graph, graph_file, {"weights", "closure_absolute", "splits", "origin"}),
    ],
)
def test_every_field_of_an_object_is_in_its_file(kind, module, more):
    """A field that is added to the class must be added to the file."""
    known = {*module.FIELDS, *module.ARRAYS, "version", *more}
    assert {field.name for field in dataclasses.fields(kind)} <= known
