"""Which columns of a table pandas hides: `table.head` is a method, never the column of that name."""

from __future__ import annotations

import keyword

import pandas as pd

# attributes of DataFrame in older versions of pandas that the package runs with
GONE = ("append", "bool", "first", "iteritems", "last", "lookup", "mad", "slice_shift", "swapaxes", "tshift")


def hidden(table: pd.DataFrame) -> list[str]:
    """The columns that cannot be typed after a dot."""
    return [
        name
        for name in map(str, table.columns)
        if hasattr(pd.DataFrame, name) or name in GONE or not name.isidentifier() or keyword.iskeyword(name)
    ]
