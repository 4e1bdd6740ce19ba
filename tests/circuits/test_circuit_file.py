"""Circuits in files: they come back as they were, and what is no circuit is a named error.

The container itself is tested in io/test_bundle.py.
"""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_by_hand import rewrite
from places import FIXTURES
from tiny_circuit import assert_same, example

from attnsparse.circuits import choices, circuit_file
from attnsparse.circuits.circuit import load_circuit
from attnsparse.errors import FormatError, LimitError, NonFiniteError
from attnsparse.io.limits import Limits

GOLDEN = FIXTURES / "circuit-v1"


@pytest.fixture
def path(tmp_path) -> Path:
    example().save(tmp_path / "c")
    return tmp_path / "c.circuit.safetensors"


def code(path: Path, kind: type = FormatError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load_circuit(path, **options)
    error = caught.value
    assert len(str(error)) <= 300
    assert "\n" not in str(error)
    assert str(error).startswith("c.circuit.safetensors: ")
    assert pickle.loads(pickle.dumps(error)).code == error.code
    return error.code


# --- there and back


@pytest.mark.parametrize("unit", choices.UNITS)
def test_comes_back(tmp_path, unit):
    saved = example(unit, position_labels=None)
    saved.save(tmp_path / "gpt2.v1")
    assert os.listdir(tmp_path) == ["gpt2.v1.circuit.safetensors"]
    found = load_circuit(str(tmp_path / "gpt2.v1"))
    assert_same(saved, found)
    assert found.needed() == saved.needed()
    assert found.labels == saved.labels
    assert found._repr_html_() == saved._repr_html_()


def test_other_layouts_in_memory_are_stored_alike(path, tmp_path):
    given = example()
    odd = {
        "values": np.asfortranarray(given.values),
        "items": given.items.astype(">i4"),
        "sizes": np.arange(8)[::2] // 2,
    }
    example(**odd).save(tmp_path / "d.safetensors")
    assert (tmp_path / "d.safetensors").read_bytes() == path.read_bytes()


def test_one_size_one_prompt_one_item(tmp_path):
    one = {"items": np.zeros((1, 4), np.int32), "scores": np.ones(1), "sizes": np.zeros(1, np.int64)}
    curves = dict.fromkeys(
        (name for name, (_, sides) in circuit_file.ARRAYS.items() if sides == "S"), np.ones(1)
    )
    prompts = {"values": np.ones((1, 1)), "full": np.ones(1), "empty": np.zeros(1)}
    saved = example(**{**curves, **one, **prompts})
    saved.save(tmp_path / "c")
    assert_same(saved, load_circuit(tmp_path / "c"))


def test_the_first_version_loads_for_ever():
    assert_same(example(), load_circuit(GOLDEN))


# --- damage


def test_a_forged_file_with_right_arrays_is_read(path):
    rewrite(path)
    assert_same(example(), load_circuit(path))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"scores": None}, "missing_tensor"),
        ({"extra": np.zeros(3)}, "unexpected_tensor"),
        ({"scores": np.zeros(3, np.float32)}, "dtype"),
        ({"items": np.zeros((3, 4), np.int64)}, "dtype"),
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
    rewrite(path, **changes)
    assert code(path) == wanted


@pytest.mark.parametrize("name", ["scores", "values", "full", "empty", "effect"])
@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_numbers_that_are_not_finite(path, name, number):
    array = getattr(example(), name).copy()
    array.flat[0] = number
    rewrite(path, **{name: array})
    assert code(path, NonFiniteError) == "nonfinite"


def test_nothing_in_it(path):
    rewrite(path, items=np.zeros((0, 4), np.int32), scores=np.zeros(0))
    assert code(path) == "value"


FIELDS = (*circuit_file.FIELDS, *circuit_file.OPTIONS)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_field_is_needed_and_of_its_kind(path, name):
    whole = path.read_bytes()

    def change(how) -> str:
        path.write_bytes(whole)
        rewrite(path, lambda data: how(data if name in data else data["options"]))
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
        ("position_labels", [1]),
    ],
)
def test_wrong_values(path, name, value):
    rewrite(path, lambda data: data.update({name: value}))
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
    rewrite(path, lambda data: data["options"].update({name: value}))
    assert code(path) == "header_value"


def test_another_unit_than_that_of_the_items(path):
    rewrite(path, lambda data: data.update(unit="head"))
    assert code(path) == "size_mismatch"


def test_too_few_names_of_positions(path):
    rewrite(path, lambda data: data.update(position_labels=["a", "b"]))
    assert code(path) == "value"


def test_limits(path):
    assert code(path, LimitError, limits=Limits(max_header_bytes=100)) == "header_limit"
    assert code(path, LimitError, limits=Limits(max_tensors=3)) == "tensor_limit"
    assert code(path, LimitError, limits=Limits(max_array_bytes=100)) == "file_limit"


def test_large_tensors_of_another_shape_are_refused_before_they_are_in_memory(path):
    rewrite(path, scores=np.zeros((1, 5 * 2**20)))
    tracemalloc.start()
    assert code(path) == "size_mismatch"
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_names_from_a_file_are_escaped_where_they_are_shown(path):
    rewrite(path, lambda data: data.update(model_name="<script>"))
    assert "<script>" not in load_circuit(path)._repr_html_()
