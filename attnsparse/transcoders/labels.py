"""What features of transcoders stand for: where they are active, what they promote, a label made of both.

labels = asp.describe_features(model, transcoders, prompts)
graph = asp.attribution_graph(model, transcoders, prompt, labels=labels)
labels.contexts(3, 17)
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._display import SHOWN, html_table, progress_bar
from ..items import token_label
from ..model.batch import prompt_groups
from ..model.run import DEFAULT_MAX_BYTES
from ..model.tokenizer import token_texts
from .contexts import GROUP_TOKENS, Collector, Table, promoted_tokens
from .transcoders import Transcoders

if TYPE_CHECKING:
    import pandas as pd

    from ..model.model import Model

Key = tuple[int, int]

SHARE = 0.5  # of the strongest activation that a context must have to count for the label
DOMINANT = 0.8  # of the activation that the tokens of a label must have together
N_IN_LABEL = 3


@dataclass(frozen=True, eq=False, repr=False)
class FeatureLabels(Mapping[Key, str]):
    """Labels of features, and what they were made of; a mapping from (layer, feature) to text.

    Made by `describe_features` or read by `load_feature_labels`. n features are described, by layer and
    number, with up to K contexts of W tokens each and P promoted tokens; arrays are read-only. `given`
    labels, the user's, count before automatic ones and may be of other features.
    """

    model_name: str = ""
    transcoders_name: str = ""
    n_prompts: int = 0
    """Prompts that were looked at."""
    n_tokens: int = 0
    layer: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """int32 [n]."""
    feature: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """int32 [n]: number in its layer."""
    automatic: tuple[str, ...] = ()
    """The automatic labels; see `describe_features`."""
    density: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """float64 [n]: share of the tokens on which it is active."""
    prompt: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    """int32 [n, K]: number of the prompt of each context, by falling activation; -1 where there are fewer."""
    position: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    """int32 [n, K]: where in the prompt, from 0."""
    activation: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """float32 [n, K]."""
    before: int = 0
    """Tokens of a window before the position."""
    tokens: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.int32))
    """int32 [n, K, W]: token ids around the position; -1 outside the prompt."""
    activations: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    """float32 [n, K, W]: the feature's activation on each of them."""
    promoted_tokens: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    """int32 [n, P]: ids of the tokens whose logits it raises most."""
    promoted_effects: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """float32 [n, P]: by how much for an activation of 1, less the mean over the vocabulary."""
    suppressed_tokens: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    """The same of those that it lowers most."""
    suppressed_effects: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    strings: Mapping[int, str] = field(default_factory=dict)
    """Text of every token id above."""
    given: Mapping[Key, str] = field(default_factory=dict)
    """Labels of the user."""

    def __post_init__(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
        rows = {(int(a), int(b)): i for i, (a, b) in enumerate(zip(self.layer, self.feature))}
        object.__setattr__(self, "_rows", MappingProxyType(rows))
        object.__setattr__(self, "_keys", tuple(sorted(rows.keys() | self.given.keys())))

    # --- a mapping

    def __getitem__(self, key: Key) -> str:
        text = self.given.get(key)
        row = self._rows.get(key)  # type: ignore[attr-defined]
        if text is None and row is None:
            raise KeyError(f"there is no label of {key!r:.60}; keys are pairs (layer, feature)")
        return self.automatic[row] if text is None else text

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self._keys)  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        given = f", {len(self.given):,} given" if self.given else ""
        of = f" of {self.transcoders_name!r}" if self.transcoders_name else ""
        return f"FeatureLabels({len(self):,} features{of}{given}, {self.n_prompts:,} prompts)"

    def _repr_html_(self) -> str:
        return html_table(self, self._table(itertools.islice(self, SHOWN)))

    # --- what they were made of

    def _row(self, layer: int, feature: int) -> int:
        row = self._rows.get((layer, feature))  # type: ignore[attr-defined]
        if row is None:
            raise KeyError(f"feature {feature!r:.20} of layer {layer!r:.20} is not described here")
        return row

    def contexts(self, layer: int, feature: int) -> pd.DataFrame:
        """Where a feature is most active, by falling activation: columns prompt, position (both from 0),
        token, activation, text (the tokens around it, it in brackets). Raises KeyError if it is not
        described."""
        import pandas as pd

        row = self._row(layer, feature)
        examples = self.examples(layer, feature)
        n = len(examples)
        return pd.DataFrame(
            {
                "prompt": self.prompt[row, :n],
                "position": self.position[row, :n],
                "token": [token_label(strings[at]) for strings, _, at in examples],
                "activation": self.activation[row, :n],
                "text": [_bracketed(strings, at) for strings, _, at in examples],
            }
        )

    def examples(self, layer: int, feature: int) -> list[tuple[list[str], np.ndarray, int]]:
        """The contexts as (token strings, activation on each, place of the position). Raises KeyError."""
        row, found = self._row(layer, feature), []
        for tokens, values in zip(self.tokens[row], self.activations[row]):
            inside = np.flatnonzero(tokens >= 0)
            if len(inside):
                strings = [self.strings[int(token)] for token in tokens[inside]]
                found.append((strings, values[inside], self.before - int(inside[0])))
        return found

    def promoted(self, layer: int, feature: int) -> pd.DataFrame:
        """The tokens whose logits a feature raises most, on the direct path: columns token, effect (change of
        the logit, less its mean over the vocabulary, for an activation of 1 with the final LayerNorm's scale
        held at 1). Raises KeyError."""
        return self._effects(layer, feature, "promoted")

    def suppressed(self, layer: int, feature: int) -> pd.DataFrame:
        """The tokens whose logits it lowers most; as `promoted`."""
        return self._effects(layer, feature, "suppressed")

    def _effects(self, layer: int, feature: int, side: str) -> pd.DataFrame:
        import pandas as pd

        row = self._row(layer, feature)
        tokens, effects = getattr(self, f"{side}_tokens")[row], getattr(self, f"{side}_effects")[row]
        return pd.DataFrame({"token": [self.strings[int(token)] for token in tokens], "effect": effects})

    def to_pandas(self) -> pd.DataFrame:
        """One row per feature: layer, feature, label, density, max_activation, tokens (on which it is most
        active), promoted and suppressed (up to five each). Empty for a feature with a given label alone."""
        return self._table(self)

    def _table(self, keys: Iterable[Key]) -> pd.DataFrame:
        import pandas as pd

        rows = []
        for key in keys:
            row = self._rows.get(key)  # type: ignore[attr-defined]
            plain = {"layer": key[0], "feature": key[1], "label": self[key]}
            rows.append(plain | (_NOTHING if row is None else self._columns(row)))
        names = ("layer", "feature", "label", *_NOTHING)
        return pd.DataFrame(rows, columns=names)

    def _columns(self, row: int) -> dict[str, Any]:
        found = [token for token in self.tokens[row, :, self.before].tolist() if token >= 0]
        sides = {"tokens": dict.fromkeys(found), "promoted": self.promoted_tokens[row, :5].tolist(),
                 "suppressed": self.suppressed_tokens[row, :5].tolist()}  # fmt: skip
        shown = {name: " ".join(token_label(self.strings[t]) for t in ids) for name, ids in sides.items()}
        strongest = self.activation[row].max(initial=0)
        return {"density": self.density[row], "max_activation": strongest, **shown}

    # --- other labels, files

    def with_labels(self, labels: Mapping[Key, str] | str | os.PathLike[str]) -> FeatureLabels:
        """The same with labels of the user, which count before automatic ones and before those given so far.

        labels: (layer, feature) to text, or what `load_feature_labels` takes, such as the path of a CSV.
        Raises TypeError for other keys or labels, IndexError for negative numbers; as `load_feature_labels`
        for a file.
        """
        return dataclasses.replace(self, given={**self.given, **checked_labels(labels)})

    def save(self, path: str | os.PathLike[str], *, contexts: int | None = None) -> None:
        """Write `path`, whole or not at all: everything in .json, the table of `to_pandas` in .csv.

        contexts: keep only so many of each feature, for a small file. `load_feature_labels` reads both; a CSV
        gives labels alone. Raises ValueError for another ending, OSError.
        """
        from .label_files import save_feature_labels

        save_feature_labels(self, path, contexts)


