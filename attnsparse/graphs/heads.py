"""Which heads carry an edge of a graph, and why a head looked where it did."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import _check
from .._display import html_table
from .._engine import core_for
from .._tables import text_table
from ..items import Head, edge_label
from .select import Nodes, ends

if TYPE_CHECKING:
    import pandas as pd

    from .graph import Graph

THROUGH = ("edge", "features", "any")


@dataclass(frozen=True, eq=False, repr=False)
class ScoreSplit:
    """The score of one attention entry as a sum over pairs of sources. Made by `Graph.score_pairs`.

    Attributes
    ----------
    layer : int
        Layer of the head, from 0.
    head : int
        Number of the head in its layer, from 0.
    query : int
        Position that looks, from 0.
    key : int
        Position that is looked at, from 0.
    score : float
        The entry's score q . k / sqrt(D), before gate and softmax.
    gate_logit : float
        score + gate_bias: how far the gate is from closing; NaN for a dense model, -inf if no score opens
        it (`Config.self_closed`).
    nodes : numpy.ndarray
        int64 [p]: numbers of the sources, the same for the query's side and the key's; the bias node is
        the constants of a side.
    pairs : numpy.ndarray
        float64 [p, p]: sources of the query's side in rows, of the key's in columns. They sum to the
        score.
    ids : tuple of str
        [p]: ids of the nodes, as `Graph.ids`.
    labels : tuple of str
        [p]: labels of the nodes.
    """

    layer: int
    head: int
    query: int
    key: int
    score: float
    gate_logit: float
    nodes: np.ndarray
    pairs: np.ndarray
    ids: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For example "a9.h6[5->8]", from key to query."""
        return edge_label(self.layer, self.head, self.query, self.key)

    def to_pandas(self, n: int = 20) -> pd.DataFrame:
        """The pairs with the largest ``|value|``.

        Parameters
        ----------
        n : int, default 20
            The largest number of rows.

        Returns
        -------
        pandas.DataFrame
            One row per pair: query_id, query_label, key_id, key_label, value, and share (value / score).

        Raises
        ------
        ValueError
            For a negative n.
        """

        order = np.argsort(-np.abs(self.pairs), axis=None, kind="stable")[: _check.integer(n, "n", 0)]
        rows, columns = np.unravel_index(order, self.pairs.shape)
        value = self.pairs[rows, columns]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = value / self.score
        table: pd.DataFrame = text_table(
            {
                "query_id": [self.ids[i] for i in rows],
                "query_label": [self.labels[i] for i in rows],
                "key_id": [self.ids[i] for i in columns],
                "key_label": [self.labels[i] for i in columns],
                "value": value,
                "share": share,
            }
        )
        return table

    def __repr__(self) -> str:
        gate = "" if np.isnan(self.gate_logit) else f", gate {self.gate_logit:.3g}"
        n = len(self.nodes)
        return f"ScoreSplit({self.label}, score {self.score:.4g}{gate}, {n} x {n} pairs of sources)"

    def _repr_html_(self) -> str:
        return html_table(self, self.to_pandas())


def named(split: ScoreSplit, graph: Graph) -> ScoreSplit:
    """The split with ids and labels of its nodes in a graph."""
    nodes = split.nodes.tolist()
    return dataclasses.replace(
        split, ids=tuple(graph._id(i) for i in nodes), labels=tuple(graph.labels[i] for i in nodes)
    )


def activations(graph: Graph) -> np.ndarray:
    """`Graph.value`; ValueError if the activation of a feature is not known."""
    if np.isnan(graph.value[: graph.n_features]).any():
        raise ValueError("this graph has no activations, so effects through features cannot be computed")
    return graph.value


def factors(graph: Graph, targets: np.ndarray, blocked: np.ndarray | None = None) -> np.ndarray:
    """float64 [n]: effect of one unit of a node's pre-activation on the targets, directly and through
    features; targets, blocked (where paths end): bool [n]."""
    core = core_for(str(graph.weights.dtype))
    stop = np.zeros(len(graph), bool) if blocked is None else blocked
    found: np.ndarray = core.graph_factors(
        graph.start, graph.source, graph.weights, activations(graph), targets, stop
    )
    return found


