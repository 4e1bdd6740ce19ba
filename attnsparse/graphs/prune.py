"""Influence of nodes and edges on the logits, pruning and scores, by circuit-tracer's definitions.

Ameisen et al. 2025, "Circuit Tracing"; the `prune_graph` and `compute_graph_scores` of the circuit-tracer
package.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from .. import _check
from .._engine import core_for

if TYPE_CHECKING:
    from .graph import Graph

SCORES = ("replacement", "completeness", "replacement_closed", "completeness_closed")
_ALWAYS = ("token", "position", "bias", "other", "logit")
_IN_CIRCUIT_TRACER = ("feature", "error", "token", "logit")


def logit_weights(graph: Graph) -> np.ndarray:
    """float64 [n]: the probability of each logit node's token; a difference, or tokens without one, weigh
    1."""
    weights = np.zeros(len(graph))
    for i in graph.logits:
        p = float(graph.probability[i])
        weights[i] = p if np.isfinite(p) else 1.0
    return weights


def node_influence(graph: Graph) -> np.ndarray:
    """float64 [n]: influence of every node on the logits.

    Every target's edges are normalised by the sum of their absolute values; influence is the weight of all
    paths to the logits, which weigh by their probability.
    """
    core = core_for(str(graph.weights.dtype))
    found: np.ndarray = core.graph_influence(graph.start, graph.source, graph.weights, logit_weights(graph))
    return found


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
    core = core_for(str(graph.weights.dtype))
    kind = np.array(graph.kind)
    nodes, edges, cumulative = core.graph_prune(
        graph.start, graph.source, graph.weights, logit_weights(graph), np.isin(kind, _ALWAYS),
        kind == "feature", thresholds["node_threshold"], thresholds["edge_threshold"],
    )  # fmt: skip
    options = dict(graph.options)
    if (known := known_scores(graph)) is not None:
        options["scores"] = {name: x if np.isfinite(x) else None for name, x in known.items()}
    return dataclasses.replace(keep(graph, nodes, edges, cumulative), pruned=thresholds, options=options)


def keep(graph: Graph, nodes: np.ndarray, edges: np.ndarray, cumulative: np.ndarray) -> Graph:
    """The graph of some nodes (bool [n]) and edges (bool [m]); edges of other nodes must be left out."""
    number = np.cumsum(nodes) - 1
    target = np.repeat(np.arange(len(graph)), np.diff(graph.start))[edges]
    counts = np.bincount(number[target], minlength=int(nodes.sum()))
    real = graph.weights.dtype
    chosen = np.flatnonzero(nodes)
    placed = chosen[chosen < len(graph.carried)]
    received = nodes[graph.targets]
    splits = tuple(split for split in graph.splits if nodes[split.nodes].all())
    return dataclasses.replace(
        graph,
        kind=tuple(graph.kind[i] for i in chosen),
        labels=tuple(graph.labels[i] for i in chosen),
        layer=graph.layer[chosen],
        position=graph.position[chosen],
        feature=graph.feature[chosen],
        value=graph.value[chosen],
        probability=graph.probability[chosen],
        start=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        source=number[graph.source[edges]].astype(np.int32),
        weights=graph.weights[edges],
        carried=graph.carried[placed],
        received=graph.received[received],
        received_alone=graph.received_alone[received],
        influence=cumulative[chosen].astype(real),
        splits=tuple(dataclasses.replace(split, nodes=number[split.nodes]) for split in splits),
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
        return _scores_of_all(graph)
    noted = graph.options.get("scores")
    if not isinstance(noted, dict) or set(noted) != set(SCORES):
        return None
    values = [np.nan if x is None else x for x in noted.values()]
    return dict(zip(noted, values)) if all(isinstance(x, float) for x in values) else None


def _scores_of_all(graph: Graph) -> dict[str, float]:
    kind = np.array(graph.kind)
    known = np.isin(kind, _IN_CIRCUIT_TRACER)
    plain = _scores(graph, known, kind == "token", kind == "error")
    explained = np.isin(kind, ("token", "position", "bias"))
    closed = _scores(graph, np.ones(len(graph), bool), explained, np.isin(kind, ("error", "other")))
    return dict(zip(SCORES, (*plain, *closed)))


def _scores(graph: Graph, nodes: np.ndarray, inputs: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    core = core_for(str(graph.weights.dtype))
    weights = logit_weights(graph)
    edges = nodes[graph.source]
    weight = np.where(edges, graph.weights, 0).astype(graph.weights.dtype)
    influence = core.graph_influence(graph.start, graph.source, weight, weights)
    from_inputs, from_errors = influence[inputs].sum(), influence[errors].sum()
    if from_inputs + from_errors == 0:
        return float("nan"), float("nan")
    target = np.repeat(np.arange(len(graph)), np.diff(graph.start))
    absolute = np.abs(weight.astype(np.float64))
    whole = np.bincount(target, absolute, len(graph))
    wrong = np.bincount(target, absolute * errors[graph.source], len(graph))
    share = wrong / np.maximum(whole, 1e-10)
    output = np.where(nodes, influence + weights, 0)
    return float(from_inputs / (from_inputs + from_errors)), float(
        ((1 - share) * output).sum() / output.sum()
    )