_NOTHING = {"density": np.nan, "max_activation": np.nan, "tokens": "", "promoted": "", "suppressed": ""}


def checked_labels(
    labels: Any, n_layer: int | None = None, n_features: Sequence[int] | None = None
) -> Mapping[Key, str]:
    """Labels of a user, or of a file: (layer, feature) to text.

    n_layer, n_features: how many layers, and features of each, there are, where it is known. Raises TypeError
    for other things, keys or labels, IndexError for features that do not exist; as `load_feature_labels` for
    a path.
    """
    if isinstance(labels, (str, os.PathLike)):
        from .label_files import load_feature_labels

        labels = load_feature_labels(labels)
    if not isinstance(labels, Mapping):
        kind = type(labels).__name__
        raise TypeError(f"labels must be a mapping from (layer, feature) to text, or a path, got {kind}")
    if not isinstance(labels, FeatureLabels):
        labels = {_checked_key(key): _checked_label(key, text) for key, text in labels.items()}
    n_layer = n_layer if n_features is None else len(n_features)
    for layer, number in labels:
        if layer < 0 or number < 0:
            raise IndexError(f"labels: layers and features count from 0, got {(layer, number)}")
        if n_layer is not None and layer >= n_layer:
            raise IndexError(f"labels: there is no layer {layer}, the layers are 0..{n_layer - 1}")
        if n_features is not None and number >= n_features[layer]:
            raise IndexError(f"labels: {_no_feature(n_features, layer, number)}")
    return labels


