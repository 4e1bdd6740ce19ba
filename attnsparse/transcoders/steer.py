"""Steering: features set, scaled or raised, as additions to outputs of MLPs for runs of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from ..items import Mlp
from ..model.interventions import Add
from .features import Features

if TYPE_CHECKING:
    from .transcoders import Transcoders

HOW = ("add", "set", "scale")


def steer(
    self: Transcoders,
    changes: Mapping[tuple[int, ...], float],
    how: str = "add",
    features: Features | None = None,
) -> dict[Mlp, Add]:
    """Changes of features as a patch for `Model.run` and its relatives.

    The change of a feature's activation times its decoder vectors is added to the MLP outputs that it writes
    to, and everything later follows; the model keeps its own MLPs and so its errors.

    Parameters
    ----------
    changes : mapping of (layer, feature) or (layer, feature, position) to float
        What happens to each feature. Without a position: at all positions. Negative positions count from the
        end.
    how : {"add", "set", "scale"}, default "add"
        The number is added to the activation, takes its place, or multiplies it.
    features : Features, optional
        Of the prompt that will be run, for "set" and "scale": the activations that are changed. They are
        those of the model as it is, so what a change does to features of later layers is not undone.

    Returns
    -------
    dict of Mlp to Add
        For ``patch=``; ``transcoders.steer(...) | {item: values}`` adds more.

    Raises
    ------
    IndexError
        For a layer, feature or position that is not there.
    ValueError
        For a layer without a transcoder, another `how`, features that are missing, not used or of other
        transcoders.
    """
    _check.choice(how, "how", HOW)
    if not isinstance(changes, Mapping):
        raise TypeError(f"changes must be a mapping from features to numbers, got {type(changes).__name__}")
    if (how == "add") != (features is None):
        need = "takes no features" if how == "add" else "needs the features of the prompt"
        raise ValueError(f"how={how!r} {need}")
    if features is not None and _check.instance(features, Features, "features").transcoders is not self:
        raise ValueError("features must be found by these transcoders")
    sums: dict[Mlp, np.ndarray] = {}
    for place, number in changes.items():
        layer, feature, position = place_of(self, place)
        number = _check.number(number, f"changes[{place!r:.40}]")
        rows = np.asarray(self.source.decoder_rows(layer, np.array([feature])), np.float64)[0]
        for at, amount in _amounts(how, number, features, layer, feature, position):
            for later, row in enumerate(rows):
                item = Mlp(layer + later, at)
                sums[item] = sums.get(item, 0.0) + amount * row
    return {item: Add(vector) for item, vector in sums.items()}


def place_of(transcoders: Transcoders, place: Any) -> tuple[int, int, int | None]:
    """(layer, feature, position or None) of a key of `changes`."""
    if not isinstance(place, tuple | list) or len(place) not in (2, 3):
        raise TypeError(
            f"a feature must be (layer, feature) or (layer, feature, position), got {place!r:.60}"
        )
    layer = _check.layer(place[0], transcoders.n_layer)
    feature, n = _check.integer(place[1], "feature"), transcoders.n_features[layer]
    if not n:
        raise ValueError(f"layer {layer} has no transcoder")
    if not 0 <= feature < n:
        raise IndexError(f"feature {feature} is out of range: layer {layer} has features 0..{n - 1}")
    return layer, feature, None if len(place) == 2 else _check.integer(place[2], "position")


def _amounts(
    how: str, number: float, features: Features | None, layer: int, feature: int, position: int | None
) -> list[tuple[int | None, float]]:
    """(position, change of the activation) where there is one; position None: everywhere."""
    if features is None:
        return [(position, number)]
    n = features.run.n_tokens
    if position is not None and not -n <= position < n:
        raise IndexError(f"position {position} is out of range: the prompt has {n} tokens")
    here = (features.layer == layer) & (features.feature == feature)
    active = dict(zip(features.position[here].tolist(), features.activation[here].tolist(), strict=True))
    found: list[tuple[int | None, float]] = []
    for at in range(n) if position is None else [position % n]:
        own = active.get(at, 0.0)
        amount = (number if how == "set" else number * own) - own
        if amount:
            found.append((at, amount))
    return found
