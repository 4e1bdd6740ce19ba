"""Atomic writing: a file is written beside its place, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import _check
from .folder_commit import COMMIT, TEMPORARY, FolderLock, commit_record, finish, sync_folder

PIECE_BYTES = 16 * 2**20  # written at once, so that Ctrl-C is handled in between
FLUSH_BYTES = 4 * PIECE_BYTES  # flushed at once, for the same reason

File = tuple[str | os.PathLike[str], Iterable[Any]]


def write_atomic(path: str | os.PathLike[str], pieces: Iterable[Any]) -> None:
    """Write bytes-like `pieces` to `path` through a temporary file in the same folder; see
    `write_together`."""
    write_together([(path, pieces)])


def write_together(files: Iterable[File], removed: Iterable[str] = ()) -> None:
    """Write several files of one folder, (path, bytes-like pieces), all of them or none.

    removed: names of files in that folder that belong to the previous save and are deleted with it; names
    that are written or do not exist are ignored.

    No file takes its name before all are written and flushed; then all do, in order. After a kill or a loss
    of power there are all old files or all new ones, see `folder_commit`. Files that exist keep their mode
    and, where this process may set them, owner and group; a symbolic link is replaced, its target stays as it
    is. When this returns, files and folder are on the disk. Other saves into the folder wait meanwhile; what
    a killed one has left there is removed.

    OSError has errno and the file's name: IsADirectoryError where a folder has the name of a file,
    FileExistsError for pipes, sockets and devices, BlockingIOError if another save takes a minute. If writing
    fails before the files begin to take their names, no temporary file remains and earlier files are as they
    were; afterwards the new ones are in place, and the message of an OSError says so.
    """
    files = iter(files)
    first = next(files)
    change = _Change(Path(_check.path(first[0])))
    try:
        with FolderLock(change.folder) as has_locks, change:
            if has_locks:
                _remove_temporaries(change.folder)
            for path, pieces in itertools.chain([first], files):
                change.write(Path(_check.path(path)), pieces)
            change.put_in_place(removed)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}{change.note}", str(change.current)) from error


def remove_stale(folder: str | os.PathLike[str]) -> list[Path]:
    """Finish or remove what a killed save left in `folder`; returns the temporary files that were removed.

    Called when a run starts or continues in that folder. Where there are no locks, one folder belongs to one
    run at a time.
    """
    with FolderLock(Path(folder)):
        return _remove_temporaries(Path(folder))


def _remove_temporaries(folder: Path) -> list[Path]:
    removed = sorted(folder.glob(f".*{TEMPORARY}"))
    for path in removed:
        _remove(path)
    return removed


class _Change:
    """The files of one save; a context manager that leaves all old files or all new ones."""

    def __init__(self, first: Path) -> None:
        self.folder = first.parent
        self.moves: dict[Path, Path] = {}  # place -> temporary file
        self.existed = os.path.lexists(first)  # whether any of them existed
        self.in_place = False
        self.current = first  # what an error is about
        self.note = self._untouched()  # what is there after an error, for its message

    def __enter__(self) -> _Change:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.note = "; the file is in its place" if kind is None else self._settle()

    def write(self, path: Path, pieces: Iterable[Any]) -> None:
        """Write and flush the new file under its temporary name."""
        self.current = path
        status = _existing(path)
        self.existed |= status is not None
        self.moves[path] = self._temporary()
        self._write(self.moves[path], pieces, status)

    def _temporary(self) -> Path:
        """A name that no other thread or process uses, as short for long names."""
        name = f".{os.getpid():x}-{threading.get_ident():x}-{len(self.moves):x}{TEMPORARY}"
        return self.folder / name

    @staticmethod
    def _write(path: Path, pieces: Iterable[Any], status: os.stat_result | None) -> None:
        mode = 0o666 if status is None else status.st_mode & 0o777
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            if status is not None and os.name != "nt":
                _take_over(descriptor, status)
            _write_all(descriptor, pieces)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def put_in_place(self, removed: Iterable[str]) -> None:
        """Rename all, the last one last: one file at once, several by way of a record."""
        gone = [
            name for name in removed if _is_file(self.folder / name) and self.folder / name not in self.moves
        ]
        if len(self.moves) == 1 and not gone:
            os.replace(self.moves[self.current], self.current)
            self.in_place = True
            sync_folder(self.folder)
            return
        record = self._temporary()
        moves = {path.name: temporary.name for path, temporary in self.moves.items()}
        self.moves[self.folder / COMMIT] = record
        self._write(record, [commit_record(moves, gone)], None)
        sync_folder(self.folder)  # the record must not be on the disk without what it names
        os.replace(record, self.folder / COMMIT)
        self.in_place = True
        sync_folder(self.folder)
        finish(self.folder)

    def _settle(self) -> str:
        """Undo the save or complete it; returns the state of the files, in words."""
        if not self.in_place and not os.path.lexists(self.folder / COMMIT):
            for temporary in self.moves.values():
                _remove(temporary)
            return self._untouched()
        try:
            finish(self.folder)
        except (OSError, ValueError):
            return "; the new files are saved and take their places at the next save or load in this folder"
        return "; the file is in its place but the disk has not confirmed it"

    def _untouched(self) -> str:
        return f"; the previous {self.current.name} is untouched" if self.existed else ""


def _existing(path: Path) -> os.stat_result | None:
    """The status of what is at a path, None if nothing is; OSError if a file must not replace it."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise FileExistsError(errno.EEXIST, "a pipe, socket or device has this name", os.fspath(path))
    return status


def _is_file(path: Path) -> bool:
    return path.is_symlink() or path.is_file()


def _take_over(descriptor: int, status: os.stat_result) -> None:
    """Give a new file the owner, group and mode of the one that it replaces."""
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
        with contextlib.suppress(OSError):  # only some processes may
            os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, status.st_mode & 0o777)


def _write_all(descriptor: int, pieces: Iterable[Any]) -> None:
    """Write all pieces; a short write is continued, not reported as success."""
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


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
