"""Which active features become nodes when there are too many: those with most influence on the logits."""

from __future__ import annotations

import numpy as np

from .engine import core_for
from .graph_nodes import Sources
from .graph_targets import Reads

ROUNDS = 8  # in which the features of a graph are chosen


def effects(sources: Sources, reads: Reads, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """(edges real [targets, sources], bias float64 [targets]) with what the targets add themselves."""
    edges, bias = sources.features.run.model._core.graph_edges(
        sources.frozen, sources.writes, reads.arrays, threads=threads
    )
    return edges, bias + reads.constant


def choose_features(
    sources: Sources, logits: Reads, reads: Reads, most: int | None, threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(chosen int64 rising, effects, bias): the rows of the chosen features, then of the logits.

    As circuit-tracer does: the logits are traced back first, then, in rounds, the features that have most
    influence by what is known so far.
    """
    rows, bias = effects(sources, logits, threads)
    n = len(reads)
    if most is None or n <= most:
        more, more_bias = effects(sources, reads, threads)
        return np.arange(n), np.concatenate([more, rows]), np.concatenate([more_bias, bias])
    visited = np.empty(0, dtype=np.int64)
    while len(visited) < most:
        influence = _influence(sources, logits, visited, rows)
        influence[visited] = -1
        wanted = min(most - len(visited), max(1, -(-most // ROUNDS)))
        found = np.argsort(-influence[:n], kind="stable")[:wanted]
        more, more_bias = effects(sources, reads.take(found), threads)
        visited = np.concatenate([visited, found])
        rows, bias = np.concatenate([rows, more]), np.concatenate([bias, more_bias])
    order = np.argsort(visited)
    place = np.concatenate([len(logits) + order, np.arange(len(logits))])
    return visited[order], rows[place], bias[place]


def _influence(sources: Sources, logits: Reads, visited: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float64 [sources]: influence on the logits through the rows known: the logits', then the visited
    ones'."""
    from .graph import sparse_rows

    targets = np.concatenate([sources.n + np.arange(len(logits)), visited])
    order = np.argsort(targets)
    n = sources.n + len(logits)
    start, source, weight = sparse_rows(rows[order], targets[order], n, rows.dtype)
    weights = np.zeros(n)
    weights[sources.n :] = np.nan_to_num(logits.probability, nan=1.0)
    return core_for(str(rows.dtype)).graph_influence(start, source, weight, weights)[: sources.n]
