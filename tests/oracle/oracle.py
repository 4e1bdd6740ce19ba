"""The whole model in plain NumPy float64: the executable specification of the forward pass.

Nothing here is fast and nothing is shared with the package: this file and the C core are two
independent writings of the same formulas, and the tests compare them. Backward pass and training
are in oracle_training.py.

Letters: V vocabulary, L layers, H heads, D head width, C = H * D, E residual width, M MLP width,
T tokens of one sequence. q and k index query and key positions. Parameters have their Hugging Face
GPT-2 names; a parameter that is absent from the dictionary (a bias, the untied unembedding) is
not used. A configuration is a plain dictionary, see `full_config`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Record = dict[str, Array]
Gate = Callable[[int, Array], Array]

DEFAULTS = {
    "n_layer": 2, "n_head": 2, "d_model": 8, "d_head": 4, "d_mlp": 16, "n_ctx": 12, "n_vocab": 11,
    "activation": "gelu_new", "ln_eps": 1e-5, "gated": False, "gate_bias": 0.0, "self_closed": False,
    "tied": True,
    "bias": True, "unembed_bias": False, "scale_attn": True, "scale_by_inverse_layer": False,
    "window": 0, "top_k": 0, "min_weight": 0.0,
}  # fmt: skip

PER_LAYER = (
    "pattern", "scores", "gate", "q", "k", "v", "z", "result", "resid_pre", "resid_mid", "resid_post",
    "attn_out", "mlp_out", "mlp_pre", "mlp_post", "ln1_scale", "ln1_normalized", "ln2_scale",
    "ln2_normalized",
)  # fmt: skip


def full_config(**changes) -> dict:
    """`DEFAULTS` with some values changed; d_head follows d_model / n_head unless it is given."""
    unknown = set(changes) - set(DEFAULTS)
    if unknown:
        raise KeyError(f"unknown config keys {sorted(unknown)}")
    config = DEFAULTS | changes
    if "d_head" not in changes:
        config["d_head"] = config["d_model"] // config["n_head"]
    return config


def parameter_shapes(config: Mapping) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter, in the order of the model. Linear weights are (in, out);
    the columns of c_attn are q | k | v, each head-major."""
    E, M, V = config["d_model"], config["d_mlp"], config["n_vocab"]
    C = config["n_head"] * config["d_head"]
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (V, E), "wpe.weight": (config["n_ctx"], E)}
    layer_weights = {
        "ln_1": (E,), "attn.c_attn": (E, 3 * C), "attn.c_proj": (C, E),
        "ln_2": (E,), "mlp.c_fc": (E, M), "mlp.c_proj": (M, E),
    }  # fmt: skip
    for layer in range(config["n_layer"]):
        for part, shape in layer_weights.items():
            shapes[f"h.{layer}.{part}.weight"] = shape
            shapes[f"h.{layer}.{part}.bias"] = shape[-1:]
    shapes |= {"ln_f.weight": (E,), "ln_f.bias": (E,)}
    if not config["bias"]:
        shapes = {name: shape for name, shape in shapes.items() if not name.endswith(".bias")}
    if not config["tied"]:
        shapes["lm_head.weight"] = (V, E)
    if config["unembed_bias"]:
        shapes["lm_head.bias"] = (V,)
    return shapes


def random_model(rng: np.random.Generator, config: Mapping) -> dict[str, Array]:
    """Random weights whose activations have size about 1, so that gates are mixed and no term of any
    formula is negligible. All biases are non-zero, LayerNorm weights scatter around 1."""
    weights = {}
    for name, shape in parameter_shapes(config).items():
        if name.endswith("bias"):
            value = 0.3 * rng.standard_normal(shape)
        elif len(shape) == 1:
            value = 1.0 + 0.2 * rng.standard_normal(shape)
        elif name.startswith(("wte", "wpe", "lm_head")):
            value = 0.7 * rng.standard_normal(shape)
        else:
            value = rng.standard_normal(shape) / math.sqrt(shape[0])
        weights[name] = value
    return weights


# --------------------------------------------------------------------------------------- pieces


def sigmoid(x: ArrayLike) -> Array:
    """1 / (1 + exp(-x)), without overflow and with full relative accuracy for x << 0."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(x, np.float64)))


def sigmoid_slope(x: ArrayLike) -> Array:
    """sigmoid'(x) = sigmoid(x) sigmoid(-x)."""
    return sigmoid(x) * sigmoid(-np.asarray(x))


