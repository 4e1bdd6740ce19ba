"""What a Trainer is fed: batches that are a pure function of the step.

Because a batch depends on nothing but the seed, the step and the number of the micro-batch, the step is the
position in the data: nothing else has to be saved, and a resumed run sees what the whole run would have seen.

Any object with `batch(step, micro)` and `digest` will do; this file has the two usual ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .. import _check, _random
from ..io.checksums import update
from .column import BLOCK, Column, blocks_of

IGNORED = -100  # a target that does not count, as other libraries mark it
Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@runtime_checkable
class Data(Protocol):
    """The protocol of training data: any object with `digest` and `batch`."""

    @property
    def digest(self) -> str:
        """Identity of data, order and seed (hexadecimal); a run is not resumed on data with another one."""

    def batch(self, step: int, micro: int) -> Batch:
        """One micro-batch of one step, a pure function of its arguments.

        Parameters
        ----------
        step : int
            Optimiser step, from 0.
        micro : int
            Micro-batch of the step, from 0.

        Returns
        -------
        tokens : numpy.ndarray
            int32 [N], sequences packed one after the other.
        offsets : numpy.ndarray
            int64 [B + 1], where each sequence begins, from 0 to N.
        targets : numpy.ndarray
            int32 [N], the token to be predicted at each position; -100: none.
        weights : numpy.ndarray
            float32 or float64 [N], its share in the cross-entropy; where it is 0 the target is not used.
        """


def settled(batch: Any, dtype: np.dtype[Any]) -> Any:
    """A batch as the engine takes it: weights of the model's type, and 0 where the target is -100.

    Anything but a tuple of four is left to the engine, which refuses it. Raises ValueError for negative
    weights.
    """
    if not isinstance(batch, tuple) or len(batch) != 4:
        return batch
    tokens, offsets, targets, weights = batch
    targets, weights = np.asarray(targets), np.asarray(weights)
    if weights.dtype in (np.float32, np.float64):
        weights = weights.astype(dtype, copy=False)
        if (weights < 0).any():
            raise ValueError("the weights of a batch must not be negative")
    ignored = targets == IGNORED
    if ignored.any() and targets.shape == weights.shape:
        targets, weights = np.where(ignored, 0, targets), np.where(ignored, 0, weights)
        targets, weights = targets.astype(batch[2].dtype), weights.astype(dtype)
    return tokens, offsets, targets, weights


class TokenData:
    """Windows of `length` tokens from one long array, at random places.

    Parameters
    ----------
    tokens : array of int [n], n > length
        An array is copied as int32. A map, such as ``np.memmap("train.bin", dtype=np.uint16, mode="r")``, is
        used in place: it takes no memory of its own, whatever its integer type.
    length : int
        Tokens of a sequence.
    batch : int
        Sequences of a micro-batch.
    seed : int, default 0
        0..2^64-1.
    loss_weights : array of float [n], optional
        Weight of predicting that token, default 1 for all; a mask is 0 and 1. A map stays in place too.

    Raises
    ------
    TypeError, ValueError
        For arrays of other kinds or sizes.

    Notes
    -----
    Window r of micro-batch m of step s begins at a place drawn with replacement for (seed, s, m, r).
    """

    def __init__(
        self,
        tokens: Any,
        length: int,
        batch: int,
        *,
        seed: int = 0,
        loss_weights: Any = None,
    ) -> None:
        self._tokens = _token_column(tokens)
        self._weights = None if loss_weights is None else _weight_column(loss_weights, len(self._tokens))
        self.length = _check.integer(length, "length", 1)
        self.batch_size = _check.integer(batch, "batch", 1)
        self.seed = _check.seed(seed)
        if len(self._tokens) <= self.length:
            raise ValueError(f"tokens must be more than length={self.length:,}, got {len(self._tokens):,}")
        self._digest = (self._states(), self._computed_digest())

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the arrays and of `describe()`, as they are now.

        A map is read again when its file has changed since the last time, or each time if it is writable:
        open it with mode="r". A batch is what the map holds when the batch is made.
        """
        states = self._states()
        if states != self._digest[0]:
            self._digest = (states, self._computed_digest())
        return self._digest[1]

    def _states(self) -> list[Any]:
        return [column.state() for column in (self._tokens, self._weights) if column is not None]

    def _computed_digest(self) -> str:
        n = len(self._tokens)
        weights = _ones(n) if self._weights is None else self._weights.blocks()
        return digest_of(self.describe(), self._tokens.blocks(), weights)

    def describe(self) -> dict[str, Any]:
        """The settings, as JSON values.

        Returns
        -------
        dict
            kind, tokens, length, batch and seed.
        """
        return {
            "kind": "tokens",
            "tokens": len(self._tokens),
            "length": self.length,
            "batch": self.batch_size,
            "seed": self.seed,
        }

    def batch(self, step: int, micro: int = 0) -> Batch:
        """One micro-batch of one step, a pure function of its arguments.

        Parameters
        ----------
        step : int
            Optimiser step, from 0.
        micro : int, default 0
            Micro-batch of the step, from 0.

        Returns
        -------
        tokens : numpy.ndarray
            int32 [N], N = batch * length.
        offsets : numpy.ndarray
            int64 [batch + 1], where each sequence begins.
        targets : numpy.ndarray
            int32 [N], the token to be predicted at each position.
        weights : numpy.ndarray
            [N], the share of each target in the cross-entropy.
        """
        draws = _random.raw(self.batch_size, self.seed, _random.BATCHES, step, micro)
        begin = (draws % np.uint64(len(self._tokens) - self.length)).astype(np.int64)
        rows = (begin[:, None] + np.arange(self.length)).reshape(-1)
        offsets = np.arange(self.batch_size + 1, dtype=np.int64) * self.length
        weights = np.ones(len(rows), np.float32) if self._weights is None else self._weights.take(rows + 1)
        return self._tokens.take(rows), offsets, self._tokens.take(rows + 1), weights

    def __repr__(self) -> str:
        return (
            f"TokenData({len(self._tokens):,} tokens, length={self.length}, batch={self.batch_size}, "
            f"seed={self.seed})"
        )


