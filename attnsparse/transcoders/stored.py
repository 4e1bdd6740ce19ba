"""The weights of transcoders in files: what each reader found where, and the one class that reads it.

Only names, shapes and places stay in memory. One layer's encoder, or the decoder rows that are asked for, are
read at a time, into memory of their own (never mmap), widened to float32 and checked to be finite. A file is
opened for each reading and closed after it; one that was written to since the set was loaded is refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from ..errors import ConfigError, FormatError, NonFiniteError, file_error, quoted
from ..io.limits import Limits
from ..io.npz_file import NpzFile
from ..io.safetensors_file import SafetensorsFile
from ..io.tensor_source import FLOAT_TYPES, FileSource
from ..io.torch_file import TorchFile
from .arrays import Encoder, covered_layer

_CHECKED_VALUES = 2**20  # looked at together when searching for NaN


class WeightFile:
    """A file with weights: its tensors' names and shapes; `open` gives it for reading.

    Pass `records` for torch files: see `read_pickle_data`. Raises what its reader does, and FormatError
    `magic` for another ending.
    """

    def __init__(self, path: Path, limits: Limits, records: frozenset[str] = frozenset()) -> None:
        self.path = os.fspath(path)
        self._limits, self._records = limits, records
        self._identity: tuple[int, ...] | None = None
        self._verified: set[str] = set()
        with self.open() as source:
            self._identity = source.identity
            #: tensor name -> shape and type
            self.tensors = dict(source.tensors)
            #: the objects beside the tensors in a torch file
            self.beside = source.beside if isinstance(source, TorchFile) else {}

    def open(self) -> FileSource:
        """The file, open; a context manager. FormatError `changed` if it is not the file that was loaded."""
        source: FileSource
        if self.path.endswith(".safetensors"):
            source = SafetensorsFile(self.path, limits=self._limits)
        elif self.path.endswith(".npz"):
            source = NpzFile(self.path, limits=self._limits)
        elif self.path.endswith(".pt"):
            source = TorchFile(self.path, limits=self._limits, records=self._records)
        else:
            text = "not a kind of file that holds transcoders; known: .safetensors .npz .pt"
            raise file_error(FormatError, "magic", self.path, text)
        if self._identity not in (None, source.identity):
            source.close()
            raise file_error(FormatError, "changed", self.path, "changed since it was loaded; load it again")
        if isinstance(source, (TorchFile, NpzFile)):
            source.verified = self._verified
        return source

    def need(self, name: str, shape: Sequence[int] | None, why: str = "") -> tuple[int, ...]:
        """The shape of tensor `name`, which must be `shape` and of a float type.

        Raises ConfigError missing_tensor or tensor_shape, FormatError dtype.
        """
        if name not in self.tensors:
            found = ", ".join(quoted(other) for other in list(self.tensors)[:6]) or "no tensors"
            text = f"tensor {quoted(name)} is missing; found {found}"
            raise file_error(ConfigError, "missing_tensor", self.path, text, field=name)
        own, dtype = self.tensors[name]
        if shape is not None and own != tuple(shape):
            hint = "; it looks transposed" if len(own) > 1 and own == (*shape[:-2], *shape[:-3:-1]) else ""
            text = f"tensor {quoted(name)} has shape {list(own)}, expected {list(shape)}{why}{hint}"
            raise file_error(ConfigError, "tensor_shape", self.path, text, field=name)
        if dtype not in FLOAT_TYPES:
            text = f"tensor {quoted(name)} has dtype {dtype}, weights must be {' '.join(FLOAT_TYPES)}"
            raise file_error(FormatError, "dtype", self.path, text, field=name)
        return own

    def only(self, known: Sequence[str]) -> None:
        """Raise ConfigError unexpected_tensor if the file has a tensor that is not in `known`."""
        for name in self.tensors:
            if name not in known:
                text = f"tensor {quoted(name)} has no place in a transcoder of this layout"
                raise file_error(ConfigError, "unexpected_tensor", self.path, text, field=name)

    def raise_file_error(self, code: str, text: str, field: str | None = None) -> NoReturn:
        """Raise ConfigError about this file."""
        raise file_error(ConfigError, code, self.path, text, field=field)

    def vector(self, name: str, row: int, size: int) -> np.ndarray:
        """Row `row` of a tensor seen as rows of `size` numbers, float32, finite."""
        out = np.empty((1, size), np.float32)
        with self.open() as source:
            source.read_rows(name, np.array([row]), out)
        values: np.ndarray = out[0]
        check_finite(values, self.path, name)
        return values


def check_finite(array: np.ndarray, path: str, name: str) -> None:
    """Raise NonFiniteError if an array [n, ...] that was read holds NaN or infinity."""
    step = max(1, _CHECKED_VALUES // max(1, math.prod(array.shape[1:])))
    for begin in range(0, len(array), step):
        bad = ~np.isfinite(array[begin : begin + step])
        if bad.any():
            first = [int(at) for at in np.unravel_index(int(np.argmax(bad)), bad.shape)]
            first[0] += begin
            text = f"{quoted(name)} has values that are not finite, the first at {first} of what was read"
            raise file_error(NonFiniteError, "nonfinite", path, text, field=name)


class EncoderPart(NamedTuple):
    """The encoder of `n_features` neighbouring features of one layer, the first ones of its tensors.

    weight: [F, E], or [E, F] if `transposed`, from row `first` of the tensor on. bias, threshold: row
    `row` of tensors seen as rows of F.
    """

    file: WeightFile
    n_features: int
    weight: str
    bias: str
    threshold: str | None = None
    first: int = 0
    transposed: bool = False
    row: int = 0


class DecoderPart(NamedTuple):
    """The decoder of `n_features` neighbouring features of one layer.

    What feature f writes to the k-th target is row first + f * feature_step + k * target_step of tensor
    `weight` seen as rows of E, or column f of a tensor [E, F] if `transposed`.
    """

    file: WeightFile
    n_features: int
    weight: str
    first: int = 0
    feature_step: int = 1
    target_step: int = 1
    transposed: bool = False


class Row(NamedTuple):
    """One row of a tensor seen as rows of E."""

    file: WeightFile
    tensor: str
    row: int = 0


class StoredLayer(NamedTuple):
    """Where one layer's weights are stored, and how they are converted after reading, in this order.

    encoder: w_enc *= input_scale. subtract b (a vector taken from the input): b_enc -= w_enc @ b.
    threshold: as stored, exp of it ("exp"), or at least 0 ("positive"). output_bias: the sum of rows, divided
    by output_scale. decoder rows: divided by output_scales, one number per target.
    skip: x @ skip.T, stored as [E, E], transposed or not.
    """

    encoder: tuple[EncoderPart, ...]
    decoder: tuple[DecoderPart, ...]
    output: tuple[Row, ...]
    n_targets: int = 1
    input_scale: float = 1.0
    output_scales: np.ndarray | None = None
    threshold: str = "stored"
    subtract: Row | None = None
    skip: tuple[WeightFile, str, bool] | None = None

    @property
    def n_features(self) -> int:
        return sum(part.n_features for part in self.encoder)


class InputChange(NamedTuple):
    """What the input that was trained on is in terms of the one that is read here: scale * x + shift, both
    [E], or x minus its mean if `centred`."""

    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    centred: bool = False

    def apply(self, matrix: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Change `matrix` [n, E] in place; returns the bias [n] that goes with it."""
        if self.shift is not None:
            bias = add_products(bias, matrix, self.shift)
        if self.scale is not None:
            matrix *= self.scale
        if self.centred:
            matrix -= matrix.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
        return bias


