"""Sweeps that are computed some rows at a time, here or by an executor, and can be kept in a file meanwhile.

How many rows are asked at once depends on their number and that of the prompts alone, because the last bits
of a product can depend on how many rows it has: so neither a stop nor the number of workers changes a bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np

from .._display import stage_bars
from ..errors import raise_file_error
from ..model.model import Model
from ..tasks.custom import CustomMetric, chosen_metric, metric_name
from ..tasks.task import Task
from .pieces import CoreRows, Tell, as_executor, in_pieces
from .search_file import SearchFile, question

SAVE_SECONDS = 30.0  # between two times that a sweep is kept
VALUES_AT_ONCE = 8192  # of the rows that are asked at once, which a stop loses: what the core takes at once
LEAST_ROWS = 16  # at once, because every part runs the unchanged prompts again
_HEAD = 3  # numbers before the values: rows, prompts, rows that are there


def in_rows(
    resume: str | os.PathLike[str] | None,
    asked: Callable[[], Mapping[str, Any]],
    shape: tuple[int, int],
    measure: CoreRows,
    progress: bool | None,
    executor: Any = None,
) -> np.ndarray:
    """Measure all rows of a sweep in parts, with a file from where the file is.

    Parameters
    ----------
    resume : path or None
        The file.
    asked : function
        Gives all that the bits depend on, as JSON values; not called without a file.
    shape : tuple of int
        Rows and prompts.
    measure : CoreRows
        ``measure(begin, end, tell)`` returns float64 [end - begin, prompts].
    progress : bool or None
        Whether to show a bar.
    executor : Executor or Client, optional
        Whose workers measure the parts.

    Returns
    -------
    numpy.ndarray
        float64 [rows, prompts].
    """
    pool = None if executor is None else as_executor(executor)
    kept = None if resume is None else SearchFile(resume, asked())
    values, done = (np.empty(shape), 0) if kept is None else _restored(kept, shape)
    step, saved, ended = at_once(shape), time.monotonic(), False
    bounds = [(begin, min(begin + step, shape[0])) for begin in range(done, shape[0], step)]
    try:
        with (
            stage_bars(progress) as tell,
            contextlib.closing(_parts(measure, bounds, shape[0], tell, pool)) as parts,
        ):
            for begin, end, part in parts:
                values[begin:end] = part
                done = end
                if kept is not None and time.monotonic() - saved >= SAVE_SECONDS:
                    kept.write(_state(values, done))
                    saved = time.monotonic()
        ended = True
    finally:
        if kept is not None and (ended or done):
            kept.write(_state(values, done))
    return values


def _parts(
    measure: CoreRows, bounds: list[tuple[int, int]], n_rows: int, tell: Tell, pool: Any
) -> Generator[tuple[int, int, np.ndarray], None, None]:
    """Begin, end and values of each part, in order."""
    if pool is None:
        for begin, end in bounds:
            yield begin, end, measure(begin, end, _share(tell, begin, end, n_rows))
        return
    with contextlib.closing(in_pieces(pool, measure, bounds)) as pieces:
        for (begin, end), part in zip(bounds, pieces):
            yield begin, end, part
            if tell is not None:
                tell(measure.function.replace("_", " "), end, n_rows)


def in_place(
    resume: str | os.PathLike[str] | None,
    asked: Callable[[], Mapping[str, Any]],
    place: np.ndarray,
    arrays: Sequence[np.ndarray],
    most: Sequence[int | None],
    measure: Callable[[Tell], None],
    progress: bool | None,
) -> None:
    """Let the core measure into arrays: from the beginning, or with a file from where that is.

    Parameters
    ----------
    resume : path or None
        The file.
    asked : function
        Gives all that the bits depend on, as JSON values; not called without a file.
    place : numpy.ndarray
        int64 [n], zeros, which the core writes: how far it is.
    arrays : sequence of numpy.ndarray
        float64, which the core writes before `place`.
    most : sequence of int or None
        [n]: the largest numbers that `place` can have.
    measure : function
        ``measure(tell)`` goes on from `place`, and tells when that has changed.
    progress : bool or None
        Whether to show a bar.
    """
    if resume is None:
        with stage_bars(progress) as tell:
            return measure(tell)
    kept = SearchFile(resume, asked())
    _restore_arrays(kept, place, arrays, most)
    saved = time.monotonic()

    def write() -> None:
        nonlocal saved
        kept.write(np.concatenate([place, *(array.view(np.int64).ravel() for array in arrays)]))
        saved = time.monotonic()

    def told(stage: str, done: int, total: int) -> None:
        if tell is not None:
            tell(stage, done, total)
        if place.any() and time.monotonic() - saved >= SAVE_SECONDS:
            write()

    try:
        with stage_bars(progress) as tell:
            measure(told)
    finally:
        if place.any():
            write()


def _restore_arrays(
    kept: SearchFile, place: np.ndarray, arrays: Sequence[np.ndarray], most: Sequence[int | None]
) -> None:
    state, n_numbers = kept.read(), len(place) + sum(array.size for array in arrays)
    if state is None:
        return
    known = len(state) == n_numbers and all(
        number >= 0 and (limit is None or number <= limit) for number, limit in zip(state.tolist(), most)
    )
    if not known:
        text = f"'state' must have {n_numbers:,} numbers, the first of them in 0..{most[0]:,}"
        raise_file_error("value", kept.path, text, "state")
    place[:] = state[: len(place)]
    begin = len(place)
    for array in arrays:
        array[...] = state[begin : begin + array.size].view(np.float64).reshape(array.shape)
        begin += array.size


def at_once(shape: tuple[int, int]) -> int:
    """How many rows of a sweep of so many rows and prompts are measured at once."""
    return max(LEAST_ROWS, VALUES_AT_ONCE // shape[1])


def _share(tell: Tell, begin: int, end: int, n_rows: int) -> Tell:
    """What a part tells, as a share of the whole."""
    if tell is None:
        return None

    def told(stage: str, done: int, total: int) -> None:
        tell(stage, begin + (end - begin) * done // max(total, 1), n_rows)

    return told


def _state(values: np.ndarray, done: int) -> np.ndarray:
    """int64: the sizes and the bits of the rows that are there."""
    bits = np.ascontiguousarray(values[:done]).view(np.int64).ravel()
    return np.concatenate([np.array([*values.shape, done], np.int64), bits])


def _restored(kept: SearchFile, shape: tuple[int, int]) -> tuple[np.ndarray, int]:
    """The values, of which the first rows are known, and how many."""
    values, state = np.empty(shape), kept.read()
    if state is None:
        return values, 0
    done = int(state[2]) if len(state) >= _HEAD else -1
    whole = 0 <= done <= shape[0] and (done == shape[0] or done % at_once(shape) == 0)
    if tuple(state[:2].tolist()) != shape or not whole:
        done = -1
    if done < 0 or len(state) != _HEAD + done * shape[1]:
        text = f"'state' is not that of a sweep of {shape[0]:,} rows for {shape[1]:,} prompts"
        raise_file_error("value", kept.path, text, "state")
    values[:done] = state[_HEAD:].view(np.float64).reshape(done, shape[1])
    return values, done


def sweep_question(
    model: Model, task: Task, metric: str | CustomMetric | None, method: str, **options: Any
) -> dict[str, Any]:
    """All that the bits of a sweep depend on, as JSON values; arrays among the options by their digest."""
    plain = {
        name: array_digest(value) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }
    names = {
        "model_digest": model.digest,
        "task_digest": task.digest,
        "method": method,
        "metric": metric_name(chosen_metric(metric, task)),
        "options": plain,
    }
    return question(model, names)


def array_digest(array: np.ndarray) -> str:
    """SHA-256 of the type, shape and bytes of an array, hexadecimal."""
    head = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()
