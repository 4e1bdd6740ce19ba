"""How far a sweep is: which of its cells are there, which failed and why, which are missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _check
from .._tables import text_table
from .cell import cell_key
from .store import Plan, Store

if TYPE_CHECKING:
    import pandas as pd

STATES = ("done", "failed", "missing")
"""What a cell of a sweep can be."""


def sweep_status(out: str | os.PathLike[str]) -> pd.DataFrame:
    """Which cells of a sweep are done, failed and missing.

    Parameters
    ----------
    out : path
        The folder that was given to `sweep`. A sweep that writes to it meanwhile does not mind.

    Returns
    -------
    pandas.DataFrame
        One row for each cell that any call of `sweep` into this folder asked for. Columns model, task, seed,
        state ("done", "failed" or "missing"), seconds (that it took) and error, which are missing where there
        are none; before them those options in which calls differ.

    Raises
    ------
    FileNotFoundError
        If no sweep has been written to this folder.
    FormatError
        If the plan of a sweep there is damaged.
    """
    store = Store(Path(_check.path(out, "out")))
    return status_of(store, store.plans())


def status_of(store: Store, plans: Sequence[Plan]) -> pd.DataFrame:
    """The same for the cells of some plans, each once."""

    found = store.tried()
    differing = [
        name for name in plans[0].options if len({repr(plan.options.get(name)) for plan in plans}) > 1
    ]
    rows: dict[str, dict[str, Any]] = {}
    for plan in plans:
        for model, task, seed in plan.cells():
            key = cell_key(model, task, seed, plan.options)
            options = {name: plan.options.get(name) for name in differing}
            place = {"model": model, "task": task, "seed": seed}
            rows.setdefault(key, {**options, **place, **found.get(key, {"state": "missing"})})
    names = [*differing, "model", "task", "seed", "state", "seconds", "error"]
    table: pd.DataFrame = text_table(list(rows.values()), names)
    table["seconds"] = table["seconds"].astype("float64")
    return table
