"""The attribution graph of a prompt in groups: heads behind an edge, dense beside sparse, above the sentence.

The dense model's heads are in a grid on the left. On the right, from above: the sparse model's heads, the
boxes of groups at their positions (across) and layers (upwards), the tokens. The red arrow runs from the word
to the answer and points to the heads that carry it. Everything drawn is a number of a `WordEffect`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path

from .. import _check
from ..graphs.word_effect import WordEffect
from ..items import shortened
from .attention import panel_size
from .panels import (
    PAD,
    STATEMENT,
    TITLE,
    TOKENS,
    draw_arrow,
    draw_tokens,
    entry_text,
    left_panel,
    map_side,
    maps_end,
    model_title,
    percent,
    right_panel,
    upright_height,
)
from .style import BLUE, DARK, GREY, LARGEST, PALE, PANEL, PLAIN_TEXT, RED, TOKEN_SIGNS, styled

if TYPE_CHECKING:
    from ..graphs.graph import Graph
    from ..graphs.groups import Group

# Inches.
_RIGHT = (5.2, 8.0)  # narrowest and widest right panel
_PITCH = 0.62  # room for a token, if there is so much
_GAP = 0.16  # between the panels
_SIGN = (0.08, 0.053, 0.056)  # width of a character of the title's two lines, and of the statement
_AXIS = 0.30  # left of the boxes, for the layers
_BEFORE_OUTPUT = 0.34  # between the two columns of the last position
_ABOVE = 0.62  # between the maps and the layers: the red arrow and its text
_LAYERS = 1.75  # height of all layers
_LANE = 0.14  # below the layers, for each arrow
_BOX = (0.74, 0.58)  # widest and narrowest box
_LEAST = (0.31, 0.45)  # height of a box at one position, at several
_TEXT = 1.45  # width of the red arrow's text
_SHADE = 0.4  # of the layer in which a group has most
_BEND = 0.07  # radius of an arrow's corners

BOXES = 6  # drawn at most
LEAST_BOX = 0.01  # share of the logit that a group must have to be drawn
LEAST_ARROW = 0.05  # and a flow, unless it is the strongest of its group


def graph_overview(
    dense: WordEffect, sparse: WordEffect, *, columns: int | None = None, base: int = 0
) -> Figure:
    """The graph of a prompt in groups, and the heads behind the edge from a word to the answer.

    Drawn are at most 6 groups as boxes, those whose influence is at least 1 % of the logit, each with its
    strongest arrow, and all arrows of at least 5 %.

    Parameters
    ----------
    dense, sparse : WordEffect
        Of two models, for the left and the right panel; the boxes are the groups of the second one.
    columns : int, optional
        Maps in a row on the left; None: as few as make the left panel no higher than the right one, but no
        more than a square has, at most 6.
    base : int, default 0
        Number of the first position, 0 or 1.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError
        For other objects.
    ValueError
        For columns below 1 and another base.
    """
    _check.instance(dense, WordEffect, "dense")
    _check.instance(sparse, WordEffect, "sparse")
    _check.base(base)
    sketch = _layout(sparse)
    side = map_side(sparse.n_drawn, sketch.width)
    if columns is None:
        columns = _columns(dense.n_drawn, (sketch.height - STATEMENT) / side)
    units = panel_size(dense.n_drawn, columns)
    side = min(side, LARGEST / max(units))
    left = (units[0] * side, units[1] * side)
    height = max(left[1] + STATEMENT, sketch.height)
    entry = (dense.query, dense.key)
    statement = entry_text(dense.graph.pattern, dense.drawn, entry, base)
    room = max(left[0], *(size * len(text) for size, text in zip(_SIGN, (*_title(dense), statement))))
    with styled():
        figure = plt.figure(figsize=(room + _GAP + sketch.width + 0.04, height + TITLE + 0.04))
        ax = left_panel(figure, _title(dense), dense.graph.pattern, dense.drawn, columns, left, entry, base)
        ax.annotate(statement, (0, 0), (2, -4), xycoords="axes fraction", textcoords="offset points",
                    ha="left", va="top", fontsize=7.5)  # fmt: skip
        size, entry = (sketch.width, sketch.height), (sparse.query, sparse.key)
        ax = right_panel(figure, _title(sparse), sparse.graph.pattern, sparse.drawn, size, entry, base)
        _draw_sketch(ax, sparse, sketch, base)
    return figure


def _columns(n: int, height: float) -> int:
    """The narrowest grid of n maps that is at most `height` maps high, or a square if that is narrower."""
    square = min(6, max(1, math.ceil(math.sqrt(n))))
    return next((i for i in range(1, square) if panel_size(n, i)[1] <= height), square)


def _title(found: WordEffect) -> tuple[str, str]:
    """The model and its number of heads; what they do."""
    graph = found.graph
    n = graph.n_layer * graph.n_head
    source, output = (repr(shortened(name, TOKEN_SIGNS)) for name in (found.source, found.output))
    second = f"{percent(found.share)} of what {source} does to {output}"
    return model_title(graph.model_name, found.n_drawn, n), second


# ----------------------------------------------------------------------------------------------- layout


@dataclass(frozen=True)
class _Arrow:
    source: str
    target: str
    weight: float


@dataclass(frozen=True)
class _Box:
    """Inches from the panel's upper left corner, y downwards."""

    group: Group
    x: float
    width: float
    top: float
    bottom: float

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2

    @property
    def sides(self) -> tuple[float, float]:
        return self.x - self.width / 2, self.x + self.width / 2


