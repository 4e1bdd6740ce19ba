"""Metrics of the core on given logits: against NumPy, gradients against finite differences, bad input."""

from __future__ import annotations

import numpy as np
import oracle_circuits as oc
import pytest

from attnsparse import _core, _core64
from attnsparse._core_types import Metric
from attnsparse.tasks import METRICS, CustomMetric
from attnsparse.tasks.metrics import packed

ANSWERS, WRONG = ([3], [0, 7, 2], [5]), ([1, 4], [9], [8, 6, 0])
V = 11
each_metric = pytest.mark.parametrize("kind", METRICS)
each_core = pytest.mark.parametrize("core", [_core, _core64], ids=["float32", "float64"])


def dtype_of(core) -> type:
    return np.float32 if core is _core else np.float64


def some_logits(core, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (3, V)).astype(dtype_of(core))


def metric(core, kind: str, **fields) -> Metric:
    return Metric(kind, *packed(ANSWERS), *packed(WRONG))._replace(**fields)


def complete(core, kind: str) -> Metric:
    """With the reference logits that "kl" needs."""
    return metric(core, kind, reference=some_logits(core, 1) if kind == "kl" else None)


def by_numpy(core, kind: str, logits: np.ndarray) -> np.ndarray:
    full = some_logits(core, 1).astype(float)
    rows = zip(logits.astype(float), ANSWERS, WRONG, full)
    return np.array([oc.metric_value(row, a, w, kind, whole) for row, a, w, whole in rows])


@each_core
@each_metric
def test_values(core, kind):
    logits = some_logits(core)
    found = core.metric_values(logits, complete(core, kind))
    np.testing.assert_allclose(found, by_numpy(core, kind, logits), rtol=1e-13, atol=1e-14)


@each_metric
def test_gradients_are_finite_differences(kind):
    logits, given = some_logits(_core64), complete(_core64, kind)
    found = _core64.metric_gradients(logits, given)
    for j in range(V):
        step = np.zeros(V)
        step[j] = 1e-5
        up, down = (_core64.metric_values(logits + sign * step, given) for sign in (1, -1))
        np.testing.assert_allclose(found[:, j], (up - down) / 2e-5, atol=1e-9)
    single = _core.metric_gradients(some_logits(_core), complete(_core, kind))
    assert single.dtype == np.float32


@each_core
def test_a_custom_metric_is_asked(core):
    """Rows and prompts arrive as they are, in copies, and what comes back is the result."""
    seen = []

    def values(logits, prompts):
        seen.append((logits.copy(), prompts))
        logits[:] = 0  # a copy
        return [1, 2.5, True]

    logits = some_logits(core)
    before = logits.copy()
    given = metric(core, "custom", custom=CustomMetric(values, lambda rows, prompts: 2 * rows))
    np.testing.assert_array_equal(core.metric_values(logits, given), [1, 2.5, 1])
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_array_equal(seen[0][0], before)
    assert seen[0][0].dtype == dtype_of(core)
    assert seen[0][1].tolist() == [0, 1, 2]
    assert seen[0][1].dtype == np.int64
    np.testing.assert_array_equal(core.metric_gradients(logits, given), 2 * logits)


class Odd:
    """In the place of a CustomMetric: gives what it was made with."""

    def __init__(self, found, gradient=None):
        self.found, self.gradient = found, gradient

    def row_values(self, logits, prompts):
        return self.found

    row_gradients = row_values


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"kind": "x"}, ValueError, "there is no metric 'x'"),
        ({"kind": 3}, TypeError, "kind must be a string, got int"),
        ({"kind": "kl"}, ValueError, "metric kl needs reference logits"),
        ({"kind": "kl", "reference": np.zeros((3, 5))}, ValueError, "reference logits has the wrong shape"),
        (
            {"answers": np.array([3, 0, 7, 2, 11], np.int32)},
            IndexError,
            "answer 11 of prompt 2 is out of range",
        ),
        ({"wrong_start": np.array([0, 0, 3, 6])}, ValueError, "prompt 0 has no wrong answer"),
        ({"wrong_start": np.array([0, 2, 3])}, ValueError, "wrong answers has the wrong shape"),
        ({"kind": "custom"}, ValueError, "a custom metric needs its functions"),
        ({"kind": "custom", "custom": 3}, AttributeError, "gradient"),
        ({"kind": "custom", "custom": Odd([1.0, 2.0, 3.0])}, TypeError, "row_values must be a NumPy array"),
        ({"kind": "custom", "custom": Odd(np.ones(2))}, ValueError, "row_values has the wrong shape"),
    ],
)
def test_wrong_metrics(fields, error, text):
    with pytest.raises(error, match=text):
        _core64.metric_values(some_logits(_core64), metric(_core64, **{"kind": "logit_diff", **fields}))


@pytest.mark.parametrize(
    ("custom", "text"),
    [(Odd(np.ones(3)), "has no gradient"), (Odd(np.ones((3, 4)), True), "row_gradients has the wrong shape")],
)
def test_wrong_gradients(custom, text):
    given = metric(_core64, "custom", custom=custom)
    with pytest.raises(ValueError, match=text):
        _core64.metric_gradients(some_logits(_core64), given)


@pytest.mark.parametrize(
    ("logits", "error", "text"),
    [
        (np.zeros((2, V)), ValueError, "the metric's number of prompts has the wrong shape"),
        (np.zeros(V), ValueError, "logits must be a C-contiguous array of 2 dimension"),
        (np.zeros((3, V), np.float32), TypeError, "logits must have dtype float64"),
    ],
)
def test_wrong_logits(logits, error, text):
    with pytest.raises(error, match=text):
        _core64.metric_values(logits, metric(_core64, "logit_diff"))


def test_names():
    names = _core.metric_names()
    assert tuple(names) == METRICS == oc.METRICS
    assert [name for name, of_answers in names.items() if of_answers] == list(METRICS[:3])
