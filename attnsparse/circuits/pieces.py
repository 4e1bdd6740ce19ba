"""Rows of a sweep computed in pieces by the workers of an executor, of whatever engine.

What a piece is depends on the rows and prompts alone, and pieces are put together in their order: the result
has the same bits for any number of workers, and without an executor.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .. import _check
from .._engine import get_num_threads
from ..errors import printable
from ..io.checksums import sha256
from ..model.model import Model
from .wanted import Wanted, Watch

Tell: TypeAlias = "Callable[[str, int, int], None] | None"
Bounds: TypeAlias = "tuple[int, int]"

TRIES = 3  # of a piece
_KINDS = (ValueError, TypeError, IndexError, MemoryError)  # of errors that a call without executor raises
_worker_rows: tuple[str, CoreRows] | None = None  # what this worker computed last, by its digest


@dataclass(frozen=True)
class CoreRows:
    """A function of the core that measures rows: what a worker needs to compute some of them.

    Called with the first row, the one after the last, and whom to tell how far it is; returns float64
    [end - begin, prompts].
    """

    model: Model
    task_name: str
    function: str  # of the model in the core
    before: tuple[Any, ...]  # its arguments before the rows
    rows: np.ndarray
    after: tuple[Any, ...]  # and after them
    threads: int | None = None

    def __post_init__(self) -> None:
        _check.threads(self.threads)

    def __call__(self, begin: int, end: int, tell: Tell) -> np.ndarray:
        function = getattr(self.model._core, self.function)
        found: np.ndarray = function(
            *self.before, self.rows[begin:end], *self.after, _check.threads(self.threads), tell
        )
        return found


class _Piece(NamedTuple):
    """What is sent to a worker."""

    data: bytes  # the pickled CoreRows
    digest: str
    begin: int
    end: int
    threads: int | None
    wanted: Wanted


def in_pieces(pool: Any, rows: CoreRows, bounds: Sequence[Bounds]) -> Generator[np.ndarray, None, None]:
    """The rows from each bound to the next one, in order, as they are there.

    Whatever ends it early, an error, Ctrl-C or `close`, cancels what is queued and stops what runs. Raises
    RuntimeError for a piece that failed three times, or the kind of error that a call without an executor
    raises.
    """
    data = _pickled(rows)
    digest = sha256(data)
    threads = rows.threads if rows.threads is not None else _threads_of_one(pool)
    with tempfile.NamedTemporaryFile(prefix="attnsparse-wanted-") as file:
        wanted = Wanted.here(file.name)
        pieces = [_Piece(data, digest, *bound, threads, wanted) for bound in bounds]
        futures: list[Future[np.ndarray]] = []
        try:
            for piece in pieces:
                futures.append(_submitted(pool, piece, rows, None))
            for i, piece in enumerate(pieces):
                yield _result(pool, piece, futures, i, rows)
        finally:
            for future in futures:
                future.cancel()


def _result(
    pool: Any, piece: _Piece, futures: list[Future[np.ndarray]], i: int, rows: CoreRows
) -> np.ndarray:
    """Of piece i, which is tried again if it fails."""
    for left in reversed(range(TRIES)):
        try:
            return futures[i].result()
        except Exception as error:
            if not left:
                text = f"{_named(piece, rows)} failed {TRIES} times: {_said(error)}"
                raise (type(error) if type(error) in _KINDS else RuntimeError)(text) from error
            futures[i] = _submitted(pool, piece, rows, error)
    raise AssertionError  # the last try returns or raises


def _submitted(pool: Any, piece: _Piece, rows: CoreRows, reason: Exception | None) -> Future[np.ndarray]:
    """RuntimeError if the executor takes no more work."""
    try:
        future: Future[np.ndarray] = pool.submit(_computed, piece)
    except Exception as error:
        text = f"{_named(piece, rows)} cannot be given to the executor: {_said(reason or error)}"
        raise RuntimeError(f"{text}; make a new one (with resume= the call continues)") from error
    return future


def _named(piece: _Piece, rows: CoreRows) -> str:
    """For messages: which piece of which work."""
    what = rows.function.replace("_", " ")
    model = rows.model.name or f"of digest {rows.model.digest[:12]}"
    part = f"rows {piece.begin}..{piece.end - 1}"
    return f"{what} of model {model}, task {rows.task_name!r:.60}: the piece of {part}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {printable(error)[:300]}"


def _computed(piece: _Piece) -> np.ndarray:
    """In a worker: one piece."""
    global _worker_rows
    kept = _worker_rows
    if kept is None or kept[0] != piece.digest:
        kept = _worker_rows = (piece.digest, pickle.loads(piece.data))
    with Watch(piece.wanted) as watch:
        return replace(kept[1], threads=piece.threads)(piece.begin, piece.end, watch.tell)


def as_executor(executor: Any) -> Any:
    """What has `submit` and gives futures of concurrent.futures; of a Dask Client its executor."""
    if callable(getattr(executor, "get_executor", None)):
        return executor.get_executor(pure=False)
    if not callable(getattr(executor, "submit", None)):
        kind = type(executor).__name__
        raise TypeError(f"executor must be a concurrent.futures.Executor or a Dask Client, got {kind}")
    return executor


def _pickled(rows: CoreRows) -> bytes:
    try:
        return pickle.dumps(rows)
    except (pickle.PicklingError, AttributeError) as error:
        text = f"with executor= the functions of a metric must be importable by the workers: {error}"
        raise TypeError(text) from error


def _threads_of_one(pool: Any) -> int | None:
    """The cores of this machine, shared among the workers of a pool; None: as the worker is told, if the pool
    does not say how many workers it has."""
    workers = getattr(pool, "_max_workers", None)
    return max(1, get_num_threads() // workers) if isinstance(workers, int) and workers > 0 else None
