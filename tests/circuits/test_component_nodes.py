"""Circuits of nodes and neurons against the oracle: evaluation, selection, curves, the JSON of EAP-IG."""

import json

import numpy as np
import oracle_component_graph as og
import oracle_components as oc
import pytest
from circuit_cases import CONFIGS, TOLERANCE, case, error

from attnsparse import FormatError, figures
from attnsparse.circuits import (
    NodeCircuit,
    component_scores,
    component_values,
    node_circuit,
    node_values,
)

each_config = pytest.mark.parametrize("name", CONFIGS)
each_gate = pytest.mark.parametrize("gate", oc.GATES)
LEVELS = ("node", "neuron")
LENGTHS = (1, 5, 3)


def shape_of(one, level: str) -> tuple[int, ...]:
    nodes = len(og.senders(one.config))
    return (nodes,) if level == "node" else (nodes, one.config["d_model"])


def some(one, level: str, seed: int = 0) -> np.ndarray:
    """Everything, nothing, and some; the last one without a part of the nodes."""
    rng, shape = np.random.default_rng(seed), shape_of(one, level)
    found = [np.ones(shape, bool), np.zeros(shape, bool)]
    found += [rng.random(shape) < p for p in (0.2, 0.5, 0.9)]
    found.append(found[-1].copy())
    found[-1][1::2] = False
    return np.array(found)


def expected(one, masks: np.ndarray, **options) -> np.ndarray:
    """Each circuit's neurons over all component edges."""
    width = one.config["d_model"]
    real, rows = og.real_edges(one.config), []
    for mask in masks:
        neurons = np.broadcast_to(mask[:, None], (len(mask), width)) if mask.ndim == 1 else mask
        if options.get("direction") == "denoising":
            neurons = ~neurons  # for the oracle, what is kept stays corrupted
        rows.append(one.ask(oc.evaluate, [real], neurons=neurons, **options)[0])
    return np.array(rows)


# ------------------------------------------------------------------------------------------ evaluation


@each_config
@each_gate
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("ablation", ["counterfactual", "zero", "mean-positional"])
def test_values(name, gate, level, ablation):
    one = case(name, LENGTHS)
    masks = some(one, level)
    found = node_values(one.model(), one.task, masks, ablation=ablation, gate=gate)
    assert error(found, expected(one, masks, ablation=ablation, gate=gate)) < 1e-9


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("metric", ["log_prob", "kl"])
def test_metrics(dtype, level, metric):
    one = case("gated", LENGTHS)
    masks = some(one, level)
    found = node_values(one.model(dtype), one.task, masks, metric=metric)
    assert error(found, expected(one, masks, metric=metric)) < TOLERANCE[dtype]


@each_config
@each_gate
@pytest.mark.parametrize("level", LEVELS)
def test_denoising(name, gate, level):
    one = case(name, LENGTHS)
    masks = some(one, level)
    found = node_values(one.model(), one.task, masks, direction="denoising", gate=gate)
    assert error(found, expected(one, masks, direction="denoising", gate=gate)) < 1e-9
    np.testing.assert_allclose(found[:2], node_values(one.model(), one.task, masks[:2]), atol=1e-12)


@each_config
def test_a_circuit_of_nodes_is_one_of_the_component_edges_between_them(name):
    """With the input inside; what is outside changes nothing that is read."""
    one = case(name, LENGTHS)
    masks = some(one, "node")[2:]
    masks[:, 0] = True
    names = og.senders(one.config)
    edges = [og.of_nodes(one.config, [names[i] for i in np.flatnonzero(mask)]) for mask in masks]
    found = node_values(one.model(), one.task, masks)
    np.testing.assert_allclose(found, component_values(one.model(), one.task, np.array(edges)), atol=1e-12)


def test_threads_and_blocks_change_no_bit():
    one = case("gated", LENGTHS)
    masks = some(one, "neuron")
    expected = node_values(one.model(), one.task, masks, threads=1)
    for options in ({"threads": 4}, {"max_bytes": 60_000}):
        np.testing.assert_array_equal(node_values(one.model(), one.task, masks, **options), expected)


