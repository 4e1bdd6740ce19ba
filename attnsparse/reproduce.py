"""Draw the project's figures again from the models inside the package, with the numbers behind them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import matplotlib.pyplot as plt
import pandas as pd

from . import figures, reproduce_addition
from .checkpoint import load
from .training_file import write_atomic

Files: TypeAlias = "dict[Path, pd.DataFrame | None]"


def reproduce(
    what: str = "all",
    out: str | os.PathLike[str] = "figures",
    formats: Sequence[str] = ("png", "svg", "pdf"),
) -> Files:
    """Write figures, their captions and their tables into the folder `out`, which is made if need be.

    what: "all" or "addition". A figure X is X.png, X.svg and X.pdf, its caption X.txt, its tables X-*.csv.
    The same models give the same bytes every time. It takes a few seconds.
    Returns the files written, in this order: path -> the table of a .csv, None for a picture or a caption.
    Raises ValueError for another `what` or format, OSError if `out` cannot be written.
    """
    if what != "all" and what not in _FIGURES:
        known = ", ".join(repr(name) for name in ("all", *_FIGURES))
        raise ValueError(f"there is no figure {what[:80]!r} to reproduce; known: {known}")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files: Files = {}
    for name in _FIGURES if what == "all" else [what]:
        files |= _FIGURES[name](folder, formats)
    return files


def _addition(folder: Path, formats: Sequence[str]) -> Files:
    models = {"dense": load("addition-dense"), "sparse": load("addition-sparse")}
    tables, caption = reproduce_addition.tables_and_caption(models)
    figure = figures.addition_figure(**models, caption=caption)
    files: Files = dict.fromkeys(figures.save(figure, folder / "addition", formats))
    plt.close(figure)
    write_atomic(folder / "addition.txt", [caption.encode() + b"\n"])
    files[folder / "addition.txt"] = None
    for name, table in tables.items():
        path = folder / f"addition-{name}.csv"
        write_atomic(path, [table.to_csv(index=False, lineterminator="\n").encode()])
        files[path] = table
    return files


_FIGURES: dict[str, Callable[[Path, Sequence[str]], Files]] = {"addition": _addition}
