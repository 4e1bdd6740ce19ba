"""Transcoders: sparse dictionaries that read the input of an MLP and write to the outputs of MLPs.

    transcoders = asp.Transcoders(asp.ArraySource(w_enc, b_enc, w_dec, output_bias), activation="relu")
    features = transcoders.features(model, prompt)              # what is active, and what stays unexplained
    run = transcoders.replacement_run(model, prompt)            # the model with its MLPs replaced

One per layer (Dunefsky, Chlenski and Nanda 2024, "Transcoders Find Interpretable LLM Feature Circuits"), or
cross-layer, where a feature writes to the MLP outputs of its own and all later layers (Ameisen et al. 2025,
"Circuit Tracing", transformer-circuits.pub). Weights are asked for one layer at a time, so a set may be
larger than memory.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .arguments import checked_layer, checked_object
from .errors import ConfigError, NonFiniteError, quoted
from .html_table import html_table
from .model import Model
from .run import DEFAULT_MAX_BYTES, Run

if TYPE_CHECKING:
    import pandas as pd

    from .transcoder_features import Features

KINDS = ("transcoder_set", "cross_layer_transcoder")
ACTIVATIONS = ("relu", "jump_relu", "topk")
INPUT_HOOKS = ("ln2.hook_normalized", "hook_resid_mid")
OUTPUT_HOOK = "hook_mlp_out"
_CHECKED_FEATURES = 4096  # decoder rows looked at together


@dataclass(frozen=True, eq=False)
class Encoder:
    """One layer's encoder: pre = x @ w_enc.T + b_enc, x being the input [.., E] at one position.

    w_enc [F, E], b_enc [F]; threshold [F] of "jump_relu", else None. float32 or float64.
    """

    w_enc: np.ndarray
    b_enc: np.ndarray
    threshold: np.ndarray | None = None


class Source(Protocol):
    """Where the weights of `Transcoders` come from; any object with these four methods."""

    def encoder(self, layer: int) -> Encoder:
        """The encoder of a layer."""
        ...

    def decoder_rows(self, layer: int, features: np.ndarray) -> np.ndarray:
        """[n, W, E] of features int64 [n], in any order: what each adds, times its activation, to the MLP
        outputs of layer .. layer + W - 1; W is 1, or n_layer - layer of a cross-layer transcoder."""
        ...

    def output_bias(self, layer: int) -> np.ndarray:
        """[E]: what is added to the MLP output of a layer whatever is active (summed over the layers that
        write there)."""
        ...

    def skip(self, layer: int) -> np.ndarray | None:
        """[E, E] or None: x @ skip.T is added to the MLP output of the layer, x being the encoder's input."""
        ...