# ------------------------------------------------------------------------------------------- selection


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rank_by", ["absolute", "signed"])
def test_selection(level, rank_by):
    one = case("gated", LENGTHS)
    shape = shape_of(one, level)
    scores = np.round(np.random.default_rng(1).normal(size=shape), 1)
    config = one.config
    circuit = NodeCircuit(scores, config["n_layer"], config["n_head"], config["d_model"], rank_by)
    key = np.abs(scores) if rank_by == "absolute" else scores
    order = np.argsort(-key.ravel(), kind="stable")
    np.testing.assert_array_equal(
        circuit.order().reshape(len(order), -1), np.stack(np.unravel_index(order, shape), axis=1)
    )
    sizes = list(range(0, scores.size + 1, max(1, scores.size // 40)))
    masks, kept = circuit.masks(sizes)
    whole, all_of_them = circuit.masks(sizes, prune=False)
    np.testing.assert_array_equal(all_of_them, sizes)
    for size, mask, n, unpruned in zip(sizes, masks, kept, whole):
        taken = np.zeros(shape, bool)
        taken.ravel()[order[:size]] = True
        np.testing.assert_array_equal(unpruned, taken)
        inside = taken.reshape(len(taken), -1).any(1)
        names = [name for name, is_in in zip(og.senders(config), inside) if is_in]
        left = og.kept_nodes(config, og.pruned(config, og.of_nodes(config, names)))
        stays = np.array([name in left for name in og.senders(config)])
        np.testing.assert_array_equal(mask, taken & stays.reshape(-1, *[1] * (len(shape) - 1)))
        assert n == mask.sum()


# ---------------------------------------------------------------------------------------------- curves


@pytest.mark.parametrize("level", LEVELS)
def test_the_curve(level):
    one = case("gated", LENGTHS)
    model = one.model()
    scores = component_scores(model, one.task, level=level)
    circuit = node_circuit(scores, model)
    shares = (0.0, 0.1, 0.3, 0.6, 1.0)
    curve = circuit.evaluate(model, one.task, shares=shares)
    masks, kept = circuit.masks([int(share * scores.scores.size) for share in shares])
    values = expected(one, masks)
    full, empty = one.ask(oc.whole_and_empty)
    assert error(curve.values, values) < 1e-9
    np.testing.assert_array_equal(curve.kept, kept)
    effect = og.faithfulness(values, full, empty)
    np.testing.assert_allclose(curve.faithfulness, effect, atol=1e-9)
    np.testing.assert_allclose(curve.cpr(n_bootstrap=0).value, og.cpr(effect, grid=shares), atol=1e-9)
    np.testing.assert_allclose(curve.cmd(n_bootstrap=0).value, og.cmd(effect, grid=shares), atol=1e-9)
    assert curve.level == level
    assert f"{level}s" in repr(curve)
    axes = figures.component_curve(curve)
    assert axes.get_xlabel() == f"{level}s kept"


def test_curves_of_nodes_and_neurons_have_no_axis_in_common():
    one = case("gated", LENGTHS)
    model = one.model()
    curves = {
        level: node_circuit(component_scores(model, one.task, level=level), model).evaluate(model, one.task)
        for level in LEVELS
    }
    with pytest.raises(ValueError, match="neurons and nodes have no axis in common"):
        figures.component_curve(curves)


# ------------------------------------------------------------------------------------------------ JSON


@pytest.mark.parametrize("level", LEVELS)
def test_the_json_of_eap(level, tmp_path):
    one = case("dense", LENGTHS)
    model = one.model()
    circuit = node_circuit(component_scores(model, one.task, level=level), model)
    n = circuit.scores.size // 2
    circuit.to_json(tmp_path / "a.json", n)
    again = NodeCircuit.from_json(tmp_path / "a.json")
    np.testing.assert_array_equal(again.scores, circuit.scores)
    np.testing.assert_array_equal(again.given, circuit.mask(n))
    assert (again.n_layer, again.n_head, again.d_model, again.level) == (
        circuit.n_layer, circuit.n_head, circuit.d_model, level,
    )  # fmt: skip
    again.to_json(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    data = json.loads((tmp_path / "a.json").read_text())
    inside = circuit.mask(n).reshape(len(circuit.scores), -1).any(1)
    names = [name for name, is_in in zip(og.senders(one.config), inside) if is_in]
    links = og.names_of(one.config, og.pruned(one.config, og.of_nodes(one.config, names)))
    assert {name for name, entry in data["edges"].items() if entry["in_graph"]} == links
    assert list(data["edges"]) == og.edge_names(one.config)
    assert data["nodes"]["logits"] == {"in_graph": True}
    told = {"in_graph", "score"} if level == "node" else {"in_graph", "neurons", "neurons_scores"}
    assert all(set(entry) == told for name, entry in data["nodes"].items() if name != "logits")


def broken(change):
    def wrong(data: dict) -> dict:
        change(data)
        return data

    return wrong


WRONG = {
    "no nodes": lambda data: {**data, "nodes": 3},
    "no config": lambda data: {**data, "cfg": None},
    "too many layers": lambda data: {**data, "cfg": {**data["cfg"], "n_layers": 512}},
    "no layers": lambda data: {**data, "cfg": {**data["cfg"], "n_layers": 0}},
    "side by side": lambda data: {**data, "cfg": {**data["cfg"], "parallel_attn_mlp": True}},
    "a node too many": broken(lambda data: data["nodes"].update({"m9": {}})),
    "a node too few": broken(lambda data: data["nodes"].pop("m0")),
    "no entry": broken(lambda data: data["nodes"].update({"m0": 3})),
    "no score": broken(lambda data: data["nodes"].update({"m0": {"in_graph": True}})),
    "no flag": broken(lambda data: data["nodes"].update({"m0": {"score": 1.0}})),
    "few neurons": broken(lambda data: data["nodes"]["m0"].update({"neurons_scores": [1.0]})),
}


@pytest.mark.parametrize("name", WRONG)
def test_json_that_makes_no_sense(name, tmp_path):
    one = case("dense", LENGTHS)
    model, path = one.model(), tmp_path / "a.json"
    node_circuit(component_scores(model, one.task, level="node"), model).to_json(path)
    path.write_text(json.dumps(WRONG[name](json.loads(path.read_text()))))
    with pytest.raises(FormatError) as caught:
        NodeCircuit.from_json(path)
    assert caught.value.code == "value"


# ---------------------------------------------------------------------------------------------- others


def test_tables():
    one = case("gated", LENGTHS)
    model = one.model()
    for level, columns in (("node", ["node", "score"]), ("neuron", ["node", "neuron", "score"])):
        circuit = node_circuit(component_scores(model, one.task, level=level), model)
        table = circuit.to_pandas()
        assert list(table) == columns
        assert len(table) == circuit.scores.size
        np.testing.assert_array_equal(
            table["score"], np.sort(table["score"].abs())[::-1] * np.sign(table["score"])
        )
        assert table["node"][0] == og.senders(one.config)[circuit.order()[0].ravel()[0]]


def test_wrong_arguments():
    one, other = case("gated", LENGTHS), case("dense", LENGTHS)
    model = one.model()
    circuit = node_circuit(component_scores(model, one.task, level="node"), model)
    wrong = [
        lambda: node_circuit(component_scores(model, one.task), model),
        lambda: node_circuit(component_scores(model, one.task, level="node"), other.model()),
        lambda: node_circuit(component_scores(model, one.task, level="node"), model, rank_by="x"),
        lambda: circuit.masks([99]),
        lambda: circuit.evaluate(other.model(), one.task),
        lambda: circuit.evaluate(model, one.task, shares=[]),
        lambda: node_values(model, one.task, np.ones(3, bool)),
        lambda: node_values(model, one.task, np.ones((1, 3), bool)),
    ]
    for use in wrong:
        with pytest.raises(ValueError):
            use()
    with pytest.raises(TypeError):
        node_values(model, one.task, np.ones(shape_of(one, "node"))[None])
