"""What a torch file's pickle may hold: inert values in place of its objects, and calls that torch writes.

A call is recognised by its name and the kinds of its arguments; nothing is resolved or run. pickle_data.py
walks the opcodes and asks here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from .tensor_source import ITEM_BYTES

#: element types by torch's names for them; BYTES is a storage whose tensors say their own
TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "uint16": "U16", "uint32": "U32",
    "uint64": "U64", "complex32": "C32", "complex64": "C64", "complex128": "C128",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
STORAGE_TYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage":
    "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "ComplexDoubleStorage": "C128",
    "QInt8Storage": "I8", "QUInt8Storage": "U8", "QInt32Storage": "I32", "UntypedStorage": "BYTES",
}  # fmt: skip
STORAGES = {("torch.storage" if name == "UntypedStorage" else "torch", name) for name in STORAGE_TYPES}
_QUANTIZERS = {("torch", f"per_{of}") for of in ("tensor_affine", "tensor_symmetric", "channel_affine",
               "channel_symmetric", "channel_affine_float_qparams")}  # fmt: skip
TENSOR_CLASSES = {("torch", "Tensor"), ("torch.nn.parameter", "Parameter")}


class Global(NamedTuple):
    """A name from the short list; never resolved to anything."""

    module: str
    name: str


@dataclasses.dataclass
class PickledObject:
    """An object of a class that the caller named: the class's name and the values of its attributes."""

    name: str
    values: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of numbers in the archive's entry `data/<key>`: element type and how many of them."""

    key: str
    dtype: str
    n_elements: int


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A view of a storage: first element, shape, strides, in elements. Its bounds are not yet checked.

    `negative` is torch's negative bit: the values are those of the storage, negated.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    negative: bool = False


@dataclasses.dataclass(frozen=True)
class OddTensor:
    """A tensor that is no view of one storage; `kind` says which: sparse, quantized, nested, meta."""

    kind: str


Built = tuple[StoredTensor | OddTensor | None, str]  # None: not a call that torch writes; what is wrong


def _tensor(arguments: tuple[Any, ...]) -> Built:
    """_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks[, metadata])."""
    if len(arguments) not in (6, 7) or not isinstance(arguments[0], Storage):
        return None, ""
    return _view(arguments[0], arguments[1:6], arguments[6] if len(arguments) == 7 else None)


