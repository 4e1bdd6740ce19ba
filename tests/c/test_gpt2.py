"""The C core against stored results of PyTorch and transformers (fixtures/reference_state_*.npz, made by
make_reference_state.py), so that a machine without torch can check parity with GPT-2."""

import json

import numpy as np
import oracle
import pytest
from places import FIXTURES

import attnsparse as asp
from attnsparse import _core, _core64

FILES = sorted((FIXTURES).glob("reference_state_*.npz"))
CORES = {"float32": _core, "float64": _core64}


@pytest.fixture(params=FILES, ids=lambda path: path.stem.removeprefix("reference_state_"))
def state(request):
    """The arrays of one file."""
    with np.load(request.param, allow_pickle=False) as arrays:
        return dict(arrays)


def parts(state, prefix):
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def model_of(state, dtype="float32"):
    config = asp.Config.from_dict(json.loads(str(state["config"])))
    weights = {name: value.astype(dtype) for name, value in parts(state, "weight:").items()}
    return asp.Model(config, weights, dtype=dtype)


def top_one_agrees(found, expected, margin=1e-4):
    """The same best token wherever the best two are further apart than `margin`."""
    best = np.sort(expected, axis=-1)
    clear = best[:, -1] - best[:, -2] > margin
    return np.array_equal(found.argmax(-1)[clear], expected.argmax(-1)[clear])


def test_there_are_three_shapes():
    assert len(FILES) == 3
    assert all(path.stat().st_size < 300_000 for path in FILES)


def test_logits_softmax_loss_and_attention(state):
    run = model_of(state).run(state["tokens"][0], record="all")
    expected = state["logits_float32"]
    assert np.abs(run.logits - expected).max() <= 1e-4
    assert (
        np.abs(oracle.softmax(run.logits.astype(float)) - oracle.softmax(expected.astype(float))).max()
        <= 1e-5
    )
    assert abs(run.loss - state["loss_float32"]) <= 1e-5
    assert np.abs(run.pattern - state["attentions"]).max() <= 1e-5
    assert top_one_agrees(run.logits, expected)


def test_double_build_has_the_float64_values(state):
    run = model_of(state, "float64").run(state["tokens"][0], record="all")
    assert np.abs(run.logits - state["logits_float64"]).max() <= 1e-11
    assert abs(run.loss - state["loss_float64"]) <= 1e-12


def test_error_is_at_most_twice_that_of_torch():
    """Root mean square over the logits of all files, both against float64."""
    ours, theirs = [], []
    for path in FILES:
        with np.load(path) as state:
            logits = model_of(state).run(state["tokens"][0]).logits
            ours.append((logits - state["logits_float64"]).ravel())
            theirs.append((state["logits_float32"] - state["logits_float64"]).ravel())
    ours, theirs = (np.sqrt((np.concatenate(errors) ** 2).mean()) for errors in (ours, theirs))
    print(f"error against float64: ours {ours:.2e}, torch {theirs:.2e}")
    assert ours <= 2 * theirs


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("float64", 1e-6)])
def test_gradients(state, dtype, bound):
    """Relative Euclidean error per array; the stored gradients are rounded to float32."""
    found = model_of(state, dtype).gradients(state["tokens"][0])
    expected = parts(state, "gradient:")
    assert set(found.parameters) == set(expected)
    for name, value in expected.items():
        assert np.linalg.norm(found.parameters[name] - value) <= bound * np.linalg.norm(value), name
    assert abs(found.loss - state["loss_float64"]) <= 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-11)])
def test_ten_training_losses(state, dtype, bound):
    model = model_of(state, dtype)
    trainer = CORES[dtype].Trainer(model._core)
    tokens = state["tokens"]
    count, length = tokens.shape
    weights = np.ones((count, length), dtype)
    weights[:, -1] = 0
    offsets = np.arange(count + 1, dtype=np.int64) * length
    micro = [(tokens.ravel(), offsets, np.roll(tokens, -1, axis=1).ravel(), weights.ravel())]
    options = json.loads(str(state["training_options"]))
    losses = [trainer.step(micro, clip=0.0, seed=0, **options)["loss"] for _ in range(10)]
    assert np.abs(losses - state["training_float64"]).max() <= bound
    assert np.abs(losses - state["training_float32"]).max() <= 1e-5
