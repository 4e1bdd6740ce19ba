"""Bad weight files, made on the spot: each has a name, the exception and code it must get, and the bytes.

Here are the records and the .safetensors files; bad_torch_files.py and bad_folders.py hold the rest.
"""

from __future__ import annotations

from typing import NamedTuple

from safetensors_by_hand import entry, file_bytes

from attnsparse.errors import FormatError, LimitError


class BadFile(NamedTuple):
    """`data` under the file name `file` must raise exactly `error` with code `code`."""

    name: str
    error: type
    code: str
    data: bytes
    file: str = "model.safetensors"


class BadFolder(NamedTuple):
    """Loading a folder with these files (bytes, text, or JSON for dicts) must raise exactly `error`."""

    name: str
    error: type
    code: str
    files: dict[str, object]


FOUR = bytes(range(16))
ONE = entry(0, 16, [4])
GOOD = file_bytes({"a": ONE}, FOUR)
DEEP = b'{"a":' + b"[" * 70 + b"]" * 70 + b"}"


def _safetensors() -> list[BadFile]:
    def bad(name: str, code: str, header: object, data: bytes = FOUR, error: type = FormatError) -> BadFile:
        return BadFile(name, error, code, file_bytes(header, data))

    def shape(name: str, code: str, sides: object, end: object = 16, error: type = FormatError) -> BadFile:
        return bad(name, code, {"a": {"dtype": "F32", "shape": sides, "data_offsets": [0, end]}}, error=error)

    two = {"a": entry(0, 8, [2]), "b": entry(8, 16, [2])}
    return [
        BadFile("empty", FormatError, "too_short", b""),
        BadFile("five bytes", FormatError, "too_short", GOOD[:5]),
        BadFile("no header", FormatError, "truncated", file_bytes(b"", n_header=100)),
        BadFile("half a header", FormatError, "truncated", GOOD[:30]),
        BadFile("header of 2^64 - 1 bytes", FormatError, "truncated", b"\xff" * 8 + FOUR),
        BadFile("header of 2^63 bytes", FormatError, "truncated", bytes(7) + b"\x80" + FOUR),
        BadFile("header of 20 MB", LimitError, "header_limit", file_bytes(b"{" + b" " * 20_000_000 + b"}")),
        BadFile("header of 0 bytes", FormatError, "json_syntax", bytes(8)),
        BadFile("zip", FormatError, "magic", b"PK\x03\x04" + bytes(60)),
        BadFile("pickle", FormatError, "magic", b"\x80\x02}q\x00" + b"." * 30),
        BadFile("git lfs pointer", FormatError, "magic",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        BadFile("html page", FormatError, "magic", b"<!DOCTYPE html><html><body>404</body></html>"),
        BadFile("plain json", FormatError, "magic", b'{"__metadata__": {"format": "pt"}}'),
        bad("space before the header", "json_syntax", b' {"a":1}'),
        bad("no closing brace", "json_syntax", b'{"a":1'),
        bad("two objects", "json_syntax", b"{}{}"),
        bad("NUL padding", "json_syntax", b"{}\0\0", b""),
        bad("single quotes", "json_syntax", b"{'a':1}"),
        bad("trailing comma", "json_syntax", b'{"a":1,}'),
        bad("NaN", "json_syntax", b'{"a":NaN}'),
        bad("minus Infinity", "json_syntax", b'{"a":-Infinity}'),
        bad("number of 5000 digits", "json_syntax", b'{"a":' + b"9" * 5000 + b"}"),
        bad("not UTF-8", "json_syntax", b'{"\xff":1}'),
        bad("half a surrogate pair", "json_syntax", b'{"\\ud800":1}'),
        bad("byte order mark", "json_syntax", b"\xef\xbb\xbf{}"),
        bad("list nested 70 deep", "json_depth", DEEP),
        bad("list nested a million deep", "json_depth", b'{"a":' + b"[" * 1_000_000),
        bad("string of 2 MiB", "json_limit", {"__metadata__": {"a": "x" * 2**21}}, error=LimitError),
        bad("200,001 keys", "json_limit", {str(index): 0 for index in range(200_001)}, error=LimitError),
        bad("2 million values", "json_limit", b'{"a":[' + b"0," * 2_000_000 + b"0]}", error=LimitError),
        bad("duplicate tensor", "duplicate_name", b'{"a":1,"b":2,"a":3}'),
        bad("duplicate field", "duplicate_name", b'{"a":{"dtype":"F32","dtype":"F32"}}'),
        bad("metadata is a list", "header_field", {"__metadata__": [], "a": ONE}),
        bad("metadata holds a number", "header_field", {"__metadata__": {"a": 1}, "a": ONE}),
        bad("tensor is a list", "header_field", {"a": []}),
        bad("no dtype", "header_field", {"a": {"shape": [4], "data_offsets": [0, 16]}}),
        bad("no shape", "header_field", {"a": {"dtype": "F32", "data_offsets": [0, 16]}}),
        bad("no offsets", "header_field", {"a": {"dtype": "F32", "shape": [4]}}),
        bad("unknown field", "header_field", {"a": ONE | {"strides": [1]}}),
        bad("dtype is a number", "header_field", {"a": ONE | {"dtype": 32}}),
        bad("one offset", "header_field", {"a": ONE | {"data_offsets": [0]}}),
        bad("three offsets", "header_field", {"a": ONE | {"data_offsets": [0, 8, 16]}}),
        bad("negative offset", "header_field", {"a": ONE | {"data_offsets": [-16, 0]}}),
        bad("offset is minus zero", "header_field",
            b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[-0,16]}}'),
        bad("offset is a float", "header_field", {"a": ONE | {"data_offsets": [0, 16.0]}}),
        bad("offset is true", "header_field", {"a": ONE | {"data_offsets": [0, True]}}),
        shape("shape is a number", "header_field", 4),
        shape("negative side", "header_field", [-4]),
        shape("side is a float", "header_field", [4.0]),
        shape("side is true", "header_field", [True, 4]),
        shape("side is a string", "header_field", ["4"]),
        shape("side is 1e999", "header_field", [float("1e300")]),
        bad("lower-case dtype", "dtype", {"a": ONE | {"dtype": "f32"}}),
        bad("dtype F4", "dtype", {"a": ONE | {"dtype": "F4"}}),
        bad("dtype with control characters", "dtype", {"a": ONE | {"dtype": "F\n\x1b[31m" * 40}}),
        shape("shape too small", "size_mismatch", [3]),
        shape("shape too large", "size_mismatch", [5]),
        shape("empty shape", "size_mismatch", []),
        shape("zero side", "size_mismatch", [4, 0]),
        shape("shape that wraps 64 bits", "size_overflow", [4194305, 4194305, 211106198978564]),
        shape("shape of 2^64", "size_overflow", [2**64]),
        shape("side of 4000 digits", "json_syntax", [10**4000]),
        shape("overflow before a zero", "size_overflow", [2**40, 2**40, 0], 0),
        shape("no elements, a side of 2^63", "size_overflow", [0, 2**63], 0),
        bad("number beyond all floats", "json_syntax", b'{"a":1e999}'),
        shape("nine dimensions", "rank_limit", [1] * 8 + [4], error=LimitError),
        bad("name of 2000 bytes", "name_limit", {"x" * 2000: ONE}, error=LimitError),
        bad("name of 600 snowmen", "name_limit", {"☃" * 600: ONE}, error=LimitError),
        bad("offsets reversed", "bad_offsets", {"a": ONE | {"data_offsets": [16, 0]}}),
        bad("first tensor not at 0", "bad_offsets", {"a": entry(4, 16, [3])}),
        bad("gap", "bad_offsets", {"a": entry(0, 8, [2]), "b": entry(12, 16, [1])}),
        bad("overlap", "bad_offsets", {"a": entry(0, 8, [2]), "b": entry(4, 16, [3])}),
        bad("same bytes twice", "bad_offsets", {"a": ONE, "b": ONE}),
        bad("past the end", "bad_offsets", {"a": entry(0, 20, [5])}),
        bad("far past the end", "bad_offsets", {"a": entry(0, 2**62, [2**60])}),
        bad("data cut short", "bad_offsets", two, FOUR[:15]),
        bad("one byte too many", "trailing_data", two, FOUR + b"\0"),
        bad("data without tensors", "trailing_data", {}),
    ]  # fmt: skip


FILES = [*_safetensors(), BadFile("unknown ending", FormatError, "magic", GOOD, "weights.ckpt")]
