"""Counter-based random numbers: pure functions of a seed and of the place where they are used.

Philox gives the same bits for the same key and counter on every machine and in every version of NumPy, so the
order of calls, the number of threads and a resume cannot change anything. (The training gate's noise has its
own generator inside the C core, which draws the prompts and orders of circuits by the same Philox.)
"""

from __future__ import annotations

import numpy as np

from . import _check

# The use of a number is part of its counter: two uses never share a stream.
BATCHES = 1
EPOCHS = 2
SPLIT = 3
WEIGHTS = 4
# 5: recipes.demo_text.USE, 6: tasks.task.USE
# 7: circuits, in csrc/base/base.h
TRANSCODERS = 8  # first counter: the layer
# 9: generation, 10: masks of component edges, in csrc/base/base.h
COMPONENTS = 11  # random rankings of component edges; first counter: the ranking
MIXTURES = 12  # order of sources in a block of sequences; counters: block, micro-batch
SHIFTS = 13  # where windows begin; counters: epoch, source
ANSWERS = 14  # which answers are wrong, and what they are; counters: step, micro-batch
RESAMPLED = 15  # circuits whose agreement is resampled

_AT_ONCE = 2**20  # numbers drawn between two checks for Ctrl-C


def raw(n: int, seed: int, use: int, first: int = 0, second: int = 0) -> np.ndarray:
    """`n` random uint64, a function of the seed (0..2^64-1), the use and two further counters (>= 0)."""
    counter = np.array([0, second, first, use], np.uint64)
    return np.random.Philox(key=_check.seed(seed), counter=counter).random_raw(n)


def permutation(n: int, seed: int, use: int, first: int = 0, second: int = 0) -> np.ndarray:
    """Random order of 0..n-1 (int64 [n])."""
    return np.argsort(raw(n, seed, use, first, second), kind="stable")


def normal(shape: tuple[int, ...], seed: int, use: int, first: int = 0, second: int = 0) -> np.ndarray:
    """Standard normal numbers (float64, `shape`)."""
    counter = np.array([0, second, first, use], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=_check.seed(seed), counter=counter))
    numbers = np.empty(shape)
    flat = numbers.reshape(-1)
    for begin in range(0, len(flat), _AT_ONCE):
        generator.standard_normal(out=flat[begin : begin + _AT_ONCE])
    return numbers
