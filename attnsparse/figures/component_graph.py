"""A circuit of component edges as a graph: layers upwards, heads side by side, MLPs in their own column."""

from __future__ import annotations

import textwrap
from typing import Literal, NamedTuple, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from matplotlib.path import Path

from .. import _check
from ..circuits.components import names as names
from ..circuits.components.circuit import ComponentCircuit
from ..items import shortened
from .style import (
    BLUE,
    DARK,
    GREY,
    LABEL_SIGNS,
    LARGEST,
    ORANGE,
    PANEL,
    PLAIN_TEXT,
    VECTOR_LINES,
    check_axes,
    given_text,
    size_labels,
    styled,
    text_size,
)

# Inches of a figure of our own: per column and per layer, and around the drawing: left, right, bottom, top.
_COLUMN, _LAYER = 0.46, 0.76
_MARGINS = (0.75, 1.3, 0.1, 0.6)
_SMALLEST = (2.6, 1.8)

# In columns and layers: a box; how much higher an MLP is than the heads of its layer; room beside the MLPs;
# how far from an MLP's middle component edges end, from heads at the left, from MLPs at the right.
_BOX = (0.84, 0.33)
_RISE = 0.5
_BESIDE = 1.0
_SIDE = 0.3
_WIDE = 1.7  # of the input and the logits
_PORTS = {"q": -0.28, "k": 0.0, "v": 0.28}  # from the middle of a head's lower side
_MARKS = {"q": "^", "k": "s", "v": "o"}
_FACES = {"a": "#e6eef8", "m": "#f6efe0"}

_LINES = (0.5, 2.8)  # points: width of the weakest and of the strongest component edge
_OPACITY = (0.45, 0.9)
_DASHES = (0, (3.2, 1.6))  # below 0, so that the sign survives grey printing
_LABEL_SIZE, _LETTER_SIZE, _NOTE_SIZE = 6.0, 4.6, 6.5
_HOW = {"top": "best", "greedy": "greedy"}
_READABLE = 3.0  # points: smaller texts are left out


_Dashes: TypeAlias = "Literal['solid'] | tuple[float, tuple[float, float]]"


class _Edges(NamedTuple):
    """The component edges that are drawn, by rising |score|, and how many the circuit has."""

    sender: np.ndarray
    receiver: np.ndarray
    score: np.ndarray
    n: int

    @property
    def strength(self) -> np.ndarray:
        """|score| as a share of the largest."""
        sizes = np.abs(self.score)
        share: np.ndarray = sizes / max(float(sizes.max(initial=0.0)), np.finfo(np.float64).tiny)
        return share


class _Layout(NamedTuple):
    """Where the nodes of a circuit are, in columns and layers."""

    places: dict[str, tuple[float, float]]
    layers: list[int]
    width: float
    height: float


def component_graph(
    circuit: ComponentCircuit,
    n: int | None = None,
    ax: Axes | None = None,
    *,
    prune: bool = True,
    max_edges: int = 500,
    title: str | None = None,
) -> Axes:
    """A circuit of component edges, from the input at the bottom to the logits at the top.

    Only nodes and layers of the circuit are drawn. The three places on the lower side of a head are its q, k
    and v, which also have marks of their own. Component edges are blue where the score is above 0, orange and
    dashed where it is below, wider for a larger ``|score|``.

    Parameters
    ----------
    circuit : ComponentCircuit
    n : int, optional
        Of the n best component edges. None: the set `circuit.given`, which came with the scores.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    prune : bool, default True
        Without dangling nodes, as in `ComponentCircuit.mask`.
    max_edges : int, default 500
        The largest number of component edges that are drawn, by ``|score|``; a note says of how many.
    title : str, optional
        In place of model and task; at most 160 characters a line are shown.

    Returns
    -------
    matplotlib.axes.Axes
        `ax.collections` are the component edges above and below 0 with the labels "positive" and "negative",
        each by rising ``|score|``.

    Raises
    ------
    ValueError
        If no component edge is to be drawn, and for numbers out of range.
    TypeError
        For other objects.
    """
    check_axes(ax)
    _check.instance(circuit, ComponentCircuit, "circuit")
    max_edges = _check.integer(max_edges, "max_edges", 1)
    if n is None:
        if circuit.given is None:
            raise ValueError("n must be given: this circuit has scores, and no set of component edges")
        mask = circuit.given
    else:
        mask = circuit.mask(_check.integer(n, "n", 0, circuit.n_edges), prune=prune)
    if not mask.any():
        asked = "the set given" if n is None else f"n={n}"
        raise ValueError(
            f"the circuit of {asked} has no component edge to draw; give a larger n, or prune=False"
        )
    shape = names.Shape(circuit.n_layer, circuit.n_head)
    edges = _strongest(circuit.scores, mask, max_edges)
    senders, receivers = names.senders(shape), names.receivers(shape)
    ends = [(senders[u], receivers[v]) for u, v in zip(edges.sender.tolist(), edges.receiver.tolist())]
    layout = _lay_out({name.partition("<")[0] for pair in ends for name in pair})
    with styled():
        if ax is None:
            ax = _own_axes(layout)
        _draw_rows(ax, layout)
        points = _column_points(ax, layout)
        _draw_edges(ax, layout, edges, ends)
        _draw_ports(ax, layout, ends, points)
        _draw_nodes(ax, layout, points)
        _draw_legend(ax, edges, ends)
        _write_note(ax, circuit, edges, n, title)
    return ax


