"""How a training step is shared: not at all, or by the processes of an MPI communicator.

Every process makes all batches, computes its own parts of a step and updates its own slice of the weights.
What is passed on is copied, never added up by MPI, whose order of sums nobody promises: the core adds the
parts in an order that depends on their number alone. So the bits are those of one process that computes all
parts.

Whatever can fail in one process alone is done `together`: afterwards all know, and all raise.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from .._engine import get_num_threads, threads_are_chosen
from .data import Batch

if TYPE_CHECKING:
    from .. import _core

Batches = Callable[[], list[Batch]]
Result = TypeVar("Result")

_FINE, _INTERRUPTED, _FAILED = range(3)
_SPIN_SECONDS = 0.01  # in which a process asks again at once whether the others have come
_SLEEP_SECONDS = 0.0005  # between two questions afterwards, so that waiting takes no processor from them
_SIGNAL_SECONDS = 0.25  # in which Ctrl-C has reached all processes of a machine


class OneProcess:
    """A process that trains alone."""

    rank, size = 0, 1

    def threads(self) -> int | None:
        """Threads of this process unless others are asked for; None: as `set_num_threads` says."""
        return None

    def held(self) -> AbstractContextManager[None]:
        """A context in which Ctrl-C waits until the next `together`."""
        return nullcontext()

    def together(self, work: Callable[[], Result]) -> Result:
        """What `work` gives in this process, if it fails in none."""
        return work()

    def by_first(self, work: Callable[[], Result]) -> Result:
        """What `work`, which the first process alone does, gives; in all processes."""
        return work()

    def agree(self, values: dict[str, str]) -> None:
        """ValueError in all processes, naming the value, unless each has the same."""

    def step(
        self,
        engine: _core.Trainer,
        batches: Batches,
        parts: int,
        arguments: dict[str, Any],
        threads: int,
        results: list[dict[str, Any]],
    ) -> None:
        """One step, whose result is appended."""
        micro = batches()
        # One C call from the engine into the list: Ctrl-C cannot come in between and lose a step's result.
        step = functools.partial(engine.step, parts=parts, threads=threads, **arguments)
        results.extend(map(step, (micro,)))

    def moments(self, engine: _core.Trainer, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Both moments of a parameter, in the first process and after `gather_moments`."""
        return engine.moments(name)

    def gather_moments(self, engine: _core.Trainer) -> None:
        """Bring all moments to the first process, until the next step."""

    def spread(self, n: int, work: Callable[[range], list[Result]]) -> list[Result]:
        """What `work` gives for 0..n, of which every process does a piece; in all processes."""
        return work(range(n))