@dataclass(frozen=True)
class _Sketch:
    """Where everything of the right panel is, in inches."""

    width: float
    height: float
    maps: float
    """Lower edge of the maps."""
    layers: tuple[float, float]
    """Upper and lower edge of all layers."""
    tokens: float
    """Upper edge of the tokens."""
    x: np.ndarray
    """Middle of each position."""
    pitch: float
    boxes: dict[str, _Box]
    arrows: tuple[_Arrow, ...]
    """Other than the red one, strongest first."""


def _layout(found: WordEffect) -> _Sketch:
    tokens = found.graph.token_strings
    n = len(tokens)
    margins = 2 * PAD + _AXIS + _BEFORE_OUTPUT
    width = float(np.clip(_PITCH * (n + 1) + margins, *_RIGHT))
    box = min(_BOX[0], max(_BOX[1], 0.96 * (width - margins) / (n + 1)))
    pitch = (width - margins - box) / n
    slots = PAD + _AXIS + pitch * (np.arange(n + 1) + 0.5)
    slots[n] = width - PAD - box / 2
    x = slots[:n]
    maps = maps_end(found.n_drawn, width)
    top = maps + STATEMENT + _ABOVE
    layers = (top, top + _LAYERS)
    boxes = _boxes(found, slots, box, layers)
    arrows = _arrows(found, boxes)
    lanes = sum(not _beside(boxes[arrow.source], boxes[arrow.target]) for arrow in arrows)
    below = layers[1] + 0.06 + _LANE * lanes + upright_height(tokens)
    return _Sketch(width, below + TOKENS, maps, layers, below, x, pitch, boxes, arrows)


def _boxes(
    found: WordEffect, slots: np.ndarray, width: float, layers: tuple[float, float]
) -> dict[str, _Box]:
    """The strongest groups, each where it is strongest; one that would lie on a stronger one is left out."""
    least = LEAST_BOX * abs(float(found.graph.value[found.graph.logits].sum()))
    always = (found.source, found.output)
    groups = sorted(
        found.named_groups.values(), key=lambda group: (group.name not in always, -abs(group.influence))
    )
    boxes: dict[str, _Box] = {}
    for group in groups:
        if group.name not in always and (group.layers is None or abs(group.influence) < least):
            continue
        at = -1 if group.name == found.output else _strongest_position(found.graph, group)
        box = _box(group, float(slots[at]), width, layers, found.graph.n_layer)
        apart = all(
            abs(box.x - other.x) >= width or box.top >= other.bottom or box.bottom <= other.top
            for other in boxes.values()
        )
        if apart and len(boxes) < BOXES:
            boxes[group.name] = box
    return boxes


def _strongest_position(graph: Graph, group: Group) -> int:
    """Where the group has most influence."""
    if len(group.positions) == 1:
        return group.positions[0]
    at = graph.position[group.nodes]
    totals = [
        sum(abs(graph.total(group.nodes[at == p], int(t))) for t in graph.logits) for p in group.positions
    ]
    return group.positions[int(np.argmax(totals))]


def _box(group: Group, x: float, width: float, layers: tuple[float, float], n_layer: int) -> _Box:
    """Over the group's layers; the logits are a layer above the last."""
    first, last = group.layers or (0, 0)
    one = (layers[1] - layers[0]) / (n_layer + 1)
    top, bottom = layers[1] - (last + 1) * one + 0.01, layers[1] - first * one - 0.01
    missing = max(0.0, _LEAST[len(group.positions) > 1] - (bottom - top)) / 2
    top, bottom = top - missing, bottom + missing
    shift = min(0.0, layers[1] - bottom) + max(0.0, layers[0] - top)
    return _Box(group, x, width, top + shift, bottom + shift)


