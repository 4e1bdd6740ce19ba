"""The ratio of two circuits: counted by hand, resampled in pairs, honest where nothing is reached."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fake_circuit import fake_circuit
from oracle_curves import explained_effect, resamples

from attnsparse.circuits import Ratio

MORE = fake_circuit([0, 0.2, 0.5, 0.95, 0.8, 0.85, 0.92, 0.97, 1], spread=0.4, seed=1)
FEWER = fake_circuit([0, 0.7, 0.93, 0.96, 1], spread=0.4, seed=2)


def test_ratio_of_what_is_needed():
    assert MORE.ratio_to(FEWER).value == 3 / 2
    assert MORE.ratio_to(FEWER, by="stays").value == 6 / 2
    assert MORE.ratio_to(FEWER, 0.6).value == 3 / 1
    assert FEWER.ratio_to(MORE).value == 2 / 3


def test_ratio_as_text():
    assert str(Ratio(9.14, 7.75, math.inf)) == "9.1 [7.8, inf]"


@pytest.mark.parametrize("by", ["first", "stays"])
def test_interval_is_that_of_resampled_prompts(by):
    """Every resample is drawn, averaged and counted again with plain loops."""
    ratios = []
    for draw in resamples(200, 12, 0):
        needed = []
        for circuit in (MORE, FEWER):
            curve = explained_effect(circuit.values[:, draw], circuit.full[draw], circuit.empty[draw], "mib")
            reached = curve >= 0.9
            bad = np.flatnonzero(~reached)
            index = int(np.argmax(reached)) if by == "first" else int(bad[-1]) + 1
            needed.append(circuit.sizes[index])
        ratios.append(needed[0] / needed[1])
    found = MORE.ratio_to(FEWER, by=by, n_bootstrap=200)
    ordered = sorted(ratios)
    assert found.low == ordered[math.floor(0.025 * 199)]
    assert found.high == ordered[math.ceil(0.975 * 199)]
    assert found.low <= found.value <= found.high
    assert found.low < found.high


def test_prompts_that_agree_leave_no_interval():
    found = fake_circuit([0, 0.3, 0.6, 1]).ratio_to(fake_circuit([0, 1]))
    assert found == (3.0, 3.0, 3.0)


def test_what_is_never_reached_has_no_ratio():
    short = fake_circuit([0, 0.2, 0.5])
    assert all(math.isnan(number) for number in short.ratio_to(FEWER))
    assert all(math.isnan(number) for number in FEWER.ratio_to(short))


def test_unequal_numbers_of_prompts_are_drawn_apart():
    other = fake_circuit([0, 0.7, 0.93, 0.96, 1], spread=0.4, n_prompts=7)
    assert MORE.ratio_to(other).value == 1.5


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (fake_circuit([0, 1], unit="edge"), "unit, got 'head' and 'edge'"),
        (fake_circuit([0, 1], ablation="mean"), "ablation, got 'zero' and 'mean'"),
        (fake_circuit([0, 1], task="ioi"), "task_name, got 'copy' and 'ioi'"),
    ],
)
def test_circuits_of_different_kinds(other, word):
    with pytest.raises(ValueError, match=f"a ratio needs circuits of the same {word}"):
        MORE.ratio_to(other)


def test_wrong_by():
    with pytest.raises(ValueError, match="by must be one of 'first', 'stays', got 'last'"):
        MORE.ratio_to(FEWER, by="last")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"fraction": 0}, ValueError, "fraction must be above 0 and at most 1, got 0"),
        ({"n_bootstrap": 0}, ValueError, "n_bootstrap must be in 1..1,000,000, got 0"),
        ({"confidence": 1}, ValueError, "confidence must be above 0 and below 1, got 1"),
        ({"seed": "0"}, TypeError, "seed must be an integer, got str"),
    ],
)
def test_wrong_options(options, error, text):
    with pytest.raises(error, match=text):
        MORE.ratio_to(FEWER, **options)


def test_the_other_is_a_circuit():
    with pytest.raises(TypeError, match="other must be a Circuit, got list"):
        MORE.ratio_to([])
