"""The figures of running text: what sparsity costs, what the open edges are, and those of one paragraph.

The texts are those that the recipe "text" learned from, read in place. Everything is measured on their
held-out windows that steered no training, with hard gates; no window is chosen by what it shows.
"""

from __future__ import annotations

import itertools
import math
import os
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from .._tables import text_table
from ..figures.frontier import frontier
from ..figures.style import styled
from ..figures.text_edges import edge_kinds as draw_kinds
from ..figures.text_edges import edges_by_position as draw_positions
from ..figures.text_edges import text_edges
from ..model.locate import find
from ..model.model import Model
from ..model.tables import edges
from ..recipes.text import STEERING, Settings
from ..recipes.text_evaluation import Measured, measure
from ..recipes.text_frontier import FRONTIER, GATE, frontier_table, untrained_points
from ..tasks.running_text import text_task
from ..training.text import TextData
from . import curves
from .pair import PROMPTS, SEED, FigureFiles, ModelOrPath, ModelPair, as_model, wrapped
from .text_tables import edge_kinds, edges_by_position

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTROL, SPARSE = "text-control", "text-sparse"
ALLOWED = 0.03  # nats above the control
MOST_WINDOWS = 128  # of the tables of kinds and positions, evenly spread
PARAGRAPH = 56  # tokens that are drawn
TASKS = {
    "ending": "End of a word",
    "possessive": "'s",
    "capital": "Capital after a stop",
    "title": "Name after a title",
}
DENSE_THRESHOLD = 0.1  # weight above which the dense model's entries are drawn


