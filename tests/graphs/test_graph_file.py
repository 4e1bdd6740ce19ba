"""Graphs in files: they come back as they were and answer alike, and every damage is a named error."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_graph import D, H, L, T, assert_same, example, traced

from attnsparse.errors import FormatError, LimitError, NonFiniteError
from attnsparse.graphs import graph_file
from attnsparse.graphs.graph import Graph, load_graph
from attnsparse.graphs.select import KINDS
from attnsparse.io import paired_file
from attnsparse.io.limits import Limits


@pytest.fixture
def path(tmp_path) -> Path:
    example().save(tmp_path / "g")
    return tmp_path / "g"


@pytest.fixture(scope="module")
def real() -> Graph:
    return traced()


def code(path: Path, kind: type = FormatError, **options) -> str:
    with pytest.raises(kind) as caught:
        load_graph(path, **options)
    error = caught.value
    assert len(str(error)) <= 300
    assert "\n" not in str(error)
    assert str(error).startswith(("g.json: ", "g.npz: "))
    assert pickle.loads(pickle.dumps(error)).code == error.code
    return error.code


# --- there and back


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("suffix", ["", ".json", ".npz"])
def test_comes_back(tmp_path, dtype, suffix):
    saved = example(dtype)
    saved.save(tmp_path / f"gpt2.v1{suffix}")
    assert sorted(os.listdir(tmp_path)) == ["gpt2.v1.json", "gpt2.v1.npz"]
    assert_same(saved, load_graph(str(tmp_path / f"gpt2.v1{suffix}")))


def test_same_graph_same_bytes(path, tmp_path):
    load_graph(path).save(tmp_path / "d")
    for suffix in (".json", ".npz"):
        assert Path(f"{path}{suffix}").read_bytes() == (tmp_path / f"d{suffix}").read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_feature_nodes", [None, 10])
def test_a_traced_graph_comes_back_and_answers(tmp_path, dtype, max_feature_nodes):
    graph = traced(dtype, max_feature_nodes=max_feature_nodes)
    for name, saved in {"whole": graph, "pruned": graph.prune()}.items():
        saved.save(tmp_path / name)
        found = load_graph(tmp_path / name)
        assert_same(saved, found)
        assert found.scores() == saved.scores()
        source, target = saved.ids[0], saved.ids[-1]
        assert found.weight(source, target) == saved.weight(source, target)
        assert found.total(source, target) == saved.total(source, target)
        for through in ("edge", "features"):
            assert found.heads(source, target, through=through).equals(
                saved.heads(source, target, through=through)
            )
        assert_same(saved.prune(0.6, 0.9), found.prune(0.6, 0.9))
        assert found._repr_html_() == saved._repr_html_()
        assert found.summary().equals(saved.summary())


def test_what_needs_the_model_says_so(path):
    with pytest.raises(ValueError, match="no model to compute with"):
        load_graph(path).score_pairs(0, 0, 2, 1)


def test_any_tool_can_read_it(path):
    data = json.loads(Path(f"{path}.json").read_text())
    assert (data["format"], data["version"], data["dtype"]) == ("attnsparse graph", 1, "float32")
    with np.load(f"{path}.npz", allow_pickle=False) as arrays:
        assert set(arrays) == set(graph_file._ARRAYS) - {"influence"}
        np.testing.assert_array_equal(arrays["weight"], example().weights)


def test_other_layouts_in_memory_are_stored_alike(path, tmp_path):
    given = example()
    odd = {
        "pattern": np.asfortranarray(given.pattern),
        "carried": given.carried.astype(">f4"),
        "start": np.repeat(given.start, 2)[::2],
    }
    example(**odd).save(tmp_path / "d")
    assert_same(given, load_graph(tmp_path / "d"))


def test_without_splits_and_with_influence(tmp_path):
    n = len(example())
    saved = example(
        splits=(), influence=np.linspace(0, 1, n, dtype=np.float32), pruned={"node_threshold": 0.5}
    )
    saved.save(tmp_path / "g")
    assert_same(saved, load_graph(tmp_path / "g"))


# --- without heads


def test_without_heads(tmp_path, real):
    real.save(tmp_path / "whole")
    real.save(tmp_path / "small", heads=False)
    found = load_graph(tmp_path / "small")
    assert (found.has_heads, real.has_heads, real.without_heads().has_heads) == (False, True, False)
    assert (tmp_path / "small.npz").stat().st_size < (tmp_path / "whole.npz").stat().st_size / 2
    assert_same(real, found, ("carried", "received", "received_alone"))
    source, target = real.ids[0], real.ids[-1]
    assert found.total(source, target) == real.total(source, target)
    for call in (found.heads, found.needed_heads):
        with pytest.raises(ValueError, match="cannot split edges by head: it was saved with heads=False"):
            call(source, target)
    small = found.prune()
    assert_same(real.prune(), small, ("carried", "received", "received_alone"))
    small.save(tmp_path / "again")
    assert_same(small, load_graph(tmp_path / "again"))


def test_other_labels(real):
    key = int(real.layer[0]), int(real.feature[0])
    found = real.with_labels(
        {key: "new", (0, 10**6): "of nothing", (int(real.layer[1]), int(real.feature[1])): ""}
    )
    same = [(int(a), int(b)) == key for a, b in zip(real.layer, real.feature)][: real.n_features]
    assert [text == "new" for text in found.labels[: real.n_features]] == same
    assert found.labels[real.n_features :] == real.labels[real.n_features :]
    assert_same(real, found, ("labels",))


# --- files that are not there, disks that are full


def test_missing_files(path):
    os.remove(f"{path}.npz")
    with pytest.raises(FileNotFoundError, match=r"g\.npz"):
        load_graph(path)
    with pytest.raises(FileNotFoundError, match=r"d\.json"):
        load_graph(path.parent / "d")
    with pytest.raises(FileNotFoundError, match=r"g\.npz"):
        example().save(path.parent / "nowhere" / "g")
    for call in (load_graph, example().save):
        with pytest.raises(TypeError, match=r"expected str|got bytes"):
            call(b"c")
    with pytest.raises(TypeError, match="heads must be True or False, got 3"):
        example().save(path, heads=3)


def test_a_failed_save_leaves_the_old_pair(path, monkeypatch):
    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    before = [Path(f"{path}{suffix}").read_bytes() for suffix in (".json", ".npz")]
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=r"previous g\.npz is untouched"):
        example(splits=()).save(path)
    monkeypatch.undo()
    assert [Path(f"{path}{suffix}").read_bytes() for suffix in (".json", ".npz")] == before
    assert sorted(os.listdir(path.parent)) == ["g.json", "g.npz"]


def test_files_of_two_saves(path, tmp_path):
    example(splits=()).save(tmp_path / "d")
    os.replace(tmp_path / "d.npz", f"{path}.npz")
    assert code(path) == "checksum"


# --- damage: the .npz


def stored() -> dict[str, np.ndarray]:
    graph = example()
    arrays = (
        {name: getattr(graph, name) for name in graph_file._PLAIN}
        | {"weight": graph.weights}
        | graph_file._split_arrays(graph)
    )
    arrays["kind"] = np.array([KINDS.index(kind) for kind in graph.kind])
    arrays["closure"] = np.array([graph.closure, graph.closure_absolute])
    return {name: np.asarray(array, graph_file._specs("float32")[name][0]) for name, array in arrays.items()}


def forge(path: Path, content: bytes) -> None:
    """Put bytes in place of the .npz and give the .json their checksum."""
    Path(f"{path}.npz").write_bytes(content)
    edit(path, lambda data: data.update(arrays_sha256=hashlib.sha256(content).hexdigest()))


def forge_arrays(path: Path, **changes: np.ndarray | None) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in (stored() | changes).items() if array is not None})
    forge(path, buffer.getvalue())


def edit(path: Path, change: Callable[[dict], object]) -> None:
    data = json.loads(Path(f"{path}.json").read_text())
    change(data)
    Path(f"{path}.json").write_text(json.dumps(data))


def put(name: str, at: int | tuple[int, ...], number: float) -> dict[str, np.ndarray]:
    array = stored()[name].copy()
    array[at] = number
    return {name: array}


def test_a_forged_file_with_right_arrays_is_read(path):
    forge_arrays(path)
    assert_same(example(), load_graph(path))


N = len(example())
F4, I4, I8 = np.float32, np.int32, np.int64


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"weight": None}, "missing_tensor"),
        ({"carried": None}, "missing_tensor"),
        ({"extra": np.zeros(3)}, "unexpected_tensor"),
        ({"weight": np.zeros(37)}, "dtype"),
        ({"kind": np.zeros(N, I8)}, "dtype"),
        ({"source": np.array(["a"])}, "array_header"),
        ({"weight": np.zeros(37, ">f4")}, "array_header"),
        ({"pattern": np.zeros((T, T, H, L), F4).T}, "array_header"),
        ({"weight": np.zeros((37, 1), F4)}, "size_mismatch"),
        ({"weight": np.zeros(36, F4)}, "size_mismatch"),
        ({"value": np.zeros(N - 1, F4)}, "size_mismatch"),
        ({"influence": np.zeros(N + 1, F4)}, "size_mismatch"),
        ({"closure": np.zeros(3)}, "size_mismatch"),
        ({"closure": np.array([0.0, -1e-9])}, "value"),
        ({"influence": np.full(N, np.inf, F4)}, "value"),
        ({"pattern": np.zeros((L, H, T, T + 1), F4)}, "size_mismatch"),
        ({"carried": np.zeros((34, L, H, D + 1), F4)}, "size_mismatch"),
        ({"received": np.zeros((7, L, H, D), F4)}, "size_mismatch"),
        ({"split_entries": np.zeros((1, 4), I4)}, "value"),
        ({"split_nodes": np.zeros(4, I8)}, "size_mismatch"),
        ({"split_pairs": np.zeros(16)}, "size_mismatch"),
        ({"split_start": np.array([0, 2**40, 2**40])}, "value"),
        ({"split_start": np.array([0, 6, 5])}, "value"),
        (put("split_nodes", 0, N), "value"),
        (put("split_nodes", 0, -1), "value"),
        (put("split_entries", (0, 0), L), "value"),
        (put("split_entries", (0, 3), 3), "value"),
        (put("split_entries", (1, 2), -1), "value"),
        (put("kind", 0, 7), "value"),
        (put("kind", 0, 1), "value"),
        (put("kind", N - 1, 5), "value"),
        (put("layer", 0, L), "value"),
        (put("layer", N - 1, L - 1), "value"),
        (put("layer", 30, 0), "value"),
        (put("position", 1, T), "value"),
        (put("position", N - 4, 0), "value"),
        (put("feature", 1, 7), "value"),
        (put("feature", 1, -1), "value"),
        (put("probability", N - 1, 1.5), "value"),
        (put("value", 0, np.inf), "value"),
        (put("start", 0, 1), "value"),
        (put("start", N, 36), "value"),
        (put("start", 1, 40), "value"),
        (put("start", 10, 37), "value"),
        (put("source", 3, N), "value"),
        (put("source", 0, -1), "value"),
        (put("source", 1, 0), "value"),
    ],
)
def test_arrays_that_are_not_a_graph(path, changes, wanted):
    forge_arrays(path, **changes)
    assert code(path) == wanted


@pytest.mark.parametrize(
    "name", ["weight", "pattern", "carried", "received", "received_alone", "split_pairs"]
)
@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_numbers_that_are_not_finite(path, name, number):
    array = stored()[name].copy()
    array.flat[0] = number
    forge_arrays(path, **{name: array})
    assert code(path, NonFiniteError) == "nonfinite"


def test_every_bit_flip_of_the_arrays_is_found(path):
    data = bytearray(Path(f"{path}.npz").read_bytes())
    for bit in range(0, 8 * len(data), 997):
        data[bit >> 3] ^= 1 << (bit & 7)
        Path(f"{path}.npz").write_bytes(data)
        assert code(path) == "checksum"
        data[bit >> 3] ^= 1 << (bit & 7)


def test_random_damage_never_does_anything_else(path):
    """Any bytes with a right checksum: a FormatError, or a graph."""
    whole = Path(f"{path}.npz").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(whole)
        for at in random.integers(0, len(data), 3):
            data[at] = random.integers(256)
        cut = random.integers(1, len(data) + 1) if random.random() < 0.2 else len(data)
        forge(path, bytes(data[:cut]))
        with contextlib.suppress(FormatError):
            assert isinstance(load_graph(path), Graph)


# --- damage: the .json


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"", "json_syntax"),
        (b"[]", "json_type"),
        (b"\xff", "json_syntax"),
        (b'{"format": "a", "format": "b"}', "duplicate_name"),
        (b'{"format": "attnsparse circuit"}', "magic"),
        (b'{"format": "attnsparse graph"}', "version"),
        (b'{"format": "attnsparse graph", "version": 1}', "header_value"),
        (b'{"format": "attnsparse graph", "version": 2}', "version"),
        (b'{"format": "attnsparse graph", "version": true}', "version"),
        (b'{"format": "attnsparse graph", "version": NaN}', "json_syntax"),
    ],
)
def test_json_that_is_no_graph(path, text, wanted):
    Path(f"{path}.json").write_bytes(text)
    assert code(path) == wanted


def test_a_newer_version_says_so(path):
    edit(path, lambda data: data.update(version=2, something="new"))
    with pytest.raises(
        FormatError, match="newer attnsparse: graph version 2, this one reads up to 1; update"
    ):
        load_graph(path)


@pytest.mark.parametrize("name", sorted((*graph_file._FIELDS, "arrays_sha256")))
def test_every_field_is_needed_and_of_its_kind(path, name):
    whole = Path(f"{path}.json").read_text()

    def change(how: Callable[[dict], object]) -> str:
        Path(f"{path}.json").write_text(whole)
        edit(path, how)
        return code(path)

    assert change(lambda fields: fields.pop(name)) == "header_value"
    for wrong in ([{}], -1.5, 3 if name == "prepend_bos" else True):
        assert change(lambda fields, wrong=wrong: fields.update({name: wrong})) == "header_value"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("extra", 1),
        ("dtype", "float16"),
        ("labels", ["a"]),
        ("labels", [1] * N),
        ("token_strings", ["a"]),
        ("arrays_sha256", "AB" * 32),
        ("pruned", {"node_threshold": 2}),
        ("pruned", {"more": 0.5}),
        ("n_layer", 0),
    ],
)
def test_wrong_values(path, name, value):
    edit(path, lambda data: data.update({name: value}))
    assert code(path) == "header_value"


@pytest.mark.parametrize(("name", "value"), [("n_layer", 9), ("n_head", 3), ("dtype", "float64")])
def test_sizes_of_another_model(path, name, value):
    edit(path, lambda data: data.update({name: value}))
    assert code(path) in ("size_mismatch", "dtype")


def test_limits(path):
    assert code(path, LimitError, limits=Limits(max_index_bytes=100)) == "file_limit"
    assert code(path, LimitError, limits=Limits(max_zip_entries=3)) == "zip_entries"


def test_names_from_a_file_are_escaped_where_they_are_shown(path):
    edit(path, lambda data: data.update(model_name="<script>", labels=["<script>"] * N))
    assert "<script>" not in load_graph(path)._repr_html_()


def test_the_reader_does_not_unpickle():
    for module in (graph_file, paired_file):
        source = Path(module.__file__).read_text()
        assert "allow_pickle" not in source
        assert "np.load" not in source


def test_every_field_of_a_graph_is_in_the_files():
    """A field that is added to Graph must be added to the files."""
    stored_fields = {
        *graph_file._FIELDS,
        *graph_file._ARRAYS,
        "weights",
        "closure_absolute",
        "splits",
        "version",
        "origin",
    }
    assert {field.name for field in dataclasses.fields(Graph)} <= stored_fields
