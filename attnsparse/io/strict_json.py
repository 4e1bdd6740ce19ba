"""Reads untrusted JSON: no duplicate names, no NaN, bounded depth, bounded strings and number of keys."""

from __future__ import annotations

import json
import math
import os
from typing import Any, NoReturn

from ..errors import FormatError, file_error, quoted
from .limits import DEFAULT_LIMITS, Limits

_KINDS: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}
_CONTAINERS = frozenset((dict, list))
_MOST_DIGITS = 308  # of an integer: it is a float then, and so every number that was read is
_DIGITS_TO_0 = bytes.maketrans(b"0123456789", b"0000000000")


class _Refused(Exception):
    """Carries a duplicated key, or the size of an object with too many keys, out of the parser."""

    def __init__(self, key: str | None, n_keys: int = 0) -> None:
        super().__init__(key)
        self.key = key
        self.n_keys = n_keys


def parse_object(
    data: bytes, path: str | os.PathLike[str] | None, *, limits: Limits = DEFAULT_LIMITS, start: int = 0
) -> dict[str, Any]:
    """Parse `data` (which lies at byte `start` of the file `path`) into a dict.

    Raises FormatError with code json_syntax, json_depth, json_type or duplicate_name, and LimitError with
    code json_limit.
    """
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")  # the mark that Windows editors put in front
    except UnicodeDecodeError as error:
        hint = "; it is UTF-16: save it as UTF-8" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        where = start + error.start
        _raise_file_error("json_syntax", path, f"not UTF-8 at byte {where:,}{hint}", where, error)
    n_values = sum(data.count(sign) for sign in (b",", b"[", b"{"))
    limits.check(
        "max_json_values", n_values, path, f"a JSON text of about {n_values:,} values", code="json_limit"
    )
    value = _loaded(data, text, path, limits, start)
    if not isinstance(value, dict):
        _raise_file_error("json_type", path, f"expected a JSON object, found {kind_of(value)}", start, None)
    _check_depth(value, path, limits, start)
    if not _all_strings_short(data, limits):
        _check_strings(value, path, limits, start)
    return value


def _loaded(data: bytes, text: str, path: Any, limits: Limits, start: int) -> Any:
    """The value of a JSON text, with errors of this module."""
    max_keys = limits.max_json_keys

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(pairs) > max_keys or len(result) != len(pairs):
            raise _Refused(_first_duplicate(pairs), len(pairs))
        return result

    try:
        return json.loads(
            text,
            object_pairs_hook=build,
            parse_float=_finite,
            parse_int=_integer if b"-0" in data or _has_long_number(data) else None,
            parse_constant=_no_constants,
        )
    except _Refused as refused:
        if refused.key is None:
            what = f"a JSON object of {refused.n_keys:,} keys"
            limits.check("max_json_keys", refused.n_keys, path, what, code="json_limit")
        key = json.dumps(refused.key, ensure_ascii=False).encode("utf-8", "replace")
        where = start + max(data.rfind(key), 0)
        text = f"duplicate name {quoted(refused.key)} in the JSON text (byte {where:,})"
        raise file_error(FormatError, "duplicate_name", path, text, offset=where, field=refused.key) from None
    except json.JSONDecodeError as error:
        where = start + len(text[: error.pos].encode())
        _raise_file_error("json_syntax", path, f"invalid JSON at byte {where:,}: {error.msg}", where, error)
    except RecursionError as error:
        deeper = f"JSON nested deeper than max_json_depth={limits.max_json_depth}"
        _raise_file_error("json_depth", path, deeper, start, error)
    except ValueError as error:  # NaN, Infinity, 1e999, or a number of more digits than Python converts
        what = "invalid JSON: NaN, Infinity, a number too large for a float, or with thousands of digits"
        _raise_file_error("json_syntax", path, what, start, error)


def _integer(digits: str) -> int | float:
    """A number without point and exponent. -0 is read as a float, as other readers do."""
    if len(digits) > _MOST_DIGITS:
        raise ValueError(digits)
    return -0.0 if digits == "-0" else int(digits)


def _has_long_number(data: bytes) -> bool:
    """Whether there is a number of more digits than any float has."""
    return b"0" * _MOST_DIGITS in data.translate(_DIGITS_TO_0)


def _first_duplicate(pairs: list[tuple[str, Any]]) -> str | None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    return None


def kind_of(value: object) -> str:
    """The JSON word for the kind of a parsed value: number, string, list, object, true, false, null."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return _KINDS.get(type(value), "a number")


def shown(value: object) -> str:
    """A parsed JSON value as a message shows it: scalars as written in JSON, cut short; else its kind."""
    if isinstance(value, str):
        return quoted(value)
    if value is None or isinstance(value, bool | float):
        return json.dumps(value)
    if isinstance(value, int):
        return f"{value}" if abs(value) < 10**20 else "a number of more than 20 digits"
    return kind_of(value)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(digits)
    return value


def _no_constants(name: str) -> NoReturn:
    raise ValueError(name)


def _check_depth(root: dict[str, Any], path: Any, limits: Limits, start: int) -> None:
    """Check nesting level by level, without recursion."""
    level: list[Any] = [root]
    for _ in range(limits.max_json_depth):
        level = [
            value
            for container in level
            for value in (container.values() if type(container) is dict else container)
            if type(value) in _CONTAINERS
        ]
        if not level:
            return
    text = f"JSON nested deeper than max_json_depth={limits.max_json_depth}"
    _raise_file_error("json_depth", path, text, start, None)


def _check_strings(root: dict[str, Any], path: Any, limits: Limits, start: int) -> None:
    """Check length and well-formedness of all strings, keys included."""
    pending: list[Any] = [root]
    while pending:
        item = pending.pop()
        if type(item) is str:
            _check_string(item, path, limits, start)
        elif type(item) is list:
            pending.extend(item)
        elif type(item) is dict:
            pending.extend(item)
            pending.extend(item.values())


def _all_strings_short(data: bytes, limits: Limits) -> bool:
    """True if the text without escapes between any two quotation marks is short: then so are all strings."""
    return b"\\" not in data and max(map(len, data.split(b'"'))) <= limits.max_string_bytes


def _check_string(text: str, path: Any, limits: Limits, start: int) -> None:
    if text.isascii():
        n_bytes = len(text)
    else:
        try:
            n_bytes = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            _raise_file_error(
                "json_syntax", path, f"a string with half a surrogate pair: {quoted(text)}", start, error
            )
    if n_bytes > limits.max_string_bytes:
        limits.check(
            "max_string_bytes", n_bytes, path, f"a JSON string of {n_bytes:,} bytes", code="json_limit"
        )


def _raise_file_error(code: str, path: Any, text: str, offset: int, cause: BaseException | None) -> NoReturn:
    raise file_error(FormatError, code, path, text, offset=offset) from cause