# -------------------------------------------------------------------------------------------- layout


def _strongest(scores: np.ndarray, mask: np.ndarray, most: int) -> _Edges:
    """Of equal ones the first in the matrix comes last, above the others."""
    sender, receiver = np.nonzero(mask)
    score = scores[sender, receiver]
    order = np.argsort(-np.abs(score), kind="stable")[:most][::-1]
    return _Edges(sender[order], receiver[order], score[order], len(score))


def _layer_of(name: str) -> int:
    return int(name[1:].partition(".")[0])


def _lay_out(nodes: set[str]) -> _Layout:
    """The heads of a layer side by side in their order, around the middle; MLPs to the right of all."""
    inner = nodes - {"input", "logits"}
    layers = sorted({_layer_of(name) for name in inner})
    heads: dict[int, list[str]] = {layer: [] for layer in layers}
    for name in sorted((n for n in inner if n[0] == "a"), key=lambda n: int(n.partition(".h")[2])):
        heads[_layer_of(name)].append(name)
    most = max([1, *map(len, heads.values())])
    wide = max(most, _WIDE) if nodes - inner else most  # the input and the logits are wider than one head
    places, middle = {}, (wide - 1) / 2
    bottom = 1.0 if "input" in nodes else 0.0
    for row, layer in enumerate(layers):
        y = bottom + row
        for i, name in enumerate(heads[layer]):
            places[name] = (middle + i - (len(heads[layer]) - 1) / 2, y)
        if f"m{layer}" in nodes:
            places[f"m{layer}"] = ((wide + most) / 2 + 0.1, y + _RISE)
    has_mlp = any(name[0] == "m" for name in inner)
    width = (wide + most) / 2 + 0.1 + 1 + _BESIDE if has_mlp else wide
    if "input" in nodes:
        places["input"] = (middle, 0.0)
    if "logits" in nodes:
        places["logits"] = (middle, bottom + len(layers) + 0.1)
    return _Layout(places, layers, width, max(y for _, y in places.values()) + 0.7)


def _own_axes(layout: _Layout) -> Axes:
    left, right, bottom, top = _MARGINS
    most = LARGEST - left - right, LARGEST - bottom - top
    inches = np.clip((layout.width * _COLUMN, layout.height * _LAYER), _SMALLEST, most)
    width, height = inches[0] + left + right, inches[1] + bottom + top
    figure = plt.figure(figsize=(width, height))
    return figure.add_axes((left / width, bottom / height, inches[0] / width, inches[1] / height))


def _column_points(ax: Axes, layout: _Layout) -> tuple[float, float]:
    """Points per column and per layer."""
    box = ax.get_window_extent()
    point = ax.figure.dpi / 72
    return float(box.width / layout.width / point), float(box.height / layout.height / point)


def _half_width(name: str) -> float:
    return (_WIDE if name in ("input", "logits") else _BOX[0]) / 2


# --------------------------------------------------------------------------------------------- parts


