"""What a checkpoint holds of a run, read and checked against the run that is asked for."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from .. import _check
from . import checkpoint as state
from .data import Data
from .held_out import held_out_digest
from .history import HISTORY, History
from .options import TrainingOptions

Run = tuple[dict[str, np.ndarray], dict[str, Any], dict[int, float]]


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """The file that is meant by a path; by that of a folder its last checkpoint."""
    given = Path(_check.path(path))
    return Path(state.SCHEMA.file(state.last_checkpoint(given) if given.is_dir() else given))


def read_run(
    path: Path,
    data: Data,
    options: TrainingOptions | None,
    changes: dict[str, Any],
    held_out: tuple[Any, Any],
) -> Run:
    """Tensors and fields of a checkpoint, and the seconds of its steps.

    options: those of the run, or `changes` of what is stored. held_out: sequences and their weights.
    CheckpointError if it is of another run.
    """
    with state.opened(path, state.SCHEMA) as bundle:
        meta = state.checked_meta(bundle.fields, path)
        stored = meta["options"]
        wanted = dataclasses.replace(stored, **changes) if options is None else options
        state.check_options(stored, wanted, path)
        state.check_data(meta["data"], data.digest, path)
        given = held_out_digest(meta["config"], *held_out)
        state.check_held_out(meta.get("held_out"), given, path)
        state.check_entries(bundle.tensors, meta, path)
        tensors = bundle.read_all()
    state.check_values(tensors, meta, path)
    return tensors, meta, state.read_seconds(path.parent / HISTORY, meta["step"], list(History.columns))
