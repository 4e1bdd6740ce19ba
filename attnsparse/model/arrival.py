"""Models that arrive from another process: loaded once, checked by their digest, and kept for the next."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from typing import Any, TypeAlias

from .load import load
from .model import Model
from .shared_weights import Place, take
from .tokenizer import Tokenizer
from .travel import Origin

Replaced: TypeAlias = "tuple[Tokenizer | None] | None"

MOST_KEPT = 4
"""Models that arrived and are kept in memory for the next pickle of the same one, the last ones."""

_kept: OrderedDict[Any, Model] = OrderedDict()
_sent: weakref.WeakValueDictionary[Any, Model] = weakref.WeakValueDictionary()
_lock = threading.RLock()


def arrived(
    origin: Origin, dtype: str, digest: str, name: str, replaced: Replaced, place: Place | None
) -> Model:
    """The model that was pickled: the one that is here already, else loaded from where it came from.

    Its weights are then those at `place`, if they can be mapped.

    ValueError if other weights are there now; what `load` raises if it cannot be found.
    """
    key = _key(origin, dtype, digest, name, replaced)
    with _lock:
        model = _kept.get(key) or _sent.get(key)
        if model is None or not model._is_as_loaded():
            model = _loaded(origin, dtype, digest)
            take(model, place)
            model.name = name
            if replaced is not None:
                model.tokenizer = replaced[0]
        _kept[key] = model
        _kept.move_to_end(key)
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
        return model


def remember(model: Model, arguments: tuple[Any, ...]) -> None:
    """A model that is sent: a process that is forked from here finds it in the memory that both share."""
    _sent[_key(*arguments)] = model


def _loaded(origin: Origin, dtype: str, digest: str) -> Model:
    what, revision, allow_nonfinite, tokenizer, gated, config, strict, limits = origin
    model = load(
        what, dtype=dtype, allow_nonfinite=allow_nonfinite, tokenizer=tokenizer, revision=revision,
        gated=gated, config=config, strict=strict, limits=limits,
    )  # fmt: skip
    if model.digest != digest:
        raise ValueError(
            f"{what!r:.200} holds another model than the one that was sent: digest {model.digest[:12]}, "
            f"expected {digest[:12]}; load it again there, or send model.to_bytes()"
        )
    return model


def _key(origin: Origin, dtype: str, digest: str, name: str, replaced: Replaced) -> Any:
    """Equal for two pickles of the same model."""
    tokenizers = [origin.tokenizer, *(replaced or ())]
    texts = [None if one is None else (one.to_json(), one.bos_id) for one in tokenizers]
    return origin.what, repr(origin), dtype, digest, name, replaced is None, tuple(texts)


def _after_fork() -> None:
    """Another thread of the parent may have held the lock."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
