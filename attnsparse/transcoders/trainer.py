"""Training of transcoders: every layer's dictionary learns from the same runs of the model.

A step runs the model once on a batch of text and takes one optimiser step in each layer, on its rows of
ln2.hook_normalized (in) and hook_mlp_out (out), with equal weight for every token; or one of a cross-layer
transcoder, on those of all layers together. Nothing is kept between steps but weights, moments and counters,
so a run can stop anywhere and continue to the same bytes.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._display import progress_bar
from .._engine import core_for
from ..io.atomic import remove_stale
from ..io.bundle import write_bundle
from ..model.model import Model
from ..training.checkpoint import opened, warn_of_other_build
from ..training.data import Data
from ..training.one_thread import OneThread
from ..training.schedules import value_at
from . import checkpoint as state
from .arrays import ArraySource
from .checkpoint import RESULTS, WEIGHTS
from .options import START_L0, TranscoderOptions
from .start import check_start, first_weights, weights_of
from .transcoders import KINDS, Transcoders

if TYPE_CHECKING:
    import pandas as pd

START_BATCHES = 4  # first batches, from which each layer's scale and first weights are taken
_RECORDED = ("ln2_normalized", "mlp_out")
_MOST_PRICE = 1e3  # largest factor that `l0` puts on the sparsity


def train_transcoders(
    model: Model,
    data: Data,
    options: TranscoderOptions | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 500,
    start: Transcoders | None = None,
    name: str = "",
    threads: int | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Transcoders:
    """Train one transcoder for each layer of a model on text, or a cross-layer one, and return the set.

    Parameters
    ----------
    model : Model
        It is not changed.
    data : Data
        An object with `batch(step, micro)` and `digest`, see `attnsparse.training.data.Data`; its targets and
        weights are not used.
    options : TranscoderOptions, optional
        Or its fields as keywords: ``train_transcoders(model, data, steps=1000)``.
    checkpoint : path, optional
        A file that is written every `checkpoint_every` steps, at the end and on Ctrl-C;
        ".checkpoint.safetensors" is added if it does not end in .safetensors. If it exists, the run continues
        from it. Its bytes depend on the run alone, not on threads or on where it was stopped.
    checkpoint_every : int, default 500
        Steps, 1 or more.
    start : Transcoders, optional
        Their weights are the first ones; as many features as `options` says. A cross-layer training may start
        from transcoders of one layer each. Default: rows of the text that are far apart.
    name : str
        Name of the set.
    threads : int, optional
        Default: the number set by `set_num_threads`. The bits of the result do not depend on it.
    progress : bool, optional
        Show a bar on stderr. Default: in terminals and notebooks only.
    **settings
        Fields of `TranscoderOptions`.

    Returns
    -------
    Transcoders
        They read ln2.hook_normalized. An activation is as large as what it writes: decoder rows (of a
        cross-layer transcoder what a feature writes to all layers, one after the other) have length 1.

    Raises
    ------
    TypeError, ValueError
        For invalid options or data.
    CheckpointError
        For a checkpoint that is damaged or of another run.
    TrainingDiverged
        When a loss or gradient is not finite, before that layer is changed.
    KeyboardInterrupt
        On Ctrl-C.

    Notes
    -----
    Memory: four numbers for each weight, of which there are `n_features` times 2 E in a layer, E being the
    model's width, and `n_features` times (W + 1) E in a layer of a cross-layer transcoder, which writes to W
    layers; and, for each token of a batch and each layer, four numbers and an index for each feature of
    "relu" and "jump_relu", or for `top_k` features of "topk".
    """
    trainer = TranscoderTrainer(model, data, options, start=start, name=name, threads=threads, **settings)
    every = _check.integer(checkpoint_every, "checkpoint_every", 1)
    path = None
    if checkpoint is not None:
        path = Path(state.SCHEMA.file(_check.path(checkpoint, "checkpoint")))
        remove_stale(path.parent)
        if path.exists():
            trainer.load(path)
    trainer.train(path, every, progress)
    return trainer.transcoders()


class TranscoderTrainer:
    """The training that `train_transcoders` runs, step by step.

    One thread uses it at a time: while one of its methods works, they raise RuntimeError in other threads.

    Parameters
    ----------
    model : Model
        It is not changed.
    data : Data
        As for `train_transcoders`.
    options : TranscoderOptions, optional
        The options; or give its fields as keywords.
    start : Transcoders, optional
        First weights, with as many features as `options` says.
    name : str
        Name of the set.
    threads : int, optional
        1..64; None: as `set_num_threads` says. Bits do not depend on it.
    **settings
        Fields of `TranscoderOptions`.

    Raises
    ------
    TypeError, ValueError
        For options or data that are invalid or do not fit the model.
    """

    def __init__(
        self,
        model: Model,
        data: Data,
        options: TranscoderOptions | None = None,
        *,
        start: Transcoders | None = None,
        name: str = "",
        threads: int | None = None,
        **settings: Any,
    ) -> None:
        if options is not None and settings:
            raise TypeError("options: give a TranscoderOptions or its fields as keywords, not both")
        _check.instance(model, Model, "model")
        if options is not None:
            _check.instance(options, TranscoderOptions, "options")
        if not callable(getattr(data, "batch", None)) or not isinstance(getattr(data, "digest", None), str):
            text = f"data must provide batch(step, micro) and digest; {type(data).__name__} does not"
            raise TypeError(text)
        #: the `TranscoderOptions`
        self.options = TranscoderOptions(**settings) if options is None else options
        self.model, self.data, self.name = model, data, name
        self._threads = _check.threads(threads)
        self.options.check(model.config.n_layer)
        n_features = self.options.features_of(model.config.n_layer)
        if start is not None:
            start.check(model)
            check_start(start, n_features, self.options.cross_layer)
        self.start = start  #: the `Transcoders` that it began with, or None
        self._core = core_for(str(model.dtype))
        width = model.config.d_model
        together = [n_features] if self.options.cross_layer else [(n,) for n in n_features]
        self._cores = [self._core.CoderTrainer(width, width, np.array(counts)) for counts in together]
        bounds = itertools.accumulate(map(len, together), initial=0)
        self._parts = [slice(a, b) for a, b in itertools.pairwise(bounds)]  # the layers of each core
        #: core of each layer, and the layer's number in it
        self._layers = [(core, i) for core, part in zip(self._cores, together) for i in range(len(part))]
        self._turn = OneThread("transcoder training")
        self._results: list[list[list[dict[str, Any]]]] = [[] for _ in self._cores]  # by core, step and layer
        self._prices: list[list[float]] = [[1.0] for _ in self._layers]
        #: float64 [L], standard deviation of each layer's outputs
        self.output_scale = np.ones(len(self._layers))
        self._start()

    # --- the beginning

    def _start(self) -> None:
        """Scales and first weights, from the first batches."""
        pieces = [self._rows(step) for step in range(START_BATCHES)]
        inputs, outputs = (np.concatenate(arrays, axis=1) for arrays in zip(*pieces))
        for layer, rows in enumerate(outputs):
            self.output_scale[layer] = self._core.first_weights_scale(rows)
        for layer, (core, i) in enumerate(self._layers):
            weights = self._first_weights(layer, inputs[layer], outputs[layer])
            beyond = (
                core.array("w_dec", i).shape[1] - weights["w_dec"].shape[1]
            )  # to layers not yet written to
            weights["w_dec"] = np.pad(weights["w_dec"], ((0, 0), (0, beyond)))
            for key in WEIGHTS:
                core.load(key, np.ascontiguousarray(weights[key], self.model.dtype), i)

    def _first_weights(self, layer: int, inputs: np.ndarray, outputs: np.ndarray) -> dict[str, np.ndarray]:
        options, scale = self.options, float(self.output_scale[layer])
        n_features = options.features_of(len(self._layers))[layer]
        if self.start is None:
            weights = first_weights(inputs, outputs, scale, n_features, options.seed, layer, self._threads)
        else:
            weights = weights_of(self.start, layer, self.output_scale[layer:], self._core, self._threads)
        if options.activation != "jump_relu":
            weights["log_threshold"] = np.zeros(n_features)
        elif options.threshold_of(layer) is not None or "log_threshold" not in weights:
            threshold = options.threshold_of(layer)
            if threshold is None:
                threshold = self._core.first_weights_threshold(
                    weights["w_enc"], weights["b_enc"], inputs, START_L0, self._threads
                )
            weights["log_threshold"] = np.full(n_features, math.log(threshold))
        return weights

    # --- steps

    @property
    def step_count(self) -> int:
        """Steps that all layers have done."""
        return min(int(core.step_count) for core in self._cores)

    @property
    def finished(self) -> bool:
        """Whether all `options.steps` steps are done."""
        return self.step_count >= self.options.steps

    def _rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and outputs [L, N, E] of all MLPs on the batch of a step."""
        tokens, offsets, *_ = self.data.batch(step, 0)
        prompts = [tokens[a:b] for a, b in itertools.pairwise(offsets)]
        run = self.model.run(prompts, record=_RECORDED, logits="none", threads=self._threads or None)
        inputs, outputs = (run._core.array(name) for name in _RECORDED)
        return inputs, outputs

    def step(self) -> list[dict[str, Any]]:
        """One step of every layer; layers that an interrupted step has already done are left alone.

        Returns
        -------
        list of dict
            For each layer step, loss, error, penalty, aux, l0, grad_norm and n_dead.

        Raises
        ------
        ValueError
            After the last step.
        TrainingDiverged
            When a loss or gradient is not finite, before that layer is changed.
        KeyboardInterrupt
            On Ctrl-C.
        """
        with self._turn:
            return self._step()

    def _step(self) -> list[dict[str, Any]]:
        if self.finished:
            raise ValueError(f"all {self.options.steps:,} steps are done; train more steps in a new run")
        step = self.step_count
        inputs, outputs = self._rows(step)
        arguments = self.options.at(step)
        for core, part, results in zip(self._cores, self._parts, self._results):
            if core.step_count > step:
                continue
            call = functools.partial(
                core.step,
                threads=self._threads,
                output_scale=self.output_scale[part],
                sparsity=np.array([self._price(layer, step) for layer in range(part.start, part.stop)]),
                **arguments,
            )
            # One C call from the engine into the list: Ctrl-C cannot come in between and lose a result.
            results.extend(map(call, *([np.ascontiguousarray(rows[part])] for rows in (inputs, outputs))))
        return [dict(result) for result in self._results_of(step)]

    def _results_of(self, step: int) -> list[dict[str, Any]]:
        """The results of a step, layer by layer."""
        return [result for results in self._results for result in results[step]]

    def _price(self, layer: int, step: int) -> float:
        """Weight of the penalty in this layer and step."""
        prices, options = self._prices[layer], self.options
        while len(prices) <= step:
            done = len(prices) - 1
            factor = prices[-1]
            wanted = options.l0_of(done, len(self._layers))
            if wanted is not None:
                ratio = self._results_of(done)[layer]["l0"] / wanted[layer]
                change = options.l0_rate * min(max(math.log(max(ratio, 1e-9)), -1.0), 1.0)
                factor = min(max(factor * math.exp(change), 1 / _MOST_PRICE), _MOST_PRICE)
            prices.append(factor)
        return value_at(options.sparsity, step, options.steps) * prices[step]

    def train(
        self, path: str | os.PathLike[str] | None = None, every: int = 500, progress: bool | None = None
    ) -> None:
        """Do all steps that are left.

        Parameters
        ----------
        path : path, optional
            A checkpoint that is written every `every` steps, at the end and on Ctrl-C.
        every : int, default 500
            Steps, at least 1.
        progress : bool, optional
            Show a bar on stderr; None shows it in terminals and notebooks only.

        Raises
        ------
        TrainingDiverged
            As `step`.
        OSError
            If the checkpoint cannot be written.
        KeyboardInterrupt
            On Ctrl-C.
        """
        every = _check.integer(every, "every", 1)
        text = f"{self.name or self.model.name or 'model'}: transcoders"
        bar_of = progress_bar(progress, self.options.steps, text, "step", self.step_count)
        with self._turn, bar_of as bar:
            try:
                while not self.finished:
                    results = self.step()
                    done = self.step_count
                    if path is not None and (done % every == 0 or self.finished):
                        self.save(path)
                    if bar is not None:
                        bar.update()
                        bar.set_postfix_str(_shown(results), refresh=False)
            except KeyboardInterrupt:
                if path is not None:
                    self.save(path)
                raise

    # --- results

    def transcoders(self) -> Transcoders:
        """The set as it is now, in the units of the model.

        Returns
        -------
        Transcoders
            With weights of its own, which later steps do not change.
        """
        with self._turn:
            return self._transcoders()

    def _transcoders(self) -> Transcoders:
        parts = zip(self._cores, self._parts)
        layers = [
            core.scaled(self.output_scale[part], i)
            for core, part in parts
            for i in range(part.stop - part.start)
        ]
        w_enc, b_enc, w_dec, b_dec, threshold = (list(arrays) for arrays in zip(*layers))
        w_dec = [rows.reshape(len(rows), -1, self.model.config.d_model) for rows in w_dec]
        jump = self.options.activation == "jump_relu"
        source = ArraySource(w_enc, b_enc, w_dec, b_dec, threshold if jump else None)
        return Transcoders(
            source,
            kind=KINDS[self.options.cross_layer],
            activation=self.options.activation,
            top_k=self.options.top_k if self.options.activation == "topk" else None,
            name=self.name,
            model_name=self.model.name,
        )

    def history(self) -> pd.DataFrame:
        """The results of all steps.

        Returns
        -------
        pandas.DataFrame
            One row per step and layer: step, layer, loss, error (about the unexplained share of the
            variance), penalty, aux, l0, grad_norm, n_dead (before the step), sparsity (the penalty's
            weight).
        """
        import pandas as pd

        rows = [
            [step, layer, *(result[key] for key in RESULTS), self._price(layer, step)]
            for step in range(self.step_count)
            for layer, result in enumerate(self._results_of(step))
        ]
        table: pd.DataFrame = pd.DataFrame(rows, columns=["step", "layer", *RESULTS, "sparsity"])
        return table

    # --- checkpoints

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, whole or not at all; a step that was interrupted is finished first.

        Parameters
        ----------
        path : path
            The file.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        with self._turn:
            self._save(Path(_check.path(path)))

    def _save(self, path: Path) -> None:
        if len({core.step_count for core in self._cores}) > 1:
            self.step()
        tensors: dict[str, np.ndarray] = {"output_scale": self.output_scale}
        for layer, (core, i) in enumerate(self._layers):
            tensors |= {f"{layer}/{name}": core.array(name, i) for name in state.ARRAYS}
        steps = [self._results_of(step) for step in range(self.step_count)]
        rows = [[[float(result[key]) for key in RESULTS] for result in step] for step in steps]
        history = np.array(rows, np.float64).reshape(-1, len(self._layers), len(RESULTS))
        tensors["history"] = np.ascontiguousarray(history.swapaxes(0, 1))
        write_bundle(path, state.SCHEMA, state.meta(self), tensors)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over the run that a checkpoint holds; after an error, nothing is changed.

        Parameters
        ----------
        path : path
            The file, with or without ".checkpoint.safetensors".

        Raises
        ------
        CheckpointError
            If it is damaged, or of another model, other data or other options.
        """
        path = Path(state.SCHEMA.file(path))
        with self._turn:
            with opened(path, state.SCHEMA) as bundle:
                state.check(self, bundle.fields, bundle.tensors, path)
                tensors = bundle.read_all()
            state.check_values(tensors, self.options.features_of(len(self._layers)), path)
            warn_of_other_build(bundle.fields["build"], path)
            self._restore(tensors)

    def _restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        history = tensors["history"]
        steps = [
            [{"step": step, **dict(zip(RESULTS, row))} for row in rows]
            for step, rows in enumerate(history.swapaxes(0, 1).tolist())
        ]
        for layer, (core, i) in enumerate(self._layers):
            for name in state.ARRAYS:
                core.load(name, tensors[f"{layer}/{name}"], i)
        for index, (core, part) in enumerate(zip(self._cores, self._parts)):
            core.step_count = len(steps)
            self._results[index] = [results[part] for results in steps]
        self._prices = [[1.0] for _ in self._layers]
        for layer in range(len(self._layers)):
            if steps:
                self._price(layer, len(steps) - 1)
        self.output_scale = np.array(tensors["output_scale"])

    def __repr__(self) -> str:
        text = f"step {self.step_count} of {self.options.steps}"
        if self.step_count:
            text += ", " + _shown(self._results_of(self.step_count - 1))
        return f"TranscoderTrainer({self.model.name or 'model'}, {len(self._layers)} layers, {text})"


def _shown(results: list[dict[str, Any]]) -> str:
    means = {key: sum(r[key] for r in results) / len(results) for key in ("error", "l0", "n_dead")}
    return f"error {means['error']:.4f}, l0 {means['l0']:.1f}, dead {means['n_dead']:.0f}"
