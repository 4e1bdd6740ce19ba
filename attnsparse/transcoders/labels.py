"""The meaning of features of transcoders: where they are active, what they promote, a label made of both.

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
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._display import SHOWN, html_table
from .._tables import text_table
from ..items import token_label

if TYPE_CHECKING:
    import pandas as pd


Key = tuple[int, int]


@dataclass(frozen=True, eq=False, repr=False)
class FeatureLabels(Mapping[Key, str]):
    """Labels of features and their sources; a mapping from (layer, feature) to text.

    Made by `describe_features` or read by `load_feature_labels`. n features are described, by layer and
    number, with up to K contexts of W tokens each and P promoted tokens; arrays are read-only. Labels that
    the user has `given` take precedence over automatic ones and may be of other features.

    Attributes
    ----------
    model_name, transcoders_name : str
        The model and its transcoders.
    n_prompts, n_tokens : int
        Size of the text on which the features were observed.
    layer : numpy.ndarray
        int32 [n]: the layer of each feature.
    feature : numpy.ndarray
        int32 [n]: its number in the layer.
    automatic : tuple of str
        n automatic labels; see `describe_features`.
    density : numpy.ndarray
        float64 [n]: share of the tokens on which it is active.
    prompt : numpy.ndarray
        int32 [n, K]: prompt of each context, by falling activation; -1 where there are fewer contexts.
    position : numpy.ndarray
        int32 [n, K]: position in the prompt, from 0.
    activation : numpy.ndarray
        float32 [n, K]: activation there.
    before : int
        Tokens of a context before its position.
    tokens : numpy.ndarray
        int32 [n, K, W]: token ids around the position; -1 outside the prompt.
    activations : numpy.ndarray
        float32 [n, K, W]: the feature's activation on each of them.
    promoted_tokens : numpy.ndarray
        int32 [n, P]: ids of the tokens whose logits the feature raises most.
    promoted_effects : numpy.ndarray
        float32 [n, P]: change of the logit for an activation of 1, less the mean over the vocabulary.
    suppressed_tokens, suppressed_effects : numpy.ndarray
        The same for the tokens whose logits it lowers most.
    strings : mapping of int to str
        Text of every token id above.
    given : mapping of (int, int) to str
        Labels of the user.
    """

    model_name: str = ""
    transcoders_name: str = ""
    n_prompts: int = 0
    n_tokens: int = 0
    layer: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    feature: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    automatic: tuple[str, ...] = ()
    density: np.ndarray = field(default_factory=lambda: np.zeros(0))
    prompt: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    position: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    activation: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    before: int = 0
    tokens: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.int32))
    activations: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    promoted_tokens: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    promoted_effects: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    suppressed_tokens: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    suppressed_effects: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    strings: Mapping[int, str] = field(default_factory=dict)
    given: Mapping[Key, str] = field(default_factory=dict)
    _rows: Mapping[Key, int] = field(init=False)
    _keys: tuple[Key, ...] = field(init=False)

    def __post_init__(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
        rows = {(int(a), int(b)): i for i, (a, b) in enumerate(zip(self.layer, self.feature))}
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_keys", tuple(sorted(rows.keys() | self.given.keys())))

    # --- a mapping

    def __getitem__(self, key: Key) -> str:
        text = self.given.get(key)
        row = self._rows.get(key)
        if text is not None:
            return text
        if row is None:
            raise KeyError(f"there is no label of {key!r:.60}; keys are pairs (layer, feature)")
        return self.automatic[row]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        given = f", {len(self.given):,} given" if self.given else ""
        of = f" of {self.transcoders_name!r}" if self.transcoders_name else ""
        return f"FeatureLabels({len(self):,} features{of}{given}, {self.n_prompts:,} prompts)"

    def _repr_html_(self) -> str:
        return html_table(self, self._table(itertools.islice(self, SHOWN)))

    # --- what they were made of

    def _row(self, layer: int, feature: int) -> int:
        row = self._rows.get((layer, feature))
        if row is None:
            raise KeyError(f"feature {feature!r:.20} of layer {layer!r:.20} is not described here")
        return row

    def contexts(self, layer: int, feature: int) -> pd.DataFrame:
        """Where a feature is most active, by falling activation.

        Parameters
        ----------
        layer, feature : int
            The feature and its layer.

        Returns
        -------
        pandas.DataFrame
            Columns prompt, position (both from 0), token, activation, text (the tokens around it, it in
            brackets).

        Raises
        ------
        KeyError
            If the feature is not described.
        """

        row = self._row(layer, feature)
        examples = self.examples(layer, feature)
        n = len(examples)
        table: pd.DataFrame = text_table(
            {
                "prompt": self.prompt[row, :n],
                "position": self.position[row, :n],
                "token": [token_label(strings[at]) for strings, _, at in examples],
                "activation": self.activation[row, :n],
                "text": [_bracketed(strings, at) for strings, _, at in examples],
            }
        )
        return table

    def examples(self, layer: int, feature: int) -> list[tuple[list[str], np.ndarray, int]]:
        """The contexts of a feature, by falling activation.

        Parameters
        ----------
        layer, feature : int
            The feature and its layer.

        Returns
        -------
        list of (list of str, array, int)
            Token strings, the activation on each, and the place of the position among them.

        Raises
        ------
        KeyError
            If the feature is not described.
        """
        row, found = self._row(layer, feature), []
        for tokens, values in zip(self.tokens[row], self.activations[row]):
            inside = np.flatnonzero(tokens >= 0)
            if len(inside):
                strings = [self.strings[int(token)] for token in tokens[inside]]
                found.append((strings, values[inside], self.before - int(inside[0])))
        return found

    def promoted(self, layer: int, feature: int) -> pd.DataFrame:
        """The tokens whose logits a feature raises most, on the direct path.

        Parameters
        ----------
        layer, feature : int
            The feature and its layer.

        Returns
        -------
        pandas.DataFrame
            Columns token, effect: change of the logit, less its mean over the vocabulary, for an activation
            of 1 with the final LayerNorm's scale held at 1.

        Raises
        ------
        KeyError
            If the feature is not described.
        """
        return self._effects(layer, feature, "promoted")

    def suppressed(self, layer: int, feature: int) -> pd.DataFrame:
        """The tokens whose logits a feature lowers most.

        Parameters
        ----------
        layer, feature : int
            The feature and its layer.

        Returns
        -------
        pandas.DataFrame
            As `promoted`.

        Raises
        ------
        KeyError
            If the feature is not described.
        """
        return self._effects(layer, feature, "suppressed")

    def _effects(self, layer: int, feature: int, side: str) -> pd.DataFrame:

        row = self._row(layer, feature)
        tokens, effects = getattr(self, f"{side}_tokens")[row], getattr(self, f"{side}_effects")[row]
        strings = [self.strings[int(token)] for token in tokens]
        table: pd.DataFrame = text_table({"token": strings, "effect": effects})
        return table

    def to_pandas(self) -> pd.DataFrame:
        """One row per feature.

        Returns
        -------
        pandas.DataFrame
            Columns layer, feature, label, density, max_activation, tokens (on which it is most active),
            promoted and suppressed (up to five each); empty for a feature with a given label alone.
        """
        return self._table(self)

    def _table(self, keys: Iterable[Key]) -> pd.DataFrame:

        rows = []
        for key in keys:
            row = self._rows.get(key)
            plain = {"layer": key[0], "feature": key[1], "label": self[key]}
            rows.append(plain | (_NOTHING if row is None else self._columns(row)))
        names = ("layer", "feature", "label", *_NOTHING)
        table: pd.DataFrame = text_table(rows, names)
        return table

    def _columns(self, row: int) -> dict[str, Any]:
        found = [token for token in self.tokens[row, :, self.before].tolist() if token >= 0]
        sides = {"tokens": dict.fromkeys(found), "promoted": self.promoted_tokens[row, :5].tolist(),
                 "suppressed": self.suppressed_tokens[row, :5].tolist()}  # fmt: skip
        shown = {name: " ".join(token_label(self.strings[t]) for t in ids) for name, ids in sides.items()}
        strongest = self.activation[row].max(initial=0)
        return {"density": self.density[row], "max_activation": strongest, **shown}

    # --- other labels, files

    def with_labels(self, labels: Mapping[Key, str] | str | os.PathLike[str]) -> FeatureLabels:
        """The same with labels of the user, which take precedence over automatic ones and those given so far.

        Parameters
        ----------
        labels : mapping or path
            (layer, feature) to text, or what `load_feature_labels` takes, such as the path of a CSV.

        Returns
        -------
        FeatureLabels

        Raises
        ------
        TypeError
            For other keys or labels.
        IndexError
            For negative numbers.
        OSError, FormatError
            As `load_feature_labels`, for a path.
        """
        from .label_files import checked_labels

        return dataclasses.replace(self, given={**self.given, **checked_labels(labels)})

    def save(self, path: str | os.PathLike[str], *, contexts: int | None = None) -> None:
        """Write a file, whole or not at all, that `load_feature_labels` reads.

        Parameters
        ----------
        path : path
            Everything is written to .json, the table of `to_pandas` to .csv, which gives labels alone when it
            is read.
        contexts : int, optional
            Contexts kept of each feature, for a small file. Default: all.

        Raises
        ------
        ValueError
            For another ending.
        OSError
            If the file cannot be written.
        """
        from .label_files import save_feature_labels

        save_feature_labels(self, path, contexts)


_NOTHING = {"density": np.nan, "max_activation": np.nan, "tokens": "", "promoted": "", "suppressed": ""}


def _bracketed(strings: Sequence[str], at: int) -> str:
    token = strings[at]
    space = " " if token.startswith(" ") else ""
    return "".join([*strings[:at], f"{space}[{token.removeprefix(' ')}]", *strings[at + 1 :]])


def no_feature(n_features: Sequence[int], layer: int, number: int) -> str:
    """The message about a feature that does not exist."""
    count = n_features[layer] if 0 <= layer < len(n_features) else "none"
    return f"there is no feature {number} in layer {layer} (it has {count})"


def checked_key(key: Any) -> Key:
    """A pair (layer, feature) of integers."""
    if not isinstance(key, tuple) or len(key) != 2:
        raise TypeError(f"a feature is a pair (layer, feature) such as (0, 17), got {key!r:.60}")
    return _check.integer(key[0], "layer"), _check.integer(key[1], "feature")
