"""Faithfulness against the number of component edges, alone and beside that of attention edges.

The two kinds of edge are not comparable, so each has an axis of its own, with its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import _check
from ..circuits.circuit import Circuit
from ..circuits.component_curve import ComponentCurve
from ..circuits.component_nodes import NodeCurve
from .curve_parts import (
    COMPARED,
    LOOKS,
    count_axis,
    curve_limits,
    draw_band,
    draw_curve,
    draw_levels,
    draw_random,
    pixels,
    write_near,
)
from .effects import effect_curves, effect_limits
from .style import GREY, LABEL_SIGNS, PLAIN_TEXT, given_text, new_axes, styled

Kind = TypeVar("Kind", ComponentCurve, Circuit)

_AXES = ("kept", "requested")
_HEIGHT = "faithfulness (explained effect)"
_RANDOM = "random"


def component_curve(
    curves: ComponentCurve | Mapping[str, ComponentCurve],
    ax: Axes | None = None,
    *,
    random: ComponentCurve | Sequence[ComponentCurve] = (),
    by: str = "kept",
    log: bool = True,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    ylim: tuple[float, float] | None = None,
    title: str | None = None,
) -> Axes:
    """Faithfulness of circuits of component edges, against their number.

    The first curve is dark, the second blue, further ones are thin grey lines; dots are the circuits that
    were evaluated. Bands are the first two curves' bootstrap intervals over prompts, a dotted line is the
    mean of random rankings.

    Parameters
    ----------
    curves : ComponentCurve or mapping
        One, or label to `ComponentCurve`. Long labels are cut in the middle to 30 characters.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    random : ComponentCurve or sequence of ComponentCurve, optional
        Of random rankings, all at the same shares: their mean is drawn.
    by : {"kept", "requested"}, default "kept"
        The number of component edges without dangling nodes, or the number that was taken, as in MIB.
    log : bool, default True
        A logarithmic axis that shows 0 as well.
    n_bootstrap, confidence, seed
        As in `ComponentCurve.band`; without resamples there are no bands.
    ylim : tuple of float, optional
        Limits of the vertical axis; None: everything from -1 to 2.
    title : str, optional
        At most 160 characters a line are shown.

    Returns
    -------
    matplotlib.axes.Axes
        The curves are `ax.lines` with their labels, the points `curve.kept` (or `requested`) and
        `curve.faithfulness`.

    Raises
    ------
    TypeError
        For other objects.
    ValueError
        Without a curve, for another `by`, for random rankings of different shares, and as
        `ComponentCurve.band`.
    """
    named = _named(curves, ComponentCurve, "curves")
    orders = _orders(random)
    by, log = _check.choice(by, "by", _AXES), _check.flag(log, "log")
    bands = [
        curve.band(n_bootstrap=n_bootstrap, confidence=confidence, seed=seed)
        for curve in list(named.values())[:COMPARED]
    ]
    with styled():
        if ax is None:
            ax = new_axes((3.4, 2.5))
        count_axis(ax, max(int(getattr(curve, by)[-1]) for curve in named.values()), log)
        ax.set(xlabel=f"{_counted(named.values())} {by}", ylabel=_HEIGHT)
        ax.set_ylim(_limits([*named.values(), *orders]) if ylim is None else ylim)
        draw_levels(ax)
        colours = {label: LOOKS[min(i, COMPARED)][0] for i, label in enumerate(named)}
        for (label, curve), (low, high) in zip(named.items(), bands):
            draw_band(ax, getattr(curve, by), low, high, colours[label])
        lines = {
            label: draw_curve(ax, label, getattr(curve, by), curve.faithfulness, *LOOKS[min(i, COMPARED)])
            for i, (label, curve) in enumerate(named.items())
        }
        for label in list(named)[:COMPARED]:
            lines[label].set(marker="o", markersize=2.4, markeredgewidth=0)
        taken: list[np.ndarray] = []
        texts = [(given_text(label, LABEL_SIGNS), line, colours[label]) for label, line in lines.items()]
        if orders:
            sizes, heights = (
                np.mean([getattr(curve, name) for curve in orders], axis=0) for name in (by, "faithfulness")
            )
            texts.append((_RANDOM, draw_random(ax, _RANDOM, sizes, heights, GREY), GREY))
        for text, line, colour in texts:
            write_near(ax, text, pixels(line), 7.0, colour, taken)
        if title is not None:
            ax.set_title(given_text(title), **PLAIN_TEXT)
    return ax


def _counted(curves: Iterable[ComponentCurve]) -> str:
    """What the curves count, on one axis."""
    levels = {curve.level if isinstance(curve, NodeCurve) else "component edge" for curve in curves}
    if len(levels) > 1:
        raise ValueError(f"curves of {'s and '.join(sorted(levels))}s have no axis in common")
    return f"{levels.pop()}s"


def component_and_attention(
    curves: ComponentCurve | Mapping[str, ComponentCurve],
    circuits: Circuit | Mapping[str, Circuit],
    figure: Figure | None = None,
    *,
    random: ComponentCurve | Sequence[ComponentCurve] = (),
    title: str | None = None,
) -> Figure:
    """The curves of component edges, and beside them those of attention edges of the same task.

    Both panels have the same vertical axis. The horizontal ones differ: a number of component edges says
    nothing about a number of attention edges.

    Parameters
    ----------
    curves : ComponentCurve or mapping
        As in `component_curve`.
    circuits : Circuit or mapping
        With unit="edge", as in `effect_curves`.
    figure : matplotlib.figure.Figure, optional
        An empty figure to draw on; None: a new one.
    random : ComponentCurve or sequence of ComponentCurve, optional
        As in `component_curve`.
    title : str, optional
        At most 160 characters a line are shown.

    Returns
    -------
    matplotlib.figure.Figure
        `figure.axes` are the panels of component edges and of attention edges.

    Raises
    ------
    TypeError
        For other objects.
    ValueError
        For circuits of another unit, and if not all are of one task.
    """
    left, right = _named(curves, ComponentCurve, "curves"), _named(circuits, Circuit, "circuits")
    units = sorted({circuit.unit for circuit in right.values()})
    if units != ["edge"]:
        raise ValueError(f"circuits must be of unit 'edge', got {', '.join(map(repr, units))}")
    tasks = sorted({*(c.task for c in left.values()), *(c.task_name for c in right.values())})
    if len(tasks) != 1:
        raise ValueError(f"curves and circuits must be of one task, got {', '.join(map(repr, tasks))}")
    if figure is None:
        figure = plt.figure(figsize=(6.8, 2.6), layout="constrained")
    elif not isinstance(figure, Figure):
        raise TypeError(f"figure must be a Figure of matplotlib, got {type(figure).__name__}")
    ends = [_limits([*left.values(), *_orders(random)]), effect_limits(right.values())]
    ylim = min(low for low, _ in ends), max(high for _, high in ends)
    with styled():
        axes = figure.subplots(1, 2)
        component_curve(left, axes[0], random=random, ylim=ylim)
        effect_curves(right, axes[1], ylim=ylim)
        axes[1].set(ylabel=_HEIGHT)
        if title is not None:
            figure.suptitle(given_text(title), fontsize=9, **PLAIN_TEXT)
    return figure


# ------------------------------------------------------------------------------------------------ parts


def _named(value: object, kind: type[Kind], name: str) -> dict[str, Kind]:
    """Label to curve or circuit; a single one is labelled with its model."""
    if isinstance(value, kind):
        label = value.model if isinstance(value, ComponentCurve) else value.model_name
        return {label or "circuit": value}
    if not isinstance(value, Mapping):
        what = f"a {kind.__name__} or a mapping, label: {kind.__name__}"
        raise TypeError(f"{name} must be {what}, got {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} must not be empty: give one {kind.__name__} or several by label")
    for label, one in value.items():
        _check.instance(one, kind, f"{name}[{label!r:.40}]")
    return dict(value)


def _orders(random: object) -> list[ComponentCurve]:
    """Curves of random rankings, at the same shares."""
    if not isinstance(random, ComponentCurve | Sequence):
        raise TypeError(f"random must be a ComponentCurve or a sequence of them, got {type(random).__name__}")
    orders = [random] if isinstance(random, ComponentCurve) else list(random)
    for i, one in enumerate(orders):
        _check.instance(one, ComponentCurve, f"random[{i}]")
    if any(not np.array_equal(one.requested, orders[0].requested) for one in orders):
        raise ValueError("random must be curves of one model at the same shares, to take their mean")
    return orders


def _limits(curves: Sequence[ComponentCurve]) -> tuple[float, float]:
    return curve_limits(curve.faithfulness for curve in curves)
