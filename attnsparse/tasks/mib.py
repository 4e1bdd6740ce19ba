"""Tables of MIB as `datasets` gives them with `to_pandas()`: objects in cells, several counterfactuals.

Prompts and answers are those of the benchmark's own reader (HFEAPDataset of its circuit track). A CSV of such
a table no longer holds objects and is not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._check import is_missing
from .layouts import Columns, Refuse, exact_integer

_ENDING = "_counterfactual"


class Nested(NamedTuple):
    """How a table of MIB names its answers: the way from a row to them, key by key."""

    of: str
    marks: tuple[str, ...]
    """Columns that only this table has."""
    counterfactual: str
    """The one that the benchmark takes."""
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    """From the row, if it begins with one of its columns, or else from the counterfactual."""
    before: str = ""
    """What the benchmark puts before an answer."""


_CHOICE = ("choices", "label", "answerKey")  # the label with the number that `answerKey` says
TABLES = (
    Nested("IOI", ("metadata", "choices"), "s2_io_flip", ("metadata", "indirect_object"),
           ("metadata", "subject"), " "),
    Nested("arithmetic", ("label", "operator"), "random", ("label",), ("label",)),
    Nested("MCQA and ARC", ("choices", "answerKey"), "symbol", _CHOICE, _CHOICE),
)  # fmt: skip


def is_nested(columns: Columns) -> bool:
    """Whether this is a table of MIB: `prompt` with counterfactuals, instead of clean and corrupted."""
    return "prompt" in columns and any(str(name).endswith(_ENDING) for name in columns)


def flattened(columns: Columns, counterfactual: str | None, refuse: Refuse) -> dict[str, list[Any]]:
    """The table with clean, corrupted, answer and wrong. counterfactual: with or without its ending."""
    table = next((table for table in TABLES if all(mark in columns for mark in table.marks)), None)
    if table is None:
        known = "; ".join(f"{table.of}: {', '.join(table.marks)}" for table in TABLES)
        raise refuse(f"is not a known table of MIB; known are {known}", None)
    column = (counterfactual or table.counterfactual).removesuffix(_ENDING) + _ENDING
    if column not in columns:
        have = ", ".join(str(name) for name in columns if str(name).endswith(_ENDING))
        raise refuse(f"has no column {column!r:.60}; it has {have}", column)
    found: dict[str, list[Any]] = {name: [] for name in ("clean", "corrupted", "answer", "wrong")}
    for i, other in enumerate(columns[column]):
        row = {name: values[i] for name, values in columns.items()}
        if not isinstance(other, Mapping) or is_missing(other.get("prompt")):
            raise refuse(
                f"prompt {i}: {column} must be an object with a prompt, got {type(other).__name__}; leave "
                "out rows that have none, and read the table with datasets' to_pandas(), not from a CSV",
                column,
            )
        source = row if table.wrong[0] == "metadata" else other
        found["clean"].append(row["prompt"])
        found["corrupted"].append(other["prompt"])
        for name, start, way in (("answer", row, table.right), ("wrong", source, table.wrong)):
            found[name].append(table.before + _at(start, way, f"prompt {i}: {name}", refuse))
    return found


def _at(start: Mapping[str, Any], way: Sequence[str], where: str, refuse: Refuse) -> str:
    """The text or the integer at the end of a way through objects, as text."""
    value: Any = start
    try:
        for key in way:
            value = value[_number(start[key])] if key == "answerKey" else value[key]
    except (KeyError, IndexError, TypeError, ValueError):
        raise refuse(f"{where} is not at {'.'.join(way)}", way[0]) from None
    if isinstance(value, bool) or not isinstance(value, (str, int, np.integer)):
        raise refuse(f"{where} must be a string or an integer, got {type(value).__name__}", way[0])
    return str(value)


def _number(value: Any) -> int:
    number = exact_integer(value)
    if number is None or number < 0:
        raise TypeError(value)
    return number
