"""Figures over a sweep: items that a task needs over the course of a training, agreement of circuits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from .. import _check
from ..circuits.choices import NAMES
from .curve_parts import draw_band, draw_key, pixels, write_near
from .style import (
    BLUE,
    DARK,
    GREY,
    LABEL_SIGNS,
    LARGEST,
    ORANGE,
    PALE,
    PLAIN_TEXT,
    STYLE,
    check_axes,
    figure_of,
    given_text,
    new_axes,
    size_labels,
    styled,
    text_size,
)

if TYPE_CHECKING:
    import pandas as pd

# Colour and marker of each task of one picture: told apart without colour too.
_LOOKS = ((BLUE, "o"), (ORANGE, "s"), (DARK, "^"), (GREY, "D"))
_OF_TRAINING = ("task", "training_step", "needed", "low", "high", "fraction", "unit")
_MEASURES = ("jaccard", "jaccard_low", "jaccard_high", "jaccard_chance", "correlation", "correlation_low",
             "correlation_high")  # fmt: skip
_PANEL = (1.9, 1.5)  # inches of a panel of several
_ROW_INCH = 0.3  # of a figure of our own, for each group of circuits
_APART = 0.17  # rows between the two measures of a group
_BETWEEN_TICKS = 4.0  # points between the numbers of two ticks


def needed_over_training(
    table: pd.DataFrame,
    ax: Axes | None = None,
    *,
    log: bool = False,
    ylim: tuple[float, float] | None = None,
    title: str | None = None,
) -> Axes:
    """How many items each task needs, over the steps of a training; up to four tasks.

    Dots are means over seeds, bands their intervals, as the table has them. A model whose circuits do not
    reach the fraction is a gap in the line.

    Parameters
    ----------
    table : pandas.DataFrame
        As `sweeps.needed` gives it, of the checkpoints of one training; models without a step of training
        are refused.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    log : bool, default False
        A logarithmic axis of steps, which shows step 0 too.
    ylim : tuple of float, optional
        Limits of the vertical axis; None: from 0 to all that is drawn.
    title : str, optional
        At most 160 characters a line are shown.

    Returns
    -------
    matplotlib.axes.Axes
        The lines are `ax.lines` with the tasks as labels.

    Raises
    ------
    TypeError
        If `table` is no DataFrame, or `ax` no Axes.
    ValueError
        For a table without a column or row that is needed, with several models at one step, fractions or
        units, or with more than four tasks; for these see `needed_by_task`.
    """
    check_axes(ax)
    found, tasks = _of_training(table), _tasks(table)
    if len(tasks) > len(_LOOKS):
        raise ValueError(
            f"one picture shows up to {len(_LOOKS)} tasks, got {len(tasks)}; figures.needed_by_task draws a "
            "panel for each"
        )
    _check.flag(log, "log")
    with styled():
        if ax is None:
            ax = new_axes((3.6, 2.5))
        _prepare(ax, found, log, ylim)
        ax.set(xlabel="training step", ylabel=_height(found))
        lines = [_draw_task(ax, found, task, *look) for task, look in zip(tasks, _LOOKS)]
        taken: list[np.ndarray] = []
        for task, line, (colour, _) in zip(tasks, lines, _LOOKS):
            if np.isfinite(np.asarray(line.get_ydata(), float)).any():
                write_near(ax, given_text(task, LABEL_SIGNS), pixels(line), 7.0, colour, taken)
        if title is not None:
            ax.set_title(given_text(title), **PLAIN_TEXT)
    return ax


def needed_by_task(
    table: pd.DataFrame,
    figure: Figure | None = None,
    *,
    columns: int = 3,
    log: bool = False,
    title: str | None = None,
) -> Figure:
    """A panel for each task: how many items it needs, over the steps of a training.

    Parameters
    ----------
    table : pandas.DataFrame
        As in `needed_over_training`, of any number of tasks.
    figure : matplotlib.figure.Figure, optional
        An empty figure to draw on; None: a new one.
    columns : int, default 3
        The largest number of panels beside each other.
    log : bool, default False
        A logarithmic axis of steps, which shows step 0 too.
    title : str, optional
        At most 160 characters a line are shown.

    Returns
    -------
    matplotlib.figure.Figure
        `figure.axes` are the panels, in the order of the tasks in the table; all have the same axes.

    Raises
    ------
    TypeError
        If `table` is no DataFrame, or `figure` no Figure.
    ValueError
        As `needed_over_training`, but for the number of tasks.
    """
    if figure is not None and not isinstance(figure, Figure):
        raise TypeError(f"figure must be a Figure of matplotlib or None, got {type(figure).__name__}")
    found, tasks = _of_training(table), _tasks(table)
    columns = min(_check.integer(columns, "columns", 1), len(tasks))
    _check.flag(log, "log")
    rows = -(-len(tasks) // columns)
    if figure is None:
        size = np.minimum((0.5 + _PANEL[0] * columns, 0.5 + _PANEL[1] * rows), LARGEST)
        figure = plt.figure(figsize=tuple(size), layout="constrained")
    with styled():
        panels: list[Axes] = []
        for i, task in enumerate(tasks):
            first = panels[0] if panels else None
            ax = figure.add_subplot(rows, columns, i + 1, sharex=first, sharey=first)
            panels.append(ax)
            _prepare(ax, found, log, None)
            _draw_task(ax, found, task, BLUE, "o")
            ax.set_title(given_text(task, LABEL_SIGNS), fontsize=STYLE["axes.labelsize"], **PLAIN_TEXT)
            ax.tick_params(labelbottom=i + columns >= len(tasks), labelleft=i % columns == 0)
        figure.supxlabel("training step", fontsize=STYLE["axes.labelsize"])
        figure.supylabel(_height(found), fontsize=STYLE["axes.labelsize"])
        if title is not None:
            figure.suptitle(given_text(title), fontsize=STYLE["axes.titlesize"], **PLAIN_TEXT)
    return figure


def circuit_agreement(table: pd.DataFrame, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """How far circuits agree: a row for each group of circuits.

    Full dots are the share of items that two circuits have in common (Jaccard), open squares the rank
    correlation, with their intervals; a grey stroke is the share in common by chance.

    Parameters
    ----------
    table : pandas.DataFrame
        As `sweeps.agreement` gives it.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    title : str, optional
        At most 160 characters a line are shown.

    Returns
    -------
    matplotlib.axes.Axes
        The rows are in the order of the table, from above; `ax.lines` with the labels jaccard, chance and
        correlation have their numbers.

    Raises
    ------
    TypeError
        If `table` is no DataFrame, or `ax` no Axes.
    ValueError
        For a table without rows, or without a column that is needed.
    """
    check_axes(ax)
    _check_columns(table, _MEASURES)
    names = _group_names(table)
    numbers = {name: table[name].to_numpy(np.float64, na_value=np.nan) for name in _MEASURES}
    rows = np.arange(len(table), dtype=np.float64)
    with styled():
        if ax is None:
            widest = max(text_size(name, STYLE["ytick.labelsize"])[0] for name in names) / 72
            ax = new_axes((2.9 + widest, 0.8 + _ROW_INCH * len(table)))
        for name, shift, colour in (("jaccard", -_APART, BLUE), ("correlation", _APART, ORANGE)):
            ends = numbers[f"{name}_low"], numbers[f"{name}_high"]
            ax.hlines(rows + shift, *ends, color=colour, linewidth=1.1, zorder=3)
        ax.plot(numbers["jaccard"], rows - _APART, "o", color=BLUE, ms=4, mew=0, label="jaccard", zorder=4)
        ax.plot(numbers["jaccard_chance"], rows - _APART, "|", color=GREY, ms=7, label="chance", zorder=2)
        [squares] = ax.plot(numbers["correlation"], rows + _APART, "s", color=ORANGE, ms=3.8, zorder=4)
        squares.set(markerfacecolor="white", markeredgewidth=0.9, label="correlation")
        for end in (0, 1):
            ax.axvline(end, color=PALE, linewidth=0.5, zorder=0)
        ax.set_yticks(rows, names, **PLAIN_TEXT)
        ax.set(ylim=(len(table) - 0.4, -0.6), xlabel="agreement of circuits")
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
        size_labels(ax)
        draw_key(ax, _key())
        if title is not None:
            ax.set_title(given_text(title), pad=14, **PLAIN_TEXT)
    return ax


# ------------------------------------------------------------------------------------------------ parts


def _check_columns(table: pd.DataFrame, names: Sequence[str]) -> None:
    import pandas as pd

    _check.instance(table, pd.DataFrame, "table")
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(
            f"the table has no column {missing[0]!r}; sweeps.needed and sweeps.agreement make it"
        )
    if not len(table):
        raise ValueError("the table has no rows")


def _of_training(table: pd.DataFrame) -> pd.DataFrame:
    """The rows in the order of their steps."""
    _check_columns(table, _OF_TRAINING)
    for name in ("fraction", "unit"):
        values = table[name].unique()
        if len(values) > 1:
            raise ValueError(f"the table has several values of {name}: {', '.join(map(str, values[:4]))}")
    if table["training_step"].isna().any():
        name = table.loc[table["training_step"].isna(), "model"].iloc[0] if "model" in table else "a model"
        raise ValueError(f"{name} has no step of training; set the column training_step")
    again = table.duplicated(["task", "training_step"])
    if again.any():
        row = table[again].iloc[0]
        raise ValueError(
            f"several models are at step {row['training_step']} of task {row['task']}; draw one training"
        )
    ordered: pd.DataFrame = table.sort_values("training_step", kind="stable")
    return ordered


def _tasks(table: pd.DataFrame) -> list[str]:
    return [str(task) for task in table["task"].unique()]


def _height(found: pd.DataFrame) -> str:
    """What the vertical axis counts."""
    unit = str(found["unit"].iloc[0])
    return f"{NAMES.get(unit, unit)} for {100 * float(found['fraction'].iloc[0]):g} % of the effect"


def _column(found: pd.DataFrame, name: str) -> np.ndarray:
    return found[name].to_numpy(np.float64, na_value=np.nan)


def _prepare(ax: Axes, found: pd.DataFrame, log: bool, ylim: tuple[float, float] | None) -> None:
    """Axes for all rows, with their ticks."""
    steps = np.unique(_column(found, "training_step"))
    if log:
        least = float(min(steps[steps > 0], default=1.0))
        ax.set_xscale("symlog", linthresh=least, linscale=0.3)
        ax.set_xlim(float(steps[0]) - 0.08 * least, float(steps[-1]) * 1.15 + 0.1 * least)
    else:
        margin = 0.04 * float(steps[-1] - steps[0]) or 1.0
        ax.set_xlim(float(steps[0]) - margin, float(steps[-1]) + margin)
    ax.xaxis.set_major_locator(FixedLocator(_ticks(ax, steps)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    shown = np.concatenate([_column(found, name) for name in ("needed", "high")])
    top = float(np.nanmax(shown)) if np.isfinite(shown).any() else 1.0
    ax.set_ylim((0, 1.12 * top) if ylim is None else ylim)
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    size_labels(ax)


def _ticks(ax: Axes, steps: np.ndarray) -> list[float]:
    """Steps that are named: the last, the first, and those between for whose numbers there is room."""
    figure_of(ax).draw_without_rendering()  # the width that the layout gives
    places = ax.transData.transform([(step, 0) for step in steps])[:, 0] * 72 / ax.figure.dpi
    halves = [text_size(f"{step:,.0f}", STYLE["xtick.labelsize"])[0] / 2 for step in steps]
    chosen: list[int] = []
    for i in [len(steps) - 1, 0, *range(len(steps) - 2, 0, -1)]:
        if all(abs(places[i] - places[j]) > halves[i] + halves[j] + _BETWEEN_TICKS for j in chosen):
            chosen.append(i)
    return [float(steps[i]) for i in sorted(chosen)]


def _draw_task(ax: Axes, found: pd.DataFrame, task: str, colour: str, marker: str) -> Line2D:
    rows = found[found["task"] == task]
    steps, heights, low, high = (_column(rows, name) for name in ("training_step", "needed", "low", "high"))
    draw_band(ax, steps, low, high, colour)
    [line] = ax.plot(
        steps, heights, marker=marker, color=colour, ms=3.4, mew=0, linewidth=1.1, zorder=4,
        label=given_text(task, LABEL_SIGNS),
    )  # fmt: skip
    return line


def _group_names(table: pd.DataFrame) -> list[str]:
    """What tells the rows apart."""
    there = [name for name in ("task", "model", "seed") if name in table]
    parts = [name for name in there if table[name].nunique() > 1] or there[:1]
    return [
        given_text(
            ", ".join(f"seed {row[name]}" if name == "seed" else str(row[name]) for name in parts),
            LABEL_SIGNS,
        )
        for _, row in table.iterrows()
    ]


def _key() -> list[Line2D]:
    shared = Line2D([], [], linestyle="", marker="o", color=BLUE, ms=4, mew=0, label="shared items (Jaccard)")
    chance = Line2D([], [], linestyle="", marker="|", color=GREY, ms=7, label="shared by chance")
    ranks = Line2D(
        [], [], linestyle="", marker="s", color=ORANGE, mfc="white", mew=0.9, ms=3.8, label="rank correlation"
    )
    return [shared, chance, ranks]
