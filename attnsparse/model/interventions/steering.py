"""Features of transcoders that `patch=` changes in a run of the model.

`Transcoders.steer` makes the items. The core reads each feature's activation in the run that it is part of,
and adds the change times what the feature writes to the outputs of the MLPs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from ..._core_types import Interventions, Steering
from ..batch import Batch
from .compile import Ablate, Patch, compile_interventions, place_of

if TYPE_CHECKING:
    from ..model import Model

KINDS = ("add", "set", "scale")  #: in the order of `asp_steering_kind` in csrc/asp_transcoder.h


class SteeredFeature(NamedTuple):
    """A feature in a patch. position None: at all positions."""

    layer: int
    feature: int
    position: int | None = None


class SteeredWeights(NamedTuple):
    """What the core needs of a layer for n changed features."""

    w_enc: np.ndarray  #: real [m, E]; m = n, or all features of the layer for a TopK
    b_enc: np.ndarray  #: real [m]
    threshold: np.ndarray | None  #: real [m]
    rows: np.ndarray  #: int64 [n]: which rows of the encoder the n features have
    decoder: np.ndarray  #: real [n, W, E]


class Steers(Protocol):
    """What a change needs of the transcoders that made it."""

    activation: str
    top_k: int | None
    input_hook: str

    def _steered_weights(self, model: Model, layer: int, features: np.ndarray) -> SteeredWeights:
        """Encoder and decoder of some features of a layer; checks the set against the model."""
        ...


@dataclass(frozen=True, eq=False)
class Change:
    """What becomes of a feature's activation."""

    transcoders: Steers
    how: str
    number: float


class Changes(NamedTuple):
    """What `ablate=` and `patch=` ask of one pass, as the core takes it; None: nothing of that kind."""

    interventions: Interventions | None
    steering: Steering | None


def compile_changes(
    model: Model,
    batch: Batch,
    ablate: Ablate | None,
    patch: Patch | None,
    n_new: int = 0,
    n_samples: int = 1,
) -> Changes:
    """What the core takes for `Model.run(ablate=, patch=)`.

    n_new, n_samples: of `Model.generate`, the tokens that each prompt will get and the texts of each prompt.
    """
    steered: dict[SteeredFeature, Change] = {}
    if isinstance(patch, Mapping):
        steered = {item: value for item, value in patch.items() if isinstance(item, SteeredFeature)}
        patch = {item: value for item, value in patch.items() if item not in steered} if steered else patch
    interventions = compile_interventions(model, batch, ablate, patch or None, n_new, n_samples)
    return Changes(interventions, _steering(model, batch, steered, n_new) if steered else None)


def _steering(model: Model, batch: Batch, steered: Mapping[SteeredFeature, Change], n_new: int) -> Steering:
    transcoders = next(iter(steered.values())).transcoders
    if any(change.transcoders is not transcoders for change in steered.values()):
        raise ValueError("features of one set of transcoders can be steered at once, got those of several")
    layers: dict[int, list[int]] = {}
    for item in steered:
        layers.setdefault(item.layer, []).append(item.feature)
    wanted = {layer: np.unique(np.array(layers[layer], np.int64)) for layer in sorted(layers)}
    weights = [transcoders._steered_weights(model, layer, features) for layer, features in wanted.items()]
    at, kind, number = _places(batch, steered, wanted, n_new)
    thresholds = [part.threshold for part in weights if part.threshold is not None]
    return Steering(
        transcoders.activation,
        transcoders.top_k or 0,
        transcoders.input_hook == "hook_resid_mid",
        np.array(
            [
                (layer, len(part.rows), len(part.w_enc), part.decoder.shape[1])
                for layer, part in zip(wanted, weights, strict=True)
            ],
            np.int64,
        ),
        _joined([part.w_enc for part in weights]),
        _joined([part.b_enc for part in weights]),
        _joined(thresholds) if thresholds else None,
        _joined([part.rows for part in weights]),
        _joined([part.decoder.reshape(-1, model.config.d_model) for part in weights]),
        at,
        kind,
        number.astype(model.dtype),
    )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """One array, without a copy of a single one."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _places(
    batch: Batch, steered: Mapping[SteeredFeature, Change], wanted: Mapping[int, np.ndarray], n_new: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(layer, prompt, position, feature's number among those wanted) [n, 4], kinds [n] and numbers [n].

    Sorted, each place once: the last change given counts.
    """
    rows: list[np.ndarray] = []
    kinds: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    slots = {layer: {feature: i for i, feature in enumerate(own.tolist())} for layer, own in wanted.items()}
    for item, change in steered.items():
        slot = slots[item.layer][item.feature]
        for prompt, length in enumerate(batch.lengths.tolist()):
            whole = item.position is None
            at = (
                np.arange(length + n_new)
                if whole
                else np.array([place_of(batch, prompt, item.position, n_new)])
            )
            place = np.empty((len(at), 4), np.int64)
            place[:, 0], place[:, 1], place[:, 2], place[:, 3] = item.layer, prompt, at, slot
            rows.append(place)
            kinds.append(np.full(len(at), KINDS.index(change.how), np.int32))
            numbers.append(np.full(len(at), float(change.number)))
    places, kind, number = map(np.concatenate, (rows, kinds, numbers))
    _, last = np.unique(places[::-1], axis=0, return_index=True)  # sorts as well
    keep = len(places) - 1 - last
    return np.ascontiguousarray(places[keep]), kind[keep], number[keep]
