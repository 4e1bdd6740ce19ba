"""What a sweep found, as tables: how many items each model needs, and how far circuits agree."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check, _random
from .._core_types import Curve
from .._engine import core_for
from .._tables import text_table
from ..circuits.choices import COUNTED_BY, MAX_RESAMPLES
from .store import Store
from .tables import FRACTIONS, OF_OPTIONS, PARTITIONS, TABLES, columns

if TYPE_CHECKING:
    import pandas as pd

BETWEEN = ("seed", "model", "task")
"""In what circuits may differ whose agreement is asked."""

_CORE = core_for("float64")
_PLACE = (*PARTITIONS, "seed")
_FEWEST = 3  # circuits from which on there is an interval over them
_ALL_AT_ONCE = 2**20  # numbers of resamples that are held at once


def table(out: str | os.PathLike[str], of: str = "cells") -> pd.DataFrame:
    """A table of a sweep.

    Parameters
    ----------
    out : path
        The folder that was given to `sweep`.
    of : {"cells", "items", "curves", "needed", "effects"}, default "cells"
        Which one; see `TABLES`.

    Returns
    -------
    pandas.DataFrame
        Columns model and task, then those of the files; docs/cluster.md lists them. Rows in the order of
        model, task and seed.

    Raises
    ------
    FileNotFoundError
        If there is no such table in the folder.
    ValueError
        For another name.
    """
    return Store(Path(_check.path(out, "out"))).read(_check.choice(of, "of", TABLES))


def needed(
    out: str | os.PathLike[str],
    fraction: float = 0.9,
    by: str = "first",
    *,
    where: Mapping[str, Any] | None = None,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """How many items each model needs for each task, as a mean over the seeds, with an interval.

    Parameters
    ----------
    out : path
        The folder that was given to `sweep`.
    fraction : {0.5, 0.8, 0.9, 0.95}, default 0.9
        Of the whole model's effect; one of `FRACTIONS`.
    by : {"first", "stays"}, default "first"
        Which of the two numbers of `Circuit.needed`.
    where : mapping, optional
        Columns of the table "needed" and the value, or list of values, that they must have: which cells count
        where a folder holds cells of several options.
    n_bootstrap : int, default 1000
        Resamples of the seeds, 0..1,000,000.
    confidence : float, default 0.95
        Share of the resamples inside the interval, above 0 and below 1.
    seed : int, default 0
        Of the resamples.

    Returns
    -------
    pandas.DataFrame
        One row for each task and model, in the order of task, step of training and model. Columns task,
        training_step, model, unit, fraction, n_seeds, n_reached (seeds whose circuit reaches the fraction),
        needed (the mean over these), low, high, interval, n_items. Where there are several seeds, low and
        high are the percentile interval of the mean over resampled seeds, and interval is "seeds"; for one
        seed they are those of `Circuit.needed`, over resampled prompts, and interval is "prompts".

    Raises
    ------
    FileNotFoundError
        If there is no sweep in the folder.
    ValueError
        For another fraction or name, and if cells differ in an option or in what a name means.
    """
    fraction, by = _check.fraction(fraction), _check.choice(by, "by", COUNTED_BY)
    if fraction not in FRACTIONS:
        raise ValueError(f"fraction must be one of {', '.join(map(str, FRACTIONS))}, got {fraction}")
    resamples = _resamples(n_bootstrap, confidence, seed)
    found = _selected(Store(Path(_check.path(out, "out"))), "needed", where)
    found = found[found["fraction"] == fraction]
    _check_one_of_each(found, [*_PLACE, "fraction"])
    rows = [
        {
            "task": task,
            "model": model,
            "unit": part["unit"].iloc[0],
            "fraction": fraction,
            **_needed_row(part, by, resamples),
        }
        for (task, model), part in found.groupby(["task", "model"], sort=True)
    ]
    return _in_order(rows, ["task", "training_step", "model"])


def agreement(
    out: str | os.PathLike[str],
    between: str = "seed",
    *,
    fraction: float = 0.9,
    top: int | None = None,
    where: Mapping[str, Any] | None = None,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """How far circuits agree that differ in their seed alone, or in their model or task alone.

    Parameters
    ----------
    out : path
        The folder that was given to `sweep`.
    between : {"seed", "model", "task"}, default "seed"
        In what the circuits that are compared differ.
    fraction : {0.5, 0.8, 0.9, 0.95}, default 0.9
        The items of a circuit are the first that reach this fraction; circuits that never do are left out.
    top : int, optional
        In place of `fraction`: the items of a circuit are so many of its best.
    where, n_bootstrap, confidence, seed
        As in `needed`; circuits are resampled.

    Returns
    -------
    pandas.DataFrame
        One row for each group of at least two circuits: task, model, training_step, seed (without the one in
        which they differ), n_circuits; jaccard, jaccard_low, jaccard_high, jaccard_chance; correlation,
        correlation_low, correlation_high.

    Raises
    ------
    FileNotFoundError
        If there is no sweep in the folder.
    ValueError
        As `needed`, and if no two circuits can be compared.

    Notes
    -----
    All numbers are means over the pairs of circuits. jaccard: items of both circuits over items of either.
    jaccard_chance: the expected number of common items over that of all items, if both were drawn at random
    from all items. correlation: Spearman's, of the ranks of the items that both rankings have. Intervals are
    percentiles over resampled circuits, each the mean over its pairs of different circuits; from three
    circuits on.
    """
    _check.choice(between, "between", BETWEEN)
    fraction = _check.fraction(fraction)
    resamples = _resamples(n_bootstrap, confidence, seed)
    store = Store(Path(_check.path(out, "out")))
    items = _selected(store, "items", where)
    _check_one_of_each(items, [*_PLACE, "item_rank"])
    sizes = _set_sizes(store, where, fraction, None if top is None else _check.integer(top, "top", 1))
    same = [name for name in ("task", "model", "seed") if name != between]
    rows = []
    for place, part in items.groupby(same, sort=True):
        rankings, taken = _circuits(part, sizes)
        if len(rankings) > 1:
            row = dict(zip(same, place))
            if between != "model":
                row["training_step"] = part["training_step"].iloc[0]
            rows.append({**row, **_agreement_row(rankings, taken, resamples)})
    if not rows:
        raise ValueError(f"no two circuits of this sweep differ in their {between} alone and can be compared")
    return _in_order(rows, [name for name in ("task", "training_step", "model", "seed") if name in rows[0]])


# ------------------------------------------------------------------------------------------------ parts


def _resamples(n: object, confidence: object, seed: object) -> tuple[int, float, int]:
    checked = _check.integer(n, "n_bootstrap", 0, MAX_RESAMPLES)
    return checked, _check.proper_fraction(confidence, "confidence"), _check.seed(seed)


def _selected(store: Store, of: str, where: Mapping[str, Any] | None) -> pd.DataFrame:
    """The rows of a table that count."""
    found = store.read(of)
    for name, value in (where or {}).items():
        if name not in found:
            known = ", ".join((*PARTITIONS, *columns(of)))
            raise ValueError(f"where: no column {name!r:.60}; there are {known}")
        several = isinstance(value, Iterable) and not isinstance(value, str)
        found = found[found[name].isin(list(value) if several else [value])]
    if found.empty:
        raise ValueError("where leaves no cell" if where else "this sweep has no cell that is done")
    return found


def _check_one_of_each(found: pd.DataFrame, place: Sequence[str]) -> None:
    """ValueError, naming a column, if cells differ in an option or if a name means several things."""
    names = [name for name in OF_OPTIONS if name != "reference"]  # which each task may have of its own
    for name in names:
        values = found[name].astype(object).where(found[name].notna(), None).unique()
        if len(values) > 1 and not (name == "metric" and found.groupby("task")[name].nunique().max() == 1):
            shown = ", ".join(sorted(map(repr, values))[:4])
            raise ValueError(f"cells differ in {name}: {shown}; choose with where={{{name!r}: ...}}")
    again = found[found.duplicated(list(place))]
    if len(again):
        first = again.iloc[0]
        both = found[(found[list(_PLACE)] == first[list(_PLACE)]).all(axis=1)]
        kinds = ("model_digest", "task_digest", "dtype", "results_version", "reference")
        name = next((kind for kind in kinds if both[kind].nunique() > 1), "cell")
        raise ValueError(
            f"model {first['model']}, task {first['task']}, seed {first['seed']} is there with several "
            f"values of {name}; choose with where={{{name!r}: ...}}"
        )


def _needed_row(part: pd.DataFrame, by: str, resamples: tuple[int, float, int]) -> dict[str, Any]:
    reached = part[part[f"n_{by}"].notna()]
    row = {
        "training_step": part["training_step"].iloc[0],
        "n_seeds": len(part),
        "n_reached": len(reached),
        "needed": np.nan,
        "low": np.nan,
        "high": np.nan,
        "interval": "prompts" if len(part) == 1 else "seeds",
        "n_items": part["n_items"].iloc[0],
    }
    if not len(reached):
        return row
    values = reached[f"n_{by}"].to_numpy(np.float64)[None]
    nothing = np.zeros(len(reached))
    curve = Curve(values, nothing, nothing, "none")
    row["needed"] = float(_CORE.curve_effect(curve)[0])
    if len(part) == 1:
        ends = reached[[f"n_{by}_low", f"n_{by}_high"]].astype("float64").iloc[0]
        row |= {"low": ends.iloc[0], "high": ends.iloc[1]}
    elif resamples[0]:
        n, confidence, seed = resamples
        low, high = _CORE.curve_band(_CORE.curve_bootstrap(curve, n, seed), confidence)
        row |= {"low": float(low[0]), "high": float(high[0])}
    return row


def _set_sizes(
    store: Store, where: Mapping[str, Any] | None, fraction: float, top: int | None
) -> Mapping[Any, int] | int:
    """How many items of each cell count: the same number, or one for each cell that reaches the fraction."""
    if top is not None:
        return top
    if fraction not in FRACTIONS:
        raise ValueError(f"fraction must be one of {', '.join(map(str, FRACTIONS))}, got {fraction}")
    found = _selected(store, "needed", where)
    found = found[(found["fraction"] == fraction) & found["n_first"].notna()]
    return dict(zip(found["cell"], found["n_first"].astype(int)))


def _circuits(part: pd.DataFrame, sizes: Mapping[Any, int] | int) -> tuple[list[list[str]], list[int]]:
    """Rankings of the circuits of a group, as labels, and how many items of each count."""
    rankings, taken = [], []
    for cell, items in part.groupby("cell", sort=False):
        size = sizes if isinstance(sizes, int) else sizes.get(cell)
        if size is not None:
            rankings.append(items.sort_values("item_rank")["label"].tolist())
            taken.append(min(size, len(rankings[-1])))
    return rankings, taken


def _agreement_row(
    rankings: list[list[str]], taken: list[int], resamples: tuple[int, float, int]
) -> dict[str, Any]:
    n = len(rankings)
    measures = {name: np.zeros((n, n)) for name in ("jaccard", "jaccard_chance", "correlation")}
    sets = [set(ranking[:size]) for ranking, size in zip(rankings, taken)]
    for i, j in combinations(range(n), 2):
        either = len(sets[i] | sets[j])
        n_items = len(set(rankings[i]) | set(rankings[j]))
        by_chance = taken[i] * taken[j] / n_items
        pair = {
            "jaccard": len(sets[i] & sets[j]) / either if either else np.nan,
            "jaccard_chance": by_chance / (taken[i] + taken[j] - by_chance) if either else np.nan,
            "correlation": rank_correlation(rankings[i], rankings[j]),
        }
        for name, value in pair.items():
            measures[name][i, j] = measures[name][j, i] = value
    row: dict[str, Any] = {"n_circuits": n}
    for name, values in measures.items():
        row[name] = float(values.sum() / (n * (n - 1)))
        if name != "jaccard_chance":
            row[f"{name}_low"], row[f"{name}_high"] = _interval(values, resamples)
    return row


def rank_correlation(first: Sequence[str], second: Sequence[str]) -> float:
    """Spearman's correlation of the ranks of what both rankings have; NaN for fewer than two."""
    common = set(first) & set(second)
    rank = {label: i for i, label in enumerate(label for label in second if label in common)}
    differences = [i - rank[label] for i, label in enumerate(label for label in first if label in common)]
    n = len(differences)
    return 1 - 6 * sum(d * d for d in differences) / (n * (n * n - 1)) if n > 1 else np.nan


