"""Schedules give the values that a recipe states, and survive JSON."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnsparse.training import schedules as s

POSITIONS = st.lists(st.floats(0, 1), min_size=1, max_size=6).map(sorted)
NUMBERS = st.floats(-1e6, 1e6)
PIECES = POSITIONS.flatmap(
    lambda at: st.lists(NUMBERS, min_size=len(at), max_size=len(at)).map(
        lambda values: s.Pieces(tuple(zip(at, values)))
    )
)
WARMUPS = st.builds(
    s.Warmup, NUMBERS, st.integers(0, 50), st.sampled_from(["constant", "linear", "cosine"]), st.floats(0, 1),
    st.floats(0, 1),
)  # fmt: skip
SCHEDULES = st.one_of(st.builds(s.Constant, NUMBERS), PIECES, WARMUPS)


@given(SCHEDULES | st.lists(SCHEDULES, min_size=1, max_size=4).map(s.per_layer))
def test_json_gives_the_same_schedule(schedule):
    assert s.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


@given(PIECES, st.integers(1, 300))
def test_pieces_stay_within_their_points(schedule, steps):
    values = [value for _, value in schedule.points]
    for step in range(0, steps + 1, max(1, steps // 20)):
        slack = 1e-9 * max(map(abs, values))
        assert min(values) - slack <= schedule.at(step, steps) <= max(values) + slack


@given(WARMUPS, st.integers(1, 300))
def test_warmup_never_passes_its_peak(schedule, steps):
    for step in range(steps):
        assert abs(schedule.at(step, steps)) <= abs(schedule.peak) * (1 + 1e-12)


def test_constant():
    assert s.Constant(3).at(7, 10) == 3.0


def test_linear_ramp():
    ramp = s.linear(5, 0, 0, 0.25)
    assert [ramp.at(step, 2500) for step in (0, 125, 625, 626, 2499)] == [5, 4, 0, 0, 0]
    late = s.linear(1, 2, 0.5, 1)
    assert [late.at(step, 4) for step in range(5)] == [1, 1, 1, 1.5, 2]


def test_jump_holds_from_its_position_on():
    jump = s.jump(0.03, 1.0, 0.85)
    assert [jump.at(step, 2500) for step in (0, 2124, 2125, 2499)] == [0.03, 0.03, 1.0, 1.0]
    assert s.Pieces(((0, 1), (0, 2))).at(0, 10) == 2


def test_late_first_point_holds_before_it():
    assert s.Pieces(((0.5, 3), (1, 4))).at(0, 10) == 3


def test_warmup_and_cosine():
    rate = s.Warmup(1e-3, 100, "cosine", final=0.05)
    assert rate.at(0, 1600) == 1e-5
    assert rate.at(99, 1600) == rate.at(100, 1600) == 1e-3
    assert rate.at(850, 1600) == pytest.approx(1e-3 * (0.05 + 0.95 / 2))
    assert rate.at(1600, 1600) == pytest.approx(5e-5)


def test_warmup_level_then_linear_tail():
    rate = s.Warmup(2.0, 50, "linear", begin=0.85, final=0.02)
    assert rate.at(50, 2500) == rate.at(2125, 2500) == 2.0
    assert rate.at(2125 + 75, 2500) == pytest.approx(2 * (0.02 + 0.98 * 0.8))
    assert rate.at(2500, 2500) == pytest.approx(0.04)


def test_constant_rate_after_warmup():
    rate = s.Warmup(2.0, 4)
    assert [rate.at(step, 100) for step in (0, 1, 3, 4, 99)] == [0.5, 1.0, 2.0, 2.0, 2.0]


def test_decay_begins_after_a_long_warmup():
    rate = s.Warmup(1.0, 80, "linear", begin=0.5)
    assert rate.at(80, 100) == 1.0
    assert rate.at(90, 100) == pytest.approx(0.5)


def test_ranges_of_layers():
    bias = s.per_layer({"8-11": s.linear(3, 0, 0, 0.25), "0-7": -30})
    assert bias.n_layer == 12
    assert bias.at(0, 100, 12) == [-30.0] * 8 + [3.0] * 4
    assert s.layer_values(bias, 25, 100, 12) == [-30.0] * 8 + [0.0] * 4
    assert s.layer_values(s.Constant(2), 0, 1, 3) == [2.0, 2.0, 2.0]
    assert s.per_layer([1, s.Constant(2)]).at(0, 1, 2) == [1.0, 2.0]
    assert s.per_layer({"0": 1, "1-2": 2}).at(0, 1, 3) == [1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: s.Constant(math.nan),
        lambda: s.Pieces(()),
        lambda: s.Pieces(((0.5, 1), (0.2, 1))),
        lambda: s.Pieces(((1.5, 1),)),
        lambda: s.Warmup(1.0, -1),
        lambda: s.Warmup(1.0, decay="step"),
        lambda: s.Warmup(1.0, final=2),
        lambda: s.per_layer({"0-2": 1, "2-3": 1}),
        lambda: s.per_layer({"1-2": 1}),
        lambda: s.per_layer({"first": 1}),
        lambda: s.per_layer([]),
        lambda: s.per_layer([1, 2]).at(0, 1, 3),
        lambda: s.from_dict({"kind": "spline"}),
        lambda: s.from_dict({"kind": "constant"}),
        lambda: s.from_dict({"kind": "pieces", "points": 3}),
        lambda: s.from_dict(3),
    ],
)
def test_nonsense_is_a_value_error(make):
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize("value", ["0.1", True, None, s.per_layer([1])])
def test_only_numbers_and_schedules_are_taken(value):
    with pytest.raises(TypeError):
        s.as_schedule(value)
