"""Checks of arguments: what each accepts and returns, and a message that names argument, value and range."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from attnsparse import _check

ACCEPTED: list[tuple[Callable[[], Any], Any]] = [
    (lambda: _check.instance("a", str, "x"), "a"),
    (lambda: _check.integer(np.int16(3), "x", 3, 3), 3),
    (lambda: _check.integer(-(2**80), "x"), -(2**80)),
    (lambda: _check.number(np.float32(0.5), "x"), 0.5),
    (lambda: _check.number(2, "x", 0), 2.0),
    (lambda: _check.positive(2, "x"), 2.0),
    (lambda: _check.share(0, "x"), 0.0),
    (lambda: _check.share(1, "x"), 1.0),
    (lambda: _check.fraction(1), 1.0),
    (lambda: _check.proper_fraction(0, "x", zero=True), 0.0),
    (lambda: _check.choice("b", "x", iter("ab")), "b"),
    (lambda: _check.flag(False, "x"), False),
    (lambda: _check.path(Path("a") / "b"), os.path.join("a", "b")),
    (lambda: _check.path("~"), os.path.expanduser("~")),
    (lambda: _check.names("ab", "x"), ["ab"]),
    (lambda: _check.names(("a", "b"), "x"), ["a", "b"]),
    (lambda: _check.items(iter("ab"), "x", "letters"), ["a", "b"]),
    (lambda: _check.items(np.arange(2), "x", "numbers"), [0, 1]),
    (lambda: _check.ascending((1, 3), "x", _check.integer).tolist(), [1, 3]),
    (lambda: _check.array([[1, 2]], "x").tolist(), [[1, 2]]),
    (lambda: [_check.shown("a"), _check.shown(np.zeros((2, 2))), _check.shown(object())],
     ["'a'", "ndarray", "object"]),
    (lambda: _check.base(1), 1),
    (lambda: _check.layer(2, 3), 2),
    (lambda: _check.seed(2**64 - 1), 2**64 - 1),
    (lambda: _check.threads(None), 0),
    (lambda: _check.threads(64), 64),
    (lambda: _check.byte_limit(0), 0),
    (lambda: list(map(_check.is_missing, (None, math.nan, pd.NA, pd.NaT, 0, ""))), [True] * 4 + [False] * 2),
]  # fmt: skip
REFUSED = [
    (lambda: _check.positive(0, "x"), ValueError, "x must be above 0 and finite, got 0.0"),
    (lambda: _check.positive(math.inf, "x"), ValueError, "x must be above 0 and finite, got inf"),
    (lambda: _check.instance(3, str, "x"), TypeError, "x must be a str, got int"),
    (lambda: _check.integer(True, "x"), TypeError, "x must be an integer, got True"),
    (lambda: _check.integer(1.0, "x"), TypeError, "x must be an integer, got float"),
    (lambda: _check.integer(2, "x", 3), ValueError, "x must be at least 3, got 2"),
    (lambda: _check.integer(5, "x", None, 4), ValueError, "x must be at most 4, got 5"),
    (lambda: _check.integer(5000, "x", 1, 4000), ValueError, "x must be in 1..4,000, got 5000"),
    (lambda: _check.number("1", "x"), TypeError, "x must be a number, got str"),
    (lambda: _check.number(math.inf, "x"), ValueError, "x must be a finite number, got inf"),
    (lambda: _check.number(math.nan, "x", 0, 1), ValueError, "x must be a finite number in 0..1, got nan"),
    (lambda: _check.share(1.5, "x"), ValueError, "x must be in 0..1, got 1.5"),
    (lambda: _check.share(math.nan, "x"), ValueError, "x must be in 0..1, got nan"),
    (lambda: _check.fraction(0), ValueError, "fraction must be above 0 and at most 1, got 0.0"),
    (lambda: _check.proper_fraction(0, "x"), ValueError, "x must be above 0 and below 1, got 0.0"),
    (lambda: _check.proper_fraction(1, "x", zero=True), ValueError,
     "x must be 0 or more and below 1, got 1.0"),
    (lambda: _check.choice("c", "x", "ab"), ValueError, "x must be one of 'a', 'b', got 'c'"),
    (lambda: _check.choice(["a"], "x", "ab"), ValueError, "x must be one of 'a', 'b', got ['a']"),
    (lambda: _check.flag(1, "x"), TypeError, "x must be True or False, got 1"),
    (lambda: _check.path(b"a"), TypeError, "path must be a string or a path, got bytes"),
    (lambda: _check.path(""), ValueError,
     "path must not be empty; give the name of a file or folder ('.' is the current one)"),
    (lambda: _check.path("a\0b"), ValueError, "path must not contain a NUL character"),
    (lambda: _check.names(["a", 1], "x"), TypeError, "x must be a name or a sequence of names, got ['a', 1]"),
    (lambda: _check.names(1, "x"), TypeError, "x must be a name or a sequence of names, got 1"),
    (lambda: _check.reals(["a"], "x", "f4"), TypeError, "x must be real numbers, got <U1"),
    (lambda: _check.items("ab", "x", "letters"), TypeError, "x must be letters, got str"),
    (lambda: _check.items(np.array(1), "x", "numbers"), TypeError, "x must be numbers, got ndarray"),
    (lambda: _check.ascending([2, 2], "x", _check.integer), ValueError, "x must ascend, got [2, 2]"),
    (lambda: _check.ascending([], "x", _check.integer), ValueError, "x must ascend, got []"),
    (lambda: _check.ascending([1.5], "x", _check.integer), TypeError,
     "each of x must be an integer, got float"),
    (lambda: _check.array([[1], [1, 2]], "x"), ValueError,
     "x must be an array, got rows of different lengths"),
    (lambda: _check.base(2), ValueError, "base must be 0 or 1, got 2"),
    (lambda: _check.layer(3, 3), IndexError, "layer 3 is out of range: there are layers 0..2"),
    (lambda: _check.seed(-1), ValueError, "seed must be in 0..2^64-1, got -1"),
    (lambda: _check.threads(0), ValueError, "threads must be in 1..64, got 0"),
    (lambda: _check.byte_limit(2**63, "x"), ValueError, f"x must be in 0..2^63-1, got {2**63}"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "wanted"), ACCEPTED)
def test_accepted(call: Callable[[], Any], wanted: Any) -> None:
    found = call()
    assert (type(found), found) == (type(wanted), wanted)


@pytest.mark.parametrize(("call", "error", "text"), REFUSED)
def test_refused(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert str(caught.value) == text


def test_every_check_is_tested() -> None:
    public = {name for name, value in vars(_check).items() if callable(value) and not name.startswith("_")
              and getattr(value, "__module__", None) == _check.__name__}  # fmt: skip
    used = {name for calls in (ACCEPTED, REFUSED) for call, *_ in calls for name in call.__code__.co_names}
    assert public - {"T"} <= used


def test_reals() -> None:
    found = _check.reals(np.ones((2, 3), order="F"), "x", np.float32)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.isinf(_check.reals([1e300], "x", np.float32)).all()  # without a warning
