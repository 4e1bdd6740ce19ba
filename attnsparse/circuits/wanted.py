"""Whether a piece of work is still wanted: a file that the caller removes when it waits no longer."""

from __future__ import annotations

import _thread
import os
import socket
import threading
import time
from types import TracebackType
from typing import NamedTuple

WATCH_SECONDS = 0.2  # between two looks


class Wanted(NamedTuple):
    """A file that is there while a result is wanted, and the machine on which it is."""

    path: str
    host: str

    @classmethod
    def here(cls, path: str) -> Wanted:
        """A file of this machine."""
        return cls(path, socket.gethostname())

    def is_over(self) -> bool:
        """Whether nobody waits any more; on another machine that is not known, and a piece ends by itself."""
        return self.host == socket.gethostname() and not os.path.exists(self.path)


class Watch:
    """In a worker, while it computes: stops it soon after the result is not wanted any more.

    A context. A worker that computes in its main thread is interrupted there, as by Ctrl-C; another one stops
    where the core tells it how far it is. Both raise RuntimeError.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._looked = time.monotonic()
        self._stopped = False
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> Watch:
        if self._wanted.is_over():
            raise _over()
        if threading.current_thread() is threading.main_thread():
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        try:
            with self._lock:
                self._ended.set()
            if self._thread.ident is not None:
                self._thread.join()  # an interrupt that is on its way arrives here
        except KeyboardInterrupt:
            kind = KeyboardInterrupt
        if self._stopped and kind is KeyboardInterrupt:
            raise _over() from None

    def tell(self, stage: str, done: int, total: int) -> None:
        """What the core calls."""
        now = time.monotonic()
        if now - self._looked >= WATCH_SECONDS:
            self._looked = now
            if self._wanted.is_over():
                raise _over()

    def _wait(self) -> None:
        while not self._ended.wait(WATCH_SECONDS):
            if self._wanted.is_over():
                with self._lock:
                    if not self._ended.is_set():
                        self._stopped = True
                        _thread.interrupt_main()
                return


def _over() -> RuntimeError:
    return RuntimeError("the call that asked for this piece has ended")
