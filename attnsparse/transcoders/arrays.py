"""Where the weights of transcoders come from: the protocol, a source in memory, and checks of its arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from .. import _check
from ..errors import ConfigError, NonFiniteError


@dataclass(frozen=True, eq=False)
class Encoder:
    """The encoder of one layer: ``pre = x @ w_enc.T + b_enc``, x being its input [..., E].

    Parameters
    ----------
    w_enc : numpy.ndarray
        Weights, [F, E], float32 or float64.
    b_enc : numpy.ndarray
        Biases, [F].
    threshold : numpy.ndarray, optional
        Thresholds of "jump_relu", [F].
    """

    w_enc: np.ndarray
    b_enc: np.ndarray
    threshold: np.ndarray | None = None


class TranscoderWeights(Protocol):
    """The protocol of weights of `Transcoders`: any object with these four methods."""

    def encoder(self, layer: int) -> Encoder:
        """The encoder of a layer.

        Parameters
        ----------
        layer : int
            Counted from 0.

        Returns
        -------
        Encoder
        """
        ...

    def decoder_rows(self, layer: int, features: np.ndarray) -> np.ndarray:
        """Rows of a layer's decoder: what features, times their activation, add to MLP outputs.

        Parameters
        ----------
        layer : int
            Counted from 0.
        features : numpy.ndarray
            int64 [n], features of the layer in any order.

        Returns
        -------
        numpy.ndarray
            [n, W, E]: for the outputs of layers layer .. layer + W - 1. W is 1, or n_layer - layer of a
            cross-layer transcoder.
        """
        ...

    def output_bias(self, layer: int) -> np.ndarray:
        """A bias that is added to the MLP output of a layer.

        Parameters
        ----------
        layer : int
            Counted from 0.

        Returns
        -------
        numpy.ndarray
            [E], the sum over the layers that write there.
        """
        ...

    def skip(self, layer: int) -> np.ndarray | None:
        """The skip matrix of a layer: ``x @ skip.T`` is added to its MLP output, x being the encoder's input.

        Parameters
        ----------
        layer : int
            Counted from 0.

        Returns
        -------
        numpy.ndarray or None
            [E, E]; None if the layer has none.
        """
        ...


class _Layer(NamedTuple):
    encoder: Encoder
    w_dec: np.ndarray
    output_bias: np.ndarray
    skip: np.ndarray | None


class ArraySource:
    """`TranscoderWeights` that are in memory. Arrays are not copied.

    Parameters
    ----------
    w_enc : sequence of array [F, E]
        Encoders: one entry per layer, here and in the other lists, and None in all of them for a layer that
        has no transcoder.
    b_enc : sequence of array [F]
        Their biases.
    w_dec : sequence of array [F, E] or [F, W, E]
        Decoders; the second form is that of a cross-layer transcoder, with W = n_layer - layer.
    output_bias : sequence of array [E]
        What is added to the output of the MLP.
    threshold : sequence of array [F], optional
        Thresholds of "jump_relu".
    skip : sequence of array [E, E], optional
        x @ skip.T is added to the output, x being the encoder's input.

    Raises
    ------
    ConfigError
        With code config_value and a field such as "w_enc.3", for shapes that do not fit each other.
    TypeError
        For anything but floating-point arrays.
    """

    def __init__(
        self,
        w_enc: Sequence[np.ndarray | None],
        b_enc: Sequence[np.ndarray | None],
        w_dec: Sequence[np.ndarray | None],
        output_bias: Sequence[np.ndarray | None],
        threshold: Sequence[np.ndarray | None] | None = None,
        skip: Sequence[np.ndarray | None] | None = None,
    ) -> None:
        given: dict[str, Any] = {"w_enc": w_enc, "b_enc": b_enc, "w_dec": w_dec, "output_bias": output_bias}
        given |= {name: a for name, a in (("threshold", threshold), ("skip", skip)) if a is not None}
        for name, values in given.items():
            if not isinstance(values, (list, tuple, np.ndarray)):
                kind = type(values).__name__
                raise TypeError(f"{name} must be a list with one array per layer, got {kind}")
        self.n_layer = len(w_enc)  #: layers
        if self.n_layer == 0:
            raise ConfigError("transcoders need at least one layer", code="config_value", field="w_enc")
        given = {"threshold": [None] * self.n_layer, "skip": [None] * self.n_layer} | given
        for name, values in given.items():
            if len(values) != self.n_layer:
                text = f"{name} has {len(values)} layers, w_enc has {self.n_layer}"
                raise ConfigError(text, code="config_value", field=name)
        arrays = {name: [_floats(name, i, a) for i, a in enumerate(v)] for name, v in given.items()}
        layers = _layers_of(arrays)
        self._layers = {
            layer: _layer(layer, {name: a[layer] for name, a in arrays.items()}) for layer in layers
        }
        self.d_model = self._layers[layers[0]].encoder.w_enc.shape[1]  #: E
        #: F of each layer, 0 without a transcoder
        self.n_features = tuple(
            len(self._layers[layer].encoder.w_enc) if layer in self._layers else 0
            for layer in range(self.n_layer)
        )
        for layer in layers:
            f = self.n_features[layer]
            check_encoder(self, layer, self.d_model, f, finite=False)
            shapes = tuple((f, writes, self.d_model) for writes in (1, self.n_layer - layer))
            check_array("w_dec", layer, self._layers[layer].w_dec, shapes, finite=False)

    def _of(self, layer: int) -> _Layer:
        return self._layers[covered_layer(layer, self.n_features)]

    def encoder(self, layer: int) -> Encoder:
        """The encoder of a layer.

        Parameters
        ----------
        layer : int
            Counted from 0.

        Returns
        -------
        Encoder
        """
        return self._of(layer).encoder

    def decoder_rows(self, layer: int, features: np.ndarray) -> np.ndarray:
        """Rows of a layer's decoder: what features, times their activation, add to MLP outputs.

        Parameters
        ----------
        layer : int
            Counted from 0.
        features : numpy.ndarray
            int64 [n], features of the layer in any order.

        Returns
        -------
        numpy.ndarray
            [n, W, E]: for the outputs of layers layer .. layer + W - 1. W is 1, or n_layer - layer of a
            cross-layer transcoder.
        """
        rows: np.ndarray = self._of(layer).w_dec[features]
        return rows

    def output_bias(self, layer: int) -> np.ndarray:
        """A bias that is added to the MLP output of a layer.

        Parameters
        ----------
        layer : int
            Counted from 0.

        Returns
        -------
        numpy.ndarray
            [E], the sum over the layers that write there.
        """
        return self._of(layer).output_bias

    def skip(self, layer: int) -> np.ndarray | None:
        """The skip matrix of a layer: ``x @ skip.T`` is added to its MLP output, x being the encoder's input.

        Parameters
        ----------
        layer : int
            Counted from 0.

        Returns
        -------
        numpy.ndarray or None
            [E, E]; None if the layer has none.
        """
        return self._of(layer).skip

    @property
    def has_threshold(self) -> bool:
        """Whether any layer has thresholds."""
        return any(layer.encoder.threshold is not None for layer in self._layers.values())

    @property
    def cross_layer(self) -> bool:
        """Whether any decoder writes to more than one layer."""
        return any(layer.w_dec.shape[1] > 1 for layer in self._layers.values())

    def __repr__(self) -> str:
        return f"ArraySource({shape_text(self.n_features)})"


def _layer(layer: int, arrays: dict[str, Any]) -> _Layer:
    """The arrays of a layer, by name; ConfigError if its encoder is not a matrix."""
    w_enc, w_dec = arrays["w_enc"], arrays["w_dec"]
    if w_enc.ndim != 2 or 0 in w_enc.shape:
        text = f"w_enc of layer {layer} has shape {w_enc.shape}, expected [features, d_model]"
        raise ConfigError(text, code="config_value", field=f"w_enc.{layer}")
    return _Layer(
        Encoder(w_enc, arrays["b_enc"], arrays["threshold"]),
        w_dec[:, None] if w_dec.ndim == 2 else w_dec,
        arrays["output_bias"],
        arrays["skip"],
    )


def covered_layer(layer: Any, n_features: Sequence[int]) -> int:
    """The number of a layer that has a transcoder; IndexError for any other."""
    number = _check.layer(layer, len(n_features))
    if not n_features[number]:
        has = layers_text(np.flatnonzero(n_features).tolist())
        raise IndexError(f"layer {number} has no transcoder; there are transcoders of {has}")
    return number


def layers_text(layers: Sequence[int]) -> str:
    """`layer 3`, `layers 0-2, 5`: rising numbers, runs of them joined."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    if len(shown) > 12:
        shown[12:] = ["..."]
    return f"layer{'s' if len(layers) != 1 else ''} {', '.join(shown)}"


