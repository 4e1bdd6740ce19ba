"""Methods of `Circuit` that make its page. The page itself is made in `pages`, which knows runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .._page import HEIGHT

if TYPE_CHECKING:
    from .circuit import Circuit


def to_html(
    circuit: Circuit, path: str | os.PathLike[str] | None = None, *, title: str | None = None, base: int = 0
) -> str | Path:
    """Make one page to look at a circuit in a browser, with a slider for how many of its items are marked.

    It shows the items and their scores. `Run.to_html` with ``circuit=`` shows them in the patterns of a run.

    Parameters
    ----------
    path : str or os.PathLike, optional
        The file. Default: return the page as text.
    title : str, optional
        Shown in place of the names of task and model.
    base : int, default 0
        Number of the first position, 0 or 1.

    Returns
    -------
    str or pathlib.Path
        The page, or the file if a path is given.

    Raises
    ------
    ValueError
        For another base.
    TypeError
        For a title that is no string.
    OSError
        If the file cannot be written.
    """
    from ..pages.attention import circuit_page

    return circuit_page(circuit, path, title, base)


def show(
    circuit: Circuit,
    *,
    title: str | None = None,
    base: int = 0,
    height: int = HEIGHT,
    open_browser: bool = False,
) -> None:
    """Show the page of `to_html`: in a notebook below the cell, elsewhere as a temporary file.

    Parameters
    ----------
    title, base
        As in `to_html`.
    height : int, default 640
        Pixels in a notebook, at least 100.
    open_browser : bool, default False
        Open the temporary file in a browser. Without this, only its path is printed.

    Raises
    ------
    ValueError, TypeError
        As `to_html`.
    """
    from ..pages.attention import show_circuit

    show_circuit(circuit, title, base, height, open_browser)
