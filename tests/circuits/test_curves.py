"""Curves and random numbers of the core against NumPy: the same bits."""

from __future__ import annotations

import platform

import numpy as np
import oracle_curves as oc
import pytest

from attnsparse import _core, _core64, _random
from attnsparse._core_types import Curve
from attnsparse.circuits import choices

CONFIDENCES = (0.5, 0.9, 0.95, 0.99)
PROMPTS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 64, 127, 128, 129, 200, 300, 1000)


def same(found, wanted) -> None:
    """Bit for bit; on other machines NumPy's einsum and the compiler may join products and sums."""
    if platform.machine() == "x86_64":
        np.testing.assert_array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)


def measured(random: np.random.Generator, n_sizes: int, n_prompts: int, normalize: str = "mib") -> Curve:
    """A noisy curve that rises from what nothing to what everything does."""
    full, empty = random.normal(2, 1, n_prompts), random.normal(0, 1, n_prompts)
    if random.random() < 0.15:
        full, empty = np.where(random.random(n_prompts) < 0.7, 0.0, 1.0), np.zeros(n_prompts)
    shares = np.sort(random.random(n_sizes)) * 1.2
    values = empty + (full - empty) * (shares[:, None] + 0.3 * random.normal(size=(n_sizes, n_prompts)))
    effect = oc.explained_effect(values, full, empty, normalize)
    sizes = np.sort(random.choice(1000, n_sizes, replace=False)).astype(np.int64)
    return Curve(values, full, empty, normalize, effect, sizes)


def drawn_curves(random: np.random.Generator, n: int) -> list[tuple[Curve, np.ndarray, int, int]]:
    """n times: a curve, its resampled curves by the oracle, their number before and the seed."""
    found = []
    for i in range(n):
        normalize = choices.NORMALIZATIONS[i % 3]
        curve = measured(random, int(random.integers(1, 40)), PROMPTS[i % len(PROMPTS)], normalize)
        n_resamples, seed = (0, 1, 2, 10, 101)[i % 5], int(random.integers(2**63))
        wanted = oc.resampled_curves(*curve[:4], n_resamples, seed)
        found.append((curve, np.ascontiguousarray(wanted), n_resamples, seed))
    return found


# --- random numbers


def test_raw_numbers_are_those_of_numpy():
    random = np.random.default_rng(0)
    seeds = [0, 1, 2**64 - 1, *(int(seed) for seed in random.integers(0, 2**64, 97, np.uint64))]
    for seed in seeds:
        use, first, second = (int(x) for x in random.integers(0, 2**40, 3))
        start, n = int(random.integers(0, 20)), int(random.integers(0, 70))
        counter = np.array([0, second, first, use], np.uint64)
        wanted = np.random.Philox(key=seed, counter=counter).random_raw(start + n)
        np.testing.assert_array_equal(_random.raw(start + n, seed, use, first, second), wanted)
        for core in (_core, _core64):
            found = core._random_raw(start, n, seed, use, first, second).view(np.uint64)
            np.testing.assert_array_equal(found, wanted[start:])


@pytest.mark.parametrize("n", [0, 1, 2, 255, 256, 257, 5000])
def test_random_orders_are_those_of_numpy(n):
    for seed in (0, 3, 2**64 - 1):
        for second in range(5):
            found = _core._random_permutation(n, seed, 7, 1, second)
            np.testing.assert_array_equal(found, _random.permutation(n, seed, 7, 1, second))


# --- against the oracle


def test_effects_and_resamples():
    for curve, wanted, n_resamples, seed in drawn_curves(np.random.default_rng(1), 150):
        same(_core.curve_effect(curve), curve.effect)
        for threads in (1, 3):
            same(_core.curve_bootstrap(curve, n_resamples, seed, threads=threads), wanted)


def test_bands():
    for i, (_, curves, _, _) in enumerate(drawn_curves(np.random.default_rng(2), 150)):
        confidence = CONFIDENCES[i % 4]
        same(_core.curve_band(curves, confidence, 1 + i % 3), oc.band(curves, confidence))


