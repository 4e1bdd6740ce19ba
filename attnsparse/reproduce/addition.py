"""The toy addition figure: which attention edges two-digit addition needs, dense beside sparse.

Everything said in the tables and the caption is measured on the given models over all 10,000 sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .._tables import repeated, text_table
from ..figures.edges import addition_figure
from ..items import Head
from ..model.tables import edges
from ..recipes.addition_evaluation import AdditionEvaluation, edge_threshold, evaluate, possible_edges
from ..tasks import addition
from ..tasks.addition import DENSE_THRESHOLD, SUMS
from .pair import FigureFiles, wrapped

if TYPE_CHECKING:
    from ..model.model import Model

_SEPARATES = 0.5  # an edge tells carry from no carry if its two fractions differ by at least this
_MAX_NAMED = 3


def make(models: dict[str, Model]) -> list[FigureFiles]:
    """The figure of models = {"dense": ..., "sparse": ...} with its caption and tables."""
    tables, caption = tables_and_caption(models)
    figure = addition_figure(models["dense"], models["sparse"], caption=caption)
    return [FigureFiles("addition", figure, caption, tables)]


def tables_and_caption(models: dict[str, Model]) -> tuple[dict[str, pd.DataFrame], str]:
    """Everything that the figure of models = {"dense": ..., "sparse": ...} says.

    Tables: "models" (accuracy on all sums, edges), "sums" (edges in the three sums that are drawn), "carry"
    (which edges tell a carry) and "edges" (every line drawn).
    """
    found = {name: evaluate(model, edge_threshold(model)) for name, model in models.items()}
    tables = {
        "models": models_table(models, found),
        "sums": sums_table(models, found),
        "carry": carry_table(found["sparse"]),
        "edges": edges_table(models),
    }
    return tables, caption(tables["models"], tables["carry"])


def models_table(models: dict[str, Model], evaluations: dict[str, AdditionEvaluation]) -> pd.DataFrame:
    """One row per model: threshold of an edge, accuracy and cross-entropy on all sums, edges per sum."""
    rows: list[dict[str, object]] = []
    for name, found in evaluations.items():
        config = models[name].config
        rows.append(
            {
                "model": name,
                "edge_is": "open gate" if config.gated else f"entry > {DENSE_THRESHOLD:g}",
                "sums": len(found.right),
                "right": int(found.right.sum()),
                "cross_entropy": found.cross_entropy,
                "edges_median": float(np.median(found.n_edges)),
                "edges_max": int(found.n_edges.max()),
                "edges_possible": possible_edges(config),
                "heads_used": found.n_heads_used,
                "heads": config.n_layer * config.n_head,
                "digest": models[name].digest,
            }
        )
    table: pd.DataFrame = text_table(rows)
    return table


def sums_table(models: dict[str, Model], evaluations: dict[str, AdditionEvaluation]) -> pd.DataFrame:
    """One row per sum of the figure: carries and each model's edges."""
    rows: list[dict[str, object]] = []
    for text in SUMS:
        a, b = addition.parse_sum(text)
        row: dict[str, object] = {"addends": text, "carries": int(addition.carries(np.array(a), np.array(b)))}
        for name, found in evaluations.items():
            row |= {
                f"{name}_edges": int(found.n_edges[100 * a + b]),
                f"{name}_right": bool(found.right[100 * a + b]),
            }
        rows.append(row | {"edges_possible": possible_edges(next(iter(models.values())).config)})
    table: pd.DataFrame = text_table(rows)
    return table


def edges_table(models: dict[str, Model]) -> pd.DataFrame:
    """The lines of the figure: `tables.edges` of every model and sum, after the columns model and addends."""
    parts: list[pd.DataFrame] = []
    for name, model in models.items():
        for text in SUMS:
            a, b = addition.parse_sum(text)
            run = model.run(addition.sequence(a, b), record=("pattern", "q", "k", "v"))
            table = edges(run, edge_threshold(model))
            table["model"] = repeated(name, len(table))
            table.insert(1, "addends", repeated(text, len(table)))
            parts.append(table)
    return pd.concat(parts, ignore_index=True)


