"""Reads and writes .safetensors files: 8 bytes of header length, a JSON header, then the tensors end to end.

Stricter than the reference: tensors must follow each other without gap, overlap or rest, and only types that
a NumPy array of this package can be filled from, or that buffers of other tools use, are let in.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from ..errors import FormatError, file_error, quoted
from .atomic import write_atomic
from .foreign import BEGIN_BYTES, INCOMPLETE, kind_of_bytes
from .limits import DEFAULT_LIMITS, Limits
from .regular_file import RegularFile, bytes_of
from .strict_json import parse_object, shown
from .tensor_source import ITEM_BYTES, ByteRange, FileSource, TensorInfo, has_too_many_bytes

_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_64_BIT = 2**64 - 1
_DTYPES = tuple(dtype for dtype in ITEM_BYTES if dtype not in ("C32", "C128"))


class SafetensorsFile(FileSource):
    """One .safetensors file, open for reading; `tensors` lists its tensors, `metadata` holds its text
    fields.

    Raises FormatError with the codes too_short, magic, truncated, json_*, duplicate_name, header_field,
    dtype, size_overflow, size_mismatch, bad_offsets, trailing_data; LimitError header_limit, tensor_limit,
    rank_limit, name_limit.
    """

    def __init__(
        self, path: str | os.PathLike[str] | RegularFile, *, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._file = path if isinstance(path, RegularFile) else RegularFile(path)
        try:
            tensors, self._places, self.metadata = _read_header(self._file, limits)
        except BaseException:
            self._file.close()
            raise
        super().__init__(self._file.path, tensors)
        self.shared = self.metadata

    def _locate(self, name: str) -> ByteRange:
        return self._places[name]

    @property
    def n_bytes(self) -> int:
        """Length of the file."""
        return self._file.size

    def header(self) -> bytes:
        """The bytes before the tensors."""
        n_header = self._file.size - sum(self.stored_bytes().values())
        return self._file.read(0, n_header)

    def stored_bytes(self) -> dict[str, int]:
        """Name -> bytes of the tensor."""
        return {name: place.n_bytes for name, place in self._places.items()}

    def read_stored(self, name: str, begin: int, target: memoryview) -> None:
        """Fill `target` with the bytes of a tensor of any type, from its byte `begin` on."""
        self._file.read_into(self._places[name].offset + begin, target)

    def is_unchanged(self) -> bool:
        """Whether the file is still as it was when it was opened."""
        return self._file.is_unchanged()


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays as float32, so that the file is there whole or not at all."""
    write_atomic(path, safetensors_pieces(tensors, metadata))


