"""Groups of nodes as boxes in the drawing of a graph's page, with the sums of the edges between them."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np

from .._display import escaped
from ..items import shortened
from .layout import short_label

if TYPE_CHECKING:
    from .graph import Graph
    from .layout import Edges

Frame = tuple[float, float, float, float]

_HEIGHT, _PADDING, _GAP = 38.0, 9.0, 14.0  # pixels: of a box, beside its name, between two boxes
_STEP = 12.0  # of the search for a free place
_NAME_SIGNS, _NAME_SIZE, _SUM_SIZE = 26, 12.0, 10.0
_LINES = (0.6, 7.0)
_OPACITY = (0.3, 0.85)
_NUMBERED = 0.1  # of the largest |sum| that a line must have to bear its number
_DIGITS = 3


def draw_groups(
    graph: Graph, groups: list[dict[str, Any]], points: np.ndarray, edges: Edges, frame: Frame
) -> str:
    """SVG of a box for every group, and for every logit in none, at the middle of its nodes in `points`
    [n, 2], or beside it where a box is already; within `frame` if there is room. "" without groups."""
    if not groups:
        return ""
    inside = {node for group in groups for node in group["nodes"]}
    alone = [node for node in graph.logits.tolist() if node not in inside]
    members = [np.array(group["nodes"]) for group in groups] + [np.array([node]) for node in alone]
    names = [group["name"] for group in groups] + [short_label(graph, node) for node in alone]
    names = [shortened(name, _NAME_SIGNS) for name in names]
    wide = [max(text_width(name, _NAME_SIZE), 60.0) + 2 * _PADDING for name in names]
    boxes = _placed(np.stack([points[nodes].mean(axis=0) for nodes in members]), np.array(wide), frame)
    parts = _lines(group_sums(members, edges), boxes, names)
    for i, (name, box) in enumerate(zip(names, boxes)):
        parts.append(
            _box(f"g{i}" if i < len(groups) else f"gn{alone[i - len(groups)]}", name, box, members[i])
        )
    return "".join(parts)


def group_sums(members: list[np.ndarray], edges: Edges) -> np.ndarray:
    """float64 [g, g]: the sum of the edges from the nodes of one group to those of another; 0 in a group."""
    sums = np.zeros((len(members), len(members)))
    for a, sources in enumerate(members):
        leaving = np.isin(edges.source, sources)
        for b, targets in enumerate(members):
            if a != b:
                sums[a, b] = edges.weight[leaving & np.isin(edges.target, targets)].sum(dtype=np.float64)
    return sums


def _placed(middles: np.ndarray, wide: np.ndarray, frame: Frame) -> np.ndarray:
    """float64 [g, 4]: boxes (x0, y0, x1, y1), each at the free place next to its middle; none overlap."""
    x0, y0, x1, y1 = frame
    boxes = np.empty((0, 4))
    reach = max(x1 - x0, y1 - y0) + len(middles) * (_HEIGHT + _GAP)
    across = np.arange(-reach, reach + _STEP, _STEP)
    shifts = np.stack(np.meshgrid(across, across), axis=-1).reshape(-1, 2)
    shifts = shifts[np.argsort(np.hypot(*(shifts * (0.7, 1.0)).T), kind="stable")]
    for middle, width in zip(middles, wide):
        half = np.array([width, _HEIGHT]) / 2
        least = np.add(half, (x0, y0))
        middle = np.clip(middle, least, np.maximum((x1, y1) - half, least))
        corners = np.concatenate([middle - half + shifts, middle + half + shifts], axis=1)
        free = np.ones(len(corners), bool)
        for box in boxes:
            free &= ((corners[:, :2] >= box[2:] + _GAP) | (corners[:, 2:] <= box[:2] - _GAP)).any(axis=1)
        within = (corners[:, :2] >= (x0, y0)).all(axis=1) & (corners[:, 2:] <= (x1, y1)).all(axis=1)
        fits = free & within if (free & within).any() else free
        boxes = np.concatenate([boxes, corners[np.flatnonzero(fits)[:1]]])
    return boxes


def _lines(sums: np.ndarray, boxes: np.ndarray, names: list[str]) -> list[str]:
    """A line from the top of one box to the bottom of another for each sum, strong ones last."""
    largest = max(float(np.abs(sums).max(initial=0)), np.finfo(np.float64).tiny)
    parts, numbers = [], []
    order = np.argsort(np.abs(sums).ravel(), kind="stable")
    for a, b in zip(*np.unravel_index(order, sums.shape)):
        if not sums[a, b]:
            continue
        strength, kind = abs(sums[a, b]) / largest, "raises" if sums[a, b] >= 0 else "lowers"
        wide, solid = (low + (high - low) * strength for low, high in (_LINES, _OPACITY))
        start, end = (
            ((boxes[a, 0] + boxes[a, 2]) / 2, boxes[a, 1]),
            ((boxes[b, 0] + boxes[b, 2]) / 2, boxes[b, 3]),
        )
        bend = max(0.42 * abs(start[1] - end[1]), 24.0)
        curve = [start, (start[0], start[1] - bend), (end[0], end[1] + bend), end]
        (p, q, r, s) = (f"{x:.1f},{y:.1f}" for x, y in curve)
        said = f"{sums[a, b]:.{_DIGITS}g}"
        title = escaped(f"{names[a]} \u2192 {names[b]}: {said}")
        parts.append(
            f'<path class="bundle {kind}" stroke-width="{wide:.2f}" stroke-opacity="{solid:.2f}" '
            f'd="M{p}C{q} {r} {s}"><title>{title}</title></path>'
        )
        if strength >= _NUMBERED:
            x, y = (
                sum(w * point[d] for w, point in zip((0.125, 0.375, 0.375, 0.125), curve)) for d in (0, 1)
            )
            numbers.append(f'<text class="sum" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{said}</text>')
    return parts + numbers


def _box(name_id: str, name: str, box: np.ndarray, nodes: np.ndarray) -> str:
    x0, y0, x1, y1 = box
    count = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"
    middle, label = (x0 + x1) / 2, f"{escaped(name)}, {count}"
    return (
        f'<g id="{name_id}" class="supernode" tabindex="0" role="button" aria-label="{label}">'
        f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" rx="6"/>'
        f'<text class="name" x="{middle:.1f}" y="{y0 + 16:.1f}" text-anchor="middle">{escaped(name)}</text>'
        f'<text class="axis" x="{middle:.1f}" y="{y0 + 31:.1f}" text-anchor="middle">{count}</text></g>'
    )


def text_width(text: str, size: float) -> float:
    """Pixels that the longest line of a text takes at most in the usual sans-serif fonts."""
    lines = text.split("\n")
    wide = [sum(unicodedata.east_asian_width(sign) in "WF" for sign in line) for line in lines]
    return max(size * (0.6 * (len(line) - w) + 1.05 * w) + 2 for line, w in zip(lines, wide))