class Processes(OneProcess):
    """The processes of a communicator of mpi4py, which all make the same calls in the same order.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        Used inside of calls alone.
    """

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.rank, self.size = int(comm.rank), int(comm.size)
        self._threads = None if threads_are_chosen() else self._share_of_node()
        self._buffer = np.empty(0, np.float32)
        self._moments: tuple[np.ndarray, np.ndarray] | None = None

    def _share_of_node(self) -> int:
        """Cores of this process, shared with those of the same machine that may use the same ones."""
        from mpi4py import MPI

        own = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset({-1})
        node = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        others: list[frozenset[int]] = node.allgather(own)
        number = others[: node.rank].count(own)
        node.Free()
        n, sharing = get_num_threads(), others.count(own)
        return max(n // sharing + (number < n % sharing), 1)

    def threads(self) -> int | None:
        """Threads of this process unless others are asked for."""
        return self._threads

    def held(self) -> AbstractContextManager[None]:
        """A context in which Ctrl-C waits until the next `together`, or its end."""
        return INTERRUPTS.held()

    # ---- what can fail

    def together(self, work: Callable[[], Result]) -> Result:
        """What `work` gives in this process, if it fails in none.

        The processes in which it failed raise their own exception. The others raise KeyboardInterrupt if one
        was interrupted, else RuntimeError with the first exception of another.
        """
        with self.held():
            outcome = self._attempt(work)
            error = outcome if isinstance(outcome, _Failure) else None
            code = _FINE if error is None else _FAILED
            if error is not None and isinstance(error.raised, KeyboardInterrupt):
                code = _INTERRUPTED
            codes = np.empty(self.size, np.int8)
            self._wait(self._comm.Iallgather(np.array([code], np.int8), codes))
            if not codes.any():
                return outcome  # type: ignore[return-value]
            texts = self._comm.allgather(None if error is None else _described(error.raised))
            if error is not None:
                raise error.raised
            if (codes == _INTERRUPTED).any():
                INTERRUPTS.await_one()
                raise KeyboardInterrupt
        rank = int(np.flatnonzero(codes)[0])
        raise RuntimeError(f"process {rank} of 0..{self.size - 1} stopped the training: {texts[rank]}")

    def _attempt(self, work: Callable[[], Result]) -> Result | _Failure:
        try:
            with INTERRUPTS.let_in():
                return work()
        except BaseException as error:
            return _Failure(error)

    def by_first(self, work: Callable[[], Result]) -> Result:
        """What `work`, which the first process alone does, gives; in all processes."""
        with self.held():
            found = self.together(work if self.rank == 0 else lambda: None)
            result: Result = self._comm.bcast(found)
            return result

    def agree(self, values: dict[str, str]) -> None:
        """ValueError in all processes, naming the value, unless each has the same."""
        with self.held():
            everyone = self._comm.allgather(values)
        for name in values:
            for rank, other in enumerate(everyone):
                if other[name] != everyone[0][name]:
                    raise ValueError(
                        f"the processes of comm must train the same: {name} of process {rank} differs from "
                        "that of process 0"
                    )

    # ---- one step

    def step(
        self,
        engine: _core.Trainer,
        batches: Batches,
        parts: int,
        arguments: dict[str, Any],
        threads: int,
        results: list[dict[str, Any]],
    ) -> None:
        """One step, whose result is appended."""
        self._moments = None
        first, count = share(parts, self.rank, self.size)
        begun = {"parts": parts, "first": first, "count": count, "threads": threads, **arguments}
        with self.held():
            try:
                numbers, sums = self.together(lambda: engine.gradients(batches(), **begun))
                all_numbers = np.empty((parts, numbers.shape[1]))
                self._gather(numbers, all_numbers, [share(parts, r, self.size)[1] for r in range(self.size)])
                squares = engine.combine(*self._exchanged(engine, sums, parts))
                slices = [engine.slice(rank) for rank in range(self.size)]
                all_squares = np.empty(slices[-1][3])
                self._gather(squares, all_squares, [end - begin for *_, begin, end in slices])
                weights = self._space(slices[-1][1], sums[0][2].dtype)
                result = engine.update((all_numbers, all_squares, weights), **arguments)
                self._share_weights(weights, slices)
                engine.adopt(weights)
                results.append(result)
            except BaseException:
                engine.abandon()
                raise

    def _exchanged(
        self, engine: _core.Trainer, sums: list[tuple[int, int, np.ndarray]], parts: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `combine` takes: the parts in each sum of all processes, and their slice of this one."""
        each = [nodes(*share(parts, rank, self.size)) for rank in range(self.size)]
        table = np.array([node for own in each for node in own], np.int64)
        places = list(itertools.accumulate(map(len, each), initial=0))
        slices = [engine.slice(rank)[:2] for rank in range(self.size)]
        length = slices[self.rank][1] - slices[self.rank][0]
        received = self._space(len(table) * length, sums[0][2].dtype)
        for turn in range(max(map(len, each))):
            mine = turn < len(sums)
            sent = sums[turn][2] if mine else np.empty(0, received.dtype)
            to = (
                [end - begin if mine else 0 for begin, end in slices],
                [begin if mine else 0 for begin, _ in slices],
            )
            come = (
                [length if turn < len(own) else 0 for own in each],
                [length * (place + turn) if turn < len(own) else 0 for place, own in zip(places, each)],
            )
            self._wait(self._comm.Ialltoallv([sent, to], [received, come]))
        return table, received

    def _share_weights(self, weights: np.ndarray, slices: list[tuple[int, int, int, int]]) -> None:
        from mpi4py import MPI

        places = [end - begin for begin, end, *_ in slices], [begin for begin, *_ in slices]
        self._wait(self._comm.Iallgatherv(MPI.IN_PLACE, [weights, places]))

    def _gather(self, own: np.ndarray, everyone: np.ndarray, counts: list[int]) -> None:
        """The rows of all processes, in their order; `counts` of each."""
        width = everyone.shape[1] if everyone.ndim == 2 else 1
        sizes = [width * count for count in counts]
        places = sizes, list(itertools.accumulate(sizes[:-1], initial=0))
        self._wait(self._comm.Iallgatherv(own, [everyone, places]))

    def _space(self, n: int, dtype: np.dtype[Any]) -> np.ndarray:
        """Memory for n numbers, which the next call takes again."""
        if len(self._buffer) < n or self._buffer.dtype != dtype:
            self._buffer = np.empty(n, dtype)
        return self._buffer[:n]

    # ---- between steps

    def gather_moments(self, engine: _core.Trainer) -> None:
        """Bring all moments to the first process, until the next step."""
        if self._moments is not None:
            return
        slices = [engine.slice(rank)[:2] for rank in range(self.size)]
        places = [end - begin for begin, end in slices], [begin for begin, _ in slices]
        with self.held():
            own = engine.slice_moments()
            both = []
            for moment in own:
                whole = np.empty(slices[-1][1] if self.rank == 0 else 0, moment.dtype)
                self._wait(self._comm.Igatherv(moment, [whole, places] if self.rank == 0 else None))
                both.append(whole)
            self._moments = both[0], both[1]

    def moments(self, engine: _core.Trainer, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Both moments of a parameter as one row each, in the first process and after `gather_moments`."""
        assert self._moments is not None
        begin, end = engine.place(name)
        first, second = self._moments
        return first[begin:end], second[begin:end]

    def spread(self, n: int, work: Callable[[range], list[Result]]) -> list[Result]:
        """What `work` gives for 0..n, of which every process does a piece; in all processes."""
        first, count = share(n, self.rank, self.size)
        with self.held():
            own = self.together(lambda: work(range(first, first + count)))
            return [found for some in self._comm.allgather(own) for found in some]

    @staticmethod
    def _wait(request: Any) -> None:
        begun = time.monotonic()
        while not request.Test():
            time.sleep(0 if time.monotonic() - begun < _SPIN_SECONDS else _SLEEP_SECONDS)


class _Failure(NamedTuple):
    raised: BaseException


class Interrupts:
    """Ctrl-C in the main thread, which waits where the other processes would wait for this one."""

    def __init__(self) -> None:
        self._depth = 0
        self._let_in = self._noted = False
        self._before: Any = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is raised inside, unless it is `let_in`; what came is raised at the end."""
        if not self._begin():
            yield
            return
        try:
            yield
        finally:
            self._end()

    def _begin(self) -> bool:
        if threading.current_thread() is not threading.main_thread():
            return False  # where no Ctrl-C arrives
        self._depth += 1
        if self._depth == 1:
            self._before = signal.getsignal(signal.SIGINT)
            if callable(self._before):
                signal.signal(signal.SIGINT, self._note)
        return True

    def _end(self) -> None:
        self._depth -= 1
        if self._depth:
            return
        if callable(self._before):
            signal.signal(signal.SIGINT, self._before)
        self._pass_on()

    def _note(self, number: int, frame: Any) -> None:
        if not self._let_in:
            self._noted = True
            return
        self._let_in = False  # one is enough
        self._before(number, frame)
        self._let_in = True  # it was not one that ends the work

    def _pass_on(self) -> None:
        if self._noted:
            self._noted = False
            signal.raise_signal(signal.SIGINT)

    def await_one(self) -> None:
        """Take in the Ctrl-C that another process has had already, so that it does not come later."""
        end = time.monotonic() + _SIGNAL_SECONDS
        while self._depth and not self._noted and time.monotonic() < end:
            time.sleep(_SLEEP_SECONDS)
        self._noted = False

    @contextmanager
    def let_in(self) -> Iterator[None]:
        """Ctrl-C is raised inside, and one that came before at once."""
        self._let_in = True
        try:
            self._pass_on()
            yield
        finally:
            self._let_in = False


INTERRUPTS = Interrupts()


def share(n: int, rank: int, size: int) -> tuple[int, int]:
    """First and number of those of n things that are process `rank`'s."""
    first = n * rank // size
    return first, n * (rank + 1) // size - first


def nodes(first: int, count: int) -> list[tuple[int, int]]:
    """The sums (first part, number of parts) that csrc/train/parts.c leaves of so many parts."""
    found = []
    while count:
        n = 1
        while 2 * n <= count and first % (2 * n) == 0:
            n *= 2
        found.append((first, n))
        first, count = first + n, count - n
    return found


def processes_of(comm: Any) -> OneProcess:
    """The processes of a communicator; None: this one alone. TypeError for anything else."""
    if comm is None:
        return OneProcess()
    try:
        from mpi4py import MPI
    except ImportError:
        fits = False
    else:
        fits = isinstance(comm, MPI.Intracomm)
    if not fits:
        raise TypeError(f"comm must be an intracommunicator of mpi4py, got {type(comm).__name__}")
    return Processes(comm)


def _described(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
