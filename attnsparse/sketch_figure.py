"""Which heads carry one token of a prompt to its last position, dense beside sparse, above the sentence.

Left the dense model's heads in a grid, right the sparse model's with named axes, below them the tokens with
their positions. The space between maps and tokens has positions across and layers upwards: the arrow runs
through it, and features of the prompt have their place there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from . import carriers
from .attention_figure import draw_map, draw_panel, draw_scale, head_grid, panel_size
from .carriers import Carriers, find_carriers
from .figure_style import BLUE, DARK, GREY, PLAIN_TEXT, RED, styled
from .labels import checked_base, token_label

if TYPE_CHECKING:
    from .model import Model

# Inches.
_LEFT = (2.2, 3.75)  # narrowest and widest left panel
_MAP = (0.58, 0.95)  # smallest and largest map in it
_RIGHT = 4.3  # width of the right panel
_RIGHT_MAP = (0.66, 0.92)  # smallest and largest map in it
_AXES = (0.14, 0.22)  # room beside and below such a map for the names of its axes
_TITLE = 0.42  # above the panels
_GAP = 0.16  # between the panels
_GRAPH = 1.25  # between the maps and the tokens
_TOKENS = 0.44
_STATEMENT = 0.2
_PAD = 0.12
_LONG_PROMPT = 12  # tokens; longer prompts have theirs upright


def attention_sketch(
    dense: Model,
    sparse: Model,
    prompt: str = carriers.PROMPT,
    key: int | str = carriers.KEY,
    query: int | str = carriers.QUERY,
    answer: str = carriers.ANSWER,
    wrong: Sequence[str] | None = None,
    *,
    fraction: float = 0.8,
    ablation: str = "zero",
    most: int = 36,
    columns: int | None = None,
    base: int = 1,
) -> Figure:
    """The heads of two models that carry `key` to `query`, the last token of `prompt`, where `answer` is due.

    Drawn are the fewest heads, best first, whose entries from `key` to `query`, each ablated alone, have
    `fraction` of the summed effects that the entries of all heads there have on the answer (see
    `carriers.find_carriers`), at most `most`; the entry is red in every map. wrong: tokens against which the
    answer is measured; None = the other words of the antonym task, for the prompt of the figure only.
    columns: maps a row on the left; None = as square as it goes, at most 6. Positions are counted from
    `base`.
    Raises ValueError as `carriers.find_carriers` does.
    """
    if wrong is None and prompt != carriers.PROMPT:
        raise ValueError("give wrong=..., the tokens that `answer` is measured against, with your own prompt")
    found = [
        find_carriers(model, prompt, key, query, answer, wrong, ablation=ablation, base=base)
        for model in (dense, sparse)
    ]
    return draw_sketch(*found, fraction=fraction, most=most, columns=columns, base=base)


def n_drawn(found: Carriers, fraction: float, most: int) -> int:
    """How many heads of a model the sketch draws."""
    return min(max(found.needed(fraction), 1), most)


def same_entry_text(found: Carriers, n: int, base: int) -> str:
    """What the n best heads have in common, as far as it is so: the strongest key of the query is `key`."""
    rows = np.array([found.run.pattern[head][found.query] for head in found.heads[:n]])
    same = int((rows.argmax(axis=1) == found.key).sum())
    what = f"key pos {found.key + base} to query pos {found.query + base}"
    if same == n:
        return f"All heads map {what}" if n > 1 else f"The head maps {what}"
    return f"{same} of {n} heads map {what} most"


def draw_sketch(
    dense: Carriers,
    sparse: Carriers,
    *,
    fraction: float = 0.8,
    most: int = 36,
    columns: int | None = None,
    base: int = 1,
) -> Figure:
    """`attention_sketch` of what was found before."""
    checked_base(base)
    n_left, n_right = (n_drawn(found, fraction, most) for found in (dense, sparse))
    columns = min(6, math.ceil(math.sqrt(n_left))) if columns is None else columns
    units = panel_size(n_left, columns)
    side = float(np.clip(_LEFT[1] / units[0], *_MAP))
    left = (units[0] * side, units[1] * side)
    right = (_RIGHT, 2 * _PAD + _maps_height(n_right) + _STATEMENT + _GRAPH + _TOKENS)
    height = max(left[1], right[1])
    with styled():
        figure = plt.figure(figsize=(left[0] + _GAP + right[0] + 0.04, height + _TITLE + 0.04))
        _left_panel(figure, dense, n_left, columns, left, base)
        _right_panel(figure, sparse, n_right, right, base)
    return figure


# ----------------------------------------------------------------------------------------------- panels


def _axes(figure: Figure, x: float, size: tuple[float, float]) -> Axes:
    """Axes of `size` inches, `x` inches from the left, with its upper edge below the titles."""
    width, height = figure.get_size_inches()
    place = (x / width, 1 - (_TITLE + size[1]) / height, size[0] / width, size[1] / height)
    return figure.add_axes(place)


def _left_panel(
    figure: Figure, found: Carriers, n: int, columns: int, size: tuple[float, float], base: int
) -> None:
    ax = _axes(figure, 0.02, size)
    head_grid(found.run, found.heads[:n], columns, ax, scale=False, mark=(found.query, found.key))
    _write_title(ax, found, n, base)


def _right_panel(figure: Figure, found: Carriers, n: int, size: tuple[float, float], base: int) -> None:
    """Coordinates of this panel are inches, downwards from its upper left corner."""
    ax = _axes(figure, figure.get_size_inches()[0] - size[0] - 0.02, size)
    draw_panel(ax, *size, None)
    draw_scale(ax, (size[0] - 0.7, -0.12, 0.5, 0.06), ax.transData)
    _write_title(ax, found, n, base)
    _draw_maps(ax, found, n, base)
    below = _PAD + _maps_height(n)
    ax.text(size[0] / 2, below, same_entry_text(found, n, base), ha="center", va="top", fontsize=7.5)
    _draw_sentence(ax, found, n, below + _STATEMENT, base)


def _write_title(ax: Axes, found: Carriers, n: int, base: int) -> None:
    """Bold the model and its number of heads, below it in grey what they do."""
    config = found.run.model.config
    first = f"{found.name}: {n} of {config.n_layer * config.n_head} heads"
    through = f"{found.key + base} → {found.query + base}"
    share, kept = _percent(found.shares[n]), _percent(found.kept[n])
    second = f"{share} of the effects through {through}; alone they keep {kept}"
    place = {"xycoords": "axes fraction", "textcoords": "offset points"}
    ax.annotate(first, (0, 1), (0, 14), fontsize=9, fontweight="bold", **place, **PLAIN_TEXT)
    ax.annotate(second, (0, 1), (0, 4.5), fontsize=7, color=GREY, **place)


def _right_map(n: int) -> tuple[float, int]:
    """Width of the right panel's maps, and how many of them fit into a row."""
    room = _RIGHT - 2 * _PAD
    side = float(np.clip(room / n - _AXES[0], *_RIGHT_MAP))
    return side, int(room / (side + _AXES[0]) + 1e-6)


