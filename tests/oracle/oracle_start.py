"""First weights of transcoders and losses of tokens, plainly in NumPy: the twin of first_weights.c and of
asp_loss_tokens."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray
NEAR, SAMPLE = 0.6, 512


def token_losses(logits: Array, targets: Array) -> Array:
    """Cross-entropy (n,) in nats of targets (n,) under logits (n, V)."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(len(targets)), targets]


def output_scale(y: Array) -> float:
    """Standard deviation of y (N, E) from the means of its columns."""
    rows = y.astype(np.float64)
    return math.sqrt(max(float(((rows - rows.mean(axis=0)) ** 2).mean()), 1e-20))


def spread_rows(rows: Array, draws: Array) -> Array:
    """Numbers of rows (N, E) far from each other and from 0, at most one for each draw."""
    nearest, chosen = (rows.astype(np.float64) ** 2).sum(axis=1), []
    for draw in draws:
        total = np.cumsum(nearest)
        if not total[-1] > 0 or not math.isfinite(total[-1]):
            break
        chosen.append(min(int(np.searchsorted(total, draw * total[-1], side="right")), len(rows) - 1))
        away = (rows - rows[chosen[-1]]).astype(np.float64)
        nearest = np.minimum(nearest, (away**2).sum(axis=1))
    return np.array(chosen, np.int64)


def first_weights(x: Array, y: Array, scale: float, draws: Array, random: Array) -> tuple[Array, ...]:
    """(w_enc, b_enc, w_dec, b_dec, chosen) of rows x, y (N, E)."""
    x, y = x.astype(np.float64), y.astype(np.float64) / scale
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    x, y = x - mean_x, y - mean_y
    pairs = np.concatenate([rows / max(math.sqrt((rows**2).mean()), 1e-30) for rows in (x, y)], axis=1)
    chosen = spread_rows(pairs.astype(np.float32), draws)
    read, written = random / np.linalg.norm(random, axis=-1, keepdims=True)
    n = len(chosen)
    size, length = (np.maximum(np.linalg.norm(rows[chosen], axis=1, keepdims=True), 1e-30) for rows in (x, y))
    read[:n] = x[chosen] / size**2 * length / (1 - NEAR)
    written[:n] = y[chosen] / length
    bias = -(read @ mean_x)
    bias[:n] -= length[:, 0] * NEAR / (1 - NEAR)
    step = max(1, len(x) // SAMPLE)
    found = np.maximum((x[::step] + mean_x) @ read.T + bias, 0) @ written
    gain = min(max((found * y[::step]).sum() / max((found**2).sum(), 1e-30), 1e-3), 1.0)
    return gain * read, gain * bias, written, mean_y, chosen


def weights_of_set(
    w_enc: Array, b_enc: Array, w_dec: Array, b_dec: Array, threshold: Array, scale: float
) -> tuple[Array, ...]:
    """The weights of a set with decoder rows of length 1: (w_enc, b_enc, w_dec, b_dec, log_threshold)."""
    lengths = np.maximum(np.linalg.norm(w_dec.astype(np.float64), axis=1), 1e-30)
    factor = lengths / scale
    log_threshold = np.log(np.maximum(threshold * factor, 1e-9))
    return (
        w_enc * factor[:, None],
        b_enc * factor,
        w_dec / lengths[:, None],
        b_dec.astype(np.float64) / scale,
        log_threshold,
    )


def common_threshold(w_enc: Array, b_enc: Array, x: Array, l0: float) -> float:
    """The threshold above which rows of x (N, E) have l0 features on average."""
    x = x[:: max(1, len(x) // SAMPLE)].astype(np.float64)
    pre = np.sort(x @ w_enc.T + b_enc, axis=None)
    return max(float(pre[-min(max(round(l0 * len(x)), 1), pre.size)]), 1e-3)
