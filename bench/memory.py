"""Memory of the own process, in bytes."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Most memory that this process has ever had in use.

    On Linux from /proc: there ru_maxrss of a child begins with the peak of the process that started it.
    """
    if _STATUS.exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def current_bytes() -> int:
    """Memory in use now; where the system does not tell, the peak so far."""
    return _status("VmRSS") if _STATUS.exists() else peak_bytes()


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise OSError(f"{_STATUS} has no {field}")
