"""First weights of transcoders against the same written plainly in NumPy."""

from __future__ import annotations

import numpy as np
import oracle_start as twin
import pytest

from attnsparse._engine import CORES

NAMES = ("w_enc", "b_enc", "w_dec", "b_dec")
each_core = pytest.mark.parametrize("dtype", CORES)


def text(
    dtype: str, n: int = 1300, width: int = 21, kinds: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and outputs (n, width); rows of only so many kinds."""
    random = np.random.default_rng(n)
    of = random.integers(0, kinds or n, n)
    return tuple(random.normal(0.3, 1 + i, (kinds or n, width))[of].astype(dtype) for i in range(2))


def numbers(n_features: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return random.random(n_features), random.standard_normal((2, n_features, width))


@each_core
@pytest.mark.parametrize(
    ("n", "width", "kinds"), [(1300, 21, None), (400, 16, 7), (1, 3, None), (40, 1, None)]
)
def test_from_text(dtype, n, width, kinds):
    x, y = text(dtype, n, width, kinds)
    arguments = (x, y, 1.7, *numbers(30, width))
    expected = twin.first_weights(*arguments)
    found = CORES[dtype].first_weights_from_text(*arguments)
    chosen = expected[-1]
    assert found[-1].tolist() == chosen.tolist() + [-1] * (30 - len(chosen))
    assert len(chosen) == (30 if (n, kinds) == (1300, None) else len(chosen)) <= 30
    for name, a, b in zip(NAMES, found, expected):
        assert np.allclose(a, b, rtol=1e-12, atol=1e-13), name
    for threads in (2, 3):
        again = CORES[dtype].first_weights_from_text(*arguments, threads=threads)
        assert [a.tobytes() for a in again] == [a.tobytes() for a in found]


def test_features_are_rows_far_apart():
    rows = np.repeat(np.diag(np.arange(1, 7, dtype=np.float32)), 50, axis=0)
    draws, random = numbers(10, 6)
    core = CORES["float32"]
    *weights, chosen = core.first_weights_from_text(
        rows, np.ascontiguousarray(rows[:, ::-1]), 2.0, draws, random
    )
    w_enc, b_enc, w_dec, _ = weights
    kinds = rows[chosen[chosen >= 0]].argmax(axis=1)
    assert sorted(kinds) == list(range(6))  # every kind once, then no more
    assert all(np.isfinite(value).all() for value in weights)
    assert np.allclose(np.linalg.norm(w_dec, axis=1), 1)
    pre = (rows[chosen[:6]] @ w_enc[:6].T + b_enc[:6])[range(6), range(6)]
    length = np.linalg.norm((rows - rows.mean(axis=0))[chosen[:6]], axis=1) / 2
    assert np.ptp(pre / length) < 1e-5  # each stands for its own row, all with one gain
    assert 0 < (pre / length)[0] <= 1


@each_core
def test_equal_rows_give_random_directions(dtype):
    x = np.full((9, 4), 3, dtype)
    draws, random = numbers(5, 4)
    w_enc, _, w_dec, b_dec, chosen = CORES[dtype].first_weights_from_text(x, x, 1.0, draws, random)
    assert (chosen == -1).all()
    assert np.allclose(w_dec, random[1] / np.linalg.norm(random[1], axis=1, keepdims=True))
    assert (b_dec == 3).all()
    assert np.isfinite(w_enc).all()


@each_core
def test_from_a_set(dtype):
    random = np.random.default_rng(2)
    arrays = [random.normal(0, 2, size).astype(dtype) for size in ((8, 5), 8, (8, 5), 5)]
    arrays[2][3] = 0  # a feature that writes nothing
    threshold = random.random(8).astype(dtype)
    expected = twin.weights_of_set(*arrays, threshold, 0.7)
    given = [*arrays[:2], arrays[2][:, None], arrays[3]]
    found = CORES[dtype].first_weights_from_set(*given, threshold, np.array([0.7]))
    assert len(found) == 5
    assert all(np.allclose(a, b, rtol=1e-13, atol=1e-300) for a, b in zip(found, expected))
    assert len(CORES[dtype].first_weights_from_set(*given, None, np.array([0.7]))) == 4
    given[2] = random.normal(0, 2, (8, 3, 5)).astype(dtype)  # to three layers
    scale = np.array([0.5, 2.0, 3.0])
    written = given[2] / scale[:, None]
    length = np.sqrt((written.astype(np.float64) ** 2).sum((1, 2)))
    w_enc, b_enc, w_dec, b_dec, log_threshold = CORES[dtype].first_weights_from_set(*given, threshold, scale)
    assert np.allclose(w_dec.reshape(written.shape), written / length[:, None, None])
    assert np.allclose(w_enc, arrays[0] * length[:, None])
    assert np.allclose(b_enc, arrays[1] * length)
    assert np.allclose(b_dec, arrays[3] / 0.5)
    assert np.allclose(log_threshold, np.log(threshold * length))


@each_core
@pytest.mark.parametrize("n", [1, 7, 129, 2100])
def test_scale(dtype, n):
    y = text(dtype, n)[1]
    assert CORES[dtype].first_weights_scale(y) == pytest.approx(twin.output_scale(y), rel=1e-14)


@each_core
@pytest.mark.parametrize("l0", [0, 0.001, 1, 2.5, 17, 40, 1e9])
@pytest.mark.parametrize("n", [3, 1500])
def test_threshold(dtype, l0, n):
    x = text(dtype, n)[0]
    random = np.random.default_rng(3)
    w_enc, b_enc = random.standard_normal((40, 21)), random.standard_normal(40) + 1
    expected = twin.common_threshold(w_enc, b_enc, x, min(l0, 40))
    found = CORES[dtype].first_weights_threshold(w_enc, b_enc, x, l0, threads=2)
    assert found == pytest.approx(expected, rel=1e-12)


def test_bad_arguments_are_refused():
    core = CORES["float32"]
    x, y = text("float32", 10, 3)
    draws, random = numbers(4, 3)
    w = np.zeros((4, 3)), np.zeros(4)
    for call, error, match in (
        (lambda: core.first_weights_from_text(x, y[:5], 1.0, draws, random), ValueError, "fit each other"),
        (lambda: core.first_weights_from_text(x, y, 1.0, draws[:2], random), ValueError, "fit each other"),
        (lambda: core.first_weights_from_text(x, y, 0.0, draws, random), ValueError, "scale > 0"),
        (
            lambda: core.first_weights_from_text(x[:0], y[:0], 1.0, draws, random),
            ValueError,
            "one row or more",
        ),
        (lambda: core.first_weights_from_text(x.astype(float), y, 1.0, draws, random), TypeError, "float32"),
        (
            lambda: core.first_weights_from_set(*w, w[0][:2, None], np.zeros(3), None, np.ones(1)),
            ValueError,
            "fit each other",
        ),
        (
            lambda: core.first_weights_from_set(*w, w[0][:, None], np.zeros(3), None, -np.ones(1)),
            ValueError,
            "scale",
        ),
        (
            lambda: core.first_weights_from_set(*w, np.zeros((4, 0, 3)), np.zeros(3), None, np.ones(0)),
            ValueError,
            "one layer or more",
        ),
        (lambda: core.first_weights_scale(x[:0]), ValueError, "one number or more"),
        (lambda: core.first_weights_threshold(*w, x[:, :2].copy(), 1), ValueError, "fit each other"),
        (lambda: core.first_weights_threshold(*w, x, float("nan")), ValueError, "l0 of 0 or more"),
        (lambda: core.first_weights_threshold(*w, x, 1, threads=65), ValueError, "threads"),
    ):
        with pytest.raises(error, match=match):
            call()
