"""Opens a file for reading safely: regular files only, the size taken once, no mmap."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import threading
import zlib
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from .. import _check
from ..errors import FormatError, file_error
from .limits import DEFAULT_LIMITS, Limits

CHUNK_BYTES = 16 * 2**20  # small enough that Ctrl-C is answered quickly

_watch = threading.local()


@contextlib.contextmanager
def watching() -> Iterator[dict[str, tuple[int, ...]]]:
    """Path -> identity of every file that this thread opens meanwhile, filled while it does."""
    opened: dict[str, tuple[int, ...]] = {}
    outer = getattr(_watch, "opened", None)
    _watch.opened = opened
    try:
        yield opened
    finally:
        _watch.opened = outer


def bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array, without a copy."""
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)


class RegularFile:
    """A file opened for reading at given offsets; a context manager.

    `size` is taken from the open descriptor. A file that shrinks later gives FormatError `truncated`, never a
    crash. Raises OSError as `open` does, IsADirectoryError for a folder, FormatError `not_a_file` for pipes
    and devices.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _check.path(path)
        flags = os.O_RDONLY
        for name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "O_BINARY"):
            flags |= getattr(os, name, 0)
        descriptor = os.open(self.path, flags)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.path)
            if not stat.S_ISREG(status.st_mode):
                text = "not a regular file (a pipe, socket or device); copy the data to a file first"
                raise file_error(FormatError, "not_a_file", self.path, text)
        except BaseException:
            os.close(descriptor)
            raise
        self.size = status.st_size
        #: changes when the file is written to or replaced
        self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        self._file = io.FileIO(descriptor, "r")
        opened = getattr(_watch, "opened", None)
        if opened is not None:
            opened.setdefault(
                self.path, self.identity
            )  # the first one: a second opening may see another file

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Exactly `n_bytes` bytes from `offset`. The caller has checked them against `size`."""
        data = bytearray(n_bytes)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, target: memoryview, crc: int = 0, *, with_crc: bool = False) -> int:
        """Fill `target` (bytes, writable) from `offset`; return the CRC-32 continued from `crc` if asked."""
        done = 0
        self._file.seek(offset)
        while done < len(target):
            piece = target[done : done + CHUNK_BYTES]
            n_read = self._file.readinto(piece)
            if not n_read:
                self._shrunk(offset + done)
            if with_crc:
                crc = zlib.crc32(piece[:n_read], crc)
            done += n_read
        size = os.fstat(self._file.fileno()).st_size  # pages cut off while they are read are zeros
        if size < self.size:
            self._shrunk(size)
        return crc

    def _shrunk(self, at: int) -> NoReturn:
        text = (
            f"ends at byte {at:,} but had {self.size:,} bytes when it was opened; is it still being written?"
        )
        raise file_error(FormatError, "truncated", self.path, text, offset=at)

    def is_unchanged(self) -> bool:
        """Whether the file is still as it was when it was opened, by size and time of the last writing."""
        status = os.fstat(self._file.fileno())
        return (status.st_size, status.st_mtime_ns) == self.identity[2:]

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()

    def __enter__(self) -> RegularFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class BytesFile(RegularFile):
    """Bytes in memory, read as a file is; `path` is what errors call them."""

    def __init__(self, data: bytes, path: str) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"{path} must be bytes, got {type(data).__name__}")
        self.path, self._data = path, memoryview(data).cast("B")
        self.size = len(self._data)

    def read_into(self, offset: int, target: memoryview, crc: int = 0, *, with_crc: bool = False) -> int:
        """As of a file."""
        target[:] = self._data[offset : offset + len(target)]
        return zlib.crc32(target, crc) if with_crc else crc

    def is_unchanged(self) -> bool:
        """As of a file: checksums are checked before the data are read, and nobody else writes these."""
        return True

    def close(self) -> None:
        """Nothing is open."""


def read_small(
    path: str | os.PathLike[str],
    limit_name: str,
    *,
    limits: Limits = DEFAULT_LIMITS,
    code: str = "file_limit",
) -> bytes:
    """A whole file of at most `getattr(limits, limit_name)` bytes; LimitError above."""
    _check.instance(limits, Limits, "limits")
    with RegularFile(path) as file:
        limits.check(limit_name, file.size, file.path, f"a file of {file.size:,} bytes", code=code)
        return file.read(0, file.size)