def _tensor_of_bytes(arguments: tuple[Any, ...]) -> Built:
    """_rebuild_tensor_v3: as _rebuild_tensor_v2 of untyped bytes, with the element type before metadata."""
    if len(arguments) not in (7, 8) or not isinstance(arguments[0], Storage):
        return None, ""
    storage, kind = arguments[0], arguments[6]
    if not (isinstance(kind, Global) and kind.module == "torch" and kind.name in TYPES):
        return None, ""
    dtype = TYPES[kind.name]
    if storage.dtype != "BYTES" or storage.n_elements % ITEM_BYTES[dtype]:
        return None, ""
    typed = Storage(storage.key, dtype, storage.n_elements // ITEM_BYTES[dtype])
    return _view(typed, arguments[1:6], arguments[7] if len(arguments) == 8 else None)


def _view(storage: Storage, rest: tuple[Any, ...], metadata: Any) -> Built:
    offset, shape, strides, requires_grad, hooks = rest
    whole = type(offset) is int and type(shape) is tuple and type(strides) is tuple
    if not whole or not all(type(number) is int for number in shape + strides):
        return None, ""
    if type(requires_grad) is not bool or storage.dtype == "BYTES":
        return None, ""
    if requires_grad and not storage.dtype.startswith(("F", "BF16", "C")):  # torch has no such tensors
        return None, ""
    if hooks not in (None, {}):
        return None, "has hooks; save it without: torch.save({name: x.detach().clone()})"
    flags = {} if metadata is None else metadata
    if type(flags) is not dict or not all(
        key in ("neg", "conj") and value is True for key, value in flags.items()
    ):
        return None, "has unknown flags; save x.clone() of it"
    if "conj" in flags and storage.dtype not in ("C32", "C64", "C128"):
        return None, "has the conjugate bit but real values; save x.resolve_conj()"
    return StoredTensor(storage, offset, shape, strides, "neg" in flags), ""


def _parameter(arguments: tuple[Any, ...], n_arguments: int = 3) -> Built:
    """_rebuild_parameter[_with_state](data, requires_grad, hooks[, attributes])."""
    known = len(arguments) == n_arguments and type(arguments[1]) is bool
    if not known or not isinstance(arguments[0], StoredTensor | OddTensor):
        return None, ""
    if arguments[2] not in (None, {}):
        return None, "has hooks; save it without: torch.save(model.state_dict(), path)"
    return arguments[0], ""


def _odd(kind: str) -> Callable[[tuple[Any, ...]], Built]:
    return lambda _: (OddTensor(kind), "")


_UTILS = "torch._utils"
TYPED = ("torch._tensor", "_rebuild_from_type_v2")
TENSOR_CALLS: dict[tuple[str, str], Callable[[tuple[Any, ...]], Built]] = {
    (_UTILS, "_rebuild_tensor_v2"): _tensor,
    (_UTILS, "_rebuild_tensor_v3"): _tensor_of_bytes,
    (_UTILS, "_rebuild_parameter"): _parameter,
    (_UTILS, "_rebuild_parameter_with_state"): lambda arguments: _parameter(arguments, 4),
    (_UTILS, "_rebuild_qtensor"): _odd("a quantized tensor; save x.dequantize()"),
    (_UTILS, "_rebuild_sparse_tensor"): _odd("a sparse tensor; save x.to_dense()"),
    (_UTILS, "_rebuild_nested_tensor"): _odd("a nested tensor; save its parts"),
    (_UTILS, "_rebuild_meta_tensor_no_storage"): _odd("a meta tensor, which has no values"),
}


class Bytes(NamedTuple):
    """Bytes, as the text of which torch makes them."""

    text: str


# Nothing here copies a value, and what is looked at is short: a value may be recalled from the memo a million
# times by a short file.


def _encoded(text: str, codec: str) -> Bytes | None:
    one_byte_each = text.isascii() or (len(text) <= _MAX_ENCODED and max(text) <= "\xff")
    return Bytes(text) if codec == "latin1" and one_byte_each else None


def _size(sides: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return sides if len(sides) <= _MAX_SIDES and all(type(side) is int for side in sides) else None


def _device(kind: str, index: int | None = None) -> str | None:
    name = kind[:_MAX_DEVICE] if index is None else f"{kind[:_MAX_DEVICE]}:{index}"
    return name if re.fullmatch(r"(cpu|cuda|mps|meta|xla|xpu|hpu)(:[0-9]{1,2})?", name) else None


def _layout(name: str) -> str | None:
    return name if re.fullmatch(r"torch\.(strided|sparse_(coo|cs[rc]|bs[rc]))", name) else None


def _given(value: Any = "", *_: Any) -> Any:
    return value


_MAX_ENCODED, _MAX_SIDES, _MAX_DEVICE = 16_384, 64, 32
# name -> the kinds of its arguments, and what represents its value: None if torch makes no such call
PLAIN_CALLS: dict[tuple[str, str], tuple[tuple[tuple[type, ...], ...], Callable[..., Any]]] = {
    ("collections", "OrderedDict"): (((),), dict),
    ("collections", "Counter"): (((dict,),), _given),
    ("torch", "Size"): (((tuple,),), _size),
    ("torch", "device"): (((str,), (str, int)), _device),
    ("torch.serialization", "_get_layout"): (((str,),), _layout),
    ("_codecs", "encode"): (((str, str),), _encoded),
}  # fmt: skip
for _module in ("builtins", "__builtin__"):  # the names of Python 3 and those that protocol 2 gives them
    PLAIN_CALLS[_module, "set"] = (((list,),), _given)
    PLAIN_CALLS[_module, "bytearray"] = (((), (Bytes,), (str, str)), lambda *given: given and given[0])
    PLAIN_CALLS[_module, "complex"] = (((float, float),), complex)
ALLOWED = {
    *STORAGES, *_QUANTIZERS, *TENSOR_CLASSES, TYPED, *TENSOR_CALLS, *PLAIN_CALLS,
    *(("torch", name) for name in TYPES),
}  # fmt: skip
