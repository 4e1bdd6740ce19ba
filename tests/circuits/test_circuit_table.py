"""Several circuits as one table: every row is one of the circuits' own tables."""

import numpy as np
import pandas as pd
import pytest
from circuit_cases import case
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
    assert list(table) == list(parts[0])
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


def component_results():
    """Results about components by class: of two models, or with another option."""
    one = case("gated", (4, 3, 6))
    model, task = one.model(), one.task
    scores = [
        asp.circuits.component_scores(model, task, method=method) for method in ("eap", "eap-ig-inputs")
    ]
    nodes = [
        asp.circuits.component_scores(model, task, method=method, level="node")
        for method in ("eap", "eap-ig-inputs")
    ]
    circuits = [asp.circuits.component_circuit(each, model) for each in scores]
    of_nodes = [asp.circuits.node_circuit(each, model) for each in nodes]
    return {
        "scores": scores,
        "circuits": circuits,
        "nodes": of_nodes,
        "curves": [
            circuits[0].evaluate(model, task, shares=(0.5, 1.0), ablation=how) for how in ("zero", "mean")
        ],
        "node curves": [
            of_nodes[0].evaluate(model, task, shares=(0.5,), ablation=how) for how in ("zero", "mean")
        ],
        "acdc": [
            asp.circuits.component_acdc_sweep(model, task, [0.1], gate=gate)
            for gate in ("held", "recomputed")
        ],
        "patching": [
            asp.circuits.patching_sweep(model, task, "z", direction=way) for way in ("noising", "denoising")
        ],
        "paths": [
            asp.circuits.path_patch(model, task, ["m0"], ["logits"], direction=way)
            for way in ("noising", "denoising")
        ],
    }


def test_results_about_components():
    for name, results in component_results().items():
        table = asp.circuits.table({"a": results[0], "b": results[1]})
        own = [result.to_pandas() for result in results]
        assert list(table)[:2] == ["circuit", "model"]
        assert len(list(table)) == len(set(table)) == 3 + len(list(own[0])), name
        for label, result, part in zip("ab", results, own):
            mine = table[table.circuit == label].reset_index(drop=True)
            pd.testing.assert_frame_equal(mine[list(part)], part)
            assert set(mine.model) == {result.model}
            assert mine.iloc[:, 2].tolist() == [getattr(result, table.columns[2])] * len(part)
        assert hidden(table) == []
    with pytest.raises(ValueError, match="PathPatch has one table"):
        asp.circuits.table(results, "items")
    with pytest.raises(TypeError, match="circuits must be a PathPatch, got Circuit"):
        asp.circuits.table([results[0], EDGES])
