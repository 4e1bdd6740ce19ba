"""Attention edges of running text: what they are, where they end, and those of one text drawn over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

from .. import _check
from ..items import shortened
from ..model.tables import edges
from .style import (
    BLUE,
    GREY,
    ORANGE,
    PLAIN_TEXT,
    VECTOR_LINES,
    apart,
    check_axes,
    check_run,
    column_text,
    given_text,
    new_axes,
    size_labels,
    styled,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from ..model.run import Run

_COLOURS = (BLUE, ORANGE, GREY)
_STYLES = ("-", "--", ":")
_ROW = 0.125  # inches of a figure of our own for each token of a text
_POINTS = 24  # of an arc


def edge_kinds(table: pd.DataFrame, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Kinds of attention edges: how many there are, and what the loss rests on, side by side.

    Parameters
    ----------
    table : pandas.DataFrame
        As `attnsparse.reproduce.edge_kinds` makes it, or several of them below each other with a column
        `model`, by whose values bars of one kind are told apart.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    title : str, optional
        At most 160 characters a line are shown.

    Returns
    -------
    matplotlib.axes.Axes
        The two panels are `ax.child_axes`: edges per token, and nats per token when a kind is ablated.

    Raises
    ------
    TypeError
        If `table` is no DataFrame, or `ax` no Axes.
    ValueError
        Without one of the columns, or for more than three models.
    """
    check_axes(ax)
    _need(table, ("kind", "edges_per_token", "loss_increase", "loss_increase_error"))
    models = _models(table)
    kinds = list(dict.fromkeys(table["kind"]))
    with styled():
        if ax is None:
            ax = new_axes((6.2, 0.7 + 0.12 * len(kinds) * (1 + len(models))))
        ax.set_axis_off()
        left, right = (ax.inset_axes((x, 0, width, 1)) for x, width in ((0.0, 0.44), (0.56, 0.44)))
        height = 0.8 / len(models)
        for i, (name, rows) in enumerate(models.items()):
            places = (
                np.array([kinds.index(kind) for kind in rows["kind"]]) + (i - (len(models) - 1) / 2) * height
            )
            look: dict[str, Any] = {
                "height": 0.9 * height,
                "color": _COLOURS[i],
                "label": shortened(name, 30),
            }
            left.barh(places, rows["edges_per_token"], **look)
            right.barh(places, rows["loss_increase"], xerr=rows["loss_increase_error"],
                       error_kw={"elinewidth": 0.8}, **look)  # fmt: skip
        for panel, label in ((left, "edges for each token"), (right, "nats when ablated")):
            panel.set(xlabel=label, ylim=(len(kinds) - 0.4, -0.6))
            panel.set_yticks(range(len(kinds)), [shortened(str(kind), 30) for kind in kinds], **PLAIN_TEXT)
            least = 0.1 if panel is left else 0.01
            if np.abs(panel.get_xlim()).max() > least:  # else matplotlib finds no round numbers
                panel.set_xscale("symlog", linthresh=least)
            panel.spines[["top", "right"]].set_visible(False)
            size_labels(panel)
        right.tick_params(labelleft=False)
        if len(models) > 1:
            right.legend(
                frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(models), borderaxespad=0
            )
        if title is not None:
            ax.set_title(given_text(title), loc="left", **PLAIN_TEXT)
    return ax


