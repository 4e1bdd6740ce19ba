"""The copy task figure: the heads that copying a list needs, dense above sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import figures
from .pair import (
    FRACTION,
    RANKING_TEXT,
    FigureFiles,
    ModelPair,
    counts_sentence,
    curves_table,
    items_table,
    needed_table,
    wrapped,
)

if TYPE_CHECKING:
    from ..circuits.circuit import Circuit
    from ..model.model import Model
    from ..tasks.task import Task

DRAWN = "zero"  # the ablation whose heads are drawn
ABLATIONS = ("zero", "mean")
COLUMNS = 9


def make(pair: ModelPair) -> list[FigureFiles]:
    """The figure of the heads needed under zero ablation; its tables and caption also give mean ablation."""
    circuits = {ablation: pair.circuits("copy", "head", ablation) for ablation in ABLATIONS}
    task = pair.task("copy").evaluation
    panels = [
        (panel_title(role, circuit), mean_pattern(pair.models[role], task), circuit.kept(FRACTION))
        for role, circuit in circuits[DRAWN].items()
    ]
    found = [(role, circuit) for by_role in circuits.values() for role, circuit in by_role.items()]
    rankings = [
        (role, pair.candidates(role, "copy", "head", ablation))
        for ablation, by_role in circuits.items()
        for role in by_role
    ]
    tables = {
        "needed": needed_table(rankings),
        "heads": items_table(found),
        "curves": curves_table(found),
    }
    return [FigureFiles("copy", figures.head_grids(panels, COLUMNS), caption(circuits, task), tables)]


def panel_title(role: str, circuit: Circuit) -> str:
    """`Dense (demo-dense): 36 of 144 heads`."""
    counted = f"{circuit.needed(FRACTION).first} of {len(circuit)} heads"
    return f"{role.capitalize()} ({circuit.model_name}): {counted}"


def mean_pattern(model: Model, task: Task) -> NDArray[np.floating]:
    """Mean over the prompts of a task, all of one length: (L, H, T, T)."""
    pattern = model.run(list(task.clean), record="pattern", logits="none").pattern
    return np.asarray(pattern.mean(axis=0))


def caption(circuits: dict[str, dict[str, Circuit]], task: Task) -> str:
    """What the figure shows, with the numbers of its tables. circuits: ablation -> role -> circuit."""
    one = circuits[DRAWN]["dense"]
    counts = " ".join(counts_sentence(by_role) for by_role in circuits.values())
    return wrapped(
        f"Attention patterns of the heads needed for {100 * FRACTION:.0f} % of the effect on the copy task, "
        f"best first: means over {len(task)} prompts such as {task.text(0)!r}. White is 0, dark blue 1; "
        f"queries run downwards, keys to the right. The effect is the logit difference of the right word and "
        f"a wrong one while all other heads are ablated. Heads are ranked on {one.options['n_ranking']} "
        f"other prompts, {RANKING_TEXT}. Drawn are those that first reach it under {DRAWN} ablation. "
        f"{counts} In brackets: {100 * one.options['confidence']:.0f} % of resampled prompts."
    )
