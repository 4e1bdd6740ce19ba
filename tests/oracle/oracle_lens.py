"""Logit lens, direct attribution, detectors and composition in plain NumPy float64.

From recorded arrays of the oracle's forward pass; every matrix is formed whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import oracle
from oracle import Array, Record


def heads_of(weights: Mapping[str, Array], config: Mapping, layer: int) -> dict[str, Array]:
    """W_Q, W_K, W_V (H,E,D), W_O (H,D,E), b_V (H,D) of a layer, cut out one head at a time."""
    n, d, c = config["n_head"], config["d_head"], config["n_head"] * config["d_head"]
    qkv, out = weights[f"h.{layer}.attn.c_attn.weight"], weights[f"h.{layer}.attn.c_proj.weight"]
    bias = weights.get(f"h.{layer}.attn.c_attn.bias", np.zeros(3 * c))
    found = {
        name: np.array([qkv[:, i * c + h * d : i * c + (h + 1) * d] for h in range(n)])
        for i, name in enumerate(("W_Q", "W_K", "W_V"))
    }
    found["W_O"] = np.array([out[h * d : (h + 1) * d] for h in range(n)])
    found["b_V"] = np.array([bias[2 * c + h * d : 2 * c + (h + 1) * d] for h in range(n)])
    return found


def logits_at(weights: Mapping[str, Array], config: Mapping, x: Array, scale: Array | None = None) -> Array:
    """Logits (T,V) of rows x (T,E) through the final LayerNorm; scale (T): in place of each row's own."""
    centred = x - x.mean(-1, keepdims=True)
    own = np.sqrt((centred**2).mean(-1) + config["ln_eps"])
    normalized = centred / (own if scale is None else scale)[:, None]
    out = normalized * weights["ln_f.weight"] + weights.get("ln_f.bias", 0)
    return out @ oracle.unembedding(config, weights).T + weights.get("lm_head.bias", 0)


def added(weights: Mapping[str, Array], record: Record, x: Array, at: int, unembed: Array) -> float:
    """What x (E), written at position `at`, adds to unembed (E) . the final LayerNorm with its scale held."""
    return float((x - x.mean()) / record["ln_final_scale"][at] * weights["ln_f.weight"] @ unembed)


def attribution(
    weights: Mapping[str, Array], config: Mapping, record: Record, at: int, right: int, wrong: int | None
) -> dict[tuple, float]:
    """{part: contribution} at one position: every part by itself, whatever a table puts together."""
    rows = oracle.unembedding(config, weights)
    unembed = rows[right] - (0 if wrong is None else rows[wrong])
    b_u = weights.get("lm_head.bias", np.zeros(len(rows)))
    zero = np.zeros(config["d_model"])

    def of(x: Array) -> float:
        return added(weights, record, x, at, unembed)

    found = {
        ("embed",): of(record["embed"][at]),
        ("pos_embed",): of(record["pos_embed"][at]),
        ("ln_final_bias",): float(weights.get("ln_f.bias", zero) @ unembed),
        ("unembed_bias",): float(b_u[right] - (0 if wrong is None else b_u[wrong])),
    }
    for layer in range(config["n_layer"]):
        head = heads_of(weights, config, layer)
        through_bias = zero
        for h in range(config["n_head"]):
            row = record["pattern"][layer][h, at]
            bias = head["b_V"][h] @ head["W_O"][h]
            through_bias = through_bias + row.sum() * bias
            for key in range(at + 1):
                value = record["v"][layer][key, h] - head["b_V"][h]
                found["head", layer, h, key] = of(row[key] * (value @ head["W_O"][h]))
        found["value_bias", layer] = of(through_bias)
        found["attn_bias", layer] = of(weights.get(f"h.{layer}.attn.c_proj.bias", zero))
        found["mlp_bias", layer] = of(weights.get(f"h.{layer}.mlp.c_proj.bias", zero))
        out = weights[f"h.{layer}.mlp.c_proj.weight"]
        for m in range(config["d_mlp"]):
            found["neuron", layer, m] = of(record["mlp_post"][layer][at, m] * out[m])
    return found


def detection(pattern: Array, wanted: Array, measure: str, first: bool, current: bool) -> float:
    """Score of one head's pattern (T,T); `first`, `current`: what is left out."""
    pattern, difference = pattern.copy(), np.abs(pattern - wanted)
    for array in (pattern, difference):
        if first:
            array[:, 0] = 0
        if current:
            np.fill_diagonal(array, 0)
    if measure == "abs":
        return 1 - difference.sum() / len(pattern)
    return (pattern * wanted).sum() / pattern.sum() if pattern.sum() > 0 else 0.0


def composition(weights: Mapping[str, Array], config: Mapping) -> Array:
    """(3,L,H,L,H) with every E x E matrix formed."""
    n, h = config["n_layer"], config["n_head"]
    layers = [heads_of(weights, config, layer) for layer in range(n)]
    ov = [[x["W_V"][i] @ x["W_O"][i] for i in range(h)] for x in layers]
    qk = [[x["W_Q"][i] @ x["W_K"][i].T for i in range(h)] for x in layers]
    scores = np.zeros((3, n, h, n, h))
    for a, i, b, j in np.ndindex(n, h, n, h):
        if a < b:
            for way, right in enumerate((qk[b][j], qk[b][j].T, ov[b][j])):
                norms = np.linalg.norm(ov[a][i]) * np.linalg.norm(right)
                scores[way, a, i, b, j] = np.linalg.norm(ov[a][i] @ right) / norms
    return scores
