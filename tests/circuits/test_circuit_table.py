"""Several circuits as one table: every row is one of the circuits' own tables."""

import numpy as np
import pandas as pd
import pytest
from fake_circuit import fake_circuit
from table_columns import hidden

import attnsparse as asp

CURVE = [0, 0.5, 0.95, 1]
HEADS = fake_circuit(CURVE, name="dense"), fake_circuit([0, 1], name="sparse")
EDGES = fake_circuit(CURVE, unit="edge", name="sparse", task="ioi")
OWN = {"items": "to_pandas", "curve": "curve", "summary": "summary"}


@pytest.mark.parametrize("of", OWN)
def test_circuits_that_differ_in_their_model_alone(of):
    table = asp.circuits.table(HEADS, of)
    parts = [getattr(circuit, OWN[of])() for circuit in HEADS]
    assert list(table) == [*(() if of == "summary" else ("model",)), *parts[0]]
    for circuit, part in zip(HEADS, parts):
        mine = table[table.model == circuit.model_name][list(part)].reset_index(drop=True)
        part.attrs = {}
        pd.testing.assert_frame_equal(mine, part)
    assert table.attrs == {}
    assert hidden(table) == []
    pd.testing.assert_frame_equal(asp.circuits.table(iter(HEADS), of), table)


def test_columns_are_what_differs():
    table = asp.circuits.table({"a": HEADS[0], "b": EDGES}, "items")
    assert list(table)[:4] == ["circuit", "model", "task", "unit"]
    assert table.circuit.tolist() == ["a"] * 3 + ["b"] * 3
    assert table.key_position.isna().tolist() == [True] * 3 + [False] * 3
    assert (table.key_position[3:] == 4).all()
    assert str(table.query_position.dtype) == "Int64"
    assert list(asp.circuits.table([EDGES], "curve"))[:2] == ["model", "n"]
    assert asp.circuits.table({"a": EDGES}).circuit.tolist() == ["a"]


def test_fraction():
    table = asp.circuits.table(HEADS, fraction=0.5)
    np.testing.assert_array_equal(table.n_first, [1, 1])
    np.testing.assert_array_equal(table.fraction, [0.5, 0.5])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([],), ValueError, "got none"),
        ((3,), TypeError, "got int"),
        (([3],), TypeError, "circuits must be a Circuit, got int"),
        ((HEADS, "rows"), ValueError, "of must be one of 'summary', 'items', 'curve', got 'rows'"),
    ],
)
def test_wrong_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        asp.circuits.table(*arguments)
    with pytest.raises(ValueError, match="fraction must be above 0"):
        asp.circuits.table(HEADS, fraction=0)
