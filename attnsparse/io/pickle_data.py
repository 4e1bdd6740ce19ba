"""Reads the pickle inside a torch file as data: it walks the opcodes and builds plain values and inert nodes.

Nothing is imported, looked up or called. A global is kept as a pair of names, and only names of the short
list below are let in; "calling" one of them means recognising the handful of shapes in which torch writes
tensors. A reader of one format may name classes whose objects lie beside the tensors: they become
`PickledObject`s, a name and plain values. No option runs anything.
"""

from __future__ import annotations

import re
import struct
from typing import Any, NoReturn

from ..errors import FormatError, UnsafeFileError, file_error, quoted
from .limits import DEFAULT_LIMITS, Limits
from .torch_nodes import (
    ALLOWED,
    PLAIN_CALLS,
    STORAGE_TYPES,
    STORAGES,
    TENSOR_CALLS,
    TENSOR_CLASSES,
    TYPED,
    Global,
    PickledObject,
    Storage,
)

# INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT1, EXT2, EXT4, STACK_GLOBAL: they import or call, and torch never writes
# them
_CALLING = frozenset(b"io\x81\x92\x82\x83\x84\x93")
# what follows the name of a class of which an object is made: perhaps a memo, no arguments, a memo, NEWOBJ
_NEW_OBJECT = re.compile(rb"(q.|r....)?\)(q.|r....)?\x81", re.DOTALL)
_MAX_GLOBAL_BYTES = 256
_MAX_LONG_BYTES = 9  # any 64-bit number, signed or not


