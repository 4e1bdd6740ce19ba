"""The training of transcoders: the C step against its twin, and runs that can stop and go on anywhere."""

from __future__ import annotations

import dataclasses
import gc
import random
import signal
from pathlib import Path

import numpy as np
import oracle_coder as twin
import pytest
import tiny_training as tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_coder import JUMP_RELU, NAMES, RELU, TOPK, Options
from table_columns import hidden
from tiny_coders import made, options

from attnsparse._engine import core_for
from attnsparse.errors import CheckpointError, ConfigError, TrainingDiverged
from attnsparse.io.bundle import write_bundle
from attnsparse.training import schedules
from attnsparse.training.checkpoint import SCHEMA
from attnsparse.transcoders import trainer as transcoder_train
from attnsparse.transcoders.options import TranscoderOptions
from attnsparse.transcoders.trainer import TranscoderTrainer, train_transcoders

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
    n_features, n_out = weights["w_dec"].shape
    core = core_for(dtype).CoderTrainer(weights["w_enc"].shape[1], n_out, np.array([n_features]))
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
    (found,) = core.step(x[None].astype(dtype), y[None].astype(dtype), **o.arguments(), threads=1)
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
        (found,) = core.step(x[None], y[None], **o.arguments(), threads=1)
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
        assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(
            (gradients[name] * direction).sum(), rel=1e-5
        )


@pytest.mark.parametrize("kind", [RELU, JUMP_RELU, TOPK])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_do_not_change_a_bit(kind, dtype):
    weights, o = twin.random_weights(2, 33, 17, 130), dataclasses.replace(SOME[kind], **AUX)
    states = []
    for threads in (1, 2, 5):
        core = trainer(weights, dtype)
        for step in range(4):
            x, y = rows(step, 700, 33, 17)
            core.step(x[None].astype(dtype), y[None].astype(dtype), **o.arguments(), threads=threads)
        states.append([core.array(name).tobytes() for name in NAMES])
    assert states[0] == states[1] == states[2]


def test_of_equal_activations_the_first_features_count():
    weights = twin.random_weights(3, 4, 4, 10)
    weights["w_enc"][:] = weights["w_enc"][0]
    weights["b_enc"][:] = 5.0
    core = trainer(weights)
    x, y = rows(0, 6, 4, 4)
    core.step(x[None], y[None], **Options(TOPK, top_k=3, lr=0.0).arguments())
    assert (core.array("silent") == 0).tolist() == [True] * 3 + [False] * 7


def test_a_step_that_diverges_writes_nothing():
    weights = twin.random_weights(3, 4, 4, 10)
    x, y = rows(0, 6, 4, 4)
    for name, value in (("w_enc", np.inf), ("b_enc", np.nan), ("b_dec", 1e200)):
        for o in SOME.values():
            bad = {**weights, name: np.full_like(weights[name], value)}
            core = trainer(bad)
            with pytest.raises(TrainingDiverged, match="step 0"):
                core.step(x[None], y[None], **o.arguments())
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
        ({"output_scale": np.zeros(1)}, ValueError, "output_scale"),
        ({"output_scale": np.ones(2)}, ValueError, "each of 1 layers"),
        ({"sparsity": -np.ones(1)}, ValueError, "sparsity"),
        ({"sparsity": 0.0}, TypeError, "sparsity"),
        ({"lr": np.nan}, ValueError, "lr"),
        ({"threads": 65}, ValueError, "threads"),
        ({"x": np.zeros((1, 6, 5))}, ValueError, "as many rows"),
        ({"x": np.zeros((2, 6, 4))}, ValueError, "of 1 layers"),
        ({"x": np.zeros((1, 6, 4), np.float32)}, TypeError, "float64"),
        ({"y": np.full((1, 6, 4), np.inf)}, ValueError, "finite"),
        ({"x": np.zeros((1, 0, 4)), "y": np.zeros((1, 0, 4))}, ValueError, "at least one row"),
    ],
)
def test_bad_arguments_of_a_step(changes, error, named):
    x, y = rows(0, 6, 4, 4)
    core = trainer(twin.random_weights(3, 4, 4, 10))
    arguments = {"x": x[None], "y": y[None], **Options().arguments(), **changes}
    with pytest.raises(error, match=named):
        core.step(arguments.pop("x"), arguments.pop("y"), **arguments)
    assert core.step_count == 0


