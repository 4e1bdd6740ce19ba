"""What may lie on a disk after the power was lost in a save: a model of a disk that honours fsync, no more.

A record of shim/faults.c says what was done. The power may go after any of these operations. What was written
to a file since its last fsync may be there, be missing or be there by half, each write for itself; what was
done to the entries of the folder since its last fsync may be missing, each for itself, whatever came later.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MOST = 6  # of so many operations on entries all subsets are looked at, of more a random choice


class Operation(NamedTuple):
    """`what` is T (create), O (open), W (write), S (fsync), R (rename), L (link) or U (unlink)."""

    what: str
    name: str
    data: bytes


class File(NamedTuple):
    """Bytes on the disk, then writes that may have got there."""

    safe: bytes
    written: tuple[bytes, ...]


def read_log(path: Path) -> list[Operation]:
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        n_name, n_data = struct.unpack_from("<QQ", data, at + 1)
        name = data[at + 17 : at + 17 + n_name].decode()
        found.append(Operation(chr(data[at]), name, data[at + 17 + n_name : at + 17 + n_name + n_data]))
        at += 17 + n_name + n_data
    return found


def states(operations: list[Operation], old: dict[str, bytes], folder: str) -> Iterator[tuple[int, dict]]:
    """(operations done, name -> bytes) of everything that may lie there; the same state may come twice."""
    disk = Disk(old, folder)
    yield 0, old
    for done, operation in enumerate(operations, 1):
        disk.do(operation)
        for state in disk.after_power_loss():
            yield done, state


class Disk:
    """One folder. Files have numbers, so that a rename moves a file and not its bytes."""

    def __init__(self, old: dict[str, bytes], folder: str) -> None:
        self.folder, self.random = folder, random.Random(0)
        self.files = {number: File(data, ()) for number, data in enumerate(old.values())}
        self.safe = dict(zip(old, self.files))  # entries that are on the disk: name -> number
        self.entries = dict(self.safe)  # entries as processes see them
        self.pending: list[dict[str, int | None]] = []

    def do(self, operation: Operation) -> None:
        what, name = operation.what, Path(operation.name).name
        if what == "T":
            number = self.entries.get(name, len(self.files))
            self.files[number] = File(b"", ())
            self._enter({name: number})
        elif what == "W":
            file = self.files[self.entries[name]]
            self.files[self.entries[name]] = file._replace(written=(*file.written, operation.data))
        elif what == "S" and operation.name == self.folder:
            self.safe, self.pending = dict(self.entries), []
        elif what == "S":
            file = self.files[self.entries[name]]
            self.files[self.entries[name]] = File(file.safe + b"".join(file.written), ())
        elif what == "U":
            self._enter({name: None})
        elif what in "RL":
            to = Path(operation.data.decode()).name
            self._enter({to: self.entries[name]} | ({name: None} if what == "R" else {}))
        else:
            raise ValueError(f"a save does not do {operation}")

    def _enter(self, change: dict[str, int | None]) -> None:
        self.pending.append(change)
        self.entries = applied(self.entries, [change])

    def after_power_loss(self) -> Iterator[dict[str, bytes]]:
        for kept in self._subsets():
            entries = applied(self.safe, kept)
            choices = [self._contents(number) for number in entries.values()]
            for at in range(max(map(len, choices), default=1)):
                yield {name: found[at % len(found)] for name, found in zip(entries, choices)}

    def _subsets(self) -> Iterator[list[dict[str, int | None]]]:
        if len(self.pending) <= MOST:
            for size in range(len(self.pending) + 1):
                yield from map(list, itertools.combinations(self.pending, size))
            return
        yield from ([], self.pending)
        for _ in range(2**MOST):
            yield [change for change in self.pending if self.random.random() < 0.5]

    def _contents(self, number: int) -> list[bytes]:
        """What may be found in one file: nothing, all, and some ways of parts."""
        safe, written = self.files[number]
        if not written:
            return [safe]
        n = len(written)
        whole, last = b"".join(written), written[-1]
        lost = self.random.randrange(n)
        parts = [*written[:lost], bytes(len(written[lost])), *written[lost + 1 :]]
        ways = [
            b"",
            whole,
            whole[: len(whole) - len(last) + len(last) // 2],
            bytes(len(whole)),
            b"".join(parts),
        ]
        return [safe + way for way in dict.fromkeys(ways)]


def applied(entries: dict[str, int], changes: list[dict[str, int | None]]) -> dict[str, int]:
    found = dict(entries)
    for change in changes:
        for name, number in change.items():
            if number is None:
                found.pop(name, None)
            else:
                found[name] = number
    return found
