"""How long calls show their progress, and how objects with a table are shown in notebooks."""

from __future__ import annotations

import contextlib
import html
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .errors import printable
from .items import shortened

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 12  # rows of a table in a notebook
_STAGE_UNITS = {
    "attribution": "prompt",
    "backward elimination": "item",
    "random orders": "order",
    "generation": "token",
    "graph edges": "node",
    "graph heads": "array",
}  # else runs
_SIGNS = 40  # characters of a bar's text, which may be the name of a model


def progress_bar(progress: bool | None, total: int, text: str, unit: str, initial: int = 0) -> Any:
    """A tqdm bar as a context, or a context that gives None.

    progress: None shows it if stderr is a terminal or a notebook reads it, and the call takes a second.
    """
    if not _is_shown(progress):
        return contextlib.nullcontext()
    return _bar(progress, total, text, unit, initial)


def _is_shown(progress: bool | None) -> bool:
    return sys.stderr.isatty() or _in_notebook() if progress is None else progress


def _bar(progress: bool | None, total: int, text: str, unit: str, initial: int = 0) -> Any:
    from tqdm import tqdm

    delay = 1.0 if progress is None else 0.0
    return tqdm(
        total=total, initial=initial, desc=shortened(text, _SIGNS), unit=unit, mininterval=0.5, delay=delay
    )


@contextlib.contextmanager
def stage_bars(progress: bool | None) -> Iterator[Callable[[str, int, int], None] | None]:
    """What the core tells how far it is, as a context: one bar for each stage. None if none is shown."""
    if not _is_shown(progress):
        yield None
        return
    with contextlib.ExitStack() as open_bars:
        bar: Any = None
        shown = ""

        def tell(stage: str, done: int, total: int) -> None:
            nonlocal bar, shown
            if stage != shown or done == 0:
                open_bars.close()  # that of the stage before
                bar = open_bars.enter_context(_bar(progress, total, stage, _STAGE_UNITS.get(stage, "run")))
                shown = stage
            bar.update(done - bar.n)

        yield tell


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__module__.startswith("ipykernel")


class Html(str):
    """Text that is HTML already, such as `Html("<b>" + escaped(token) + "</b>")`."""


def html_rows(names: Iterable[str], rows: Sequence[Sequence[str]], n_all: int) -> str:
    """A table as HTML: a head, some of its `n_all` rows, and how many more there are. Cells are escaped."""
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    more = f"<p>and {n_all - len(rows):,} more</p>" if n_all > len(rows) else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(text: str) -> str:
    return f"<td>{text if isinstance(text, Html) else escaped(text)}</td>"


def html_table(shown: object, table: pd.DataFrame) -> str:
    """The repr of an object above the first SHOWN rows of its table, as HTML."""
    return f"<p>{escaped(repr(shown))}</p>" + printable_table(table.head(SHOWN)).to_html(index=False)


def escaped(text: str) -> str:
    """Text as a part of HTML: no markup in it counts, and what cannot be shown is escaped."""
    return html.escape(printable(text))


def printable_table(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with `printable` texts in cells and column names, for a page or a terminal."""
    shown: pd.DataFrame = table.copy()
    for name in shown.select_dtypes(exclude=["number", "bool"]).columns:
        shown[name] = [printable(cell) if isinstance(cell, str) else cell for cell in shown[name]]
    renamed: pd.DataFrame = shown.rename(columns=printable)
    return renamed
