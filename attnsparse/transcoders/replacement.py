"""What the core asks of transcoders while it looks for features or runs a model with replaced MLPs.

The arithmetic is the C core's; here it is given the weights that it asks for, one layer at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._engine import core_for
from ..model.batch import as_batch
from ..model.model import Model
from ..model.run import Run
from .arrays import array_error

if TYPE_CHECKING:
    from .transcoders import Transcoders


def input_record(transcoders: Transcoders) -> str:
    """What a run calls the encoders' input."""
    return "resid_mid" if transcoders.input_hook == "hook_resid_mid" else "ln2_normalized"


def new_core(transcoders: Transcoders, model: Model, n_tokens: int, max_bytes: int) -> Any:
    """An empty `_core.Features` of `n_tokens` rows."""
    return core_for(str(model.dtype)).Features(
        model._core,
        n_tokens,
        transcoders.activation,
        transcoders.top_k or 0,
        transcoders.cross_layer,
        input_record(transcoders) == "resid_mid",
        max_bytes,
        absent_layers(transcoders, model),
    )


def absent_layers(transcoders: Transcoders, model: Model) -> bytes | None:
    """For each layer of the model 1 if it has no transcoder, else 0; None if all have one."""
    absent = bytes(layer not in transcoders.layers for layer in range(model.config.n_layer))
    return absent if any(absent) else None


class CheckedWeights:
    """What the core asks for, in the model's dtype; shapes are checked before anything is used."""

    def __init__(self, transcoders: Transcoders, model: Model, bar: Any = None) -> None:
        self.transcoders, self.dtype, self.bar = transcoders, model.dtype, bar

    def encoder(self, layer: int) -> tuple[Any, ...]:
        """(w_enc, b_enc, threshold or None)."""
        t = self.transcoders
        encoder, f = t.source.encoder(layer), t.n_features[layer]
        threshold = None
        if t.activation == "jump_relu":
            threshold = self._array("threshold", layer, encoder.threshold, (f,))
        return (
            self._array("w_enc", layer, encoder.w_enc, (f, t.d_model)),
            self._array("b_enc", layer, encoder.b_enc, (f,)),
            threshold,
        )

    def rows(self, layer: int, features: np.ndarray) -> np.ndarray:
        """[n, W, E]."""
        t = self.transcoders
        rows = t.source.decoder_rows(layer, features)
        return self._array("w_dec", layer, rows, (len(features), t.writes(layer), t.d_model))

    def output(self, layer: int) -> tuple[Any, ...]:
        """(output_bias, skip or None)."""
        t = self.transcoders
        skip, e = t.source.skip(layer), t.d_model
        if self.bar is not None:
            self.bar.update()
        return (
            self._array("output_bias", layer, t.source.output_bias(layer), (e,)),
            None if skip is None else self._array("skip", layer, skip, (e, e)),
        )

    def _array(self, name: str, layer: int, value: Any, shape: tuple[int, ...]) -> np.ndarray:
        if np.shape(value) != shape:
            found = "is missing" if value is None else f"has shape {np.shape(value)}"
            raise array_error(name, layer, f"{found}, expected shape {shape}")
        return _check.reals(value, f"{name} of layer {layer}", self.dtype)


def check_run(transcoders: Transcoders, model: Model, run: Run, prepend_bos: bool) -> None:
    """ValueError unless features can be found in a run that exists already."""
    if run.model is not model:
        raise ValueError("prompt is a run of another model than the one given")
    if prepend_bos and as_batch(model, run.tokens, True).lengths[0] != run.n_tokens:
        raise ValueError(
            "prepend_bos=True, but the run has no BOS token; run the prompt with prepend_bos=True"
        )
    names = (input_record(transcoders), "mlp_out")
    if missing := [name for name in names if name not in run.recorded]:
        raise ValueError(
            f"features need a run that recorded {' and '.join(names)}; this one has no {missing[0]}"
        )
