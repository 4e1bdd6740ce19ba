"""The figures of the method, drawn again from the package's models or others, with the numbers behind them.

Modules of this package serve one figure each; their functions may change with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import pandas as pd

from .. import _check, figures
from .._display import progress_bar
from ..io.atomic import write_atomic
from ..model.model import Model
from ..tasks import prompts
from . import addition, antonym, copy, curves, text
from .pair import FigureFiles, ModelOrPath, ModelPair, TranscodersOrPath, as_model, as_transcoders
from .text_tables import edge_kinds, edges_by_position

__all__ = ["edge_kinds", "edges_by_position", "reproduce"]

Files: TypeAlias = "dict[Path, pd.DataFrame | None]"


def reproduce(
    what: str = "all",
    out: str | os.PathLike[str] = "figures",
    formats: str | Sequence[str] = ("png", "svg", "pdf"),
    *,
    dense: ModelOrPath | None = None,
    sparse: ModelOrPath | None = None,
    transcoders: Sequence[TranscodersOrPath] | None = None,
    corpus: Any = None,
    progress: bool | None = None,
) -> Files:
    """Write figures of the method with their captions and tables into a folder.

    A figure X is X.png, X.svg and X.pdf; its caption is X.txt, its tables are ``X-*.csv``. The same models
    give the same bytes every time.

    Parameters
    ----------
    what : {"all", "copy", "antonym", "curves", "addition", "text"}, default "all"
        "copy": the heads that copying needs. "antonym": the graph of a prompt, and the heads that carry a
        word to its opposite. "curves": faithfulness (explained effect) against the numbers of heads and edges
        kept, the figures curves and curves-mean. "addition": the edges of toy addition. "text": what sparsity
        costs on running text, what the open edges are and those of one paragraph, the figures text-frontier,
        text-kinds, text-positions and text-edges; part of "all" only with `corpus`.
    out : str or path, default "figures"
        Folder for the files; made if need be.
    formats : str or sequence of str, default ("png", "svg", "pdf")
        Formats of the pictures.
    dense, sparse : Model, str or path, optional
        The two models that are compared, or their names, folders or files; by default the package's own.
        "all" draws addition and text with the package's models for them, whatever is given.
    transcoders : sequence of two Transcoders, str or path, optional
        Those of the dense and of the sparse model, for the figure "antonym", which without them shows
        attention alone. The package's own models have the package's own.
    corpus : path, sequence of path, optional
        The UTF-8 texts that the models of the figure "text" learned from; their held-out part is read.
    progress : bool, optional
        Whether to show a progress bar on stderr; by default only in terminals and notebooks.

    Returns
    -------
    dict of Path to DataFrame or None
        The files in the order in which they were written: the table of a .csv, None for a picture or caption.

    Raises
    ------
    ValueError
        For another `what` or format, for models that do not fit the task or each other, and for transcoders
        or texts without a figure that shows them.
    ConfigError
        For transcoders that do not fit their model.
    OSError
        If `out` cannot be written or a model cannot be read.
    """
    _check.choice(what, "what", ("all", *FIGURES))
    names = FIGURES if what == "all" else (what,)
    if corpus is None and what == "text":
        raise ValueError("the figure 'text' needs corpus, the texts that its models learned from")
    if corpus is not None and "text" not in names:
        raise ValueError(f"corpus is for the figure 'text'; {names[0]!r} reads no texts")
    names = tuple(name for name in names if name != "text" or corpus is not None)
    given = _two_sets(transcoders, names)
    with progress_bar(progress, len(names), "figures", "figure") as bar:
        pairs = _pairs(names, dense, sparse, bar.set_postfix_str if bar is not None else None)
        if "antonym" in names:
            _add_transcoders(pairs["antonym"], given, dense is None and sparse is None)
        adders = _adders(*(None, None) if what == "all" else (dense, sparse)) if "addition" in names else {}
        folder = Path(_check.path(out, "out"))
        folder.mkdir(parents=True, exist_ok=True)
        files: Files = {}
        for name in names:
            if name == "addition":
                made: Iterable[FigureFiles] = addition.make(adders)
            elif name == "text":
                made = text.make(corpus, *(None, None) if what == "all" else (dense, sparse))
            else:
                made = _OF_A_PAIR[name](pairs[name])
            for figure in made:
                files |= _write(figure, folder, formats)
            if bar is not None:
                bar.update()
    return files


def _pairs(
    names: Iterable[str],
    dense: ModelOrPath | None,
    sparse: ModelOrPath | None,
    announce: Callable[[str], Any] | None,
) -> dict[str, ModelPair]:
    """Figure -> its models; figures with the same models share them, and so their circuits."""
    names = [name for name in names if name in _OF_A_PAIR]
    if not names:
        return {}
    with_control = dense is None and sparse is None and "curves" in names
    control = {"control": as_model(CONTROL)} if with_control else {}
    dense_model = as_model(DENSE if dense is None else dense)
    wanted = {name: _SPARSE[name] if sparse is None else sparse for name in names}
    made: dict[ModelOrPath, ModelPair] = {}
    for what in wanted.values():
        if what not in made:
            made[what] = ModelPair({"dense": dense_model, "sparse": as_model(what), **control}, announce)
    return {name: made[what] for name, what in wanted.items()}


def _two_sets(
    transcoders: Sequence[TranscodersOrPath] | None, names: Sequence[str]
) -> tuple[TranscodersOrPath, TranscodersOrPath] | None:
    """The transcoders of the dense and of the sparse model."""
    if transcoders is None:
        return None
    if "antonym" not in names:
        raise ValueError(f"transcoders are for the figure 'antonym'; {names[0]!r} shows attention alone")
    if isinstance(transcoders, (str, os.PathLike)) or len(transcoders) != 2:
        raise ValueError("transcoders must be two sets, those of the dense and of the sparse model")
    return transcoders[0], transcoders[1]


def _add_transcoders(
    pair: ModelPair, given: tuple[TranscodersOrPath, TranscodersOrPath] | None, own_models: bool
) -> None:
    """Give a pair its transcoders, if there are any; the package's own models have the package's own."""
    if given is None and own_models:
        given = TRANSCODERS
    if given is not None:
        roles = ("dense", "sparse")
        pair.transcoders = {role: as_transcoders(what, pair.models[role]) for role, what in zip(roles, given)}


def _adders(dense: ModelOrPath | None, sparse: ModelOrPath | None) -> dict[str, Model]:
    """The models of the addition figure; ValueError if they are not of its tokens."""
    models = {
        "dense": as_model("addition-dense" if dense is None else dense),
        "sparse": as_model("addition-sparse" if sparse is None else sparse),
    }
    for model in models.values():
        prompts.needs_addition(model._need_tokenizer())
    return models


def _write(made: FigureFiles, folder: Path, formats: str | Sequence[str]) -> Files:
    """Save a figure, close it, and write its caption and tables beside it."""
    files: Files = dict.fromkeys(figures.save(made.figure, folder / made.name, formats))
    plt.close(made.figure)
    write_atomic(folder / f"{made.name}.txt", [_encoded(f"{made.caption}\n")])
    files[folder / f"{made.name}.txt"] = None
    for name, table in made.tables.items():
        path = folder / f"{made.name}-{name}.csv"
        write_atomic(path, [_encoded(table.to_csv(index=False, lineterminator="\n"))])
        files[path] = table
    return files


def _encoded(text: str) -> bytes:
    """UTF-8; half surrogate pairs, as in names of folders that are not UTF-8, are escaped."""
    return text.encode(errors="backslashreplace")


DENSE, CONTROL = "demo-dense", "demo-control"
TRANSCODERS = ("demo-dense-transcoders", "demo-sparse-transcoders")
_SPARSE = {"copy": "demo-sparse-max", "antonym": "demo-sparse", "curves": "demo-sparse-max"}
_OF_A_PAIR: dict[str, Callable[[ModelPair], Iterable[FigureFiles]]] = {
    "copy": copy.make,
    "antonym": antonym.make,
    "curves": curves.make,
}
FIGURES = (*_OF_A_PAIR, "addition", "text")
"""Names of the figures, as `reproduce` and the command take them."""
