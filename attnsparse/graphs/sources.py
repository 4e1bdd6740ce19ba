"""What writes into the residual stream of one prompt: the sources of a graph, and the run they live in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .._core_types import HeldRun, Writes

if TYPE_CHECKING:
    from ..model.model import Model
    from ..transcoders.features import Features


@dataclass(frozen=True, eq=False)
class Sources:
    """Sources in the order active features, errors (layer, position), tokens, positions.

    layer, position, source int32 [w] and vectors real [w, E] are their writes, by layer (0: embeddings, l +
    1: the output of MLP l), position and source.
    """

    features: Features
    n: int
    layer: np.ndarray
    position: np.ndarray
    source: np.ndarray
    vectors: np.ndarray
    frozen: HeldRun
    version: int
    """Of the model's weights."""

    @property
    def writes(self) -> Writes:
        """As the core takes them."""
        return Writes(self.n, self.layer, self.position, self.source, self.vectors)

    def writes_of(self, chosen: np.ndarray) -> Writes:
        """The writes of some sources, int64 rising, numbered anew."""
        number = np.full(self.n, -1, dtype=np.int32)
        number[chosen] = np.arange(len(chosen))
        keep = number[self.source] >= 0
        vectors = self.vectors if keep.all() else self.vectors[keep]
        return Writes(len(chosen), self.layer[keep], self.position[keep], number[self.source[keep]], vectors)


def read_sources(model: Model, features: Features, max_bytes: int) -> Sources:
    """Decoder rows of all active features times their activation, errors and embeddings.

    Raises MemoryError if the vectors would take more than `max_bytes`.
    """
    run, transcoders = features.run, features.transcoders
    n_layer, t, e = features.error.shape
    real = features.error.dtype
    counts = np.diff(features.start)
    n_writes = int(sum(counts[i] * transcoders.writes(i) for i in transcoders.layers)) + (n_layer + 2) * t
    needed = 2 * n_writes * e * real.itemsize  # in the order found, and sorted
    if needed > max_bytes:
        raise MemoryError(
            f"the decoders of {len(features):,} active features take {needed / 1e9:.4g} GB, above "
            f"max_bytes={max_bytes:,}; use sparser transcoders or a shorter prompt"
        )
    vectors = np.empty((n_writes, e), dtype=real)
    layer, position, source = (np.empty(n_writes, dtype=np.int32) for _ in range(3))
    n, at = len(features), 0

    def put(where: int, places: np.ndarray, who: np.ndarray, what: np.ndarray) -> None:
        nonlocal at
        rows = slice(at, at + len(who))
        layer[rows], position[rows], source[rows], vectors[rows] = where, places, who, what
        at += len(who)

    places = np.arange(t)
    put(0, places, n + n_layer * t + places, run.embed)
    put(0, places, n + (n_layer + 1) * t + places, run.pos_embed)
    for index in range(n_layer):
        put(index + 1, places, n + index * t + places, features.error[index])
    for index in transcoders.layers:
        mine = np.arange(features.start[index], features.start[index + 1])
        rows = transcoders.source.decoder_rows(index, features.feature[mine].astype(np.int64))
        for w in range(transcoders.writes(index)):
            what = rows[:, w].astype(real) * features.activation[mine][:, None]
            put(index + w + 1, features.position[mine], mine, what)
    order = np.lexsort((source, position, layer))
    return Sources(
        features, n + (n_layer + 2) * t, layer[order], position[order], source[order], vectors[order],
        _frozen(model, features), model._core.version,
    )  # fmt: skip


def _frozen(model: Model, features: Features) -> HeldRun:
    """The run with all that is added to MLP outputs whatever is active, as the core takes it."""
    transcoders, (n_layer, _, e), real = features.transcoders, features.error.shape, features.error.dtype
    bias, skip = np.zeros((n_layer, e), dtype=real), None
    for layer in transcoders.layers:
        bias[layer] = transcoders.source.output_bias(layer)
        if (own := transcoders.source.skip(layer)) is not None:
            skip = np.zeros((n_layer, e, e), dtype=real) if skip is None else skip
            skip[layer] = own
    return HeldRun(features.run._core, bias, skip, transcoders.input_hook == "hook_resid_mid")
