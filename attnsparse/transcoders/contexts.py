"""Where features are most active in many prompts, and which tokens they promote.

Prompts are read some thousand tokens at a time and weights one layer at a time; what is kept is a table of
fixed size. Encoders of features that nobody asked for are not multiplied, decoders are only read for the
tokens that features promote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._engine import core_for
from ..model.batch import Batch
from ..model.run import compute_run
from .replacement import CheckedWeights, absent_layers

if TYPE_CHECKING:
    from ..model.model import Model
    from .transcoders import Transcoders

GROUP_TOKENS = 2048  # of the prompts that are run together
_BLOCK_BYTES = 64 * 2**20  # logits that are looked at together


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


class ContextTable:
    """The `top` strongest contexts of n features, at most one of each prompt, by falling activation.

    prompt, position int32, activation float32 [n, top], prompt -1 where there are fewer; tokens int32 and
    activations float32 [n, top, before + 1 + after] around them, -1 and 0 outside the prompt; count int64
    [n], the tokens on which a feature was active.
    """

    def __init__(self, n: int, top: int, before: int, after: int) -> None:
        self.before, self.after = before, after
        width = before + 1 + after
        self.prompt, self.position = np.full((2, n, top), -1, np.int32)
        self.activation = np.zeros((n, top), np.float32)
        self.tokens = np.full((n, top, width), -1, np.int32)
        self.activations = np.zeros((n, top, width), np.float32)
        self.count = np.zeros(n, np.int64)

    @property
    def top(self) -> int:
        """Contexts kept of each feature."""
        return self.activation.shape[1]

    def add(
        self, batch: Batch, first: int, row: np.ndarray, number: np.ndarray, activation: np.ndarray
    ) -> None:
        """Active features of a batch whose first prompt is number `first`: token of the batch, place in this
        table and activation of each, by rising token and place."""
        self.count += np.bincount(number, minlength=len(self.count))
        prompt = np.searchsorted(batch.offsets, row, side="right") - 1
        best = self._best(prompt, number, activation, row)
        if not len(best):
            return
        touched, group = np.unique(number[best], return_inverse=True)
        rank = np.arange(len(best)) - np.searchsorted(group, group)
        new = ContextTable(len(touched), self.top, self.before, self.after)
        place = group, rank
        new.prompt[place] = first + prompt[best]
        new.position[place] = row[best] - batch.offsets[prompt[best]]
        new.activation[place] = activation[best]
        new.tokens[place], new.activations[place] = self._windows(batch, row, number, activation, best)
        self._merge(touched, new)

    def _best(
        self, prompt: np.ndarray, number: np.ndarray, activation: np.ndarray, row: np.ndarray
    ) -> np.ndarray:
        """Those that may enter the table, by feature and falling activation: one a prompt, at most `top`."""
        hopeful = np.flatnonzero(activation > self.activation[number, -1])
        order = hopeful[np.lexsort((row[hopeful], -activation[hopeful], prompt[hopeful], number[hopeful]))]
        one = np.ones(len(order), bool)
        one[1:] = (np.diff(number[order]) != 0) | (np.diff(prompt[order]) != 0)
        order = order[one]
        order = order[np.lexsort((prompt[order], -activation[order], number[order]))]
        found = number[order]
        return order[np.arange(len(order)) - np.searchsorted(found, found) < self.top]

    def _windows(
        self, batch: Batch, row: np.ndarray, number: np.ndarray, activation: np.ndarray, best: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens around some of the active features, and their activations there."""
        n = len(self.count)
        around = row[best][:, None].astype(np.int64) + np.arange(-self.before, self.after + 1)
        prompt = np.searchsorted(batch.offsets, row[best], side="right") - 1
        inside = (around >= batch.offsets[prompt][:, None]) & (around < batch.offsets[prompt + 1][:, None])
        around = np.where(inside, around, 0)
        keys, wanted = row.astype(np.int64) * n + number, around * n + number[best][:, None]
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        active = inside & (keys[at] == wanted)
        return np.where(inside, batch.tokens[around], -1), np.where(active, activation[at], 0)

    def _merge(self, touched: np.ndarray, new: ContextTable) -> None:
        """Put new contexts of some features among those that are there; of equal ones the earlier stays."""
        together = np.concatenate([self.activation[touched], new.activation], axis=1)
        order = np.argsort(-together, axis=1, kind="stable")[:, : self.top]
        for name in ("prompt", "position", "activation", "tokens", "activations"):
            own, other = getattr(self, name), getattr(new, name)
            both = np.concatenate([own[touched], other], axis=1)
            own[touched] = np.take_along_axis(
                both, order.reshape(*order.shape, *[1] * (both.ndim - 2)), axis=1
            )


