"""Where features are most active in many prompts, and which tokens they promote.

Prompts are read some thousand tokens at a time and weights one layer at a time; what is kept is a table of
fixed size in the C core. Encoders of features that nobody asked for are not multiplied, decoders are only
read for the tokens that features promote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._engine import core_for
from ..model.batch import Batch
from ..model.run import compute_run
from .replacement import CheckedWeights, absent_layers, input_record

if TYPE_CHECKING:
    from ..model.model import Model
    from .transcoders import Transcoders

GROUP_TOKENS = 2048  # of the prompts that are run together
_BLOCK_BYTES = 64 * 2**20  # decoder rows that are read together


class _Encoders(CheckedWeights):
    """The encoders alone, of some features if activations do not depend on the others."""

    def __init__(self, transcoders: Transcoders, model: Model, chosen: Sequence[np.ndarray] | None) -> None:
        super().__init__(transcoders, model)
        self.chosen = chosen

    def encoder(self, layer: int) -> tuple[Any, ...]:
        """(w_enc, b_enc, threshold or None); of a layer where none is wanted, the first feature."""
        arrays = super().encoder(layer)
        if self.chosen is None:
            return arrays
        rows = self.chosen[layer] if len(self.chosen[layer]) else np.zeros(1, np.int64)
        return tuple(None if a is None else np.ascontiguousarray(a[rows]) for a in arrays)

    def rows(self, layer: int, features: np.ndarray) -> np.ndarray:
        """Nothing is written."""
        return np.zeros((len(features), 1, self.transcoders.d_model), self.dtype)

    def output(self, layer: int) -> tuple[Any, ...]:
        """Nothing is written."""
        return np.zeros(self.transcoders.d_model, self.dtype), None


class Collector:
    """Tables of the wanted features of all layers, filled from batches of prompts."""

    def __init__(
        self,
        transcoders: Transcoders,
        model: Model,
        wanted: Sequence[np.ndarray] | None,
        size: tuple[int, int, int],
    ) -> None:
        """wanted: int64, rising, one array per layer; None for all. size: (top, before, after).

        `tables` holds a `_core.Contexts` for each layer.
        """
        self.transcoders, self.model, self.wanted = transcoders, model, wanted
        self.n_prompts = self.n_tokens = 0
        alone = wanted is not None and transcoders.activation != "topk"
        self._source = _Encoders(transcoders, model, wanted if alone else None)
        make, self.tables = core_for(str(model.dtype)).Contexts, []
        for layer, n_features in enumerate(transcoders.n_features):
            # Features that are computed alone are numbered as they stand in `wanted`.
            n = len(wanted[layer]) if alone and wanted is not None else n_features
            self.tables.append(make(n, None if alone or wanted is None else wanted[layer], *size))

    def add(self, batch: Batch, max_bytes: int, threads: int | None) -> None:
        """Run a batch and keep what is strongest."""
        t, model = self.transcoders, self.model
        run = compute_run(model, batch, (input_record(t), "mlp_out"), "none", 0.0, max_bytes, threads)
        core = core_for(str(model.dtype)).Features(
            model._core,
            len(batch.tokens),
            t.activation,
            t.top_k or 0,
            False,
            input_record(t) == "resid_mid",
            max_bytes,
            absent_layers(t, model),
        )
        core.fill(run._core, 0, self._source, _check.threads(threads))
        for layer, table in enumerate(self.tables):
            table.add(core, layer, batch.tokens, batch.offsets, self.n_prompts)
        self.n_prompts += len(batch)
        self.n_tokens += len(batch.tokens)


def promoted_tokens(
    model: Model, transcoders: Transcoders, layer: int, numbers: np.ndarray, n: int, threads: int | None
) -> tuple[np.ndarray, ...]:
    """(tokens int32, effects float32, tokens, effects), each [features, n]: the tokens whose logits features
    of a layer raise most, and lower most, per unit of activation on the direct path."""
    n = min(n, model.config.n_vocab)
    step = max(1, _BLOCK_BYTES // (8 * max(1, transcoders.writes(layer)) * transcoders.d_model))
    parts = [(np.zeros((2, 0, n), np.int32), np.zeros((2, 0, n), np.float32))]
    for begin in range(0, len(numbers), step):
        rows = transcoders.source.decoder_rows(layer, numbers[begin : begin + step])
        parts.append(model._core.promoted_tokens(rows, n, _check.threads(threads)))
    tokens, effects = (np.concatenate(arrays, axis=1) for arrays in zip(*parts))
    return tokens[0], effects[0], tokens[1], effects[1]
