"""Metrics of the user's own: equal to those of the core where they say the same; what they may do wrong."""

from __future__ import annotations

import numpy as np
import pytest
from circuit_cases import case, oc

import attnsparse as asp
from attnsparse import tasks
from attnsparse.circuits import effects
from attnsparse.tasks import CustomMetric

each_unit = pytest.mark.parametrize("unit", oc.UNITS)


def logit_diff(task: tasks.Task, **options) -> CustomMetric:
    """The core's "logit_diff" once more, in Python, with its gradient."""

    def values(logits, prompts):
        return [
            row[task.answers[i]].astype(float).mean() - row[task.wrong[i]].astype(float).mean()
            for row, i in zip(logits, prompts)
        ]

    def gradient(logits, prompts):
        found = np.zeros_like(logits)
        for row, i in zip(found, prompts):
            row[task.answers[i]] += 1 / len(task.answers[i])
            row[task.wrong[i]] -= 1 / len(task.wrong[i])
        return found

    return CustomMetric(values, gradient, **options)


@each_unit
def test_effects_are_those_of_the_core(unit):
    one = case("gated", (5,) * 6)
    model, task, own = one.model("float64"), one.task, logit_diff(one.task)
    items = oc.all_items(one.config, unit, 5)
    order = items[np.random.default_rng(0).permutation(len(items))]
    np.testing.assert_allclose(
        effects.metric_values(model, task, metric=own), effects.metric_values(model, task), rtol=1e-12
    )
    calls = [
        lambda metric: effects.knock_out(model, task, items, metric=metric),
        lambda metric: effects.keep_only(model, task, order, [0, 3, len(items)], "mean", metric=metric),
        lambda metric: effects.leave_one_out(model, task, order[:5], "counterfactual", metric=metric),
        lambda metric: effects.attribution(model, task, unit, steps=2, metric=metric),
    ]
    for call in calls:
        np.testing.assert_allclose(call(own), call("logit_diff"), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["exact", "ig", "greedy"])
def test_circuits_are_those_of_the_core(method):
    one = case("gated", (5,) * 8)
    model, task = one.model("float64"), one.task
    own = logit_diff(task, name="my difference")
    options = {"method": method, "n_bootstrap": 50, "n_random": 1}
    found, wanted = (
        asp.find_circuit(model, task, metric=metric, **options) for metric in (own, "logit_diff")
    )
    np.testing.assert_array_equal(found.items, wanted.items)
    for name in ("scores", "effect", "effect_low", "effect_high", "random_effect"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-9, atol=1e-10)
    assert found.needed() == wanted.needed()
    assert found.metric == "my difference"
    assert found.summary().metric[0] == "my difference"


def test_a_circuit_with_it_comes_back_from_its_file(tmp_path):
    one = case("gated", (5,) * 4)
    own = logit_diff(one.task, name="mine")
    found = asp.find_circuit(one.model(), one.task, metric=own, n_bootstrap=20, n_random=1)
    found.save(tmp_path / "circuit")
    again = asp.load_circuit(tmp_path / "circuit")
    assert again.metric == "mine"
    assert again.needed() == found.needed()


def test_smaller_is_better_turns_the_scores():
    one = case("gated", (5,) * 4)
    own = logit_diff(one.task)
    turned = CustomMetric(lambda x, i: -np.array(own.values(x, i)), name="turned", smaller_is_better=True)
    found, wanted = (
        asp.find_circuit(one.model(), one.task, metric=metric, n_bootstrap=0, n_random=0)
        for metric in (turned, own)
    )
    np.testing.assert_array_equal(found.scores, wanted.scores)
    np.testing.assert_array_equal(found.full, -wanted.full)


def test_prompts_are_those_of_the_whole_task():
    """Both halves of a circuit, and blocks of prompts, are told the task's own numbers."""
    one = case("gated", (5,) * 9)
    seen: list[int] = []

    def values(logits, prompts):
        seen.extend(prompts.tolist())
        return logits[:, 0]

    task = one.task
    effects.metric_values(one.model(), task, metric=CustomMetric(values))
    assert sorted(seen) == list(range(9))
    seen.clear()
    asp.find_circuit(one.model(), task, metric=CustomMetric(values), n_bootstrap=0, n_random=0)
    assert set(seen) == set(range(9))
    part = CustomMetric(values).for_prompts([4, 2])
    seen.clear()
    part.row_values(np.zeros((3, 7), np.float32), np.array([1, 0, 1]))
    assert seen == [2, 4, 2]


