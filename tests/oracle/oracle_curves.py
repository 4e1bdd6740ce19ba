"""Curves of circuits in NumPy, against which csrc/circuit/curve.c is judged: faithfulness (explained
effect), how many items reach it, and how both vary with the choice of prompts.

Curves are over sizes: the n best items kept, everything else ablated. A resample draws as many evaluation
prompts as there are, with replacement, and takes the same ones for the circuit, the whole model and the model
with everything ablated; means over prompts are taken before dividing, as for the curve itself.
"""

from __future__ import annotations

import numpy as np

CIRCUITS = 7  # use of random numbers
RESAMPLES, ORDERS = 0, 1  # first counter


def explained_effect(values: np.ndarray, full: np.ndarray, empty: np.ndarray, normalize: str) -> np.ndarray:
    """float64 [S] from the metric of the circuit (values [S, P]), the whole model (full [P]) and the model
    with everything ablated (empty [P]) on P prompts.

    normalize: "mib" (m(C) - m(0)) / (m(M) - m(0)), "ratio" m(C) / m(M), "none" m(C).
    """
    return _normalized(values.mean(axis=1), full.mean(), empty.mean(), normalize)


def bootstrap_effect(
    values: np.ndarray, full: np.ndarray, empty: np.ndarray, draws: np.ndarray, normalize: str
) -> np.ndarray:
    """The curve of every resample: float64 [B, S].

    values [S, P], full [P], empty [P] as in `explained_effect`; draws int [B, P], the prompts of each
    resample. Where the divisor is 0, the row is infinite or NaN.
    """
    n_draws, n_prompts = draws.shape
    flat = draws + n_prompts * np.arange(n_draws)[:, None]
    counts = np.bincount(flat.ravel(), minlength=n_draws * n_prompts).reshape(n_draws, n_prompts)
    weights = counts / n_prompts
    # einsum does not go through BLAS: the same bits for every number of threads
    means = np.einsum("bp,sp->bs", weights, values)
    of_full, of_empty = (np.einsum("bp,p->b", weights, row) for row in (full, empty))
    return _normalized(means, of_full[:, None], of_empty[:, None], normalize)


def resampled_curves(
    values: np.ndarray, full: np.ndarray, empty: np.ndarray, normalize: str, n_bootstrap: int, seed: int
) -> np.ndarray:
    """`bootstrap_effect` of the resamples drawn by `seed`, without those in which the divisor is 0."""
    draws = resamples(n_bootstrap, len(full), seed)
    curves = bootstrap_effect(values, full, empty, draws, normalize)
    defined: np.ndarray = curves[np.isfinite(curves).all(axis=1)]
    return defined


def resamples(n_draws: int, n_prompts: int, seed: int) -> np.ndarray:
    """int64 [n_draws, n_prompts]: prompts drawn with replacement, a function of the seed."""
    prompts: np.ndarray = raw(n_draws * n_prompts, seed, RESAMPLES) % np.uint64(n_prompts)
    return prompts.astype(np.int64).reshape(n_draws, n_prompts)


def random_order(n: int, seed: int, which: int) -> np.ndarray:
    """Random order number `which` of n items: int64 [n]."""
    return np.argsort(raw(n, seed, ORDERS, which), kind="stable")


def raw(n: int, seed: int, first: int, second: int = 0) -> np.ndarray:
    """uint64 [n] of the stream of circuits with these counters."""
    counter = np.array([0, second, first, CIRCUITS], np.uint64)
    return np.random.Philox(key=seed, counter=counter).random_raw(n)


def band(curves: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval at every size: (low [S], high [S]) of resampled curves [B, S]; NaN if B = 0."""
    if not len(curves):
        return np.full(curves.shape[1], np.nan), np.full(curves.shape[1], np.nan)
    low, high = np.quantile(curves, tails(confidence), axis=0)
    return low, high


def needed_index(curves: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Where curves [..., S] first reach the fraction, and from where on they stay at or above it.

    Two int64 arrays [...], indices into the sizes; S where a curve never does.
    """
    reached = curves >= fraction
    stays = np.logical_and.accumulate(reached[..., ::-1], axis=-1)
    n_sizes = curves.shape[-1]
    first = np.where(reached.any(axis=-1), reached.argmax(axis=-1), n_sizes)
    return first, n_sizes - stays.sum(axis=-1)


def needed_sizes(curves: np.ndarray, sizes: np.ndarray, fraction: float, by: str) -> np.ndarray:
    """Sizes [B] at which curves [B, S] reach the fraction; infinite where they never do, NaN where a curve is
    not finite.

    by: "first" or "stays", see `needed_index`.
    """
    index = needed_index(curves, fraction)[0 if by == "first" else 1]
    found: np.ndarray = np.append(sizes.astype(np.float64), np.inf)[index]
    return np.where(np.isfinite(curves).all(axis=1), found, np.nan)


def index_interval(indices: np.ndarray, confidence: float) -> tuple[int, int]:
    """Percentile interval of indices [B], rounded outwards to indices that were drawn."""
    low, high = tails(confidence)
    return (
        int(np.quantile(indices, low, method="lower")),
        int(np.quantile(indices, high, method="higher")),
    )


def tails(confidence: float) -> tuple[float, float]:
    """The two quantiles between which this share is."""
    return (1 - confidence) / 2, (1 + confidence) / 2


def _normalized(mean: np.ndarray, full: np.ndarray, empty: np.ndarray, normalize: str) -> np.ndarray:
    if normalize == "none":
        return mean
    base = empty if normalize == "mib" else np.zeros_like(empty)
    with np.errstate(divide="ignore", invalid="ignore"):
        share: np.ndarray = (mean - base) / (full - base)
    return share


def ratio_of_needed(counts: list[float], drawn: list[np.ndarray], confidence: float) -> tuple[float, ...]:
    """(value, low, high) from what two circuits need, and from what they need in resamples [B]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value, ratios = np.divide(*counts), np.divide(*drawn)
    ratios = ratios[~np.isnan(ratios)]
    if not np.isfinite(counts).all() or not len(ratios):
        return (float("nan"),) * 3
    low, high = tails(confidence)
    return value, np.quantile(ratios, low, method="lower"), np.quantile(ratios, high, method="higher")
