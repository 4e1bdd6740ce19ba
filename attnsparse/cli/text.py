"""Printing: control characters in texts of files, names of folders and messages are escaped."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType
from typing import TYPE_CHECKING

from .._display import printable_table
from ..errors import printable

if TYPE_CHECKING:
    import pandas as pd


def say(*lines: object, error: bool = False) -> None:
    """Print each of `lines` on one line of stdout, or stderr.

    Control characters, and characters that the stream's encoding lacks, are escaped.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # closed before the process began
        return
    text = "".join(f"{printable(line)}\n" for line in lines)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def say_table(table: pd.DataFrame, form: str | None = None) -> None:
    """Print a table as text, or as "csv" or "json" records; JSON holds every text exactly, in ASCII."""
    if form == "json":
        say(table.to_json(orient="records", force_ascii=True))
    elif form == "csv":
        text = printable_table(table).to_csv(index=False, lineterminator="\n")
        say(*text.removesuffix("\n").split("\n"))
    else:
        say(*printable_table(table).to_string(index=False).split("\n"))


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's own traceback, printed by `say`; a `sys.excepthook`."""
    say(*"".join(traceback.format_exception(kind, error, trace)).rstrip("\n").split("\n"), error=True)
