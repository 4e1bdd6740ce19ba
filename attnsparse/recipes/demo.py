"""The recipe "demo": a dense model of 12 x 12 heads on templates of English, two sparse twins, and a control.

A sparse twin starts from the dense model and is trained with the gate. In the first fifth of its training
the gates of the early layers are shut: a gate in layer 0 sees only token and position and would have to open
for every query that looks alike, a gate in a late layer sees the context and opens only where the answer
needs it. So the tasks are learned again in the late layers, then the early ones may come back. Where the
circuits lie is made by this, not found. At the end of a phase the learning rate falls while the constraint
stays, and every model is judged by one rule: a gate is open where its score is above 0.

Two twins, because the two aims conflict. Both continue from the common phase with all edges at one price:
`demo-sparse` from before its end, while several heads still do the same work; `demo-sparse-max` from its end,
with few edges left, to bring the cross-entropy back near the dense model's.

With `Settings.spread` the dense model is trained on before all of this, so that many of its heads share the
work: see `Spread`.

The control is the dense model trained on, without a gate, for as many steps as the longest twin, on the same
text and with the same learning rates: what a twin gains by sparsity is what it has beyond the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..model.config import Config
from ..model.model import Model
from ..training import schedules
from ..training.options import TrainingOptions
from ..training.schedules import Pieces
from ..training.trainer import Trainer
from . import cards
from .demo_evaluation import measure
from .demo_text import LENGTH, DemoText, demo_tokenizer
from .job import RecipeJob, SharedSettings, gated_twin, joined_history, write_csv, write_history
from .together import Leader
from .wrong_answers import WrongAnswers

DENSE, SPARSE, MAX, CONTROL = MODELS = "demo-dense", "demo-sparse", "demo-sparse-max", "demo-control"
PHASES = ("dense", "common", "settle", "near", "spread")
LONGEST = ("common", "settle")  # phases of the longest twin, repeated by the control
HISTORY_EVERY = 10  # steps
SEEDS_APART = 10  # the text of phase i of PHASES has the seed 10 seed + i


@dataclass(frozen=True)
class Stage:
    """Further steps of a twin: gate bias 0 in all layers, the same price for every edge."""

    steps: int
    slack: float
    """Cross-entropy above the dense model's that the twin may have, nats, with the noise on."""
    multiplier: float
    multiplier_min: float
    multiplier_max: float
    lr: float = 2e-3
    tail: float = 0.5
    """Share of the steps in which the learning rate falls."""


@dataclass(frozen=True)
class Spread:
    """Further steps of the dense model, after which many of its heads do the same work together.

    The attention of the early layers is off until the tasks are learned again above; whole heads are dropped
    at random, so that no few of them may do without the others.
    """

    steps: int = 1600
    lr: float = 2e-3
    tail: float = 0.4
    """Share of the steps in which the learning rate falls."""
    early_layers: int = 4
    """Layers 0 to early_layers - 1 are without attention at the start."""
    early_scale: float = 0.1
    """Their query, key and output weights are scaled by this before the first step."""
    back: float = 0.5
    """Share of the steps after which their attention is back."""
    early_dropout: float = 0.65
    """Share of their heads that is dropped then."""
    late_dropout: float = 0.65
    """Share of the heads of the other layers that is dropped."""
    end: float = 0.85
    """Share of the steps after which no head is dropped."""
    wrong_answers: float = 0.0
    """Share of answers that are replaced by a random token."""
    right_from: float = 0.85
    """Share of the steps after which all answers are right."""


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Everything of the recipe that can be chosen."""

    batch: int = 32
    """Sequences of 32 tokens in a step."""
    dense_steps: int = 3000
    dense_lr: float = 3e-3
    dense_tail: float = 0.4
    weight_decay: float = 0.01
    """Of the dense model and the control."""
    spread: Spread | None = Spread()
    """Further steps of the dense model, once its tasks are learned; None: none."""
    common_steps: int = 4500
    """The phase that both twins share; `demo-sparse` leaves it after `near_from` steps."""
    common_lr: float = 2e-3
    common_tail: float = 0.35
    """Share of the steps in which the learning rate falls."""
    slack: float = 0.08
    """Cross-entropy above the dense model's that the sparse one may have, nats, with the noise on."""
    first_slack: float = 0.10
    """Added to it at the start, gone after 40 % of the steps."""
    multiplier: float = 0.1
    multiplier_min: float = 3e-4
    multiplier_max: float = 0.08
    early_layers: int = 8
    """Layers 0 to early_layers - 1 are shut at the start."""
    early_scale: float = 0.1
    """Their query and key weights are scaled by this, so that their gates' sigmoids are not saturated."""
    early_bias: float = -30.0
    early_prices: tuple[float, float] = (5.0, 3.0)
    """Price of an edge in the early layers while they are shut, and afterwards."""
    late_prices: tuple[float, float] = (0.05, 1.0)
    late_bias: float = 3.0
    near_from: int = 3300
    near: Stage = Stage(1300, 0.03, 0.1, 3e-4, 0.15, tail=0.5)
    """What makes `demo-sparse`."""
    settle: Stage = Stage(800, 0.03, 0.03, 3e-4, 0.06, lr=1e-3, tail=0.7)
    """What makes `demo-sparse-max`."""

    def shown(self) -> dict[str, Any]:
        """As of every recipe; without `spread` if there is none."""
        return {name: value for name, value in super().shown().items() if value is not None}


