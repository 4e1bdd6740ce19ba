"""Is the graph right about the model?  Nodes and attention entries are taken out of the real model, where
nothing is held, and the change of the logits is put beside what the graph predicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..items import Edge, Mlp, Resid
from .heads import factors
from .sources import Sources

if TYPE_CHECKING:
    import pandas as pd

    from ..model.model import Model
    from .graph import Graph

REMOVABLE = ("feature", "error", "token", "position")


def check(graph: Graph, nodes: Any, entries: Any, together: bool) -> pd.DataFrame:
    """See `Graph.check`."""
    import pandas as pd

    if graph.origin is None or graph.pruned is not None:
        raise ValueError(
            "a check needs the model: take the graph that attribution_graph gave, before pruning"
        )
    sources, run = graph.origin[0], graph.origin[0].features.run
    if sources.version != run.model._core.version:
        raise RuntimeError("the weights changed after the graph was made; make the graph anew")
    if run._altered:
        raise ValueError(
            f"a check needs a graph of the model itself; this one is of a run with {run._altered}"
        )
    if (nodes is None) == (entries is None):
        raise ValueError("give nodes=... or entries=..., one of them")
    rows = _node_rows(graph, nodes, together) if entries is None else _entry_rows(graph, entries, together)
    columns = ("removed", "target", "label", "predicted_edge", "predicted", "actual", "ratio")
    return pd.DataFrame([dict(zip(columns, row)) for row in rows], columns=columns)


def _rows(
    graph: Graph, name: str, logits: np.ndarray, direct: Sequence[float], total: Sequence[float]
) -> list[tuple]:
    """One row for each logit node; logits real [V]: those of the changed model."""
    changes = logit_values(graph, logits) - graph.value[graph.logits].astype(np.float64)
    return [
        (
            name,
            graph.ids[t],
            graph.labels[t],
            edge,
            whole,
            float(change),
            float(change) / whole if whole else np.nan,
        )
        for t, edge, whole, change in zip(graph.logits, direct, total, changes)
    ]


def logit_values(graph: Graph, logits: np.ndarray) -> np.ndarray:
    """float64: the values of the graph's logit nodes for other logits [V] of the last token."""
    from .targets import token_ids

    model, logits = graph.origin[0].features.run.model, logits.astype(np.float64)
    if graph.options["wrong"] is None:
        return logits[graph.feature[graph.logits]] - logits.mean()
    right, wrong = (token_ids(model, graph.options[name], name) for name in ("target", "wrong"))
    return np.array([logits[right].mean() - logits[wrong].mean()])


# ----------------------------------------------------------------------------------------------- nodes


def _node_rows(graph: Graph, nodes: Any, together: bool) -> list[tuple]:
    chosen = graph.nodes_of(nodes)
    for node in chosen:
        if graph.kind[node] not in REMOVABLE:
            kinds = ", ".join(REMOVABLE)
            raise ValueError(
                f"node {graph._id(node)!r} is no part of the model's run; {kinds} can be removed"
            )
    rows: list[tuple] = []
    for group in [chosen] if together else [np.array([node]) for node in chosen]:
        name = graph._id(group[0]) if len(group) == 1 else f"{len(group)} nodes"
        logits = run_without(graph, group)
        direct = [-graph.edge(group, int(t)) for t in graph.logits]
        total = [-graph.total(group, int(t)) for t in graph.logits]
        rows += _rows(graph, name, logits, direct, total)
    return rows


def run_without(graph: Graph, nodes: np.ndarray) -> np.ndarray:
    """real [V]: logits of the last token when what the nodes write is taken out of the residual stream.

    Layer by layer: what an MLP puts out in the changed run, less what is removed there.
    """
    sources, chosen = graph.origin
    run = sources.features.run
    numbers = np.concatenate([chosen, np.arange(len(sources.features), sources.n)])
    writes = np.flatnonzero(np.isin(sources.source, numbers[nodes]))
    return _logits(run.model, run.tokens, _patches(sources, run, writes))


def _patches(sources: Sources, run: Any, writes: np.ndarray) -> dict[Any, np.ndarray]:
    patch: dict[Any, np.ndarray] = {}
    start = (run.embed + run.pos_embed).copy()
    for layer in np.unique(sources.layer[writes]):
        here = writes[sources.layer[writes] == layer]
        if layer == 0:
            np.subtract.at(start, sources.position[here], sources.vectors[here])
            patch |= {Resid(0, int(p), "pre"): start[p] for p in np.unique(sources.position[here])}
            continue
        changed = (
            run.model.run(run.tokens, "mlp_out", logits="none", patch=patch or None).mlp_out[layer - 1].copy()
        )
        np.subtract.at(changed, sources.position[here], sources.vectors[here])
        patch[Mlp(int(layer) - 1)] = changed
    return patch


def _logits(model: Model, tokens: np.ndarray, patch: dict[Any, np.ndarray]) -> np.ndarray:
    return model.run(tokens, (), logits="last", patch=patch or None).logits


# --------------------------------------------------------------------------------------------- entries


def _entry_rows(graph: Graph, entries: Any, together: bool) -> list[tuple]:
    listed = list(entries) if isinstance(entries, Iterable) and not isinstance(entries, str) else [entries]
    if len(listed) == 4 and not any(isinstance(part, Iterable) for part in listed):
        listed = [tuple(listed)]  # (layer, head, query, key)
    last = len(graph.tokens) - 1
    edges = [Edge.parse(entry).within(graph.n_layer, graph.n_head, last + 1) for entry in listed]
    for edge in edges:
        if edge.query != last:
            raise ValueError(
                f"{edge.label}: only entries of the last position {last} lead to the logits without detour"
            )
    run = graph.origin[0].features.run
    values = run.model.run(run.tokens, "v", logits="none").v
    rows: list[tuple] = []
    for group in [edges] if together else [[edge] for edge in edges]:
        name = group[0].label if len(group) == 1 else f"{len(group)} entries"
        logits = run.model.run(run.tokens, (), logits="last", ablate=group).logits
        predicted = [_predicted(graph, group, values, int(t)) for t in graph.logits]
        rows += _rows(graph, name, logits, [p[0] for p in predicted], [p[1] for p in predicted])
    return rows


def _predicted(graph: Graph, edges: Sequence[Edge], values: np.ndarray, target: int) -> tuple[float, float]:
    """Change of a logit without some entries of its position: on direct paths, and through features as
    well."""
    here = np.isin(np.arange(len(graph)), target)
    factor = factors(graph, here)
    at_last = graph.position[graph.targets] == len(graph.tokens) - 1
    weights = np.where(at_last, factor[graph.targets], 0)
    alone = (graph.targets == target).astype(np.float64)
    direct = total = 0.0
    for layer, head, query, key in edges:
        z = float(graph.pattern[layer, head, query, key]) * values[layer, key, head].astype(np.float64)
        effect = graph.received[:, layer, head].astype(np.float64) @ z
        direct -= float(effect @ alone)
        total -= float(effect @ weights)
    return direct, total