def read_pickle_data(
    data: bytes, path: str, *, limits: Limits = DEFAULT_LIMITS, records: frozenset[str] = frozenset()
) -> Any:
    """The value that `data` describes: None, bool, number, str, tuple, list, dict, and the nodes above.

    What torch's own safe loader admits beside tensors is read as such a value: a set as a list, a Counter as
    a dict, a Size as a tuple, bytes as `Bytes`, a device as a string, an element type as its `Global`.
    `records` are names such as "module.Class": their objects are read as `PickledObject`s.

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
                self.raise_file_error(
                    "pickle_truncated", f"the pickle ends at byte {at:,}, without a last opcode"
                )
            opcode = data[at]
            self.at = at + 1
            n_opcodes += 1
            if n_opcodes > max_opcodes:
                limits.check(
                    "max_pickle_opcodes",
                    n_opcodes,
                    self.path,
                    "the number of steps of the pickle",
                    code="pickle_limit",
                )
            if opcode == 0x2E:  # STOP
                return self.result()
            step = _STEPS.get(opcode)
            if step is None:
                self.unknown(opcode)
            step(self)
            if len(stack) + len(memo) > max_objects:
                what = "the number of objects that the pickle holds at once"
                limits.check(
                    "max_pickle_objects", len(stack) + len(memo), self.path, what, code="pickle_limit"
                )

    def result(self) -> Any:
        if self.at != len(self.data):
            self.raise_file_error(
                "trailing_data", f"{len(self.data) - self.at:,} bytes after the end of the pickle"
            )
        if len(self.stack) != 1 or self.marks:
            self.raise_file_error(
                "pickle_structure", f"the pickle leaves {len(self.stack)} values instead of 1"
            )
        return self.stack[0]

    # --- bytes and stack

    def take(self, n_bytes: int) -> bytes:
        end = self.at + n_bytes
        if end > len(self.data):
            self.raise_file_error(
                "pickle_truncated", f"the pickle ends at byte {len(self.data):,}, inside an opcode"
            )
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def number(self, n_bytes: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(n_bytes), "little", signed=signed)

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + _MAX_GLOBAL_BYTES)
        if end < 0:
            self.raise_file_error("pickle_truncated", f"the name at byte {self.at:,} has no end")
        raw = self.take(end - self.at)
        self.at += 1
        return self.decode(raw)

    def decode(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.raise_file_error("pickle_text", f"text that is not UTF-8 at byte {self.opcode_at:,}")

    def pop(self) -> Any:
        if not self.stack or (self.marks and self.marks[-1] == len(self.stack)):
            self.raise_file_error(
                "pickle_structure", f"nothing on the stack for the opcode at byte {self.opcode_at:,}"
            )
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            self.raise_file_error("pickle_structure", f"no mark for the opcode at byte {self.opcode_at:,}")
        begin = self.marks.pop()
        items = self.stack[begin:]
        del self.stack[begin:]
        return items

    def top(self, kind: type) -> Any:
        at_mark = self.marks and self.marks[-1] == len(self.stack)
        if not self.stack or at_mark or type(self.stack[-1]) is not kind:
            self.raise_file_error(
                "pickle_structure",
                f"no {kind.__name__} on the stack for the opcode at byte {self.opcode_at:,}",
            )
        return self.stack[-1]

    # --- steps

    def protocol(self) -> None:
        version = self.take(1)[0]
        if self.opcode_at != 0 or version > 5:
            self.raise_file_error(
                "opcode", f"pickle protocol {version} at byte {self.opcode_at:,}; torch writes protocol 2"
            )

    def text(self) -> None:
        self.stack.append(self.decode(self.take(self.number(4))))

    def long(self) -> None:
        n_bytes = self.number(1)
        if n_bytes > _MAX_LONG_BYTES:
            self.raise_file_error(
                "pickle_structure", f"a number of {n_bytes} bytes at byte {self.opcode_at:,}"
            )
        self.stack.append(self.number(n_bytes, signed=True))

    def put(self, index: int) -> None:
        if not self.stack or (self.marks and self.marks[-1] == len(self.stack)):
            self.raise_file_error("pickle_structure", f"no value to store at byte {self.opcode_at:,}")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.raise_file_error(
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
            self.raise_file_error("pickle_structure", f"a key without a value at byte {self.opcode_at:,}")
        for key, value in zip(items[::2], items[1::2]):
            if type(key) not in (str, int, float, bool, type(None)):
                self.raise_file_error(
                    "pickle_structure",
                    f"a dict key that is neither a string nor a number at byte {self.opcode_at:,}",
                )
            if key in target:
                self.raise_file_error(
                    "duplicate_name", f"key {quoted(key)} twice in a dict (byte {self.opcode_at:,})"
                )
            target[key] = value

    def find_global(self) -> None:
        name = Global(self.line(), self.line())
        if name not in ALLOWED and ".".join(name) not in self.records:
            self.raise_unsafe("global", self.refusal(".".join(name)))
        self.stack.append(name)

    def refusal(self, name: str) -> str:
        """Why a name is refused; what is made into an object at once is most often a whole saved module."""
        way_out = "save the weights alone: torch.save(model.state_dict(), path)"
        if _NEW_OBJECT.match(self.data, self.at):
            what = f"holds an object of class {quoted(name)}, as torch.save(model) does"
        else:
            what = f"refers to {quoted(name)}; only tensors, numbers, strings, lists and dicts are read"
        return f"{what}. The file was not executed; {way_out}"

    def persistent(self) -> None:
        value = self.pop()
        kind = value[1] if type(value) is tuple and len(value) == 5 and value[0] == "storage" else None
        if not (isinstance(kind, Global) and kind in STORAGES and type(value[2]) is str
                and type(value[3]) is str and type(value[4]) is int and value[4] >= 0):  # fmt: skip
            self.raise_file_error(
                "pickle_structure", f"a reference at byte {self.opcode_at:,} that is not a torch storage"
            )
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
            self.raise_unsafe("call", text + ". The file was not executed")
        return built

    def built(self, function: Any, arguments: Any) -> Any:
        """The value of a call, None if torch writes none like it."""
        if isinstance(function, Global) and type(arguments) is tuple:
            if function in TENSOR_CALLS:
                built, problem = TENSOR_CALLS[function](arguments)
                if problem:
                    self.raise_file_error("tensor_flags", f"a tensor at byte {self.opcode_at:,} {problem}")
                return built
            if function == TYPED and len(arguments) == 4:
                inner, kind, values, _ = arguments  # the last are attributes, which change no value
                known = isinstance(kind, Global) and kind in TENSOR_CLASSES and inner != TYPED
                return self.built(inner, values) if known else None
            if function in PLAIN_CALLS:
                signatures, build = PLAIN_CALLS[function]
                return build(*arguments) if tuple(map(type, arguments)) in signatures else None
        return None

    def new_object(self) -> None:
        """An empty record of a class that was named; its values follow in `build`."""
        if not self.records:
            self.unknown(0x81)
        arguments, kind = self.pop(), self.pop()
        if arguments != () or not isinstance(kind, Global) or ".".join(kind) not in self.records:
            self.raise_unsafe(
                "call", f"makes an object at byte {self.opcode_at:,}. The file was not executed"
            )
        self.stack.append(PickledObject(".".join(kind), {}))

    def build(self) -> None:
        """Values of a record. The attributes of an OrderedDict (`_metadata`) are dropped; nothing else may
        have any."""
        state = self.pop()
        if type(state) is dict and self.stack and type(self.stack[-1]) is PickledObject:
            self.stack[-1].values = state
            return
        if type(state) is not dict or not self.stack or type(self.stack[-1]) is not dict:
            self.raise_unsafe(
                "call", f"sets attributes of an object at byte {self.opcode_at:,}. The file was not executed"
            )

    # --- errors

    def unknown(self, opcode: int) -> NoReturn:
        text = f"pickle opcode 0x{opcode:02x} at byte {self.opcode_at:,} is not used in state dicts"
        if opcode in _CALLING:
            self.raise_unsafe("opcode", text + ". The file was not executed")
        self.raise_file_error("opcode", text)

    def raise_unsafe(self, code: str, text: str) -> NoReturn:
        raise file_error(UnsafeFileError, code, self.path, text, offset=self.opcode_at)

    def raise_file_error(self, code: str, text: str) -> NoReturn:
        raise file_error(FormatError, code, self.path, text, offset=self.opcode_at) from None


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
