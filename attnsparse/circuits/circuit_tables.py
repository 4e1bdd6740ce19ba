"""The tables of a circuit: its items, its curve, and all of it in one row."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._engine import core_for
from .._tables import text_column, text_table
from ..items import COLUMNS
from .choices import ITEMS

if TYPE_CHECKING:
    import pandas as pd

    from .circuit import Circuit

_CORE = core_for("float64")
_COUNTS = ("first", "first_low", "first_high", "stays", "stays_low", "stays_high")
_TOKENS = {"position": "token", "query_position": "query_token", "key_position": "key_token"}


def to_pandas(circuit: Circuit) -> pd.DataFrame:
    """One row per item, best first.

    Returns
    -------
    pandas.DataFrame
        Columns model, item_rank (from 1), label, layer, head_index, score. Edges also have query_position and
        key_position, heads at a position have position, after head_index; where all prompts share names of
        positions, query_token and key_token, or token, follow. `attrs` say which model, task and options it
        is of.
    """

    columns: dict[str, Any] = {
        "model": text_column([circuit.model_name] * len(circuit)),
        "item_rank": np.arange(1, len(circuit) + 1),
        "label": text_column(circuit.labels),
    }
    for i, name in enumerate(ITEMS[circuit.unit]._fields):
        columns[COLUMNS.get(name, name)] = circuit.items[:, i].astype(np.int64)
    if circuit.position_labels is not None:
        labels = np.array(circuit.position_labels, dtype=object)
        for name, token in _TOKENS.items():
            if name in columns:
                columns[token] = text_column(list(labels[columns[name]]))
    columns["score"] = circuit.scores
    table: pd.DataFrame = text_table(columns)
    table.attrs = origin(circuit)
    return table


def curve(circuit: Circuit) -> pd.DataFrame:
    """The faithfulness of the n best items, one row per size.

    Returns
    -------
    pandas.DataFrame
        Columns model, n, effect, low, high (of the bootstrap interval), random, random_low, random_high (of
        random orders).
    """

    table: pd.DataFrame = text_table(
        {
            "model": text_column([circuit.model_name] * len(circuit.sizes)),
            "n": circuit.sizes,
            "effect": circuit.effect,
            "low": circuit.effect_low,
            "high": circuit.effect_high,
            "random": circuit.random_effect,
            "random_low": circuit.random_low,
            "random_high": circuit.random_high,
        }
    )
    table.attrs = origin(circuit)
    return table


def summary(circuit: Circuit, fraction: float = 0.9) -> pd.DataFrame:
    """One row that says what was found, to be put below those of other circuits.

    Parameters
    ----------
    fraction : float, default 0.9
        As in `needed`.

    Returns
    -------
    pandas.DataFrame
        Columns model, task, unit, method, rank_by, ablation, normalize, metric, n_items, n_prompts (of
        the evaluation), full_metric and empty_metric (means with all and with no items), fraction,
        n_first, n_first_low, n_first_high, n_stays, n_stays_low, n_stays_high (see `needed`; missing with
        normalize="none"), and n_random_first, the smallest size at which the mean of the random orders
        reaches the fraction.
    """
    import pandas as pd

    row: dict[str, Any] = {
        "model": circuit.model_name,
        "task": circuit.task_name,
        "unit": circuit.unit,
        "method": circuit.method,
        "rank_by": circuit.options["rank_by"],
        "ablation": circuit.ablation,
        "normalize": circuit.normalize,
        "metric": circuit.metric,
        "n_items": len(circuit),
        "n_prompts": len(circuit.full),
        "full_metric": circuit.full.mean(),
        "empty_metric": circuit.empty.mean(),
        "fraction": _check.fraction(fraction),
    }
    counts: dict[str, int | None] = dict.fromkeys((*_COUNTS, "random_first"))
    if circuit.normalize != "none":
        needed = circuit.needed(fraction)
        counts = {name: getattr(needed, name) for name in _COUNTS}
        random = np.ascontiguousarray(circuit.random_effect[None], np.float64)
        at, _ = _CORE.curve_needed(random, fraction)
        counts["random_first"] = circuit._size(int(at[0]))
    table: pd.DataFrame = text_table([row])
    for name, value in counts.items():
        table[f"n_{name}"] = pd.array([value], dtype="Int64")
    table.attrs = origin(circuit)
    return table


def origin(circuit: Circuit) -> dict[Hashable | None, Any]:
    return {
        "model": circuit.model_name,
        "digest": circuit.model_digest,
        "task": circuit.task_name,
        "task_digest": circuit.task_digest,
        "unit": circuit.unit,
        "method": circuit.method,
        "ablation": circuit.ablation,
        "normalize": circuit.normalize,
        "metric": circuit.metric,
    }