def config(gated: bool = False) -> Config:
    """The models' shape: about a million weights."""
    return Config(
        n_layer=12, n_head=12, d_model=96, d_head=8, d_mlp=192, n_ctx=LENGTH,
        n_vocab=demo_tokenizer().n_vocab, activation="gelu_new", gated=gated,
    )  # fmt: skip


def dense_options(settings: Settings) -> TrainingOptions:
    """AdamW with decay on matrices, warm-up, a level learning rate that falls to 2 % in the tail."""
    begin = 1 - settings.dense_tail
    return TrainingOptions(
        steps=settings.dense_steps,
        seed=settings.seed,
        lr=schedules.Warmup(settings.dense_lr, 100, "linear", begin=begin, final=0.02),
        weight_decay=settings.weight_decay,
    )


def spread_options(settings: Settings, spread: Spread) -> TrainingOptions:
    """Heads are dropped at random, in the early layers all of them until `spread.back`."""
    early = Pieces(
        (
            (0.0, 1.0), (spread.back, 1.0), (spread.back, spread.early_dropout),
            (spread.end, spread.early_dropout), (spread.end, 0.0),
        )
    )  # fmt: skip
    late = schedules.jump(spread.late_dropout, 0.0, spread.end)
    first, last = _layer_ranges(spread.early_layers)
    return TrainingOptions(
        steps=spread.steps,
        seed=settings.seed,
        lr=schedules.Warmup(spread.lr, 100, "linear", begin=1 - spread.tail, final=0.02),
        weight_decay=settings.weight_decay,
        head_dropout=schedules.per_layer({first: early, last: late}),
    )


def spread_text(text: DemoText, spread: Spread) -> DemoText | WrongAnswers:
    """The text of that phase."""
    if not spread.wrong_answers:
        return text
    return WrongAnswers(text, spread.wrong_answers, round(spread.right_from * spread.steps))


def _layer_ranges(early_layers: int) -> tuple[str, str]:
    """The early layers and the others, as `schedules.per_layer` takes them."""
    return f"0-{early_layers - 1}", f"{early_layers}-{config().n_layer - 1}"


def control_options(settings: Settings, twin: TrainingOptions) -> TrainingOptions:
    """The steps and the learning rate of a twin's phase, without its gate."""
    return TrainingOptions(
        steps=twin.steps, seed=settings.seed, lr=twin.lr, weight_decay=settings.weight_decay
    )


def common_options(settings: Settings, dense_ce: float) -> TrainingOptions:
    """Early layers shut until 20 %, back by 45 %; the cross-entropy may be the dense one's plus slack."""
    early, late = settings.early_prices, settings.late_prices
    first, last = _layer_ranges(settings.early_layers)
    return TrainingOptions(
        steps=settings.common_steps,
        seed=settings.seed,
        lr=_rate(settings.common_lr, settings.common_tail),
        tau=dense_ce,
        slack=schedules.linear(settings.slack + settings.first_slack, settings.slack, 0, 0.4),
        multiplier=settings.multiplier,
        multiplier_min=settings.multiplier_min,
        multiplier_max=settings.multiplier_max,
        geco_rate=0.5,
        geco_clip=0.3,
        geco_relative=False,
        gate_bias=schedules.per_layer(
            {
                first: schedules.linear(settings.early_bias, 0, 0.2, 0.45),
                last: schedules.linear(settings.late_bias, 0, 0, 0.25),
            }
        ),
        edge_weight=schedules.per_layer(
            {first: schedules.linear(*early, 0.2, 0.35), last: schedules.linear(*late, 0.2, 0.35)}
        ),
    )


def twin_options(settings: Settings, dense_ce: float) -> dict[str, TrainingOptions]:
    """Options of every phase with a gate, by its name."""
    stages = {name: getattr(settings, name) for name in ("settle", "near")}
    options = {name: stage_options(settings, stage, dense_ce) for name, stage in stages.items()}
    return {"common": common_options(settings, dense_ce), **options}


def stage_options(settings: Settings, stage: Stage, dense_ce: float) -> TrainingOptions:
    """Options of one of the stages that follow the common phase."""
    return TrainingOptions(
        steps=stage.steps,
        seed=settings.seed,
        lr=_rate(stage.lr, stage.tail),
        tau=dense_ce,
        slack=stage.slack,
        multiplier=stage.multiplier,
        multiplier_min=stage.multiplier_min,
        multiplier_max=stage.multiplier_max,
        geco_rate=0.5,
        geco_clip=0.3,
        geco_relative=False,
    )