def edges_by_position(tables: Mapping[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """Attention edges of the queries at each position, with a band of one standard error.

    Parameters
    ----------
    tables : mapping of str to pandas.DataFrame
        By the names of up to three models, as `attnsparse.reproduce.edges_by_position` makes them.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Two lines for each model in `ax.lines`: all edges, and, paler, those to other tokens.

    Raises
    ------
    TypeError
        If `tables` is no mapping to DataFrames, or `ax` no Axes.
    ValueError
        Without one of the columns, and for no model or more than three.
    """
    check_axes(ax)
    if not isinstance(tables, Mapping):
        raise TypeError(f"tables must be a mapping of names to tables, got {type(tables).__name__}")
    if not 1 <= len(tables) <= len(_COLOURS):
        raise ValueError(f"tables must be of one to {len(_COLOURS)} models, got {len(tables)}")
    for name, table in tables.items():
        _need(table, ("position", "edges", "edges_error", "self_edges"), f"tables[{name!r:.60}]")
    with styled():
        if ax is None:
            ax = new_axes((4.6, 2.6))
        for (name, table), colour, style in zip(tables.items(), _COLOURS, _STYLES):
            x, y, error = (table[column] for column in ("position", "edges", "edges_error"))
            name = shortened(name, 30)
            ax.plot(x, y, style, color=colour, label=name)
            ax.fill_between(x, y - error, y + error, color=colour, alpha=0.2, linewidth=0)
            ax.plot(x, y - table["self_edges"], style, color=colour, alpha=0.5, linewidth=0.8,
                    label=f"{name}, to other tokens")  # fmt: skip
        ax.set_yscale("symlog", linthresh=1)
        ax.set(xlabel="position of the query (from 0)", ylabel="attention edges, all heads", ylim=(0, None))
        ax.grid(color="#ececec", linewidth=0.5)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
        size_labels(ax)
    return ax


def text_edges(run: Run, ax: Axes | None = None, threshold: float = 0.0, title: str | None = None) -> Axes:
    """A text from top to bottom with its attention edges as arcs from each query up to its keys.

    All heads that connect the same two tokens are one arc, wider for more heads and darker for larger
    weights. Edges of a token to itself are dots beside it, larger for more heads.

    Parameters
    ----------
    run : Run
        Of one prompt, with the pattern.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    threshold : float, default 0.0
        Edges with a larger weight are drawn.
    title : str, optional
        At most 160 characters a line are shown.

    Returns
    -------
    matplotlib.axes.Axes
        The arcs are `ax.collections[0]`, the dots `ax.collections[1]`.

    Raises
    ------
    TypeError
        If `run` is no Run, or `ax` no Axes.
    ValueError
        As `Run.open_edges` does.
    """
    check_axes(ax)
    check_run(run)
    table = edges(run, threshold)
    run = run[0]
    texts = [column_text(token) for token in run.token_strings]
    pairs = table.groupby(["query_position", "key_position"], sort=True)["weight"].agg(["size", "max"])
    query, key = (pairs.index.get_level_values(i).to_numpy() for i in range(2))
    heads, weight = pairs["size"].to_numpy(), pairs["max"].to_numpy()
    own = query == key
    with styled():
        if ax is None:
            ax = new_axes((3.2, 0.5 + _ROW * len(texts)))
        ax.add_collection(_arcs(query[~own], key[~own], heads[~own], weight[~own]), autolim=False)
        colours = np.empty((int(own.sum()), 4))
        colours[:, :3], colours[:, 3] = to_rgb(BLUE), 0.25 + 0.75 * weight[own]
        ax.scatter(np.zeros(own.sum()), query[own], s=2.0 * heads[own], c=colours, linewidths=0)
        longest = max(int((query - key).max(initial=1)), 8)
        ax.set(xlim=(-0.03, 1.03 * _reach(np.array([longest]))[0]), ylim=(len(texts) - 0.5, -0.5))
        _name_rows(ax, texts)
        config = run.model.config
        possible = config.n_layer * config.n_head * run.n_tokens * (run.n_tokens + 1) // 2
        kind = f"entries > {threshold:g}" if threshold > 0 or not config.gated else "edges open"
        ax.set_title(f"{len(table):,} of {possible:,} {kind}", loc="right", fontsize=7, color=GREY)
        if title is not None:
            ax.set_title(given_text(title), loc="left", **PLAIN_TEXT)
    return ax


def _reach(distance: np.ndarray) -> np.ndarray:
    """How far an arc goes to the right, in an axis of its own unit."""
    reach: np.ndarray = np.sqrt(distance)
    return reach


def _arcs(query: np.ndarray, key: np.ndarray, heads: np.ndarray, weight: np.ndarray) -> LineCollection:
    """Half ellipses between the rows of keys and queries."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, _POINTS)
    x = _reach(query - key)[:, None] * np.cos(angle)
    y = ((query + key) / 2)[:, None] + ((query - key) / 2)[:, None] * np.sin(angle)
    colours = np.empty((len(query), 4))
    colours[:, :3], colours[:, 3] = to_rgb(BLUE), 0.2 + 0.8 * weight
    return LineCollection(
        cast("Sequence[np.ndarray]", np.stack([x, y], axis=2)),
        linewidths=0.4 + 0.4 * np.minimum(heads - 1, 6),
        colors=colours,
        rasterized=len(query) > VECTOR_LINES,
    )


def _name_rows(ax: Axes, texts: Sequence[str]) -> None:
    """Tokens beside the rows; of more than can be read some have no name."""
    points = ax.transData.transform([(0, row) for row in range(len(texts))])[:, 1] * -72 / ax.figure.dpi
    named = apart(points, 5.0)
    ax.set_yticks(named, [texts[i] for i in named], fontsize=5.5, **PLAIN_TEXT)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _models(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Name -> rows of each model of a table."""
    if "model" not in table.columns:
        return {"": table}
    found = {str(name): rows for name, rows in table.groupby("model", sort=False)}
    if not 1 <= len(found) <= len(_COLOURS):
        raise ValueError(f"table must be of one to {len(_COLOURS)} models, got {len(found)}")
    return found


def _need(table: pd.DataFrame, columns: tuple[str, ...], what: str = "table") -> None:
    import pandas as pd

    _check.instance(table, pd.DataFrame, what)
    for name in columns:
        if name not in table.columns:
            found = shortened(", ".join(map(str, table.columns)), 200)
            raise ValueError(f"{what} must have a column {name!r}, got {found}")
