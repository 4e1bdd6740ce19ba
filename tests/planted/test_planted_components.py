"""Circuits of component edges put in by hand: the models do what they were written to do, and methods find
what they must and miss what they must, by the core and by the oracle."""

import engine
import numpy as np
import oracle
import oracle_component_graph as graph
import oracle_components as comp
import planted
import planted_components as pc
import pytest

from attnsparse.circuits import component_scores

CASES = {case.name: case for case in pc.all_planted()}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
NOTHING = 1e-9


def effects(case, sets, **options):
    values = comp.evaluate(case.config, case.weights, case.task, sets, **options)
    full, empty = comp.whole_and_empty(case.config, case.weights, case.task, **options)
    return graph.faithfulness(values, full, empty)


@each_case
def test_the_task_is_solved_and_the_corrupted_one_has_the_other_answer(case):
    full, empty = comp.whole_and_empty(case.config, case.weights, case.task)
    assert (full > 1).all()
    assert (empty < full - 1).all()
    for clean, corrupted in zip(case.task.clean, case.task.corrupted):
        assert (np.asarray(clean) != corrupted).sum() == 1


@each_case
def test_layer_norm_is_the_identity(case):
    run = oracle.forward(case.config, case.weights, case.task.clean[0])
    last = run["resid_post"][-1, -1]
    np.testing.assert_allclose(
        run["ln_final_normalized"][-1] * planted.LN_WEIGHT, last, rtol=0, atol=1e-13 * np.abs(last).max()
    )


@each_case
@pytest.mark.parametrize("gate", comp.GATES)
def test_the_edges_alone_are_the_whole_effect_and_each_is_needed(case, gate):
    sets = [graph.mask_of(case.config, names) for names in (case.edges, *case.enough)]
    assert effects(case, sets, gate=gate) == pytest.approx(np.ones(len(sets)), abs=NOTHING)
    for mask, names in zip(sets, (case.edges, *case.enough)):
        assert graph.names_of(case.config, graph.pruned(case.config, mask)) == set(names)
    for names in case.enough:
        without = [graph.mask_of(case.config, names - {name}) for name in sorted(names)]
        assert (effects(case, without, gate=gate) < 0.6).all()


@each_case
def test_no_other_edge_matters_alone_or_together(case):
    real = graph.real_edges(case.config)
    exact = case.scores("exact")
    assert np.abs(exact[real & ~case.true]).max() < NOTHING
    assert effects(case, [real & ~case.true])[0] < 0.6


@each_case
@pytest.mark.parametrize("gate", comp.GATES)
@pytest.mark.parametrize("question", pc.QUESTIONS)
def test_methods_find_what_they_must_and_miss_what_they_must(case, question, gate):
    model = engine.build(case.config, case.weights, "float64")
    scores = component_scores(model, case.task, gate=gate, **pc.QUESTIONS[question]).scores
    assert (case.precision_recall(scores) == (1.0, 1.0)) == (question not in case.misses)


@pytest.mark.slow
@each_case
@pytest.mark.parametrize("gate", comp.GATES)
@pytest.mark.parametrize("question", pc.QUESTIONS)
def test_the_oracle_finds_and_misses_the_same(case, question, gate):
    found = case.precision_recall(case.scores(question, gate)) == (1.0, 1.0)
    assert found == (question not in case.misses)


@each_case
@pytest.mark.parametrize("question", ["exact", "exact, denoising", "clean-corrupted"])
def test_the_area_under_the_roc_is_whole_where_the_circuit_is_found(case, question):
    area = graph.auc(case.config, case.scores(question), case.true)
    assert (area == 1) == (question not in case.misses)


@pytest.mark.slow
@each_case
def test_acdc_and_the_greedy_find_a_set_that_is_enough(case):
    """Divergence of logits; of two redundant heads the first is left, whose edges are asked last."""
    found = graph.acdc(case.config, comp.kl_of(case.config, case.weights, case.task), 1e-6)
    assert graph.names_of(case.config, graph.pruned(case.config, found)) in [set(s) for s in case.enough]
    scores = case.scores("exact, denoising")
    chosen = graph.greedy(case.config, scores, len(case.edges))
    assert graph.names_of(case.config, chosen) == set(case.edges)


@pytest.mark.parametrize("gated", [False, True])
def test_a_chain_of_copies_scores_the_same_on_every_edge_and_by_every_method(gated):
    """Nothing on the way is bent, so that all methods with a gradient are exact."""
    case = CASES[pc.through_v(gated).name]
    edges = [graph.mask_of(case.config, [name]) for name in sorted(case.edges)]
    for question in ("eap", "eap-ig-inputs, 5 steps", "clean-corrupted", "exact", "exact, denoising"):
        scores = case.scores(question)
        assert [scores[edge].item() for edge in edges] == pytest.approx([2 * planted.GAIN] * 3)


def test_a_redundant_pair_is_invisible_from_the_clean_side_alone():
    case = CASES[pc.redundant(False).name]
    last = graph.mask_of(case.config, ["m1->logits"])
    for question in ("eap", "exact"):
        scores = case.scores(question)
        assert scores[last].item() == pytest.approx(0.75 * planted.GAIN)
        assert np.abs(scores[~last]).max() < NOTHING
