"""A pass whose activations may be replaced at every hook of `run_with_hooks`, in plain NumPy float64.

Nothing here is fast and nothing is shared with the package. `forward` computes one prompt and asks a function
about each activation as soon as it is there; everything after it is computed from what the function gives.

Letters as in oracle.py. What follows what:

    embed, pos_embed -> resid_pre[0] = embed + pos_embed
    ln*_scale -> ln*_normalized = (x - mean x) / scale -> weight and bias
    q, k -> scores (factor, -inf at later keys) -> gate (scores + gate bias > 0; dense: 1)
    scores, gate -> pattern = softmax(scores) * gate;  pattern, v -> z
    z -> result -> attn_out: the sum of the results plus the bias -> resid_mid = resid_pre + attn_out
    mlp_pre -> mlp_post -> mlp_out -> resid_post = resid_mid + mlp_out = resid_pre of the next layer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import oracle
from numpy.typing import ArrayLike
from oracle import Array

BLOCK = (
    "hook_resid_pre", "ln1.hook_scale", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v",
    "attn.hook_attn_scores", "attn.hook_sparse_mask", "attn.hook_pattern", "attn.hook_z", "attn.hook_result",
    "hook_attn_out", "hook_resid_mid", "ln2.hook_scale", "ln2.hook_normalized", "mlp.hook_pre",
    "mlp.hook_post", "hook_mlp_out", "hook_resid_post",
)  # fmt: skip

Change = Callable[[str, Array], Array]


def names(config: Mapping) -> list[str]:
    """All hooks, in the order in which a pass asks about them."""
    blocks = [f"blocks.{layer}.{hook}" for layer in range(config["n_layer"]) for hook in BLOCK]
    return ["hook_embed", "hook_pos_embed", *blocks, "ln_final.hook_scale", "ln_final.hook_normalized"]


def forward(
    config: Mapping, weights: Mapping[str, Array], tokens: ArrayLike, change: Change
) -> dict[str, Array]:
    """Every activation by hook name, without a batch axis, and logits (T, V)."""
    found: dict[str, Array] = {}

    def ask(name: str, value: Array) -> Array:
        found[name] = np.asarray(change(name, value))
        return found[name]

    tokens = np.asarray(tokens, np.int64)
    x = ask("hook_embed", weights["wte.weight"][tokens])
    x = x + ask("hook_pos_embed", weights["wpe.weight"][: len(tokens)])
    for layer in range(config["n_layer"]):
        at, here = f"blocks.{layer}.", f"h.{layer}."
        x = ask(at + "hook_resid_pre", x)
        normalized = _norm(config, at + "ln1.", x, ask)
        block = oracle.linear(
            weights, here + "attn.c_attn", oracle.affine(weights, here + "ln_1", normalized)
        )
        x = x + ask(at + "hook_attn_out", _attention(config, weights, layer, block, ask))
        x = ask(at + "hook_resid_mid", x)
        normalized = _norm(config, at + "ln2.", x, ask)
        pre = oracle.linear(weights, here + "mlp.c_fc", oracle.affine(weights, here + "ln_2", normalized))
        pre = ask(at + "mlp.hook_pre", pre)
        post = ask(at + "mlp.hook_post", oracle.activation(config["activation"], pre))
        x = x + ask(at + "hook_mlp_out", oracle.linear(weights, here + "mlp.c_proj", post))
        x = ask(at + "hook_resid_post", x)
    final = oracle.affine(weights, "ln_f", _norm(config, "ln_final.", x, ask))
    found["logits"] = final @ oracle.unembedding(config, weights).T + weights.get("lm_head.bias", 0.0)
    return found


def _norm(config, at: str, x: Array, ask: Change) -> Array:
    scale = ask(at + "hook_scale", oracle.layer_norm(x, config["ln_eps"])[1][:, None])
    return ask(at + "hook_normalized", (x - x.mean(-1, keepdims=True)) / scale)


def _attention(config, weights, layer: int, block: Array, ask: Change) -> Array:
    """The output of attention (T, E) from q, k and v side by side (T, 3 C)."""
    at, heads = f"blocks.{layer}.attn.hook_", (config["n_head"], config["d_head"])
    q, k, v = (
        ask(at + name, part.reshape(len(block), *heads))
        for name, part in zip("qkv", np.split(block, 3, axis=1), strict=True)
    )
    causal = oracle.causal_mask(len(block))
    scores = np.einsum("qhd,khd->hqk", q, k) * oracle.score_factor(config, layer)
    scores = ask(at + "attn_scores", np.where(causal, scores, -np.inf))
    is_open = scores + config["gate_bias"] > 0 if config["gated"] else np.ones(scores.shape, bool)
    mask = ask(at + "sparse_mask", oracle.gate_mask(config, len(block)) & is_open)
    z = np.einsum("hqk,khd->qhd", ask(at + "pattern", oracle.softmax(scores) * mask), v)
    z = ask(at + "z", z)
    w_o = weights[f"h.{layer}.attn.c_proj.weight"].reshape(*heads, -1)
    result = ask(at + "result", np.einsum("qhd,hde->qhe", z, w_o))
    return result.sum(1) + weights.get(f"h.{layer}.attn.c_proj.bias", 0.0)
