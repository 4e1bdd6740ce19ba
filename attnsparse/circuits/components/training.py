"""The training of masks of component edges: its state, and the file that keeps it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ..._core_types import MasksOptions
from ..._core_types import Task as CoreTask
from ..._display import stage_bars
from ...errors import raise_file_error
from ...model.model import Model
from ...tasks.task import Task
from ..find import SAVE_SECONDS
from ..search_file import SearchFile, question
from . import names

HISTORY = (
    "objective", "loss", "density", "target", "node_density", "node_target", "multiplier",
    "square_multiplier",
)  # fmt: skip
"""What is known of each step."""
SLICE_SECONDS = 3.0  # of the steps that are lost if a training ends between two of them, about


class MaskState(NamedTuple):
    """After some steps; n are the masks of component edges [senders, receivers] and those of senders."""

    parameters: np.ndarray  #: real [3, n]: log alphas, and the moments of Adam
    multipliers: np.ndarray  #: real [3, 4]: of edge pruning, and their moments
    history: np.ndarray  #: float64 [steps, 8]
    expected: np.ndarray  #: float64 [n]: probabilities that masks are not 0


class MaskTraining:
    """How far a training is."""

    def __init__(self, model: Model, task: CoreTask, options: MasksOptions, start: float) -> None:
        self._core, self._task, self._options = model._core, task, options
        n_before = model._core.component_senders_before()
        self.shape = (len(names.senders(model.config)), len(n_before))
        self.exists = np.arange(self.shape[0])[:, None] < n_before
        n = self.exists.size
        parameters = np.zeros((3, n + self.shape[0]), model.dtype)
        parameters[0, :n] = np.where(self.exists, start, 0).ravel()
        parameters[0, n:] = start if options.nodes else 0
        multipliers, history = np.zeros((3, 4), model.dtype), np.zeros((0, len(HISTORY)))
        self.state = MaskState(parameters, multipliers, history, np.zeros(n + self.shape[0]))

    @property
    def log_alpha(self) -> np.ndarray:
        """Float64 [senders, receivers]."""
        numbers = self.state.parameters[0, : self.exists.size].astype(np.float64)
        return numbers.reshape(self.shape)

    @property
    def expected(self) -> np.ndarray:
        """Float64 [senders, receivers]: probabilities that masks are not 0."""
        return self.state.expected[: self.exists.size].reshape(self.shape)

    @property
    def of_senders(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Float64 [senders] each: log alphas and probabilities; None if senders have no masks."""
        if not self._options.nodes:
            return None
        n = self.exists.size
        return self.state.parameters[0, n:].astype(np.float64), self.state.expected[n:]

    def take_all_steps(self, kept: SearchFile | None, threads: int, progress: bool | None) -> None:
        """Train to the end, from where `kept` is to where it is kept."""
        with stage_bars(progress) as tell:
            if kept is None:
                self._take(self._options.steps, threads, tell)
            else:
                self._take_slices(kept, threads, tell)

    def _take_slices(self, kept: SearchFile, threads: int, tell: Any) -> None:
        """So few steps at a time that little is lost with those that do not end."""
        state = kept.read()
        if state is not None:
            self._restore(kept, state)
        written, n = time.monotonic(), 1
        while True:
            began = time.monotonic()
            try:
                self._take(n, threads, tell)
            except (KeyboardInterrupt, MemoryError):
                kept.write(self._kept_state())
                raise
            if len(self.state.history) == self._options.steps:
                break
            now = time.monotonic()
            n = 2 * n if now - began < SLICE_SECONDS else n
            if now - written >= SAVE_SECONDS:
                kept.write(self._kept_state())
                written = now
        kept.write(self._kept_state())

    def _take(self, n: int, threads: int, tell: Any) -> None:
        before = self.state
        step = len(before.history)
        parameters, multipliers, rows, expected = self._core.component_masks(
            self._task, step, min(step + n, self._options.steps), before.parameters, before.multipliers,
            self._options, threads, tell,
        )  # fmt: skip
        # At once: Ctrl-C comes before or after it.
        self.state = MaskState(parameters, multipliers, np.concatenate([before.history, rows]), expected)

    def _kept_state(self) -> np.ndarray:
        """As the file keeps it: the bits of float64 numbers."""
        parts = [part.astype(np.float64).ravel() for part in self.state[:3]]
        return np.concatenate(parts).view(np.int64)

    def _restore(self, kept: SearchFile, state: np.ndarray) -> None:
        numbers, (parameters, multipliers, _, expected) = state.view(np.float64), self.state
        n, m = parameters.size, multipliers.size
        steps, rest = divmod(len(numbers) - n - m, len(HISTORY))
        if rest or not 0 <= steps <= self._options.steps or not np.isfinite(numbers[: n + m]).all():
            raise_file_error("value", kept.path, "state is none of this training", "state")
        self.state = MaskState(
            numbers[:n].reshape(parameters.shape).astype(parameters.dtype),
            numbers[n : n + m].reshape(multipliers.shape).astype(multipliers.dtype),
            numbers[n + m :].reshape(steps, len(HISTORY)).copy(),
            expected,
        )


def mask_question(
    model: Model, task: Task, method: str, options: MasksOptions, start: float, metric: str
) -> dict[str, Any]:
    """All that the bits of the masks depend on."""
    measure = options.measure
    used = {name: value for name, value in options._asdict().items() if name != "measure"}
    prompts = (measure.reference, measure.reference_offsets)
    names_of_search = {
        "method": method,
        "model_digest": model.digest,
        "task_digest": task.digest,
        "metric": metric,
        "options": {
            **used,
            "start": start,
            "ablation": measure.ablation,
            "denoising": measure.denoising,
            "held_gate": measure.held_gate,
            "reference": None if prompts[0] is None else _digest(prompts),
        },
    }
    return question(model, names_of_search)


def _digest(arrays: Iterable[Any]) -> str:
    """SHA-256 of the bytes of arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