def _arrows(found: WordEffect, boxes: dict[str, _Box]) -> tuple[_Arrow, ...]:
    """Flows between the boxes: all strong ones, and the strongest of every box but the red arrow's."""
    names = list(found.named_groups)
    value = abs(float(found.graph.value[found.graph.logits].sum()))
    arrows = []
    for source in boxes:
        if source == found.output:
            continue
        flows = [_Arrow(source, target, float(found.flows[names.index(source), names.index(target)]))
                 for target in boxes if (source, target) != (found.source, found.output)]  # fmt: skip
        flows = sorted((flow for flow in flows if flow.weight), key=lambda flow: -abs(flow.weight))
        least = 0 if source != found.source else 1
        arrows += [
            flow for i, flow in enumerate(flows) if i < 1 - least or abs(flow.weight) >= LEAST_ARROW * value
        ]
    return tuple(sorted(arrows, key=lambda arrow: -abs(arrow.weight)))


def _beside(source: _Box, target: _Box) -> bool:
    """Whether a straight arrow from one to the other, to the right, crosses nothing."""
    overlap = min(source.bottom, target.bottom) - max(source.top, target.top)
    return 0 < target.sides[0] - source.sides[1] <= _BEFORE_OUTPUT + 0.1 and overlap > 0.2


def _passes_above(source: _Box, target: _Box, sketch: _Sketch) -> bool:
    """Whether an arrow to the right and then up to the target crosses no box."""
    if not (target.x > source.sides[1] + _BEFORE_OUTPUT / 2 and target.bottom < source.middle):
        return False
    return all(
        box in (source, target)
        or (
            not (
                box.sides[1] > source.sides[1]
                and box.sides[0] < target.x
                and box.top < source.middle < box.bottom
            )
            and not (box.sides[0] < target.x < box.sides[1] and target.bottom < box.top < source.middle)
        )
        for box in sketch.boxes.values()
    )


# ---------------------------------------------------------------------------------------------- drawing


def _draw_sketch(ax: Axes, found: WordEffect, sketch: _Sketch, base: int) -> None:
    """Boxes, arrows and tokens, below the maps."""
    graph, entry = found.graph, (found.query, found.key)
    _draw_layers(ax, sketch, graph.n_layer)
    draw_tokens(ax, graph.token_strings, sketch.x, sketch.tokens, sketch.pitch, entry, base)
    for box in sketch.boxes.values():
        _draw_box(ax, box, found, sketch.layers, base)
    _draw_main_arrow(ax, found, sketch)
    _draw_other_arrows(ax, sketch)


def _draw_layers(ax: Axes, sketch: _Sketch, n_layer: int) -> None:
    """Pale lines between the layers, and their numbers at the left."""
    top, bottom = sketch.layers
    one = (bottom - top) / (n_layer + 1)
    left = PAD + _AXIS - 0.04
    for layer in range(n_layer + 2):
        y = bottom - layer * one
        ax.plot([left, sketch.width - PAD], [y, y], color=PALE, linewidth=0.3, zorder=1)
    step = max(1, math.ceil(n_layer / 6))
    for layer in sorted({*range(0, n_layer - step + 1, step), n_layer}):
        y = bottom - (layer + 0.5) * one
        ax.text(
            left - 0.03,
            y,
            str(layer) if layer < n_layer else "logits",
            ha="right",
            va="center",
            fontsize=5.5,
            color=GREY,
        )
    ax.text(
        PAD - 0.02, (top + bottom) / 2, "layer", rotation=90, ha="center", va="center", fontsize=6, color=GREY
    )


def _draw_box(ax: Axes, box: _Box, found: WordEffect, layers: tuple[float, float], base: int) -> None:
    """Name and layers; behind them each layer as dark as what its features have of the group's influence."""
    group = box.group
    colour = {found.source: RED, found.output: BLUE}.get(group.name, DARK)
    shape = "round,pad=0,rounding_size=0.06"
    place = ((box.sides[0], box.top), box.width, box.bottom - box.top)
    ax.add_patch(FancyBboxPatch(*place, shape, fc="white", ec="none", zorder=3))
    outline = FancyBboxPatch(*place, shape, fill=False, ec=colour, linewidth=0.9, zorder=3.2)
    ax.add_patch(outline)
    one = (layers[1] - layers[0]) / (found.graph.n_layer + 1)
    for layer in np.flatnonzero(group.profile):
        corner = (box.sides[0], layers[1] - (layer + 1) * one)
        shade = _SHADE * float(group.profile[layer] / group.profile.max())
        row = Rectangle(corner, box.width, one, facecolor=colour, edgecolor="none", alpha=shade, zorder=3.1)
        ax.add_patch(row)
        row.set_clip_path(outline)
    places = [str(position + base) for position in group.positions]
    at = ", ".join(places if len(places) < 4 else [*places[:2], "…", places[-1]])
    lines = [
        (shortened(group.name, TOKEN_SIGNS), 7.5, "bold", colour),
        (group.layer_text, 6.0, "normal", DARK),
    ]
    lines += [(f"at {at}", 5.5, "normal", DARK)] if len(group.positions) > 1 else []
    for i, (text, most, weight, ink) in enumerate(lines):
        size = float(np.clip(72 * box.width / (0.66 * max(len(text), 1)), 3.5, most))
        y = box.middle + 0.13 * (i - (len(lines) - 1) / 2)
        ax.text(box.x, y, text, ha="center", va="center", fontsize=size, fontweight=weight, color=ink,
                zorder=4, **PLAIN_TEXT)  # fmt: skip


