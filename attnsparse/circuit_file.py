"""Circuits in files: `path`.json with names and options, `path`.npz with the arrays.

The JSON holds the SHA-256 of the .npz, so a pair that does not belong together is found. The .npz is what
`numpy.savez` writes and any tool can read it; here it is read without pickle and without evaluating anything:
stored entries only, every array of exactly the type, the number of dimensions and the sizes that a circuit
has.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from typing import Any, NoReturn

import numpy as np

from .circuit_object import (
    MAX_RESAMPLES,
    METHODS,
    NORMALIZATIONS,
    RANK_BY,
    UNITS,
    VERSION,
    Circuit,
)
from .effects import ABLATIONS, METRICS
from .errors import FormatError, NonFiniteError, located, quoted
from .limits import DEFAULT_LIMITS, Limits
from .regular_file import RegularFile, read_small
from .strict_json import parse_object, shown
from .training_file import write_atomic
from .zip_directory import read_zip_directory

FORMAT = "attnsparse circuit"

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
    "unit": tuple(UNITS),
    "method": METHODS,
    "ablation": ABLATIONS,
    "normalize": NORMALIZATIONS,
    "metric": METRICS,
}
_WHOLE_OPTIONS = {
    "steps": (1, 2**31),
    "n_bootstrap": (0, MAX_RESAMPLES),
    "n_random": (0, 2**31),
    "seed": (0, 2**64 - 1),
    "n_ranking": (1, 2**31),
}
_SHARE_OPTIONS = ("greedy_step", "confidence")
_OPTIONS = {"rank_by", "sizes", "reference", *_WHOLE_OPTIONS, *_SHARE_OPTIONS}
_NPY = re.compile(
    rb"\{'descr': '(?P<dtype><[fi][48])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>(?:[0-9]{1,18}, )*[0-9]{1,18},?)\), \} *\n"
)


def save_circuit(circuit: Circuit, path: str | os.PathLike[str]) -> None:
    """See `Circuit.save`."""
    json_path, npz_path = _paths(path)
    arrays = {
        name: np.asarray(getattr(circuit, name), dtype, order="C") for name, (dtype, _) in _ARRAYS.items()
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    data = {
        "format": FORMAT,
        "version": circuit.version,
        **{name: getattr(circuit, name) for name in (*_TEXTS, *_CHOICES)},
        "options": dict(circuit.options),
        "position_labels": circuit.position_labels,
        "arrays_sha256": hashlib.sha256(buffer.getbuffer()).hexdigest(),
    }
    text = json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    write_atomic(npz_path, [buffer.getbuffer()])
    write_atomic(json_path, [text.encode()])


def load_circuit(path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> Circuit:
    """Read what `Circuit.save(path)` wrote; `path` with or without .json or .npz.

    Raises OSError when a file cannot be read, and FormatError with a code: json_* and duplicate_name for the
    JSON; magic, version, header_value for its fields; checksum when the .npz belongs to another JSON;
    missing_tensor, unexpected_tensor, dtype, size_mismatch, array_header, zip_* and truncated for the arrays;
    value for items or sizes that make no sense. LimitError above one of `limits`, NonFiniteError for numbers
    that are not finite.
    """
    json_path, npz_path = _paths(path)
    raw = read_small(json_path, "max_index_bytes", limits=limits)
    data = parse_object(raw, json_path, limits=limits)
    checksum = _check_header(data, json_path)
    arrays = _read_arrays(npz_path, checksum, limits)
    _check_arrays(arrays, data, npz_path)
    labels = data["position_labels"]
    return Circuit(
        **{name: data[name] for name in (*_TEXTS, *_CHOICES, "options", "version")},
        **arrays,
        position_labels=None if labels is None else tuple(labels),
    )


def _paths(path: str | os.PathLike[str]) -> tuple[str, str]:
    base = os.fspath(path)
    if not isinstance(base, str):
        raise TypeError(f"path must be a text or a path, got {type(base).__name__}")
    for suffix in (".json", ".npz"):
        base = base.removesuffix(suffix)
    return base + ".json", base + ".npz"


# ------------------------------------------------------------------------------------------ JSON


def _check_header(data: dict[str, Any], path: str) -> str:
    """Check all fields of the JSON; the SHA-256 of the arrays' file."""
    if data.get("format") != FORMAT:
        _fail("magic", path, f"not a circuit: 'format' is {shown(data.get('format'))}, must be '{FORMAT}'")
    version = data.get("version")
    if type(version) is not int or version < 1:
        _fail("version", path, f"version must be a whole number from 1 on, got {shown(version)}", "version")
    if version > VERSION:
        text = f"from a newer attnsparse: circuit version {version}, this one reads up to {VERSION}; update"
        _fail("version", path, text, "version")
    wanted = {"format", "version", *_TEXTS, *_CHOICES, "options", "position_labels", "arrays_sha256"}
    _check_names(data, wanted, "the file", path)
    for name in _TEXTS:
        if not isinstance(data[name], str):
            _fail("header_value", path, f"'{name}' must be a text, got {shown(data[name])}", name)
    for name, choices in _CHOICES.items():
        _check_choice(name, data[name], choices, path)
    labels = data["position_labels"]
    if labels is not None and not (isinstance(labels, list) and all(isinstance(x, str) for x in labels)):
        _fail("header_value", path, "'position_labels' must be null or a list of texts", "position_labels")
    checksum = data["arrays_sha256"]
    if not isinstance(checksum, str) or not re.fullmatch("[0-9a-f]{64}", checksum):
        _fail("header_value", path, "'arrays_sha256' must be 64 hexadecimal digits", "arrays_sha256")
    if not isinstance(data["options"], dict):
        _fail("header_value", path, f"'options' must be an object, got {shown(data['options'])}", "options")
    _check_options(data["options"], path)
    return checksum