def activation(kind: str, x: Array) -> Array:
    """relu: max(x, 0).   gelu: x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2.
    gelu_new: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    if kind == "relu":
        return np.maximum(x, 0.0)
    if kind == "gelu":
        return x * normal_cdf(x)
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def activation_slope(kind: str, x: Array) -> Array:
    """Derivative of `activation`.   relu: 1[x > 0].   gelu: Phi(x) + x phi(x).
    gelu_new, with t = tanh(u): (1 + t) / 2 + x (1 - t^2) u' / 2, u' = sqrt(2/pi) (1 + 3*0.044715 x^2)."""
    if kind == "relu":
        return (x > 0).astype(np.float64)
    if kind == "gelu":
        return normal_cdf(x) + x * np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    root = math.sqrt(2 / math.pi)
    t = np.tanh(root * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * root * (1 + 3 * 0.044715 * x**2)


def normal_cdf(x: Array) -> Array:
    """Phi(x) = erfc(-x / sqrt 2) / 2, by the standard library, one number at a time."""
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x.ravel()]).reshape(x.shape)


def layer_norm(x: Array, eps: float) -> tuple[Array, Array]:
    """scale = sqrt(mean((x - mean x)^2) + eps), shape of x without its last axis, and
    normalized = (x - mean x) / scale, before the LayerNorm's own weight and bias."""
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1) + eps)
    return centred / scale[..., None], scale


def softmax(x: Array) -> Array:
    """exp(x) / sum exp(x) over the last axis; an entry of -inf gives exactly 0."""
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def log_softmax(x: Array) -> Array:
    """x - log sum exp(x) over the last axis."""
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def linear(weights: Mapping, name: str, x: Array) -> Array:
    """x W + b, with W (in, out); no b if the model has none."""
    return x @ weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)


def affine(weights: Mapping, name: str, normalized: Array) -> Array:
    """normalized * weight + bias: the second half of a LayerNorm."""
    return normalized * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)


def causal_mask(n_tokens: int) -> NDArray[np.bool_]:
    """mask[q, k] = k <= q."""
    return np.tri(n_tokens, dtype=bool)


def score_factor(config: Mapping, layer: int) -> float:
    """scores = factor * (q . k); factor = 1 / sqrt(D) if scale_attn, and / (layer + 1) if
    scale_by_inverse_layer."""
    factor = 1 / math.sqrt(config["d_head"]) if config["scale_attn"] else 1.0
    return factor / (layer + 1) if config["scale_by_inverse_layer"] else factor


def kept_scores(config: Mapping, scores: Array) -> Array:
    """(H,T,T) with -inf for entries that the softmax is not over: those before the window, then all but the
    top_k largest, then those that have less than min_weight of the softmax and are not the largest."""
    scores = scores.copy()
    for row in scores.reshape(-1, scores.shape[-1]):
        query = int(np.flatnonzero(~np.isneginf(row))[-1])
        if config["window"]:
            row[: max(query + 1 - config["window"], 0)] = -np.inf
        if 0 < config["top_k"] <= query:
            row[row < np.sort(row)[-config["top_k"]]] = -np.inf
        row[(softmax(row) < config["min_weight"]) & (row < row.max())] = -np.inf
    return scores


def gate_mask(config: Mapping, n_tokens: int) -> NDArray[np.bool_]:
    """mask[q, k]: a score may open the gate, k < q with self_closed, else k <= q."""
    return np.tri(n_tokens, k=-1 if config["self_closed"] else 0, dtype=bool)


def hard_gate(layer: int, g: Array) -> Array:
    """The gate at evaluation: 1 where g > 0, else 0."""
    return (g > 0).astype(np.float64)


def unembedding(config: Mapping, weights: Mapping) -> Array:
    """(V, E): wte if tied, else lm_head."""
    return weights["wte.weight" if config["tied"] else "lm_head.weight"]


# ---------------------------------------------------------------------------------- the forward pass


