"""The oracle against PyTorch in float64: forward, backward, straight-through gate, AdamW."""

import numpy as np
import oracle
import oracle_training as ot
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLOSE = 1e-11

SHAPES = {
    "small": {},
    "one head, untied, gelu": {"n_head": 1, "tied": False, "activation": "gelu", "n_vocab": 23},
    "odd widths, relu": {"n_layer": 3, "n_head": 3, "d_model": 15, "d_mlp": 17, "activation": "relu"},
    "layer scale": {"n_layer": 3, "scale_by_inverse_layer": True},
    "no scale": {"scale_attn": False, "ln_eps": 1e-3},
}
GATED = {
    "gated": {"gated": True},
    "narrow heads": {"gated": True, "n_head": 3, "d_head": 1, "gate_bias": 0.4, "bias": False},
    "untied": {"gated": True, "tied": False, "unembed_bias": True, "scale_by_inverse_layer": True},
}


def hugging_face(config, weights):
    """A GPT2LMHeadModel in float64 with these weights and eager attention, without dropout."""
    settings = transformers.GPT2Config(
        vocab_size=config["n_vocab"],
        n_positions=config["n_ctx"],
        n_embd=config["d_model"],
        n_layer=config["n_layer"],
        n_head=config["n_head"],
        n_inner=config["d_mlp"],
        activation_function=config["activation"],
        layer_norm_epsilon=config["ln_eps"],
        scale_attn_weights=config["scale_attn"],
        scale_attn_by_inverse_layer_idx=config["scale_by_inverse_layer"],
        tie_word_embeddings=config["tied"],
        attn_implementation="eager",
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(settings).double().eval()
    state = {("" if name.startswith("lm_head") else "transformer.") + name: w for name, w in weights.items()}
    state = {name: torch.from_numpy(w) for name, w in state.items()}
    if config["tied"]:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    model.load_state_dict(state)
    return model


def relative(found, expected):
    """|found - expected| / |expected|, Euclidean."""
    found, expected = np.asarray(found), np.asarray(expected)
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300)


@pytest.mark.parametrize("name", SHAPES)
def test_forward_and_backward_against_transformers(name):
    config = oracle.full_config(**SHAPES[name])
    rng = np.random.default_rng(0)
    weights = oracle.random_model(rng, config)
    tokens = rng.integers(0, config["n_vocab"], config["n_ctx"])
    model = hugging_face(config, weights)
    batch = torch.from_numpy(tokens)[None]
    output = model(batch, output_attentions=True, output_hidden_states=True)
    expected_loss = torch.nn.functional.cross_entropy(output.logits[0, :-1], batch[0, 1:])  # not in float32
    expected_loss.backward()
    run = oracle.forward(config, weights, tokens)
    assert relative(run["logits"], output.logits[0].detach()) < CLOSE
    assert relative(run["loss"], expected_loss.detach()) < CLOSE
    assert relative(run["pattern"], torch.stack(output.attentions)[:, 0].detach()) < CLOSE
    hidden = torch.stack(output.hidden_states[:-1])[:, 0].detach()
    assert relative(run["resid_pre"], hidden) < CLOSE
    loss, dlogits = ot.next_token_loss(run["logits"], tokens)
    found = ot.backward(config, weights, tokens, run, dlogits).parameters
    assert relative(loss, run["loss"]) < CLOSE
    expected = {name.removeprefix("transformer."): p.grad for name, p in model.named_parameters()}
    assert set(found) == set(expected)
    for name, gradient in found.items():
        assert relative(gradient, expected[name]) < CLOSE, name


def torch_forward(config, weights, tokens, gate):
    """The gated model in torch: logits, and g and pattern per layer. gate(layer, g) -> m."""
    act = {"relu": torch.relu, "gelu": torch.nn.functional.gelu}.get(
        config["activation"], lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    )

    def norm(name, x):
        weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
        return torch.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, config["ln_eps"])

    def linear(name, x):
        return x @ weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)

    n, heads = len(tokens), (config["n_head"], config["d_head"])
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    x = weights["wte.weight"][tokens] + weights["wpe.weight"][:n]
    gates, patterns = [], []
    for layer in range(config["n_layer"]):
        qkv = linear(f"h.{layer}.attn.c_attn", norm(f"h.{layer}.ln_1", x)).reshape(n, 3, *heads)
        q, k, v = (part.transpose(0, 1) for part in qkv.unbind(1))
        scores = q @ k.transpose(1, 2) / config["d_head"] ** 0.5
        scores = scores / (layer + 1 if config["scale_by_inverse_layer"] else 1)
        m, g = gate(layer, scores)
        pattern = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1) * m
        gates.append(g)
        patterns.append(pattern)
        x = x + linear(f"h.{layer}.attn.c_proj", (pattern @ v).transpose(0, 1).reshape(n, -1))
        x = x + linear(
            f"h.{layer}.mlp.c_proj", act(linear(f"h.{layer}.mlp.c_fc", norm(f"h.{layer}.ln_2", x)))
        )
    unembedding = weights["wte.weight" if config["tied"] else "lm_head.weight"]
    logits = norm("ln_f", x) @ unembedding.T + weights.get("lm_head.bias", 0.0)
    return logits, torch.stack(gates), torch.stack(patterns)