def test_shares():
    random = np.random.default_rng(6)
    for n in (0, 1, 7, 8, 130, 300):
        effect = random.normal(size=n)
        positive = np.maximum(effect, 0)
        wanted = np.append(0.0, np.cumsum(positive) / (positive.sum() or 1.0))
        np.testing.assert_array_equal(_core.curve_shares(effect), wanted)
    np.testing.assert_array_equal(_core.curve_shares(-np.ones(3)), np.zeros(4))


def test_needed_and_its_interval():
    random = np.random.default_rng(3)
    for i, (curve, curves, n_resamples, seed) in enumerate(drawn_curves(random, 150)):
        fraction, confidence = float(random.uniform(0.01, 1)), CONFIDENCES[i % 4]
        drawn = oc.needed_index(curves, fraction)
        np.testing.assert_array_equal(_core.curve_needed(curves, fraction), drawn)
        ends = [len(curve.sizes)] * 4
        if len(curves):
            ends = [end for index in drawn for end in oc.index_interval(index, confidence)]
        wanted = (*(int(index) for index in oc.needed_index(curve.effect, fraction)), *ends)
        for threads in (1, 2):
            found = _core.curve_needed_interval(curve, fraction, n_resamples, seed, confidence, threads)
            assert found == wanted


@pytest.mark.parametrize("by", choices.COUNTED_BY)
def test_ratios(by):
    random = np.random.default_rng(4)
    n_defined = 0
    for i in range(100):
        pair = [measured(random, int(random.integers(2, 30)), n) for n in (12, 12 if i % 2 else 7)]
        fraction, confidence, seed = float(random.uniform(0.3, 0.9)), CONFIDENCES[i % 4], i
        counts, drawn = [], []
        for curve in pair:
            draws = oc.resamples(50, curve.values.shape[1], seed)
            curves = oc.bootstrap_effect(*curve[:3], draws, "mib")
            counts.append(oc.needed_sizes(curve.effect[None], curve.sizes, fraction, by)[0])
            drawn.append(oc.needed_sizes(curves, curve.sizes, fraction, by))
        found = _core.curve_ratio(*pair, fraction, by == "stays", 50, seed, confidence, 1 + i % 2)
        np.testing.assert_array_equal(found, oc.ratio_of_needed(counts, drawn, confidence))
        n_defined += not np.isnan(found[0])
    assert 10 < n_defined < 100


def test_the_comparison_can_fail():
    """A number that differs in its last bit is seen."""
    curve = measured(np.random.default_rng(5), 5, 20)
    other = np.nextafter(curve.values, np.inf)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(_core.curve_effect(curve._replace(values=other)), curve.effect)


# --- what they mean


def test_resamples_against_loops():
    random = np.random.default_rng(1)
    for normalize in choices.NORMALIZATIONS:
        curve = measured(random, 7, 5, normalize)
        for row, chosen in zip(_core.curve_bootstrap(curve, 40, 2), oc.resamples(40, 5, 2)):
            wanted = oc.explained_effect(
                curve.values[:, chosen], curve.full[chosen], curve.empty[chosen], normalize
            )
            np.testing.assert_allclose(row, wanted, rtol=1e-12)


def test_resamples_are_paired():
    """A curve that is a multiple of the whole model's on every prompt has no uncertainty."""
    full = np.array([1.0, 50.0, 3.0, 7.0])
    curve = Curve(np.array([0.5, 0.95])[:, None] * full, full, np.zeros(4), "mib")
    np.testing.assert_allclose(_core.curve_bootstrap(curve, 200, 3), np.tile([0.5, 0.95], (200, 1)))


