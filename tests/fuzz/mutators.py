"""Changes to files that know their structure: take apart, change one to three things, put together again.

Plain flips of bytes die at a magic number or a checksum; these keep lengths and checksums right most of the
time, so that what lies behind them is reached. All take bytes and a `random.Random` and give bytes; what
cannot be taken apart is changed byte by byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

Mutator = Callable[[bytes, Random], bytes]

NUMBERS = (0, 1, -1, 2, 3, 4, 7, 8, 16, 64, 255, 256, 1000, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40,
           2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**30)  # fmt: skip
PIECES = (b"", b"0", b"-", b"1e999", b"null", b"true", b'""', b"[]", b"{}", b"[", b"}", b",", b"\\ud800",
          b"\xff", b"\x00", b"\n", b" ", b"\xe2\x98\x83", b"PK\x01\x02", b"PK\x05\x06", b"&a ", b"*a ",
          b"!!python/object:os.system ", b"- ", b": ", b"<<: *a\n", b"'", b"? ", b"|\n", b"#")  # fmt: skip
OPCODES = (b"(", b")", b"t", b"R", b"b", b"Q", b"}", b"]", b"u", b"s", b"a", b"e", b"0", b"2", b"N", b"h\x00",
           b"h\x01", b"h\x02", b"q\x00", b"q\x01", b"\x85", b"\x86", b"\x87", b"\x81", b"\x88", b"\x93",
           b"\x94", b".", b"K\x00", b"K\x01", b"M\xff\xff", b"J\xff\xff\xff\xff", b"J\x00\x00\x00\x7f",
           b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8a\x09" + b"\xff" * 8 + b"\x00", b"G\x7f" + bytes(7),
           b"cos\nsystem\n", b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
           b"ctorch\nFloatStorage\n", b"ctorch\nBoolStorage\n", b"X\x01\x00\x00\x000", b"\x8c\x01a",
           b"X\x07\x00\x00\x00storage", b"X\x0a\x00\x00\x00model_args",
           b"ctorch._utils\n_rebuild_parameter\n", b"\x95" + bytes(8), b"ctorch\ndevice\n")  # fmt: skip


def change_bytes(data: bytes, rng: Random) -> bytes:
    """One to three changes: bytes, a bit, a piece put in, a part taken out or repeated."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(result))
        end = min(len(result), at + rng.randint(1, 8))
        kind = rng.randrange(7)
        if kind == 0:
            result[at:end] = rng.randbytes(end - at)
        elif kind == 1 and at < len(result):
            result[at] ^= 1 << rng.randrange(8)
        elif kind in (2, 3):
            result[at : end if kind == 3 else at] = rng.choice(PIECES)
        elif kind == 4:
            del result[at:end]
        elif kind == 5:
            result[at:at] = result[at:end] * rng.randint(1, 3)
        elif rng.random() < 0.2:
            del result[at:]
    return bytes(result)


# -------------------------------------------------------------------------------------------------- JSON


class _Object(list):
    """A JSON object as a list of [name, value], so that names may repeat."""


class _Raw(str):
    """Text that is written as it is."""


def change_json(data: bytes, rng: Random, words: Iterable[str] = ()) -> bytes:
    """One to three changes to the values and names of a JSON text."""
    try:
        root = json.loads(data, object_pairs_hook=lambda pairs: _Object(map(list, pairs)))
    except (ValueError, RecursionError):
        return change_bytes(data, rng)
    if rng.random() < 0.05:
        return change_bytes(data, rng)
    root = [root]
    known = tuple(words)
    for _ in range(rng.randint(1, 3)):
        _change_tree(root, rng, known)
    try:
        return _write(root[0] if root else None).encode("utf-8", "surrogatepass")
    except RecursionError:
        return data


def _slots(root: list) -> list[tuple[list, int]]:
    """Every place of a value in a tree."""
    found: list[tuple[list, int]] = []
    pending = [root]
    while pending and len(found) < 20_000:
        holder = pending.pop()
        for index, value in enumerate(holder):
            if isinstance(holder, _Object):
                found.append((value, 1))
                value = value[1]
            else:
                found.append((holder, index))
            if isinstance(value, list):
                pending.append(value)
    return found


