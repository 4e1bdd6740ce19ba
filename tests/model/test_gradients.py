"""Gradients and training steps of the C core against the oracle and against differences of the core."""

import engine
import numpy as np
import oracle
import oracle_training as ot
import pytest
import reliability
from engine import build
from hypothesis import assume, given, settings
from reliability import bits_of_model, bits_of_run, micro_batch, step_options

from attnsparse import _core, _core64

CLOSE = 1e-10
CONFIGS = {
    "dense": {},
    "gated": {"gated": True, "gate_bias": -0.2},
    "all closed": {"gated": True, "gate_bias": engine.CLOSED},
    "all open": {"gated": True, "gate_bias": engine.OPEN},
    "heads of width 1": {"n_head": 3, "d_head": 1, "gated": True, "bias": False},
    "untied, gelu": {"tied": False, "activation": "gelu", "unembed_bias": True, "n_head": 1},
    "relu, layer scale": {"activation": "relu", "scale_by_inverse_layer": True, "gated": True, "n_layer": 3},
    "self closed": {"gated": True, "self_closed": True, "gate_bias": 0.2},
    "window": {"window": 3, "n_layer": 3},
    "top k": {"top_k": 2},
    "least weight": {"min_weight": 0.2, "n_head": 1},
    "all rules": {"window": 7, "top_k": 4, "min_weight": 0.15},
    "odd widths": {"d_model": 13, "n_head": 3, "d_head": 5, "d_mlp": 11, "n_vocab": 17, "gated": True},
}


def mode(straight_through):
    return "straight-through" if straight_through else "none"


def random_case(name, n_tokens=9, seed=0):
    config = oracle.full_config(**CONFIGS[name])
    weights = engine.rounded_model(seed, config)
    tokens = engine.random_tokens(seed, config, n_tokens)
    dlogits = np.random.default_rng(seed).standard_normal((n_tokens, config["n_vocab"]))
    return config, weights, tokens, dlogits


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("n_tokens", [1, 9])
@pytest.mark.parametrize("name", CONFIGS)
def test_all_gradients_in_double(name, n_tokens, straight_through):
    config, weights, tokens, dlogits = random_case(name, n_tokens)
    model = build(config, weights, "float64")
    found = model.gradients(tokens, dlogits=dlogits, wrt=engine.WRT, gate_gradient=mode(straight_through))
    expected = engine.oracle_gradients(config, weights, tokens, dlogits, straight_through)
    worst = {n: e for n, e in engine.gradient_errors(found, expected).items() if e > 1e-11}
    assert not worst


@pytest.mark.parametrize("gated", [False, True])
def test_many_tokens_in_double(gated):
    """More tokens than any tile of the attention kernels is wide."""
    config = oracle.full_config(gated=gated, n_ctx=150, n_head=3, d_model=21, d_head=7, n_vocab=41)
    weights = engine.rounded_model(3, config)
    tokens = engine.random_tokens(3, config, 150)
    dlogits = np.random.default_rng(3).standard_normal((150, 41))
    model = build(config, weights, "float64")
    found = model.gradients(tokens, dlogits=dlogits, wrt=engine.WRT, gate_gradient="straight-through")
    expected = engine.oracle_gradients(config, weights, tokens, dlogits, True)
    worst = {n: e for n, e in engine.gradient_errors(found, expected).items() if e > CLOSE}
    assert not worst


@settings(max_examples=200, deadline=None, derandomize=True)
@given(engine.cases())
def test_random_shapes_in_double(case):
    config, seed, tokens = case
    weights = engine.rounded_model(seed, config)
    assume(engine.gates_are_clear(config, oracle.forward(config, weights, tokens), 1e-9))
    dlogits = np.random.default_rng(seed).standard_normal((len(tokens), config["n_vocab"]))
    straight_through = seed % 2 == 1
    model = build(config, weights, "float64")
    found = model.gradients(tokens, dlogits=dlogits, wrt=engine.WRT, gate_gradient=mode(straight_through))
    expected = engine.oracle_gradients(config, weights, tokens, dlogits, straight_through)
    worst = {n: e for n, e in engine.gradient_errors(found, expected).items() if e > CLOSE}
    assert not worst


