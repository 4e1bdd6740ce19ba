"""Checkpoint files written byte by byte, around anything."""

from __future__ import annotations

import hashlib
import json
import struct


def assemble(header: object, body: bytes = b"", *, version: int = 1, total: int | None = None) -> bytes:
    """A file with a valid first checksum around any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    padding = bytes(-(64 + len(text)) % 64)
    length = 64 + len(text) + len(padding) + len(body) if total is None else total
    fields = struct.pack("<8sIIQQ", b"ASPTRAIN", version, 0, length, len(text))
    return fields + hashlib.sha256(fields + text).digest() + text + padding + body
