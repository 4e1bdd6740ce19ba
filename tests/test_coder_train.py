"""The training of transcoders: the C step against its twin, and runs that can stop and go on anywhere."""

from __future__ import annotations

import dataclasses

import numpy as np
import oracle_coder as twin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_coder import JUMP_RELU, NAMES, RELU, TOPK, Options

from attnsparse.engine import core_for
from attnsparse.errors import TrainingDiverged

TOLERANCE = {"float32": 1e-4, "float64": 1e-10}
SOME = {
    RELU: Options(RELU, sparsity=0.05, sharpness=2.0),
    JUMP_RELU: Options(JUMP_RELU, sparsity=0.05, bandwidth=0.5),
    TOPK: Options(TOPK, top_k=3),
}
AUX = {"aux_k": 4, "aux_weight": 0.25, "dead_after": 2}


def rows(seed: int, n: int, n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, n_in)), 3 * rng.standard_normal((n, n_out))
    return x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64)


def trainer(weights, dtype="float64", silent=None):
    """The core's trainer with these weights."""
    core = core_for(dtype).CoderTrainer(*(weights["w_enc"].shape[1], *weights["w_dec"].shape[::-1]))
    for name, value in weights.items():
        core.load(name, value.astype(dtype))
    if silent is not None:
        core.load("silent", silent)
    return core


def relative(found, expected) -> float:
    size = max(float(np.linalg.norm(expected)), 1e-3)
    return float(np.linalg.norm(np.asarray(found, np.float64) - expected)) / size


def is_clear(weights, x, o, dead, margin=1e-4) -> bool:
    """Rounding cannot change which features are active, near their threshold, or among the largest."""
    pre = x @ weights["w_enc"].T + weights["b_enc"]
    edges = [np.abs(pre)]
    if o.activation == JUMP_RELU:
        away = np.abs(pre - np.exp(weights["log_threshold"]))
        edges += [away, np.abs(away - o.bandwidth / 2)]
    for k, among in ((o.top_k if o.activation == TOPK else 0, pre), (o.aux_k, pre[:, dead])):
        if 0 < k < among.shape[1]:
            ranked = -np.sort(-among, axis=1)
            edges.append(ranked[:, k - 1] - ranked[:, k])
    return min(e.min() for e in edges) > margin


