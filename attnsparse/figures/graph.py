"""An attribution graph as a figure: positions across, layers upwards, edges by weight and sign."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.path import Path

from .. import _check
from ..graphs.graph import Graph
from ..graphs.layout import (
    KIND_NAMES,
    Edges,
    Layout,
    closure_text,
    curves,
    edges_between,
    labelled,
    lay_out,
    place_labels,
    pruning_text,
    short_label,
    without_plain,
)
from ..items import shortened
from .style import (
    BLUE,
    DARK,
    GREY,
    LABEL_SIGNS,
    ORANGE,
    PALE,
    PANEL,
    PLAIN_TEXT,
    VECTOR_LINES,
    check_axes,
    column_text,
    given_text,
    name_columns,
    size_labels,
    styled,
    text_size,
)

if TYPE_CHECKING:
    from matplotlib.backend_bases import RendererBase

    from ..graphs.select import Nodes

# Marker and colour of each kind; the colours are Okabe and Ito's.
_MARKS = {
    "logit": ("H", "#f0e442"),
    "feature": ("o", "#56b4e9"),
    "error": ("D", "#cc79a7"),
    "token": ("s", "#009e73"),
    "position": ("^", "#ffffff"),
    "bias": ("P", "#999999"),
    "other": ("X", "#999999"),
}

# Inches of a figure of our own: per unit of the layout, and around the drawing.
_UNIT = 0.15
_SMALLEST, _LARGEST = (3.6, 2.2), (15.0, 12.0)
_MARGINS = (1.0, 1.35, 0.75, 0.7)  # left, right, bottom, top

_LINES = (0.4, 2.6)  # points: width of the weakest and of the strongest edge
_OPACITY = (0.3, 0.85)
_LABEL_SIZE = 6.0
_NOTE_SIZE = 6.5


def graph(
    graph: Graph,
    ax: Axes | None = None,
    *,
    nodes: Nodes | None = None,
    max_edges: int = 200,
    max_labels: int = 40,
    biases: bool = False,
    base: int = 0,
    title: str | None = None,
) -> Axes:
    """The nodes of an attribution graph and the edges between them.

    Edges are blue where the source raises the target and orange where it lowers it, wider and darker for a
    larger ``|weight|``. A node without a drawn edge is pale. A note above the drawing says what was drawn of
    which graph.

    Parameters
    ----------
    graph : Graph
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    nodes : int, str, or sequence of these, optional
        Numbers or ids; all of them are drawn. None: all of a pruned graph, and of another one those that
        `graph.prune()` keeps, but for biases.
    max_edges : int, default 200
        The largest number of edges, by ``|weight|``.
    max_labels : int, default 40
        The largest number of labels, which the most influential nodes get where there is room.
    biases : bool, default False
        Draw biases, position embeddings and the sum of other features as well. They have large weights in
        every graph, and say nothing of the words.
    base : int, default 0
        Number of the first position, 0 or 1.
    title : str, optional
        In place of the prompt.

    Returns
    -------
    matplotlib.axes.Axes
        The edges are `ax.collections[0]`, by rising ``|weight|``; the nodes are the other collections, one
        per kind, with the kind as label.

    Raises
    ------
    IndexError, KeyError
        For nodes that do not exist.
    ValueError
        For no node at all, negative max_edges or max_labels, and another base.
    TypeError
        For other objects.
    """
    check_axes(ax)
    _check.instance(graph, Graph, "graph")
    base = _check.base(base)
    max_edges = _check.integer(max_edges, "max_edges", 0)
    max_labels = _check.integer(max_labels, "max_labels", 0)
    biases = _check.flag(biases, "biases")
    whole, here = graph, False
    if nodes is None and not graph.pruned:
        graph, here = graph.prune(), True
    every = np.arange(len(graph))
    chosen = graph.nodes_of(nodes) if nodes is not None else every if biases else without_plain(graph, every)
    if not len(chosen):
        raise ValueError("nodes is empty: a figure of a graph needs at least one node")
    how = pruning_text(graph) + (", for this figure" if here else "")
    if nodes is None and len(chosen) < len(graph):
        how += "; biases and positions not drawn"
    layout = lay_out(graph, chosen)
    edges, n_edges = edges_between(graph, chosen, max_edges)
    with styled():
        if ax is None:
            ax = _own_axes(layout)
        _draw_rows(ax, graph, layout, base)
        unit = _unit_points(ax, layout)
        _draw_edges(ax, layout, edges)
        _draw_nodes(ax, graph, layout, edges, unit)
        _draw_legend(ax, layout, edges)
        _write_note(ax, whole, f"{how}; {closure_text(graph)}", len(chosen), edges, n_edges, title)
        ax.add_artist(_Labels(ax, graph, layout, edges, _diameter(unit) / 2, max_labels))
    return ax


# -------------------------------------------------------------------------------------------- parts


def _own_axes(layout: Layout) -> Axes:
    inches = np.clip(np.array([layout.width, layout.height]) * _UNIT, _SMALLEST, _LARGEST)
    left, right, bottom, top = _MARGINS
    width, height = inches[0] + left + right, inches[1] + bottom + top
    figure = plt.figure(figsize=(width, height))
    return figure.add_axes((left / width, bottom / height, inches[0] / width, inches[1] / height))


def _unit_points(ax: Axes, layout: Layout) -> float:
    """Points per unit of the layout, the smaller of both directions."""
    box = ax.get_window_extent()
    pixels = min(box.width / layout.width, box.height / layout.height)
    return float(pixels * 72 / ax.figure.dpi)


def _draw_rows(ax: Axes, graph: Graph, layout: Layout, base: int) -> None:
    """A band for every second layer, the tokens with their positions below, the layers at the left."""
    bottoms = np.concatenate([[0.0], layout.tops[:-1]])
    for row in range(0, len(layout.tops), 2):
        ax.axhspan(bottoms[row], layout.tops[row], color=PANEL, linewidth=0, zorder=0)
    ax.set(xlim=(0, layout.width), ylim=(0, layout.height))
    name_columns(ax, layout.columns, [column_text(token) for token in graph.token_strings], base)
    names = ["embeddings", *map(str, range(graph.n_layer)), "logits"]
    ax.set_yticks(layout.rows, names)
    ax.set(ylabel="layer")
    ax.tick_params(length=0)
    size_labels(ax)
    ax.spines[:].set_visible(False)


def _draw_edges(ax: Axes, layout: Layout, edges: Edges) -> None:
    """Weak edges below strong ones."""
    place = {int(node): i for i, node in enumerate(layout.nodes)}
    points = np.stack([layout.x, layout.y], axis=1)
    ends = [points[[place[int(n)] for n in side]].reshape(-1, 2) for side in (edges.source, edges.target)]
    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    paths = [Path(curve, codes) for curve in curves(*ends)[::-1]]
    strength = edges.strength[::-1]
    colours = np.empty((len(edges), 4))
    colours[:, :3] = np.where(edges.weight[::-1, None] >= 0, to_rgb(BLUE), to_rgb(ORANGE))
    colours[:, 3] = _OPACITY[0] + (_OPACITY[1] - _OPACITY[0]) * strength
    widths = _LINES[0] + (_LINES[1] - _LINES[0]) * strength
    lines = PathCollection(
        paths,
        facecolors="none",
        edgecolors=colours,
        linewidths=widths,
        capstyle="butt",
        zorder=2,
        rasterized=len(edges) > VECTOR_LINES,
    )
    ax.add_collection(lines, autolim=False)


def _diameter(unit: float) -> float:
    """Points across a mark."""
    return float(np.clip(0.68 * unit, 2.0, 8.0))


def _draw_nodes(ax: Axes, graph: Graph, layout: Layout, edges: Edges, unit: float) -> None:
    kinds = np.array([graph.kind[node] for node in layout.nodes])
    used = np.isin(layout.nodes, edges.ends)
    for kind, (marker, colour) in _MARKS.items():
        mine = kinds == kind
        if not mine.any():
            continue
        ax.scatter(
            layout.x[mine], layout.y[mine], s=_diameter(unit) ** 2, marker=marker, label=kind, zorder=4,
            c=[colour if u else "none" for u in used[mine]],
            edgecolors=[DARK if u else PALE for u in used[mine]], linewidths=0.6, clip_on=False,
        )  # fmt: skip


def _draw_legend(ax: Axes, layout: Layout, edges: Edges) -> None:
    """Kinds that are drawn, signs, and the widths of the largest |weight| and of a quarter of it."""
    drawn = {collection.get_label() for collection in ax.collections}
    handles = [
        Line2D(
            [], [], linestyle="", marker=marker, color=colour, mec=DARK, mew=0.6, ms=5, label=KIND_NAMES[kind]
        )
        for kind, (marker, colour) in _MARKS.items()
        if kind in drawn
    ]
    if not np.isin(layout.nodes, edges.ends).all():
        handles.append(
            Line2D([], [], linestyle="", marker="o", color="#ffffff", mec=PALE, ms=5, label="no edge drawn")
        )
    if len(edges):
        largest = float(np.abs(edges.weight).max())
        signs = ((BLUE, "raises", edges.weight > 0), (ORANGE, "lowers", edges.weight < 0))
        handles += [
            Line2D([], [], color=c, linewidth=1.6, label=name) for c, name, any_ in signs if any_.any()
        ]
        for share in (1.0, 0.25):
            width = _LINES[0] + (_LINES[1] - _LINES[0]) * share
            text = f"|weight| {_number(share * largest)}"
            handles.append(Line2D([], [], color=GREY, linewidth=width, label=text))
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, borderaxespad=0,
        handlelength=1.4, labelspacing=0.55,
    )  # fmt: skip


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.2g}"


def _write_note(
    ax: Axes,
    whole: Graph,
    how: str,
    n_nodes: int,
    edges: Edges,
    n_edges: int,
    title: str | None,
) -> None:
    """Bold the prompt; below it in grey what was drawn of which graph; how: the end of that."""
    width = ax.get_window_extent().width * 72 / ax.figure.dpi
    names = (whole.model_name, whole.transcoders_name)
    parts = [
        ", ".join(shortened(name, LABEL_SIGNS) for name in names if name),
        f"{n_nodes:,} of {len(whole):,} nodes" if n_nodes < len(whole) else f"{n_nodes:,} nodes",
        f"the {len(edges):,} strongest of {n_edges:,} edges"
        if len(edges) < n_edges
        else f"{n_edges:,} edges",
        how,
    ]
    lines = textwrap.wrap("; ".join(parts), max(int(width / (0.5 * _NOTE_SIZE)), 30))
    ax.annotate(
        "\n".join(lines), (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", ha="left",
        va="bottom", fontsize=_NOTE_SIZE, color=GREY, linespacing=1.2, **PLAIN_TEXT,
    )  # fmt: skip
    text = shortened(whole.prompt, max(int(width / 5.4), 20)) if title is None else given_text(title)
    ax.set_title(text, loc="left", pad=9 + 1.2 * _NOTE_SIZE * len(lines), fontweight="bold", **PLAIN_TEXT)


# ------------------------------------------------------------------------------------------- labels


class _Labels(Artist):
    """Labels of the most influential nodes, each beside its mark where it covers no mark and no other label.

    Draws nothing itself: it places the texts each time before they are drawn, because the size of
    the Axes is only known then, and hides those that have none.
    """

    def __init__(
        self, ax: Axes, graph: Graph, layout: Layout, edges: Edges, radius: float, most: int
    ) -> None:
        super().__init__()
        self.set_zorder(4.5)
        self.set_in_layout(False)
        self._marks = np.stack([layout.x, layout.y], axis=1)
        self._ax, self._radius, self._most = ax, radius, most
        place = {int(node): i for i, node in enumerate(layout.nodes)}
        wanted = labelled(graph, layout.nodes, edges.ends)
        self._own = [place[node] for node in wanted]
        self._sizes = [text_size(short_label(graph, node), _LABEL_SIZE) for node in wanted]
        self._texts = [
            ax.text(
                *_point(self._marks[place[node]]), short_label(graph, node), ha="center", va="center",
                zorder=5, fontsize=_LABEL_SIZE, color="black", in_layout=False, visible=False,
                bbox={"boxstyle": "square,pad=0.05", "fc": "white", "alpha": 0.7, "lw": 0}, **PLAIN_TEXT,
            )
            for node in (wanted if most else [])
        ]  # fmt: skip

    def draw(self, renderer: RendererBase) -> None:
        """Place the texts."""
        ax = self._ax
        point = ax.figure.dpi / 72
        marks = ax.transData.transform(self._marks) / point
        frame = np.ravel(ax.get_window_extent().get_points()) / point
        boxes = place_labels(marks, self._radius, self._own, self._sizes, frame, self._most)
        for box, text in zip(boxes, self._texts):
            place = text.get_position()
            if box is not None:
                middle = (box[:2] + box[2:]) / 2 * point
                place = _point(ax.transData.inverted().transform(middle))
            if (text.get_visible(), text.get_position()) != (box is not None, place):  # else drawn forever
                text.set_visible(box is not None)
                text.set_position(place)
        self.stale = False


def _point(xy: np.ndarray) -> tuple[float, float]:
    return float(xy[0]), float(xy[1])