def shape_text(n_features: Sequence[int]) -> str:
    """`12 layers x 512 features`, `512 to 1,024` where layers differ, `layers 1, 4 of 12 x 512` where some
    have none."""
    layers = [layer for layer, n in enumerate(n_features) if n]
    counts = [n_features[layer] for layer in layers]
    least, most = min(counts), max(counts)
    which = f"{len(n_features)} layers"
    if len(layers) < len(n_features):
        which = f"{layers_text(layers)} of {len(n_features)}"
    return f"{which} x {least:,}{'' if least == most else f' to {most:,}'} features"


def _layers_of(arrays: dict[str, list[Any]]) -> list[int]:
    """The layers that have arrays; ConfigError where one has only some of them, or none has any."""
    w_enc = arrays["w_enc"]
    for name in ("b_enc", "w_dec", "output_bias"):
        for layer, array in enumerate(arrays[name]):
            if (array is None) != (w_enc[layer] is None):
                lacks, has = (name, "w_enc") if array is None else ("w_enc", name)
                text = f"layer {layer} has {has} but no {lacks}; a layer has all arrays, or None in each list"
                raise ConfigError(text, code="config_value", field=f"{lacks}.{layer}")
    layers = [layer for layer, array in enumerate(w_enc) if array is not None]
    if not layers:
        raise ConfigError("transcoders need at least one layer", code="config_value", field="w_enc")
    return layers


