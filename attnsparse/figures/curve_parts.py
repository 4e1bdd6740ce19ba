"""What figures of curves over a number of items share: axis, lines and bands, texts that cover no line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .style import BLUE, DARK, GREY, LABEL_SIGNS, PALE, PLAIN_TEXT, STYLE, given_text, size_labels, text_size

# Colour and width of the first, the second and further curves; only the first two have bands and dots.
LOOKS = ((DARK, 1.3), (BLUE, 1.3), (GREY, 0.8))
COMPARED = 2
_BAND_OPACITY = 0.17
_LOWEST, _HIGHEST = -1.0, 2.0  # without limits given, the vertical axis shows no more than this and a margin
_FEW = 30  # items: up to here an axis has more ticks than powers of ten
_BETWEEN = 3.0  # points between the numbers of two ticks
_PLACES = 28  # positions across and upwards that are tried for a text
_CLEARANCE = 1.5  # points between a text and any line
_COVERS_CURVE, _COVERS_LINE = 500.0, 60.0  # what covering it costs, in points of distance


def count_axis(ax: Axes, largest: int, log: bool) -> None:
    """A horizontal axis from 0 to `largest` items, with its ticks; a logarithmic one shows 0 as well."""
    if log:
        ax.set_xscale("symlog", linthresh=1, linscale=0.35)
        ax.set_xlim(-0.12, largest * 1.35)
        powers = [10**power for power in range(len(str(largest)))]
        ax.xaxis.set_major_locator(FixedLocator(_log_ticks(ax, largest)))
        minor = [digit * tick for tick in powers for digit in range(2, 10) if digit * tick <= largest]
        ax.xaxis.set_minor_locator(FixedLocator(minor))
        ax.tick_params(axis="x", which="minor", length=1.5, width=0.4)
    else:
        ax.set_xlim(-0.02 * largest, 1.02 * largest)
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.spines[["top", "right"]].set_visible(False)
    size_labels(ax)


def _log_ticks(ax: Axes, largest: int) -> list[int]:
    """The largest number, and 0, powers of ten and, of few items, 2 and 5, where there is room before it."""
    steps = (1, 2, 5) if largest < _FEW else (1,)
    rising = [0, *(step * 10**power for power in range(len(str(largest))) for step in steps)]
    chosen = [largest]
    for tick in reversed([tick for tick in rising if tick < largest]):
        places = ax.transData.transform([(tick, 0), (chosen[-1], 0)])[:, 0] * 72 / ax.figure.dpi
        widths = [text_size(f"{value:,}", STYLE["xtick.labelsize"])[0] for value in (tick, chosen[-1])]
        if places[1] - places[0] > sum(widths) / 2 + _BETWEEN:
            chosen.append(tick)
    return chosen[::-1]


def curve_limits(curves: Iterable[np.ndarray]) -> tuple[float, float]:
    """Limits of a vertical axis that shows all curves, between -1 and 2, and their names."""
    shown = np.concatenate([[0.0, 1.0], *curves])
    low, high = np.clip([shown.min(), shown.max()], _LOWEST, _HIGHEST)
    return float(low) - 0.08, float(high) + 0.22


def draw_key(ax: Axes, marks: Sequence[Line2D], gap: float = 1.2) -> None:
    """What marks mean that have no name of their own, in small type `gap` points above the axes."""
    ax.legend(
        handles=list(marks), loc="lower left", bbox_to_anchor=(0, 1), ncols=len(marks), frameon=False,
        fontsize=6, borderaxespad=gap / 6, handlelength=1.6, handletextpad=0.5, columnspacing=1.2,
    )  # fmt: skip


def draw_levels(ax: Axes) -> None:
    """Thin lines at 0 and 1."""
    for height in (0, 1):
        ax.axhline(height, color=PALE, linewidth=0.5, zorder=0)


def draw_band(ax: Axes, sizes: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> None:
    """The band of a curve's intervals."""
    ax.fill_between(sizes, low, high, color=colour, alpha=_BAND_OPACITY, linewidth=0, zorder=2)


