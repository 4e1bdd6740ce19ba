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
from ..model.model import Model
from ..tasks.task import Task
from . import effects, search
from .bootstrap import band, explained_effect, resampled_curves
from .circuit import MAX_RESAMPLES, METHODS, NAMES, NORMALIZATIONS, RANK_BY, UNITS, Circuit, Needed
from .circuit_file import load_circuit
from .effects import ABLATIONS, METRICS

__all__ = ["Circuit", "Needed", "find_circuit", "load_circuit"]

SAME = 1e-7  # relative difference of two metrics that is rounding


def find_circuit(
    model: Model,
    task: Task,
    unit: str = "head",
    method: str = "exact",
    ablation: str = "zero",
    normalize: str = "mib",
    *,
    metric: str | None = None,
    rank_by: str = "absolute",
    steps: int = 10,
    sizes: Sequence[int] | None = None,
    reference: Task | None = None,
    n_bootstrap: int = 1000,
    n_random: int = 5,
    confidence: float = 0.95,
    greedy_step: float = 0.1,
    seed: int = 0,
    threads: int | None = None,
    progress: bool | None = None,
) -> Circuit:
    """Rank items on `task.ranking`; find how much the n best explain on `task.evaluation`.

    unit: "head", "head_position" (a head at one position) or "edge" (an attention edge: an open entry of the
    pattern); the last two need prompts of one length.

    method: how items are ranked. "exact": each one ablated alone. "attribution": gradient of the metric times
    what ablation would change. "ig": the same integrated over `steps` steps from all ablated to none.
    "greedy": backward elimination; each round ablates every item still kept, one at a time, on top of those
    dropped already, and drops the share `greedy_step` (at least one; 0: exactly one) that costs least. A
    batch that costs more than twice the sum of its parts (and more than 0.1 % of the effect) holds items that
    stand in for each other and is halved until it does not.

    rank_by: "absolute" value of the score, or "signed"; signed puts items without any effect before those
    that look harmful one at a time but are needed.

    ablation: what replaces items outside the circuit. "zero"; "mean" over the prompts of `reference` (a task
    with prompts as long; default the ranking half), per position; "counterfactual": the corrupted prompt's
    value at the same position. Embeddings and MLPs stay. Edges are those open in a clean prompt of the task;
    entries that only corrupted or reference prompts open count as outside every circuit, so with those two
    ablations f of all edges of a gated model can differ from 1.

    normalize: "mib" f = (m(C) - m(0)) / (m(M) - m(0)), "ratio" f = m(C) / m(M), "none" f = m(C); m is the
    mean over prompts of the circuit, the whole model (M), or with everything ablated (0).

    metric: None for the task's own, or "logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl" (to the
    whole model; better when smaller).

    sizes: numbers of items to evaluate. None: for heads all from 0 on; for other units all up to 32, then
    steps of 5 %, and all; then, so that `needed(0.9)` is finer, the gap before the first size at 0.9 of the
    effect and the one before the size from which it stays there are divided by five, up to three times.
    n_random: orders of the random baseline, each evaluated at up to 24 of the sizes.
    n_bootstrap, confidence: resamples of evaluation prompts, and the share inside the intervals.
    seed: of the resamples and random orders; the result is a function of the arguments, not of `threads`.
    progress: bars on stderr; None shows them in terminals and notebooks only.

    Raises ValueError for unknown names, numbers out of range, a task without prompts in one of its halves,
    a metric that is not finite, that ablating everything does not change ("mib") or that is 0 ("ratio");
    TypeError for arguments of another type; KeyboardInterrupt on Ctrl-C.
    """
    _check_choices(unit=unit, method=method, ablation=ablation, normalize=normalize, rank_by=rank_by)
    options = {
        "rank_by": rank_by,
        "steps": _whole("steps", steps, 1, 2**31),
        "greedy_step": _share("greedy_step", greedy_step, with_zero=True),
        "n_bootstrap": _whole("n_bootstrap", n_bootstrap, 0, MAX_RESAMPLES),
        "n_random": _whole("n_random", n_random, 0, 2**31),
        "confidence": _share("confidence", confidence),
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
        metric=tested.metric,
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
    half: Half,
    items: np.ndarray,
    order: np.ndarray,
    sizes: np.ndarray | None,
    full: np.ndarray,
    empty: np.ndarray,
    normalize: str,
    options: dict[str, Any],
) -> dict[str, np.ndarray]:
    """The arrays of a Circuit from `sizes` to `random_high`."""
    explain = functools.partial(explained_effect, full=full, empty=empty, normalize=normalize)
    around = None if normalize == "none" else explain
    sizes, values = search.evaluated(half, items[order], sizes, empty, around)
    effect, seed = explain(values), options["seed"]
    curves = resampled_curves(values, full, empty, normalize, options["n_bootstrap"], seed)
    low, high = band(curves, options["confidence"])
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


