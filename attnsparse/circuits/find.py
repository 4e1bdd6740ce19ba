"""Circuits: rank heads or attention edges on one half of a task, evaluate the ranking on the other half.

Every number comes from `effects`, which ablates, runs and measures; here is what is asked of it, in which
order and on which prompts. The ranking sees the ranking half only, the curve the evaluation half only. (The
edges to be ranked are those open in any prompt of the task; those that no ranking prompt opens score 0.)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _check
from .._core_types import Curve
from .._engine import core_for
from ..model.interventions import ABLATIONS
from ..model.model import Model
from ..tasks.custom import CustomMetric, chosen_metric, metric_name
from ..tasks.task import Task
from . import effects, search
from .choices import (
    MAX_RESAMPLES,
    METHODS,
    NAMES,
    NORMALIZATIONS,
    RANK_BY,
    UNITS,
)
from .circuit import Circuit

SAME = 1e-7  # relative difference of two metrics that is rounding
_CORE = core_for("float64")


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
    threads : int, optional
        Default: the number set by `set_num_threads`.
    progress : bool, optional
        Show bars on stderr. Default: in terminals and notebooks only.

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
    KeyboardInterrupt
        On Ctrl-C.

    References
    ----------
    "mib": Mueller et al., "MIB: A Mechanistic Interpretability Benchmark", 2025. "attribution": Syed et al.,
    "Attribution Patching Outperforms Automated Circuit Discovery", 2023. "ig": Sundararajan et al., 2017.
    """
    _check.choice(unit, "unit", UNITS)
    _check.choice(method, "method", METHODS)
    _check.choice(ablation, "ablation", ABLATIONS)
    _check.choice(normalize, "normalize", NORMALIZATIONS)
    _check.choice(rank_by, "rank_by", RANK_BY)
    options: dict[str, Any] = {
        "rank_by": rank_by,
        "steps": _check.integer(steps, "steps", 1, 2**31),
        "greedy_step": _check.proper_fraction(greedy_step, "greedy_step", zero=True),
        "n_bootstrap": _check.integer(n_bootstrap, "n_bootstrap", 0, MAX_RESAMPLES),
        "n_random": _check.integer(n_random, "n_random", 0, 2**31),
        "confidence": _check.proper_fraction(confidence, "confidence"),
        "seed": _check.seed(seed),
    }
    ranked, tested = _halves(model, task, unit, ablation, reference, metric, threads, progress)
    if method == "attribution" and tested.metric == "kl":
        text = "method='attribution' finds nothing for metric 'kl': at the whole model its gradient is 0"
        raise ValueError(f"{text}; use 'ig'")
    items = np.array(effects.candidates(model, task, unit, threads), np.int32)
    if not len(items):
        raise ValueError(f"task {task.name!r} has no {NAMES[unit]} to rank: every gate is closed")
    asked = None if sizes is None else _checked_sizes(sizes, len(items))
    full, empty = tested.full(), tested.keep_only(items, [0], quiet=True)[0]
    _check_divisor(full, empty, normalize, unit)
    order, scores = search.ranking(ranked, items, method, options)
    return Circuit(
        model_name=model.name,
        model_digest=model.digest,
        task_name=task.name,
        task_digest=task.digest,
        unit=unit,
        method=method,
        ablation=ablation,
        normalize=normalize,
        metric=metric_name(tested.metric),
        options={
            **options,
            "sizes": None if asked is None else asked.tolist(),
            "reference": None if tested.reference is None else tested.reference.digest,
            "n_ranking": len(ranked.task),
        },
        items=items[order],
        scores=scores,
        **_evaluation(tested, items, order, asked, full, empty, normalize, options),
        position_labels=_position_labels(task),
    )


def _evaluation(
    half: TaskHalf,
    items: np.ndarray,
    order: np.ndarray,
    sizes: np.ndarray | None,
    full: np.ndarray,
    empty: np.ndarray,
    normalize: str,
    options: dict[str, Any],
) -> dict[str, Any]:
    """The arrays of a Circuit from `sizes` to `random_high`."""
    explain = functools.partial(_explained, full=full, empty=empty, normalize=normalize)
    around = None if normalize == "none" else explain
    sizes, values = search.evaluated(half, items[order], sizes, empty, around)
    effect, seed = explain(values), options["seed"]
    curve, threads = Curve(values, full, empty, normalize), _check.threads(half.threads)
    curves = _CORE.curve_bootstrap(curve, options["n_bootstrap"], seed, threads)
    low, high = _CORE.curve_band(curves, options["confidence"], threads)
    mean, lowest, highest = search.random_baseline(
        half, items, sizes, effect, explain, options["n_random"], seed
    )
    return {
        "sizes": sizes,
        "values": values,
        "full": full,
        "empty": empty,
        "effect": effect,
        "effect_low": low,
        "effect_high": high,
        "random_effect": mean,
        "random_low": lowest,
        "random_high": highest,
    }


