"""Training checkpoints: one file with everything that a run needs to continue, every byte of it checked.

Layout (all numbers little-endian):

    0    8 bytes   magic "ASPTRAIN"
    8    uint32    version (1)
    12   uint32    0
    16   uint64    length of the whole file
    24   uint64    length of the header
    32   32 bytes  SHA-256 of the bytes 0..31 and of the header
    64             header, canonical JSON in UTF-8, then zeros up to a multiple of 64
    ...            the tensors in the header's order, each followed by zeros up to a multiple of 64

The header is {"meta": {...}, "tensors": [{"name", "dtype", "shape", "sha256"}, ...]}. Where a tensor lies
follows from the order and the sizes, so no offset in the file has to be believed. Every byte is covered: by
the first checksum, by a tensor's, or by the rule that padding is zero.

Reading checks the header against the size of the file, then all checksums, a block at a time, and only then
reads the tensors into memory; nothing of the file is executed. Saving writes a temporary file in the same
folder, flushes it to the disk and renames it, so a reader finds the old file or the new one and never a part
of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ..errors import CheckpointError, FormatError, file_error, quoted
from .atomic import write_atomic
from .checksums import PIECE_BYTES, sha256
from .limits import DEFAULT_LIMITS, Limits
from .regular_file import RegularFile, bytes_of
from .strict_json import parse_object
from .tensor_source import has_too_many_bytes

MAGIC = b"ASPTRAIN"
VERSION = 1
ALIGNMENT = 64
PREAMBLE_BYTES = 64

_FIELDS = struct.Struct("<8sIIQQ")
_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "int64": np.dtype("<i8"),
}


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds: `meta` (JSON values) and `tensors` (name -> read-only array, any shape)."""

    meta: dict[str, Any]
    tensors: dict[str, np.ndarray]


class Entry(NamedTuple):
    """What the header says of one tensor."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    sha256: str
    n_bytes: int


Check = Callable[[dict[str, Any], dict[str, Entry]], None]
"""Called with meta and the tensors' entries before any tensor is read; may raise CheckpointError."""


