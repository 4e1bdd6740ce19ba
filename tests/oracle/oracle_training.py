"""Backward pass, training noise and one training step of the model in oracle.py, in NumPy float64.

Everything is written out by hand; no automatic differentiation. Gradients have the name and the
shape of what they are the gradient of.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import oracle
from numpy.typing import ArrayLike, NDArray
from oracle import Array, Record

PATH_ACTIVATIONS = (
    "pattern", "scores", "q", "k", "v", "z", "resid_pre", "resid_mid", "resid_post", "mlp_pre", "mlp_post",
)  # fmt: skip

# ------------------------------------------------------------------------------- the backward pass


@dataclass
class Gradients:
    """parameters: name -> gradient. activations: name -> gradient with the Run's shape, for
    `PATH_ACTIVATIONS`; entries of pattern and scores with key > query are 0."""

    parameters: dict[str, Array]
    activations: dict[str, Array]


def cross_entropy(logits: Array, targets: ArrayLike, weights: ArrayLike) -> tuple[float, Array]:
    """loss = sum_t w_t ce_t / sum_t w_t and dlogits = w_t (softmax(logits_t) - onehot(target_t)) / sum w.

    logits (N,V), targets (N,), weights (N,). Rows of weight 0 take no part."""
    targets, weights = np.asarray(targets, np.int64), np.asarray(weights, np.float64)
    share = weights / weights.sum()
    dlogits = oracle.softmax(logits)
    dlogits[np.arange(len(targets)), targets] -= 1.0
    return float(share @ oracle.token_loss(logits, targets)), dlogits * share[:, None]


def next_token_loss(logits: Array, tokens: ArrayLike) -> tuple[float, Array]:
    """Mean next-token cross-entropy of one sequence and its dlogits (T,V); the last row is 0."""
    weights = np.ones(len(tokens))
    weights[-1] = 0.0
    return cross_entropy(logits, np.append(np.asarray(tokens)[1:], 0), weights)


def backward(
    config: Mapping,
    weights: Mapping[str, Array],
    tokens: ArrayLike,
    run: Record,
    dlogits: Array,
    *,
    gate_logits: Array | None = None,
    edge_gradient: Array | None = None,
    thin: Mapping[str, Array] | None = None,
) -> Gradients:
    """Gradients of a loss with dloss/dlogits = dlogits (T,V) through the recorded run of one sequence.

    gate_logits (L,H,T,T): None lets no gradient through the gate (it is piecewise constant). With
    g + noise of the training gate, or g at evaluation, the straight-through term is added to the
    scores' gradient. edge_gradient (L,H,T,T): dloss/dg of a term of the loss that depends on the gate
    logits directly (the expected number of edges); also added to the scores' gradient. thin: that of the
    run (see `oracle.forward`).
    """
    tokens, thin = np.asarray(tokens, np.int64), thin or {}
    parameters = {name: np.zeros_like(value) for name, value in weights.items()}
    layers: dict[str, list[Array]] = {name: [] for name in PATH_ACTIVATIONS}
    final = oracle.affine(weights, "ln_f", run["ln_final_normalized"])
    unembedding = "wte.weight" if config["tied"] else "lm_head.weight"
    parameters[unembedding] += dlogits.T @ final
    if "lm_head.bias" in weights:
        parameters["lm_head.bias"] += dlogits.sum(0)
    dfinal = dlogits @ oracle.unembedding(config, weights)
    dx = _layer_norm_backward(
        weights, "ln_f", run["ln_final_normalized"], run["ln_final_scale"], dfinal, parameters
    )
    for layer in reversed(range(config["n_layer"])):
        here = {name: run[name][layer] for name in oracle.PER_LAYER}
        layers["resid_post"].append(dx)
        kept = {name: mask[layer] for name, mask in thin.items()}
        dout = dx * kept.get("mlp_out", 1.0)
        dx = dx + _mlp_backward(config, weights, layer, here, dout, parameters, layers)
        layers["resid_mid"].append(dx)
        to_scores = np.zeros_like(here["pattern"]) if edge_gradient is None else edge_gradient[layer]
        g = None if gate_logits is None else gate_logits[layer]
        dout = dx * kept.get("attn_out", 1.0)
        dx = dx + _attention_backward(
            config, weights, layer, here, dout, g, to_scores, kept.get("pattern", 1.0), parameters, layers
        )
        layers["resid_pre"].append(dx)
    parameters["wpe.weight"][: len(tokens)] += dx
    np.add.at(parameters["wte.weight"], tokens, dx)
    return Gradients(parameters, {name: np.stack(values[::-1]) for name, values in layers.items()})


def _layer_norm_backward(weights, name, normalized, scale, dout, parameters) -> Array:
    """out = n w + b, n = (x - mean x) / scale.  With dn = dout w:
    dx = (dn - mean dn - n mean(dn n)) / scale, means over the last axis."""
    parameters[f"{name}.weight"] += (dout * normalized).sum(0)
    if f"{name}.bias" in weights:
        parameters[f"{name}.bias"] += dout.sum(0)
    dn = dout * weights[f"{name}.weight"]
    dn_n = (dn * normalized).mean(-1, keepdims=True)
    return (dn - dn.mean(-1, keepdims=True) - normalized * dn_n) / scale[:, None]


def _linear_backward(weights, name, x, dout, parameters) -> Array:
    """out = x W + b:  dW = x^T dout, db = sum dout, dx = dout W^T."""
    parameters[f"{name}.weight"] += x.T @ dout
    if f"{name}.bias" in weights:
        parameters[f"{name}.bias"] += dout.sum(0)
    return dout @ weights[f"{name}.weight"].T


def _mlp_backward(config, weights, layer, here, dout, parameters, layers) -> Array:
    """Gradient of resid_mid through the MLP from dout, the gradient of resid_post (T,E)."""
    name = f"h.{layer}"
    dpost = _linear_backward(weights, f"{name}.mlp.c_proj", here["mlp_post"], dout, parameters)
    dpre = dpost * oracle.activation_slope(config["activation"], here["mlp_pre"])
    layers["mlp_post"].append(dpost)
    layers["mlp_pre"].append(dpre)
    normed = oracle.affine(weights, f"{name}.ln_2", here["ln2_normalized"])
    dnormed = _linear_backward(weights, f"{name}.mlp.c_fc", normed, dpre, parameters)
    return _layer_norm_backward(
        weights, f"{name}.ln_2", here["ln2_normalized"], here["ln2_scale"], dnormed, parameters
    )


def score_gradient(P: Array, m: Array, dA: Array, g: Array | None, edge_gradient: Array | float) -> Array:
    """ds = P (m dA - sum_k P m dA) + P dA sigmoid'(g) + edge_gradient, the middle term only with a g.

    All (H,T,T): P softmax, m gate, dA the pattern's gradient, g what the straight-through gate has
    put in for its derivative (g + noise in training). docs/numerics.md."""
    through_softmax = P * (m * dA - (P * m * dA).sum(-1, keepdims=True))
    through_gate = 0.0 if g is None else P * dA * oracle.sigmoid_slope(g)
    return through_softmax + through_gate + edge_gradient


def _attention_backward(
    config, weights, layer, here, dout, g, edge_gradient, kept, parameters, layers
) -> Array:
    """Gradient of resid_pre through the attention from dout, the gradient of resid_mid (T,E).

    The recorded pattern is what dropout left of A, kept A.  dA = kept dz v^T, dv = (kept A)^T dz,
    dq = factor ds k, dk = factor ds^T q; see `score_gradient` for ds."""
    name, n_tokens = f"h.{layer}", len(dout)
    mask = oracle.causal_mask(n_tokens)
    dz = _linear_backward(weights, f"{name}.attn.c_proj", here["z"].reshape(n_tokens, -1), dout, parameters)
    dz = dz.reshape(here["z"].shape)
    dA = np.where(mask, np.einsum("qhd,khd->hqk", dz, here["v"]), 0.0) * kept
    dv = np.einsum("hqk,qhd->khd", here["pattern"], dz)
    if g is not None:
        g = np.where(mask, g, -np.inf)
    P = oracle.softmax(oracle.kept_scores(config, here["scores"]))
    ds = score_gradient(P, here["gate"], dA, g, edge_gradient)
    factor = oracle.score_factor(config, layer)
    dq = factor * np.einsum("hqk,khd->qhd", ds, here["k"])
    dk = factor * np.einsum("hqk,qhd->khd", ds, here["q"])
    for key, value in (("pattern", dA), ("scores", ds), ("q", dq), ("k", dk), ("v", dv), ("z", dz)):
        layers[key].append(value)
    dblock = np.concatenate([part.reshape(n_tokens, -1) for part in (dq, dk, dv)], axis=1)
    normed = oracle.affine(weights, f"{name}.ln_1", here["ln1_normalized"])
    dnormed = _linear_backward(weights, f"{name}.attn.c_attn", normed, dblock, parameters)
    return _layer_norm_backward(
        weights, f"{name}.ln_1", here["ln1_normalized"], here["ln1_scale"], dnormed, parameters
    )


def evaluation_gate_logits(config: Mapping, run: Record) -> Array:
    """g = scores + gate_bias (L,H,T,T) of a run, for the straight-through gradient at evaluation."""
    mask = oracle.gate_mask(config, run["scores"].shape[-1])
    return np.where(mask, run["scores"] + config["gate_bias"], -np.inf)


# --------------------------------------------------------------------------- noise of the training gate


def splitmix64(x: ArrayLike) -> NDArray[np.uint64]:
    """One step of the splitmix64 generator on each number, modulo 2^64."""
    with np.errstate(over="ignore"):
        z = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def noise_key(seed: int, *words: int) -> np.uint64:
    """key = splitmix64(seed), then key = splitmix64(key ^ w) for every word."""
    key = splitmix64(seed % 2**64)
    for word in words:
        key = splitmix64(key ^ np.uint64(word))
    return key


def uniform_row(key: NDArray[np.uint64], n: int) -> Array:
    """n uniform numbers in (0, 1) for every key; keys (...), numbers (..., n).

    With k0, k1 the low and high half of key, modulo 2^32 and for each key position j:
        x = j * 0x9E3779B9 + k0;  x ^= x >> 16;  x *= 0x7FEB352D;  x ^= x >> 15;  x += k1;
        x *= 0x846CA68B;  x ^= x >> 16;  u = ((x >> 9) + 1/2) / 2^23
    """
    key = np.asarray(key, np.uint64)[..., None]
    low, high = key.astype(np.uint32), (key >> np.uint64(32)).astype(np.uint32)
    x = np.arange(n, dtype=np.uint32) * np.uint32(0x9E3779B9) + low
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = ((x ^ (x >> np.uint32(15))) + high) * np.uint32(0x846CA68B)
    x = x ^ (x >> np.uint32(16))
    return ((x >> np.uint32(9)).astype(np.float64) + 0.5) / 2**23


def gate_noise(seed: int, step: int, sequence: int, layer: int, n_head: int, n_tokens: int) -> Array:
    """Logistic noise (H,T,T) [head, query, key]: log(u / (1 - u)), u the row of numbers of
    (seed, step, sequence, layer, head, query)."""
    key = splitmix64(noise_key(seed, step, sequence, layer) ^ np.arange(n_head, dtype=np.uint64))
    u = uniform_row(splitmix64(key[:, None] ^ np.arange(n_tokens, dtype=np.uint64)), n_tokens)
    return np.log(u / (1 - u))


DROPPED = ("entries", "heads", "attn_out", "mlp_out")


def dropout_masks(
    config: Mapping, options: Options, step: int, sequence: int, n_tokens: int
) -> dict[str, Array]:
    """What dropout multiplies a sequence's quantities by: 0, or 1 / (1 - rate) for what is kept.

    Keys are noise_key(seed, step, sequence, layer, 2^32 + i, at), i being the place in `DROPPED`; an entry
    (head, query, key) is dropped where the number at `key` of the row of (..., head, query) is below the
    rate, a head where (key >> 11 + 1/2) / 2^53 of (..., head) is, a value of an output at (position, neuron)
    where the number at `neuron` of the row of (..., position) is. Masks of entries and heads multiply."""
    L, H, E = config["n_layer"], config["n_head"], config["d_model"]
    rates = dict(zip(DROPPED, options.dropout, strict=True))
    pattern = np.ones((L, H, n_tokens, n_tokens))
    outputs = {name: np.ones((L, n_tokens, E)) for name in ("attn_out", "mlp_out")}
    for layer in range(L):

        def key(what: str, at: int, layer: int = layer) -> np.uint64:
            return noise_key(options.seed, step, sequence, layer, 2**32 + DROPPED.index(what), at)

        for head in range(H):
            rows = splitmix64(key("entries", head) ^ np.arange(n_tokens, dtype=np.uint64))
            rate = rates["entries"][layer]
            pattern[layer, head] *= (uniform_row(rows, n_tokens) > rate) / (1 - rate)
            rate = rates["heads"][layer]
            u = (float(key("heads", head) >> np.uint64(11)) + 0.5) / 2**53
            pattern[layer, head] *= (u > rate) / (1 - rate)
        for name, mask in outputs.items():
            rate = rates[name][layer]
            for position in range(n_tokens):
                mask[layer, position] *= (uniform_row(key(name, position), E) > rate) / (1 - rate)
    return {"pattern": pattern, **outputs}


def entry_kinds(n_tokens: int) -> Array:
    """(T,T) [query, key]: 0 self, 1 the previous token, 2 the first token, 3 others; the first that fits."""
    query, key = np.indices((n_tokens, n_tokens))
    return np.select([query == key, query == key + 1, key == 0], [0, 1, 2], 3)


def noisy_gate(noise: Array) -> oracle.Gate:
    """The gate in training: 1 where g + noise > 0. noise (L,H,T,T) of one sequence."""
    return lambda layer, g: (g + noise[layer] > 0).astype(np.float64)


# ---------------------------------------------------------------------------------- one training step


@dataclass
class TrainingState:
    """What a resume needs: weights, Adam moments, counters, and the multiplier lambda."""

    weights: dict[str, Array]
    first: dict[str, Array] = field(default_factory=dict)
    second: dict[str, Array] = field(default_factory=dict)
    step_count: int = 0
    multiplier: float = 1.0
    ema: float = float("nan")

    def __post_init__(self) -> None:
        for name, value in self.weights.items():
            self.first.setdefault(name, np.zeros_like(value))
            self.second.setdefault(name, np.zeros_like(value))


@dataclass(frozen=True)
class Options:
    """Arguments of one step. gate_bias and edge_weight have one number per layer; None means the
    config's gate bias and ones. kind_weight: the same for self edges, those to the previous and to the first
    token; None: edge_weight. dropout: rates per layer of `DROPPED`; empty: none."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 0.0
    seed: int = 0
    gate_noise: bool = True
    gate_bias: Sequence[float] | None = None
    edge_weight: Sequence[float] | None = None
    kind_weight: Sequence[Sequence[float] | None] = (None, None, None)
    dropout: Sequence[Sequence[float]] = ()
    tau: float = 0.0
    geco_rate: float = 0.0
    geco_clip: float = 1.0
    geco_ema: float = 0.95
    geco_relative: bool = True
    lambda_min: float = 0.0
    lambda_max: float = 1e9


