"""Which heads carry an edge of a graph, and why a head looked where it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .engine import core_for
from .labels import Head

if TYPE_CHECKING:
    import pandas as pd

    from .graph_object import Graph

THROUGH = ("edge", "features")


@dataclass(frozen=True)
class ScoreSplit:
    """The score of one attention entry as a sum over pairs of sources; made by `Graph.score_pairs`.

    nodes: int64 [p], node numbers, of the query side's sources (rows) and the key side's (columns) of
    pairs, float64 [p, p]; the bias node stands for the constants of a side. pairs sum to score; gate_logit
    is score + gate_bias: how far the gate is from closing, NaN for a dense model.
    """

    layer: int
    head: int
    query: int
    key: int
    score: float
    gate_logit: float
    nodes: np.ndarray
    pairs: np.ndarray

    @property
    def label(self) -> str:
        """For example "a9.h6[5->8]", from key to query."""
        return f"a{self.layer}.h{self.head}[{self.key}->{self.query}]"


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
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction!r}")
    by_head, direct, remainder, _ = loadings(graph, sources, targets, through)
    whole = by_head.sum() + direct + remainder
    if whole == 0:
        return None
    shares = np.cumsum(np.sort(by_head.ravel() / whole)[::-1])
    reached = np.flatnonzero(shares >= fraction)
    return int(reached[0]) + 1 if len(reached) else None
