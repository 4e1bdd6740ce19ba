"""Circuits put in by hand: the models do what they were written to do, and methods find what they must.

The first half asks the oracle alone; the second asks the package.
"""

import numpy as np
import oracle
import oracle_circuits as oc
import planted
import pytest
from places import ROOT

from attnsparse.circuits import effects
from attnsparse.circuits.find import find_circuit

CASES = {case.name: case for case in planted.all_planted()}
NOISE = 1e-9  # of the oracle's differences
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_unit = pytest.mark.parametrize("unit", ["head", "edge"])


def items_and_truth(case, unit):
    """Candidates, and which of them stand in one of the true sets."""
    items = oc.candidates(case.config, case.weights, case.task, unit)
    true = set().union(*case.truth(unit))
    return items, np.array([tuple(item) in true for item in items])


# ------------------------------------------------------------------------------------------- by the oracle


@each_case
def test_layer_norm_is_the_identity_at_the_last_token(case):
    run = oracle.forward(case.config, case.weights, case.task.clean[0])
    last, tolerance = run["resid_post"][-1, -1], 1e-14  # exactly, but for the order of sums in NumPy's BLAS
    assert abs(last.mean()) <= tolerance
    np.testing.assert_allclose(
        run["ln_final_normalized"][-1] * planted.LN_WEIGHT, last, rtol=0, atol=tolerance
    )


@each_case
def test_the_task_is_solved_and_the_corrupted_one_has_the_other_answer(case):
    for i, (answer, wrong) in enumerate(zip(case.task.answers, case.task.wrong)):
        logits = oracle.forward(case.config, case.weights, case.task.clean[i])["logits"][-1]
        assert logits.argmax() == answer
        logits = oracle.forward(case.config, case.weights, case.task.corrupted[i])["logits"][-1]
        assert logits.argmax() == wrong


@each_case
def test_gates_are_clear_and_true_heads_sure(case):
    for tokens in case.task.clean:
        run = oc.forward(case.config, case.weights, tokens)
        plain = oracle.forward(case.config, case.weights, tokens)
        if case.config["gated"]:
            assert np.abs(plain["scores"] + planted.GATE_BIAS).min() > 0.9
        rows = [run["pattern"][layer, head].max(-1)[-1] for layer, head in set().union(*case.heads)]
        assert min(rows) > 0.99


@each_case
@each_unit
def test_a_true_set_is_enough_and_nothing_in_it_can_go(case, unit):
    full = oc.metric_values(case.config, case.weights, case.task)
    for true in case.truth(unit):
        items = np.array(sorted(true))
        sizes = [0, len(items)]
        values = oc.keep_only(case.config, case.weights, case.task, unit, items, sizes)
        effects = oc.explained_effect(values, full, values[0])
        assert effects[1] > 0.94
        without = oc.keep_without(case.config, case.weights, case.task, unit, items)
        assert (oc.explained_effect(without, full, values[0]) < 0.7).all()


@each_case
@each_unit
@pytest.mark.parametrize("ablation", oc.ABLATIONS)
def test_exact_effects(case, unit, ablation):
    """What is not planted has no effect, exactly; what is planted has, unless a second one stands behind it.
    Where thirds or softmax have to be rounded, "no" is 1e-14. In the mean over prompts with the answer at
    different positions each wrong position gets a little of it."""
    items, true = items_and_truth(case, unit)
    task = case.task.subset(range(3))
    full = oc.metric_values(case.config, case.weights, task)
    effects = full - oc.knock_out(case.config, case.weights, task, unit, items, ablation)
    others, bound = effects[~true], 1e-14 if ablation == "mean" else 0.0
    if case.name.startswith("two redundant"):
        weak = (items[~true][:, :2] == (1, 1)).all(1)
        assert (others[weak].max(0) > 0.3).all()
        others = others[~weak]
        assert not effects[true].any() or ablation != "zero"
    else:
        assert (effects[true].mean(1) > 1).all() or ablation == "mean"
    if case.name in ("induction, dense", "induction, gated"):
        bound = 0.05 if ablation == "mean" else 1e-14
    assert np.abs(others).max() <= bound


