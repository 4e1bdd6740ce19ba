"""A disk that refuses: builds shim/faults.c, and runs processes whose file system calls go through it.

As a process: python faults.py points all|some FORMAT..., or python faults.py record FOLDER FORMAT...; prints
JSON. Several formats in one process, because starting it takes longer than what it does.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import own_formats
import reliability
from own_formats import FORMATS, RUN, Format, content
from places import TESTS

from attnsparse.training.trainer import HISTORY

SOURCE = TESTS / "support" / "shim" / "faults.c"
OPEN, WRITE, HALF_THEN_FAIL, HALF, FSYNC, CLOSE, RENAME, _LINK, UNLINK = range(1, 10)
REFUSED = {
    "open": (OPEN, (errno.EACCES, errno.ENOSPC)),
    "write": (WRITE, (errno.ENOSPC, errno.EIO)),
    "half a write": (HALF_THEN_FAIL, (errno.ENOSPC,)),
    "fsync": (FSYNC, (errno.EIO, errno.ENOSPC)),
    "close": (CLOSE, (errno.EIO,)),
    "rename": (RENAME, (errno.EIO, errno.ENOSPC)),
}
BORNE = {"short write": (HALF, (0,)), "unlink": (UNLINK, (errno.EIO,))}
TEMPORARY = ".attnsparse-tmp"


def compiler() -> str | None:
    """The C compiler, if there is one, on a system that knows LD_PRELOAD."""
    return (shutil.which("cc") or shutil.which("gcc")) if sys.platform == "linux" else None


def build(folder: Path) -> Path:
    """The library of shim/faults.c."""
    library = folder / "faults.so"
    command = [compiler(), "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-o", library, SOURCE]
    subprocess.run([*map(str, command), "-ldl"], check=True)
    return library


def child(library: Path, *arguments: object, timeout: float = 300) -> Any:
    """One of the two processes; a sanitizer that is loaded already stays before the shim."""
    before = [part for part in (os.environ.get("LD_PRELOAD"),) if part]
    preload = ":".join([*before, str(library)])
    return reliability.child(
        __file__, *map(str, arguments), timeout=timeout, LD_PRELOAD=preload, FAULTS_LIBRARY=str(library)
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def points(extent: str, name: str) -> dict[str, Any]:
    """Every call of every kind failing once, without and with an older version in the folder: how many there
    were of each kind, and what went wrong. For "some": of writes every fifth one, with an older version."""
    found, short = Points(FORMATS[name]), extent == "some"
    for kind, (number, errors) in (REFUSED | BORNE).items():
        for error in errors[:1] if short else errors:
            for older in (True,) if short else (False, True):
                found.all_of_a_kind(kind, number, error, older, 5 if short and "write" in kind else 1)
    if name == "training":
        found.goes_on()
    return {"points": found.counts, "wrong": found.wrong}


class Points:
    """The points of one format; `wrong` gets one line for every promise that was not kept."""

    def __init__(self, format: Format) -> None:
        self.format, self.wrong, self.counts = format, [], {}
        self.shim = ctypes.CDLL(os.environ["FAULTS_LIBRARY"])
        self.top = reliability.new_folder()
        self.new = format.make(1)
        self.folders = [self.top / name for name in ("none", "old", "new")]
        for folder in self.folders:
            folder.mkdir()
        format.save(format.make(0), self.folders[1])
        format.save(self.new, self.folders[2])
        self.after, self.new_content = files(self.folders[2]), content(format.load(self.folders[2]))
        self.old_content = content(format.load(self.folders[1]))

    def all_of_a_kind(self, kind: str, number: int, error: int, older: bool, stride: int) -> None:
        """The first call, then every `stride`-th, until there is none."""
        for n in itertools.count(1, stride):
            folder = self.top / "folder"
            shutil.copytree(self.folders[older], folder)
            self.shim.faults_start(os.fsencode(folder), number, n, error, -1)
            try:
                self.format.save(self.new, folder)
                raised = None
            except OSError as caught:
                raised = caught
            fired = self.shim.faults_stop()
            where = f"{kind} {n} errno {error} {'older' if older else 'nothing'}"
            wrong = self.judged(folder, kind, error, older, fired, raised)
            self.wrong += [f"{where}: {text}" for text in wrong]
            shutil.rmtree(folder)
            if not fired:
                return
            self.counts[kind] = self.counts.get(kind, 0) + 1

    def judged(self, folder: Path, kind: str, error: int, older: bool, fired: int, raised: Any) -> list[str]:
        """What is not as it should be after one save."""
        before, after = files(self.folders[older]), files(folder)
        if kind == "unlink":
            after = {name: data for name, data in after.items() if not name.endswith(TEMPORARY)}
        if not fired or (kind in BORNE and not (kind == "unlink" and raised)):  # the record's is told
            return [] if raised is None and after == self.after else [f"saved otherwise, {raised!r}"]
        if raised is None:
            return ["reported as saved"]
        wrong, name = [], os.path.basename(str(raised.filename))
        if raised.errno != error or name not in self.after:
            wrong.append(f"errno {raised.errno}, file {raised.filename}")
        in_place = "in its place" in str(raised)
        if self.format is FORMATS["training"]:  # its history is for information only, and comes first
            in_place = in_place and name != HISTORY
            history = after.pop(HISTORY, None)
            if history not in (before.pop(HISTORY, None), self.after[HISTORY]):
                wrong.append("half a history")
        expected = self.after if in_place else before
        if any(after.get(name) != data for name, data in expected.items() if name != HISTORY):
            wrong.append(f"other bytes, {raised}")
        if after.keys() - expected.keys():
            wrong.append(f"files {sorted(after)}, {raised}")
        if older or in_place:
            content_now = content(self.format.load(folder))
            if content_now != (self.new_content if in_place else self.old_content):
                wrong.append("loads otherwise")
        return wrong

    def goes_on(self) -> None:
        """The trainer that all these saves failed on ends as one on which none did."""
        ends = [content(trainer.train(progress=False)) for trainer in (self.new, own_formats.trainer(1))]
        if ends[0] != ends[1]:
            self.wrong.append("the trainer ended otherwise")


def record(top: Path, name: str) -> None:
    """Save the old version into top/NAME/old and a copy to top/NAME/new; there the new one, on record."""
    format, folder = (FORMATS | RUN)[name], top / name
    old, new = folder / "old", folder / "new"
    old.mkdir(parents=True)
    format.save(format.make(0), old)
    shutil.copytree(old, new)
    shim, later = ctypes.CDLL(os.environ["FAULTS_LIBRARY"]), format.make(1)
    descriptor = os.open(folder / "log", os.O_WRONLY | os.O_CREAT, 0o600)
    shim.faults_start(os.fsencode(new), 0, 0, 0, descriptor)
    format.save(later, new)
    shim.faults_stop()
    os.close(descriptor)


def main() -> None:
    what, where, *names = sys.argv[1:]
    if what == "points":
        print(json.dumps({name: points(where, name) for name in names}))
        return
    for name in names:
        record(Path(where), name)


if __name__ == "__main__":
    main()
