"""What reads the residual stream of one prompt: features and logits, the targets of a graph."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check, _core_types
from ..model.tokenizer import token_texts

if TYPE_CHECKING:
    from ..model.model import Model
    from ..model.run import Run
    from ..transcoders.features import Features

RESID, NORMALIZED, LAYERNORM = range(3)  # how a target reads: csrc/asp.h, asp_reading


@dataclass(frozen=True, eq=False)
class Reads:
    """Targets: point (2 l before layer l, 2 l + 1 before its MLP), position, reading int32 [n], vectors [n,
    E]; constant float64 [n] is added to what they read, value float64 [n] is the result in the run."""

    point: np.ndarray
    position: np.ndarray
    reading: np.ndarray
    vectors: np.ndarray
    constant: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.point)

    @property
    def arrays(self) -> _core_types.Reads:
        """As the core takes them."""
        return _core_types.Reads(self.point, self.position, self.reading, self.vectors)

    def take(self, chosen: np.ndarray) -> Reads:
        """Some of them."""
        return Reads(
            self.point[chosen], self.position[chosen], self.reading[chosen], self.vectors[chosen],
            self.constant[chosen], self.value[chosen],
        )  # fmt: skip

    def __add__(self, other: Reads) -> Reads:
        pairs = zip((*self.arrays, self.constant, self.value), (*other.arrays, other.constant, other.value))
        point, position, reading, vectors, constant, value = (np.concatenate(pair) for pair in pairs)
        return Reads(point, position, reading, vectors, constant, value)


@dataclass(frozen=True, eq=False)
class LogitReads(Reads):
    """Logit nodes: their tokens int32 [n] (-1 for a difference), probabilities float64 [n] and labels."""

    token: np.ndarray
    probability: np.ndarray
    labels: tuple[str, ...]


def feature_reads(features: Features, model: Model) -> Reads:
    """All active features; the encoders are read one layer at a time."""
    transcoders, real = features.transcoders, features.error.dtype
    vectors = np.empty((len(features), transcoders.d_model), dtype=real)
    constant = np.empty(len(features))
    for index in transcoders.layers:
        mine = slice(features.start[index], features.start[index + 1])
        encoder = transcoders.source.encoder(index)
        vectors[mine] = encoder.w_enc[features.feature[mine]]
        constant[mine] = encoder.b_enc[features.feature[mine]]
    reading = RESID if transcoders.input_hook == "hook_resid_mid" else NORMALIZED
    return Reads(
        2 * features.layer + 1, features.position, np.full(len(features), reading, np.int32), vectors,
        constant, features.activation.astype(np.float64),
    )  # fmt: skip


def logit_reads(
    model: Model, run: Run, target: Any, wrong: Any, max_n_logits: int, desired_logit_prob: float
) -> LogitReads:
    """The logit nodes of `attribution_graph`."""
    logits = (run.logits if run.logits.ndim == 1 else run.logits[-1]).astype(np.float64)
    shifted = np.exp(logits - logits.max())
    probability = shifted / shifted.sum()
    if target is None:
        if wrong is not None:
            raise ValueError("wrong=... needs target=..., the tokens that it is measured against")
        tokens = most_likely(probability, max_n_logits, desired_logit_prob)
    else:
        tokens = token_ids(model, target, "target")
    name = "wte.weight" if model.config.tied else "lm_head.weight"
    unembed = model.parameter(name)
    bias = (
        model.parameter("lm_head.bias").astype(np.float64)
        if model.config.unembed_bias
        else np.zeros(len(logits))
    )
    if wrong is None:
        directions = unembed[tokens].astype(np.float64) - unembed.mean(axis=0, dtype=np.float64)
        constant, value = bias[tokens] - bias.mean(), logits[tokens] - logits.mean()
        quoted = [json.dumps(_token_string(model, token), ensure_ascii=False) for token in tokens]
        labels = [f"Output {text} (p={probability[t]:.3f})" for t, text in zip(tokens, quoted)]
        number, p = tokens, probability[tokens]
    else:
        other = token_ids(model, wrong, "wrong")
        if both := set(tokens.tolist()) & set(other.tolist()):
            shown = _token_string(model, min(both))
            raise ValueError(f"token {shown!r:.60} is in target and in wrong; name it in one of them")
        directions = _difference(unembed.astype(np.float64), tokens, other)[None]
        constant, value = (np.array([_difference(a, tokens, other)]) for a in (bias, logits))
        sides = [", ".join(repr(_token_string(model, t)) for t in side[:3]) for side in (tokens, other)]
        labels = [f"Logit of {sides[0]} minus {sides[1]}{', ...' if len(other) > 3 else ''}"]
        number, p = np.array([-1]), np.array([np.nan])
    n, last = len(labels), len(run.tokens) - 1
    return LogitReads(
        point=np.full(n, 2 * model.config.n_layer, np.int32),
        position=np.full(n, last, np.int32),
        reading=np.full(n, LAYERNORM, np.int32),
        vectors=directions.astype(run.logits.dtype),
        constant=constant,
        value=value,
        token=number.astype(np.int32),
        probability=p,
        labels=tuple(labels),
    )


def _difference(values: np.ndarray, tokens: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray(values[tokens].mean(axis=0) - values[other].mean(axis=0))


def _token_string(model: Model, token: int) -> str:
    return token_texts(model.tokenizer, [token])[0]


def most_likely(probability: np.ndarray, most: int, desired: float) -> np.ndarray:
    """int64: as few tokens as have a probability of `desired` together, at most `most`, by falling
    probability."""
    most, desired = _check.integer(most, "max_n_logits", 1), _check.fraction(desired, "desired_logit_prob")
    order = np.argsort(-probability, kind="stable")[:most]
    return order[: int(np.searchsorted(np.cumsum(probability[order]), desired)) + 1]


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
