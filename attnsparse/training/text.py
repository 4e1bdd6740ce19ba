"""Text files as training data: tokens, a held-out part that is never trained on, and mixtures of sources."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _check, _random
from ..model.tokenizer import Tokenizer
from .column import Column
from .data import Batch, digest_of
from .text_tokens import TextFile, Texts, checked_sources

_LEAST_VOCABULARY, _MOST_VOCABULARY = 257, 2**20  # every byte and the end of a text; what anyone trains
_BLOCK = 1000  # sequences in which the shares of a mixture are kept
_ORDERS_KEPT = 64


class TextData:
    """Windows of text files, in an order that is a pure function of the seed.

    The texts are read in place. A part of them, spread over the whole, is held out: no window of training and
    no merge of a trained tokenizer has seen it. Files are documents, which end with ``<|endoftext|>``; one
    file may hold several with that text between them. Windows may span documents.

    Parameters
    ----------
    files : path, sequence of path, or mapping of str to such
        UTF-8 texts, or sources of a mixture by name.
    length : int
        Tokens of a sequence, at most `n_ctx` of the model.
    batch : int
        Sequences of a micro-batch.
    tokenizer : Tokenizer or int, default 4096
        A tokenizer with the token ``<|endoftext|>``, or the size of the byte-level BPE that is trained on the
        training part.
    folder : path, optional
        Where tokens and tokenizer are kept as files that are memory-mapped, and used again as long as texts,
        tokenizer and `held_out` are the same; a folder of its own. None: in memory.
    held_out : float, default 0.05
        Share of the text that is held out, below 1.
    shares : mapping of str to float, optional
        Share of each source in the sequences, which add up to 1 and are kept to the thousandth in every 1,000
        sequences. None: all sources are one text, so their shares are those of their lengths.
    order : {"epochs", "random"}, default "epochs"
        "epochs": over the steps, each micro-batch has every window of a source once before one comes again,
        from a place of its own and in an order of its own in each epoch. "random": windows at random places.
    seed : int, default 0
        0..2^64-1.

    Raises
    ------
    OSError
        With errno and file name.
    FormatError
        ``checksum``, ``value`` for a damaged folder.
    TypeError, ValueError
        For files that are no text or too short, shares that do not fit, a tokenizer without the text's
        tokens.

    Notes
    -----
    Micro-batch m of every step has an order of its own, so accumulation needs no extra state.

    Examples
    --------
    ``data = asp.TextData("novels.txt", length=128, batch=16, tokenizer=2048, folder="tokens")``, then
    ``asp.Trainer(model, data, steps=4000, held_out=data.held_out, evaluate_every=200)``.
    """

    def __init__(
        self,
        files: str | os.PathLike[str] | Sequence[Any] | Mapping[str, Any],
        length: int,
        batch: int,
        *,
        tokenizer: Tokenizer | int = 4096,
        folder: str | os.PathLike[str] | None = None,
        held_out: float = 0.05,
        shares: Mapping[str, float] | None = None,
        order: str = "epochs",
        seed: int = 0,
    ) -> None:
        sources = checked_sources(files)
        self.length = _check.integer(length, "length", 2)  #: tokens of a sequence
        self.batch_size = _check.integer(batch, "batch", 1)  #: sequences of a micro-batch
        self.order = _check.choice(order, "order", ("epochs", "random"))  #: "epochs" or "random"
        self.seed = _check.seed(seed)  #: seed of the order
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = _check.integer(tokenizer, "tokenizer", _LEAST_VOCABULARY, _MOST_VOCABULARY)
        share = _check.proper_fraction(held_out, "held_out", zero=True)
        self._quotas = None if shares is None else _quotas(shares, list(sources))
        #: share of each source, None if all are one text
        self.shares = None if shares is None else {name: float(shares[name]) for name in sources}
        texts = Texts(sources, share)
        found = texts.prepared(tokenizer, None if folder is None else Path(_check.path(folder, "folder")))
        self.tokenizer = found.tokenizer  #: the `Tokenizer`, given or trained
        self.texts: list[TextFile] = found.texts  #: what was read, a `TextFile` for each file
        self._tokens = Column(found.train, np.int32)
        self._begin = found.train_begin if shares is not None else found.train_begin[[0, -1]]
        self._check_lengths(list(sources) if shares is not None else ["the texts"], found.held_out, share)
        rows = len(found.held_out) // self.length
        #: int32 [n, length], the held-out part for ``Trainer(held_out=)`` and `Model.evaluate`
        self.held_out = np.array(found.held_out[: rows * self.length], np.int32).reshape(rows, self.length)
        self.held_out.flags.writeable = False
        self._orders: dict[tuple[int, int, int], np.ndarray] = {}
        settings = {name: value for name, value in self.describe().items() if name != "texts"}
        self._digest = digest_of(settings, self._tokens.blocks())

    def _check_lengths(self, names: list[str], held_out: np.ndarray, share: float) -> None:
        for name, n in zip(names, np.diff(self._begin).tolist()):
            if n < 2 * self.length:
                raise ValueError(
                    f"{name}: too short, {n:,} tokens to train on; length={self.length:,} needs at least "
                    f"{2 * self.length:,}"
                )
        if share and len(held_out) < self.length:
            raise ValueError(
                f"the texts are too short: held_out={share:g} of them are {len(held_out):,} tokens, fewer "
                f"than length={self.length:,}; give more text or a larger share"
            )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the tokens to train on and of `describe()` without the texts' names."""
        return self._digest

    def __len__(self) -> int:
        """Tokens to train on."""
        return len(self._tokens)

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON values.

        Returns
        -------
        dict
            kind, texts (source, name, n_bytes, n_characters, sha256), vocabulary, tokens, held_out (tokens),
            length, batch, order, shares and seed.
        """
        return {
            "kind": "text",
            "texts": [file._asdict() for file in self.texts],
            "vocabulary": self.tokenizer.n_vocab,
            "tokens": len(self._tokens),
            "held_out": int(self.held_out.size),
            "length": self.length,
            "batch": self.batch_size,
            "order": self.order,
            "shares": self.shares,
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
            float32 [N], all 1.
        """
        step, micro = _check.integer(step, "step", 0), _check.integer(micro, "micro", 0)
        places = step * self.batch_size + np.arange(self.batch_size)
        source, number = self._turns(places, micro)
        if self.order == "random":
            draws = _random.raw(self.batch_size, self.seed, _random.BATCHES, step, micro)
            lengths = np.diff(self._begin)[source] - self.length
            begin = (draws % lengths.astype(np.uint64)).astype(np.int64)
        else:
            begin = np.array([self._window(*turn, micro) for turn in zip(source.tolist(), number.tolist())])
        rows = (self._begin[source] + begin)[:, None] + np.arange(self.length)
        offsets = np.arange(self.batch_size + 1, dtype=np.int64) * self.length
        flat = rows.reshape(-1)
        return self._tokens.take(flat), offsets, self._tokens.take(flat + 1), np.ones(len(flat), np.float32)

    def _turns(self, places: np.ndarray, micro: int) -> tuple[np.ndarray, np.ndarray]:
        """Source of each place in the whole run, and how many places before it had the same source."""
        if self._quotas is None:
            return np.zeros(len(places), np.int64), places
        source, number = np.empty(len(places), np.int64), np.empty(len(places), np.int64)
        plain = np.repeat(np.arange(len(self._quotas)), self._quotas)
        for block in np.unique(places // _BLOCK):
            mixed = plain[_random.permutation(_BLOCK, self.seed, _random.MIXTURES, int(block), micro)]
            before = np.zeros(_BLOCK, np.int64)
            for i, quota in enumerate(self._quotas.tolist()):
                before[mixed == i] = block * quota + np.arange(quota)
            here = places // _BLOCK == block
            source[here], number[here] = mixed[places[here] % _BLOCK], before[places[here] % _BLOCK]
        return source, number

    def _window(self, source: int, number: int, micro: int) -> int:
        """Where in its source the window of a turn begins, without replacement."""
        n = int(self._begin[source + 1] - self._begin[source])
        windows = (n - self.length) // self.length
        epoch, place = divmod(number, windows)
        if (source, epoch, micro) not in self._orders:
            if len(self._orders) >= _ORDERS_KEPT:
                self._orders.clear()
            use = _random.EPOCHS
            order = _random.permutation(windows, self.seed, use, epoch, micro * len(self._begin) + source)
            self._orders[source, epoch, micro] = order
        shift = int(_random.raw(1, self.seed, _random.SHIFTS, epoch, source)[0] % self.length)
        return shift + self.length * int(self._orders[source, epoch, micro][place])

    def __repr__(self) -> str:
        return (
            f"TextData({len(self.texts)} files, {len(self):,} tokens of {self.tokenizer.n_vocab:,} kinds, "
            f"{len(self.held_out):,} held-out sequences, length={self.length}, batch={self.batch_size}, "
            f"seed={self.seed})"
        )


def _quotas(shares: Any, sources: list[str]) -> np.ndarray:
    """Sequences of each source in a block, by the largest remainders."""
    if not isinstance(shares, Mapping):
        raise TypeError(f"shares must be a mapping of sources to numbers, got {type(shares).__name__}")
    if set(shares) != set(sources):
        raise ValueError(
            f"shares must name the sources {', '.join(sources)}, got {', '.join(map(str, shares))}"
        )
    exact = np.array([_check.share(shares[name], f"shares[{name!r}]") for name in sources]) * _BLOCK
    if abs(exact.sum() - _BLOCK) > 1e-6 * _BLOCK:
        raise ValueError(f"shares must add up to 1, got {exact.sum() / _BLOCK:g}")
    quotas = np.floor(exact + 1e-9).astype(np.int64)
    rest = np.argsort(quotas - exact, kind="stable")[: _BLOCK - int(quotas.sum())]
    quotas[rest] += 1
    if quotas.min() == 0:
        raise ValueError(f"shares must be at least {1 / _BLOCK:g}, got {exact.min() / _BLOCK:g}")
    return quotas
