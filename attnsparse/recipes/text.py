"""The recipe "text": a dense model of real text, a control trained on, and a sparse twin of as many steps.

The dense model is trained at a level learning rate until its cross-entropy on held-out text no longer falls,
first on short windows, in which attention learns several times faster, then on long ones, for which its
position embeddings are repeated as in Longformer (Beltagy et al. 2020, arXiv 2004.05150); then with a falling
rate. From there the control is trained further without a gate, and the twin with one, for as many steps on
the same text in the same order at the same learning rates. What the twin may lose is counted from the
control: the multiplier of its constraint follows the cross-entropy of held-out windows, with hard gates,
against that of the control on the same windows after as many steps. A learning rate that is still high costs
both as much, and so it moves no multiplier. Gates have noise in the first stage, in which they are chosen;
in the others they are hard, as in evaluation.

An eighth of the held-out windows steers: it decides when the dense model is done and moves the multiplier.
What is reported is measured on the others alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _check
from ..model.config import Config
from ..model.model import Model
from ..training import schedules
from ..training.options import TrainingOptions
from ..training.text import TextData
from ..training.trainer import Trainer
from . import cards
from .job import CHECKPOINTS, RecipeJob, SharedSettings, gated_twin, joined_history, write_history
from .text_evaluation import Mean, Measured, mean, measure
from .together import Leader

DENSE, CONTROL, SPARSE = MODELS = "text-dense", "text-control", "text-sparse"
PHASES = ("level", "falling", "first", "second", "third", "long", "fourth")
SHORT = "level"  # the phase of short windows
STAGES = ("first", "second", "third", "fourth")  # of control and twin
HISTORY_EVERY = 10  # steps
SEEDS_APART = 10  # the text of phase i of PHASES has the seed 10 seed + i
STEERING = 8  # every eighth held-out window steers
FEWEST_WINDOWS = 2 * STEERING


@dataclass(frozen=True)
class Stage:
    """A part of the twin's training; the control has its steps and its learning rate."""

    steps: int
    slack: float
    """Cross-entropy above the control's after as many steps that the twin may have on held-out text, nats."""
    first_slack: float
    """Added to it at the start, gone after 40 % of the steps."""
    multiplier: float
    multiplier_max: float
    lr: float
    gate_bias: float = 0.0
    """At the start, gone after 25 % of the steps."""
    tail: float = 0.5
    """Share of the steps in which the learning rate falls."""
    gate_noise: bool = True
    """Whether the gates have noise; without it they are hard as in evaluation."""


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Everything of the recipe that can be chosen."""

    n_layer: int = 6
    n_head: int = 8
    d_model: int = 128
    d_mlp: int = 224
    length: int = 512
    """Tokens of a sequence."""
    batch: int = 4
    """Sequences of a step."""
    short_length: int = 128
    """Tokens of a sequence in the first phase, whose steps have as many tokens as the others."""
    vocabulary: int = 2048
    """Tokens of the byte-level BPE, which is trained on the text."""
    held_out: float = 0.05
    """Share of the text that is held out."""
    weight_decay: float = 0.05
    """Of all three models."""
    dropout: float = 0.05
    """Share dropped of what attention and MLPs add to the residual stream."""
    dense_lr: float = 3e-3
    level_steps: int = 8000
    """Most steps of the dense model on short windows."""
    level_every: int = 250
    """Steps between two looks at its held-out cross-entropy."""
    patience: int = 6
    """Looks without a new best one after which a phase ends."""
    long_steps: int = 2500
    """Most steps on long windows before the learning rate falls."""
    falling_steps: int = 1500
    twin_every: int = 20
    """Steps between two looks at the twin's held-out cross-entropy."""
    multiplier_min: float = 3e-4
    first: Stage = Stage(2000, 0.02, 0.02, 1.0, 1.5, 2e-3, gate_bias=4.0)
    second: Stage = Stage(2500, 0.025, 0.0, 0.5, 0.6, 1.5e-3, gate_noise=False)
    third: Stage = Stage(2000, 0.02, 0.0, 0.45, 0.45, 1.5e-3, tail=0.6, gate_noise=False)
    fourth: Stage = Stage(2000, 0.02, 0.0, 0.3, 0.3, 1e-3, tail=0.7, gate_noise=False)


TINY: dict[str, Any] = {
    "n_layer": 2, "n_head": 2, "d_model": 16, "d_mlp": 32, "length": 16, "batch": 4, "short_length": 8,
    "vocabulary": 300, "level_steps": 40, "level_every": 10, "patience": 2, "long_steps": 20,
    "falling_steps": 10, "twin_every": 5,
    "first": Stage(20, 0.10, 0.30, 0.1, 0.5, 2e-3, gate_bias=4.0),
    "second": Stage(10, 0.02, 0.0, 0.05, 0.1, 1.5e-3), "third": Stage(10, 0.02, 0.0, 0.05, 0.1, 1.5e-3),
    "fourth": Stage(10, 0.02, 0.0, 0.05, 0.1, 1e-3, gate_noise=False),
}  # fmt: skip
"""Settings of a trial of the whole recipe, which takes seconds and gives useless models."""


