"""The phase of the recipe "demo" that spreads the dense model: its text, schedules and first weights."""

from __future__ import annotations

import numpy as np
import pytest

from attnsparse.model.model import Model
from attnsparse.recipes import demo
from attnsparse.recipes.demo_text import ANSWER_WEIGHT, DemoText
from attnsparse.recipes.wrong_answers import WrongAnswers
from attnsparse.training.data import Data


def test_wrong_answers_change_targets_of_answers_alone():
    text = DemoText(32, seed=7)
    thinned: Data = WrongAnswers(text, 0.1, 6)
    wrong = answers = 0
    for step in range(5):
        whole, some = text.batch(step), thinned.batch(step)
        for i in (0, 1, 3):
            np.testing.assert_array_equal(whole[i], some[i])
        assert some[2].dtype == whole[2].dtype
        is_answer, changed = whole[3] == ANSWER_WEIGHT, whole[2] != some[2]
        assert not changed[~is_answer].any()
        wrong, answers = wrong + changed.sum(), answers + is_answer.sum()
    assert answers > 500
    assert wrong / answers == pytest.approx(0.1, abs=0.04)


def test_all_answers_are_right_in_the_end():
    text = DemoText(4, seed=7)
    some = WrongAnswers(text, 0.9, 2)
    differs = [bool((some.batch(step)[2] != text.batch(step)[2]).any()) for step in range(4)]
    assert differs == [True, True, False, False]


def test_wrong_answers_are_a_function_of_seed_step_and_share():
    text = DemoText(4, seed=7)
    first, again = (WrongAnswers(text, 0.3, 9).batch(3, 1)[2] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    others = [WrongAnswers(text, 0.3, 9).batch(3, 0), WrongAnswers(DemoText(4, seed=8), 0.3, 9).batch(3, 1)]
    assert all((first != other[2]).any() for other in others)
    made = [text, WrongAnswers(text, 0.3, 9), WrongAnswers(text, 0.3, 8), WrongAnswers(text, 0.2, 9)]
    assert len({data.digest for data in made}) == 4
    assert made[1].digest == WrongAnswers(DemoText(4, seed=7), 0.3, 9).digest


@pytest.mark.parametrize(("share", "steps"), [(0.0, 3), (1.0, 3), (0.1, -1)])
def test_arguments_of_wrong_answers_are_checked(share, steps):
    with pytest.raises(ValueError, match="share" if steps > 0 else "steps"):
        WrongAnswers(DemoText(4), share, steps)


def test_schedules():
    spread = demo.Spread(steps=1000, early_dropout=0.5, late_dropout=0.4, back=0.6, end=0.88)
    options = demo.spread_options(demo.Settings(), spread)
    rates = {step: options.at(step, 12, False, 0.0)["head_dropout"] for step in (0, 599, 600, 879, 880, 999)}
    assert rates[0] == rates[599] == [1.0] * 4 + [0.4] * 8
    assert rates[600] == rates[879] == [0.5] * 4 + [0.4] * 8
    assert rates[880] == rates[999] == [0.0] * 12
    assert options.at(999, 12, False, 0.0)["lr"] < 0.03 * spread.lr


def test_the_first_weights_are_small_in_early_layers():
    dense = Model.initialised(demo.config(), 0, std="fan_in", name="demo-dense")
    start = demo.spread_start(dense, demo.Spread(early_layers=2, early_scale=0.25))
    assert not start.config.gated
    changed = {}
    for name, before in dense.parameters().items():
        ratio = start.parameter(name)[before != 0] / before[before != 0]
        if (ratio != 1).any():
            changed[name] = ratio
    inner = [f"h.{layer}.attn.{part}.weight" for layer in (0, 1) for part in ("c_attn", "c_proj")]
    assert sorted(changed) == sorted(inner)
    for name in inner:
        whole = start.parameter(name) / dense.parameter(name)
        small = whole if "c_proj" in name else whole[:, :192]
        np.testing.assert_array_equal(small, 0.25)
        if "c_attn" in name:
            np.testing.assert_array_equal(whole[:, 192:], 1)


def test_the_phases_of_the_dense_model(tmp_path):
    """With the phase, and without it; the second one starts from the first."""
    small = {"batch": 2, "dense_steps": 2, "checkpoint_every": 1}
    spread = demo.Spread(steps=2, wrong_answers=0.5)
    with_it, without = (demo.Settings(**small, spread=phase) for phase in (spread, None))
    phases = demo._Job(tmp_path / "a", with_it, False, 1, True, None).dense()
    alone = demo._Job(tmp_path / "b", without, False, 1, True, None).dense()
    assert [trainer.step_count for trainer in phases] == [2, 2]
    assert len(alone) == 1
    for name, weights in alone[0].model.parameters().items():
        np.testing.assert_array_equal(phases[0].model.parameter(name), weights)
    assert isinstance(phases[1].data, WrongAnswers)
    assert phases[1].data.text.seed != phases[0].data.seed
