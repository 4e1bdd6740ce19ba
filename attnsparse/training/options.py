"""The options of a training run: everything that decides its result, as one frozen value with a JSON form.

How the run is carried out (threads, where and how often it is saved) is not here: it changes no bit of the
result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .. import _check
from . import options_fields, schedules
from .options_fields import check_range, turning_steps
from .schedules import Constant, PerLayer, Schedule

# Defaults; frozen, so one value may serve all.
_RATE, _NOTHING, _LEAST, _ONE = Constant(1e-3), Constant(0.0), Constant(0.03), Constant(1.0)
_SCHEDULES = ("lr", "slack", "multiplier_min", "multiplier_max")
_LAYER_SCHEDULES = ("gate_bias", "edge_weight")
# What a step takes; larger values would only make infinity of finite weights.
_MOST = 1e15
_NUMBERS = {
    "eps": (1e-30, _MOST),
    "weight_decay": (0.0, _MOST),
    "clip": (0.0, math.inf),
    "multiplier": (0.0, _MOST),
    "geco_rate": (0.0, _MOST),
    "geco_clip": (0.0, _MOST),
    "geco_ema": (0.0, 1.0),
}
_RANGES = {
    "lr": (0.0, _MOST),
    "tau": (-_MOST / 2, _MOST / 2),
    "slack": (-_MOST / 2, _MOST / 2),
    "multiplier_min": (0.0, _MOST),
    "multiplier_max": (0.0, _MOST),
    "gate_bias": (-_MOST, _MOST),
    "edge_weight": (-_MOST, _MOST),
}
_MOST_MICRO_BATCHES = 10**6  # of a step; all of them are in memory
_LOOKED_AT = 10_000  # steps, for a sum of schedules
_GATED = (
    "tau", "slack", "multiplier", "multiplier_min", "multiplier_max", "geco_rate", "geco_clip", "geco_ema",
    "geco_relative", "gate_bias", "edge_weight",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a `Trainer`. Where a schedule is asked for, a number means the same at every step.

    The optimiser is AdamW: gradients of a step are clipped to the global norm `clip` (0: not clipped), the
    decay is decoupled and touches matrices only. Options from `tau` on are for gated models alone and follow
    arXiv 2512.05865 with the multiplier of GECO (Rezende & Viola 2018). Their loss is
        (E/N + multiplier * (CE - tau - slack)) / (1 + multiplier),
    E/N the expected share of open edges, weighted by `edge_weight`.
    Raises TypeError or ValueError that name the option.
    """

    steps: int
    """Optimiser steps of the whole run, >= 1. Schedules are laid over this length."""
    seed: int = 0
    """Seed of the gate's noise, 0..2^64-1. (Data have a seed of their own.)"""
    accumulation: int = 1
    """Micro-batches whose gradients are added up in one optimiser step."""
    lr: Schedule = _RATE
    """Learning rate; `schedules.Warmup` has warm-up and decay."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of Adam's first and second moment, each in [0, 1)."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay of arrays of two or more dimensions."""
    clip: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    tau: Schedule | None = None
    """Cross-entropy (nats, with the noise on) that the model may have; needed for gated models."""
    slack: Schedule = _NOTHING
    """Added to tau: the dense model's cross-entropy goes into `tau`, what is given up for sparsity in
    here."""
    multiplier: float = 1.0
    """Multiplier of the constraint at the first step (the paper's lambda)."""
    multiplier_min: Schedule = _LEAST
    """Smallest multiplier."""
    multiplier_max: Schedule = _ONE
    """Largest multiplier; without a cap a tau below the noise floor drives it up without end."""
    geco_rate: float = 0.02
    """The multiplier is scaled by exp(geco_rate * clipped constraint) after each step."""
    geco_clip: float = 1.0
    """The constraint's moving average is clipped to +-geco_clip in that exponent."""
    geco_ema: float = 0.95
    """Decay of the moving average, in [0, 1)."""
    geco_relative: bool = True
    """Constraint as CE / (tau + slack) - 1; False: CE - tau - slack, which wants a rate about 1/tau
    larger."""
    gate_bias: Schedule | PerLayer | None = None
    """Added to the scores before the gate while training; None: the model's own gate_bias."""
    edge_weight: Schedule | PerLayer = _ONE
    """Price of an edge in the sparsity loss."""

    def __post_init__(self) -> None:
        for name, most in (("steps", schedules.MOST_STEPS), ("accumulation", _MOST_MICRO_BATCHES)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
            if not 1 <= value <= most:
                raise ValueError(f"{name} must be in 1..{most:,}, got {value!r:.60}")
        object.__setattr__(self, "seed", _check.seed(self.seed))
        for name in _SCHEDULES + _LAYER_SCHEDULES + ("tau",):
            self._set_schedule(name)
        for name, (low, high) in _NUMBERS.items():
            object.__setattr__(self, name, _check.number(getattr(self, name), name, low, high))
        if not isinstance(self.geco_relative, bool):
            raise TypeError(f"geco_relative must be True or False, got {type(self.geco_relative).__name__}")
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers, got {self.betas!r:.60}")
        object.__setattr__(
            self, "betas", tuple(_check.number(beta, "betas", 0.0, 0.9999999) for beta in self.betas)
        )
        if self.geco_ema >= 1:
            raise ValueError("geco_ema must be below 1")
        for name, (low, high) in _RANGES.items():
            check_range(name, getattr(self, name), self.steps, low, high)
        self._check_limits()

    def _set_schedule(self, name: str) -> None:
        """Turn a number into a Constant; PerLayer is taken where layers may differ."""
        value = getattr(self, name)
        if (value is None and name in ("tau", "gate_bias")) or (
            isinstance(value, PerLayer) and name in _LAYER_SCHEDULES
        ):
            return
        try:
            object.__setattr__(self, name, schedules.as_schedule(value))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error

    def _check_limits(self) -> None:
        low, high = self.multiplier_min, self.multiplier_max
        for step in turning_steps(low, self.steps) | turning_steps(high, self.steps):
            if low.at(step, self.steps) > high.at(step, self.steps):
                raise ValueError(f"multiplier_min must not be above multiplier_max, as it is at step {step}")

    def check(self, gated: bool, n_layer: int | None = None) -> None:
        """Raise ValueError if these options do not fit a gated (or, False, a dense) model of `n_layer`
        layers."""
        for name in _LAYER_SCHEDULES:
            schedule = getattr(self, name)
            if n_layer is not None and isinstance(schedule, PerLayer):
                schedule.at(0, self.steps, n_layer)
        if gated:
            if self.tau is None:
                raise ValueError("tau is needed to train a gated model: the cross-entropy that it may have")
            if self.geco_relative and min(map(self._constraint, self._steps_of_constraint())) <= 0:
                raise ValueError("tau + slack must stay above 0 while geco_relative is True")
            return
        defaults = {field.name: field.default for field in fields(self)}
        changed = [name for name in _GATED if getattr(self, name) != defaults[name]]
        if changed:
            raise ValueError(f"{changed[0]} is for gated models, this one is dense (config.gated is False)")

    def _steps_of_constraint(self) -> set[int]:
        """Steps at which the smallest constraint is looked for: all of a short run, of a long one those where
        a part of it turns and some thousands between them."""
        turning = turning_steps(self.tau, self.steps) | turning_steps(self.slack, self.steps)
        every = range(0, self.steps, -(-self.steps // _LOOKED_AT))
        return {step for step in turning if step < self.steps}.union(every)

    def _constraint(self, step: int) -> float:
        return self.tau.at(step, self.steps) + self.slack.at(step, self.steps)

    def at(self, step: int, n_layer: int, gated: bool, gate_bias: float) -> dict[str, Any]:
        """Arguments of the engine's step for optimiser step `step` (from 0); gate_bias is the model's own."""
        arguments: dict[str, Any] = {
            "lr": self.lr.at(step, self.steps),
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "clip": self.clip,
            "seed": self.seed,
        }
        if gated:
            bias = Constant(gate_bias) if self.gate_bias is None else self.gate_bias
            arguments |= {
                "gate_bias": schedules.layer_values(bias, step, self.steps, n_layer),
                "edge_weight": schedules.layer_values(self.edge_weight, step, self.steps, n_layer),
                "tau": self._constraint(step),
                "geco_rate": self.geco_rate,
                "geco_clip": self.geco_clip,
                "geco_ema": self.geco_ema,
                "geco_relative": self.geco_relative,
                # The limits are applied after the update, to the multiplier of the step that follows.
                "lambda_min": self.multiplier_min.at(step + 1, self.steps),
                "lambda_max": self.multiplier_max.at(step + 1, self.steps),
            }
        return arguments

    def first_multiplier(self) -> float:
        """Multiplier of step 0: `multiplier` within its limits there."""
        low, high = self.multiplier_min.at(0, self.steps), self.multiplier_max.at(0, self.steps)
        return min(max(self.multiplier, low), high)

    def to_json(self) -> dict[str, Any]:
        """All options as JSON values; `from_json` reads them back."""
        return options_fields.to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingOptions:
        """The options whose `to_json` gave `data`. Raises ValueError or TypeError that name the option."""
        return cls(
            **options_fields.from_json(
                cls, data, "training options", (*_SCHEDULES, *_LAYER_SCHEDULES, "tau"), ("betas",)
            )
        )

    def difference(self, other: TrainingOptions) -> str | None:
        """Name of the first option in which `other` differs, or None."""
        return options_fields.first_difference(self, other)
