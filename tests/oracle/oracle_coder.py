"""The training step of transcoders in NumPy float64, dense and written out by hand.

It shares nothing with csrc/transcoder/transcoder_trainer.c but the definitions: activations of Gao et al.
2024 (TopK and the auxiliary loss of dead features) and Rajamanoharan et al. 2024 (JumpReLU with its
straight-through gradient), ReLU with a tanh penalty, rows of W_dec of length 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RELU, JUMP_RELU, TOPK = range(3)
NAMES = ("w_enc", "b_enc", "w_dec", "b_dec", "log_threshold")


@dataclass(frozen=True)
class Options:
    """Arguments of the core's step, by the same names."""

    activation: int = RELU
    top_k: int = 1
    sparsity: float = 0.0
    sharpness: float = 1.0
    bandwidth: float = 1.0
    dead_after: int = 10**9
    aux_k: int = 0
    aux_weight: float = 0.0
    output_scale: float = 1.0
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip: float = 0.0

    def arguments(self) -> dict[str, Any]:
        found: dict[str, Any] = dataclasses.asdict(self)
        return found | {name: np.array([found[name]]) for name in ("sparsity", "output_scale")}


@dataclass
class Result:
    """loss and its parts, gradients by name, and which features were active (bool F)."""

    loss: float
    error: float
    penalty: float
    aux: float
    l0: float
    gradients: dict[str, Array]
    active: NDArray[np.bool_]

    @property
    def grad_norm(self) -> float:
        return float(np.sqrt(sum((g**2).sum() for g in self.gradients.values())))


def random_weights(seed: int, n_in: int, n_out: int, n_features: int) -> dict[str, Array]:
    """Weights representable in float32, but for the rows of w_dec, which have length 1."""
    rng = np.random.default_rng(seed)
    w_dec = rng.standard_normal((n_features, n_out))
    weights = {
        "w_enc": rng.standard_normal((n_features, n_in)) / np.sqrt(n_in),
        "b_enc": 0.3 * rng.standard_normal(n_features),
        "w_dec": w_dec / np.linalg.norm(w_dec, axis=1, keepdims=True),
        "b_dec": rng.standard_normal(n_out),
        "log_threshold": 0.5 * rng.standard_normal(n_features) - 1,
    }
    return {name: value.astype(np.float32).astype(np.float64) for name, value in weights.items()}


def largest(pre: Array, k: int) -> Array:
    """pre (N,F) where it is positive and one of the k largest of its row (of equals the first), else 0."""
    order = np.argsort(-pre, axis=1, kind="stable")[:, :k]
    kept = np.zeros_like(pre)
    np.put_along_axis(kept, order, np.take_along_axis(pre, order, axis=1), axis=1)
    return np.maximum(kept, 0)


def activations(weights: Mapping[str, Array], pre: Array, o: Options) -> Array:
    if o.activation == TOPK:
        return largest(pre, o.top_k)
    if o.activation == RELU:
        return np.maximum(pre, 0)
    return np.where(pre > np.exp(weights["log_threshold"]), pre, 0)


def loss_and_gradients(
    weights: Mapping[str, Array], x: Array, y: Array, o: Options, dead: NDArray[np.bool_]
) -> Result:
    """The loss of rows x (N,I), y (N,O) and what the step takes for its gradient."""
    n = len(y)
    w_enc, w_dec = weights["w_enc"], weights["w_dec"]
    pre = x @ w_enc.T + weights["b_enc"]
    a = activations(weights, pre, o)
    residual = a @ w_dec + weights["b_dec"] - y / o.output_scale
    error = float((residual**2).mean())
    dout = 2 * residual / residual.size
    da = dout @ w_dec.T
    dpre = np.where(a > 0, da, 0.0)
    dlog, penalty = np.zeros(len(w_enc)), 0.0
    if o.activation == RELU:
        penalty = float(np.tanh(o.sharpness * a).sum() / n)
        dpre += np.where(a > 0, o.sparsity * o.sharpness / np.cosh(o.sharpness * a) ** 2 / n, 0.0)
    if o.activation == JUMP_RELU:
        penalty = float((a > 0).sum() / n)
        threshold = np.exp(weights["log_threshold"])
        kernel = np.where(np.abs(pre - threshold) < o.bandwidth / 2, 1 / o.bandwidth, 0.0)
        # d/dtheta of theta H(pre - theta) and of H(pre - theta), the step's derivative being the kernel
        dlog = (-(threshold * da + o.sparsity / n) * kernel).sum(0) * threshold
    dw_dec = a.T @ dout
    aux = 0.0
    if dead.any() and o.aux_k:
        order = np.argsort(np.where(dead, -pre, np.inf), axis=1, kind="stable")[:, : min(o.aux_k, dead.sum())]
        chosen = np.zeros(pre.shape, bool)
        np.put_along_axis(chosen, order, True, axis=1)
        helping = np.where(chosen, pre, 0.0)  # of either sign: a dead feature's pre is often below 0
        left = residual + helping @ w_dec
        aux = float((left**2).mean())
        dleft = 2 * o.aux_weight * left / left.size
        dpre += np.where(chosen, dleft @ w_dec.T, 0.0)
        dw_dec += helping.T @ dleft
    dw_dec -= (dw_dec * w_dec).sum(1, keepdims=True) * w_dec
    gradients = {
        "w_enc": dpre.T @ x,
        "b_enc": dpre.sum(0),
        "w_dec": dw_dec,
        "b_dec": dout.sum(0),
        "log_threshold": dlog,
    }
    loss = error + o.sparsity * penalty + o.aux_weight * aux
    l0 = float((a > 0).sum(1).mean())
    return Result(loss, error, penalty, aux, l0, gradients, (a > 0).any(0))


