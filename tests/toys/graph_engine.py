"""Helpers of the tests that compare the package's attribution graph with the oracle and with planted ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import oracle_graph as og
from oracle import Array

import attnsparse as asp

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
"""Of the largest number of its kind in the graph."""


def transcoders(coders: Mapping, dtype: str = "float32") -> asp.Transcoders:
    """The package's transcoders of a dictionary of oracle_graph.py."""

    def rounded(name: str):
        return None if coders[name] is None else [value.astype(dtype) for value in coders[name]]

    arrays = ("w_enc", "b_enc", "w_dec", "output_bias", "threshold", "skip")
    source = asp.ArraySource(**{name: rounded(name) for name in arrays})
    options = {name: coders[name] for name in ("activation", "top_k", "input_hook")}
    return asp.Transcoders(source, name="by hand", **options)


@dataclasses.dataclass
class Read:
    """A graph as plain arrays, nodes in the order of the graph."""

    nodes: list[tuple[str, int, int, int]]  # kind, layer, position, feature
    value: Array
    matrix: Array  # (N,N), rows = targets

    def number(self, node: tuple) -> int:
        """The node that is described so."""
        return self.nodes.index(tuple(node))


def read(graph) -> Read:
    """Nodes and edges, the latter from the CSR arrays."""
    numbers = zip(graph.kind, *(np.asarray(a).tolist() for a in (graph.layer, graph.position, graph.feature)))
    matrix = np.zeros((len(graph), len(graph)))
    for target, (first, last) in enumerate(zip(graph.start[:-1], graph.start[1:])):
        sources = graph.source[first:last]
        assert len(set(sources.tolist())) == last - first
        matrix[target, sources] = graph.weights[first:last]
    return Read([tuple(node) for node in numbers], np.asarray(graph.value, np.float64), matrix)


def truth(graph: og.Graph) -> Read:
    """The oracle's graph in the same form."""
    numbers = zip(graph.kind, graph.layer.tolist(), graph.position.tolist(), graph.feature.tolist())
    return Read([tuple(node) for node in numbers], graph.value, graph.matrix)


def heads(graph, source: int, target: int, **options) -> og.Loadings:
    """graph.heads as the oracle's loadings; checks the order of rows and the shares."""
    table = graph.heads(source, target, **options)
    assert table["label"].tolist()[-2:] == ["direct", "remainder"]
    sizes = table["loading"].abs().to_numpy()[:-2]
    assert (np.diff(sizes) <= 0).all()
    whole = table["loading"].sum()
    if whole:
        np.testing.assert_allclose(table["share"], table["loading"] / whole, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(table["cumulative"], table["share"].cumsum(), rtol=1e-4, atol=1e-4)
    found = np.zeros((graph.n_layer, graph.n_head))
    for row in table.iloc[:-2].itertuples():
        assert row.label == f"L{row.layer}H{row.head_index}"
        found[row.layer, row.head_index] = row.loading
    return og.Loadings(found, *(float(value) for value in table["loading"].to_numpy()[-2:]))


def pairs(graph, layer: int, head: int, query: int, key: int) -> Array:
    """(N,N): the split of a score over all nodes."""
    split = graph.score_pairs(layer, head, query, key)
    found = np.zeros((len(graph), len(graph)))
    found[np.ix_(split.nodes, split.nodes)] = split.pairs
    return found


def kept(graph, pruned) -> tuple[Array, Array]:
    """(N,) and (N,N): which nodes and edges of a graph a pruned one still has."""
    all_ids, ids = list(graph.ids), list(pruned.ids)
    nodes = np.isin(all_ids, ids)
    edges = np.zeros((len(all_ids), len(all_ids)), bool)
    where = [all_ids.index(name) for name in ids]
    edges[np.ix_(where, where)] = read(pruned).matrix != 0
    return nodes, edges
