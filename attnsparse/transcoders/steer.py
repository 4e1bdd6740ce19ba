"""Steering: features set, scaled or raised in a run of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from ..model.interventions import KINDS, Change, SteeredFeature, SteeredWeights
from .replacement import CheckedWeights

if TYPE_CHECKING:
    from ..model.model import Model
    from .transcoders import Transcoders


def steer(
    self: Transcoders, changes: Mapping[tuple[int, ...], float], how: str = "add"
) -> dict[SteeredFeature, Change]:
    """Changes of features as a patch for `Model.run` and its relatives, `Model.generate` among them.

    The change of a feature's activation times its decoder vectors is added to the MLP outputs that it writes
    to, and everything later follows; the model keeps its own MLPs and so its errors.

    Parameters
    ----------
    changes : mapping of (layer, feature) or (layer, feature, position) to float
        What happens to each feature. Without a position: at all positions, of generated tokens too. Negative
        positions count from the end of the prompt. Of two for one feature at one position the later counts.
    how : {"add", "set", "scale"}, default "add"
        The number is added to the activation, takes its place, or multiplies it. The activation is the one
        that the feature has in the run that is changed: after `ablate`, `patch` and what changed features of
        earlier layers do.

    Returns
    -------
    dict
        For ``patch=``; ``transcoders.steer(...) | {item: values}`` adds more, and so does another
        `steer(...)` of the same transcoders.

    Raises
    ------
    IndexError
        For a layer or feature that is not there.
    ValueError
        For a layer without a transcoder, another `how`, or a number that is not finite.

    Notes
    -----
    A run raises IndexError for a position that its prompts do not have. A TopK is decided with all features
    of the layer, so a run encodes all of them at the positions that change; others cost next to nothing.
    """
    _check.choice(how, "how", KINDS)
    if not isinstance(changes, Mapping):
        raise TypeError(f"changes must be a mapping from features to numbers, got {type(changes).__name__}")
    return {
        place_of(self, place): Change(self, how, _check.number(number, f"changes[{place!r:.40}]"))
        for place, number in changes.items()
    }


def place_of(transcoders: Transcoders, place: Any) -> SteeredFeature:
    """A key of `changes`."""
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
    return SteeredFeature(layer, feature, None if len(place) == 2 else _check.integer(place[2], "position"))


def steered_weights(self: Transcoders, model: Model, layer: int, features: np.ndarray) -> SteeredWeights:
    """What a run needs to change these features of a layer; ConfigError if the set does not fit the model."""
    self.check(model, weights=False)
    weights = CheckedWeights(self, model)
    w_enc, b_enc, threshold = weights.encoder(layer)
    rows = features
    if self.activation != "topk":
        w_enc, b_enc = np.ascontiguousarray(w_enc[features]), np.ascontiguousarray(b_enc[features])
        threshold = None if threshold is None else np.ascontiguousarray(threshold[features])
        rows = np.arange(len(features))
    return SteeredWeights(w_enc, b_enc, threshold, rows, weights.rows(layer, features))