def _draw_rows(ax: Axes, layout: _Layout) -> None:
    """A band for every second layer, and the layers' numbers at the left."""
    bottom = 1.0 if "input" in layout.places else 0.0
    for row in range(0, len(layout.layers), 2):
        ax.axhspan(bottom + row - 0.4, bottom + row + 0.6, color=PANEL, linewidth=0, zorder=0)
    ax.set(xlim=(-0.5, layout.width - 0.5), ylim=(-0.35, layout.height - 0.35))
    ax.set_xticks([])
    rows = [bottom + row + 0.1 for row in range(len(layout.layers))]
    ax.set_yticks(rows, [f"layer {layer}" for layer in layout.layers])
    ax.tick_params(length=0)
    size_labels(ax)
    ax.spines[:].set_visible(False)


def _curve(layout: _Layout, sender: str, receiver: str) -> np.ndarray:
    """Corners [4, 2] of the curve of a component edge: upwards out of the sender, upwards into the receiver.

    Beside the MLPs, whose column it would cross otherwise, it bows: to the right between two MLPs, the
    further the longer it is, and to the left on its way from or to anything else.
    """
    node, _, letter = receiver.partition("<")
    (x0, y0), (x1, y1) = layout.places[sender], layout.places[node]
    y0, y1 = y0 + _BOX[1] / 2, y1 - _BOX[1] / 2
    rise = 0.45 * max(y1 - y0, 0.25)
    rises, bows = [rise, rise], [0.0, 0.0]
    if sender[0] == node[0] == "m":
        x0, x1 = x0 + _SIDE, x1 + _SIDE
        bows = [_BESIDE * 1.3 * max((y1 - y0 - 0.7) / layout.height, 0.0) ** 0.7] * 2
    elif sender[0] == "m":
        x0, rises[0], bows[0] = x0 - _SIDE, min(rise, 0.5), -2 * _SIDE
    elif node[0] == "m":
        x1, rises[1], bows[1] = x1 - _SIDE, min(rise, 0.5), -2 * _SIDE
    if sender == "input":
        x0 += _lean(x1 - x0, layout)
    if node == "logits":
        x1 += _lean(x0 - x1, layout)
    x1 += _PORTS[letter[0]] * _BOX[0] if letter else 0.0
    return np.array([(x0, y0), (x0 + bows[0], y0 + rises[0]), (x1 + bows[1], y1 - rises[1]), (x1, y1)])


def _lean(away: float, layout: _Layout) -> float:
    """Where on a wide box a component edge ends that goes `away` columns to the side."""
    return float(0.8 * _WIDE / 2 * np.clip(2 * away / layout.width, -1, 1))


def _draw_edges(ax: Axes, layout: _Layout, edges: _Edges, ends: list[tuple[str, str]]) -> None:
    """Weak component edges below strong ones, those below 0 dashed."""
    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    for positive, colour, dashes in ((True, BLUE, "solid"), (False, ORANGE, _DASHES)):
        mine = np.flatnonzero((edges.score >= 0) == positive)
        if not len(mine):
            continue
        strength = edges.strength[mine]
        colours = np.empty((len(mine), 4))
        colours[:, :3] = to_rgb(colour)
        colours[:, 3] = _OPACITY[0] + (_OPACITY[1] - _OPACITY[0]) * strength
        lines = PathCollection(
            [Path(_curve(layout, *ends[i]), codes) for i in mine],
            facecolors="none",
            edgecolors=colours,
            linewidths=_LINES[0] + (_LINES[1] - _LINES[0]) * strength,
            linestyles=[dashes],
            capstyle="butt",
            label="positive" if positive else "negative",
            zorder=2,
            rasterized=len(mine) > VECTOR_LINES,
        )
        ax.add_collection(lines, autolim=False)


def _draw_ports(ax: Axes, layout: _Layout, ends: list[tuple[str, str]], points: tuple[float, float]) -> None:
    """A mark of its own for every q, k and v that is read."""
    size = float(np.clip(0.1 * points[0], 1.0, 2.6))
    for letter in _used_letters(ends):
        read = sorted({receiver for _, receiver in ends if f"<{letter}>" in receiver})
        places = np.array([layout.places[name.partition("<")[0]] for name in read])
        ax.plot(
            places[:, 0] + _PORTS[letter] * _BOX[0],
            places[:, 1] - _BOX[1] / 2,
            _MARKS[letter],
            color=DARK,
            markersize=size,
            markeredgewidth=0,
            label=f"_{letter}",
            zorder=4,
        )


