"""Scores of component edges, nodes and neurons against the oracle: every method, ablation and direction."""

import numpy as np
import oracle_component_graph as graph
import oracle_components as components
import pytest
from circuit_cases import CONFIGS, TOLERANCE, case, error

from attnsparse.circuits import component_scores
from attnsparse.circuits.components import names as component_names

each_config = pytest.mark.parametrize("name", CONFIGS)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)
LENGTHS = (4, 6, 3)
PAIRED = ("eap", "eap-ig-inputs", "eap-ig-activations", "clean-corrupted")


def expected(one, method, level="edge", steps=3, **options):
    if level == "edge":
        return one.ask(components.edge_scores, method, steps=steps, **options)
    return one.ask(components.node_scores, method, neuron=level == "neuron", steps=steps, **options)


def found(one, method, dtype="float64", steps=3, **options):
    return component_scores(one.model(dtype), one.task, method=method, steps=steps, **options)


# ------------------------------------------------------------------------------------------ the oracle


@each_config
@pytest.mark.parametrize("method", component_names.METHODS)
@each_dtype
def test_edges(name, method, dtype):
    one = case(name, LENGTHS)
    scores = found(one, method, dtype).scores
    assert error(scores, expected(one, method)) < TOLERANCE[dtype]
    assert (scores[~graph.real_edges(one.config)] == 0).all()


@each_config
@pytest.mark.parametrize("level", ["node", "neuron"])
@pytest.mark.parametrize("method", PAIRED)
@each_dtype
def test_nodes_and_neurons(name, method, level, dtype):
    one = case(name, LENGTHS)
    assert (
        error(found(one, method, dtype, level=level).scores, expected(one, method, level)) < TOLERANCE[dtype]
    )


@pytest.mark.parametrize("name", ["dense", "gated", "relu, layer scale"])
@pytest.mark.parametrize("level", ["node", "neuron"])
@pytest.mark.parametrize("method", PAIRED)
def test_mlps_by_the_gradient_of_their_input(name, method, level):
    """As EAP-IG has them; all other nodes keep their scores."""
    one = case(name, LENGTHS)
    scores = found(one, method, level=level, mlp_gradient="input")
    assert error(scores.scores, expected(one, method, level, mlp_gradient="input")) < 1e-9
    usual = found(one, method, level=level)
    mlp = np.array([name.startswith("m") for name in scores.senders])
    np.testing.assert_array_equal(scores.scores[~mlp], usual.scores[~mlp])
    assert error(scores.scores[mlp], usual.scores[mlp]) > 0.1
    assert (scores.mlp_gradient, usual.mlp_gradient) == ("input", "output")


def test_component_edges_have_no_gradient_of_outputs():
    one = case("dense", LENGTHS)
    with pytest.raises(ValueError, match="mlp_gradient='input' is for"):
        found(one, "eap", mlp_gradient="input")
    with pytest.raises(ValueError, match="mlp_gradient"):
        found(one, "eap", level="node", mlp_gradient="x")


@pytest.mark.parametrize("name", ["dense", "gated", "no bias, gelu"])
@pytest.mark.parametrize("ablation", components.ABLATIONS)
@pytest.mark.parametrize("method", ["eap", "eap-ig-activations"])
@pytest.mark.parametrize("other", [False, True])
@each_dtype
def test_ablations(name, ablation, method, other, dtype):
    one = case(name, LENGTHS)
    options = {"ablation": ablation}
    if other and ablation.startswith("mean"):
        options["reference"] = case(name, (7, 6), seed=3).task
    wanted = expected(one, method, **options)
    assert error(found(one, method, dtype, **options).scores, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["dense", "gated"])
@pytest.mark.parametrize("method", PAIRED)
@pytest.mark.parametrize("level", ["edge", "neuron"])
@pytest.mark.parametrize("gate", component_names.GATES)
@pytest.mark.parametrize("direction", component_names.DIRECTIONS)
def test_directions_and_gates(name, method, level, gate, direction):
    one = case(name, LENGTHS)
    options = {"direction": direction, "gate": gate}
    scores = found(one, method, level=level, **options).scores
    assert error(scores, expected(one, method, level, **options)) < 1e-9


def test_the_gate_matters():
    one = case("gated", LENGTHS)
    held, own = (found(one, "eap-ig-inputs", gate=gate).scores for gate in ("held", "recomputed"))
    assert error(held, own) > 1e-3


