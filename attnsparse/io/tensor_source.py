"""The common view of all weight files: names, shapes, types, and reading one tensor at a time.

A source never holds more than one tensor, or one block of it, in memory. `read_into` fills an array in place:
straight from the file where type and layout agree, else in blocks that are converted and assigned.
"""

from __future__ import annotations

import abc
import math
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from ..errors import FormatError, file_error, quoted
from .regular_file import RegularFile, bytes_of

Source = TypeVar("Source", bound="TensorSource")

BLOCK_BYTES = 8 * 2**20

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "C32": 4, "C64": 8, "C128": 16, "F8_E4M3": 1, "F8_E5M2": 1,
    "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F8_E8M0": 1,
}  # fmt: skip
FLOAT_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class TensorInfo(NamedTuple):
    """Shape and element type (F32, F16, BF16, F64, I64, ...) of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str


class ByteRange(NamedTuple):
    """The place of a row-major tensor in a file; `crc` is the CRC-32 of its bytes, if the file stores it."""

    offset: int
    n_bytes: int
    crc: int | None = None


class TensorSource(abc.ABC):
    """Tensors in one or several files; a context manager. All but the data is checked on opening."""

    def __init__(self, path: str | os.PathLike[str], tensors: Mapping[str, TensorInfo]) -> None:
        self.path = os.fspath(path)
        #: name -> TensorInfo, in the order of the file
        self.tensors: Mapping[str, TensorInfo] = types.MappingProxyType(dict(tensors))
        #: configuration found inside the file itself (nanoGPT keeps one), else None
        self.config: Mapping[str, object] | None = None
        #: names in the file that hold other tensors than the weights (optimizer state, ...); never read
        self.left_out: tuple[str, ...] = ()
        #: names without a tensor -> the tensor with their values, among text that means something else
        self.shared: Mapping[str, str] = {}

    @abc.abstractmethod
    def read_into(self, name: str, out: np.ndarray) -> None:
        """Fill `out` from the leading part of tensor `name`.

        `out` is float32 or float64, of any strides, of the tensor's rank, and no side is longer. Raises
        FormatError if the tensor is not of a float type (code dtype) or the file is damaged (crc, truncated).
        """

    @abc.abstractmethod
    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, rows) of a tensor of rank >= 1, in order, some MiB at a time."""

    def read(self, name: str, dtype: str = "float32") -> np.ndarray:
        """A new array with the whole tensor."""
        out = np.empty(self.tensors[name].shape, dtype)
        self.read_into(name, out)
        return out

    def same_values(self, first: str, second: str) -> bool:
        """True if two tensors of rank >= 1 have the same shape and the same values."""
        if self.tensors[first].shape != self.tensors[second].shape:
            return False
        if self.tensors[first].dtype != self.tensors[second].dtype:
            return bool(np.array_equal(self.read(first), self.read(second)))
        pairs = zip(self.blocks(first), self.blocks(second))
        return all(np.array_equal(one, other) for (_, one), (_, other) in pairs)

    @abc.abstractmethod
    def close(self) -> None:
        """Close the files."""

    def __enter__(self: Source) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FileSource(TensorSource):
    """A TensorSource over one open file; subclasses locate tensors, this class reads them."""

    _file: RegularFile

    @abc.abstractmethod
    def _locate(self, name: str) -> ByteRange | None:
        """The bytes of a tensor that lies in row-major order; None if it does not: then use `_gather`."""

    def _gather(self, name: str) -> np.ndarray:
        """A tensor that does not lie in row-major order, as stored elements."""
        raise NotImplementedError

    def read_into(self, name: str, out: np.ndarray) -> None:
        info = self.tensors[name]
        self._check_float(name, info)
        if math.prod(info.shape) == 0:
            return
        place = self._locate(name)
        if place is None:
            _assign(np.atleast_1d(out), 0, np.atleast_1d(widen(self._gather(name), info.dtype)))
        elif _can_fill(out, info, place):
            if out.size:
                crc = self._file.read_into(place.offset, bytes_of(out), with_crc=place.crc is not None)
                check_crc(self.path, name, place.crc, crc)
        else:
            out = out.reshape(1) if out.ndim == 0 else out  # a 0-dimensional array reshapes to a view
            for begin, block in self._read_blocks(name, info, place):
                _assign(out, begin, block)

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        info = self.tensors[name]
        self._check_float(name, info)
        if math.prod(info.shape) == 0:
            return iter(())
        place = self._locate(name)
        if place is None:
            return iter([(0, widen(self._gather(name), info.dtype))])
        return self._read_blocks(name, info, place)

    def read_rows(self, name: str, rows: np.ndarray, out: np.ndarray) -> None:
        """Fill out[i] with row rows[i] of tensor `name`, seen as rows of out.shape[1] elements each.

        `out` is float32 or float64 [n, columns] of any strides, `rows` int64 [n] in any order. Only these
        rows are read, neighbours together, some MiB at a time, after the whole tensor was compared once with
        its checksum if the format has one. Raises IndexError for a row that the tensor does not have,
        FormatError as `read_into` does.
        """
        info, columns = self.tensors[name], out.shape[1]
        self._check_float(name, info)
        n_rows = math.prod(info.shape) // columns if columns else 0
        if len(rows) and not (rows.min() >= 0 and rows.max() < n_rows):
            raise IndexError(
                f"rows {int(rows.min())}..{int(rows.max())} are out of range: tensor {quoted(name)} has "
                f"{n_rows:,} rows"
            )
        offset = self._locate_rows(name)
        if offset is None:
            out[...] = widen(self._gather(name), info.dtype).reshape(n_rows, columns)[rows]
            return
        order = np.argsort(rows, kind="stable")
        step = max(1, BLOCK_BYTES // max(1, columns * ITEM_BYTES[info.dtype]))
        buffer = np.empty((min(step, len(rows)), columns), FLOAT_TYPES[info.dtype])
        for begin in range(0, len(rows), step):
            part = order[begin : begin + step]
            block = buffer[: len(part)]
            self._read_runs(offset, rows[part], block)
            with np.errstate(over="ignore"):  # a float64 beyond float32: the finiteness check reports it
                out[part] = widen(block, info.dtype)

    def _read_runs(self, offset: int, rows: np.ndarray, block: np.ndarray) -> None:
        """Fill `block` with the given rows, which do not fall; each run of neighbours is one reading."""
        row_bytes = block.shape[1] * block.itemsize
        target = bytes_of(block)
        ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        begin = 0
        for end in ends:
            piece = target[begin * row_bytes : end * row_bytes]
            self._file.read_into(offset + int(rows[begin]) * row_bytes, piece)
            begin = end

    def _locate_rows(self, name: str) -> int | None:
        """The start of a tensor whose parts may be read; None if it is not in row-major order."""
        place = self._locate(name)
        return None if place is None else place.offset

    @property
    def identity(self) -> tuple[int, ...]:
        """Changes when the file is written to or replaced."""
        return self._file.identity

    def _read_blocks(self, name: str, info: TensorInfo, place: ByteRange) -> Iterator[tuple[int, np.ndarray]]:
        shape = info.shape or (1,)
        row_bytes = place.n_bytes // shape[0]
        step = max(1, BLOCK_BYTES // row_bytes)
        buffer = np.empty((min(step, shape[0]), *shape[1:]), FLOAT_TYPES[info.dtype])
        crc = 0
        for begin in range(0, shape[0], step):
            part = buffer[: min(step, shape[0] - begin)]
            target = bytes_of(part)
            at = place.offset + begin * row_bytes
            crc = self._file.read_into(at, target, crc, with_crc=place.crc is not None)
            yield begin, widen(part, info.dtype)
        check_crc(self.path, name, place.crc, crc)

    def _check_float(self, name: str, info: TensorInfo) -> None:
        if info.dtype not in FLOAT_TYPES:
            text = f"tensor {quoted(name)} has dtype {info.dtype}, weights must be {' '.join(FLOAT_TYPES)}"
            raise file_error(FormatError, "dtype", self.path, text + _way_out(info.dtype), field=name)

    def close(self) -> None:
        self._file.close()


def _way_out(dtype: str) -> str:
    """What to do about an element type that no weight has."""
    if dtype.startswith("F8"):
        return "; 8-bit floats need their scales: save model.dequantize() or model.to(torch.float16) again"
    return "; save its real part" if dtype.startswith("C") else "; save x.float()"


def _can_fill(out: np.ndarray, info: TensorInfo, place: ByteRange) -> bool:
    """True if the bytes in the file are the bytes of `out`: whole rows, same type, all that a CRC covers."""
    same_rows = out.shape[1:] == info.shape[1:] and (place.crc is None or out.shape == info.shape)
    same_type = sys.byteorder == "little" and out.dtype == FLOAT_TYPES[info.dtype]
    return same_rows and same_type and out.flags.c_contiguous


def _assign(out: np.ndarray, begin: int, block: np.ndarray) -> None:
    """out[begin : begin + len(block)] = block, both cut to the smaller side along every axis."""
    rows = out[begin : begin + len(block)]
    # A float64 beyond float32 becomes infinite, which the finiteness check reports.
    with np.errstate(over="ignore"):
        rows[...] = block[tuple(slice(side) for side in rows.shape)]


def has_too_many_bytes(shape: Sequence[int]) -> bool:
    """True if no array can have this shape: with eight bytes each, its elements fill more than 2^63 bytes.

    NumPy counts sides of 0 as 1 here, so an array without elements can be too large as well.
    """
    n_bytes = 8
    for side in shape:
        n_bytes *= side or 1
        if n_bytes >= 2**63:
            return True
    return False


def widen(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Stored elements as NumPy floats: BF16 (held as uint16) becomes float32, others stay."""
    if dtype != "BF16":
        return raw
    wide = raw.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def check_crc(path: str, name: str, expected: int | None, found: int) -> None:
    """Raise FormatError `crc` if the checksum of an entry or tensor is not the one that was stored."""
    if expected is not None and found != expected:
        text = f"{quoted(name)} is damaged (CRC {found:08x}, expected {expected:08x})"
        raise file_error(FormatError, "crc", path, text, field=name)
