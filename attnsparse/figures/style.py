"""What all figures share: colours, type sizes, a fresh Axes, and saving with the same bytes every time.

White to dark blue is read by colour-blind people and survives grey printing; a second colour is orange, the
partner of blue that all common forms of colour blindness keep apart.

Texts of files and callers are data. `given_text` and `column_text` escape and shorten them, and PLAIN_TEXT
goes with every one of them into matplotlib. Sizes of type belong to the design; the typeface is the user's
(`rcParams["font.family"]`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypedDict, cast

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from .. import _check
from ..io.atomic import write_atomic
from ..items import shortened, token_label

WHITE_TO_BLUE = LinearSegmentedColormap.from_list(
    "white_to_blue", ["#ffffff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"]
)
# Equal absolute values are about equally dark; orange and blue are kept apart by all common forms of colour
# blindness, and the scale says which is which.
ORANGE_TO_BLUE = LinearSegmentedColormap.from_list(
    "orange_to_blue",
    ["#6b2b00", "#d55e00", "#f4a768", "#fce4d0", "#ffffff", "#d5e3f3", "#6baed6", "#2171b5", "#08306b"],
)
BLUE = "#0b4f9e"
RED = "#d62718"
DARK = "#3d3d3d"
ORANGE = "#d55e00"
GREY = "#8a8a8a"
PALE = "#d9d9d9"
PANEL = "#f7f8fa"


class TextOptions(TypedDict):
    """How a text is read."""

    parse_math: bool
    usetex: bool


# For every text of a file or of the caller: a `$` in it starts no formula, and TeX, which would obey it, does
# not get it, also on Axes that were made with text.usetex.
PLAIN_TEXT: TextOptions = {"parse_math": False, "usetex": False}

STYLE = {
    "text.usetex": False,
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "figure.dpi": 120.0,
}

# Text stays searchable text in PDF (TrueType, as publishers ask) and becomes outlines in SVG, which look the
# same on machines without the font. The salt fixes the names inside an SVG file.
_SAVE_STYLE = {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "attnsparse"}
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}


LARGEST = 24.0  # inches: no side of a figure of our own is longer, however much there is to draw
VECTOR_LINES = 20_000  # more lines are stored as pixels inside SVG and PDF


def new_axes(size: tuple[float, float]) -> Axes:
    """An empty Axes on a new pyplot figure of `size` (width, height) in inches, which notebooks show."""
    _, ax = plt.subplots(figsize=np.minimum(size, LARGEST), layout="constrained")
    return ax


def check_axes(ax: object) -> None:
    """Refuse what a caller gives to draw on, unless it is an Axes or None."""
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"ax must be an Axes of matplotlib or None, got {type(ax).__name__}")


def check_run(run: Any, what: str = "a Run, such as Model.run gives") -> None:
    """Refuse what is no run, before anything else is asked of it."""
    try:
        first = run[0]
    except (TypeError, LookupError):
        first = None
    if not hasattr(first, "recorded"):
        raise TypeError(f"run must be {what}, got {type(run).__name__}")


def figure_of(ax: Axes) -> Figure:
    """The whole figure that an Axes belongs to."""
    figure = ax.figure.figure
    assert isinstance(figure, Figure)  # a SubFigure's figure is the whole one
    return figure


def size_labels(ax: Axes) -> None:
    """Give the axis and tick labels of an Axes that somebody else made the sizes of this module."""
    ax.tick_params(labelsize=STYLE["xtick.labelsize"])
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_fontsize(STYLE["axes.labelsize"])


TOKEN_SIGNS = 14  # characters of a token, or of a text above a column
LABEL_SIGNS = 30  # of a caller's label, of a name
_LINE_SIGNS = 160  # of a line of a caller's title or caption
_LINES = 12
_APART = 1.2  # type sizes from one upright name to the next


def column_text(token: str) -> str:
    """A token as the name of a column, at most TOKEN_SIGNS characters."""
    return shortened(token_label(token), TOKEN_SIGNS)


def given_text(text: object, most: int = _LINE_SIGNS) -> str:
    """The caller's text with its own line feeds, at most `most` characters a line and _LINES lines."""
    return "\n".join(shortened(line, most) for line in str(text).split("\n", _LINES - 1))


def text_size(text: str, size: float) -> tuple[float, float]:
    """Width and height in points of lines of text; no renderer is needed for it."""
    font, lines = FontProperties(size=size), text.split("\n")
    widths = [text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] for line in lines]
    return max(widths) + 1, 1.25 * size * len(lines)


