"""Text and JSON as the bytes of files, whatever the text: an odd name must not lose what was computed.

Half a surrogate pair, which Python puts into the names of such files, is written out as \\udce9.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_HALF = re.compile("[\ud800-\udfff]")
_AT_ONCE = 1000  # items of a list, so that Ctrl-C is handled and other threads run
_NUMBERS_AT_ONCE = 16384  # for the same reason


def text_bytes(text: str) -> bytes:
    """UTF-8."""
    return text.encode("utf-8", "backslashreplace")


def json_bytes(text: str) -> bytes:
    """UTF-8 of a JSON text."""
    return _HALF.sub(lambda half: f"\\\\u{ord(half[0]):04x}", text).encode()


def compact_json(data: Mapping[str, Any]) -> Iterator[bytes]:
    """An object without spaces, some of its bytes at a time; ValueError for NaN and infinity."""
    comma = ""
    for name, value in data.items():
        yield json_bytes(f"{{{_compact(name)}:" if not comma else f",{_compact(name)}:")
        comma = ","
        if not isinstance(value, list):
            yield json_bytes(_compact(value))
            continue
        for begin in range(0, len(value), _AT_ONCE):
            yield json_bytes(("," if begin else "[") + _compact(value[begin : begin + _AT_ONCE])[1:-1])
        yield b"]" if value else b"[]"
    yield b"}" if comma else b"{}"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def shortest(array: np.ndarray) -> list[float | None]:
    """Numbers [n] with the fewest digits that are the same in the array's precision; None for NaN."""
    found: list[float | None] = []
    for begin in range(0, len(array), _NUMBERS_AT_ONCE):
        texts = array[begin : begin + _NUMBERS_AT_ONCE].astype("U32").tolist()
        found += [None if text == "nan" else float(text) for text in texts]
    return found