@pytest.mark.parametrize("name", GATED)
def test_straight_through_gate_against_the_detach_trick(name):
    config = oracle.full_config(**GATED[name])
    rng = np.random.default_rng(1)
    weights = oracle.random_model(rng, config)
    tokens = rng.integers(0, config["n_vocab"], 9)
    parameters = {key: torch.tensor(value, requires_grad=True) for key, value in weights.items()}

    def gate(layer, scores):
        g = scores + config["gate_bias"]
        soft = torch.sigmoid(g)
        return (g > 0).double() + soft - soft.detach(), g

    logits, _, patterns = torch_forward(config, parameters, torch.from_numpy(tokens), gate)
    patterns.retain_grad()
    torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(tokens[1:])).backward()
    run = oracle.forward(config, weights, tokens)
    _, dlogits = ot.next_token_loss(run["logits"], tokens)
    found = ot.backward(config, weights, tokens, run, dlogits,
                        gate_logits=ot.evaluation_gate_logits(config, run))  # fmt: skip
    assert relative(run["pattern"], patterns.detach()) < CLOSE
    for key, gradient in found.parameters.items():
        assert relative(gradient, parameters[key].grad) < CLOSE, key


@pytest.mark.parametrize("gate_noise", [True, False])
@pytest.mark.parametrize("name", GATED)
def test_training_steps_against_torch(name, gate_noise):
    """Gated training with and without noise, expected edges, clipping and AdamW, five steps."""
    config = oracle.full_config(**GATED[name])
    rng = np.random.default_rng(2)
    weights = oracle.random_model(rng, config)
    L = config["n_layer"]
    micro = [sequence_micro(rng, config, lengths) for lengths in ((9, 1), (4,))]
    options = ot.Options(lr=1e-2, beta2=0.95, weight_decay=0.1, clip=0.5, seed=9, tau=1.5, geco_rate=0.3,
                         gate_noise=gate_noise, gate_bias=np.linspace(-0.3, 0.6, L),
                         edge_weight=np.linspace(1, 2, L))  # fmt: skip
    state = ot.TrainingState({key: value.copy() for key, value in weights.items()}, multiplier=2.0)
    parameters = {key: torch.tensor(value, requires_grad=True) for key, value in weights.items()}
    decayed = [p for p in parameters.values() if p.ndim >= 2]
    plain = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for step in range(5):
        multiplier = state.multiplier
        loss = torch_training_loss(config, parameters, micro, options, step, multiplier)
        optimiser.zero_grad()
        loss.backward()
        norm = torch.stack([(p.grad**2).sum() for p in parameters.values()]).sum().sqrt()
        for p in parameters.values():
            p.grad *= min(1.0, options.clip / norm)
        optimiser.step()
        result = ot.train_step(config, state, micro, options)
        assert relative(result["loss"], loss.detach()) < CLOSE
        assert relative(result["grad_norm"], norm) < CLOSE
        assert norm > options.clip
    for key, value in state.weights.items():
        assert relative(value, parameters[key].detach()) < 1e-9, key


def sequence_micro(rng, config, lengths):
    """One random micro-batch; some tokens have weight 0."""
    n = sum(lengths)
    tokens, targets = rng.integers(0, config["n_vocab"], (2, n))
    return tokens, np.cumsum((0, *lengths)), targets, rng.integers(0, 3, n).astype(np.float64)


def torch_training_loss(config, parameters, micro, options, step, multiplier):
    """The loss of one step with torch's own softmax, sigmoid and cross-entropy."""
    ce = expected = 0.0
    sequences = ot.sequences_of(micro)
    L, H = config["n_layer"], config["n_head"]
    n_pairs = L * H * sum(len(t) * (len(t) + 1) // 2 for t, _, _ in sequences)
    for index, (tokens, targets, w) in enumerate(sequences):
        drawn = [ot.gate_noise(options.seed, step, index, layer, H, len(tokens)) for layer in range(L)]
        noise = [torch.from_numpy(array * options.gate_noise) for array in drawn]

        def gate(layer, scores, noise=noise):
            g = scores + options.gate_bias[layer]
            soft = torch.sigmoid(g + noise[layer])
            return (g + noise[layer] > 0).double() + soft - soft.detach(), g

        logits, g, _ = torch_forward(config, parameters, torch.from_numpy(tokens), gate)
        losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets), reduction="none")
        ce = ce + (losses * torch.from_numpy(w)).sum()
        edges = torch.sigmoid(g).tril().sum((1, 2, 3))
        expected = expected + (edges * torch.from_numpy(options.edge_weight)).sum()
    ce = ce / sum(w.sum() for _, _, w in sequences)
    return (expected / n_pairs + multiplier * (ce - options.tau)) / (1 + multiplier)
