"""Where the nodes of a graph are, what they are called and which edges are drawn, in figure and page.

Positions run across, layers upwards: embeddings and biases at the bottom, logits on top.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..items import shortened

if TYPE_CHECKING:
    from .graph import Graph

_PER_LINE = 5  # so many nodes of a layer and position stand beside each other, of more a few more
_GAP = 1.1  # between the nodes of two cells
_EMPTY = 0.75  # height of a layer without nodes
_LONG_PROMPT = 12  # tokens; columns of longer prompts may be as narrow as one node
_WIDTHS = (3.4, 1.5)  # narrowest column of a short and of a long prompt
_BOW = 0.9  # how far an edge within one column bends to the side
_LABEL_SIGNS, _LOGIT_SIGNS = 30, 44
_SECOND_PARTS = ("->", "minus")  # of a label, on a line of its own in a drawing
_CLEARANCE = 1.0  # points between a label and anything else

KIND_NAMES = {
    "logit": "logit", "feature": "feature", "error": "error of an MLP", "token": "token embedding",
    "position": "position embedding", "bias": "biases", "other": "other features",
}  # fmt: skip
"""Kinds of nodes in the order of a legend."""
PLAIN_KINDS = ("position", "bias", "other")
"""Kinds that say nothing of the words: a drawing may leave them out."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Unit: the distance of two nodes beside each other; x goes right, y up from the lower left corner.

    nodes: int64 [n], node numbers; x, y: float64 [n], their places. columns: float64 [T], the middle of each
    position; rows: float64 [L + 2], the middle of the embeddings, of each layer and of the logits; tops:
    float64 [L + 2], their upper ends.
    """

    nodes: np.ndarray
    x: np.ndarray
    y: np.ndarray
    columns: np.ndarray
    rows: np.ndarray
    tops: np.ndarray
    width: float
    height: float


def lay_out(graph: Graph, nodes: np.ndarray) -> Layout:
    """Places of some nodes, int64 rising."""
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        cells[_row(graph, int(node)), int(graph.position[node])].append(i)
    n_rows, n_columns = graph.n_layer + 2, len(graph.tokens)
    narrowest = _WIDTHS[n_columns > _LONG_PROMPT]
    widths = dict.fromkeys(range(-1 if any(p < 0 for _, p in cells) else 0, n_columns), narrowest)
    heights = np.full(n_rows, _EMPTY)
    per_line = {}
    for (row, position), members in cells.items():
        most = max(_PER_LINE, math.ceil(math.sqrt(1.5 * len(members))))
        lines = len(members) if row in (0, n_rows - 1) else math.ceil(len(members) / most)
        per_line[row, position] = math.ceil(len(members) / lines)
        widths[position] = max(widths[position], per_line[row, position] - 1 + 2 * _GAP)
        heights[row] = max(heights[row], lines - 1 + 2 * _GAP)
    ends = np.cumsum(list(widths.values()))
    middles = dict(zip(widths, ends - np.array(list(widths.values())) / 2))
    tops = np.cumsum(heights)
    rows = tops - heights / 2
    x, y = np.empty(len(nodes)), np.empty(len(nodes))
    for (row, position), members in cells.items():
        if row == n_rows - 1:
            members.reverse()  # the most likely logit on top
        wide = per_line[row, position]
        n_lines = math.ceil(len(members) / wide)
        for at, i in enumerate(members):
            line, place = divmod(at, wide)
            here = min(wide, len(members) - line * wide)
            x[i] = middles[position] + place - (here - 1) / 2
            y[i] = rows[row] + line - (n_lines - 1) / 2
    columns = np.array([middles[p] for p in range(n_columns)])
    return Layout(nodes, x, y, columns, rows, tops, float(ends[-1]), float(tops[-1]))


def _row(graph: Graph, node: int) -> int:
    match graph.kind[node]:
        case "feature" | "error":
            return int(graph.layer[node]) + 1
        case "logit":
            return graph.n_layer + 1
        case _:
            return 0


def curves(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Control points float64 [m, 4, 2] of cubic curves that leave (start [m, 2]) and arrive (end) upwards.

    Within a column an edge bends to the right, the more the longer it is, and does not hide behind nodes.
    """
    (x0, y0), (x1, y1) = start.T, end.T
    rise = y1 - y0
    near = np.clip(1 - np.abs(x1 - x0) / 1.5, 0, 1)
    bow = near * _BOW * np.clip(rise / 6, 0.15, 1.6)
    points = [(x0, y0), (x0 + bow, y0 + 0.42 * rise), (x1 + bow, y1 - 0.42 * rise), (x1, y1)]
    return np.stack([np.stack(point, axis=1) for point in points], axis=1)


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges by falling |weight|: number int64 [m] in the graph, source and target int64 [m], weight [m]."""

    number: np.ndarray
    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.number)

    @property
    def ends(self) -> np.ndarray:
        """int64, rising: the nodes that have an edge."""
        return np.union1d(self.source, self.target)

    @property
    def strength(self) -> np.ndarray:
        """float64 [m]: |weight| of each edge as a share of the largest."""
        size = np.abs(self.weight.astype(np.float64))
        return np.asarray(size / max(float(size.max(initial=0)), np.finfo(np.float64).tiny))


def edges_between(graph: Graph, nodes: np.ndarray, most: int) -> tuple[Edges, int]:
    """The `most` strongest edges between some nodes, and the number of all of them."""
    target = np.repeat(np.arange(len(graph)), np.diff(graph.start))
    found = np.flatnonzero(np.isin(graph.source, nodes) & np.isin(target, nodes))
    chosen = found[np.argsort(-np.abs(graph.weights[found]), kind="stable")[:most]]
    return Edges(chosen, graph.source[chosen].astype(np.int64), target[chosen], graph.weights[chosen]), len(
        found
    )


def by_importance(graph: Graph, nodes: np.ndarray) -> np.ndarray:
    """The nodes, int64, logits by falling probability first, then by falling influence on the logits."""
    rank = graph._core.influence() if graph.influence is None else -graph.influence.astype(np.float64)
    logit = np.array([graph.kind[node] == "logit" for node in nodes], dtype=bool)
    first = np.nan_to_num(graph.probability[nodes], nan=1.0) * logit
    return nodes[np.lexsort((nodes, -rank[nodes], -first))]


def labelled(graph: Graph, nodes: np.ndarray, used: np.ndarray) -> list[int]:
    """Which of the nodes get a label, the most important first: logits, and features among `used`, those that
    have a drawn edge."""
    those = set(used.tolist())
    names = [(node, graph.kind[node]) for node in by_importance(graph, nodes).tolist()]
    return [n for n, kind in names if kind == "logit" or (kind == "feature" and n in those)]


def place_labels(
    marks: np.ndarray,
    radius: float,
    own: Sequence[int],
    sizes: Sequence[tuple[float, float]],
    frame: np.ndarray,
    most: int,
) -> list[np.ndarray | None]:
    """Boxes (x0, y0, x1, y1) for texts of some sizes (width, height), or None where nothing is free.

    marks: float64 [n, 2], all marks, `radius` wide to each side; own: the mark of each text; frame: the box
    that all must lie in; most: so many texts are placed at most, the first ones first. All in points.
    """
    taken = np.concatenate([marks - radius, marks + radius], axis=1)
    boxes: list[np.ndarray | None] = []
    for mark, size in zip(own, sizes):
        found = None if most == 0 else _free_place(marks, mark, radius, np.array(size), taken, frame)
        if found is not None:
            most -= 1
            taken = np.concatenate([taken, found[None]])
        boxes.append(found)
    return boxes


def _free_place(
    marks: np.ndarray, own: int, radius: float, size: np.ndarray, taken: np.ndarray, frame: np.ndarray
) -> np.ndarray | None:
    """A box beside its own mark that covers nothing; no other mark may be nearer to it."""
    for offset in _places(radius + _CLEARANCE, *size):
        corner = marks[own] + offset
        found = np.concatenate([corner, corner + size])
        if (found[:2] < frame[:2]).any() or (found[2:] > frame[2:]).any():
            continue
        apart = (taken[:, :2] >= found[2:] + _CLEARANCE / 2) | (taken[:, 2:] <= found[:2] - _CLEARANCE / 2)
        near = np.hypot(*(marks - np.clip(marks, corner, corner + size)).T)
        if apart.any(axis=1).all() and (near >= near[own]).all():
            return found
    return None


def _places(away: float, width: float, height: float) -> Iterator[tuple[float, float]]:
    """Lower left corners of a label around a mark at the origin, best first."""
    for x in (away, -away - width):
        yield x, -height / 2
    for y in (away, -away - height):
        for shift in (0.5, 0.15, 0.85):
            yield -shift * width, y


def short_label(graph: Graph, node: int) -> str:
    """The label beside a node in a drawing, which shows layer and position itself: shortened, and on two
    lines where one would be too long and a second part follows an arrow or "minus"."""
    label, kind = graph.labels[node], graph.kind[node]
    if kind == "feature" and label == f"feature {graph.feature[node]} of layer {graph.layer[node]}":
        return f"#{graph.feature[node]}"
    if kind == "error":
        return "error"
    if kind == "logit":
        label, most = label.removeprefix("Output "), _LOGIT_SIGNS
    else:
        most = _LABEL_SIGNS
    for sign in _SECOND_PARTS if len(label) > most else ():
        first, found, second = label.partition(f" {sign} ")
        if found and first:
            return f"{shortened(first, most)}\n{shortened(f'{sign} {second}', most)}"
    return shortened(label, most)


def without_plain(graph: Graph, nodes: np.ndarray) -> np.ndarray:
    """The nodes, int64, that are no biases, positions or other features."""
    return nodes[[graph.kind[node] not in PLAIN_KINDS for node in nodes]]


def closure_text(graph: Graph) -> str:
    """How exactly the edges add up."""
    when = " before pruning" if graph.pruned else ""
    return f"closure {graph.closure:.1e}{when}"


def pruning_text(graph: Graph) -> str:
    """The thresholds of a pruned graph."""
    if not graph.pruned:
        return "not pruned"
    parts = [f"{name.removesuffix('_threshold')}s with {share:g}" for name, share in graph.pruned.items()]
    return f"pruned: {', '.join(parts)} of the influence"