def _maps_height(n: int) -> float:
    side, per_row = _right_map(n)
    return -(-n // per_row) * (side + _AXES[1])


def _draw_maps(ax: Axes, found: Carriers, n: int, base: int) -> None:
    """The maps with the axes K and Q, every row in the middle of the panel."""
    side, per_row = _right_map(n)
    cell = side / found.run.n_tokens
    for i, head in enumerate(found.heads[:n]):
        row, column = divmod(i, per_row)
        in_row = min(per_row, n - row * per_row)
        x = (_RIGHT - in_row * (side + _AXES[0])) / 2 + column * (side + _AXES[0]) + _AXES[0]
        y = _PAD + row * (side + _AXES[1])
        draw_map(ax, found.run.pattern[head], (x, y), cell, (found.query, found.key))
        ax.text(x + side, y + 0.01, head.label, ha="right", va="top", fontsize=6.5)
        query, key = ((position + 0.5) * cell for position in (found.query, found.key))
        beside, below = {"ha": "right", "va": "center"}, {"ha": "center", "va": "top"}
        for text, place, how, colour in (
            ("Q", (x - 0.03, y + 0.4 * side), beside, GREY),
            ("K", (x + 0.25 * side, y + side + 0.025), below, GREY),
            (str(found.query + base), (x - 0.03, y + query), beside, RED),
            (str(found.key + base), (x + key, y + side + 0.025), below, RED),
        ):
            ax.text(*place, text, fontsize=5.5, color=colour, **how)


# --------------------------------------------------------------------------------------------- sentence


def _draw_sentence(ax: Axes, found: Carriers, n: int, top: float, base: int) -> None:
    """Tokens with their positions, the answer above the last one, and the arrow from the key to it."""
    tokens = [token_label(token) for token in found.run.token_strings]
    pitch = (_RIGHT - 2 * _PAD) / len(tokens)
    x = _PAD + pitch * (np.arange(len(tokens)) + 0.5)
    bottom = top + _GRAPH
    upright = len(tokens) > _LONG_PROMPT
    size = 6.0 if upright else min(_token_size(token, pitch) for token in tokens)
    for i, token in enumerate(tokens):
        colour, weight = (RED, "bold") if i == found.key else ("black", "normal")
        ax.text(
            x[i], bottom + (0.28 if upright else 0.16), token, ha="center", va="bottom", fontsize=size,
            rotation=90 if upright else 0, color=colour, fontweight=weight, **PLAIN_TEXT,
        )  # fmt: skip
        colour = RED if i in (found.key, found.query) else GREY
        ax.text(x[i], bottom + 0.33, str(i + base), ha="center", va="center", fontsize=6.5, color=colour)
    answer = (x[found.query], top + 0.22)
    line = {"color": GREY, "linewidth": 0.5, "linestyle": ":"}
    ax.plot([answer[0]] * 2, [answer[1] + 0.1, bottom], **line)
    ax.text(
        *answer, token_label(found.answer), ha="center", va="center", fontsize=8, fontweight="bold",
        color=BLUE, **PLAIN_TEXT,
    )  # fmt: skip
    _draw_arrow(ax, found, n, (x[found.key], bottom), answer, top)


def _draw_arrow(
    ax: Axes, found: Carriers, n: int, start: tuple[float, float], end: tuple[float, float], top: float
) -> None:
    """From the key to the answer, with the share that the drawn heads carry; it points up to their maps."""
    half_answer = 0.04 * len(found.answer) + 0.05
    arrow = {"arrowstyle": "-|>", "mutation_scale": 8, "shrinkA": 0, "shrinkB": 0}
    curve = "angle3,angleA=90,angleB=0" if end[0] - half_answer - start[0] > 0.15 else "arc3"
    tip = (end[0] - half_answer, end[1]) if curve != "arc3" else (end[0], end[1] + 0.12)
    ax.add_patch(FancyArrowPatch(start, tip, connectionstyle=curve, linewidth=1.3, color=RED, **arrow))
    heads = f"these {n} heads" if n > 1 else "this head"
    side, align = (-0.14, "right") if start[0] > _RIGHT / 3 else (0.5, "left")
    x, y = start[0] + side, end[1] + 0.17
    text = f"{_percent(found.shares[n])} through\n{heads}"
    ax.text(x, y, text, ha=align, va="center", fontsize=8, color=DARK)
    middle = x - 0.38 if align == "right" else x + 0.38
    pointer = FancyArrowPatch((middle, y - 0.16), (middle, top - 0.02), linewidth=0.8, color=DARK, **arrow)
    ax.add_patch(pointer)


def _token_size(token: str, pitch: float) -> float:
    """Type size in points at which a token fits into its column."""
    return float(np.clip(72 * pitch / (0.60 * max(len(token), 1)), 5.0, 8.0))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