def test_bad_sizes_and_names():
    make = core_for("float32").CoderTrainer
    with pytest.raises(ValueError, match="features"):
        make(4, 4, np.array([0]))
    with pytest.raises(ValueError, match="one layer or more"):
        make(4, 4, np.zeros(0, np.int64))
    with pytest.raises(MemoryError, match="2147483647 features"):
        make(2**31 - 1, 2**31 - 1, np.array([2**31 - 1]))
    core = make(4, 5, np.array([6]))
    with pytest.raises(IndexError, match="layer 1"):
        core.array("w_enc", 1)
    with pytest.raises(KeyError, match="w_skip"):
        core.array("w_skip")
    with pytest.raises(ValueError, match="another shape"):
        core.load("w_enc", np.zeros((6, 5), np.float32))
    with pytest.raises(ValueError, match="negative"):
        core.step_count = -1


def test_out_of_memory_at_every_allocation():
    module = core_for("float32")
    x, y = (a[None].astype(np.float32) for a in rows(0, 6, 4, 4))
    before = module._debug_stats()["live_bytes"]
    failures = 0
    for n in range(1, 40):
        module._debug_fail_at(n)
        try:
            core = module.CoderTrainer(4, 4, np.array([10]))
            core.step(x, y, **Options(lr=1e-3).arguments(), threads=1)
        except MemoryError:
            failures += 1
        else:
            break
        finally:
            module._debug_fail_at(0)
            core = None
        assert module._debug_stats()["live_bytes"] == before
    assert failures >= 10


# ---- whole runs


def test_training_may_begin_with_given_transcoders():
    """A run that is begun with what another one reached goes on from its error, in any units."""
    first = made(120, l0=None, sparsity=1e-4)
    first.train()
    start = first.transcoders()
    again = TranscoderTrainer(
        tiny.model(), tiny.data(batch=8), options(3, l0=None, sparsity=1e-4), start=start, threads=1
    )
    for name in NAMES:
        for old, new in zip(first._cores, again._cores):
            assert np.allclose(old.array(name), new.array(name), rtol=1e-4, atol=1e-5), name
    assert again.transcoders().digest != made(3, l0=None, sparsity=1e-4).transcoders().digest
    with pytest.raises(ConfigError, match="features"):
        TranscoderTrainer(tiny.model(), tiny.data(batch=8), options(3, n_features=21), start=start)


