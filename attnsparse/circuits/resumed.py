"""Results of work that is computed piece by piece, here or elsewhere, and can be kept in a file meanwhile.

Neither a stop nor a file nor the number of workers changes a bit: see pieces.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import raise_file_error
from ..model.model import Model
from ..tasks.custom import CustomMetric, chosen_metric, metric_name
from ..tasks.task import Task
from .pieces import Job, Piece, Tell, Work, as_executor, computed
from .search_file import SearchFile, question

SAVE_SECONDS = 30.0  # between two times that results are kept
_HEAD = 2  # numbers before the results: pieces, pieces that are there

Question = Callable[[], Mapping[str, Any]]


class Results:
    """Arrays that the results of pieces are put into, with a file from where the file is.

    Parameters
    ----------
    arrays : sequence of numpy.ndarray
        float64, which the results go to, or None for the results of work that is in no file.
    n_pieces : int
        Of all the work.
    executor : Executor or Client, optional
        Whose workers compute the pieces.
    resume : path, optional
        The file.
    asked : function
        Gives all that the bits depend on, as JSON values; not called without a file.
    """

    def __init__(
        self,
        arrays: Sequence[np.ndarray],
        n_pieces: int,
        executor: Any = None,
        resume: str | os.PathLike[str] | None = None,
        asked: Question | None = None,
    ) -> None:
        self._arrays, self._n_pieces, self.n_done = arrays, n_pieces, 0
        self._pool = as_executor(executor)
        self._file = None if resume is None or asked is None else SearchFile(resume, asked())
        self._saved = time.monotonic()
        if self._file is not None:
            self._read(self._file)
        self._begun = 0  # pieces of the work that was begun

    def add(
        self, work: Work[Piece], pieces: Sequence[Piece], put: Callable[[int, Piece, Any], None], tell: Tell
    ) -> None:
        """Compute the pieces that are not there yet.

        put(i, piece, result) puts the result of piece i (of all the work) into the arrays; it can be called
        again after an interrupt, and then has to leave the same.
        """
        left = pieces[max(0, self.n_done - self._begun) :]
        self._begun += len(pieces)
        ended = False
        try:
            total = sum(piece.size for piece in left)
            with contextlib.closing(computed(work, left, total, tell, self._pool)) as results:
                for piece, result in results:
                    put(self.n_done, piece, result)
                    self.n_done += 1
                    if time.monotonic() - self._saved >= SAVE_SECONDS:
                        self._write()
            ended = True
        finally:
            if ended or self.n_done:
                self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        head = np.array([self._n_pieces, self.n_done], np.int64)
        self._file.write(np.concatenate([head, *(array.view(np.int64).ravel() for array in self._arrays)]))
        self._saved = time.monotonic()

    def _read(self, file: SearchFile) -> None:
        state, n_numbers = file.read(), _HEAD + sum(array.size for array in self._arrays)
        if state is None:
            return
        if len(state) != n_numbers or state[0] != self._n_pieces or not 0 <= state[1] <= self._n_pieces:
            text = (
                f"'state' must have {n_numbers:,} numbers, the first {self._n_pieces:,}, the second not above"
            )
            raise_file_error("value", file.path, text, "state")
        self.n_done, begin = int(state[1]), _HEAD
        for array in self._arrays if self.n_done else ():
            array[...] = state[begin : begin + array.size].view(np.float64).reshape(array.shape)
            begin += array.size


def in_values(
    job: Job,
    tell: Tell,
    executor: Any = None,
    resume: str | os.PathLike[str] | None = None,
    asked: Question | None = None,
) -> np.ndarray:
    """The values of a job whose results are float64 [rows of the piece, prompts of the piece], together."""
    values = np.zeros(job.shape)
    results = Results([values], len(job.pieces), executor, resume, asked)

    def put(i: int, piece: Piece, result: np.ndarray) -> None:
        values[piece.place] = result

    results.add(job.work, job.pieces, put, tell)
    return values


def summed(
    job: Job,
    tell: Tell,
    executor: Any = None,
    resume: str | os.PathLike[str] | None = None,
    asked: Question | None = None,
) -> np.ndarray:
    """The sum of the results of a job, added in the order of the pieces."""
    sums = np.zeros((2, *job.shape))  # up to the last piece, up to the one before
    results = Results([sums], len(job.pieces), executor, resume, asked)

    def put(i: int, piece: Piece, result: np.ndarray) -> None:
        np.add(sums[i % 2], result, out=sums[(i + 1) % 2])

    results.add(job.work, job.pieces, put, tell)
    total: np.ndarray = sums[results.n_done % 2]
    return total


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
