"""The options of a transcoder training: everything that decides its result, as one frozen value.

As in `training/options.py`, how the run is carried out is not here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .. import _check
from ..training import schedules
from ..training.options_fields import (
    MOST,
    Options,
    checked,
    decays,
    integer,
    number,
    schedule,
    turning_steps,
)
from ..training.schedules import Constant, PerLayer, Schedule, value_at

AUX_K = 8  # see TranscoderOptions.aux_k
START_L0 = 16.0  # see TranscoderOptions.threshold
ACTIVATIONS = ("relu", "jump_relu", "topk")  # in the order of the core's numbers
_MOST_COUNT = 2**31 - 1


def _counts(value: Any, name: str) -> int | tuple[int, ...]:
    """A number of features, or one for each layer."""
    if not isinstance(value, (tuple, list)):
        return _check.integer(value, name, 1, _MOST_COUNT)
    if not value:
        raise ValueError(f"{name} must have a number for each layer, got none")
    return tuple(_check.integer(one, name, 1, _MOST_COUNT) for one in value)


def _threshold(value: Any, name: str) -> float | tuple[float | None, ...] | None:
    """A threshold above 0 or None, or one for each layer."""
    if isinstance(value, (tuple, list)):
        return tuple(None if one is None else _check.number(one, name, 1e-9, MOST) for one in value)
    return None if value is None else _check.number(value, name, 1e-9, MOST)


@dataclass(frozen=True)
class TranscoderOptions(Options):
    """Options of `train_transcoders`. Where a schedule is accepted, a number means the same at every step.

    Parameters
    ----------
    steps : int
        Optimiser steps of the whole run, at least 1. Schedules are laid over this length.
    n_features : int or sequence of int, default 512
        Features F of a layer, at least 1, or one number for each layer.
    cross_layer : bool, default False
        Train one cross-layer transcoder, whose features write to their own and all later layers, instead of
        one transcoder for each layer.
    activation : {"jump_relu", "relu", "topk"}, default "jump_relu"
        Activation of the features.
    seed : int, default 0
        Seed of the first weights, 0..2^64-1. (Data have a seed of their own.)
    lr : float or schedule, default 3e-3
        Learning rate of AdamW, without decay; `Warmup` has warm-up and a fall.
    betas : (float, float), default (0.9, 0.999)
        Decay of Adam's first and second moment, each in [0, 1).
    eps : float, default 1e-8
        Added to the root of the second moment.
    clip : float, default 1.0
        Largest gradient norm of a layer; 0 switches clipping off.
    top_k : int, default 8
        Active features of "topk", 1..n_features.
    sparsity : float or schedule, default 1e-3
        Weight of the penalty. With `l0`, the weight at the start, from which each layer's own is scaled.
    l0 : float, schedule or PerLayer, optional
        Active features per row that each layer is to have; None leaves `sparsity` as it is. The layer's
        weight is multiplied by ``(mean l0 / l0)**l0_rate`` after each step.
    l0_rate : float, default 0.02
        See `l0`.
    sharpness : float, default 1.0
        Of the tanh in the penalty of "relu".
    bandwidth : float, default 0.5
        Thresholds of "jump_relu" learn from values within half of it.
    threshold : float or sequence of float or None, optional
        Threshold of "jump_relu" at the start, or one for each layer; None: the one with which rows of the
        first text have 16 active features on average.
    dead_after : int, default 50
        A feature that has not been active for this many steps is dead.
    aux_k : int, optional
        Number of dead features that explain what is left of a row; 0 leaves them dead. None: 8, or n_features
        if that is less.
    aux_weight : float, default 0.125
        Weight of the auxiliary loss.

    Raises
    ------
    TypeError, ValueError
        The message names the option.

    Notes
    -----
    Outputs are divided by their standard deviation first, so that all layers have one scale: an activation of
    1 writes a vector as long as one standard deviation of one of its components. Decoder rows have length 1.
    The loss of a layer is::

        mean squared error / variance + sparsity * penalty + aux_weight * auxiliary loss

    and that of a cross-layer transcoder [3]_ is the sum over all layers, whose outputs are reconstructed
    together: its `l0`, `top_k` and thresholds are those of the features of a layer, its errors those of a
    layer's output.
    The penalty is the number of active features of "jump_relu", with the straight-through gradient of the
    threshold [1]_, the sum of ``tanh(sharpness * activation)`` of "relu", and 0 for "topk" [2]_. In the
    auxiliary loss, also of [2]_, the `aux_k` strongest dead features of a row explain what the others leave;
    here with either sign, because the pre-activations of dead features are often negative everywhere.

    References
    ----------
    .. [1] Rajamanoharan et al., "Jumping Ahead", 2024, arXiv 2407.14435.
    .. [2] Gao et al., "Scaling and evaluating sparse autoencoders", 2024, arXiv 2406.04093.
    .. [3] Ameisen et al., "Circuit Tracing", 2025, transformer-circuits.pub.
    """

    n_features: int | tuple[int, ...] = field(default=512, metadata=checked(_counts))
    cross_layer: bool = field(default=False, metadata=checked(_check.flag))
    activation: str = field(
        default="jump_relu", metadata=checked(lambda value, name: _check.choice(value, name, ACTIVATIONS))
    )
    seed: int = field(default=0, metadata=checked(lambda value, name: _check.seed(value)))
    lr: float | Schedule = field(default=Constant(3e-3), metadata=schedule(0.0))
    betas: tuple[float, float] = field(default=(0.9, 0.999), metadata=checked(decays))
    eps: float = field(default=1e-8, metadata=number(1e-30))
    clip: float = field(default=1.0, metadata=number(0.0))
    top_k: int = field(default=8, metadata=integer(1, _MOST_COUNT))
    sparsity: float | Schedule = field(default=Constant(1e-3), metadata=schedule(0.0))
    l0: float | Schedule | PerLayer | None = field(
        default=None, metadata=schedule(-math.inf, math.inf, optional=True, per_layer=True)
    )
    l0_rate: float = field(default=0.02, metadata=number(0.0))
    sharpness: float = field(default=1.0, metadata=number(0.0))
    bandwidth: float = field(default=0.5, metadata=number(1e-9))
    threshold: float | tuple[float | None, ...] | None = field(default=None, metadata=checked(_threshold))
    dead_after: int = field(default=50, metadata=integer(1, _MOST_COUNT))
    aux_k: int | None = field(
        default=None,
        metadata=checked(
            lambda value, name: None if value is None else _check.integer(value, name, 0, _MOST_COUNT)
        ),
    )
    aux_weight: float = field(default=0.125, metadata=number(0.0))

    _what: ClassVar[str] = "transcoder options"

    def __post_init__(self) -> None:
        super().__post_init__()
        least = min(self.n_features) if isinstance(self.n_features, tuple) else self.n_features
        if self.activation == "topk" and self.top_k > least:
            raise ValueError(f"top_k must be in 1..{least} (n_features), got {self.top_k}")
        if self.aux_k is None:
            object.__setattr__(self, "aux_k", min(AUX_K, least))
        elif self.aux_k > least:
            raise ValueError(f"aux_k must be in 0..{least} (n_features), got {self.aux_k}")
        if self.l0 is not None and self.activation == "topk":
            raise ValueError("l0 is for relu and jump_relu; topk has as many active features as top_k says")
        self._check_l0()

    def _check_l0(self) -> None:
        if self.l0 is None:
            return
        if isinstance(self.n_features, tuple):
            counts = self.n_features
        else:
            counts = (self.n_features,) * (self.l0.n_layer if isinstance(self.l0, PerLayer) else 1)
        n_layer = self.l0.n_layer if isinstance(self.l0, PerLayer) else len(counts)
        for step in sorted(turning_steps(self.l0, self.steps) - {self.steps}):
            for value, most in zip(self.l0_of(step, n_layer) or (), counts):
                if value <= 0:
                    raise ValueError(f"l0 must stay above 0, is {value:g} at step {step}")
                if value > most:
                    raise ValueError(f"l0 must be at most n_features, got {value:g} of {most} at step {step}")

    def l0_of(self, step: int, n_layer: int) -> list[float] | None:
        """The number of active features that each layer is to have at a step.

        Parameters
        ----------
        step : int
            Optimiser step, from 0.
        n_layer : int
            Layers of the model.

        Returns
        -------
        list of float, or None
            `n_layer` values; None without `l0`.
        """
        return None if self.l0 is None else schedules.layer_values(self.l0, step, self.steps, n_layer)

    def threshold_of(self, layer: int) -> float | None:
        """The threshold of a layer at the start.

        Parameters
        ----------
        layer : int
            Counted from 0.

        Returns
        -------
        float or None
            None if it is to be found.
        """
        return self.threshold[layer] if isinstance(self.threshold, tuple) else self.threshold

    def features_of(self, n_layer: int) -> tuple[int, ...]:
        """The number of features of each layer.

        Parameters
        ----------
        n_layer : int
            Layers of the model.

        Returns
        -------
        tuple of int
            `n_layer` numbers.

        Raises
        ------
        ValueError
            If `n_features` has another number of layers.
        """
        if not isinstance(self.n_features, tuple):
            return (self.n_features,) * n_layer
        if len(self.n_features) != n_layer:
            raise ValueError(f"n_features has {len(self.n_features)} numbers, the model has {n_layer} layers")
        return self.n_features

    def check(self, n_layer: int) -> None:
        """Check that options that differ from layer to layer fit a model.

        Parameters
        ----------
        n_layer : int
            Layers of the model.

        Raises
        ------
        ValueError
            If an option has another number of layers; the message names it.
        """
        self.features_of(n_layer)
        self.l0_of(0, n_layer)
        if isinstance(self.threshold, tuple) and len(self.threshold) != n_layer:
            raise ValueError(f"threshold has {len(self.threshold)} numbers, the model has {n_layer} layers")

    def at(self, step: int) -> dict[str, Any]:
        """Arguments of the core's step, without those that differ from layer to layer.

        Parameters
        ----------
        step : int
            Optimiser step, from 0.

        Returns
        -------
        dict of str to value
            Keyword arguments.
        """
        return {
            "activation": ACTIVATIONS.index(self.activation),
            "top_k": self.top_k,
            "sharpness": self.sharpness,
            "bandwidth": self.bandwidth,
            "dead_after": self.dead_after,
            "aux_k": self.aux_k,
            "aux_weight": self.aux_weight,
            "lr": value_at(self.lr, step, self.steps),
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "eps": self.eps,
            "clip": self.clip,
        }