def carry_table(sparse: AdditionEvaluation) -> pd.DataFrame:
    """Every edge that is ever open: in which fraction of the sums with and without a carry from the ones.

    Sorted by how far the two fractions differ, largest difference first.
    """
    layer, head, query, key = np.nonzero(sparse.used)
    table: pd.DataFrame = text_table(
        {
            "layer": layer,
            "head_index": head,
            "label": [Head(*pair).label for pair in zip(layer.tolist(), head.tolist(), strict=True)],
            "query_position": query,
            "key_position": key,
            "query_column": [addition.COLUMNS[position] for position in query],
            "key_column": [addition.COLUMNS[position] for position in key],
            "open_with_carry": sparse.with_carry[sparse.used],
            "open_without_carry": sparse.without_carry[sparse.used],
        }
    )
    difference = table["open_with_carry"] - table["open_without_carry"]
    table["difference"] = difference
    order = np.argsort(-difference.abs().to_numpy(), kind="stable")
    ordered: pd.DataFrame = table.iloc[order].reset_index(drop=True)
    return ordered


def caption(models: pd.DataFrame, carry: pd.DataFrame) -> str:
    """What the figure shows, with the numbers of `models_table` and `carry_table`."""
    dense, sparse = (models[models["model"] == name].iloc[0] for name in ("dense", "sparse"))
    always = int(((carry["open_with_carry"] == 1) & (carry["open_without_carry"] == 1)).sum())
    text = (
        f"Attention edges from a key column to a query column, layer by layer. Dense: "
        f"{_plural(dense['edge_is'])}; sparse: {_plural(sparse['edge_is'])}. The ? are the answer, the "
        f"digits above are predicted. Over all {sparse['sums']:,} sums: dense "
        f"{dense['edges_median']:g} edges (median), {_percent(dense['right'] / dense['sums'], 2)} right; "
        f"sparse {sparse['edges_median']:g} edges (most {sparse['edges_max']}), "
        f"{_percent(sparse['right'] / sparse['sums'], 2)} right, "
        f"{always} of them open in every sum. {_carry_sentence(carry)}"
    )
    return wrapped(text)


def _plural(edge_is: str) -> str:
    return "open gates" if edge_is == "open gate" else edge_is.replace("entry >", "entries above")


def _carry_sentence(carry: pd.DataFrame) -> str:
    if carry.empty:
        return "No edge is ever open."
    separating = carry[carry["difference"].abs() >= _SEPARATES]
    named = separating.head(_MAX_NAMED) if len(separating) else carry.head(1)
    listed = "; ".join(
        f"{row['label']} {row['key_column']} to {row['query_column']}{_predicts(row['query_position'])} "
        f"{_percent(row['open_with_carry'], 1)}, {_percent(row['open_without_carry'], 1)}"
        for row in named.to_dict("records")
    )
    more = f"; and {len(separating) - len(named)} more" if len(separating) > len(named) else ""
    begin = (
        "Edges that tell whether the ones carry,"
        if len(separating)
        else "No single edge tells whether the ones carry; the nearest is"
    )
    return f"{begin} open in this share of the sums with and without that carry: {listed}{more}."


def _predicts(column: int) -> str:
    answers = range(addition.PREDICTING.start, addition.PREDICTING.stop)
    return f" (predicts {addition.COLUMNS[column + 1]})" if column in answers else ""


def _percent(fraction: float, digits: int) -> str:
    """Per cent; only exactly all and exactly none are written as 100 % and 0 %."""
    if fraction in (0, 1):
        return f"{100 * fraction:.0f} %"
    step = 10.0**-digits
    return f"{min(max(100 * fraction, step), 100 - step):.{digits}f} %"