def test_a_checkpoint_knows_what_it_began_with(tmp_path):
    start = made(3).transcoders()
    first = TranscoderTrainer(tiny.model(), tiny.data(batch=8), options(4), start=start, threads=1)
    first.train(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as caught:
        made(4).load(tmp_path / "a.safetensors")
    assert caught.value.code == "start"


@pytest.mark.parametrize("wanted", [0.5, 1.2])
def test_thresholds_begin_where_l0_is_what_is_asked_for(wanted, monkeypatch):
    monkeypatch.setattr(transcoder_train, "START_L0", wanted)
    trainer = made(2, threshold=None)
    assert np.mean([result["l0"] for result in trainer.step()]) == pytest.approx(wanted, rel=0.35)
    first, second = (np.exp(core.array("log_threshold")) for core in made(2, threshold=(None, 0.3))._cores)
    assert np.allclose(second, 0.3)
    assert not np.allclose(first, 0.3)


def finished(path: Path, steps: int = 30, **how) -> bytes:
    """The last checkpoint of a run that nothing stopped."""
    made(steps, **how).train(path)
    return path.read_bytes()


@pytest.mark.parametrize("activation", ["relu", "jump_relu", "topk"])
def test_the_error_falls(activation):
    changes = {"l0": None, "sparsity": 1e-4, "top_k": 6, "activation": activation}
    trainer = made(150, **changes)
    trainer.train()
    history = trainer.history()
    assert hidden(history) == []
    assert history["error"].iloc[-2:].mean() < 0.5 * history["error"].iloc[:2].mean()
    found = trainer.transcoders().evaluate(
        tiny.model(), tiny.data(batch=8).batch(0, 0)[0].reshape(1, -1)[:, :9]
    )
    assert (found["explained_variance"] > 0.5).all()


def test_l0_is_brought_to_its_target():
    trainer = made(300, l0=4.0, l0_rate=0.1)
    trainer.train()
    assert trainer.history()["l0"].iloc[-60:].mean() == pytest.approx(4, rel=0.3)
    assert len(set(trainer.history()["sparsity"].iloc[-2:])) == 2  # each layer has its own


def test_transcoders_are_what_was_trained():
    trainer = made(20)
    trainer.train()
    found, x = trainer.transcoders(), np.random.default_rng(0).standard_normal((50, 12)).astype(np.float32)
    assert (found.activation, found.n_features, found.model_name) == ("jump_relu", (20, 24), "tiny")
    for layer, core in enumerate(trainer._cores):
        w = {name: core.array(name).astype(np.float64) for name in NAMES}
        a = twin.activations(w, x @ w["w_enc"].T + w["b_enc"], SOME[JUMP_RELU])
        expected = (a @ w["w_dec"] + w["b_dec"]) * trainer.output_scale[layer]
        encoder = found.source.encoder(layer)
        pre = x @ encoder.w_enc.T + encoder.b_enc
        rows = found.source.decoder_rows(layer, np.arange(found.n_features[layer]))[:, 0]
        output = np.where(pre > encoder.threshold, pre, 0) @ rows + found.source.output_bias(layer)
        assert np.allclose(output, expected, atol=1e-4)
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_a_run_does_not_depend_on_threads(tmp_path):
    assert finished(tmp_path / "a.safetensors", threads=1) == finished(tmp_path / "b.safetensors", threads=3)


def test_stopped_and_resumed_gives_the_same_bytes(tmp_path):
    expected = finished(tmp_path / "whole.safetensors", 900)
    path, stops = tmp_path / "run.safetensors", 0
    before, moments = signal.signal(signal.SIGVTALRM, signal.default_int_handler), random.Random(0)
    gc.disable()  # an interrupt inside another library's callback would be lost, and warned of
    try:
        for attempt in range(500):
            trainer = made(900)
            if path.exists():
                trainer.load(path)
            signal.setitimer(signal.ITIMER_VIRTUAL, moments.uniform(0.005, 0.03) if attempt < 12 else 0)
            try:
                trainer.train(path, 7)
                break
            except KeyboardInterrupt:
                stops += 1
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    finally:
        gc.enable()
        signal.signal(signal.SIGVTALRM, before)
    assert stops >= 5
    assert path.read_bytes() == expected
    assert [item.name for item in tmp_path.iterdir() if "tmp" in item.name] == []


def test_a_finished_run_is_not_run_again(tmp_path):
    expected = finished(tmp_path / "a.safetensors", 6)
    found = train_transcoders(
        tiny.model(), tiny.data(batch=8), options(6), checkpoint=tmp_path / "a.safetensors"
    )
    assert (tmp_path / "a.safetensors").read_bytes() == expected
    assert found.digest == train_transcoders(tiny.model(), tiny.data(batch=8), options(6)).digest


def test_an_interrupted_step_is_finished(tmp_path):
    """Ctrl-C between two layers: the trainer goes on, and a checkpoint holds whole steps only."""
    expected = finished(tmp_path / "whole.safetensors", 6)
    trainer = made(6)
    trainer.step()
    step, trainer._cores[1] = trainer._cores[1], Stopping(trainer._cores[1])
    with pytest.raises(KeyboardInterrupt):
        trainer.step()
    assert [core.step_count for core in trainer._cores] == [2, 1]
    trainer._cores[1] = step
    trainer.save(tmp_path / "stopped.safetensors")
    assert trainer.step_count == 2
    trainer.train(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == expected
    again = made(6)
    again.load(tmp_path / "stopped.safetensors")
    again.train(tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == expected


class Stopping:
    """A core whose step is interrupted."""

    def __init__(self, core) -> None:
        self._core = core

    def __getattr__(self, name: str):
        return getattr(self._core, name)

    def step(self, *args, **kwargs):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"lr": 1e-4}, "options", "lr"),
        ({"steps": 7}, "options", "steps"),
        ({"model": tiny.model(seed=4)}, "model", "model"),
        ({"data": tiny.data(batch=8, seed=6)}, "data", "data"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, code, field):
    finished(tmp_path / "a.safetensors", 6)
    model, data = change.pop("model", tiny.model()), change.pop("data", tiny.data(batch=8))
    steps = change.pop("steps", 6)
    with pytest.raises(CheckpointError) as caught:
        train_transcoders(model, data, options(steps, **change), checkpoint=tmp_path / "a.safetensors")
    assert (caught.value.code, caught.value.field) == (code, field)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    write_bundle(tmp_path / "a.safetensors", SCHEMA, {}, {})
    with pytest.raises(CheckpointError) as caught:
        made(3).load(tmp_path / "a.safetensors")
    assert caught.value.code == "magic"


def test_divergence_is_told_and_the_run_stays(tmp_path):
    trainer = made(60, lr=1e14, clip=0.0)
    with pytest.raises(TrainingDiverged):
        trainer.train(tmp_path / "a.safetensors", 1)
    assert 0 < trainer.step_count < 60
    again = made(60, lr=1e14, clip=0.0)
    with pytest.raises(CheckpointError) as caught:  # the last step that was done made weights infinite
        again.load(tmp_path / "a.safetensors")
    assert caught.value.code == "nonfinite"
    assert again.step_count == 0


def test_few_features_have_few_dead_ones_to_wake():
    assert TranscoderOptions(steps=3, n_features=4).aux_k == 4
    assert TranscoderOptions(steps=3).aux_k == 8
    chosen = TranscoderOptions(steps=3, n_features=(9, 4), l0=4)
    assert TranscoderOptions.from_dict(chosen.to_dict()) == chosen


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"steps": 0}, ValueError, "steps"),
        ({"steps": 1.0}, TypeError, "steps"),
        ({"n_features": 0}, ValueError, "n_features"),
        ({"n_features": (4, True)}, TypeError, "n_features"),
        ({"n_features": ()}, ValueError, "n_features"),
        ({"activation": "gelu"}, ValueError, "activation"),
        ({"activation": "topk", "l0": None, "top_k": 21}, ValueError, "top_k"),
        ({"activation": "topk"}, ValueError, "l0 is for"),
        ({"aux_k": 21}, ValueError, "aux_k"),
        ({"lr": "fast"}, TypeError, "lr"),
        ({"l0": 0}, ValueError, "l0 must stay"),
        ({"l0": 21}, ValueError, "l0 must be at most n_features, got 21 of 20"),
        ({"n_features": (20, 9), "l0": schedules.per_layer([9, 10])}, ValueError, "got 10 of 9"),
        ({"l0": schedules.linear(3, -1, 0, 0.5)}, ValueError, "l0 must stay"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas"),
        ({"betas": 0.9}, ValueError, "betas"),
        ({"bandwidth": 0.0}, ValueError, "bandwidth"),
        ({"threshold": -1}, ValueError, "threshold"),
        ({"threshold": (None, "a")}, TypeError, "threshold"),
        ({"seed": -1}, ValueError, "seed"),
        ({"speed": 1}, TypeError, "speed"),
    ],
)
def test_bad_options_are_named(changes, error, named):
    with pytest.raises(error, match=named):
        options(**{"steps": 3, **changes})


