"""The course of a training, as curves over its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from matplotlib.axes import Axes

from ..items import shortened
from .style import BLUE, GREY, ORANGE, check_axes, new_axes, styled

if TYPE_CHECKING:
    import pandas as pd

Lines: TypeAlias = "dict[str, tuple[str, str, float]]"  # column -> (colour, name in the legend, width)

# Label of the vertical axis, logarithmic or not, curves from the lowest to the uppermost. What is measured is
# blue in every panel; what is optimised is a wider orange line below it, which is seen where both are equal.
_PANELS: tuple[tuple[str, bool, Lines], ...] = (
    ("nats", False, {"loss": (ORANGE, "loss", 2.0), "ce": (BLUE, "cross-entropy", 0.8)}),
    (
        "fraction of edges",
        True,
        {"expected_edges": (ORANGE, "expected", 2.0), "open_edges": (BLUE, "open", 0.8)},
    ),
    ("multiplier", True, {"multiplier": (BLUE, "multiplier", 0.8)}),
)


def training_history(history: pd.DataFrame, ax: Axes | None = None, target: float | None = None) -> Axes:
    """Loss and cross-entropy, edges, and the multiplier of the constraint, over the steps, below each other.

    Parameters
    ----------
    history : pandas.DataFrame
        One row per logged step with the columns step, loss, ce, expected_edges, open_edges (fractions of all
        causal pairs) and multiplier, as `Trainer.history` gives it. Quantities that are absent, or NaN
        throughout, are left out, so the history of a dense model shows its loss alone.
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
    panels = [(label, log, lines) for label, log, names in _PANELS if (lines := _present(history, names))]
    if not panels:
        raise ValueError("history has none of the columns loss, ce, expected_edges, open_edges, multiplier")
    with styled():
        if ax is None:
            ax = new_axes((4.6, 0.5 + 1.25 * len(panels)))
        ax.set_axis_off()
        room = 1.0 / len(panels)
        for i, (label, log, lines) in enumerate(panels):
            panel = ax.inset_axes((0, 1 - (i + 1) * room + 0.04, 1, room - 0.08))
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


def _present(history: pd.DataFrame, names: Lines) -> Lines:
    return {name: how for name, how in names.items() if name in history and history[name].notna().any()}


def _draw_panel(panel: Axes, history: pd.DataFrame, lines: Lines, label: str, log: bool) -> None:
    for name, (colour, text, width) in lines.items():
        panel.plot(history["step"], history[name], color=colour, label=text, linewidth=width)
    if log:
        panel.set_yscale("log")
    panel.set_ylabel(label)
    panel.grid(color="#ececec", linewidth=0.5)
    panel.spines[["top", "right"]].set_visible(False)