def save(path: str | os.PathLike[str], meta: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write a checkpoint; `path` always holds a whole one, the old or the new.

    meta: JSON values; numbers must be finite.  tensors: float32, float64 or int64 arrays of any shape. The
    same arguments give the same bytes. Raises OSError with errno and file name when the disk refuses, with
    the previous file untouched; ValueError for names or values that the format does not take.
    """
    arrays = {name: _as_stored(name, array) for name, array in tensors.items()}
    entries = [
        {
            "dtype": array.dtype.name,
            "name": name,
            "sha256": sha256(bytes_of(array)),
            "shape": list(array.shape),
        }
        for name, array in arrays.items()
    ]
    content = {"meta": dict(meta), "tensors": entries}
    header = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    if len(header) > DEFAULT_LIMITS.max_header_bytes:
        raise ValueError(f"header of {len(header):,} bytes, at most {DEFAULT_LIMITS.max_header_bytes:,} fit")
    begin = _round_up(PREAMBLE_BYTES + len(header))
    total = begin + sum(_round_up(array.nbytes) for array in arrays.values())
    fields = _FIELDS.pack(MAGIC, VERSION, 0, total, len(header))
    pieces: list[Any] = [fields, hashlib.sha256(fields + header).digest(), header]
    pieces.append(bytes(begin - PREAMBLE_BYTES - len(header)))
    for array in arrays.values():
        pieces += [bytes_of(array), bytes(_round_up(array.nbytes) - array.nbytes)]
    write_atomic(path, pieces)


def load(
    path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS, check: Check | None = None
) -> Contents:
    """Read and check a checkpoint; `check` may refuse it before any tensor is read.

    Raises CheckpointError when any byte is not as it was written, LimitError (`header_limit`, `json_limit`)
    above one of `limits`, OSError when the file cannot be read. If the file is damaged and another one of its
    folder is intact, the message names it.
    Codes: too_short, magic, version, truncated, trailing_data, checksum, json_syntax, json_depth, json_type,
    duplicate_name, header_value, dtype, size_overflow, size_mismatch, padding, not_a_file.
    """
    path = Path(path)
    try:
        with _opened(path) as file:
            meta, entries, begin = _read_header(file, path, limits)
            refusal = _refusal(check, meta, entries)
            if refusal is None:
                return Contents(meta, _read_tensors(file, entries, begin, path))
    except CheckpointError as error:
        sibling = None if error.code in ("version", "not_a_file") else intact_sibling(path, limits=limits)
        if sibling is None:
            raise
        text = f"{error}; {sibling.name} in the same folder is intact".partition(": ")[2]
        raise file_error(
            CheckpointError, error.code, path, text, offset=error.offset, field=error.field
        ) from error
    raise refusal


def parse(
    data: Any, path: str | os.PathLike[str] | None = None, *, limits: Limits = DEFAULT_LIMITS
) -> Contents:
    """Check the bytes of a checkpoint and give its contents."""
    file = _Bytes(data)
    meta, entries, begin = _read_header(file, path, limits)
    return Contents(meta, _read_tensors(file, entries, begin, path))


def intact_sibling(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> Path | None:
    """Another file of the same folder and suffix that is an intact checkpoint, the last by name; or None."""
    try:
        others = sorted(p for p in path.parent.iterdir() if p.suffix == path.suffix and p.name != path.name)
    except OSError:
        return None
    for other in reversed(others):
        with contextlib.suppress(FormatError, OSError, MemoryError):
            with _opened(other) as file:
                _, entries, begin = _read_header(file, other, limits)
                _check_tensors(file, entries, begin, other)
            return other
    return None


def _as_stored(name: str, array: np.ndarray) -> np.ndarray:
    """C-contiguous little-endian array for the file; ValueError for a name or dtype that it does not take."""
    array = np.asarray(array)
    if array.dtype.name not in _DTYPES:
        raise ValueError(f"tensor {name!r} has dtype {array.dtype}, a checkpoint holds {', '.join(_DTYPES)}")
    if not _good_name(name, DEFAULT_LIMITS) or array.ndim > DEFAULT_LIMITS.max_rank:
        raise ValueError(
            f"tensor {quoted(name)} of rank {array.ndim}: a name needs 1..{DEFAULT_LIMITS.max_name_bytes:,} "
            f"bytes, and the rank is at most {DEFAULT_LIMITS.max_rank}"
        )
    return np.asarray(array, _DTYPES[array.dtype.name], order="C")


def _good_name(name: Any, limits: Limits) -> bool:
    return isinstance(name, str) and 1 <= len(name.encode("utf-8", "replace")) <= limits.max_name_bytes


def _round_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class _Bytes:
    """Bytes in memory, read as a RegularFile is."""

    def __init__(self, data: Any) -> None:
        self._data = memoryview(data).cast("B")
        self.size = len(self._data)

    def read(self, offset: int, n_bytes: int) -> bytes:
        return bytes(self._data[offset : offset + n_bytes])

    def read_into(self, offset: int, target: memoryview) -> None:
        target[:] = self._data[offset : offset + len(target)]

    def is_unchanged(self) -> bool:
        return True


def _opened(path: Path) -> RegularFile:
    try:
        return RegularFile(path)
    except FormatError as error:
        raise _as_checkpoint_error(error) from error


def _refusal(check: Check | None, meta: dict[str, Any], entries: list[Entry]) -> CheckpointError | None:
    """What `check` raises: it is about this run and no damage, so no other file is looked for."""
    try:
        if check is not None:
            check(meta, {entry.name: entry for entry in entries})
    except CheckpointError as error:
        return error
    return None


def _read_header(
    file: RegularFile | _Bytes, path: Any, limits: Limits
) -> tuple[dict[str, Any], list[Entry], int]:
    """Meta, the tensors' entries, and where the first tensor begins."""
    preamble = file.read(0, min(PREAMBLE_BYTES, file.size))
    end = PREAMBLE_BYTES + _check_preamble(preamble, file.size, path, limits)
    header = file.read(PREAMBLE_BYTES, end - PREAMBLE_BYTES)
    if hashlib.sha256(preamble[:32] + header).digest() != preamble[32:]:
        _raise_file_error("checksum", path, "the header fails its checksum", 32, "header")
    meta, entries = _parse_header(header, path, limits)
    begin = _round_up(end)
    _check_padding(file, end, begin, path)
    needed = begin + sum(_round_up(entry.n_bytes) for entry in entries)
    if needed != file.size:
        text = f"the header describes {needed:,} bytes, the file has {file.size:,}"
        _raise_file_error("size_mismatch", path, text, 16, "tensors")
    return meta, entries, begin


def _check_tensors(file: RegularFile | _Bytes, entries: list[Entry], begin: int, path: Any) -> None:
    """Every tensor's checksum and padding, in little memory."""
    buffer = memoryview(bytearray(min(PIECE_BYTES, file.size)))
    for entry in entries:
        total, end = hashlib.sha256(), begin + entry.n_bytes
        for at in range(begin, end, PIECE_BYTES):
            piece = buffer[: min(PIECE_BYTES, end - at)]
            file.read_into(at, piece)
            total.update(piece)
        if total.hexdigest() != entry.sha256:
            _raise_file_error(
                "checksum", path, f"tensor {quoted(entry.name)} fails its checksum", begin, entry.name
            )
        begin += _round_up(entry.n_bytes)
        _check_padding(file, end, begin, path)


def _read_tensors(
    file: RegularFile | _Bytes, entries: list[Entry], begin: int, path: Any
) -> dict[str, np.ndarray]:
    """All tensors, read once their checksums are known to be right."""
    try:
        _check_tensors(file, entries, begin, path)
        tensors = {}
        for entry in entries:
            array = np.empty(entry.shape, entry.dtype)
            file.read_into(begin, bytes_of(array))
            array.flags.writeable = False
            tensors[entry.name] = array
            begin += _round_up(entry.n_bytes)
    except CheckpointError:
        raise
    except FormatError as error:
        raise _as_checkpoint_error(error) from error
    if not file.is_unchanged():
        _raise_file_error("checksum", path, "was written to while it was read", None, None)
    return tensors


def _check_preamble(preamble: bytes, size: int, path: Any, limits: Limits) -> int:
    """Bytes of the header, after checking the first 64 bytes against the `size` of the file."""
    if size < PREAMBLE_BYTES:
        text = (
            f"{size} bytes, a training checkpoint has at least {PREAMBLE_BYTES}; probably an incomplete copy"
        )
        _raise_file_error("too_short", path, text, 0, None)
    header_bytes: int
    magic, version, zero, total, header_bytes = _FIELDS.unpack(preamble[:32])
    if magic != MAGIC:
        _raise_file_error(
            "magic",
            path,
            "not a training checkpoint of attnsparse (its first 8 bytes are others)",
            0,
            "magic",
        )
    if version > VERSION:
        text = (
            f"from a newer attnsparse: checkpoint version {version}, this one reads up to {VERSION}; update"
        )
        _raise_file_error("version", path, text, 8, "version")
    if version < 1 or zero:
        text = f"checkpoint version {version} (reserved field {zero}) was never released, versions start at 1"
        _raise_file_error("version", path, text, 8, "version")
    if total > size:
        text = f"should have {total:,} bytes but has {size:,}; probably an incomplete copy"
        _raise_file_error("truncated", path, text, 16, "length")
    if total < size:
        _raise_file_error(
            "trailing_data", path, f"{size - total:,} bytes follow its end at byte {total:,}", total, "length"
        )
    limits.check(
        "max_header_bytes",
        header_bytes,
        path,
        f"header of {header_bytes:,} bytes",
        code="header_limit",
        field="header",
    )
    if _round_up(PREAMBLE_BYTES + header_bytes) > size:
        text = f"header says {header_bytes:,} bytes but only {size - PREAMBLE_BYTES:,} follow"
        _raise_file_error("truncated", path, text, 24, "header")
    return header_bytes


def _parse_header(header: bytes, path: Any, limits: Limits) -> tuple[dict[str, Any], list[Entry]]:
    """Meta and entries of a header whose checksum is right."""
    try:
        content = parse_object(header, path, limits=limits, start=PREAMBLE_BYTES)
    except FormatError as error:
        if error.code == "json_limit":
            raise
        raise _as_checkpoint_error(error) from error
    meta, tensors = content.get("meta"), content.get("tensors")
    if not isinstance(meta, dict) or not isinstance(tensors, list) or len(content) != 2:
        _raise_file_error(
            "header_value", path, 'the header must hold "meta" and "tensors"', PREAMBLE_BYTES, "header"
        )
    if len(tensors) > limits.max_tensors:
        text = f"{len(tensors):,} tensors, at most max_tensors={limits.max_tensors:,}"
        _raise_file_error("header_value", path, text, PREAMBLE_BYTES, "tensors")
    entries = [_parse_entry(entry, path, limits) for entry in tensors]
    if len({entry.name for entry in entries}) != len(entries):
        _raise_file_error(
            "duplicate_name", path, "a tensor name occurs twice in the header", PREAMBLE_BYTES, "tensors"
        )
    return meta, entries


def _parse_entry(entry: Any, path: Any, limits: Limits) -> Entry:
    """One tensor's entry in the header."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "name", "sha256", "shape"}:
        text = "a tensor's entry needs exactly dtype, name, sha256 and shape"
        _raise_file_error("header_value", path, text, PREAMBLE_BYTES, "tensors")
    name, shape, checksum = entry["name"], entry["shape"], entry["sha256"]
    if not _good_name(name, limits):
        text = f"a tensor name must have 1..{limits.max_name_bytes} bytes"
        _raise_file_error("header_value", path, text, PREAMBLE_BYTES, "name")
    dtype = _DTYPES.get(str(entry["dtype"]))
    if dtype is None:
        text = f"tensor {quoted(name)} has dtype {quoted(entry['dtype'])}, supported: {' '.join(_DTYPES)}"
        _raise_file_error("dtype", path, text, PREAMBLE_BYTES, name)
    whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not whole or len(shape) > limits.max_rank or not isinstance(checksum, str):
        text = f"tensor {quoted(name)} needs a shape of at most {limits.max_rank} integers and a checksum"
        _raise_file_error("header_value", path, text, PREAMBLE_BYTES, name)
    if has_too_many_bytes(shape):
        _raise_file_error(
            "size_overflow",
            path,
            f"tensor {quoted(name)}: larger than any array can be",
            PREAMBLE_BYTES,
            name,
        )
    return Entry(name, dtype, tuple(shape), checksum, math.prod(shape) * dtype.itemsize)


def _check_padding(file: RegularFile | _Bytes, begin: int, end: int, path: Any) -> None:
    if any(file.read(begin, end - begin)):
        _raise_file_error("padding", path, f"the padding from byte {begin:,} on is not zero", begin, None)


def _as_checkpoint_error(error: FormatError) -> CheckpointError:
    return CheckpointError(
        str(error), code=error.code, path=error.path, offset=error.offset, field=error.field
    )


def _raise_file_error(code: str, path: Any, text: str, offset: int | None, field: str | None) -> NoReturn:
    raise file_error(CheckpointError, code, path, text, offset=offset, field=field)
