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
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._display import html_table, progress_bar
from ..errors import ConfigError, quoted
from ..model.batch import as_batch
from ..model.model import Model
from ..model.run import DEFAULT_MAX_BYTES, Run
from .arrays import TranscoderWeights, check_array, check_encoder, layers_text, shape_text
from .evaluation import evaluated, targets_and_weights
from .features import RECORDED, Features
from .replacement import CheckedWeights, check_run, new_core
from .replacement_run import replacement_run
from .steer import steer, steered_weights

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("transcoder_set", "cross_layer_transcoder")
ACTIVATIONS = ("relu", "jump_relu", "topk")
INPUT_HOOKS = ("ln2.hook_normalized", "hook_resid_mid")
OUTPUT_HOOK = "hook_mlp_out"
_CHECKED_FEATURES = 4096  # decoder rows looked at together


class Transcoders:
    """One dictionary for every layer of a model, or for some, and what it reads, does and writes.

    Layers without a transcoder keep their MLP in replacement runs, and their whole output counts as error in
    features and graphs. Layers always have the model's numbers. A cross-layer transcoder has all layers.

    Parameters
    ----------
    source : TranscoderWeights
        Where the weights come from, such as an `ArraySource`.
    n_layer, d_model : int, optional
        Layers of the model, and its width E. Default: those of `source`.
    n_features : sequence of int, optional
        Features F of each layer, 0 where there is no transcoder. Default: those of `source`.
    kind : {"transcoder_set", "cross_layer_transcoder"}, optional
        Default: what `source` is.
    input_hook : {"ln2.hook_normalized", "hook_resid_mid"}, default "ln2.hook_normalized"
        What the encoders read, in TransformerLens's names: the MLP's LayerNorm before its weight and bias,
        (x - mean) / scale; or the residual stream before it.
    output_hook : {"hook_mlp_out"}
        Where the decoders write.
    activation : {"relu", "jump_relu", "topk"}, default "relu"
        "relu": a = max(pre, 0). "jump_relu": a = pre where pre > threshold, else 0. "topk": the `top_k`
        largest positive ones of each position (of equal ones the feature with the lower number), else 0.
    top_k : int, optional
        Of "topk" alone.
    name, model_name, scan : str
        As tables and files show them.
    digest : str, optional
        SHA-256 in hexadecimal. Default: computed when it is asked for.

    Raises
    ------
    ConfigError
        With code config_value or hook, for invalid values.
    TypeError
        For a source without one of its methods.

    References
    ----------
    Dunefsky, Chlenski and Nanda, "Transcoders Find Interpretable LLM Feature Circuits", 2024. Ameisen et al.,
    "Circuit Tracing", transformer-circuits.pub, 2025.
    """

    def __init__(
        self,
        source: TranscoderWeights,
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
        self.source = source  #: where the weights come from
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
        #: where decoders write
        self.output_hook = _choice("output_hook", output_hook, (OUTPUT_HOOK,), "hook")
        self.activation = _choice("activation", activation, ACTIVATIONS)  #: "relu", "jump_relu" or "topk"
        if (top_k is not None) != (activation == "topk"):
            text = "top_k is for activation='topk' alone" if top_k is not None else "'topk' needs top_k"
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
                sha.update(np.ascontiguousarray(array).data.cast("B"))
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
        """Raise unless these fit `model` and all weights are finite numbers of the right shapes.

        Parameters
        ----------
        model : Model
        weights : bool, default True
            False compares sizes only and reads no weights.

        Raises
        ------
        ConfigError
            With code config_value and field n_layer, d_model, w_enc.3, ..., or code dtype.
        NonFiniteError
            With code nonfinite and the field.

        Warns
        -----
        UserWarning
            Once for each model with another name than the one that these were made for, if both have names;
            and once if layers have no transcoder.

        Notes
        -----
        Files do not say how many layers the model has: a set that was loaded without the model fits every
        model that has its layers.
        """
        _check.instance(model, Model, "model")
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
            check_encoder(self.source, layer, self.d_model, n_features, True, self.activation == "jump_relu")
            for features in _blocks(n_features):
                shape = (len(features), self.writes(layer), self.d_model)
                check_array("w_dec", layer, self.source.decoder_rows(layer, features), (shape,), True)

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

    def writes(self, layer: int) -> int:
        """W, the number of layers that features of a layer write to.

        Parameters
        ----------
        layer : int

        Returns
        -------
        int
            1, or n_layer - layer of a cross-layer transcoder; 0 for a layer without a transcoder.

        Raises
        ------
        IndexError
            If there is no such layer.
        """
        layer = _check.layer(layer, self.n_layer)
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
        """Find what is active in one prompt, on the activations of the model itself.

        Parameters
        ----------
        model : Model
            The model of these transcoders.
        prompt : str, sequence of int or Run
            What `Model.run` takes for one prompt, or a `Run` of one prompt that recorded ln2_normalized (or
            resid_mid, by `input_hook`) and mlp_out.
        prepend_bos : bool, default False
            Put the BOS token before the prompt.
        record : str or sequence of str
            What the run made here records beside pattern, ln1_scale, ln2_scale, ln_final_scale,
            ln2_normalized, embed, pos_embed, resid_pre, resid_mid, resid_post, mlp_out and logits.
        max_bytes : int
            Limit of the run's memory, and once more of the features'.
        threads : int, optional
            Default: the number set by `set_num_threads`.
        progress : bool, optional
            Show a bar on stderr. Default: in terminals and notebooks only.

        Returns
        -------
        Features

        Raises
        ------
        ConfigError
            If these do not fit the model.
        ValueError
            For several prompts, for activations that are not finite, and as `Model.run`.
        RuntimeError
            If the weights changed after a given run.
        """
        self.check(model, weights=False)
        threads, max_bytes = _check.threads(threads), _check.byte_limit(max_bytes)
        if isinstance(prompt, Run):
            check_run(self, model, run := prompt, prepend_bos)
        else:
            names = (*RECORDED, *_check.names(record, "record"))
            run = model.run(
                prompt, names, prepend_bos=prepend_bos, max_bytes=max_bytes, threads=threads or None
            )
        if len(run) != 1:
            raise ValueError(
                f"features need a run of one prompt, got one of {len(run)}; use run[i] or a single prompt"
            )
        first, last = run._range(0 if run._index is None else run._index)
        with progress_bar(progress, len(self.layers), "features", "layer") as bar:
            core = new_core(self, model, last - first, max_bytes)
            core.fill(run._core, first, CheckedWeights(self, model, bar), threads)
        return Features(core, run if run._index is not None else run[0], self)

    replacement_run = replacement_run
    steer = steer
    _steered_weights = steered_weights

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
        """Measure how well these stand in for the MLPs on `prompts`.

        Parameters
        ----------
        model : Model
            The model of these transcoders.
        prompts
            What `Model.run` takes.
        targets, loss_mask, prepend_bos
            As `Model.gradients`.
        threads : int, optional
            Default: the number set by `set_num_threads`.
        progress : bool, optional
            Show a bar on stderr. Default: in terminals and notebooks only.

        Returns
        -------
        pandas.DataFrame
            One row per layer that has a transcoder. Columns: layer; n_features; l0, active features per
            token; explained_variance, 1 - sum of squared errors / sum of squares of (mlp_out - its mean over
            all tokens); dead, the share of features that are never active here; and, the same in every row,
            cross_entropy of the model and cross_entropy_replaced with all these MLPs replaced, in nats.

        Raises
        ------
        ConfigError
            If these do not fit the model.
        ValueError, IndexError
            For targets or loss weights that do not fit the prompts, and as `Model.run`.
        """
        import pandas as pd

        self.check(model, weights=False)
        batch = as_batch(model, prompts, prepend_bos)
        wanted = targets_and_weights(model, batch, targets, loss_mask)
        table: pd.DataFrame = pd.DataFrame(evaluated(self, model, batch, wanted, threads, progress))
        return table

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


def _blocks(n_features: int) -> list[np.ndarray]:
    """All features in rising order, some thousand at a time."""
    return [
        np.arange(first, min(first + _CHECKED_FEATURES, n_features), dtype=np.int64)
        for first in range(0, n_features, _CHECKED_FEATURES)
    ]


def _whole(name: str, value: Any) -> int:
    try:
        return _check.integer(value, name, 1, 2**31 - 1)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error), code="config_value", field=name) from None


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
    try:
        return _check.choice(value, field, known)
    except ValueError as error:
        raise ConfigError(str(error), code=code, field=field) from None
