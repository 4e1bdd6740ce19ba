"""A prompt alone and the same prompt among others: equal bits where the build promises them, close elsewhere.

docs/numerics.md: float32 has the same bits wherever `build_info()["batch_invariant"]`; on other kernels of
OpenBLAS, and in float64, results agree to rounding.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import attnsparse as asp

#: kernels of OpenBLAS whose order of sums skinny.c has: there the bits must be equal
PROMISED = {"SkylakeX"}
#: largest difference in float32, as a share of the largest value of the array
ROUNDING = 2e-5


@functools.cache
def bits_are_promised() -> bool:
    return bool(asp.build_info()["batch_invariant"])


def rounding(expected: np.ndarray, scale: float = 0.0) -> float:
    """The largest difference that is allowed: 0 where bits are promised."""
    return 0.0 if bits_are_promised() else ROUNDING * float(np.abs(expected).max(initial=scale))


def same_bits_or_close(found: Any, expected: Any, scale: float = 0.0) -> bool:
    """Whether two arrays are equal, or close where no more is promised; integers and gates are always equal.

    scale: size of what was subtracted, where the values are differences of larger numbers.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return False
    if bits_are_promised() or expected.dtype.kind != "f":
        return found.tobytes() == expected.tobytes()
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
        return False
    found, expected = found[finite], expected[finite]
    return bool((np.abs(found - expected) <= rounding(expected, scale)).all())
