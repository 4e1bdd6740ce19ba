"""Which heads carry an edge of a graph, and why a head looked where it did."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import _check
from .._display import html_table
from .._engine import core_for
from ..items import Head, edge_label

if TYPE_CHECKING:
    import pandas as pd

    from .graph import Graph

THROUGH = ("edge", "features")


@dataclass(frozen=True, eq=False, repr=False)
class ScoreSplit:
    """The score of one attention entry as a sum over pairs of sources. Made by `Graph.score_pairs`."""

    layer: int
    head: int
    query: int
    """Position that looks, from 0."""
    key: int
    """Position that is looked at."""
    score: float
    gate_logit: float
    """score + gate_bias: how far the gate is from closing; NaN for a dense model."""
    nodes: np.ndarray
    """int64 [p]: numbers of the sources, of the query's side and of the key's alike; the bias node stands for
    the constants of a side."""
    pairs: np.ndarray
    """float64 [p, p]: sources of the query's side in rows, of the key's in columns. They sum to the score."""
    ids: tuple[str, ...] = ()
    """Of the nodes, as `Graph.ids`."""
    labels: tuple[str, ...] = ()
    """Of the nodes."""

    @property
    def label(self) -> str:
        """For example "a9.h6[5->8]", from key to query."""
        return edge_label(self.layer, self.head, self.query, self.key)

    def to_pandas(self, n: int = 20) -> pd.DataFrame:
        """The n pairs with the largest |value|, one row each: query_id, query_label, key_id, key_label, value
        and share, value / score.

        Raises ValueError for n < 0.
        """
        import pandas as pd

        if _check.integer(n, "n") < 0:
            raise ValueError(f"n must not be negative, got {n}")
        order = np.argsort(-np.abs(self.pairs), axis=None, kind="stable")[:n]
        rows, columns = np.unravel_index(order, self.pairs.shape)
        value = self.pairs[rows, columns]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = value / self.score
        return pd.DataFrame(
            {
                "query_id": [self.ids[i] for i in rows],
                "query_label": [self.labels[i] for i in rows],
                "key_id": [self.ids[i] for i in columns],
                "key_label": [self.labels[i] for i in columns],
                "value": value,
                "share": share,
            }
        )

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


def total(graph: Graph, sources: np.ndarray, targets: np.ndarray) -> float:
    """See `Graph.total`."""
    return float(first_edges(graph, sources, targets, "features")[2].sum())


def activations(graph: Graph) -> np.ndarray:
    """`Graph.value`; ValueError if the activation of a feature is not known."""
    if np.isnan(graph.value[: graph.n_features]).any():
        raise ValueError("this graph has no activations, so effects through features cannot be computed")
    return graph.value


def factors(graph: Graph, targets: np.ndarray, blocked: np.ndarray | None = None) -> np.ndarray:
    """float64 [n]: what one unit of a node's pre-activation does to the targets, directly and through
    features; targets, blocked (where paths end): bool [n]."""
    core = core_for(str(graph.weight.dtype))
    stop = np.zeros(len(graph), bool) if blocked is None else blocked
    return core.graph_factors(graph.start, graph.source, graph.weight, activations(graph), targets, stop)


def first_edges(
    graph: Graph, sources: np.ndarray, targets: np.ndarray, through: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Edges that leave the sources: source, target, weighted edge, and what the edge was multiplied by."""
    if through not in THROUGH:
        raise ValueError(f"through must be 'edge' or 'features', got {through!r:.60}")
    if through == "edge":
        factor = np.zeros(len(graph))
        factor[targets] = 1.0
    else:
        factor = factors(graph, *(np.isin(np.arange(len(graph)), nodes) for nodes in (targets, sources)))
    edge_target = np.repeat(np.arange(len(graph)), np.diff(graph.start))
    chosen = np.isin(graph.source, sources) & (factor[edge_target] != 0)
    source, target = graph.source[chosen].astype(np.int64), edge_target[chosen]
    return source, target, graph.weight[chosen] * factor[target], factor[target]


def loadings(
    graph: Graph, sources: np.ndarray, targets: np.ndarray, through: str
) -> tuple[np.ndarray, float, float, set[tuple[int, int]]]:
    """Loadings [L, H], direct, remainder of the sum of all edges, and the (key, query) pairs of its edges."""
    if not graph.has_heads:
        raise ValueError(
            "this graph cannot split edges by head: it was saved with heads=False or read from a graph JSON"
        )
    source, target, weight, factor = first_edges(graph, sources, targets, through)
    n_placed = len(graph.carried)
    row = np.full(len(graph), -1)
    row[graph.targets] = np.arange(len(graph.targets))
    placed = source < n_placed
    core = core_for(str(graph.carried.dtype))
    pairs = np.stack([source[placed], row[target[placed]]], axis=1)
    places = np.stack([graph.position[source[placed]], graph.position[target[placed]]], axis=1)
    by_head = core.graph_loadings(
        graph.carried, graph.received, graph.received_alone, graph.pattern, pairs,
        places.astype(np.int64), factor[placed],
    )  # fmt: skip
    same = places[:, 0] == places[:, 1]
    across = by_head[~same].sum(axis=0, dtype=np.float64)
    within = by_head[same].sum(axis=0, dtype=np.float64)
    direct = float(weight[placed][same].sum() - within.sum())
    rest = float(weight[placed][~same].sum() - across.sum() + weight[~placed].sum())
    return across + within, direct, rest, {(int(k), int(q)) for k, q in places}


def table(graph: Graph, sources: np.ndarray, targets: np.ndarray, through: str, base: int) -> pd.DataFrame:
    """See `Graph.heads`."""
    import pandas as pd

    by_head, direct, remainder, places = loadings(graph, sources, targets, through)
    order = np.argsort(-np.abs(by_head), axis=None, kind="stable")
    layer, head = np.divmod(order, graph.n_head)
    loading = np.append(by_head.ravel()[order], (direct, remainder))
    whole = float(loading.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        share = loading / whole
    names = [Head(int(a), int(b)).label for a, b in zip(layer, head)]
    columns = {
        "label": [*names, "direct", "remainder"],
        "layer": np.append(layer, (-1, -1)),
        "head": np.append(head, (-1, -1)),
        "loading": loading,
        "share": share,
        "cumulative": np.cumsum(share),
    }
    if len(places) == 1:
        key, query = next(iter(places))
        columns |= {"key": key + base, "query": query + base}
        columns["pattern"] = np.append(graph.pattern[layer, head, query, key], (np.nan, np.nan))
    return pd.DataFrame(columns)


def needed(
    graph: Graph, sources: np.ndarray, targets: np.ndarray, fraction: float, through: str
) -> int | None:
    """See `Graph.needed_heads`."""
    fraction = _check.fraction(fraction)
    by_head, direct, remainder, _ = loadings(graph, sources, targets, through)
    whole = by_head.sum() + direct + remainder
    if whole == 0:
        return None
    shares = np.cumsum(np.sort(by_head.ravel() / whole)[::-1])
    reached = np.flatnonzero(shares >= fraction)
    return int(reached[0]) + 1 if len(reached) else None
