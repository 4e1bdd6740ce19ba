"""Cross-entropy against edges for each token: a gate that was trained beside attention sparse by a rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from .. import _check
from ..items import shortened
from .style import BLUE, DARK, GREY, ORANGE, PLAIN_TEXT, check_axes, given_text, new_axes, size_labels, styled

if TYPE_CHECKING:
    import pandas as pd

# sparse_by -> colour, marker, name; kinds that are told apart without colour as well
_KINDS: dict[str, tuple[str, str, str]] = {
    "gate": (BLUE, "o", "gate"),
    "window": (ORANGE, "^", "last positions"),
    "top_k": (GREY, "s", "largest scores"),
    "min_weight": (DARK, "D", "largest weights"),
}
_COLUMNS = ("sparse_by", "trained", "edges_per_token", "above_control", "above_control_error")
_LINEAR = 0.1  # nats above the control up to which the axis is linear
_BELOW = 0.01  # nats below 0 that are shown at least
_LEGEND_ROW = 11.0  # points


def frontier(
    table: pd.DataFrame, ax: Axes | None = None, *, allowed: float | None = None, title: str | None = None
) -> Axes:
    """Nats above a dense model's cross-entropy against attention edges for each token.

    Models that were trained for it are filled signs joined by solid lines, rules that were put on a model
    without training are hollow ones joined by dotted lines. Vertical lines are standard errors.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per model with the columns sparse_by ("gate", "window", "top_k", "min_weight"; others are left
        out), trained, edges_per_token, above_control and above_control_error, as the recipe "text-frontier"
        writes it.
    ax : matplotlib.axes.Axes, optional
        Where to draw; None: a new figure.
    allowed : float, optional
        A dashed line at so many nats, with their number beside its right end.
    title : str, optional
        At most 160 characters a line are shown.

    Returns
    -------
    matplotlib.axes.Axes
        One container of `ax.containers` for each kind, trained or not, in the order of its legend.

    Raises
    ------
    TypeError
        If `table` is no DataFrame, or `ax` no Axes.
    ValueError
        Without one of the columns, or without a row of a known kind.
    """
    import pandas as pd

    check_axes(ax)
    _check.instance(table, pd.DataFrame, "table")
    for name in _COLUMNS:
        if name not in table.columns:
            found = shortened(", ".join(map(str, table.columns)), 200)
            raise ValueError(f"table must have a column {name!r}, got {found}")
    if not table["sparse_by"].isin(list(_KINDS)).any():
        raise ValueError(f"table has no row with sparse_by of {', '.join(_KINDS)}")
    with styled():
        if ax is None:
            ax = new_axes((4.6, 3.6))
        for trained in (True, False):
            for kind, look in _KINDS.items():
                chosen = table[(table["sparse_by"] == kind) & (table["trained"] == trained)]
                if len(chosen):
                    _draw(ax, chosen.sort_values("edges_per_token", kind="stable"), *look, trained)
        if allowed is not None:
            _draw_limit(ax, allowed)
        _set_axes(ax, float(table["above_control"].min()), float(table["above_control"].max()))
        legend = ax.legend(
            frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, borderpad=0
        )
        if title is not None:
            room = (len(legend.legend_handles) + 1) // 2 * _LEGEND_ROW
            ax.set_title(given_text(title), loc="left", pad=room, **PLAIN_TEXT)
    return ax


def _draw(ax: Axes, rows: pd.DataFrame, colour: str, marker: str, name: str, trained: bool) -> None:
    name = f"{name}, {'trained' if trained else 'untrained'}"
    how: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.0, "capsize": 0}
    how |= {"linestyle": "-" if trained else ":", "markerfacecolor": colour if trained else "white"}
    ax.errorbar(
        rows["edges_per_token"], rows["above_control"], rows["above_control_error"], elinewidth=0.8,
        label=name, zorder=3 if colour == BLUE else 2, **how,
    )  # fmt: skip


def _draw_limit(ax: Axes, nats: float) -> None:
    ax.axhline(nats, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    ax.annotate(
        f"{nats:g} nats", (1, nats), (3, 0), ax.get_yaxis_transform(), "offset points",
        ha="left", va="center", color=GREY, fontsize=7, annotation_clip=False,
    )  # fmt: skip


def _set_axes(ax: Axes, least: float, most: float) -> None:
    ax.set_xscale("log")
    if max(most, -least) > _LINEAR:
        ax.set_yscale("symlog", linthresh=_LINEAR)
        ax.set_ylim(min(-_BELOW, 1.5 * least), 1.5 * most)
    ax.set(xlabel="attention edges for each token, all heads", ylabel="nats above the dense control")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_major_formatter(plain)
    ax.yaxis.set_major_formatter(plain)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(color="#ececec", linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    size_labels(ax)
