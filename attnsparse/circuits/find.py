"""Circuits: rank heads or attention edges on one half of a task, evaluate the ranking on the other half.

The core searches (csrc/circuit/find.c, ranking.c), one step after the other, and asks for what it needs
measured; here are the arguments, the measurements in pieces, the bars and the file in which a search can be
kept. The ranking sees the ranking half only, the curve the evaluation
half only. (The edges to be ranked are those open in any prompt of the task; those that no ranking prompt
opens score 0.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._core_types import CircuitOptions
from .._display import stage_bars
from ..items import shortened
from ..model.interventions import ABLATIONS
from ..model.model import Model
from ..model.run import DEFAULT_MAX_BYTES
from ..tasks.custom import CustomMetric, chosen_metric, metric_name, smaller_is_better
from ..tasks.task import Task
from . import effects
from .asked import effect_options, packed_task
from .choices import (
    MAX_RESAMPLES,
    METHODS,
    NAMES,
    NORMALIZATIONS,
    RANK_BY,
    UNITS,
)
from .circuit import ARRAYS, Circuit
from .effect_work import EffectWork
from .pieces import Tell
from .resumed import in_values, summed
from .search_file import SearchFile, question

if TYPE_CHECKING:
    from .. import _core

SAVE_SECONDS = 30.0  # between two times that a search is kept
_NAME_CHARACTERS = 40  # of a task or metric in errors of the core


def find_circuit(
    model: Model,
    task: Task,
    *,
    unit: str = "head",
    method: str = "exact",
    ablation: str = "zero",
    normalize: str = "mib",
    metric: str | CustomMetric | None = None,
    rank_by: str = "absolute",
    steps: int = 10,
    sizes: Sequence[int] | np.ndarray | None = None,
    reference: Task | None = None,
    n_bootstrap: int = 1000,
    n_random: int = 5,
    confidence: float = 0.95,
    greedy_step: float = 0.1,
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
    executor: Any = None,
    threads: int | None = None,
    progress: bool | None = None,
) -> Circuit:
    """Rank items on `task.ranking`; find the faithfulness of the n best on `task.evaluation`.

    Parameters
    ----------
    model : Model
        The model whose items are ablated.
    task : Task
        Prompts with answers, some for ranking and some for evaluation.
    unit : {"head", "head_position", "edge"}, default "head"
        What an item is: a head, a head at one position, or an attention edge (an open entry of the pattern).
        The last two need prompts of one length.
    method : {"exact", "attribution", "ig", "greedy"}, default "exact"
        How items are ranked. "exact": each one is ablated alone. "attribution": gradient of the metric times
        what ablation would change. "ig": the same integrated over `steps` steps from all ablated to none.
        "greedy": backward elimination; each round ablates every item still kept, one at a time, on top of
        those dropped already, and drops the share `greedy_step` that costs least. A batch that costs more
        than twice the sum of its parts (and more than 0.1 % of the effect) holds items that replace each
        other and is halved until it does not.
    ablation : {"zero", "mean", "counterfactual"}, default "zero"
        What replaces items outside the circuit: zero; the mean over the prompts of `reference`, per position;
        the value of the corrupted prompt at the same position. Embeddings and MLPs stay. Edges are those open
        in a clean prompt of the task; entries that only corrupted or reference prompts open count as outside
        every circuit, so with these two ablations f of all edges of a gated model can differ from 1.
    normalize : {"mib", "ratio", "none"}, default "mib"
        What the faithfulness (explained effect) f of a circuit C is, m being the metric's mean over prompts,
        M the whole model and 0 the model with everything ablated: "mib" (m(C) - m(0)) / (m(M) - m(0)),
        "ratio" m(C) / m(M), "none" m(C).
    metric : {"logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl"} or CustomMetric, optional
        Default: the task's own. "kl" is the divergence from the whole model's prediction, in nats, better
        when smaller. A `tasks.CustomMetric` is one of your own; "attribution" and "ig" need its gradient.
    rank_by : {"absolute", "signed"}, default "absolute"
        Rank by the absolute value of the score, or by the score. "signed" ranks an item without effect above
        one with a negative score, even if the latter is needed.
    steps : int, default 10
        Steps of "ig", 1 or more.
    sizes : sequence of int, optional
        Numbers of items to evaluate, each in 0..n. Default: all from 0 on for heads; for other units all up
        to 32, then steps of 5 %, and n; then, up to three times, the gap before the first size that reaches
        0.9 and the one before the size from which f stays there are divided by five.
    reference : Task, optional
        Prompts that "mean" averages over, as long as those of `task`. Default: the ranking half.
    n_bootstrap : int, default 1000
        Resamples of the evaluation prompts, 0..1,000,000.
    n_random : int, default 5
        Orders of the random baseline, each evaluated at up to 24 of the sizes.
    confidence : float, default 0.95
        Share of the resamples inside the intervals, above 0 and below 1.
    greedy_step : float, default 0.1
        Share of the items that a round of "greedy" drops, 0 or more and below 1; at least one item.
    seed : int, default 0
        Of resamples and random orders. The result is a function of the arguments, not of `threads`.
    resume : path, optional
        File that keeps how far the search is; its name gets the ending .search.safetensors unless it ends in
        .safetensors. It is written about every 30 seconds between two steps (a round of "greedy", a random
        order, or all that one other bar shows), on Ctrl-C, and at the end. If it exists, the search continues
        from there and finds the same bits; one that has ended gives its circuit at once. It is not removed.
        The functions of a `CustomMetric` are known by its name alone.
    executor : concurrent.futures.Executor or Dask Client, optional
        Whose workers measure, in pieces that do not depend on their number: the bits are those of a call
        without. See docs/cluster.md.
    threads : int, optional
        Default: the number set by `set_num_threads`.
    progress : bool, optional
        Show a bar on stderr. Default: in terminals and notebooks only.

    Returns
    -------
    Circuit

    Raises
    ------
    ValueError
        For unknown names, numbers out of range, a task without prompts in one of its halves, a metric that is
        not finite, that ablating everything does not change ("mib") or that is 0 ("ratio").
    TypeError
        For arguments of another type.
    FormatError
        If the file `resume` is damaged (codes as for `load_circuit`), or with the code question if it is of
        another model, task, metric or option, of another version of attnsparse or another kind of processor.
    OSError
        If that file cannot be read or written.
    RuntimeError
        For a piece that failed three times in the workers of an executor, unless it is one of the above.
    KeyboardInterrupt
        On Ctrl-C.

    References
    ----------
    "mib": Mueller et al., "MIB: A Mechanistic Interpretability Benchmark", 2025. "attribution": Syed et al.,
    "Attribution Patching Outperforms Automated Circuit Discovery", 2023. "ig": Sundararajan et al., 2017.
    """
    options = checked_options(
        unit=unit, method=method, ablation=ablation, normalize=normalize, rank_by=rank_by, steps=steps,
        greedy_step=greedy_step, n_bootstrap=n_bootstrap, n_random=n_random, confidence=confidence, seed=seed,
    )  # fmt: skip
    chosen, mean_of = _measured(model, task, method, ablation, reference, metric)
    items = effects.candidates(model, task, unit, threads)
    if not len(items):
        raise ValueError(f"task {task.name!r} has no {NAMES[unit]} to rank: every gate is closed")
    asked = None if sizes is None else checked_sizes(sizes, len(items))
    names: dict[str, Any] = {
        "model_name": model.name,
        "model_digest": model.digest,
        "task_name": task.name,
        "task_digest": task.digest,
        "unit": unit,
        "method": method,
        "ablation": ablation,
        "normalize": normalize,
        "metric": metric_name(chosen),
        "options": {
            **options,
            "sizes": None if asked is None else asked.tolist(),
            "reference": None if mean_of is None else mean_of.digest,
            "n_ranking": int(task.is_ranking.sum()),
        },
    }
    kept = None if resume is None else SearchFile(resume, question(model, names))
    ranking, evaluation = (packed_task(model, *half) for half in halves(task, chosen))
    effects_of = effect_options(model, unit, ablation, mean_of, DEFAULT_MAX_BYTES)
    works = [EffectWork(model, task.name, half, effects_of, threads) for half in (evaluation, ranking)]
    search = model._core.circuit(
        ranking,
        evaluation,
        items,
        CircuitOptions(
            effects=effects_of,
            method=method,
            normalize=normalize,
            smaller_is_better=smaller_is_better(chosen),
            sizes=asked,
            task_name=shortened(task.name, _NAME_CHARACTERS),
            metric_name=shortened(metric_name(chosen), _NAME_CHARACTERS),
            **options,
        ),
    )
    measure = _measurer(works, executor)
    _take_all_steps(search, kept, _check.threads(threads), measure, progress)
    arrays: dict[str, Any] = {name: search.array(name) for name in ARRAYS}
    return Circuit(**names, **arrays, position_labels=_position_labels(task))


def checked_options(
    *,
    unit: object,
    method: object,
    ablation: object,
    normalize: object,
    rank_by: object,
    steps: object,
    greedy_step: object,
    n_bootstrap: object,
    n_random: object,
    confidence: object,
    seed: object,
) -> dict[str, Any]:
    """Those that a circuit keeps as its options, once all have values that `find_circuit` takes."""
    _check.choice(unit, "unit", UNITS)
    _check.choice(method, "method", METHODS)
    _check.choice(ablation, "ablation", ABLATIONS)
    _check.choice(normalize, "normalize", NORMALIZATIONS)
    return {
        "rank_by": _check.choice(rank_by, "rank_by", RANK_BY),
        "steps": _check.integer(steps, "steps", 1, 2**31),
        "greedy_step": _check.proper_fraction(greedy_step, "greedy_step", zero=True),
        "n_bootstrap": _check.integer(n_bootstrap, "n_bootstrap", 0, MAX_RESAMPLES),
        "n_random": _check.integer(n_random, "n_random", 0, 2**31),
        "confidence": _check.proper_fraction(confidence, "confidence"),
        "seed": _check.seed(seed),
    }


Measure = Callable[[str, bool, np.ndarray, np.ndarray, int, Tell], np.ndarray]


def _measurer(works: Sequence[EffectWork], executor: Any) -> Measure:
    """What the search asks; works: of the evaluation and of the ranking."""

    def measure(
        question: str, of_ranking: bool, items: np.ndarray, sizes: np.ndarray, steps: int, tell: Tell
    ) -> np.ndarray:
        work = works[of_ranking]
        if question == "attribution":
            return summed(work.attribution(steps, False), tell, executor).ravel()
        if question == "keep_only":
            return in_values(work.keep_only(items, sizes), tell, executor).ravel()
        return in_values(getattr(work, question)(items), tell, executor).ravel()

    return measure


def _take_all_steps(
    search: _core.Circuit,
    kept: SearchFile | None,
    threads: int,
    measure: Measure,
    progress: bool | None,
) -> None:
    """Search to the end, from where `kept` is to where it is kept."""
    state = None if kept is None else kept.read()
    if kept is None:
        with stage_bars(progress) as tell:
            while not search.step(threads, tell, measure):
                pass
        return
    if state is not None:
        kept.restore(search, state)
    saved = time.monotonic()
    try:
        with stage_bars(progress) as tell:
            while not search.step(threads, tell, measure):
                if time.monotonic() - saved >= SAVE_SECONDS:
                    kept.write(search.state())
                    saved = time.monotonic()
    except (KeyboardInterrupt, MemoryError):
        kept.write(search.state())
        raise
    kept.write(search.state())


def _measured(
    model: Model,
    task: Task,
    method: str,
    ablation: str,
    reference: Task | None,
    metric: str | CustomMetric | None,
) -> tuple[str | CustomMetric, Task | None]:
    """The metric, and the prompts that "mean" averages over."""
    _check.instance(model, Model, "model")
    for name, value in (("task", task), ("reference", task if reference is None else reference)):
        _check.instance(value, Task, name)
    check_reference(reference, ablation)
    check_halves(task)
    chosen = chosen_metric(metric, task)
    if method == "attribution" and chosen == "kl":
        text = "method='attribution' finds nothing for metric 'kl': at the whole model its gradient is 0"
        raise ValueError(f"{text}; use 'ig'")
    mean_of = (task.ranking if reference is None else reference) if ablation == "mean" else None
    return chosen, mean_of


def check_reference(reference: Task | None, ablation: str) -> None:
    """ValueError for prompts to average over where nothing is averaged."""
    if reference is not None and ablation != "mean":
        raise ValueError(f"reference is for ablation='mean' alone, got ablation={ablation!r}")


def check_halves(task: Task) -> None:
    """ValueError for a task without prompts in one of its halves."""
    n_ranking = int(task.is_ranking.sum())
    if n_ranking in (0, len(task)):
        missing, other = ("ranking", "evaluation") if n_ranking == 0 else ("evaluation", "ranking")
        raise ValueError(
            f"task {task.name!r} has no prompts for {missing}: all {len(task)} are for {other}; a circuit "
            "needs prompts in both halves"
        )


def halves(task: Task, metric: str | CustomMetric) -> list[tuple[Task, str | CustomMetric]]:
    """The prompts to rank on and those to evaluate on, each with the metric of them."""
    parts = ((task.ranking, task.is_ranking), (task.evaluation, ~task.is_ranking))
    if not isinstance(metric, CustomMetric):
        return [(half, metric) for half, _ in parts]
    return [(half, metric.for_prompts(np.flatnonzero(of_half))) for half, of_half in parts]


def checked_sizes(sizes: Any, n: int) -> np.ndarray:
    """int64, ascending, without doubles."""
    text = f"sizes must be integers in 0..{n} (there are {n:,} items), got "
    if isinstance(sizes, str) or not isinstance(sizes, (Sequence, range, np.ndarray)):
        raise TypeError(f"sizes must be a sequence of integers, got {type(sizes).__name__}")
    if isinstance(sizes, np.ndarray) and sizes.ndim != 1:
        raise ValueError(f"{text}an array of shape {sizes.shape}")
    if not len(sizes):
        raise ValueError(f"{text}none")
    return np.array(sorted({_check.integer(size, "each of sizes", 0, n) for size in sizes}), np.int64)


def _position_labels(task: Task) -> tuple[str, ...] | None:
    """The task's names of positions, if there is one for each position of every prompt."""
    labels = task.position_labels
    fits = labels is not None and {len(row) for row in task.clean} == {len(labels)}
    return labels if fits else None
