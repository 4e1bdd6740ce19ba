"""The compiled core in single and double precision, and its threads.

OpenBLAS starts its own threads when it is loaded unless told not to.  attnsparse has a pool of its own
and calls BLAS from it with one thread, so the variable that sets OpenBLAS's threads is 1 while our copy is
loaded, and is put back at once: NumPy's copy has read it before.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np

from . import _check


def _why_not(error: ImportError) -> str:
    """One sentence for a compiled core that is not there, or is there and cannot be loaded."""
    package = Path(__file__).parent
    if any((package / f"_core{ending}").exists() for ending in EXTENSION_SUFFIXES):
        return f"the compiled core of attnsparse in {package} cannot be loaded: {error}"
    if (package.parent / "setup.py").is_file():
        return (
            f"attnsparse in {package} is source code whose C core is not compiled for this Python: "
            f"type {sys.executable} -m pip install -e {package.parent}"
        )
    return (
        f"attnsparse in {package} lacks its compiled core for this Python: "
        f"type {sys.executable} -m pip install --force-reinstall attnsparse"
    )


_VARIABLE = "OPENBLAS_NUM_THREADS"
_before = os.environ.get(_VARIABLE)
os.environ[_VARIABLE] = "1"
try:
    from . import _core, _core64
except ImportError as error:
    raise ImportError(_why_not(error)) from None
finally:
    if _before is None:
        del os.environ[_VARIABLE]
    else:
        os.environ[_VARIABLE] = _before

_core64._share_blas_state(_core._blas_state())  # one OpenBLAS serves both

CORES = {"float32": _core, "float64": _core64}
MOST_THREADS = 64
THREAD_VARIABLES = ("ATTNSPARSE_NUM_THREADS", "OMP_NUM_THREADS")
"""Environment variables with a number of threads, the stronger one first."""
_chosen = False


def core_for(dtype: object) -> Any:
    """The extension for "float32" or "float64", also as a NumPy dtype; ValueError for anything else."""
    try:
        return CORES[str(np.dtype(dtype)) if dtype is not None else "None"]  # type: ignore[call-overload]
    except (KeyError, TypeError):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r:.60}") from None


def set_num_threads(n: int) -> None:
    """Set the number of threads of runs and training from now on; no bit of a result depends on it.

    Parameters
    ----------
    n : int
        1..64.
    """
    global _chosen
    n = _check.integer(n, "the number of threads n", 1, MOST_THREADS)
    for core in CORES.values():
        core.set_num_threads(n)
    _chosen = True


def get_num_threads() -> int:
    """Number of threads of runs and training.

    Returns
    -------
    int
        As set by `set_num_threads`; by default what the environment variable ATTNSPARSE_NUM_THREADS says, or
        else OMP_NUM_THREADS, or else the number that CPU affinity and the cgroup's quota allow.
    """
    return _core.get_num_threads()


def threads_are_chosen() -> bool:
    """Whether the environment or `set_num_threads` gave the number of threads."""
    return _chosen


def _threads_asked() -> int | None:
    """What the environment says, of OMP_NUM_THREADS the first number of a list; None if it says nothing.

    A value that is no number of threads is ignored with a warning.
    """
    for name in THREAD_VARIABLES:
        text = os.environ.get(name, "").strip()
        if not text:
            continue
        first = text.split(",")[0].strip() if name.startswith("OMP") else text
        n = int(first) if re.fullmatch("[0-9]{1,9}", first) else 0
        if name.startswith("OMP"):
            n = min(n, MOST_THREADS)
        if 1 <= n <= MOST_THREADS:
            return n
        warnings.warn(
            f"{name}={text!r:.40} is no number of threads in 1..{MOST_THREADS}, and is ignored",
            RuntimeWarning,
            stacklevel=2,
        )
    return None


if (_asked := _threads_asked()) is not None:
    set_num_threads(_asked)
