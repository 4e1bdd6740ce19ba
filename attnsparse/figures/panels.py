"""The panels that both overviews of a prompt share: grid, maps with named axes, statement, tokens, arrows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from ..items import Head, shortened
from .attention import as_pixels, draw_map, draw_panel, draw_scale, head_grid, map_corner
from .style import GREY, LABEL_SIGNS, PLAIN_TEXT, RED, apart, column_text

# Inches.
TITLE = 0.42  # above the panels
PAD = 0.12
STATEMENT = 0.2
TOKENS = 0.44
_HEAD_SIZE = 6.5  # points, of the names of heads
_MAP = (0.66, 0.92)  # smallest and largest map
_AXES = (0.14, 0.22)  # room beside and below such a map for the names of its axes
_LONG_PROMPT = 12  # tokens; longer prompts have theirs upright

Entry = tuple[int, int]
"""(query, key), from 0."""


def percent(share: float) -> str:
    """`86 %`."""
    return f"{100 * share:.0f} %"


def model_title(name: str, n_drawn: int, n_heads: int) -> str:
    """`demo-sparse: 4 of 144 heads`."""
    return f"{shortened(name, LABEL_SIGNS)}: {n_drawn} of {n_heads} heads"


def left_panel(
    figure: Figure,
    title: tuple[str, str],
    pattern: np.ndarray,
    heads: Sequence[Head],
    columns: int,
    size: tuple[float, float],
    entry: Entry,
    base: int,
) -> Axes:
    """The grid of the heads of one model, `size` inches."""
    ax = _place_axes(figure, 0.02, size)
    head_grid(pattern, heads, columns, ax, scale=False, mark=entry)
    for i, name in enumerate(ax.texts[: len(heads)]):
        name.set_fontsize(min(name.get_fontsize(), _HEAD_SIZE))
        _name_axes(ax, map_corner(i, columns), 1.0, pattern.shape[-1], entry, base)
    _write_title(ax, *title)
    return ax


def right_panel(
    figure: Figure,
    title: tuple[str, str],
    pattern: np.ndarray,
    heads: Sequence[Head],
    size: tuple[float, float],
    entry: Entry,
    base: int,
) -> Axes:
    """The maps of the heads of the other model and what they have in common, at the right of the figure.

    Coordinates are inches, downwards from the panel's upper left corner; below the statement there is room.
    """
    ax = _place_axes(figure, figure.get_size_inches()[0] - size[0] - 0.02, size)
    draw_panel(ax, *size, None)
    draw_scale(ax, (size[0] - 0.7, -0.12, 0.5, 0.06), ax.transData)
    _write_title(ax, *title)
    _draw_maps(ax, pattern, heads, entry, size[0], base)
    statement = entry_text(pattern, heads, entry, base)
    ax.text(size[0] / 2, maps_end(len(heads), size[0]), statement, ha="center", va="top", fontsize=7.5)
    return ax


def _place_axes(figure: Figure, x: float, size: tuple[float, float]) -> Axes:
    """Axes of `size` inches, `x` inches from the left, with its upper edge below the titles."""
    width, height = figure.get_size_inches()
    place = (x / width, 1 - (TITLE + size[1]) / height, size[0] / width, size[1] / height)
    return figure.add_axes(place)


def _write_title(ax: Axes, first: str, second: str) -> None:
    """Two lines above a panel, the first bold, the second grey."""
    for text, rise, size, weight, colour in (
        (first, 14, 9, "bold", "black"),
        (second, 4.5, 7, "normal", GREY),
    ):
        ax.annotate(
            text, (0, 1), (0, rise), xycoords="axes fraction", textcoords="offset points", fontsize=size,
            fontweight=weight, color=colour, **PLAIN_TEXT,
        )  # fmt: skip


def entry_text(pattern: np.ndarray, heads: Sequence[Head], entry: Entry, base: int) -> str:
    """The statement about how many heads have `key` as the strongest key of the query."""
    query, key = entry
    n = len(heads)
    same = sum(int(pattern[head][query].argmax()) == key for head in heads)
    what = f"key pos {key + base} to query pos {query + base}"
    if n == 1:
        return f"The head maps {what}" if same else f"The head does not map {what} most"
    if same == n:
        return f"All heads map {what}"
    return f"{same} of {n} heads map {what} most"


# ---------------------------------------------------------------------------------------------- maps


def _map_size(n: int, width: float) -> tuple[float, int]:
    """Width of a map, and how many fit into a row of a panel of this width."""
    room = width - 2 * PAD
    side = float(np.clip(room / n - _AXES[0], *_MAP))
    return side, int(room / (side + _AXES[0]) + 1e-6)


def map_side(n: int, width: float) -> float:
    """Width of each of n maps in a panel of this width."""
    return _map_size(n, width)[0]


def maps_end(n: int, width: float) -> float:
    """Lower edge of the rows of n maps in a panel of this width."""
    side, per_row = _map_size(n, width)
    return PAD + -(-n // per_row) * (side + _AXES[1])


def _draw_maps(
    ax: Axes, pattern: np.ndarray, heads: Sequence[Head], entry: Entry, width: float, base: int
) -> None:
    """The maps with the axes K and Q, every row in the middle of the panel; coordinates are inches."""
    side, per_row = _map_size(len(heads), width)
    n_tokens = pattern.shape[-1]
    pixels = as_pixels(len(heads), n_tokens)
    for i, head in enumerate(heads):
        row, column = divmod(i, per_row)
        in_row = min(per_row, len(heads) - row * per_row)
        x = (width - in_row * (side + _AXES[0])) / 2 + column * (side + _AXES[0]) + _AXES[0]
        y = PAD + row * (side + _AXES[1])
        draw_map(ax, pattern[head], (x, y), side / n_tokens, entry, pixels=pixels)
        ax.text(x + side, y + 0.01, head.label, ha="right", va="top", fontsize=_HEAD_SIZE)
        _name_axes(ax, (x, y), side, n_tokens, entry, base)


def _name_axes(
    ax: Axes, corner: tuple[float, float], side: float, n_tokens: int, entry: Entry, base: int
) -> None:
    """Q and the query's position beside a map, K and the key's position below it."""
    x, y = corner
    query, key = ((position + 0.5) * side / n_tokens for position in entry)
    options: dict[str, Any] = {"textcoords": "offset points", "fontsize": 5.5}
    places = ((0.4 * side, 0.25 * side), (query, key))
    texts = (("Q", "K"), tuple(str(position + base) for position in entry))
    for (down, right), (beside, below), colour in zip(places, texts, (GREY, RED)):
        ax.annotate(beside, (x, y + down), (-2, 0), color=colour, ha="right", va="center", **options)
        ax.annotate(below, (x + right, y + side), (0, -2), color=colour, ha="center", va="top", **options)


# -------------------------------------------------------------------------------------------- tokens


def draw_tokens(
    ax: Axes, tokens: Sequence[str], x: np.ndarray, top: float, pitch: float, entry: Entry, base: int
) -> None:
    """Tokens and, below them, their positions, from `top` on; x: their middles; pitch: room for one.

    Of more tokens than can be read some are left out, never those of `entry`.
    """
    shown = [column_text(token) for token in tokens]
    upright = len(shown) > _LONG_PROMPT
    size = 6.0 if upright else min(_token_size(token, pitch) for token in shown)
    for i in _readable(72 * x, size, entry) if upright else range(len(shown)):
        token = shown[i]
        colour, weight = (RED, "bold") if i == entry[1] else ("black", "normal")
        ax.text(
            x[i], top + (0.25 if upright else 0.16), token, ha="center", va="bottom", fontsize=size,
            rotation=90 if upright else 0, color=colour, fontweight=weight, **PLAIN_TEXT,
        )  # fmt: skip
        colour = RED if i in entry else GREY
        ax.text(x[i], top + 0.33, str(i + base), ha="center", va="center", fontsize=6.5, color=colour)


def _readable(points: np.ndarray, size: float, entry: Entry) -> list[int]:
    """The tokens of `entry`, and of the others those that touch neither these nor each other."""
    free = [
        i for i in range(len(points)) if all(len(apart(np.sort(points[[i, e]]), size)) == 2 for e in entry)
    ]
    return sorted({*entry, *(free[i] for i in apart(points[free], size))})


def upright_height(tokens: Sequence[str]) -> float:
    """How much higher than TOKENS the tokens of a long prompt are."""
    longest = max(len(column_text(token)) for token in tokens)
    return max(0.0, 0.052 * longest - 0.2) if len(tokens) > _LONG_PROMPT else 0.0


def _token_size(token: str, pitch: float) -> float:
    """Type size in points at which a token fits into its column."""
    return float(np.clip(72 * pitch / (0.60 * max(len(token), 1)), 5.0, 8.0))


# -------------------------------------------------------------------------------------------- arrows


def draw_arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    width: float,
    curve: str = "arc3",
) -> None:
    """A straight arrow, or one along a `curve` as matplotlib names it."""
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=8, shrinkA=0, shrinkB=0, connectionstyle=curve,
            linewidth=width, color=colour,
        )
    )  # fmt: skip
