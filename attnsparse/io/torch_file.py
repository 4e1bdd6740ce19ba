"""Reads what torch.save wrote (the zip format of torch >= 1.6) without torch and without running anything.

The archive's directory is checked by zip_directory.py, its pickle is read as data by pickle_data.py; here
each tensor is checked against the storage it views. Data are read one storage at a time, and every storage's
CRC is verified, unless torch was told to write none.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import FormatError, file_error, quoted
from .foreign import BEGIN_BYTES, kind_of_bytes
from .limits import DEFAULT_LIMITS, Limits
from .pickle_data import read_pickle_data
from .regular_file import CHUNK_BYTES, RegularFile, bytes_of
from .tensor_source import (
    FLOAT_TYPES,
    ITEM_BYTES,
    ByteRange,
    FileSource,
    TensorInfo,
    check_crc,
    has_too_many_bytes,
)
from .torch_nodes import OddTensor, StoredTensor
from .zip_directory import read_zip_directory

# keys under which training programs keep the state dict, perhaps one in another
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network", "weights")
_MAX_WRAPPERS = 4
# notes of torch for itself in the archive, without meaning here, and how it writes them
_NOTES = {".storage_alignment": rb"[0-9]{1,9}", ".data/serialization_id": rb"[ -~]*"}
_CONFIGS = ("model_args", "cfg")  # nanoGPT's name; what TransformerLens calls a config


class TorchFile(FileSource):
    """The state dict in a torch file, open for reading; `tensors` lists its tensors.

    The state dict may be the file's top level or lie under the keys that training programs use (`model`,
    `state_dict`, ...), one in another too; `config` then is nanoGPT's `model_args` or a `cfg` beside it.
    `records`: see `read_pickle_data`. Raises FormatError with the codes of zip_directory and pickle_data and
    magic, zip_content, version, byteorder, pickle_structure, dtype, missing_storage, storage_size, bad_view,
    crc; UnsafeFileError; LimitError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        limits: Limits = DEFAULT_LIMITS,
        records: frozenset[str] = frozenset(),
    ) -> None:
        self._file = RegularFile(path)
        try:
            _check_magic(self._file)
            self._entries = read_zip_directory(self._file, limits, crc_may_be_off=True)
            root = self._read_pickle(limits, records)
            #: the objects beside the weights: plain values and inert records by name
            self._views, self.beside = _state_dict(root, self._file.path)
            config = _config(self.beside, self._file.path)
            self._check_views(limits)
        except BaseException:
            self._file.close()
            raise
        #: storages that were compared with their checksums
        self.verified: set[str] = set()
        views = self._views.items()
        super().__init__(path, {name: TensorInfo(view.shape, view.storage.dtype) for name, view in views})
        self.config = config
        self.left_out = tuple(name for name, value in self.beside.items() if _holds_tensors(value))

    def _read_pickle(self, limits: Limits, records: frozenset[str]) -> Any:
        path = self._file.path
        found = [name for name in self._entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            text = f"an archive with {len(found)} entries called data.pkl; a torch checkpoint has one"
            raise file_error(FormatError, "zip_content", path, text)
        self._prefix = found[0][: -len("data.pkl")]
        for name in self._entries:
            if not name.startswith(self._prefix):
                text = f"entry {quoted(name)} is outside {quoted(self._prefix)}, where torch puts all"
                raise file_error(FormatError, "zip_content", path, text, field=name)
        self._check_version()
        if self._prefix + "constants.pkl" in self._entries:
            text = "a TorchScript program, not a checkpoint; save model.state_dict() with torch.save"
            raise file_error(FormatError, "magic", path, text)
        order = self._prefix + "byteorder"
        if order in self._entries and self._entry_bytes(order, 16) != b"little":
            text = "written on a big-endian machine; re-save it on a little-endian one"
            raise file_error(FormatError, "byteorder", path, text, field=order)
        n_bytes = self._entries[found[0]].n_bytes
        limits.check("max_pickle_bytes", n_bytes, path, f"a pickle of {n_bytes:,} bytes", code="pickle_limit")
        return read_pickle_data(self._entry_bytes(found[0], n_bytes), path, limits=limits, records=records)

    def _check_version(self) -> None:
        """torch.save has written version 3 since 1.6; torch itself reads no other version."""
        names = [name for name in (".data/version", "version") if self._prefix + name in self._entries]
        found = self._entry_bytes(self._prefix + names[0], 16) if names else b""
        if not re.fullmatch(rb"[1-9]|10", found.strip(b"\n")):
            text = f"archive version {quoted(found.decode('latin-1'))}, expected 1..10 as torch writes it"
            raise file_error(FormatError, "version", self._file.path, text, field="version")
        for name, form in _NOTES.items():
            entry = self._prefix + name
            if entry in self._entries and not re.fullmatch(form, self._entry_bytes(entry, 64)):
                text = f"entry {quoted(entry)} is not what torch writes; the archive is damaged"
                raise file_error(FormatError, "version", self._file.path, text, field=entry)

    def _entry_bytes(self, name: str, at_most: int) -> bytes:
        place = self._entries[name]
        data = bytearray(min(place.n_bytes, at_most))
        crc = self._file.read_into(place.offset, memoryview(data), with_crc=True)
        if len(data) == place.n_bytes:
            check_crc(self._file.path, name, place.crc, crc)
        return bytes(data)

    def _check_views(self, limits: Limits) -> None:
        path = self._file.path
        limits.check(
            "max_tensors", len(self._views), path, f"{len(self._views):,} tensors", code="tensor_limit"
        )
        for name, view in self._views.items():
            limits.check(
                "max_name_bytes", len(name.encode("utf-8")), path, "a tensor name", code="name_limit"
            )
            rank = len(view.shape)
            what = f"tensor {quoted(name)} with {rank:,} dimensions"
            limits.check("max_rank", rank, path, what, code="rank_limit", field=name)
            place = self._entries.get(f"{self._prefix}data/{view.storage.key}")
            if place is None:
                text = f"tensor {quoted(name)}: the archive lacks its storage {quoted(view.storage.key)}"
                raise file_error(FormatError, "missing_storage", path, text, field=name)
            count, dtype = view.storage.n_elements, view.storage.dtype
            n_bytes = count * ITEM_BYTES[dtype]
            if place.n_bytes != n_bytes:
                text = (
                    f"storage {quoted(view.storage.key)} declares {count:,} {dtype} values ({n_bytes:,} "
                    f"bytes), the archive holds {place.n_bytes:,}"
                )
                raise file_error(FormatError, "storage_size", path, text, field=name)
            _check_view(view, name, path)

    def _locate(self, name: str) -> ByteRange | None:
        view = self._views[name]
        if view.negative or not _is_row_major(view):
            return None
        place = self._entries[f"{self._prefix}data/{view.storage.key}"]
        if math.prod(view.shape) == view.storage.n_elements:
            return place
        self._verify(view.storage.key, place)
        item = ITEM_BYTES[view.storage.dtype]
        return ByteRange(place.offset + view.offset * item, math.prod(view.shape) * item)

    def _locate_rows(self, name: str) -> int | None:
        view = self._views[name]
        if view.negative or not _is_row_major(view):
            return None
        place = self._entries[f"{self._prefix}data/{view.storage.key}"]
        self._verify(view.storage.key, place)
        return place.offset + view.offset * ITEM_BYTES[view.storage.dtype]

    def _gather(self, name: str) -> np.ndarray:
        view = self._views[name]
        place = self._entries[f"{self._prefix}data/{view.storage.key}"]
        self._verify(view.storage.key, place)
        span = 1 + sum((side - 1) * stride for side, stride in zip(view.shape, view.strides))
        raw: np.ndarray = np.empty(span, FLOAT_TYPES[view.storage.dtype])
        item = raw.itemsize
        self._file.read_into(place.offset + view.offset * item, bytes_of(raw))
        # the stride of a side of 1 is never taken, and may be larger than NumPy can hold
        strides = tuple(stride * item * (side > 1) for side, stride in zip(view.shape, view.strides))
        array: np.ndarray = np.ndarray(view.shape, raw.dtype, raw, 0, strides)
        if not view.negative:
            return array
        negative: np.ndarray = (
            array ^ np.uint16(0x8000) if view.storage.dtype == "BF16" else np.negative(array)
        )
        return negative

    def read_flags(self, name: str) -> np.ndarray:
        """A tensor of type BOOL as booleans; FormatError `dtype` or `value` for anything else."""
        info, place = self.tensors[name], self._locate_rows(name)
        if info.dtype != "BOOL" or place is None:
            text = f"tensor {quoted(name)} must be contiguous booleans, got {info.dtype}"
            raise file_error(FormatError, "dtype", self.path, text, field=name)
        raw: np.ndarray = np.empty(info.shape, np.uint8)
        if raw.size:
            self._file.read_into(place, bytes_of(raw))
        if (raw > 1).any():
            text = f"tensor {quoted(name)} has bytes that are no booleans"
            raise file_error(FormatError, "value", self.path, text, field=name)
        return raw.view(np.bool_)

    def _verify(self, key: str, place: ByteRange) -> None:
        """Check a whole storage once by its CRC if it has one, keeping nothing."""
        if place.crc is None or key in self.verified:
            return
        buffer = memoryview(bytearray(min(CHUNK_BYTES, place.n_bytes)))
        crc = 0
        for done in range(0, place.n_bytes, CHUNK_BYTES):
            part = buffer[: place.n_bytes - done]
            crc = self._file.read_into(place.offset + done, part, crc, with_crc=True)
        check_crc(self.path, f"{self._prefix}data/{key}", place.crc, crc)
        self.verified.add(key)

    def same_values(self, first: str, second: str) -> bool:
        """True if two tensors have the same shape and values; tied weights are known without reading them."""
        return self._views[first] == self._views[second] or super().same_values(first, second)


def _check_magic(file: RegularFile) -> None:
    if file.size < 4:
        text = f"{file.size} bytes, too short for a torch file; probably an incomplete download"
        raise file_error(FormatError, "too_short", file.path, text, offset=0)
    begin = file.read(0, min(file.size, BEGIN_BYTES))
    if not begin.startswith(b"PK\x03\x04"):
        what = kind_of_bytes(begin) or "not a torch file (no zip archive)"
        if begin[8:9] == b"{":
            what = "a safetensors file; rename it to .safetensors"
        raise file_error(FormatError, "magic", file.path, f"this is {what}", offset=0)


def _state_dict(root: object, path: str) -> tuple[dict[str, StoredTensor], dict[str, object]]:
    """Find the tensors by name among the objects of the pickle, and the objects beside them."""
    places = list(_places(root))
    if not places:
        keys = _keys_with_tensors(root)
        what = f"tensors lie under {keys}; save them alone: torch.save(x[key], path)" if keys else (
            f"expected a dict of tensors, or one under {', '.join(map(repr, _WRAPPERS[:3]))}"
        )  # fmt: skip
        raise file_error(FormatError, "pickle_structure", path, f"no state dict: {what}")
    if len(places) > 1:
        found = " and ".join(".".join(map(str, keys)) for keys in places[:3])
        text = f"several state dicts, under {found}; save one alone: torch.save(x[key], path)"
        raise file_error(FormatError, "pickle_structure", path, text)
    beside: dict[str, object] = {}
    tensors: dict[str, StoredTensor] = {}
    within: Any = root
    for key in places[0]:
        beside |= {other: value for other, value in within.items() if other != key}
        within = within[key]
    for name, value in within.items():
        if type(name) is not str:
            text = f"{quoted(name)} in the state dict is not the name of a tensor"
            raise file_error(FormatError, "pickle_structure", path, text, field=quoted(name))
        if isinstance(value, OddTensor):
            text = f"{quoted(name)} is {value.kind}"
            raise file_error(FormatError, "dtype", path, text, field=name)
        if isinstance(value, StoredTensor):
            tensors[name] = value
        else:
            beside[name] = value
    return tensors, beside


def _places(value: object, depth: int = 0) -> Iterator[tuple[str, ...]]:
    """The ways of keys that lead to a dict of tensors through `_WRAPPERS`."""
    if type(value) is not dict or depth > _MAX_WRAPPERS:
        return
    inner = [(key, *rest) for key in _WRAPPERS if key in value for rest in _places(value[key], depth + 1)]
    if inner:
        yield from inner
    elif any(isinstance(item, StoredTensor | OddTensor) for item in value.values()):
        yield ()


def _keys_with_tensors(root: object) -> str:
    """The keys of a dict that hold tensors somewhere, for a message; empty if none does."""
    if type(root) is not dict:
        return ""
    return ", ".join([quoted(key) for key, value in root.items() if _holds_tensors(value)][:4])


def _holds_tensors(root: object) -> bool:
    """Whether there are tensors in nested dicts, lists and tuples; each of them is looked at once."""
    pending: list[Any] = [root]
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if isinstance(value, StoredTensor | OddTensor):
            return True
        if type(value) in (dict, list, tuple) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value.values() if type(value) is dict else value)
    return False


