"""The tables of a sweep: what their columns are, and the rows of one cell.

Every table says in every row which cell, options, digests and versions it is of, so that none has to be
joined with another; columns that are the same all over a file cost nothing in Parquet.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._engine import core_for
from ..circuits.choices import ITEMS
from ..circuits.circuit import Circuit
from ..items import COLUMNS
from .cell import VERSION, Cell, Failed, Found

TABLES = ("cells", "items", "curves", "needed", "effects")
"""The tables of a sweep, each a folder of Parquet files. cells: one row for each cell, also for one that
failed; items: one for each head or edge of its circuit; curves: one for each size; needed: one for each of a
few fractions; effects: one for each size and evaluation prompt."""
FRACTIONS = (0.5, 0.8, 0.9, 0.95)
"""Fractions that the table needed has."""

_TEXT, _WHOLE, _REAL = "string", "int64", "float64"
PARTITIONS = ("model", "task")
# what a cell is: columns of every table, in front
OF_CELL = {"seed": _WHOLE, "training_step": _WHOLE, "cell": _TEXT}
# and behind
OF_OPTIONS = {
    "unit": _TEXT, "method": _TEXT, "ablation": _TEXT, "normalize": _TEXT, "metric": _TEXT, "rank_by": _TEXT,
    "steps": _WHOLE, "sizes": _TEXT, "reference": _TEXT, "n_bootstrap": _WHOLE, "n_random": _WHOLE,
    "confidence": _REAL, "greedy_step": _REAL,
}  # fmt: skip
OF_ORIGIN = {
    "n_ranking": _WHOLE, "model_path": _TEXT, "model_digest": _TEXT, "task_digest": _TEXT, "dtype": _TEXT,
    "results_version": _WHOLE, "attnsparse_version": _TEXT, "isa": _TEXT, "blas_core": _TEXT,
}  # fmt: skip
_COUNTS = ("first", "first_low", "first_high", "stays", "stays_low", "stays_high")
OWN: Mapping[str, dict[str, str]] = {
    "cells": {
        "state": _TEXT, "error": _TEXT, "seconds": _REAL, "n_items": _WHOLE, "n_prompts": _WHOLE,
        "full_metric": _REAL, "empty_metric": _REAL,
    },
    "items": {
        "item_rank": _WHOLE, "label": _TEXT, "layer": _WHOLE, "head_index": _WHOLE, "position": _WHOLE,
        "query_position": _WHOLE, "key_position": _WHOLE, "token": _TEXT, "query_token": _TEXT,
        "key_token": _TEXT, "score": _REAL, "n_items": _WHOLE,
    },
    "curves": {
        "n": _WHOLE, "effect": _REAL, "low": _REAL, "high": _REAL, "random": _REAL, "random_low": _REAL,
        "random_high": _REAL,
    },
    "needed": {
        "fraction": _REAL, **{f"n_{name}": _WHOLE for name in _COUNTS}, "n_random_first": _WHOLE,
        "n_items": _WHOLE,
    },
    "effects": {
        "n": _WHOLE, "prompt": _WHOLE, "prompt_digest": _TEXT, "value": _REAL, "full_metric": _REAL,
        "empty_metric": _REAL,
    },
}  # fmt: skip
_TOKENS = {"position": "token", "query_position": "query_token", "key_position": "key_token"}
_NEEDS = "a sweep writes Parquet files, which need pyarrow: pip install attnsparse[sweep]"
_CORE = core_for("float64")


def arrow(part: str = "") -> Any:
    """The module pyarrow, or one inside it; ImportError says how to get it."""
    try:
        return importlib.import_module(f"pyarrow.{part}" if part else "pyarrow")
    except ImportError as error:
        raise ImportError(_NEEDS) from error


def schema(table: str, *, partitions: bool = False) -> Any:
    """The columns of a table and their types, with those that are names of folders if asked for."""
    names = {**(dict.fromkeys(PARTITIONS, _TEXT) if partitions else {}), **columns(table)}
    pa = arrow()
    return pa.schema([(name, getattr(pa, kind)()) for name, kind in names.items()])


def columns(table: str) -> dict[str, str]:
    """Name -> type of the columns that the files of a table have."""
    return {**OF_CELL, **OWN[table], **OF_OPTIONS, **OF_ORIGIN}


def rows(cell: Cell, result: Found | Failed) -> dict[str, Any]:
    """Table -> its pyarrow.Table for one cell; of a failed one there are cells alone."""
    shared = _shared(cell, result)
    if isinstance(result, Failed):
        own = {"state": ["failed"], "error": [result.error], "seconds": [result.seconds]}
        return {"cells": _table("cells", shared, own, 1)}
    circuit = result.circuit
    own = {
        "state": ["done"],
        "seconds": [result.seconds],
        "n_items": [len(circuit)],
        "n_prompts": [len(circuit.full)],
        "full_metric": [float(circuit.full.mean())],
        "empty_metric": [float(circuit.empty.mean())],
    }
    return {
        "items": _table("items", shared, _items(circuit), len(circuit)),
        "curves": _table("curves", shared, _curve(circuit), len(circuit.sizes)),
        "needed": _table("needed", shared, *_needed(circuit)),
        "effects": _table("effects", shared, _effects(circuit, result.prompts), circuit.values.size),
        "cells": _table("cells", shared, own, 1),  # last: with it the cell is there
    }


def _shared(cell: Cell, result: Found | Failed) -> dict[str, Any]:
    """What every row of a cell has."""
    told = dict(cell.options.told)
    told["sizes"] = None if told["sizes"] is None else json.dumps(told["sizes"])
    shared = {
        "seed": cell.seed,
        "training_step": cell.model.step,
        "cell": cell.name,
        **told,
        "n_ranking": cell.n_ranking,
        "model_path": cell.model.place,
        "model_digest": cell.model_digest,
        "task_digest": cell.task_digest,
        "dtype": cell.dtype,
        "results_version": VERSION,
    }
    if isinstance(result, Found):
        shared |= {**result.machine, "metric": result.circuit.metric}
        shared["reference"] = result.circuit.options["reference"]
    return shared


def _table(table: str, shared: Mapping[str, Any], own: Mapping[str, Any], n: int) -> Any:
    pa = arrow()
    arrays = []
    for field in schema(table):
        if field.name in own:
            arrays.append(pa.array(own[field.name], field.type))
        else:
            arrays.append(pa.repeat(pa.scalar(shared.get(field.name), field.type), n))
    return pa.Table.from_arrays(arrays, schema=schema(table))


def _items(circuit: Circuit) -> dict[str, Any]:
    found: dict[str, Any] = {
        "item_rank": np.arange(1, len(circuit) + 1),
        "label": circuit.labels,
        "score": circuit.scores,
        "n_items": np.full(len(circuit), len(circuit)),
    }
    for i, name in enumerate(ITEMS[circuit.unit]._fields):
        found[COLUMNS.get(name, name)] = circuit.items[:, i].astype(np.int64)
    if circuit.position_labels is not None:
        for place, token in _TOKENS.items():
            if place in found:
                found[token] = [circuit.position_labels[at] for at in found[place]]
    return found


def _curve(circuit: Circuit) -> dict[str, Any]:
    return {
        "n": circuit.sizes,
        "effect": circuit.effect,
        "low": circuit.effect_low,
        "high": circuit.effect_high,
        "random": circuit.random_effect,
        "random_low": circuit.random_low,
        "random_high": circuit.random_high,
    }


def _needed(circuit: Circuit) -> tuple[dict[str, Any], int]:
    """Rows for each fraction, none where f is no share; and how many."""
    fractions = FRACTIONS if circuit.normalize != "none" else ()
    found: dict[str, list[Any]] = {name: [] for name in OWN["needed"]}
    random = np.ascontiguousarray(circuit.random_effect[None], np.float64)
    for fraction in fractions:
        needed = circuit.needed(fraction)
        at, _ = _CORE.curve_needed(random, fraction)
        for name in _COUNTS:
            found[f"n_{name}"].append(getattr(needed, name))
        found["fraction"].append(fraction)
        found["n_random_first"].append(circuit._size(int(at[0])))
        found["n_items"].append(len(circuit))
    return found, len(fractions)


def _effects(circuit: Circuit, prompts: tuple[str, ...]) -> dict[str, Any]:
    n_sizes, n_prompts = circuit.values.shape
    return {
        "n": np.repeat(circuit.sizes, n_prompts),
        "prompt": np.tile(np.arange(n_prompts), n_sizes),
        "prompt_digest": list(prompts) * n_sizes,
        "value": circuit.values.ravel(),
        "full_metric": np.tile(circuit.full, n_sizes),
        "empty_metric": np.tile(circuit.empty, n_sizes),
    }
