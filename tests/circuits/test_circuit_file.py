"""Circuits in files: they come back as they were, and every damage is a named error."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from places import FIXTURES

from attnsparse.circuits import choices, circuit_file
from attnsparse.circuits.circuit import Circuit, load_circuit
from attnsparse.errors import FormatError, LimitError, NonFiniteError
from attnsparse.io.limits import Limits

GOLDEN = FIXTURES / "circuit-v1"


def example(unit: str = "edge", **changes) -> Circuit:
    """A circuit of 3 items, 4 sizes and 2 prompts."""
    items = {"head": [[0, 1], [1, 0], [1, 1]], "head_position": [[0, 1, 2], [1, 0, 0], [1, 0, 1]]}
    values = np.array([[0.0, 0.5], [1.0, 2.0], [3.0, 4.0], [4.0, 5.5]])
    mean = values.mean(axis=1)
    effect = (mean - mean[0]) / (mean[-1] - mean[0])
    fields = {
        "model_name": "tiny ä",
        "model_digest": "ab" * 32,
        "task_name": 'copy "x"\n',
        "task_digest": "cd" * 32,
        "unit": unit,
        "method": "ig",
        "ablation": "mean",
        "normalize": "mib",
        "metric": "prob_diff",
        "options": {
            "rank_by": "absolute",
            "steps": 10,
            "greedy_step": 0.1,
            "n_bootstrap": 100,
            "n_random": 2,
            "confidence": 0.95,
            "seed": 2**64 - 1,
            "sizes": [0, 1, 2, 3],
            "reference": "ef" * 32,
            "n_ranking": 7,
        },
        "items": np.array(items.get(unit, [[0, 1, 2, 1], [1, 0, 3, 3], [1, 0, 3, 0]]), np.int32),
        "scores": np.array([0.3, -0.2, 1 / 3]),
        "sizes": np.arange(4),
        "values": values,
        "full": values[3].copy(),
        "empty": values[0].copy(),
        "effect": effect,
        "effect_low": effect - 0.1,
        "effect_high": effect + 0.1,
        "random_effect": np.array([0, np.nan, 0.5, 1]),
        "random_low": np.array([0, np.nan, 0.4, 1]),
        "random_high": np.array([0, np.nan, 0.6, 1]),
        "position_labels": ("<bos>", "a", "b", "c"),
    }
    return Circuit(**{**fields, **changes})


def assert_same(one: Circuit, other: Circuit) -> None:
    for field in dataclasses.fields(Circuit):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert type(a) is type(b), field.name
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), field.name
            assert not b.flags.writeable
        else:
            assert a == b, field.name


@pytest.fixture
def path(tmp_path) -> Path:
    example().save(tmp_path / "c")
    return tmp_path / "c"


def code(path: Path, kind: type = FormatError, **options) -> str:
    with pytest.raises(kind) as caught:
        load_circuit(path, **options)
    error = caught.value
    assert len(str(error)) <= 300
    assert "\n" not in str(error)
    assert str(error).startswith(("c.json: ", "c.npz: "))
    assert pickle.loads(pickle.dumps(error)).code == error.code
    return error.code


# --- there and back


@pytest.mark.parametrize("unit", choices.UNITS)
@pytest.mark.parametrize("suffix", ["", ".json", ".npz"])
def test_comes_back(tmp_path, unit, suffix):
    saved = example(unit, position_labels=None)
    saved.save(tmp_path / f"gpt2.v1{suffix}")
    assert sorted(os.listdir(tmp_path)) == ["gpt2.v1.json", "gpt2.v1.npz"]
    found = load_circuit(str(tmp_path / f"gpt2.v1{suffix}"))
    assert_same(saved, found)
    assert found.needed() == saved.needed()
    assert found.labels == saved.labels
    assert found._repr_html_() == saved._repr_html_()


def test_same_circuit_same_bytes(path, tmp_path):
    load_circuit(path).save(tmp_path / "d")
    for suffix in (".json", ".npz"):
        assert Path(f"{path}{suffix}").read_bytes() == (tmp_path / f"d{suffix}").read_bytes()


def test_any_tool_can_read_it(path):
    data = json.loads(Path(f"{path}.json").read_text())
    assert (data["format"], data["version"], data["unit"]) == ("attnsparse circuit", 1, "edge")
    with np.load(f"{path}.npz", allow_pickle=False) as arrays:
        assert set(arrays) == set(circuit_file._ARRAYS)
        np.testing.assert_array_equal(arrays["values"], example().values)


def test_other_layouts_in_memory_are_stored_alike(path, tmp_path):
    given = example()
    odd = {
        "values": np.asfortranarray(given.values),
        "items": given.items.astype(">i4"),
        "sizes": np.arange(8)[::2] // 2,
    }
    example(**odd).save(tmp_path / "d")
    assert_same(given, load_circuit(tmp_path / "d"))


def test_one_size_one_prompt_one_item(tmp_path):
    one = {"items": np.zeros((1, 4), np.int32), "scores": np.ones(1), "sizes": np.zeros(1, np.int64)}
    curves = dict.fromkeys(
        (name for name, (_, sides) in circuit_file._ARRAYS.items() if sides == "S"), np.ones(1)
    )
    prompts = {"values": np.ones((1, 1)), "full": np.ones(1), "empty": np.zeros(1)}
    saved = example(**{**curves, **one, **prompts})
    saved.save(tmp_path / "c")
    assert_same(saved, load_circuit(tmp_path / "c"))


def test_the_first_version_loads_for_ever():
    assert_same(example(), load_circuit(GOLDEN))


# --- files that are not there, disks that are full


def test_missing_files(path):
    os.remove(f"{path}.npz")
    with pytest.raises(FileNotFoundError, match=r"c\.npz"):
        load_circuit(path)
    with pytest.raises(FileNotFoundError, match=r"d\.json"):
        load_circuit(path.parent / "d")
    with pytest.raises(FileNotFoundError, match=r"c\.npz"):
        example().save(path.parent / "nowhere" / "c")
    assert not (path.parent / "nowhere").exists()


@pytest.mark.parametrize("wrong", [3, None, b"c"])
def test_a_path_of_another_kind(wrong):
    for call in (load_circuit, example().save):
        with pytest.raises(TypeError, match="path must be a string or a path, got"):
            call(wrong)


def test_a_failed_save_leaves_the_old_pair(path, monkeypatch):
    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    before = [Path(f"{path}{suffix}").read_bytes() for suffix in (".json", ".npz")]
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=r"previous c\.npz is untouched"):
        example("head").save(path)
    monkeypatch.undo()
    assert [Path(f"{path}{suffix}").read_bytes() for suffix in (".json", ".npz")] == before
    assert sorted(os.listdir(path.parent)) == ["c.json", "c.npz"]


def test_files_of_two_saves(path, tmp_path):
    example(scores=np.zeros(3)).save(tmp_path / "d")
    os.replace(tmp_path / "d.npz", f"{path}.npz")
    assert code(path) == "checksum"


# --- damage: the .npz


def test_every_bit_flip_of_the_arrays_is_found(path):
    data = bytearray(Path(f"{path}.npz").read_bytes())
    for bit in range(0, 8 * len(data), 37):
        data[bit >> 3] ^= 1 << (bit & 7)
        Path(f"{path}.npz").write_bytes(data)
        with pytest.raises(FormatError) as caught:
            load_circuit(path)
        assert caught.value.code == "checksum"
        data[bit >> 3] ^= 1 << (bit & 7)


def forge(path: Path, content: bytes) -> None:
    """Put bytes in place of the .npz and give the .json their checksum."""
    Path(f"{path}.npz").write_bytes(content)
    data = json.loads(Path(f"{path}.json").read_text())
    data["arrays_sha256"] = hashlib.sha256(content).hexdigest()
    Path(f"{path}.json").write_text(json.dumps(data))


def forge_arrays(path: Path, **changes: np.ndarray | None) -> None:
    arrays = {name: getattr(example(), name) for name in circuit_file._ARRAYS} | changes
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **{name: a for name, a in arrays.items() if a is not None})
    forge(path, buffer.getvalue())


def test_a_forged_file_with_right_arrays_is_read(path):
    forge_arrays(path)
    assert_same(example(), load_circuit(path))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"scores": None}, "missing_tensor"),
        ({"extra": np.zeros(3)}, "unexpected_tensor"),
        ({"scores": np.zeros(3, np.float32)}, "dtype"),
        ({"items": np.zeros((3, 4), np.int64)}, "dtype"),
        ({"scores": np.array([None, 1, {}], object)}, "array_header"),
        ({"scores": np.array(["a", "b", "c"])}, "array_header"),
        ({"scores": np.zeros(3, ">f8")}, "array_header"),
        ({"scores": np.zeros(3, bool)}, "array_header"),
        ({"values": np.zeros((2, 4)).T}, "array_header"),
        ({"scores": np.array(1.0)}, "array_header"),
        ({"scores": np.zeros((3, 1))}, "size_mismatch"),
        ({"scores": np.zeros(4)}, "size_mismatch"),
        ({"items": np.arange(6, dtype=np.int32).reshape(3, 2)}, "size_mismatch"),
        ({"full": np.zeros(3)}, "size_mismatch"),
        ({"values": np.zeros((3, 2))}, "size_mismatch"),
        ({"effect_low": np.zeros(5)}, "size_mismatch"),
        ({"items": np.array([[0, 1, 2, 1], [1, 0, 3, 3], [1, -1, 3, 0]], np.int32)}, "value"),
        ({"items": np.array([[0, 1, 2, 1], [1, 0, 3, 3], [0, 1, 2, 1]], np.int32)}, "value"),
        ({"items": np.array([[0, 1, 2, 1], [1, 0, 3, 3], [1, 0, 2, 3]], np.int32)}, "value"),
        ({"items": np.array([[0, 1, 2, 1], [1, 0, 3, 3], [1, 0, 4, 3]], np.int32)}, "value"),
        ({"sizes": np.array([0, 1, 2, 4])}, "value"),
        ({"sizes": np.array([-1, 1, 2, 3])}, "value"),
        ({"sizes": np.array([0, 1, 1, 3])}, "value"),
    ],
)
def test_arrays_that_are_not_a_circuit(path, changes, wanted):
    forge_arrays(path, **changes)
    assert code(path) == wanted


@pytest.mark.parametrize("name", ["scores", "values", "full", "empty", "effect"])
@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_numbers_that_are_not_finite(path, name, number):
    array = getattr(example(), name).copy()
    array.flat[0] = number
    forge_arrays(path, **{name: array})
    assert code(path, NonFiniteError) == "nonfinite"


def test_nothing_in_it(path):
    forge_arrays(path, items=np.zeros((0, 4), np.int32), scores=np.zeros(0))
    assert code(path) == "value"


def archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return buffer.getvalue()


def npy(array: np.ndarray, change: Callable[[bytes], bytes] = bytes) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return change(buffer.getvalue())


def entries(**changes: bytes) -> dict[str, bytes]:
    arrays = {name: npy(getattr(example(), name)) for name in circuit_file._ARRAYS} | changes
    return {f"{name}.npy": content for name, content in arrays.items()}


SCORES = npy(example().scores)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "too_short"),
        (b"x" * 100, "truncated"),
        (archive(entries())[:-40], "truncated"),
        (archive(entries(), zipfile.ZIP_DEFLATED), "zip_compressed"),
        (archive({**entries(), "folder/a.npy": b""}), "unexpected_tensor"),
        (archive({**entries(), "scores": SCORES}), "unexpected_tensor"),
        (archive(entries(scores=b"")), "array_header"),
        (archive(entries(scores=SCORES[:9])), "array_header"),
        (archive(entries(scores=SCORES[:60])), "array_header"),
        (archive(entries(scores=SCORES[:-1])), "size_mismatch"),
        (archive(entries(scores=SCORES + b"\0")), "size_mismatch"),
        (archive(entries(scores=SCORES.replace(b"NUMPY", b"PICKL"))), "array_header"),
        (archive(entries(scores=SCORES.replace(b"NUMPY\x01", b"NUMPY\x03"))), "array_header"),
        (archive(entries(scores=SCORES.replace(b"(3,)", b"(9,)"))), "size_mismatch"),
        (archive(entries(scores=SCORES.replace(b"(3,), } ", b"(-3,), }"))), "array_header"),
        (
            archive(entries(scores=SCORES.replace(b"(3,), }" + b" " * 9, b"(9999999999,), }"))),
            "size_mismatch",
        ),
        (archive(entries(scores=SCORES.replace(b"'<f8'", b"'|O8'"))), "array_header"),
        (archive(entries(scores=SCORES.replace(b"'<f8'", b"open()"))), "array_header"),
    ],
)
def test_archives_that_numpy_did_not_write(path, content, wanted):
    forge(path, content)
    assert code(path) == wanted


def test_random_damage_never_does_anything_else(path):
    """Any bytes with a right checksum: a FormatError, or a circuit."""
    whole = Path(f"{path}.npz").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for at in random.integers(0, len(data), 3):
            data[at] = random.integers(256)
        forge(
            path, bytes(data[: random.integers(1, len(data) + 1)]) if random.random() < 0.2 else bytes(data)
        )
        with contextlib.suppress(FormatError):
            assert isinstance(load_circuit(path), Circuit)


# --- damage: the .json


def edit(path: Path, change: Callable[[dict], object]) -> None:
    data = json.loads(Path(f"{path}.json").read_text())
    change(data)
    Path(f"{path}.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"", "json_syntax"),
        (b"{", "json_syntax"),
        (b"[]", "json_type"),
        (b"\xff", "json_syntax"),
        (b'{"format": "a", "format": "b"}', "duplicate_name"),
        (b"{}", "magic"),
        (b'{"format": "attnsparse circuit"}', "version"),
        (b'{"format": "attnsparse circuit", "version": 1}', "header_value"),
        (b'{"format": "attnsparse circuit", "version": 2}', "version"),
        (b'{"format": "attnsparse circuit", "version": 0}', "version"),
        (b'{"format": "attnsparse circuit", "version": true}', "version"),
        (b'{"format": "attnsparse circuit", "version": NaN}', "json_syntax"),
    ],
)
def test_json_that_is_no_circuit(path, text, wanted):
    Path(f"{path}.json").write_bytes(text)
    assert code(path) == wanted


def test_a_newer_version_says_so(path):
    edit(path, lambda data: data.update(version=2, something="new"))
    with pytest.raises(
        FormatError, match="newer attnsparse: circuit version 2, this one reads up to 1; update"
    ):
        load_circuit(path)


FIELDS = (
    *circuit_file._TEXTS,
    *circuit_file._CHOICES,
    *circuit_file._OPTIONS,
    "options",
    "position_labels",
    "arrays_sha256",
)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_field_is_needed_and_of_its_kind(path, name):
    whole = Path(f"{path}.json").read_text()

    def change(how: Callable[[dict], object]) -> str:
        Path(f"{path}.json").write_text(whole)
        edit(path, lambda data: how(data if name in data else data["options"]))
        return code(path)

    assert change(lambda fields: fields.pop(name)) == "header_value"
    for wrong in ([{}], {"a": 1}, -1.5, True):
        assert change(lambda fields, wrong=wrong: fields.update({name: wrong})) == "header_value"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("extra", 1),
        ("unit", "layer"),
        ("method", "magic"),
        ("ablation", None),
        ("metric", 3),
        ("arrays_sha256", "AB" * 32),
        ("position_labels", [1]),
    ],
)
def test_wrong_values(path, name, value):
    edit(path, lambda data: data.update({name: value}))
    assert code(path) == "header_value"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("extra", 1),
        ("rank_by", "size"),
        ("seed", 2**64),
        ("n_bootstrap", 10**12),
        ("confidence", 1.5),
        ("sizes", [1.5]),
        ("n_ranking", 0),
    ],
)
def test_wrong_options(path, name, value):
    edit(path, lambda data: data["options"].update({name: value}))
    assert code(path) == "header_value"


def test_another_unit_than_that_of_the_items(path):
    edit(path, lambda data: data.update(unit="head"))
    assert code(path) == "size_mismatch"


def test_too_few_names_of_positions(path):
    edit(path, lambda data: data.update(position_labels=["a", "b"]))
    assert code(path) == "value"


def test_limits(path):
    assert code(path, LimitError, limits=Limits(max_index_bytes=100)) == "file_limit"
    assert code(path, LimitError, limits=Limits(max_zip_entries=3)) == "zip_entries"
    assert code(path, LimitError, limits=Limits(max_array_bytes=100)) == "file_limit"


def test_a_file_of_holes_is_refused_before_it_is_in_memory(path):
    """Also one whose checksum is right: headers are compared with the entries before arrays are made."""
    with open(f"{path}.npz", "r+b") as file:
        file.truncate(200 * 2**20)
    tracemalloc.start()
    assert code(path, FormatError) == "checksum"
    data = json.loads(Path(f"{path}.json").read_text())
    with open(f"{path}.npz", "rb") as file:
        data["arrays_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    Path(f"{path}.json").write_text(json.dumps(data))
    assert code(path, FormatError) == "truncated"
    assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    tracemalloc.stop()


def test_names_from_a_file_are_escaped_where_they_are_shown(path):
    edit(path, lambda data: data.update(model_name="<script>"))
    assert "<script>" not in load_circuit(path)._repr_html_()


def test_the_reader_does_not_unpickle():
    source = Path(circuit_file.__file__).read_text()
    assert "allow_pickle" not in source
    assert "np.load" not in source