class SequenceData:
    """Given sequences, all of them once per epoch in an order shuffled for each epoch.

    Parameters
    ----------
    sequences : list of int arrays, or int array [n, T]
        Token ids; lengths may differ.
    batch : int
        Sequences of a micro-batch.
    seed : int, default 0
        0..2^64-1.
    loss_weights : like `sequences`, optional
        Weight of predicting that token, default 1; that of the first token of a sequence is not used, because
        nothing comes before it.

    Raises
    ------
    TypeError, ValueError
        For arrays of other kinds or sizes.

    Notes
    -----
    Micro-batch m of every step walks through shuffles of its own, so accumulation needs no extra state.
    """

    def __init__(self, sequences: Any, batch: int, *, seed: int = 0, loss_weights: Any = None) -> None:
        rows = [_checked_tokens(sequence) for sequence in sequences]
        if not rows:
            raise ValueError("sequences must hold at least one sequence, got none")
        weights: Sequence[Any] = [None] * len(rows) if loss_weights is None else list(loss_weights)
        if len(weights) != len(rows):
            raise ValueError(
                f"loss_weights must have a row for each of the {len(rows):,} sequences, got {len(weights):,}"
            )
        self._lengths = np.array([len(row) for row in rows], np.int64)
        self._begin = np.concatenate([[0], np.cumsum(self._lengths)]).astype(np.int64)
        self._tokens = np.concatenate([np.asarray(row, np.int32) for row in rows])
        self._weights = np.concatenate([_sequence_weights(w, len(row)) for w, row in zip(weights, rows)])
        self._targets, self._target_weights = _shifted(self._tokens, self._weights, self._begin)
        self.batch_size = _check.integer(batch, "batch", 1)
        self.seed = _check.seed(seed)
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        arrays = (self._tokens, self._weights, self._lengths)
        self._digest = digest_of(self.describe(), *(blocks_of(array) for array in arrays))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the arrays and of `describe()`."""
        return self._digest

    def __len__(self) -> int:
        return len(self._lengths)

    def describe(self) -> dict[str, Any]:
        """The settings, as JSON values.

        Returns
        -------
        dict
            kind, sequences, tokens, batch and seed.
        """
        return {
            "kind": "sequences",
            "sequences": len(self._lengths),
            "tokens": len(self._tokens),
            "batch": self.batch_size,
            "seed": self.seed,
        }

    def batch(self, step: int, micro: int = 0) -> Batch:
        """One micro-batch of one step, a pure function of its arguments.

        Parameters
        ----------
        step : int
            Optimiser step, from 0.
        micro : int, default 0
            Micro-batch of the step, from 0.

        Returns
        -------
        tokens : numpy.ndarray
            int32 [N], `batch` sequences packed one after the other.
        offsets : numpy.ndarray
            int64 [batch + 1], where each sequence begins.
        targets : numpy.ndarray
            int32 [N], the token to be predicted at each position.
        weights : numpy.ndarray
            [N], the share of each target in the cross-entropy; 0 at the last position of a sequence.
        """
        n = len(self._lengths)
        places = step * self.batch_size + np.arange(self.batch_size)
        epochs = places // n
        chosen = np.concatenate(
            [self._order(int(epoch), micro)[places[epochs == epoch] % n] for epoch in np.unique(epochs)]
        )
        lengths = self._lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self._begin[chosen], lengths)
        return self._tokens[rows], offsets, self._targets[rows], self._target_weights[rows]

    def _order(self, epoch: int, micro: int) -> np.ndarray:
        """Order of one epoch; kept for the steps that follow, recomputed where it was dropped."""
        if (epoch, micro) not in self._orders:
            if len(self._orders) >= 64:
                self._orders.clear()
            order = _random.permutation(len(self._lengths), self.seed, _random.EPOCHS, epoch, micro)
            self._orders[epoch, micro] = order
        return self._orders[epoch, micro]

    def __repr__(self) -> str:
        return f"SequenceData({len(self):,} sequences, batch={self.batch_size}, seed={self.seed})"


def _shifted(tokens: np.ndarray, weights: np.ndarray, begin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Targets (the next token) and their weights; the last position of each sequence has weight 0."""
    targets, target_weights = np.zeros_like(tokens), np.zeros_like(weights)
    targets[:-1], target_weights[:-1] = tokens[1:], weights[1:]
    last = begin[1:] - 1
    targets[last], target_weights[last] = 0, 0
    return targets, target_weights


