"""The recipe "demo-transcoder": a set of transcoders for each of the models demo-dense and demo-sparse.

Both sets are trained alike, on text of another seed than the models were. The first layer has more features
than the others and fewer of them active, because it alone sees words as they are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import schedules, transcoder_card
from .checkpoint import load
from .demo_text import DemoText
from .recipe_job import CHECKPOINTS
from .saving import remove_stale
from .training_data import Batch
from .transcoder_options import TranscoderOptions
from .transcoder_train import TranscoderTrainer
from .transcoder_write import save_transcoders

SETS = {"demo-dense-transcoders": "demo-dense", "demo-sparse-transcoders": "demo-sparse"}
"""Set -> embedded model that it belongs to."""

SEEDS_APART = 1000  # the text has the seed 1000 (seed + 1); recipe_demo's seeds are far below


FOCUS = ("antonym",)  # kinds of sentences that the focused part of the text consists of


@dataclass(frozen=True)
class Settings:
    """Everything of the recipe that can be chosen. `checkpoint_every` has no influence on the result."""

    seed: int = 0
    batch: int = 32
    """Sequences of 32 tokens in a step."""
    focused: int = 8
    """So many of them consist of opposites only."""
    steps: int = 600
    first_features: int = 1536
    """Features of layer 0."""
    features: int = 512
    """Features of every other layer."""
    l0: tuple[float, ...] = (16, 6, 6, 6, 6, 6, 6, 6, 8, 8, 8, 8)
    """Active features per token that each layer is to have from the middle of the training on."""
    start_l0: tuple[float, float] = (36, 16)
    """The same at the start, in layer 0 and in the others."""
    sparsity: float = 3e-4
    l0_rate: float = 0.05
    threshold: tuple[float | None, float] = (None, 0.5)
    """At the start, in layer 0 and in the others; None: such that 16 features are active on average."""
    bandwidth: float = 0.5
    lr: float = 5e-3
    tail: float = 0.6
    """Share of the steps in which the learning rate falls."""
    dead_after: int = 50
    aux_k: int = 8
    aux_weight: float = 0.125
    checkpoint_every: int = 100


class FocusedText:
    """Demo text in which `focused` of `batch` sequences are opposites: a word in quotation marks, and the
    token before its opposite, are rare in the whole text, and features need examples.

    See `training_data.Data`; targets and weights are those of the parts.
    """

    def __init__(self, batch: int, focused: int, seed: int) -> None:
        self._parts = (DemoText(batch - focused, seed=seed), DemoText(focused, seed=seed, kinds=FOCUS))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the digests of both parts."""
        return hashlib.sha256("".join(part.digest for part in self._parts).encode()).hexdigest()

    def batch(self, step: int, micro: int = 0) -> Batch:
        """The sequences of both parts."""
        tokens, offsets, targets, weights = zip(*(part.batch(step, micro) for part in self._parts))
        joined = np.concatenate([offsets[0], offsets[0][-1] + offsets[1][1:]])
        return np.concatenate(tokens), joined, np.concatenate(targets), np.concatenate(weights)


def options(settings: Settings) -> TranscoderOptions:
    """Options of the training of either set."""
    targets = [
        schedules.linear(settings.start_l0[layer > 0], l0, 0, 0.5) for layer, l0 in enumerate(settings.l0)
    ]
    first, other = settings.threshold
    return TranscoderOptions(
        steps=settings.steps,
        n_features=(settings.first_features, *[settings.features] * (len(settings.l0) - 1)),
        activation="jump_relu",
        seed=settings.seed,
        lr=schedules.Warmup(settings.lr, 20, "linear", begin=1 - settings.tail, final=0.02),
        sparsity=settings.sparsity,
        l0=schedules.per_layer(targets),
        l0_rate=settings.l0_rate,
        threshold=(first, *[other] * (len(settings.l0) - 1)),
        bandwidth=settings.bandwidth,
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
    checkpoints = out / CHECKPOINTS
    if not resume and checkpoints.exists():
        raise FileExistsError(17, "holds a run already; resume it or choose another folder", str(out))
    checkpoints.mkdir(parents=True, exist_ok=True)
    remove_stale(checkpoints)
    return [_train_set(name, out, chosen, threads or None, quiet) for name in SETS]


def _train_set(name: str, out: Path, settings: Settings, threads: int | None, quiet: bool) -> Path:
    model = load(SETS[name])
    text = FocusedText(settings.batch, settings.focused, SEEDS_APART * (settings.seed + 1))
    trainer = TranscoderTrainer(model, text, options(settings), name=name, threads=threads)
    path = out / CHECKPOINTS / f"{name}.ckpt"
    if path.exists():
        trainer.load(path)
    trainer.run(path, settings.checkpoint_every, False if quiet else None)
    folder = out / name
    save_transcoders(trainer.transcoders(), folder, dtype=transcoder_card.DTYPE)
    facts = transcoder_card.measure(folder, model, trainer.transcoders())
    transcoder_card.write(folder, facts, trainer.history, settings)
    if not quiet:
        print(transcoder_card.summary(facts), flush=True)
    return folder
