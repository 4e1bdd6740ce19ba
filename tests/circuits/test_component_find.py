"""Ranking and evaluation on different prompts, and random rankings beside a circuit."""

import dataclasses

import numpy as np
import oracle_components as oc
import pytest
from circuit_cases import case, error

from attnsparse.circuits import (
    component_circuit,
    component_scores,
    find_component_circuit,
    load_component_circuit,
)
from attnsparse.circuits.components.evaluate import random_ranking
from attnsparse.tasks import CustomMetric

SHARES = (0.05, 0.2, 0.6, 1.0)


def halved(name="gated", lengths=(5, 7, 3, 6, 4, 5)):
    """A case whose first, third ... prompts are for ranking."""
    one = case(name, lengths)
    is_ranking = np.arange(len(lengths)) % 2 == 0
    return dataclasses.replace(one, task=dataclasses.replace(one.task, is_ranking=is_ranking))


def found_in(one, **options):
    return find_component_circuit(one.model(), one.task, shares=SHARES, **options)


# ---------------------------------------------------------------------------------------------- halves


@pytest.mark.parametrize("ablation", ["counterfactual", "mean", "zero"])
def test_each_half_has_its_part(ablation):
    one = halved()
    model, ranking, evaluation = one.model(), one.task.ranking, one.task.evaluation
    circuit, curve = found_in(one, method="eap", ablation=ablation, n_random=0)
    reference = {"reference": ranking} if ablation == "mean" else {}
    scores = component_scores(model, ranking, method="eap", ablation=ablation, **reference)
    np.testing.assert_array_equal(circuit.scores, scores.scores)
    expected = component_circuit(scores, model).evaluate(
        model, evaluation, shares=SHARES, ablation=ablation, **reference
    )
    np.testing.assert_array_equal(curve.values, expected.values)
    assert circuit.prompts == ranking.prompt_digests
    assert curve.prompts == evaluation.prompt_digests
    assert not set(circuit.prompts) & set(curve.prompts)
    assert curve.n_shared == 0
    assert "ranked on" not in repr(curve)


def test_a_custom_metric_is_told_the_prompts_of_the_whole_task():
    one = halved()
    seen: dict[str, set] = {"values": set(), "gradient": set()}

    def values(logits, prompts):
        seen["values"] |= set(prompts.tolist())
        return logits[:, 0]

    def gradient(logits, prompts):
        seen["gradient"] |= set(prompts.tolist())
        return np.eye(1, logits.shape[1]).repeat(len(logits), axis=0).astype(logits.dtype)

    found_in(one, method="eap", metric=CustomMetric(values, gradient), n_random=0)
    assert seen["gradient"] == {0, 2, 4}
    assert seen["values"] >= {1, 3, 5}


def test_the_same_prompts_in_both_halves_are_refused():
    one = halved()
    task = one.task.subset([0, 1, 2, 3, 0])
    twice = dataclasses.replace(task, is_ranking=np.array([True, False, True, False, False]))
    with pytest.raises(
        ValueError, match=r"1 of 3 evaluation prompts are among those for ranking too, .* prompt 4"
    ):
        find_component_circuit(one.model(), twice)
    with pytest.raises(ValueError, match="has no prompts for evaluation"):
        find_component_circuit(one.model(), one.task.ranking)


def test_prompts_of_the_ranking_are_counted(tmp_path):
    one = halved()
    model = one.model()
    circuit = component_circuit(component_scores(model, one.task.subset([0, 2, 3])), model)
    curve = circuit.evaluate(model, one.task.subset([3, 5, 0]), shares=SHARES)
    assert curve.n_shared == 2
    assert "3 prompts (2 of them ranked on)" in repr(curve)
    circuit.save(tmp_path / "one")
    again = load_component_circuit(tmp_path / "one")
    assert again.evaluate(model, one.task.subset([5, 0]), shares=SHARES).n_shared == 1
    circuit.to_json(tmp_path / "one.json")
    unknown = type(circuit).from_json(tmp_path / "one.json")
    assert unknown.evaluate(model, one.task, shares=SHARES).n_shared is None


