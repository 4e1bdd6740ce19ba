"""A progress bar for long calls: on stderr, in terminals and notebooks only unless asked for."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from .items import shortened

_SIGNS = 40  # of what is counted, which may be the name of a model


def progress_bar(progress: bool | None, total: int, text: str, unit: str, initial: int = 0) -> Any:
    """A tqdm bar as a context, or a context that gives None.

    progress: None shows it if stderr is a terminal or a notebook reads it, and the call takes a second.
    """
    shown = sys.stderr.isatty() or _in_notebook() if progress is None else progress
    if not shown:
        return contextlib.nullcontext()
    from tqdm import tqdm

    delay = 1.0 if progress is None else 0.0
    return tqdm(
        total=total, initial=initial, desc=shortened(text, _SIGNS), unit=unit, mininterval=0.5, delay=delay
    )


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__module__.startswith("ipykernel")