def first_edges(
    graph: Graph, sources: np.ndarray, targets: np.ndarray, through: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Edges that leave the sources: source, target, weight real, and the factor by which each counts."""
    if through == "edge":
        factor = np.zeros(len(graph))
        factor[targets] = 1.0
    else:
        factor = factors(graph, *(np.isin(np.arange(len(graph)), nodes) for nodes in (targets, sources)))
    edge_target = np.repeat(np.arange(len(graph)), np.diff(graph.start))
    chosen = np.isin(graph.source, sources) & (factor[edge_target] != 0)
    source, target = graph.source[chosen].astype(np.int64), edge_target[chosen]
    return source, target, graph.weights[chosen], factor[target]


def leaving_edges(
    graph: Graph, sources: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The edges by which paths from the sources leave their position, or with which they end there, and those
    of sources without a position; as `first_edges` gives them."""
    numbers = np.arange(len(graph))
    origin, wanted = np.isin(numbers, sources), np.isin(numbers, targets)
    core, position = core_for(str(graph.weights.dtype)), graph.position.astype(np.int64)
    part = core.graph_within(graph.start, graph.source, graph.weights, activations(graph), position, origin)
    part[origin] = 1.0
    onward = factors(graph, wanted, origin)
    edge_target = np.repeat(numbers, np.diff(graph.start))
    ends = (
        (position[graph.source] != position[edge_target]) | wanted[edge_target] | (position[graph.source] < 0)
    )
    chosen = ends & (part[graph.source] != 0)
    source, target, weight = graph.source[chosen].astype(np.int64), edge_target[chosen], graph.weights[chosen]
    stays = position[source] == position[target]
    factor = part[source] * np.where(stays, wanted[target], onward[target])
    return source, target, weight, factor


def total_of(graph: Graph, weight: np.ndarray, factor: np.ndarray) -> float:
    """The sum of edges as `first_edges` gives them."""
    return float(core_for(str(graph.weights.dtype)).graph_total(weight, factor))


def loadings(
    graph: Graph, sources: np.ndarray, targets: np.ndarray, through: str
) -> tuple[np.ndarray, np.ndarray, set[tuple[int, int]]]:
    """Loadings [L * H], the rest [2] of the sum of all edges, direct and remainder, and the (key, query)
    pairs of its edges."""
    if not graph.has_heads:
        raise ValueError(
            "this graph cannot split edges by head: it was saved with heads=False or read from a graph JSON"
        )
    if _check.choice(through, "through", THROUGH) == "any":
        return _leaving_loadings(graph, sources, targets)
    return _split_edges(graph, *first_edges(graph, sources, targets, through))


def _leaving_loadings(
    graph: Graph, sources: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, set[tuple[int, int]]]:
    """`loadings` of the edges by which paths leave their position; direct is what never leaves it."""
    source, target, weight, factor = leaving_edges(graph, sources, targets)
    stays = (graph.position[source] == graph.position[target]) & (graph.position[source] >= 0)
    by_head, rest, places = _split_edges(graph, *(x[~stays] for x in (source, target, weight, factor)))
    return by_head, np.array([rest[0] + total_of(graph, weight[stays], factor[stays]), rest[1]]), places


def _split_edges(
    graph: Graph, source: np.ndarray, target: np.ndarray, weight: np.ndarray, factor: np.ndarray
) -> tuple[np.ndarray, np.ndarray, set[tuple[int, int]]]:
    """`loadings` of edges as `first_edges` gives them."""
    row = np.full(len(graph), -1)
    row[graph.targets] = np.arange(len(graph.targets))
    placed = source < len(graph.carried)
    pairs = np.stack([source[placed], row[target[placed]]], axis=1)
    places = np.stack([graph.position[source[placed]], graph.position[target[placed]]], axis=1)
    by_head, *rest = core_for(str(graph.carried.dtype)).graph_between(
        graph.carried, graph.received, graph.received_alone, graph.pattern, pairs, places.astype(np.int64),
        factor[placed], weight[placed], weight[~placed], factor[~placed],
    )  # fmt: skip
    return by_head.ravel(), np.array(rest), {(int(k), int(q)) for k, q in places}


def shares(
    by_head: np.ndarray, rest: np.ndarray, absolute: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Parts of a whole, strongest first: (order int64 [L * H], share and the sum so far [L * H + 2] of the
    heads in that order and of the rest, the whole).

    By falling share, or by the size of the part if `absolute`.
    """
    found: tuple[np.ndarray, np.ndarray, np.ndarray, float]
    found = core_for("float64").graph_shares(by_head, rest, absolute)
    return found


# ---------------------------------------------------------------------------------- methods of Graph


def total(graph: Graph, source: Nodes, target: Nodes) -> float:
    """Influence of a source on a target through features as well as directly.

    The direct edge, plus over all features f: weight(source, f) / activation(f) * total(f, target). This is
    the effect in the replacement model linearised at this prompt, where an active feature's activation is its
    pre-activation. For groups it is the sum in which no path is counted twice: paths that leave the group and
    come back to it are left out.

    Parameters
    ----------
    source, target : int, str, or sequence of these
        One node or several, by number or id.

    Returns
    -------
    float
        In units of the target's value.

    Raises
    ------
    ValueError
        As `weight` does, and for a graph without activations.
    """
    return total_of(graph, *first_edges(graph, *ends(graph, source, target), "features")[2:])


def heads(
    graph: Graph, source: Nodes, target: Nodes, *, through: str = "edge", base: int = 0
) -> pd.DataFrame:
    """Which heads carry the edge from a source to a target, or from one group of nodes to another.

    The loadings add up to the edge. From position k to q > k, a head's loading is the part that moves from k
    to q through its entry of the pattern, carried at k before and at q after by the residual stream and by
    attention to itself; paths that visit other positions are the remainder. Within one position, direct is
    the residual stream alone, and a head's loading is the part that moved through it last. Bias and other
    nodes have no position: their whole edge is remainder.

    Parameters
    ----------
    source, target : int, str, or sequence of these
        One node or several, by number or id.
    through : {"edge", "features", "any"}, default "edge"
        "features": split `total` instead, each first edge with all that follows it. "any": split `total` by
        the edge with which each path leaves the position of its source, which answers which heads carry a
        word away from its place, whatever features it passes through there; direct is what never leaves it.
    base : int, default 0
        Number of the first position in the columns of positions, 0 or 1.

    Returns
    -------
    pandas.DataFrame
        One row per head by falling ``|loading|``, then the rows "direct" and "remainder". Columns: label,
        layer, head_index, loading, share (of the whole), cumulative (share of this row and all above it);
        if all edges run between the same two positions also key_position, query_position and pattern.

    Raises
    ------
    ValueError
        For another `through`, for a graph without head arrays (see `has_heads`) or, except for "edge",
        without activations, and as `weight` does.
    """

    sources, targets = ends(graph, source, target)
    base = _check.base(base)
    by_head, rest, places = loadings(graph, sources, targets, through)
    order, share, cumulative, _ = shares(by_head, rest, absolute=True)
    layer, head = np.divmod(order, graph.n_head)
    names = [Head(int(a), int(b)).label for a, b in zip(layer, head)]
    columns = {
        "label": [*names, "direct", "remainder"],
        "layer": np.append(layer, (-1, -1)),
        "head_index": np.append(head, (-1, -1)),
        "loading": np.append(by_head[order], rest),
        "share": share,
        "cumulative": cumulative,
    }
    if len(places) == 1:
        key, query = next(iter(places))
        columns |= {"key_position": key + base, "query_position": query + base}
        columns["pattern"] = np.append(graph.pattern[layer, head, query, key], (np.nan, np.nan))
    table: pd.DataFrame = text_table(columns)
    return table


def needed_heads(
    graph: Graph, source: Nodes, target: Nodes, fraction: float = 0.8, *, through: str = "edge"
) -> int | None:
    """The fewest heads whose loadings add up to a fraction of the whole.

    Parameters
    ----------
    source, target : int, str, or sequence of these
        As for `heads`.
    fraction : float, default 0.8
        Above 0 and at most 1.
    through : {"edge", "features", "any"}, default "edge"
        As for `heads`.

    Returns
    -------
    int or None
        None if all heads together do not reach it.

    Raises
    ------
    ValueError
        For another fraction, and as `heads` does.
    """
    sources, targets = ends(graph, source, target)
    fraction = _check.fraction(fraction)
    by_head, rest, _ = loadings(graph, sources, targets, through)
    order, _, cumulative, whole = shares(by_head, rest)
    reached = np.flatnonzero(cumulative[: len(order)] >= fraction)
    return int(reached[0]) + 1 if whole and len(reached) else None