def test_digests_are_of_the_tokens():
    task = halved().task
    assert len(set(task.prompt_digests)) == len(task)
    assert task.subset([4, 1]).prompt_digests == (task.prompt_digests[4], task.prompt_digests[1])
    assert dataclasses.replace(task, name="other").prompt_digests == task.prompt_digests
    assert task.swapped().prompt_digests != task.prompt_digests


def test_information_flow_routes_are_found_too():
    circuit, curve = found_in(
        halved(), method="information-flow-routes", select="greedy", ablation="zero", n_random=1
    )
    assert (circuit.method, circuit.select, curve.ablation) == ("information-flow-routes", "greedy", "zero")


# -------------------------------------------------------------------------------------- random rankings


@pytest.mark.parametrize("select", ["top", "greedy"])
def test_random_rankings_are_evaluated_exactly(select):
    one = halved()
    model = one.model()
    circuit = component_circuit(component_scores(model, one.task), model, select=select)
    curve = circuit.evaluate(model, one.task, shares=SHARES, n_random=3, seed=9)
    sizes = [int(share * circuit.n_edges) for share in SHARES]
    for i in range(3):
        masks, kept = random_ranking(circuit, 9, i).masks(sizes)
        assert error(curve.random_values[i], one.ask(oc.evaluate, masks)) < 1e-9
        np.testing.assert_array_equal(curve.random_kept[i], kept)
        np.testing.assert_array_equal(kept, masks.sum((1, 2)))
    plain = circuit.evaluate(model, one.task, shares=SHARES)
    np.testing.assert_array_equal(plain.values, curve.values)
    assert plain.random_values.shape == (0, len(SHARES), len(one.task))
    assert np.isnan(plain.to_pandas()["random"]).all()


def test_mean_and_ends_of_random_rankings():
    one = halved()
    curve = found_in(one, n_random=4, method="eap").curve
    m, full, empty = (a.mean(-1) for a in (curve.random_values, curve.full, curve.empty))
    expected = (m - empty) / (full - empty)
    np.testing.assert_allclose(curve.random_faithfulness, expected, rtol=1e-12)
    table = curve.to_pandas()
    np.testing.assert_allclose(table["random"], expected.mean(0), rtol=1e-12)
    np.testing.assert_allclose(table["random_low"], expected.min(0), rtol=1e-12)
    np.testing.assert_allclose(table["random_high"], expected.max(0), rtol=1e-12)
    np.testing.assert_allclose(table["random"].iloc[-1], 1, atol=1e-9)


def test_a_random_ranking_depends_on_seed_and_number_alone():
    one = halved()
    few, many, other = (
        found_in(one, n_random=n, seed=seed, method="eap").curve for n, seed in ((2, 1), (4, 1), (2, 2))
    )
    np.testing.assert_array_equal(few.random_values, many.random_values[:2])
    assert (few.random_values[:, :-1] != other.random_values[:, :-1]).any()
    assert (many.random_values[0] != many.random_values[1]).any()


def test_random_rankings_take_every_component_edge_alike():
    """Every place of the first tenth of 500 orders: within five standard deviations of what is due."""
    one = case("dense", (5,))
    model = one.model()
    circuit = component_circuit(component_scores(model, one.task), model)
    n = circuit.n_edges // 10
    taken = sum(random_ranking(circuit, 0, i).mask(n, prune=False).astype(int) for i in range(500))
    counts = taken[component_scores(model, one.task).exists]
    share = n / circuit.n_edges
    assert counts.sum() == 500 * n
    assert np.abs(counts - 500 * share).max() < 5 * np.sqrt(500 * share * (1 - share))


def test_wrong_numbers():
    one = halved()
    for options in ({"n_random": -1}, {"n_random": 10_001}, {"seed": -1}):
        with pytest.raises(ValueError):
            found_in(one, method="eap", **options)