class ArraySource:
    """A `Source` that holds everything in memory: one entry per layer in each list, None for a layer that
    has no transcoder.

    w_enc [F, E], b_enc [F]; w_dec [F, E], or [F, W, E] of a cross-layer transcoder with W = n_layer - layer;
    output_bias [E]; threshold [F] of "jump_relu"; skip [E, E] or None. The arrays are not copied.
    Raises ConfigError (code config_value, field "w_enc.3") for shapes that do not fit each other, TypeError
    for anything but floating-point arrays.
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
                raise ConfigError(
                    f"{name} has {len(values)} layers, w_enc has {self.n_layer}",
                    code="config_value",
                    field=name,
                )
        arrays = {name: [_floats(name, i, a) for i, a in enumerate(v)] for name, v in given.items()}
        self._threshold, self._skip = arrays["threshold"], arrays["skip"]
        self._w_enc, self._b_enc, self._output_bias = arrays["w_enc"], arrays["b_enc"], arrays["output_bias"]
        self._w_dec = [a[:, None] if a is not None and a.ndim == 2 else a for a in arrays["w_dec"]]
        layers = _layers_of(arrays)
        for layer in layers:
            array = self._w_enc[layer]
            if array.ndim != 2 or 0 in array.shape:
                raise ConfigError(
                    f"w_enc of layer {layer} has shape {array.shape}, expected [features, d_model]",
                    code="config_value",
                    field=f"w_enc.{layer}",
                )
        self.d_model = self._w_enc[layers[0]].shape[1]  #: E
        #: F of each layer, 0 without a transcoder
        self.n_features = tuple(0 if a is None else len(a) for a in self._w_enc)
        for layer in layers:
            f = self.n_features[layer]
            _check_encoder(self, layer, self.d_model, f, finite=False)
            shapes = tuple((f, writes, self.d_model) for writes in (1, self.n_layer - layer))
            _check_array("w_dec", layer, self._w_dec[layer], shapes, finite=False)

    def encoder(self, layer: int) -> Encoder:
        """See `Source`."""
        layer = covered_layer(layer, self.n_features)
        return Encoder(self._w_enc[layer], self._b_enc[layer], self._threshold[layer])

    def decoder_rows(self, layer: int, features: np.ndarray) -> np.ndarray:
        """See `Source`."""
        return self._w_dec[covered_layer(layer, self.n_features)][features]

    def output_bias(self, layer: int) -> np.ndarray:
        """See `Source`."""
        return self._output_bias[covered_layer(layer, self.n_features)]

    def skip(self, layer: int) -> np.ndarray | None:
        """See `Source`."""
        return self._skip[covered_layer(layer, self.n_features)]

    @property
    def has_threshold(self) -> bool:
        """Whether any layer has thresholds."""
        return any(array is not None for array in self._threshold)

    @property
    def cross_layer(self) -> bool:
        """Whether any decoder writes to more than one layer."""
        return any(array is not None and array.shape[1] > 1 for array in self._w_dec)

    def __repr__(self) -> str:
        return f"ArraySource({shape_text(self.n_features)})"


def covered_layer(layer: Any, n_features: Sequence[int]) -> int:
    """The number of a layer that has a transcoder; IndexError for any other."""
    number = checked_layer(layer, len(n_features))
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


class Transcoders:
    """One dictionary for every layer of a model, or for some, and what it reads, does and writes.

    source: see `Source`. n_layer, d_model and n_features (one number per layer of the model, 0 where there
    is no transcoder) are those of the source unless given. Layers without a transcoder keep their MLP in
    replacement runs, and their whole output counts as error in features and graphs; layers always have the
    model's numbers. A cross-layer transcoder has all layers.

    kind: "transcoder_set" or "cross_layer_transcoder". input_hook: "ln2.hook_normalized", the
    MLP's LayerNorm before its weight and bias, (x - mean) / scale, or "hook_resid_mid", the residual stream
    before it (TransformerLens's names). output_hook: "hook_mlp_out". activation: "relu", a = max(pre, 0);
    "jump_relu", a = pre where pre > threshold and else 0; "topk", the `top_k` largest positive ones of each
    position (of equal ones the feature with the lower number) and else 0.
    name, model_name, scan: as tables and files show them. digest: SHA-256 in hexadecimal, computed if None.

    Raises ConfigError (codes config_value, hook), TypeError.
    """

    def __init__(
        self,
        source: Source,
        *,
        n_layer: int | None = None,
        d_model: int | None = None,
        n_features: Sequence[int] | None = None,
        kind: str | None = None,
        input_hook: str = "ln2.hook_normalized",
        output_hook: str = OUTPUT_HOOK,
        activation: str = "relu",
        top_k: int | None = None,
        name: str = "",
        model_name: str = "",
        scan: str = "",
        digest: str | None = None,
    ) -> None:
        for method in ("encoder", "decoder_rows", "output_bias", "skip"):
            if not callable(getattr(source, method, None)):
                raise TypeError(f"source must have a method {method}, {type(source).__name__} has none")
        if kind is None:
            kind = KINDS[1] if getattr(source, "cross_layer", False) else KINDS[0]
        self.source = source  #: the `Source` of the weights
        self.n_layer = _size("n_layer", n_layer, source)  #: layers
        self.d_model = _size("d_model", d_model, source)  #: E, width of input and output
        self.n_features = _feature_counts(n_features, source, self.n_layer)  #: F of each layer
        #: the layers that have one, rising
        self.layers = tuple(layer for layer, n in enumerate(self.n_features) if n)
        self.kind = _choice("kind", kind, KINDS)  #: "transcoder_set" or "cross_layer_transcoder"
        if self.cross_layer and len(self.layers) < self.n_layer:
            text = f"a cross-layer transcoder has all layers, this one has {layers_text(self.layers)} of "
            raise ConfigError(f"{text}{self.n_layer}", code="config_value", field="n_features")
        self.input_hook = _choice("input_hook", input_hook, INPUT_HOOKS, "hook")  #: what encoders read
        self.output_hook = _choice(
            "output_hook", output_hook, (OUTPUT_HOOK,), "hook"
        )  #: where decoders write
        self.activation = _choice("activation", activation, ACTIVATIONS)  #: "relu", "jump_relu" or "topk"
        if (top_k is not None) != (activation == "topk"):
            text = "top_k goes with activation='topk' alone" if top_k is not None else "'topk' needs top_k"
            text += f"; got activation={activation!r}, top_k={top_k!r:.60}"
            raise ConfigError(text, code="config_value", field="top_k")
        self.top_k = None if top_k is None else _whole("top_k", top_k)  #: k of "topk", else None
        if activation != "jump_relu" and getattr(source, "has_threshold", False):
            text = f"the source has thresholds, which activation={activation!r} ignores; pass 'jump_relu'"
            raise ConfigError(text, code="config_value", field="threshold")
        self.name, self.model_name, self.scan = str(name), str(model_name), str(scan)
        self._digest = digest
        self._warned_of: set[str] = set()  # names of other models
        self._warned_of_layers = False

    @property
    def cross_layer(self) -> bool:
        """Whether a feature writes to its own and all later layers."""
        return self.kind == "cross_layer_transcoder"

    @property
    def digest(self) -> str:
        """SHA-256 of what these are and of all weights, in hexadecimal; reads every layer the first time."""
        if self._digest is None:
            fields = ("d_model", "kind", "input_hook", "output_hook", "activation", "top_k")
            shown = {name: getattr(self, name) for name in fields}
            # layers after the last one that has any count for nothing: no file says how many there are
            shown["n_layer"] = self.layers[-1] + 1
            shown["n_features"] = self.n_features[: shown["n_layer"]]
            sha = hashlib.sha256(json.dumps(shown, sort_keys=True).encode())
            for layer, array in ((i, a) for i in self.layers for a in self._arrays(i)):
                sha.update(f"{layer} {array.dtype.str} {array.shape}".encode())
                sha.update(memoryview(np.ascontiguousarray(array)).cast("B"))
            self._digest = sha.hexdigest()
        return self._digest

    def _arrays(self, layer: int) -> Any:
        """The arrays of a layer, the decoder in blocks of rows."""
        encoder = self.source.encoder(layer)
        yield from (encoder.w_enc, encoder.b_enc)
        yield from (a for a in (encoder.threshold, self.source.skip(layer)) if a is not None)
        yield self.source.output_bias(layer)
        for features in _blocks(self.n_features[layer]):
            yield self.source.decoder_rows(layer, features)

    def check(self, model: Model, *, weights: bool = True) -> None:
        """Raise unless these fit `model`, and unless all weights are finite numbers of the right shapes.

        weights=False compares sizes only and reads no weights. Warns, once for each, of a model with another
        name than the one that these were made for, if both have names; and once if layers have no
        transcoder. Files do not say how many layers the model has: a set that was loaded without the model
        fits every model that has its layers.
        Raises ConfigError (code config_value, with field n_layer, d_model, w_enc.3, ...; code dtype),
        NonFiniteError (code nonfinite, with the field).
        """
        checked_object(model, Model, "model")
        for field in ("n_layer", "d_model"):
            own, theirs = getattr(self, field), getattr(model.config, field)
            if field == "n_layer" and getattr(self.source, "open_ended", False):
                own = max(own, theirs)
            if own != theirs:
                names = f"transcoders {quoted(self.name)}", f"model {quoted(model.name)}"
                text = f"{names[0]} have {field}={own}, {names[1]} has {theirs}"
                raise ConfigError(text, code="config_value", field=field)
        self._compare_names(model.name)
        self._warn_of_layers(model)
        for layer in self.layers if weights else ():
            n_features = self.n_features[layer]
            _check_encoder(self.source, layer, self.d_model, n_features, True, self.activation == "jump_relu")
            for features in _blocks(n_features):
                shape = (len(features), self.writes(layer), self.d_model)
                _check_array("w_dec", layer, self.source.decoder_rows(layer, features), (shape,), True)

    def _compare_names(self, name: str) -> None:
        own, theirs = (str(each).rstrip("/").rpartition("/")[2] for each in (self.model_name, name))
        if own and theirs and own != theirs and theirs not in self._warned_of:
            self._warned_of.add(theirs)
            text = f"transcoders {quoted(self.name)} were made for model {quoted(own)}, this one is"
            text += f" {quoted(theirs)}: set model.name if it is the same, else errors are large"
            warnings.warn(text, UserWarning, stacklevel=3)

    def _warn_of_layers(self, model: Model) -> None:
        n_layer = model.config.n_layer
        if len(self.layers) < n_layer and not self._warned_of_layers:
            self._warned_of_layers = True
            text = (
                f"transcoders {quoted(self.name)} are of {layers_text(self.layers)} of the model's {n_layer}"
            )
            warnings.warn(f"{text}; the other layers keep their MLP", UserWarning, stacklevel=3)

    def absent(self, model: Model) -> bytes | None:
        """For each layer of the model 1 if it has no transcoder, else 0; None if all have one."""
        absent = bytes(layer not in self.layers for layer in range(model.config.n_layer))
        return absent if any(absent) else None

    def writes(self, layer: int) -> int:
        """W, the number of layers that features of `layer` write to, 0 for a layer without a transcoder.

        Raises IndexError for no such layer."""
        layer = checked_layer(layer, self.n_layer)
        return self.n_layer - layer if self.cross_layer else int(layer in self.layers)

    # --- use

    def features(
        self,
        model: Model,
        prompt: Any,
        *,
        prepend_bos: bool = False,
        record: str | Sequence[str] = (),
        max_bytes: int = DEFAULT_MAX_BYTES,
        threads: int | None = None,
        progress: bool | None = None,
    ) -> Features:
        """What is active in one prompt, on the activations of the model itself.

        prompt: what `Model.run` takes for one prompt, or a `Run` of one prompt that recorded ln2_normalized
        (or resid_mid, by input_hook) and mlp_out. The run made here records pattern, ln1_scale, ln2_scale,
        ln_final_scale, ln2_normalized, embed, pos_embed, resid_pre, resid_mid, resid_post, mlp_out, logits,
        and what `record` adds. max_bytes bounds the run, and once more the features.
        Raises ConfigError if these do not fit the model; ValueError for several prompts, for activations that
        are not finite and as `Model.run` does; RuntimeError if the weights changed after a given run.
        """
        from .transcoder_features import find_features

        return find_features(self, model, prompt, prepend_bos, record, max_bytes, threads, progress)

    def replacement_run(
        self,
        model: Model,
        prompts: Any,
        *,
        errors: Features | None = None,
        record: str | Sequence[str] = "attention",
        logits: str = "all",
        prepend_bos: bool = False,
        edge_threshold: float = 0.0,
        ablate: Any = None,
        patch: Any = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        threads: int | None = None,
    ) -> Run:
        """`Model.run` with every MLP replaced by these transcoders, which read the replaced activations.

        Layers without a transcoder keep their MLP, and nothing is added there. errors: `Features` of the
        same one prompt, whose errors are added to the outputs: without ablation the
        logits are then the model's to rounding. ablate and patch: as `Model.run`; means and counterfactuals
        are those of the model as it is, an Mlp item takes the place of the replaced output. There is no
        mlp_pre and mlp_post to record; record="all" leaves them out. The other arguments, what is returned
        and what is raised: as `Model.run` and `features`.
        """
        from .transcoder_features import replacement_run

        options = (record, logits, edge_threshold, max_bytes, threads)
        return replacement_run(self, model, prompts, errors, prepend_bos, ablate, patch, *options)

    def evaluate(
        self,
        model: Model,
        prompts: Any,
        *,
        targets: Any = None,
        loss_mask: Any = None,
        prepend_bos: bool = False,
        threads: int | None = None,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """How well these stand in for the MLPs on `prompts`: one row per layer that has a transcoder.

        Columns: layer; n_features; l0, active features per token; explained_variance, 1 - sum of squared
        errors / sum of squares of (mlp_out - its mean over all tokens); dead, the share of features that are
        never active here; and, the same in every row, cross_entropy of the model and cross_entropy_replaced
        with all these MLPs replaced, in nats, weighted as `Model.gradients` does with targets and loss_mask.
        Raises as `features`.
        """
        from .transcoder_features import evaluate

        return evaluate(self, model, prompts, targets, loss_mask, prepend_bos, threads, progress)

    def __repr__(self) -> str:
        what = "cross-layer" if self.cross_layer else "one per layer"
        kind = self.activation + (f" {self.top_k}" if self.top_k else "")
        return (
            f"Transcoders({self.name!r}, {shape_text(self.n_features)}, d_model={self.d_model}, "
            f"{what}, {kind}, from {self.input_hook})"
        )

    def _repr_html_(self) -> str:
        import pandas as pd

        features, writes = (
            [each(i) for i in self.layers] for each in (self.n_features.__getitem__, self.writes)
        )
        columns = {"layer": self.layers, "features": features, "writes to": writes}
        return html_table(self, pd.DataFrame(columns))


# ------------------------------------------------------------------------------------------- checks


def _check_encoder(
    source: Source, layer: int, d_model: int, n_features: int, finite: bool, thresholds: bool = False
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
        raise _wrong("threshold", layer, "is missing, activation 'jump_relu' needs it")
    if skip is not None:
        arrays["skip"] = skip, (d_model, d_model)
    for name, (array, shape) in arrays.items():
        _check_array(name, layer, array, (shape,), finite)


def _check_array(
    name: str, layer: int, array: Any, shapes: tuple[tuple[int, ...], ...], finite: bool
) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise _wrong(name, layer, f"must be a floating-point array, got {got}", "dtype")
    if array.shape not in shapes:
        raise _wrong(name, layer, f"has shape {array.shape}, expected {shapes[0]}")
    if finite and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise NonFiniteError(
            f"{name} of layer {layer} has {len(bad):,} non-finite values, first at {bad[0].tolist()}",
            code="nonfinite",
            field=f"{name}.{layer}",
        )


def _wrong(name: str, layer: int, text: str, code: str = "config_value") -> ConfigError:
    return ConfigError(f"{name} of layer {layer} {text}", code=code, field=f"{name}.{layer}")


def _blocks(n_features: int) -> list[np.ndarray]:
    """All features in rising order, some thousand at a time."""
    return [
        np.arange(first, min(first + _CHECKED_FEATURES, n_features), dtype=np.int64)
        for first in range(0, n_features, _CHECKED_FEATURES)
    ]


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 1 <= value < 2**31:
        text = f"{name} must be a whole number in 1..2**31-1, got {value!r:.60}"
        raise ConfigError(text, code="config_value", field=name)
    return int(value)


def _size(name: str, given: Any, source: Any) -> int:
    value = getattr(source, name, None) if given is None else given
    if value is None:
        raise ConfigError(f"{name} is missing", code="config_value", field=name)
    return _whole(name, value)


def _feature_counts(given: Any, source: Any, n_layer: int) -> tuple[int, ...]:
    values = getattr(source, "n_features", None) if given is None else given
    if not isinstance(values, (list, tuple, np.ndarray)) or len(values) != n_layer:
        text = f"n_features must have one number for each of the {n_layer} layers, got {values!r:.60}"
        raise ConfigError(text, code="config_value", field="n_features")
    counts = tuple(0 if type(n) is int and n == 0 else _whole("n_features", n) for n in values)
    if not any(counts):
        raise ConfigError("transcoders need at least one layer", code="config_value", field="n_features")
    return counts


def _choice(field: str, value: Any, known: Sequence[str], code: str = "config_value") -> str:
    if not isinstance(value, str) or value not in known:
        text = f"{field} must be {' or '.join(map(repr, known))}, got {quoted(value)}"
        raise ConfigError(text, code=code, field=field)
    return value
