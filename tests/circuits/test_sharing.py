"""Sweeps compute a row that several variants have in common once: the same values as each variant alone.

The C driver counts the rows (`use_sweep` in tests/driver/driver_ops.c).
"""

from __future__ import annotations

import numpy as np
import pytest
from circuit_cases import CONFIGS, case, error

from attnsparse.circuits import effects
from attnsparse.model.build_info import batch_invariant

UNITS = ["head", "head_position", "edge"]
ABLATIONS = ["zero", "mean", "counterfactual"]


def shuffled(asked, unit: str) -> np.ndarray:
    """Candidates in random order, some left out: these are always ablated."""
    items = effects.candidates(asked.model(), asked.task, unit)
    order = np.random.default_rng(1).permutation(len(items))
    return items[order[: max(1, len(items) - len(items) // 4)]]


def sizes_of(n: int) -> list[int]:
    """Neighbours, jumps, the same size twice, and back again."""
    sizes = [0, 1, 2, 5, n // 4, n // 4 + 1, n // 2, n - 1, n, n]
    return [max(0, min(size, n)) for size in (*sizes, *sizes[::-3])]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_sizes_together_are_sizes_alone(name, unit, ablation):
    """One variant of a call has no other one to share with."""
    lengths = (3, 9, 1) if unit == "head" and ablation == "zero" else (7, 7)
    for dtype, metric in (("float64", "logit_diff"), ("float32", "kl")):
        asked = case(name, lengths)
        items = shuffled(asked, unit)
        given = (asked.model(dtype), asked.task, items)
        sizes = sizes_of(len(items))
        together = effects.keep_only(*given, sizes, ablation, metric=metric)
        alone = [effects.keep_only(*given, [n], ablation, metric=metric)[0] for n in sizes]
        assert error(together, np.stack(alone)) < (1e-12 if dtype == "float64" else 1e-5)
        if dtype == "float32" and batch_invariant():
            np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_leaving_one_out_is_keeping_the_others(unit, ablation):
    """The former starts from the circuit's own run, the latter from the clean one."""
    asked = case("gated", (6, 6))
    items, model = shuffled(asked, unit)[:12], asked.model("float32")
    found = effects.leave_one_out(model, asked.task, items, ablation)
    for i, row in enumerate(found):
        others = np.delete(items, i, axis=0)
        expected = effects.keep_only(model, asked.task, others, [len(others)], ablation)[0]
        assert error(row, expected) < 1e-5


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("metric", ["logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl"])
def test_threads_and_metrics(unit, metric):
    asked = case("gated")
    items, model = shuffled(asked, unit), asked.model("float32")
    sizes = sizes_of(len(items))
    one = effects.keep_only(model, asked.task, items, sizes, metric=metric, threads=1)
    for threads in (2, 3, 4):
        found = effects.keep_only(model, asked.task, items, sizes, metric=metric, threads=threads)
        np.testing.assert_array_equal(found, one)
