"""The oracle judged by central finite differences, and proof that this judge can say no.

Straight-through terms are derivatives of a surrogate: the gate m0 + sigmoid(g) - sigmoid(g0), which has
the value m0 at the point itself and the slope sigmoid' there. So they can be differenced as well.
"""

import numpy as np
import oracle
import oracle_training as ot
import pytest

STEP = 1e-5
TOLERANCE = 1e-7
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2])

CONFIGS = {
    "dense": {},
    "gated": {"gated": True, "gate_bias": -0.2},
    "untied, gelu": {"tied": False, "unembed_bias": True, "activation": "gelu", "n_head": 1},
    "no bias, relu": {"bias": False, "activation": "relu", "gated": True, "d_head": 3},
    "layer scale": {"scale_by_inverse_layer": True, "gated": True, "d_head": 1, "n_head": 3},
    "no scale": {"scale_attn": False, "n_layer": 1, "gated": True},
}


def case(name, seed=0):
    config = oracle.full_config(**CONFIGS[name])
    return config, oracle.random_model(np.random.default_rng(seed), config)


def gradients(config, weights, tokens=TOKENS, gate=oracle.hard_gate, gate_logits=None):
    run = oracle.forward(config, weights, tokens, gate=gate)
    _, dlogits = ot.next_token_loss(run["logits"], tokens)
    return ot.backward(config, weights, tokens, run, dlogits, gate_logits=gate_logits)


def directional(loss, direction):
    """(loss(x + h d) - loss(x - h d)) / 2h"""
    return (loss(STEP * direction) - loss(-STEP * direction)) / (2 * STEP)


def parameter_error(config, weights, found, rng, loss=None, gate=oracle.hard_gate):
    """Largest difference between a directional derivative and the gradient, over all parameters,
    relative to the gradient's length."""
    if loss is None:

        def loss(changed):
            return oracle.forward(config, changed, TOKENS, gate=gate)["loss"]

    worst = 0.0
    for name, gradient in found.items():
        direction = rng.standard_normal(gradient.shape)
        slope = directional(lambda d, n=name: loss(weights | {n: weights[n] + d}), direction)
        worst = max(worst, abs(slope - (gradient * direction).sum()) / np.linalg.norm(gradient))
    return worst


def smooth_gate(noise, start):
    """A gate with the value 1[g + noise > 0] and the slope sigmoid'(g + noise) at the point where it
    is called first, and smooth around it. `start` remembers that point."""

    def gate(layer, g):
        soft = oracle.sigmoid(g + noise[layer])
        return soft + start.setdefault((noise.tobytes(), layer), (g + noise[layer] > 0) - soft)

    return gate


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_gradients(name):
    config, weights = case(name)
    found = gradients(config, weights).parameters
    assert set(found) == set(weights)
    assert parameter_error(config, weights, found, np.random.default_rng(1)) < TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("activation", ot.PATH_ACTIVATIONS)
def test_activation_gradients(name, activation):
    config, weights = case(name)
    gradient = gradients(config, weights).activations[activation]
    direction = np.random.default_rng(2).standard_normal(gradient.shape)
    if activation in ("pattern", "scores"):
        direction = direction * oracle.causal_mask(len(TOKENS))

    def loss(change):
        return oracle.forward(config, weights, TOKENS, inject={activation: change})["loss"]

    expected = (gradient * direction).sum()
    assert gradient.shape == oracle.forward(config, weights, TOKENS)[activation].shape
    assert abs(directional(loss, direction) - expected) < TOLERANCE * np.linalg.norm(gradient)


@pytest.mark.parametrize("name", [name for name in CONFIGS if CONFIGS[name].get("gated")])
def test_straight_through_gradient_at_evaluation(name):
    config, weights = case(name)
    run = oracle.forward(config, weights, TOKENS)
    found = gradients(config, weights, gate_logits=ot.evaluation_gate_logits(config, run)).parameters
    gate = smooth_gate(np.zeros((config["n_layer"], 1)), {})
    oracle.forward(config, weights, TOKENS, gate=gate)
    assert parameter_error(config, weights, found, np.random.default_rng(3), gate=gate) < TOLERANCE
    without = gradients(config, weights).parameters["h.0.attn.c_attn.weight"]
    assert np.abs(found["h.0.attn.c_attn.weight"] - without).max() > 1e-4


DROPOUT = ((0.2, 0.3), (0.5, 0.0), (0.0, 0.1), (0.1, 0.0))  # two layers' rates of each of ot.DROPPED


def training_case(gated=True, dropout=(), seed=4):
    """Two micro-batches of unequal weight; per-layer gate bias and edge weight."""
    rng = np.random.default_rng(seed)
    config = oracle.full_config(gated=gated, tied=False)
    weights = oracle.random_model(rng, config)
    micro = []
    for lengths in ((5, 1), (7,)):
        n = sum(lengths)
        tokens, targets = rng.integers(0, config["n_vocab"], (2, n))
        token_weight = rng.integers(0, 3, n).astype(np.float32)
        micro.append((tokens, np.cumsum((0, *lengths)), targets, token_weight))
    options = ot.Options(seed=12345, gate_bias=(0.3, -0.1), edge_weight=(1.0, 2.5), tau=1.0, dropout=dropout)
    return config, weights, micro, options


