"""Transactions over the files of a folder: one save at a time, all of its files or none, and readers that see
one whole save.

A save of several files writes all of them under temporary names and then `.attnsparse-commit`, a record of
which temporary file takes which name and which files of an earlier save are deleted. The rename of that
record commits the save: a process that is killed before leaves the old files; one that is killed after leaves
work that the next save or reader finishes first. Saves take turns by a lock on the folder. Readers take no
lock: they check afterwards whether a file that they read has been replaced, and then read again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ..errors import FormatError, file_error
from .limits import DEFAULT_LIMITS
from .regular_file import read_small, watching
from .strict_json import parse_object

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

COMMIT = ".attnsparse-commit"
TEMPORARY = ".attnsparse-tmp"
WAIT_SECONDS = 60.0  # for another save into the same folder
POLL_SECONDS = 0.002
READINGS = 20  # before a reader gives up on a folder that keeps changing

_TEMPORARY_NAME = re.compile(r"\.[0-9a-f-]{1,80}" + re.escape(TEMPORARY))
Result = TypeVar("Result")


class FolderLock:
    """Holds a folder against other saves, of any process or thread; a context manager.

    Entering waits for its turn and then finishes an interrupted save. It gives True, or False
    where the file system has no locks (some network file systems, Windows): then saves do not wait for each
    other. Raises BlockingIOError if another save holds the folder for WAIT_SECONDS.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = -1

    def __enter__(self) -> bool:
        has_locks = self._take()
        try:
            finish(self._folder)
        except OSError as error:
            self._release()
            text = f"{error.strerror}, while an interrupted save in this folder was being finished"
            raise OSError(error.errno, text, os.fspath(self._folder)) from error
        except BaseException:
            self._release()
            raise
        return has_locks

    def _take(self) -> bool:
        if fcntl is None:
            return False
        try:
            self._descriptor = os.open(self._folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            return False  # what is to be done here will say so
        end = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > end:
                    self._release()
                    text = f"another process has been saving into this folder for {WAIT_SECONDS:.0f} s"
                    raise BlockingIOError(errno.EAGAIN, text, os.fspath(self._folder)) from None
            except OSError:
                self._release()
                return False
            time.sleep(POLL_SECONDS)

    def _release(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may hold the descriptor too
            os.close(descriptor)

    def __exit__(self, *exc: object) -> None:
        self._release()

    def __del__(self) -> None:
        self._release()


def commit_record(moves: Mapping[str, str], removed: Iterable[str]) -> bytes:
    """The bytes of a record: final name -> temporary name, and names of files that go.

    Names are written as in a URL, because they need not be UTF-8.
    """
    places = {quote_from_bytes(os.fsencode(name)): temporary for name, temporary in moves.items()}
    gone = [quote_from_bytes(os.fsencode(name)) for name in removed]
    return json.dumps({"version": 1, "moves": places, "removed": gone}).encode()


def finish(folder: Path) -> None:
    """Do what the record in a folder says, if there is one, or the rest of it.

    Raises FormatError `header_value` and those of the JSON reader for a record that no save has written.
    """
    record = folder / COMMIT
    if not os.path.lexists(record):
        return
    try:
        moves, removed = _read_record(record)
        for name in removed:
            (folder / name).unlink(missing_ok=True)
        for name, temporary in moves.items():
            with contextlib.suppress(FileNotFoundError):  # it is in place already
                os.replace(folder / temporary, folder / name)
        sync_folder(folder)
        record.unlink(missing_ok=True)
        sync_folder(folder)
    except FileNotFoundError:
        if os.path.lexists(record):
            raise  # else another process has done it


def read_whole(folder: Path, read: Callable[[], Result]) -> Result:
    """What `read` makes of the files in a folder, all of them of one save.

    When a file that it opened has been replaced meanwhile it is called again, the next times while saves of
    this package wait. Raises what `read` does, and OSError EBUSY if the files change each time.
    """
    for attempt in range(READINGS):
        wait = attempt > 0 or os.path.lexists(folder / COMMIT)
        with FolderLock(folder) if wait else contextlib.nullcontext(), watching() as opened:
            names = _names(folder)
            try:
                result = read()
            except (ValueError, OSError):
                same = _names(folder) == names or attempt == READINGS - 1
                if same and not _changed(folder, opened):
                    raise
            else:
                if not _changed(folder, opened):
                    return result
        time.sleep(POLL_SECONDS * attempt)
    text = "its files keep changing while they are read; wait for the saves to finish"
    raise OSError(errno.EBUSY, text, os.fspath(folder))


def sync_folder(folder: Path) -> None:
    """Flush the folder's entries to the disk, so that a rename outlives a loss of power."""
    if os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _changed(folder: Path, opened: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether files have been replaced since they were opened.

    The record is looked for first: if there is none, every rename of a save lies before or after this moment,
    and files that are the same afterwards are all from before or all from after it.
    """
    if os.path.lexists(folder / COMMIT):
        return True
    for path, identity in opened.items():
        try:
            status = os.stat(path)
        except OSError:
            return True
        if (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) != identity:
            return True
    return False


def _names(folder: Path) -> set[str]:
    try:
        return {name for name in os.listdir(folder) if not name.endswith(TEMPORARY)}
    except OSError:
        return set()


def _read_record(path: Path) -> tuple[dict[str, str], list[str]]:
    """(moves, removed): plain names of this folder only, because a record is a file like others."""
    data = parse_object(read_small(path, "max_config_bytes"), path, limits=DEFAULT_LIMITS)
    moves, removed = data.get("moves"), data.get("removed")
    if data.get("version") != 1 or len(data) != 3 or type(moves) is not dict or type(removed) is not list:
        _raise_file_error(path)
    if not all(isinstance(value, str) and _TEMPORARY_NAME.fullmatch(value) for value in moves.values()):
        _raise_file_error(path)
    names = {_file_name(name, path): temporary for name, temporary in moves.items()}
    return names, [_file_name(name, path) for name in removed]


def _file_name(written: object, record: Path) -> str:
    name = os.fsdecode(unquote_to_bytes(written)) if isinstance(written, str) else ""
    if name in ("", ".", "..", COMMIT) or set(name) & set("/\\\0"):
        _raise_file_error(record)
    return name


def _raise_file_error(path: Path) -> NoReturn:
    text = "not the record of an interrupted save; delete it if you do not know where it comes from"
    raise file_error(FormatError, "header_value", path, text, field="moves")
