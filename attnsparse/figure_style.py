"""What all figures share: colours, type sizes, a fresh Axes, and saving with the same bytes every time.

White to dark blue is read by colour-blind people and survives grey printing; a second colour is orange, the
partner of blue that all common forms of colour blindness keep apart.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from .saving import write_atomic

WHITE_TO_BLUE = LinearSegmentedColormap.from_list(
    "white_to_blue", ["#ffffff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"]
)
# Equal values are about as dark as in WHITE_TO_BLUE; a red square also has a frame wherever it is used.
WHITE_TO_RED = LinearSegmentedColormap.from_list(
    "white_to_red", ["#ffffff", "#fdd2c6", "#f78b76", "#e0402f", "#b5120f"]
)
BLUE = "#0b4f9e"
RED = "#d62718"
DARK = "#3d3d3d"
ORANGE = "#d55e00"
GREY = "#8a8a8a"
PALE = "#d9d9d9"
PANEL = "#f7f8fa"

# For every label made from tokens or given by the caller: a `$` in it must not start a formula.
PLAIN_TEXT = {"parse_math": False}

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
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


def new_axes(size: tuple[float, float]) -> Axes:
    """An empty Axes on a new pyplot figure of `size` (width, height) in inches, which notebooks show."""
    _, ax = plt.subplots(figsize=size, layout="constrained")
    return ax


def size_labels(ax: Axes) -> None:
    """Give the axis and tick labels of an Axes that somebody else made the sizes of this module."""
    ax.tick_params(labelsize=STYLE["xtick.labelsize"])
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_size(STYLE["axes.labelsize"])


def styled() -> AbstractContextManager[None]:
    """Context in which new text and lines take this module's sizes; the user's settings are left alone."""
    return _settings(STYLE)


@contextmanager
def _settings(values: Mapping[str, Any]) -> Iterator[None]:
    """Set some of matplotlib's settings and give back these alone.

    `rc_context` would give back all, also `interactive`, which a notebook switches on with the first figure.
    """
    before = {name: mpl.rcParams[name] for name in values}
    mpl.rcParams.update(values)
    try:
        yield
    finally:
        mpl.rcParams.update(before)


def save(
    figure: Figure | Axes,
    path_stem: str | os.PathLike[str],
    formats: Sequence[str] = ("png", "svg", "pdf"),
    dpi: float = 300.0,
) -> list[Path]:
    """Write `figure` (or the figure of an Axes) to path_stem.png, .svg and .pdf and return the paths.

    The same figure gives the same bytes on every run with the same matplotlib: no dates, no random names.
    Each file appears complete or not at all. `dpi` is that of the PNG and of very large attention maps.
    Raises ValueError for a format other than these three, OSError if a file cannot be written.
    """
    unknown = [name for name in formats if name not in _METADATA]
    if unknown:
        raise ValueError(f"unknown figure format {unknown[0]!r}; known: {', '.join(_METADATA)}")
    figure = figure.figure.figure if isinstance(figure, Axes) else figure
    paths = []
    with _settings(_SAVE_STYLE):
        for name in formats:
            data = io.BytesIO()
            figure.savefig(
                data, format=name, dpi=dpi, metadata=_METADATA[name], bbox_inches="tight", pad_inches=0.04
            )
            path = Path(f"{os.fspath(path_stem)}.{name}")
            write_atomic(path, [data.getvalue()])
            paths.append(path)
    return paths
