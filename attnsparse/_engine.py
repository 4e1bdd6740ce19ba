"""The compiled core in single and double precision, its threads, and what machine it runs on.

OpenBLAS starts its own threads when it is loaded unless told not to.  attnsparse has a pool of its own
and calls BLAS from it with one thread, so the variable that sets OpenBLAS's threads is 1 while our copy is
loaded, and is put back at once: NumPy's copy has read it before.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np


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


def core_for(dtype: str) -> Any:
    """The extension for "float32" or "float64"; ValueError for anything else."""
    try:
        return CORES[str(np.dtype(dtype)) if dtype is not None else "None"]
    except (KeyError, TypeError):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}") from None


def set_num_threads(n: int) -> None:
    """Use `n` threads (1..64) for runs and training from now on.  Results do not depend on it, to the bit."""
    n = _in_range(n, "the number of threads")
    for core in CORES.values():
        core.set_num_threads(n)


def _in_range(threads: Any, what: str) -> int:
    if not isinstance(threads, (int, np.integer)) or isinstance(threads, bool):
        raise TypeError(f"{what} must be an integer, got {type(threads).__name__}")
    if not 1 <= threads <= 64:
        raise ValueError(f"{what} must be in 1..64, got {threads}")
    return int(threads)


def get_num_threads() -> int:
    """Number of threads in use; by default what CPU affinity and the cgroup's quota allow."""
    return _core.get_num_threads()


def build_info() -> dict[str, Any]:
    """What this build is and what it found: version, instruction set, BLAS, threads.

    `batch_invariant` says whether a prompt alone has the same bits in float32 as in any batch: tried on this
    machine with widths of every kind, because it depends on the kernels that OpenBLAS has for the CPU.
    """
    from ._version import __version__

    return {"version": __version__, **_core.machine(), "batch_invariant": batch_invariant()}


# (heads, head width, model width, MLP width, vocabulary): below and above every block, even and odd
_TRIED = (
    (4, 16, 64, 256, 14),
    (12, 8, 96, 192, 800),
    (12, 64, 768, 3072, 1000),
    (3, 16, 48, 1, 2),
    (3, 11, 33, 37, 7),
    (1, 5, 257, 3, 1201),
)


def batch_invariant() -> bool:
    """Try on this CPU whether a prompt's float32 logits are the same bits alone and among other prompts."""
    rng = np.random.default_rng(0)
    for shape in _TRIED:
        model = _random_core(rng, *shape)
        lengths = (1, 5, 8, 11, 30, 64, 64, 3)
        prompts = [rng.integers(0, shape[-1], n).astype(np.int32) for n in lengths]
        offsets = np.cumsum([0, *map(len, prompts)]).astype(np.int64)
        together = model.run(np.concatenate(prompts), offsets, ()).array("logits")
        for prompt, first, last in zip(prompts, offsets[:-1], offsets[1:]):
            alone = model.run(prompt, np.array([0, len(prompt)]), ()).array("logits")
            if not np.array_equal(alone, together[first:last]):
                return False
    return True


def _random_core(
    rng: np.random.Generator, n_head: int, d_head: int, d_model: int, d_mlp: int, n_vocab: int
) -> Any:
    from .model.config import Config

    config = Config(
        n_layer=1, n_head=n_head, d_model=d_model, d_head=d_head, d_mlp=d_mlp, n_ctx=64, n_vocab=n_vocab
    )
    model = _core.Model(config.to_dict())
    for name in model.names:
        model._writable(name)[...] = 0.05 * rng.standard_normal(model.shape(name), dtype=np.float32)
    return model
