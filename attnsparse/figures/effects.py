"""Explained effect against the number of heads or attention edges kept, and the ratio of two models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .. import _check
from .curve_parts import (
    COMPARED,
    LOOKS,
    count_axis,
    curve_limits,
    draw_band,
    draw_curve,
    draw_key,
    draw_levels,
    draw_random,
    pixels,
    write_near,
)
from .style import GREY, LABEL_SIGNS, PLAIN_TEXT, check_axes, given_text, new_axes, styled

if TYPE_CHECKING:
    from ..circuits.circuit import Circuit

_AXIS_LABELS = {"head": "heads kept", "edge": "attention edges kept"}
_ABOVE_KEY = 14  # points from the axes to a title
_ABOVE_TITLE = 16  # points from the axes to a key


def effect_curves(
    circuits: Mapping[str, Circuit],
    ax: Axes | None = None,
    fraction: float = 0.9,
    *,
    by: str = "first",
    log: bool = True,
    ratio: bool = True,
    random: bool = True,
    key: bool = True,
    ylim: tuple[float, float] | None = None,
    title: str | None = None,
) -> Axes:
    """Faithfulness (explained effect) of the n best items of each circuit, against n.

    A single curve is blue; of several the first is dark, the second blue, further ones are thin grey lines.
    Bands are the two circuits' bootstrap intervals, dotted lines random orders (where they were evaluated). A
    full dot marks the first n that reaches `fraction`, an open one the n from which the effect stays there.

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
    key : bool, default True
        Say above the axes what dots and dotted lines mean.
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
    check_axes(ax)
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
        count_axis(ax, max(int(circuit.sizes[-1]) for circuit in circuits.values()), log)
        ax.set(xlabel=_AXIS_LABELS[unit], ylabel="explained effect")
        ax.set_ylim(effect_limits(circuits.values()) if ylim is None else ylim)
        draw_levels(ax)
        ax.axhline(fraction, color=GREY, linewidth=0.7, linestyle=(0, (4, 3)), zorder=1)
        first = len(circuits) == 1  # a single circuit looks like the second of a pair, the one of interest
        looks = {label: LOOKS[min(i + first, COMPARED)] for i, label in enumerate(circuits)}
        colours = {label: colour for label, (colour, _) in looks.items()}
        compared = list(circuits.items())[:COMPARED]
        for label, circuit in compared:
            draw_band(ax, circuit.sizes, circuit.effect_low, circuit.effect_high, colours[label])
            known = np.isfinite(circuit.random_effect)
            if random and known.any():
                draw_random(ax, label, circuit.sizes[known], circuit.random_effect[known], colours[label])
        curves = {
            label: draw_curve(ax, label, circuit.sizes, circuit.effect, *looks[label])
            for label, circuit in circuits.items()
        }
        for label, circuit in compared:
            _draw_needed(ax, circuit, fraction, colours[label])
        taken: list[np.ndarray] = []
        if ratio and len(compared) == COMPARED:
            _write_ratio(ax, compared[0][1], compared[1][1], fraction, by, taken)
        for label, curve in curves.items():
            write_near(ax, given_text(label, LABEL_SIGNS), pixels(curve), 7.0, colours[label], taken)
        if title is not None:
            ax.set_title(given_text(title), **PLAIN_TEXT)
        if key:
            effect_key([ax], fraction)
    return ax


def effect_key(axes: Sequence[Axes], fraction: float) -> None:
    """Say above the first axes what dots and dotted lines mean that any of the axes has.

    Of several axes the key is above their titles, of one below its title.
    """
    marks = _marks({str(line.get_label()) for ax in axes for line in ax.lines}, fraction)
    if marks and len(axes) > 1:
        draw_key(axes[0], marks, _ABOVE_TITLE)
    elif marks:
        draw_key(axes[0], marks)
        axes[0].set_title(axes[0].get_title(), pad=_ABOVE_KEY, **PLAIN_TEXT)


def effect_limits(circuits: Iterable[Circuit]) -> tuple[float, float]:
    """Limits of a vertical axis that shows the curves of all circuits, between -1 and 2, and their names."""
    return curve_limits(
        curve[np.isfinite(curve)] for circuit in circuits for curve in (circuit.effect, circuit.effect_low)
    )


# ------------------------------------------------------------------------------------------------ parts


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


def _marks(drawn: set[str], fraction: float) -> list[Line2D]:
    """Marks for the key, of the lines with these labels."""
    share = f"{100 * fraction:g} %"
    looks: dict[str, dict[str, Any]] = {
        "_first": {"marker": "o", "linestyle": "", "mew": 0, "ms": 4.2, "label": f"first {share}"},
        "_stays": {"marker": "o", "linestyle": "", "mfc": "white", "mew": 0.8, "ms": 3.6,
                   "label": f"{share} for good"},
    }  # fmt: skip
    marks = [Line2D([], [], color=GREY, **look) for name, look in looks.items() if name in drawn]
    if any(name.endswith(", random order") for name in drawn):
        marks.append(Line2D([], [], color=GREY, linewidth=0.8, linestyle=(0, (1, 1.6)), label="random order"))
    return marks


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
    write_near(ax, text, middle[None], 6.5, "black", taken)


def _times(value: float) -> str:
    return f"{_number(value)}×"


def _number(value: float) -> str:
    """Two or three digits: 4.5, 97, 1,230."""
    if not np.isfinite(value):
        return "∞"
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"