@each_case
@each_unit
def test_rankings_by_the_oracle(case, unit):
    """The table of what must be found, for the methods that are cheap enough here."""
    task = case.task.subset(range(3))
    items, _ = items_and_truth(case, unit)
    full = oc.metric_values(case.config, case.weights, task)
    scores = {"exact": full.mean() - oc.knock_out(case.config, case.weights, task, unit, items).mean(1)}
    if len(items) < 150:
        scores["attribution"] = oc.attribution(case.config, case.weights, task, unit)[tuple(items.T)]
    if unit == "head":
        scores["ig"] = oc.attribution(case.config, case.weights, task, unit, steps=10)[tuple(items.T)]
    orders = {name: oc.ranked(items, np.where(np.abs(s) < NOISE, 0, s)) for name, s in scores.items()}
    if unit == "head":
        orders["greedy"] = oc.greedy(case.config, case.weights, task, unit, items)
    for method, order in orders.items():
        precision, recall = case.precision_recall(unit, order[: case.n_true(unit)])
        assert (precision == recall == 1) != (method in case.misses), method


def test_precision_and_recall_by_hand():
    case = planted.redundant(True)
    assert case.precision_recall("head", [(0, 1), (1, 1)]) == (0.5, 1.0)
    assert case.precision_recall("head", [(1, 1)]) == (0.0, 0.0)
    case = planted.induction(True)
    assert case.precision_recall("head", np.array([(0, 2), (0, 0), (1, 3), (0, 3)])) == (0.25, 0.5)


# ----------------------------------------------------------------------------------------- by the package

PAGE = ROOT / "docs" / "known-answers.md"


@pytest.fixture(scope="module")
def table():
    return [planted.measure(*question, threads=1) for question in planted.questions()]


def test_methods_find_what_they_must_and_miss_what_they_must(table):
    wrong = [row.to_markdown() for row in table if row.found != row.expected]
    assert not wrong
    assert {row.method for row in table if not row.expected} == {"exact", "attribution", planted.LOUDEST}
    assert {row.method for row in table} == {*planted.METHODS, planted.LOUDEST}


def test_what_is_found_is_also_enough(table):
    """90 % of the effect are explained by exactly the true items where these are ranked first."""
    for row in table:
        if row.found:
            assert row.n_needed == row.case.n_true(row.unit), row.to_markdown()


@pytest.mark.skipif(not PAGE.is_file(), reason="needs the source tree, not only the package")
def test_the_page_shows_this_table(table):
    assert "\n".join([planted.HEADING, *(row.to_markdown() for row in table)]) in PAGE.read_text()


@each_case
def test_the_packages_model_is_the_oracles(case):
    expected = oc.metric_values(case.config, case.weights, case.task)
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-13)):
        found = effects.metric_values(case.model(dtype), case.task)
        np.testing.assert_allclose(found, expected, rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gated", [False, True])
def test_a_decoy_has_no_effect_at_all(gated, dtype):
    """Not a small one: none, in both precisions, although its output is 32 times as long as the true one."""
    case = planted.decoy(gated)
    full = effects.metric_values(case.model(dtype), case.task)
    for ablation in ("zero", "counterfactual"):
        found = effects.knock_out(case.model(dtype), case.task, [[0, 2], [0, 1]], ablation)
        np.testing.assert_array_equal(found[0], full)
        assert (full - found[1] > 7).all()


@pytest.mark.parametrize("gated", [False, True])
def test_a_counterfactual_sees_two_redundant_heads(gated):
    """Zero leaves the other head its say, the corrupted prompt's value speaks for the wrong answer."""
    case = planted.redundant(gated)
    for ablation, seen in (("zero", False), ("counterfactual", True)):
        found = find_circuit(
            case.model(),
            case.task,
            unit="head",
            method="exact",
            ablation=ablation,
            n_random=0,
            n_bootstrap=10,
        )
        assert (case.precision_recall("head", found.items[:1]) == (1, 1)) == seen