@pytest.mark.parametrize("name", CONFIGS)
def test_all_gradients_in_single(name):
    config, weights, tokens, dlogits = random_case(name)
    dlogits = dlogits.astype(np.float32)
    found = build(config, weights).gradients(
        tokens, dlogits=dlogits, wrt=engine.WRT, gate_gradient="straight-through"
    )
    expected = engine.oracle_gradients(config, weights, tokens, dlogits.astype(np.float64), True)
    worst = {n: e for n, e in engine.gradient_errors(found, expected).items() if e > 1e-5}
    assert not worst


def test_default_loss_mask_and_targets():
    config, weights, tokens, _ = random_case("gated")
    model = build(config, weights, "float64")
    run = oracle.forward(config, weights, tokens)
    targets = engine.random_tokens(5, config, len(tokens))
    mask = np.array([0, 1, 1, 0, 0, 1, 0, 1, 1], bool)
    last_off = mask.copy()
    last_off[-1] = False
    cases = [
        ({}, ot.next_token_loss(run["logits"], tokens)),
        ({"targets": targets}, ot.cross_entropy(run["logits"], targets, np.ones(len(tokens)))),
        ({"targets": targets, "loss_mask": mask}, ot.cross_entropy(run["logits"], targets, mask)),
        ({"loss_mask": last_off}, ot.cross_entropy(run["logits"], np.roll(tokens, -1), last_off)),
    ]
    for arguments, (loss, dlogits) in cases:
        found = model.gradients(tokens, wrt=engine.WRT, **arguments)
        assert found.loss == pytest.approx(loss, rel=1e-12)
        expected = engine.oracle_gradients(config, weights, tokens, dlogits, False)
        assert max(engine.gradient_errors(found, expected).values()) < CLOSE


def test_targets_of_minus_100_are_ignored():
    """As a weight of 0; all of them is an error, and so is any other negative id."""
    config, weights, tokens, _ = random_case("gated")
    model = build(config, weights, "float64")
    targets = engine.random_tokens(5, config, len(tokens))
    mask = np.array([0, 1, 1, 0, 0, 1, 0, 1, 1], bool)
    labels = np.where(mask, targets, -100)
    expected = model.gradients(tokens, wrt=engine.WRT, targets=targets, loss_mask=mask)
    for loss_mask in (None, mask, np.ones(len(tokens))):
        found = model.gradients(tokens, wrt=engine.WRT, targets=labels, loss_mask=loss_mask)
        assert bits_of_run(found) == bits_of_run(expected)
        assert found.loss == expected.loss
    with pytest.raises(ValueError, match="-100"):
        model.gradients(tokens, targets=np.full(len(tokens), -100))
    for wrong in (-1, -99, -101, -(2**31), -(2**40)):
        with pytest.raises(IndexError, match="out of range"):
            model.gradients(tokens, targets=np.where(mask, targets.astype(np.int64), wrong))


def test_a_step_ignores_targets_of_minus_100():
    models, losses = [reliability.model(), reliability.model()], []
    tokens, offsets, targets, weights = micro_batch()
    keep = np.arange(len(tokens)) % 3 > 0
    batches = [(np.where(keep, targets, 0).astype(np.int32), weights * keep),
               (np.where(keep, targets, -100).astype(np.int32), weights)]  # fmt: skip
    for model, (ids, shares) in zip(models, batches):
        trainer = _core.Trainer(model._core)
        losses.append(trainer.step([(tokens, offsets, ids, shares)], **step_options())["loss"])
        none = (tokens, offsets, np.full_like(ids, -100), shares)
        with pytest.raises(ValueError, match="-100"):
            trainer.step([none], **step_options())
    assert losses[0] == losses[1]
    assert bits_of_model(models[0]) == bits_of_model(models[1])