def apart(places: Sequence[float] | np.ndarray, size: float) -> list[int]:
    """Which of `places`, rising points, get an upright name in type of `size`, so that none touch."""
    chosen: list[int] = []
    for i, place in enumerate(places):
        if not chosen or place - places[chosen[-1]] >= _APART * size:
            chosen.append(i)
    return chosen


def column_pitches(texts: Sequence[str]) -> np.ndarray:
    """float64 [n - 1]: points between columns from which on names and positions stand side by side."""
    size = STYLE["xtick.labelsize"]
    widths = np.array([max(text_size(t, size)[0] for t in (text, str(i))) for i, text in enumerate(texts)])
    pitches: np.ndarray = (widths[1:] + widths[:-1]) / 2 + size / 2
    return pitches


def name_columns(ax: Axes, x: Sequence[float] | np.ndarray, texts: Sequence[str], base: int | None) -> None:
    """Write `texts` and, unless `base` is None, positions below the columns.

    They stand upright if they would touch; where upright ones would touch too, some columns have no name.
    """
    points = ax.transData.transform([(place, 0) for place in x])[:, 0] * 72 / ax.figure.dpi
    upright = bool((np.diff(points) <= column_pitches(texts)).any())
    named = apart(points, STYLE["xtick.labelsize"]) if upright else range(len(texts))
    if base is not None:
        between = "  " if upright else "\n"
        texts = [f"{text}{between}{i + base}" for i, text in enumerate(texts)]
        ax.set(xlabel=f"token and position (from {base})")
    ax.set_xticks(
        [x[i] for i in named], [texts[i] for i in named], rotation=90 if upright else 0, **PLAIN_TEXT
    )


def styled() -> AbstractContextManager[None]:
    """Context in which new text and lines take this module's sizes; the user's settings are left alone."""
    return _settings(STYLE)


@contextmanager
def _settings(values: Mapping[str, Any]) -> Iterator[None]:
    """Set some of matplotlib's settings and give back these alone.

    `rc_context` would give back all, also `interactive`, which a notebook switches on with the first figure.
    """
    settings = cast("dict[str, Any]", mpl.rcParams)
    before = {name: settings[name] for name in values}
    settings.update(values)
    try:
        yield
    finally:
        settings.update(before)


def save(
    figure: Figure | Axes,
    path: str | os.PathLike[str],
    formats: str | Sequence[str] | None = None,
    dpi: float = 300.0,
) -> list[Path]:
    """Write a figure as PNG, SVG and PDF.

    The same figure gives the same bytes on every run with the same matplotlib: no dates, no random names.
    Each file appears complete or not at all.

    Parameters
    ----------
    figure : matplotlib.figure.Figure or matplotlib.axes.Axes
        The figure, or an Axes of it.
    path : str or os.PathLike
        `path`.png, `path`.svg and `path`.pdf are written; a path that ends in one of these is the one file
        that is written.
    formats : str or sequence of str, optional
        One or several of "png", "svg", "pdf"; None: all three.
    dpi : float, default 300
        Of the PNG and of very large attention maps; above 0.

    Returns
    -------
    list of pathlib.Path
        The files.

    Raises
    ------
    ValueError
        For another format, formats that are not the one `path` ends in, and another dpi.
    TypeError
        For other objects.
    OSError
        If a file cannot be written.
    """
    stem, names = _stem_and_formats(_check.path(path), formats)
    dpi = _check.positive(dpi, "dpi")
    if not isinstance(figure, Figure | Axes):
        raise TypeError(f"figure must be a Figure or Axes of matplotlib, got {type(figure).__name__}")
    whole = figure_of(figure) if isinstance(figure, Axes) else figure
    paths = []
    with _settings(_SAVE_STYLE):
        for name in names:
            data = io.BytesIO()
            whole.savefig(
                data, format=name, dpi=dpi, metadata=_METADATA[name], bbox_inches="tight", pad_inches=0.04
            )
            paths.append(Path(f"{stem}.{name}"))
            write_atomic(paths[-1], [data.getvalue()])
    return paths


def _stem_and_formats(path: str, formats: str | Sequence[str] | None) -> tuple[str, list[str]]:
    """What the files' names begin with, and how they end."""
    names = list(_METADATA) if formats is None else _check.names(formats, "formats")
    unknown = [name for name in names if name not in _METADATA]
    if unknown:
        raise ValueError(f"formats: unknown format {unknown[0]!r:.60}; choose from {', '.join(_METADATA)}")
    suffix = Path(path).suffix
    if suffix[1:] not in _METADATA:
        return path, names
    if formats is not None and names != [suffix[1:]]:
        raise ValueError(f"path ends in {suffix}, formats are {names!r:.60}; omit one of them")
    return path.removesuffix(suffix), [suffix[1:]]
