"""Objects that one thread uses at a time."""

from __future__ import annotations

import threading


class OneThread:
    """A context manager around everything that changes or reads an object as a whole.

    The thread that holds it may enter again; RuntimeError at once in any other, which names `what` it is.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(f"this {self._what} is in use in another thread; wait for it")

    def __exit__(self, *exc: object) -> None:
        self._lock.release()
