"""Checks of what a bundle holds: names, kinds and ranges of fields, types, sizes and values of tensors.

Each object's file names its fields and tensors in tables and calls these with them. All raise FormatError
with the code `header_value` for fields, `missing_tensor`, `unexpected_tensor`, `dtype`, `size_mismatch` and
`nonfinite` for tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import NonFiniteError, file_error, quoted, raise_file_error
from .bundle import DTYPES, Bundle
from .limits import Limits
from .strict_json import shown

Specs = Mapping[str, tuple[str, str]]
"""Tensor name: (type of its elements, one letter for each dimension; a letter names one size)."""


# ---- fields


def check_names(found: Mapping[str, Any], wanted: set[str], where: str, path: str) -> None:
    """Exactly the wanted names."""
    for name in sorted(wanted - found.keys()):
        raise_file_error("header_value", path, f"{where} lacks '{name}'", name)
    for name in sorted(found.keys() - wanted):
        raise_file_error("header_value", path, f"{where} has {quoted(name)}, which is not known", name)


def check_texts(data: Mapping[str, Any], names: Iterable[str], path: str) -> None:
    """Texts."""
    for name in names:
        if not isinstance(data[name], str):
            raise_file_error(
                "header_value", path, f"'{name}' must be a string, got {shown(data[name])}", name
            )


def check_text_list(data: Mapping[str, Any], name: str, path: str) -> None:
    """A list of strings."""
    if not isinstance(data[name], list) or not all(isinstance(text, str) for text in data[name]):
        raise_file_error("header_value", path, f"'{name}' must be a list of strings", name)


def check_object(data: Mapping[str, Any], name: str, path: str, *, optional: bool = False) -> None:
    """An object; null as well if it is optional."""
    value = data[name]
    if not isinstance(value, dict) and not (optional and value is None):
        what = "null or an object" if optional else "an object"
        raise_file_error("header_value", path, f"'{name}' must be {what}, got {shown(value)}", name)


def check_flag(data: Mapping[str, Any], name: str, path: str) -> None:
    """True or false."""
    if type(data[name]) is not bool:
        text = f"'{name}' must be true or false, got {shown(data[name])}"
        raise_file_error("header_value", path, text, name)


def check_integer(data: Mapping[str, Any], name: str, low: int, high: int, path: str) -> None:
    """An integer in low..high."""
    value = data[name]
    if type(value) is not int or not low <= value <= high:
        text = f"'{name}' must be an integer in {low}..{high}, got {shown(value)}"
        raise_file_error("header_value", path, text, name)


def check_share(data: Mapping[str, Any], name: str, path: str) -> None:
    """A number in 0..1."""
    value = data[name]
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise_file_error("header_value", path, f"'{name}' must be a number in 0..1, got {shown(value)}", name)


def check_choice(data: Mapping[str, Any], name: str, choices: tuple[str, ...], path: str) -> None:
    """One of some texts."""
    value = data[name]
    if not isinstance(value, str) or value not in choices:
        text = f"'{name}' must be one of {', '.join(choices)}, got {shown(value)}"
        raise_file_error("header_value", path, text, name)


# ---- tensors


def stored(arrays: Mapping[str, Any], specs: Specs) -> dict[str, np.ndarray]:
    """Arrays of the types that the file has."""
    return {name: np.asarray(value, DTYPES[specs[name][0]], order="C") for name, value in arrays.items()}


def check_size(bundle: Bundle, limits: Limits) -> None:
    """LimitError `file_limit` for a file above `max_array_bytes`."""
    what = f"a file of {bundle.n_bytes:,} bytes"
    limits.check("max_array_bytes", bundle.n_bytes, bundle.path, what, code="file_limit")


def check_tensors(bundle: Bundle, specs: Specs, optional: Iterable[str] = ()) -> None:
    """Exactly these tensors, of their types and numbers of dimensions, before any is read."""
    path = bundle.path
    for name in specs:
        if name not in bundle.tensors and name not in optional:
            raise_file_error("missing_tensor", path, f"tensor '{name}' is missing", name)
    for name, (shape, dtype) in bundle.tensors.items():
        if name not in specs:
            raise_file_error("unexpected_tensor", path, f"tensor {quoted(name)} is not known", name)
        wanted, sides = specs[name]
        if dtype != wanted:
            text = f"tensor '{name}' has dtype {dtype}, expected {wanted}"
            raise_file_error("dtype", path, text, name)
        if len(shape) != len(sides):
            text = f"tensor '{name}' has shape {list(shape)!s:.60}, expected {len(sides)} dimensions"
            raise_file_error("size_mismatch", path, text, name)


def check_sides(arrays: Mapping[str, np.ndarray], specs: Specs, sides: Mapping[str, int], path: str) -> None:
    """Every tensor has the sizes that its letters name."""
    for name, array in arrays.items():
        expected = tuple(sides[letter] for letter in specs[name][1])
        if array.shape != expected:
            text = f"tensor '{name}' has shape {list(array.shape)}, expected {list(expected)}"
            raise_file_error("size_mismatch", path, text, name)


def check_finite(arrays: Mapping[str, np.ndarray], names: Iterable[str], path: str) -> None:
    """Finite numbers only, else NonFiniteError."""
    for name in names:
        if not np.isfinite(arrays[name]).all():
            text = f"tensor '{name}' has numbers that are not finite"
            raise file_error(NonFiniteError, "nonfinite", path, text, field=name)
