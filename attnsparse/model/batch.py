"""Prompts of any accepted kind -> packed token ids without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, ValuesView
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check

if TYPE_CHECKING:
    from .config import Config
    from .model import Model
    from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Batch:
    """Prompts one after the other: prompt b is tokens[offsets[b]:offsets[b + 1]]."""

    tokens: np.ndarray  #: int32 [N], read-only
    offsets: np.ndarray  #: int64 [B + 1], read-only
    texts: tuple[str | None, ...]  #: the texts that prompts were given as
    single: bool  #: one prompt that did not come in a list: its arrays have no batch axis
    prepend_bos: bool

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [B], read-only: tokens of each prompt."""
        lengths = np.diff(self.offsets)
        lengths.setflags(write=False)
        return lengths

    @cached_property
    def squares(self) -> np.ndarray:
        """int64 [B + 1], read-only: where each prompt's (T, T) square begins if they are packed."""
        squares = np.concatenate([[0], np.cumsum(self.lengths**2)])
        squares.setflags(write=False)
        return squares


def as_batch(model: Model, prompts: Any, prepend_bos: bool) -> Batch:
    """Pack what `Model.run` accepts; TypeError or ValueError say what is wrong."""
    items, single = listed(prompts)
    if not items:
        raise ValueError("prompts must hold at least one prompt, got an empty list")
    rows = [_ids(model, item, prepend_bos, _where(single, i)) for i, item in enumerate(items)]
    tokens = np.concatenate(rows)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    tokens.setflags(write=False)
    offsets.setflags(write=False)
    texts = tuple(str(item) if isinstance(item, str) else None for item in items)
    return Batch(tokens, offsets, texts, single, bool(prepend_bos))


def prompt_groups(model: Model, prompts: Any, prepend_bos: bool, n_tokens: int) -> Iterator[Batch]:
    """Prompts as batches of at least `n_tokens` tokens, the last one as many as are left.

    prompts: what `as_batch` takes, or an iterator over texts and token ids, which is read as it is used.
    """
    items, single = (prompts, False) if isinstance(prompts, Iterator) else listed(prompts)
    rows: list[np.ndarray] = []
    n = 0
    for i, item in enumerate(items):
        rows.append(_ids(model, item, prepend_bos, _where(single, i)))
        n += len(rows[-1])
        if n >= n_tokens:
            yield _packed(rows, prepend_bos)
            rows, n = [], 0
    if rows:
        yield _packed(rows, prepend_bos)


def listed(prompts: Any) -> tuple[list[Any], bool]:
    """Prompts one by one, and whether it is a single one that did not come in a list.

    A text and a flat row of token ids are one prompt; lists, tuples, arrays and columns of texts or of rows
    are several: what has an `__array__` (pandas' Series and Index, Arrow and Polars columns, tensors) is
    taken as that array, and an iterator as the list of what it gives. TypeError or ValueError for anything
    else.
    """
    if isinstance(prompts, str):
        return [prompts], True
    if isinstance(prompts, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"prompts must be strings or integers, got {type(prompts).__name__}; decode them first"
        )
    if isinstance(prompts, Iterator | ValuesView):
        prompts = list(prompts)
    if not isinstance(prompts, Sequence):
        if not hasattr(prompts, "__array__"):
            kind = type(prompts).__name__
            raise TypeError(f"prompts must be a string, token ids, or a list of them, got {kind}")
        array = np.asarray(prompts)
        if array.ndim not in (1, 2) or (array.ndim == 2 and array.dtype.kind not in "iufb"):
            raise ValueError(
                "prompts must be one column of texts, or tokens with 1 or 2 dimensions, "
                f"got shape {array.shape}"
            )
        if array.ndim == 1 and array.dtype.kind in "iufb":
            return [array], True
        prompts = array.tolist() if array.ndim == 1 else array
    if len(prompts) and isinstance(prompts[0], (int, np.integer)) and not isinstance(prompts[0], bool):
        return [prompts], True
    return list(prompts), False


