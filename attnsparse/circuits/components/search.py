"""The file in which ACDC keeps what it has found, and continues from."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any

import numpy as np

from ..._core_types import ComponentOptions
from ...errors import raise_file_error
from ...model.model import Model
from ...tasks.custom import CustomMetric, chosen_metric, metric_name
from ...tasks.task import Task
from ..search_file import SearchFile, question
from .file import exists
from .names import Shape

SAVE_SECONDS = 30.0  # between two times that a measurement is kept
_STATE = "state"


class ComponentSearch:
    """What ACDC has found of this question, in a file that need not exist yet.

    Whenever something more is found the core asks `due`, and calls `write` then, where it is stopped, and at
    the end.
    """

    def __init__(self, path: str | os.PathLike[str], asked: dict[str, Any]) -> None:
        self._file = SearchFile(path, asked)
        self._saved = time.monotonic()

    def read(self, n_numbers: int, total: int) -> np.ndarray | None:
        """The state that is kept, of so many numbers; None if there is no file."""
        state = self._file.read()
        if state is not None and (len(state) != n_numbers or not 0 <= state[0] <= total):
            text = f"'state' must have {n_numbers:,} numbers, the first in 0..{total:,}, got {len(state):,}"
            raise_file_error("value", self._file.path, text, _STATE)
        return state

    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() - self._saved >= SAVE_SECONDS

    def write(self, state: np.ndarray) -> None:
        """Keep the state; the file is the old one or the new one, whatever happens."""
        self._file.write(state)
        self._saved = time.monotonic()


def kept_search(
    resume: str | os.PathLike[str] | None,
    model: Model,
    task: Task,
    metric: str | CustomMetric | None,
    options: ComponentOptions,
    **others: Any,
) -> tuple[np.ndarray | None, ComponentSearch | None]:
    """The state to continue from and where it is kept, as the core takes them.

    others: method, and what else the result depends on.
    """
    if resume is None:
        return None, None
    reference = hashlib.sha256()
    for array in (options.reference, options.reference_offsets):
        reference.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    asked = {
        "model_digest": model.digest,
        "task_digest": task.digest,
        "metric": metric_name(chosen_metric(metric, task)),
        "ablation": options.ablation,
        "direction": "denoising" if options.denoising else "noising",
        "gate": "held" if options.held_gate else "recomputed",
        "reference": None if options.reference is None else reference.hexdigest(),
        "options": others,
    }
    search = ComponentSearch(resume, question(model, asked))
    real = exists(Shape(model.config.n_layer, model.config.n_head))
    n_numbers = 3 + real.size + -(-real.size // 8)
    return search.read(n_numbers, int(real.sum())), search
