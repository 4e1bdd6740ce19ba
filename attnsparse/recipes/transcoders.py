"""The recipe "demo-transcoder": a set of transcoders for each of the models demo-dense and demo-sparse.

Both sets have the same settings, and text of another seed than the models. The first layer has more features
than the others, because it alone sees words as they are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..io.atomic import remove_stale, write_atomic
from ..model.load import load
from ..training import schedules
from ..training.checkpoint import ENDING
from ..transcoders.options import TranscoderOptions
from ..transcoders.save import save_transcoders
from ..transcoders.trainer import TranscoderTrainer
from . import cards, transcoder_evaluation
from .demo_text import DemoText
from .job import CHECKPOINTS, RecipeSettings, checkpoints_folder, write_csv

if TYPE_CHECKING:
    import pandas as pd

    from .transcoder_evaluation import SetFacts

SETS = {"demo-dense-transcoders": "demo-dense", "demo-sparse-transcoders": "demo-sparse"}
"""Set -> embedded model that it belongs to."""

HISTORY_EVERY = 20  # steps
SEEDS_APART = 1000  # the text has the seed 1000 (seed + 1); those of the recipe "demo" are far below


@dataclass(frozen=True)
class Settings(RecipeSettings):
    """Everything of the recipe that can be chosen."""

    checkpoint_every: int = 100
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
    threads: int | None = None,
    quiet: bool = False,
    **settings: Any,
) -> list[Path]:
    """Train both sets into `out`; see `recipes.Recipe.train`. settings: fields of `Settings`.

    Checkpoints go to `out/checkpoints`, which may be deleted afterwards.
    """
    chosen = Settings.of(seed, settings)
    remove_stale(checkpoints_folder(out, resume))
    return [_train_set(name, out, chosen, threads, quiet) for name in SETS]


def _train_set(name: str, out: Path, settings: Settings, threads: int | None, quiet: bool) -> Path:
    model = load(SETS[name])
    text = DemoText(settings.batch, seed=SEEDS_APART * (settings.seed + 1))
    chosen = options(settings, model.config.n_layer)
    trainer = TranscoderTrainer(model, text, chosen, name=name, threads=threads)
    path = out / CHECKPOINTS / f"{name}{ENDING}"
    if path.exists():
        trainer.load(path)
    trainer.train(path, settings.checkpoint_every, False if quiet else None)
    folder = out / name
    save_transcoders(trainer.transcoders(), folder, dtype=transcoder_evaluation.DTYPE, equal_sizes=False)
    facts = transcoder_evaluation.measure(folder, model, trainer.transcoders())
    write_facts(folder, facts, trainer.history(), settings)
    transcoder_evaluation.write_labels(folder)
    if not quiet:
        print(transcoder_evaluation.summary(facts), flush=True)
    return folder


def write_facts(folder: Path, facts: SetFacts, history: pd.DataFrame, settings: Settings) -> None:
    """Write README.md, card.json and history.csv (every HISTORY_EVERY-th step) into a set's folder."""
    content = {**facts, "settings": settings.shown(), "attnsparse": __version__}
    write_atomic(folder / "card.json", [(json.dumps(content, indent=2) + "\n").encode()])
    cards.write(folder, cards.transcoders_card(folder.name, facts, settings.shown(), HISTORY_EVERY))
    rows = history[history["step"] % HISTORY_EVERY == 0].groupby("step", as_index=False).mean()
    write_csv(folder / "history.csv", rows.drop(columns="layer"))
