"""Arguments that must be one of our objects, a share or a layer, and what is said of others."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from .items import whole_number

T = TypeVar("T")

_MADE_BY = {
    "Features": "transcoders.features",
    "FeatureLabels": "asp.describe_features",
    "Graph": "asp.attribution_graph",
    "GroupEdge": "asp.graphs.find_group_edge",
    "Model": "asp.load",
    "Task": "make_task",
    "Tokenizer": "model.tokenizer",
    "Transcoders": "asp.load_transcoders",
}


def checked_object(value: T, kind: type[T], name: str) -> T:
    """`value` if it is a `kind`; TypeError that names the argument and what gives such an object."""
    if not isinstance(value, kind):
        article = "" if kind.__name__.endswith("s") else "a "
        gives = "is" if kind.__name__ == "Tokenizer" else "gives"
        raise TypeError(
            f"{name} must be {article}{kind.__name__}, such as {_MADE_BY[kind.__name__]} {gives}, "
            f"got {type(value).__name__}"
        )
    return value


def checked_share(value: Any, name: str) -> float:
    """A number in 0..1 as float; TypeError or ValueError that name the argument."""
    if not 0 <= _number(value, name) <= 1:
        raise ValueError(f"{name} must be in 0..1, got {value}")
    return float(value)


def checked_fraction(value: Any) -> float:
    """A number above 0 and at most 1 as float; TypeError or ValueError."""
    if not 0 < _number(value, "fraction") <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {value}")
    return float(value)


def _number(value: Any, name: str) -> Any:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return value


def checked_layer(layer: Any, n_layer: int) -> int:
    """The number of a layer; TypeError, or IndexError if there is no such layer."""
    number = whole_number(layer, "layer")
    if not 0 <= number < n_layer:
        raise IndexError(f"layer {number} is out of range: there are layers 0..{n_layer - 1}")
    return number


def is_missing(value: Any) -> bool:
    """Whether `value` is what a table has where nothing stands: None, NaN, pandas' NA or NaT."""
    return (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, (float, np.floating)) and bool(value != value))
    )
