"""Circuits of component edges ranked on one half of a task and evaluated on the other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ... import _check
from ..._display import stage_bars
from ...model.model import Model
from ...model.run import DEFAULT_MAX_BYTES
from ...tasks.custom import CustomMetric, chosen_metric
from ...tasks.task import Task
from ..find import check_halves, halves
from . import names
from .circuit import ComponentCircuit, component_circuit
from .curve import ComponentCurve
from .scores import component_scores


class FoundComponents(NamedTuple):
    """What `find_component_circuit` gives.

    Attributes
    ----------
    circuit : ComponentCircuit
        Ranked on the ranking half, whose prompts are `circuit.prompts`.
    curve : ComponentCurve
        Measured on the evaluation half, whose prompts are `curve.prompts`.
    """

    circuit: ComponentCircuit
    curve: ComponentCurve


def find_component_circuit(
    model: Model,
    task: Task,
    *,
    method: str = "eap-ig-inputs",
    steps: int = 5,
    reference: Task | Iterable[Any] | None = None,
    select: str = "top",
    rank_by: str = "absolute",
    shares: Sequence[float] = names.GRID,
    prune: bool = True,
    n_random: int = 5,
    seed: int = 0,
    ablation: str = "counterfactual",
    direction: str = "noising",
    gate: str = "recomputed",
    metric: str | CustomMetric | None = None,
    resume: str | os.PathLike[str] | None = None,
    executor: Any = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
    progress: bool | None = None,
) -> FoundComponents:
    """Rank component edges on `task.ranking`, and evaluate circuits of the best on `task.evaluation`.

    Parameters
    ----------
    model : Model
    task : Task
        Some of its prompts are for ranking, the others for evaluation; no pair of a clean and a corrupted
        prompt may be among both.
    method : str, default "eap-ig-inputs"
        As in `component_scores`.
    steps : int, default 5
        Of the two integrated methods.
    reference : Task or sequence of prompts, optional
        Prompts that means are taken over. Default: the ranking half, for the evaluation too.
    select, rank_by : str
        As in `component_circuit`.
    shares, prune : optional
        As in `ComponentCircuit.evaluate`.
    n_random : int, default 5
        Random rankings to evaluate beside it, 0..10,000.
    seed : int, default 0
        Of the random rankings.
    ablation, direction, gate, metric : optional
        As in `component_scores`, for ranking and evaluation alike. With "information-flow-routes" they are
        for the evaluation alone.
    resume : optional
        As in `component_values`, for the evaluation alone, which takes longer than the ranking.
    executor, max_bytes, threads, progress
        As in `component_scores`, for both.

    Returns
    -------
    FoundComponents
        ``circuit, curve = find_component_circuit(...)``.

    Raises
    ------
    ValueError
        For a task without prompts in one of its halves or with a pair of prompts in both, and as
        `component_scores` and `ComponentCircuit.evaluate`.
    MemoryError
        If even one prompt at a time needs more than `max_bytes`.
    TypeError
        For arguments of another type.
    FormatError, OSError, RuntimeError
        As `component_values`, of the file `resume`.
    """
    _check.instance(model, Model, "model")
    _check.instance(task, Task, "task")
    check_halves(task)
    _check_apart(task)
    chosen = chosen_metric(metric, task)
    (ranking, ranked_by), (evaluation, measured_by) = halves(task, chosen)
    if _check.choice(ablation, "ablation", names.ABLATIONS).startswith("mean") and reference is None:
        reference = ranking
    changed: dict[str, Any] = {
        "ablation": ablation,
        "direction": direction,
        "gate": gate,
        "reference": reference,
        "executor": executor,
        "max_bytes": max_bytes,
        "threads": threads,
        "progress": progress,
    }
    of_scores = {} if method == "information-flow-routes" else changed | {"metric": ranked_by}
    with stage_bars(progress):  # one bar for both
        scores = component_scores(model, ranking, method=method, steps=steps, **of_scores)
        circuit = component_circuit(scores, model, select=select, rank_by=rank_by)
        curve = circuit.evaluate(
            model,
            evaluation,
            shares=shares,
            prune=prune,
            n_random=n_random,
            seed=seed,
            metric=measured_by,
            resume=resume,
            **changed,
        )
    return FoundComponents(circuit, curve)


def _check_apart(task: Task) -> None:
    """ValueError for a task with the same prompts in both halves."""
    digests = task.prompt_digests
    ranked_on = {name for name, ranks in zip(digests, task.is_ranking) if ranks}
    both = [i for i, name in enumerate(digests) if name in ranked_on and not task.is_ranking[i]]
    if both:
        n = len(task) - int(task.is_ranking.sum())
        raise ValueError(
            f"task {task.name!r}: {len(both)} of {n} evaluation prompts are among those for ranking too, the "
            f"first is prompt {both[0]}; take them out with task.subset(...)"
        )
