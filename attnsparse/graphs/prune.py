"""Influence of nodes and edges on the logits, pruning and scores, by circuit-tracer's definitions.

Ameisen et al. 2025, "Circuit Tracing"; the `prune_graph` and `compute_graph_scores` of the circuit-tracer
package.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from .. import _check

if TYPE_CHECKING:
    from .graph import Graph

SCORES = ("replacement", "completeness", "replacement_closed", "completeness_closed")


def prune(graph: Graph, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> Graph:
    """The nodes and edges with most influence on the logits, as circuit-tracer prunes.

    Tokens, positions, bias, other and logits are always kept. Features without an edge to or from kept nodes
    and errors without an edge to them are removed. Nodes are renumbered and keep their ids:
    `pruned.node(graph.ids[i])` is the new number of node i. A pruned graph can be pruned again: thresholds
    are then shares of the influence on what is left.

    Parameters
    ----------
    node_threshold : float, default 0.8
        Share of the nodes' influence that is kept.
    edge_threshold : float, default 0.98
        Share of the influence of the edges between these that is kept.

    Returns
    -------
    Graph
        With `influence` and `pruned` set.

    Raises
    ------
    ValueError
        For thresholds outside 0..1.

    References
    ----------
    Ameisen et al. 2025, "Circuit Tracing"; `prune_graph` of the circuit-tracer package.
    """
    thresholds = {
        "node_threshold": _check.share(node_threshold, "node_threshold"),
        "edge_threshold": _check.share(edge_threshold, "edge_threshold"),
    }
    core, kept, cumulative = graph._core.prune(*thresholds.values())
    options = dict(graph.options)
    if (known := known_scores(graph)) is not None:
        options["scores"] = {name: x if np.isfinite(x) else None for name, x in known.items()}
    nodes = np.flatnonzero(kept)
    splits = (split for split in graph.splits if kept[split.nodes].all())
    return dataclasses.replace(
        graph,
        kind=tuple(graph.kind[i] for i in nodes),
        labels=tuple(graph.labels[i] for i in nodes),
        influence=cumulative[nodes].astype(graph.weights.dtype),
        splits=tuple(dataclasses.replace(s, nodes=np.searchsorted(nodes, s.nodes)) for s in splits),
        pruned=thresholds,
        options=options,
        **graph._owned(core),
    )


def scores(graph: Graph) -> dict[str, float]:
    """How much of the influence on the logits is explained.

    Returns
    -------
    dict
        replacement, completeness: circuit-tracer's definitions, on the nodes that it has (features, errors,
        tokens, logits). replacement_closed, completeness_closed: the same on all nodes, with positions and
        biases as explained and other features as error. Of a pruned graph: the scores of the whole one, which
        `prune` stores in `options`. A graph read from another tool's file that names no thresholds counts as
        whole.

    Raises
    ------
    ValueError
        For a pruned graph from elsewhere without the scores of the whole one.

    References
    ----------
    Ameisen et al. 2025, "Circuit Tracing"; `compute_graph_scores` of the circuit-tracer package.
    """
    found = known_scores(graph)
    if found is None:
        raise ValueError("this pruned graph came without the scores of the whole one; use the whole graph")
    return found


def known_scores(graph: Graph) -> dict[str, float] | None:
    """The scores of the whole graph; None for a pruned one that came without them.

    A file of another tool that names no thresholds, or says that both were 1, was not pruned.
    """
    if not graph.pruned or graph.pruned == {"node_threshold": 1.0, "edge_threshold": 1.0}:
        return graph._core.scores()
    noted = graph.options.get("scores")
    if not isinstance(noted, dict) or set(noted) != set(SCORES):
        return None
    values = [np.nan if x is None else x for x in noted.values()]
    return dict(zip(noted, values)) if all(isinstance(x, float) for x in values) else None