@pytest.mark.parametrize("name", ["gated", "odd widths"])
def test_ragged_batch(name):
    """One loss over three prompts: the mean over all their next tokens."""
    config, weights, tokens, _ = random_case(name)
    prompts = [tokens[:5], tokens[:1], tokens]
    found = build(config, weights, "float64").gradients(prompts, wrt=engine.WRT)
    n_targets = sum(len(prompt) - 1 for prompt in prompts)
    parameters = {n: np.zeros_like(value) for n, value in weights.items()}
    total = 0.0
    for index, prompt in enumerate(prompts):
        run = oracle.forward(config, weights, prompt)
        if len(prompt) > 1:
            loss, dlogits = ot.next_token_loss(run["logits"], prompt)
            share = (len(prompt) - 1) / n_targets
            total += share * loss
            expected = engine.oracle_gradients(config, weights, prompt, share * dlogits, False)
        else:
            expected = engine.oracle_gradients(config, weights, prompt, np.zeros_like(run["logits"]), False)
        for n, value in expected.parameters.items():
            parameters[n] += value
        for n, value in expected.activations.items():
            assert engine.gradient_error(getattr(found[index], n), value) < CLOSE, (index, n)
    assert found.loss == pytest.approx(total, rel=1e-12)
    for n, value in parameters.items():
        assert engine.gradient_error(found.parameters[n], value) < CLOSE, n


def test_every_parameter_by_central_differences():
    """R26: eps 1e-6, atol 1e-5, rtol 1e-3, each element of each parameter of a model of two layers."""
    eps, tokens = 1e-6, np.array([3, 1, 4, 1, 5], np.int32)
    for name in ("dense", "gated"):
        config = oracle.full_config(
            **CONFIGS[name], d_model=6, d_head=2, n_head=2, d_mlp=7, n_vocab=7, n_ctx=6
        )
        weights = engine.rounded_model(1, config)
        model = build(config, weights, "float64")
        found = model.gradients(tokens).parameters
        for parameter, value in weights.items():
            slopes = np.zeros(value.size)
            for index in range(value.size):
                losses = []
                for sign in (1, -1):
                    changed = value.copy()
                    changed.flat[index] += sign * eps
                    model.assign({parameter: changed})
                    losses.append(model.run(tokens, record="loss").loss)
                slopes[index] = (losses[0] - losses[1]) / (2 * eps)
            model.assign({parameter: value})
            assert np.allclose(found[parameter].ravel(), slopes, rtol=1e-3, atol=1e-5), parameter
    reliability.report("R26", "every element of every parameter of two models by central differences")


@pytest.mark.parametrize("name", CONFIGS)
def test_directional_differences_of_the_double_build(name):
    """One random direction through all parameters at once."""
    config, weights, tokens, _ = random_case(name)
    model = build(config, weights, "float64")
    found = model.gradients(tokens).parameters
    rng = np.random.default_rng(7)
    direction = {n: rng.standard_normal(value.shape) for n, value in weights.items()}

    def loss(distance):
        model.assign({n: value + distance * direction[n] for n, value in weights.items()})
        return model.run(tokens, record="loss").loss

    expected = sum((found[n] * direction[n]).sum() for n in weights)
    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert slope == pytest.approx(expected, rel=1e-6, abs=1e-7)


# ---------------------------------------------------------------- the comparison can fail: planted faults


