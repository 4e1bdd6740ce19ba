"""Where features are most active in many prompts, and which tokens they promote.

Prompts are read some thousand tokens at a time and weights one layer at a time; what is kept is a table of
fixed size in the C core. Encoders of features that nobody asked for are not multiplied, decoders are only
read for the tokens that features promote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _check
from .._engine import core_for
from ..circuits.pieces import Tell, source_of
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


class PromptBatch(NamedTuple):
    """Prompts that are run together."""

    batch: Batch
    first: int  #: number of the first one

    @property
    def size(self) -> int:
        """How much of the work it is."""
        return len(self.batch)

    def __str__(self) -> str:
        return f"prompts {self.first}..{self.first + self.size - 1}"


class Active(NamedTuple):
    """What is active of a layer in a batch of prompts, sorted by position and feature."""

    position: np.ndarray  #: int32 [n], of the batch
    feature: np.ndarray  #: int32 [n]
    activation: np.ndarray  #: real [n]


@dataclass(frozen=True)
class ActiveWork:
    """Finds the active features of all layers in batches of prompts.

    wanted: int64, rising, one array per layer; None for all.
    """

    model: Model
    transcoders: Transcoders
    wanted: Sequence[np.ndarray] | None
    max_bytes: int
    threads: int | None

    def __post_init__(self) -> None:
        _check.threads(self.threads)

    @property
    def stage(self) -> str:
        """What bars and errors call it."""
        return "features"

    @property
    def source(self) -> str:
        """For errors: the model and the task."""
        return source_of(self.model, f"of transcoders {self.transcoders.name}")

    @property
    def alone(self) -> bool:
        """Whether the wanted features are computed alone, and numbered as they stand in `wanted`."""
        return self.wanted is not None and self.transcoders.activation != "topk"

    def __call__(self, piece: PromptBatch, threads: int | None, tell: Tell) -> list[Active]:
        """One for each layer; of the wanted features alone."""
        t, model, batch = self.transcoders, self.model, piece.batch
        run = compute_run(model, batch, (input_record(t), "mlp_out"), "none", 0.0, self.max_bytes, threads)
        core = core_for(str(model.dtype)).Features(
            model._core,
            len(batch.tokens),
            t.activation,
            t.top_k or 0,
            False,
            input_record(t) == "resid_mid",
            self.max_bytes,
            absent_layers(t, model),
        )
        core.fill(
            run._core, 0, _Encoders(t, model, self.wanted if self.alone else None), _check.threads(threads)
        )
        start = core.array("start").tolist()
        return [self._layer(core, layer, slice(*ends)) for layer, ends in enumerate(pairwise(start))]

    def _layer(self, core: Any, layer: int, place: slice) -> Active:
        found = Active(*(core.array(name)[place] for name in ("position", "feature", "activation")))
        if self.wanted is None or self.alone:
            return Active(*map(np.array, found))  # not those of all layers, which they are views of
        return Active(*(array[np.isin(found.feature, self.wanted[layer])] for array in found))


class Collector:
    """Tables of the wanted features of all layers, filled from batches of prompts.

    size: (top, before, after). `tables` holds a `_core.Contexts` for each layer.
    """

    def __init__(self, work: ActiveWork, size: tuple[int, int, int]) -> None:
        self.transcoders, self.model, self.wanted = work.transcoders, work.model, work.wanted
        self.n_prompts = self.n_tokens = 0
        make, self.tables = core_for(str(self.model.dtype)).Contexts, []
        for layer, n_features in enumerate(self.transcoders.n_features):
            wanted = None if self.wanted is None else self.wanted[layer]
            n = len(wanted) if work.alone and wanted is not None else n_features
            self.tables.append(make(n, None if work.alone else wanted, *size))

    def add(self, piece: PromptBatch, active: Sequence[Active]) -> None:
        """Keep what is strongest."""
        batch = piece.batch
        for found, table in zip(active, self.tables):
            table.add(*found, batch.tokens, batch.offsets, piece.first)
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
