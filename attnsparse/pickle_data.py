"""Reads the pickle inside a torch file as data: it walks the opcodes and builds plain values and inert nodes.

Nothing is imported, looked up or called. A global is kept as a pair of names, and only names of the short
list below are let in; "calling" one of them means recognising the handful of shapes in which torch writes
tensors. A reader of one format may name classes whose objects lie beside the tensors: they become
`Record`s, a name and plain values. There is no switch that runs anything.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from .errors import FormatError, UnsafeFileError, located, quoted
from .limits import DEFAULT_LIMITS, Limits
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
_STORAGES = {("torch.storage" if name == "UntypedStorage" else "torch", name) for name in STORAGE_TYPES}
_QUANTIZERS = {("torch", f"per_{of}") for of in ("tensor_affine", "tensor_symmetric", "channel_affine",
               "channel_symmetric", "channel_affine_float_qparams")}  # fmt: skip
_TENSOR_CLASSES = {("torch", "Tensor"), ("torch.nn.parameter", "Parameter")}
# INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT1, EXT2, EXT4, STACK_GLOBAL: they import or call, and torch never writes
# them
_CALLING = frozenset(b"io\x81\x92\x82\x83\x84\x93")
_MAX_GLOBAL_BYTES = 256
_MAX_LONG_BYTES = 9  # any 64-bit number, signed or not


class Global(NamedTuple):
    """A name from the short list; never resolved to anything."""

    module: str
    name: str


@dataclasses.dataclass
class Record:
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

    `negative` is torch's negative bit: the values are those of the storage with the other sign.
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


def read_pickle_data(
    data: bytes, path: str, *, limits: Limits = DEFAULT_LIMITS, records: frozenset[str] = frozenset()
) -> Any:
    """The value that `data` describes: None, bool, number, str, tuple, list, dict, and the nodes above.

    What torch's own safe loader admits beside tensors is read as such a value: a set as a list, a Counter as
    a dict, a Size as a tuple, bytes and a device as a string, an element type as its `Global`. `records` are
    names such as "module.Class": their objects are read as `Record`s.

    Raises UnsafeFileError (codes global, call, opcode) and FormatError (opcode, pickle_truncated,
    pickle_structure, pickle_text, tensor_flags, trailing_data), LimitError (pickle_limit).
    """
    return _Reader(data, path, limits, records).run()


class _Reader:
    """The state of one walk: position, stack, marks and memo."""

    def __init__(self, data: bytes, path: str, limits: Limits, records: frozenset[str]) -> None:
        self.data = data
        self.path = path
        self.limits = limits
        self.records = records
        self.at = 0
        self.opcode_at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        limits, data = self.limits, self.data
        limits.check(
            "max_pickle_bytes", len(data), self.path, f"a pickle of {len(data):,} bytes", code="pickle_limit"
        )
        max_opcodes, max_objects = limits.max_pickle_opcodes, limits.max_pickle_objects
        stack, memo = self.stack, self.memo
        n_opcodes = 0
        while True:
            self.opcode_at = at = self.at
            if at == len(data):
                self.fail("pickle_truncated", f"the pickle ends at byte {at:,}, without a last opcode")
            opcode = data[at]
            self.at = at + 1
            n_opcodes += 1
            if n_opcodes > max_opcodes:
                limits.check(
                    "max_pickle_opcodes", n_opcodes, self.path, "a pickle of more steps", code="pickle_limit"
                )
            if opcode == 0x2E:  # STOP
                return self.result()
            step = _STEPS.get(opcode)
            if step is None:
                self.unknown(opcode)
            step(self)
            if len(stack) + len(memo) > max_objects:
                what = "a pickle with more values at once"
                limits.check(
                    "max_pickle_objects", len(stack) + len(memo), self.path, what, code="pickle_limit"
                )

    def result(self) -> Any:
        if self.at != len(self.data):
            self.fail("trailing_data", f"{len(self.data) - self.at:,} bytes after the end of the pickle")
        if len(self.stack) != 1 or self.marks:
            self.fail("pickle_structure", f"the pickle leaves {len(self.stack)} values instead of 1")
        return self.stack[0]

    # --- bytes and stack

    def take(self, n_bytes: int) -> bytes:
        end = self.at + n_bytes
        if end > len(self.data):
            self.fail("pickle_truncated", f"the pickle ends at byte {len(self.data):,}, inside an opcode")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def number(self, n_bytes: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(n_bytes), "little", signed=signed)

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + _MAX_GLOBAL_BYTES)
        if end < 0:
            self.fail("pickle_truncated", f"the name at byte {self.at:,} has no end")
        raw = self.take(end - self.at)
        self.at += 1
        return self.decode(raw)

    def decode(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail("pickle_text", f"text that is not UTF-8 at byte {self.opcode_at:,}")

    def pop(self) -> Any:
        if not self.stack or (self.marks and self.marks[-1] == len(self.stack)):
            self.fail("pickle_structure", f"nothing on the stack for the opcode at byte {self.opcode_at:,}")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            self.fail("pickle_structure", f"no mark for the opcode at byte {self.opcode_at:,}")
        begin = self.marks.pop()
        items = self.stack[begin:]
        del self.stack[begin:]
        return items

    def top(self, kind: type) -> Any:
        at_mark = self.marks and self.marks[-1] == len(self.stack)
        if not self.stack or at_mark or type(self.stack[-1]) is not kind:
            self.fail(
                "pickle_structure",
                f"no {kind.__name__} on the stack for the opcode at byte {self.opcode_at:,}",
            )
        return self.stack[-1]

    # --- steps

    def protocol(self) -> None:
        version = self.take(1)[0]
        if self.opcode_at != 0 or version > 5:
            self.fail(
                "opcode", f"pickle protocol {version} at byte {self.opcode_at:,}; torch writes protocol 2"
            )

    def text(self) -> None:
        self.stack.append(self.decode(self.take(self.number(4))))

    def long(self) -> None:
        n_bytes = self.number(1)
        if n_bytes > _MAX_LONG_BYTES:
            self.fail("pickle_structure", f"a number of {n_bytes} bytes at byte {self.opcode_at:,}")
        self.stack.append(self.number(n_bytes, signed=True))

    def put(self, index: int) -> None:
        if not self.stack or (self.marks and self.marks[-1] == len(self.stack)):
            self.fail("pickle_structure", f"nothing to remember at byte {self.opcode_at:,}")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.fail(
                "pickle_structure", f"byte {self.opcode_at:,} recalls value {index}, which was never stored"
            )
        self.stack.append(self.memo[index])

    def pair(self) -> None:
        last = self.pop()
        self.stack.append((self.pop(), last))

    def triple(self) -> None:
        last, middle = self.pop(), self.pop()
        self.stack.append((self.pop(), middle, last))

    def append(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def extend(self) -> None:
        items = self.pop_to_mark()
        self.top(list).extend(items)

    def set_item(self) -> None:
        value = self.pop()
        self.set_pairs([self.pop(), value])

    def set_items(self) -> None:
        self.set_pairs(self.pop_to_mark())

    def set_pairs(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            self.fail("pickle_structure", f"a key without a value at byte {self.opcode_at:,}")
        for key, value in zip(items[::2], items[1::2]):
            if type(key) not in (str, int, float, bool, type(None)):
                self.fail(
                    "pickle_structure", f"a dict key that is no string or number at byte {self.opcode_at:,}"
                )
            if key in target:
                self.fail("duplicate_name", f"key {quoted(key)} twice in a dict (byte {self.opcode_at:,})")
            target[key] = value

    def find_global(self) -> None:
        name = Global(self.line(), self.line())
        if name not in _ALLOWED and ".".join(name) not in self.records:
            self.unsafe("global", self.refusal(".".join(name)))
        self.stack.append(name)

    def refusal(self, name: str) -> str:
        """Why a name is refused; what is made into an object at once is most often a whole saved module."""
        if _NEW_OBJECT.match(self.data, self.at):
            return (
                f"holds an object of class {quoted(name)}, as torch.save(model) writes it; save the weights "
                "alone: torch.save(model.state_dict(), path). The file was not executed"
            )
        return (
            f"refers to {quoted(name)}; only tensors, numbers, strings, lists and dicts are read. "
            "The file was not executed"
        )

    def persistent(self) -> None:
        value = self.pop()
        kind = value[1] if type(value) is tuple and len(value) == 5 and value[0] == "storage" else None
        if not (isinstance(kind, Global) and kind in _STORAGES and type(value[2]) is str
                and type(value[3]) is str and type(value[4]) is int and value[4] >= 0):  # fmt: skip
            self.fail("pickle_structure", f"a reference at byte {self.opcode_at:,} that is no torch storage")
        self.stack.append(Storage(value[2], STORAGE_TYPES[kind.name], value[4]))

    def reduce(self) -> None:
        arguments = self.pop()
        function = self.pop()
        self.stack.append(self.called(function, arguments))

    def called(self, function: Any, arguments: Any) -> Any:
        """The value of one of the calls that torch writes; UnsafeFileError for every other."""
        built = self.built(function, arguments)
        if built is None:
            text = f"a call at byte {self.opcode_at:,} that torch does not write for a tensor"
            self.unsafe("call", text + ". The file was not executed")
        return built

    def built(self, function: Any, arguments: Any) -> Any:
        """The value of a call, None if torch writes none like it."""
        if isinstance(function, Global) and type(arguments) is tuple:
            if function in _TENSOR_CALLS:
                built, problem = _TENSOR_CALLS[function](arguments)
                if problem:
                    self.fail("tensor_flags", f"a tensor at byte {self.opcode_at:,} {problem}")
                return built
            if function == _TYPED and len(arguments) == 4:
                inner, kind, values, _ = arguments  # the last are attributes, which change no value
                known = isinstance(kind, Global) and kind in _TENSOR_CLASSES and inner != _TYPED
                return self.built(inner, values) if known else None
            if function in _PLAIN_CALLS:
                signatures, build = _PLAIN_CALLS[function]
                return build(*arguments) if tuple(map(type, arguments)) in signatures else None
        return None

    def new_object(self) -> None:
        """An empty record of a class that was named; its values follow in `build`."""
        if not self.records:
            self.unknown(0x81)
        arguments, kind = self.pop(), self.pop()
        if arguments != () or not isinstance(kind, Global) or ".".join(kind) not in self.records:
            self.unsafe("call", f"makes an object at byte {self.opcode_at:,}. The file was not executed")
        self.stack.append(Record(".".join(kind), {}))

    def build(self) -> None:
        """Values of a record. The attributes of an OrderedDict (`_metadata`) are dropped; nothing else may
        have any."""
        state = self.pop()
        if type(state) is dict and self.stack and type(self.stack[-1]) is Record:
            self.stack[-1].values = state
            return
        if type(state) is not dict or not self.stack or type(self.stack[-1]) is not dict:
            self.unsafe(
                "call", f"sets attributes of an object at byte {self.opcode_at:,}. The file was not executed"
            )

    # --- errors

    def unknown(self, opcode: int) -> NoReturn:
        text = f"pickle opcode 0x{opcode:02x} at byte {self.opcode_at:,} is not used in state dicts"
        if opcode in _CALLING:
            self.unsafe("opcode", text + ". The file was not executed")
        self.fail("opcode", text)

    def unsafe(self, code: str, text: str) -> NoReturn:
        raise located(UnsafeFileError, code, self.path, text, offset=self.opcode_at)

    def fail(self, code: str, text: str) -> NoReturn:
        raise located(FormatError, code, self.path, text, offset=self.opcode_at) from None


Built = tuple[StoredTensor | OddTensor | None, str]  # None: not a call that torch writes; what is wrong


def _tensor(arguments: tuple) -> Built:
    """_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks[, metadata])."""
    if len(arguments) not in (6, 7) or not isinstance(arguments[0], Storage):
        return None, ""
    return _view(arguments[0], arguments[1:6], arguments[6] if len(arguments) == 7 else None)


def _tensor_of_bytes(arguments: tuple) -> Built:
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


def _view(storage: Storage, rest: tuple, metadata: Any) -> Built:
    offset, shape, strides, requires_grad, hooks = rest
    whole = type(offset) is int and type(shape) is tuple and type(strides) is tuple
    if not whole or not all(type(number) is int for number in shape + strides):
        return None, ""
    if type(requires_grad) is not bool or storage.dtype == "BYTES":
        return None, ""
    if hooks not in (None, {}):
        return None, "has hooks; save it without: torch.save({name: x.detach().clone()})"
    flags = {} if metadata is None else metadata
    if type(flags) is not dict or not all(
        key in ("neg", "conj") and value is True for key, value in flags.items()
    ):
        return None, "has flags that are not known; save x.clone() of it"
    if "conj" in flags and storage.dtype not in ("C32", "C64", "C128"):
        return None, "has the conjugate bit but real values; save x.resolve_conj()"
    return StoredTensor(storage, offset, shape, strides, "neg" in flags), ""


def _parameter(arguments: tuple) -> Built:
    """_rebuild_parameter[_with_state](data, requires_grad, hooks[, attributes])."""
    known = len(arguments) in (3, 4) and type(arguments[1]) is bool
    if not known or not isinstance(arguments[0], StoredTensor | OddTensor):
        return None, ""
    if arguments[2] not in (None, {}):
        return None, "has hooks; save it without: torch.save(model.state_dict(), path)"
    return arguments[0], ""


def _odd(kind: str) -> Callable[[tuple], Built]:
    return lambda _: (OddTensor(kind), "")


_UTILS = "torch._utils"
_TYPED = ("torch._tensor", "_rebuild_from_type_v2")
_TENSOR_CALLS: dict[tuple[str, str], Callable[[tuple], Built]] = {
    (_UTILS, "_rebuild_tensor_v2"): _tensor,
    (_UTILS, "_rebuild_tensor_v3"): _tensor_of_bytes,
    (_UTILS, "_rebuild_parameter"): _parameter,
    (_UTILS, "_rebuild_parameter_with_state"): _parameter,
    (_UTILS, "_rebuild_qtensor"): _odd("a quantized tensor; save x.dequantize()"),
    (_UTILS, "_rebuild_sparse_tensor"): _odd("a sparse tensor; save x.to_dense()"),
    (_UTILS, "_rebuild_nested_tensor"): _odd("a nested tensor; save its parts"),
    (_UTILS, "_rebuild_meta_tensor_no_storage"): _odd("a meta tensor, which has no values"),
}


def _as_it_is(value: Any = "", *_: Any) -> Any:
    """A value that stands for what is made of it; no copy, or a short file could ask for many long ones."""
    return value


# name -> the kinds of its arguments, and what stands for its value; bytes stay the text that they are made of
_PLAIN_CALLS: dict[tuple[str, str], tuple[tuple[tuple[type, ...], ...], Callable[..., Any]]] = {
    ("collections", "OrderedDict"): (((),), dict),
    ("collections", "Counter"): (((dict,),), _as_it_is),
    ("torch", "Size"): (((tuple,),), _as_it_is),
    ("torch", "device"): (((str,), (str, int)), lambda kind, *index: ":".join([kind[:64], *map(str, index)])),
    ("torch.serialization", "_get_layout"): (((str,),), _as_it_is),
    ("_codecs", "encode"): (((str, str),), _as_it_is),
}
for _module in ("builtins", "__builtin__"):  # the names of Python 3 and those that protocol 2 gives them
    _PLAIN_CALLS[_module, "set"] = (((list,),), _as_it_is)
    _PLAIN_CALLS[_module, "bytearray"] = (((), (str,), (str, str)), _as_it_is)
    _PLAIN_CALLS[_module, "complex"] = (((float, float),), complex)
_ALLOWED = {
    *_STORAGES, *_QUANTIZERS, *_TENSOR_CLASSES, _TYPED, *_TENSOR_CALLS, *_PLAIN_CALLS,
    *(("torch", name) for name in TYPES),
}  # fmt: skip
# what follows the name of a class of which an object is made: perhaps a memo, no arguments, a memo, NEWOBJ
_NEW_OBJECT = re.compile(rb"(q.|r....)?\)(q.|r....)?\x81", re.DOTALL)

_STEPS = {
    0x80: _Reader.protocol,
    ord("c"): _Reader.find_global,
    ord("R"): _Reader.reduce,
    0x81: _Reader.new_object,
    ord("b"): _Reader.build,
    ord("Q"): _Reader.persistent,
    ord("("): lambda self: self.marks.append(len(self.stack)),
    ord("N"): lambda self: self.stack.append(None),
    0x88: lambda self: self.stack.append(True),
    0x89: lambda self: self.stack.append(False),
    ord("K"): lambda self: self.stack.append(self.number(1)),
    ord("M"): lambda self: self.stack.append(self.number(2)),
    ord("J"): lambda self: self.stack.append(self.number(4, signed=True)),
    0x8A: _Reader.long,
    ord("G"): lambda self: self.stack.append(struct.unpack(">d", self.take(8))[0]),
    ord("X"): _Reader.text,
    0x8C: lambda self: self.stack.append(self.decode(self.take(self.number(1)))),
    0x95: lambda self: self.number(8),  # FRAME, of protocol 4: only a hint about sizes
    0x94: lambda self: self.put(len(self.memo)),
    ord("q"): lambda self: self.put(self.number(1)),
    ord("r"): lambda self: self.put(self.number(4)),
    ord("h"): lambda self: self.get(self.number(1)),
    ord("j"): lambda self: self.get(self.number(4)),
    ord(")"): lambda self: self.stack.append(()),
    ord("t"): lambda self: self.stack.append(tuple(self.pop_to_mark())),
    0x85: lambda self: self.stack.append((self.pop(),)),
    0x86: _Reader.pair,
    0x87: _Reader.triple,
    ord("]"): lambda self: self.stack.append([]),
    ord("a"): _Reader.append,
    ord("e"): _Reader.extend,
    ord("}"): lambda self: self.stack.append({}),
    ord("s"): _Reader.set_item,
    ord("u"): _Reader.set_items,
}
