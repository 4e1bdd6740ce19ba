"""How many times more items one circuit needs than another, with an interval over prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .bootstrap import bootstrap_effect, needed_index, resamples

if TYPE_CHECKING:
    from .find import Circuit


class Ratio(NamedTuple):
    """How many times more items one circuit needs than another, with an interval over prompts.

    value is NaN if one of them never reaches the fraction; low and high may be infinite.
    """

    value: float
    low: float
    high: float


def needed_ratio(
    more: Circuit,
    fewer: Circuit,
    fraction: float = 0.9,
    by: str = "first",
    *,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Ratio:
    """needed(fraction) of `more` divided by that of `fewer`, and a percentile bootstrap interval.

    by: "first", the smallest size that reaches the fraction, or "stays", from which it stays reached. Every
    resample takes the same prompts for both circuits, if they were evaluated on equally many.
    Raises ValueError for another `by`, and if the two are not of the same unit, ablation and task.
    """
    if by not in ("first", "stays"):
        raise ValueError(f"by must be 'first' or 'stays', got {by!r:.60}")
    for name in ("unit", "ablation", "task_name"):
        if getattr(more, name) != getattr(fewer, name):
            raise ValueError(
                f"a ratio needs circuits of the same {name}, got {getattr(more, name)!r} and "
                f"{getattr(fewer, name)!r}"
            )
    values = [_needed(circuit.effect[None], circuit, fraction, by)[0] for circuit in (more, fewer)]
    drawn = [
        _needed(_resampled(circuit, n_bootstrap, seed), circuit, fraction, by) for circuit in (more, fewer)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        value, ratios = np.divide(*values), np.divide(*drawn)
    ratios = ratios[~np.isnan(ratios)]
    if not np.isfinite(values).all() or not len(ratios):
        return Ratio(float("nan"), float("nan"), float("nan"))
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    low = np.quantile(ratios, tails[0], method="lower")
    high = np.quantile(ratios, tails[1], method="higher")
    return Ratio(float(value), float(low), float(high))


def _resampled(circuit: Circuit, n_bootstrap: int, seed: int) -> np.ndarray:
    """The curve of every resample of prompts: [B, S]."""
    draws = resamples(n_bootstrap, circuit.values.shape[1], seed)
    return bootstrap_effect(circuit.values, circuit.full, circuit.empty, draws, circuit.normalize)


def _needed(curves: np.ndarray, circuit: Circuit, fraction: float, by: str) -> np.ndarray:
    """Sizes [B] at which curves [B, S] reach the fraction; infinite where they never do, NaN for bad ones."""
    index = needed_index(curves, fraction)[0 if by == "first" else 1]
    sizes = np.append(circuit.sizes.astype(np.float64), np.inf)
    return np.where(np.isfinite(curves).all(axis=1), sizes[index], np.nan)
