"""Circuits: ranking, curves, counts and intervals, by hand on a toy and on the models of the package."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import sys

import numpy as np
import pandas as pd
import pytest
import reliability
from alone import rounding, same_bits_or_close
from circuit_toy import Toy, edges, heads, rows, toy_task, with_toy

import attnsparse as asp
from attnsparse import _core, tasks
from attnsparse._core_types import Curve
from attnsparse.circuits import choices, effects, find
from attnsparse.circuits.circuit import Circuit
from attnsparse.circuits.find import find_circuit
from attnsparse.items import Edge, Head
from attnsparse.recipes.demo_text import demo_tokenizer

ONE_TO_FOUR = (2.0, -1.0, 4.0, 3.0)


# --- ranking


def test_exact_ranking():
    found, _ = with_toy(heads(*ONE_TO_FOUR), {"base": 5.0})
    assert found.labels == ["L0H2", "L0H3", "L0H0", "L0H1"]
    np.testing.assert_allclose(found.scores, [4, 3, 2, -1])
    assert found.items.dtype == np.int32
    np.testing.assert_allclose(found.effect, np.array([0, 4, 7, 9, 8]) / 8)
    assert found.needed() == (3, 3, 3, 3, 3, 3)


def test_signed_ranking():
    weights = heads(0.0, 2.0, -3.0, 1.5, 0.0)
    assert with_toy(weights)[0].labels == ["L0H2", "L0H1", "L0H3", "L0H0", "L0H4"]
    assert with_toy(weights, rank_by="signed")[0].labels == ["L0H1", "L0H3", "L0H0", "L0H4", "L0H2"]


@pytest.mark.parametrize("rank_by", ["absolute", "signed"])
def test_equal_scores_stay_in_order(rank_by):
    found, _ = with_toy(heads(*[1.0] * 9), rank_by=rank_by)
    assert rows(found.items) == list(heads(*[1.0] * 9))
    greedy, _ = with_toy(heads(*[1.0] * 9), rank_by=rank_by, method="greedy")
    assert rows(greedy.items) == list(heads(*[1.0] * 9))


def test_scores_are_means_over_ranking_prompts():
    found, toy = with_toy(heads(*ONE_TO_FOUR), {"spread": 0.3})
    gain = toy.gains(toy_task().ranking).mean()
    np.testing.assert_allclose(found.scores, gain * np.array([4, 3, 2, -1]))
    np.testing.assert_allclose(found.full, 8 * toy.gains(toy_task().evaluation))


@pytest.mark.parametrize("method", ["attribution", "ig"])
def test_attribution_scores_belong_to_their_items(method):
    weights = {(0, 1, 5, 2): 1.0, (0, 2, 5, 5): -4.0, (1, 0, 5, 0): 2.5}
    found, _ = with_toy(weights, method=method, steps=7)
    assert rows(found.items) == [(0, 2, 5, 5), (1, 0, 5, 0), (0, 1, 5, 2)]
    np.testing.assert_allclose(found.scores, [-4, 2.5, 1])


# --- greedy


def shown_progress(monkeypatch) -> dict[str, list[int]]:
    """How much is done of each stage, each time that the core tells it."""
    moves = collections.defaultdict(list)

    @contextlib.contextmanager
    def recorder(progress):
        yield lambda stage, done, total: moves[stage].append(done)

    monkeypatch.setattr(find, "stage_bars", recorder)
    return moves


PAIR = (6.0, ((0, 1), (1, 3)))  # one of two is enough


def redundant(n: int = 12) -> dict:
    weights = dict.fromkeys(heads(*[0.0] * n), 0.0)
    return weights | {(0, 0): 3.0, (0, 2): 1.0}


def test_exact_is_blind_to_a_redundant_pair():
    found, _ = with_toy(redundant(), {"pairs": [PAIR]})
    assert found.labels[:2] == ["L0H0", "L0H2"]
    assert found.needed().first == 3  # (0, 1) happens to be the first of those that score 0


@pytest.mark.parametrize("step", [0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("rank_by", ["absolute", "signed"])
def test_greedy_keeps_one_of_a_redundant_pair(step, rank_by):
    found, _ = with_toy(redundant(), {"pairs": [PAIR]}, method="greedy", greedy_step=step, rank_by=rank_by)
    assert found.labels[0] in ("L0H1", "L1H3")
    assert found.labels[1:3] == ["L0H0", "L0H2"]
    assert sorted(found.labels) == sorted(Head(*item).label for item in redundant())
    np.testing.assert_array_equal(found.scores, np.arange(12, 0, -1))
    np.testing.assert_allclose(found.effect[:4], [0, 0.6, 0.9, 1])


@pytest.mark.parametrize("step", [0, 0.1, 0.5])
def test_greedy_is_exact_for_a_sum(step):
    weights = heads(*np.random.default_rng(0).normal(size=20))
    greedy, _ = with_toy(weights, method="greedy", greedy_step=step)
    np.testing.assert_array_equal(greedy.items, with_toy(weights)[0].items)


@pytest.mark.parametrize(
    ("step", "left"),
    [(0.2, [20, 16, 13, 11, 9, 8, 7, 6, 5, 4, 3, 2, 1]), (0, list(range(20, 0, -1)))],
)
def test_greedy_drops_a_share_each_round(monkeypatch, step, left):
    moves = shown_progress(monkeypatch)
    with_toy(heads(*range(1, 21)), method="greedy", greedy_step=step)
    told = moves["backward elimination"]
    assert told == sorted(told)  # also within rounds
    assert {20 - n for n in [*left, 0]} <= set(told)


# --- effect


@pytest.mark.parametrize(
    ("normalize", "effect"),
    [("mib", [0, 0.5, 0.875, 1.125, 1]), ("ratio", [2 / 10, 0.6, 0.9, 1.1, 1]), ("none", [2, 6, 9, 11, 10])],
)
def test_normalizations(normalize, effect):
    found, _ = with_toy(heads(*ONE_TO_FOUR), {"base": 2.0}, normalize=normalize)
    np.testing.assert_allclose(found.effect, effect)


def test_means_are_taken_before_dividing():
    values = np.array([[1.0, 6.0], [2.0, 10.0]])
    full, empty = np.array([2.0, 10.0]), np.array([0.0, 2.0])
    found = _core.curve_effect(Curve(values, full, empty, "mib"))
    np.testing.assert_allclose(found, [(3.5 - 1) / (6 - 1), 1])
    np.testing.assert_allclose(_core.curve_effect(Curve(values, full, empty, "ratio")), [3.5 / 6, 1])


def test_full_and_empty_are_not_taken_from_the_sizes():
    found, _ = with_toy(heads(*ONE_TO_FOUR), sizes=[3, 1, 3])
    np.testing.assert_array_equal(found.sizes, [1, 3])
    np.testing.assert_allclose(found.effect, [0.5, 9 / 8])
    np.testing.assert_allclose((found.full, found.empty), [np.full(6, 8.0), np.zeros(6)])
    assert found.options["sizes"] == [1, 3]


# --- which prompts


@pytest.mark.parametrize("method", choices.METHODS)
def test_ranking_and_evaluation_do_not_leak(method):
    """The scores are of the ranking prompts alone, the curve of the others."""
    task, other = toy_task(12), toy_task(12, seed=1)

    def mixed(first: tasks.Task, second: tasks.Task) -> tasks.Task:
        parts = {
            name: (*getattr(first, name)[:6], *getattr(second, name)[6:])
            for name in ("clean", "corrupted", "answers", "wrong", "labels")
        }
        return dataclasses.replace(first, name="mixed", **parts)

    def found(first: tasks.Task, second: tasks.Task) -> Circuit:
        options = {"task": mixed(first, second), "method": method, "n_random": 1}
        return with_toy(heads(*ONE_TO_FOUR), {"spread": 0.3}, **options)[0]

    same, other_evaluation, other_ranking = found(task, task), found(task, other), found(other, task)
    np.testing.assert_array_equal(same.scores, other_evaluation.scores)
    assert (same.values != other_evaluation.values).any()
    for name in ("values", "full", "empty", "random_effect"):
        np.testing.assert_array_equal(getattr(same, name), getattr(other_ranking, name))
    assert (same.scores != other_ranking.scores).any() or method == "greedy"


def test_means_are_of_the_ranking_half_unless_given():
    model, task = addition()
    given = tasks.make_task("addition", model.tokenizer, n=7, seed=3)
    common = {"n_random": 0, "n_bootstrap": 0, "threads": 1}
    for reference, wanted in ((None, task.ranking), (given, given)):
        found = find_circuit(model, task, ablation="mean", reference=reference, **common)
        assert found.options["reference"] == wanted.digest
        asked = {"reference": wanted, "threads": 1}
        none = effects.keep_only(model, task.evaluation, found.items, [0], "mean", **asked)[0]
        np.testing.assert_allclose(found.empty, none, rtol=1e-6, atol=rounding(none))
        alone = effects.knock_out(model, task.ranking, found.items, "mean", **asked)
        whole = effects.metric_values(model, task.ranking, threads=1)
        np.testing.assert_allclose(found.scores, whole.mean() - alone.mean(axis=1), atol=rounding(whole))
    assert find_circuit(model, task, ablation="counterfactual", **common).options["reference"] is None


def test_options_are_passed_on():
    found, toy = with_toy(heads(*ONE_TO_FOUR), metric="prob_diff", threads=2)
    assert found.metric == "prob_diff"
    assert (np.abs(found.values) < 1).all()
    assert found.options == {
        "rank_by": "absolute",
        "steps": 10,
        "greedy_step": 0.1,
        "n_bootstrap": 50,
        "n_random": 0,
        "confidence": 0.95,
        "seed": 0,
        "sizes": None,
        "reference": None,
        "n_ranking": 6,
    }
    assert (found.task_digest, found.model_digest) == (toy_task().digest, toy.model().digest)


def test_steps_are_those_of_attribution():
    model, task = addition()
    for method, steps in (("attribution", 1), ("ig", 3)):
        found = find_circuit(model, task, unit="edge", method=method, steps=3, n_random=0, threads=1)
        wanted = effects.attribution(model, task.ranking, "edge", steps=steps, threads=1)
        np.testing.assert_array_equal(found.scores, wanted[tuple(found.items.T)] + 0.0)


# --- errors


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"unit": "layer"}, ValueError, "unit must be one of 'head', 'head_position', 'edge', got 'layer'"),
        ({"method": "acdc"}, ValueError, "method must be one of 'exact', .*, 'greedy', got 'acdc'"),
        (
            {"ablation": "resample"},
            ValueError,
            "ablation must be one of 'zero', .*, 'counterfactual', got",
        ),
        ({"normalize": None}, ValueError, "normalize must be one of 'mib', 'ratio', 'none', got None"),
        ({"rank_by": ["absolute"]}, ValueError, "rank_by must be one of 'absolute', 'signed', got"),
        ({"metric": "loss"}, ValueError, "metric must be one of 'logit_diff', .*, got 'loss'"),
        ({"metric": "kl", "method": "attribution"}, ValueError, "gradient is 0; use 'ig'"),
        ({"steps": 0}, ValueError, "steps must be in 1"),
        ({"steps": 2.0}, TypeError, "steps must be an integer"),
        ({"n_bootstrap": -1}, ValueError, "n_bootstrap must be in 0"),
        ({"n_random": -1}, ValueError, "n_random must be in 0"),
        ({"greedy_step": 1}, ValueError, "greedy_step must be 0 or more and below 1, got 1"),
        ({"confidence": 95}, ValueError, "confidence must be above 0 and below 1, got 95"),
        ({"confidence": "95"}, TypeError, "confidence must be a number, got str"),
        ({"seed": -1}, ValueError, "seed must be in 0"),
        ({"reference": toy_task}, TypeError, "reference must be a Task, such as asp.tasks.make_task gives"),
        (
            {"reference": toy_task()},
            ValueError,
            "reference is for ablation='mean' alone, got ablation='zero'",
        ),
    ],
)
def test_wrong_options(options, error, text):
    with pytest.raises(error, match=text):
        with_toy(heads(*ONE_TO_FOUR), **options)


def test_wrong_model_or_task():
    with pytest.raises(TypeError, match=r"must be a Model, such as asp\.load gives, got str"):
        find_circuit("gpt2", toy_task())
    with pytest.raises(TypeError, match=r"task must be a Task, such as asp\.tasks\.make_task gives, got str"):
        find_circuit(Toy(heads(1.0)).model(), "ioi")


@pytest.mark.parametrize(("half", "other"), [("ranking", "evaluation"), ("evaluation", "ranking")])
def test_a_half_without_prompts(half, other):
    with pytest.raises(ValueError, match=f"'toy' has no prompts for {other}: all 6 are for {half}"):
        with_toy(heads(*ONE_TO_FOUR), task=getattr(toy_task(), half))


def test_an_ablation_that_changes_nothing():
    weights = heads(1.0, -1.0)
    with pytest.raises(ValueError, match=r"ablating all heads does not change the metric \(mean 5 with, 5"):
        with_toy(weights, {"base": 5.0})
    with_toy(weights, {"base": 5.0}, normalize="ratio")
    with pytest.raises(ValueError, match="whole model's metric is 0, so normalize='ratio'"):
        with_toy(weights, normalize="ratio")
    with_toy(weights, normalize="none")


def test_nothing_to_rank():
    model = Toy(edges(1.0)).model()
    model.assign({"h.0.attn.c_attn.weight": 0 * model.parameter("h.0.attn.c_attn.weight")})
    with pytest.raises(ValueError, match="task 'toy' has no attention edges to rank"):
        find_circuit(model, toy_task(), unit="edge")


@pytest.mark.parametrize(
    ("weights", "method", "what"),
    [
        ((1e9, 1e9, 1), "exact", "it"),  # the whole model
        ((1e9, -1e9, 1), "exact", "it"),  # without one of them
        ((1e9, -1e9, 1), "greedy", "it"),
        ((1e9, -1e9, 1), "attribution", "its gradient"),
    ],
)
def test_a_metric_that_is_not_finite(weights, method, what):
    with pytest.raises(ValueError, match=f"metric 'logit_diff' of task 'toy': {what} is not finite"):
        with_toy(heads(*weights), {"scale": 1e300}, method=method)


def test_progress_is_off_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with_toy(heads(*ONE_TO_FOUR), method="greedy", n_random=2)
    assert capsys.readouterr().err == ""
    with_toy(heads(*ONE_TO_FOUR), method="greedy", n_random=2, progress=True)
    shown = capsys.readouterr().err
    assert "backward elimination" in shown
    assert "random orders" in shown


# --- the object


def test_nothing_can_be_changed():
    found, _ = with_toy(heads(*ONE_TO_FOUR), n_random=1)
    for value in vars(found).values():
        if isinstance(value, np.ndarray):
            assert not value.flags.writeable
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.unit = "edge"


def test_tables():
    found, _ = with_toy(heads(*ONE_TO_FOUR), n_random=2)
    table = found.to_pandas()
    assert list(table) == ["model", "item_rank", "label", "layer", "head_index", "score"]
    assert table.iloc[0].tolist() == [found.model_name, 1, "L0H2", 0, 2, 4.0]
    curve = found.curve()
    assert set(curve.pop("model")) == {found.model_name}
    assert list(curve) == ["n", "effect", "low", "high", "random", "random_low", "random_high"]
    np.testing.assert_array_equal(curve.effect, found.effect)
    row = found.summary(0.5)
    assert row.shape == (1, 20)
    named = row.loc[0, ["unit", "ablation", "normalize", "metric", "rank_by", "n_items", "n_prompts"]]
    assert named.tolist() == ["head", "zero", "mib", "logit_diff", "absolute", 4, 6]
    assert (row["n_first"][0], row["n_stays"][0], row["fraction"][0]) == (1, 1, 0.5)
    assert table.attrs == curve.attrs == row.attrs
    assert table.attrs["ablation"] == "zero"
    assert pd.concat([row, found.summary()]).shape == (2, 20)


EDGES = {(0, 1, 5, 2): 1.0, (0, 1, 5, 5): 4.0, (1, 0, 5, 0): 2.5, (1, 0, 5, 1): 0.1}


def test_edges():
    found, _ = with_toy(EDGES)
    assert found.kept() == [Edge(0, 1, 5, 5), Edge(1, 0, 5, 0), Edge(0, 1, 5, 2)]
    assert found.labels[:2] == ["a0.h1[5->5]", "a1.h0[0->5]"]
    assert found.heads() == [Head(0, 1), Head(1, 0)]
    assert list(found.to_pandas()) == [
        "model",
        "item_rank",
        "label",
        "layer",
        "head_index",
        "query_position",
        "key_position",
        "score",
    ]
    assert "attention edges" in repr(found)


def test_names_of_positions():
    task = toy_task(n_tokens=6)
    named = dataclasses.replace(task, position_labels=tuple(f"p{i}" for i in range(6)))
    found = with_toy(EDGES, task=named)[0]
    table = found.to_pandas()
    assert list(table)[5:] == ["query_position", "key_position", "query_token", "key_token", "score"]
    assert table.loc[1, ["query_token", "key_token"]].tolist() == ["p5", "p0"]
    too_few = dataclasses.replace(task, position_labels=("p0",))
    assert with_toy(EDGES, task=too_few)[0].position_labels is None
    table = dataclasses.replace(found, unit="head_position", items=found.items[:, :3]).to_pandas()
    assert list(table)[1:] == ["item_rank", "label", "layer", "head_index", "position", "token", "score"]
    assert table.token.tolist() == ["p5"] * 4


def test_shown_in_a_notebook():
    found, _ = with_toy(heads(*np.arange(1.0, 13.0)), task=dataclasses.replace(toy_task(), name="<b>&"))
    shown = found._repr_html_()
    for text in (
        "&lt;b&gt;&amp;",
        "zero",
        "mib",
        "logit_diff",
        "exact",
        "L2H3",
        "and 2 more",
        "90% of the effect",
    ):
        assert text in shown
    assert "<b>" not in shown
    assert shown.count("<tr>") == 11
    needed = found.needed()
    assert f"first {needed.first}" in repr(found)


# --- on real models


@functools.cache
def addition() -> tuple[asp.Model, tasks.Task]:
    model = asp.load("addition-sparse")
    return model, tasks.make_task("addition", model.tokenizer, n=40)


@pytest.mark.parametrize("unit", ["head", "head_position", "edge"])
@pytest.mark.parametrize("ablation", ["zero", "mean", "counterfactual"])
@pytest.mark.parametrize("method", choices.METHODS)
def test_addition(unit, ablation, method):
    model, task = addition()
    if method == "greedy" and unit == "head_position":
        task = task.subset(range(24))
    found = find_circuit(
        model, task, unit=unit, method=method, ablation=ablation, n_random=2, n_bootstrap=100, threads=1
    )
    assert found.effect[0] == 0
    assert found.effect[-1] == pytest.approx(1, abs=1e-6)
    needed = found.needed()
    # few are needed, and the order is far better than a random one
    assert needed.stays <= {"head": 6, "head_position": 8, "edge": 12}[unit]
    assert found.summary().n_random_first[0] > needed.first
    assert (found.effect_low <= found.effect_high).all()
    assert len(found) == {"head": 16, "head_position": 112, "edge": 15}[unit] or method == "greedy"


def test_values_are_those_of_effects():
    model, task = addition()
    found = find_circuit(model, task, unit="edge", ablation="mean", n_random=0, n_bootstrap=0, threads=1)
    half = {"reference": task.ranking, "threads": 1}
    wanted = effects.keep_only(model, task.evaluation, found.items, found.sizes, "mean", **half)
    np.testing.assert_allclose(found.values, wanted, rtol=1e-6, atol=rounding(wanted))
    assert same_bits_or_close(found.full, effects.metric_values(model, task.evaluation, threads=1))
    alone = effects.metric_values(model, task.ranking, threads=1).mean() - effects.knock_out(
        model, task.ranking, found.items, "mean", **half
    ).mean(axis=1)
    np.testing.assert_allclose(found.scores, alone, atol=1e-12 + rounding(found.full))


def test_same_bits_for_any_number_of_threads():
    model, task = addition()
    one, two = (
        find_circuit(model, task, unit="edge", method="ig", n_bootstrap=100, threads=n) for n in (1, 2)
    )
    for name, value in vars(one).items():
        other = getattr(two, name)
        assert value.tobytes() == other.tobytes() if isinstance(value, np.ndarray) else value == other


def test_kl_on_a_real_model():
    model, task = addition()
    found = find_circuit(model, task.subset(range(20)), metric="kl", n_random=0, n_bootstrap=0, threads=1)
    assert found.full.max() < 1e-6
    assert found.empty.min() > 0.1
    assert (found.scores[:3] > 0).all()
    assert found.needed().stays <= 8


def test_prompts_of_different_lengths():
    tokenizer = demo_tokenizer()
    frame = pd.DataFrame(
        [
            {"clean": clean, "corrupted": corrupted, "answer": " large", "wrong": " small"}
            for clean, corrupted in (("The dog is", "The cat is"), ("The dog is very", "The cat is very")) * 2
        ]
    )
    task = tasks.from_dataframe(frame, tokenizer)
    model = reliability.model(n_vocab=tokenizer.n_vocab)
    with pytest.raises(ValueError, match="one length"):
        find_circuit(model, task, unit="edge")
    assert len(find_circuit(model, task, n_random=0)) == 8


def test_the_names_are_those_of_effects():
    assert tuple(choices.ITEMS) == tuple(choices.NAMES) == effects.UNITS
    assert effects.ABLATIONS == ("zero", "mean", "counterfactual")
