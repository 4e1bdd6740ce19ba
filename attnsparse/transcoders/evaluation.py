"""How well transcoders stand in for the MLPs of a model: what is added up over batches of prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._core_types import Substitute
from .._display import progress_bar
from ..model.batch import Batch
from ..model.evaluation import token_losses
from ..model.gradients import loss_targets, loss_weights
from ..model.model import Model
from ..model.run import DEFAULT_MAX_BYTES, compute_run
from .replacement import CheckedWeights, input_record, new_core

if TYPE_CHECKING:
    from .transcoders import Transcoders

_TOKENS_AT_ONCE = 2048


def targets_and_weights(
    model: Model, batch: Batch, targets: Any, loss_mask: Any
) -> tuple[np.ndarray, np.ndarray]:
    """For each token of a batch the id that is to be predicted after it and its loss weight, checked."""
    wanted = loss_targets(batch, targets)
    if len(wanted) != len(batch.tokens):
        raise ValueError(
            f"targets must have one id for each of the {len(batch.tokens)} tokens, got {len(wanted)}"
        )
    weights = loss_weights(batch, loss_mask, targets is not None, np.dtype(np.float64))
    if np.any((wanted < 0) | (wanted >= model.config.n_vocab), where=weights > 0):
        worst = wanted[(weights > 0) & ((wanted < 0) | (wanted >= model.config.n_vocab))][0]
        raise IndexError(f"targets must be in 0..{model.config.n_vocab - 1}, got {worst}")
    if not weights.sum() > 0:
        raise ValueError("loss_mask must be above 0 at one token that is predicted, or more; got none")
    return np.where(weights > 0, wanted, 0), weights


def evaluated(
    transcoders: Transcoders,
    model: Model,
    batch: Batch,
    wanted: tuple[np.ndarray, np.ndarray],
    threads: int | None,
    progress: bool | None,
) -> dict[str, Any]:
    """The columns of `Transcoders.evaluate`; wanted: as from `targets_and_weights`."""
    targets, weights = wanted
    sums = _Sums(transcoders)
    groups = _groups(batch)
    with progress_bar(progress, len(groups), "transcoders", "batch") as bar:
        for part, rows in groups:
            sums.add(model, part, targets[rows], weights[rows], threads)
            if bar is not None:
                bar.update()
    return sums.columns(len(batch.tokens), float(weights.sum()))


def _groups(batch: Batch) -> list[tuple[Batch, slice]]:
    """The prompts in batches of at most some thousand tokens (a longer prompt alone), with their rows."""
    bounds = [0]
    for i in range(len(batch)):
        if i > bounds[-1] and batch.offsets[i + 1] - batch.offsets[bounds[-1]] > _TOKENS_AT_ONCE:
            bounds.append(i)
    found = []
    for first, last in zip(bounds, [*bounds[1:], len(batch)]):
        offsets = batch.offsets[first : last + 1]
        rows = slice(int(offsets[0]), int(offsets[-1]))
        part = Batch(
            batch.tokens[rows], offsets - offsets[0], batch.texts[first:last], False, batch.prepend_bos
        )
        found.append((part, rows))
    return found


class _Sums:
    """What an evaluation adds up over batches."""

    def __init__(self, transcoders: Transcoders) -> None:
        layers = transcoders.layers
        self.transcoders = transcoders
        self.active, self.error, self.square = np.zeros((3, len(layers)))
        self.out = np.zeros((len(layers), transcoders.d_model))
        self.seen = [np.zeros(transcoders.n_features[layer], bool) for layer in layers]
        self.loss = np.zeros(2)  # of the model, and of the model with replaced MLPs

    def add(self, model: Model, batch: Batch, targets: np.ndarray, weights: np.ndarray, threads: Any) -> None:
        """One batch; targets and weights [N]."""
        t, n = self.transcoders, _check.threads(threads)
        names = (input_record(t), "mlp_out")
        run = compute_run(model, batch, names, "all", 0.0, DEFAULT_MAX_BYTES, threads)
        core = new_core(t, model, len(batch.tokens), DEFAULT_MAX_BYTES)
        core.fill(run._core, 0, CheckedWeights(t, model), n)
        start, feature, error = core.array("start"), core.array("feature"), core.array("error")
        out = run._core.array("mlp_out")
        for i, layer in enumerate(t.layers):
            self.seen[i][feature[start[layer] : start[layer + 1]]] = True
            self.error[i] += np.square(error[layer], dtype=np.float64).sum()
            self.square[i] += np.square(out[layer], dtype=np.float64).sum()
            self.out[i] += out[layer].sum(axis=0, dtype=np.float64)
            self.active[i] += start[layer + 1] - start[layer]
        substitute = Substitute(
            new_core(t, model, len(batch.tokens), DEFAULT_MAX_BYTES),
            CheckedWeights(t, model),
            None,
        )
        replaced = compute_run(
            model, batch, (), "all", 0.0, DEFAULT_MAX_BYTES, threads, substitute=substitute
        )
        for i, each in enumerate((run, replaced)):
            self.loss[i] += (token_losses(each._core.array("logits"), targets, n) * weights).sum()

    def columns(self, n_tokens: int, weight: float) -> dict[str, Any]:
        """The columns of the table."""
        total = self.square - (self.out**2).sum(axis=1) / n_tokens
        return {
            "layer": np.array(self.transcoders.layers),
            "n_features": np.array([len(seen) for seen in self.seen]),
            "l0": self.active / n_tokens,
            "explained_variance": np.where(total > 0, 1 - self.error / np.where(total > 0, total, 1), np.nan),
            "dead": np.array([1 - seen.mean() for seen in self.seen]),
            "cross_entropy": self.loss[0] / weight,
            "cross_entropy_replaced": self.loss[1] / weight,
        }
