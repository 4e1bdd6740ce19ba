"""Circuits of component edges against the oracle: evaluation, exact scores, selection, curves, files."""

import dataclasses
import json

import numpy as np
import oracle_component_graph as og
import oracle_components as oc
import pytest
from circuit_cases import CONFIGS, TOLERANCE, Case, case, error
from table_columns import hidden

import attnsparse as asp
from attnsparse import FormatError
from attnsparse.circuits import (
    ComponentCircuit,
    component_circuit,
    component_scores,
    component_values,
    load_component_circuit,
)

each_config = pytest.mark.parametrize("name", CONFIGS)
each_ablation = pytest.mark.parametrize("ablation", oc.ABLATIONS)
each_gate = pytest.mark.parametrize("gate", oc.GATES)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)
LENGTHS = (1, 5, 3, 7)


def sets_of(one: Case, seed: int = 0) -> np.ndarray:
    """Everything, nothing, and some of it."""
    real, rng = og.real_edges(one.config), np.random.default_rng(seed)
    return np.array([real, ~real & real, *(real & (rng.random(real.shape) < p) for p in (0.05, 0.3, 0.9))])


def random_scores(config, seed: int = 0) -> np.ndarray:
    """With ties."""
    real = og.real_edges(config)
    return np.round(np.random.default_rng(seed).normal(size=real.shape), 1) * real


def random_circuit(config, **options) -> ComponentCircuit:
    return ComponentCircuit(
        random_scores(config), config["n_layer"], config["n_head"], config["d_model"], **options
    )


# ------------------------------------------------------------------------------------------ evaluation


