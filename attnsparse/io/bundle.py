"""The container of what attnsparse keeps for itself: circuits, graphs, training checkpoints.

A bundle is one safetensors file, which every tool that reads these files opens. Its `__metadata__` has two
texts:

    "sha256"      SHA-256 of the bytes before the tensors, taken with 64 zeros in its own place; the first
                  name of the header, so that this place is always the same
    "attnsparse"  JSON: "schema" (what the file holds), "version" (of the schema), "fields" (JSON values),
                  "tensors" (name -> SHA-256 of the tensor's bytes)

One of these checksums covers every byte. Tensors are in the order of the safetensors package: those with
larger elements first, then by name, so each lies at a multiple of its element's size; fields keep the order
in which they are given. The same object therefore gives the same bytes, also after it was read.

Reading checks the header and gives fields, shapes and types, so that they can be refused before a tensor is
read; then all checksums, a block at a time, and only then are the tensors read into memory. Nothing of the
file is executed. Saving writes a temporary file in the same folder, flushes it to the disk and renames it, so
a reader finds the old file or the new one and never a part of one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import _check
from ..errors import quoted, raise_file_error
from .atomic import write_atomic
from .checksums import PIECE_BYTES, sha256
from .limits import DEFAULT_LIMITS, Limits
from .regular_file import RegularFile, bytes_of
from .safetensors_file import SafetensorsFile, safetensors_header
from .strict_json import parse_object, shown
from .tensor_source import TensorInfo
from .text_bytes import json_bytes

SUFFIX = ".safetensors"
KEY = "attnsparse"
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
CODES = {dtype.name: code for code, dtype in DTYPES.items()}

_BEGIN = b'{"__metadata__":{"sha256":"'
_SUM = slice(8 + len(_BEGIN), 8 + len(_BEGIN) + 64)
_ZEROS = b"0" * 64
_DIGEST = re.compile("[0-9a-f]{64}")
_CONTENT = {"schema", "version", "fields", "tensors"}


class Schema(NamedTuple):
    """What a file holds: its name ("circuit"), the version that is written and the newest that is read, and
    the ending of its files."""

    name: str
    version: int
    ending: str  # such as ".circuit.safetensors"

    def file(self, path: str | os.PathLike[str]) -> str:
        """The file that a path means: with its ending if it does not end in .safetensors."""
        path = _check.path(path)
        return path if path.endswith(SUFFIX) else path + self.ending


def write_bundle(
    path: str | os.PathLike[str],
    schema: Schema,
    fields: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
) -> None:
    """Write a bundle to `schema.file(path)`, which always holds a whole one, the old or the new.

    fields: JSON values; numbers must be finite.  tensors: float32, float64, int32 or int64 arrays of any
    shape. Raises OSError with errno and file name when the disk refuses, with the previous file untouched;
    ValueError for names or values that the container does not take.
    """
    write_atomic(schema.file(path), bundle_pieces(schema, fields, tensors))


def bundle_pieces(
    schema: Schema, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> Iterator[Any]:
    """The bytes of a bundle; everything is checked before the first ones."""
    arrays = {name: _as_stored(name, array) for name, array in tensors.items()}
    arrays = dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))
    sums = {name: sha256(bytes_of(array)) for name, array in arrays.items()}
    content = {"schema": schema.name, "version": schema.version, "fields": dict(fields), "tensors": sums}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    infos = {name: TensorInfo(array.shape, CODES[array.dtype.name]) for name, array in arrays.items()}
    metadata = {"sha256": _ZEROS.decode(), KEY: json_bytes(text).decode()}
    header = safetensors_header(infos, metadata)
    if len(header) > DEFAULT_LIMITS.max_header_bytes:
        raise ValueError(
            f"the fields and names take {len(header):,} bytes, a {schema.name} can have "
            f"{DEFAULT_LIMITS.max_header_bytes:,}"
        )
    sealed = bytearray(header)
    sealed[_SUM] = hashlib.sha256(header).hexdigest().encode()
    return iter([sealed, *(bytes_of(array) for array in arrays.values() if array.size)])


def _as_stored(name: str, array: np.ndarray) -> np.ndarray:
    """C-contiguous little-endian array; ValueError for a name, type or rank that no bundle has."""
    array = np.asarray(array)
    if array.dtype.name not in CODES:
        raise ValueError(f"tensor {quoted(name)} has dtype {array.dtype}, expected {', '.join(CODES)}")
    most, n_bytes = DEFAULT_LIMITS.max_name_bytes, len(name.encode("utf-8", "replace"))
    if not 1 <= n_bytes <= most or name == "__metadata__" or array.ndim > DEFAULT_LIMITS.max_rank:
        raise ValueError(
            f"tensor {quoted(name)} of rank {array.ndim}: a name needs 1..{most:,} bytes and cannot be "
            f"__metadata__, and the rank is at most {DEFAULT_LIMITS.max_rank}"
        )
    return np.asarray(array, DTYPES[CODES[array.dtype.name]], order="C")


class Bundle:
    """A bundle, open for reading; a context manager.

    `fields` and `tensors` (name -> shape and type) are known from the header, whose checksum is right.

    Raises what `SafetensorsFile` does, and FormatError: magic (not this schema), version, checksum,
    header_value, missing_tensor, unexpected_tensor, dtype.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | RegularFile,
        schema: Schema,
        *,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        _check.instance(limits, Limits, "limits")
        file = path if isinstance(path, RegularFile) else schema.file(path)
        #: the file that is read
        self.path = file.path if isinstance(file, RegularFile) else file
        # The JSON text is one string of the header; the strings in it are what the limit is about.
        long = max(limits.max_string_bytes, limits.max_header_bytes)
        header_limits = dataclasses.replace(limits, max_string_bytes=long)
        self._file = SafetensorsFile(file, limits=header_limits)
        self.tensors: Mapping[str, TensorInfo] = self._file.tensors
        try:
            content = self._content(schema, limits)
            self.version: int = content["version"]
            self.fields: dict[str, Any] = content["fields"]
            self._sums: dict[str, str] = content["tensors"]
            self._check_tensors(schema)
        except BaseException:
            self._file.close()
            raise

    @property
    def n_bytes(self) -> int:
        """Length of the file."""
        return self._file.n_bytes

    def read_all(self, prefix: str = "") -> dict[str, np.ndarray]:
        """All tensors whose names begin with `prefix`, by name, read-only, each in its own memory, once all
        checksums of the file are known to be right.

        FormatError `checksum` if a tensor is not as it was written.
        """
        self.verify()
        arrays = {name: self._read(name) for name in self.tensors if name.startswith(prefix)}
        if not self._file.is_unchanged():
            raise_file_error("checksum", self.path, "was written to while it was read")
        return arrays

    def verify(self) -> None:
        """Compare all tensors with their checksums, in little memory."""
        buffer = memoryview(bytearray(min(PIECE_BYTES, self.n_bytes)))
        for name, n_bytes in self._file.stored_bytes().items():
            total = hashlib.sha256()
            for at in range(0, n_bytes, PIECE_BYTES):
                piece = buffer[: min(PIECE_BYTES, n_bytes - at)]
                self._file.read_stored(name, at, piece)
                total.update(piece)
            if total.hexdigest() != self._sums[name]:
                raise_file_error("checksum", self.path, f"tensor {quoted(name)} fails its checksum", name)

    def _read(self, name: str) -> np.ndarray:
        shape, dtype = self.tensors[name]
        array = np.empty(shape, DTYPES[dtype])
        if array.size:
            self._file.read_stored(name, 0, bytes_of(array))
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        array.flags.writeable = False
        return array

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- the header

    def _content(self, schema: Schema, limits: Limits) -> dict[str, Any]:
        """The JSON text, of this schema and a version that can be read."""
        metadata, path = self._file.metadata, self.path
        if KEY not in metadata:
            text = f"not a {schema.name} of attnsparse but another safetensors file"
            raise_file_error("magic", path, text, KEY)
        header = bytearray(self._file.header())
        stored, header[_SUM] = bytes(header[_SUM]), _ZEROS
        right = hashlib.sha256(header).hexdigest().encode()
        if header[8 : _SUM.start] != _BEGIN or stored != right:
            raise_file_error("checksum", path, "the header fails its checksum", "sha256")
        content = parse_object(metadata[KEY].encode(), path, limits=limits)
        name, version = content.get("schema"), content.get("version")
        if name != schema.name:
            text = f"this is {shown(name)} of attnsparse, expected {schema.name!r}"
            raise_file_error("magic", path, text, "schema")
        if type(version) is not int or version < 1:
            text = f"version must be an integer from 1 on, got {shown(version)}"
            raise_file_error("version", path, text, "version")
        if version > schema.version:
            text = (
                f"from a newer attnsparse: {schema.name} version {shown(version)}, this one reads up to "
                f"{schema.version}; update"
            )
            raise_file_error("version", path, text, "version")
        fields, sums = content.get("fields"), content.get("tensors")
        if content.keys() != _CONTENT or not isinstance(fields, dict) or not isinstance(sums, dict):
            text = "the JSON text must hold exactly schema, version, fields and tensors, the last two objects"
            raise_file_error("header_value", path, text, KEY)
        return content

    def _check_tensors(self, schema: Schema) -> None:
        """A checksum for each tensor and a tensor for each checksum, of types that can be read."""
        for name, digest in self._sums.items():
            if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
                text = f"the checksum of tensor {quoted(name)} must be 64 hexadecimal digits"
                raise_file_error("header_value", self.path, text, name)
            if name not in self.tensors:
                raise_file_error("missing_tensor", self.path, f"tensor {quoted(name)} is missing", name)
        for name, info in self.tensors.items():
            if name not in self._sums:
                text = f"tensor {quoted(name)} does not belong to this {schema.name}"
                raise_file_error("unexpected_tensor", self.path, text, name)
            if info.dtype not in DTYPES:
                text = f"tensor {quoted(name)} has dtype {info.dtype}, supported: {' '.join(DTYPES)}"
                raise_file_error("dtype", self.path, text, name)
