"""What writes into the residual stream of one prompt: the sources of a graph, and the run they live in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .._core_types import HeldRun, Reads, Writes
from .._engine import core_for

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

    def effects(self, reads: Reads, threads: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(real [targets, sources], float64 [targets]): what sources and constants give to targets."""
        core = self.features.run.model._core
        return core.graph_edges(self.frozen, self.writes, reads, threads=threads)


def read_sources(model: Model, features: Features, max_bytes: int) -> Sources:
    """Decoder rows of all active features times their activation, errors and embeddings.

    Raises MemoryError if the vectors would take more than `max_bytes`.
    """
    run, transcoders = features.run, features.transcoders
    n_layer, t, e = features.error.shape
    real = features.error.dtype
    outputs = [transcoders.writes(i) if i in transcoders.layers else 0 for i in range(n_layer)]
    counts = np.diff(features.start)
    n_writes = sum(int(n) * k for n, k in zip(counts, outputs)) + (n_layer + 2) * t
    needed = n_writes * e * real.itemsize
    if needed > max_bytes:
        raise MemoryError(
            f"the decoders of {len(features):,} active features take {needed / 1e9:.4g} GB, above "
            f"max_bytes={max_bytes:,}; use sparser transcoders or a shorter prompt"
        )
    layer, position, source, rows = core_for(real).graph_writes(
        features.layer, features.position, np.array(outputs, np.int64), t
    )
    vectors, at = np.empty((n_writes, e), dtype=real), 0

    def put(what: np.ndarray) -> None:
        nonlocal at
        vectors[rows[at : at + len(what)]] = what
        at += len(what)

    for found in (run.embed, run.pos_embed, *features.error):
        put(found)
    for index in transcoders.layers:
        mine = slice(features.start[index], features.start[index + 1])
        decoders = transcoders.source.decoder_rows(index, features.feature[mine].astype(np.int64))
        for w in range(outputs[index]):
            put(decoders[:, w].astype(real) * features.activation[mine][:, None])
    return Sources(
        features, len(features) + (n_layer + 2) * t, layer, position, source, vectors,
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