def test_options_survive_json():
    chosen = options(9)
    assert TranscoderOptions.from_dict(chosen.to_dict()) == chosen
    assert TranscoderOptions.from_dict(TranscoderOptions(steps=3).to_dict()) == TranscoderOptions(steps=3)
    with pytest.raises(ValueError, match="unknown"):
        TranscoderOptions.from_dict({"steps": 3, "speed": 1})


def test_arguments_must_fit_each_other():
    with pytest.raises(ValueError, match="2 layers"):
        made(3, n_features=(20, 20, 20))
    with pytest.raises(ValueError, match="threshold has 3"):
        made(3, threshold=(1, 1, 1))
    with pytest.raises(ValueError, match="covers 3 layers"):
        made(3, l0=schedules.per_layer([3, 3, 3]))
    with pytest.raises(TypeError, match="not both"):
        train_transcoders(tiny.model(), tiny.data(), options(3), steps=3)
    with pytest.raises(TypeError, match=r"model must be a Model, such as asp\.load"):
        train_transcoders("demo-dense", tiny.data(), options(3))
    with pytest.raises(TypeError, match="digest"):
        train_transcoders(tiny.model(), [1, 2], options(3))
    with pytest.raises(TypeError, match="TranscoderOptions"):
        train_transcoders(tiny.model(), tiny.data(), {"steps": 3})
    with pytest.raises(ValueError, match="checkpoint_every"):
        train_transcoders(tiny.model(), tiny.data(), options(3), checkpoint_every=0)


def test_the_first_error_is_below_the_variance():
    """Features made to serve alone are turned down together."""
    for activation in ("relu", "topk"):
        results = made(2, activation=activation, l0=None).step()
        assert max(result["error"] for result in results) < 1.1
