"""What reads the residual stream of one prompt: features and logits, the targets of a graph."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._core_types import Reads, Targets
from .._engine import core_for
from ..model.tokenizer import token_texts

if TYPE_CHECKING:
    from ..model.model import Model
    from ..model.run import Run
    from ..transcoders.features import Features

RESID, NORMALIZED, LAYERNORM = range(3)  # how a target reads: csrc/asp.h, asp_reading


@dataclass(frozen=True, eq=False)
class LogitTargets:
    """Logit nodes as the core takes them, with the probabilities of their tokens (float64 [n], NaN for a
    difference) and their labels."""

    targets: Targets
    probability: np.ndarray
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def feature_targets(features: Features) -> Targets:
    """All active features; the encoders are read one layer at a time."""
    transcoders, real = features.transcoders, features.error.dtype
    vectors = np.empty((len(features), transcoders.d_model), dtype=real)
    constant = np.empty(len(features))
    for index in transcoders.layers:
        mine = slice(features.start[index], features.start[index + 1])
        encoder = transcoders.source.encoder(index)
        vectors[mine] = encoder.w_enc[features.feature[mine]]
        constant[mine] = encoder.b_enc[features.feature[mine]]
    how = RESID if transcoders.input_hook == "hook_resid_mid" else NORMALIZED
    reading = np.full(len(features), how, np.int32)
    reads = Reads(2 * features.layer + 1, features.position, reading, vectors)
    return Targets(reads, constant, features.activation.astype(np.float64), features.feature)


def logit_targets(
    model: Model, run: Run, target: Any, wrong: Any, max_n_logits: int, desired_logit_prob: float
) -> LogitTargets:
    """The logit nodes of `attribution_graph`."""
    most = _check.integer(max_n_logits, "max_n_logits", 1)
    desired = _check.fraction(desired_logit_prob, "desired_logit_prob")
    logits = np.ascontiguousarray(run.logits if run.logits.ndim == 1 else run.logits[-1])
    probability, likely, n = core_for(logits.dtype).graph_likely(logits, min(most, len(logits)), desired)
    if target is None:
        if wrong is not None:
            raise ValueError("wrong=... needs target=..., the tokens that it is measured against")
        tokens = likely[:n]
    else:
        tokens = token_ids(model, target, "target")
    other = np.empty(0, np.int64) if wrong is None else _wrong_ids(model, wrong, tokens)
    vectors, constant, value = model._core.graph_logits(logits, tokens, other)
    if wrong is None:
        quoted = [json.dumps(_token_string(model, token), ensure_ascii=False) for token in tokens]
        labels = [f"Output {text} (p={probability[t]:.3f})" for t, text in zip(tokens, quoted)]
        number, p = tokens, probability[tokens]
    else:
        sides = [", ".join(repr(_token_string(model, t)) for t in side[:3]) for side in (tokens, other)]
        labels = [f"Logit of {sides[0]} minus {sides[1]}{', ...' if len(other) > 3 else ''}"]
        number, p = np.array([-1]), np.array([np.nan])
    place = (2 * model.config.n_layer, len(run.tokens) - 1, LAYERNORM)
    point, position, reading = (np.full(len(labels), x, np.int32) for x in place)
    reads = Reads(point, position, reading, vectors)
    return LogitTargets(Targets(reads, constant, value, number.astype(np.int32)), p, tuple(labels))


def _wrong_ids(model: Model, wrong: Any, tokens: np.ndarray) -> np.ndarray:
    other = token_ids(model, wrong, "wrong")
    if both := set(tokens.tolist()) & set(other.tolist()):
        shown = _token_string(model, min(both))
        raise ValueError(f"token {shown!r:.60} is in target and in wrong; name it in one of them")
    return other


def _token_string(model: Model, token: int) -> str:
    return token_texts(model.tokenizer, [token])[0]


def token_ids(model: Model, tokens: Any, name: str) -> np.ndarray:
    """int64: ids of one token or several given as strings or ids; a string must be a single token.

    Raises ValueError, IndexError for an id out of range, TypeError for anything else.
    """
    listed = [tokens] if isinstance(tokens, str) or not np.iterable(tokens) else list(tokens)
    if not listed:
        raise ValueError(f"{name} must name at least one token")
    found = []
    for token in listed:
        if isinstance(token, str):
            ids = model.to_tokens(token)
            if len(ids) != 1:
                pieces = model.to_str_tokens(token)
                raise ValueError(f"{name}: {token!r:.60} is {len(ids)} tokens {pieces[:8]}, expected one")
            found.append(int(ids[0]))
            continue
        number = _check.integer(token, f"a token of {name}")
        if not 0 <= number < model.config.n_vocab:
            raise IndexError(f"{name}: token id {number} is out of range 0..{model.config.n_vocab - 1}")
        found.append(number)
    if len(set(found)) != len(found):
        raise ValueError(f"{name} names a token twice")
    return np.array(found)
