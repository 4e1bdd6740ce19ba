"""The toy addition figure: which attention edges two-digit addition needs, dense beside sparse.

Everything said in the tables and the caption is measured on the given models over all 10,000 sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..figures.edges import addition_figure
from ..items import Head
from ..model.tables import edges
from ..tasks import addition
from ..tasks.addition import DENSE_THRESHOLD, SUMS
from .pair import Made, wrapped

if TYPE_CHECKING:
    from ..model.model import Model

_BATCH = 500
_SEPARATES = 0.5  # an edge tells carry from no carry if its two fractions differ by at least this
_MAX_NAMED = 3


@dataclass(frozen=True)
class Evaluation:
    """A model on all 10,000 sums. An edge is an entry of the pattern above the threshold.

    right (10000,): all four predicted tokens are the most likely ones, given the true answer so far; for an
    answer that is right throughout this is the same as writing it out greedily. cross_entropy: nats per
    predicted token. n_edges (10000,). With and without a carry out of the ones column: the fraction of sums
    in which an edge is there, (L, H, T, T) [layer, head, query, key].
    """

    right: NDArray[np.bool_]
    cross_entropy: float
    n_edges: NDArray[np.int64]
    with_carry: NDArray[np.float64]
    without_carry: NDArray[np.float64]

    @property
    def used(self) -> NDArray[np.bool_]:
        """(L, H, T, T): edges that are there in at least one sum."""
        return (self.with_carry > 0) | (self.without_carry > 0)


def make(models: dict[str, Model]) -> list[Made]:
    """The figure of models = {"dense": ..., "sparse": ...} with its caption and tables."""
    tables, caption = tables_and_caption(models)
    return [Made("addition", addition_figure(**models, caption=caption), caption, tables)]


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


def edge_threshold(model: Model) -> float:
    """The weight above which an entry counts as an edge: 0, the open gates, for a sparse model."""
    return 0.0 if model.config.gated else DENSE_THRESHOLD


def evaluate(model: Model, threshold: float) -> Evaluation:
    """Run `model` on every sum; threshold 0 counts the open gates of a sparse model."""
    a, b = addition.all_sums()
    tokens, carry = addition.sequences(a, b), ones_carry(a, b)
    right, losses, n_edges = [], [], []
    open_sums: list[NDArray[np.int64] | int] = [0, 0]
    for begin in range(0, len(tokens), _BATCH):
        batch = tokens[begin : begin + _BATCH]
        run = model.run(list(batch), record=("pattern", "logits"))
        logits, targets = run.logits[:, addition.PREDICTING], batch[:, addition.PREDICTED]
        right.append((logits.argmax(axis=2) == targets).all(axis=1))
        losses.append(_cross_entropy(logits, targets))
        is_edge = run.pattern > threshold
        n_edges.append(np.count_nonzero(is_edge, axis=(1, 2, 3, 4)))
        for which in (0, 1):
            open_sums[which] = open_sums[which] + is_edge[carry[begin : begin + _BATCH] == which].sum(axis=0)
    return Evaluation(
        right=np.concatenate(right),
        cross_entropy=float(np.concatenate(losses).mean()),
        n_edges=np.concatenate(n_edges),
        with_carry=open_sums[1] / np.count_nonzero(carry),
        without_carry=open_sums[0] / np.count_nonzero(~carry),
    )


def ones_carry(a: NDArray[np.integer], b: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether the ones of a + b carry into the tens, (N)."""
    return a % 10 + b % 10 > 9


def models_table(models: dict[str, Model], evaluations: dict[str, Evaluation]) -> pd.DataFrame:
    """One row per model: threshold of an edge, accuracy and cross-entropy on all sums, edges per sum."""
    rows = []
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
                "edges_possible": _possible(models[name]),
                "heads_used": int(found.used.any(axis=(2, 3)).sum()),
                "heads": config.n_layer * config.n_head,
                "digest": models[name].digest,
            }
        )
    return pd.DataFrame(rows)


