"""The recipes: how each model inside the package was trained, as something that runs.

`RECIPES["addition"].train("models")` is the same as `attnsparse train addition --out models`. The code of a
recipe is imported when it is run.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _check

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A recipe: its name, one line about it, the models it makes, and the module that has its `train`."""

    name: str
    summary: str
    models: tuple[str, ...]
    module: str

    def train(
        self,
        out: str | os.PathLike[str],
        *,
        seed: int | None = None,
        resume: bool = False,
        threads: int = 0,
        quiet: bool = False,
        **settings: Any,
    ) -> list[Path]:
        """Train the models into folders of `out`; returns these folders.

        seed: None for the recipe's own.
        resume: go on with the run that `out` holds, FileNotFoundError if there is none; without it,
        FileExistsError if there is one.
        threads: 0 for as many as this process may use; bits do not depend on it.
        settings: fields of the recipe's settings that are to differ from its defaults.
        """
        folder = Path(_check.path(out, "out"))
        module = importlib.import_module(self.module, __name__)
        return module.train(folder, seed=seed, resume=resume, threads=threads, quiet=quiet, **settings)


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
            "12 x 12 heads on templates of English: dense, two sparse twins, control; about 40 minutes",
            ("demo-dense", "demo-sparse", "demo-sparse-max", "demo-control"),
            ".demo",
        ),
        Recipe(
            "demo-transcoder",
            "transcoders of demo-dense and demo-sparse, about ten minutes",
            ("demo-dense-transcoders", "demo-sparse-transcoders"),
            ".transcoders",
        ),
    )
}
