"""What the recipes share: one run in one folder, made of phases that go on where they were stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..model.model import Model
from ..training.checkpoint import checkpoint_name, checkpoint_steps
from ..training.data import Data
from ..training.options import TrainingOptions
from ..training.trainer import Trainer

if TYPE_CHECKING:
    import pandas as pd

    from ..model.tokenizer import Tokenizer

CHECKPOINTS = "checkpoints"


def checkpoints_folder(out: Path, resume: bool) -> Path:
    """The folder `out/checkpoints`, made here for a new run, so that it is there however early the run stops.

    FileExistsError if it exists and `resume` is not asked for, FileNotFoundError if it does not and it is.
    """
    folder = out / CHECKPOINTS
    if folder.exists() and not resume:
        raise FileExistsError(17, "holds a run already; resume it or choose another folder", str(out))
    if resume and not folder.is_dir():
        raise FileNotFoundError(2, "holds no run; check the folder's name, or start without resume", str(out))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class RecipeJob:
    """Phases keep their checkpoints in `out/checkpoints/NAME`; errors as of `checkpoints_folder`."""

    def __init__(self, out: Path, resume: bool, threads: int, quiet: bool, checkpoint_every: int) -> None:
        self.out, self.quiet = out, quiet
        self._how = {"threads": threads, "checkpoint_every": checkpoint_every}
        self._checkpoints = checkpoints_folder(out, resume)

    def phase(
        self, name: str, options: TrainingOptions, model: Model, source: Data, kept_step: int = 0
    ) -> Trainer:
        """A phase run to its end, from its last checkpoint if there is one.

        kept_step: a step on the way whose checkpoint stays, for `at_kept_step`.
        """
        folder = self._checkpoints / name
        if checkpoint_steps(folder):
            tokenizer = model.tokenizer
            trainer = Trainer.resume(folder, source, options, tokenizer=tokenizer, folder=folder, **self._how)
        else:
            trainer = Trainer(model, source, options, folder=folder, **self._how)
        progress = False if self.quiet else None
        if kept_step and not checkpoint_steps(self._kept(name)):
            trainer.train(progress=progress, until=kept_step)
            self._kept(name).mkdir(parents=True, exist_ok=True)
            trainer.save(self._kept(name) / checkpoint_name(kept_step))
        return trainer.train(progress=progress)

    def at_kept_step(self, name: str, source: Data, tokenizer: Tokenizer | None) -> Trainer:
        """The trainer of phase `name` as it was at its `kept_step`."""
        return Trainer.resume(self._kept(name), source, tokenizer=tokenizer)

    def _kept(self, name: str) -> Path:
        return self._checkpoints / f"{name}-kept"


def joined_history(phases: Sequence[Trainer]) -> pd.DataFrame:
    """The histories of phases one after the other, steps counted on, with their numbers; without seconds."""
    import pandas as pd

    parts, begin = [], 0
    for number, trainer in enumerate(phases):
        part = trainer.history().drop(columns="seconds")
        part.insert(0, "phase", number)
        part["step"] += begin
        begin += len(part)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
