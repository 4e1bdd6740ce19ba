"""One number for each token of a training text: a copy of an array, or a map of a file, used in place."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 2**21  # values at once, so that Ctrl-C is handled in between


class Column:
    """`n` numbers of one type, read as `dtype`. An array is copied: later changes have no effect. A map
    (`np.memmap`, or an array over an `mmap`) stays where it is: what is taken of it is converted then."""

    def __init__(self, array: np.ndarray, dtype: npt.DTypeLike) -> None:
        self._map = array if is_mapped(array) else None
        self._dtype = np.dtype(dtype)
        self._array = array if self._map is not None else _copied(array, self._dtype)
        self._state = self.state()

    def __len__(self) -> int:
        return len(self._array)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The numbers at these places."""
        return np.asarray(self._array[rows]).astype(self._dtype, copy=False)

    def blocks(self) -> Iterator[np.ndarray]:
        """All numbers in order, contiguous and little-endian as a digest takes them."""
        for block in blocks_of(self._array):
            yield np.ascontiguousarray(block, self._dtype.newbyteorder("<"))

    def state(self) -> Any:
        """What changes when the numbers may have changed since they were looked at; None for a copy.

        A map that is open for reading alone changes with its file; one that can be written to may each time.
        """
        if self._map is None:
            return None
        name = getattr(self._map, "filename", None)
        if name is None or self._map.flags.writeable:
            return object()
        try:
            status = os.stat(name)
        except OSError:
            return object()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def is_mapped(array: np.ndarray) -> bool:
    """Whether the memory of an array is that of a mapped file."""
    base: Any = array
    while base is not None:
        if isinstance(base, (np.memmap, mmap.mmap)):
            return True
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return False


def blocks_of(array: np.ndarray) -> Iterator[np.ndarray]:
    """Pieces of an array in order, as plain arrays."""
    for begin in range(0, len(array), BLOCK):
        yield np.asarray(array[begin : begin + BLOCK])


def _copied(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    copy = np.empty(len(array), dtype)
    for begin in range(0, len(array), BLOCK):
        copy[begin : begin + BLOCK] = array[begin : begin + BLOCK]
    return copy
