"""Graphs in files: they come back as they were and answer alike, and what is no graph is a named error.

The container itself is tested in io/test_bundle.py.
"""

from __future__ import annotations

import functools
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from bundle_by_hand import rewrite
from tiny_graph import D, H, L, T, assert_same, example, traced

from attnsparse.errors import FormatError, LimitError, NonFiniteError
from attnsparse.graphs import graph_file
from attnsparse.graphs.graph import Graph, load_graph
from attnsparse.io.limits import Limits


@pytest.fixture
def path(tmp_path) -> Path:
    example().save(tmp_path / "g")
    return tmp_path / "g.graph.safetensors"


@pytest.fixture(scope="module")
def real() -> Graph:
    return traced()


def code(path: Path, kind: type = FormatError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load_graph(path, **options)
    error = caught.value
    assert len(str(error)) <= 300
    assert "\n" not in str(error)
    assert str(error).startswith("g.graph.safetensors: ")
    assert pickle.loads(pickle.dumps(error)).code == error.code
    return error.code


# --- there and back


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_comes_back(tmp_path, dtype):
    saved = example(dtype)
    saved.save(tmp_path / "gpt2.v1")
    assert os.listdir(tmp_path) == ["gpt2.v1.graph.safetensors"]
    assert_same(saved, load_graph(str(tmp_path / "gpt2.v1")))


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


def test_other_layouts_in_memory_are_stored_alike(path, tmp_path):
    given = example()
    odd = {
        "pattern": np.asfortranarray(given.pattern),
        "carried": given.carried.astype(">f4"),
        "start": np.repeat(given.start, 2)[::2],
    }
    example(**odd).save(tmp_path / "d.safetensors")
    assert (tmp_path / "d.safetensors").read_bytes() == path.read_bytes()


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
    sizes = {name: (tmp_path / f"{name}.graph.safetensors").stat().st_size for name in ("whole", "small")}
    assert (found.has_heads, real.has_heads, real.without_heads().has_heads) == (False, True, False)
    assert sizes["small"] < sizes["whole"] / 2
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


def test_heads_must_be_true_or_false(tmp_path):
    with pytest.raises(TypeError, match="heads must be True or False, got 3"):
        example().save(tmp_path / "g", heads=3)


# --- damage


@functools.cache
def stored() -> dict[str, np.ndarray]:
    """The tensors of the example's file."""
    with tempfile.TemporaryDirectory() as folder:
        example().save(f"{folder}/g")
        return safetensors.numpy.load(Path(f"{folder}/g.graph.safetensors").read_bytes())


def put(name: str, at: int | tuple[int, ...], number: float) -> dict[str, np.ndarray]:
    array = stored()[name].copy()
    array[at] = number
    return {name: array}


def test_a_forged_file_with_right_arrays_is_read(path):
    rewrite(path)
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
    rewrite(path, **changes)
    assert code(path) == wanted


@pytest.mark.parametrize(
    "name", ["weight", "pattern", "carried", "received", "received_alone", "split_pairs"]
)
@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_numbers_that_are_not_finite(path, name, number):
    array = stored()[name].copy()
    array.flat[0] = number
    rewrite(path, **{name: array})
    assert code(path, NonFiniteError) == "nonfinite"


@pytest.mark.parametrize("name", sorted(graph_file.FIELDS))
def test_every_field_is_needed_and_of_its_kind(path, name):
    whole = path.read_bytes()

    def change(how) -> str:
        path.write_bytes(whole)
        rewrite(path, how)
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
        ("pruned", {"node_threshold": 2}),
        ("pruned", {"more": 0.5}),
        ("n_layer", 0),
    ],
)
def test_wrong_values(path, name, value):
    rewrite(path, lambda data: data.update({name: value}))
    assert code(path) == "header_value"


@pytest.mark.parametrize(("name", "value"), [("n_layer", 9), ("n_head", 3), ("dtype", "float64")])
def test_sizes_of_another_model(path, name, value):
    rewrite(path, lambda data: data.update({name: value}))
    assert code(path) in ("size_mismatch", "dtype")


def test_limits(path):
    assert code(path, LimitError, limits=Limits(max_header_bytes=100)) == "header_limit"
    assert code(path, LimitError, limits=Limits(max_tensors=3)) == "tensor_limit"
    assert code(path, LimitError, limits=Limits(max_array_bytes=100)) == "file_limit"


def test_names_from_a_file_are_escaped_where_they_are_shown(path):
    rewrite(path, lambda data: data.update(model_name="<script>", labels=["<script>"] * N))
    assert "<script>" not in load_graph(path)._repr_html_()
