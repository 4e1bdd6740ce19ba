"""Every array that the C core records against the oracle, in float32 and in the double build."""

import engine
import numpy as np
import oracle
import pytest
from alone import same_bits_or_close
from engine import build, errors, relative_error
from hypothesis import assume, given, settings

CONFIGS = {
    "dense": {},
    "gated": {"gated": True, "gate_bias": -0.2},
    "all closed": {"gated": True, "gate_bias": engine.CLOSED},
    "all open": {"gated": True, "gate_bias": engine.OPEN},
    "one head": {"n_head": 1, "d_head": 5, "gated": True},
    "heads of width 1": {"n_head": 7, "d_head": 1, "gated": True},
    "wide heads": {"n_head": 3, "d_head": 19, "gated": True},
    "odd widths": {"d_model": 13, "n_head": 3, "d_head": 5, "d_mlp": 11, "n_vocab": 17},
    "residual of width 1": {"d_model": 1, "n_head": 2, "d_head": 3, "d_mlp": 3},
    "untied, gelu": {"tied": False, "activation": "gelu", "unembed_bias": True},
    "no bias, relu": {"bias": False, "activation": "relu", "gated": True},
    "layer scale": {"scale_by_inverse_layer": True, "n_layer": 4, "gated": True},
    "no scale": {"scale_attn": False, "gated": True},
    "self closed": {"gated": True, "self_closed": True, "gate_bias": 0.2},
    "self closed, all others open": {"gated": True, "self_closed": True, "gate_bias": engine.OPEN},
    "window": {"window": 3},
    "window of one": {"window": 1, "n_head": 1},
    "top k": {"top_k": 2, "n_head": 3, "d_model": 12},
    "least weight": {"min_weight": 0.2},
    "all rules": {"window": 7, "top_k": 4, "min_weight": 0.15, "n_ctx": 21},
    "many tokens by rule": {
        "n_ctx": 150,
        "n_head": 3,
        "d_model": 33,
        "d_head": 11,
        "top_k": 21,
        "window": 70,
    },
    "many tokens": {"n_ctx": 150, "n_head": 3, "d_model": 33, "d_head": 11, "n_vocab": 131, "gated": True},
}


def clear_case(name, n_tokens=None, seed=0):
    """Configuration, weights, tokens and the oracle's run, without gates that are nearly on the edge."""
    config = oracle.full_config(**CONFIGS[name])
    while True:
        weights = engine.rounded_model(seed, config)
        tokens = engine.random_tokens(seed, config, n_tokens or config["n_ctx"])
        run = oracle.forward(config, weights, tokens)
        margin = 1e-3 if len(tokens) < 50 else 2e-6
        if engine.gates_are_clear(config, run, margin):
            return config, weights, tokens, run
        seed += 1


def assert_close(found, dtype):
    worst = {name: error for name, error in found.items() if error > engine.TOLERANCE[dtype]}
    assert not worst


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_recorded_array(name, dtype):
    config, weights, tokens, expected = clear_case(name)
    run = build(config, weights, dtype).run(tokens, record="all")
    assert_close(errors(run, expected), dtype)
    assert run.logits.dtype == dtype
    assert run.loss == pytest.approx(expected["loss"], rel=engine.TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["dense", "gated", "all closed", "heads of width 1"])
def test_one_token(name, dtype):
    config, weights, tokens, expected = clear_case(name, n_tokens=1)
    run = build(config, weights, dtype).run(tokens, record="all")
    assert_close(errors(run, expected), dtype)
    assert run.token_loss.shape == (0,)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(engine.cases())
def test_random_shapes_in_double(case):
    config, seed, tokens = case
    weights = engine.rounded_model(seed, config)
    expected = oracle.forward(config, weights, tokens)
    assume(engine.gates_are_clear(config, expected, 1e-9))
    run = build(config, weights, "float64").run(tokens, record="all")
    assert_close(errors(run, expected), "float64")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(engine.cases())
def test_random_shapes_in_single(case):
    config, seed, tokens = case
    weights = engine.rounded_model(seed, config)
    expected = oracle.forward(config, weights, tokens)
    assume(engine.gates_are_clear(config, expected))
    run = build(config, weights, "float32").run(tokens, record="all")
    assert_close(errors(run, expected), "float32")


def test_closed_rows_are_exactly_zero():
    config, weights, tokens, _ = clear_case("all closed")
    run = build(config, weights).run(tokens, record="all")
    for name in ("gate", "pattern", "z", "result"):
        assert not getattr(run, name).any()