def draw_random(ax: Axes, label: str, sizes: np.ndarray, heights: np.ndarray, colour: str) -> Line2D:
    """The dotted curve of random orders."""
    shown = f"_{given_text(label, LABEL_SIGNS)}, random order"
    dotted = (0, (1, 1.6))
    [line] = ax.plot(sizes, heights, color=colour, linewidth=0.8, linestyle=dotted, label=shown, zorder=3)
    return line


def draw_curve(
    ax: Axes, label: str, sizes: np.ndarray, heights: np.ndarray, colour: str, width: float
) -> Line2D:
    """One curve; a bar at its end, where everything that the model has is kept."""
    shown = given_text(label, LABEL_SIGNS)
    [curve] = ax.plot(sizes, heights, color=colour, linewidth=width, label=shown, zorder=4)
    ax.plot(sizes[-1:], heights[-1:], "|", color=colour, markersize=5, label="_end", zorder=4)
    return curve


# ------------------------------------------------------------------------------------------------ texts


def write_near(
    ax: Axes, text: str, points: np.ndarray, size: float, colour: str, taken: list[np.ndarray]
) -> None:
    """Write `text` as near as possible to one of `points` [N, 2] (pixels) where it covers least.

    taken: boxes (x0, y0, x1, y1 in pixels) that other texts cover; the new one is added.
    """
    box, point = ax.get_window_extent(), ax.figure.dpi / 72
    width, height = _size_of(text, size, point)
    x, y = np.meshgrid(
        np.linspace(box.x0 + 2 * point, max(box.x1 - width, box.x0 + 3 * point), _PLACES),
        np.linspace(box.y0 + 2 * point, max(box.y1 - height, box.y0 + 3 * point), _PLACES),
    )
    places = np.stack([x, y, x + width, y + height], axis=-1).reshape(-1, 4)
    cost = _distances(places, points) / point
    for line in ax.lines:
        covered = _COVERS_LINE if str(line.get_label()).startswith("_") else _COVERS_CURVE
        cost += covered * (_distances(places, pixels(line)) < _CLEARANCE * point)
    for other in taken:
        cost += _COVERS_CURVE * _overlaps(places, other)
    best = places[int(np.argmin(cost))]
    taken.append(best)
    x_middle, y_middle = ax.transAxes.inverted().transform((best[:2] + best[2:]) / 2)
    ax.text(
        x_middle, y_middle, text, transform=ax.transAxes, color=colour, fontsize=size, ha="center",
        va="center", linespacing=1.05, zorder=8, **PLAIN_TEXT,
    )  # fmt: skip


def pixels(line: Line2D) -> np.ndarray:
    """Points [N, 2] along the parts of a line that are drawn, in pixels, a few pixels apart."""
    corners = line.get_transform().transform(line.get_xydata())
    lengths = np.hypot(*np.diff(corners, axis=0).T)
    pieces = [
        begin + (end - begin) * np.linspace(0, 1, int(length // 5) + 1, endpoint=False)[:, None]
        for begin, end, length in zip(corners[:-1], corners[1:], lengths)
        if np.isfinite(length)
    ]
    return np.concatenate([*pieces, corners[np.isfinite(corners).all(axis=1)]])


def _size_of(text: str, size: float, point: float) -> tuple[float, float]:
    """Width and height in pixels of one or several lines of text; no renderer is needed for it."""
    lines = text.split("\n")
    width = max(text_size(line, size)[0] for line in lines)
    return width * point, 1.15 * size * len(lines) * point


def _distances(boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Distance of each box [B, 4] from the nearest of points [N, 2]; 0 if one lies inside."""
    x, y = points.T
    across = np.maximum(boxes[:, :1] - x, 0) + np.maximum(x - boxes[:, 2:3], 0)
    upwards = np.maximum(boxes[:, 1:2] - y, 0) + np.maximum(y - boxes[:, 3:], 0)
    return np.asarray(np.hypot(across, upwards).min(axis=1))


def _overlaps(boxes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which of boxes [B, 4] overlap another one [4]."""
    apart = (boxes[:, :2] >= other[2:]) | (boxes[:, 2:] <= other[:2])
    return np.asarray(~apart.any(axis=1))