def _explained(values: np.ndarray, full: np.ndarray, empty: np.ndarray, normalize: str) -> np.ndarray:
    effect: np.ndarray = _CORE.curve_effect(Curve(values, full, empty, normalize))
    return effect


@dataclass(frozen=True)
class TaskHalf:
    """What is measured on one half of a task: finite float64 arrays [..., prompts]."""

    model: Model
    task: Task
    unit: str
    ablation: str
    reference: Task | None
    metric: str | CustomMetric
    threads: int | None
    progress: bool | None

    @property
    def sign(self) -> float:
        """-1 if the metric is better when smaller."""
        smaller = (
            self.metric.smaller_is_better if isinstance(self.metric, CustomMetric) else self.metric == "kl"
        )
        return -1.0 if smaller else 1.0

    def full(self) -> np.ndarray:
        """[P] of the whole model."""
        return self._finite(
            effects.metric_values(self.model, self.task, metric=self.metric, threads=self.threads)
        )

    def knock_out(self, items: np.ndarray) -> np.ndarray:
        """[n, P], each item alone ablated."""
        return self._finite(effects.knock_out(self.model, self.task, items, self.ablation, **self._common))

    def keep_only(self, items: np.ndarray, sizes: Any, *, quiet: bool = False) -> np.ndarray:
        """[len(sizes), P], the first so many items kept. quiet: a small part of something larger, no bar."""
        common = {**self._common, "progress": False} if quiet else self._common
        sizes = np.asarray(sizes, np.int64)
        return self._finite(effects.keep_only(self.model, self.task, items, sizes, self.ablation, **common))

    def leave_one_out(self, items: np.ndarray) -> np.ndarray:
        """[n, P], all items kept but each one in turn, without a bar."""
        common = {**self._common, "progress": False}
        return self._finite(effects.leave_one_out(self.model, self.task, items, self.ablation, **common))

    def attribution(self, steps: int) -> np.ndarray:
        """Scores by layer, head, ... of the unit, averaged over prompts."""
        call = effects.attribution
        scores = call(self.model, self.task, self.unit, self.ablation, steps=steps, **self._common)
        return self._finite(scores, "its gradient")

    @property
    def _common(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("reference", "metric", "threads", "progress")}

    def _finite(self, values: Any, what: str = "it") -> np.ndarray:
        array = np.array(values, np.float64)
        if not np.isfinite(array).all():
            raise ValueError(
                f"metric {metric_name(self.metric)!r} of task {self.task.name!r}: {what} is not finite with "
                "some items ablated; are all weights of the model finite?"
            )
        return array


def _halves(
    model: Model,
    task: Task,
    unit: str,
    ablation: str,
    reference: Task | None,
    metric: str | CustomMetric | None,
    threads: int | None,
    progress: bool | None,
) -> tuple[TaskHalf, TaskHalf]:
    """The halves to rank on and to evaluate on."""
    _check.instance(model, Model, "model")
    for name, value in (("task", task), ("reference", task if reference is None else reference)):
        _check.instance(value, Task, name)
    if reference is not None and ablation != "mean":
        raise ValueError(f"reference is for ablation='mean' alone, got ablation={ablation!r}")
    n_ranking = int(task.is_ranking.sum())
    if n_ranking in (0, len(task)):
        missing, other = ("ranking", "evaluation") if n_ranking == 0 else ("evaluation", "ranking")
        raise ValueError(
            f"task {task.name!r} has no prompts for {missing}: all {len(task)} are for {other}; a circuit "
            "needs prompts in both halves"
        )
    chosen = chosen_metric(metric, task)
    mean_of = (task.ranking if reference is None else reference) if ablation == "mean" else None

    def half(part: Task, of_part: np.ndarray) -> TaskHalf:
        own = chosen.for_prompts(np.flatnonzero(of_part)) if isinstance(chosen, CustomMetric) else chosen
        return TaskHalf(model, part, unit, ablation, mean_of, own, threads, progress)

    return half(task.ranking, task.is_ranking), half(task.evaluation, ~task.is_ranking)


def _check_divisor(full: np.ndarray, empty: np.ndarray, normalize: str, unit: str) -> None:
    """Raise ValueError if the normalization would divide by 0, but for rounding."""
    whole, nothing = float(full.mean()), float(empty.mean())
    scale = max(float(np.abs(full).mean()), float(np.abs(empty).mean()))
    if normalize == "mib" and abs(whole - nothing) <= SAME * scale:
        raise ValueError(
            f"ablating all {NAMES[unit]} does not change the metric (mean {whole:.6g} with, {nothing:.6g} "
            "without), so normalize='mib' would divide by 0; try another ablation, or normalize='none'"
        )
    if normalize == "ratio" and abs(whole) <= SAME * scale:
        raise ValueError(
            f"the whole model's metric is {whole:.6g}, so normalize='ratio' would divide by 0; use 'mib'"
        )


def _checked_sizes(sizes: Any, n: int) -> np.ndarray:
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
