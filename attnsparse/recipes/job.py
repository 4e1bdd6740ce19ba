"""Shared by the recipes: settings, a run in one folder whose phases can be resumed, and histories."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from .. import figures
from ..io.atomic import write_atomic
from ..model.model import Model
from ..training.checkpoint import checkpoint_steps
from ..training.data import Data
from ..training.options import TrainingOptions
from ..training.trainer import Trainer
from .together import Leader, Phase

if TYPE_CHECKING:
    from ..model.tokenizer import Tokenizer

CHECKPOINTS = "checkpoints"

Settings = TypeVar("Settings", bound="RecipeSettings")


@dataclass(frozen=True)
class RecipeSettings:
    """Settings of every recipe; subclasses add those of one recipe."""

    seed: int = 0
    checkpoint_every: int = 250
    """Steps from one checkpoint to the next, which do not affect the result."""

    @classmethod
    def of(cls: type[Settings], seed: int | None, chosen: Mapping[str, Any]) -> Settings:
        """The settings with some fields `chosen`; TypeError if one of them does not exist."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in chosen:
            if name not in known:
                raise TypeError(f"unknown setting {name!r:.60}; choose from {', '.join(known)}")
        return cls(**({} if seed is None else {"seed": seed}), **chosen)

    def shown(self) -> dict[str, Any]:
        """Name -> value of every setting that affects the result."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "checkpoint_every"}


@dataclass(frozen=True)
class SharedSettings(RecipeSettings):
    """Settings of recipes whose training processes can share; subclasses add those of one recipe."""

    parts: int = 1
    """Parts of a step, as in `TrainingOptions`."""

    def shown(self) -> dict[str, Any]:
        """Name -> value of every setting that affects the result; `parts` if it is not 1."""
        return {name: value for name, value in super().shown().items() if (name, value) != ("parts", 1)}


def checkpoints_folder(out: Path, resume: bool) -> Path:
    """The folder `out/checkpoints`, made here for a new run, so that it is there however early the run stops.

    FileExistsError if it exists and `resume` is not asked for, FileNotFoundError if it does not and it is.
    """
    folder = out / CHECKPOINTS
    if folder.exists() and not resume:
        raise FileExistsError(17, "already holds a run; resume it or choose another folder", str(out))
    if resume and not folder.is_dir():
        raise FileNotFoundError(2, "holds no run; check the folder's name, or start without resume", str(out))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def gated_twin(model: Model, name: str, changed: Mapping[str, np.ndarray] | None = None) -> Model:
    """A copy of `model` with the gate switched on (gate_bias as in its config) and some weights changed."""
    config = dataclasses.replace(model.config, gated=True)
    weights = {**model.parameters(), **(changed or {})}
    return Model(config, weights, tokenizer=model.tokenizer, name=name)


class RecipeJob:
    """Phases keep their checkpoints in `out/checkpoints/NAME`; errors as of `checkpoints_folder`."""

    def __init__(
        self,
        out: Path,
        resume: bool,
        threads: int | None,
        quiet: bool,
        settings: SharedSettings,
        leader: Leader | None,
    ) -> None:
        self.out, self.quiet = out, quiet
        self._leader = Leader(None) if leader is None else leader
        self._how = {"threads": threads, "checkpoint_every": settings.checkpoint_every}
        self._parts = settings.parts
        self._checkpoints = checkpoints_folder(out, resume)

    def phase(
        self,
        name: str,
        options: TrainingOptions,
        model: Model,
        source: Data,
        kept_step: int = 0,
        **held_out: Any,
    ) -> Trainer:
        """A phase run to its end, from its last checkpoint if there is one.

        kept_step: a step on the way whose checkpoint is kept for `at_kept_step`. held_out: arguments of the
        trainer about held-out sequences.
        """
        kept = None
        if kept_step and not checkpoint_steps(self._kept(name)):
            self._kept(name).mkdir(parents=True, exist_ok=True)
            kept = (kept_step, self._kept(name))
        phase = Phase(
            self._checkpoints / name,
            dataclasses.replace(options, parts=self._parts),
            source,
            {**self._how, **held_out},
            kept,
            False if self.quiet else None,
        )
        return self._leader.run(phase, model)

    def at_kept_step(self, name: str, source: Data, tokenizer: Tokenizer | None) -> Trainer:
        """The trainer of phase `name` as it was at its `kept_step`."""
        return Trainer.resume(self._kept(name), source, tokenizer=tokenizer)

    def _kept(self, name: str) -> Path:
        return self._checkpoints / f"{name}-kept"


def joined_history(phases: Sequence[Trainer]) -> pd.DataFrame:
    """The histories of phases one after the other, numbered, with continuous steps; without seconds."""
    parts: list[pd.DataFrame] = []
    begin = 0
    for number, trainer in enumerate(phases):
        part = trainer.history().drop(columns="seconds")
        part.insert(0, "phase", number)
        part["step"] += begin
        begin += len(part)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table, numbers with six digits."""
    text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_atomic(path, [text.encode()])


def write_history(folder: Path, history: pd.DataFrame, target: float | None = None) -> None:
    """Write history.csv and its figure, history.png, into a model's folder.

    target: the cross-entropy that training aimed at, drawn as a line.
    """
    write_csv(folder / "history.csv", history)
    axes = figures.training_history(history, target=target)
    figures.save(axes, folder / "history", ("png",), dpi=100)
    plt.close(axes.figure.figure)
