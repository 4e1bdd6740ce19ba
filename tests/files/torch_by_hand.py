"""Writes torch's zip checkpoints byte by byte, without torch and pickle, so that tests can write bad ones."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterable, Mapping

import numpy as np

STORAGE = {"f4": "FloatStorage", "f2": "HalfStorage", "f8": "DoubleStorage", "i8": "LongStorage",
    "u1": "ByteStorage",
           "b1": "BoolStorage"}  # fmt: skip


def text(value: str) -> bytes:
    """BINUNICODE"""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """LONG1, or BININT where it fits"""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(values: Iterable[int]) -> bytes:
    """A tuple of integers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def name(module: str, attribute: str) -> bytes:
    """GLOBAL"""
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def storage(key: str, kind: str, count: int) -> bytes:
    """The persistent id of a storage, resolved."""
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(
    key: str,
    kind: str,
    count: int,
    offset: int,
    shape: Iterable[int],
    strides: Iterable[int],
    flags: bytes = b"",
    hooks: bytes = b"ccollections\nOrderedDict\n)R",
) -> bytes:
    """One tensor as _rebuild_tensor_v2 writes it; `flags` are its metadata."""
    arguments = (
        storage(key, kind, count)
        + number(offset)
        + numbers(shape)
        + numbers(strides)
        + b"\x89"
        + hooks
        + flags
    )
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def ordered_dict(items: Mapping[str, bytes]) -> bytes:
    """An OrderedDict whose values are given as opcodes."""
    pairs = b"".join(text(key) + value for key, value in items.items())
    return name("collections", "OrderedDict") + b")R(" + pairs + b"u"


def plain_dict(items: Mapping[str, bytes]) -> bytes:
    """A dict whose values are given as opcodes."""
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def finished(opcodes: bytes) -> bytes:
    """A whole pickle of protocol 2."""
    return b"\x80\x02" + opcodes + b"."


def array_tensor(key: str, array: np.ndarray) -> bytes:
    """A contiguous tensor that fills storage `key`."""
    strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
    return tensor(key, STORAGE[array.dtype.str[1:]], array.size, 0, array.shape, strides)


def state_dict(arrays: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, bytes]]:
    """Opcodes of an OrderedDict of tensors, and its storages by key."""
    items, storages = {}, {}
    for index, (key, array) in enumerate(arrays.items()):
        items[key] = array_tensor(str(index), array)
        storages[str(index)] = np.ascontiguousarray(array).tobytes()
    return ordered_dict(items), storages


def archive(
    pickle: bytes,
    storages: Mapping[str, bytes],
    *,
    prefix: str = "archive",
    byteorder: bytes | None = b"little",
    extra: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """The zip archive around a pickle and its storages."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as out:
        out.writestr(f"{prefix}/data.pkl", pickle)
        if byteorder is not None:
            out.writestr(f"{prefix}/byteorder", byteorder)
        for key, data in storages.items():
            out.writestr(f"{prefix}/data/{key}", data)
        out.writestr(f"{prefix}/version", b"3\n")
        for key, data in (extra or {}).items():
            out.writestr(f"{prefix}/{key}", data)
    return file.getvalue()


def torch_file(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A checkpoint with these tensors, as torch.save(state_dict) would write it."""
    opcodes, storages = state_dict(arrays)
    return archive(finished(opcodes), storages)