def _check_options(options: dict[str, Any], path: str) -> None:
    _check_names(options, _OPTIONS, "'options'", path)
    _check_choice("rank_by", options["rank_by"], RANK_BY, path)
    for name, (low, high) in _WHOLE_OPTIONS.items():
        value = options[name]
        if type(value) is not int or not low <= value <= high:
            text = f"'{name}' must be a whole number in {low}..{high}, got {shown(value)}"
            _fail("header_value", path, text, name)
    for name in _SHARE_OPTIONS:
        value = options[name]
        if type(value) not in (int, float) or not 0 <= value <= 1:
            _fail("header_value", path, f"'{name}' must be a number in 0..1, got {shown(value)}", name)
    reference, sizes = options["reference"], options["sizes"]
    if reference is not None and not isinstance(reference, str):
        _fail(
            "header_value", path, f"'reference' must be null or a text, got {shown(reference)}", "reference"
        )
    if sizes is not None and not (isinstance(sizes, list) and all(type(n) is int for n in sizes)):
        _fail("header_value", path, "'sizes' must be null or a list of whole numbers", "sizes")


def _check_names(found: dict[str, Any], wanted: set[str], where: str, path: str) -> None:
    for name in sorted(wanted - found.keys()):
        _fail("header_value", path, f"{where} lacks '{name}'", name)
    for name in sorted(found.keys() - wanted):
        _fail("header_value", path, f"{where} has {quoted(name)}, which a circuit does not have", name)


def _check_choice(name: str, value: Any, choices: tuple[str, ...], path: str) -> None:
    if not isinstance(value, str) or value not in choices:
        _fail("header_value", path, f"'{name}' must be one of {', '.join(choices)}, got {shown(value)}", name)


# ---------------------------------------------------------------------------------------- arrays