def _used_letters(ends: list[tuple[str, str]]) -> list[str]:
    return [letter for letter in _PORTS if any(f"<{letter}>" in receiver for _, receiver in ends)]


def _draw_nodes(ax: Axes, layout: _Layout, points: tuple[float, float]) -> None:
    """Boxes with their names; q, k and v in the heads' lower half."""
    room = 0.94 * points[0] * _BOX[0] / max(text_size(name, 1.0)[0] - 1 for name in layout.places)
    label = min(_LABEL_SIZE, room, 0.42 * points[1] * _BOX[1])
    letters = min(_LETTER_SIZE, 0.3 * points[1] * _BOX[1])
    for name, (x, y) in layout.places.items():
        half, is_head = _half_width(name), name[0] == "a"
        box = FancyBboxPatch(
            (x - half, y - _BOX[1] / 2), 2 * half, _BOX[1], boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=_FACES.get(name[0] if name[0] == "a" or name[1:].isdigit() else "", "white"),
            edgecolor=DARK, linewidth=0.5, zorder=3,
        )  # fmt: skip
        ax.add_patch(box)
        if label >= _READABLE:
            up = 0.2 * _BOX[1] if is_head else 0.0
            ax.text(x, y + up, name, ha="center", va="center", fontsize=label, zorder=5)
        if is_head and letters >= _READABLE:
            for letter, beside in _PORTS.items():
                ax.text(
                    x + beside * _BOX[0], y - 0.22 * _BOX[1], letter, ha="center", va="center",
                    fontsize=letters, color=GREY, zorder=5,
                )  # fmt: skip


def _draw_legend(ax: Axes, edges: _Edges, ends: list[tuple[str, str]]) -> None:
    """Signs and q, k, v that are drawn, and the widths of the largest |score| and of a quarter of it."""
    signs: tuple[tuple[str, _Dashes, str, np.ndarray], ...] = (
        (BLUE, "solid", "score above 0", edges.score >= 0),
        (ORANGE, _DASHES, "score below 0", edges.score < 0),
    )
    handles = [
        Line2D([], [], color=colour, linestyle=dashes, linewidth=1.6, label=text)
        for colour, dashes, text, any_ in signs
        if any_.any()
    ]
    largest = float(np.abs(edges.score).max())
    for share in (1.0, 0.25):
        width = _LINES[0] + (_LINES[1] - _LINES[0]) * share
        handles.append(Line2D([], [], color=GREY, linewidth=width, label=f"|score| {share * largest:.2g}"))
    handles += [
        Line2D(
            [], [], color=DARK, linestyle="", marker=_MARKS[letter], markersize=3.5, label=f"into {letter}"
        )
        for letter in _used_letters(ends)
    ]
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, borderaxespad=0,
        handlelength=2.2, labelspacing=0.55,
    )  # fmt: skip


def _write_note(ax: Axes, circuit: ComponentCircuit, edges: _Edges, n: int | None, title: str | None) -> None:
    """Bold model and task; below them in grey which circuit it is, and what of it is drawn."""
    width = ax.get_window_extent().width * 72 / ax.figure.dpi
    drawn = "" if len(edges.score) == edges.n else f"the {len(edges.score):,} strongest of "
    asked = "" if n is None or n == edges.n else f" ({n:,} requested)"
    parts = [f"{drawn}{edges.n:,} of {circuit.n_edges:,} component edges{asked}"]
    parts += [shortened(circuit.method, LABEL_SIGNS)] if circuit.method else []
    parts += [] if n is None else [f"{_HOW[circuit.select]} by {circuit.rank_by} score"]
    lines = textwrap.wrap("; ".join(parts), max(int(width / (0.5 * _NOTE_SIZE)), 30))
    ax.annotate(
        "\n".join(lines), (0, 1), (0, 3), xycoords="axes fraction", textcoords="offset points", ha="left",
        va="bottom", fontsize=_NOTE_SIZE, color=GREY, linespacing=1.2, **PLAIN_TEXT,
    )  # fmt: skip
    own = ", ".join(shortened(name, LABEL_SIGNS) for name in (circuit.model, circuit.task) if name)
    text = (own or "component edges") if title is None else given_text(title)
    ax.set_title(text, loc="left", pad=6 + 1.2 * _NOTE_SIZE * len(lines), fontweight="bold", **PLAIN_TEXT)