@dataclass(frozen=True)
class Half:
    """What is measured on one half of a task: finite float64 arrays [..., prompts]."""

    model: Model
    task: Task
    unit: str
    ablation: str
    reference: Task | None
    metric: str
    threads: int | None
    progress: bool | None

    @property
    def sign(self) -> float:
        """-1 if the metric is better when smaller."""
        return -1.0 if self.metric == "kl" else 1.0

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

    def keep_without(self, items: np.ndarray) -> np.ndarray:
        """[n, P], all items kept but each one in turn, without a bar."""
        common = {**self._common, "progress": False}
        return self._finite(effects.keep_without(self.model, self.task, items, self.ablation, **common))

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
                f"metric {self.metric!r} of task {self.task.name!r}: {what} is not finite with some items "
                "ablated; are all weights of the model finite?"
            )
        return array


def _halves(
    model: Model,
    task: Task,
    unit: str,
    ablation: str,
    reference: Task | None,
    metric: str | None,
    threads: int | None,
    progress: bool | None,
) -> tuple[Half, Half]:
    """The halves to rank on and to evaluate on."""
    _check.instance(model, Model, "model")
    for name, value in (("task", task), ("reference", task if reference is None else reference)):
        _check.instance(value, Task, name)
    if reference is not None and ablation != "mean":
        raise ValueError(f"reference is what 'mean' ablation averages over; ablation is {ablation!r}")
    n_ranking = int(task.is_ranking.sum())
    if n_ranking in (0, len(task)):
        missing, other = ("ranking", "evaluation") if n_ranking == 0 else ("evaluation", "ranking")
        raise ValueError(
            f"task {task.name!r} has no prompts for {missing}: all {len(task)} are for {other}; a circuit "
            "needs prompts in both halves"
        )
    metric = task.metric if metric is None else metric
    _check_choices(metric=metric)
    mean_of = (task.ranking if reference is None else reference) if ablation == "mean" else None
    shared = (unit, ablation, mean_of, metric, threads, progress)
    return Half(model, task.ranking, *shared), Half(model, task.evaluation, *shared)


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
    found = sorted({_check.integer(size, "each of sizes") for size in sizes})
    if not found:
        raise ValueError(f"{text}none")
    if found[0] < 0 or found[-1] > n:
        raise ValueError(f"{text}{found[0] if found[0] < 0 else found[-1]}")
    return np.array(found, np.int64)


def _check_choices(**values: Any) -> None:
    known = {
        "unit": tuple(UNITS),
        "method": METHODS,
        "ablation": ABLATIONS,
        "normalize": NORMALIZATIONS,
        "rank_by": RANK_BY,
        "metric": METRICS,
    }
    for name, value in values.items():
        if not isinstance(value, str) or value not in known[name]:
            raise ValueError(f"{name} must be one of {', '.join(known[name])}; got {value!r:.60}")


def _whole(name: str, value: Any, low: int, high: int) -> int:
    number = _check.integer(value, name)
    if not low <= number <= high:
        raise ValueError(f"{name} must be in {low}..{high:,}, got {number}")
    return number


def _share(name: str, value: Any, *, with_zero: bool = False) -> float:
    """A number inside 0 to 1, without 1."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (0 < value < 1 or (with_zero and value == 0)):
        low = "0 or more" if with_zero else "above 0"
        raise ValueError(f"{name} must be {low} and below 1, got {value}")
    return float(value)


def _position_labels(task: Task) -> tuple[str, ...] | None:
    """The task's names of positions, if there is one for each position of every prompt."""
    labels = task.position_labels
    fits = labels is not None and {len(row) for row in task.clean} == {len(labels)}
    return labels if fits else None
