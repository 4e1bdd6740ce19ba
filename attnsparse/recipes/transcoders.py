"""The recipe "demo-transcoder": a set of transcoders for each of the models demo-dense and demo-sparse.

Both sets are trained alike, on text of another seed than the models were. The first layer has more features
than the others, because it alone sees words as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..io.atomic import remove_stale
from ..model.load import load
from ..training import schedules
from ..transcoders.options import TranscoderOptions
from ..transcoders.save import save_transcoders
from ..transcoders.trainer import TranscoderTrainer
from . import transcoder_card
from .demo_text import DemoText
from .job import CHECKPOINTS, checkpoints_folder

SETS = {"demo-dense-transcoders": "demo-dense", "demo-sparse-transcoders": "demo-sparse"}
"""Set -> embedded model that it belongs to."""

SEEDS_APART = 1000  # the text has the seed 1000 (seed + 1); recipe_demo's seeds are far below


@dataclass(frozen=True)
class Settings:
    """Everything of the recipe that can be chosen. `checkpoint_every` has no influence on the result."""

    seed: int = 0
    batch: int = 32
    """Sequences of 32 tokens in a step."""
    steps: int = 800
    first_features: int = 1024
    """Features of layer 0."""
    features: int = 512
    """Features of every other layer."""
    top_k: int = 6
    """Features active at each token in every layer."""
    lr: float = 5e-3
    tail: float = 0.5
    """Share of the steps in which the learning rate falls."""
    dead_after: int = 30
    aux_k: int = 8
    aux_weight: float = 0.125
    checkpoint_every: int = 100


def options(settings: Settings, n_layer: int) -> TranscoderOptions:
    """Options of the training of either set."""
    return TranscoderOptions(
        steps=settings.steps,
        n_features=(settings.first_features, *[settings.features] * (n_layer - 1)),
        activation="topk",
        top_k=settings.top_k,
        seed=settings.seed,
        lr=schedules.Warmup(settings.lr, 20, "linear", begin=1 - settings.tail, final=0.02),
        dead_after=settings.dead_after,
        aux_k=settings.aux_k,
        aux_weight=settings.aux_weight,
    )


def train(
    out: Path,
    *,
    seed: int | None = None,
    resume: bool = False,
    threads: int = 0,
    quiet: bool = False,
    **settings: Any,
) -> list[Path]:
    """Train both sets into `out`; see `recipes.Recipe.train`. settings: fields of `Settings`.

    Checkpoints go to `out/checkpoints`, which may be deleted afterwards.
    """
    chosen = Settings(**({} if seed is None else {"seed": seed}), **settings)
    remove_stale(checkpoints_folder(out, resume))
    return [_train_set(name, out, chosen, threads or None, quiet) for name in SETS]


def _train_set(name: str, out: Path, settings: Settings, threads: int | None, quiet: bool) -> Path:
    model = load(SETS[name])
    text = DemoText(settings.batch, seed=SEEDS_APART * (settings.seed + 1))
    chosen = options(settings, model.config.n_layer)
    trainer = TranscoderTrainer(model, text, chosen, name=name, threads=threads)
    path = out / CHECKPOINTS / f"{name}.ckpt"
    if path.exists():
        trainer.load(path)
    trainer.train(path, settings.checkpoint_every, False if quiet else None)
    folder = out / name
    save_transcoders(trainer.transcoders(), folder, dtype=transcoder_card.DTYPE, equal_sizes=False)
    facts = transcoder_card.measure(folder, model, trainer.transcoders())
    transcoder_card.write(folder, facts, trainer.history(), settings)
    transcoder_card.write_labels(folder)
    if not quiet:
        print(transcoder_card.summary(facts), flush=True)
    return folder
