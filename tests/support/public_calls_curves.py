"""Uses of the extension's metrics and curves; a part of public_calls.py."""

from __future__ import annotations

import numpy as np
from public_objects import Uses, uses

from attnsparse import _core
from attnsparse._core_types import Curve, Metric
from attnsparse.tasks import CustomMetric

THREE = np.arange(4)
LOGITS = np.arange(33, dtype=np.float32).reshape(3, 11) % 7
ANSWERS = (THREE, np.array([1, 2, 3], np.int32), THREE, np.array([4, 5, 6], np.int32))
METRICS = [Metric(kind, *ANSWERS, LOGITS) for kind in _core.metric_names()]
OWN = CustomMetric(lambda logits, prompts: logits[:, 3], lambda logits, prompts: logits)
CUSTOM = Metric("custom", *ANSWERS, custom=OWN)


def fails(logits: np.ndarray, prompts: np.ndarray) -> None:
    raise ArithmeticError("a metric of the user's own")


FAILING = CUSTOM._replace(custom=CustomMetric(fails, fails))
CURVE = Curve(
    np.linspace(0, 1.1, 5)[:, None] * np.arange(1.0, 7.0),
    np.arange(1.0, 7.0),
    np.array([0, 0.1, -0.1, 0, 0.2, 0]),
    "mib",
    np.linspace(0, 1.1, 5),
    np.arange(5) * 3,
)
SHORT = CURVE._replace(full=np.ones(3))

CURVE_CALLS: dict[str, Uses] = {
    "_core.metric_names": uses(lambda e: _core.metric_names()),
    "_core.metric_values": uses(
        *(lambda e, m=m: _core.metric_values(LOGITS, m) for m in [*METRICS, CUSTOM]),
        wrong=(
            lambda e: _core.metric_values(LOGITS, CUSTOM._replace(custom=None)),
            lambda e: _core.metric_values(LOGITS, FAILING),
            lambda e: _core.metric_values(LOGITS[:2], METRICS[0]),
            lambda e: _core.metric_values(LOGITS[:, :5].copy(), METRICS[0]),
            lambda e: _core.metric_values(LOGITS, METRICS[4]._replace(reference=LOGITS[:, :5].copy())),
        ),
    ),
    "_core.metric_gradients": uses(
        *(lambda e, m=m: _core.metric_gradients(LOGITS, m) for m in [*METRICS, CUSTOM]),
        wrong=(
            lambda e: _core.metric_gradients(LOGITS, CUSTOM._replace(custom=CustomMetric(len))),
            lambda e: _core.metric_gradients(LOGITS, FAILING),
            lambda e: _core.metric_gradients(LOGITS, METRICS[0]._replace(kind="x")),
        ),
    ),
    "_core.curve_effect": uses(
        lambda e: _core.curve_effect(CURVE), wrong=(lambda e: _core.curve_effect(SHORT),)
    ),
    "_core.curve_bootstrap": uses(
        lambda e: _core.curve_bootstrap(CURVE, 20, 3, threads=2),
        lambda e: _core.curve_bootstrap(CURVE._replace(full=CURVE.empty), 20, 3),
        wrong=(
            lambda e: _core.curve_bootstrap(SHORT, 20, 3),
            lambda e: _core.curve_bootstrap(CURVE, -1, 3),
            lambda e: _core.curve_bootstrap(CURVE, 20, 3, threads=65),
        ),
    ),
    "_core.curve_band": uses(
        lambda e: _core.curve_band(CURVE.values, 0.9),
        lambda e: _core.curve_band(CURVE.values[:0], 0.9),
        wrong=(lambda e: _core.curve_band(CURVE.values, 1.5), lambda e: _core.curve_band(CURVE.full, 0.9)),
    ),
    "_core.curve_shares": uses(
        lambda e: _core.curve_shares(CURVE.full), wrong=(lambda e: _core.curve_shares(CURVE.values),)
    ),
    "_core.curve_needed": uses(
        lambda e: _core.curve_needed(CURVE.values, 0.9), wrong=(lambda e: _core.curve_needed(3, 0.9),)
    ),
    "_core.curve_needed_interval": uses(
        lambda e: _core.curve_needed_interval(CURVE, 0.9, 20, 3, 0.9),
        wrong=(
            lambda e: _core.curve_needed_interval(CURVE._replace(effect=None), 0.9, 20, 3, 0.9),
            lambda e: _core.curve_needed_interval(CURVE, 0.9, -1, 3, 0.9),
            lambda e: _core.curve_needed_interval(CURVE, 0.9, 20, 3, 0.0),
        ),
    ),
    "_core.curve_ratio": uses(
        lambda e: _core.curve_ratio(CURVE, CURVE, 0.9, False, 20, 3, 0.9),
        wrong=(
            lambda e: _core.curve_ratio(CURVE, CURVE._replace(sizes=None), 0.9, False, 20, 3, 0.9),
            lambda e: _core.curve_ratio(CURVE, 3, 0.9, False, 20, 3, 0.9),
        ),
    ),
}
