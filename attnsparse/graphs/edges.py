"""The edges of an attribution graph: into a node, from a node, and from some nodes to others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .select import Nodes, ends

if TYPE_CHECKING:
    from .graph import Graph


def incoming(graph: Graph, target: int | str) -> tuple[np.ndarray, np.ndarray]:
    """The edges into a node.

    Parameters
    ----------
    target : int or str
        By number or id.

    Returns
    -------
    sources : numpy.ndarray
        int32 [k], rising.
    weights : numpy.ndarray
        real [k].

    Raises
    ------
    IndexError, KeyError, TypeError
        As `node` does.
    """
    t = graph.node(target)
    edges = slice(graph.start[t], graph.start[t + 1])
    return graph.source[edges], graph.weights[edges]


def outgoing(graph: Graph, source: int | str) -> tuple[np.ndarray, np.ndarray]:
    """The edges from a node.

    Parameters
    ----------
    source : int or str
        By number or id.

    Returns
    -------
    targets : numpy.ndarray
        int64 [k], rising.
    weights : numpy.ndarray
        real [k].

    Raises
    ------
    IndexError, KeyError, TypeError
        As `node` does.
    """
    at = np.flatnonzero(graph.source == graph.node(source))
    return np.searchsorted(graph.start, at, side="right") - 1, graph.weights[at]


def weight(graph: Graph, source: Nodes, target: Nodes) -> float:
    """The weight of an edge; between groups, the sum over all edges from one to the other.

    Parameters
    ----------
    source, target : int, str, or sequence of these
        One node or several, by number or id.

    Returns
    -------
    float
        0.0 where there is no edge.

    Raises
    ------
    ValueError
        For no nodes, for targets that no edge leads to (all but features and logits) and for logits as
        sources.
    IndexError, KeyError, TypeError
        As `node` does.
    """
    sources, targets = ends(graph, source, target)
    total = 0.0
    for t in targets:
        found, weights = graph.incoming(int(t))
        total += float(weights[np.isin(found, sources)].sum(dtype=np.float64))
    return total