def test_the_same_bits_for_any_number_of_threads():
    one = case("gated", (5,) * 4)
    own, items = logit_diff(one.task), oc.all_items(one.config, "edge", 5)
    found = [effects.knock_out(one.model(), one.task, items, metric=own, threads=n) for n in (1, 2, 3)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_it_may_use_the_model():
    """A call within the call, with threads of its own."""
    one = case("gated", (5,) * 3)
    model, task = one.model(), one.task

    def values(logits, prompts):
        with pytest.raises(RuntimeError, match="in use"):
            model.assign({"ln_f.bias": np.zeros(model.config.d_model, model.dtype)})
        whole = effects.metric_values(model, task, threads=2)
        return logits[:, 0] + whole[prompts]

    found = effects.metric_values(model, task, metric=CustomMetric(values))
    wanted = tasks.last_logits(model, task)[:, 0] + effects.metric_values(model, task)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


# --- what it may do wrong


class Strange(Exception):
    pass


@pytest.mark.parametrize(
    "exception", [Strange("mine"), KeyboardInterrupt(), MemoryError("mine"), SystemExit(3)]
)
@pytest.mark.parametrize("where", ["values", "gradient"])
def test_what_it_raises_reaches_the_caller(exception, where):
    one = case("gated", (5,) * 3)
    model, task, good = one.model(), one.task, logit_diff(one.task)

    def bad(logits, prompts):
        raise exception

    own = CustomMetric(**{"values": good.values, "gradient": good.gradient, where: bad})
    with pytest.raises(type(exception)) as caught:
        effects.attribution(model, task, "head", metric=own)
    assert caught.value is exception
    if where == "values":
        for call in (effects.metric_values, lambda *a, **o: effects.knock_out(*a, [[0, 0]], **o)):
            with pytest.raises(type(exception)) as caught:
                call(model, task, metric=own)
            assert caught.value is exception
    np.testing.assert_array_equal(
        effects.metric_values(model, task, metric=good), effects.metric_values(model, task, metric=good)
    )


@pytest.mark.parametrize(
    ("found", "error", "text"),
    [
        (
            lambda x, i: x,
            ValueError,
            r"metric 'custom' must give one value for each of 3 rows of logits, got",
        ),
        (lambda x, i: 1.0, ValueError, r"got an array of shape \(\)"),
        (lambda x, i: [1.0, 2.0], ValueError, r"got an array of shape \(2,\)"),
        (lambda x, i: ["a"] * 3, TypeError, "metric 'custom' must give values of real numbers, got <U1"),
        (lambda x, i: [1j] * 3, TypeError, "real numbers, got complex128"),
        (lambda x, i: None, TypeError, "real numbers, got object"),
    ],
)
def test_wrong_values(found, error, text):
    one = case("gated", (5,) * 3)
    with pytest.raises(error, match=text):
        effects.metric_values(one.model(), one.task, metric=CustomMetric(found))


@pytest.mark.parametrize(
    ("found", "error", "text"),
    [
        (lambda x, i: x[:, 0], ValueError, "metric 'custom' must give a gradient of shape"),
        (lambda x, i: x[:, 1:], ValueError, "must give a gradient of shape"),
        (lambda x, i: x.astype(complex), TypeError, "must give a gradient of real numbers, got complex128"),
    ],
)
def test_wrong_gradients(found, error, text):
    one = case("gated", (5,) * 3)
    own = CustomMetric(logit_diff(one.task).values, found)
    with pytest.raises(error, match=text):
        effects.attribution(one.model(), one.task, "head", metric=own)


def test_no_gradient():
    one = case("gated", (5,) * 3)
    own = CustomMetric(logit_diff(one.task).values)
    with pytest.raises(
        ValueError, match="attribution needs the gradient of the metric, and this one has none"
    ):
        effects.attribution(one.model(), one.task, "edge", metric=own)


def test_values_that_are_not_finite():
    one = case("gated", (5,) * 4)
    own = CustomMetric(lambda logits, prompts: logits[:, 0] * np.nan, name="mine")
    with pytest.raises(ValueError, match="metric 'mine' of task 'random': it is not finite"):
        asp.find_circuit(one.model(), one.task, metric=own)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"values": 3}, TypeError, "values must be a function of logits and prompts, got 3"),
        ({"gradient": "x"}, TypeError, "gradient must be a function of logits and prompts, got 'x'"),
        ({"name": ""}, ValueError, r"name must be a string of 1\.\.80 characters, got ''"),
        ({"name": 3}, ValueError, "name must be a string"),
        ({"name": "kl"}, ValueError, "name must differ from the metrics of the package, got 'kl'"),
        ({"smaller_is_better": 1}, TypeError, "smaller_is_better must be True or False"),
    ],
)
def test_wrong_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        CustomMetric(**{"values": len, **arguments})


@pytest.mark.parametrize("metric", [len, 3, "x", b"kl"])
def test_something_else_as_metric(metric):
    one = case("gated", (5,) * 4)
    for call in (effects.metric_values, asp.find_circuit):
        with pytest.raises(
            ValueError, match=r"metric must be one of 'logit_diff', .*, or a CustomMetric, got"
        ):
            call(one.model(), one.task, metric=metric)
