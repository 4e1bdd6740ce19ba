"""What the recipes share: one run in one folder, made of phases that go on where they were stopped."""

from __future__ import annotations

from pathlib import Path

from .model import Model
from .trainer import Trainer
from .training_data import Data
from .training_options import TrainingOptions
from .training_state import checkpoint_steps

CHECKPOINTS = "checkpoints"


class RecipeJob:
    """Phases keep their checkpoints in `out/checkpoints/NAME`; FileExistsError if there are some of an
    earlier run and `resume` is not asked for."""

    def __init__(self, out: Path, resume: bool, threads: int, quiet: bool, checkpoint_every: int) -> None:
        self.out, self.quiet = out, quiet
        self._how = {"threads": threads, "checkpoint_every": checkpoint_every}
        if not resume and (out / CHECKPOINTS).exists():
            raise FileExistsError(17, "holds a run already; resume it or choose another folder", str(out))

    def phase(self, name: str, options: TrainingOptions, model: Model, source: Data) -> Trainer:
        """A phase run to its end, from its last checkpoint if there is one."""
        folder = self.out / CHECKPOINTS / name
        if checkpoint_steps(folder):
            tokenizer = model.tokenizer
            trainer = Trainer.resume(folder, source, options, tokenizer=tokenizer, folder=folder, **self._how)
        else:
            trainer = Trainer(model, source, options, folder=folder, **self._how)
        return trainer.run(progress=False if self.quiet else None)
