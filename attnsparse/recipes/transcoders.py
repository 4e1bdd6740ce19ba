"""The recipe "demo-transcoder": a set of transcoders for each of the models demo-dense and demo-sparse.

Both sets have the same settings but for their activation, and text of another seed than the models. The first
layer has more features than the others, because it alone sees words as they are; with jump_relu it has more
active ones too, and the others have fewer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
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
ACTIVATIONS = {"demo-dense-transcoders": "topk", "demo-sparse-transcoders": "jump_relu"}
"""Set -> its activation, the better one of those that were tried: see docs/transcoder-tries.md."""

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
    activation: str | None = None
    """Of both sets, "topk" or "jump_relu"; None: each has its own of ACTIVATIONS."""
    first_l0: float = 16.0
    """Features of layer 0 that are active at each token, with jump_relu."""
    l0: float = 5.0
    """Those of every other layer."""
    first_l0_begin: float = 36.0
    """What `first_l0` falls from."""
    l0_begin: float = 16.0
    """What `l0` falls from."""
    l0_until: float = 0.5
    """Share of the steps after which they are reached."""
    top_k: int = 6
    """Features active at each token in every layer, with topk."""
    lr: float = 5e-3
    tail: float = 0.5
    """Share of the steps in which the learning rate falls."""
    dead_after: int = 30
    aux_k: int = 8
    aux_weight: float = 0.125

    def of_set(self, name: str) -> Settings:
        """The settings with the activation that the set has."""
        return self if self.activation else dataclasses.replace(self, activation=ACTIVATIONS[name])


def options(settings: Settings, n_layer: int) -> TranscoderOptions:
    """Options of the training of a set, from its settings."""
    if settings.activation is None:
        raise ValueError("activation must be 'topk' or 'jump_relu', got None")
    return TranscoderOptions(
        steps=settings.steps,
        n_features=(settings.first_features, *[settings.features] * (n_layer - 1)),
        activation=settings.activation,
        top_k=settings.top_k,
        l0=None if settings.activation == "topk" else _l0(settings, n_layer),
        seed=settings.seed,
        lr=schedules.Warmup(settings.lr, 20, "linear", begin=1 - settings.tail, final=0.02),
        dead_after=settings.dead_after,
        aux_k=settings.aux_k,
        aux_weight=settings.aux_weight,
    )


def _l0(settings: Settings, n_layer: int) -> schedules.PerLayer:
    """Active features of each layer."""

    def falling(begin: float, end: float, n_features: int) -> schedules.Pieces:
        return schedules.linear(min(begin, n_features), min(end, n_features), 0.0, settings.l0_until)

    first = falling(settings.first_l0_begin, settings.first_l0, settings.first_features)
    other = falling(settings.l0_begin, settings.l0, settings.features)
    return schedules.per_layer([first, *[other] * (n_layer - 1)])


def how_to_repeat(name: str, settings: Mapping[str, Any]) -> str:
    """What makes a set of these settings again, in Markdown."""
    usual = Settings(seed=settings["seed"]).of_set(name).shown()
    changed = [f"{field}={json.dumps(value)}" for field, value in settings.items() if value != usual[field]]
    if not changed:
        return f"`attnsparse train demo-transcoder --seed {settings['seed']}`"
    arguments = ", ".join(['"models"', f"seed={settings['seed']}", *changed])
    return f'`attnsparse.recipes.RECIPES["demo-transcoder"].train({arguments})`'


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
    return [_train_set(name, out, chosen.of_set(name), threads, quiet) for name in SETS]


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


def card(name: str, facts: SetFacts, settings: Mapping[str, Any]) -> str:
    """The card of a set. settings: of the recipe, by name."""
    return cards.transcoders_card(name, facts, settings, how_to_repeat(name, settings), HISTORY_EVERY)


def write_facts(folder: Path, facts: SetFacts, history: pd.DataFrame, settings: Settings) -> None:
    """Write README.md, card.json and history.csv (every HISTORY_EVERY-th step) into a set's folder."""
    content = {**facts, "settings": settings.shown(), "attnsparse": __version__}
    write_atomic(folder / "card.json", [(json.dumps(content, indent=2) + "\n").encode()])
    cards.write(folder, card(folder.name, facts, settings.shown()))
    rows = history[history["step"] % HISTORY_EVERY == 0].groupby("step", as_index=False).mean()
    write_csv(folder / "history.csv", rows.drop(columns="layer"))
