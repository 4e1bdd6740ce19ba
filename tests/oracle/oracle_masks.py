"""Training of masks of component edges in plain NumPy float64: an executable specification.

Masks are hard concrete (Louizos et al. 2018); "probing" is Cao et al. 2021, "pruning" Bhaskar et al. 2024.
The uniform numbers are those of NumPy's Philox: key the seed, counter (0, 0, step, 10), one for each place of
the matrix [senders, receivers], row by row, and after these one for each sender. Losses and gradients of
masks are those of oracle_components.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import oracle_component_graph as graph
import oracle_components as comp
from oracle import Array

BETA, LOW, HIGH = 2 / 3, -0.1, 1.1
USE = 10  # of random numbers, part of their counter


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def uniforms(n: int, seed: int, step: int) -> Array:
    """n numbers of one step, each in (0, 1)."""
    counter = np.array([0, 0, step, USE], np.uint64)
    raw = np.random.Philox(key=seed, counter=counter).random_raw(n)
    return ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def drawn(a: Array, u: Array) -> tuple[Array, Array]:
    """Masks and their derivatives."""
    s = _sigmoid((np.log(u) - np.log(1 - u) + a) / BETA)
    z = s * (HIGH - LOW) + LOW
    inside = (z > 0) & (z < 1)
    return z.clip(0, 1), np.where(inside, (HIGH - LOW) * s * (1 - s) / BETA, 0.0)


def open_probability(a: Array) -> Array:
    """That a mask is not 0."""
    return _sigmoid(a - BETA * np.log(-LOW / HIGH))


def loss_and_gradient(config, weights, task, mask: Array, prompts=None, **options: Any):
    """The metric of prompts [P] and the gradient of its mean with respect to the mask. Options: see
    `oracle_components.case`."""
    values, slopes = [], []
    denoising = options.get("direction") == "denoising"
    for i in range(len(task.clean)) if prompts is None else prompts:
        one = comp.case(config, weights, task, i, **options)
        run = one.run(keep=1 - mask if denoising else mask)
        values.append(one.value(run))
        # Gradients are of sign * loss, and a share of the current output is 1 - mask if denoising.
        sign = one.sign * comp.loss_sign(one.metric) * (-1 if denoising else 1)
        slopes.append(sign * np.einsum("ute,vte->uv", run.outputs - one.fill, one.gradients(run).inputs))
    return np.array(values), np.where(graph.real_edges(config), np.mean(slopes, axis=0), 0.0)


class Adam:
    """Kingma and Ba 2015, as it is written there, with the decay of Loshchilov and Hutter 2019."""

    def __init__(self, size: int, decay: float) -> None:
        self.m, self.v, self.t, self.decay = np.zeros(size), np.zeros(size), 0, decay

    def step(self, p: Array, g: Array, rate: float) -> Array:
        """The parameters after it."""
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        move = (self.m / (1 - 0.9**self.t)) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)
        return (1 - rate * self.decay) * p - rate * move


def train(
    config: Mapping,
    weights: Mapping,
    task: Any,
    *,
    steps: int,
    rate: float,
    start: float,
    penalty: float | None = None,
    sparsity: float = 0.0,
    node_sparsity: float | None = None,
    sparsity_steps: int = 0,
    multiplier_rate: float = 0.0,
    batch_size: int | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Array, Array, Array]:
    """Log alphas [senders, receivers] and [senders], and (objective, loss, density) of each step. penalty
    None: edge pruning."""
    real = graph.real_edges(config)
    n, n_senders, pruning, nodes = real.size, len(real), penalty is None, node_sparsity is not None
    a, b = np.full(real.shape, start), np.full(n_senders, start)
    adam, adam_b, ascent = (Adam(size, 0.01 if pruning else 0.0) for size in (n, n_senders, 4))
    multipliers, rows = np.zeros(4), []
    sign = comp.loss_sign(options.get("metric") or task.metric)
    for step in range(steps):
        u = uniforms(n + n_senders, seed, step)
        z, slope = drawn(a, u[:n].reshape(real.shape))
        z_b, slope_b = drawn(b, u[n:]) if nodes else (np.ones(n_senders), np.zeros(n_senders))
        size = len(task.clean) if batch_size is None else batch_size
        first = step % -(-len(task.clean) // size) * size
        prompts = range(first, min(first + size, len(task.clean)))
        values, g = loss_and_gradient(config, weights, task, z * z_b[:, None], prompts, **options)
        objective, g = sign * values.mean(), sign * g
        p, p_b = np.where(real, open_probability(a), 0.0), open_probability(b)
        counted, counted_b, dp, dp_b = p, p_b, p * (1 - p), p_b * (1 - p_b)
        if pruning:
            counted, counted_b, dp, dp_b = np.where(real, z, 0.0), z_b, slope, slope_b
        density, density_b = counted.sum() / real.sum(), counted_b.mean()
        dp, dp_b = dp / real.sum(), dp_b / n_senders
        g_a, g_b = g * z_b[:, None] * slope, (g * z).sum(1) * slope_b
        if pruning:
            share = min(1.0, step / sparsity_steps) if sparsity_steps else 1.0
            apart = np.array([1 - density - share * sparsity, 0.0])
            if nodes:
                apart[1] = 1 - density_b - share * node_sparsity
            terms = np.array([apart[0], apart[0] ** 2, apart[1], apart[1] ** 2])
            extra = float(multipliers @ terms)
            g_a = g_a - (multipliers[0] + 2 * multipliers[1] * apart[0]) * dp
            g_b = g_b - (multipliers[2] + 2 * multipliers[3] * apart[1]) * dp_b
        else:
            extra, terms = penalty * density, np.zeros(4)
            g_a = g_a + penalty * dp
        rise = steps // 15 if pruning else 0
        factor = (step + 1) / rise if step < rise else (steps - step) / (steps - rise) if pruning else 1.0
        rows.append((objective, objective + extra, density))
        a = np.where(real, adam.step(a.ravel(), g_a.ravel(), rate * factor).reshape(real.shape), start)
        b = adam_b.step(b, g_b, rate * factor)
        multipliers = ascent.step(multipliers, -terms, multiplier_rate * factor)
    return np.where(real, a, 0.0), b, np.array(rows)