def _interval(values: np.ndarray, resamples: tuple[int, float, int]) -> tuple[float, float]:
    """Percentile interval of the mean over pairs of different circuits, over resampled circuits."""
    n, (n_resamples, confidence, seed) = len(values), resamples
    if n < _FEWEST or not n_resamples or not np.isfinite(values).all():
        return np.nan, np.nan
    differ = 1.0 - np.eye(n)
    means = []
    drawn = (_random.raw(n_resamples * n, seed, _random.RESAMPLED) % n).astype(np.int64).reshape(-1, n)
    for part in np.array_split(drawn, -(-drawn.size * n // _ALL_AT_ONCE)):
        pairs = part[:, :, None], part[:, None, :]
        count = differ[pairs].sum((1, 2))
        known = count > 0  # one of the same circuit alone has no pair
        means.append(values[pairs].sum((1, 2))[known] / count[known])
    low, high = _CORE.curve_band(np.concatenate(means)[:, None], confidence)
    return float(low[0]), float(high[0])


def _in_order(rows: list[dict[str, Any]], order: list[str]) -> pd.DataFrame:
    """The rows as a table, sorted by these columns, which come first."""

    found = text_table(rows)
    names = [*order, *(name for name in found if name not in order)]
    if "training_step" in found:
        found["training_step"] = found["training_step"].astype("Int64")
    ordered: pd.DataFrame = found[names].sort_values(order, kind="stable", ignore_index=True)
    return ordered
