"""How objects with a table are shown in notebooks: what they say of themselves, and the first rows."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from .errors import printable

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 12  # rows


def html_table(shown: object, table: pd.DataFrame) -> str:
    """The repr of an object above the first SHOWN rows of its table, as HTML."""
    return f"<p>{escaped(repr(shown))}</p>" + printable_table(table.head(SHOWN)).to_html(index=False)


def escaped(text: str) -> str:
    """Text as a part of HTML: no markup in it counts, and what cannot be shown is escaped."""
    return html.escape(printable(text))


def printable_table(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with `printable` texts in cells and column names, for a page or a terminal."""
    shown = table.copy()
    for name in shown.select_dtypes(exclude=["number", "bool"]).columns:
        shown[name] = [printable(cell) if isinstance(cell, str) else cell for cell in shown[name]]
    return shown.rename(columns=printable)
