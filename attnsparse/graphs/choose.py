"""Which active features become nodes when there are too many: those with most influence on the logits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._engine import core_for
from .sources import Sources
from .targets import LogitReads, Reads

ROUNDS = 8  # in which the features of a graph are chosen
_BLOCK_VALUES = 2**20  # of dense rows that are made sparse at a time


def effects(sources: Sources, reads: Reads, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """(edges real [targets, sources], bias float64 [targets]) with what the targets add themselves."""
    edges, bias = sources.features.run.model._core.graph_edges(
        sources.frozen, sources.writes, reads.arrays, threads=threads
    )
    return edges, bias + reads.constant


def choose_features(
    sources: Sources, logits: LogitReads, reads: Reads, most: int | None, threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(chosen int64 rising, effects, bias, place): rows place[i] of effects and bias are those of the chosen
    features, then of the logits.

    As circuit-tracer does: the logits are traced back first, then, in rounds, the features that have most
    influence by what is known so far.
    """
    n, first = len(reads), len(logits)
    if most is None or n <= most:
        rows, bias = effects(sources, reads + logits, threads)
        return np.arange(n), rows, bias, np.arange(n + first)
    rows, bias = np.empty((first + most, sources.n), sources.vectors.dtype), np.empty(first + most)
    rows[:first], bias[:first] = effects(sources, logits, threads)
    visited = np.empty(0, dtype=np.int64)
    while len(visited) < most:
        known = first + len(visited)
        influence = _influence(sources, logits, visited, rows[:known])
        influence[visited] = -1
        wanted = min(most - len(visited), max(1, -(-most // ROUNDS)))
        found = np.argsort(-influence[:n], kind="stable")[:wanted]
        visited = np.concatenate([visited, found])
        new = slice(known, known + wanted)
        rows[new], bias[new] = effects(sources, reads.take(found), threads)
    order = np.argsort(visited)
    return visited[order], rows, bias, np.concatenate([first + order, np.arange(first)])


def _influence(sources: Sources, logits: LogitReads, visited: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float64 [sources]: influence on the logits through the rows known: the logits', then the visited
    ones'."""
    targets = np.concatenate([sources.n + np.arange(len(logits)), visited])
    order = np.argsort(targets)
    n = sources.n + len(logits)
    start, source, weight = sparse_rows(
        lambda some: rows[order[some]], rows.shape, targets[order], n, rows.dtype
    )
    weights = np.zeros(n)
    weights[sources.n :] = np.nan_to_num(logits.probability, nan=1.0)
    influence: np.ndarray = core_for(str(rows.dtype)).graph_influence(start, source, weight, weights)
    return influence[: sources.n]


def sparse_rows(
    block: Callable[[slice], np.ndarray], shape: tuple[int, int], targets: np.ndarray, n: int, real: np.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start, source, weight) of n nodes, of which `targets`, rising, have the rows of a dense matrix.

    block gives some of the matrix's rows; shape is its shape. No other dense copy is made.
    """
    step = max(1, _BLOCK_VALUES // max(1, shape[1]))
    blocks = [slice(first, min(first + step, shape[0])) for first in range(0, shape[0], step)]
    counts = np.zeros(n + 1, np.int64)
    for some in blocks:
        counts[1 + targets[some]] = np.count_nonzero(block(some), axis=1)
    start = np.cumsum(counts)
    source, weight = np.empty(start[-1], np.int32), np.empty(start[-1], real)
    at = 0
    for some in blocks:
        values = block(some)
        row, column = np.nonzero(values)
        end = at + len(row)
        source[at:end], weight[at:end] = column, values[row, column]
        at = end
    return start, source, weight
