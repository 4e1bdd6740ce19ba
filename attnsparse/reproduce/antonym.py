"""The antonym figure: which heads carry `large` to where its opposite is due, dense beside sparse.

With transcoders it is the graph of the prompt and the heads behind the edge; without, the heads whose
entries matter when they are ablated. The tables of the ablations are written in both cases.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from .._tables import text_table
from ..circuits.entry_effects import EntryEffects, entry_effects
from ..figures.entry_overview import draw_sketch, n_drawn
from ..items import token_label
from . import graph
from .pair import FigureFiles, ModelPair, wrapped

FRACTION = 0.8
MOST = 36  # heads drawn of a model
DRAWN = "zero"  # the ablation whose heads are drawn
ABLATIONS = ("zero", "mean")
BASE = 1  # of positions, as in the paper
ATTENDS = 0.1  # a head looks at the key if its entry is above this
ROLES = ("dense", "sparse")


def make(pair: ModelPair) -> list[FigureFiles]:
    """The figure of the graph, or, without transcoders, of zero ablation.

    Tables and caption also give zero and mean ablation, means over the antonym task.
    """
    reference = pair.task("antonym").ranking
    found = {
        ablation: {
            role: entry_effects(
                pair.models[role], ablation=ablation, reference=reference if ablation == "mean" else None
            )
            for role in ROLES
        }
        for ablation in ABLATIONS
    }
    tables = {"models": models_table(found), "heads": heads_table(found)}
    if pair.transcoders is None:
        figure = draw_sketch(*found[DRAWN].values(), fraction=FRACTION, most=MOST, base=BASE)
        return [FigureFiles("antonym", figure, caption(found, len(reference)), tables)]
    edges = graph.find(pair.models, pair.transcoders)
    figure = graph.draw(edges, BASE)
    text = (
        f"{graph.caption(edges, BASE)} Beside it, the entry ablated in one head at a time, and "
        f"what is kept if only the best heads keep theirs. {ablations(found, len(reference))}"
    )
    return [FigureFiles("antonym", figure, wrapped(text), graph.tables(edges, BASE) | tables)]


def models_table(found: dict[str, dict[str, EntryEffects]]) -> pd.DataFrame:
    """One row per ablation and model: what the entry does in all heads, and how many heads do it."""
    rows: list[dict[str, object]] = []
    for ablation, by_role in found.items():
        for role, carriers in by_role.items():
            n, pattern = n_drawn(carriers, FRACTION, MOST), carriers.run.pattern
            rows.append(
                {
                    "role": role,
                    "model": carriers.name,
                    "ablation": ablation,
                    "logit_diff": carriers.full,
                    "logit_diff_without": carriers.without,
                    "answer_is_top": carriers.answer_is_top,
                    "heads": len(carriers.run.pattern) * pattern.shape[1],
                    "heads_open": len(carriers.heads),
                    "heads_attending": int((carriers.weight > ATTENDS).sum()),
                    "fraction": FRACTION,
                    "heads_needed": carriers.needed(FRACTION),
                    "heads_needed_to_keep": carriers.needed_to_keep(FRACTION),
                    "heads_drawn": n if ablation == DRAWN else 0,
                    "share": carriers.shares[n],
                    "kept": carriers.kept[n],
                    "entries_open": int(np.count_nonzero(pattern)),
                    "digest": carriers.run.model.digest,
                }
            )
    table: pd.DataFrame = text_table(rows)
    return table


def heads_table(found: dict[str, dict[str, EntryEffects]]) -> pd.DataFrame:
    """`EntryEffects.to_pandas` of every ablation and model, and which heads are drawn."""
    parts: list[pd.DataFrame] = []
    for ablation, by_role in found.items():
        for role, carriers in by_role.items():
            table = carriers.to_pandas(BASE)
            for i, (name, value) in enumerate(
                {"role": role, "model": carriers.name, "ablation": ablation}.items()
            ):
                table.insert(i, name, value)
            table["drawn"] = (ablation == DRAWN) & (table["item_rank"] <= n_drawn(carriers, FRACTION, MOST))
            parts.append(table)
    return pd.concat(parts, ignore_index=True)


def caption(found: dict[str, dict[str, EntryEffects]], n_reference: int) -> str:
    """What the figure shows, with the numbers of its tables."""
    one = found[DRAWN]["dense"]
    tokens = one.run.token_strings
    key, query = one.key + BASE, one.query + BASE
    return wrapped(
        f"Heads that carry {token_label(tokens[one.key])!r} (position {key}) to position {query} of "
        f"{one.run.prompt!r}, where {one.answer!r} is due; positions from {BASE}, queries downwards, keys to "
        f"the right, the entry {key} → {query} in red. Drawn are the fewest heads that have "
        f"{100 * FRACTION:.0f} % of the effects of this entry: of the sum of all positive ones, each "
        f"measured exactly by ablating the entry in one head alone. The metric is the logit of "
        f"{one.answer!r} minus the mean of the other words of the antonym task. Kept: what the entry does in "
        f"all heads together that is still done if only these heads keep theirs. "
        + ablations(found, n_reference)
    )


def ablations(found: dict[str, dict[str, EntryEffects]], n_reference: int) -> str:
    """How many heads have the effects, by each ablation."""
    counts = " ".join(
        f"{ablation.capitalize()} ablation: "
        + "; ".join(_counts(role, carriers) for role, carriers in by_role.items())
        + "."
        for ablation, by_role in found.items()
    )
    return f"{counts} Means are over {n_reference} prompts of the antonym task."


def _counts(role: str, carriers: EntryEffects) -> str:
    """One model: `dense 24 of 144 heads with an open entry (114 above 0.1) have 81 %, ...`."""
    n = n_drawn(carriers, FRACTION, MOST)
    return (
        f"{role} {n} of {len(carriers.heads)} heads with an open entry "
        f"({int((carriers.weight > ATTENDS).sum())} above {ATTENDS:g}) have "
        f"{100 * carriers.shares[n]:.0f} %, kept {100 * carriers.kept[n]:.0f} % (metric {carriers.full:.1f}, "
        f"without the entry in all heads {carriers.without:.1f})"
    )
