"""The inputs that are kept: for each harness one file, `corpus/<name>.xz`, written by `run.py --keep`.

They are compressed together, each with its length before it, because most differ in a few bytes.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "corpus"


def kept(name: str) -> list[bytes]:
    """The kept inputs of a harness, none if there is no file of them."""
    path = FOLDER / f"{name}.xz"
    data = lzma.decompress(path.read_bytes()) if path.exists() else b""
    inputs, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        inputs.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return inputs


def keep(name: str, inputs: Iterable[bytes]) -> int:
    """Write them; returns the size of the file."""
    ordered = sorted(set(inputs), key=lambda data: (len(data), data))
    packed = lzma.compress(b"".join(struct.pack("<I", len(data)) + data for data in ordered), preset=9)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.xz").write_bytes(packed)
    return len(packed)
