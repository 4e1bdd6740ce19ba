"""Curves of circuits: how many items are needed, which sizes are evaluated, intervals and random orders."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from circuit_toy import edges, heads, with_toy
from oracle_curves import random_order

from attnsparse.circuits.circuit import Circuit
from attnsparse.items import Head

ONE_TO_FOUR = (2.0, -1.0, 4.0, 3.0)


def by_hand(effect: list[float], sizes: list[int] | None = None, normalize: str = "mib") -> Circuit:
    """A circuit of 8 heads with this curve on two prompts that agree."""
    values = np.repeat(np.array(effect)[:, None], 2, axis=1)
    sizes = list(range(len(effect))) if sizes is None else sizes
    nothing = np.full(len(sizes), np.nan)
    return Circuit(
        **dict.fromkeys(("model_name", "model_digest", "task_name", "task_digest"), "x"),
        unit="head",
        method="exact",
        ablation="zero",
        normalize=normalize,
        metric="logit_diff",
        options={"n_bootstrap": 20, "seed": 0, "confidence": 0.9, "rank_by": "absolute", "n_ranking": 2},
        items=np.array([(i // 4, i % 4) for i in range(8)], np.int32),
        scores=np.arange(8, 0, -1.0),
        sizes=np.array(sizes),
        values=values,
        full=np.ones(2),
        empty=np.zeros(2),
        effect=np.array(effect),
        **dict.fromkeys(("effect_low", "effect_high", "random_effect", "random_low", "random_high"), nothing),
    )


# --- how many are needed

JAGGED = [0, 0.5, 0.95, 0.2, 0.91, 0.89, 0.9, 0.97, 1]


def test_needed_first_and_stays():
    found = by_hand(JAGGED)
    assert found.needed()[:2] == (2, 6)
    assert found.needed(0.95)[:2] == (2, 7)
    assert found.needed(0.96)[:2] == (7, 7)
    assert found.needed(0.2)[:2] == (1, 1)
    assert found.needed(1)[:2] == (8, 8)
    assert found.needed(1e-9)[:2] == (1, 1)


def test_needed_where_the_curve_ends_below():
    found = by_hand([0, 0.5, 0.95, 0.8])
    assert found.needed() == (2, None, 2, 2, None, None)
    assert by_hand([0, 0.5]).needed() == (None,) * 6
    with pytest.raises(ValueError, match=r"does not stay at 0\.9: with 3 of 8 heads it is 0\.8"):
        found.kept(by="stays")
    with pytest.raises(ValueError, match=r"does not reach 0\.99"):
        found.kept(0.99)
    assert "stays none" in repr(found)


def test_needed_speaks_in_sizes():
    found = by_hand([0, 0.2, 0.95, 0.5, 1], sizes=[0, 1, 3, 6, 8])
    assert found.needed()[:2] == (3, 8)
    assert found.needed(0.4)[:2] == (3, 3)


def test_kept():
    found = by_hand(JAGGED)
    assert found.kept() == [Head(0, 0), Head(0, 1)]
    assert found.kept(by="stays") == found.top(6)
    assert found.heads() == found.kept()
    assert found.heads(0.4) == found.kept(0.4) != found.kept()
    assert found.top(0) == []
    assert len(found.top(100)) == 8 == len(found)


@pytest.mark.parametrize("fraction", [0, -1, 1.001, float("nan"), float("inf")])
def test_fraction_out_of_range(fraction):
    for call in (by_hand(JAGGED).needed, by_hand(JAGGED).kept, by_hand(JAGGED).summary):
        with pytest.raises(ValueError, match="fraction must be above 0 and at most 1"):
            call(fraction)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda c: c.needed("0.9"), TypeError, "fraction must be a number, got str"),
        (lambda c: c.needed(True), TypeError, "fraction must be a number, got bool"),
        (lambda c: c.kept(by="last"), ValueError, "by must be one of 'first', 'stays', got 'last'"),
        (lambda c: c.top(-1), ValueError, "n must be at least 0, got -1"),
        (lambda c: c.top(1.5), TypeError, "n must be an integer"),
    ],
)
def test_wrong_arguments_of_a_circuit(call, error, text):
    with pytest.raises(error, match=text):
        call(by_hand(JAGGED))


def test_no_share_without_normalization():
    found = by_hand(JAGGED, normalize="none")
    with pytest.raises(ValueError, match="normalize='none'"):
        found.needed()
    assert "effect" not in repr(found)
    assert "of the effect" not in found._repr_html_()
    assert found.summary()["n_first"].isna().all()


# --- sizes


def default_sizes(n: int) -> list[int]:
    """All up to 32, then steps of 5 %, and n."""
    sizes = [0]
    while sizes[-1] < n:
        sizes.append(min(n, sizes[-1] + (1 if sizes[-1] < 32 else max(1, sizes[-1] // 20))))
    return sizes


@pytest.mark.parametrize("n", [1, 31, 32, 33, 41, 700])
def test_default_sizes(n):
    # without a normalization no size is added
    found, _ = with_toy(edges(*[1.0] * n, n_heads=1), method="attribution", normalize="none")
    assert found.sizes.tolist() == default_sizes(n)
    assert len(default_sizes(19584)) < 180


def test_every_number_of_heads_is_evaluated():
    found, _ = with_toy(heads(*[1.0] * 50, per_layer=10))
    assert found.sizes.tolist() == list(range(51))


def many_edges(n: int = 600, important: int = 300) -> dict:
    return edges(*[1.0] * important, *[1e-3] * (n - important))


def test_sizes_are_finer_where_it_matters():
    found, _ = with_toy(many_edges(), method="attribution")
    assert found.needed()[:2] == (271, 271)  # 0.9 of 300.3
    assert 270 in found.sizes
    extra = set(found.sizes.tolist()) - set(default_sizes(600))
    assert 0 < len(extra) <= 12
    assert (np.diff(found.sizes) > 0).all()


def test_both_gaps_are_made_finer():
    """The curve rises to 1, falls to 0.8 and rises again: it reaches 0.9 in one gap, for good in another."""
    signs = np.repeat([1.0, -1.0, 1.0], [300, 60, 60])
    weights = edges(*(signs * np.linspace(1.0001, 1, 420)))
    curve = np.concatenate([[0], np.cumsum(list(weights.values()))]) / sum(weights.values())
    found, _ = with_toy(weights, method="attribution")
    first = int((curve >= 0.9).argmax())
    stays = len(curve) - int(np.logical_and.accumulate(curve[::-1] >= 0.9).sum())
    assert first < 275 < 385 < stays
    assert found.needed()[:2] == (first, stays)
    assert {first - 1, stays - 1} <= set(found.sizes.tolist())


def test_given_sizes_stay_as_they_are():
    found, _ = with_toy(many_edges(), method="attribution", sizes=range(0, 601, 200))
    np.testing.assert_array_equal(found.sizes, [0, 200, 400, 600])


@pytest.mark.parametrize(
    ("sizes", "error", "text"),
    [
        ([], ValueError, "got none"),
        ([0, 5], ValueError, r"each of sizes must be in 0\.\.4, got 5"),
        ([-1, 2], ValueError, "got -1"),
        ([1.0], TypeError, "each of sizes must be an integer"),
        ([True], TypeError, "each of sizes must be an integer"),
        ("12", TypeError, "sequence of integers, got str"),
        (3, TypeError, "sequence of integers, got int"),
        (np.zeros((2, 2), int), ValueError, r"shape \(2, 2\)"),
        ([[1]], TypeError, "each of sizes must be an integer"),
    ],
)
def test_wrong_sizes(sizes, error, text):
    with pytest.raises(error, match=text):
        with_toy(heads(*ONE_TO_FOUR), sizes=sizes)


# --- bootstrap


def test_intervals_hold_the_estimate():
    # the second head matters on some prompts only
    found, _ = with_toy(heads(5.0, 1.0, 0.5), {"spread": 0.0}, n_bootstrap=500)
    assert (found.effect_low <= found.effect + 1e-12).all()
    assert (found.effect_high >= found.effect - 1e-12).all()
    random = np.random.default_rng(0)
    values = np.stack([np.zeros(20), random.uniform(0.7, 1.05, 20), np.ones(20)])
    odd = dataclasses.replace(
        by_hand([0, values[1].mean(), 1]), values=values, full=np.ones(20), empty=np.zeros(20)
    )
    needed = odd.needed(values[1].mean())
    assert (needed.first, needed.first_low, needed.first_high) == (1, 1, 2)


@pytest.mark.serial
def test_no_bootstrap():
    found, _ = with_toy(heads(*ONE_TO_FOUR), n_bootstrap=0)
    assert np.isnan(found.effect_low).all()
    assert found.needed() == (3, 3, None, None, None, None)
    assert "None" not in found._repr_html_()


# --- random orders


def test_random_baseline_by_hand():
    weights = heads(*np.arange(1.0, 9.0))
    found, _ = with_toy(weights, n_random=3, seed=11)
    worth = np.array(list(weights.values()))
    curves = []
    for which in range(3):
        order = random_order(8, 11, which)
        curves.append(np.concatenate([[0], np.cumsum(worth[order])]) / 36)
    np.testing.assert_allclose(found.random_effect, np.mean(curves, axis=0))
    np.testing.assert_allclose(found.random_low, np.min(curves, axis=0))
    np.testing.assert_allclose(found.random_high, np.max(curves, axis=0))


def test_random_orders_do_not_depend_on_the_ranking():
    weights = heads(*np.arange(1.0, 9.0))
    one, other = (with_toy(weights, n_random=2, method=method)[0] for method in ("exact", "greedy"))
    np.testing.assert_array_equal(one.random_effect, other.random_effect)
    assert (with_toy(weights, n_random=2, seed=1)[0].random_effect != one.random_effect).any()


def test_random_baseline_on_fewer_sizes():
    found, _ = with_toy(many_edges(), method="attribution", n_random=2)
    known = ~np.isnan(found.random_effect)
    assert 10 < known.sum() <= 25
    assert known[[0, 1, -1]].all()
    assert found.random_effect[-1] == 1
    assert found.summary().n_random_first[0] > found.needed().first
    assert np.isnan(with_toy(heads(*ONE_TO_FOUR))[0].random_effect).all()