def sums_table(models: dict[str, Model], evaluations: dict[str, Evaluation]) -> pd.DataFrame:
    """One row per sum of the figure: carries and each model's edges."""
    rows = []
    for text in SUMS:
        a, b = addition.parse_sum(text)
        row: dict[str, object] = {"sum": text, "carries": int(addition.carries(a, b))}
        for name, found in evaluations.items():
            row |= {
                f"{name}_edges": int(found.n_edges[100 * a + b]),
                f"{name}_right": bool(found.right[100 * a + b]),
            }
        rows.append(row | {"edges_possible": _possible(next(iter(models.values())))})
    return pd.DataFrame(rows)


def edges_table(models: dict[str, Model]) -> pd.DataFrame:
    """The lines of the figure: `tables.edges` of every model and sum, in front the columns model and sum."""
    parts = []
    for name, model in models.items():
        for text in SUMS:
            a, b = addition.parse_sum(text)
            run = model.run(addition.sequence(a, b), record=("pattern", "q", "k", "v"))
            table = edges(run, edge_threshold(model))
            table.insert(0, "model", name)
            table.insert(1, "sum", text)
            parts.append(table)
    return pd.concat(parts, ignore_index=True)


def carry_table(sparse: Evaluation) -> pd.DataFrame:
    """Every edge that is ever open: in which fraction of the sums with and without a carry from the ones.

    Sorted by how far the two fractions differ, largest difference first.
    """
    layer, head, query, key = np.nonzero(sparse.used)
    table = pd.DataFrame(
        {
            "layer": layer,
            "head": head,
            "label": [Head(*pair).label for pair in zip(layer.tolist(), head.tolist(), strict=True)],
            "query": query,
            "key": key,
            "query_column": [addition.COLUMNS[position] for position in query],
            "key_column": [addition.COLUMNS[position] for position in key],
            "open_with_carry": sparse.with_carry[sparse.used],
            "open_without_carry": sparse.without_carry[sparse.used],
        }
    )
    table["difference"] = table["open_with_carry"] - table["open_without_carry"]
    return table.sort_values("difference", key=np.abs, ascending=False, kind="stable", ignore_index=True)


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
        f"{row.label} {row.key_column} to {row.query_column}{_predicts(row.query)} "
        f"{_percent(row.open_with_carry, 1)}, {_percent(row.open_without_carry, 1)}"
        for row in named.itertuples()
    )
    more = f"; and {len(separating) - len(named)} more" if len(separating) > len(named) else ""
    begin = (
        "Edges that tell whether the ones carry,"
        if len(separating)
        else "No single edge tells whether the ones carry; the nearest is"
    )
    return f"{begin} open in so many of the sums with and without that carry: {listed}{more}."


def _predicts(column: int) -> str:
    answers = range(addition.PREDICTING.start, addition.PREDICTING.stop)
    return f" (predicts {addition.COLUMNS[column + 1]})" if column in answers else ""


def _percent(fraction: float, digits: int) -> str:
    """Per cent; only exactly all and exactly none are written as 100 % and 0 %."""
    if fraction in (0, 1):
        return f"{100 * fraction:.0f} %"
    step = 10.0**-digits
    return f"{min(max(100 * fraction, step), 100 - step):.{digits}f} %"


def _possible(model: Model) -> int:
    config = model.config
    return config.n_layer * config.n_head * addition.N_TOKENS * (addition.N_TOKENS + 1) // 2


def _cross_entropy(logits: NDArray[np.floating], targets: NDArray[np.integer]) -> NDArray[np.float64]:
    """Cross-entropy (N, 4) in nats of targets (N, 4) under logits (N, 4, V)."""
    shifted = logits.astype(np.float64) - logits.max(axis=2, keepdims=True)
    chosen = np.take_along_axis(shifted, targets[..., None], axis=2)[..., 0]
    return np.log(np.exp(shifted).sum(axis=2)) - chosen
