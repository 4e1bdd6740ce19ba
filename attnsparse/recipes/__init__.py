"""The recipes: how each model inside the package was trained, and models of text of yours.

`RECIPES["addition"].train("models")` does the same as `attnsparse train addition --out models`. The code of a
recipe is imported when it is run.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .. import _check

__all__ = ["RECIPES", "Recipe"]


class _Training(Protocol):
    """The `train` of a recipe's module."""

    def __call__(self, out: Path, **given: Any) -> list[Path]: ...


@dataclass(frozen=True)
class Recipe:
    """How models are made, those inside the package among them, as something that runs.

    Attributes
    ----------
    name : str
        Name of the recipe, as `attnsparse train` takes it.
    summary : str
        One line about it.
    models : tuple of str
        Names of the models, or sets of transcoders, that it makes.
    module : str
        Module of this package that has its `train`, imported when it is run.
    needs_corpus : bool
        Whether it learns from text files of yours, ``train(..., corpus=files)``.
    shared : bool
        Whether processes can share its training, ``train(..., comm=communicator)``.
    """

    name: str
    summary: str
    models: tuple[str, ...]
    module: str
    needs_corpus: bool = False
    shared: bool = True

    def train(
        self,
        out: str | os.PathLike[str],
        *,
        seed: int | None = None,
        resume: bool = False,
        threads: int | None = None,
        quiet: bool = False,
        comm: Any = None,
        **settings: Any,
    ) -> list[Path]:
        """Train the models of this recipe and write each into a folder of its own.

        Parameters
        ----------
        out : str or path
            Folder for the models; made if need be. Checkpoints go to `out/checkpoints`, which may be deleted
            when training is done.
        seed : int, optional
            Seed of weights, text and noise, 0..2^64-1; by default the recipe's own, with which the models
            inside the package were made.
        resume : bool, default False
            Continue the run that `out` holds. The result is the same as without the interruption.
        threads : int, optional
            Number of threads, 1..64; by default as many as this process may use. Bits do not depend on it.
        quiet : bool, default False
            Print nothing and show no progress bars.
        comm : mpi4py.MPI.Intracomm, optional
            All its processes call this and share each step of training, of ``parts=`` as many parts or more;
            the first one does everything else. `out` must be a folder that all of them see.
        **settings
            Fields of the recipe's `Settings` that are to differ from their defaults, such as
            ``dense_steps=500`` or ``parts=8``. A recipe that `needs_corpus` takes `corpus` besides, a path or
            a list of them to UTF-8 texts, which are read in place, and ``tiny=True`` for a trial that takes
            seconds.

        Returns
        -------
        list of Path
            The folders of the models, in the order of `models`; in processes of `comm` after the first, none.

        Raises
        ------
        FileExistsError
            If `out` holds a run and `resume` is False.
        FileNotFoundError
            If `out` holds no run and `resume` is True.
        CheckpointError
            If the run that is resumed had other settings.
        TypeError, ValueError
            For a setting that does not exist or is out of range.
        """
        folder = Path(_check.path(out, "out"))
        train: _Training = importlib.import_module(self.module, __name__).train
        given = {
            "seed": None if seed is None else _check.seed(seed),
            "resume": _check.flag(resume, "resume"),
            "threads": _check.threads(threads) or None,
            "quiet": _check.flag(quiet, "quiet"),
            **settings,
        }
        if comm is None:
            return train(folder, **given)
        if not self.shared:
            raise ValueError(f"the recipe {self.name} trains in one process, without comm and mpirun")
        led = importlib.import_module(".together", __name__).led
        folders: list[Path] = led(comm, lambda leader: train(folder, leader=leader, **given))
        return folders


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "addition",
            "two-digit addition, dense and sparse, about two minutes",
            ("addition-dense", "addition-sparse"),
            ".addition",
        ),
        Recipe(
            "demo",
            "12 x 12 heads on templates of English: dense, two sparse twins, control; about half an hour",
            ("demo-dense", "demo-sparse", "demo-sparse-max", "demo-control"),
            ".demo",
        ),
        Recipe(
            "demo-transcoder",
            "transcoders of demo-dense and demo-sparse, about three minutes",
            ("demo-dense-transcoders", "demo-sparse-transcoders"),
            ".transcoders",
            shared=False,
        ),
        Recipe(
            "text",
            "6 x 8 heads on text files of yours (--corpus): dense, control, sparse twin; about 95 minutes",
            ("text-dense", "text-control", "text-sparse"),
            ".text",
            needs_corpus=True,
        ),
        Recipe(
            "text-frontier",
            "the same, and cross-entropy against edges per token: twins of other multipliers, attention that "
            "is sparse by a rule; with --resume into a finished run of text; about five hours",
            ("text-dense", "text-control", "text-sparse"),
            ".text_frontier",
            needs_corpus=True,
        ),
    )
}