class Collector:
    """Tables of the wanted features of all layers, filled from batches of prompts."""

    def __init__(
        self,
        transcoders: Transcoders,
        model: Model,
        wanted: Sequence[np.ndarray] | None,
        size: tuple[int, int, int],
    ) -> None:
        """wanted: int64, rising, one array per layer; None for all. size: (top, before, after)."""
        counts = transcoders.n_features if wanted is None else [len(numbers) for numbers in wanted]
        self.transcoders, self.model, self.wanted = transcoders, model, wanted
        self.tables = [ContextTable(n, *size) for n in counts]
        self.n_prompts = self.n_tokens = 0
        alone = wanted is not None and transcoders.activation != "topk"
        self._source = _Encoders(transcoders, model, wanted if alone else None)
        self._alone = alone

    def add(self, batch: Batch, max_bytes: int, threads: int | None) -> None:
        """Run a batch and keep what is strongest."""
        t, model = self.transcoders, self.model
        from_mid = t.input_hook == "hook_resid_mid"
        names = ("resid_mid" if from_mid else "ln2_normalized", "mlp_out")
        run = compute_run(model, batch, names, "none", 0.0, max_bytes, threads)
        core = core_for(str(model.dtype)).Features(
            model._core,
            len(batch.tokens),
            t.activation,
            t.top_k or 0,
            False,
            from_mid,
            max_bytes,
            absent_layers(t, model),
        )
        core.fill(run._core, 0, self._source, _check.threads(threads))
        start, row, number, activation = (
            core.array(a) for a in ("start", "position", "feature", "activation")
        )
        for layer, table in enumerate(self.tables):
            mine = slice(start[layer], start[layer + 1])
            if len(table.count) and start[layer] < start[layer + 1]:
                found = self._kept(layer, row[mine], number[mine], activation[mine])
                table.add(batch, self.n_prompts, *found)
        self.n_prompts += len(batch)
        self.n_tokens += len(batch.tokens)

    def _kept(
        self, layer: int, row: np.ndarray, number: np.ndarray, activation: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the active features of a layer those that are wanted, by their place in the table."""
        if self.wanted is None or self._alone:
            return row, number, activation
        place = np.full(self.transcoders.n_features[layer], -1)
        place[self.wanted[layer]] = np.arange(len(self.wanted[layer]))
        keep = place[number] >= 0
        return row[keep], place[number[keep]], activation[keep]


def promoted_tokens(
    model: Model, transcoders: Transcoders, layer: int, numbers: np.ndarray, n: int
) -> tuple[np.ndarray, ...]:
    """(tokens int32, effects float32, tokens, effects), each [features, n]: the tokens whose logits features
    of a layer raise most, and lower most, per unit of activation on the direct path."""
    name = "wte.weight" if model.config.tied else "lm_head.weight"
    unembed, weight = model.parameter(name), model.parameter("ln_f.weight")
    n = min(n, len(unembed))
    tokens, effects = np.zeros((2, len(numbers), n), np.int32), np.zeros((2, len(numbers), n), np.float32)
    step = max(1, _BLOCK_BYTES // (len(unembed) * unembed.itemsize))
    for begin in range(0, len(numbers), step):
        rows = slice(begin, begin + step)
        written = transcoders.source.decoder_rows(layer, numbers[rows]).sum(axis=1, dtype=np.float64)
        written -= written.mean(axis=1, keepdims=True)
        logits = (written * weight).astype(unembed.dtype) @ unembed.T
        logits -= logits.mean(axis=1, dtype=np.float64, keepdims=True).astype(logits.dtype)
        for side, values in enumerate((-logits, logits)):
            tokens[side, rows] = first = _lowest(values, n)
            effects[side, rows] = np.take_along_axis(logits, first, axis=1)
    return tokens[0], effects[0], tokens[1], effects[1]


def _lowest(values: np.ndarray, n: int) -> np.ndarray:
    """Places of the n lowest of each row, by rising value and place."""
    found = np.argpartition(values, n - 1, axis=1)[:, :n]
    return np.take_along_axis(found, np.lexsort((found, np.take_along_axis(values, found, axis=1))), axis=1)