def _token_column(tokens: Any) -> Column:
    return Column(_checked_tokens(tokens), np.int32)


def _weight_column(weights: Any, n: int) -> Column:
    return Column(_checked_weights(weights, n), np.float32)


def _sequence_weights(weights: Any, n: int) -> np.ndarray:
    return np.ones(n, np.float32) if weights is None else _checked_weights(weights, n).astype(np.float32)


def _checked_tokens(tokens: Any) -> np.ndarray:
    """Token ids as an array [n] of some integer type, n >= 1."""
    array = tokens if isinstance(tokens, np.ndarray) else np.asarray(tokens)
    if array.dtype.kind not in "iu":
        raise TypeError(f"tokens must be integers, got {array.dtype}")
    if array.ndim != 1 or not array.size:
        raise ValueError(f"tokens of a sequence must have shape (T,) with T >= 1, got {array.shape}")
    least = min(int(block.min()) for block in blocks_of(array))
    most = max(int(block.max()) for block in blocks_of(array))
    if least < 0 or most > np.iinfo(np.int32).max:
        hint = f"; {IGNORED} is for targets: give such a token a loss weight of 0" if least == IGNORED else ""
        raise IndexError(f"token ids must be in 0..2^31-1, got {least}..{most}{hint}")
    return array


def _checked_weights(weights: Any, n: int) -> np.ndarray:
    """Loss weights as an array [n] of some type of numbers."""
    array = weights if isinstance(weights, np.ndarray) else np.asarray(weights)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"loss_weights must be numbers, got {array.dtype}")
    if array.shape != (n,):
        raise ValueError(f"loss_weights must have the shape {(n,)} of the tokens, got {array.shape}")
    for block in blocks_of(array):
        with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite there
            single = block.astype(np.float32)
        if not np.isfinite(single).all() or (single < 0).any():
            raise ValueError("loss_weights must be finite and not negative")
    return array


def _ones(n: int) -> Iterator[np.ndarray]:
    """`n` weights of 1, as blocks for a digest."""
    block = np.ones(BLOCK, "<f4")
    for begin in range(0, n, BLOCK):
        yield block[: n - begin]


def digest_of(description: dict[str, Any], *columns: Iterable[np.ndarray]) -> str:
    """SHA-256 of a description and of columns that come in blocks."""
    total = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for column in columns:
        for block in column:
            update(total, np.ascontiguousarray(block, block.dtype.newbyteorder("<")))
    return total.hexdigest()
