"""What this machine allows: rate of matrix products and of reading memory, measured in the same run.

Matrix products go through the very OpenBLAS that attnsparse calls, one single-threaded call in each Python
thread (ctypes and NumPy's reductions let go of the interpreter lock), in square blocks large enough to hide
every overhead. Nothing that computes in float32 with this library can be faster.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIDE = 2048
READ_BYTES = 512 * 2**20
ROUNDS = 4
_ROW_MAJOR, _NO_TRANSPOSE = 101, 111


@dataclass(frozen=True)
class Limits:
    """Best rates of `threads` threads together."""

    threads: int
    flops: float  #: floating-point operations a second, float32 matrix product
    read: float  #: bytes a second, read from memory

    def seconds(self, flops: float, n_bytes: float) -> float:
        """The least time in which so many operations and so many bytes can be done."""
        return max(flops / self.flops, n_bytes / self.read)

    def best(self, other: Limits) -> Limits:
        """The higher of both rates, each by itself."""
        return Limits(self.threads, max(self.flops, other.flops), max(self.read, other.read))


class Blas:
    """The OpenBLAS inside the attnsparse package, or NumPy's if this build has none of its own."""

    def __init__(self) -> None:
        import attnsparse

        folder = Path(attnsparse.__file__).parent / "_libs"
        found = sorted(folder.glob("libscipy_openblas*"))
        self.name = found[0].name if found else "NumPy's (attnsparse was built with another BLAS)"
        self._library = ctypes.CDLL(str(found[0])) if found else None
        if self._library is not None:
            self._declare(self._library)

    @staticmethod
    def _declare(library: ctypes.CDLL) -> None:
        number, real, address = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
        library.scipy_cblas_sgemm.restype = None
        library.scipy_cblas_sgemm.argtypes = [
            *[number] * 6, real, address, number, address, number, real, address, number,
        ]  # fmt: skip
        library.scipy_cblas_sdot.restype = real
        library.scipy_cblas_sdot.argtypes = [number, address, number, address, number]
        library.scipy_openblas_set_num_threads.argtypes = [number]
        library.scipy_openblas_set_num_threads.restype = None

    def multiply(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        """out = a b, all float32 [SIDE, SIDE], on the calling thread."""
        if self._library is None:
            np.matmul(a, b, out=out)
            return
        self._library.scipy_openblas_set_num_threads(1)
        self._library.scipy_cblas_sgemm(
            _ROW_MAJOR, _NO_TRANSPOSE, _NO_TRANSPOSE, SIDE, SIDE, SIDE, 1.0, a.ctypes.data, SIDE,
            b.ctypes.data, SIDE, 0.0, out.ctypes.data, SIDE,
        )  # fmt: skip

    def read(self, values: np.ndarray) -> None:
        """Read all of `values`, float32, once: the product of its first half with its second."""
        if self._library is None:
            np.maximum.reduce(values)
            return
        half = values.size // 2
        self._library.scipy_cblas_sdot(half, values.ctypes.data, 1, values[half:].ctypes.data, 1)


def measure_limits(threads: int) -> Limits:
    """The rates of `threads` threads, each the best of a few rounds; takes about two seconds."""
    blas = Blas()
    return Limits(threads, _multiply_rate(blas, threads), _read_rate(blas, threads))


def _multiply_rate(blas: Blas, threads: int) -> float:
    matrices = [np.ones((3, SIDE, SIDE), np.float32) for _ in range(threads)]
    seconds = _best_seconds(lambda thread: blas.multiply(*matrices[thread]), threads)
    return threads * 2 * SIDE**3 / seconds


def _read_rate(blas: Blas, threads: int) -> float:
    values = np.ones(READ_BYTES // 4, np.float32)
    parts = np.array_split(values, threads)
    return max(
        READ_BYTES / _best_seconds(lambda thread: blas.read(parts[thread]), threads),
        READ_BYTES / _best_seconds(lambda thread: np.maximum.reduce(parts[thread]), threads),
    )


def _best_seconds(work: Callable[[int], object], threads: int) -> float:
    """Best time in which all of `threads` threads have done `work(thread)`, after one warm-up."""
    seconds = []
    for _ in range(ROUNDS + 1):
        started = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
        begin = time.perf_counter()
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])
