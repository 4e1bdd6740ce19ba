"""Circuits of component edges of several sizes, evaluated, and random rankings beside them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import _check, _random
from ...model.model import Model
from ...model.run import DEFAULT_MAX_BYTES
from ...tasks.custom import CustomMetric, chosen_metric, metric_name
from ...tasks.task import Task
from . import file as component_file
from . import names
from .curve import ComponentCurve
from .values import component_values

if TYPE_CHECKING:
    from .circuit import ComponentCircuit

MAX_RANDOM = 10_000


def evaluate(
    circuit: ComponentCircuit,
    model: Model,
    task: Task,
    *,
    shares: Sequence[float] = names.GRID,
    prune: bool = True,
    n_random: int = 0,
    seed: int = 0,
    ablation: str = "counterfactual",
    direction: str = "noising",
    gate: str = "recomputed",
    reference: Task | Iterable[Any] | None = None,
    metric: str | CustomMetric | None = None,
    resume: str | os.PathLike[str] | None = None,
    executor: Any = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
    progress: bool | None = None,
) -> ComponentCurve:
    """Measure the metric of circuits of several sizes, the whole model and the empty circuit.

    Parameters
    ----------
    model : Model
        Of as many layers and heads as the scores are of.
    task : Task
        Prompts to evaluate on. A ranking looks better on prompts that it was made on: those are counted in
        the result. `find_component_circuit` ranks and evaluates on different ones.
    shares : sequence of float, default MIB's grid
        Shares of all component edges, ascending, each in 0..1; their numbers are rounded down.
    prune : bool, default True
        As in `masks`.
    n_random : int, default 0
        Random rankings of all component edges to evaluate beside it, 0..10,000, taken and pruned by the same
        rules. Each costs about as much as the curve itself.
    seed : int, default 0
        Of the random rankings. Ranking i is the same for every number of rankings.
    ablation, direction, gate, reference, metric, resume, executor, max_bytes, threads, progress
        As in `component_values`.

    Returns
    -------
    ComponentCurve

    Raises
    ------
    ValueError
        For a model of other sizes, shares that do not ascend, and as `component_values`.
    MemoryError
        If even one prompt at a time needs more than `max_bytes`.
    TypeError
        For arguments of another type.
    FormatError, OSError, RuntimeError
        As `component_values`.
    """
    _check.instance(model, Model, "model")
    if (model.config.n_layer, model.config.n_head) != (circuit.n_layer, circuit.n_head):
        raise ValueError(
            f"this circuit is of {circuit.n_layer} layers of {circuit.n_head} heads, the model has "
            f"{model.config.n_layer} of {model.config.n_head}"
        )
    asked = _check.ascending(shares, "shares", _check.share)
    n_random, seed = _check.integer(n_random, "n_random", 0, MAX_RANDOM), _check.seed(seed)
    n, n_sizes = circuit.n_edges, len(asked)
    requested = np.array([int(share * n) for share in asked], np.int64)
    masks, kept = circuit.masks([*requested.tolist(), n, 0], prune=prune)
    others = [random_ranking(circuit, seed, i).masks(requested, prune=prune) for i in range(n_random)]
    values = component_values(
        model, task, np.concatenate([masks, *(taken for taken, _ in others)]), ablation=ablation,
        direction=direction, gate=gate, reference=reference, metric=metric, resume=resume,
        executor=executor, max_bytes=max_bytes, threads=threads, progress=progress,
    )  # fmt: skip
    own, at_random = values[: n_sizes + 2], values[n_sizes + 2 :]
    ranked_on = set(circuit.prompts)
    return ComponentCurve(
        shares=asked,
        requested=requested,
        kept=kept[:-2],
        values=own[:-2],
        full=own[-2],
        empty=own[-1],
        ablation=ablation,
        direction=direction,
        gate=gate if model.config.gated else "none",
        metric=metric_name(chosen_metric(metric, task)),
        model=model.name,
        task=task.name,
        random_values=at_random.reshape(n_random, n_sizes, len(task)),
        random_kept=np.array([counts for _, counts in others], np.int64).reshape(n_random, n_sizes),
        prompts=task.prompt_digests,
        n_shared=sum(name in ranked_on for name in task.prompt_digests) if ranked_on else None,
    )


def random_ranking(circuit: ComponentCircuit, seed: int, number: int) -> ComponentCircuit:
    """A circuit of the same rules with a random ranking, which depends on the seed and its number alone."""
    real = component_file.exists(names.Shape(circuit.n_layer, circuit.n_head))
    scores = np.zeros(real.shape)
    scores[real] = 1.0 + _random.permutation(circuit.n_edges, seed, _random.COMPONENTS, number)
    return dataclasses.replace(circuit, scores=scores, given=None)