def cross_layer(
    weights: Sequence[Mapping[str, Array]],
    x: Array,
    y: Array,
    options: Sequence[Options],
    dead: Sequence[NDArray[np.bool_]],
) -> list[Result]:
    """As `loss_and_gradients` for the layers of a cross-layer transcoder: x (L,N,I), y (L,N,O), w_dec of a
    layer (F, (L-layer) O); options differ in sparsity and output_scale alone.

    It is one big transcoder: features of all layers side by side read the inputs of all layers side by side,
    through an encoder of blocks, and write to all outputs side by side.
    """
    n_layer, n, n_out = y.shape
    counts = [len(w["b_enc"]) for w in weights]
    pre = [x[i] @ w["w_enc"].T + w["b_enc"] for i, w in enumerate(weights)]
    active = [activations(w, p, options[0]) for w, p in zip(weights, pre)]
    wide = [np.pad(w["w_dec"], ((0, 0), (i * n_out, 0))) for i, w in enumerate(weights)]
    target = np.concatenate([y[i] / options[i].output_scale for i in range(n_layer)], axis=1)
    bias = np.concatenate([w["b_dec"] for w in weights])
    residual = np.concatenate(active, axis=1) @ np.concatenate(wide) + bias - target
    helping = [np.zeros_like(p) for p in pre]
    for layer, p in enumerate(pre):
        for row in range(n if options[0].aux_k else 0):
            ranked = sorted(np.flatnonzero(dead[layer]), key=lambda f: -p[row, f])[: options[0].aux_k]
            helping[layer][row, ranked] = p[row, ranked]
    helped = any(d.any() for d in dead) and options[0].aux_k > 0
    left = residual + np.concatenate(helping, axis=1) @ np.concatenate(wide) if helped else 0 * residual
    dout, dleft = (2 * part / (n * n_out) for part in (residual, options[0].aux_weight * left))
    found = []
    for layer, (w, o, p, a) in enumerate(zip(weights, options, pre, active)):
        da, at = dout @ wide[layer].T, np.where(helping[layer] != 0, dleft @ wide[layer].T, 0.0)
        dpre, dlog, penalty = np.where(a > 0, da, 0.0), np.zeros(counts[layer]), 0.0
        if o.activation == RELU:
            penalty = float(np.tanh(o.sharpness * a).sum() / n)
            dpre += np.where(a > 0, o.sparsity * o.sharpness / np.cosh(o.sharpness * a) ** 2 / n, 0.0)
        if o.activation == JUMP_RELU:
            penalty, threshold = float((a > 0).sum() / n), np.exp(w["log_threshold"])
            near = np.abs(p - threshold) < o.bandwidth / 2
            dlog = -(near * (threshold * da + o.sparsity / n)).sum(0) * threshold / o.bandwidth
        dpre += at
        dw_dec = (a.T @ dout + helping[layer].T @ dleft)[:, layer * n_out :]
        dw_dec -= (dw_dec * w["w_dec"]).sum(1, keepdims=True) * w["w_dec"]
        part = slice(layer * n_out, (layer + 1) * n_out)
        gradients = {
            "w_enc": dpre.T @ x[layer],
            "b_enc": dpre.sum(0),
            "w_dec": dw_dec,
            "b_dec": dout[:, part].sum(0),
            "log_threshold": dlog,
        }
        error, aux = (float((r[:, part] ** 2).mean()) for r in (residual, left))
        loss = error + o.sparsity * penalty + o.aux_weight * aux
        l0 = float((a > 0).sum(1).mean())
        found.append(Result(loss, error, penalty, aux, l0, gradients, (a > 0).any(0)))
    return found


class Twin:
    """Weights, Adam's moments and counters; `step` as `_core.CoderTrainer.step`."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = {name: value.copy() for name, value in weights.items()}
        self.first = {name: np.zeros_like(value) for name, value in weights.items()}
        self.second = {name: np.zeros_like(value) for name, value in weights.items()}
        self.silent = np.zeros(len(weights["b_enc"]), np.int64)
        self.steps = 0

    def step(self, x: Array, y: Array, o: Options) -> Result:
        result = loss_and_gradients(self.weights, x, y, o, self.silent >= o.dead_after)
        self.update(result, o)
        return result

    def update(self, result: Result, o: Options) -> None:
        """The optimiser's part of a step."""
        norm = result.grad_norm
        scale = o.clip / norm if o.clip and norm > o.clip else 1.0
        self.steps += 1
        for name, gradient in result.gradients.items():
            g, m, v = gradient * scale, self.first[name], self.second[name]
            m[...] = o.beta1 * m + (1 - o.beta1) * g
            v[...] = o.beta2 * v + (1 - o.beta2) * g**2
            upper, lower = m / (1 - o.beta1**self.steps), v / (1 - o.beta2**self.steps)
            self.weights[name] -= o.lr * upper / (np.sqrt(lower) + o.eps)
        self.weights["w_dec"] /= np.linalg.norm(self.weights["w_dec"], axis=1, keepdims=True)
        self.silent = np.where(result.active, 0, self.silent + 1)
