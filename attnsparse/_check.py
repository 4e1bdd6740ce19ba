"""Every check of an argument: each returns the value in its plain form, or says what was given and what is
accepted.

TypeError for the wrong kind of value (bool is not a number), ValueError or IndexError for the right kind
with a value out of range.  Values read from files go through `io` and raise FormatError instead.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")

# How to make an object of each kind, for the message that asks for one.
_MADE_BY = {
    "Features": "Transcoders.features gives",
    "FeatureLabels": "asp.describe_features gives",
    "Graph": "asp.attribution_graph gives",
    "Model": "asp.load gives",
    "Task": "asp.tasks.make_task gives",
    "Tokenizer": "Model.tokenizer is",
    "Transcoders": "asp.load_transcoders gives",
    "WordEffect": "asp.graphs.word_effect gives",
}


def instance(value: object, kind: type[T], name: str) -> T:
    """`value`, if it is a `kind`."""
    if not isinstance(value, kind):
        article = "" if kind.__name__.endswith("s") else "a "
        such_as = f", such as {_MADE_BY[kind.__name__]}" if kind.__name__ in _MADE_BY else ""
        raise TypeError(f"{name} must be {article}{kind.__name__}{such_as}, got {type(value).__name__}")
    return value


def integer(value: object, name: str, low: int | None = None, high: int | None = None) -> int:
    """An integer in low..high."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if (low is not None and number < low) or (high is not None and number > high):
        allowed = f"{low} or {high}" if low is not None and high == low + 1 else _range(low, high)
        raise ValueError(f"{name} must be {allowed}, got {number}")
    return number


def number(value: object, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in low..high, as float."""
    found = _real(value, name)
    if not (math.isfinite(found) and low <= found <= high):
        allowed = "" if low == -math.inf and high == math.inf else f" {_range(low, high)}"
        raise ValueError(f"{name} must be a finite number{allowed}, got {found}")
    return found


def positive(value: object, name: str) -> float:
    """A finite number above 0."""
    found = _real(value, name)
    if not 0 < found < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, got {found}")
    return found


def share(value: object, name: str) -> float:
    """A number in 0..1."""
    found = _real(value, name)
    if not 0 <= found <= 1:
        raise ValueError(f"{name} must be in 0..1, got {found}")
    return found


def fraction(value: object, name: str = "fraction") -> float:
    """A number above 0 and at most 1."""
    found = _real(value, name)
    if not 0 < found <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {found}")
    return found


def proper_fraction(value: object, name: str, *, zero: bool = False) -> float:
    """A number above 0 (with `zero`: or 0) and below 1."""
    found = _real(value, name)
    if not (0 < found < 1 or (zero and found == 0)):
        raise ValueError(f"{name} must be {'0 or more' if zero else 'above 0'} and below 1, got {found}")
    return found


def choice(value: object, name: str, known: Iterable[str]) -> str:
    """One of some names."""
    known = tuple(known)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {shown(value)}")
    return value


def flag(value: object, name: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return value


def path(value: object, name: str = "path") -> str:
    """A path as text: not empty, without NUL; a first part `~` or `~name` is replaced by that home."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a string or a path, got {type(text).__name__}")
    if not text:
        raise ValueError(
            f"{name} must not be empty; give the name of a file or folder ('.' is the current one)"
        )
    if "\0" in text:
        raise ValueError(f"{name} must not contain a NUL character")
    return os.path.expanduser(text)


def names(value: object, name: str) -> list[str]:
    """A name or several, as a list."""
    items = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [None]
    found = [item for item in items if isinstance(item, str)]
    if len(found) < len(items):
        raise TypeError(f"{name} must be a name or a sequence of names, got {shown(value)}")
    return found


def items(value: object, name: str, what: str) -> list[Any]:
    """What a sequence, array or iterator holds, as a list; a text or a mapping is none of these."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        try:
            return list(value)
        except TypeError:  # an array without dimensions
            pass
    raise TypeError(f"{name} must be {what}, got {type(value).__name__}")


def ascending(values: object, name: str, each: Callable[[object, str], float]) -> np.ndarray:
    """Numbers, each of which `each` accepts and is above the one before it."""
    found = [each(value, f"each of {name}") for value in items(values, name, "a sequence of numbers")]
    if not found or (np.diff(found) <= 0).any():
        raise ValueError(f"{name} must ascend, got {found!r:.60}")
    return np.array(found)


def array(values: object, name: str) -> np.ndarray:
    """An array of any kind."""
    try:
        return np.asarray(values)
    except ValueError:
        raise ValueError(f"{name} must be an array, got rows of different lengths") from None


def reals(values: object, name: str, dtype: npt.DTypeLike) -> np.ndarray:
    """Real numbers as a C-contiguous array of this dtype."""
    found = array(values, name)
    if found.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be real numbers, got {found.dtype}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(found, dtype=dtype)


def shown(value: object) -> str:
    """A wrong value in a message: on one line, by its type where it does not fit there."""
    text = repr(value)
    return type(value).__name__ if "\n" in text or " at 0x" in text else text[:60]


def is_missing(value: object) -> bool:
    """Whether a cell of a table holds nothing: None, NaN, pandas' NA and NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def base(value: object) -> int:
    """The number of the first position, 0 or 1."""
    return integer(value, "base", 0, 1)


def layer(value: object, n_layer: int) -> int:
    """The number of a layer; IndexError if there is no such layer."""
    found = integer(value, "layer")
    if not 0 <= found < n_layer:
        raise IndexError(f"layer {found} is out of range: there are layers 0..{n_layer - 1}")
    return found


def seed(value: object) -> int:
    """A seed, 0..2^64-1."""
    found = integer(value, "seed")
    if not 0 <= found < 2**64:
        raise ValueError(f"seed must be in 0..2^64-1, got {found}")
    return found


def threads(value: object, name: str = "threads") -> int:
    """A number of threads as the core takes it, 0 for None."""
    return 0 if value is None else integer(value, name, 1, 64)


def byte_limit(value: object, name: str = "max_bytes") -> int:
    """A number of bytes below 2^63."""
    found = integer(value, name)
    if not 0 <= found < 2**63:
        raise ValueError(f"{name} must be in 0..2^63-1, got {found}")
    return found


def _real(value: object, name: str) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:  # an integer beyond all floats
        return math.inf if value > 0 else -math.inf


def _range(low: float | None, high: float | None) -> str:
    if low is None or low == -math.inf:
        return f"at most {high:,}"
    if high is None or high == math.inf:
        return f"at least {low:,}"
    return f"in {low:,}..{high:,}"