def forward(
    config: Mapping,
    weights: Mapping[str, Array],
    tokens: ArrayLike,
    *,
    gate: Gate = hard_gate,
    gate_bias: ArrayLike | None = None,
    inject: Mapping[str, Array] | None = None,
    thin: Mapping[str, Array] | None = None,
) -> Record:
    """One sequence through the model; returns every quantity that a Run can record.

    tokens (T,) integers. gate(layer, g) -> m in a gated model, g (H,T,T) being the gate logits.
    gate_bias: one number per layer instead of config["gate_bias"]. inject: name -> array added to
    the quantity of that name where it is computed (for derivatives with respect to activations).
    thin: name -> what dropout multiplies that quantity by: pattern, attn_out and mlp_out.

    Per layer l, x = resid_pre[l]:
        q, k, v = LN1(x) W_QKV + b           scores = factor * q.k for k <= q, else -inf
        pattern = softmax(scores) * m        m = gate(scores + gate_bias) if gated, else 1;
                                             0 for k = q with self_closed
        z = pattern v                        resid_mid = x + z W_O + b_O
        mlp_post = act(LN2(resid_mid) W_in + b_in)
        resid_post = resid_mid + mlp_post W_out + b_out
    and logits = LN_f(resid_post[L-1]) W_U^T + b_U. A pattern row is never renormalised.
    """
    tokens = np.asarray(tokens, np.int64)
    inject, thin = inject or {}, thin or {}
    biases = np.full(config["n_layer"], config["gate_bias"]) if gate_bias is None else np.asarray(gate_bias)
    run: Record = {"embed": weights["wte.weight"][tokens], "pos_embed": weights["wpe.weight"][: len(tokens)]}
    layers: dict[str, list[Array]] = {name: [] for name in PER_LAYER}

    def keep(name: str, layer: int, value: Array) -> Array:
        value = value + inject[name][layer] if name in inject else value
        value = value * thin[name][layer] if name in thin else value
        layers[name].append(value)
        return value

    x = run["embed"] + run["pos_embed"]
    for layer in range(config["n_layer"]):
        x = keep("resid_pre", layer, x)
        attended = _attention(config, weights, layer, x, gate, biases[layer], keep)
        x = keep("resid_mid", layer, x + attended)
        x = keep("resid_post", layer, x + _mlp(config, weights, layer, x, keep))
    run |= {name: np.stack(values) for name, values in layers.items()}
    run["gate"] = run["gate"].astype(bool) if gate is hard_gate else run["gate"]
    run["ln_final_normalized"], run["ln_final_scale"] = layer_norm(x, config["ln_eps"])
    final = affine(weights, "ln_f", run["ln_final_normalized"])
    run["logits"] = final @ unembedding(config, weights).T + weights.get("lm_head.bias", 0.0)
    run["token_loss"] = token_loss(run["logits"][:-1], tokens[1:])
    run["loss"] = run["token_loss"].mean() if len(tokens) > 1 else np.float64(np.nan)
    return run


def _attention(config, weights, layer, x, gate, gate_bias, keep) -> Array:
    """attn_out (T,E) of one layer from x = resid_pre (T,E); see `forward`."""
    n_tokens, heads = len(x), (config["n_head"], config["d_head"])
    normalized, scale = layer_norm(x, config["ln_eps"])
    keep("ln1_scale", layer, scale)
    keep("ln1_normalized", layer, normalized)
    block = linear(weights, f"h.{layer}.attn.c_attn", affine(weights, f"h.{layer}.ln_1", normalized))
    q, k, v = (keep(name, layer, part.reshape(n_tokens, *heads))
               for name, part in zip("qkv", np.split(block, 3, axis=1), strict=True))  # fmt: skip
    mask = causal_mask(n_tokens)
    scores = np.where(mask, np.einsum("qhd,khd->hqk", q, k) * score_factor(config, layer), -np.inf)
    scores = keep("scores", layer, scores)
    scores = kept_scores(config, scores)
    m = 1.0
    if config["gated"]:
        m = gate(layer, np.where(gate_mask(config, n_tokens), scores + gate_bias, -np.inf))
    m = keep("gate", layer, np.where(np.isneginf(scores), 0.0, m))
    pattern = keep("pattern", layer, softmax(scores) * m)
    z = keep("z", layer, np.einsum("hqk,khd->qhd", pattern, v))
    w_o = weights[f"h.{layer}.attn.c_proj.weight"].reshape(*heads, -1)
    keep("result", layer, np.einsum("qhd,hde->qhe", z, w_o))
    return keep("attn_out", layer, linear(weights, f"h.{layer}.attn.c_proj", z.reshape(n_tokens, -1)))


def _mlp(config, weights, layer, x, keep) -> Array:
    """mlp_out (T,E) of one layer from x = resid_mid (T,E); see `forward`."""
    normalized, scale = layer_norm(x, config["ln_eps"])
    keep("ln2_scale", layer, scale)
    keep("ln2_normalized", layer, normalized)
    pre = linear(weights, f"h.{layer}.mlp.c_fc", affine(weights, f"h.{layer}.ln_2", normalized))
    pre = keep("mlp_pre", layer, pre)
    post = keep("mlp_post", layer, activation(config["activation"], pre))
    return keep("mlp_out", layer, linear(weights, f"h.{layer}.mlp.c_proj", post))


def forward_batch(
    config: Mapping, weights: Mapping, sequences: Iterable[ArrayLike], **options
) -> list[Record]:
    """A ragged batch: every sequence by itself, no padding, positions from 0 in each."""
    return [forward(config, weights, tokens, **options) for tokens in sequences]


def token_loss(logits: Array, targets: ArrayLike) -> Array:
    """Cross-entropy per row: log sum exp(logits) - logits[target]. logits (N,V), targets (N,)."""
    targets = np.asarray(targets, np.int64)
    return -log_softmax(logits)[np.arange(len(targets)), targets]
