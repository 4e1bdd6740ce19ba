"""Writes .safetensors files byte by byte, so that tests can write wrong ones and types that NumPy lacks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

TYPES = {"f4": "F32", "f2": "F16", "f8": "F64", "u1": "U8", "b1": "BOOL", "i8": "I64"}


def file_bytes(header: object, data: bytes = b"", *, n_header: int | None = None) -> bytes:
    """Header (bytes as they are, else as JSON) and data; `n_header` may lie about the header's length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if n_header is None else n_header).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: Sequence[object], dtype: object = "F32") -> dict[str, object]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def from_arrays(arrays: Mapping[str, np.ndarray], dtypes: Mapping[str, str] | None = None) -> bytes:
    """A good file; `dtypes` gives other names to types, such as BF16 for an array of uint16."""
    header, data = {}, b""
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).tobytes()
        kind = (dtypes or {}).get(name) or TYPES[array.dtype.str[1:]]
        header[name] = entry(len(data), len(data) + len(raw), array.shape, kind)
        data += raw
    return file_bytes(header, data)
