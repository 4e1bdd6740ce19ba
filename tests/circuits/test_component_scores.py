"""Scores of component edges, nodes and neurons against the oracle, in every method, ablation and direction."""


import numpy as np
import oracle_component_graph as graph
import oracle_components as components
import pytest
from circuit_cases import CONFIGS, TOLERANCE, case, error

from attnsparse.circuits import component_names, component_scores

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
    assert error(found(one, method, dtype, level=level).scores, expected(one, method, level)) < TOLERANCE[dtype]


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