class StoredWeights:
    """The weights of a set in files; `TranscoderWeights` of `Transcoders`.

    `layers` are by the model's numbers. `changes` holds, for the layers that were trained on another input
    than the one read here, what that was. n_layer: layers of the model; None if no file says: then as many as
    there must be, and the set is `open_ended`.
    """

    def __init__(
        self,
        layers: Mapping[int, StoredLayer],
        d_model: int,
        changes: Mapping[int, InputChange] | None = None,
        n_layer: int | None = None,
    ) -> None:
        self.layers = dict(layers)
        self.open_ended = n_layer is None
        self.n_layer = max(layers) + 1 if n_layer is None else n_layer
        self.d_model = d_model
        self.n_features = tuple(
            self.layers[i].n_features if i in self.layers else 0 for i in range(self.n_layer)
        )
        self._changes = dict(changes or {})

    def _stored(self, layer: int) -> StoredLayer:
        return self.layers[covered_layer(layer, self.n_features)]

    def encoder(self, layer: int) -> Encoder:
        """Read the encoder of a layer."""
        stored = self._stored(layer)
        n = stored.n_features
        w_enc, b_enc = np.empty((n, self.d_model), np.float32), np.empty(n, np.float32)
        threshold = np.empty(n, np.float32) if stored.encoder[0].threshold is not None else None
        begin = 0
        for part in stored.encoder:
            end = begin + part.n_features
            with part.file.open() as source:
                _read_matrix(source, part, w_enc[begin:end])
                row = np.array([part.row])
                source.read_rows(part.bias, row, b_enc[None, begin:end])
                if threshold is not None and part.threshold is not None:
                    source.read_rows(part.threshold, row, threshold[None, begin:end])
            check_finite(w_enc[begin:end], part.file.path, part.weight)
            check_finite(b_enc[begin:end], part.file.path, part.bias)
            if threshold is not None and part.threshold is not None:
                check_finite(threshold[begin:end], part.file.path, part.threshold)
            begin = end
        if stored.input_scale != 1:
            w_enc *= np.float32(stored.input_scale)
        if stored.subtract is not None:
            b_enc = add_products(b_enc, w_enc, -self._row(stored.subtract))
        if layer in self._changes:
            b_enc = self._changes[layer].apply(w_enc, b_enc)
        if threshold is not None and stored.threshold == "exp":
            np.exp(threshold, out=threshold)
        elif threshold is not None and stored.threshold == "positive":
            np.maximum(threshold, 0, out=threshold)
        return Encoder(w_enc, b_enc, threshold)

    def decoder_rows(self, layer: int, features: np.ndarray) -> np.ndarray:
        """Read the rows [n, W, E] of the features int64 [n]."""
        stored = self._stored(layer)
        features = np.asarray(features, np.int64)
        if len(features) and not (features.min() >= 0 and features.max() < stored.n_features):
            worst = features.max() if features.max() >= stored.n_features else features.min()
            raise IndexError(
                f"feature {worst:,} is out of range 0..{stored.n_features - 1:,} of layer {layer}"
            )
        rows = np.empty((len(features), stored.n_targets, self.d_model), np.float32)
        begin = 0
        for part in stored.decoder:
            mine = np.flatnonzero((features >= begin) & (features < begin + part.n_features))
            if len(mine):
                with part.file.open() as source:
                    found = _read_decoder(source, part, features[mine] - begin, rows.shape[1:])
                check_finite(found, part.file.path, part.weight)
                rows[mine] = found
            begin += part.n_features
        if stored.output_scales is not None:
            rows /= stored.output_scales[:, None]
        return rows

    def output_bias(self, layer: int) -> np.ndarray:
        """Read the bias [E] of the MLP output."""
        stored = self._stored(layer)
        total = self._row(stored.output[0])
        for row in stored.output[1:]:
            total += self._row(row)
        if stored.output_scales is not None:
            total /= stored.output_scales[0]
        if stored.skip is not None and layer in self._changes:
            total = self._changes[layer].apply(self._skip(stored.skip), total)
        return total

    def skip(self, layer: int) -> np.ndarray | None:
        """Read the skip matrix [E, E], None if there is none."""
        stored = self._stored(layer).skip
        if stored is None:
            return None
        matrix = self._skip(stored)
        if layer in self._changes:
            self._changes[layer].apply(matrix, np.zeros(self.d_model, np.float32))
        return matrix

    def _skip(self, stored: tuple[WeightFile, str, bool]) -> np.ndarray:
        file, name, transposed = stored
        out = np.empty((self.d_model, self.d_model), np.float32)
        with file.open() as source:
            source.read_into(name, out.T if transposed else out)
        check_finite(out, file.path, name)
        return out

    def _row(self, place: Row) -> np.ndarray:
        return place.file.vector(place.tensor, place.row, self.d_model)