def _no_feature(n_features: Sequence[int], layer: int, number: int) -> str:
    count = n_features[layer] if 0 <= layer < len(n_features) else "none"
    return f"there is no feature {number} in layer {layer} (it has {count})"


def _checked_key(key: Any) -> Key:
    if not isinstance(key, tuple) or len(key) != 2:
        raise TypeError(f"a feature is a pair (layer, feature) such as (0, 17), got {key!r:.60}")
    return _check.integer(key[0], "layer"), _check.integer(key[1], "feature")


def _checked_label(key: Any, text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"the label of {key!r:.60} must be a text, got {type(text).__name__}")
    return text


def _bracketed(strings: Sequence[str], at: int) -> str:
    token = strings[at]
    space = " " if token.startswith(" ") else ""
    return "".join([*strings[:at], f"{space}[{token.removeprefix(' ')}]", *strings[at + 1 :]])


# ------------------------------------------------------------------------------------------- making them


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
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
    progress: bool | None = None,
) -> FeatureLabels:
    """Where features are most active in many prompts, which tokens they promote, and a label made of it.

    prompts: texts or token ids, any iterable of them, which is read once and some thousand tokens at a time.
    features: a `Graph`, `Features`, or pairs (layer, feature); None for all that are active in the prompts.
    top: contexts kept of each feature, the strongest of each of so many prompts; window: tokens kept
    (before, after) each. n_promoted: tokens kept that a feature raises and lowers most: its decoder row (the
    sum of its rows if it writes to several layers), less its mean, times the final LayerNorm's weight and the
    unembedding, less the mean over the vocabulary. Memory: top * (12 + 8 * (before + 1 + after)) bytes for a
    feature, one layer's weights and a batch of prompts; at most `max_bytes` for each of these two.

    The automatic label: of the contexts at least half as strong as the strongest, the tokens at the
    position. If up to three of them have 80 % of the activation there, the label is the fewest that do,
    strongest first, "large | big". Otherwise, and for a feature that is never active, it is the three tokens
    promoted most, "-> small, tiny, short".

    Raises ConfigError if the transcoders do not fit the model; IndexError for features that do not exist;
    TypeError for other objects; ValueError for options out of range or no prompts; MemoryError before more
    than `max_bytes` would be taken; as `Model.run` for prompts; KeyboardInterrupt on Ctrl-C.
    """
    _check.instance(transcoders, Transcoders, "transcoders").check(model, weights=False)
    max_bytes = _check.byte_limit(max_bytes)
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"window must be two numbers, tokens before and after, got {window!r:.60}")
    before, after = (_at_least(value, 0, "window") for value in window)
    size = _at_least(top, 1, "top"), before, after
    n_promoted = _at_least(n_promoted, 1, "n_promoted")
    wanted = None if features is None else wanted_features(transcoders, features)
    _check_room(transcoders, wanted, size, max_bytes)
    collector = Collector(transcoders, model, wanted, size)
    total = len(prompts) if hasattr(prompts, "__len__") and not isinstance(prompts, str) else None
    with progress_bar(progress, total, "features", "prompt") as bar:  # type: ignore[arg-type]
        for batch in prompt_groups(model, prompts, prepend_bos, GROUP_TOKENS):
            collector.add(batch, max_bytes, threads)
            if bar is not None:
                bar.update(len(batch))
    if not collector.n_prompts:
        raise ValueError("there is no prompt: got nothing to look at")
    return _labels(collector, n_promoted, before)