def _floats(name: str, layer: int, value: Any) -> np.ndarray | None:
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} of layer {layer} must be floating-point numbers, got {array.dtype}")
    return np.ascontiguousarray(array)


def check_encoder(
    source: TranscoderWeights,
    layer: int,
    d_model: int,
    n_features: int,
    finite: bool,
    thresholds: bool = False,
) -> None:
    """Check the arrays of one layer but its decoder; `thresholds`: they are needed."""
    encoder, skip = source.encoder(layer), source.skip(layer)
    arrays = {
        "w_enc": (encoder.w_enc, (n_features, d_model)),
        "b_enc": (encoder.b_enc, (n_features,)),
        "output_bias": (source.output_bias(layer), (d_model,)),
    }
    if encoder.threshold is not None:
        arrays["threshold"] = encoder.threshold, (n_features,)
    elif thresholds:
        raise array_error("threshold", layer, "is missing, activation 'jump_relu' needs it")
    if skip is not None:
        arrays["skip"] = skip, (d_model, d_model)
    for name, (array, shape) in arrays.items():
        check_array(name, layer, array, (shape,), finite)


def check_array(name: str, layer: int, array: Any, shapes: tuple[tuple[int, ...], ...], finite: bool) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise array_error(name, layer, f"must be a floating-point array, got {got}", "dtype")
    if array.shape not in shapes:
        raise array_error(name, layer, f"has shape {array.shape}, expected {shapes[0]}")
    if finite and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise NonFiniteError(
            f"{name} of layer {layer} has {len(bad):,} non-finite values, first at {bad[0].tolist()}",
            code="nonfinite",
            field=f"{name}.{layer}",
        )


def array_error(name: str, layer: int, text: str, code: str = "config_value") -> ConfigError:
    """The error about an array of a layer, to be raised."""
    return ConfigError(f"{name} of layer {layer} {text}", code=code, field=f"{name}.{layer}")
