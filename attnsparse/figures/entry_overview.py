"""Which heads carry one token of a prompt to its last position, dense beside sparse, above the sentence.

The dense model's heads are in a grid on the left, the sparse model's with named axes on the right, the tokens
with their positions below them. In the space between maps and tokens, through which the arrow runs, positions
run across and layers upwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import _check
from ..circuits.entry_effects import ANSWER, KEY, PROMPT, QUERY, EntryEffects, entry_effects
from .attention import panel_size
from .panels import (
    PAD,
    STATEMENT,
    TITLE,
    TOKENS,
    draw_arrow,
    draw_tokens,
    left_panel,
    map_side,
    maps_end,
    model_title,
    percent,
    right_panel,
)
from .style import BLUE, DARK, GREY, LARGEST, PLAIN_TEXT, RED, column_text, styled

if TYPE_CHECKING:
    from ..model.model import Model

# Inches.
_MOST = 144  # heads of a model
_RIGHT = 4.3  # width of the right panel
_GAP = 0.16  # between the panels
_GRAPH = 1.25  # between the maps and the tokens


def entry_overview(
    dense: Model,
    sparse: Model,
    prompt: str = PROMPT,
    key: int | str = KEY,
    query: int | str = QUERY,
    answer: str = ANSWER,
    wrong: Sequence[str] | None = None,
    *,
    fraction: float = 0.8,
    ablation: str = "zero",
    most: int = 36,
    columns: int | None = None,
    base: int = 0,
) -> Figure:
    """The heads of two models that carry one token of a prompt to its last position, where an answer is due.

    Drawn are the fewest heads, best first, whose entries from `key` to `query`, each ablated alone, have
    `fraction` of the summed effects that the entries of all heads there have on the answer (see
    `attnsparse.circuits.entry_effects`). The entry is red in every map.

    Parameters
    ----------
    dense, sparse : Model
        Of the left and the right panel.
    prompt : str
        The text.
    key, query : int or str
        Positions counted from `base`, or tokens; `query` is the last.
    answer : str
        The token whose logit is measured.
    wrong : sequence of str, optional
        Tokens against which the answer is measured. None: the other words of the antonym task, for the prompt
        of the figure only.
    fraction : float, default 0.8
        Above 0 and at most 1.
    ablation : str, default "zero"
        As for `attnsparse.circuits.entry_effects`.
    most : int, default 36
        The largest number of heads of each model, at most 144.
    columns : int, optional
        Maps in a row on the left; None: as square as possible, at most 6.
    base : int, default 0
        Number of the first position, 0 or 1.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        As `attnsparse.circuits.entry_effects` does.
    """
    if wrong is None and prompt != PROMPT:
        raise ValueError("a prompt of your own needs wrong=..., the tokens that answer is measured against")
    found = [
        entry_effects(model, prompt, key, query, answer, wrong, ablation=ablation, base=base)
        for model in (dense, sparse)
    ]
    return draw_sketch(*found, fraction=fraction, most=most, columns=columns, base=base)


def n_drawn(found: EntryEffects, fraction: float, most: int) -> int:
    """How many heads of a model the sketch draws."""
    return min(max(found.needed(fraction), 1), most, _MOST)


def draw_sketch(
    dense: EntryEffects,
    sparse: EntryEffects,
    *,
    fraction: float = 0.8,
    most: int = 36,
    columns: int | None = None,
    base: int = 0,
) -> Figure:
    """`entry_overview` of effects that were found before."""
    _check.base(base)
    n_left, n_right = (n_drawn(found, fraction, most) for found in (dense, sparse))
    columns = min(6, math.ceil(math.sqrt(n_left))) if columns is None else columns
    units = panel_size(n_left, columns)
    side = min(map_side(n_right, _RIGHT), LARGEST / max(units))
    left = (units[0] * side, units[1] * side)
    right = (_RIGHT, PAD + maps_end(n_right, _RIGHT) + STATEMENT + _GRAPH + TOKENS)
    height = max(left[1], right[1])
    with styled():
        figure = plt.figure(figsize=(left[0] + _GAP + right[0] + 0.04, height + TITLE + 0.04))
        heads, entry = dense.heads[:n_left], (dense.query, dense.key)
        left_panel(figure, _title(dense, n_left, base), dense.run.pattern, heads, columns, left, entry, base)
        heads, entry = sparse.heads[:n_right], (sparse.query, sparse.key)
        title = _title(sparse, n_right, base)
        ax = right_panel(figure, title, sparse.run.pattern, heads, right, entry, base)
        _draw_sentence(ax, sparse, n_right, maps_end(n_right, _RIGHT) + STATEMENT, base)
    return figure


# ----------------------------------------------------------------------------------------------- panels


def _title(found: EntryEffects, n: int, base: int) -> tuple[str, str]:
    """The model and its number of heads; what they do."""
    config = found.run.model.config
    first = model_title(found.name, n, config.n_layer * config.n_head)
    through = f"{found.key + base} → {found.query + base}"
    share, kept = percent(found.shares[n]), percent(found.kept[n])
    return first, f"{share} of the effects through {through}; alone they keep {kept}"


# --------------------------------------------------------------------------------------------- sentence


def _draw_sentence(ax: Axes, found: EntryEffects, n: int, top: float, base: int) -> None:
    """Tokens with their positions, the answer above the last one, and the arrow from the key to it."""
    tokens = found.run.token_strings
    pitch = (_RIGHT - 2 * PAD) / len(tokens)
    x = PAD + pitch * (np.arange(len(tokens)) + 0.5)
    bottom = top + _GRAPH
    draw_tokens(ax, tokens, x, bottom, pitch, (found.query, found.key), base)
    answer = (float(x[found.query]), top + 0.22)
    ax.plot([answer[0]] * 2, [answer[1] + 0.1, bottom], color=GREY, linewidth=0.5, linestyle=":")
    ax.text(
        *answer, column_text(found.answer), ha="center", va="center", fontsize=8, fontweight="bold",
        color=BLUE, **PLAIN_TEXT,
    )  # fmt: skip
    _draw_arrow(ax, found, n, (x[found.key], bottom), answer, top)


def _draw_arrow(
    ax: Axes, found: EntryEffects, n: int, start: tuple[float, float], end: tuple[float, float], top: float
) -> None:
    """From the key to the answer, with the share that the drawn heads carry; it points up to their maps."""
    half_answer = 0.04 * len(column_text(found.answer)) + 0.05
    curve = "angle3,angleA=90,angleB=0" if end[0] - half_answer - start[0] > 0.15 else "arc3"
    tip = (end[0] - half_answer, end[1]) if curve != "arc3" else (end[0], end[1] + 0.12)
    draw_arrow(ax, start, tip, RED, 1.3, curve)
    heads = f"these {n} heads" if n > 1 else "this head"
    side, align = (-0.14, "right") if start[0] > _RIGHT / 3 else (0.5, "left")
    x, y = start[0] + side, end[1] + 0.17
    text = f"{percent(found.shares[n])} through\n{heads}"
    ax.text(x, y, text, ha=align, va="center", fontsize=8, color=DARK)
    middle = x - 0.38 if align == "right" else x + 0.38
    draw_arrow(ax, (middle, y - 0.16), (middle, top - 0.02), DARK, 0.8)
