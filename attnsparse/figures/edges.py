"""Attention edges as lines between the layers: positions across, layers upwards.

An edge (layer l, head, query, key) is one line from column `key` at the bottom of layer l to column `query`
at its top. Lines of different heads between the same columns lie side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from .. import _check
from ..model.tables import edges
from ..tasks import addition
from .style import (
    BLUE,
    GREY,
    LABEL_SIGNS,
    LARGEST,
    PALE,
    PLAIN_TEXT,
    TOKEN_SIGNS,
    VECTOR_LINES,
    check_axes,
    check_run,
    column_pitches,
    column_text,
    given_text,
    name_columns,
    new_axes,
    size_labels,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd

    from ..model.model import Model
    from ..model.run import Run

_CARRY_WORDS = ("no carry", "one carry", "two carries")
_SPREAD = 0.11  # distance of lines of different heads between the same two columns, in columns
_FAINTEST = 0.18  # opacity of an edge of weight 0
_DRAWING = 0.775  # share of a new figure's width that its Axes has until it is laid out
_WIDEST = 10.0  # inches
_EMPTY = 0.45  # height of a layer without edges; the others have 1


def edge_lines(
    run: Run,
    ax: Axes | None = None,
    threshold: float = 0.0,
    labels: Sequence[str] | None = None,
    predictions: Mapping[int, str] | None = None,
    title: str | None = None,
    base: int = 0,
) -> Axes:
    """The open attention edges of a run of one prompt, layers upwards; those without edges are drawn lower.

    Stronger edges are wider and darker; their number is at the top right. Of labels at most 30 characters are
    shown, of tokens and predictions 14; of more columns than can be read some have no name.

    Parameters
    ----------
    run : Run
        Of one prompt.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    threshold : float, default 0.0
        Edges with a larger weight are drawn.
    labels : sequence of str, optional
        One text per column instead of the tokens and their positions.
    predictions : mapping, optional
        Column, from 0, to a text above it.
    title : str, optional
        At most 160 characters a line are shown.
    base : int, default 0
        Number of the first position, 0 or 1.

    Returns
    -------
    matplotlib.axes.Axes
        The lines are `ax.collections[0]`, one per row of `run.open_edges(threshold)` and in its order.

    Raises
    ------
    ValueError
        As `Run.open_edges` does, and if there are not as many labels as tokens.
    TypeError
        For other objects.
    """
    check_axes(ax)
    check_run(run)
    base = _check.base(base)
    table = edges(run, threshold)
    run = run[0]
    config = run.model.config
    if labels is None:
        texts = [column_text(token) for token in run.token_strings]
    else:
        texts = [given_text(label, LABEL_SIGNS) for label in labels]
    if len(texts) != run.n_tokens:
        raise ValueError(f"labels must have one text for each of the {run.n_tokens} tokens, got {len(texts)}")
    with styled():
        if ax is None:
            ax = new_axes((_own_width(texts), 1.0 + 0.42 * _floors(table, config.n_layer)[-1]))
        floors = _floors(table, config.n_layer)
        ax.add_collection(_lines(table, floors), autolim=False)
        _draw_columns(ax, floors, texts, base if labels is None else None, predictions or {})
        possible = config.n_layer * config.n_head * run.n_tokens * (run.n_tokens + 1) // 2
        kind = f"entries > {threshold:g}" if threshold > 0 or not config.gated else "edges open"
        pad = 14 if predictions else 4
        ax.set_title(f"{len(table):,} of {possible:,} {kind}", loc="right", fontsize=7, color=GREY, pad=pad)
        if title is not None:
            ax.set_title(given_text(title), loc="left", pad=pad, **PLAIN_TEXT)
    return ax


def addition_figure(
    dense: Model,
    sparse: Model,
    sums: Sequence[str] = addition.SUMS,
    caption: str | None = None,
    dense_threshold: float = addition.DENSE_THRESHOLD,
) -> Figure:
    """The edges of two toy addition models at work, dense above sparse, one column per sum.

    The columns of the answer are labelled `?`; above each column that predicts is the model's prediction.

    Parameters
    ----------
    dense, sparse : Model
        Models of the sequences of `attnsparse.tasks.addition`.
    sums : sequence of str
        Written like "53+21".
    caption : str, optional
        Text below the panels.
    dense_threshold : float
        Edges of a model without gates are its entries above this, of one with gates the open ones.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        For no sum or one that is written otherwise, and for a model of other sequences.
    TypeError
        For other objects.
    """
    for name, model in (("dense", dense), ("sparse", sparse)):
        if not hasattr(model, "config"):
            raise TypeError(f"{name} must be a Model, such as asp.load gives, got {type(model).__name__}")
        n_vocab, n_ctx = model.config.n_vocab, model.config.n_ctx
        if n_vocab != len(addition.VOCABULARY) or n_ctx < addition.N_TOKENS:
            raise ValueError(
                f"{name}: {model.name!r:.60} is not a model of additions, which have "
                f"{len(addition.VOCABULARY)} tokens in sequences of {addition.N_TOKENS}; "
                f"this one has {n_vocab:,} and up to {n_ctx:,}"
            )
    if not sums:
        raise ValueError("sums is empty: an addition figure needs at least one")
    pairs = [addition.parse_sum(text) for text in sums]
    with styled():
        size = (min(2.75 * len(sums), LARGEST), 4.3 if caption is None else 4.8)
        figure, axes = plt.subplots(2, len(sums), figsize=size, squeeze=False, layout="constrained")
        for row, (name, model) in enumerate((("Dense", dense), ("Sparse", sparse))):
            threshold = 0.0 if model.config.gated else dense_threshold
            for ax, text, (a, b) in zip(axes[row], sums, pairs, strict=True):
                run = model.run(addition.sequence(a, b), record=("pattern", "logits"))
                labels = [*(addition.VOCABULARY[token] for token in run.tokens[:6]), *"?????"]
                edge_lines(run, ax, threshold, labels, _predictions(run), name)
                if row == 0:
                    _write_header(
                        ax, f"{text}, {_CARRY_WORDS[int(addition.carries(np.array(a), np.array(b)))]}"
                    )
        for ax in axes[:, 1:].flat:
            ax.set_ylabel("")
        if caption is not None:
            figure.supxlabel(given_text(caption), x=0.01, ha="left", fontsize=8, **PLAIN_TEXT)
    return figure


def _floors(table: pd.DataFrame, n_layer: int) -> np.ndarray:
    """Lower edge of each layer, and the upper edge of the last; layers without edges are low."""
    used = np.isin(np.arange(n_layer), table["layer"].to_numpy())
    return np.concatenate([[0.0], np.cumsum(np.where(used, 1.0, _EMPTY))])


def _lines(table: pd.DataFrame, floors: np.ndarray) -> LineCollection:
    """One line per edge; its weight in (0, 1] sets how wide and how solid it is."""
    layer, key, query = (table[name].to_numpy() for name in ("layer", "key_position", "query_position"))
    together = table.groupby(["layer", "key_position", "query_position"])
    rank, size = together.cumcount().to_numpy(), together["head_index"].transform("size").to_numpy()
    shift = (rank - (size - 1) / 2) * _SPREAD
    start, end = (
        np.stack([key + shift, floors[layer]], axis=1),
        np.stack([query + shift, floors[layer + 1]], axis=1),
    )
    weight = table["weight"].to_numpy()
    colours = np.empty((len(table), 4))
    colours[:, :3] = to_rgb(BLUE)
    colours[:, 3] = _FAINTEST + (1 - _FAINTEST) * weight
    widths = 0.35 + 1.15 * weight
    return LineCollection(
        cast("Sequence[np.ndarray]", np.stack([start, end], axis=1)),  # one array is drawn faster than a list
        linewidths=widths,
        colors=colours,
        capstyle="round",
        zorder=2,
        rasterized=len(table) > VECTOR_LINES,
    )


def _own_width(texts: Sequence[str]) -> float:
    """Inches of a figure whose columns are as wide as their names, if it does not become too wide by that."""
    needed = 1.01 * (len(texts) + 0.2) * column_pitches(texts).max(initial=0) / 72 / _DRAWING
    return max(0.9 + 0.24 * len(texts), needed if needed <= _WIDEST else 0)


def _draw_columns(
    ax: Axes, floors: np.ndarray, texts: Sequence[str], base: int | None, predictions: Mapping[int, str]
) -> None:
    """One thin vertical line per column with a dot between layers, its name below and a prediction above."""
    columns, top = np.arange(len(texts)), floors[-1]
    ax.vlines(columns, 0, top, color=PALE, linewidth=0.5, zorder=0)
    x, y = np.meshgrid(columns, floors)
    ax.scatter(x.ravel(), y.ravel(), s=3.5, color=GREY, linewidths=0, zorder=1)
    for column, text in predictions.items():
        ax.annotate(
            given_text(text, TOKEN_SIGNS), (column, top), (0, 4), textcoords="offset points", ha="center",
            va="bottom", fontsize=7, fontweight="bold", color=BLUE, **PLAIN_TEXT,
        )  # fmt: skip
    ax.set_yticks((floors[1:] + floors[:-1]) / 2, [str(layer) for layer in range(len(floors) - 1)])
    ax.set(xlim=(-0.6, len(texts) - 0.4), ylim=(-0.12, top + 0.12), ylabel="layer")
    name_columns(ax, columns, texts, base)
    ax.tick_params(length=0)
    size_labels(ax)
    ax.spines[:].set_visible(False)


def _write_header(ax: Axes, text: str) -> None:
    """A bold line above the title of `ax`."""
    ax.annotate(
        given_text(text), (0.5, 1), (0, 30), xycoords="axes fraction", textcoords="offset points",
        ha="center", va="bottom", fontsize=10, fontweight="bold", **PLAIN_TEXT,
    )  # fmt: skip


def _predictions(run: Run) -> dict[int, str]:
    """Column -> the most likely next token there, for the columns that answer."""
    columns = range(addition.PREDICTING.start, addition.PREDICTING.stop)
    return {column: addition.VOCABULARY[int(run.logits[column].argmax())] for column in columns}
