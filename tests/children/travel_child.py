"""What a worker tells of its memory, for test_travel.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import attnsparse as asp


def anonymous_bytes() -> int:
    """Memory in use that is neither of a file nor shared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def shared_weights() -> dict[str, int]:
    """{inode: bytes mapped} of the memory that this process shares weights in."""
    found: dict[str, int] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, inode, *name = line.split()
        if name and name[0].startswith("/memfd:attnsparse"):
            begin, end = (int(address, 16) for address in addresses.split("-"))
            found[inode] = found.get(inode, 0) + end - begin
    return found


def memory_with(model: asp.Model) -> tuple[int, dict[str, int]]:
    """`anonymous_bytes` and `shared_weights` of a worker that computed with a model that was sent to it."""
    assert model.digest
    model.run([1, 2, 3], "none", logits="last")
    return anonymous_bytes(), shared_weights()


def double(model: asp.Model) -> float:
    """The sum of the first row of the embedding after it was doubled here."""
    model.assign({"wte.weight": 2 * model.W_E})
    return float(np.sum(model.W_E[0]))
