"""Recipes under MPI: the first process leads, the others take part in its training and do nothing else.

The leader runs the recipe. Each phase of training that it comes to is sent to the others, which make the same
trainer and train; between phases they wait. So texts, evaluations, model folders and cards are one process's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model.model import Model
from ..training.checkpoint import checkpoint_name, checkpoint_steps
from ..training.data import Data
from ..training.options import TrainingOptions
from ..training.processes import INTERRUPTS
from ..training.trainer import Trainer

_TAG = 7301  # of what the leader sends
_WAIT_SECONDS = 0.01


@dataclass(frozen=True)
class Phase:
    """A phase of training, as it is sent."""

    folder: Path
    """Of its checkpoints; if it has some, the phase is continued."""
    options: TrainingOptions
    source: Data
    how: dict[str, Any]
    """Other arguments of the trainer."""
    kept: tuple[int, Path] | None
    """A step on the way, and the folder that keeps its checkpoint."""
    progress: bool | None

    def run(self, model: Model, resume: bool, comm: Any) -> Trainer:
        """The phase run to its end, by all processes of `comm`."""
        how = {"folder": self.folder, "comm": comm, **self.how}
        if resume:
            tokenizer = model.tokenizer
            trainer = Trainer.resume(self.folder, self.source, self.options, tokenizer=tokenizer, **how)
        else:
            trainer = Trainer(model, self.source, self.options, **how)
        if self.kept is not None:
            step, folder = self.kept
            trainer.train(progress=self.progress, until=step)
            trainer.save(folder / checkpoint_name(step))
        return trainer.train(progress=self.progress)


class FollowerError(RuntimeError):
    """A process failed where the leader does not wait for it."""


class Leader:
    """The first process of `comm`; None: the only one."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm

    def run(self, phase: Phase, model: Model) -> Trainer:
        """A phase run to its end by all processes."""
        resume = bool(checkpoint_steps(phase.folder))
        if self._comm is None:
            return phase.run(model, resume, None)
        with INTERRUPTS.held():  # until all take part
            self._send((phase, model.to_bytes(), resume))
            return phase.run(model, resume, self._comm)

    def dismiss(self) -> None:
        """Let the others go."""
        if self._comm is not None:
            with INTERRUPTS.held():
                self._send(None)

    def _send(self, message: Any) -> None:
        requests = [self._comm.isend(message, rank, _TAG) for rank in range(1, self._comm.size)]
        for request in requests:
            while not request.test()[0]:
                time.sleep(_WAIT_SECONDS)


def follow(comm: Any) -> None:
    """Take part in what the leader trains, until it is done or has failed.

    What fails in a phase fails in the leader too, which says so. Ctrl-C between phases is the leader's.
    """
    while (message := _received(comm)) is not None:
        phase, model, resume = message
        with contextlib.suppress(Exception, KeyboardInterrupt):
            phase.run(Model.from_bytes(model), resume, comm)


def _received(comm: Any) -> Any:
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            while not comm.iprobe(source=0, tag=_TAG):
                time.sleep(_WAIT_SECONDS)
            return comm.recv(source=0, tag=_TAG)


@contextlib.contextmanager
def leading(comm: Any) -> Iterator[Leader]:
    """The leader of `comm`, which lets the others go at the end, however it comes."""
    leader = Leader(comm)
    try:
        yield leader
    finally:
        leader.dismiss()


def led(comm: Any, train: Callable[[Leader], list[Path]]) -> list[Path]:
    """What `train` gives in the first process, and nothing in the others, which follow."""
    if comm is not None and comm.rank > 0:
        try:
            follow(comm)
        except Exception as error:
            text = " ".join(str(error).split())
            raise FollowerError(f"{type(error).__name__}: {text}") from error
        return []
    with leading(comm) as leader:
        return train(leader)
