"""The kernels of every instruction set that this CPU has, against the oracle."""

import engine
import numpy as np
import oracle
import oracle_training as ot
import pytest

from attnsparse import _core, _core64

CORES = {"float32": _core, "float64": _core64}
BOUND = {"float32": 1e-4, "float64": 1e-9}


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def isa(request):
    """Both builds use one instruction set; afterwards the best one again."""
    try:
        for core in CORES.values():
            core._select_isa(request.param)
        yield request.param
    except ValueError:
        pytest.skip(f"this CPU has no {request.param}")
    finally:
        for core in CORES.values():
            core._select_isa("")


@pytest.mark.parametrize("dtype", CORES)
@pytest.mark.parametrize("gated", [False, True])
def test_forward_backward_and_training(isa, gated, dtype):
    config = oracle.full_config(gated=gated, n_ctx=70, n_head=3, d_model=35, d_head=9, d_mlp=41, n_vocab=29)
    weights = engine.rounded_model(0, config)
    tokens = engine.random_tokens(0, config, 70)
    model = engine.build(config, weights, dtype)
    expected = oracle.forward(config, weights, tokens)
    assert engine.gates_are_clear(config, expected, 1e-5)
    found = engine.errors(model.run(tokens, record="all"), expected)
    assert {name: error for name, error in found.items() if error > engine.TOLERANCE[dtype]} == {}

    dlogits = np.random.default_rng(0).standard_normal((70, 29)).astype(np.float32)
    gradients = model.gradients(tokens, dlogits=dlogits, wrt=engine.WRT, gate_gradient="straight-through")
    expected = engine.oracle_gradients(config, weights, tokens, dlogits.astype(np.float64), True)
    found = engine.gradient_errors(gradients, expected)
    assert {name: error for name, error in found.items() if error > BOUND[dtype]} == {}

    micro = engine.micro_batches(0, config, lengths=((70, 1), (33,)), dtype=dtype)
    options = ot.Options(tau=2.0, seed=1)
    trainer = CORES[dtype].Trainer(model._core)
    trainer.multiplier = 1.0
    result = trainer.step(micro, **engine.step_arguments(options))
    state = ot.TrainingState({name: value.copy() for name, value in weights.items()})
    expected = ot.train_step(config, state, micro, options)
    for name in ("loss", "grad_norm"):
        assert result[name] == pytest.approx(expected[name], rel=BOUND[dtype])


def test_exp_of_the_kernels(isa):
    """Less than 1 unit in the last place wherever the result is a normal number; NaN stays NaN."""
    x = np.linspace(-87, 88, 200_001).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(_core._exp(x) - exact) / np.spacing(exact.astype(np.float32))).max() < 1.0
    x = np.linspace(-700, 700, 200_001)
    assert np.abs(_core64._exp(x) / np.exp(x) - 1).max() < 2e-15
    for dtype, core in CORES.items():
        special = np.array([-np.inf, -1e30, -0.0, 0.0] * 9, dtype)  # more than one vector and a rest
        assert np.array_equal(core._exp(special), [0, 0, 1, 1] * 9)
        assert np.isnan(core._exp(np.full(35, np.nan, dtype))).all()


@pytest.mark.parametrize("dtype", CORES)
def test_noise_of_the_kernels(isa, dtype):
    """_noise_row gives u; the noise is log(u / (1 - u))."""
    noise = ot.gate_noise(2**40 + 7, 3, 2, 1, 3, 75)
    for head in range(3):
        for query in (0, 40, 74):
            u = CORES[dtype]._noise_row(75, 2**40 + 7, 3, 2, 1, head, query).astype(np.float64)
            assert np.array_equal(np.log(u / (1 - u)), noise[head, query])