def safetensors_pieces(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """The bytes of a file with arrays as float32, one array at a time."""
    yield safetensors_header({name: TensorInfo(a.shape, "F32") for name, a in tensors.items()}, metadata)
    for array in tensors.values():
        if array.size:
            yield bytes_of(np.ascontiguousarray(array, "<f4"))


def safetensors_header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes before the tensors, which must follow in this order without a gap."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, (shape, dtype) in tensors.items():
        end = position + ITEM_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _read_header(
    file: RegularFile, limits: Limits
) -> tuple[dict[str, TensorInfo], dict[str, ByteRange], dict[str, str]]:
    path = file.path
    if file.size < 8:
        text = f"{file.size} bytes, a safetensors file has at least 8; {INCOMPLETE}"
        raise file_error(FormatError, "too_short", path, text, offset=0)
    begin = file.read(0, min(file.size, BEGIN_BYTES))
    n_header = int.from_bytes(begin[:8], "little")
    if n_header > file.size - 8:
        what = kind_of_bytes(begin) if begin[8:9] != b"{" else None
        if what:
            raise file_error(FormatError, "magic", path, f"this is {what}", offset=0)
        text = f"header says {n_header:,} bytes but only {file.size - 8:,} follow; {INCOMPLETE}"
        raise file_error(FormatError, "truncated", path, text, offset=0)
    limits.check("max_header_bytes", n_header, path, f"header of {n_header:,} bytes", code="header_limit")
    raw = file.read(8, n_header)
    if not raw.startswith(b"{"):
        raise file_error(
            FormatError, "json_syntax", path, "the header does not begin with '{' (byte 8)", offset=8
        )
    header = parse_object(raw, path, limits=limits, start=8)
    metadata = _metadata(header.pop("__metadata__", {}), path)
    limits.check("max_tensors", len(header), path, f"{len(header):,} tensors", code="tensor_limit")
    tensors, spans = {}, {}
    for name, entry in header.items():
        tensors[name], spans[name] = _entry(name, entry, path, limits)
    _check_order(spans, file.size - 8 - n_header, path)
    start = 8 + n_header
    places = {name: ByteRange(start + first, last - first) for name, (first, last) in spans.items()}
    return tensors, places, metadata


def _metadata(value: object, path: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        text = "'__metadata__' in the header must be an object whose values are strings"
        raise file_error(FormatError, "header_field", path, text, field="__metadata__")
    return value


def _entry(name: str, entry: object, path: str, limits: Limits) -> tuple[TensorInfo, tuple[int, int]]:
    """Check one entry of the header by itself: kinds, dtype, and that shape x dtype are its bytes."""
    n_name = len(name) if name.isascii() else len(name.encode())
    if n_name > limits.max_name_bytes:
        limits.check("max_name_bytes", n_name, path, f"a tensor name of {n_name:,} bytes", code="name_limit")
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        _raise_field_error(name, path, "must be an object with exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        _raise_field_error(name, path, f"has dtype {shown(dtype)}, expected a string")
    if dtype not in _DTYPES:
        text = f"tensor {quoted(name)} has dtype {quoted(dtype)}, supported: {' '.join(_DTYPES)}"
        raise file_error(FormatError, "dtype", path, text, field=name)
    if not _are_integers(shape):
        _raise_field_error(name, path, "has a shape that is not a list of integers >= 0")
    if len(shape) > limits.max_rank:
        what = f"tensor {quoted(name)} with {len(shape):,} dimensions"
        limits.check("max_rank", len(shape), path, what, code="rank_limit", field=name)
    if not _are_integers(offsets) or len(offsets) != 2:
        _raise_field_error(name, path, "has data_offsets that are not two integers >= 0")
    n_bytes = ITEM_BYTES[dtype]
    for side in shape:
        n_bytes *= side
        if n_bytes > _MAX_64_BIT:
            text = f"tensor {quoted(name)}: shape {_short(shape)} x {dtype} does not fit in 64 bits"
            raise file_error(FormatError, "size_overflow", path, text, field=name)
    if n_bytes == 0 and has_too_many_bytes(shape):
        text = f"tensor {quoted(name)}: no array can have shape {_short(shape)}, even without elements"
        raise file_error(FormatError, "size_overflow", path, text, field=name)
    first, last = offsets
    if last < first:
        text = f"tensor {quoted(name)} ends at {shown(last)} before it starts at {shown(first)}"
        raise file_error(FormatError, "bad_offsets", path, text, field=name)
    if last - first != n_bytes:
        text = (
            f"tensor {quoted(name)} has {shown(last - first)} bytes, shape {_short(shape)} x {dtype} "
            f"needs {n_bytes:,}"
        )
        raise file_error(FormatError, "size_mismatch", path, text, field=name)
    return TensorInfo(tuple(shape), dtype), (first, last)


def _are_integers(values: object) -> bool:
    if type(values) is not list:
        return False
    for value in values:  # noqa: SIM110 - a loop is twice as fast as all() here, and headers are long
        if type(value) is not int or value < 0:
            return False
    return True


def _raise_field_error(name: str, path: str, what: str) -> NoReturn:
    raise file_error(FormatError, "header_field", path, f"tensor {quoted(name)} {what}", field=name)


def _short(shape: list[int]) -> str:
    return "[" + ", ".join(shown(side) for side in shape) + "]"


def _check_order(spans: dict[str, tuple[int, int]], n_data: int, path: str) -> None:
    """Tensors must fill the data section exactly, one after the other, in any order of names."""
    expected = 0
    for name, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
        if first != expected:
            kind = "gap" if first > expected else "overlap"
            text = (
                f"tensor {quoted(name)} starts at {shown(first)}, expected {expected} "
                f"({kind} of {shown(abs(first - expected))} bytes)"
            )
            raise file_error(FormatError, "bad_offsets", path, text, field=name)
        if last > n_data:
            text = f"tensor {quoted(name)} ends at {shown(last)} but {n_data:,} bytes follow; {INCOMPLETE}"
            raise file_error(FormatError, "bad_offsets", path, text, field=name)
        expected = last
    if expected != n_data:
        text = (
            f"{n_data - expected:,} bytes after the last tensor; refused (a file may hold only its tensors)"
        )
        raise file_error(FormatError, "trailing_data", path, text)
