"""The graph of component edges, in plain Python: names, order, selection, pruning, curves, JSON.

An executable specification that shares nothing with the package. Senders are the token embedding, every
head and every MLP; receivers are the q, k and v of every head, every MLP and the logits. An edge is one
sender into one receiver through the residual stream, without positions; a set of edges is a boolean matrix
[senders, receivers].
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from oracle import Array

Mask = NDArray[np.bool_]
GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # shares of edges, of the benchmark MIB

# ------------------------------------------------------------------------------------- names and indices


def senders(config: Mapping) -> list[str]:
    """input, then of every layer its heads and its MLP."""
    layers = range(config["n_layer"])
    return ["input", *(name for layer in layers for name in (*_heads(config, layer), f"m{layer}"))]


def receivers(config: Mapping) -> list[str]:
    """Of every layer the q of all heads, the k, the v, then the MLP; last the logits."""
    names = []
    for layer in range(config["n_layer"]):
        names += [f"{head}<{letter}>" for letter in "qkv" for head in _heads(config, layer)]
        names.append(f"m{layer}")
    return [*names, "logits"]


def _heads(config: Mapping, layer: int) -> list[str]:
    return [f"a{layer}.h{head}" for head in range(config["n_head"])]


def node_of(receiver: str) -> str:
    """a0.h1<q> -> a0.h1; an MLP and the logits are their own nodes."""
    return receiver.partition("<")[0]


def n_before(config: Mapping, receiver: str) -> int:
    """How many senders stand before a receiver. The heads of a layer stand before its MLP."""
    if receiver == "logits":
        return len(senders(config))
    return senders(config).index(_first_of_its_kind(receiver))


def _first_of_its_kind(receiver: str) -> str:
    return receiver if receiver.startswith("m") else f"{receiver.partition('.')[0]}.h0"


def real_edges(config: Mapping) -> Mask:
    """[senders, receivers]: whether the sender stands before the receiver."""
    names = receivers(config)
    mask = np.zeros((len(senders(config)), len(names)), bool)
    for v, name in enumerate(names):
        mask[: n_before(config, name), v] = True
    return mask


def edge_name(config: Mapping, u: int, v: int) -> str:
    """sender->receiver."""
    return f"{senders(config)[u]}->{receivers(config)[v]}"


def edge_names(config: Mapping) -> list[str]:
    """All edges in the order of the public tools: layer by layer and sender by sender, into every head its q,
    k and v, then into the MLP; the logits last."""
    names, written = [], ["input"]
    for layer in range(config["n_layer"]):
        heads = _heads(config, layer)
        names += [f"{u}->{head}<{letter}>" for u in written for head in heads for letter in "qkv"]
        written += heads
        names += [f"{u}->m{layer}" for u in written]
        written.append(f"m{layer}")
    return names + [f"{u}->logits" for u in written]


def mask_of(config: Mapping, names: Iterable[str]) -> Mask:
    """The set of the edges of these names."""
    mask, rows, columns = np.zeros_like(real_edges(config)), senders(config), receivers(config)
    for name in names:
        u, v = name.split("->")
        mask[rows.index(u), columns.index(v)] = True
    return mask


def names_of(config: Mapping, mask: Mask) -> set[str]:
    """The names of a set."""
    return {edge_name(config, u, v) for u, v in np.argwhere(mask & real_edges(config))}


# ----------------------------------------------------------------------------------- selection, pruning


def top_n(config: Mapping, scores: Array, n: int, absolute: bool = True) -> Mask:
    """The n best edges; of equal ones the first in the matrix, row by row. Nothing is pruned."""
    real = np.flatnonzero(real_edges(config))
    size = np.abs(scores) if absolute else np.asarray(scores)
    chosen = np.zeros(scores.size, bool)
    chosen[real[np.argsort(-size.ravel()[real], kind="stable")[:n]]] = True
    return chosen.reshape(scores.shape)


def greedy(config: Mapping, scores: Array, n: int, absolute: bool = True) -> Mask:
    """n times the best edge into a node that is already there, at first the logits; of equal ones the first
    in the matrix."""
    rows, columns = senders(config), receivers(config)
    size, real = np.abs(scores) if absolute else np.asarray(scores), real_edges(config)
    waiting: list[tuple[float, int, int]] = []
    chosen, there = np.zeros_like(real), set()

    def add(node: str) -> None:
        there.add(node)
        for v in (v for v, name in enumerate(columns) if node_of(name) == node):
            for u in np.flatnonzero(real[:, v]):
                heapq.heappush(waiting, (-float(size[u, v]), int(u), v))

    add("logits")
    for _ in range(n):
        _, u, v = heapq.heappop(waiting)
        chosen[u, v] = True
        if rows[u] not in there:
            add(rows[u])
    return chosen


def acdc(config: Mapping, kl: Callable[[Mask], float], threshold: float) -> Mask:
    """From the whole graph, receivers from the last to the first and senders from the last to the first: an
    edge goes if the divergence of the graph without it exceeds the present one by less than the threshold."""
    kept = real_edges(config)
    now = kl(kept)
    for v in reversed(range(kept.shape[1])):
        for u in reversed(range(n_before(config, receivers(config)[v]))):
            kept[u, v] = False
            after = kl(kept)
            if after - now < threshold:
                now = after
            else:
                kept[u, v] = True
    return kept


def pruned(config: Mapping, mask: Mask) -> Mask:
    """Without dangling nodes: as long as there is one, the edges of a node without an edge into any of its
    inputs or without an edge out of it go. `input` needs none into it, the logits none out of them."""
    rows, columns = senders(config), [node_of(name) for name in receivers(config)]
    kept = np.array(mask, bool) & real_edges(config)
    while True:
        fed = {columns[v] for v in np.flatnonzero(kept.any(0))} | {"input"}
        read = {rows[u] for u in np.flatnonzero(kept.any(1))} | {"logits"}
        after = kept & np.outer([u in fed for u in rows], [v in read for v in columns])
        if (after == kept).all():
            return kept
        kept = after


def kept_nodes(config: Mapping, mask: Mask) -> set[str]:
    """The senders left after pruning."""
    left = pruned(config, mask)
    return {name for u, name in enumerate(senders(config)) if left[u].any()}


def of_nodes(config: Mapping, nodes: Iterable[str]) -> Mask:
    """All edges out of these senders."""
    inside = set(nodes)
    return real_edges(config) & np.array([name in inside for name in senders(config)])[:, None]


# ----------------------------------------------------------------------------------------------- curves


def grid_sizes(n_items: int, grid: Sequence[float] = GRID) -> list[int]:
    """Items at each share of the grid, rounded down."""
    return [int(share * n_items) for share in grid]


def faithfulness(values: Array, full: Array, empty: Array) -> Array:
    """(m(C) - m(0)) / (m(M) - m(0)) of values [n_sets, P], means over prompts first."""
    return (np.asarray(values).mean(-1) - np.mean(empty)) / (np.mean(full) - np.mean(empty))


def area(curve: ArrayLike, grid: Sequence[float] = GRID, log: bool = False) -> float:
    """Trapezoids over the grid, from its first share on."""
    x, y = np.log(grid) if log else np.asarray(grid), np.asarray(curve, float)
    return float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum())


def cpr(curve: ArrayLike, **options) -> float:
    """Circuit performance ratio: the area under the faithfulness."""
    return area(curve, **options)


def cmd(curve: ArrayLike, **options) -> float:
    """Circuit-model distance: the area of |1 - faithfulness|."""
    return area(np.abs(1 - np.asarray(curve, float)), **options)


def precision_recall(chosen: Mask, true: Mask) -> tuple[float, float]:
    """Share of the chosen that are true (nothing chosen: 0) and of the true that are chosen."""
    hits = int((chosen & true).sum())
    return hits / max(1, int(chosen.sum())), hits / int(true.sum())


def roc(config: Mapping, scores: Array, true: Mask, absolute: bool = True) -> tuple[Array, Array]:
    """False and true positive rates of all thresholds, from (0, 0) to (1, 1); ties are one step."""
    real = real_edges(config)
    size, is_true = (np.abs(scores) if absolute else scores)[real], true[real]
    points = [(0.0, 0.0)]
    for threshold in np.unique(size)[::-1]:
        chosen = size >= threshold
        points.append(
            ((chosen & ~is_true).sum() / (~is_true).sum(), (chosen & is_true).sum() / is_true.sum())
        )
    false_rate, true_rate = np.transpose(points)
    return false_rate, true_rate


def auc(config: Mapping, scores: Array, true: Mask, absolute: bool = True) -> float:
    """P(a true edge scores higher than a false one) + P(equal) / 2, one pair after another."""
    real = real_edges(config)
    size = np.abs(scores) if absolute else np.asarray(scores)
    ones, others = size[real & true], size[real & ~true]
    return float((ones[:, None] > others).mean() + (ones[:, None] == others).mean() / 2)


# ------------------------------------------------------------------------------------------------- files


def to_json(config: Mapping, scores: Array, mask: Mask, node_scores: ArrayLike | None = None) -> dict:
    """What EAP-IG and MIB write for a graph of this model, as Python objects."""
    rows, columns = senders(config), receivers(config)
    inside = {name: {"in_graph": name in kept_nodes(config, mask)} for name in rows}
    if node_scores is not None:
        for name, score in zip(rows, np.asarray(node_scores)):
            inside[name]["score"] = float(score)
    edges = {}
    for name in edge_names(config):
        u, v = name.split("->")
        place = rows.index(u), columns.index(v)
        edges[name] = {"score": float(scores[place]), "in_graph": bool(mask[place])}
    head = {
        "n_layers": config["n_layer"], "n_heads": config["n_head"],
        "parallel_attn_mlp": False, "d_model": config["d_model"],
    }  # fmt: skip
    return {"cfg": head, "nodes": inside | {"logits": {"in_graph": True}}, "edges": edges}
