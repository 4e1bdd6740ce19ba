"""The page of a graph: one HTML file that needs nothing else and asks the network for nothing.

The drawing is made here; assets/graph.js shows lists, heads and attention maps of what is clicked. All
numbers are in the page as JSON. The Content-Security-Policy lets no script run but this one, and nothing be
loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._display import escaped
from .._page import asset, escaped_json, filled, joined, show_page, write_page
from .._version import __version__
from ..items import shortened, token_label
from .layout import (
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
)
from .page_cards import card_data, group_data
from .page_data import direct_edges, page_data, shown_label, shown_token
from .page_groups import draw_groups, text_width
from .prune import known_scores

if TYPE_CHECKING:
    from ..transcoders.labels import FeatureLabels
    from .graph import Graph
    from .groups import Group
    from .select import Nodes

MAX_EDGES = 3000
_ADVICE = "lower max_edges or the thresholds"
_FOLDER = Path(__file__).parent / "assets"
SCRIPTS = ("extras.js", "graph.js")
"""Of the page, in this order."""
_DRAWN = 200  # edges shown before anything is clicked
_MAX_LABELS = 80

# Pixels.
_UNIT = 21.0
_MARGINS = (78, 22, 14, 58)  # left, right, top, bottom
_WIDE = 1100.0  # drawings from here on have the names of the layers on both sides
_RADIUS = 6.0
_LABEL_SIZE = 10.0
_LINES = (0.6, 4.0)
_OPACITY = (0.35, 0.85)
_TICK_SIGNS = 14

_SHAPES = {
    "feature": "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0z",
    "error": "M0,-6.5L6.5,0L0,6.5L-6.5,0z",
    "token": "M-5.2,-5.2h10.4v10.4h-10.4z",
    "position": "M0,-6L6,5H-6z",
    "bias": "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "other": "M-6,-3L-3,-6L0,-3L3,-6L6,-3L3,0L6,3L3,6L0,3L-3,6L-6,3L-3,0z",
    "logit": "M-6.5,0L-3.2,-5.7H3.2L6.5,0L3.2,5.7H-3.2z",
}


def to_html(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    node_threshold: float | None = None,
    edge_threshold: float | None = None,
    max_edges: int = MAX_EDGES,
    base: int = 0,
    supernodes: Mapping[str, Nodes | Group] | None = None,
    features: FeatureLabels | None = None,
) -> Path:
    """Write one page to look at the graph in a browser; it needs no other file.

    Clicking a node shows its edges, clicking an edge the eight heads that carry most of it with their
    attention maps; labels can be searched, and `#node=ID` or `#edge=ID,ID` after the address leads to a node
    or an edge. The page loads nothing and may not: its policy forbids the network. The same graph gives the
    same bytes.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    title : str, optional
        Shown in place of the prompt.
    node_threshold, edge_threshold : float, optional
        A graph that is not pruned is pruned first, by `prune`; None: 0.8 and 0.98.
    max_edges : int, default 3000
        The largest number of edges in the page, by ``|weight|``.
    base : int, default 0
        Number of the first position, 0 or 1.
    supernodes : mapping, optional
        Name to nodes of the graph or to a Group, for example `token_groups(graph)`: groups, as a list and,
        by a switch, as boxes in place of their nodes, with the sums of the edges between them. Members that
        pruning removed are left out.
    features : FeatureLabels, optional
        Of `describe_features`: cards with contexts of the features and the tokens that they promote.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        For thresholds outside 0..1 or for a pruned graph, a negative max_edges and another base.
    KeyError
        For a node in supernodes that the graph does not have.
    TypeError
        For other objects.
    OSError
        If the file cannot be written.

    Warns
    -----
    UserWarning
        Above 20 MB.
    """
    data = page(graph, title, node_threshold, edge_threshold, max_edges, base, supernodes, features)
    return write_page(path, data, _ADVICE)


def page(
    graph: Graph,
    title: str | None = None,
    node_threshold: float | None = None,
    edge_threshold: float | None = None,
    max_edges: int = MAX_EDGES,
    base: int = 0,
    supernodes: Mapping[str, Nodes | Group] | None = None,
    features: FeatureLabels | None = None,
) -> bytes:
    """The page as bytes, all of them ASCII; see `Graph.to_html`."""
    base, max_edges = _check.base(base), _check.integer(max_edges, "max_edges", 0)
    if title is not None and not isinstance(title, str):
        raise TypeError(f"title must be a string, got {type(title).__name__}")
    whole, given = graph, [t for t in (node_threshold, edge_threshold) if t is not None]
    if graph.pruned and given:
        raise ValueError("this graph is pruned; use the whole graph for other thresholds")
    if not graph.pruned:
        graph = graph.prune(
            0.8 if node_threshold is None else node_threshold,
            0.98 if edge_threshold is None else edge_threshold,
        )
    nodes = np.arange(len(graph))
    edges, n_edges = edges_between(graph, nodes, max_edges)
    shown = shortened(graph.prompt if title is None else title, 200)
    counts = f"{len(graph):,} of {len(whole):,} nodes" if whole is not graph else f"{len(graph):,} nodes"
    about = (
        f"{graph.model_name}; {graph.transcoders_name}; {counts}; {n_edges:,} edges; {pruning_text(graph)}"
    )
    groups = group_data(whole, graph, supernodes)
    parts = {
        "title": escaped(shown),
        "about": escaped(shortened(about, 1000)),
        "n_edges": str(len(edges)),
        "n_drawn": str(min(len(edges), _DRAWN)),
        "legend": _legend(graph),
        "drawing": _drawing(graph, lay_out(graph, nodes), edges, base, groups),
        "no_groups": "" if groups else "hidden",
        "footer": _footer(graph, len(edges), n_edges),
        "data": escaped_json(
            page_data(graph, edges, base)
            | {"groups": groups, "cards": card_data(graph, features), "direct": direct_edges(whole, graph)}
        ),
    }
    script = joined(asset(_FOLDER, name) for name in SCRIPTS)
    return filled(asset(_FOLDER, "graph.html"), parts, script, asset(_FOLDER, "graph.css"))


def show(
    graph: Graph,
    *,
    title: str | None = None,
    node_threshold: float | None = None,
    edge_threshold: float | None = None,
    max_edges: int = MAX_EDGES,
    base: int = 0,
    supernodes: Mapping[str, Nodes | Group] | None = None,
    features: FeatureLabels | None = None,
    height: int = 800,
    open_browser: bool = False,
) -> None:
    """Show the page of `to_html`: in a notebook below the cell, elsewhere as a temporary file.

    Parameters
    ----------
    title, node_threshold, edge_threshold, max_edges, base, supernodes, features
        As in `to_html`.
    height : int, default 800
        Pixels in a notebook, at least 100.
    open_browser : bool, default False
        Open the temporary file in a browser. Without this, only its path is printed.

    Raises
    ------
    ValueError
        As `to_html`; in a notebook also for a page above 20 MB.
    """
    height, open_browser = _check.integer(height, "height", 100), _check.flag(open_browser, "open_browser")
    data = page(graph, title, node_threshold, edge_threshold, max_edges, base, supernodes, features)
    show_page(data, "graph", height, open_browser, _ADVICE)


def _legend(graph: Graph) -> str:
    items = [
        f'<li><svg viewBox="-8 -8 16 16"><path class="mark {kind}" d="{_SHAPES[kind]}"/></svg>{name}</li>'
        for kind, name in KIND_NAMES.items()
        if kind in graph.kind
    ]
    line = '<li><svg viewBox="0 0 20 16"><path class="edge {0}" stroke-width="3" d="M0,8H20"/></svg>{1}</li>'
    return "".join([*items, line.format("raises", "raises"), line.format("lowers", "lowers")])


def _footer(graph: Graph, n_page: int, n_edges: int) -> str:
    """What the numbers belong to and how far they can be trusted."""
    scores = ", ".join(f"{name} {value:.3f}" for name, value in (known_scores(graph) or {}).items())
    options = {name: value for name, value in graph.options.items() if name != "scores"}
    heads = f"{graph.n_layer} layers of {graph.n_head} heads"
    rows = {
        "prompt": shortened(graph.prompt, 2000),
        "model": f"{graph.model_name} ({heads}), sha256 {graph.model_digest}",
        "transcoders": f"{graph.transcoders_name}, scan {graph.scan}",
        "edges": f"the {n_page:,} strongest of {n_edges:,} are in this page; {pruning_text(graph)}",
        "closure": f"{closure_text(graph)}: largest |sum of incoming edges - value| / |value|; "
        f"{graph.closure_absolute:.1e} of the sum of |edges|",
        "scores": f"{scores} (of the graph before pruning)" if scores else "unknown",
        "options": json.dumps(options),
        "made by": f"attnsparse {__version__}",
    }
    return "".join(f"<dt>{name}</dt><dd>{escaped(shortened(text, 4000))}</dd>" for name, text in rows.items())


# ------------------------------------------------------------------------------------------- drawing


def _drawing(graph: Graph, layout: Layout, edges: Edges, base: int, groups: list[dict[str, Any]]) -> str:
    """The SVG element. Coordinates are pixels, downwards."""
    left, right, top, bottom = _MARGINS
    right = left if layout.width * _UNIT > _WIDE else right
    width, height = layout.width * _UNIT + left + right, layout.height * _UNIT + top + bottom
    points = np.stack([left + layout.x * _UNIT, top + (layout.height - layout.y) * _UNIT], axis=1)
    box, frame = f"0 0 {_n(width)} {_n(height)}", (left, top, width - right, height - bottom)
    return (
        f'<svg id="drawing" viewBox="{box}" width="{_n(width)}" height="{_n(height)}" role="group" '
        'aria-label="attribution graph">'
        + _rows(graph, layout, width, right)
        + _columns(graph, layout, base, width, height)
        + '<g id="edges">'
        + _edges(points, edges)
        + '</g><g id="nodes">'
        + _nodes(graph, points, edges, base)
        + '</g><g id="labels">'
        + _labels(graph, layout, points, edges, frame)
        + '</g><g id="supernodes">'
        + draw_groups(graph, groups, points, edges, frame)
        + "</g></svg>"
    )


def _n(value: float) -> str:
    """At most one digit after the point."""
    return f"{value:.1f}".removesuffix(".0")


def _rows(graph: Graph, layout: Layout, width: float, right: float) -> str:
    left, _, top, _ = _MARGINS
    parts, below = [], 0.0
    for row, upper in enumerate(layout.tops):
        name = {0: "embeddings", graph.n_layer + 1: "logits"}.get(row, f"layer {row - 1}")
        if row % 2 == 0:
            y, tall = top + (layout.height - upper) * _UNIT, (upper - below) * _UNIT
            size = f'width="{_n(width - left - right)}" height="{_n(tall)}"'
            parts.append(f'<rect class="band" x="{left}" y="{_n(y)}" {size}/>')
        y = top + (layout.height - layout.rows[row]) * _UNIT
        parts.append(f'<text class="axis" x="{left - 8}" y="{_n(y + 3.5)}" text-anchor="end">{name}</text>')
        if right == left:
            parts.append(f'<text class="axis" x="{_n(width - right + 8)}" y="{_n(y + 3.5)}">{name}</text>')
        below = upper
    return "".join(parts)


def _columns(graph: Graph, layout: Layout, base: int, width: float, height: float) -> str:
    """The tokens with their positions, slanted below these where they do not fit."""
    left, *_, bottom = _MARGINS
    texts = [shortened(token_label(token), _TICK_SIGNS) for token in graph.token_strings]
    widths = np.array([text_width(text, 12) for text in texts])
    fits = (np.diff(layout.columns) * _UNIT > (widths[1:] + widths[:-1]) / 2 + 6).all()
    parts, y = [], height - bottom + 16
    for i, (text, column) in enumerate(zip(texts, layout.columns)):
        x, number_y = left + column * _UNIT, y + 17 if fits else y - 3
        where = f'x="{_n(x)}" y="{_n(y)}" text-anchor="middle"'
        if not fits:
            text = shortened(text, 6)
            where = f'transform="translate({_n(x + 4)} {_n(y + 12)}) rotate(-40)" text-anchor="end"'
        parts.append(f'<text class="token" {where}>{escaped(text)}</text>')
        where = f'x="{_n(x)}" y="{_n(number_y)}" text-anchor="middle"'
        parts.append(f'<text class="axis" {where}>{i + base}</text>')
    return "".join(parts)


def _edges(points: np.ndarray, edges: Edges) -> str:
    """Strong edges on top; those beyond the first ones are not displayed until they are asked for."""
    parts = []
    strength = edges.strength
    bent = curves(
        points[edges.source] * (1 / _UNIT, -1 / _UNIT), points[edges.target] * (1 / _UNIT, -1 / _UNIT)
    )
    for i in reversed(range(len(edges))):
        a, b, c, d = (f"{_n(x * _UNIT)},{_n(-y * _UNIT)}" for x, y in bent[i])
        kind = "raises" if edges.weight[i] >= 0 else "lowers"
        off = " off" if i >= _DRAWN else ""
        wide, solid = (low + (high - low) * strength[i] for low, high in (_LINES, _OPACITY))
        look = f'stroke-width="{wide:.2f}" stroke-opacity="{solid:.2f}"'
        parts.append(f'<path id="e{i}" class="edge {kind}{off}" {look} d="M{a}C{b} {c} {d}"/>')
    return "".join(parts)


def _nodes(graph: Graph, points: np.ndarray, edges: Edges, base: int) -> str:
    used = set(edges.ends.tolist())
    parts = []
    for i, (x, y) in enumerate(points):
        what, position = [graph.kind[i]], int(graph.position[i])
        if what[0] in ("feature", "error"):
            what.append(f"layer {graph.layer[i]}")
        if position >= 0:
            what.append(f"position {position + base} {shown_token(graph, position)}")
        name = escaped(f"{shown_label(graph, i, base)} ({', '.join(what)})")
        alone = "" if i in used else " alone"
        parts.append(
            f'<g id="n{i}" class="node{alone}" transform="translate({_n(x)} {_n(y)})" tabindex="-1" '
            f'role="button" aria-label="{name}"><title>{name}</title>'
            f'<path class="mark {graph.kind[i]}" d="{_SHAPES[graph.kind[i]]}"/></g>'
        )
    return "".join(parts)


def _labels(
    graph: Graph, layout: Layout, points: np.ndarray, edges: Edges, frame: tuple[float, float, float, float]
) -> str:
    wanted = labelled(graph, layout.nodes, edges.ends)
    texts = [short_label(graph, node) for node in wanted]
    line = 1.25 * _LABEL_SIZE
    sizes = [(text_width(text, _LABEL_SIZE), line * (1 + text.count("\n"))) for text in texts]
    boxes = place_labels(points, _RADIUS + 1, wanted, sizes, np.array(frame), _MAX_LABELS)
    parts = []
    for node, text, box in zip(wanted, texts, boxes):
        if box is None:
            continue
        beside = {
            box[0] >= points[node, 0]: ("start", box[0] + 1),
            box[2] <= points[node, 0]: ("end", box[2] - 1),
        }
        anchor, x = beside.get(True, ("middle", (box[0] + box[2]) / 2))
        lines = text.split("\n")
        bottom = box[3] - 0.28 * _LABEL_SIZE - line * (len(lines) - 1)
        shown = "".join(f'<tspan x="{_n(x)}" dy="{_n(line)}">{escaped(part)}</tspan>' for part in lines[1:])
        where = f'x="{_n(x)}" y="{_n(bottom)}" text-anchor="{anchor}"'
        parts.append(f'<text class="label" data-node="{node}" {where}>{escaped(lines[0])}{shown}</text>')
    return "".join(parts)
