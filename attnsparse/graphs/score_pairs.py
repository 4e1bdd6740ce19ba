"""Why a head looked there: the score of an attention entry as a sum over pairs of sources."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from .._core_types import Reads
from .._display import progress_bar
from .._engine import core_for
from ..items import Edge
from .heads import ScoreSplit, named
from .sources import Sources
from .targets import LAYERNORM

if TYPE_CHECKING:
    from ..model.model import Model
    from .graph import Graph

_STORED = 64  # sources a side kept in a graph's own splits


def score_pairs(
    graph: Graph,
    layer: int,
    head: int,
    query: int | str,
    key: int | str,
    *,
    progress: bool | None = None,
) -> ScoreSplit:
    """Why a head looked there: the score of one attention entry, split over pairs of sources.

    score = q . k / sqrt(D) is bilinear in the residual streams of query and key, and these are sums over the
    sources of the graph, so it is the sum of one number for every pair (query-side source, key-side source);
    the constants of a side are its bias node. Patterns and scales before the entry are held.

    Parameters
    ----------
    layer, head : int
        The head, from 0.
    query, key : int or str
        Positions from 0 (negative ones count from the end), or token strings that occur once.
    progress : bool, optional
        Show a bar; None: in a terminal or notebook, after a second.

    Returns
    -------
    ScoreSplit

    Raises
    ------
    ValueError
        For a graph without its model or a pruned one.
    IndexError
        For an entry that does not exist.
    """
    return named(_score_pairs(graph, layer, head, query, key, progress), graph)


def _score_pairs(
    graph: Graph, layer: int, head: int, query: int | str, key: int | str, progress: bool | None = False
) -> ScoreSplit:
    if graph.origin is None:
        raise ValueError("a graph read from a file has no model to compute with; compute the graph again")
    if graph.pruned is not None:
        raise ValueError("scores are split over all sources: use the graph before pruning")
    sources, chosen = graph.origin
    model = sources.features.run.model
    entry = Edge(layer, head, graph.position_of(query), graph.position_of(key)).within(
        graph.n_layer, graph.n_head, len(graph.tokens)
    )
    bias = graph.kind.index("bias")
    node = np.full(sources.n, bias + 1)  # active features that are no nodes: the one after the bias
    node[np.concatenate([chosen, np.arange(len(sources.features), sources.n)])] = np.arange(bias)
    n_nodes = len(graph) - len(graph.logits)
    sides: list[np.ndarray] = []
    with progress_bar(progress, 3, "score pairs", "part") as bar:
        for part, position in enumerate((entry.query, entry.key)):
            sides += _side(sources, entry.layer, entry.head, position, part)
            if bar is not None:
                bar.update()
        pairs, used, score = core_for(str(model.dtype)).graph_pairs(
            *sides, node, n_nodes, bias, _scale(model, entry.layer)
        )
        if bar is not None:
            bar.update()
    nodes = np.flatnonzero(used)
    gate = score + model.config.gate_bias if model.config.gated else math.nan
    if model.config.self_closed and entry.query == entry.key:
        gate = -math.inf
    return ScoreSplit(*entry, score, gate, nodes, pairs[np.ix_(nodes, nodes)])


def _scale(model: Model, layer: int) -> float:
    c = model.config
    scale = 1 / math.sqrt(c.d_head) if c.scale_attn else 1.0
    return scale / (layer + 1) if c.scale_by_inverse_layer else scale


def _side(sources: Sources, layer: int, head: int, position: int, part: int) -> tuple[np.ndarray, np.ndarray]:
    """(real [D, sources], float64 [D]): what each source, and all constants, give to the query (part 0) or
    key (1) of a head at a position."""
    model = sources.features.run.model
    c = model.config
    columns = part * c.n_head * c.d_head + head * c.d_head + np.arange(c.d_head)
    weights = model.parameter(f"h.{layer}.attn.c_attn.weight")[:, columns].T
    name = f"h.{layer}.attn.c_attn.bias"
    constant = model.parameter(name)[columns].astype(np.float64) if c.bias else np.zeros(c.d_head)
    full = np.full(c.d_head, 2 * layer, np.int32)
    layernorm = np.full_like(full, LAYERNORM)
    reads = Reads(full, np.full_like(full, position), layernorm, np.ascontiguousarray(weights))
    rows, bias = sources.effects(reads)
    return rows, bias + constant


def strongest_splits(graph: Graph, n: int) -> tuple[ScoreSplit, ...]:
    """The scores of the n attention entries that carry most into the logits, each with its largest sources.

    An entry carries what its head moves from all sources at its key to the logits, on paths that stay at the
    query.
    """
    last, real = len(graph.tokens) - 1, str(graph.carried.dtype)
    rows = len(graph.received) - len(graph.logits) + np.arange(len(graph.logits))
    weight = graph.probability[graph.logits].astype(np.float64)
    moved = core_for(real).graph_moved(
        graph.carried, graph.received, graph.pattern, graph.position[: len(graph.carried)], rows,
        np.where(np.isfinite(weight), weight, 1.0), last,
    )  # fmt: skip
    order = np.argsort(-moved, axis=None, kind="stable")[:n]
    entries = [np.unravel_index(i, moved.shape) for i in order if moved.flat[i] > 0]
    return tuple(_largest(_score_pairs(graph, int(i), int(h), last, int(k)), graph) for i, h, k in entries)


def _largest(split: ScoreSplit, graph: Graph) -> ScoreSplit:
    """The split with its largest sources by themselves and the rest added to the bias node's row and
    column."""
    rest = int(np.flatnonzero(split.nodes == graph.kind.index("bias"))[0])
    keep, pairs = core_for("float64").graph_largest_pairs(split.pairs, rest, _STORED)
    return dataclasses.replace(split, nodes=split.nodes[keep], pairs=pairs)