def _draw_main_arrow(ax: Axes, found: WordEffect, sketch: _Sketch) -> None:
    """From the word over everything to the answer, and from its text up to the maps of the drawn heads."""
    start, end = sketch.boxes[found.source], sketch.boxes[found.output]
    level = sketch.layers[0] - 0.16
    points = [(start.x, start.top), (start.x, level), (end.x, level), (end.x, end.top)]
    _draw_path(ax, points, RED, 1.6)
    middle = min((start.x + end.x) / 2, sketch.width - PAD - _TEXT / 2)
    text = f"Modulated at {percent(found.share)} by"
    ax.text(middle, level, text, ha="center", va="center", fontsize=8.5, zorder=5,
            bbox={"fc": PANEL, "ec": "none", "pad": 2})  # fmt: skip
    whole = _number(found.loadings["features"].whole)
    ax.text(start.x - 0.06, level, whole, ha="right", va="center", fontsize=7, color=RED)
    tip = sketch.maps + STATEMENT - 0.03
    draw_arrow(ax, (middle, level - 0.1), (middle, tip), DARK, 0.9)


def _draw_other_arrows(ax: Axes, sketch: _Sketch) -> None:
    """Straight ones where the boxes are side by side, the others in lanes below the layers."""
    strongest = max((abs(arrow.weight) for arrow in sketch.arrows), default=1.0)
    lane = sketch.layers[1] + 0.1
    for arrow in sketch.arrows:
        source, target = sketch.boxes[arrow.source], sketch.boxes[arrow.target]
        width = 0.5 + 0.9 * abs(arrow.weight) / strongest
        if _beside(source, target):
            y = (max(source.top, target.top) + min(source.bottom, target.bottom)) / 2
            points, label = [(source.sides[1], y), (target.sides[0], y)], (_BEFORE_OUTPUT / 2, -0.06)
            at = (source.sides[1] + label[0], y + label[1])
        elif _passes_above(source, target, sketch):
            points = [(source.sides[1], source.middle), (target.x, source.middle), (target.x, target.bottom)]
            at = ((source.sides[1] + target.x) / 2, source.middle)
        else:
            aside = 0.12 if target.x > source.x else -0.12
            points = [
                (source.x + aside, source.bottom),
                (source.x + aside, lane),
                (target.x, lane),
                (target.x, target.bottom),
            ]
            at = (source.x + 2.6 * aside, lane)
            lane += _LANE
        _draw_path(ax, points, DARK, width, arrow.weight < 0)
        ax.text(*at, _number(arrow.weight), ha="center", va="center", fontsize=6, color=DARK, zorder=5,
                bbox={"fc": "white", "ec": "none", "pad": 0.4})  # fmt: skip


def _draw_path(
    ax: Axes, points: list[tuple[float, float]], colour: str, width: float, dashed: bool = False
) -> None:
    """An arrow along straight pieces with round corners."""
    places = np.array(points)
    vertices, codes = [places[0]], [Path.MOVETO]
    for before, corner, after in zip(places, places[1:], places[2:]):
        for other in (before, after):
            length = float(np.abs(other - corner).sum())
            end = corner + (other - corner) * min(_BEND, length / 2) / (length or 1.0)
            vertices += [end] if other is before else [corner, end]
            codes += [Path.LINETO] if other is before else [Path.CURVE3, Path.CURVE3]
    path = Path([*vertices, places[-1]], [*codes, Path.LINETO])
    ax.add_patch(
        FancyArrowPatch(
            path=path, arrowstyle="-|>", mutation_scale=7, linewidth=width, color=colour, zorder=2.5,
            linestyle=(0, (4, 2)) if dashed else "-",
        )
    )  # fmt: skip


def _number(weight: float) -> str:
    """`+20.3`, `−0.8`."""
    digits = 1 if abs(weight) >= 0.95 else 2
    return f"{weight:+.{digits}f}".replace("-", "−")