@pytest.mark.parametrize("dropout", [(), DROPOUT], ids=["whole", "dropout"])
@pytest.mark.parametrize("gated", [True, False])
def test_training_gradients(gated, dropout, monkeypatch):
    config, weights, micro, options = training_case(gated, dropout)
    _, found = ot.loss_and_gradients(config, weights, micro, options, step=3, multiplier=1.7)
    start = {}
    monkeypatch.setattr(ot, "noisy_gate", lambda noise: smooth_gate(noise, start))

    def loss(changed):
        parts, _ = ot.loss_and_gradients(config, changed, micro, options, step=3, multiplier=1.7)
        return parts["loss"]

    loss(weights)
    assert parameter_error(config, weights, found, np.random.default_rng(5), loss=loss) < TOLERANCE


# ------------------------------------------------------------------------ the judge can say no


@pytest.mark.parametrize("name", ["pattern", "attn_out", "mlp_out"])
def test_a_mask_that_the_gradient_forgets_is_detected(name, monkeypatch):
    config, weights, micro, options = training_case(False, DROPOUT)
    right = ot.backward

    def forgetful(*arguments, thin, **others):
        return right(*arguments, thin=thin | {name: np.ones_like(thin[name])}, **others)

    def loss(changed):
        return ot.loss_and_gradients(config, changed, micro, options)[0]["loss"]

    for backward, wrong in ((right, False), (forgetful, True)):
        monkeypatch.setattr(ot, "backward", backward)
        _, found = ot.loss_and_gradients(config, weights, micro, options)
        error = parameter_error(config, weights, found, np.random.default_rng(5), loss=loss)
        assert (error > 1e-2) == wrong


def test_a_wrong_sign_is_detected(monkeypatch):
    config, weights = case("gated")
    right = ot.score_gradient
    monkeypatch.setattr(ot, "score_gradient", lambda *arguments: -right(*arguments))
    found = gradients(config, weights).parameters
    assert parameter_error(config, weights, found, np.random.default_rng(1)) > 1e-2


def test_a_dropped_key_bias_is_detected():
    """In a dense model b_K changes no pattern at all; in a gated one it moves the gates."""
    for name, gates_move in (("dense", False), ("gated", True)):
        config, weights = case(name)
        bias = weights["h.0.attn.c_attn.bias"].copy()
        width = config["n_head"] * config["d_head"]
        bias[width : 2 * width] = 0.0
        dropped = weights | {"h.0.attn.c_attn.bias": bias}
        whole, partial = (oracle.forward(config, w, TOKENS) for w in (weights, dropped))
        assert (np.abs(whole["pattern"] - partial["pattern"]).max() > 1e-2) == gates_move
        assert (np.abs(whole["logits"] - partial["logits"]).max() > 1e-2) == gates_move
        found = gradients(config, dropped).parameters
        error = parameter_error(config, weights, found, np.random.default_rng(1))
        assert (error > 1e-2) == gates_move


def test_a_shifted_causal_mask_is_detected(monkeypatch):
    config, weights = case("dense")
    whole = oracle.forward(config, weights, TOKENS)
    found = gradients(config, weights).parameters
    monkeypatch.setattr(oracle, "causal_mask", lambda n: np.tri(n, k=1, dtype=bool))
    shifted = oracle.forward(config, weights, TOKENS)
    assert np.abs(whole["logits"] - shifted["logits"]).max() > 1e-2
    assert parameter_error(config, weights, found, np.random.default_rng(1)) > 1e-2


# ------------------------------------------------------------------------------- the gate and its noise


def test_closed_rows_give_exactly_zero():
    config, weights = case("gated")
    closed = oracle.forward(config | {"gate_bias": -1e6}, weights, TOKENS)
    for name in ("pattern", "z", "result"):
        assert not closed[name].any()
    assert np.array_equal(closed["attn_out"][0], np.tile(weights["h.0.attn.c_proj.bias"], (len(TOKENS), 1)))
    found = gradients(config | {"gate_bias": -1e6}, weights)
    assert not found.parameters["h.0.attn.c_attn.weight"].any()
    assert all(np.isfinite(value).all() for value in found.parameters.values())
    opened = oracle.forward(config | {"gate_bias": 1e6}, weights, TOKENS)
    dense = oracle.forward(config | {"gated": False}, weights, TOKENS)
    assert np.array_equal(opened["logits"], dense["logits"])


def test_pattern_is_never_renormalised():
    config, weights = case("gated")
    run = oracle.forward(config, weights, TOKENS)
    open_share = run["gate"][:, :, oracle.causal_mask(len(TOKENS))].mean()
    assert 0.2 < open_share < 0.8
    assert np.array_equal(run["pattern"], np.where(run["gate"], oracle.softmax(run["scores"]), 0.0))