def _rate(lr: float, tail: float) -> schedules.Warmup:
    return schedules.Warmup(lr, 50, "linear", begin=1 - tail, final=0.02)


def sparse_start(dense: Model, settings: Settings) -> Model:
    """The sparse twin before its first step: the dense weights, with small scores in the early layers."""
    return gated_twin(dense, SPARSE, _small_scores(dense, settings.early_layers, settings.early_scale))


def spread_start(dense: Model, spread: Spread) -> Model:
    """The dense model before it is spread: small scores, and small outputs of attention, in early layers."""
    changed = _small_scores(dense, spread.early_layers, spread.early_scale)
    for layer in range(spread.early_layers):
        name = f"h.{layer}.attn.c_proj.weight"
        changed[name] = dense.parameter(name) * np.float32(spread.early_scale)
    return Model(dense.config, {**dense.parameters(), **changed}, tokenizer=dense.tokenizer, name=DENSE)


def _small_scores(dense: Model, early_layers: int, scale: float) -> dict[str, np.ndarray]:
    """The weights and biases of queries and keys in the early layers, scaled (values are as they were)."""
    n_columns = 2 * dense.config.n_head * dense.config.d_head  # those of queries and keys
    changed = {}
    for layer in range(early_layers):
        for part in ("weight", "bias"):
            name = f"h.{layer}.attn.c_attn.{part}"
            changed[name] = dense.parameter(name).copy()
            changed[name][..., :n_columns] *= scale
    return changed


def train(
    out: Path,
    *,
    seed: int | None = None,
    resume: bool = False,
    threads: int | None = None,
    quiet: bool = False,
    leader: Leader | None = None,
    **settings: Any,
) -> list[Path]:
    """Train the models into `out`; see `recipes.Recipe.train`. settings: fields of `Settings`.

    Checkpoints go to `out/checkpoints`, which may be deleted afterwards.
    """
    chosen = Settings.of(seed, settings)
    job = _Job(out, chosen, resume, threads, quiet, leader)
    first = job.dense()
    dense = first[-1]
    options = twin_options(chosen, job.ship(DENSE, first))
    common = job.run("common", options["common"], sparse_start(dense.model, chosen), chosen.near_from)
    early = job.at_kept_step("common", job.text("common"), dense.model.tokenizer)
    job.ship(SPARSE, [early, job.run("near", options["near"], early.model.copy())])
    job.ship(MAX, [common, job.run("settle", options["settle"], common.model.copy())])
    control = [dense]
    for name in LONGEST:
        without_gate = control_options(chosen, options[name])
        control.append(job.run(f"control-{name}", without_gate, control[-1].model.copy()))
    job.ship(CONTROL, control[1:])
    return job.folders


class _Job(RecipeJob):
    def __init__(
        self,
        out: Path,
        settings: Settings,
        resume: bool,
        threads: int | None,
        quiet: bool,
        leader: Leader | None,
    ) -> None:
        super().__init__(out, resume, threads, quiet, settings, leader)
        self.settings = settings
        self.folders: list[Path] = []

    def new_model(self) -> Model:
        """The dense model before its first step."""
        seed = self.settings.seed
        return Model.initialised(config(), seed, std="fan_in", tokenizer=demo_tokenizer(), name=DENSE)

    def dense(self) -> list[Trainer]:
        """The phases of the dense model."""
        chosen = self.settings
        phases = [self.run("dense", dense_options(chosen), self.new_model())]
        if chosen.spread is not None:
            start = spread_start(phases[0].model, chosen.spread)
            phases.append(self.run("spread", spread_options(chosen, chosen.spread), start))
        return phases

    def text(self, name: str) -> DemoText | WrongAnswers:
        """The text of a phase."""
        text = DemoText(self.settings.batch, seed=SEEDS_APART * self.settings.seed + PHASES.index(name))
        spread = self.settings.spread
        return text if spread is None or name != "spread" else spread_text(text, spread)

    def run(self, name: str, options: TrainingOptions, model: Model, kept_step: int = 0) -> Trainer:
        """Phase `name` of PHASES, or `control-` and such a name for the same text without the gate."""
        return self.phase(name, options, model, self.text(name.removeprefix("control-")), kept_step)

    def ship(self, name: str, phases: Sequence[Trainer]) -> float:
        """Write a finished model's folder and return its cross-entropy, rounded, so that a resume on another
        machine sets the same constraint."""
        model = phases[-1].model.copy()
        model.name = name
        folder = self.out / name
        model.save(folder)
        found = measure(model)
        cards.write(folder, cards.demo_card(model, found, self.settings.shown(), HISTORY_EVERY))
        write_csv(folder / "tasks.csv", found.tasks)
        history = joined_history(phases)
        write_history(folder, history[history["step"] % HISTORY_EVERY == 0])
        self.folders.append(folder)
        if not self.quiet:
            print(f"{name}: cross-entropy {found.cross_entropy:.4f} (floor {found.floor:.4f})")
            print(found.tasks.to_string(index=False))
        return round(found.cross_entropy, 4)