@given(
    st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), st.integers(1, 40),
    st.sampled_from([RELU, JUMP_RELU, TOPK]), st.booleans(), st.sampled_from(["float32", "float64"]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_loss_and_gradients_are_the_twins(seed, n, n_in, n_out, n_features, kind, helped, dtype):
    weights, (x, y) = twin.random_weights(seed, n_in, n_out, n_features), rows(seed, n, n_in, n_out)
    silent = np.random.default_rng(seed).integers(0, 4, n_features)
    changes = {"output_scale": 2.5, "top_k": min(3, n_features), "lr": 0.0}
    if helped:
        changes |= {**AUX, "aux_k": min(AUX["aux_k"], n_features)}
    o = dataclasses.replace(SOME[kind], **changes)
    dead = silent >= o.dead_after
    if dtype == "float32" and not is_clear(weights, x, o, dead):
        return
    core = trainer(weights, dtype, silent)
    found = core.step(x.astype(dtype), y.astype(dtype), **o.arguments(), threads=1)
    expected = twin.loss_and_gradients(weights, x, y, o, dead)
    for name in ("loss", "error", "penalty", "aux", "l0", "grad_norm"):
        assert found[name] == pytest.approx(getattr(expected, name), rel=TOLERANCE[dtype], abs=1e-8)
    for name in NAMES:
        assert relative(core.array(f"g/{name}"), expected.gradients[name]) < TOLERANCE[dtype], name
    assert found["n_dead"] == dead.sum()
    assert np.array_equal(core.array("silent"), np.where(expected.active, 0, silent + 1))


@pytest.mark.parametrize("kind", [RELU, JUMP_RELU, TOPK])
def test_many_steps_are_the_twins(kind):
    weights, o = twin.random_weights(1, 7, 9, 24), dataclasses.replace(SOME[kind], **AUX, lr=0.02, clip=0.4)
    core, reference = trainer(weights), twin.Twin(weights)
    for step in range(30):
        x, y = rows(step, 50, 7, 9)
        found = core.step(x, y, **o.arguments(), threads=1)
        assert found["loss"] == pytest.approx(reference.step(x, y, o).loss, rel=1e-8)
    for name in NAMES:
        assert relative(core.array(name), reference.weights[name]) < 1e-8
        assert relative(core.array(f"v/{name}"), reference.second[name]) < 1e-8
    assert core.step_count == 30
    assert np.allclose(np.linalg.norm(core.array("w_dec"), axis=1), 1, atol=1e-14)


@pytest.mark.parametrize("kind", [RELU, TOPK])
def test_the_twins_gradient_is_that_of_its_loss(kind):
    """Finite differences along a random direction, within the sphere for w_dec."""
    weights, (x, y) = twin.random_weights(5, 6, 8, 12), rows(5, 30, 6, 8)
    o, dead = SOME[kind], np.zeros(12, bool)
    gradients = twin.loss_and_gradients(weights, x, y, o, dead).gradients
    rng = np.random.default_rng(0)
    for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
        direction, h = rng.standard_normal(weights[name].shape), 1e-6
        if name == "w_dec":
            direction -= (direction * weights[name]).sum(1, keepdims=True) * weights[name]
        losses = [
            twin.loss_and_gradients({**weights, name: weights[name] + s * h * direction}, x, y, o, dead).loss
            for s in (1, -1)
        ]
        assert (losses[0] - losses[1]) / (2 * h) == pytest.approx((gradients[name] * direction).sum(), rel=1e-5)


@pytest.mark.parametrize("kind", [RELU, JUMP_RELU, TOPK])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_do_not_change_a_bit(kind, dtype):
    weights, o = twin.random_weights(2, 33, 17, 130), dataclasses.replace(SOME[kind], **AUX)
    states = []
    for threads in (1, 2, 5):
        core = trainer(weights, dtype)
        for step in range(4):
            x, y = rows(step, 700, 33, 17)
            core.step(x.astype(dtype), y.astype(dtype), **o.arguments(), threads=threads)
        states.append([core.array(name).tobytes() for name in NAMES])
    assert states[0] == states[1] == states[2]


def test_of_equal_activations_the_first_features_count():
    weights = twin.random_weights(3, 4, 4, 10)
    weights["w_enc"][:] = weights["w_enc"][0]
    weights["b_enc"][:] = 5.0
    core = trainer(weights)
    core.step(*rows(0, 6, 4, 4), activation=TOPK, top_k=3, lr=0.0)
    assert (core.array("silent") == 0).tolist() == [True] * 3 + [False] * 7


def test_a_step_that_diverges_writes_nothing():
    weights = twin.random_weights(3, 4, 4, 10)
    x, y = rows(0, 6, 4, 4)
    for name, value in (("w_enc", np.inf), ("b_enc", np.nan), ("b_dec", 1e200)):
        for o in SOME.values():
            bad = {**weights, name: np.full_like(weights[name], value)}
            core = trainer(bad)
            with pytest.raises(TrainingDiverged, match="step 0"):
                core.step(x, y, **o.arguments())
            assert core.step_count == 0
            assert not core.array("silent").any()
            assert all(np.array_equal(core.array(n), bad[n], equal_nan=True) for n in NAMES)
            assert not any(core.array(f"m/{n}").any() for n in NAMES)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"activation": 3}, ValueError, "activation"),
        ({"activation": TOPK, "top_k": 0}, ValueError, "top_k"),
        ({"activation": TOPK, "top_k": 11}, ValueError, "top_k"),
        ({"aux_k": 11}, ValueError, "aux_k"),
        ({"bandwidth": 0.0}, ValueError, "bandwidth"),
        ({"output_scale": 0.0}, ValueError, "output_scale"),
        ({"lr": np.nan}, ValueError, "lr"),
        ({"threads": 65}, ValueError, "threads"),
        ({"x": np.zeros((6, 5))}, ValueError, "as many rows"),
        ({"x": np.zeros((6, 4), np.float32)}, TypeError, "float64"),
        ({"y": np.full((6, 4), np.inf)}, ValueError, "finite"),
        ({"x": np.zeros((0, 4)), "y": np.zeros((0, 4))}, ValueError, "at least one row"),
    ],
)
def test_bad_arguments_of_a_step(changes, error, named):
    x, y = rows(0, 6, 4, 4)
    core = trainer(twin.random_weights(3, 4, 4, 10))
    arguments = {"x": x, "y": y, **Options().arguments(), **changes}
    with pytest.raises(error, match=named):
        core.step(arguments.pop("x"), arguments.pop("y"), **arguments)
    assert core.step_count == 0


def test_bad_sizes_and_names():
    make = core_for("float32").CoderTrainer
    with pytest.raises(ValueError, match="features"):
        make(4, 4, 0)
    with pytest.raises(MemoryError, match="2147483647 features"):
        make(2**31 - 1, 2**31 - 1, 2**31 - 1)
    core = make(4, 5, 6)
    with pytest.raises(KeyError, match="w_skip"):
        core.array("w_skip")
    with pytest.raises(ValueError, match="another shape"):
        core.load("w_enc", np.zeros((6, 5), np.float32))
    with pytest.raises(ValueError, match="negative"):
        core.step_count = -1


def test_out_of_memory_at_every_allocation():
    module = core_for("float32")
    x, y = (a.astype(np.float32) for a in rows(0, 6, 4, 4))
    before = module._debug_stats()["live_bytes"]
    failures = 0
    for n in range(1, 40):
        module._debug_fail_at(n)
        try:
            core = module.CoderTrainer(4, 4, 10)
            core.step(x, y, lr=1e-3, threads=1)
        except MemoryError:
            failures += 1
        else:
            break
        finally:
            module._debug_fail_at(0)
            core = None
        assert module._debug_stats()["live_bytes"] == before
    assert failures >= 10
