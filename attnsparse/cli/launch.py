"""Processes that mpirun or srun started together: which one this is, and their communicator."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..recipes.together import FollowerError
from .text import say

PARTS = 8  # of a step, if mpirun starts a recipe; the number of processes must not decide the bits


class Launch(NamedTuple):
    """One of `size` processes."""

    rank: int
    size: int


_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI, srun --mpi=pmi2
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),  # MVAPICH
    ("PMIX_RANK", "SLURM_NTASKS"),  # srun --mpi=pmix
)


def launched() -> Launch | None:
    """How this process was started; None: alone."""
    for names in _VARIABLES:
        numbers = [os.environ.get(name, "") for name in names]
        if all(number.isdecimal() for number in numbers):
            return Launch(*map(int, numbers))
    return None


def communicator() -> Any:
    """The communicator of all processes; None for one that was started alone.

    RuntimeError if there is no mpi4py, or one of another MPI.
    """
    launch = launched()
    if launch is None:
        return None
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise RuntimeError(
            f"{launch.size} processes that were started together need mpi4py to share the training: "
            f"pip install 'attnsparse[mpi]' ({error})"
        ) from error
    if MPI.COMM_WORLD.size != launch.size:
        raise RuntimeError(
            f"{launch.size} processes were started together, but mpi4py sees {MPI.COMM_WORLD.size}: it "
            "belongs to another MPI than the command that started them"
        )
    return MPI.COMM_WORLD


@contextlib.contextmanager
def first_speaks() -> Iterator[None]:
    """All processes but the first are silent and just end, as it does, when something fails.

    What fails in one of them alone is told, and ends all.
    """
    launch = launched()
    if launch is None or launch.rank == 0:
        yield
        return
    failed: Exception | None = None
    try:
        with silent():
            yield
    except FollowerError as error:
        failed = error
    except (Exception, KeyboardInterrupt):
        raise SystemExit(1) from None
    if failed is not None:
        say(f"attnsparse: process {launch.rank} of 0..{launch.size - 1}: {failed}", error=True)
        sys.stderr.flush()
        communicator().Abort(1)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing is printed."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def ignore_more_interrupts() -> None:
    """After the first Ctrl-C: mpirun passes it on, and so may the terminal."""
    if launched() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
