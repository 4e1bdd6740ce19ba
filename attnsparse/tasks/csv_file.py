"""A CSV of prompts as columns of texts, at a cost that its size bounds: no row is longer than the header."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from typing import NoReturn

from ..errors import FormatError, file_error, quoted
from ..io.limits import Limits
from ..io.regular_file import read_small


def read_csv(path: str | os.PathLike[str], limits: Limits) -> dict[str, list[str]]:
    """Columns by name, all of one length and not empty.

    Raises FormatError `csv` for what is not a table in UTF-8 in which every row has a value for every column,
    LimitError `file_limit` above max_index_bytes, max_table_cells and max_prompts.
    """
    data = read_small(path, "max_index_bytes", limits=limits)
    n_cells = data.count(b",") + data.count(b"\n") + data.count(b"\r")
    limits.check("max_table_cells", n_cells, path, f"a CSV of about {n_cells:,} values", code="file_limit")
    if b"\0" in data:
        at = data.index(b"\0")
        _raise_file_error(path, f"NUL at byte {at:,}: not text in UTF-8; save it as 'CSV UTF-8'", at)
    decoded = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")
    lines = csv.reader(decoded, strict=True)
    try:
        names = next(lines, [])
        if len(set(names)) < len(names):
            _raise_file_error(
                path, f"column {quoted(Counter(names).most_common(1)[0][0])} occurs twice in the header"
            )
        rows: list[list[str]] = []
        for row in lines:
            if not row:
                continue  # an empty line
            if len(row) != len(names):
                text = f"line {lines.line_num}: {len(row):,} values, the header has {len(names):,} columns"
                _raise_file_error(path, text)
            rows.append(row)
            what = f"a table of {len(rows):,} prompts"
            limits.check("max_prompts", len(rows), path, what, code="file_limit")
    except UnicodeDecodeError as error:
        _raise_file_error(path, f"not UTF-8: {error.reason}; save it as 'CSV UTF-8'", cause=error)
    except csv.Error as error:
        _raise_file_error(path, f"not a CSV, in line {lines.line_num}: {error}", cause=error)
    if not rows:
        _raise_file_error(path, "has no rows")
    return dict(zip(names, map(list, zip(*rows))))


def _raise_file_error(
    path: str | os.PathLike[str], text: str, offset: int | None = None, cause: Exception | None = None
) -> NoReturn:
    raise file_error(FormatError, "csv", path, text, offset=offset) from cause
