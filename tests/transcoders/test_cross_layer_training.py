"""The training of cross-layer transcoders: all layers' outputs are reconstructed together."""

from __future__ import annotations

import dataclasses

import numpy as np
import oracle_coder as twin
import pytest
import tiny_training as tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_coder import JUMP_RELU, NAMES, RELU, TOPK, Options
from tiny_coders import made, options

import attnsparse as asp
from attnsparse._engine import core_for
from attnsparse.errors import CheckpointError, ConfigError, TrainingDiverged
from attnsparse.transcoders.trainer import TranscoderTrainer

KINDS = {
    RELU: Options(RELU, sparsity=0.05, sharpness=2.0),
    JUMP_RELU: Options(JUMP_RELU, sparsity=0.05, bandwidth=0.5),
    TOPK: Options(TOPK, top_k=3),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
AUX = {"aux_k": 2, "aux_weight": 0.25, "dead_after": 2}
SCALES, PRICES = (2.5, 0.5, 1.3, 0.9), (0.05, 0.2, 0.0, 0.1)


def case(seed: int, counts: tuple[int, ...], n: int = 30, n_in: int = 5, n_out: int = 4):
    """Weights of each layer, and rows x (L,N,I), y (L,N,O)."""
    n_layer, rng = len(counts), np.random.default_rng(seed)
    weights = [
        {
            **twin.random_weights(seed + i, n_in, (n_layer - i) * n_out, count),
            "b_dec": rng.standard_normal(n_out).astype(np.float32).astype(np.float64),
        }
        for i, count in enumerate(counts)
    ]
    x, y = rng.standard_normal((n_layer, n, n_in)), 2 * rng.standard_normal((n_layer, n, n_out))
    return weights, x, y


def cores(weights, silent=None, dtype="float64"):
    """The core's trainer with these weights."""
    n_layer, last = len(weights), weights[-1]["w_dec"]
    counts = np.array([len(w["b_enc"]) for w in weights])
    core = core_for(dtype).CoderTrainer(weights[0]["w_enc"].shape[1], last.shape[1], counts)
    for layer in range(n_layer):
        for name, value in weights[layer].items():
            core.load(name, value.astype(dtype), layer)
        if silent is not None:
            core.load("silent", silent[layer], layer)
    return core


def of_layers(o: Options, n_layer: int) -> tuple[list[Options], dict]:
    """Options of each layer, and the arguments of the core's step."""
    each = [dataclasses.replace(o, sparsity=PRICES[i], output_scale=SCALES[i]) for i in range(n_layer)]
    given = {"sparsity": np.array(PRICES[:n_layer]), "output_scale": np.array(SCALES[:n_layer])}
    return each, {**o.arguments(), **given}


def relative(found, expected) -> float:
    return float(np.linalg.norm(found - expected)) / max(float(np.linalg.norm(expected)), 1e-3)


@given(
    st.integers(0, 10**6), st.integers(1, 20), st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from(list(KINDS)), st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_losses_and_gradients_are_the_twins(seed, n, counts, kind, helped):
    weights, x, y = case(seed, tuple(counts), n)
    silent = [np.random.default_rng(seed + i).integers(0, 4, count) for i, count in enumerate(counts)]
    o = dataclasses.replace(KINDS[kind], top_k=min(3, *counts, 3), lr=0.0)
    if helped:
        o = dataclasses.replace(o, **{**AUX, "aux_k": min(2, *counts, 2)})
    each, arguments = of_layers(o, len(counts))
    core = cores(weights, silent)
    found = core.step(x, y, **arguments, threads=1)
    dead = [s >= o.dead_after for s in silent]
    expected = twin.cross_layer(weights, x, y, each, dead)
    for layer, (one, wanted) in enumerate(zip(found, expected)):
        for name in ("loss", "error", "penalty", "aux", "l0", "grad_norm"):
            assert one[name] == pytest.approx(getattr(wanted, name), rel=1e-9, abs=1e-9), (layer, name)
        for name in NAMES:
            assert relative(core.array(f"g/{name}", layer), wanted.gradients[name]) < 1e-9, (layer, name)
        assert one["n_dead"] == dead[layer].sum()
        assert np.array_equal(core.array("silent", layer), np.where(wanted.active, 0, silent[layer] + 1))


@each_kind
def test_one_layer_is_a_transcoder_of_one_layer(kind):
    (weights,), x, y = case(3, (9,))
    o = dataclasses.replace(KINDS[kind], **AUX, output_scale=SCALES[0], sparsity=PRICES[0])
    dead = np.arange(9) % 3 == 0
    one, (many,) = (
        twin.loss_and_gradients(weights, x[0], y[0], o, dead),
        twin.cross_layer([weights], x, y, [o], [dead]),
    )
    assert one.loss == pytest.approx(many.loss, rel=1e-12)
    assert all(np.allclose(one.gradients[name], many.gradients[name], atol=1e-14) for name in NAMES)


@pytest.mark.parametrize("kind", [RELU, TOPK])
def test_gradients_are_those_of_the_loss(kind):
    """Finite differences of the core's loss, summed over layers, along a random direction of each weight."""
    counts = (7, 5, 6)
    weights, x, y = case(8, counts)
    _, arguments = of_layers(dataclasses.replace(KINDS[kind], lr=0.0), len(counts))
    core, rng = cores(weights), np.random.default_rng(0)
    core.step(x, y, **arguments)

    def loss(changed) -> float:
        return sum(result["loss"] for result in cores(changed).step(x, y, **arguments))

    for layer in range(len(counts)):
        for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
            direction, h = rng.standard_normal(weights[layer][name].shape), 1e-6
            if name == "w_dec":  # within the sphere
                own = weights[layer][name]
                direction -= (direction * own).sum(1, keepdims=True) * own
            losses = []
            for sign in (1, -1):
                changed = [dict(w) for w in weights]
                changed[layer][name] = changed[layer][name] + sign * h * direction
                losses.append(loss(changed))
            slope = (losses[0] - losses[1]) / (2 * h)
            gradient = core.array(f"g/{name}", layer)
            assert slope == pytest.approx((gradient * direction).sum(), rel=1e-5, abs=1e-8), (layer, name)


@each_kind
def test_many_steps_are_the_twins(kind):
    counts = (12, 9, 10)
    weights, *_ = case(1, counts)
    o = dataclasses.replace(KINDS[kind], **AUX, lr=0.02, clip=0.4)
    each, arguments = of_layers(o, len(counts))
    core, references = cores(weights), [twin.Twin(w) for w in weights]
    for step in range(20):
        _, x, y = case(step, counts)
        found = core.step(x, y, **arguments, threads=1)
        dead = [reference.silent >= o.dead_after for reference in references]
        expected = twin.cross_layer([r.weights for r in references], x, y, each, dead)
        for one, wanted, reference in zip(found, expected, references):
            assert one["loss"] == pytest.approx(wanted.loss, rel=1e-8)
            reference.update(wanted, o)
    for layer, reference in enumerate(references):
        for name in NAMES:
            assert relative(core.array(name, layer), reference.weights[name]) < 1e-8
        assert np.allclose(np.linalg.norm(core.array("w_dec", layer), axis=1), 1, atol=1e-14)


@each_kind
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_do_not_change_a_bit(kind, dtype):
    counts, states = (50, 33, 40), []
    weights, x, y = case(2, counts, 400, 17, 9)
    _, arguments = of_layers(dataclasses.replace(KINDS[kind], **AUX), len(counts))
    for threads in (1, 2, 5):
        core = cores(weights, dtype=dtype)
        for _ in range(3):
            core.step(x.astype(dtype), y.astype(dtype), **arguments, threads=threads)
        states.append([core.array(name, layer).tobytes() for layer in range(3) for name in NAMES])
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("layer", range(3))
def test_a_step_that_diverges_in_one_layer_changes_none(layer):
    weights, x, y = case(4, (6, 6, 6))
    bad = [dict(w) for w in weights]
    bad[layer]["w_dec"] = np.full_like(weights[layer]["w_dec"], 1e200)
    core = cores(bad)
    with pytest.raises(TrainingDiverged, match="step 0"):
        core.step(x, y, **of_layers(Options(), 3)[1])
    assert core.step_count == 0
    assert all(np.array_equal(core.array(n, i), bad[i][n]) for i in range(3) for n in NAMES)


def test_in_the_units_of_the_model():
    """What is written with the scaled weights is what was written with the trained ones, times the scales."""
    weights, x, _ = case(5, (8, 7, 6))
    core, scales = cores(weights), np.array(SCALES[:3])
    for layer, w in enumerate(weights):
        w_enc, b_enc, w_dec, b_dec, threshold = core.scaled(scales, layer)
        a, scaled = (np.maximum(x[layer] @ e.T + b, 0) for e, b in ((w["w_enc"], w["b_enc"]), (w_enc, b_enc)))
        expected = (a @ w["w_dec"]).reshape(30, -1, 4) * scales[layer:, None]
        assert np.allclose((scaled @ w_dec).reshape(30, -1, 4), expected)
        assert np.allclose(np.linalg.norm(w_dec, axis=1), 1)
        assert np.allclose(b_dec, w["b_dec"] * scales[layer])
        assert np.allclose(threshold / np.exp(w["log_threshold"]), w_enc[:, 0] / w["w_enc"][:, 0])


def test_out_of_memory_at_every_allocation():
    module, failures = core_for("float64"), 0
    weights, x, y = case(5, (8, 7, 6))
    before = module._debug_stats()["live_bytes"]
    for n in range(1, 80):
        module._debug_fail_at(n)
        try:
            core = cores(weights)
            core.step(x, y, **of_layers(Options(), 3)[1])
        except MemoryError:
            failures += 1
        else:
            break
        finally:
            module._debug_fail_at(0)
            core = None
        assert module._debug_stats()["live_bytes"] == before
    assert failures >= 20


# ---- whole runs


CROSS = {"cross_layer": True}
ACTIVATIONS = [{}, {"activation": "relu"}, {"activation": "topk", "l0": None, "top_k": 4}]


@pytest.fixture(scope="module")
def trained() -> asp.Transcoders:
    trainer = made(60, **CROSS)
    trainer.train()
    return trainer.transcoders()


@pytest.mark.parametrize("changes", ACTIVATIONS)
def test_a_run_depends_neither_on_threads_nor_on_where_it_was_stopped(tmp_path, changes):
    whole, threads, parts = (tmp_path / f"{name}.safetensors" for name in ("whole", "threads", "parts"))
    made(12, **CROSS, **changes).train(whole)
    made(12, threads=3, **CROSS, **changes).train(threads)
    first = made(12, **CROSS, **changes)
    for _ in range(5):
        first.step()
    first.save(parts)
    again = made(12, **CROSS, **changes)
    again.load(parts)
    again.train(parts)
    assert whole.read_bytes() == threads.read_bytes() == parts.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        made(12, **changes).load(whole)
    assert (caught.value.code, caught.value.field) == ("options", "cross_layer")


def test_layers_help_each_other():
    """Later outputs are reconstructed better by features of all layers than by those of their own."""
    changes = {"activation": "topk", "l0": None, "top_k": 2, "aux_k": 0}
    errors = []
    for cross_layer in (False, True):
        trainer = made(300, cross_layer=cross_layer, **changes)
        trainer.train()
        errors.append(trainer.history()["error"].to_numpy().reshape(-1, 2)[-50:].mean(0))
    assert errors[1][1] < 0.9 * errors[0][1]
    assert errors[1].sum() < errors[0].sum()


def test_what_is_trained_is_a_cross_layer_transcoder(trained):
    assert trained.cross_layer
    assert [trained.writes(layer) for layer in range(2)] == [2, 1]
    rows = [trained.source.decoder_rows(layer, np.arange(20)) for layer in range(2)]
    assert [row.shape for row in rows] == [(20, 2, 12), (20, 1, 12)]
    assert all(np.allclose(np.linalg.norm(row.reshape(20, -1), axis=1), 1, atol=1e-5) for row in rows)
    assert np.abs(rows[0][:, 1]).max() > 0.1  # it did learn to write to the later layer
    table = trained.evaluate(tiny.model(), tiny.data(batch=8).batch(0, 0)[0].reshape(1, -1)[:, :9])
    assert (table["explained_variance"] > 0.3).all()


def test_the_file_is_the_one_that_is_read(trained, tmp_path):
    folder = tmp_path / "set"
    asp.save_transcoders(trained, folder, dtype="float32", equal_sizes=False)
    assert (folder / "W_dec_0.safetensors").exists()
    again = asp.load_transcoders(folder, tiny.model())
    assert again.cross_layer
    assert again.digest == trained.digest


def test_everything_that_takes_transcoders_takes_it(trained):
    model, prompt = tiny.model(), [3, 1, 4, 1, 5]
    features = trained.features(model, prompt)
    run = trained.replacement_run(model, prompt, errors=features)
    assert np.allclose(run.logits, model.run(prompt).logits, atol=1e-4)
    graph = asp.attribution_graph(model, trained, prompt)
    assert len(graph.prune()) > 0
    table = asp.describe_features(model, trained, [prompt, [2, 2, 7]], progress=False).to_pandas()
    assert len(table)
    patch = trained.steer({(0, int(features.feature[0])): 2.0})
    assert (model.run(prompt, patch=patch).logits != model.run(prompt).logits).any()


def test_training_may_begin_with_either_kind():
    single = made(30, l0=None)
    single.train()
    start = single.transcoders()
    changes = {"l0": None, "cross_layer": True}

    def begun(given: asp.Transcoders, **also) -> TranscoderTrainer:
        chosen = options(3, **{**changes, **also})
        return TranscoderTrainer(tiny.model(), tiny.data(batch=8), chosen, start=given, threads=1)

    def errors(coders: asp.Transcoders) -> np.ndarray:
        tokens = tiny.data(batch=8).batch(0, 0)[0][:9].tolist()
        return coders.features(tiny.model(), tokens).error

    first = begun(start)
    assert not first._cores[0].array("w_dec", 0)[:, 12:].any()
    assert np.allclose(errors(first.transcoders()), errors(start), atol=1e-4)
    first.train()
    second = begun(first.transcoders())
    assert np.allclose(errors(second.transcoders()), errors(first.transcoders()), atol=1e-4)
    with pytest.raises(ConfigError, match="cross_layer=True"):
        begun(first.transcoders(), cross_layer=False)
    with pytest.raises(TypeError, match="cross_layer"):
        options(3, cross_layer=1)
