"""The options of a transcoder training: everything that decides its result, as one frozen value.

As in `training_options.py`, how the run is carried out is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import _check
from ..training import options_fields, schedules
from ..training.options_fields import check_range, turning_steps
from ..training.schedules import Constant, PerLayer, Schedule

AUX_K = 8  # see TranscoderOptions.aux_k
START_L0 = 16.0  # see TranscoderOptions.threshold
ACTIVATIONS = ("relu", "jump_relu", "topk")  # in the order of the core's numbers

_RATE, _PRICE = Constant(3e-3), Constant(1e-3)
_MOST = 1e15  # what a step of the core takes
_NUMBERS = {
    "eps": 1e-30,
    "clip": 0.0,
    "l0_rate": 0.0,
    "sharpness": 0.0,
    "bandwidth": 1e-9,
    "aux_weight": 0.0,
}


@dataclass(frozen=True)
class TranscoderOptions:
    """Options of `train_transcoders`. Where a schedule is asked for, a number means the same at every step.

    Outputs are divided by their standard deviation first, so that all layers have one scale: an activation of
    1 writes a vector as long as one standard deviation of one of its components. The loss of a layer is
        mean squared error / variance + sparsity * penalty + aux_weight * auxiliary loss.
    The penalty is the number of active features of "jump_relu" (Rajamanoharan et al. 2024, arXiv 2407.14435,
    with their straight-through gradient of the threshold), the sum of tanh(sharpness * activation) of "relu",
    and nothing of "topk" (Gao et al. 2024, arXiv 2406.04093). The auxiliary loss is Gao's: dead features, the
    aux_k strongest of them in a row, explain what the others leave; here with either sign, because the
    pre-activations of dead features are often negative everywhere. Decoder rows have length 1.
    Raises TypeError or ValueError that name the option.
    """

    steps: int
    """Optimiser steps, >= 1. Schedules are laid over this length."""
    n_features: int | tuple[int, ...] = 512
    """Features of a layer, >= 1, or one number for each layer."""
    activation: str = "jump_relu"
    """"jump_relu", "relu" or "topk"."""
    seed: int = 0
    """Seed of the first weights, 0..2^64-1. (Data have a seed of their own.)"""
    lr: Schedule = _RATE
    """Learning rate of AdamW, without decay; `schedules.Warmup` has warm-up and a fall."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's first and second moment, each in [0, 1)."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    clip: float = 1.0
    """Largest gradient norm of a layer; 0 switches clipping off."""
    top_k: int = 8
    """Active features of "topk", 1..n_features."""
    sparsity: Schedule = _PRICE
    """Weight of the penalty; with `l0` where it starts, afterwards scaled from layer to layer."""
    l0: Schedule | PerLayer | None = None
    """Active features per row that each layer is to have (`schedules.per_layer` where layers differ); None
    leaves `sparsity` as it is. The layer's weight is scaled by (mean l0 / l0)^l0_rate after each step."""
    l0_rate: float = 0.02
    """See l0."""
    sharpness: float = 1.0
    """Of the tanh in the penalty of "relu"."""
    bandwidth: float = 0.5
    """Thresholds of "jump_relu" learn from values within half of it."""
    threshold: float | tuple[float | None, ...] | None = None
    """Threshold of "jump_relu" at the start, or one for each layer; None for the one with which rows of the
    first text have START_L0 active features on average."""
    dead_after: int = 50
    """A feature that has not been active for so many steps is dead."""
    aux_k: int | None = None
    """Dead features that explain what is left of a row; 0 leaves them dead. None becomes AUX_K, or n_features
    where that is less."""
    aux_weight: float = 0.125
    """Weight of the auxiliary loss."""

    def __post_init__(self) -> None:
        self._set_counts()
        object.__setattr__(self, "seed", _check.seed(self.seed))
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r:.60}"
            )
        for name in ("lr", "sparsity", "l0"):
            value = getattr(self, name)
            if name == "l0" and (value is None or isinstance(value, PerLayer)):
                continue
            try:
                object.__setattr__(self, name, schedules.as_schedule(value))
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}: {error}") from error
        if self.l0 is not None and self.activation == "topk":
            raise ValueError("l0 is for relu and jump_relu; topk has as many active features as top_k says")
        self._check_l0()
        self._set_threshold()
        for name in ("lr", "sparsity"):
            check_range(name, getattr(self, name), self.steps, 0.0, _MOST)
        for name, low in _NUMBERS.items():
            object.__setattr__(self, name, _check.number(getattr(self, name), name, low, _MOST))
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers, got {self.betas!r:.60}")
        object.__setattr__(
            self, "betas", tuple(_check.number(b, "betas", 0.0, 0.9999999) for b in self.betas)
        )

    def _set_threshold(self) -> None:
        several = isinstance(self.threshold, (tuple, list))
        given = tuple(self.threshold) if several else (self.threshold,)
        values = [
            None if value is None else _check.number(value, "threshold", 1e-9, _MOST) for value in given
        ]
        object.__setattr__(self, "threshold", tuple(values) if several else values[0])

    def _set_counts(self) -> None:
        for name in ("steps", "top_k", "dead_after"):
            _whole(name, getattr(self, name), 1)
        if not isinstance(self.n_features, (tuple, list)):
            _whole("n_features", self.n_features, 1)
            counts = (self.n_features,)
        else:
            counts = tuple(_whole("n_features", n, 1) for n in self.n_features)
            object.__setattr__(self, "n_features", counts)
        if not counts:
            raise ValueError("n_features must have a number for each layer, got none")
        least = min(counts)
        if self.activation == "topk" and self.top_k > least:
            raise ValueError(f"top_k must be in 1..{least} (n_features), got {self.top_k}")
        if self.aux_k is None:
            object.__setattr__(self, "aux_k", min(AUX_K, least))
        if _whole("aux_k", self.aux_k, 0) > least:
            raise ValueError(f"aux_k must be in 0..{least} (n_features), got {self.aux_k}")

    def _check_l0(self) -> None:
        if self.l0 is None:
            return
        several = isinstance(self.n_features, tuple)
        n_layer = self.l0.n_layer if isinstance(self.l0, PerLayer) else len(self.n_features) if several else 1
        counts = self.n_features if several else (self.n_features,) * n_layer
        for step in sorted(turning_steps(self.l0, self.steps) - {self.steps}):
            for value, most in zip(self.l0_of(step, n_layer), counts):
                if value <= 0:
                    raise ValueError("l0 must stay above 0")
                if value > most:
                    raise ValueError(f"l0 must be at most n_features, got {value:g} of {most} at step {step}")

    def l0_of(self, step: int, n_layer: int) -> list[float] | None:
        """Active features that each layer is to have at `step`, or None."""
        return None if self.l0 is None else schedules.layer_values(self.l0, step, self.steps, n_layer)

    def threshold_of(self, layer: int) -> float | None:
        """Threshold of a layer at the start, None where it is to be found."""
        return self.threshold[layer] if isinstance(self.threshold, tuple) else self.threshold

    def features_of(self, n_layer: int) -> tuple[int, ...]:
        """Features of each of `n_layer` layers; ValueError if there are as many numbers as other layers."""
        if not isinstance(self.n_features, tuple):
            return (self.n_features,) * n_layer
        if len(self.n_features) != n_layer:
            raise ValueError(f"n_features has {len(self.n_features)} numbers, the model has {n_layer} layers")
        return self.n_features

    def check(self, n_layer: int) -> None:
        """ValueError unless what differs from layer to layer is for `n_layer` layers."""
        self.features_of(n_layer)
        self.l0_of(0, n_layer)
        if isinstance(self.threshold, tuple) and len(self.threshold) != n_layer:
            raise ValueError(f"threshold has {len(self.threshold)} numbers, the model has {n_layer} layers")

    def at(self, step: int) -> dict[str, Any]:
        """Arguments of the core's step at `step` (from 0), without those that differ from layer to layer."""
        return {
            "activation": ACTIVATIONS.index(self.activation),
            "top_k": self.top_k,
            "sharpness": self.sharpness,
            "bandwidth": self.bandwidth,
            "dead_after": self.dead_after,
            "aux_k": self.aux_k,
            "aux_weight": self.aux_weight,
            "lr": self.lr.at(step, self.steps),
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "eps": self.eps,
            "clip": self.clip,
        }

    def to_json(self) -> dict[str, Any]:
        """All options as JSON values; `from_json` reads them back."""
        return options_fields.to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TranscoderOptions:
        """The options whose `to_json` gave `data`. Raises ValueError or TypeError that name the option."""
        return cls(
            **options_fields.from_json(
                cls,
                data,
                "transcoder options",
                ("lr", "sparsity", "l0"),
                ("betas", "n_features", "threshold"),
            )
        )

    def difference(self, other: TranscoderOptions) -> str | None:
        """Name of the first option in which `other` differs, or None."""
        return options_fields.first_difference(self, other)


def _whole(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not low <= value < 2**31:
        raise ValueError(f"{name} must be in {low}..2^31-1, got {value}")
    return value
