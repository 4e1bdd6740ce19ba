"""Objects in two files: `path`.json with names and options, `path`.npz with the arrays.

The JSON holds the SHA-256 of the .npz, so a pair that does not belong together is found. The .npz is what
`numpy.savez` writes and any tool can read it; here it is read without pickle and without evaluating anything:
stored entries only, every array of exactly the type, the number of dimensions and the sizes that the object
has. Each user of this module defines its object and the fields.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import _check
from ..errors import NonFiniteError, file_error, quoted, raise_file_error
from .atomic import write_together
from .limits import Limits
from .regular_file import CHUNK_BYTES, RegularFile, bytes_of, read_small
from .strict_json import parse_object, shown
from .tensor_source import ByteRange, check_crc, has_too_many_bytes
from .text_bytes import json_bytes
from .zip_directory import read_zip_directory

_MAX_HEADER_BYTES = 1024
_NPY = re.compile(
    rb"\{'descr': '(?P<dtype><[fi][48])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>(?:[0-9]{1,18}, )*[0-9]{1,18},?)\), \} *\n"
)

Specs = Mapping[str, tuple[str, str]]
"""Array name: (dtype, one letter for each dimension; a letter names one size)."""


class Kind(NamedTuple):
    """What is in the files: "circuit" of version 1, written as "attnsparse circuit"."""

    name: str
    version: int

    @property
    def format(self) -> str:
        """The field "format" of the JSON."""
        return f"attnsparse {self.name}"


def pair_paths(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The two files of a path with or without .json or .npz."""
    base = _check.path(path)
    for suffix in (".json", ".npz"):
        base = base.removesuffix(suffix)
    return base + ".json", base + ".npz"