@pytest.mark.parametrize("metric", ["logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl"])
@pytest.mark.parametrize("method", PAIRED)
@each_dtype
def test_metrics(metric, method, dtype):
    one = case("gated", LENGTHS)
    wanted = expected(one, method, metric=metric)
    assert error(found(one, method, dtype, metric=metric).scores, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("smaller", [False, True])
def test_a_custom_metric(smaller):
    """Its functions are told the number of the prompt, whichever run of it is asked about."""
    one = case("dense", LENGTHS)
    factors = np.array([1.0, -2.0, 0.5])
    metric = circuits_metric(factors, smaller)
    scores = found(one, "clean-corrupted", metric=metric).scores
    parts = []
    for i, factor in enumerate(factors):
        task = one.task.subset([i])
        slope = np.zeros(one.config["n_vocab"])
        slope[3] = factor
        asked = lambda logits, slope=slope: (float(slope @ logits), slope)  # noqa: E731
        parts.append(components.edge_scores(one.config, one.weights, task, "clean-corrupted", metric=asked))
    wanted = np.mean(parts, axis=0)
    assert error(scores, -wanted if smaller else wanted) < 1e-9


def circuits_metric(factors, smaller):
    from attnsparse.tasks import CustomMetric

    def gradient(logits, prompts):
        slope = np.zeros_like(logits)
        slope[:, 3] = factors[prompts]
        return slope

    return CustomMetric(
        name="third logit",
        values=lambda logits, prompts: factors[prompts] * logits[:, 3],
        gradient=gradient,
        smaller_is_better=smaller,
    )


# ------------------------------------------------------------------------------------------ the result


def test_the_order_and_the_names_are_those_of_the_oracle():
    one = case("dense", LENGTHS)
    result = found(one, "eap")
    assert list(result.senders) == graph.senders(one.config)
    assert list(result.receivers) == graph.receivers(one.config)
    np.testing.assert_array_equal(result.exists, graph.real_edges(one.config))
    assert result.n_edges == len(graph.edge_names(one.config))
    table = result.to_pandas()
    assert set(table["name"]) == set(graph.edge_names(one.config))
    last = table.iloc[-1]
    row, column = result.senders.index(last["sender"]), result.receivers.index(last["receiver"])
    assert last["score"] == result.scores[row, column]
    assert repr(result) == (
        "ComponentScores('' on 'random': 172 component edges, method='eap', ablation='counterfactual', "
        "direction='noising', gate='none', metric='logit_diff')"
    )


@pytest.mark.parametrize(("level", "n_columns"), [("node", 2), ("neuron", 3)])
def test_tables_of_nodes_and_neurons(level, n_columns):
    result = found(case("gated", LENGTHS), "eap-ig-inputs", level=level)
    assert result.to_pandas().shape == (result.scores.size, n_columns)
    assert "steps=3" in repr(result)
    assert result.gate == "recomputed"


@pytest.mark.parametrize("method", component_names.METHODS)
def test_any_limit_of_memory_gives_the_same_scores(method):
    """Less memory means fewer prompts at a time, then fewer runs of one prompt at a time."""
    one = case("gated", (6,) * 12)
    model, n_limits = one.model(), 0
    whole = component_scores(model, one.task, method=method).scores
    for limit in np.geomspace(2e7, 2e4, 30).astype(int):
        try:
            scores = component_scores(model, one.task, method=method, max_bytes=int(limit)).scores
        except MemoryError:
            continue
        assert error(scores, whole) < 1e-12
        n_limits += 1
    assert 2 < n_limits < 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ig"}, "method must be one of 'eap', 'eap-ig-inputs'"),
        ({"level": "edges"}, "level must be one of"),
        ({"ablation": "patching"}, "ablation must be one of"),
        ({"direction": "up"}, "direction must be one of"),
        ({"gate": "open"}, "gate must be one of"),
        ({"steps": 0}, "steps"),
        ({"max_bytes": 0}, "max_bytes"),
        (
            {"method": "eap-ig-inputs", "ablation": "zero"},
            "so it needs ablation='counterfactual', got 'zero'",
        ),
        ({"direction": "denoising", "ablation": "mean"}, "direction='denoising' needs"),
        ({"reference": [[1]]}, "reference is for means alone"),
        (
            {"method": "information-flow-routes", "level": "node"},
            "is for level='edge' and direction='noising'",
        ),
        ({"ablation": "mean-positional", "reference": [[1, 2]]}, "no reference prompt has a position 2"),
    ],
)
def test_wrong_arguments(options, message):
    one = case("dense", LENGTHS)
    with pytest.raises(ValueError, match=message):
        component_scores(one.model(), one.task, **options)
