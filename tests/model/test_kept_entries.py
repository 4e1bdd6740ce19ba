"""Dense models whose softmax is over some entries only: window, top_k, min_weight. The arithmetic of runs and
gradients is compared with the oracle in tests/c/test_engine.py and test_gradients.py."""

from __future__ import annotations

import dataclasses
import json

import engine
import numpy as np
import oracle
import oracle_training as ot
import pytest
from reliability import bits_of_model, bits_of_run

import attnsparse as asp
from attnsparse._engine import core_for

RULES = {
    "window": {"window": 4},
    "top_k": {"top_k": 3},
    "min_weight": {"min_weight": 0.12},
    "fewer than k": {"window": 3, "top_k": 5},
    "all": {"window": 9, "top_k": 5, "min_weight": 0.08},
}
SIZES = {"n_ctx": 24, "n_head": 2, "d_model": 12, "n_layer": 2, "n_vocab": 23}


def case(name: str, dtype: str = "float64", **changes):
    config = oracle.full_config(**SIZES, **RULES[name], **changes)
    weights = engine.rounded_model(4, config)
    return config, weights, engine.build(config, weights, dtype)


@pytest.mark.parametrize("name", RULES)
def test_gradients_by_central_differences(name):
    """Along random directions, in which no entry comes or goes."""
    config, weights, model = case(name)
    tokens = engine.random_tokens(1, config, 24)
    found = model.gradients(tokens).parameters
    gate, eps = model.run(tokens, record="gate").gate, 1e-7
    rng = np.random.default_rng(0)
    for _ in range(4):
        way = {parameter: rng.standard_normal(value.shape) for parameter, value in weights.items()}
        losses = []
        for sign in (1, -1):
            model.assign({parameter: weights[parameter] + sign * eps * way[parameter] for parameter in way})
            run = model.run(tokens, record=("gate", "loss"))
            assert np.array_equal(run.gate, gate)
            losses.append(run.loss)
        slope = sum(float((found[parameter] * way[parameter]).sum()) for parameter in way)
        assert (losses[0] - losses[1]) / (2 * eps) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("dtype", "close"), [("float64", 1e-9), ("float32", 1e-4)])
@pytest.mark.parametrize("name", RULES)
def test_training_steps_against_the_oracle(name, dtype, close):
    config, weights, model = case(name, dtype)
    options = ot.Options(lr=0.01, weight_decay=0.1, eps=1e-3)
    state = ot.TrainingState({key: value.copy() for key, value in weights.items()})
    trainer = core_for(dtype).Trainer(model._core)
    for number in range(3):
        micro = engine.micro_batches(number, config, ((20, 1), (4, 9)), dtype)
        expected = ot.train_step(config, state, micro, options)
        found = trainer.step(micro, **engine.step_arguments(options))
        assert found["loss"] == pytest.approx(expected["loss"], rel=close)
    for parameter, value in model.parameters().items():
        assert engine.relative_error(value, state.weights[parameter]) < close, parameter


@pytest.mark.parametrize("name", RULES)
def test_the_same_bits_for_any_number_of_threads(name):
    config, _, model = case(name, "float32")
    prompts = [engine.random_tokens(seed, config, n) for seed, n in enumerate((24, 3, 17, 24, 1))]
    runs = [bits_of_run(model.run(prompts, record="all", threads=threads)) for threads in (1, 2, 5)]
    assert runs[0] == runs[1] == runs[2]
    grads = [model.gradients(prompts, threads=threads) for threads in (1, 5)]
    assert bits_of_run(grads[0]) == bits_of_run(grads[1])


