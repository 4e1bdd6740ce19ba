"""Head detectors: how well the pattern of each head matches a pattern that is looked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import _check
from ..._tables import text_column, text_table
from ...items import Head
from .. import tables
from .rows import origin

if TYPE_CHECKING:
    import pandas as pd

    from ..run import Run

MEASURES = ("mul", "abs")


def _previous_token(tokens: np.ndarray) -> np.ndarray:
    return np.eye(len(tokens), k=-1)


def _duplicate_token(tokens: np.ndarray) -> np.ndarray:
    same: np.ndarray = np.tril(tokens[:, None] == tokens[None, :], -1).astype(np.float64)
    return same


def _induction(tokens: np.ndarray) -> np.ndarray:
    """The key behind an earlier occurrence of the query's token."""
    found = np.zeros((len(tokens), len(tokens)))
    found[:, 1:] = _duplicate_token(tokens)[:, :-1]
    return np.tril(found)


PATTERNS = {
    "previous_token_head": _previous_token,
    "duplicate_token_head": _duplicate_token,
    "induction_head": _induction,
}


def detect_heads(
    run: Run,
    patterns: str | Sequence[str] | Mapping[str, Any] = tuple(PATTERNS),
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: str = "mul",
) -> pd.DataFrame:
    """How well the pattern of each head matches known kinds of heads, or patterns of your own.

    Needs `pattern`. Names, arguments and measures are those of TransformerLens's `detect_head`.

    Parameters
    ----------
    patterns : str, sequence of str, or mapping of str to array
        Of "previous_token_head", "duplicate_token_head" (earlier occurrences of the query's token) and
        "induction_head" (tokens behind such an occurrence), by default all; or names and arrays [query, key]
        of your own, 0 for key > query: one for all prompts, or a list with one for each.
    exclude_bos : bool, default False
        Leave out what heads pay to the first position.
    exclude_current_token : bool, default False
        Leave out what heads pay to the query's own position.
    error_measure : {"mul", "abs"}, default "mul"
        "mul": the share of a head's attention that is where the pattern has 1, the sum of entry times
        pattern divided by the sum of entries; 0 for a head that attends to nothing, as a gated head may.
        "abs": 1 - the sum of ``|entry - pattern|`` divided by the number of tokens.

    Returns
    -------
    pandas.DataFrame
        One row per head in the order of layers. Columns: model, layer, head_index, label ("L9H6"), and one
        for each pattern with the mean of its scores over prompts.

    Raises
    ------
    ValueError
        For an unknown name, a pattern of another shape, or one that looks ahead.
    """

    _check.choice(error_measure, "error_measure", MEASURES)
    flags = (
        _check.flag(exclude_bos, "exclude_bos"),
        _check.flag(exclude_current_token, "exclude_current_token"),
    )
    tables.require(run, ("pattern",), "detect_heads")
    chosen = [one._one("detect_heads") for one in run]
    tokens = np.split(run._batch.tokens, run._batch.offsets[1:-1])
    wanted = _wanted(patterns, chosen, tokens)
    packed = np.stack([np.concatenate([square.ravel() for square in own]) for own in wanted.values()])
    scores = run._core.detect(packed, error_measure, *flags)[:, chosen]
    c = run.model.config
    layer, head = (index.ravel() for index in np.indices((c.n_layer, c.n_head)))
    columns: dict[str, Any] = {"model": text_column([run.model.name] * len(layer))}
    columns |= {"layer": layer, "head_index": head}
    columns["label"] = text_column(
        Head(*pair).label for pair in zip(layer.tolist(), head.tolist(), strict=True)
    )
    columns |= {name: own.mean(axis=0).ravel() for name, own in zip(wanted, scores, strict=True)}
    table: pd.DataFrame = text_table(columns)
    table.attrs.update(origin(run, 0))
    return table


def _wanted(
    patterns: str | Sequence[str] | Mapping[str, Any], chosen: list[int], tokens: list[np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """{name: a pattern for each prompt of the batch}; prompts that are not chosen get zeros."""
    if not isinstance(patterns, Mapping):
        names = _check.names(patterns, "patterns")
        if not names:
            raise ValueError("patterns must name at least one pattern")
        return {
            _check.choice(name, "patterns", PATTERNS): [PATTERNS[name](prompt) for prompt in tokens]
            for name in names
        }
    if not patterns:
        raise ValueError("patterns must hold at least one pattern")
    wanted = {}
    for name, given in patterns.items():
        if not isinstance(name, str) or name in ("model", "layer", "head_index", "label"):
            raise ValueError(f"a pattern needs a name that is not a column of the table, got {name!r:.60}")
        several = list(given) if isinstance(given, (list, tuple)) and np.ndim(given[0]) == 2 else None
        if several is not None and len(several) != len(chosen):
            raise ValueError(f"pattern {name!r:.60}: {len(several)} arrays for {len(chosen)} prompts")
        squares = [np.zeros((len(prompt), len(prompt))) for prompt in tokens]
        for i, number in enumerate(chosen):
            square = _check.reals(
                given if several is None else several[i], f"pattern {name!r:.60}", np.float64
            )
            if square.shape != squares[number].shape:
                raise ValueError(
                    f"pattern {name!r:.60} has shape {square.shape}, prompt {number} needs "
                    f"{squares[number].shape}"
                )
            if np.triu(square, 1).any():
                raise ValueError(f"pattern {name!r:.60} looks ahead: entries with key > query must be 0")
            squares[number] = square
        wanted[name] = squares
    return wanted
