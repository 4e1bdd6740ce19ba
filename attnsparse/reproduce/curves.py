"""The figure of curves: how much of each task is explained by how few heads and attention edges."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from .._tables import text_table
from ..figures.effects import effect_curves, effect_key, effect_limits
from ..figures.style import styled
from .pair import (
    FRACTION,
    RANKING_TEXT,
    STEPS,
    FigureFiles,
    ModelPair,
    curves_table,
    items_table,
    needed_table,
    ratio_row,
    wrapped,
)

if TYPE_CHECKING:
    from ..circuits.circuit import Circuit

TASKS = {
    "copy": "Copy",
    "antonym": "Antonym",
    "ioi": "Indirect object",
    "greater_than": "Greater than",
}
UNITS = ("head", "edge")
ABLATIONS = {"zero": "", "mean": "-mean"}  # ends of the figures' names
WITH_CONTROL = "zero"
_KEY = 0.16  # inches
MOST_ITEMS = 200  # rows of a circuit in the table of items

Circuits = Mapping[tuple[str, str], "dict[str, Circuit]"]  # (task, unit) -> role -> circuit


def make(pair: ModelPair, titles: Mapping[str, str] = TASKS, name: str = "curves") -> list[FigureFiles]:
    """Two figures of the same form: zero ablation and mean ablation. titles: of the tasks, by their names."""
    made = []
    for ablation, end in ABLATIONS.items():
        circuits = {
            (task, unit): pair.circuits(task, unit, ablation, roles(pair, ablation))
            for unit in UNITS
            for task in titles
        }
        rankings = [
            (role, pair.candidates(role, task, unit, ablation))
            for (task, unit), by_role in circuits.items()
            for role in by_role
        ]
        tables = {"needed": needed_table(rankings), **tables_of(circuits)}
        words = caption(circuits, tables["ratios"], pair)
        made.append(FigureFiles(f"{name}{end}", draw(circuits, titles), words, tables))
    return made


def roles(pair: ModelPair, ablation: str) -> list[str]:
    """The models that are drawn; a control appears in the first figure only."""
    return [role for role in pair.models if role != "control" or ablation == WITH_CONTROL]


def draw(circuits: Circuits, titles: Mapping[str, str] = TASKS) -> Figure:
    """Heads above edges, one column per task."""
    limits = effect_limits(circuit for by_role in circuits.values() for circuit in by_role.values())
    with styled():
        figure, axes = plt.subplots(
            len(UNITS), len(titles), figsize=(2.15 * len(titles), 2.05 * len(UNITS) + _KEY), squeeze=False
        )
        figure.subplots_adjust(left=0.055, right=0.995, top=0.90, bottom=0.087, wspace=0.09, hspace=0.34)
    letters = iter(string.ascii_lowercase)
    for row, unit in zip(axes, UNITS):
        for ax, (task, title) in zip(row, titles.items()):
            above = title if unit == UNITS[0] else None
            effect_curves(circuits[task, unit], ax, FRACTION, ylim=limits, title=above, key=False)
            ax.text(-0.02, 1.03, next(letters), transform=ax.transAxes, ha="right", fontweight="bold")
            if ax is not row[0]:
                ax.set_ylabel("")
                ax.tick_params(labelleft=False)
    with styled():
        effect_key(list(axes.flat), FRACTION)
    return figure


def tables_of(circuits: Circuits) -> dict[str, pd.DataFrame]:
    """ratios (to the sparse model), curves (every point), items (the best)."""
    found = [pair for by_role in circuits.values() for pair in by_role.items()]
    return {
        "ratios": text_table(
            [
                ratio_row(role, circuit, by_role["sparse"])
                for by_role in circuits.values()
                for role, circuit in by_role.items()
                if role != "sparse"
            ]
        ),
        "curves": curves_table(found),
        "items": items_table(found, MOST_ITEMS),
    }


def caption(circuits: Circuits, ratios: pd.DataFrame, pair: ModelPair) -> str:
    """What the figure shows, with the ratios."""
    one = next(iter(circuits.values()))["dense"]
    names = ", ".join(f"{role} {pair.models[role].name}" for role in roles(pair, one.ablation))
    listed = " ".join(_ratios_sentence(str(role), rows) for role, rows in ratios.groupby("role", sort=False))
    return wrapped(
        f"Explained effect of the n best heads (above) and attention edges (below) while all others are "
        f"ablated: {one.ablation} ablation, f = (m(n) - m(0)) / (m(all) - m(0)). "
        f"{names[0].upper()}{names[1:]}. Ranked on {one.options['n_ranking']} prompts of each task, "
        f"evaluated on {len(one.full)} others; heads {RANKING_TEXT}, edges by integrated gradients in "
        f"{STEPS} steps. Bands: {100 * one.options['confidence']:.0f} % of resampled prompts; dotted: random "
        f"order; full dots: the first n with f >= {FRACTION:g}, open dots: from where on it stays there; the "
        f"bar at the end of a line: everything the model has. Ratios at {100 * FRACTION:.0f} % for the first "
        f"n (and for the n from which it stays). {listed}"
    )


def _ratios_sentence(role: str, rows: pd.DataFrame) -> str:
    """`Dense to sparse: copy heads 4.7 (5.6); ...`."""
    listed = "; ".join(
        f"{row.task} {row.unit}s {row.ratio_first:.1f} ({row.ratio_stays:.1f})" for row in rows.itertuples()
    )
    return f"{role.capitalize()} to sparse: {listed}."