@each_config
@each_ablation
@each_gate
@each_dtype
def test_values(name, ablation, gate, dtype):
    one = case(name, LENGTHS)
    sets = sets_of(one)
    found = component_values(one.model(dtype), one.task, sets, ablation=ablation, gate=gate)
    expected = one.ask(oc.evaluate, sets, ablation=ablation, gate=gate)
    assert error(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("metric", ["logit_diff_max", "prob_diff", "log_prob", "kl"])
def test_metrics(metric):
    one = case("gated", LENGTHS)
    sets = sets_of(one)
    found = component_values(one.model(), one.task, sets, metric=metric)
    assert error(found, one.ask(oc.evaluate, sets, metric=metric)) < 1e-9


@each_config
@each_gate
def test_denoising(name, gate):
    """What is in the circuit is clean: for the oracle, what is outside of the set that stays corrupted."""
    one = case(name, LENGTHS)
    sets = sets_of(one)
    found = component_values(one.model(), one.task, sets, direction="denoising", gate=gate)
    outside = og.real_edges(one.config) & ~sets
    assert error(found, one.ask(oc.evaluate, outside, direction="denoising", gate=gate)) < 1e-9
    plain = component_values(one.model(), one.task, sets[:2])
    np.testing.assert_allclose(found[:2], plain, atol=1e-12)


def test_a_held_gate_differs_from_a_recomputed_one():
    one = case("gated", (5, 7))
    sets = sets_of(one)
    held, own = (component_values(one.model(), one.task, sets, gate=gate) for gate in ("held", "recomputed"))
    assert np.abs(held - own)[2:].max() > 1e-3


@each_config
def test_everything_is_the_model_and_nothing_the_corrupted_run(name):
    one = case(name, LENGTHS)
    model = one.model()
    found = component_values(model, one.task, sets_of(one)[:2])
    clean = asp.circuits.metric_values(model, one.task)
    other = dataclasses.replace(one.task, clean=one.task.corrupted, corrupted=one.task.clean)
    assert error(found[0], clean) < 1e-12
    assert error(found[1], asp.circuits.metric_values(model, other)) < 1e-12


@pytest.mark.parametrize("ablation", ["mean", "mean-positional", "mean-all"])
def test_reference_prompts(ablation):
    one, other = case("gated", LENGTHS), case("gated", (7, 7, 4), seed=3)
    sets = sets_of(one)
    found = component_values(one.model(), one.task, sets, ablation=ablation, reference=other.task)
    assert error(found, one.ask(oc.evaluate, sets, ablation=ablation, reference=other.task)) < 1e-9


@each_dtype
def test_threads_change_no_bit(dtype):
    one = case("gated", LENGTHS)
    model, sets = one.model(dtype), sets_of(one)
    alone, four = (component_values(model, one.task, sets, threads=n) for n in (1, 4))
    np.testing.assert_array_equal(alone, four)


@pytest.mark.parametrize("ablation", ["counterfactual", "mean"])
def test_blocks_change_no_bit(ablation):
    one = case("gated", LENGTHS)
    model, sets = one.model(), sets_of(one)
    expected = component_values(model, one.task, sets, ablation=ablation)
    with pytest.raises(MemoryError, match="one prompt at a time"):
        component_values(model, one.task, sets, ablation=ablation, max_bytes=20_000)
    found = component_values(model, one.task, sets, ablation=ablation, max_bytes=60_000)
    np.testing.assert_array_equal(found, expected)


def test_blocks_change_no_bit_of_exact_scores():
    one = case("gated", LENGTHS)
    expected = component_scores(one.model(), one.task, method="exact").scores
    with pytest.raises(MemoryError, match="one prompt at a time"):
        component_scores(one.model(), one.task, method="exact", max_bytes=20_000)
    found = component_scores(one.model(), one.task, method="exact", max_bytes=2_300_000).scores
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_dangling_component_edges_change_no_counterfactual_value():
    one = case("dense", LENGTHS)
    circuit = random_circuit(one.config)
    whole, pruned = (circuit.masks(range(0, circuit.n_edges, 7), prune=prune)[0] for prune in (False, True))
    found = [component_values(one.model(), one.task, masks) for masks in (whole, pruned)]
    np.testing.assert_array_equal(*found)


# ---------------------------------------------------------------------------------------- exact scores


@each_config
@each_ablation
@each_gate
def test_exact(name, ablation, gate):
    one = case(name, LENGTHS)
    expected = one.ask(oc.edge_scores, "exact", ablation=ablation, gate=gate)
    for dtype, tolerance in TOLERANCE.items():
        found = component_scores(one.model(dtype), one.task, method="exact", ablation=ablation, gate=gate)
        assert error(found.scores, expected) < tolerance


@pytest.mark.parametrize("direction", oc.DIRECTIONS)
@pytest.mark.parametrize("metric", ["logit_diff", "kl"])
def test_exact_directions(direction, metric):
    one = case("gated", LENGTHS)
    found = component_scores(one.model(), one.task, method="exact", direction=direction, metric=metric)
    assert error(found.scores, one.ask(oc.edge_scores, "exact", direction=direction, metric=metric)) < 1e-9


def test_exact_is_one_component_edge_out_of_the_circuit_of_all():
    """Also where prompts of a pair begin alike, so that their first rows are those of the clean run."""
    one = case("gated", (6, 6))
    corrupted = tuple(np.concatenate([a[:4], b[4:]]) for a, b in zip(one.task.clean, one.task.corrupted))
    task = dataclasses.replace(one.task, corrupted=corrupted)
    real = og.real_edges(one.config)
    places = np.argwhere(real)
    sets = np.repeat(real[None], len(places) + 1, axis=0)
    sets[np.arange(len(places)), places[:, 0], places[:, 1]] = False
    values = component_values(one.model(), task, sets).mean(1)
    found = component_scores(one.model(), task, method="exact")
    assert error(found.scores[real], values[-1] - values[:-1]) < 1e-9


def test_exact_threads_change_no_bit():
    one = case("dense", (6, 6, 6))
    alone, four = (
        component_scores(one.model("float32"), one.task, method="exact", threads=n).scores for n in (1, 4)
    )
    np.testing.assert_array_equal(alone, four)


# ------------------------------------------------------------------------------------------- selection


@pytest.mark.parametrize("select", ["top", "greedy"])
@pytest.mark.parametrize("rank_by", ["absolute", "signed"])
@pytest.mark.parametrize(("n_layer", "n_head"), [(1, 1), (2, 2), (3, 3)])
def test_selection(select, rank_by, n_layer, n_head):
    config = {"n_layer": n_layer, "n_head": n_head, "d_model": 4}
    circuit = random_circuit(config, select=select, rank_by=rank_by)
    choose = {"top": og.top_n, "greedy": og.greedy}[select]
    sizes = range(circuit.n_edges + 1)
    whole, counted = circuit.masks(sizes, prune=False)
    pruned, kept = circuit.masks(sizes)
    for n in sizes:
        expected = choose(config, circuit.scores, n, rank_by == "absolute")
        np.testing.assert_array_equal(whole[n], expected)
        np.testing.assert_array_equal(pruned[n], og.pruned(config, expected))
    np.testing.assert_array_equal(counted, sizes)
    np.testing.assert_array_equal(kept, pruned.sum((1, 2)))
    assert set(circuit.edges(5)) == og.names_of(config, pruned[5])


def test_gpt2_has_32491():
    assert random_circuit({"n_layer": 12, "n_head": 12, "d_model": 768}).n_edges == 32_491


@pytest.mark.parametrize("rank_by", ["absolute", "signed"])
def test_roc(rank_by):
    config = {"n_layer": 2, "n_head": 3, "d_model": 4}
    circuit = random_circuit(config, rank_by=rank_by)
    truth = og.real_edges(config) & (np.random.default_rng(5).random(circuit.scores.shape) < 0.3)
    found = circuit.roc(truth)
    false_rate, true_rate = og.roc(config, circuit.scores, truth, rank_by == "absolute")
    np.testing.assert_allclose(found.false_rate, false_rate, atol=1e-15)
    np.testing.assert_allclose(found.true_rate, true_rate, atol=1e-15)
    assert found.area == pytest.approx(
        og.auc(config, circuit.scores, truth, rank_by == "absolute"), abs=1e-12
    )


# ---------------------------------------------------------------------------------------------- curves


def test_curve():
    one = case("gated", LENGTHS)
    model = one.model()
    circuit = component_circuit(component_scores(model, one.task), model)
    grid = [0.02, 0.1, 0.2, 0.5, 1.0]
    curve = circuit.evaluate(model, one.task, shares=grid)
    sizes = og.grid_sizes(circuit.n_edges, grid)
    values, effect, kept = one.ask(oc.curve, circuit.scores, sizes)
    np.testing.assert_array_equal(curve.requested, sizes)
    np.testing.assert_array_equal(curve.kept, kept)
    assert error(curve.values, values) < 1e-9
    assert error(curve.faithfulness, effect) < 1e-9
    assert curve.cpr().value == pytest.approx(og.cpr(effect, grid=grid), rel=1e-9)
    assert curve.cmd().value == pytest.approx(og.cmd(effect, grid=grid), rel=1e-9, abs=1e-9)
    assert curve.cpr().low <= curve.cpr().value <= curve.cpr().high
    table = curve.to_pandas()
    assert hidden(table) == []
    assert list(table.columns) == ["share", "requested", "kept", "metric", "faithfulness", "low", "high"]
    assert table["faithfulness"].iloc[-1] == pytest.approx(1)
    assert "5 sizes, 4 prompts" in repr(curve)


def test_areas_on_mibs_grid():
    """A perfect circuit: CPR is the width of the grid, CMD 0."""
    one = case("dense", (5, 5, 5, 5))
    full = np.ones((10, 4))
    curve = dataclasses.replace(
        random_circuit(one.config).evaluate(one.model(), one.task, ablation="zero"),
        values=full, full=full[0], empty=np.zeros(4),
    )  # fmt: skip
    assert curve.cpr().value == pytest.approx(0.999)
    assert curve.cmd() == (0, 0, 0)


# ----------------------------------------------------------------------------------------------- files


def test_json_is_that_of_the_oracle(tmp_path):
    config = {"n_layer": 2, "n_head": 2, "d_model": 4}
    circuit, path = random_circuit(config), tmp_path / "importances.json"
    circuit.to_json(path, 20)
    data = json.loads(path.read_text())
    expected = og.to_json(config, circuit.scores, circuit.mask(20))
    assert data == expected
    assert list(data["edges"]) == list(expected["edges"])
    again = ComponentCircuit.from_json(path)
    np.testing.assert_array_equal(again.scores, circuit.scores)
    np.testing.assert_array_equal(again.given, circuit.mask(20))
    again.to_json(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cfg": 1}, "cfg"),
        ({"edges": []}, "edges"),
        ({"edges": {"a1.h0->m0": {"score": 1.0, "in_graph": True}}}, "a1.h0->m0"),
        ({"edges": {"input->m0": 1}}, "input->m0"),
        ({"edges": {"input->m0": {"score": "1", "in_graph": True}}}, "input->m0"),
        ({"cfg": {"n_layers": 0, "n_heads": 2, "d_model": 4}}, "n_layers"),
        (
            {"cfg": {"n_layers": 2, "n_heads": 2, "d_model": 4, "parallel_attn_mlp": True}},
            "parallel_attn_mlp",
        ),
    ],
)
def test_wrong_json(tmp_path, change, field):
    path = tmp_path / "importances.json"
    random_circuit({"n_layer": 2, "n_head": 2, "d_model": 4}).to_json(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FormatError) as caught:
        ComponentCircuit.from_json(path)
    assert (caught.value.code, caught.value.field) == ("value", field)


