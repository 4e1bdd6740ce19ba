"""Any table with a row for each layer and head, or layer and position, as a map of coloured squares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import FixedLocator, FuncFormatter

from .. import _check
from ..items import shortened
from .style import (
    LABEL_SIGNS,
    ORANGE_TO_BLUE,
    PLAIN_TEXT,
    STYLE,
    VECTOR_LINES,
    WHITE_TO_BLUE,
    apart,
    check_axes,
    column_text,
    figure_of,
    given_text,
    new_axes,
    size_labels,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd

_NO_VALUE = "#efefef"
_COLUMNS = ("head_index", "position", "query_position", "key_position")
_NAMES = {"head_index": "head"}
_TOKENS = {"position": "token", "query_position": "query_token", "key_position": "key_token"}
_CELL = 0.24  # inches


def heat_map(
    table: pd.DataFrame,
    value: str,
    ax: Axes | None = None,
    *,
    columns: str | None = None,
    rows: str = "layer",
    largest: float | None = None,
    title: str | None = None,
) -> Axes:
    """One number for each layer and head, or for each layer and position, as coloured squares.

    Numbers that are all 0 or more are white to blue; others are orange below 0 and blue above, equally dark
    for equal absolute values. A square without a number is grey.

    Parameters
    ----------
    table : pandas.DataFrame
        One row for each square, such as `Run.heads`, `EntrySweep.summary`, `PatchingSweep.to_pandas` or
        `Circuit.to_pandas` give. Of several prompts (column prompt), the mean is shown.
    value : str
        The column of numbers.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    columns : str, optional
        The column that counts squares to the right. Default: the first that the table has of head_index,
        position, query_position and key_position.
    rows : str, default "layer"
        The column that counts squares downwards.
    largest : float, optional
        The absolute value that has the darkest colour, to compare figures; None: the largest of all.
    title : str, optional
        Default: the model, if the table has a column of it.

    Returns
    -------
    matplotlib.axes.Axes
        `ax.collections[0]` has the numbers, masked where there is none.

    Raises
    ------
    KeyError
        If the table does not have such a column.
    TypeError
        For something else than a table, and for columns that are no numbers.
    ValueError
        For a table without rows, of several models, or with several rows for one square, and for a `largest`
        that is not above 0.
    """
    check_axes(ax)
    cells, (down, right) = _cells(table, value, rows, columns)
    known = cells.compressed()
    end = float(np.abs(known).max(initial=0.0)) if largest is None else _check.positive(largest, "largest")
    signed = bool((known < 0).any())
    norm = Normalize(-(end or 1.0) if signed else 0.0, end or 1.0)
    with styled():
        n_rows, n_columns = cells.shape
        ax = (
            new_axes((max(2.4, _CELL * n_columns + 1.5), max(1.6, _CELL * n_rows + 0.9)))
            if ax is None
            else ax
        )
        edges = np.arange(n_columns + 1) - 0.5, np.arange(n_rows + 1) - 0.5
        mesh = ax.pcolormesh(
            *edges, cells, cmap=ORANGE_TO_BLUE if signed else WHITE_TO_BLUE, norm=norm,
            rasterized=cells.size > VECTOR_LINES,
        )  # fmt: skip
        ax.set(facecolor=_NO_VALUE, xlim=(-0.5, n_columns - 0.5), ylim=(n_rows - 0.5, -0.5))
        ax.set(xlabel=_name(right.name), ylabel=_name(down.name))
        ax.tick_params(length=0)
        size_labels(ax)
        _name_rows(ax, down)
        _name_columns(ax, table, right)
        bar = figure_of(ax).colorbar(mesh, ax=ax, pad=0.02, fraction=0.05)
        _name_colours(bar.ax, norm, value)
        models = [] if "model" not in table else [shortened(str(table["model"].iloc[0]), LABEL_SIGNS)]
        ax.set_title(given_text(title) if title is not None else "".join(models), loc="left", **PLAIN_TEXT)
    return ax


# ---------------------------------------------------------------------------------------------- numbers


def _cells(
    table: pd.DataFrame, value: str, rows: str, columns: str | None
) -> tuple[np.ma.MaskedArray[Any, Any], tuple[pd.Index, pd.Index]]:
    """The numbers [rows, columns], and what counts them."""
    import pandas as pd

    _check.instance(table, pd.DataFrame, "table")
    if columns is None:
        columns = next((name for name in _COLUMNS if name in table), _COLUMNS[0])
    for name in (rows, columns, value):
        _check.instance(name, str, "the name of a column")
        if name not in table:
            known = ", ".join(map(str, table.columns))
            raise KeyError(f"the table has no column {name!r:.60}; it has {known:.400}")
    if not len(table):
        raise ValueError("the table has no rows")
    if "model" in table and table["model"].nunique() > 1:
        raise ValueError("the table is of several models; choose one, such as table[table.model == name]")
    numbers = table[[rows, columns, value]].copy()
    for name, kinds in ((rows, "iu"), (columns, "iu"), (value, "fiub")):
        if numbers[name].dtype.kind not in kinds:
            raise TypeError(f"column {name!r:.60} must hold numbers, got {numbers[name].dtype}")
    of_prompt = [table["prompt"]] if "prompt" in table else []
    if numbers.assign(prompt=of_prompt[0] if of_prompt else 0).duplicated([rows, columns, "prompt"]).any():
        raise ValueError(
            f"the table has several rows for one {_name(rows)} and {_name(columns)}; choose some of them, or "
            "take their mean with groupby"
        )
    means = numbers.astype({value: np.float64}).groupby([rows, columns])[value].mean()
    down, right = (
        pd.RangeIndex(0 if name in ("layer", "head_index") else int(numbers[name].min()), stop, name=name)
        for name, stop in ((name, int(numbers[name].max()) + 1) for name in (rows, columns))
    )
    cells = means.unstack().reindex(index=down, columns=right).to_numpy(np.float64)
    return np.ma.masked_invalid(cells), (down, right)


def _name(column: Any) -> str:
    return _NAMES.get(column, str(column).replace("_", " "))


# ----------------------------------------------------------------------------------------------- names


def _points(ax: Axes, n: int, axis: int) -> np.ndarray:
    """Places of squares along an axis, in points."""
    places = [(i, 0) if axis == 0 else (0, i) for i in range(n)]
    found: np.ndarray = np.abs(ax.transData.transform(places)[:, axis] * 72 / ax.figure.dpi)
    return found


def _name_rows(ax: Axes, down: pd.Index) -> None:
    points = _points(ax, len(down), 1)
    named = apart(np.abs(points - points[0]), STYLE["ytick.labelsize"])
    ax.set_yticks(named, [str(down[i]) for i in named])


def _name_columns(ax: Axes, table: pd.DataFrame, right: pd.Index) -> None:
    """Numbers, with tokens where all rows of a position have the same; upright ones if there are tokens."""
    texts = [str(number) for number in right]
    name = str(right.name)
    token = _TOKENS.get(name, "")
    if token in table and (table.groupby(name)[token].nunique() <= 1).all():
        tokens = dict(zip(table[name], table[token]))
        texts = [f"{column_text(str(tokens[i]))}  {i}" if i in tokens else str(i) for i in right]
    upright = texts != [str(number) for number in right]
    size = STYLE["xtick.labelsize"]
    points = _points(ax, len(right), 0)
    named = apart(points, size if upright else size * max(len(text) for text in texts) * 0.7)
    ax.set_xticks(named, [texts[i] for i in named], rotation=90 if upright else 0, **PLAIN_TEXT)


def _name_colours(bar: Axes, norm: Normalize, value: str) -> None:
    low, high = float(norm.vmin or 0.0), float(norm.vmax or 0.0)
    bar.yaxis.set_major_locator(FixedLocator([low, (low + high) / 2, high]))
    bar.yaxis.set_minor_locator(FixedLocator([]))
    bar.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.2g}".replace("-", "\N{MINUS SIGN}")))
    bar.set_ylabel(
        given_text(value.replace("_", " "), LABEL_SIGNS), fontsize=STYLE["axes.labelsize"], **PLAIN_TEXT
    )
    bar.tick_params(labelsize=STYLE["ytick.labelsize"], length=2)
