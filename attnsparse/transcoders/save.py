"""Writes transcoders in circuit-tracer's layout, a block of rows at a time."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import _check
from ..io.atomic import File, write_together
from ..io.safetensors_file import safetensors_header
from ..io.tensor_source import TensorInfo
from .arrays import layers_text
from .formats.circuit_tracer import N_FEATURES
from .transcoders import Transcoders

_BLOCK_VALUES = 2**21
_NEVER_ACTIVE = -(2.0**15)  # a pre-activation, in every dtype
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_MODELS = ("layer_*.safetensors", "layer_*.npz", "W_enc_*.safetensors", "W_dec_*.safetensors")

Blocks = Callable[[], Iterator[np.ndarray]]
Arrays = dict[str, tuple[tuple[int, ...], Blocks]]
"""Name: shape and what gives the blocks of rows."""


def save_transcoders(
    transcoders: Transcoders,
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    equal_sizes: bool = True,
) -> None:
    """Write a set to a folder as circuit-tracer (v0.4) keeps it: config.yaml and one or two files per layer.

    Parameters
    ----------
    transcoders : Transcoders
        The set. One transcoder per layer becomes layer_{i}.safetensors, a cross-layer transcoder
        W_enc_{i}.safetensors and W_dec_{i}.safetensors.
    folder : path
        Made if it does not exist. `load_transcoders(folder)` reads the set back.
    dtype : {"float32", "float16", "bfloat16"}, default "float32"
        float32 is exact unless the weights are float64; the others are rounded to the nearest.
    equal_sizes : bool, default True
        circuit-tracer takes only sets with the same number of features in every layer, so layers with fewer
        are filled up with features that are never active and write nothing; config.yaml notes how many are
        real, and `load_transcoders` leaves the others out. False writes each layer as it is.

    Raises
    ------
    ValueError
        For another dtype, for weights that float16 cannot hold and for a cross-layer transcoder with a skip
        matrix, which this layout lacks.
    FileExistsError
        If the folder holds layers that this set does not have.
    NonFiniteError
        If weights read from files are not finite.
    OSError
        If a file cannot be written.

    Warns
    -----
    UserWarning
        If the set does not have all layers: circuit-tracer does not take it.

    Notes
    -----
    Conversions that were made when the set was loaded are part of what is written. Files are moved to their
    places when all are complete, config.yaml last, so that a reader finds the old set or the new one; this
    needs disk space for both. At most a few rows beside one layer's encoder are in memory.
    """
    _check.instance(transcoders, Transcoders, "transcoders")
    _check.choice(dtype, "dtype", _DTYPES)
    import yaml

    folder = Path(_check.path(folder, "folder"))
    folder.mkdir(parents=True, exist_ok=True)
    _check_others(folder, transcoders)
    size = max(transcoders.n_features) if _check.flag(equal_sizes, "equal_sizes") else 0
    text = yaml.safe_dump(_config(transcoders, size), sort_keys=False, allow_unicode=True)
    config = (folder / "config.yaml", [text.encode("utf-8", "replace")])
    write_together(itertools.chain(_layers(transcoders, folder, _DTYPES[dtype], size), [config]))
    if len(transcoders.layers) < transcoders.n_layer:
        text = (
            f"circuit-tracer needs transcoders of all layers, these are of {layers_text(transcoders.layers)}"
        )
        warnings.warn(f"{text} of {transcoders.n_layer}", UserWarning, stacklevel=2)


def _config(transcoders: Transcoders, size: int) -> dict[str, Any]:
    """size: features that every layer is filled up to."""
    result: dict[str, Any] = {
        "model_name": transcoders.model_name,
        "model_kind": transcoders.kind,
        "feature_input_hook": transcoders.input_hook,
        "feature_output_hook": transcoders.output_hook,
        "scan": transcoders.scan,
    }
    if transcoders.activation == "topk":
        result |= {"activation": "topk", "k": transcoders.top_k}
    counts = [transcoders.n_features[layer] for layer in transcoders.layers]
    if min(counts) < size:
        result[N_FEATURES] = counts
    return result


def _check_others(folder: Path, transcoders: Transcoders) -> None:
    """Raise if the folder holds layers of another set."""
    parts = ("W_enc", "W_dec") if transcoders.cross_layer else ("layer",)
    ours = {f"{part}_{i}.safetensors" for part in parts for i in transcoders.layers}
    for pattern in _MODELS:
        for item in folder.glob(pattern):
            if item.name not in ours:
                text = f"{item.name} belongs to another set; choose an empty folder"
                raise FileExistsError(17, text, os.fspath(folder))


def _layers(transcoders: Transcoders, folder: Path, dtype: str, size: int) -> Iterator[File]:
    """The layers' files; each layer is read when its turn comes."""
    files = _cross_layer_files if transcoders.cross_layer else _layer_files
    for layer in transcoders.layers:
        missing = max(size - transcoders.n_features[layer], 0)
        for name, arrays in files(transcoders, layer, missing).items():
            path = folder / f"{name}.safetensors"
            yield path, _pieces(path, arrays, dtype)