def config(settings: Settings, n_vocab: int, n_ctx: int) -> Config:
    """The models' shape, dense: about a million weights."""
    return Config(
        n_layer=settings.n_layer, n_head=settings.n_head, d_model=settings.d_model,
        d_head=settings.d_model // settings.n_head, d_mlp=settings.d_mlp, n_ctx=n_ctx,
        n_vocab=n_vocab, activation="gelu_new",
    )  # fmt: skip


def _common(settings: Settings) -> dict[str, Any]:
    return {
        "seed": settings.seed,
        "weight_decay": settings.weight_decay,
        "attn_out_dropout": settings.dropout,
        "mlp_out_dropout": settings.dropout,
        "evaluate_every": settings.level_every,
    }


def dense_options(settings: Settings) -> dict[str, TrainingOptions]:
    """Options of the dense model's phases: a level learning rate twice, then one that falls to 2 %."""
    common = _common(settings)
    level = schedules.Warmup(settings.dense_lr, 100)
    falling = schedules.Warmup(settings.dense_lr, 50, "linear", final=0.02)
    return {
        "level": TrainingOptions(steps=settings.level_steps, lr=level, **common),
        "long": TrainingOptions(steps=settings.long_steps, lr=level, **common),
        "falling": TrainingOptions(steps=settings.falling_steps, lr=falling, **common),
    }


def with_context(model: Model, n_ctx: int) -> Model:
    """A copy of a dense model with room for n_ctx tokens, its position embeddings repeated."""
    positions = np.resize(model.parameter("wpe.weight"), (n_ctx, model.config.d_model))
    shape = dataclasses.replace(model.config, n_ctx=n_ctx)
    weights = {**model.parameters(), "wpe.weight": positions}
    return Model(shape, weights, tokenizer=model.tokenizer, name=model.name)


def control_options(settings: Settings, stage: Stage) -> TrainingOptions:
    """The steps and the learning rate of a stage, without a gate."""
    return TrainingOptions(steps=stage.steps, lr=_rate(stage), **_common(settings))


def twin_options(settings: Settings, stage: Stage, tau: schedules.Pieces) -> TrainingOptions:
    """A stage of the twin; tau: cross-entropy of the control in its course, on the windows that steer."""
    return TrainingOptions(
        steps=stage.steps,
        lr=_rate(stage),
        tau=tau,
        slack=schedules.linear(stage.slack + stage.first_slack, stage.slack, 0, 0.4),
        constraint="held-out",
        multiplier=stage.multiplier,
        multiplier_min=settings.multiplier_min,
        multiplier_max=stage.multiplier_max,
        geco_rate=0.2,
        geco_clip=0.3,
        geco_relative=False,
        gate_noise=stage.gate_noise,
        gate_bias=schedules.linear(stage.gate_bias, 0, 0, 0.25),
        **{**_common(settings), "evaluate_every": settings.twin_every},
    )


def course(control: Trainer) -> schedules.Pieces:
    """Held-out cross-entropy of a finished phase over its steps, rounded, so that a resume on another machine
    sets the same constraint."""
    history = control.history()[["step", "held_out_ce"]].dropna()
    steps = control.options.steps
    points = [((step + 1) / steps, round(ce, 4)) for step, ce in history.itertuples(index=False)]
    return schedules.Pieces(((0.0, points[0][1]), *points))


def _rate(stage: Stage) -> schedules.Warmup:
    return schedules.Warmup(stage.lr, 50, "linear", begin=1 - stage.tail, final=0.02)


def train(
    out: Path,
    *,
    seed: int | None = None,
    resume: bool = False,
    threads: int | None = None,
    quiet: bool = False,
    leader: Leader | None = None,
    corpus: Any = None,
    tiny: bool = False,
    **settings: Any,
) -> list[Path]:
    """Train the models into `out`; see `recipes.Recipe.train`.

    corpus: the text files, read in place.  tiny: a trial with the settings of `TINY`.  settings: fields of
    `Settings`.  Checkpoints and tokens go to `out/checkpoints`, which may be deleted afterwards.
    """
    return train_pair(job_of(out, seed, resume, threads, quiet, leader, corpus, tiny, settings)).folders


def job_of(
    out: Path,
    seed: int | None,
    resume: bool,
    threads: int | None,
    quiet: bool,
    leader: Leader | None,
    corpus: Any,
    tiny: bool,
    settings: Mapping[str, Any],
) -> TextJob:
    """The job with the arguments of `train`."""
    first = TINY if _check.flag(tiny, "tiny") else {}
    chosen = Settings.of(seed, {**first, **settings})
    if corpus is None:
        raise TypeError("corpus must name the text files that the recipe is to learn from")
    return TextJob(out, chosen, resume, threads, quiet, leader, corpus)


class Pair(NamedTuple):
    """What `train_pair` made: phases of each model in their order."""

    folders: list[Path]
    dense: list[Trainer]
    control: list[Trainer]
    twin: list[Trainer]