def _packed(rows: Sequence[np.ndarray], prepend_bos: bool) -> Batch:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Batch(np.concatenate(rows), offsets, (None,) * len(rows), False, bool(prepend_bos))


def sequence_ids(config: Config, sequences: Any, name: str) -> list[np.ndarray]:
    """Token ids, int32 [T] with T in 1..n_ctx, of each sequence; TypeError, ValueError, IndexError if not."""
    items = _check.items(sequences, name, "sequences of token ids")
    for i, item in enumerate(items):
        if isinstance(item, str) or not hasattr(item, "__len__"):
            raise TypeError(f"{name}[{i}] must be a sequence of token ids, got {type(item).__name__}")
    rows = [(_given_ids(item, f"{name}[{i}]"), f"{name}[{i}]") for i, item in enumerate(items)]
    return [_checked(ids, config, None, where) for ids, where in rows]


def _where(single: bool, index: int) -> str:
    return "the prompt" if single else f"prompt {index}"


def _ids(model: Model, item: Any, prepend_bos: bool, where: str) -> np.ndarray:
    if isinstance(item, str):
        ids = model.to_tokens(str(item), prepend_bos)
    else:
        ids = _given_ids(item, where)
        if prepend_bos and ids[:1].tolist() != [bos := _bos(model)]:
            ids = np.concatenate([[bos], ids])
    return _checked(ids, model.config, model.tokenizer, where)


def _checked(ids: np.ndarray, config: Config, tokens: Tokenizer | None, where: str) -> np.ndarray:
    if len(ids) == 0:
        raise ValueError(f"{where} has no tokens")
    most = config.n_ctx
    if len(ids) > most:
        raise ValueError(f"{where} has {len(ids):,} tokens, this model takes at most {most:,} (n_ctx)")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= config.n_vocab:
        raise IndexError(_without_row(config, tokens, ids, where))
    return np.ascontiguousarray(ids, dtype=np.int32)


def _without_row(config: Config, tokens: Tokenizer | None, ids: np.ndarray, where: str) -> str:
    """The message about the first id that has no row in the embedding."""
    rows = config.n_vocab
    at = int(np.argmax((ids < 0) | (ids >= rows)))
    token = int(ids[at])
    said = f"token id {token:,} at position {at} of {where} is out of range 0..{rows - 1:,}"
    if tokens is not None and 0 <= token < tokens.n_vocab:
        said += f": the embedding has no row for {tokens.token_string(token)!r:.80}"
    return said


def _given_ids(item: Any, where: str) -> np.ndarray:
    if _check.is_missing(item):
        raise ValueError(f"{where} is missing ({item}); leave it out, such as with dropna()")
    if isinstance(item, (bytes, bytearray, memoryview)):
        raise TypeError(f"{where} must be a string or integers, got {type(item).__name__}; decode it first")
    if isinstance(item, Sequence) and any(isinstance(i, bool | np.bool_) for i in item):
        raise TypeError(f"tokens must be integers, got bool in {where}")
    try:
        ids = np.asarray(item)
    except ValueError:
        raise ValueError(f"tokens of {where} must be a flat sequence of integers, got a nested one") from None
    if ids.dtype == object and ids.size and all(isinstance(i, int) for i in ids.ravel()):
        raise IndexError(f"a token id of {where} does not fit in 64 bits")
    if ids.size == 0:
        return np.empty(0, dtype=np.int64)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"tokens must be integers, got {ids.dtype} in {where}")
    if ids.ndim != 1:
        raise ValueError(f"tokens of {where} must have 1 dimension, got shape {ids.shape}")
    return ids


def _bos(model: Model) -> int:
    bos = model._need_tokenizer().bos_id
    if bos is None:
        raise ValueError(f"prepend_bos=True, but the tokenizer of model {model.name!r} has no BOS token")
    return bos
