"""Files that are there whole or not at all: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .labels import checked_path

TEMPORARY = ".attnsparse-tmp"
PIECE_BYTES = 16 * 2**20  # written at once, so that Ctrl-C is heard in between
FLUSH_BYTES = 4 * PIECE_BYTES  # flushed at once, for the same reason

File = tuple[str | os.PathLike[str], Iterable[Any]]


def write_atomic(path: str | os.PathLike[str], pieces: Iterable[Any]) -> None:
    """Write bytes-like `pieces` to `path` by way of a temporary file in the same folder.

    The file is flushed to the disk before it takes its name and the folder afterwards; when this returns,
    both are done. OSError has errno and `path`; whatever stops it, no temporary file stays behind and an
    earlier file of that name is as it was.
    """
    write_together([(path, pieces)])


def write_together(files: Iterable[File]) -> None:
    """Write several files of one folder, (path, bytes-like pieces), all of them or none.

    The last one is what makes the others a whole: it is taken away before they change and comes back after
    them, so a loss of power leaves all old ones, all new ones, or a set that lacks it, never a mixture.
    Nothing takes its name before all are written and flushed. OSError has errno and the file's name; whatever
    stops it, no temporary file stays behind and earlier files are as they were. Where the file system has
    no hard links and a rename fails after another one has succeeded, the earlier files are not brought back.
    """
    change = _Change()
    try:
        for path, pieces in files:
            change.write(Path(checked_path(path)), pieces)
        change.put_in_place()
        change.forget()
    except OSError as error:
        note = change.undo()
        raise OSError(error.errno, f"{error.strerror}{note}", str(change.current)) from error
    except BaseException:
        change.undo()
        raise


def remove_stale(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove temporary files that a killed save left in `folder`; returns what was removed.

    Called when a run starts or goes on in that folder. One folder belongs to one run at a time.
    """
    removed = []
    for path in sorted(Path(folder).glob(f".*{TEMPORARY}")):
        path.unlink(missing_ok=True)
        removed.append(path)
    return removed


class _Change:
    """The files of one save. Names are decided before anything is done, so that undoing needs no luck."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.existed: list[bool] = []
        self.n_begun = 0  # of the others, in order, how many may have changed
        self.in_place = False
        self.current = Path()  # what an error is about

    def write(self, path: Path, pieces: Iterable[Any]) -> None:
        """Write and flush the new file under its temporary name."""
        self.current = path
        self.existed.append(path.exists())
        self.paths.append(path)
        descriptor = os.open(_beside(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            _write_all(descriptor, pieces)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def put_in_place(self) -> None:
        """Rename all, the last one last."""
        *others, last = self.paths
        if others:
            self._replace_others(others, last)
        self.current = last
        os.replace(_beside(last), last)
        self.in_place = True
        _sync_folder(last.parent)

    def _replace_others(self, others: list[Path], last: Path) -> None:
        if self.existed[-1]:
            self.current = last
            os.replace(last, _beside(last, ".old"))
            _sync_folder(last.parent)
        for path, existed in zip(others, self.existed):
            self.current = path
            self.n_begun += 1
            if existed:
                _remove(_beside(path, ".old"))
                with contextlib.suppress(OSError):
                    os.link(path, _beside(path, ".old"))
            os.replace(_beside(path), path)
        _sync_folder(last.parent)

    def undo(self) -> str:
        """Bring back what was there, unless all new files are in place; words for the error's message."""
        if self.in_place:
            self.forget()
            return "; the file is in its place but the disk has not confirmed it"
        for number, (path, existed) in enumerate(zip(self.paths, self.existed)):
            if _beside(path, ".old").exists():
                with contextlib.suppress(OSError):
                    os.replace(_beside(path, ".old"), path)
            elif not existed and number < self.n_begun and not _beside(path).exists():
                _remove(path)
        self.forget()
        return f"; the previous {self.paths[-1].name} is untouched" if any(self.existed) else ""

    def forget(self) -> None:
        """Remove what is left under other names."""
        for path in self.paths:
            _remove(_beside(path))
            if path.exists():  # else it is all that is left of it
                _remove(_beside(path, ".old"))


def _beside(path: Path, what: str = "") -> Path:
    """A temporary name in the same folder that no other thread or process uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident():x}{what}{TEMPORARY}")


def _write_all(descriptor: int, pieces: Iterable[Any]) -> None:
    """Write all of them; a short write is continued, not reported as success."""
    unflushed = 0
    for piece in pieces:
        view = memoryview(piece).cast("B")
        done = 0
        while done < len(view):
            n_written = os.write(descriptor, view[done : done + PIECE_BYTES])
            done += n_written
            unflushed += n_written
            if unflushed >= FLUSH_BYTES:
                os.fsync(descriptor)
                unflushed = 0


def _sync_folder(folder: Path) -> None:
    """Flush the folder's entries to the disk, so that the rename outlives a loss of power."""
    if os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