def _config(beside: dict[str, object], path: str) -> dict[str, object] | None:
    """A config beside the weights, if there is one."""
    for key in _CONFIGS:
        values = beside.get(key)
        if type(values) is dict:
            if not all(type(name) is str for name in values):
                text = f"{key!r} has a name that is not a string"
                raise file_error(FormatError, "pickle_structure", path, text, field=key)
            return values
    return None


def _check_view(view: StoredTensor, name: str, path: str) -> None:
    """A tensor must be inside its storage and reach no element twice."""
    problem = None
    count = view.storage.n_elements
    n_values = math.prod(view.shape)
    if len(view.shape) != len(view.strides):
        problem = f"has {len(view.shape)} sides and {len(view.strides)} strides"
    elif view.offset < 0 or min(view.shape, default=0) < 0 or min(view.strides, default=0) < 0:
        problem = "has a negative offset, side or stride"
    elif not n_values and has_too_many_bytes(view.shape):
        text = f"tensor {quoted(name)}: no array can have shape {list(view.shape)!s:.80}"
        raise file_error(FormatError, "size_overflow", path, text, field=name)
    elif n_values and any(stride == 0 and side > 1 for side, stride in zip(view.shape, view.strides)):
        problem = "repeats elements (stride 0); save a contiguous copy"
    elif n_values:
        last = view.offset + sum((side - 1) * stride for side, stride in zip(view.shape, view.strides))
        if last >= count:
            problem = f"reaches element {last:,} of a storage with {count:,}"
        elif n_values > count:
            problem = f"has {n_values:,} values in a storage with {count:,}"
    if problem:
        raise file_error(FormatError, "bad_view", path, f"tensor {quoted(name)} {problem}", field=name)


def _is_row_major(view: StoredTensor) -> bool:
    expected = 1
    for side, stride in zip(reversed(view.shape), reversed(view.strides)):
        if side != 1 and stride != expected:
            return False
        expected *= side
    return True
