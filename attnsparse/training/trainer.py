"""Trainer: optimiser steps on a model, dense or with the sparse gate, that can stop and continue anywhere.

The arithmetic of a step is the C core's (forward, backward, AdamW, multiplier). This file decides what goes
into each step, keeps the history and saves. All state changes at step boundaries only, so Ctrl-C, a diverged
step or a failed save leave a trainer that can continue.
"""

from __future__ import annotations

import functools
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from .. import _check
from .._display import progress_bar
from .._engine import core_for
from ..io.atomic import write_atomic
from ..io.bundle import write_bundle
from ..items import valid_text
from ..model.model import Model
from . import checkpoint as state
from .data import Batch, Data, settled
from .held_out import FIELDS, HeldOut, HeldOutResult, Limit
from .history import HISTORY, History, progress_text
from .one_thread import OneThread
from .options import TrainingOptions
from .processes import processes_of
from .resume import checkpoint_file, read_run
from .schedules import value_at

if TYPE_CHECKING:
    import pandas as pd

    from .. import _core

BEST = "best.checkpoint.safetensors"


class Trainer:
    """Trains a model in place.

    One thread uses a trainer at a time: while `step`, `train` or `save` works, all three raise RuntimeError
    in other threads.

    With `comm`, the processes of an MPI communicator share every step. All of them make the same trainer and
    the same calls in the same order. Each computes some of the step's `parts` and keeps the moments of a
    slice of the weights; the first one alone writes files and shows a bar. Weights, history and checkpoints
    have the same bits for any number of processes, and without `comm`, on processors of one kind. What stops
    one process, Ctrl-C included, is raised in all: in the others as RuntimeError or KeyboardInterrupt.

    Parameters
    ----------
    model : Model
        If its config is gated, it is trained for sparsity.
    data : Data
        An object with `batch` and `digest`, such as `TokenData` and `SequenceData`.
    options : TrainingOptions, optional
        The options; or give its fields as keywords.
    threads : int, optional
        1..64; None: as `set_num_threads` says, or, if nobody gave a number, processes of `comm` on one
        machine that may use the same cores divide them. Bits do not depend on it.
    folder : path, optional
        Where `train` saves ``step-NNNNNN.checkpoint.safetensors``. A folder belongs to one run; leftovers of
        a killed save are removed.
    checkpoint_every : int, default 0
        Steps between two checkpoints; 0: only one, after the last step or where `patience` ends the run.
    keep : int, default 2
        Number of checkpoints that are kept, the last ones.
    held_out : list of int arrays, or int array [n, T], optional
        Sequences of token ids that are not trained on, for `evaluate_every`.
    held_out_weights : like `held_out`, optional
        Weights of predicting each token, as in `Model.evaluate`.
    keep_best : bool, default False
        Keep the best evaluated model in the folder, as best.checkpoint.safetensors; see `best`.
    patience : int, default 0
        `train` ends after so many evaluations without a new best one; 0: never. It does not end early while
        there is no best one, as in a gated run of which no evaluation has kept the limit yet (see `best`).
    comm : mpi4py.MPI.Intracomm, optional
        Such as ``MPI.COMM_WORLD``. `options.parts` must be at least its size. None: one process.
    **settings
        Fields of `TrainingOptions`: ``Trainer(model, data, steps=100, lr=1e-3)``.

    Raises
    ------
    TypeError, ValueError
        For options that are invalid or do not fit the model.
    """

    def __init__(
        self,
        model: Model,
        data: Data,
        options: TrainingOptions | None = None,
        *,
        threads: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 0,
        keep: int = 2,
        held_out: Any = None,
        held_out_weights: Any = None,
        keep_best: bool = False,
        patience: int = 0,
        comm: Any = None,
        **settings: Any,
    ) -> None:
        if options is not None and settings:
            raise TypeError("options: give a TrainingOptions or its fields as keywords, not both")
        self._processes = processes_of(comm)
        self.threads = threads  #: None: as `set_num_threads` says
        self._folder = None if folder is None else Path(_check.path(folder, "folder"))
        self._checkpoint_every = _check.integer(checkpoint_every, "checkpoint_every", 0)
        self._keep = _check.integer(keep, "keep", 1)
        self._keep_best = _check.flag(keep_best, "keep_best")
        self._patience = _check.integer(patience, "patience", 0)
        self._turn = OneThread("trainer")
        set_up = functools.partial(self._set_up, model, data, options, settings, held_out, held_out_weights)
        with self._processes.held():
            self._processes.together(set_up)
            self._processes.agree(self._identity())
            if self._folder is not None:
                self._processes.by_first(functools.partial(state.prepare, self._folder))

    def _set_up(
        self,
        model: Model,
        data: Data,
        options: TrainingOptions | None,
        settings: dict[str, Any],
        held_out: Any,
        held_out_weights: Any,
    ) -> None:
        _check.instance(model, Model, "model")
        if options is None:
            options = TrainingOptions(**settings)
        #: the `TrainingOptions`
        self.options = _check.instance(options, TrainingOptions, "options")
        self.options.check(model.config.gated, model.config.n_layer)
        if self.options.parts < self._processes.size:
            n, parts = self._processes.size, self.options.parts
            raise ValueError(f"{n} processes need a step of {n} parts or more, got parts={parts}")
        if not callable(getattr(data, "batch", None)) or not isinstance(getattr(data, "digest", None), str):
            kind = type(data).__name__
            raise TypeError(f"data must provide batch(step, micro) and digest; {kind} does not")
        self.model = model  #: the model that is trained, changed in place
        self.data = data  #: where batches come from
        self._held_out = self._checked_held_out(held_out, held_out_weights)
        if (self._keep_best or self._patience) and self._held_out is None:
            raise ValueError("keep_best and patience need held_out sequences and evaluate_every")
        if self._keep_best and self._folder is None:
            raise ValueError("keep_best needs a folder, in which the best checkpoint is kept")
        core, processes = core_for(model.dtype), self._processes
        self._engine: _core.Trainer = core.Trainer(model._core, processes.rank, processes.size)
        self._engine.multiplier = self.options.first_multiplier()
        self._history = History(self.options, model.config)

    def _identity(self) -> dict[str, str]:
        """What all processes that train together must have the same."""
        if self._processes.size == 1:
            return {}
        held_out = None if self._held_out is None else self._held_out.digest
        how = (self._folder is None, self._checkpoint_every, self._keep_best, self._patience)
        return {
            "the model": self.model.digest,
            "the data": self.data.digest,
            "options": repr(self.options.to_dict()),
            "held_out": str(held_out),
            "folder, checkpoint_every, keep_best or patience": str(how),
        }

    def _checked_held_out(self, sequences: Any, weights: Any) -> HeldOut | None:
        every, steps = self.options.evaluate_every, self.options.steps
        if sequences is None:
            if every:
                raise ValueError(f"evaluate_every={every} needs held_out sequences")
            if weights is not None:
                raise ValueError("held_out_weights are of held_out sequences, which were not given")
            return None
        if not every:
            raise ValueError("held_out sequences need evaluate_every, the steps between two evaluations")
        return HeldOut(self.model.config, sequences, weights, every, steps)

    @property
    def step_count(self) -> int:
        """Optimiser steps done."""
        return self._engine.step_count

    @property
    def multiplier(self) -> float:
        """Multiplier of the constraint, for the next step."""
        return self._engine.multiplier

    @property
    def finished(self) -> bool:
        """Whether all `options.steps` steps are done."""
        return self.step_count >= self.options.steps

    @property
    def best(self) -> HeldOutResult | None:
        """The best evaluation so far: step, ce, edges_per_token and self_edges_per_token.

        Of a gated model the one with fewest edges among those whose cross-entropy is at most tau (with slack,
        at that step), or with constraint="edges" the least cross-entropy among those with at most so many
        edges. Of a dense model the least cross-entropy. None if there is none.
        """
        return None if self._held_out is None else self._held_out.best(*self._judged())

    def _judged(self) -> tuple[bool, Limit]:
        """Whether the model is gated, and what its evaluations must keep."""
        options = self.options
        if options.constraint != "edges":
            return self.model.config.gated, Limit(lambda step: options.limit(step - 1), None)
        target = options.edges_per_token
        assert target is not None
        return self.model.config.gated, Limit(None, lambda step: value_at(target, step - 1, options.steps))

    def step(self) -> dict[str, Any]:
        """One optimiser step.

        Returns
        -------
        dict
            step (from 0), loss and ce in nats, expected_edges, open_edges and open_self (self edges) as
            shares of all entries, edges_per_token, self_edges_per_token, multiplier, ema, constrained (what
            was compared with the target), grad_norm and tokens.

        Raises
        ------
        ValueError
            After the last step.
        TrainingDiverged
            When the loss or the gradient is not finite; nothing is changed.
        KeyboardInterrupt
            On Ctrl-C; the step is either done or not begun.
        """
        with self._turn:
            return self._step()

    def _step(self) -> dict[str, Any]:
        if self.finished:
            raise ValueError(f"all {self.options.steps:,} steps are done; train more steps in a new run")
        with self._processes.held():
            self._evaluate_if_due()
            begin, step = time.perf_counter(), self.step_count
            self._processes.step(
                self._engine,
                lambda: [self._batch(step, micro) for micro in range(self.options.accumulation)],
                self.options.parts,
                self._arguments(step),
                _check.threads(self._processes.threads() if self.threads is None else self.threads),
                self._history.results,
            )
            self._history.seconds[step] = time.perf_counter() - begin
            return dict(self._history.results[step])

    def _evaluate_if_due(self) -> None:
        """Evaluate if that is due and was not done yet, before a step and a save."""
        if self._held_out is None or not self._held_out.due(self.step_count):
            return
        self._held_out.measure(self.model, self.step_count, self.options.parts, self._processes)
        if self._keep_best and self.best is self._held_out.results[-1]:
            assert self._folder is not None
            with self.model._core.reading():
                self._save(self._folder / BEST)

    def _batch(self, step: int, micro: int) -> Batch:
        batch: Batch = settled(self.data.batch(step, micro), self.model.dtype)
        return batch

    def train(self, progress: bool | None = None, until: int | None = None) -> Trainer:
        """Steps up to `until`, saved on the way as asked for.

        Ctrl-C raises KeyboardInterrupt at a step boundary, in all processes; another call continues.

        Parameters
        ----------
        progress : bool, optional
            Show a bar on stderr; None shows it in terminals and notebooks only.
        until : int, optional
            Steps done at the end, default all. With `patience` it may end before.

        Returns
        -------
        Trainer
            This one.
        """
        steps = self.options.steps
        until = steps if until is None else min(_check.integer(until, "until", 0), steps)
        progress = progress if self._processes.rank == 0 else False
        bar_of = progress_bar(progress, until, self.model.name or "training", "step", self.step_count)
        with self._turn, self._processes.held(), bar_of as bar:
            while self.step_count < until and not self._over():
                result = self.step()
                self._evaluate_if_due()
                due = self._checkpoint_every and self.step_count % self._checkpoint_every == 0
                if self._folder is not None and (due or self._over()):
                    self.save(self._folder / state.checkpoint_name(self.step_count))
                    self._processes.by_first(self._remove_old)
                if bar is not None:
                    bar.update()
                    bar.set_postfix_str(progress_text(result, self.model.config.gated), refresh=False)
        return self

    def _over(self) -> bool:
        """Whether all steps are done or `patience` has run out."""
        if self.finished or not self._patience or self._held_out is None:
            return self.finished
        return self._held_out.without_a_new_best(*self._judged()) >= self._patience

    def history(self) -> pd.DataFrame:
        """What was found at each step.

        Returns
        -------
        pandas.DataFrame
            One row per step: step (from 0), loss, ce, expected_edges, open_edges, multiplier, grad_norm,
            edges_per_token, self_edges_per_token, seconds, lr, gate_bias (mean over layers), tau (with
            slack), held_out_ce, held_out_edges_per_token, held_out_self_edges_per_token. ce and loss are in
            nats, expected_edges and open_edges shares of all causal pairs, which fall with the length of the
            sequences; edges_per_token are all heads' open edges for each token. These have the noise of
            training on. The last three are those of the evaluation after the step, with hard gates, and NaN
            where there was none. What only gated models have is NaN for dense ones; seconds are NaN where
            they are not known (a resume without the `history.csv` beside the checkpoint).
        """
        import pandas as pd

        rows = self._history.rows(self._evaluations())
        table: pd.DataFrame = pd.DataFrame(rows, columns=list(History.columns))
        return table

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint and, before it, `history.csv` beside it.

        Each file is replaced in one go or not at all. The checkpoint's bytes depend on the run alone: not on
        threads, processes, time, or where it was interrupted. All processes of `comm` call it; the first one
        writes.

        Parameters
        ----------
        path : path
            The checkpoint; ".checkpoint.safetensors" is added if it does not end in .safetensors.

        Raises
        ------
        OSError
            If the disk refuses; the trainer and an older checkpoint are untouched.
        RuntimeError
            While another thread uses the trainer or changes the model.
        """
        with self._turn, self._processes.held():
            self._evaluate_if_due()
            with self.model._core.reading():
                self._save(Path(_check.path(path)))

    def _save(self, path: Path) -> None:
        self._processes.gather_moments(self._engine)
        self._processes.by_first(lambda: self._write(path))

    def _write(self, path: Path) -> None:
        meta = {
            "build": state.build(),
            "config": self.model.config.to_dict(),
            "name": valid_text(self.model.name),
            "options": self.options.to_dict(),
            "data": self.data.digest,
            "step": self.step_count,
            "multiplier": self._engine.multiplier,
            "ema": None if math.isnan(self._engine.ema) else self._engine.ema,
        }
        tensors: dict[str, np.ndarray] = {}
        for name, weights in self.model.parameters().items():
            first, second = (m.reshape(weights.shape) for m in self._processes.moments(self._engine, name))
            tensors |= {f"weight/{name}": weights, f"adam.m/{name}": first, f"adam.v/{name}": second}
        tensors["history"] = self._history.array()
        if self._held_out is not None:
            meta["held_out"] = self._held_out.digest
            tensors["held_out"] = np.array(self._held_out.results, np.float64).reshape(-1, FIELDS)
        write_atomic(path.parent / HISTORY, [self._history.text(self._evaluations())])
        write_bundle(path, state.SCHEMA, meta, tensors)

    def _evaluations(self) -> list[HeldOutResult]:
        return [] if self._held_out is None else self._held_out.results

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        data: Data,
        options: TrainingOptions | None = None,
        *,
        tokenizer: Any = None,
        threads: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 0,
        keep: int = 2,
        held_out: Any = None,
        held_out_weights: Any = None,
        keep_best: bool = False,
        patience: int = 0,
        comm: Any = None,
        **settings: Any,
    ) -> Trainer:
        """The trainer as it was when a checkpoint was saved; the same steps from there give the same bits.

        Parameters
        ----------
        path : path
            A checkpoint, or a folder, meaning its last ``step-NNNNNN.checkpoint.safetensors``.
        data : Data
            The same data.
        options : TrainingOptions, optional
            If given, the options of the checkpoint.
        tokenizer : Tokenizer, optional
            Given to the model; checkpoints hold none.
        threads, folder, checkpoint_every, keep, held_out, held_out_weights, keep_best, patience, comm
            As for `Trainer`; the same held-out sequences. The number of processes may be another one than
            before. All of them read the checkpoint.
        **settings
            Fields of `TrainingOptions`, instead of `options`.

        Returns
        -------
        Trainer

        Raises
        ------
        CheckpointError
            The codes of the file's reader, and ``data``, ``options``, ``missing_tensor``,
            ``unexpected_tensor``, ``size_mismatch``, ``dtype``, and, for what no run can have, ``meta``,
            ``nonfinite`` and ``value``.
        FormatError
            ``value`` for a `history.csv` beside it that no run has written.

        Warns
        -----
        UserWarning
            If another build or CPU kernel wrote the checkpoint.
        """
        processes = processes_of(comm)
        with processes.held():
            found = processes.by_first(lambda: checkpoint_file(path))
            held = (held_out, held_out_weights)
            tensors, meta, seconds = processes.together(
                lambda: read_run(found, data, options, settings, held)
            )
            state.warn_of_other_build(meta["build"], found)
            weights = {name[7:]: array for name, array in tensors.items() if name.startswith("weight/")}
            dtype = str(next(iter(weights.values())).dtype)
            model = Model(meta["config"], weights, tokenizer=tokenizer, name=meta["name"], dtype=dtype)
            trainer = cls(
                model, data, meta["options"], threads=threads, folder=folder, keep=keep,
                checkpoint_every=checkpoint_every, held_out=held_out, held_out_weights=held_out_weights,
                keep_best=keep_best, patience=patience, comm=comm,
            )  # fmt: skip
            trainer._restore(tensors, meta)
            trainer._history.seconds = seconds
            if trainer._folder is not None:  # a killed run may not have come to it
                processes.by_first(trainer._remove_old)
        return trainer

    def _restore(self, tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take over moments, counters and history of a checkpoint whose weights the model has already."""
        for name in self.model.parameters():
            self._engine.load_moments(name, tensors[f"adam.m/{name}"], tensors[f"adam.v/{name}"])
        self._engine.step_count = meta["step"]
        self._engine.multiplier = meta["multiplier"]
        self._engine.ema = math.nan if meta["ema"] is None else meta["ema"]
        self._history.restore(tensors["history"])
        if self._held_out is not None:
            rows = tensors["held_out"].tolist()
            self._held_out.results = [HeldOutResult(int(step), *row) for step, *row in rows]

    def _arguments(self, step: int) -> dict[str, Any]:
        config = self.model.config
        arguments = self.options.at(step, config.n_layer, config.gated, config.gate_bias)
        if self._held_out is not None and config.gated:
            arguments["measured"] = self._held_out.latest()
        return arguments

    def _remove_old(self) -> None:
        """Keep the last `keep` checkpoints up to this step in the folder."""
        assert self._folder is not None
        state.remove_old(self._folder, self.step_count, self._keep)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Trainer cannot be pickled: save a checkpoint with save(), and continue from it there"
        )

    def __repr__(self) -> str:
        kind = "gated" if self.model.config.gated else "dense"
        text = f"Trainer({self.model.name or 'model'}, {kind}, step {self.step_count} of {self.options.steps}"
        if self._history.results:
            text += f", {progress_text(self._history.results[-1], self.model.config.gated)}"
        return text + ")"
