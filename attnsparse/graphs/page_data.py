"""The numbers inside a graph's page as JSON: nodes, edges, heads behind each edge, attention maps."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .._engine import core_for
from ..errors import printable
from ..items import shortened, token_label
from .layout import PLAIN_KINDS, Edges

if TYPE_CHECKING:
    from .graph import Graph

TOP = 8  # heads named for each edge; the others are one sum
N_DIRECT = 12  # sources in the table of logits
_LABEL_SIGNS = 300
_BLOCK_BYTES = 64 << 20  # of loadings at a time


def page_data(graph: Graph, edges: Edges, base: int) -> dict[str, Any]:
    """What the page's script reads. Numbers are the graph's own, NaN is None; nodes keep their numbers.

    model, transcoders: names. token_ids: the prompt. nodes: lists of id, kind, layer, position, feature,
    label, value, probability, influence. edges: source, target, weight by falling |weight|, and of each at
    most TOP heads with the largest |loading| (layer * n_head + head), their loadings and entries of the
    pattern, the sum of the other heads, direct and remainder; none of these for a graph that cannot split
    edges (`Graph.has_heads`). maps: head -> its pattern, in bytes from 0 to 255, the lower triangle row by
    row.
    """
    influence = np.full(len(graph), np.nan) if graph.influence is None else graph.influence
    heads = _heads(graph, edges) if graph.has_heads else {}
    return {
        "version": 1,
        "n_layer": graph.n_layer,
        "n_head": graph.n_head,
        "base": base,
        "model": printable(graph.model_name),
        "transcoders": printable(graph.transcoders_name),
        "token_ids": graph.tokens.tolist(),
        "tokens": [shown_token(graph, i) for i in range(len(graph.tokens))],
        "nodes": {
            "id": [printable(name) for name in graph.ids],
            "kind": graph.kind,
            "layer": graph.layer.tolist(),
            "position": graph.position.tolist(),
            "feature": graph.feature.tolist(),
            "label": [shown_label(graph, i, base) for i in range(len(graph))],
            "value": numbers(graph.value),
            "probability": numbers(graph.probability),
            "influence": numbers(influence),
        },
        "edges": {
            "source": edges.source.tolist(),
            "target": edges.target.tolist(),
            "weight": numbers(edges.weight),
        }
        | heads,
        "maps": _maps(graph, {head for listed in heads.get("heads", ()) for head in listed}),
    }


def direct_edges(whole: Graph, shown: Graph) -> dict[str, Any]:
    """Edges into the logits before pruning, which keeps few of those of an unlikely token.

    source: the nodes of `shown` with the largest |weight| on any logit, by falling |weight|, N_DIRECT of all
    and N_DIRECT that are no biases or positions; weight: for each one a list with a number for each logit.
    """
    number = {name: i for i, name in enumerate(shown.ids)}
    kept = np.array([number.get(name, -1) for name in whole.ids])
    weights = np.zeros((len(shown), len(whole.logits)), whole.weights.dtype)
    for column, target in enumerate(whole.logits.tolist()):
        sources, values = whole.incoming(target)
        here = kept[sources] >= 0
        weights[kept[sources[here]], column] = values[here]
    size = np.abs(weights).max(axis=1, initial=0)
    order = np.argsort(-size, kind="stable")[: np.count_nonzero(size)]
    words = [node for node in order.tolist() if shown.kind[node] not in PLAIN_KINDS]
    chosen = {*order[:N_DIRECT].tolist(), *words[:N_DIRECT]}
    listed = [node for node in order.tolist() if node in chosen]
    return {"source": listed, "weight": [numbers(weights[node]) for node in listed]}


def shown_label(graph: Graph, node: int, base: int) -> str:
    """A node's label on one line; plain labels of positions count from `base`."""
    label, position = graph.labels[node], int(graph.position[node])
    if graph.kind[node] == "position" and label == f"position {position}":
        return f"position {position + base}"
    return shortened(label, _LABEL_SIGNS)


def shown_token(graph: Graph, position: int) -> str:
    """The token at a position."""
    return shortened(token_label(graph.token_strings[position]), _LABEL_SIGNS)


def numbers(values: np.ndarray) -> list[float | None]:
    """The shortest decimals that are read back as the same numbers; None for NaN and infinities."""
    return [float(str(value)) if np.isfinite(value) else None for value in values]


def _heads(graph: Graph, edges: Edges) -> dict[str, Any]:
    found: dict[str, list[Any]] = {
        name: [] for name in ("heads", "loadings", "patterns", "rest", "direct", "remainder")
    }
    for i, by_head in _loadings(graph, edges):
        key, query = graph.position[edges.source[i]], graph.position[edges.target[i]]
        weight = np.float64(edges.weight[i])
        parts = np.argsort(-np.abs(by_head), kind="stable")[:TOP]
        parts = parts[by_head[parts] != 0]
        left = weight - by_head.sum()
        rest = by_head.sum() - by_head[parts].sum()
        direct, remainder = (left, 0.0) if key == query else (0.0, left)
        entries = graph.pattern.reshape(-1, *graph.pattern.shape[2:])[parts, query, key]
        found["heads"].append(parts.tolist())
        found["loadings"].append([_rounded(by_head[part]) for part in parts])
        found["patterns"].append([_rounded(entry) for entry in entries])
        for name, value in (("rest", rest), ("direct", direct), ("remainder", remainder)):
            found[name].append(_rounded(value))
    return found


def _rounded(value: float) -> float:
    """Seven digits, which is what float32 holds."""
    return float(f"{value:.7g}")


def _loadings(graph: Graph, edges: Edges) -> Iterator[tuple[int, np.ndarray]]:
    """(edge, loading of each head float64 [L * H]), 0 for a source without a position; see `Graph.heads`."""
    core = core_for(str(graph.carried.dtype))
    row = np.full(len(graph), -1)
    row[graph.targets] = np.arange(len(graph.targets))
    n_heads = graph.n_layer * graph.n_head
    block = max(1, _BLOCK_BYTES // (8 * n_heads))
    for first in range(0, len(edges), block):
        source, target = edges.source[first : first + block], edges.target[first : first + block]
        placed = np.flatnonzero(source < len(graph.carried))
        pairs = np.stack([source[placed], row[target[placed]]], axis=1)
        places = np.stack([graph.position[source[placed]], graph.position[target[placed]]], axis=1)
        by_head = core.graph_loadings(
            graph.carried, graph.received, graph.received_alone, graph.pattern, pairs,
            places.astype(np.int64), np.ones(len(placed)),
        ).reshape(len(placed), n_heads)  # fmt: skip
        every = np.zeros((len(source), n_heads))
        every[placed] = by_head
        yield from enumerate(every, first)


def _maps(graph: Graph, heads: set[int]) -> dict[str, str]:
    rows, columns = np.tril_indices(len(graph.tokens))
    patterns = graph.pattern.reshape(-1, *graph.pattern.shape[2:])
    return {
        str(head): base64.b64encode(
            np.rint(255 * np.clip(patterns[head][rows, columns], 0, 1)).astype(np.uint8).tobytes()
        ).decode("ascii")
        for head in sorted(heads)
    }
