"""The numbers inside a page of attention as JSON: models, prompts, entries of patterns, circuits, effects.

Entries are sent in one of two forms. "all": every entry with key <= query, the lower triangle row by row for
one head after the other. "open": only entries above 0, as lists; `start` says where those of each head begin
and `cell` is query * T + key. Arrays are base64 of little-endian numbers.
"""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

import numpy as np

from ..circuits.circuit import Circuit
from ..items import shortened, token_label
from ..model.run import Run

FULL_WEIGHT = 65535
"""The number that an entry of 1 is sent as; 0 is closed, and no open entry is sent as 0."""
_FULL_SCORE = 32767
_ALWAYS_ALL = 3_000_000  # entries up to which all are sent, so that closed gates have their scores
_TOKEN_SIGNS = 60
_NAME_SIGNS = 120


class Effects(NamedTuple):
    """Exact effects of n entries of one prompt: int32 [n, 4] layer, head, query, key; float64 [n]."""

    entries: np.ndarray
    values: np.ndarray


def prompt_data(run: Run) -> dict[str, Any]:
    """What all models share of one prompt."""
    return {
        "tokens": [shortened(token_label(token), _TOKEN_SIGNS) for token in run.token_strings],
        "text": None if run.prompt is None else shortened(run.prompt, 400),
    }


def model_data(run: Run, threshold: float, effects: list[Effects | None]) -> dict[str, Any]:
    """One model with the entries of each prompt; `effects` has one item for each."""
    config = run.model.config
    return {
        "name": shortened(run.model.name, _NAME_SIGNS),
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "gated": bool(config.gated),
        "gate_bias": float(config.gate_bias) if config.gated else 0.0,
        "value": "weight",
        "prompts": [_entries(run[i], threshold, effects[i]) for i in range(len(run))],
        "circuit": None,
    }


def _entries(run: Run, threshold: float, effects: Effects | None) -> dict[str, Any]:
    config, t = run.model.config, run.n_tokens
    n_heads = config.n_layer * config.n_head
    entries = open_entries(run)
    n_open = len(entries[-1])
    above = entries[-1] > threshold
    *places, weight = (array[above] for array in entries)
    scored = config.gated and {"q", "k"} <= set(run.recorded)
    n_all = n_heads * t * (t + 1) // 2
    every = n_all <= (_ALWAYS_ALL if scored else min(_ALWAYS_ALL, 3 * len(weight)))
    if every and threshold == 0 and "pattern" in run.recorded:
        sent = _all_form(run, t, scored)
    else:
        sent = _open_form(places, weight, n_heads, config.n_head, t)
        sent["score"], sent["score_scale"] = _scores(run, places) if scored else (None, 0.0)
    norms = run.value_norms()[1] if "v" in run.recorded else None
    return sent | {
        "n_open": n_open,
        "n_left_out": n_open - len(weight),
        "norm": None if norms is None else _packed(norms, "<f4"),
        "effects": None if effects is None else _effects_data(effects, n_heads, config.n_head, t),
    }


def open_entries(run: Run) -> tuple[np.ndarray, ...]:
    """Layer, head, query, key and weight of the entries above 0, in this order."""
    if "pattern" in run.recorded:
        found = np.nonzero(run.pattern)
        return *found, run.pattern[found]
    return run.edge_arrays()


def _all_form(run: Run, t: int, scored: bool) -> dict[str, Any]:
    query, key = np.tril_indices(t)
    weight = run.pattern[:, :, query, key]
    score, scale = None, 0.0
    if scored:
        layer, head, at = (index.ravel() for index in np.indices(weight.shape))
        score, scale = _scores(run, [layer, head, query[at], key[at]])
    return {"form": "all", "weight": _weights(weight), "score": score, "score_scale": scale}


def _open_form(
    places: list[np.ndarray], values: np.ndarray, n_heads: int, n_head: int, t: int
) -> dict[str, Any]:
    start, cell = _cells(places, n_heads, n_head, t)
    return {"form": "open", "start": start, "cell": cell, "weight": _weights(values)}


