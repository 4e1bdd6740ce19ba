"""Labels for features: where they are most active in many prompts, which tokens they promote, and a name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._display import progress_bar
from ..circuits.pieces import as_executor, computed
from ..items import token_label
from ..model.batch import Batch, prompt_groups
from ..model.run import DEFAULT_MAX_BYTES
from ..model.tokenizer import token_texts
from .contexts import GROUP_TOKENS, ActiveWork, Collector, PromptBatch, promoted_tokens
from .labels import FeatureLabels, checked_key, no_feature
from .transcoders import Transcoders

if TYPE_CHECKING:
    from ..model.model import Model

SHARE = 0.5  # of the strongest activation that a context must have to count for the label
DOMINANT = 0.8  # of the activation that the tokens of a label must have together
N_IN_LABEL = 3  # tokens at the position
N_PROMOTED_IN_LABEL = 2


def describe_features(
    model: Model,
    transcoders: Transcoders,
    prompts: Any,
    features: Any = None,
    top: int = 10,
    *,
    window: tuple[int, int] = (12, 4),
    n_promoted: int = 10,
    prepend_bos: bool = False,
    executor: Any = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
    progress: bool | None = None,
) -> FeatureLabels:
    """Find where features are most active in many prompts and which tokens they promote, and label them.

    Parameters
    ----------
    model : Model
    transcoders : Transcoders
        Of this model.
    prompts : iterable of str or of token ids
        Read once, some thousand tokens at a time.
    features : Graph, Features or pairs (layer, feature), optional
        Default: all that are active in the prompts.
    top : int, default 10
        Contexts kept of each feature: the strongest one of each of the `top` best prompts.
    window : (int, int), default (12, 4)
        Tokens kept before and after the position of a context.
    n_promoted : int, default 10
        Tokens kept that a feature raises most and that it lowers most, by its decoder row (the sum of its
        rows if it writes to several layers), less its mean, times the final LayerNorm's weight and the
        unembedding, less the mean over the vocabulary.
    prepend_bos : bool, default False
        Put the BOS token before each prompt.
    executor : concurrent.futures.Executor or Dask Client, optional
        Whose workers find what is active, some thousand tokens at a time: the result is that of a call
        without. See docs/cluster.md.
    max_bytes : int
        Limit of the memory of a batch of prompts, and of that of the contexts, which is
        top * (12 + 8 * (before + 1 + after)) bytes for a feature.
    threads : int, optional
        Default: the number set by `set_num_threads`.
    progress : bool, optional
        Show a bar on stderr. Default: in terminals and notebooks only.

    Returns
    -------
    FeatureLabels

    Raises
    ------
    ConfigError
        If the transcoders do not fit the model.
    IndexError
        For features that do not exist.
    TypeError
        For other objects.
    ValueError
        For options out of range or no prompts, and as `Model.run`.
    MemoryError
        Before more than `max_bytes` would be taken.
    RuntimeError
        For prompts that failed three times in the workers of an executor, unless it is one of the above.
    KeyboardInterrupt
        On Ctrl-C.

    Notes
    -----
    The automatic label: of the contexts at least half as strong as the strongest, the tokens at the position,
    in quotation marks. If up to three of them have 80 % of the activation there, the label is the fewest that
    do, strongest first: ``“large” | “big”``. Otherwise it is the strongest one, an ellipsis for the others,
    and the two tokens promoted most: ``“of”, … -> “small”, “tiny”``. Promoted tokens also follow where none
    of the first has a letter or digit, ``“.” -> “The”, “After”``, and are all there is of a feature that is
    never active, ``-> “small”, “tiny”``. Promoted tokens without a letter or digit are passed over.
    """
    _check.instance(transcoders, Transcoders, "transcoders").check(model, weights=False)
    max_bytes = _check.byte_limit(max_bytes)
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"window must be two numbers, tokens before and after, got {window!r:.60}")
    before, after = (_check.integer(value, "window", 0) for value in window)
    size = _check.integer(top, "top", 1), before, after
    n_promoted = _check.integer(n_promoted, "n_promoted", 1)
    wanted = None if features is None else wanted_features(transcoders, features)
    _check_room(transcoders, wanted, size, max_bytes)
    work = ActiveWork(model, transcoders, wanted, max_bytes, threads)
    collector, pool = Collector(work, size), as_executor(executor)
    total = len(prompts) if hasattr(prompts, "__len__") and not isinstance(prompts, str) else None
    batches = numbered(prompt_groups(model, prompts, prepend_bos, GROUP_TOKENS))
    with (
        progress_bar(progress, total, "features", "prompt") as bar,  # type: ignore[arg-type]
        contextlib.closing(computed(work, batches, 0, None, pool)) as results,
    ):
        for piece, active in results:
            collector.add(piece, active)
            if bar is not None:
                bar.update(piece.size)
    if not collector.n_prompts:
        raise ValueError("prompts must hold at least one prompt, got none")
    return _labels(collector, n_promoted, before, threads)


def numbered(batches: Iterable[Batch]) -> Iterator[PromptBatch]:
    """Batches with the numbers of their prompts."""
    first = 0
    for batch in batches:
        yield PromptBatch(batch, first)
        first += len(batch)


def wanted_features(transcoders: Transcoders, features: Any) -> list[np.ndarray]:
    """int64, rising, for each layer: the features of a Graph or of Features, or pairs (layer, feature)."""
    if hasattr(features, "feature") and hasattr(features, "layer"):
        chosen = slice(None) if not hasattr(features, "kind") else np.array(features.kind) == "feature"
        pairs: Iterable[Any] = zip(features.layer[chosen].tolist(), features.feature[chosen].tolist())
    else:
        pairs = features
    found: list[set[int]] = [set() for _ in range(transcoders.n_layer)]
    for pair in pairs:
        layer, number = checked_key(tuple(pair) if isinstance(pair, (list, np.ndarray)) else pair)
        if not 0 <= layer < transcoders.n_layer or not 0 <= number < transcoders.n_features[layer]:
            raise IndexError(no_feature(transcoders.n_features, layer, number))
        found[layer].add(number)
    return [np.array(sorted(numbers), np.int64) for numbers in found]


def _check_room(
    transcoders: Transcoders, wanted: list[np.ndarray] | None, size: tuple[int, int, int], max_bytes: int
) -> None:
    n = sum(transcoders.n_features) if wanted is None else sum(map(len, wanted))
    needed = n * size[0] * (12 + 8 * (size[1] + 1 + size[2]))
    if needed > max_bytes:
        raise MemoryError(
            f"the contexts of {n:,} features take {needed / 1e9:.4g} GB, above max_bytes={max_bytes:,}; "
            "ask for fewer features, a smaller top or a smaller window"
        )


def _labels(collector: Collector, n_promoted: int, before: int, threads: int | None) -> FeatureLabels:
    model, transcoders = collector.model, collector.transcoders
    parts: dict[str, list[np.ndarray]] = {
        name: [] for name in (*_OF_TABLE, *_OF_DECODER, "layer", "feature", "density")
    }
    for layer in range(transcoders.n_layer):
        table = collector.tables.pop(0)
        count = table.array("count")
        rows = np.flatnonzero(count) if collector.wanted is None else np.arange(len(count))
        numbers = rows if collector.wanted is None else collector.wanted[layer]
        for name in _OF_TABLE:
            parts[name].append(table.array(name)[rows])
        found = promoted_tokens(model, transcoders, layer, numbers, n_promoted, threads)
        for name, array in zip(_OF_DECODER, found):
            parts[name].append(array)
        parts["layer"].append(np.full(len(rows), layer, np.int32))
        parts["feature"].append(numbers.astype(np.int32))
        parts["density"].append(count[rows] / max(collector.n_tokens, 1))
    arrays: dict[str, Any] = {name: np.concatenate(each) for name, each in parts.items()}
    ids = ("tokens", "promoted_tokens", "suppressed_tokens")
    used = np.unique(np.concatenate([arrays[name].ravel() for name in ids]))
    strings = _token_strings(model, used[used >= 0])
    automatic = tuple(
        automatic_label(
            [strings[t] for t in tokens[values > 0].tolist()],
            values[values > 0],
            [strings[t] for t in promoted],
        )
        for tokens, values, promoted in zip(
            arrays["tokens"][:, :, before], arrays["activation"], arrays["promoted_tokens"].tolist()
        )
    )
    return FeatureLabels(
        model.name, transcoders.name, collector.n_prompts, collector.n_tokens, automatic=automatic,
        before=before, strings=strings, **arrays,
    )  # fmt: skip


_OF_TABLE = ("prompt", "position", "activation", "tokens", "activations")
_OF_DECODER = ("promoted_tokens", "promoted_effects", "suppressed_tokens", "suppressed_effects")


def _token_strings(model: Model, tokens: np.ndarray) -> dict[int, str]:
    return dict(zip(tokens.tolist(), token_texts(model.tokenizer, tokens)))


def automatic_label(tokens: Sequence[str], activations: np.ndarray, promoted: Sequence[str]) -> str:
    """The label of a feature by the rule of `describe_features`: tokens and activations of its contexts by
    falling activation, and the tokens that it promotes."""
    weights: dict[str, float] = {}
    for token, activation in zip(tokens, activations.tolist()):
        if activation >= SHARE * float(activations[0]):
            name = token_label(token)
            weights[name] = weights.get(name, 0.0) + activation
    names = sorted(weights, key=lambda name: -weights[name])
    reached = accumulate(weights[name] for name in names[:N_IN_LABEL])
    enough = [i for i, sum_ in enumerate(reached) if sum_ >= DOMINANT * sum(weights.values())]
    shown = names[: enough[0] + 1] if enough else names[:1]
    active = " | ".join(map(_quoted, shown)) + (", …" if shown and not enough else "")
    spoken = {token_label(token) for token in tokens if _has_word(token)}
    if enough and spoken.intersection(shown):
        return active
    words = dict.fromkeys(token_label(token) for token in promoted if _has_word(token))
    raised = ", ".join(map(_quoted, list(words)[:N_PROMOTED_IN_LABEL]))
    return f"{active} -> {raised}".strip() if raised else active or "never active"


def _has_word(token: str) -> bool:
    return any(map(str.isalnum, token))


def _quoted(name: str) -> str:
    return f"“{name}”"  # curled, because straight ones are tokens themselves
