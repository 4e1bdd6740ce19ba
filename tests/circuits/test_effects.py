"""Effects of the C core against the oracle: every head, head position and entry, in every ablation."""

import engine
import numpy as np
import oracle
import oracle_circuits as oc
import pytest
from circuit_cases import CONFIGS, TOLERANCE, Case, case, error, random_task, some

from attnsparse.circuits import effects

each_config = pytest.mark.parametrize("name", CONFIGS)
each_unit = pytest.mark.parametrize("unit", oc.UNITS)
each_ablation = pytest.mark.parametrize("ablation", oc.ABLATIONS)
each_metric = pytest.mark.parametrize("metric", oc.METRICS)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


# ---------------------------------------------------------------------------------- the whole model


@each_config
@each_metric
@each_dtype
def test_metric_values(name, metric, dtype):
    one = case(name, (1, 5, 3, 7))
    found = effects.metric_values(one.model(dtype), one.task, metric=metric)
    assert error(found, one.ask(oc.metric_values, metric)) < TOLERANCE[dtype]


@pytest.mark.parametrize("metric", ["logit_diff", "logit_diff_max", "prob_diff"])
def test_the_metric_is_the_tasks_own(metric):
    one = case("gated", metric=metric)
    found = effects.metric_values(one.model(), one.task)
    np.testing.assert_array_equal(found, effects.metric_values(one.model(), one.task, metric=metric))
    assert error(found, one.ask(oc.metric_values, metric)) < 1e-12


@each_config
@each_unit
def test_candidates(name, unit):
    one = case(name)
    found = effects.candidates(one.model(), one.task, unit)
    assert found.dtype.kind == "i"
    np.testing.assert_array_equal(found, one.ask(oc.candidates, unit))


# ------------------------------------------------------------------------------------------ sweeps


@each_config
@each_unit
@each_ablation
def test_knock_out(name, unit, ablation):
    one = case(name)
    items = oc.all_items(one.config, unit, 5)
    found = effects.knock_out(one.model(), one.task, items, ablation)
    expected = one.ask(oc.knock_out, unit, items, ablation)
    assert error(found, expected) < 1e-9
    effect = expected - one.ask(oc.metric_values)
    assert np.abs(effect).max() > 1e-3 or name == "all closed"


@each_unit
@each_ablation
@each_metric
def test_knock_out_metrics(unit, ablation, metric):
    one = case("gated", seed=1)
    items = some(oc.all_items(one.config, unit, 5), 8)
    found = effects.knock_out(one.model(), one.task, items, ablation, metric=metric)
    assert error(found, one.ask(oc.knock_out, unit, items, ablation, metric=metric)) < 1e-9


