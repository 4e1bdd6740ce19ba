"""Checksums of much data, a piece at a time, so that Ctrl-C is handled in between."""

from __future__ import annotations

import hashlib
from typing import Any

PIECE_BYTES = 16 * 2**20


def update(total: Any, data: Any) -> None:
    """Add the bytes of a C-contiguous buffer (an array, bytes) to a hash of hashlib."""
    view = memoryview(data).cast("B")
    for begin in range(0, len(view), PIECE_BYTES):
        total.update(view[begin : begin + PIECE_BYTES])


def sha256(data: Any) -> str:
    """SHA-256 of a C-contiguous buffer as hexadecimal digits."""
    total = hashlib.sha256()
    update(total, data)
    return total.hexdigest()