def _change_tree(root: list, rng: Random, words: tuple[str, ...]) -> None:
    slots = _slots(root)
    holder, index = rng.choice(slots)
    value = holder[index]
    kind = rng.randrange(8)
    if kind <= 1 and type(value) is int:
        holder[index] = value + rng.choice((-8, -4, -1, 1, 4, 8)) if kind else value * rng.choice((0, 2, -1))
    elif kind <= 2:
        holder[index] = _any_value(rng, words)
    elif kind == 3 and isinstance(value, list) and value:
        del value[rng.randrange(len(value))]
    elif kind == 4 and isinstance(value, list) and value:
        value.insert(rng.randint(0, len(value)), _copy(rng.choice(value)))
    elif kind == 5:
        other, at = rng.choice(slots)
        if rng.random() < 0.5 or type(other[at]) is not type(value):
            holder[index] = _copy(other[at])
        else:
            holder[index], other[at] = other[at], value
    elif kind == 6 and isinstance(value, _Object):
        if value and rng.random() < 0.5:
            rng.choice(value)[0] = _any_text(rng, words)
        else:
            value.append([_any_text(rng, words), _any_value(rng, words)])
    elif isinstance(value, list) and not isinstance(value, _Object):
        value.append(_any_value(rng, words))
    else:
        holder[index] = _any_value(rng, words)


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return type(value)(_copy(item) for item in value)
    return value


def _any_text(rng: Random, words: tuple[str, ...]) -> str:
    if words and rng.random() < 0.7:
        return rng.choice(words)
    return rng.choice(("", "a", "0", "é☃", "\0", "\ud800", "x" * 1100, "..", "/etc/passwd", "h.0.", "1e5"))


def _any_value(rng: Random, words: tuple[str, ...]) -> Any:
    kind = rng.randrange(8)
    if kind <= 1:
        return rng.choice(NUMBERS)
    if kind <= 3:
        return _any_text(rng, words)
    if kind == 4:
        return rng.choice((None, True, False, 0.5, -0.0, 1e308, 1e-320, [], _Object()))
    if kind == 5:
        return [rng.choice(NUMBERS) for _ in range(rng.randint(0, 9))]
    if kind == 6:
        raw = ("NaN", "-Infinity", "1e400", "9" * 4000, "9" * 5000, "[" * 80 + "]" * 80, "-", "'a'", "01")
        return _Raw(rng.choice(raw))
    return _Object([[_any_text(rng, words), rng.choice(NUMBERS)]])


def _write(value: Any) -> str:
    if isinstance(value, _Raw):
        return str(value)
    if isinstance(value, _Object):
        return "{" + ",".join(f"{json.dumps(str(name))}:{_write(item)}" for name, item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_write, value)) + "]"
    return json.dumps(value)


# ------------------------------------------------------------------------------------------- safetensors


def change_safetensors(data: bytes, rng: Random, words: Iterable[str] = ()) -> bytes:
    """Changes the header (its length stays right), the data, or bytes."""
    n_header = int.from_bytes(data[:8], "little")
    if n_header > len(data) - 8 or rng.random() < 0.05:
        return change_bytes(data, rng)
    header, body = data[8 : 8 + n_header], data[8 + n_header :]
    if rng.random() < 0.9:
        header = change_json(header, rng, words)
    if rng.random() < 0.2:
        body = body[: rng.randint(0, len(body))] if rng.random() < 0.5 else body + bytes(rng.randint(1, 16))
    return len(header).to_bytes(8, "little") + header + body


# ---------------------------------------------------------------------------------------- pickles, zips


def change_pickle(data: bytes, rng: Random) -> bytes:
    """Takes out, repeats, exchanges and puts in whole opcodes, and changes their arguments."""
    starts = []
    try:
        for _, _, at in pickletools.genops(data):
            starts.append(at)
    except Exception:  # what follows is one piece
        pass
    if not starts:
        return change_bytes(data, rng)
    steps = [data[begin:end] for begin, end in zip(starts, [*starts[1:], len(data)])]
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(steps) + 1)
        end = min(len(steps), at + rng.randint(1, 6))
        kind = rng.randrange(6)
        if kind == 0:
            del steps[at:end]
        elif kind == 1:
            steps[at:at] = steps[at:end] * rng.choice((1, 2, 8))
        elif kind == 2:
            steps[at:at] = [rng.choice(OPCODES) for _ in range(rng.randint(1, 3))]
        elif kind == 3:
            steps[at:end] = [rng.choice(OPCODES)]
        elif kind == 4:
            begin = rng.randrange(len(steps) + 1)
            steps[at:at] = steps[begin : begin + rng.randint(1, 12)]
        elif at < len(steps):
            steps[at] = change_bytes(steps[at], rng)
    return b"".join(steps)


def change_zip(data: bytes, rng: Random, change_entry: Callable[[str, bytes, Random], bytes]) -> bytes:
    """Changes entries, names and order, then perhaps fields of the zip itself; sizes and CRCs stay right."""
    result = data
    if rng.random() < 0.85:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                entries = [(item.filename, archive.read(item)) for item in archive.infolist()]
            result = _rebuilt(entries, rng, change_entry)
        except Exception:  # zipfile raises many kinds about damaged archives
            return change_bytes(data, rng)
    return _change_zip_fields(result, rng) if result is data or rng.random() < 0.2 else result