def make(
    corpus: Any, dense: ModelOrPath | None = None, sparse: ModelOrPath | None = None
) -> list[FigureFiles]:
    """The figures of a dense model, by default the control, and its twin, on held-out text of `corpus`."""
    sparse = SPARSE if sparse is None else sparse
    models = {"dense": as_model(CONTROL if dense is None else dense), "sparse": as_model(sparse)}
    text = TextData(
        corpus,
        min(model.config.n_ctx for model in models.values()),
        1,
        tokenizer=models["dense"]._need_tokenizer(),
        held_out=Settings.held_out,
    )
    windows = text.held_out[np.arange(len(text.held_out)) % STEERING != 0]
    some = windows[:: -(-len(windows) // MOST_WINDOWS)]
    texts: pd.DataFrame = text_table([file._asdict() for file in text.texts]).drop(columns="source")
    twin = measure(models["sparse"], windows)
    return [
        _frontier(_points(models["dense"], twin, sparse, windows), texts, twin),
        _kinds(models, some),
        _positions(models, some),
        _paragraph(models, windows[0][:PARAGRAPH]),
        *_circuits(models, windows),
    ]


def _points(dense: Model, twin: Measured, sparse: ModelOrPath, windows: np.ndarray) -> pd.DataFrame:
    """The table that the recipe left beside the sparse model; else what can be measured without training."""
    if not isinstance(sparse, Model):
        path = find(os.fspath(sparse)).folder / FRONTIER
        if path.is_file():
            table: pd.DataFrame = pd.read_csv(path)
            return table
    gate = {"sparse_by": GATE, "setting": math.nan, "trained": True, "found": twin}
    return frontier_table([*untrained_points(dense, windows), gate])


def _frontier(table: pd.DataFrame, texts: pd.DataFrame, twin: Measured) -> FigureFiles:
    ratios = _ratios(table)
    with styled():
        ax = frontier(table, allowed=ALLOWED)
    gates = table[table["sparse_by"] == GATE]
    gate = gates.loc[(gates["edges_per_token"] - twin.edges_per_token.value).abs().idxmin()]
    of_it = ratios[(ratios["gate_edges_per_token"] == gate["edges_per_token"]) & (ratios["ratio"] > 0)]
    said = "; ".join(f"{row['rule']} {row['ratio']:.0f}" for row in of_it.to_dict("records"))
    words = (
        "Cross-entropy above the dense control's against attention edges for each token, on held-out "
        "windows (standard errors over windows). The twin has "
        f"{gate['edges_per_token']:.1f} edges a token, {gate['open_per_cent']:.2f} % of all entries, at "
        f"{gate['above_control']:+.3f} +- {gate['above_control_error']:.3f} nats. Rules need so many times "
        "as many edges for the same loss, interpolated in the logarithm of the edges: "
        f"{said or 'none comes to it'}. Rules are put on the control as it is (hollow) or trained for as "
        "many steps (filled); their weights add up to 1, those of the gate do not. The dashed line is "
        f"{ALLOWED:g} nats."
    )
    return FigureFiles(
        "text-frontier", _whole(ax), wrapped(words), {"points": table, "ratios": ratios, "texts": texts}
    )


def _ratios(table: pd.DataFrame) -> pd.DataFrame:
    """How many times as many edges as each twin a rule needs for the loss of that twin."""
    rows: list[dict[str, object]] = []
    for gate in table[table["sparse_by"] == GATE].sort_values("above_control").to_dict("records"):
        for (rule, trained), points in table[~table["sparse_by"].isin([GATE, "none"])].groupby(
            ["sparse_by", "trained"], sort=False
        ):
            needed = _edges_at(points, gate["above_control"])
            name = rule if trained else f"{rule}, untrained"
            rows.append(
                {
                    "rule": name,
                    "above_control": gate["above_control"],
                    "gate_edges_per_token": gate["edges_per_token"],
                    "rule_edges_per_token": needed,
                    "ratio": needed / gate["edges_per_token"],
                }
            )
    made: pd.DataFrame = text_table(rows)
    return made


def _edges_at(points: pd.DataFrame, loss: float) -> float:
    """Edges at which the points of a rule first come down to a loss; NaN if none does."""
    points = points.sort_values("edges_per_token")
    before: tuple[float, float] | None = None
    for n_edges, above in zip(points["edges_per_token"].tolist(), points["above_control"].tolist()):
        if above <= loss:
            if before is None:
                return float(n_edges)
            share = (before[1] - loss) / (before[1] - above)
            return before[0] * math.exp(share * math.log(n_edges / before[0]))
        before = n_edges, above
    return math.nan


def _kinds(models: dict[str, Model], windows: np.ndarray) -> FigureFiles:
    found = [edge_kinds(model, windows).assign(model=role) for role, model in models.items()]
    table: pd.DataFrame = pd.concat(found, ignore_index=True)
    table.insert(0, "model", table.pop("model"))
    with styled():
        ax = draw_kinds(table)
    sparse = found[-1].set_index("kind")
    said = "; ".join(
        f"{kind} {100 * row['edge_share']:.1f} %, {row['loss_increase']:.3f} nats"
        for kind, row in sparse.iterrows()
    )
    words = (
        "What the attention edges are, and the loss when the weights of a kind become 0 in all heads, on "
        f"{len(windows)} held-out windows; lines are standard errors over windows. Share of the sparse "
        f"model's edges and cost: {said}. An edge is of the first kind that fits: self, previous, 2-4 back, "
        "induction (the key follows an earlier occurrence of the query's token), same token, punctuation. "
        f"In the dense model, {models['dense'].name}, every entry is an edge."
    )
    return FigureFiles("text-kinds", _whole(ax), wrapped(words), {"kinds": table})


def _positions(models: dict[str, Model], windows: np.ndarray) -> FigureFiles:
    found = {role: edges_by_position(model, windows) for role, model in models.items()}
    table: pd.DataFrame = pd.concat([t.assign(model=role) for role, t in found.items()], ignore_index=True)
    table.insert(0, "model", table.pop("model"))
    with styled():
        ax = draw_positions(found)
    halves = np.array_split(found["sparse"]["edges"].to_numpy(), 2)
    words = (
        f"Attention edges of all heads against the position of the query, on {len(windows)} held-out "
        f"windows, with bands of one standard error. The sparse model has {halves[0].mean():.1f} edges a "
        f"token in the first half of the window and {halves[1].mean():.1f} in the second. The dense model, "
        f"{models['dense'].name}, has one more in every head at every position, so shares of open entries "
        "are compared at one length only."
    )
    return FigureFiles("text-positions", _whole(ax), wrapped(words), {"positions": table})


def _paragraph(models: dict[str, Model], tokens: np.ndarray) -> FigureFiles:
    limits = {"dense": DENSE_THRESHOLD, "sparse": 0.0}
    runs = {role: model.run(tokens, record="pattern") for role, model in models.items()}
    tables = [edges(run, limits[role]).assign(model=role) for role, run in runs.items()]
    with styled():
        figure, axes = plt.subplots(1, 2, figsize=(6.8, 0.5 + 0.125 * len(tokens)), layout="constrained")
        for ax, (role, run) in zip(axes, runs.items()):
            text_edges(run, ax, limits[role], role)
    words = (
        f"The first {len(tokens)} tokens of the first held-out window, from top to bottom, with attention "
        "edges as arcs from a token up to those that it attends to; dots are edges of a token to itself. "
        f"Arcs are wider for more heads, darker for larger weights. Dense ({models['dense'].name}): the "
        f"{len(tables[0]):,} entries above {DENSE_THRESHOLD:g}, all others not drawn. Sparse: all "
        f"{len(tables[1]):,} open edges."
    )
    return FigureFiles("text-edges", figure, wrapped(words), {"edges": pd.concat(tables, ignore_index=True)})


def _circuits(models: dict[str, Model], windows: np.ndarray) -> list[FigureFiles]:
    """Heads and edges that the tasks of running text need, of those that both models do by attention."""
    tokenizer = models["dense"]._need_tokenizer()
    chosen: dict[str, str] = {}
    pair = ModelPair(models)
    for name, title in TASKS.items():
        try:
            pair.add(text_task(name, windows, tokenizer, n=PROMPTS, seed=SEED))
            for unit, ablation in itertools.product(curves.UNITS, curves.ABLATIONS):
                pair.circuits(name, unit, ablation)
        except ValueError:  # too few places in the text, or a model that does as well without attention
            continue
        chosen[name] = title
    left_out = [title for name, title in TASKS.items() if name not in chosen]
    made = curves.make(pair, chosen, "text-circuits") if chosen else []
    if not left_out:
        return made
    words = (
        "Left out, because one of the models does no better with attention than without, or the text has too "
        f"few such places: {', '.join(left_out)}."
    )
    return [one._replace(caption=wrapped(f"{one.caption} {words}".replace("\n", " "))) for one in made]


def _whole(ax: Any) -> Figure:
    figure: Figure = ax.figure.figure
    return figure
