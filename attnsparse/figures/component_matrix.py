"""The scores of all component edges as a matrix: senders downwards, receivers across."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.patches import Polygon
from matplotlib.ticker import FixedLocator, FuncFormatter

from .. import _check
from ..circuits.components.scores import ComponentScores
from ..items import shortened
from .style import (
    DARK,
    GREY,
    LABEL_SIGNS,
    LARGEST,
    ORANGE_TO_BLUE,
    PALE,
    PLAIN_TEXT,
    STYLE,
    VECTOR_LINES,
    apart,
    check_axes,
    figure_of,
    given_text,
    size_labels,
    styled,
)

_NO_EDGE = "#efefef"
_DECADES = 3  # that the logarithmic scale shows on either side
_NAME_PITCH = 1.3  # type sizes between the names of neighbouring rows
_LETTERS = "qkv"


def component_matrix(
    scores: ComponentScores,
    ax: Axes | None = None,
    *,
    scale: str = "log",
    largest: float | None = None,
    title: str | None = None,
) -> Axes:
    """Scores of component edges, senders downwards and receivers across, with lines between layers.

    Blue is above 0 and orange below, equally dark for equal absolute values. The matrix is hatched in grey
    where there is no component edge, because the receiver comes before the sender. Within a layer the
    receivers are q of all heads, k, v, and the MLP.

    Parameters
    ----------
    scores : ComponentScores
        With level="edge".
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    scale : {"log", "linear"}, default "log"
        Of the colours. "log" shows three decades on either side of 0, and is linear between them.
    largest : float, optional
        The absolute value that has the darkest colour; None: the largest of all.
    title : str, optional
        In place of model, task and method; at most 160 characters a line are shown.

    Returns
    -------
    matplotlib.axes.Axes
        `ax.collections[0]` has the scores, masked where there is no component edge.

    Raises
    ------
    TypeError
        For other objects.
    ValueError
        For scores of nodes or neurons, another scale, and a `largest` that is not above 0.
    """
    check_axes(ax)
    _check.instance(scores, ComponentScores, "scores")
    if scores.level != "edge":
        raise ValueError(f"a matrix of component edges needs scores of level='edge', got {scores.level!r}")
    scale = _check.choice(scale, "scale", ("log", "linear"))
    end = np.abs(scores.scores).max(initial=0.0) if largest is None else _check.positive(largest, "largest")
    end = float(end) or 1.0
    shown = np.ma.masked_where(~scores.exists, scores.scores)
    norm = (
        Normalize(-end, end)
        if scale == "linear"
        else SymLogNorm(end / 10**_DECADES, linscale=0.5, vmin=-end, vmax=end)
    )
    with styled():
        ax = _own_axes(shown.shape) if ax is None else ax
        n_senders, n_receivers = shown.shape
        _draw_missing(ax, scores)
        edges = np.arange(n_receivers + 1) - 0.5, np.arange(n_senders + 1) - 0.5
        cells = ax.pcolormesh(
            *edges, shown, cmap=ORANGE_TO_BLUE, norm=norm, zorder=1, rasterized=shown.size > VECTOR_LINES
        )
        ax.set(xlim=(-0.5, n_receivers - 0.5), ylim=(n_senders - 0.5, -0.5))
        ax.set(xlabel="receiver", ylabel="sender")
        size_labels(ax)
        _draw_layers(ax, scores)
        bar = figure_of(ax).colorbar(cells, ax=ax, pad=0.015, fraction=0.04, shrink=0.75)
        _name_scale(bar.ax, end, scale)
        _write_title(ax, scores, title)
    return ax


# ------------------------------------------------------------------------------------------------ parts


def _own_axes(shape: tuple[int, ...]) -> Axes:
    """As large as names of all rows need, within the size of a page."""
    pitch = _NAME_PITCH * STYLE["ytick.labelsize"] / 72
    height, width = (float(np.clip(pitch * n + 1.3, 2.6, most)) for n, most in zip(shape, (4.4, 8.6)))
    size = np.minimum((width + 0.6, height), LARGEST)
    _, ax = plt.subplots(figsize=tuple(size), layout="constrained")
    return ax


def _draw_missing(ax: Axes, scores: ComponentScores) -> None:
    """Stairs from the first sender that comes too late for a receiver down to the last sender."""
    bottom = len(scores.senders) - 0.5
    stairs = [(i + d, n - 0.5) for i, n in enumerate(scores.n_before.tolist()) for d in (-0.5, 0.5)]
    corners = [(-0.5, bottom), *stairs, (len(scores.receivers) - 0.5, bottom)]
    ax.add_patch(
        Polygon(corners, facecolor=_NO_EDGE, edgecolor="#cfcfcf", linewidth=0, hatch="////", zorder=0.5)
    )


def _layer_sizes(scores: ComponentScores) -> tuple[int, int]:
    """Number of layers and of heads."""
    n_layer = sum(name.startswith("m") for name in scores.senders)
    return n_layer, (len(scores.senders) - 1) // n_layer - 1


def _draw_layers(ax: Axes, scores: ComponentScores) -> None:
    """Lines between layers and paler ones between q, k, v and MLP; names of all rows, or of the layers."""
    n_layer, n_head = _layer_sizes(scores)
    rows, columns = n_head + 1, 3 * n_head + 1
    box = ax.get_window_extent()
    points = box.height * 72 / ax.figure.dpi / len(scores.senders)
    room = box.width * 72 / ax.figure.dpi / len(scores.receivers)
    for layer in range(n_layer + 1):
        ax.axhline(0.5 + layer * rows, color=GREY, linewidth=0.35, zorder=2)
        ax.axvline(layer * columns - 0.5, color=GREY, linewidth=0.35, zorder=2)
    if room * n_head > 3:
        inner = [layer * columns + part * n_head - 0.5 for layer in range(n_layer) for part in (1, 2, 3)]
        for x in inner:
            ax.axvline(x, color=PALE, linewidth=0.4, zorder=1.5)
    size = STYLE["xtick.labelsize"]
    ax.tick_params(length=0)
    if points > _NAME_PITCH * size:
        ax.set_yticks(range(len(scores.senders)), scores.senders)
    else:
        places = np.array([1 + layer * rows + (rows - 1) / 2 for layer in range(n_layer)])
        named = apart(points * places, size)
        first = len(apart([0.0, points * places[0]], size)) == 2
        texts = [*["input"] * first, *(f"layer {i}" for i in named)]
        ax.set_yticks([*[0.0] * first, *places[named]], texts)
    if room > _NAME_PITCH * size:
        ax.set_xticks(range(len(scores.receivers)), scores.receivers, rotation=90)
        return
    places = np.array([layer * columns + (columns - 1) / 2 for layer in range(n_layer)])
    named = apart(room * places, 2 * size)
    ax.set_xticks([*places[named], len(scores.receivers) - 1], [*map(str, named), "logits"])
    ax.get_xticklabels()[-1].set_horizontalalignment("left")
    ax.set_xlabel("receiver: layer, in it q, k, v of all heads and MLP")
    if room * n_head > size:
        parts = [
            (layer * columns + part * n_head + (n_head - 1) / 2, letter)
            for layer in range(n_layer)
            for part, letter in enumerate(_LETTERS)
        ]
        for x, letter in parts:
            ax.annotate(
                letter, (x, 1), (0, 1.5), xycoords=ax.get_xaxis_transform(), textcoords="offset points",
                ha="center", va="bottom", fontsize=5.5, color=DARK,
            )  # fmt: skip


def _name_scale(bar: Axes, end: float, scale: str) -> None:
    """Powers of ten of the largest score on either side, or its halves."""
    steps = [10.0**-i for i in range(_DECADES)] if scale == "log" else [1.0, 0.5]
    ticks = [-end * step for step in steps] + [0.0] + [end * step for step in reversed(steps)]
    bar.yaxis.set_major_locator(FixedLocator(ticks))
    bar.yaxis.set_minor_locator(FixedLocator([]))
    bar.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.2g}".replace("-", "\N{MINUS SIGN}"))
    )
    bar.set_ylabel("score", fontsize=STYLE["axes.labelsize"])
    bar.tick_params(labelsize=6.5, length=2)


def _write_title(ax: Axes, scores: ComponentScores, title: str | None) -> None:
    parts = [shortened(name, LABEL_SIGNS) for name in (scores.model, scores.task) if name]
    text = ", ".join([*parts, scores.method]) if title is None else given_text(title)
    ax.set_title(text, loc="left", pad=10 if ax.texts else 4, **PLAIN_TEXT)
