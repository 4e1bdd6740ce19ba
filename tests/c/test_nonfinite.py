"""NaN, infinities and extreme numbers: no crash, nothing hidden, and training that stops in time."""

import engine
import numpy as np
import oracle
import oracle_training as ot
import pytest
from engine import build
from reliability import report

from attnsparse import TrainingDiverged, _core

LARGEST = float(np.finfo(np.float32).max)
VALUES = (np.nan, np.inf, -np.inf, -0.0, 1e-45, LARGEST, -LARGEST)
TOKENS = np.array([0, 1, 2, 3, 4, 0, 2], np.int32)


def small_case(**changes):
    config = oracle.full_config(**({"tied": False, "unembed_bias": True, "n_vocab": 5, "n_ctx": 7} | changes))
    return config, engine.rounded_model(0, config)


def placed(rng, weights, value, name=None):
    """{name: a copy of that array with `value` in one random place}; a random array if no name is given."""
    name = name or str(rng.choice(sorted(weights)))
    changed = weights[name].copy()
    changed.flat[rng.integers(changed.size)] = value
    return {name: changed}


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
@pytest.mark.parametrize("gate_bias", [None, 0.0, engine.OPEN])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_in_any_weight_reaches_the_logits(activation, gate_bias, dtype):
    """Every row of every array is used by these tokens, so a NaN anywhere must be seen in the end."""
    gate = {} if gate_bias is None else {"gated": True, "gate_bias": gate_bias}
    config, weights = small_case(activation=activation, **gate)
    rng = np.random.default_rng(0)
    model = build(config, weights, dtype)
    for name in weights:
        for _ in range(4):
            model.assign(placed(rng, weights, np.nan, name))
            assert np.isnan(model.run(TOKENS).logits).any(), name
        model.assign({name: weights[name]})


@pytest.mark.parametrize("gated", [False, True])
def test_random_placements_never_crash(gated):
    """1,000 placements here and as many in the other case: runs, gradients, and a training step for NaN."""
    config, weights = small_case(gated=gated)
    rng = np.random.default_rng(1)
    micro = engine.micro_batches(0, config, lengths=((7,),))
    model = build(config, weights)
    for index in range(1000):
        value = VALUES[index % len(VALUES)]
        changed = placed(rng, weights, value)
        model.assign(changed)
        first, again = model.run(TOKENS), model.run(TOKENS)
        assert np.array_equal(first.logits, again.logits, equal_nan=True)
        model.gradients(TOKENS, gate_gradient="straight-through", wrt=("parameters", "pattern"))
        if abs(value) < 1:
            expected = oracle.forward(config, weights | changed, TOKENS)
            assert engine.relative_error(first.logits, expected["logits"]) < engine.TOLERANCE["float32"]
        elif np.isnan(value):
            with pytest.raises(TrainingDiverged):
                _core.Trainer(model._core).step(micro, **engine.step_arguments(ot.Options(tau=1.0)))
        model.assign({name: weights[name] for name in changed})
    report("R28", "1,000 random placements of NaN, infinities, -0, a subnormal and the largest: 0 crashes")


def test_nonfinite_dlogits_reach_the_gradients():
    config, weights = small_case(gated=True)
    model = build(config, weights)
    for value in (np.nan, np.inf, LARGEST):
        dlogits = np.ones((len(TOKENS), config["n_vocab"]), np.float32)
        dlogits[3, 2] = value
        found = model.gradients(TOKENS, dlogits=dlogits).parameters
        assert np.isfinite(value) or not np.isfinite(found["wte.weight"]).all()


def test_edges_and_tables_of_a_nan_run_are_deterministic():
    config, weights = small_case(gated=True)
    model = build(config, weights | placed(np.random.default_rng(2), weights, np.nan, "h.0.attn.c_attn.bias"))
    first, again = (model.run(TOKENS, record="all").open_edges() for _ in range(2))
    assert first.equals(again)


def snapshot(trainer, model):
    """Everything a step may change, as bytes."""
    names = model._core.names
    arrays = [model.parameter(name).tobytes() for name in names]
    arrays += [moment.tobytes() for name in names for moment in trainer.moments(name)]
    return arrays, trainer.step_count, trainer.multiplier, repr(trainer.ema)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, LARGEST])
def test_divergence_changes_nothing(value, gated):
    config, weights = small_case(gated=gated)
    model = build(config, weights)
    trainer = _core.Trainer(model._core)
    micro = engine.micro_batches(0, config, lengths=((7, 3),))
    arguments = engine.step_arguments(ot.Options(tau=1.0, clip=1.0, geco_rate=0.1))
    trainer.step(micro, **arguments)
    good = np.array(model.parameter("lm_head.weight"))
    bad = good.copy()
    bad[2, 3] = value
    model._core.assign({"lm_head.weight": bad})
    before = snapshot(trainer, model)
    with pytest.raises(TrainingDiverged):
        trainer.step(micro, **arguments)
    assert snapshot(trainer, model) == before
    model._core.assign({"lm_head.weight": good})
    assert trainer.step(micro, **arguments)["step"] == 1


def test_divergence_by_gradient_alone():
    """A finite loss whose gradient overflows float32 also stops before the update."""
    config, weights = small_case()
    weights["ln_f.weight"] = np.full(8, 2e-38)
    weights["ln_f.bias"] = np.zeros(8)
    weights["lm_head.weight"] = np.full((5, 8), -LARGEST)
    weights["lm_head.weight"][0] = LARGEST
    model = build(config, weights)
    assert np.isfinite(model.run(TOKENS, record="loss").loss)
    trainer = _core.Trainer(model._core)
    before = snapshot(trainer, model)
    targets, only_first = np.zeros(7, np.int32), np.eye(7, dtype=np.float32)[0]
    micro = [(TOKENS, np.array([0, 7]), targets, only_first)]
    with pytest.raises(TrainingDiverged):
        trainer.step(micro, **engine.step_arguments(ot.Options()))
    assert snapshot(trainer, model) == before