def _at_least(value: Any, least: int, name: str) -> int:
    number = _check.integer(value, name)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def wanted_features(transcoders: Transcoders, features: Any) -> list[np.ndarray]:
    """int64, rising, for each layer: the features of a Graph or of Features, or pairs (layer, feature)."""
    if hasattr(features, "feature") and hasattr(features, "layer"):
        chosen = slice(None) if not hasattr(features, "kind") else np.array(features.kind) == "feature"
        pairs: Iterable[Any] = zip(features.layer[chosen].tolist(), features.feature[chosen].tolist())
    else:
        pairs = features
    found: list[set[int]] = [set() for _ in range(transcoders.n_layer)]
    for pair in pairs:
        layer, number = _checked_key(tuple(pair) if isinstance(pair, (list, np.ndarray)) else pair)
        if not 0 <= layer < transcoders.n_layer or not 0 <= number < transcoders.n_features[layer]:
            raise IndexError(_no_feature(transcoders.n_features, layer, number))
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


def _labels(collector: Collector, n_promoted: int, before: int) -> FeatureLabels:
    model, transcoders = collector.model, collector.transcoders
    parts: dict[str, list[np.ndarray]] = {
        name: [] for name in (*_OF_TABLE, *_OF_DECODER, "layer", "feature", "density")
    }
    for layer, table in enumerate(collector.tables):
        rows = np.flatnonzero(table.count) if collector.wanted is None else np.arange(len(table.count))
        numbers = rows if collector.wanted is None else collector.wanted[layer]
        for name in _OF_TABLE:
            parts[name].append(getattr(table, name)[rows])
        found = promoted_tokens(model, transcoders, layer, numbers, n_promoted)
        for name, array in zip(_OF_DECODER, found):
            parts[name].append(array)
        parts["layer"].append(np.full(len(rows), layer, np.int32))
        parts["feature"].append(numbers.astype(np.int32))
        parts["density"].append(table.count[rows] / max(collector.n_tokens, 1))
        collector.tables[layer] = Table(0, 1, 0, 0)
    arrays = {name: np.concatenate(each) for name, each in parts.items()}
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
    whole, reached = sum(weights.values()), 0.0
    names = sorted(weights, key=lambda name: -weights[name])[:N_IN_LABEL]
    for i, name in enumerate(names):
        reached += weights[name]
        if reached >= DOMINANT * whole:
            return " | ".join(names[: i + 1])
    return "-> " + ", ".join(token_label(token) for token in promoted[:N_IN_LABEL])
