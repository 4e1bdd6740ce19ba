"""Reads float arrays from .npz files as numpy.savez writes them: stored entries, each a .npy of version 1.

Nothing is evaluated: an entry's header must have exactly the form that NumPy writes. Compressed archives and
arrays of Python objects are refused.
"""

from __future__ import annotations

import math
import os
import re

import numpy as np

from ..errors import FormatError, file_error, quoted
from .limits import DEFAULT_LIMITS, Limits
from .regular_file import CHUNK_BYTES, RegularFile, bytes_of
from .tensor_source import FLOAT_TYPES, ByteRange, FileSource, TensorInfo, check_crc, has_too_many_bytes
from .zip_directory import read_zip_directory

_MAX_HEADER_BYTES = 1024
_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[<|>=][a-z]\d{1,3})', 'fortran_order': (?P<order>True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,19}, ?)*\d{0,19})\), \} *\n"
)
_DTYPES = {"<f8": "F64", "<f4": "F32", "<f2": "F16", "<i8": "I64", "<i4": "I32", "|b1": "BOOL", "|u1": "U8"}


class NpzFile(FileSource):
    """One .npz file, open for reading; `tensors` lists its arrays, names without ".npy".

    Raises FormatError with the codes of zip_directory and magic, array_header, dtype, size_mismatch, crc;
    LimitError tensor_limit, rank_limit.
    """

    def __init__(self, path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._file = RegularFile(path)
        self._stored: dict[str, ByteRange] = {}
        self._begins: dict[str, int] = {}
        self._fortran: set[str] = set()
        #: entries that were compared with their checksums
        self.verified: set[str] = set()
        try:
            tensors = self._read_directory(limits)
        except BaseException:
            self._file.close()
            raise
        super().__init__(path, tensors)

    def _read_directory(self, limits: Limits) -> dict[str, TensorInfo]:
        path = self._file.path
        if self._file.size >= 4 and self._file.read(0, 4) != b"PK\x03\x04":
            raise file_error(FormatError, "magic", path, "not an .npz file (no zip archive)", offset=0)
        entries = read_zip_directory(self._file, limits)
        limits.check("max_tensors", len(entries), path, f"{len(entries):,} arrays", code="tensor_limit")
        tensors = {}
        for entry, place in entries.items():
            name = entry.removesuffix(".npy")
            if name == entry or "/" in name:
                text = f"entry {quoted(entry)} is not an array written by numpy.savez"
                raise file_error(FormatError, "array_header", path, text, field=entry)
            tensors[name] = self._read_header(name, place, limits)
        return tensors

    def _read_header(self, name: str, place: ByteRange, limits: Limits) -> TensorInfo:
        path = self._file.path
        begin = self._file.read(place.offset, min(place.n_bytes, 10 + _MAX_HEADER_BYTES))
        n_header = int.from_bytes(begin[8:10], "little")
        match = _HEADER.fullmatch(begin[10 : 10 + n_header])
        if begin[:8] != b"\x93NUMPY\x01\x00" or match is None:
            text = f"array {quoted(name)} does not have the header that numpy.savez writes"
            raise file_error(FormatError, "array_header", path, text, field=name)
        descr = match["dtype"].decode()
        if descr not in _DTYPES:
            text = f"array {quoted(name)} has dtype {quoted(descr)}, supported: {' '.join(_DTYPES)}"
            raise file_error(FormatError, "dtype", path, text, field=name)
        shape = tuple(int(side) for side in match["shape"].split(b",") if side.strip())
        what = f"array {quoted(name)} with {len(shape):,} dimensions"
        limits.check("max_rank", len(shape), path, what, code="rank_limit", field=name)
        if 0 in shape and has_too_many_bytes(shape):
            text = f"array {quoted(name)}: no array can have shape {list(shape)!s:.80}"
            raise file_error(FormatError, "size_overflow", path, text, field=name)
        n_bytes = math.prod(shape) * int(descr[2:])
        if place.n_bytes != 10 + n_header + n_bytes:
            text = (
                f"array {quoted(name)} has {place.n_bytes - 10 - n_header:,} bytes, shape "
                f"{list(shape)!s:.60} x {descr} needs {n_bytes:,}"
            )
            raise file_error(FormatError, "size_mismatch", path, text, field=name)
        if match["order"] == b"True" and len(shape) > 1:
            self._fortran.add(name)
        self._stored[name] = place
        self._begins[name] = place.offset + 10 + n_header
        return TensorInfo(shape, _DTYPES[descr])

    def _locate(self, name: str) -> ByteRange | None:
        begin = self._locate_rows(name)
        place = self._stored[name]
        return None if begin is None else ByteRange(begin, place.offset + place.n_bytes - begin)

    def _locate_rows(self, name: str) -> int | None:
        self._verify(name)
        return None if name in self._fortran else self._begins[name]

    def _gather(self, name: str) -> np.ndarray:
        """An array in Fortran's order, whole."""
        self._verify(name)
        info = self.tensors[name]
        raw: np.ndarray = np.empty(info.shape[::-1], FLOAT_TYPES[info.dtype])
        self._file.read_into(self._begins[name], bytes_of(raw))
        transposed: np.ndarray = raw.T
        return transposed

    def _verify(self, name: str) -> None:
        """Compare an entry with its checksum, once, keeping nothing."""
        if name in self.verified:
            return
        place = self._stored[name]
        buffer = memoryview(bytearray(min(CHUNK_BYTES, place.n_bytes)))
        crc = 0
        for done in range(0, place.n_bytes, CHUNK_BYTES):
            part = buffer[: place.n_bytes - done]
            crc = self._file.read_into(place.offset + done, part, crc, with_crc=True)
        check_crc(self.path, name, place.crc, crc)
        self.verified.add(name)
