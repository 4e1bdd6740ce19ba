"""The recipe "addition": a dense model of two-digit addition and its sparse twin.

Four layers of four heads, width 64, on `5 3 + 2 1 = 0 7 4 E E` (`addition.py`). Loss counts on the four
columns that predict the answer, because the operands are random and would drown the constraint. 9,000 of the
10,000 sums are trained on, 1,000 held out; which ones is fixed and does not depend on the seed.

The dense model is trained as usual. The sparse one starts from its weights, with the gate: fewer and fewer
edges at a cross-entropy kept near tau (arXiv 2512.05865, section 2), and at the end a tail with a falling
learning rate and a larger multiplier that brings the cross-entropy down. It is then judged as it will be
used, with hard gates and no noise, on the trained sums; if it misses, the tail is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import _random
from ..model.config import Config
from ..model.model import Model
from ..model.tokenizer import Tokenizer
from ..tasks import addition
from ..tasks.addition import DENSE_THRESHOLD
from ..training import schedules
from ..training.data import SequenceData
from ..training.options import TrainingOptions
from ..training.trainer import Trainer
from . import cards
from .addition_evaluation import AdditionEvaluation, evaluate, facts, summary
from .job import RecipeJob, SharedSettings, gated_twin, joined_history, write_history
from .together import Leader

N_HELD_OUT = 1000
DENSE, SPARSE = "addition-dense", "addition-sparse"


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Everything of the recipe that can be chosen."""

    init_std: float = 0.06
    dense_steps: int = 1600
    dense_batch: int = 128
    dense_lr: float = 1e-3
    sparse_steps: int = 3000
    sparse_batch: int = 64
    sparse_lr: float = 1e-3
    tau: float = 0.03
    multiplier_min: float = 0.03
    tail: float = 0.3
    tail_multiplier: float = 0.2
    repeat_steps: int = 600
    repeat_multiplier: float = 3.0
    repeats: int = 2
    wanted_accuracy: float = 0.999

    def of_model(self, gated: bool) -> dict[str, Any]:
        """The settings that made the dense or the sparse model, by name."""
        own = ("sparse_", "tau", "multiplier_", "tail") if gated else ("init_", "dense_")
        shown = self.shown().items()
        return {name: value for name, value in shown if name in ("seed", "parts") or name.startswith(own)}


def config(gated: bool = False) -> Config:
    """The models' shape: 202,560 weights, 4 x 4 x 66 = 1056 possible edges for a sum."""
    return Config(
        n_layer=4, n_head=4, d_model=64, d_head=16, d_mlp=256, n_ctx=addition.N_TOKENS,
        n_vocab=len(addition.VOCABULARY), activation="gelu_new", tied=False, gated=gated,
    )  # fmt: skip


def held_out() -> np.ndarray:
    """Which of the 10,000 sums (number 100 a + b) are never trained on: int64 [1000], rising."""
    return np.sort(_random.permutation(10_000, 0, _random.SPLIT)[:N_HELD_OUT])


def data(batch: int, seed: int) -> SequenceData:
    """The 9,000 sums that are trained on, shuffled by `seed`; loss on the predicted columns only."""
    trained = np.setdiff1d(np.arange(10_000), held_out())
    sequences = addition.sequences(*addition.all_sums())[trained]
    weights = np.zeros(sequences.shape, np.float32)
    weights[:, addition.PREDICTED] = 1
    return SequenceData(sequences, batch, seed=seed, loss_weights=weights)


def dense_options(settings: Settings) -> TrainingOptions:
    """AdamW with decay on matrices, warm-up, cosine to 5 % of the learning rate."""
    return TrainingOptions(
        steps=settings.dense_steps,
        seed=settings.seed,
        lr=schedules.Warmup(settings.dense_lr, 100, "cosine", final=0.05),
        weight_decay=0.1,
    )


def sparse_options(settings: Settings) -> TrainingOptions:
    """Gate bias 5 -> 0 over the first quarter; in the tail a linear decay to 2 % and a larger multiplier."""
    begin = 1 - settings.tail
    return TrainingOptions(
        steps=settings.sparse_steps,
        seed=settings.seed,
        lr=schedules.Warmup(settings.sparse_lr, 50, "linear", begin=begin, final=0.02),
        tau=settings.tau,
        multiplier=0.3,
        multiplier_min=schedules.jump(settings.multiplier_min, settings.tail_multiplier, begin),
        multiplier_max=max(1.0, settings.tail_multiplier),
        gate_bias=schedules.linear(5, 0, 0, 0.25),
    )


def repeat_options(settings: Settings, repeat: int) -> TrainingOptions:
    """The tail once more, from the full learning rate, with a multiplier of 1 to `repeat_multiplier`."""
    return TrainingOptions(
        steps=settings.repeat_steps,
        seed=settings.seed + 1_000_000 * repeat,
        lr=schedules.Warmup(settings.sparse_lr, 0, "linear", final=0.02),
        tau=settings.tau,
        multiplier_min=1.0,
        multiplier_max=settings.repeat_multiplier,
    )


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
    """Train both models into `out`; see `recipes.Recipe.train`. settings: fields of `Settings`.

    Checkpoints go to `out/checkpoints`, which may be deleted afterwards.
    """
    chosen = Settings.of(seed, settings)
    job = _Job(out, chosen, resume, threads, quiet, leader)
    dense = job.phase("dense", dense_options(chosen), job.new_model(), data(chosen.dense_batch, chosen.seed))
    found = evaluate(dense.model, DENSE_THRESHOLD)
    folders = [job.ship(DENSE, dense, found, [dense])]

    source = data(chosen.sparse_batch, chosen.seed)
    phases = [job.phase("sparse", sparse_options(chosen), gated_twin(dense.model, SPARSE), source)]
    found = evaluate(phases[0].model, 0.0)
    for repeat in range(1, chosen.repeats + 1):
        if _good(found, chosen):
            break
        options = repeat_options(chosen, repeat)
        model = gated_twin(phases[-1].model, SPARSE)
        phases.append(job.phase(f"repeat-{repeat}", options, model, source))
        found = evaluate(phases[-1].model, 0.0)
    folders.append(job.ship(SPARSE, phases[-1], found, phases))
    return folders


def _good(found: AdditionEvaluation, settings: Settings) -> bool:
    """Judged on the sums that were trained on: the held-out ones choose nothing."""
    trained = np.setdiff1d(np.arange(10_000), held_out())
    return bool(found.right[trained].mean() >= settings.wanted_accuracy)


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
        self.tokenizer = Tokenizer.from_words(addition.VOCABULARY, split="characters")

    def new_model(self) -> Model:
        """The dense model before its first step."""
        seed, std = self.settings.seed, self.settings.init_std
        return Model.initialised(config(), seed, std=std, tokenizer=self.tokenizer, name=DENSE)

    def ship(self, name: str, trainer: Trainer, found: AdditionEvaluation, phases: list[Trainer]) -> Path:
        """Write a finished model's folder: weights, config, tokenizer, card, history and its figure."""
        folder = self.out / name
        trainer.model.save(folder)
        numbers, gated = facts(trainer.model, found, held_out()), trainer.model.config.gated
        cards.write(folder, cards.addition_card(numbers, self.settings.of_model(gated)))
        write_history(folder, joined_history(phases), self.settings.tau if gated else None)
        if not self.quiet:
            print(summary(numbers))
        return folder