@pytest.mark.parametrize("name", ["dense", "gated", "many tokens"])
def test_ragged_batch_equals_oracle_and_each_prompt_alone(name):
    config, weights, tokens, _ = clear_case(name)
    model = build(config, weights)
    prompts = [tokens[:n] for n in (1, 5, len(tokens), 2)]
    batch = model.run(prompts, record="all")
    assert len(batch) == len(prompts)
    for index, expected in enumerate(oracle.forward_batch(config, weights, prompts)):
        assert_close(errors(batch[index], expected), "float32")
        alone = model.run(prompts[index], record="all")
        for array in engine.RECORDED:
            assert same_bits_or_close(getattr(batch[index], array), getattr(alone, array)), array


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_records_do_not_change_bits(threads):
    config, weights, tokens, _ = clear_case("many tokens")
    model = build(config, weights)
    everything = model.run(tokens, record="all", threads=1)
    for array in ("pattern", "logits", "z", "resid_post", "gate", "mlp_post"):
        alone = model.run(tokens, record=(array,) if array != "logits" else (), threads=threads)
        assert np.array_equal(getattr(alone, array), getattr(everything, array)), array


def test_last_logits_equal_all_logits():
    config, weights, tokens, _ = clear_case("gated")
    model = build(config, weights)
    assert np.array_equal(model.run(tokens, logits="last").logits, model.run(tokens).logits[-1])


def test_value_norms():
    """|v|, |v W_O| and (v W_O) . direction per layer, head and key position."""
    config, weights, tokens, expected = clear_case("odd widths")
    H, D = config["n_head"], config["d_head"]
    direction = np.random.default_rng(0).standard_normal(config["d_model"])
    w_o = np.stack([weights[f"h.{n}.attn.c_proj.weight"].reshape(H, D, -1) for n in range(config["n_layer"])])
    output = np.einsum("lthd,lhde->lhte", expected["v"], w_o)
    norms = np.linalg.norm(expected["v"], axis=-1).transpose(0, 2, 1)
    for dtype in ("float32", "float64"):
        run = build(config, weights, dtype).run(tokens)
        found = run.value_norms(direction.astype(dtype))
        for value, reference in zip(found, (norms, np.linalg.norm(output, axis=-1), output @ direction)):
            assert relative_error(value, reference) < engine.TOLERANCE[dtype]
        assert run.value_norms()[2] is None


def test_entry_scores():
    config, weights, tokens, expected = clear_case("gated")
    run = build(config, weights).run(tokens)
    layer, head, query, key = (index[:40] for index in np.nonzero(np.isfinite(expected["scores"])))
    scores, gate = run.entry_scores(layer, head, query, key)
    assert relative_error(scores, expected["scores"][layer, head, query, key]) < engine.TOLERANCE["float32"]
    assert np.array_equal(gate, expected["gate"][layer, head, query, key])


# ---------------------------------------------------------------- the comparison can fail: planted faults


def worst_error(config, weights, tokens, expected, name="logits"):
    run = build(config, weights, "float64").run(tokens, record="all")
    return relative_error(getattr(run, name), expected[name])


def test_a_wrong_sign_is_caught():
    config, weights, tokens, expected = clear_case("gated")
    assert worst_error(config, weights, tokens, expected) < engine.TOLERANCE["float64"]
    for name in ("h.1.attn.c_proj.weight", "h.0.mlp.c_fc.bias", "h.0.ln_2.weight"):
        assert worst_error(config, weights | {name: -weights[name]}, tokens, expected) > 1e-3


def test_a_dropped_key_bias_is_caught():
    """Softmax ignores b_K, the scores and the gate do not."""
    for name, array in (("gated", "logits"), ("dense", "scores")):
        config, weights, tokens, expected = clear_case(name)
        bias, width = weights["h.0.attn.c_attn.bias"].copy(), config["n_head"] * config["d_head"]
        bias[width : 2 * width] = 0.0
        dropped = weights | {"h.0.attn.c_attn.bias": bias}
        assert worst_error(config, weights, tokens, expected, array) < engine.TOLERANCE["float64"]
        assert worst_error(config, dropped, tokens, expected, array) > 1e-3


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_shifted_mask_is_caught(shift, monkeypatch):
    config, weights, tokens, _ = clear_case("dense")
    found = build(config, weights, "float64").run(tokens, record="all").resid_mid

    def shifted_mask(n):
        mask = np.tri(n, k=shift, dtype=bool)
        mask[0, 0] = True
        return mask

    monkeypatch.setattr(oracle, "causal_mask", shifted_mask)
    shifted = oracle.forward(config, weights, tokens)
    assert relative_error(found, shifted["resid_mid"]) > 1e-3
