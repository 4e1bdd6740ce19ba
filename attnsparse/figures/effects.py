"""Explained effect against the number of heads or attention edges kept, and the ratio of two models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .. import _check
from .style import (
    BLUE,
    DARK,
    GREY,
    LABEL_SIGNS,
    PALE,
    PLAIN_TEXT,
    given_text,
    new_axes,
    size_labels,
    styled,
    text_size,
)

if TYPE_CHECKING:
    from ..circuits.circuit import Circuit

# Colour and width of the first, the second and further curves; only the first two have bands and dots.
_LOOKS = ((DARK, 1.3), (BLUE, 1.3), (GREY, 0.8))
_COMPARED = 2
_BAND_OPACITY = 0.17
_AXIS_LABELS = {"head": "heads kept", "edge": "attention edges kept"}
_LOWEST, _HIGHEST = -1.0, 2.0  # without ylim, the vertical axis shows no more than this and a margin
_PLACES = 28  # positions across and upwards that are tried for a text
_CLEARANCE = 1.5  # points between a text and any line
_COVERS_CURVE, _COVERS_LINE = 500.0, 60.0  # what covering it costs, in points of distance


def effect_curves(
    circuits: Mapping[str, Circuit],
    ax: Axes | None = None,
    fraction: float = 0.9,
    *,
    by: str = "first",
    log: bool = True,
    ratio: bool = True,
    random: bool = True,
    ylim: tuple[float, float] | None = None,
    title: str | None = None,
) -> Axes:
    """Faithfulness (explained effect) of the n best items of each circuit, against n.

    The first curve is dark, the second blue, further ones are thin grey lines. Bands are the two circuits'
    bootstrap intervals, dotted lines random orders (where they were evaluated). A full dot marks the first n
    that reaches `fraction`, an open one the n from which the effect stays there.

    Parameters
    ----------
    circuits : mapping
        Label to `Circuit`, all of one unit. Long labels are cut in the middle to 30 characters.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    fraction : float, default 0.9
        Above 0 and at most 1.
    by : {"first", "stays"}, default "first"
        What the ratio counts; see `Circuit.ratio_to`.
    log : bool, default True
        A logarithmic axis that shows 0 as well.
    ratio : bool, default True
        Write how many times more items the first circuit needs than the second, with its interval.
    random : bool, default True
        Draw random orders.
    ylim : tuple of float, optional
        Limits of the vertical axis; None: everything from -1 to 2.
    title : str, optional
        At most 160 characters a line are shown.

    Returns
    -------
    matplotlib.axes.Axes
        The curves are `ax.lines` with the circuits' labels, their points `circuit.sizes` and
        `circuit.effect`.

    Raises
    ------
    TypeError
        If `circuits` is not a mapping.
    ValueError
        Without a circuit, for circuits of different units and for another fraction.
    """
    if not isinstance(circuits, Mapping):
        raise TypeError(f"circuits must be a mapping, label: Circuit, got {type(circuits).__name__}")
    units = {circuit.unit for circuit in circuits.values()}
    if len(units) != 1:
        raise ValueError(
            f"circuits must all have one unit, got {', '.join(map(repr, sorted(units))) or 'no circuit'}"
        )
    fraction = _check.fraction(fraction)
    unit = units.pop()
    with styled():
        if ax is None:
            ax = new_axes((3.4, 2.5))
        _set_axes(ax, circuits.values(), unit, log)
        ax.set_ylim(effect_limits(circuits.values()) if ylim is None else ylim)
        _draw_line(ax, fraction)
        colours = {label: _LOOKS[min(i, _COMPARED)][0] for i, label in enumerate(circuits)}
        compared = list(circuits.items())[:_COMPARED]
        for label, circuit in compared:
            _draw_surroundings(ax, label, circuit, colours[label], random)
        curves = {
            label: _draw_curve(ax, label, circuit, *_LOOKS[min(i, _COMPARED)])
            for i, (label, circuit) in enumerate(circuits.items())
        }
        for label, circuit in compared:
            _draw_needed(ax, circuit, fraction, colours[label])
        taken: list[np.ndarray] = []
        if ratio and len(compared) == _COMPARED:
            _write_ratio(ax, compared[0][1], compared[1][1], fraction, by, taken)
        for label, curve in curves.items():
            _write_near(ax, given_text(label, LABEL_SIGNS), _pixels(curve), 7.0, colours[label], taken)
        if title is not None:
            ax.set_title(given_text(title), **PLAIN_TEXT)
    return ax


def effect_limits(circuits: Iterable[Circuit]) -> tuple[float, float]:
    """Limits of a vertical axis that shows the curves of all circuits, between -1 and 2, and their names."""
    shown = np.concatenate([[0.0, 1.0], *(circuit.effect for circuit in circuits)])
    low, high = np.clip([shown.min(), shown.max()], _LOWEST, _HIGHEST)
    return float(low) - 0.08, float(high) + 0.22


# ------------------------------------------------------------------------------------------------ parts


def _set_axes(ax: Axes, circuits: Iterable[Circuit], unit: str, log: bool) -> None:
    """The horizontal axis with its ticks, and the names of both."""
    largest = max(int(circuit.sizes[-1]) for circuit in circuits)
    if log:
        ax.set_xscale("symlog", linthresh=1, linscale=0.35)
        ax.set_xlim(-0.12, largest * 1.35)
        ticks = [0, *(10**power for power in range(len(str(largest))))]
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        minor = [digit * tick for tick in ticks[1:] for digit in range(2, 10) if digit * tick <= largest]
        ax.xaxis.set_minor_locator(FixedLocator(minor))
        ax.tick_params(axis="x", which="minor", length=1.5, width=0.4)
    else:
        ax.set_xlim(-0.02 * largest, 1.02 * largest)
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set(xlabel=_AXIS_LABELS[unit], ylabel="explained effect")
    ax.spines[["top", "right"]].set_visible(False)
    size_labels(ax)


def _draw_line(ax: Axes, fraction: float) -> None:
    """The line of the fraction, and thin ones at 0 and 1."""
    for height in (0, 1):
        ax.axhline(height, color=PALE, linewidth=0.5, zorder=0)
    ax.axhline(fraction, color=GREY, linewidth=0.7, linestyle=(0, (4, 3)), zorder=1)


def _draw_surroundings(ax: Axes, label: str, circuit: Circuit, colour: str, random: bool) -> None:
    """The band of a curve, and a dotted line for random orders where they were evaluated."""
    ax.fill_between(
        circuit.sizes, circuit.effect_low, circuit.effect_high, color=colour, alpha=_BAND_OPACITY,
        linewidth=0, zorder=2,
    )  # fmt: skip
    known = np.isfinite(circuit.random_effect)
    if random and known.any():
        ax.plot(
            circuit.sizes[known], circuit.random_effect[known], color=colour, linewidth=0.8,
            linestyle=(0, (1, 1.6)), label=f"_{given_text(label, LABEL_SIGNS)}, random order", zorder=3,
        )  # fmt: skip


def _draw_curve(ax: Axes, label: str, circuit: Circuit, colour: str, width: float) -> Line2D:
    """One curve; a bar at its end, where everything that the model has is kept."""
    shown = given_text(label, LABEL_SIGNS)
    [curve] = ax.plot(circuit.sizes, circuit.effect, color=colour, linewidth=width, label=shown, zorder=4)
    ax.plot(circuit.sizes[-1:], circuit.effect[-1:], "|", color=colour, markersize=5, label="_end", zorder=4)
    return curve


def _draw_needed(ax: Axes, circuit: Circuit, fraction: float, colour: str) -> None:
    """A full dot where the curve first reaches the fraction, an open one from where it stays there."""
    needed = circuit.needed(fraction)
    if needed.stays is not None and needed.stays != needed.first:
        ax.plot(
            [needed.stays],
            [fraction],
            "o",
            color=colour,
            mfc="white",
            mew=0.8,
            ms=3.6,
            label="_stays",
            zorder=5,
        )
    if needed.first is not None:
        ax.plot([needed.first], [fraction], "o", color=colour, mew=0, ms=4.2, label="_first", zorder=6)


def _write_ratio(
    ax: Axes, more: Circuit, fewer: Circuit, fraction: float, by: str, taken: list[np.ndarray]
) -> None:
    """An arrow between the two numbers needed, and near it their ratio with its interval."""
    found = more.ratio_to(fewer, fraction, by)
    if not np.isfinite(found.value):
        return
    start, end = ((getattr(circuit.needed(fraction), by), fraction) for circuit in (fewer, more))
    arrow = {"arrowstyle": "<|-|>,head_length=0.25,head_width=0.12", "linewidth": 0.8, "color": "black"}
    ax.annotate("", start, end, arrowprops=arrow | {"shrinkA": 2, "shrinkB": 2}, zorder=7)
    middle = ax.transData.transform([start, end]).mean(axis=0)
    text = f"{_times(found.value)}\n[{_number(found.low)}, {_number(found.high)}]"
    _write_near(ax, text, middle[None], 6.5, "black", taken)


def _times(value: float) -> str:
    return f"{_number(value)}×"


def _number(value: float) -> str:
    """Two or three digits: 4.5, 97, 1,230."""
    if not np.isfinite(value):
        return "∞"
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


# ------------------------------------------------------------------------------------------------ texts


def _write_near(
    ax: Axes, text: str, points: np.ndarray, size: float, colour: str, taken: list[np.ndarray]
) -> None:
    """Write `text` as near as possible to one of `points` [N, 2] (pixels) where it covers least.

    taken: boxes (x0, y0, x1, y1 in pixels) that other texts cover; the new one is added.
    """
    box, point = ax.get_window_extent(), ax.figure.dpi / 72
    width, height = _text_size(text, size, point)
    x, y = np.meshgrid(
        np.linspace(box.x0 + 2 * point, max(box.x1 - width, box.x0 + 3 * point), _PLACES),
        np.linspace(box.y0 + 2 * point, max(box.y1 - height, box.y0 + 3 * point), _PLACES),
    )
    places = np.stack([x, y, x + width, y + height], axis=-1).reshape(-1, 4)
    cost = _distances(places, points) / point
    for line in ax.lines:
        covered = _COVERS_LINE if str(line.get_label()).startswith("_") else _COVERS_CURVE
        cost += covered * (_distances(places, _pixels(line)) < _CLEARANCE * point)
    for other in taken:
        cost += _COVERS_CURVE * _overlaps(places, other)
    best = places[int(np.argmin(cost))]
    taken.append(best)
    x_middle, y_middle = ax.transAxes.inverted().transform((best[:2] + best[2:]) / 2)
    ax.text(
        x_middle, y_middle, text, transform=ax.transAxes, color=colour, fontsize=size, ha="center",
        va="center", linespacing=1.05, zorder=8, **PLAIN_TEXT,
    )  # fmt: skip


def _pixels(line: Line2D) -> np.ndarray:
    """Points [N, 2] along a line, in pixels, a few pixels apart."""
    corners = line.get_transform().transform(line.get_xydata())
    lengths = np.hypot(*np.diff(corners, axis=0).T)
    pieces = [
        begin + (end - begin) * np.linspace(0, 1, int(length // 5) + 1, endpoint=False)[:, None]
        for begin, end, length in zip(corners[:-1], corners[1:], lengths)
    ]
    return np.concatenate([*pieces, corners[-1:]])


def _text_size(text: str, size: float, point: float) -> tuple[float, float]:
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