def test_splitmix64_against_the_published_sequence():
    """First outputs of the reference generator seeded with 1234567."""
    state, found = 1234567, []
    for _ in range(3):
        found.append(int(ot.splitmix64(state)))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_noise_against_python_integers():
    def scalar(seed, step, sequence, layer, head, query, key):
        word = int(ot.splitmix64(seed))
        for part in (step, sequence, layer, head, query):
            word = int(ot.splitmix64(word ^ part))
        low, high, mask = word & 0xFFFFFFFF, word >> 32, 0xFFFFFFFF
        x = (key * 0x9E3779B9 + low) & mask
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask
        x = ((x ^ (x >> 15)) + high) & mask
        x = (x * 0x846CA68B) & mask
        x ^= x >> 16
        u = ((x >> 9) + 0.5) / 2**23
        return np.log(u / (1 - u))

    noise = ot.gate_noise(2**63 + 5, 7, 2, 1, 3, 9)
    assert noise[2, 8, 5] == scalar(2**63 + 5, 7, 2, 1, 2, 8, 5)
    assert noise[0, 0, 0] == scalar(2**63 + 5, 7, 2, 1, 0, 0, 0)


def test_noise_is_logistic_and_independent():
    n = 400
    noise = ot.gate_noise(0, 0, 0, 0, 4, n)
    count = noise.size
    deviation = np.pi / np.sqrt(3)
    assert abs(noise.mean()) < 5 * deviation / np.sqrt(count)
    assert abs(noise.var() - np.pi**2 / 3) < 0.03
    quantiles = np.sort(oracle.sigmoid(noise).ravel()) - (np.arange(count) + 0.5) / count
    assert np.abs(quantiles).max() < 2 / np.sqrt(count)
    others = [
        ot.gate_noise(*index, 4, n) for index in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    ]
    pairs = [(noise[:, :, 1:], noise[:, :, :-1]), (noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1])]
    pairs += [(noise, other) for other in others] + [(noise, noise.transpose(0, 2, 1))]
    pairs += [(noise[:, :, lag:], noise[:, :, :-lag]) for lag in (2, 3, 16, 64)]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


# ------------------------------------------------------------------------------------- the training step


def test_clipping_changes_the_length_only():
    config, weights, micro, _ = training_case()
    plain, clipped = (
        ot.TrainingState({name: value.copy() for name, value in weights.items()}) for _ in range(2)
    )
    result = ot.train_step(config, plain, micro, ot.Options(tau=1.0))
    limit = result["grad_norm"] / 4
    assert (
        ot.train_step(config, clipped, micro, ot.Options(tau=1.0, clip=limit))["grad_norm"]
        == result["grad_norm"]
    )
    for name in weights:
        assert np.allclose(clipped.first[name], plain.first[name] / 4, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("ce", "up"), [(3.0, True), (1.0, False)])
@pytest.mark.parametrize("relative", [True, False])
def test_multiplier_moves_the_right_way(ce, up, relative):
    """CE above tau strengthens the constraint; the first ema is the first value; clip and bounds hold."""
    options = ot.Options(tau=2.0, geco_rate=0.1, geco_clip=0.25, geco_relative=relative, lambda_max=1.05)
    state = ot.TrainingState({}, multiplier=1.0)
    ot.geco(state, ce, options)
    assert state.ema == (ce if relative else ce - 2.0)
    assert state.multiplier == pytest.approx(np.exp(0.025) if up else np.exp(-0.025), rel=1e-14)
    for _ in range(5):
        ot.geco(state, ce, options)
    assert state.ema == pytest.approx(ce if relative else ce - 2.0)
    assert state.multiplier == pytest.approx(1.05 if up else np.exp(-0.15), rel=1e-14)


def test_training_lowers_the_loss_and_closes_gates():
    config, weights, micro, _ = training_case()
    state = ot.TrainingState({name: value.copy() for name, value in weights.items()})
    options = ot.Options(lr=1e-2, tau=3.0, geco_rate=0.1, seed=1)
    results = [ot.train_step(config, state, micro, options) for _ in range(60)]
    assert results[-1]["expected_edges"] < 0.8 * results[0]["expected_edges"]
    assert results[-1]["ce"] < results[0]["ce"]
    assert [r["step"] for r in results] == list(range(60))


def test_weight_zero_rows_and_batching_do_not_matter():
    config, weights, micro, options = training_case()
    parts, found = ot.loss_and_gradients(config, weights, micro, options)
    shifted = [(t, o, np.where(w > 0, y, (y + 1) % config["n_vocab"]), w) for t, o, y, w in micro]
    tokens, targets, w = (np.concatenate([m[i] for m in micro]) for i in (0, 2, 3))
    joined = [(tokens, np.array([0, 5, 6, 13]), targets, w)]
    for other in (shifted, joined):
        parts_other, found_other = ot.loss_and_gradients(config, weights, other, options)
        assert parts_other == pytest.approx(parts, rel=1e-13)
        for name in found:
            assert np.allclose(found[name], found_other[name], rtol=1e-12, atol=1e-15)