def test_planted_faults_are_caught(monkeypatch):
    config, weights, tokens, dlogits = random_case("gated")
    found = build(config, weights, "float64").gradients(tokens, dlogits=dlogits, wrt=engine.WRT)

    def worst(told):
        """Worst error of the engine's gradients against the oracle that was told these weights."""
        expected = engine.oracle_gradients(config, told, tokens, dlogits, False)
        return max(engine.gradient_errors(found, expected).values())

    assert worst(weights) < CLOSE
    name = "h.1.attn.c_proj.weight"
    assert worst(weights | {name: -weights[name]}) > 1e-3
    bias, width = weights["h.0.attn.c_attn.bias"].copy(), config["n_head"] * config["d_head"]
    bias[width : 2 * width] = 0.0
    assert worst(weights | {"h.0.attn.c_attn.bias": bias}) > 1e-3
    right = ot.score_gradient
    with monkeypatch.context() as patch:
        patch.setattr(ot, "score_gradient", lambda *arguments: -right(*arguments))
        assert worst(weights) > 1e-3
    monkeypatch.setattr(oracle, "causal_mask", lambda n: np.tri(n, k=1, dtype=bool))
    assert worst(weights) > 1e-3


# ------------------------------------------------------------------------------------------ training


TRAINING = {
    "dense": ({}, {}),
    "gated": ({"gated": True}, {"tau": 2.0, "geco_rate": 0.2}),
    "schedule": (
        {"gated": True, "n_layer": 3, "tied": False, "unembed_bias": True},
        {"gate_bias": (0.5, 0.0, -0.5), "edge_weight": (1.0, 2.0, 0.5), "tau": 2.5, "geco_rate": 0.2},
    ),
    "absolute": (
        {"gated": True, "gate_bias": 0.3, "d_head": 1, "n_head": 3},
        {"tau": 2.0, "geco_rate": 0.5, "geco_relative": False, "geco_clip": 0.3, "lambda_max": 1.2},
    ),
    "dropout": ({}, {"dropout": ((0.2, 0.0), (0.0, 0.5), (0.3, 0.1), (0.1, 0.4))}),
    "gated dropout": (
        {"gated": True},
        {"tau": 2.0, "geco_rate": 0.2, "dropout": ((0.2, 0.3), (0.5, 0.0), (0.0, 0.1), (0.1, 0.0))},
    ),
    "self closed": (
        {"gated": True, "self_closed": True, "gate_bias": 0.4},
        {"tau": 2.0, "kind_weight": ((9.0, 9.0), (0.5, 0.4), (3.0, 0.7))},
    ),
    "no noise": (
        {"gated": True, "gate_bias": 0.2},
        {"tau": 2.0, "gate_noise": False, "edge_weight": (1.0, 2.0), "dropout": ((0.2, 0.3),) * 4},
    ),
    "kinds": (
        {"gated": True},
        {"tau": 2.0, "edge_weight": (1.0, 2.0), "kind_weight": ((0.0, 0.1), (0.5, 0.4), (3.0, 0.7))},
    ),
}


@pytest.mark.parametrize("name", TRAINING)
def test_five_training_steps_in_double(name):
    changes, extra = TRAINING[name]
    config = oracle.full_config(**changes)
    weights = engine.rounded_model(2, config)
    model = build(config, weights, "float64")
    trainer = _core64.Trainer(model._core)
    trainer.multiplier = 1.5
    state = ot.TrainingState({n: value.copy() for n, value in weights.items()}, multiplier=1.5)
    for step in range(5):
        options = ot.Options(
            lr=1e-2 / (step + 1), beta2=0.95, weight_decay=0.1, clip=0.4, seed=2**40 + 7, **extra
        )
        micro = engine.micro_batches(step, config, dtype="float64")
        expected = ot.train_step(config, state, micro, options)
        found = trainer.step(micro, **engine.step_arguments(options))
        assert expected["grad_norm"] > options.clip
        for key, value in expected.items():
            if config["gated"] or key in ("loss", "ce", "step", "grad_norm"):
                assert found[key] == pytest.approx(value, rel=1e-9), (step, key)
    assert trainer.step_count == state.step_count == 5
    if config["gated"]:
        assert trainer.multiplier == pytest.approx(state.multiplier, rel=1e-9)
        assert trainer.ema == pytest.approx(state.ema, rel=1e-9)
    for n, value in state.weights.items():
        assert engine.gradient_error(model.parameter(n), value) < CLOSE, n
        for moment, expected in zip(trainer.moments(n), (state.first[n], state.second[n])):
            assert engine.gradient_error(moment, expected) < CLOSE, n


