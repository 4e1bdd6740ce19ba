"""The floating-point environment of the calling thread: MXCSR of x86-64, through glibc's fenv_t."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

NEAREST, ROUND_UP, FLUSH, TRAP_OVERFLOW = 0x1F80, 0x1F80 | 0x4000, 0x1F80 | 0x8040, 0x1F80 & ~0x0400


def control() -> int:
    """MXCSR of this thread without its status flags."""
    return _environment()[1] & ~0x3F


def _environment() -> tuple[Any, int]:
    found = (ctypes.c_uint8 * 32)()
    ctypes.CDLL("libm.so.6").fegetenv(ctypes.byref(found))
    return found, int.from_bytes(bytes(found[28:32]), "little")


def set_control(mxcsr: int) -> None:
    found, _ = _environment()
    found[28:32] = list(mxcsr.to_bytes(4, "little"))
    ctypes.CDLL("libm.so.6").fesetenv(ctypes.byref(found))


@contextlib.contextmanager
def environment(mxcsr: int) -> Iterator[None]:
    set_control(mxcsr)
    try:
        yield
    finally:
        left = control()
        set_control(NEAREST)
    assert left == mxcsr, "a call left another environment"