def test_resamples_are_drawn_evenly_by_the_seed():
    """The curves of the single prompts' shares say how often each was drawn."""
    full = np.ones(10)

    def draws(n: int, seed: int) -> np.ndarray:
        return 10 * _core.curve_bootstrap(Curve(np.eye(10), full, full - 1, "mib"), n, seed)

    counts = draws(2000, 4)
    np.testing.assert_allclose(counts.sum(axis=1), 10)
    assert (np.abs(counts.mean(axis=0) - 1) < 0.1).all()
    np.testing.assert_array_equal(counts[:100], draws(100, 4))
    assert (counts != draws(2000, 5)).any()


def test_resamples_without_an_effect_are_left_out():
    full = np.array([1.0, 0.0, 0.0])
    curves = _core.curve_bootstrap(Curve(full[None], full, np.zeros(3), "mib"), 100, 0)
    assert 0 < len(curves) < 100
    np.testing.assert_array_equal(curves, 1)
    assert np.isnan(_core.curve_band(curves[:0], 0.9)).all()


def test_bands_cover_what_other_prompts_give():
    """The 90 % interval around f(1) holds the f(1) of all prompts in about 90 % of samples."""
    random = np.random.default_rng(0)
    hits = []
    for seed in range(200):
        full = random.exponential(size=40) + 1
        part = full * random.uniform(0.2, 0.8, 40)
        curves = _core.curve_bootstrap(Curve(part[None], full, np.zeros(40), "mib"), 200, seed)
        low, high = _core.curve_band(curves, 0.9)
        hits.append(low[0] <= 0.5 <= high[0])
    assert 0.8 < np.mean(hits) < 0.97


# --- wrong arguments

GOOD = Curve(np.ones((3, 4)), np.ones(4), np.zeros(4), "mib", np.ones(3), np.arange(3))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"values": np.ones(3)}, ValueError, "values must be a C-contiguous array of 2 dimension"),
        ({"values": np.ones((3, 5))}, ValueError, "full of the curve has the wrong shape"),
        ({"empty": np.ones(5)}, ValueError, "empty of the curve has the wrong shape"),
        ({"full": np.ones(4, np.float32)}, TypeError, "full must have dtype float64, got float32"),
        ({"normalize": "half"}, ValueError, "normalize must be mib, ratio or none, got 'half'"),
        ({"normalize": 1}, TypeError, "normalize must be a string, got int"),
        ({"effect": np.ones(4)}, ValueError, "effect of the curve has the wrong shape"),
        ({"sizes": np.arange(4)}, ValueError, "sizes of the curve has the wrong shape"),
        ({"sizes": None}, ValueError, "the curve needs its effect and sizes"),
        ({"effect": None}, ValueError, "the curve needs its effect"),
        (
            {"values": np.ones((3, 0)), "full": np.ones(0), "empty": np.ones(0)},
            ValueError,
            "a curve needs prompts, got 0 prompts and 3 sizes",
        ),
    ],
)
def test_wrong_curves(change, error, text):
    with pytest.raises(error, match=text):
        _core.curve_ratio(GOOD, GOOD._replace(**change), 0.9, False, 10, 0, 0.9)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: _core.curve_bootstrap(GOOD, -1, 0), "n_resamples must not be negative, got -1"),
        (lambda: _core.curve_bootstrap(GOOD, 1, 0, threads=65), "threads must be in 1..64"),
        (lambda: _core.curve_band(np.ones((2, 2)), 1.0), "confidence must be above 0 and below 1"),
        (lambda: _core.curve_needed_interval(GOOD, 0.9, 1, 0, 0.0), "confidence must be above 0 and below 1"),
        (lambda: _core.curve_needed_interval(GOOD, 0.9, -1, 0, 0.5), "-1 resamples of 4 prompts cannot be"),
        (lambda: _core._random_raw(0, -1, 0, 0, 0, 0), "start and n must not be negative"),
        (lambda: _core._random_permutation(-1, 0, 0, 0, 0), "n must not be negative, got -1"),
    ],
)
def test_wrong_numbers(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_something_else_than_a_curve():
    with pytest.raises(TypeError, match=r"expected attnsparse\._core_types\.Curve, got int"):
        _core.curve_effect(3)