def _cells(places: list[np.ndarray], n_heads: int, n_head: int, t: int) -> tuple[str, str]:
    """Where the entries of each head begin, and query * T + key of each; they are in this order."""
    layer, head, query, key = (np.asarray(index, np.int64) for index in places)
    start = np.searchsorted(layer * n_head + head, np.arange(n_heads + 1))
    return _packed(start, "<u4"), _packed(query * t + key, "<u4")


def _weights(weight: np.ndarray) -> str:
    codes = np.rint(np.clip(weight, 0, 1) * FULL_WEIGHT)
    return _packed(np.where(weight > 0, np.maximum(codes, 1), 0), "<u2")


def _scores(run: Run, places: list[np.ndarray]) -> tuple[str, float]:
    """Scores as whole multiples of a scale."""
    scores, _ = run.entry_scores(*places)
    scale = float(np.abs(scores).max(initial=0.0)) / _FULL_SCORE or 1.0
    return _packed(np.rint(scores / scale), "<i2"), scale


def _effects_data(effects: Effects, n_heads: int, n_head: int, t: int) -> dict[str, Any]:
    order = np.lexsort(effects.entries.T[::-1])
    start, cell = _cells(list(effects.entries[order].T), n_heads, n_head, t)
    return {"start": start, "cell": cell, "value": _packed(effects.values[order], "<f4")}


def _packed(array: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, kind).tobytes()).decode("ascii")


# ---------------------------------------------------------------------------------------------- circuits


def circuit_data(circuit: Circuit, n_items: int) -> dict[str, Any]:
    """The best items of a circuit and its curve."""
    items = circuit.items[:n_items]
    first = circuit.needed(0.9).first if circuit.normalize != "none" else None
    return {
        "unit": circuit.unit,
        "width": items.shape[1],
        "items": _packed(items, "<i4"),
        "scores": _packed(circuit.scores[:n_items], "<f4"),
        "n_all": len(circuit),
        "first": first,
        "sizes": circuit.sizes.tolist(),
        "effect": [float(f"{value:.4g}") if np.isfinite(value) else None for value in circuit.effect],
        "about": shortened(
            f"{circuit.task_name}, {circuit.method}, {circuit.ablation} ablation, {circuit.metric}",
            _NAME_SIGNS,
        ),
        "normalize": circuit.normalize,
    }


def circuit_alone(circuit: Circuit, n_items: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A prompt and a model for a circuit without a run: what is shown are the sizes of its scores."""
    items = circuit.items[:n_items].astype(np.int64)
    n_layer, n_head = (int(circuit.items[:, i].max(initial=0)) + 1 for i in (0, 1))
    t = 1 + int(items[:, 2].max(initial=0)) if circuit.unit == "edge" else 1
    labels = circuit.position_labels
    shares = np.abs(circuit.scores[:n_items])
    shares = shares / shares.max(initial=0.0) if shares.max(initial=0.0) > 0 else shares
    if circuit.unit != "edge":
        items = np.pad(items[:, :2], ((0, 0), (0, 2)))
    order = np.lexsort(items.T[::-1])
    sent = _open_form(list(items[order].T), shares[order], n_layer * n_head, n_head, t)
    sent |= {"score": None, "score_scale": 0.0, "norm": None, "effects": None, "n_left_out": 0}
    named = [labels[i] if labels is not None and i < len(labels) else "" for i in range(t)]
    prompt = {
        "tokens": [shortened(token_label(name), _TOKEN_SIGNS) if name else "" for name in named],
        "text": None,
    }
    model = {
        "name": shortened(circuit.model_name, _NAME_SIGNS),
        "n_layer": n_layer,
        "n_head": n_head,
        "gated": False,
        "gate_bias": 0.0,
        "value": "|score|",
        "prompts": [sent | {"n_open": len(items)}],
        "circuit": circuit_data(circuit, n_items),
    }
    return prompt, model
