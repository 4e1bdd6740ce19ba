"""Work over the prompts of a task, cut into pieces, which are computed here or by the workers of an executor.

What a piece is depends on the numbers of rows (items, sizes, circuits) and of prompts alone, because the
last bits of a product can depend on how many rows it has; results come in the order of the pieces.  So they
have the same bits without an executor, and with any number of workers of any engine.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from .. import _check
from .._core_types import Task as PackedTask
from .._engine import THREAD_VARIABLES, get_num_threads
from ..errors import printable
from ..io.checksums import sha256
from ..model.model import Model
from .asked import part_of_task
from .wanted import Wanted, Watch

Tell: TypeAlias = "Callable[[str, int, int], None] | None"

VALUES_AT_ONCE = 1024  # rows times prompts of a piece: seconds for GPT-2 small on a few cores
ROWS_AT_ONCE = 64  # of them at most, because every piece runs its prompts unchanged, too
MOST_QUEUED = 512  # pieces that an executor is given before the first of them is there
WHOLE_VALUES, WHOLE_ROWS = 8192, 16  # the same where a piece needs all prompts; so many rows at least
SUMMED_PROMPTS = 16  # of a piece that is a sum over prompts

TRIES = 3  # of a piece
_MPI_LOCAL = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")  # processes on this machine: MPICH, Open MPI
_KINDS = (ValueError, TypeError, IndexError, MemoryError)  # of errors that a call without executor raises
_worker_work: tuple[str, Work[Any]] | None = None  # what this worker computed last, by its digest


# --------------------------------------------------------------------------------------------- pieces


class Piece(NamedTuple):
    """Some rows for some prompts: the first of each, and the one after the last."""

    rows: tuple[int, int]
    prompts: tuple[int, int]

    @property
    def size(self) -> int:
        """How much of the work it is."""
        return (self.rows[1] - self.rows[0]) * (self.prompts[1] - self.prompts[0])

    @property
    def place(self) -> tuple[slice, slice]:
        """Of its values in an array [rows, prompts]."""
        return slice(*self.rows), slice(*self.prompts)

    def __str__(self) -> str:
        (row, end), (first, last) = self.rows, self.prompts
        return f"rows {row}..{end - 1} of prompts {first}..{last - 1}"


def cut(n_rows: int, n_prompts: int, apart: bool = True, each: int = 1) -> list[Piece]:
    """The pieces of so many rows, of so many values each, for so many prompts; apart: one needs no other
    prompts than its own."""
    if apart:
        rows = min(max(n_rows, 1), max(1, ROWS_AT_ONCE // each))
        return _pieces(n_rows, n_prompts, rows, max(1, VALUES_AT_ONCE // (rows * each)))
    return _pieces(n_rows, n_prompts, max(WHOLE_ROWS, WHOLE_VALUES // n_prompts), n_prompts)


def cut_sums(n_prompts: int, apart: bool = True) -> list[Piece]:
    """The pieces of a sum over so many prompts."""
    return _pieces(1, n_prompts, 1, SUMMED_PROMPTS if apart else n_prompts)


def _pieces(n_rows: int, n_prompts: int, rows: int, prompts: int) -> list[Piece]:
    return list(
        itertools.starmap(Piece, itertools.product(_blocks(n_rows, rows), _blocks(n_prompts, prompts)))
    )


def _blocks(n: int, most: int) -> list[tuple[int, int]]:
    """0..n in blocks of at most so many, alike but for one."""
    n_blocks = -(-n // most)
    ends = [n * (i + 1) // n_blocks for i in range(n_blocks)]
    return list(zip([0, *ends], ends))


# ----------------------------------------------------------------------------------------------- work


class Sized(Protocol):
    """A piece of any work, whose text names it in errors."""

    @property
    def size(self) -> int:
        """How much of the work it is."""


P = TypeVar("P", bound=Sized)
C = TypeVar("C", bound=Sized, contravariant=True)


class Work(Protocol[C]):
    """What a worker needs to compute pieces."""

    @property
    def stage(self) -> str:
        """What bars and errors call it."""

    @property
    def source(self) -> str:
        """For errors: the model and the task."""

    @property
    def threads(self) -> int | None:
        """As the user asked."""

    def __call__(self, piece: C, threads: int | None, tell: Tell) -> Any:
        """The result of a piece."""


@dataclass(frozen=True)
class CoreWork:
    """A function of the core that measures on the prompts of a task."""

    model: Model
    task_name: str
    stage: str
    function: str  # of the model in the core
    task: PackedTask
    before: tuple[Any, ...]  # its arguments after the task and before the rows
    rows: np.ndarray | range | None  # a range is given to the core as its two ends; None: no argument
    after: tuple[Any, ...]  # the arguments after the rows
    threads: int | None = None

    def __post_init__(self) -> None:
        _check.threads(self.threads)

    @property
    def source(self) -> str:
        """For errors: the model and the task."""
        return source_of(self.model, self.task_name)

    def __call__(self, piece: Piece, threads: int | None, tell: Tell) -> Any:
        """What the function returns for the rows and prompts of the piece."""
        function = getattr(self.model._core, self.function)
        rows: tuple[Any, ...] = ()
        if isinstance(self.rows, range):
            rows = (piece.rows,)
        elif self.rows is not None:
            rows = (self.rows[slice(*piece.rows)],)
        task = part_of_task(self.task, *piece.prompts)
        return function(task, *self.before, *rows, *self.after, _check.threads(threads), tell)


class Job(NamedTuple):
    """Work, the pieces of all of it, and the shape of what they give together."""

    work: Work[Piece]
    pieces: list[Piece]
    shape: tuple[int, ...]


def source_of(model: Model, task_name: str) -> str:
    """For errors: the model and the task."""
    return f"model {model.name or f'of digest {model.digest[:12]}'}, task {task_name!r:.60}"


def computed(
    work: Work[P], pieces: Iterable[P], total: int, tell: Tell, pool: Any
) -> Generator[tuple[P, Any], None, None]:
    """The pieces with their results, in order, as they are there.

    pool: of `as_executor`, or None: computed here. total: the sizes of all pieces. Whatever ends it early, an
    error, Ctrl-C or `close`, cancels what is queued and stops what runs. Raises RuntimeError for a piece that
    failed three times, or the kind of error that a call without an executor raises.
    """
    done = 0
    if pool is None:
        for piece in pieces:
            yield piece, work(piece, work.threads, _share(tell, work.stage, done, piece.size, total))
            done += piece.size
        return
    with contextlib.closing(_in_pool(pool, work, pieces)) as results:
        for piece, result in results:
            yield piece, result
            done += piece.size
            if tell is not None:
                tell(work.stage, done, total)


def _share(tell: Tell, name: str, begin: int, size: int, total: int) -> Tell:
    """What a piece tells, as a share of the whole."""
    if tell is None:
        return None
    last = -1

    def told(stage: str, done: int, of: int) -> None:
        nonlocal last
        if (now := begin + size * done // max(of, 1)) != last:
            last = now
            tell(name, now, total)

    return told


# ------------------------------------------------------------------------------------------- executors


class _Asked(NamedTuple):
    """What is sent to a worker besides the work."""

    digest: str  # of the work
    piece: Any
    threads: int | None
    wanted: Wanted


def as_executor(executor: Any) -> Any:
    """What gives futures of concurrent.futures by `submit`: of a Dask Client its executor; None of None."""
    if callable(getattr(executor, "get_executor", None)):
        return executor.get_executor(pure=False)
    if executor is not None and not callable(getattr(executor, "submit", None)):
        kind = type(executor).__name__
        raise TypeError(f"executor must be a concurrent.futures.Executor or a Dask Client, got {kind}")
    return executor


def _in_pool(pool: Any, work: Work[P], pieces: Iterable[P]) -> Generator[tuple[P, Any], None, None]:
    data = _pickled(work)
    digest = sha256(data)
    threads = work.threads if work.threads is not None else threads_of_one(pool)
    queued: deque[tuple[_Asked, Future[Any]]] = deque()
    with tempfile.NamedTemporaryFile(prefix="attnsparse-wanted-") as file:
        wanted, sent = Wanted.here(file.name), _sent(pool, data, work)
        try:
            for piece in pieces:
                asked = _Asked(digest, piece, threads, wanted)
                queued.append((asked, _submitted(pool, sent, asked, work, None)))
                if len(queued) >= MOST_QUEUED:
                    yield _first(pool, data, queued, work)
            while queued:
                yield _first(pool, data, queued, work)
        finally:
            for _, future in queued:
                future.cancel()


def _sent(pool: Any, data: bytes, work: Work[Any]) -> Any:
    """The work as an argument of `submit`. Dask has it once for all pieces, and each worker gets it once."""
    client = getattr(pool, "_client", None)
    try:
        return data if client is None else client.submit(bytes, data, pure=False)
    except Exception as error:
        raise _refused(f"{work.stage} of {work.source}", error) from error


def _first(
    pool: Any, data: bytes, queued: deque[tuple[_Asked, Future[Any]]], work: Work[Any]
) -> tuple[Any, Any]:
    """The first queued piece, which is tried again if it fails, together with the work; and its result."""
    for left in reversed(range(TRIES)):
        asked, future = queued[0]
        try:
            result = future.result()
        except (Exception, CancelledError) as error:
            if not left:
                text = f"{_named(asked.piece, work)} failed {TRIES} times: {_said(error)}"
                raise (type(error) if type(error) in _KINDS else RuntimeError)(text) from error
            queued[0] = (asked, _submitted(pool, data, asked, work, error))
        else:
            queued.popleft()
            return asked.piece, result
    raise AssertionError  # the last try returns or raises


def _submitted(
    pool: Any, sent: Any, asked: _Asked, work: Work[Any], reason: BaseException | None
) -> Future[Any]:
    """RuntimeError if the executor takes no more work."""
    try:
        future: Future[Any] = pool.submit(_computed, sent, asked)
    except Exception as error:
        raise _refused(_named(asked.piece, work), reason or error) from error
    return future


def _refused(what: str, reason: BaseException) -> RuntimeError:
    text = f"{what} cannot be given to the executor: {_said(reason)}"
    return RuntimeError(f"{text}; make a new one (with resume= the call continues)")


def _named(piece: Any, work: Work[Any]) -> str:
    """For messages: which piece of which work."""
    return f"{work.stage} of {work.source}: the piece of {piece}"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {printable(error)[:300]}"


def _computed(data: bytes, asked: _Asked) -> Any:
    """In a worker: one piece."""
    global _worker_work
    kept = _worker_work
    if kept is None or kept[0] != asked.digest:
        kept = _worker_work = (asked.digest, pickle.loads(data))
    threads = threads_here() if asked.threads is None else asked.threads
    with Watch(asked.wanted) as watch:
        return kept[1](asked.piece, threads, watch.tell)


def _pickled(work: Work[Any]) -> bytes:
    try:
        return pickle.dumps(work)
    except (pickle.PicklingError, AttributeError) as error:
        text = f"with executor= the functions of a metric must be importable by the workers: {error}"
        raise TypeError(text) from error


def threads_of_one(pool: Any) -> int | None:
    """The cores of this machine, shared among the workers of a pool of processes or threads; None: the worker
    knows, or the pool does not say how many workers it has."""
    workers = getattr(pool, "_max_workers", None)
    if type(pool).__module__.startswith("mpi4py") or not isinstance(workers, int) or workers < 1:
        return None
    return max(1, get_num_threads() // workers)


def threads_here() -> int:
    """Threads of a piece in a worker that is not told: its part of what it shares with others.

    A worker of Dask computes as many pieces at once as it has threads. Processes of MPI that are bound to no
    cores share those of their machine, unless a variable says how many threads each has.
    """
    n, sharing = get_num_threads(), 1
    if (dask := sys.modules.get("distributed")) is not None:
        with contextlib.suppress(ValueError):  # this is no worker
            sharing = int(dask.get_worker().state.nthreads or 1)
    if sharing == 1 and not any(map(os.environ.get, THREAD_VARIABLES)) and not _is_bound():
        sharing = next((int(text) for text in map(os.environ.get, _MPI_LOCAL) if text and text.isdigit()), 1)
    return max(1, n // max(1, sharing))


def _is_bound() -> bool:
    """Whether this process may use some cores of the machine only."""
    cores = getattr(os, "sched_getaffinity", lambda _: ())(0)
    return 0 < len(cores) < (os.cpu_count() or 1)
