"""Bundles taken apart and written byte by byte, with right checksums around anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from attnsparse.io.bundle import Bundle, Schema
from attnsparse.training.checkpoint import SCHEMA as TRAINING

CODES = {"float32": "F32", "float64": "F64", "int32": "I32", "int64": "I64", "float16": "F16", "bool": "BOOL"}
BEGIN = b'{"__metadata__":{"sha256":"'


class Contents(NamedTuple):
    """What a bundle holds."""

    fields: dict[str, Any]
    tensors: dict[str, np.ndarray]


def contents(path: Path, schema: Schema = TRAINING) -> Contents:
    """Fields and tensors of a bundle as the package reads them."""
    with Bundle(path, schema) as bundle:
        return Contents(bundle.fields, bundle.read_all())


def sealed(header: bytes, body: bytes = b"") -> bytes:
    """A file with this header, in which 64 zeros are replaced by the right checksum if they are there."""
    begin = len(header).to_bytes(8, "little") + header
    at = 8 + len(BEGIN)
    if header.startswith(BEGIN + b"0" * 64):
        begin = begin[:at] + hashlib.sha256(begin).hexdigest().encode() + begin[at + 64 :]
    return begin + body


def unsealed(data: bytes) -> tuple[bytes, bytes]:
    """Header, with zeros in the place of its checksum, and tensors of a bundle."""
    n = 8 + int.from_bytes(data[:8], "little")
    at = 8 + len(BEGIN)
    return data[8:at] + b"0" * 64 + data[at + 64 : n], data[n:]


def resealed(data: bytes) -> bytes:
    """A bundle whose header was changed, with the right checksum of it."""
    return sealed(*unsealed(data))


def around(text: bytes | str | dict, tensors: dict[str, np.ndarray] | None = None, **entries: Any) -> bytes:
    """A file around any JSON text; entries: what the header says of tensors instead of the truth."""
    text = json.dumps(text) if isinstance(text, dict) else text
    text = text.decode() if isinstance(text, bytes) else text
    header: dict[str, Any] = {"__metadata__": {"sha256": "0" * 64, "attnsparse": text}}
    body, tensors = b"", tensors or {}
    for name, array in tensors.items():
        data = np.ascontiguousarray(array).tobytes()
        span = [len(body), len(body) + len(data)]
        code = CODES.get(array.dtype.name, array.dtype.name)
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": span}
        body += data
    return sealed(json.dumps(header | entries, separators=(",", ":")).encode(), body)


def content(
    schema: str, fields: Any, tensors: dict[str, np.ndarray] | None = None, version: Any = 1
) -> dict[str, Any]:
    """The JSON text of a good bundle, to be changed."""
    sums = {
        name: hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()
        for name, a in (tensors or {}).items()
    }
    return {"schema": schema, "version": version, "fields": fields, "tensors": sums}


def forged(schema: str, fields: Any, tensors: dict[str, np.ndarray], version: Any = 1) -> bytes:
    """A file with right checksums around any fields and tensors."""
    return around(content(schema, fields, tensors, version), tensors)


def rewrite(
    path: Path, change: Callable[[dict[str, Any]], object] | None = None, **arrays: np.ndarray | None
) -> None:
    """Change fields and tensors of a bundle (None: leave one out); its checksums stay right."""
    with safetensors.safe_open(path, "np") as file:
        text = json.loads(file.metadata()["attnsparse"])
        tensors = {name: file.get_tensor(name) for name in file.keys()} | arrays  # noqa: SIM118
    if change is not None:
        change(text["fields"])
    tensors = {name: array for name, array in tensors.items() if array is not None}
    path.write_bytes(forged(text["schema"], text["fields"], tensors, text["version"]))
