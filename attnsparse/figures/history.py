"""The course of a training, as curves over its steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatterSciNotation, LogLocator

from ..items import shortened
from .style import BLUE, DARK, GREY, ORANGE, check_axes, new_axes, styled

if TYPE_CHECKING:
    import pandas as pd

Lines: TypeAlias = "dict[str, tuple[str, str, float, str]]"  # column -> (colour, name, width, dashes)

# Label of the vertical axis, logarithmic or not, curves from the lowest to the uppermost. What is measured is
# blue in every panel, what is optimised orange; a curve that another one may cover is wider.
_PANELS: tuple[tuple[str, bool, Lines], ...] = (
    ("cross-entropy\n(nats)", False, {"ce": (BLUE, "training", 0.8, "-")}),
    ("loss", False, {"loss": (ORANGE, "loss", 0.8, "-")}),
    (
        "edges per token",
        True,
        {
            "edges_per_token": (BLUE, "all", 1.6, "-"),
            "self_edges_per_token": (GREY, "to itself", 1.6, "--"),
        },
    ),
    (
        "fraction of edges",
        True,
        {"expected_edges": (ORANGE, "expected", 2.0, "-"), "open_edges": (BLUE, "open", 0.8, "-")},
    ),
    ("multiplier", True, {"multiplier": (BLUE, "multiplier", 0.8, "-")}),
)
_HELD_OUT = "held_out_"  # and the name of a curve's column: the same quantity on held-out text
_DOTS = 40  # on a curve of held-out text, at most


def training_history(history: pd.DataFrame, ax: Axes | None = None, target: float | None = None) -> Axes:
    """Cross-entropy, loss, edges, and the multiplier of the constraint, over the steps, below each other.

    Dark curves with dots are held-out text with hard gates, the others the batches of training. Edges per
    token, of all heads, can be compared across context lengths; the fraction of open edges falls with the
    length.

    Parameters
    ----------
    history : pandas.DataFrame
        One row per logged step with the columns step, loss, ce, edges_per_token, self_edges_per_token (from
        a token to itself), expected_edges, open_edges (fractions of all causal pairs), multiplier,
        held_out_ce, held_out_edges_per_token and held_out_self_edges_per_token, as `Trainer.history` gives
        it. Quantities that are absent, NaN throughout or, on a logarithmic axis, 0
        throughout are left out, and so is a loss that equals the cross-entropy: the history of a dense model
        shows its cross-entropy alone. Steps without an evaluation on held-out text are NaN in its columns,
        which are drawn beside the curve of the same quantity.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    target : float, optional
        The cross-entropy that the constraint asks for, in nats.

    Returns
    -------
    matplotlib.axes.Axes
        The panels are `ax.child_axes`; `ax` itself only holds their place.

    Raises
    ------
    ValueError
        Without a column `step` or without anything to show.
    TypeError
        For other objects.
    """
    check_axes(ax)
    if not hasattr(history, "columns"):
        raise TypeError(f"history must be a DataFrame, got {type(history).__name__}")
    if "step" not in history.columns:
        raise ValueError(
            f"history must have a column 'step', got {shortened(', '.join(map(str, history.columns)), 200)}"
        )
    panels = [
        (label, log, lines) for label, log, names in _PANELS if (lines := _present(history, names, log))
    ]
    if not panels:
        columns = ", ".join(name for _, _, names in _PANELS for name in names)
        raise ValueError(f"history has none of the columns {columns}")
    with styled():
        if ax is None:
            ax = new_axes((4.6, 0.5 + 1.15 * len(panels)))
        ax.set_axis_off()
        room = 1.0 / len(panels)
        for i, (label, log, lines) in enumerate(panels):
            panel = ax.inset_axes((0, 1 - (i + 0.88) * room, 1, 0.76 * room))
            _draw_panel(panel, history, lines, label, log)
            if target is not None and "ce" in lines:
                panel.axhline(target, color=GREY, linewidth=0.8, linestyle="--", label="target")
            if len(panel.lines) > 1:
                panel.legend(
                    frameon=False, loc="lower right", bbox_to_anchor=(1, 0.97), ncols=3, borderaxespad=0
                )
            panel.tick_params(labelbottom=i == len(panels) - 1)
        panel.set_xlabel("optimiser step")
    return ax


def _present(history: pd.DataFrame, names: Lines, log: bool) -> Lines:
    """Those of the columns `names` that have something to draw."""
    shown = {name: how for name, how in names.items() if name in history and _drawable(history[name], log)}
    if "loss" in shown and "ce" in history and history["loss"].equals(history["ce"]):
        del shown["loss"]
    return shown


def _drawable(values: pd.Series[float], log: bool) -> bool:
    return bool((values > 0).any() if log else values.notna().any())


def _draw_panel(panel: Axes, history: pd.DataFrame, lines: Lines, label: str, log: bool) -> None:
    for name, (colour, text, width, dashes) in lines.items():
        panel.plot(
            history["step"], history[name], color=colour, label=text, linewidth=width, linestyle=dashes
        )
    held_out = [_HELD_OUT + name for name in lines]
    held_out = [name for name in held_out if name in history and _drawable(history[name], log)]
    for name in held_out:
        found = history[history[name].notna()]
        panel.plot(
            found["step"], found[name], color=DARK, linewidth=0.7, marker=".", markersize=3.0,
            markevery=len(found) // _DOTS + 1, label="held-out" if name == held_out[0] else "_held-out",
        )  # fmt: skip
    if log:
        _log_axis(panel)
    panel.set_ylabel(label)
    panel.grid(color="#ececec", linewidth=0.5)
    panel.spines[["top", "right"]].set_visible(False)


def _log_axis(panel: Axes) -> None:
    """Name as many numbers as fit the height of a panel."""
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(numticks=6))  # the default names every third decade
    low, high = panel.get_ylim()
    if 5 * low < high < 100 * low:  # few powers of ten, or one; the default's 2, 3, 4 and 6 would touch
        panel.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        panel.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(math.inf, math.inf)))
