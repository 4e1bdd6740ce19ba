"""The order of items, the sizes at which it is evaluated, and random orders beside it.

Works on a `TaskHalf` of find.py, which measures; nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .._display import progress_bar
from .._engine import core_for

if TYPE_CHECKING:
    from .find import TaskHalf

_CORE = core_for("float64")
_ORDERS = (7, 1)  # use and first counter of random orders, see csrc/base/base.h

Explain: TypeAlias = Callable[[np.ndarray], np.ndarray]  # metric [S, P] -> explained effect [S]

EXACT_SIZES = 32  # up to here every number of edges is evaluated, above it steps of 1 / STEP
STEP = 20
FRACTION = 0.9  # where the sizes are made finer
REFINE_ROUNDS, REFINE_POINTS = 3, 4
RANDOM_SIZES = 24  # at most, for each random order
JOINT_COST = 2.0  # of a batch in `eliminate`, against the sum of its parts
SMALL_SHARE = 1e-3  # of the effect: too little to matter in `eliminate`


# --------------------------------------------------------------------------------------- ranking


def ranking(
    half: TaskHalf, items: np.ndarray, method: str, options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """(order int64 [n] of the items, best first; float64 [n], their scores in that order).

    options: rank_by, steps (for "ig") and greedy_step.
    """
    absolute = options["rank_by"] == "absolute"
    if method == "greedy":
        order = eliminate(half, items, absolute, options["greedy_step"])
        return order, np.arange(len(items), 0, -1, dtype=np.float64)
    if method == "exact":
        scores = half.full().mean() - half.knock_out(items).mean(axis=1)
    else:
        scores = half.attribution(options["steps"] if method == "ig" else 1)[tuple(items.T)]
    scores = half.sign * scores
    order = np.argsort(-(np.abs(scores) if absolute else scores), kind="stable")
    return order, scores[order] + 0.0  # no -0.0


def eliminate(half: TaskHalf, items: np.ndarray, absolute: bool, step: float) -> np.ndarray:
    """Backward elimination: indices of the items, the one dropped last first."""
    now, nothing = half.keep_only(items, [len(items), 0], quiet=True).mean(axis=1)
    small = SMALL_SHARE * abs(now - nothing)
    left = np.arange(len(items))
    dropped: list[int] = []
    with progress_bar(half.progress, len(items), "backward elimination", "item") as bar:
        while len(left):
            costs = half.sign * (now - half.leave_one_out(items[left]).mean(axis=1))
            if absolute:
                costs = np.abs(costs)
            order = np.lexsort((-left, costs))  # of equal ones the last goes first
            n_most = max(1, int(step * len(left)))
            n, now = _batch(half, items[left[order]], np.abs(costs[order]), n_most, now, small)
            dropped.extend(left[order[:n]].tolist())
            left = np.sort(left[order[n:]])
            if bar is not None:
                bar.update(n)
    return np.array(dropped[::-1])


def _batch(
    half: TaskHalf, items: np.ndarray, costs: np.ndarray, n_most: int, now: float, small: float
) -> tuple[int, float]:
    """How many of `items`, cheapest first, go at once, and the metric without them."""
    counts = [n_most]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    without = half.keep_only(items[::-1], len(items) - np.array(counts), quiet=True).mean(axis=1)
    for n, metric in zip(counts, without):
        if abs(metric - now) <= JOINT_COST * costs[:n].sum() + small:
            return n, float(metric)
    return 1, float(without[-1])


# ------------------------------------------------------------------------------------- evaluation


def evaluated(
    half: TaskHalf, items: np.ndarray, sizes: np.ndarray | None, empty: np.ndarray, explain: Explain | None
) -> tuple[np.ndarray, np.ndarray]:
    """(sizes int64 [S], ascending; metric float64 [S, P] with only the best so many items kept).

    sizes: None for the default ones, made finer around FRACTION of what `explain` gives.
    """
    asked = default_sizes(len(items), every=half.unit == "head") if sizes is None else sizes
    values = _kept(half, items, asked, empty)
    for _ in range(REFINE_ROUNDS if sizes is None else 0):
        if explain is None:
            break
        more = finer(np.array(list(values)), explain(np.stack(list(values.values()))))
        if not len(more):
            break
        values = dict(sorted({**values, **_kept(half, items, more, empty, quiet=True)}.items()))
    return np.array(list(values), np.int64), np.stack(list(values.values()))


def _kept(
    half: TaskHalf, items: np.ndarray, sizes: np.ndarray, empty: np.ndarray, *, quiet: bool = False
) -> dict[int, np.ndarray]:
    """Size -> metric on each prompt; with 0 items it is known already."""
    inner = sizes[sizes > 0]
    values = {0: empty} if len(inner) < len(sizes) else {}
    return values | dict(zip(inner.tolist(), half.keep_only(items, inner, quiet=quiet) if len(inner) else ()))


def default_sizes(n: int, *, every: bool) -> np.ndarray:
    """0..n, or 0 to EXACT_SIZES, then steps of 1 / STEP, and n."""
    sizes = [0]
    while (last := sizes[-1]) < n:
        step = 1 if every or last < EXACT_SIZES else max(1, last // STEP)
        sizes.append(min(n, last + step))
    return np.array(sizes, np.int64)


def finer(sizes: np.ndarray, effect: np.ndarray) -> np.ndarray:
    """Sizes that divide the gaps in which FRACTION is first reached, and from which on it stays reached."""
    more: set[int] = set()
    for found in _CORE.curve_needed(effect[None], FRACTION):
        i = int(found[0])
        if 0 < i < len(sizes):
            below, above = int(sizes[i - 1]), int(sizes[i])
            points = min(REFINE_POINTS, above - below - 1)
            more |= {round(n) for n in np.linspace(below, above, points + 2)[1:-1].tolist()}
    return np.array(sorted(more), np.int64)


def random_baseline(
    half: TaskHalf,
    items: np.ndarray,
    sizes: np.ndarray,
    effect: np.ndarray,
    explain: Explain,
    n_orders: int,
    seed: int,
) -> np.ndarray:
    """float64 [3, S]: mean, smallest and largest f of items in random order; NaN where not evaluated.

    With no items and with all of them an order makes no difference: there it is `effect`.
    """
    curves = np.full((max(n_orders, 1), len(sizes)), np.nan)
    ends = (sizes == 0) | (sizes == len(items))
    if n_orders:
        curves[:, ends] = effect[ends]
    chosen = np.arange(len(sizes))
    if len(sizes) > RANDOM_SIZES:
        wanted = np.geomspace(1, sizes[-1], RANDOM_SIZES)
        chosen = np.unique(np.searchsorted(sizes, wanted).clip(max=len(sizes) - 1))
    chosen = chosen[~ends[chosen]]
    n_orders = n_orders if len(chosen) else 0
    with progress_bar(half.progress, n_orders, "random orders", "order") as bar:
        for which in range(n_orders):
            shuffled = items[_CORE._random_permutation(len(items), seed, *_ORDERS, which)]
            curves[which, chosen] = explain(half.keep_only(shuffled, sizes[chosen], quiet=True))
            if bar is not None:
                bar.update()
    return np.stack([curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0)])
