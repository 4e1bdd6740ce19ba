"""The options of a training run: everything that decides its result, as one frozen value with a JSON form.

How the run is carried out (threads, where and how often it is saved) is not here: it changes no bit of the
result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from .. import _check
from . import schedules
from .options_fields import MOST, Options, checked, decays, integer, number, schedule, turning_steps
from .schedules import Constant, PerLayer, Schedule, value_at

_MOST_MICRO_BATCHES = 10**6  # of a step; all of them are in memory
_LOOKED_AT = 10_000  # steps, for a sum of schedules
_DROPOUT = ("entry_dropout", "head_dropout", "attn_out_dropout", "mlp_out_dropout")
_KIND_WEIGHTS = ("self_edge_weight", "previous_edge_weight", "first_edge_weight")
_LAYER_SCHEDULES = (*_DROPOUT, "gate_bias", "edge_weight", *_KIND_WEIGHTS)
_GATED = (
    "tau", "slack", "multiplier", "multiplier_min", "multiplier_max", "geco_rate", "geco_clip", "geco_ema",
    "geco_relative", "gate_noise", "gate_bias", "edge_weight", *_KIND_WEIGHTS, "constraint",
    "edges_per_token",
)  # fmt: skip
_CONSTRAINTS = ("training", "hard", "held-out", "edges")
_RATE = schedule(0.0, 0.999, per_layer=True)
_HEAD_RATE = schedule(0.0, 1.0, per_layer=True)
_KIND_WEIGHT = schedule(-MOST, MOST, optional=True, per_layer=True)


@dataclass(frozen=True)
class TrainingOptions(Options):
    """Options of a `Trainer`. Where a schedule is accepted, a number means the same at every step.

    The optimiser is AdamW: gradients of a step are clipped to the global norm `clip`; the decay is decoupled
    and applies to matrices only. Random numbers of dropout and of the gate's noise are functions of seed,
    step and place. Options from `tau` on are for gated models alone.

    Parameters
    ----------
    steps : int
        Optimiser steps of the whole run, at least 1. Schedules are laid over this length.
    seed : int, default 0
        Seed of dropout and the gate's noise, 0..2^64-1. (Data have a seed of their own.)
    accumulation : int, default 1
        Micro-batches whose gradients are added up in one optimiser step.
    parts : int, default 1
        Parts into which the sequences of a step are cut, in order, and those held out, so that processes can
        share them; see `Trainer`. The gradients of each part are summed up by themselves, and the sums added
        in an order that depends on `parts` alone. So bits depend on `parts`, and not on the number of
        processes. A process with several parts holds more arrays of the size of the weights, one for each
        doubling.
    lr : float or schedule, default 1e-3
        Learning rate; `Warmup` has warm-up and decay.
    betas : (float, float), default (0.9, 0.98)
        Decay of Adam's first and second moment, each in [0, 1).
    eps : float, default 1e-8
        Added to the root of the second moment.
    weight_decay : float, default 0.0
        Decoupled weight decay of arrays of two or more dimensions.
    clip : float, default 1.0
        Largest global gradient norm; 0 switches clipping off.
    entry_dropout : float, schedule or PerLayer, default 0
        Share of attention entries that are dropped at random, after the softmax and the gate. Here and below,
        rates are below 1, what is kept is divided by 1 - rate, and evaluation drops nothing.
    head_dropout : float, schedule or PerLayer, default 0
        Share of heads whose output is dropped, drawn for each sequence; at 1 all of them are, as if the
        layer had no attention.
    attn_out_dropout, mlp_out_dropout : float, schedule or PerLayer, default 0
        Share of values that are dropped of what attention, or an MLP, adds to the residual stream.
    tau : float or schedule, optional
        Largest cross-entropy (nats, with the noise if there is any) that the model may have; required for
        gated models.
    slack : float or schedule, default 0.0
        Nats added to tau: `tau` is the dense model's cross-entropy, `slack` what is given up for sparsity.
    multiplier : float, default 1.0
        Multiplier of the constraint at the first step (the paper's lambda).
    multiplier_min : float or schedule, default 0.03
        Smallest multiplier.
    multiplier_max : float or schedule, default 1.0
        Largest multiplier; without a cap, a tau below the noise floor drives it up without end.
    geco_rate : float, default 0.02
        The multiplier is scaled by ``exp(geco_rate * clipped constraint)`` after each step.
    geco_clip : float, default 1.0
        The constraint's moving average is clipped to +-geco_clip in that exponent.
    geco_ema : float, default 0.95
        Decay of the moving average, in [0, 1).
    geco_relative : bool, default True
        The constraint is CE / (tau + slack) - 1; False: CE - tau - slack, which needs a rate about 1/tau
        times as large.
    gate_noise : bool, default True
        Whether the gate has logistic noise while training. False: an entry is open where it is open in
        evaluation, and gradients pass the gate by the slope of its sigmoid as they do with the noise. It is
        for the end of training, once the gates are sparse: an entry whose gate is firmly closed hardly comes
        back.
    gate_bias : float, schedule or PerLayer, optional
        Added to the scores before the gate while training; None: the model's own gate_bias.
    edge_weight : float, schedule or PerLayer, default 1.0
        Price of an edge in the sparsity loss.
    self_edge_weight, previous_edge_weight, first_edge_weight : float, schedule or PerLayer, optional
        Price of edges from a token to itself, to the token before it, and to the first token; None: as
        `edge_weight`. An edge of several kinds has the price of the first of them. At 0, edges of that kind
        cost nothing; with `Config.self_closed` there are no self edges.
    constraint : {"training", "hard", "held-out", "edges"}, default "training"
        What moves the multiplier. "training": the cross-entropy of the step, with noise and dropout, against
        tau. "hard": that of the same sequences with hard gates and without dropout, which takes a forward
        pass more. "held-out": that of the last evaluation, see `evaluate_every`. "edges": the open edges of
        the step for each token, against `edges_per_token`, in place of a largest cross-entropy.
    edges_per_token : float or schedule, optional
        The number of open edges of all heads for each token that constraint="edges" aims at; above 0. It is
        compared with the gates of the training step: with noise more of them are open than in evaluation,
        above all at long contexts, so a small number needs gate_noise=False.
    evaluate_every : int, default 0
        Steps between two evaluations on the held-out sequences of the `Trainer`; 0: none.

    Raises
    ------
    TypeError, ValueError
        The message names the option.

    Notes
    -----
    The loss of a gated model is ``(E/N + multiplier * (CE - tau - slack)) / (1 + multiplier)``, where E/N is
    the expected share of open edges, weighted by `edge_weight`.

    References
    ----------
    arXiv 2512.05865; the multiplier is GECO's (Rezende & Viola 2018, arXiv 1810.00597).
    """

    seed: int = field(default=0, metadata=checked(lambda value, name: _check.seed(value)))
    accumulation: int = field(default=1, metadata=integer(1, _MOST_MICRO_BATCHES))
    parts: int = field(default=1, metadata=integer(1, _MOST_MICRO_BATCHES))
    lr: float | Schedule = field(default=Constant(1e-3), metadata=schedule(0.0))
    betas: tuple[float, float] = field(default=(0.9, 0.98), metadata=checked(decays))
    eps: float = field(default=1e-8, metadata=number(1e-30))
    weight_decay: float = field(default=0.0, metadata=number(0.0))
    clip: float = field(default=1.0, metadata=number(0.0, math.inf))
    entry_dropout: float | Schedule | PerLayer = field(default=Constant(0.0), metadata=_RATE)
    head_dropout: float | Schedule | PerLayer = field(default=Constant(0.0), metadata=_HEAD_RATE)
    attn_out_dropout: float | Schedule | PerLayer = field(default=Constant(0.0), metadata=_RATE)
    mlp_out_dropout: float | Schedule | PerLayer = field(default=Constant(0.0), metadata=_RATE)
    tau: float | Schedule | None = field(default=None, metadata=schedule(-MOST / 2, MOST / 2, optional=True))
    slack: float | Schedule = field(default=Constant(0.0), metadata=schedule(-MOST / 2, MOST / 2))
    multiplier: float = field(default=1.0, metadata=number(0.0))
    multiplier_min: float | Schedule = field(default=Constant(0.03), metadata=schedule(0.0))
    multiplier_max: float | Schedule = field(default=Constant(1.0), metadata=schedule(0.0))
    geco_rate: float = field(default=0.02, metadata=number(0.0))
    geco_clip: float = field(default=1.0, metadata=number(0.0))
    geco_ema: float = field(
        default=0.95, metadata=checked(lambda value, name: _check.proper_fraction(value, name, zero=True))
    )
    geco_relative: bool = field(default=True, metadata=checked(_check.flag))
    gate_noise: bool = field(default=True, metadata=checked(_check.flag))
    gate_bias: float | Schedule | PerLayer | None = field(
        default=None, metadata=schedule(-MOST, MOST, optional=True, per_layer=True)
    )
    edge_weight: float | Schedule | PerLayer = field(
        default=Constant(1.0), metadata=schedule(-MOST, MOST, per_layer=True)
    )
    self_edge_weight: float | Schedule | PerLayer | None = field(default=None, metadata=_KIND_WEIGHT)
    previous_edge_weight: float | Schedule | PerLayer | None = field(default=None, metadata=_KIND_WEIGHT)
    first_edge_weight: float | Schedule | PerLayer | None = field(default=None, metadata=_KIND_WEIGHT)
    constraint: str = field(
        default="training", metadata=checked(lambda value, name: _check.choice(value, name, _CONSTRAINTS))
    )
    edges_per_token: float | Schedule | None = field(default=None, metadata=schedule(1e-6, optional=True))
    evaluate_every: int = field(default=0, metadata=integer(0, schedules.MOST_STEPS))

    _what: ClassVar[str] = "training options"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_limits()

    def _check_limits(self) -> None:
        low, high = self.multiplier_min, self.multiplier_max
        for step in turning_steps(low, self.steps) | turning_steps(high, self.steps):
            if value_at(low, step, self.steps) > value_at(high, step, self.steps):
                raise ValueError(f"multiplier_min must not be above multiplier_max, as it is at step {step}")

    def check(self, gated: bool, n_layer: int | None = None) -> None:
        """Check that these options fit a model.

        Parameters
        ----------
        gated : bool
            Whether the model is gated.
        n_layer : int, optional
            Its layers; None: schedules per layer are not checked.

        Raises
        ------
        ValueError
            The message names the option.
        """
        for name in _LAYER_SCHEDULES:
            schedule = getattr(self, name)
            if n_layer is not None and isinstance(schedule, PerLayer):
                schedule.at(0, self.steps, n_layer)
        if gated:
            self._check_target()
            if (
                self.constraint != "edges"
                and self.geco_relative
                and min(map(self._constraint, self._steps_of_constraint())) <= 0
            ):
                raise ValueError("tau + slack must stay above 0 while geco_relative is True")
            return
        defaults = {field.name: field.default for field in fields(self)}
        changed = [name for name in _GATED if getattr(self, name) != defaults[name]]
        if changed:
            raise ValueError(f"{changed[0]} is for gated models, this one is dense (config.gated is False)")

    def _check_target(self) -> None:
        """The target of the constraint is given, and no other."""
        if self.constraint == "edges":
            if self.edges_per_token is None:
                raise ValueError("edges_per_token is required for constraint='edges'")
            if self.tau is not None:
                raise ValueError("tau is a largest cross-entropy, which constraint='edges' does not have")
        elif self.edges_per_token is not None:
            raise ValueError(f"edges_per_token is for constraint='edges', got {self.constraint!r}")
        elif self.tau is None:
            raise ValueError("tau, the largest cross-entropy in nats, is required for a gated model")
        if self.constraint == "held-out" and not self.evaluate_every:
            raise ValueError("constraint='held-out' needs evaluate_every, the steps between two evaluations")

    def limit(self, step: int) -> float:
        """The largest cross-entropy at a step, tau with slack.

        Parameters
        ----------
        step : int
            Optimiser step, from 0.

        Returns
        -------
        float
            In nats; infinity without tau.
        """
        return math.inf if self.tau is None else self._constraint(min(step, self.steps - 1))

    def _steps_of_constraint(self) -> set[int]:
        """Steps at which the smallest constraint is looked for: all of a short run, of a long one those where
        a part of it turns and some thousands between them."""
        turning = turning_steps(self.tau, self.steps) | turning_steps(self.slack, self.steps)
        every = range(0, self.steps, -(-self.steps // _LOOKED_AT))
        return {step for step in turning if step < self.steps}.union(every)

    def _constraint(self, step: int) -> float:
        tau = 0.0 if self.tau is None else value_at(self.tau, step, self.steps)
        return tau + value_at(self.slack, step, self.steps)

    def at(self, step: int, n_layer: int, gated: bool, gate_bias: float) -> dict[str, Any]:
        """Arguments of the engine's step.

        Parameters
        ----------
        step : int
            Optimiser step, from 0.
        n_layer : int
            Layers of the model.
        gated : bool
            Whether the model is gated.
        gate_bias : float
            The model's own gate_bias.

        Returns
        -------
        dict of str to value
            Keyword arguments; those of the gate only if `gated`.
        """
        arguments: dict[str, Any] = {
            "lr": value_at(self.lr, step, self.steps),
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "clip": self.clip,
            "seed": self.seed,
        }
        arguments |= {name: self._layers(name, step, n_layer) for name in _DROPOUT}
        if gated:
            bias = gate_bias if self.gate_bias is None else self.gate_bias
            arguments |= {
                "gate_noise": self.gate_noise,
                "gate_bias": schedules.layer_values(bias, step, self.steps, n_layer),
                **{name: self._layers(name, step, n_layer) for name in ("edge_weight", *_KIND_WEIGHTS)},
                "tau": self._constraint(step),
                "geco_rate": self.geco_rate,
                "geco_clip": self.geco_clip,
                "geco_ema": self.geco_ema,
                "geco_relative": self.geco_relative,
                "constraint": self.constraint,
                # The limits are applied after the update, to the multiplier of the step that follows.
                "lambda_min": value_at(self.multiplier_min, step + 1, self.steps),
                "lambda_max": value_at(self.multiplier_max, step + 1, self.steps),
            }
            if self.edges_per_token is not None:
                arguments["edges_per_token"] = value_at(self.edges_per_token, step, self.steps)
        return arguments

    def _layers(self, name: str, step: int, n_layer: int) -> list[float]:
        """Values of an option that may differ from layer to layer; None: those of `edge_weight`."""
        value = getattr(self, name)
        value = self.edge_weight if value is None else value
        return schedules.layer_values(value, step, self.steps, n_layer)

    def first_multiplier(self) -> float:
        """The multiplier of step 0.

        Returns
        -------
        float
            `multiplier` within its limits at that step.
        """
        low, high = (value_at(limit, 0, self.steps) for limit in (self.multiplier_min, self.multiplier_max))
        return min(max(self.multiplier, low), high)
