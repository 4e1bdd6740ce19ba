"""Which positions of which prompts a table is about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ... import _check
from .. import tables

if TYPE_CHECKING:
    from ..run import Run


class Rows(NamedTuple):
    """Positions of the prompts of a run, one after the other."""

    number: np.ndarray  #: int64 [n]: which of the run's prompts
    prompt: np.ndarray  #: int64 [n]: its number in the batch
    position: np.ndarray  #: int64 [n]: from 0
    row: np.ndarray  #: int64 [n]: row in the packed batch


def chosen_rows(run: Run, position: int | str | None, base: int) -> Rows:
    """One position of each prompt, or with None all of them; errors as of `tables.position`."""
    _check.base(base)
    number: list[int] = []
    prompt: list[int] = []
    positions: list[int] = []
    row: list[int] = []
    for i, one in enumerate(run):
        index = one._one("position")
        first, last = one._range(index)
        wanted = range(last - first) if position is None else [tables.position(one, position, base)]
        number += [i] * len(wanted)
        prompt += [index] * len(wanted)
        positions += wanted
        row += [first + at for at in wanted]
    return Rows(*(np.array(values, np.int64) for values in (number, prompt, positions, row)))


def row_tokens(run: Run, rows: Rows) -> list[str]:
    """The token at each row, as displayed."""
    prompts = [one.token_strings for one in run]
    return [prompts[i][at] for i, at in zip(rows.number.tolist(), rows.position.tolist(), strict=True)]


def origin(run: Run, base: int) -> dict[str, Any]:
    """What `.attrs` of a table say."""
    model = run.model
    return {
        "model": model.name,
        "digest": model.digest,
        "prepend_bos": bool(run.prepend_bos),
        "base": base,
    }