def _layer_files(transcoders: Transcoders, layer: int, missing: int) -> dict[str, Arrays]:
    source, width, n = transcoders.source, transcoders.d_model, transcoders.n_features[layer]
    encoder, skip = source.encoder(layer), source.skip(layer)
    arrays: Arrays = {
        "W_enc": _filled((n, width), lambda: _rows(encoder.w_enc), missing),
        "W_dec": _filled((n, width), lambda: _decoder(transcoders, layer), missing),
        "b_enc": _filled((n,), lambda: iter([encoder.b_enc]), missing, _NEVER_ACTIVE),
        "b_dec": ((width,), lambda: iter([source.output_bias(layer)])),
    }
    threshold = encoder.threshold
    if threshold is not None:
        thresholds = _filled((n,), lambda: iter([threshold]), missing)
        arrays["activation_function.threshold"] = thresholds
    if skip is not None:
        arrays["W_skip"] = (width, width), lambda: _rows(skip)
    return {f"layer_{layer}": arrays}


def _cross_layer_files(transcoders: Transcoders, layer: int, missing: int) -> dict[str, Arrays]:
    source, width, n = transcoders.source, transcoders.d_model, transcoders.n_features[layer]
    if source.skip(layer) is not None:
        text = f"layer {layer} has a skip matrix, which circuit-tracer's cross-layer layout has no place for"
        raise ValueError(text)
    encoder = source.encoder(layer)
    arrays: Arrays = {
        f"W_enc_{layer}": _filled((n, width), lambda: _rows(encoder.w_enc), missing),
        f"b_enc_{layer}": _filled((n,), lambda: iter([encoder.b_enc]), missing, _NEVER_ACTIVE),
        f"b_dec_{layer}": ((width,), lambda: iter([source.output_bias(layer)])),
    }
    threshold = encoder.threshold
    if threshold is not None:
        thresholds = _filled((n,), lambda: iter([threshold]), missing)
        arrays[f"threshold_{layer}"] = thresholds
    shape = (n, transcoders.writes(layer), width)
    decoder: Arrays = {f"W_dec_{layer}": _filled(shape, lambda: _decoder(transcoders, layer), missing)}
    return {f"W_enc_{layer}": arrays, f"W_dec_{layer}": decoder}


def _filled(
    shape: tuple[int, ...], blocks: Blocks, missing: int, value: float = 0.0
) -> tuple[tuple[int, ...], Blocks]:
    """An array with `missing` further rows of one value at its end."""

    def filled() -> Iterator[np.ndarray]:
        yield from blocks()
        step = max(1, _BLOCK_VALUES // math.prod(shape[1:]))
        for begin in range(0, missing, step):
            yield np.full((min(step, missing - begin), *shape[1:]), value, np.float32)

    return (shape[0] + missing, *shape[1:]), filled


def _rows(matrix: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _BLOCK_VALUES // matrix.shape[1])
    for begin in range(0, len(matrix), step):
        yield matrix[begin : begin + step]


def _decoder(transcoders: Transcoders, layer: int) -> Iterator[np.ndarray]:
    n = transcoders.n_features[layer]
    step = max(1, _BLOCK_VALUES // (transcoders.writes(layer) * transcoders.d_model))
    for begin in range(0, n, step):
        yield transcoders.source.decoder_rows(layer, np.arange(begin, min(begin + step, n), dtype=np.int64))


def _pieces(path: Path, arrays: Arrays, dtype: str) -> Iterator[Any]:
    """The bytes of one file."""
    infos = {name: TensorInfo(shape, dtype) for name, (shape, _) in arrays.items()}
    yield safetensors_header(infos, {"format": "pt"})
    for name, (_, blocks) in arrays.items():
        for block in blocks():
            yield np.ascontiguousarray(_narrowed(block, dtype, name, path)).data.cast("B")


def _narrowed(block: np.ndarray, dtype: str, name: str, path: Path) -> np.ndarray:
    """Numbers as they are stored, rounded to the nearest, ties to even."""
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(block, "<f4")
        if dtype == "BF16":
            bits = single.view("<u4").astype(np.uint64)
            stored = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
            finite = np.isfinite(single) & ((stored & 0x7F80) != 0x7F80)
        else:
            stored = single.astype("<f2") if dtype == "F16" else single
            finite = np.isfinite(stored)
    if not finite.all():
        value = block[~finite].flat[0]
        text = f"{path.name}: {name} holds {value}, which {dtype} cannot hold as a finite number"
        raise ValueError(text)
    return stored
