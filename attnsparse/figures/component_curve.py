"""Faithfulness against the number of component edges, alone and beside that of attention edges.

The two kinds of edge are not comparable, so each has an axis of its own, with its name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import _check
from ..circuits.circuit import Circuit
from ..circuits.components.curve import ComponentCurve
from ..circuits.components.nodes import NodeCurve
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
from .style import GREY, LABEL_SIGNS, PLAIN_TEXT, check_axes, given_text, new_axes, styled

Kind = TypeVar("Kind", ComponentCurve, Circuit)

_AXES = ("kept", "requested")
_HEIGHT = "faithfulness (explained effect)"
_RANDOM = "random"


def component_curve(
    curves: ComponentCurve | Mapping[str, ComponentCurve],
    ax: Axes | None = None,
    *,
    random: bool = True,
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
    were evaluated. Bands are the first two curves' bootstrap intervals over prompts. A dotted line is the
    mean of random rankings, the grey band around it goes from the smallest to the largest of them.

    Parameters
    ----------
    curves : ComponentCurve or mapping
        One, or label to `ComponentCurve`. Long labels are cut in the middle to 30 characters.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    random : bool, default True
        Draw the random rankings of the first curve that has some (`evaluate(n_random=...)`).
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
        Without a curve, for another `by`, and as `ComponentCurve.band`.
    """
    check_axes(ax)
    named = _named(curves, ComponentCurve, "curves")
    of_random = _with_random(named.values(), random)
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
        ax.set_ylim(_limits(named.values(), random) if ylim is None else ylim)
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
        if of_random is not None:
            sizes = of_random.random_kept.mean(0) if by == "kept" else of_random.requested
            draw_band(ax, sizes, of_random.random_low, of_random.random_high, GREY)
            line = draw_random(ax, _RANDOM, sizes, of_random.random_effect, GREY)
            texts.append((_RANDOM, line, GREY))
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
    random: bool = True,
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
    random : bool, default True
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
    ends = [_limits(left.values(), random), effect_limits(right.values())]
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


def _with_random(curves: Iterable[ComponentCurve], random: bool) -> ComponentCurve | None:
    """The first curve with random rankings, if they are to be drawn."""
    _check.flag(random, "random")
    return next((curve for curve in curves if random and len(curve.random_values)), None)


def _limits(curves: Collection[ComponentCurve], random: bool) -> tuple[float, float]:
    """Limits of the vertical axis for all that is drawn."""
    heights = [curve.faithfulness for curve in curves]
    of_random = _with_random(curves, random)
    if of_random is not None:
        heights += [of_random.random_low, of_random.random_high]
    return curve_limits(heights)
