"""How objects with a table are shown in notebooks: what they say of themselves, and the first rows."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 12  # rows


def html_table(shown: object, table: pd.DataFrame) -> str:
    """The repr of an object above the first SHOWN rows of its table, as HTML."""
    return f"<p>{html.escape(repr(shown))}</p>" + table.head(SHOWN).to_html(index=False)