def _read_arrays(path: str, checksum: str, limits: Limits) -> dict[str, np.ndarray]:
    """All arrays by name, each with its own memory, after comparing the whole file with its checksum."""
    arrays = {}
    with RegularFile(path) as file:
        content = file.read(0, file.size)
        found = hashlib.sha256(content).hexdigest()
        if found != checksum:
            text = (
                "does not belong to the .json beside it, which was saved with another one: SHA-256 "
                f"{found[:12]}..., expected {checksum[:12]}..."
            )
            _fail("checksum", path, text, "arrays_sha256")
        places = read_zip_directory(file, limits)
    for name in _ARRAYS:
        if f"{name}.npy" not in places:
            _fail("missing_tensor", path, f"array '{name}' is missing", name)
    for entry, place in places.items():
        name = entry.removesuffix(".npy")
        if name not in _ARRAYS or entry == name:
            _fail("unexpected_tensor", path, f"entry {quoted(entry)} is no array of a circuit", entry)
        arrays[name] = _parse_npy(content[place.offset : place.offset + place.n_bytes], name, path)
    return arrays


def _parse_npy(data: bytes, name: str, path: str) -> np.ndarray:
    """The array in the bytes of one .npy entry of version 1.0, in C order."""
    header_bytes = int.from_bytes(data[8:10], "little")
    match = _NPY.fullmatch(data[10 : 10 + header_bytes])
    if data[:8] != b"\x93NUMPY\x01\x00" or match is None:
        _fail("array_header", path, f"array '{name}' has no header as numpy.savez writes it", name)
    dtype, dimensions = _ARRAYS[name]
    if match["dtype"].decode() != dtype:
        text = f"array '{name}' has dtype {quoted(match['dtype'].decode())}, must be '{dtype}'"
        _fail("dtype", path, text, name)
    shape = tuple(int(side) for side in match["shape"].split(b",") if side.strip())
    body = data[10 + header_bytes :]
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if len(shape) != len(dimensions) or len(body) != n_bytes:
        text = (
            f"array '{name}' has {len(body):,} bytes and shape {list(shape)!s:.60}, which needs {n_bytes:,} "
            f"and {len(dimensions)} dimensions"
        )
        _fail("size_mismatch", path, text, name)
    return np.frombuffer(body, dtype).reshape(shape).astype(np.dtype(dtype).newbyteorder("="))


def _check_arrays(arrays: dict[str, np.ndarray], data: dict[str, Any], path: str) -> None:
    """Check that the arrays fit each other and the unit, and that items and sizes make sense."""
    items, sizes, values = arrays["items"], arrays["sizes"], arrays["values"]
    sides = {"n": len(items), "w": len(UNITS[data["unit"]]._fields), "S": len(sizes), "P": values.shape[1]}
    for name, (_, dimensions) in _ARRAYS.items():
        expected = tuple(sides[letter] for letter in dimensions)
        if arrays[name].shape != expected:
            text = f"array '{name}' has shape {list(arrays[name].shape)}, expected {list(expected)}"
            _fail("size_mismatch", path, text, name)
    for name in _FINITE:
        if not np.isfinite(arrays[name]).all():
            text = f"array '{name}' has numbers that are not finite"
            raise located(NonFiniteError, "nonfinite", path, text, field=name)
    if not len(items) or not len(sizes) or not sides["P"]:
        _fail("value", path, "a circuit has at least one item, one size and one prompt", "items")
    if items.min() < 0 or len(np.unique(items, axis=0)) != len(items):
        _fail("value", path, "an item has a number below 0 or occurs twice", "items")
    if data["unit"] == "edge" and (items[:, 3] > items[:, 2]).any():
        _fail("value", path, "an edge has a key after its query", "items")
    if sizes[0] < 0 or sizes[-1] > len(items) or (np.diff(sizes) <= 0).any():
        _fail("value", path, f"sizes must ascend within 0..{len(items)}", "sizes")
    labels = data["position_labels"]
    if labels is not None and sides["w"] > 2 and items[:, 2:].max() >= len(labels):
        text = f"an item is at position {items[:, 2:].max()}, but only {len(labels)} have names"
        _fail("value", path, text, "position_labels")


def _fail(code: str, path: str, text: str, field: str | None = None) -> NoReturn:
    raise located(FormatError, code, path, text, field=field)
