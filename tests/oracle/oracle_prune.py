"""Influence, pruning and the two scores of an attribution graph, by circuit-tracer's definitions, in NumPy.

A matrix (N,N) has targets as rows and sources as columns; weight (N,) is 0 but for the logits, where it is
their probability. circuit-tracer's matrix has only features, errors, tokens and logits: `only(COMPARABLE, .)`
takes what we have beyond that (positions, bias, other) out of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from oracle import Array

COMPARABLE = ("feature", "error", "token", "logit")
SMALLEST_SUM = 1e-10


class Pruned(NamedTuple):
    """What stays."""

    node: NDArray[np.bool_]  # (N,)
    edge: NDArray[np.bool_]  # (N,N)


def only(kinds: Iterable[str], matrix: Array, kind: Sequence[str]) -> Array:
    """The matrix without the edges from and to nodes of other kinds."""
    inside = np.isin(kind, list(kinds))
    return np.where(inside[:, None] & inside, matrix, 0.0)


def normalized(matrix: Array) -> Array:
    """Rows of |matrix| divided by their sum, which is taken to be at least 1e-10."""
    sizes = abs(matrix)
    return sizes / np.maximum(sizes.sum(1, keepdims=True), SMALLEST_SUM)


def influence(matrix: Array, weight: Array) -> Array:
    """(N,) weight A + weight A^2 + ... with A the normalised matrix. It ends: the graph has no circle."""
    shares = normalized(matrix)
    step, total = weight, np.zeros_like(weight)
    for _ in range(len(weight) + 1):
        step = step @ shares
        total = total + step
    if step.any():
        raise ValueError("the graph has a circle")
    return total


def threshold_of(scores: Array, share: float) -> float:
    """The score at which the cumulative share of the sorted scores first reaches `share`."""
    ordered = np.sort(scores.ravel())[::-1]
    cumulative = np.cumsum(ordered) / ordered.sum()
    return ordered[min(int(np.searchsorted(cumulative, share)), len(ordered) - 1)]


def edge_scores(matrix: Array, weight: Array) -> Array:
    """(N,N) normalised entry times (influence + weight) of its target."""
    return normalized(matrix) * (influence(matrix, weight) + weight)[:, None]


def prune(
    matrix: Array,
    kind: Sequence[str],
    weight: Array,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
) -> Pruned:
    """Features and errors by influence, then edges by score, then what has lost its edges: a feature needs
    one coming in and one going out, an error one going out. Every other node stays."""
    kind = np.asarray(kind)
    feature, error = kind == "feature", kind == "error"
    scores = influence(matrix, weight)
    node = (scores >= threshold_of(scores, node_threshold)) | ~(feature | error)
    kept = np.where(node[:, None] & node, matrix, 0.0)
    scores = edge_scores(kept, weight)
    edge = (scores >= threshold_of(scores, edge_threshold)) & (kept != 0)
    while True:
        stays = node & (edge.any(0) | ~(feature | error)) & (edge.any(1) | ~feature)
        edge &= stays[:, None] & stays
        if (stays == node).all():
            return Pruned(node, edge)
        node = stays


def graph_scores(
    matrix: Array,
    kind: Sequence[str],
    weight: Array,
    explained: Sequence[str] = ("token",),
    unexplained: Sequence[str] = ("error",),
) -> tuple[float, float]:
    """(replacement, completeness). Replacement: token influence / (token + error influence). Completeness:
    mean of 1 - (errors' share of a node's input), weighted by influence + weight. `explained` and
    `unexplained` are the kinds that count as token and as error."""
    found = influence(matrix, weight)
    is_error = np.isin(kind, unexplained)
    token, error = found[np.isin(kind, explained)].sum(), found[is_error].sum()
    not_error = 1 - normalized(matrix)[:, is_error].sum(1)
    importance = found + weight
    return token / (token + error), (not_error * importance).sum() / importance.sum()