def save_pair(
    path: str | os.PathLike[str],
    kind: Kind,
    fields: Mapping[str, Any],
    arrays: Mapping[str, Any],
    specs: Specs,
) -> None:
    """Write both files or neither, see `atomic.write_together`."""
    json_path, npz_path = pair_paths(path)
    stored: dict[str, Any] = {
        name: np.asarray(value, specs[name][0], order="C") for name, value in arrays.items()
    }
    buffer = io.BytesIO()
    np.savez(buffer, **stored)
    checksum = hashlib.sha256(buffer.getbuffer()).hexdigest()
    data = {"format": kind.format, "version": kind.version, **fields, "arrays_sha256": checksum}
    content = json_bytes(json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    write_together([(npz_path, [buffer.getbuffer()]), (json_path, [content])])


# ------------------------------------------------------------------------------------------ JSON


def read_fields(path: str, kind: Kind, wanted: Iterable[str], limits: Limits) -> dict[str, Any]:
    """The JSON with exactly the `wanted` fields, format, version and arrays_sha256, which are checked."""
    data = parse_object(read_small(path, "max_index_bytes", limits=limits), path, limits=limits)
    if data.get("format") != kind.format:
        text = f"not a {kind.name}: 'format' is {shown(data.get('format'))}, must be '{kind.format}'"
        raise_file_error("magic", path, text)
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise_file_error(
            "version", path, f"version must be an integer from 1 on, got {shown(version)}", "version"
        )
    if version > kind.version:
        text = (
            f"from a newer attnsparse: {kind.name} version {version}, this one reads up to {kind.version}; "
            "update"
        )
        raise_file_error("version", path, text, "version")
    check_names(data, {"format", "version", "arrays_sha256", *wanted}, "the file", kind, path)
    checksum = data["arrays_sha256"]
    if not isinstance(checksum, str) or not re.fullmatch("[0-9a-f]{64}", checksum):
        raise_file_error(
            "header_value", path, "'arrays_sha256' must be 64 hexadecimal digits", "arrays_sha256"
        )
    return data


def check_names(found: Mapping[str, Any], wanted: set[str], where: str, kind: Kind, path: str) -> None:
    """Exactly the wanted names, else FormatError header_value."""
    for name in sorted(wanted - found.keys()):
        raise_file_error("header_value", path, f"{where} lacks '{name}'", name)
    for name in sorted(found.keys() - wanted):
        raise_file_error(
            "header_value", path, f"{where} has {quoted(name)}, which a {kind.name} does not have", name
        )


def check_texts(data: Mapping[str, Any], names: Iterable[str], path: str) -> None:
    """Texts, else FormatError header_value."""
    for name in names:
        if not isinstance(data[name], str):
            raise_file_error("header_value", path, f"'{name}' must be a text, got {shown(data[name])}", name)


def check_text_list(data: Mapping[str, Any], name: str, path: str) -> None:
    """A list of texts, else FormatError header_value."""
    if not isinstance(data[name], list) or not all(isinstance(text, str) for text in data[name]):
        raise_file_error("header_value", path, f"'{name}' must be a list of texts", name)


def check_integer(data: Mapping[str, Any], name: str, low: int, high: int, path: str) -> None:
    """An integer in low..high, else FormatError header_value."""
    value = data[name]
    if type(value) is not int or not low <= value <= high:
        text = f"'{name}' must be an integer in {low}..{high}, got {shown(value)}"
        raise_file_error("header_value", path, text, name)


def check_share(data: Mapping[str, Any], name: str, path: str) -> None:
    """A number in 0..1, else FormatError header_value."""
    value = data[name]
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise_file_error("header_value", path, f"'{name}' must be a number in 0..1, got {shown(value)}", name)


def check_choice(name: str, value: Any, choices: tuple[str, ...], path: str) -> None:
    """One of some texts, else FormatError header_value."""
    if not isinstance(value, str) or value not in choices:
        raise_file_error(
            "header_value", path, f"'{name}' must be one of {', '.join(choices)}, got {shown(value)}", name
        )


# ---------------------------------------------------------------------------------------- arrays


def read_arrays(
    path: str, kind: Kind, checksum: str, specs: Specs, limits: Limits, optional: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """All arrays by name, each with its own memory.

    The whole file is compared with its checksum, and every header with its shape, before an array is made.
    """
    headers, arrays = {}, {}
    with RegularFile(path) as file:
        what = f"a file of {file.size:,} bytes"
        limits.check("max_array_bytes", file.size, path, what, code="file_limit")
        _check_sum(file, checksum)
        places = read_zip_directory(file, limits)
        for name in specs:
            if f"{name}.npy" not in places and name not in optional:
                raise_file_error("missing_tensor", path, f"array '{name}' is missing", name)
        for entry, place in places.items():
            name = entry.removesuffix(".npy")
            if name not in specs or entry == name:
                raise_file_error(
                    "unexpected_tensor", path, f"entry {quoted(entry)} is no array of a {kind.name}", entry
                )
            headers[name] = _read_header(file, place, name, specs[name])
        for name, (shape, n_header) in headers.items():
            arrays[name] = _read_array(file, places[f"{name}.npy"], n_header, np.dtype(specs[name][0]), shape)
    return arrays


def _check_sum(file: RegularFile, checksum: str) -> None:
    """FormatError `checksum` if the file is another one than the JSON was saved with."""
    buffer, total = memoryview(bytearray(min(CHUNK_BYTES, file.size))), hashlib.sha256()
    for begin in range(0, file.size, CHUNK_BYTES):
        piece = buffer[: min(CHUNK_BYTES, file.size - begin)]
        file.read_into(begin, piece)
        total.update(piece)
    found = total.hexdigest()
    if found != checksum:
        text = (
            "does not belong to the .json beside it, which was saved with another one: SHA-256 "
            f"{found[:12]}..., expected {checksum[:12]}..."
        )
        raise_file_error("checksum", file.path, text, "arrays_sha256")


def _read_array(
    file: RegularFile, place: ByteRange, n_header: int, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
    """The array behind a header that was checked, compared with the archive's checksum of the entry."""
    array = np.empty(shape, dtype)
    crc = zlib.crc32(file.read(place.offset, n_header))
    crc = file.read_into(place.offset + n_header, bytes_of(array), crc, with_crc=True)
    check_crc(file.path, "the archive", place.crc, crc)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_header(
    file: RegularFile, place: ByteRange, name: str, spec: tuple[str, str]
) -> tuple[tuple[int, ...], int]:
    """Shape, and bytes before the numbers, of one .npy entry of version 1.0, in C order."""
    path, data = file.path, file.read(place.offset, min(place.n_bytes, 10 + _MAX_HEADER_BYTES))
    header_bytes = int.from_bytes(data[8:10], "little")
    match = _NPY.fullmatch(data[10 : 10 + header_bytes])
    if data[:8] != b"\x93NUMPY\x01\x00" or match is None:
        raise_file_error("array_header", path, f"array '{name}' has no header as numpy.savez writes it", name)
    dtype, dimensions = spec
    if match["dtype"].decode() != dtype:
        text = f"array '{name}' has dtype {quoted(match['dtype'].decode())}, must be '{dtype}'"
        raise_file_error("dtype", path, text, name)
    shape = tuple(int(side) for side in match["shape"].split(b",") if side.strip())
    if 0 in shape and has_too_many_bytes(shape):
        raise_file_error(
            "size_overflow", path, f"array '{name}': no array can have shape {list(shape)!s:.80}", name
        )
    found, n_bytes = place.n_bytes - 10 - header_bytes, math.prod(shape) * np.dtype(dtype).itemsize
    if len(shape) != len(dimensions) or found != n_bytes:
        text = (
            f"array '{name}' has {found:,} bytes and shape {list(shape)!s:.60}, which needs {n_bytes:,} "
            f"and {len(dimensions)} dimensions"
        )
        raise_file_error("size_mismatch", path, text, name)
    return shape, 10 + header_bytes


def check_sides(arrays: Mapping[str, np.ndarray], specs: Specs, sides: Mapping[str, int], path: str) -> None:
    """Every array has the sizes that its letters name, else FormatError size_mismatch."""
    for name, array in arrays.items():
        expected = tuple(sides[letter] for letter in specs[name][1])
        if array.shape != expected:
            text = f"array '{name}' has shape {list(array.shape)}, expected {list(expected)}"
            raise_file_error("size_mismatch", path, text, name)


def check_finite(arrays: Mapping[str, np.ndarray], names: Iterable[str], path: str) -> None:
    """Finite numbers only, else NonFiniteError nonfinite."""
    for name in names:
        if not np.isfinite(arrays[name]).all():
            text = f"array '{name}' has numbers that are not finite"
            raise file_error(NonFiniteError, "nonfinite", path, text, field=name)
