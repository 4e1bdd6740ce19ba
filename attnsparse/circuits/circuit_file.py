"""The file of a circuit: a bundle with names and options in its fields and the arrays as tensors.

Here is what the file must hold and the checks of it; a `Circuit` is made of it in circuit.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import raise_file_error
from ..io.bundle import Bundle, Schema, write_bundle
from ..io.bundle_fields import (
    Specs,
    check_choice,
    check_finite,
    check_integer,
    check_names,
    check_object,
    check_share,
    check_sides,
    check_size,
    check_tensors,
    check_text_list,
    check_texts,
    stored,
)
from ..io.limits import Limits
from ..io.strict_json import shown
from ..model.interventions import ABLATIONS
from .choices import ITEMS, MAX_RESAMPLES, METHODS, NORMALIZATIONS, RANK_BY, UNITS

VERSION = 1
SCHEMA = Schema("circuit", VERSION, ".circuit.safetensors")

# name: (type, dimensions); n items of w numbers, S sizes, P prompts
ARRAYS: Specs = {
    "items": ("I32", "nw"),
    "scores": ("F64", "n"),
    "sizes": ("I64", "S"),
    "values": ("F64", "SP"),
    "full": ("F64", "P"),
    "empty": ("F64", "P"),
    "effect": ("F64", "S"),
    "effect_low": ("F64", "S"),
    "effect_high": ("F64", "S"),
    "random_effect": ("F64", "S"),
    "random_low": ("F64", "S"),
    "random_high": ("F64", "S"),
}
_FINITE = ("scores", "values", "full", "empty", "effect")
_TEXTS = ("model_name", "model_digest", "task_name", "task_digest")
_CHOICES = {
    "unit": UNITS,
    "method": METHODS,
    "ablation": ABLATIONS,
    "normalize": NORMALIZATIONS,
}
_INTEGER_OPTIONS = {
    "steps": (1, 2**31),
    "n_bootstrap": (0, MAX_RESAMPLES),
    "n_random": (0, 2**31),
    "seed": (0, 2**64 - 1),
    "n_ranking": (1, 2**31),
}
_SHARE_OPTIONS = ("greedy_step", "confidence")
FIELDS = (*_TEXTS, *_CHOICES, "metric", "options", "position_labels")
OPTIONS = {"rank_by", "sizes", "reference", *_INTEGER_OPTIONS, *_SHARE_OPTIONS}


def write(path: str | os.PathLike[str], circuit: Mapping[str, Any]) -> None:
    """Write the fields of a circuit, by name."""
    fields = {name: circuit[name] for name in FIELDS} | {"options": dict(circuit["options"])}
    schema = SCHEMA._replace(version=circuit["version"])
    write_bundle(path, schema, fields, stored({name: circuit[name] for name in ARRAYS}, ARRAYS))


def read(path: str | os.PathLike[str], limits: Limits) -> dict[str, Any]:
    """The fields of a circuit, by name, checked."""
    with Bundle(path, SCHEMA, limits=limits) as bundle:
        check_size(bundle, limits)
        _check_fields(bundle.fields, bundle.path)
        check_tensors(bundle, ARRAYS)
        arrays = bundle.read_all()
        _check_arrays(arrays, bundle.fields, bundle.path)
        labels = bundle.fields["position_labels"]
        labels = None if labels is None else tuple(labels)
        return {**bundle.fields, **arrays, "position_labels": labels, "version": bundle.version}


def _check_fields(data: dict[str, Any], path: str) -> None:
    check_names(data, set(FIELDS), "the file", path)
    check_texts(data, (*_TEXTS, "metric"), path)  # the metric may be one of the user's own
    for name, choices in _CHOICES.items():
        check_choice(data, name, choices, path)
    if data["position_labels"] is not None:
        check_text_list(data, "position_labels", path)
    check_object(data, "options", path)
    options = data["options"]
    check_names(options, OPTIONS, "'options'", path)
    check_choice(options, "rank_by", RANK_BY, path)
    for name, (low, high) in _INTEGER_OPTIONS.items():
        check_integer(options, name, low, high, path)
    for name in _SHARE_OPTIONS:
        check_share(options, name, path)
    if not 0 < options["confidence"] < 1:
        text = f"'confidence' must be above 0 and below 1, got {shown(options['confidence'])}"
        raise_file_error("header_value", path, text, "confidence")
    reference, sizes = options["reference"], options["sizes"]
    if reference is not None and not isinstance(reference, str):
        text = f"'reference' must be null or a text, got {shown(reference)}"
        raise_file_error("header_value", path, text, "reference")
    if sizes is not None and not (isinstance(sizes, list) and all(type(n) is int for n in sizes)):
        raise_file_error("header_value", path, "'sizes' must be null or a list of integers", "sizes")


def _check_arrays(arrays: dict[str, np.ndarray], data: dict[str, Any], path: str) -> None:
    """Check that the arrays fit each other and the unit, and that items and sizes make sense."""
    items, sizes, values = arrays["items"], arrays["sizes"], arrays["values"]
    sides = {"n": len(items), "w": len(ITEMS[data["unit"]]._fields), "S": len(sizes), "P": values.shape[1]}
    check_sides(arrays, ARRAYS, sides, path)
    check_finite(arrays, _FINITE, path)
    if not len(items) or not len(sizes) or not sides["P"]:
        raise_file_error("value", path, "a circuit has at least one item, one size and one prompt", "items")
    if items.min() < 0 or len(np.unique(items, axis=0)) != len(items):
        raise_file_error("value", path, "an item has a number below 0 or occurs twice", "items")
    if data["unit"] == "edge" and (items[:, 3] > items[:, 2]).any():
        raise_file_error("value", path, "an edge has a key after its query", "items")
    if sizes[0] < 0 or sizes[-1] > len(items) or (np.diff(sizes) <= 0).any():
        raise_file_error("value", path, f"sizes must ascend within 0..{len(items)}", "sizes")
    labels = data["position_labels"]
    if labels is not None and sides["w"] > 2 and items[:, 2:].max() >= len(labels):
        text = f"an item is at position {items[:, 2:].max()}, but only {len(labels)} have names"
        raise_file_error("value", path, text, "position_labels")
