"""How long calls show their progress, and how objects with a table are shown in notebooks."""

from __future__ import annotations

import contextlib
import contextvars
import html
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .errors import printable
from .items import shortened

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 12  # rows of a table in a notebook
_STAGE_UNITS = {
    "backward elimination": "item",
    "generation": "token",
    "graph edges": "node",
    "graph heads": "array",
    "word effect": "step",
}  # else runs
PULSE_SECONDS = 0.25  # between two times that a bar is drawn
_FORMAT = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
    "[{elapsed_s:.1f} s, {remaining} left, {rate_fmt}{postfix}]"
)
_TELL: contextvars.ContextVar[Callable[[str, int, int], None] | None] = contextvars.ContextVar(
    "attnsparse_bar", default=None
)
_SIGNS = 40  # characters of a bar's text, which may be the name of a model


@contextlib.contextmanager
def progress_bar(progress: bool | None, total: int, text: str, unit: str, initial: int = 0) -> Iterator[Any]:
    """A tqdm bar as a context that moves by itself between its updates, or a context that gives None.

    progress: None shows it if stderr is a terminal or a notebook reads it, and the call takes a second.
    """
    if not _is_shown(progress):
        yield None
        return
    bar = _bar(progress, total, text, unit, initial)
    with _moving(bar):
        yield bar


@contextlib.contextmanager
def stage_bars(progress: bool | None) -> Iterator[Callable[[str, int, int], None] | None]:
    """What the core tells how far it is, as a context: one bar, which begins again with each stage; inside
    another such context it is that one's. None if none is shown."""
    if not _is_shown(progress):
        yield None
        return
    if (outer := _TELL.get()) is not None:
        yield outer
        return
    with contextlib.ExitStack() as opened:
        bar: Any = None
        shown = ""

        def tell(stage: str, done: int, total: int) -> None:
            nonlocal bar, shown
            unit = _STAGE_UNITS.get(stage, "run")
            if bar is None:
                bar = opened.enter_context(_moving(_bar(progress, total, stage, unit)))
            elif stage != shown or done == 0:  # less than before is a correction, not another stage
                bar.unit = unit
                bar.set_description_str(shortened(stage, _SIGNS), refresh=False)
                _restart(bar, total)
            shown = stage
            bar.update(done - bar.n)

        token = _TELL.set(tell)
        opened.callback(_TELL.reset, token)
        yield tell


@contextlib.contextmanager
def telling(tell: Callable[[str, int, int], None]) -> Iterator[None]:
    """A context in which calls with progress=True draw no bar, but tell this function how far they are."""
    token = _TELL.set(tell)
    try:
        yield
    finally:
        _TELL.reset(token)


def _is_shown(progress: bool | None) -> bool:
    return sys.stderr.isatty() or in_notebook() if progress is None else progress


def _bar(progress: bool | None, total: int, text: str, unit: str, initial: int = 0) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm's, where a notebook has no widgets: then it is a line of text
        from tqdm.auto import tqdm
    return tqdm(
        total=total, initial=initial, desc=shortened(text, _SIGNS), unit=unit, bar_format=_FORMAT,
        mininterval=PULSE_SECONDS, miniters=0, delay=1.0 if progress is None else 0.0,
    )  # fmt: skip


def _restart(bar: Any, total: int) -> None:
    """Begin again at 0, without showing a bar whose delay is not over."""
    if bar.delay:
        bar.total, bar.n, bar.last_print_n = total, 0, 0
    else:
        bar.reset(total)


@contextlib.contextmanager
def _moving(bar: Any) -> Iterator[Any]:
    """A bar that is drawn anew all the time, with the time that it takes, and closed at the end.

    Another thread does it, because a call of the core or a step of training may say nothing for long.
    """
    begun, ended = time.monotonic(), threading.Event()

    def draw() -> None:
        while not ended.wait(PULSE_SECONDS):
            if time.monotonic() - begun >= bar.delay:
                bar.refresh()
                bar.delay = 0.0  # it is shown, so closing it ends its line

    # with the context of this thread, by which a notebook knows the cell that it belongs to
    thread = threading.Thread(target=contextvars.copy_context().run, args=(draw,), daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads; the bar then moves with its updates alone
        thread = threading.current_thread()
    try:
        yield bar
    finally:
        ended.set()
        if thread is not threading.current_thread():
            thread.join()
        bar.close()


def in_notebook() -> bool:
    """Whether output goes to a notebook: of Jupyter, VS Code or Colab."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__module__.startswith(("ipykernel", "google.colab"))


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