def _rebuilt(entries: list[tuple[str, bytes]], rng: Random, change_entry: Any) -> bytes:
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(entries)) if entries else 0
        kind = rng.randrange(12)
        if not entries or kind == 0:
            entries.insert(at, (rng.choice(("", "a", "archive/constants.pkl", "a/data.pkl", "é")), b"x"))
        elif kind == 1:
            del entries[at]
        elif kind == 2:
            other = rng.randrange(len(entries))
            entries[at], entries[other] = entries[other], entries[at]
        elif kind == 3:
            entries[at] = (change_bytes(entries[at][0].encode(), rng).decode("latin-1"), entries[at][1])
        else:
            at = 0 if rng.random() < 0.5 else at
            name, content = entries[at]
            entries[at] = (name, change_entry(name, content, rng))
    file = io.BytesIO()
    zip64 = rng.random() < 0.1
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile warns about names that it has already
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            if rng.random() < 0.03:
                info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=zip64) as out:
                out.write(content)
        if rng.random() < 0.03:
            archive.comment = b"comment"
    return file.getvalue()


def _change_zip_fields(data: bytes, rng: Random) -> bytes:
    result = bytearray(data)
    marks = [at for at in range(len(data) - 3) if data[at : at + 2] == b"PK" and data[at + 2] < 9]
    for _ in range(rng.randint(1, 3)):
        if not marks:
            return change_bytes(data, rng)
        at = rng.choice(marks) + rng.randrange(0, 56, 2)
        size = rng.choice((1, 2, 4, 8))
        number = rng.choice((*NUMBERS, len(data), at, rng.randrange(1 << 16)))
        if rng.random() < 0.5:
            number = int.from_bytes(result[at : at + size], "little") + rng.choice((-1, 1, 4, -4))
        result[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(result)


def change_torch(data: bytes, rng: Random) -> bytes:
    """Changes a torch file, mostly the opcodes of its pickle."""

    def entry(name: str, content: bytes, rng: Random) -> bytes:
        return (change_pickle if name.endswith(".pkl") else change_bytes)(content, rng)

    return change_zip(data, rng, entry)


def change_npz(data: bytes, rng: Random) -> bytes:
    """Changes an .npz file, mostly the headers of its arrays."""

    def entry(name: str, content: bytes, rng: Random) -> bytes:
        n = 10 + int.from_bytes(content[8:10], "little")
        if n > len(content) or rng.random() < 0.2:
            return change_bytes(content, rng)
        header = bytearray(content[10:n])
        digits = [at for at, sign in enumerate(header) if chr(sign).isdigit()]
        if digits and rng.random() < 0.6:
            at = rng.choice(digits)
            header[at : at + 1] = str(rng.choice(NUMBERS)).encode()
        else:
            header = bytearray(change_bytes(bytes(header), rng))
        return content[:8] + struct.pack("<H", len(header) % 65536) + header + content[n:]

    return change_zip(data, rng, entry)


# ------------------------------------------------------------------------------------------ own bundles


def change_bundle(data: bytes, rng: Random, words: Iterable[str] = ()) -> bytes:
    """Changes the JSON text, the header or the tensors of a bundle and makes the checksums right."""
    n_header = int.from_bytes(data[:8], "little")
    if n_header > len(data) - 8 or rng.random() < 0.05:
        return change_bytes(data, rng)
    try:
        header = json.loads(data[8 : 8 + n_header])
        metadata = header["__metadata__"]
        text, body = metadata["attnsparse"].encode(), data[8 + n_header :]
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        return change_bytes(data, rng)
    if rng.random() < 0.7:
        text = change_json(text, rng, words)
    if rng.random() < 0.4:
        body = change_bytes(body, rng)[: len(body)].ljust(len(body), b"\0")
    if rng.random() < 0.9:
        text = _right_sums(text, header, body)
    header["__metadata__"] = {"sha256": "0" * 64, "attnsparse": text.decode("utf-8", "replace")}
    whole = json.dumps({"__metadata__": header.pop("__metadata__"), **header}, separators=(",", ":")).encode()
    if rng.random() < 0.3:
        whole = change_json(whole, rng, words)
    begin = len(whole).to_bytes(8, "little") + whole
    if whole[_SUM - 8 :].startswith(b"0" * 64) and rng.random() < 0.95:
        begin = begin[:_SUM] + hashlib.sha256(begin).hexdigest().encode() + begin[_SUM + 64 :]
    return begin + body


_SUM = 8 + len('{"__metadata__":{"sha256":"')


def _right_sums(text: bytes, header: dict[str, Any], body: bytes) -> bytes:
    """The JSON text with the tensors' checksums as `body` has them, as far as it can be read."""
    try:
        content = json.loads(text)
        for name in content["tensors"]:
            begin, end = header[name]["data_offsets"]
            content["tensors"][name] = hashlib.sha256(body[begin:end]).hexdigest()
        return json.dumps(content, separators=(",", ":")).encode()
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        return text
