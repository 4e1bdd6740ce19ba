"""A graph made by hand, of the shape of a real one: no model and no transcoders are needed for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from attnsparse.graphs.graph import Graph

PROMPT = 'The opposite of "large" is "'
TOKENS = ("The", " opposite", " of", ' "', "large", '"', " is", ' "')
WORDS = ("large", "size", "opposite", "quotation mark opens", "say an adjective", "negation", "comparison")
HOSTILE = (
    "</script><script>window.hacked = 1</script>", '"><img src=x onerror="window.hacked = 2">',
    "<!--<script>", "{{script}}{{data}}", "'\"&amp;<b>", "\u2028]]>\u202e", "\ud800", "\\u003c/script>",
)  # fmt: skip
OUTPUTS = ("small", "tiny", "little", "big", "short")


def small_graph(
    n_features: int = 60,
    *,
    n_layer: int = 6,
    n_head: int = 4,
    strings: tuple[str, ...] = TOKENS,
    n_logits: int = 2,
    seed: int = 0,
    **changes: Any,
) -> Graph:
    """A graph whose edges add up to the values; later positions have more features, weights are heavy-tailed.

    changes: fields of the graph in place of what is made here.
    """
    rng = np.random.default_rng(seed)
    t = len(strings)
    places = sorted(
        {
            (int(rng.integers(n_layer)), int(t * rng.random() ** 0.4), int(rng.integers(5000)))
            for _ in range(n_features)
        }
    )
    layer, position, number = np.array(places, dtype=np.int32).T
    n = len(places)
    layers, positions = np.divmod(np.arange(n_layer * t), t)
    counts = (n, n_layer * t, t, t, 1, 1, n_logits)
    kind = np.repeat(("feature", "error", "token", "position", "bias", "other", "logit"), counts)
    layer = np.concatenate([layer, layers, np.full(2 * t + 2, -1), np.full(n_logits, n_layer)])
    last = np.full(n_logits, t - 1)
    position = np.concatenate([position, positions, np.tile(np.arange(t), 2), [-1, -1], last])
    tokens = np.arange(t) + 17
    blank = np.full(n_layer * t, -1)
    number = np.concatenate([number, blank, tokens, np.full(t + 2, -1), 900 + np.arange(n_logits)])
    start, source, weight = _edges(rng, kind, layer, position)
    value = np.full(len(kind), np.nan)
    for target in np.flatnonzero(np.diff(start)):
        value[target] = weight[start[target] : start[target + 1]].sum()
    probability = np.full(len(kind), np.nan)
    probability[len(kind) - n_logits :] = 0.6 * 0.4 ** np.arange(n_logits)
    real = {"dtype": np.float32}
    n_placed = n + n_layer * t + 2 * t
    return Graph(**{
        "model_name": "by hand", "model_digest": "0123456789abcdef" * 4, "transcoders_name": "made up",
        "scan": "made-up", "prompt": "".join(strings), "tokens": tokens.astype(np.int32),
        "token_strings": tuple(strings), "prepend_bos": False, "n_layer": n_layer, "n_head": n_head,
        "options": {"target": None, "max_feature_nodes": n, "n_active": 4 * n},
        "kind": tuple(map(str, kind)), "layer": layer.astype(np.int32), "position": position.astype(np.int32),
        "feature": number.astype(np.int32), "value": value.astype(np.float32),
        "probability": probability.astype(np.float32),
        "labels": _labels(kind, layer, position, number, strings, probability),
        "start": start, "source": source, "weights": weight.astype(np.float32),
        "closure": 3.1e-06, "closure_absolute": 1.2e-07,
        "pattern": _patterns(rng, n_layer, n_head, t),
        "carried": rng.standard_normal((n_placed, n_layer, n_head, 3), **real),
        "received": rng.standard_normal((n + n_logits, n_layer, n_head, 3), **real),
        "received_alone": rng.standard_normal((n + n_logits, n_layer, n_head, 3), **real),
    } | changes)  # fmt: skip


def _edges(
    rng: np.random.Generator, kind: np.ndarray, layer: np.ndarray, position: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every source below and not after a target sends to it, most of them little."""
    starts, sources, weights = [0], [], []
    for t in range(len(kind)):
        fits = np.zeros(len(kind), bool)
        if kind[t] in ("feature", "logit"):
            fits = (layer < layer[t]) & (position <= position[t]) & (kind != "logit")
        found = np.flatnonzero(fits)
        size = rng.standard_normal(len(found)) ** 5
        size[kind[found] == "error"] /= 8
        sources.append(found)
        weights.append(size)
        starts.append(starts[-1] + len(found))
    return np.array(starts, np.int64), np.concatenate(sources).astype(np.int32), np.concatenate(weights)


def _labels(
    kind: np.ndarray,
    layer: np.ndarray,
    position: np.ndarray,
    number: np.ndarray,
    strings: tuple[str, ...],
    probability: np.ndarray,
) -> tuple[str, ...]:
    found = []
    for i, name in enumerate(kind):
        match name:
            case "feature":
                plain = f"feature {number[i]} of layer {layer[i]}"
                found.append(plain if number[i] % 3 == 0 else WORDS[number[i] % len(WORDS)])
            case "error":
                found.append(f"error of layer {layer[i]}")
            case "token":
                found.append(f"token {strings[position[i]]!r}")
            case "position":
                found.append(f"position {position[i]}")
            case "logit":
                found.append(f"Output {OUTPUTS[(number[i] - 900) % 5]!r} (p={probability[i]:.3f})")
            case _:
                found.append({"bias": "biases", "other": "other features"}[str(name)])
    return tuple(found)


def _patterns(rng: np.random.Generator, n_layer: int, n_head: int, t: int) -> np.ndarray:
    scores = np.exp(3 * rng.standard_normal((n_layer, n_head, t, t))) * np.tril(np.ones((t, t)))
    return (scores / scores.sum(axis=-1, keepdims=True)).astype(np.float32)


def hostile_graph() -> Graph:
    """Every text of it would be code in a page that did not escape it."""
    plain = small_graph(40, strings=HOSTILE)
    labels = tuple(HOSTILE[i % len(HOSTILE)] for i in range(len(plain)))
    names = {
        "model_name": HOSTILE[0],
        "transcoders_name": HOSTILE[1],
        "scan": HOSTILE[2],
        "model_digest": HOSTILE[3],
    }
    return small_graph(40, strings=HOSTILE, labels=labels, options={HOSTILE[0]: HOSTILE[1]}, **names)
