"""Weights that processes of one machine have once: sealed memory, which a process offers and others map.

The process that pickles a model moves its weights there (Linux), and tells its number and the descriptor.
Another process of the same user and machine finds that memory in /proc. Once it has loaded the weights and
found that they are the same, byte for byte, it maps the memory copy-on-write in place of its own. The memory
is gone with the last process that has it. Where any of this is not to be had, a process keeps its own copy.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from .model import Model

Place: TypeAlias = "tuple[int, int]"  # a process, and its descriptor of the memory


def offered(model: Model) -> Place | None:
    """Where other processes find the weights; None if they cannot be shared."""
    descriptor = model._core.share()
    return None if descriptor is None else (os.getpid(), descriptor)


def take(model: Model, place: Place | None) -> bool:
    """Map the memory at `place` in place of the same weights; False, and nothing changed, if it cannot be."""
    descriptor = None if place is None else _opened(*place)
    if descriptor is None:
        return False
    taken = False
    try:
        taken = model._core.take_shared(descriptor)
    finally:
        if not taken:
            os.close(descriptor)
    return taken


def _opened(process: int, number: int) -> int | None:
    """A descriptor of the memory; None if it is not there, or if that descriptor is of something else."""
    path = f"/proc/{process}/fd/{number}"
    try:
        if not os.readlink(path).startswith("/memfd:attnsparse "):
            return None
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