@pytest.mark.parametrize("name", ["dense", "dropout"])
def test_directional_differences_of_a_training_step(name):
    """Masks are a function of seed and step, so the loss of one step is smooth in the weights."""
    config = oracle.full_config()
    weights = engine.rounded_model(2, config)
    micro = engine.micro_batches(0, config, dtype="float64")
    arguments = engine.step_arguments(ot.Options(lr=0.0, beta1=0.0, seed=2**40 + 7, **TRAINING[name][1]))
    rng = np.random.default_rng(7)
    direction = {n: rng.standard_normal(value.shape) for n, value in weights.items()}

    def step(distance):
        moved = {n: value + distance * direction[n] for n, value in weights.items()}
        trainer = _core64.Trainer(build(config, moved, "float64")._core)
        return trainer.step(micro, **arguments)["loss"], trainer

    trainer = step(0.0)[1]  # its first moments are the gradients
    expected = sum((trainer.moments(n)[0] * direction[n]).sum() for n in weights)
    slope = (step(1e-6)[0] - step(-1e-6)[0]) / 2e-6
    assert slope == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("gated", [False, True])
def test_one_training_step_on_long_sequences(gated):
    config = oracle.full_config(gated=gated, n_ctx=140, n_head=3, d_model=21, d_head=7, n_vocab=41)
    weights = engine.rounded_model(4, config)
    lengths = ((140, 1), (70,))
    options = ot.Options(lr=1e-3, tau=3.0, seed=3)
    state = ot.TrainingState({n: value.copy() for n, value in weights.items()})
    expected = ot.train_step(config, state, engine.micro_batches(4, config, lengths), options)
    for core, dtype, bound in ((_core64, "float64", CLOSE), (_core, "float32", 1e-4)):
        trainer = core.Trainer(build(config, weights, dtype)._core)
        trainer.multiplier = 1.0
        found = trainer.step(
            engine.micro_batches(4, config, lengths, dtype), **engine.step_arguments(options)
        )
        for key in ("loss", "ce", "grad_norm", *(("expected_edges", "open_edges") if gated else ())):
            assert found[key] == pytest.approx(expected[key], rel=bound), (dtype, key)
        for n, value in state.first.items():
            assert engine.gradient_error(trainer.moments(n)[0], value) < bound, (dtype, n)


def test_training_comparison_can_fail(monkeypatch):
    """Without the straight-through term the first step already differs."""
    config = oracle.full_config(gated=True)
    weights = engine.rounded_model(2, config)
    trainer = _core64.Trainer(build(config, weights, "float64")._core)
    trainer.multiplier = 1.0
    options = ot.Options(tau=2.0, seed=1)
    micro = engine.micro_batches(0, config, dtype="float64")
    norm = trainer.step(micro, **engine.step_arguments(options))["grad_norm"]

    def oracle_norm():
        state = ot.TrainingState({name: value.copy() for name, value in weights.items()})
        return ot.train_step(config, state, micro, options)["grad_norm"]

    assert oracle_norm() == pytest.approx(norm, rel=1e-9)
    right = ot.score_gradient
    monkeypatch.setattr(ot, "score_gradient", lambda P, m, dA, g, edge: right(P, m, dA, None, edge))
    assert abs(oracle_norm() / norm - 1) > 1e-4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_gradients_of_300_random_shapes():
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
            options = {"wrt": engine.WRT, "gate_gradient": mode(straight)}
            found = model.gradients(tokens, dlogits=dlogits, **options)
            expected = engine.oracle_gradients(config, weights, tokens, dlogits, straight)
            worst[0] = max(worst[0], *engine.gradient_errors(found, expected).values())
        n_cases[0] += 1

    compare()
    assert worst[0] <= 1e-10
    text = f"{n_cases[0]} random shapes in double: largest relative error {worst[0]:.1e} (goal 1e-10)"
    reliability.report("R26", text)