def test_what_is_kept():
    """The sets of kept entries, from a pattern of the whole softmax."""
    config, weights, _ = case("window")
    model = {name: case(name)[2] for name in RULES}
    tokens = engine.random_tokens(2, config, 24)
    dense = engine.build(config | {"window": 0}, weights, "float64").run(tokens, record=("gate", "pattern"))
    layer = 0  # where all of them read the same
    pattern = dense.pattern[layer]
    query, key = np.indices((24, 24))
    assert np.array_equal(model["window"].run(tokens, record="gate").gate[layer], np.broadcast_to(
        (key <= query) & (key > query - 4), (2, 24, 24)))  # fmt: skip
    top = model["top_k"].run(tokens, record=("gate", "pattern", "edges"))
    assert (top.gate[layer].sum(-1) == np.minimum(np.arange(24) + 1, 3)).all()
    best = np.sort(pattern, -1)[..., -3:-2]
    assert np.array_equal(top.gate[layer], (pattern >= best) & (key <= query))
    heavy = model["min_weight"].run(tokens, record=("gate", "pattern", "edges"))
    kept = (pattern >= 0.12) | (pattern == pattern.max(-1, keepdims=True))
    assert np.array_equal(heavy.gate[layer], kept & (key <= query))
    for run in (top, heavy, model["all"].run(tokens, record=("gate", "pattern", "edges"))):
        assert np.allclose(run.pattern.sum(-1), 1, atol=1e-12)
        assert ((run.pattern > 0) == run.gate).all()
    assert np.array_equal(dense.gate, np.broadcast_to(key <= query, dense.gate.shape))
    assert model["top_k"].evaluate([tokens]).open_edges[0] == top.gate.sum()
    assert len(top.open_edges()) == top.gate.sum()


def test_equal_scores_are_kept_together():
    config = oracle.full_config(**SIZES, top_k=2)
    weights = engine.rounded_model(4, config)
    for layer in range(2):
        weights[f"h.{layer}.attn.c_attn.weight"] *= 0
        weights[f"h.{layer}.attn.c_attn.bias"] *= 0
    run = engine.build(config, weights).run(engine.random_tokens(0, config, 20), record="gate")
    query, key = np.indices((20, 20))
    assert np.array_equal(run.gate, np.broadcast_to(key <= query, run.gate.shape))


@pytest.mark.parametrize("name", RULES)
def test_rules_that_cut_nothing_change_no_bit(name):
    config, weights, _ = case(name)
    none = dict.fromkeys(("window", "top_k", "min_weight"), 0)
    wide = {"window": 24, "top_k": 24, "min_weight": 1e-30}
    prompt = engine.random_tokens(0, config, 24)
    plain = engine.build(config | none, weights).run(prompt, record="all")
    loose = engine.build(config | none | {key: wide[key] for key in RULES[name]}, weights)
    assert bits_of_run(loose.run(prompt, record="all")) == bits_of_run(plain)


@pytest.mark.parametrize("name", RULES)
def test_new_tokens_are_those_of_a_run(name):
    config, _, model = case(name, "float32")
    prompt = engine.random_tokens(3, config, 6)
    made = model.generate(prompt, 12)
    run = model.run(made.tokens)
    assert np.array_equal(run.logits[5:-1].argmax(-1), made.tokens[6:])


@pytest.mark.parametrize("name", RULES)
def test_saved_and_loaded(name, tmp_path):
    config, weights, model = case(name, "float32")
    model.save(tmp_path / "model")
    again = asp.load(tmp_path / "model")
    assert again.config == model.config
    assert again.digest == model.digest
    plain = engine.build(config | dict.fromkeys(("window", "top_k", "min_weight"), 0), weights)
    assert plain.digest != model.digest
    assert bits_of_model(again) == bits_of_model(model)
    plain.save(tmp_path / "plain")
    fields = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not {"attnsparse_window", "attnsparse_top_k", "attnsparse_min_weight"} & fields.keys()
    assert not {"window", "top_k", "min_weight"} & plain.config.to_dict().keys()
    assert asp.Config.from_dict(model.config.to_dict()) == model.config


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"window": -1}, r"window must be an integer in 0\.\.1048576, got -1"),
        ({"top_k": 1.0}, r"top_k must be an integer in 0\.\.1048576, got 1\.0"),
        ({"min_weight": 1.0}, "min_weight must be at least 0 and below 1, got 1"),
        ({"min_weight": -0.1}, "min_weight must be at least 0 and below 1, got -0.1"),
        ({"gated": True, "window": 3}, "window is for dense models"),
        ({"gated": True, "min_weight": 0.1}, "min_weight is for dense models"),
    ],
)
def test_what_it_refuses(changes, text):
    config = asp.Config.from_dict(oracle.full_config())
    with pytest.raises(asp.ConfigError, match=text):
        dataclasses.replace(config, **changes)
    with pytest.raises(ValueError, match=r"window and top_k must be|min_weight must be|are for dense models"):
        asp._core.Model(dataclasses.asdict(config) | ({"top_k": -1} if "top_k" in changes else changes))