def add_products(b_enc: np.ndarray, w_enc: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """b_enc + w_enc @ vector, the sums in float64 and in the same order on every machine."""
    out = np.empty_like(b_enc)
    step = max(1, _CHECKED_VALUES // w_enc.shape[1])
    wide = vector.astype(np.float64)
    for begin in range(0, len(out), step):
        part = slice(begin, begin + step)
        out[part] = b_enc[part] + np.einsum("fe,e->f", w_enc[part].astype(np.float64), wide)
    return out


def _read_matrix(source: FileSource, part: EncoderPart, out: np.ndarray) -> None:
    """Fill `out` [F, E] with the weights of a part."""
    target = out.T if part.transposed else out
    if source.tensors[part.weight].shape == target.shape:
        source.read_into(part.weight, target)
    else:
        source.read_rows(part.weight, np.arange(part.first, part.first + len(target)), target)


def _read_decoder(
    source: FileSource, part: DecoderPart, features: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """[n, W, E] of features counted within the part."""
    n_targets, width = shape
    out = np.empty((len(features), n_targets, width), np.float32)
    if part.transposed:
        for begin, block in source.blocks(part.weight):
            out[:, 0, begin : begin + len(block)] = block[:, features].T
        return out
    rows = part.first + features[:, None] * part.feature_step + np.arange(n_targets) * part.target_step
    source.read_rows(part.weight, rows.ravel(), out.reshape(-1, width))
    return out
