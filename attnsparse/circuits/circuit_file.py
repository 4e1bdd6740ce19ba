"""The files of a circuit: `path`.json with names and options, `path`.npz with the arrays; see paired_file.py.

Here are what the files must hold and the checks of it; a `Circuit` is made of it in circuit.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import raise_file_error
from ..io.folder_commit import read_whole
from ..io.limits import Limits
from ..io.paired_file import (
    Kind,
    check_choice,
    check_finite,
    check_integer,
    check_names,
    check_share,
    check_sides,
    check_text_list,
    check_texts,
    pair_paths,
    read_arrays,
    read_fields,
    save_pair,
)
from ..io.strict_json import shown
from ..model.interventions import ABLATIONS
from .choices import ITEMS, MAX_RESAMPLES, METHODS, NORMALIZATIONS, RANK_BY, UNITS

VERSION = 1
KIND = Kind("circuit", VERSION)

# name: (dtype, dimensions); n items of w numbers, S sizes, P prompts
_ARRAYS = {
    "items": ("<i4", "nw"),
    "scores": ("<f8", "n"),
    "sizes": ("<i8", "S"),
    "values": ("<f8", "SP"),
    "full": ("<f8", "P"),
    "empty": ("<f8", "P"),
    "effect": ("<f8", "S"),
    "effect_low": ("<f8", "S"),
    "effect_high": ("<f8", "S"),
    "random_effect": ("<f8", "S"),
    "random_low": ("<f8", "S"),
    "random_high": ("<f8", "S"),
}
_FINITE = ("scores", "values", "full", "empty", "effect")
_TEXTS = ("model_name", "model_digest", "task_name", "task_digest")
_CHOICES = {
    "unit": UNITS,
    "method": METHODS,
    "ablation": ABLATIONS,
    "normalize": NORMALIZATIONS,
}
_NAMES = (*_TEXTS, *_CHOICES, "metric")  # the metric may be one of the user's own
_WHOLE_OPTIONS = {
    "steps": (1, 2**31),
    "n_bootstrap": (0, MAX_RESAMPLES),
    "n_random": (0, 2**31),
    "seed": (0, 2**64 - 1),
    "n_ranking": (1, 2**31),
}
_SHARE_OPTIONS = ("greedy_step", "confidence")
_OPTIONS = {"rank_by", "sizes", "reference", *_WHOLE_OPTIONS, *_SHARE_OPTIONS}


def write(path: str | os.PathLike[str], circuit: Mapping[str, Any]) -> None:
    """Write the fields of a circuit, by name."""
    fields = {name: circuit[name] for name in _NAMES}
    fields |= {"options": dict(circuit["options"]), "position_labels": circuit["position_labels"]}
    kind = KIND._replace(version=circuit["version"])
    save_pair(path, kind, fields, {name: circuit[name] for name in _ARRAYS}, _ARRAYS)


def read(path: str | os.PathLike[str], limits: Limits) -> dict[str, Any]:
    """The fields of a circuit, by name, checked."""
    json_path, npz_path = pair_paths(path)
    return read_whole(Path(json_path).parent, lambda: _read(json_path, npz_path, limits))


def _read(json_path: str, npz_path: str, limits: Limits) -> dict[str, Any]:
    data = read_fields(json_path, KIND, (*_NAMES, "options", "position_labels"), limits)
    _check_fields(data, json_path)
    arrays = read_arrays(npz_path, KIND, data["arrays_sha256"], _ARRAYS, limits)
    _check_arrays(arrays, data, npz_path)
    labels = data["position_labels"]
    fields = {name: data[name] for name in (*_NAMES, "options", "version")}
    return {**fields, **arrays, "position_labels": None if labels is None else tuple(labels)}


def _check_fields(data: dict[str, Any], path: str) -> None:
    check_texts(data, (*_TEXTS, "metric"), path)
    for name, choices in _CHOICES.items():
        check_choice(name, data[name], choices, path)
    if data["position_labels"] is not None:
        check_text_list(data, "position_labels", path)
    options = data["options"]
    if not isinstance(options, dict):
        raise_file_error(
            "header_value", path, f"'options' must be an object, got {shown(options)}", "options"
        )
    check_names(options, _OPTIONS, "'options'", KIND, path)
    check_choice("rank_by", options["rank_by"], RANK_BY, path)
    for name, (low, high) in _WHOLE_OPTIONS.items():
        check_integer(options, name, low, high, path)
    for name in _SHARE_OPTIONS:
        check_share(options, name, path)
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
    check_sides(arrays, _ARRAYS, sides, path)
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