def train_pair(job: TextJob) -> Pair:
    """The three models, each written into its folder once it is done."""
    settings = job.settings
    dense = [job.dense(name) for name in ("level", "long", "falling")]
    start = dense[-1].model
    job.ship(DENSE, dense)
    control = job.ungated("control", start.copy())
    job.ship(CONTROL, control)
    twin: list[Trainer] = []
    for name, beside in zip(STAGES, control, strict=True):
        options = twin_options(settings, getattr(settings, name), course(beside))
        model = twin[-1].model.copy() if twin else gated_twin(start, SPARSE)
        twin.append(job.run(f"twin-{name}", options, model))
    job.ship(SPARSE, twin)
    return Pair(job.folders, dense, control, twin)


class TextJob(RecipeJob):
    """One run of the recipe in its folder, with the text in the order of each phase."""

    def __init__(
        self,
        out: Path,
        settings: Settings,
        resume: bool,
        threads: int | None,
        quiet: bool,
        leader: Leader | None,
        corpus: Any,
    ) -> None:
        super().__init__(out, resume, threads, quiet, settings, leader)
        self.settings, self._corpus = settings, corpus
        self.folders: list[Path] = []
        self._found: dict[str, Measured] = {}
        self.text = {name: self._text(name) for name in PHASES}
        windows = self.text["falling"].held_out
        if len(windows) < FEWEST_WINDOWS:
            raise ValueError(
                f"the texts are too short: {len(windows)} held-out windows of {settings.length} tokens, the "
                f"recipe needs {FEWEST_WINDOWS}"
            )
        #: int32 [n, length], the held-out windows that steer nothing
        self.judged = np.delete(windows, np.s_[::STEERING], axis=0)
        self._dense: Trainer | None = None

    def _text(self, name: str) -> TextData:
        """The text in the order and the windows of a phase."""
        settings = self.settings
        length, batch = settings.length, settings.batch
        if name == SHORT:
            length, batch = settings.short_length, batch * length // settings.short_length
        return TextData(
            self._corpus,
            length,
            batch,
            tokenizer=settings.vocabulary,
            folder=self.out / CHECKPOINTS / "tokens",
            held_out=settings.held_out,
            seed=SEEDS_APART * settings.seed + PHASES.index(name),
        )

    def dense(self, name: str) -> Trainer:
        """A phase of the dense model; those of a level learning rate end when its held-out cross-entropy is
        flat."""
        tokenizer, settings = self.text[name].tokenizer, self.settings
        if self._dense is None:
            shape = config(settings, tokenizer.n_vocab, settings.short_length)
            model = Model.initialised(shape, settings.seed, std="fan_in", tokenizer=tokenizer, name=DENSE)
        else:
            model = with_context(self._dense.model, settings.length)
        patience = 0 if name == "falling" else settings.patience
        self._dense = self.run(name, dense_options(settings)[name], model, patience)
        return self._dense

    def run(self, name: str, options: TrainingOptions, model: Model, patience: int = 0) -> Trainer:
        """Phase `name`, which is one of PHASES or ends in `-` and one of them, whose text it has."""
        text = self.text[name.rpartition("-")[2]]
        return self.phase(name, options, model, text, held_out=text.held_out[::STEERING], patience=patience)

    def ungated(self, name: str, model: Model) -> list[Trainer]:
        """The phases of a model without a gate that has the twin's steps; trains `model` in place."""
        phases: list[Trainer] = []
        for phase in STAGES:
            options = control_options(self.settings, getattr(self.settings, phase))
            phases.append(self.run(f"{name}-{phase}", options, phases[-1].model.copy() if phases else model))
        return phases

    def ship(self, name: str, phases: Sequence[Trainer]) -> None:
        """Write a finished model's folder and say what was measured."""
        model = phases[-1].model.copy()
        model.name = name
        folder = self.out / name
        model.save(folder)
        self._found[name] = measure(model, self.judged)
        rows = measured_rows(self._found, name)
        card = cards.text_card(model, rows, self.text["falling"], self.settings.shown(), HISTORY_EVERY)
        cards.write(folder, card)
        history = joined_history(phases)
        write_history(folder, history[(history["step"] + 1) % HISTORY_EVERY == 0])
        self.folders.append(folder)
        if not self.quiet:
            print(f"{name}, {len(self.judged):,} held-out windows (mean, standard error):")
            print("\n".join(f"  {what}: {value:.4f}, {error:.4f}" for what, (value, error) in rows.items()))


def measured_rows(found: Mapping[str, Measured], name: str) -> dict[str, Mean]:
    """What is reported of model `name`: means over windows; differences are of the same windows."""
    one = found[name]
    rows = {"cross-entropy, nats per token": one.cross_entropy}
    for other in MODELS[: MODELS.index(name)]:
        rows[f"cross-entropy minus that of {other}"] = mean(one.losses - found[other].losses)
    rows["open edges per token"] = one.edges_per_token
    rows["of these from a token to itself"] = one.self_edges_per_token
    rows["open entries, per cent"] = Mean(100 * one.open_share.value, 100 * one.open_share.error)
    return rows
