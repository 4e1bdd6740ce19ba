"""What a Trainer is fed: batches that are a pure function of the step.

Because a batch depends on nothing but the seed, the step and the number of the micro-batch, the step is the
position in the data: nothing else has to be saved, and a resumed run sees what the whole run would have seen.

Any object with `batch(step, micro)` and `digest` will do; this file has the two usual ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from . import randomness

Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@runtime_checkable
class Data(Protocol):
    """What Trainer asks of its data."""

    @property
    def digest(self) -> str:
        """Identity of data, order and seed (hex); a resume with another one is refused."""

    def batch(self, step: int, micro: int) -> Batch:
        """Batch of one micro-batch of one step, a pure function of its arguments.

        Returns tokens int32 [N] (sequences packed one after the other), offsets int64 [B+1] (where each
        begins, from 0 to N), targets int32 [N] (the token to be predicted at each position, -100 for none)
        and weights float32 [N] (its share in the cross-entropy; where it is 0 the target is not looked at).
        """


class TokenData:
    """Windows of `length` tokens from one long array, at random places.

    tokens: whole numbers [n], n > length.  length: tokens of a sequence.  batch: sequences of a micro-batch.
    loss_weights: float [n], weight of predicting that token (default 1 for all); a mask is 0 and 1.
    Window r of micro-batch m of step s begins at a place drawn with replacement for (seed, s, m, r).
    Raises TypeError and ValueError for arrays of other kinds or sizes.
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
        self._tokens = _token_array(tokens)
        self._weights = _weight_array(loss_weights, self._tokens)
        self.length, self.batch_size = _count("length", length), _count("batch", batch)
        self.seed = randomness.checked_seed(seed)
        if len(self._tokens) <= self.length:
            raise ValueError(
                f"{len(self._tokens):,} tokens are too few for windows of {self.length:,} and one more"
            )
        self._digest = _digest(self.describe(), self._tokens, self._weights)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the arrays and of `describe()`."""
        return self._digest

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON values."""
        return {
            "kind": "tokens",
            "tokens": len(self._tokens),
            "length": self.length,
            "batch": self.batch_size,
            "seed": self.seed,
        }

    def batch(self, step: int, micro: int = 0) -> Batch:
        """See `Data.batch`; N = batch * length."""
        draws = randomness.raw(self.batch_size, self.seed, randomness.BATCHES, step, micro)
        begin = (draws % np.uint64(len(self._tokens) - self.length)).astype(np.int64)
        rows = (begin[:, None] + np.arange(self.length)).reshape(-1)
        offsets = np.arange(self.batch_size + 1, dtype=np.int64) * self.length
        return self._tokens[rows], offsets, self._tokens[rows + 1], self._weights[rows + 1]

    def __repr__(self) -> str:
        return (
            f"TokenData({len(self._tokens):,} tokens, length={self.length}, batch={self.batch_size}, "
            f"seed={self.seed})"
        )


class SequenceData:
    """Given sequences, all of them once per epoch in an order shuffled for each epoch.

    sequences: a list of arrays of whole numbers (lengths may differ), or one array [n, T].
    batch: sequences of a micro-batch.  loss_weights: like `sequences`, weight of predicting that token
    (default 1); that of the first token of a sequence is not used, because nothing comes before it.
    Micro-batch m of every step walks through shuffles of its own, so accumulation needs no extra state.
    Raises TypeError and ValueError for arrays of other kinds or sizes.
    """

    def __init__(self, sequences: Any, batch: int, *, seed: int = 0, loss_weights: Any = None) -> None:
        rows = [_token_array(sequence) for sequence in sequences]
        if not rows:
            raise ValueError("no sequences were given")
        weights: Sequence[Any] = [None] * len(rows) if loss_weights is None else list(loss_weights)
        if len(weights) != len(rows):
            raise ValueError(f"{len(weights):,} rows of loss weights for {len(rows):,} sequences")
        self._lengths = np.array([len(row) for row in rows], np.int64)
        self._begin = np.concatenate([[0], np.cumsum(self._lengths)]).astype(np.int64)
        self._tokens = np.concatenate(rows)
        self._weights = np.concatenate([_weight_array(w, row) for w, row in zip(weights, rows)])
        self._targets, self._target_weights = _shifted(self._tokens, self._weights, self._begin)
        self.batch_size = _count("batch", batch)
        self.seed = randomness.checked_seed(seed)
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        self._digest = _digest(self.describe(), self._tokens, self._weights, self._lengths)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the arrays and of `describe()`."""
        return self._digest

    def __len__(self) -> int:
        return len(self._lengths)

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON values."""
        return {
            "kind": "sequences",
            "sequences": len(self._lengths),
            "tokens": len(self._tokens),
            "batch": self.batch_size,
            "seed": self.seed,
        }

    def batch(self, step: int, micro: int = 0) -> Batch:
        """See `Data.batch`."""
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
            order = randomness.permutation(len(self._lengths), self.seed, randomness.EPOCHS, epoch, micro)
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


def _token_array(tokens: Any) -> np.ndarray:
    """Token ids as int32 [n], n >= 1."""
    array = np.asarray(tokens)
    if array.dtype.kind not in "iu":
        raise TypeError(f"tokens must be integers, got {array.dtype}")
    if array.ndim != 1 or not array.size:
        raise ValueError(f"tokens of a sequence must have shape (T,) with T >= 1, got {array.shape}")
    if int(array.min()) < 0 or int(array.max()) > np.iinfo(np.int32).max:
        raise IndexError(f"token ids must be in 0..2^31-1, got {int(array.min())}..{int(array.max())}")
    return np.ascontiguousarray(array, np.int32)


def _weight_array(weights: Any, tokens: np.ndarray) -> np.ndarray:
    """Loss weights as float32, one for each token; 1 where none are given."""
    if weights is None:
        return np.ones(len(tokens), np.float32)
    array = np.asarray(weights)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"loss weights must be numbers, got {array.dtype}")
    if array.shape != tokens.shape:
        raise ValueError(f"loss weights have shape {array.shape}, the tokens {tokens.shape}")
    array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all() or (array < 0).any():
        raise ValueError("loss weights must be finite and >= 0")
    return array


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def _digest(description: dict[str, Any], *arrays: np.ndarray) -> str:
    total = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for array in arrays:
        total.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return total.hexdigest()