Micro = tuple[Array, Array, Array, Array]


def sequences_of(micro: Sequence[Micro]) -> list[tuple[Array, Array, Array]]:
    """(tokens, targets, weights) of every sequence of a step, micro-batch after micro-batch; the
    position in this list is the `sequence` of the noise. A micro-batch is (tokens (N,), offsets (B+1,),
    targets (N,), weights (N,))."""
    found = []
    for tokens, offsets, targets, weights in micro:
        for begin, end in itertools.pairwise(offsets):
            found.append((tokens[begin:end], targets[begin:end], weights[begin:end]))
    return found


def loss_and_gradients(
    config: Mapping,
    weights: Mapping[str, Array],
    micro: Sequence[Micro],
    options: Options,
    *,
    step: int = 0,
    multiplier: float = 1.0,
) -> tuple[dict[str, float], dict[str, Array]]:
    """The loss of one step, its parts, and its gradient for every parameter.

    CE = sum w ce / sum w over all tokens of the step.
    dense:  loss = CE
    gated:  loss = (E / N + lambda (CE - tau)) / (1 + lambda),  lambda = multiplier,
            E = sum over layers l, heads, causal pairs of price sigmoid(g),  g = s + gate_bias_l, price the
            kind_weight_l of the pair's kind, or else edge_weight_l;
            N = L H sum over sequences of T (T + 1) / 2;  gate m = 1[g + noise > 0],
            noise 0 without options.gate_noise.
    """
    L, H = config["n_layer"], config["n_head"]
    bias = np.full(L, config["gate_bias"]) if options.gate_bias is None else np.asarray(options.gate_bias)
    others = np.ones(L) if options.edge_weight is None else np.asarray(options.edge_weight)
    prices = np.stack([others if w is None else np.asarray(w) for w in (*options.kind_weight, others)])
    sequences = sequences_of(micro)
    total_weight = sum(w.sum(dtype=np.float64) for _, _, w in sequences)
    n_pairs = L * H * sum(len(t) * (len(t) + 1) // 2 for t, _, _ in sequences)
    ce_part = multiplier / (1 + multiplier) if config["gated"] else 1.0
    edge_part = 1 / (1 + multiplier) / n_pairs
    ce = expected = weighted = n_open = n_self = 0.0
    gradients = {name: np.zeros_like(value) for name, value in weights.items()}
    for index, (tokens, targets, w) in enumerate(sequences):
        T = len(tokens)
        noise = np.stack([gate_noise(options.seed, step, index, layer, H, T) for layer in range(L)])
        noise *= options.gate_noise
        thin = dropout_masks(config, options, step, index, T) if options.dropout else None
        run = oracle.forward(config, weights, tokens, gate=noisy_gate(noise), gate_bias=bias, thin=thin)
        share = np.asarray(w, np.float64) / total_weight
        ce += share @ oracle.token_loss(run["logits"], targets)
        dlogits = oracle.softmax(run["logits"])
        dlogits[np.arange(T), targets] -= 1.0
        dlogits *= ce_part * share[:, None]
        g = dedge = None
        if config["gated"]:
            g = np.where(oracle.gate_mask(config, T), run["scores"] + bias[:, None, None, None], -np.inf)
            price = prices.T[:, None, entry_kinds(T)]
            edges = oracle.sigmoid(g)
            expected += edges.sum()
            weighted += (edges * price).sum()
            n_open += run["gate"].sum()
            n_self += np.diagonal(run["gate"], axis1=2, axis2=3).sum()
            dedge = edge_part * price * oracle.sigmoid_slope(g)
            g = g + noise
        found = backward(config, weights, tokens, run, dlogits, gate_logits=g, edge_gradient=dedge, thin=thin)
        for name, value in found.parameters.items():
            gradients[name] += value
    loss = ce
    if config["gated"]:
        loss = (weighted / n_pairs + multiplier * (ce - options.tau)) / (1 + multiplier)
    parts = {"loss": loss, "ce": ce, "expected_edges": expected / n_pairs, "open_edges": n_open / n_pairs,
             "open_self": n_self / n_pairs}  # fmt: skip
    return parts, gradients


def train_step(
    config: Mapping, state: TrainingState, micro: Sequence[Micro], options: Options
) -> dict[str, float]:
    """One optimiser step: changes `state` in place, returns what the step reports.

    Gradients are scaled by clip / norm if their global norm exceeds clip > 0; then AdamW and GECO."""
    result, gradients = loss_and_gradients(
        config, state.weights, micro, options, step=state.step_count, multiplier=state.multiplier
    )
    norm = np.sqrt(sum((value**2).sum() for value in gradients.values()))
    result |= {"step": state.step_count, "multiplier": state.multiplier, "grad_norm": norm}
    scale = options.clip / norm if options.clip > 0 and norm > options.clip else 1.0
    state.step_count += 1
    for name, gradient in gradients.items():
        adamw(state, name, gradient * scale, options)
    if config["gated"]:
        geco(state, result["ce"], options)
    return result | {"ema": state.ema}


def adamw(state: TrainingState, name: str, gradient: Array, options: Options) -> None:
    """t = step_count, counted from 1 here:
    m = beta1 m + (1 - beta1) grad, v = beta2 v + (1 - beta2) grad^2
    p -= lr (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + decay p), decay only if ndim >= 2."""
    m, v, t = state.first[name], state.second[name], state.step_count
    m += (1 - options.beta1) * (gradient - m)
    v += (1 - options.beta2) * (gradient**2 - v)
    update = m / (1 - options.beta1**t) / (np.sqrt(v / (1 - options.beta2**t)) + options.eps)
    weight = state.weights[name]
    decay = options.weight_decay if weight.ndim >= 2 else 0.0
    weight -= options.lr * (update + decay * weight)


def geco(state: TrainingState, ce: float, options: Options) -> None:
    """ema = geco_ema ema + (1 - geco_ema) x, and ema = x in the first step;
    x = CE, violation = ema / tau - 1 (relative), or x = CE - tau, violation = ema (absolute);
    lambda *= exp(rate * clip(violation, -geco_clip, geco_clip)), then clamped to its bounds."""
    x = ce if options.geco_relative else ce - options.tau
    first = np.isnan(state.ema)
    state.ema = float(x if first else options.geco_ema * state.ema + (1 - options.geco_ema) * x)
    violation = state.ema / options.tau - 1 if options.geco_relative else state.ema
    step = options.geco_rate * np.clip(violation, -options.geco_clip, options.geco_clip)
    state.multiplier = float(np.clip(state.multiplier * np.exp(step), options.lambda_min, options.lambda_max))