def test_save_and_load(tmp_path):
    circuit = random_circuit({"n_layer": 2, "n_head": 3, "d_model": 4}, select="greedy", task="ä")
    for one in (circuit, dataclasses.replace(circuit, given=circuit.mask(9))):
        one.save(tmp_path / "one")
        found = load_component_circuit(tmp_path / "one")
        for name, value in vars(one).items():
            np.testing.assert_array_equal(getattr(found, name), value)
    table = circuit.to_pandas()
    assert list(table.columns) == ["item_rank", "name", "sender", "receiver", "score"]
    assert len(table) == circuit.n_edges
    assert "greedy" in repr(circuit)


# ------------------------------------------------------------------------------------------- refused


def test_wrong_arguments():
    one = case("dense", (5, 5))
    model, sets = one.model(), sets_of(one)
    circuit = random_circuit(one.config)
    wrong = [
        lambda: component_values(model, one.task, sets[:, :2]),
        lambda: component_values(model, one.task, sets[0]),
        lambda: component_values(model, one.task, sets, ablation="mean", direction="denoising"),
        lambda: component_values(model, one.task, sets, reference=one.task),
        lambda: component_scores(model, one.task, method="exact", level="node"),
        lambda: circuit.masks([circuit.n_edges + 1]),
        lambda: circuit.roc(og.real_edges(one.config)),
        lambda: circuit.evaluate(model, one.task, shares=[0.5, 0.1]),
        lambda: random_circuit({"n_layer": 1, "n_head": 1, "d_model": 4}).evaluate(model, one.task),
        lambda: component_circuit(component_scores(model, one.task, level="node"), model),
    ]
    for use in wrong:
        with pytest.raises(ValueError):
            use()
    with pytest.raises(TypeError, match="booleans"):
        component_values(model, one.task, sets.astype(float))
    with pytest.raises(ValueError, match="not finite"):
        dataclasses.replace(circuit, scores=np.full(circuit.scores.shape, np.nan)).mask(3)