@each_config
@each_unit
@each_ablation
def test_keep_only(name, unit, ablation):
    one = case(name)
    items = some(oc.all_items(one.config, unit, 5), 10_000)
    sizes = [0, 1, 2, len(items) // 2, len(items)]
    found = effects.keep_only(one.model(), one.task, items, sizes, ablation)
    assert error(found, one.ask(oc.keep_only, unit, items, sizes, ablation)) < 1e-9
    assert error(found[-1], one.ask(oc.metric_values)) < 1e-12


@each_config
@each_unit
@each_ablation
def test_keep_without(name, unit, ablation):
    one = case(name)
    everything = oc.all_items(one.config, unit, 5)
    items = some(everything, min(len(everything), 12))
    found = effects.leave_one_out(one.model(), one.task, items, ablation)
    assert error(found, one.ask(oc.keep_without, unit, items, ablation)) < 1e-9


@each_unit
@each_ablation
@pytest.mark.parametrize("name", ["dense", "gated"])
def test_float32(name, unit, ablation):
    one = case(name, seed=2)
    model, items = one.model("float32"), oc.all_items(one.config, unit, 5)
    order = some(items, 10)
    sizes = [0, 3, len(order)]
    found = effects.knock_out(model, one.task, items, ablation)
    assert error(found, one.ask(oc.knock_out, unit, items, ablation)) < TOLERANCE["float32"]
    found = effects.keep_only(model, one.task, order, sizes, ablation)
    assert error(found, one.ask(oc.keep_only, unit, order, sizes, ablation)) < TOLERANCE["float32"]
    found = effects.leave_one_out(model, one.task, order, ablation)
    assert error(found, one.ask(oc.keep_without, unit, order, ablation)) < TOLERANCE["float32"]
    found = effects.attribution(model, one.task, unit, ablation, steps=2)
    assert error(found, one.ask(oc.attribution, unit, ablation, steps=2)) < TOLERANCE["float32"]


@pytest.mark.parametrize("ablation", ["zero", "counterfactual"])
@pytest.mark.parametrize("name", ["dense", "gated"])
def test_heads_of_prompts_of_different_lengths(name, ablation):
    one = case(name, (1, 7, 4, 12))
    model, items = one.model(), some(oc.all_items(one.config, "head", 1), 100)
    found = effects.knock_out(model, one.task, items, ablation)
    assert error(found, one.ask(oc.knock_out, "head", items, ablation)) < 1e-9
    found = effects.keep_only(model, one.task, items, [0, 2, len(items)], ablation)
    assert error(found, one.ask(oc.keep_only, "head", items, [0, 2, len(items)], ablation)) < 1e-9
    found = effects.leave_one_out(model, one.task, items, ablation)
    assert error(found, one.ask(oc.keep_without, "head", items, ablation)) < 1e-9
    found = effects.attribution(model, one.task, "head", ablation, steps=2)
    assert error(found, one.ask(oc.attribution, "head", ablation, steps=2)) < 1e-9


@each_unit
@each_ablation
def test_prompts_of_one_token(unit, ablation):
    one = case("gated", (1, 1))
    items = oc.all_items(one.config, unit, 1)
    found = effects.knock_out(one.model(), one.task, items, ablation)
    assert error(found, one.ask(oc.knock_out, unit, items, ablation)) < 1e-9
    found = effects.attribution(one.model(), one.task, unit, ablation, steps=2)
    assert error(found, one.ask(oc.attribution, unit, ablation, steps=2)) < 1e-9


@pytest.mark.parametrize("gated", [False, True])
def test_many_tokens(gated):
    """More tokens than any tile of the attention kernels is wide."""
    config = oracle.full_config(gated=gated, n_ctx=70, n_head=3, d_model=21, d_head=7, n_vocab=41)
    one = Case(config, engine.rounded_model(3, config), random_task(config, (70,)))
    for unit in oc.UNITS:
        items = some(oc.all_items(config, unit, 70), 6)
        found = effects.knock_out(one.model(), one.task, items, "counterfactual")
        assert error(found, one.ask(oc.knock_out, unit, items, "counterfactual")) < 1e-9
        found = effects.keep_only(one.model(), one.task, items, [0, 3])
        assert error(found, one.ask(oc.keep_only, unit, items, [0, 3])) < 1e-9


@each_unit
def test_means_are_over_the_reference(unit):
    one = case("gated")
    other = random_task(one.config, (5,) * 4, seed=9)
    model, items = one.model(), oc.all_items(one.config, unit, 5)
    found = effects.knock_out(model, one.task, items, "mean", reference=other)
    assert error(found, one.ask(oc.knock_out, unit, items, "mean", reference=other)) < 1e-9
    own = effects.knock_out(model, one.task, items, "mean")
    assert error(own, found) > 1e-3
    np.testing.assert_array_equal(own, effects.knock_out(model, one.task, items, "mean", reference=one.task))
    found = effects.keep_only(model, one.task, items, [0, 3], "mean", reference=other)
    assert error(found, one.ask(oc.keep_only, unit, items, [0, 3], "mean", reference=other)) < 1e-9
    found = effects.leave_one_out(model, one.task, items[:3], "mean", reference=other)
    assert error(found, one.ask(oc.keep_without, unit, items[:3], "mean", reference=other)) < 1e-9
    found = effects.attribution(model, one.task, unit, "mean", reference=other)
    assert error(found, one.ask(oc.attribution, unit, "mean", reference=other)) < 1e-9


# ------------------------------------------------------------------------------------- attribution


@each_config
@each_unit
@each_ablation
@pytest.mark.parametrize("steps", [1, 2])
def test_attribution(name, unit, ablation, steps):
    one = case(name, (4, 4))
    found = effects.attribution(one.model(), one.task, unit, ablation, steps=steps)
    expected = one.ask(oc.attribution, unit, ablation, steps=steps)
    assert error(found, expected) < 1e-9
    assert np.abs(expected).max() > 1e-3 or name == "all closed"


@each_unit
@each_metric
def test_attribution_metrics(unit, metric):
    one = case("gated", (4, 4), seed=1)
    found = effects.attribution(one.model(), one.task, unit, steps=2, metric=metric)
    assert error(found, one.ask(oc.attribution, unit, steps=2, metric=metric)) < 1e-9


@pytest.mark.parametrize("metric", ["logit_diff", "log_prob"])
@pytest.mark.parametrize("name", ["gated", "one layer, untied", "self closed"])
def test_gate_attribution(name, metric):
    one = case(name, (4, 4))
    found = effects.attribution(one.model(), one.task, "edge", path="gate", metric=metric)
    expected = one.ask(oc.gate_attribution, metric=metric)
    assert error(found, expected) < 1e-9
    assert np.abs(expected).max() > 1e-3


@each_unit
@each_ablation
@pytest.mark.parametrize("name", ["dense", "one layer, untied"])
def test_integrated_gradients_are_complete(name, unit, ablation):
    """With one layer also where there are gates: none of them can change on the way."""
    one = case(name)
    model = one.model()
    items = effects.candidates(model, one.task, unit)
    empty = effects.keep_only(model, one.task, items, [0], ablation).mean()
    gap = effects.metric_values(model, one.task).mean() - empty
    total = effects.attribution(model, one.task, unit, ablation, steps=200).sum()
    assert abs(total - gap) < 1e-3 * abs(gap)


def test_the_comparison_can_fail():
    """A wrong sign, a wrong ablation, a neighbour's row and a forgotten normalisation are all seen."""
    one = case("gated")
    model, items = one.model(), oc.all_items(one.config, "edge", 5)
    found = effects.attribution(model, one.task, "edge")
    expected = one.ask(oc.attribution, "edge")
    assert error(found, expected) < 1e-9
    for wrong in (
        -found,
        found * 3,
        found.swapaxes(2, 3),
        effects.attribution(model, one.task, "edge", "mean"),
    ):
        assert error(wrong, expected) > 1e-2
    found, expected = effects.knock_out(model, one.task, items), one.ask(oc.knock_out, "edge", items)
    assert error(np.roll(found, 1, axis=0), expected) > 1e-2
    assert error(np.roll(found, 1, axis=1), expected) > 1e-2
    assert error(found.astype(np.float32), expected) == np.inf


# ------------------------------------------------------------------------------- what they are handed out as


def everything(model, task, **options):
    """All results of one model and task, small."""
    found = {"metric_values": effects.metric_values(model, task, **options)}
    for unit in oc.UNITS:
        items = effects.candidates(model, task, unit)[:40]
        found |= {
            f"knock_out {unit}": effects.knock_out(model, task, items, "mean", **options),
            f"keep_only {unit}": effects.keep_only(model, task, items, [0, 1, len(items)], **options),
            f"leave_one_out {unit}": effects.leave_one_out(model, task, items, "counterfactual", **options),
            f"attribution {unit}": effects.attribution(model, task, unit, steps=3, **options),
        }
    return found


@each_dtype
def test_the_same_bits_for_any_number_of_threads(dtype):
    one = case("gated", (6,) * 5)
    model = one.model(dtype)
    expected = everything(model, one.task, threads=1)
    for threads in (2, 3):
        for name, value in everything(model, one.task, threads=threads).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_results_stay_as_they_are():
    one = case("gated")
    found = everything(one.model(), one.task)
    copies = {name: value.copy() for name, value in found.items()}
    again = everything(one.model(), one.task)
    for name, value in found.items():
        assert value.dtype == np.float64, name
        np.testing.assert_array_equal(value, copies[name])
        np.testing.assert_array_equal(value, again[name])


def test_questions_leave_the_model_alone():
    one = case("gated")
    model = one.model()
    digest, version = model.digest, model.version
    everything(model, one.task)
    assert (model.digest, model.version) == (digest, version)


# ------------------------------------------------------------------------------------ wrong arguments

HEADS, EDGES = [[0, 0]], [[0, 0, 1, 0]]
WRONG = {
    "metric": (ValueError, "metric must be one of", lambda m, t: effects.metric_values(m, t, metric="x")),
    "task": (TypeError, "task must be", lambda m, t: effects.metric_values(m, "x")),
    "model": (TypeError, "model must be", lambda m, t: effects.metric_values("m", t)),
    "threads": (ValueError, "threads must be", lambda m, t: effects.metric_values(m, t, threads=0)),
    "threads text": (TypeError, "threads must be", lambda m, t: effects.metric_values(m, t, threads="2")),
    "unit": (ValueError, "unit must be one of", lambda m, t: effects.candidates(m, t, "mlp")),
    "unit list": (ValueError, "unit must be one of", lambda m, t: effects.candidates(m, t, ["head"])),
    "ablation": (ValueError, "ablation must be one of", lambda m, t: effects.knock_out(m, t, HEADS, "none")),
    "layer": (IndexError, r"layer 2.*0\.\.1", lambda m, t: effects.knock_out(m, t, [[2, 0]])),
    "head": (IndexError, r"head 3.*0\.\.2", lambda m, t: effects.knock_out(m, t, [[0, 3]])),
    "negative": (IndexError, "layer -1", lambda m, t: effects.knock_out(m, t, [[-1, 0]])),
    "position": (IndexError, "position 5", lambda m, t: effects.knock_out(m, t, [[0, 0, 5]])),
    "key": (IndexError, "key 1 after its query 0", lambda m, t: effects.knock_out(m, t, [[0, 0, 0, 1]])),
    "flat": (ValueError, "items must have shape", lambda m, t: effects.knock_out(m, t, [0, 0])),
    "ragged": (ValueError, "items", lambda m, t: effects.knock_out(m, t, [[0, 0], [0]])),
    "labels": (ValueError, "items must have shape", lambda m, t: effects.knock_out(m, t, ["L0H0"])),
    "fractions": (TypeError, "integers", lambda m, t: effects.knock_out(m, t, [[0.5, 0]])),
    "truths": (TypeError, "integers", lambda m, t: effects.knock_out(m, t, [[True, False]])),
    "huge": (TypeError, "integers", lambda m, t: effects.knock_out(m, t, [[2**70, 0]])),
    "twice": (
        ValueError,
        "unique; row 3 repeats row 1",
        lambda m, t: effects.leave_one_out(m, t, [[1, 0], [0, 1], [0, 0], [0, 1]]),
    ),
    "size": (ValueError, "sizes must be in 0", lambda m, t: effects.keep_only(m, t, HEADS, [2])),
    "sizes": (TypeError, "sizes must be", lambda m, t: effects.keep_only(m, t, HEADS, 1)),
    "half a size": (TypeError, "sizes must be", lambda m, t: effects.keep_only(m, t, HEADS, [0.5])),
    "steps": (ValueError, "steps must be", lambda m, t: effects.attribution(m, t, "head", steps=0)),
    "half a step": (TypeError, "steps must be", lambda m, t: effects.attribution(m, t, "head", steps=1.5)),
    "many steps": (ValueError, "steps must be", lambda m, t: effects.attribution(m, t, "head", steps=2**70)),
    "path": (ValueError, "path must be one of", lambda m, t: effects.attribution(m, t, "edge", path="x")),
    "path of heads": (ValueError, "edges", lambda m, t: effects.attribution(m, t, "head", path="gate")),
    "reference": (
        TypeError,
        "reference|prompts",
        lambda m, t: effects.knock_out(m, t, HEADS, "mean", reference=5),
    ),
    "no mean": (ValueError, "ablation='mean'", lambda m, t: effects.knock_out(m, t, HEADS, reference=t)),
    "no prompts": (
        ValueError,
        "at least one prompt",
        lambda m, t: effects.knock_out(m, t, HEADS, "mean", reference=[]),
    ),
}
BARE = ("not iterable", "has no attribute", "inhomogeneous", "too big to convert")


@pytest.mark.parametrize(("kind", "text", "ask"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(kind, text, ask):
    one = case("gated")
    with pytest.raises(kind, match=text) as found:
        ask(one.model(), one.task)
    assert not any(bare in str(found.value) for bare in BARE)


def test_positions_need_one_length():
    one = case("gated", (3, 5))
    model, other = one.model(), random_task(one.config, (4, 4))
    for ask in (
        lambda: effects.candidates(model, one.task, "edge"),
        lambda: effects.knock_out(model, one.task, EDGES),
        lambda: effects.keep_only(model, one.task, [[0, 0, 1]], [1]),
        lambda: effects.attribution(model, one.task, "head_position"),
    ):
        with pytest.raises(ValueError, match=r"one length: .*prompt 0 has 3 tokens, prompt 1 has 5"):
            ask()
    with pytest.raises(ValueError, match=r"mean.*prompt 0 has 3 tokens") as found:
        effects.knock_out(model, one.task, HEADS, "mean")
    assert "unit='head'" not in str(found.value)
    with pytest.raises(ValueError, match="prompt 0 has 4 tokens, the task 5"):
        effects.knock_out(one.model(), case("gated").task, HEADS, "mean", reference=other)


def test_no_items_no_rows():
    one = case("gated")
    for width in (2, 3, 4):
        nothing = np.zeros((0, width), np.int32)
        assert effects.knock_out(one.model(), one.task, nothing).shape == (0, 3)
        assert effects.leave_one_out(one.model(), one.task, nothing).shape == (0, 3)
        unit = tuple(oc.UNITS)[width - 2]
        found = effects.keep_only(one.model(), one.task, nothing, [0])
        assert error(found, one.ask(oc.keep_only, unit, nothing, [0])) < 1e-9
