"""Methods of `Run` that make its page. The page itself is made in `pages`, which knows circuits and tasks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._page import HEIGHT

if TYPE_CHECKING:
    from .run import Run


def to_html(
    run: Run,
    path: str | os.PathLike[str] | None = None,
    *,
    beside: Run | Sequence[Run] = (),
    circuit: Any = None,
    effects: Any = None,
    n_effects: int = 1000,
    threshold: float = 0.0,
    title: str | None = None,
    base: int = 0,
    progress: bool | None = None,
) -> str | Path:
    """Make one page to look at attention in a browser; it needs no other file and no network.

    Parameters
    ----------
    path : str or os.PathLike, optional
        The file. Default: return the page as text.
    beside : Run or sequence of Run, optional
        Runs of the same prompts by other models, shown beside this one.
    circuit, effects, n_effects, threshold, title, base, progress
        As in `pages.attention_page`.

    Returns
    -------
    str or pathlib.Path
        The page, or the file if a path is given.

    Raises
    ------
    ValueError, TypeError, OSError
        As `pages.attention_page`.
    """
    from ..pages.attention import attention_page

    return attention_page(
        _runs(run, beside),
        path,
        circuit=circuit,
        effects=effects,
        n_effects=n_effects,
        threshold=threshold,
        title=title,
        base=base,
        progress=progress,
    )


def show(
    run: Run,
    *,
    beside: Run | Sequence[Run] = (),
    circuit: Any = None,
    effects: Any = None,
    n_effects: int = 1000,
    threshold: float = 0.0,
    title: str | None = None,
    base: int = 0,
    progress: bool | None = None,
    height: int = HEIGHT,
    open_browser: bool = False,
) -> None:
    """Show the page of `to_html`: in a notebook below the cell, elsewhere as a temporary file.

    Parameters
    ----------
    beside : Run or sequence of Run, optional
        As in `to_html`.
    circuit, effects, n_effects, threshold, title, base, progress, height, open_browser
        As in `pages.show_attention`.

    Raises
    ------
    ValueError, TypeError
        As `pages.show_attention`.
    """
    from ..pages.attention import show_attention

    show_attention(
        _runs(run, beside),
        circuit=circuit,
        effects=effects,
        n_effects=n_effects,
        threshold=threshold,
        title=title,
        base=base,
        progress=progress,
        height=height,
        open_browser=open_browser,
    )


def widget(
    run: Run,
    *,
    beside: Run | Sequence[Run] = (),
    circuit: Any = None,
    effects: Any = None,
    threshold: float = 0.0,
    title: str | None = None,
    base: int = 0,
    height: int = HEIGHT,
) -> Any:
    """Make a notebook widget with what `to_html` shows; it computes exact effects when asked.

    Parameters
    ----------
    beside : Run or sequence of Run, optional
        As in `to_html`.
    circuit, effects, threshold, title, base, height
        As in `pages.attention_widget`.

    Returns
    -------
    anywidget.AnyWidget

    Raises
    ------
    ImportError, ValueError, TypeError
        As `pages.attention_widget`.
    """
    from ..pages.widget import attention_widget

    return attention_widget(
        _runs(run, beside),
        circuit=circuit,
        effects=effects,
        threshold=threshold,
        title=title,
        base=base,
        height=height,
    )


def _runs(run: Run, beside: Run | Sequence[Run]) -> list[Run]:
    return [run, *(beside if isinstance(beside, list | tuple) else [beside])]
