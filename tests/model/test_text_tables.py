"""Tables with texts that Arrow, by which pandas may keep text, refuses: halves of surrogate pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fake_circuit import fake_circuit
from small_graph import small_graph

from attnsparse._tables import repeated, text_column, text_table
from attnsparse.circuits.long_table import table as circuits_table
from attnsparse.graphs.long_table import table as graphs_table

ODD = "caf\udce9"
TABLES = {
    "columns": lambda: text_table({"a": [ODD, "x", "x"], "n": [1, 2, 3]}),
    "arrays": lambda: text_table({"a": np.array([ODD, "x", "x"]), "n": np.arange(1, 4)}),
    "objects": lambda: text_table({"a": np.array([ODD, "x", "x"], object), "n": (1, 2, 3)}),
    "rows": lambda: text_table([{"a": ODD, "n": 1}, {"a": "x", "n": 2}, {"a": "x", "n": 3}]),
    "text columns": lambda: text_table({"a": text_column([ODD, "x", "x"]), "n": [1, 2, 3]}),
}


@pytest.mark.parametrize("name", TABLES)
def test_what_is_done_with_a_table(name):
    table = TABLES[name]()
    assert (table["a"] == ODD).tolist() == [True, False, False]
    assert table["a"].tolist() == [ODD, "x", "x"]
    assert table.groupby("a", sort=False)["n"].sum().to_dict() == {ODD: 1, "x": 5}
    both = pd.concat([table, TABLES["columns"]()], ignore_index=True)
    assert both["a"].tolist() == [ODD, "x", "x"] * 2
    assert str(both["a"].dtype) == str(table["a"].dtype) == str(pd.Series(["x"]).dtype)
    assert table.merge(table, on="a")["a"].value_counts().to_dict() == {ODD: 1, "x": 4}
    assert table.sort_values("a")["n"].tolist() == [1, 2, 3]
    assert table.set_index("a").loc[ODD, "n"] == 1
    assert table["n"].dtype == np.int64


def test_the_same_table_as_pandas_makes():
    rows = [{"a": "x", "b": 1, "c": None, "d": True}, {"a": None, "b": 2.5, "e": "y", "d": False}]
    pd.testing.assert_frame_equal(text_table(rows), pd.DataFrame(rows), check_dtype=False)
    assert list(map(str, text_table(rows).dtypes)) == list(map(str, pd.DataFrame(rows).dtypes))
    names = ["b", "a", "f"]
    made = text_table(rows, names)
    assert list(made) == names
    assert list(map(str, made.dtypes)) == list(map(str, pd.DataFrame(rows, columns=names).dtypes))
    columns = {"a": "x", "b": [1, 2], "c": [["y"], "z"], "d": np.float32([1, 2]), "e": [(1, 2), (3, 4)]}
    pd.testing.assert_frame_equal(text_table(columns), pd.DataFrame(columns), check_dtype=False)
    assert list(map(str, text_table(columns).dtypes)) == list(map(str, pd.DataFrame(columns).dtypes))
    assert text_table([], ["a", "b"]).shape == (0, 2)
    assert repeated(3, 2) == 3
    assert list(repeated(ODD, 2)) == [ODD, ODD]


def test_tables_of_objects_with_odd_names():
    circuit = fake_circuit([0, 0.3, 0.95, 1], [0, 2, 5, 8], name=ODD)
    assert set(circuit.to_pandas()["model"]) == {ODD}
    graph = small_graph(9, strings=(ODD, " b"))
    graph = replace(graph, labels=tuple([ODD] * len(graph)), model_name=ODD, prompt=ODD)
    nodes = graph.nodes()
    assert ODD in set(nodes["token"])
    assert (nodes["label"] == ODD).all()
    assert graph.summary().iloc[0][["model", "prompt"]].tolist() == [ODD, ODD]
    both = graphs_table({ODD: graph, "other": graph}, "links", texts=True)
    assert both["graph"].value_counts().to_dict() == {ODD: len(graph.source), "other": len(graph.source)}
    assert set(both["model"]) == set(both["prompt_text"]) == {ODD}
    other = fake_circuit([0, 0.3, 0.95, 1], [0, 2, 5, 8], name="other", task=ODD)
    both = circuits_table({ODD: circuit, "other": other}, "items")
    assert both.groupby("model", sort=False).size().to_dict() == {ODD: len(circuit), "other": len(other)}
    assert set(both["circuit"]) == {ODD, "other"}
    assert ODD in set(both["task"])
