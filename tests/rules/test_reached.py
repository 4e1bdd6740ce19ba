"""The numbers behind R26, R27 and R28: how far the engine is from its judges, over many random cases."""

import engine
import numpy as np
import oracle
import pytest
import test_gradients
import test_nonfinite
import test_sparse_dense
from engine import build
from hypothesis import given, settings
from hypothesis import strategies as st
from reliability import report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_gradients_against_formulas():
    """R26: all parameters and activations in double, 300 random shapes, both gate gradients."""
    worst, n_cases = [0.0], [0]

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(engine.cases())
    def compare(case):
        config, seed, tokens = case
        weights = engine.rounded_model(seed, config)
        if not engine.gates_are_clear(config, oracle.forward(config, weights, tokens), 1e-9):
            return
        dlogits = np.random.default_rng(seed).standard_normal((len(tokens), config["n_vocab"]))
        model = build(config, weights, "float64")
        for straight in (False, True):
            options = {"wrt": engine.WRT, "gate_gradient": test_gradients.mode(straight)}
            found = model.gradients(tokens, dlogits=dlogits, **options)
            expected = engine.oracle_gradients(config, weights, tokens, dlogits, straight)
            worst[0] = max(worst[0], *engine.gradient_errors(found, expected).values())
        n_cases[0] += 1

    compare()
    assert worst[0] <= 1e-10
    report("R26", f"{n_cases[0]} random shapes in double: largest relative error {worst[0]:.1e} (goal 1e-10)")


def test_central_differences():
    test_gradients.test_every_parameter_by_central_differences()
    report("R26", "every element of every parameter of two models by central differences: within 1e-5 + 1e-3")


def test_sparse_against_dense():
    """R27: 500 cases; z in units of the last place of the sum of its terms' sizes, and that over sqrt(T)."""
    worst, scaled, n_cases, n_empty = [0.0], [0.0], [0], [0]

    @settings(max_examples=500, deadline=None, derandomize=True)
    @given(
        seed=st.integers(0, 2**31),
        n_tokens=st.integers(1, 200),
        d_head=st.sampled_from([1, 3, 8, 17, 64]),
        density=st.sampled_from(test_sparse_dense.DENSITIES),
    )
    def compare(seed, n_tokens, d_head, density):
        config, weights, tokens = test_sparse_dense.one_layer(seed, n_tokens, 2, d_head)
        names = test_sparse_dense.NEEDED
        dense = build(config | {"gated": False}, weights).run(tokens, names, logits="none")
        config["gate_bias"] = test_sparse_dense.bias_for_density(dense.scores.astype(np.float64), density)
        sparse = build(config, weights).run(tokens, names, logits="none")
        is_open = np.isfinite(dense.scores) & (dense.scores + np.float32(config["gate_bias"]) > 0)
        assert np.array_equal(sparse.gate, is_open)
        assert np.array_equal(sparse.pattern, np.where(is_open, dense.pattern, np.float32(0)))
        if density == 1.0:
            assert np.array_equal(sparse.z, dense.z)
        pattern, v = sparse.pattern.astype(np.float64), sparse.v.astype(np.float64)
        expected, size = (np.einsum("lhqk,lkhd->lqhd", pattern, x) for x in (v, np.abs(v)))
        unit = np.finfo(np.float32).eps * np.where(size > 0, size, 1)
        here = float((np.abs(sparse.z - expected) / unit).max())
        worst[0], scaled[0] = max(worst[0], here), max(scaled[0], here / np.sqrt(n_tokens))
        empty = ~sparse.gate.any(-1).transpose(0, 2, 1)
        assert not sparse.z[empty].any()
        n_empty[0] += int(empty.sum())
        n_cases[0] += 1

    compare()
    assert scaled[0] <= 2
    text = f"{n_cases[0]} cases: patterns equal by bit, z within {worst[0]:.1f} ulp of its terms"
    report("R27", f"{text}, {scaled[0]:.2f} ulp times sqrt(T); {n_empty[0]} empty rows exactly 0")


def test_placements():
    for gated in (False, True):
        test_nonfinite.test_random_placements_never_crash(gated)
    report("R28", "2,000 random placements of NaN, infinities, -0, a subnormal and the largest: 0 crashes")
