"""The strongest rows of a table as horizontal bars, with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from .. import _check
from ..items import shortened
from .style import (
    BLUE,
    DARK,
    GREY,
    LABEL_SIGNS,
    ORANGE,
    PLAIN_TEXT,
    check_axes,
    given_text,
    new_axes,
    size_labels,
    styled,
    text_size,
)

if TYPE_CHECKING:
    import pandas as pd

_BAR_INCH = 0.17  # of a figure of our own, for each bar
_OPACITY = 0.55  # of bars below the lines of intervals


def bars(
    table: pd.DataFrame,
    value: str,
    n: int = 15,
    *,
    label: str = "label",
    low: str = "low",
    high: str = "high",
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """The n rows of largest absolute value, the largest at the top.

    Bars of positive values are blue, of negative ones orange. If the table has columns for the ends of
    intervals, these are thin lines across the ends of the bars.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per head, edge or other item, such as `Circuit.to_pandas`, or a table of effects with
        intervals. Rows without a value are left out.
    value : str
        Column with the lengths of the bars.
    n : int, default 15
        The largest number of bars.
    label : str, default "label"
        Column with the names of the bars, of which at most 30 characters are shown.
    low, high : str, default "low" and "high"
        Columns with the ends of the intervals. If the table has neither, there are no lines.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    title : str, optional
        At most 160 characters a line are shown.

    Returns
    -------
    matplotlib.axes.Axes
        Bar i is `ax.patches[i]`.

    Raises
    ------
    KeyError
        For a column that the table does not have.
    TypeError
        If `table` is no DataFrame, or the values are no numbers.
    ValueError
        If no row has a value.
    """
    check_axes(ax)
    import pandas as pd

    _check.instance(table, pd.DataFrame, "table")
    n = _check.integer(n, "n", 1)
    for name in (value, label, low, high):
        _check.instance(name, str, "the name of a column")
    values = _numbers(table, value)
    chosen = np.argsort(-np.abs(values), kind="stable")[: min(n, int(np.isfinite(values).sum()))]
    if not len(chosen):
        raise ValueError(f"the table has no row with a value in column {value!r:.60}")
    names = [given_text(text, LABEL_SIGNS) for text in _column(table, label).iloc[chosen]]
    ends = [_numbers(table, name)[chosen] for name in (low, high)] if {low, high} & set(table) else []
    lengths, rows = values[chosen], np.arange(len(chosen))
    with styled():
        if ax is None:
            widest = max(text_size(name, 7.0)[0] for name in names) / 72
            ax = new_axes((2.6 + widest, 0.6 + _BAR_INCH * len(chosen)))
        colours = [BLUE if x >= 0 else ORANGE for x in lengths]
        ax.barh(rows, lengths, height=0.72, color=colours, alpha=_OPACITY if ends else 1, zorder=2)
        if ends:
            ax.hlines(rows, ends[0], ends[1], color=DARK, linewidth=0.9, zorder=3)
        ax.axvline(0, color=GREY, linewidth=0.6, zorder=1)
        ax.set_yticks(rows, names, **PLAIN_TEXT)
        ax.set_ylim(len(chosen) - 0.4, -0.6)
        ax.set_xlabel(shortened(value, LABEL_SIGNS), **PLAIN_TEXT)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
        size_labels(ax)
        if title is not None:
            ax.set_title(given_text(title), **PLAIN_TEXT)
    return ax


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    if name not in table:
        listed = shortened(", ".join(map(str, table.columns)), 160)
        raise KeyError(f"the table has no column {name!r:.60}; it has {listed}")
    return table[name]


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    """A column as float64; what is missing is NaN."""
    column = _column(table, name)
    try:
        return column.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        raise TypeError(f"column {name!r:.60} must hold numbers, got {column.dtype}") from None
