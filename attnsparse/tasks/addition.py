"""Two-digit addition as the toy models see it: `5 3 + 2 1 = 0 7 4 E E`, 11 tokens out of 14.

The answer has three digits, most significant first, then two end signs. The model is an ordinary next-token
model: column 5 (`=`) predicts the hundreds, 6 the tens, 7 the ones and 8 the first end sign; only these four
columns count.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

VOCABULARY = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "+", "=", "?", "E")
N_TOKENS = 11
PREDICTING = slice(5, 9)  # the columns whose predictions count
PREDICTED = slice(6, 10)  # the tokens that they predict
COLUMNS = ("a tens", "a ones", "+", "b tens", "b ones", "=", "hundreds", "tens", "ones", "E", "E")

SUMS = ("53+21", "36+28", "43+59")  # the sums of the figure: no carry, one, two
DENSE_THRESHOLD = 0.01  # an entry of a dense pattern above this counts as an edge

_PLUS, _EQUALS, _END = VOCABULARY.index("+"), VOCABULARY.index("="), VOCABULARY.index("E")


def sequences(a: NDArray[np.integer], b: NDArray[np.integer]) -> NDArray[np.int32]:
    """Token ids (N, 11) of the sums a + b; a and b (N) hold integers from 0 to 99, else ValueError."""
    a, b = np.asarray(a), np.asarray(b)
    if min(a.min(initial=0), b.min(initial=0)) < 0 or max(a.max(initial=0), b.max(initial=0)) > 99:
        raise ValueError("the toy model adds numbers from 0 to 99")
    c = a + b
    fixed = np.ones_like(a)
    columns = (
        a // 10, a % 10, _PLUS * fixed, b // 10, b % 10, _EQUALS * fixed,
        c // 100, c // 10 % 10, c % 10, _END * fixed, _END * fixed,
    )  # fmt: skip
    return np.stack(columns, axis=1).astype(np.int32)


def sequence(a: int, b: int) -> NDArray[np.int32]:
    """Token ids (11,) of one sum."""
    row: NDArray[np.int32] = sequences(np.array([a]), np.array([b]))[0]
    return row


def all_sums() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """a and b (10,000 each) of all ordered pairs, 0+0, 0+1, ... 99+99."""
    a, b = np.divmod(np.arange(10_000), 100)
    return a, b


def parse_sum(text: str) -> tuple[int, int]:
    """`"53+21"` -> (53, 21); both numbers written with two digits. Raises ValueError for anything else."""
    match = re.fullmatch(r"([0-9]{2})\+([0-9]{2})", text)
    if match is None:
        raise ValueError(f"a sum is written like '53+21' with two digits each, got {text[:80]!r}")
    return int(match[1]), int(match[2])


def carries(a: NDArray[np.integer], b: NDArray[np.integer]) -> NDArray[np.int64]:
    """How many of the two columns carry, (N): 0, 1 or 2."""
    a, b = np.asarray(a), np.asarray(b)
    return (a % 10 + b % 10 > 9).astype(np.int64) + (a + b > 99)
