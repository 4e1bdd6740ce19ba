"""Component edges by PyTorch's autograd.

A GPT-2 in plain torch in which every receiver reads its own copy of the residual stream, so that the gradient
of a copy is that of one receiver alone.

Import this module only where torch can be imported. Models and tasks are those of oracle.py and
oracle_circuits.py; nothing is taken from oracle_components.py but its definitions: what senders, receivers,
ablations and gates are, how scores are signed, and the points of the integrated methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from oracle import Array
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = {
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu": functional.gelu,
    "relu": functional.relu,
}


def measured(metric: str, logits: Tensor, answers: Array, wrong: Array, whole: Tensor) -> Tensor:
    """A metric of the logits [V] after the last token; whole: those of the clean run."""
    right, false = torch.as_tensor(np.asarray(answers, int)), torch.as_tensor(np.asarray(wrong, int))
    logs = torch.log_softmax(logits, -1)
    if metric == "logit_diff":
        return logits[right].mean() - logits[false].mean()
    if metric == "logit_diff_max":
        return logits[right].mean() - logits[false].max()
    if metric == "prob_diff":
        return logs[right].exp().sum() - logs[false].exp().sum()
    if metric == "log_prob":
        return logs[right].logsumexp(0)
    if metric == "kl":
        own = torch.log_softmax(whole.detach(), -1)
        return (own.exp() * (own - logs)).sum()
    raise KeyError(metric)


@dataclass
class Run:
    """Outputs of senders (each [T,E]), what receivers read (each [T,E]), logits [V] after the last token, the
    gate [T,T] of each layer and head."""

    outputs: list[Tensor]
    copies: list[Tensor]
    logits: Tensor
    gates: dict[tuple[int, int], Tensor]


class TorchModel:
    """A model of oracle.py in torch, float64."""

    def __init__(self, config: Mapping, weights: Mapping[str, Array]):
        self.config = config
        self.weights = {name: torch.as_tensor(value).double() for name, value in weights.items()}

    def run(
        self,
        tokens: Array,
        *,
        given: Mapping[int, Tensor] | None = None,
        patched: Array | None = None,
        fill: list[Tensor] | None = None,
        gates: Mapping[tuple[int, int], Tensor] | None = None,
    ) -> Run:
        """One prompt. given: outputs of senders instead of their own; patched [senders, receivers]: component
        edges over which `fill` goes; gates: instead of the run's own."""
        config, outputs, copies = self.config, [], []  # type: Any, list[Tensor], list[Tensor]
        given, kept = given or {}, {}
        positions = self.weights["wpe.weight"][: len(tokens)]
        constant = positions.clone().requires_grad_()

        def write(value: Tensor) -> None:
            outputs.append(given.get(len(outputs), value))

        def read() -> Tensor:
            x, v = constant + sum(outputs), len(copies)
            if patched is not None and fill is not None:
                for u in np.flatnonzero(patched[: len(outputs), v]):
                    x = x + (fill[u] - outputs[u])
            copies.append(x)
            return x

        write(self.weights["wte.weight"][torch.as_tensor(np.asarray(tokens, np.int64))])
        for layer in range(config["n_layer"]):
            inputs = [[read() for _ in range(config["n_head"])] for _ in "qkv"]
            for head, (q, k, v) in enumerate(zip(*inputs)):
                write(self._head(layer, head, (q, k, v), (gates or {}).get((layer, head)), kept))
            constant = constant + self.weights.get(f"h.{layer}.attn.c_proj.bias", 0.0)
            hidden = self._linear(f"h.{layer}.mlp.c_fc", self._norm(f"h.{layer}.ln_2", read()))
            write(self._linear(f"h.{layer}.mlp.c_proj", ACTIVATIONS[config["activation"]](hidden)))
        unembed = self.weights["wte.weight" if config["tied"] else "lm_head.weight"]
        logits = self._norm("ln_f", read())[-1] @ unembed.T + self.weights.get("lm_head.bias", 0.0)
        return Run(outputs, copies, logits, kept)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"{name}.bias")
        return functional.layer_norm(
            x, x.shape[-1:], self.weights[f"{name}.weight"], bias, self.config["ln_eps"]
        )

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"] + self.weights.get(f"{name}.bias", 0.0)

    def _head(self, layer, head, inputs, gate, kept) -> Tensor:
        """[T,E] without bias."""
        config, size = self.config, self.config["d_head"]
        normed = [self._norm(f"h.{layer}.ln_1", x) for x in inputs]
        columns = [
            slice((i * config["n_head"] + head) * size, (i * config["n_head"] + head + 1) * size)
            for i in range(3)
        ]
        q, k, v = (self._linear(f"h.{layer}.attn.c_attn", x)[:, own] for x, own in zip(normed, columns))
        scores = q @ k.T * (size**-0.5 if config["scale_attn"] else 1.0)
        if config["scale_by_inverse_layer"]:
            scores = scores / (layer + 1)
        mask = torch.ones(len(q), len(q)).tril().bool()
        if gate is None:
            gate = mask & (scores.detach() + config["gate_bias"] > 0 if config["gated"] else mask)
            gate = gate.tril(-1 if config["self_closed"] else 0)
        kept[layer, head] = gate
        pattern = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1) * gate
        rows = slice(head * size, (head + 1) * size)
        return pattern @ v @ self.weights[f"h.{layer}.attn.c_proj.weight"][rows]


@dataclass
class Pair:
    """One prompt: the run that is changed, what replaces outputs, and how the loss is computed."""

    model: TorchModel
    base: Run
    fill: list[Tensor]
    tokens: Array
    other: Array
    gates: Any
    sign: float
    metric: str
    answers: Array
    wrong: Array
    whole: Tensor

    def value(self, run: Run) -> Tensor:
        """The metric."""
        return measured(self.metric, run.logits, self.answers, self.wrong, self.whole)

    def loss(self, run: Run) -> Tensor:
        """What a score says the rise of."""
        return self.sign * (1 if self.metric == "kl" else -1) * self.value(run)

    def slopes(self, run: Run) -> list[Tensor]:
        """d loss / d each copy of the residual stream, 0 where nothing depends on it."""
        found = torch.autograd.grad(self.loss(run), run.copies, allow_unused=True)
        return [torch.zeros_like(x) if slope is None else slope for x, slope in zip(run.copies, found)]


def pairs(
    config, weights, task, *, ablation="counterfactual", direction="noising", gate="recomputed", metric=None
):
    """What is done to each prompt of a task."""
    model = TorchModel(config, weights)
    for i, (clean, corrupted) in enumerate(zip(task.clean, task.corrupted)):
        runs = [model.run(clean), model.run(corrupted)]
        whole, sign = runs[0].logits.detach(), 1.0
        tokens, other = clean, corrupted
        if direction == "denoising":
            runs, tokens, other, sign = runs[::-1], corrupted, clean, -1.0
        if ablation == "mean-positional":
            fill = _means(model, task, len(clean))
        else:
            factor = {"counterfactual": 1.0, "zero": 0.0}[ablation]
            fill = [factor * one.detach() for one in runs[1].outputs]
        yield Pair(
            model, runs[0], fill, tokens, other, runs[0].gates if gate == "held" else None, sign,
            metric or task.metric, task.answers[i], task.wrong[i], whole,
        )  # fmt: skip


def _means(model: TorchModel, task, n_tokens: int) -> list[Tensor]:
    """At every position, of the clean prompts that have it."""
    runs = [[one.detach() for one in model.run(tokens).outputs] for tokens in task.clean]
    return [
        torch.stack(
            [torch.stack([one[u][t] for one in runs if len(one[u]) > t]).mean(0) for t in range(n_tokens)]
        )
        for u in range(len(runs[0]))
    ]


def points(pair: Pair, method: str, steps: int, right: bool = False) -> list[Run]:
    """The runs whose gradients are averaged. right: mixed inputs at 1/steps .. 1, not 0 .. 1 - 1/steps."""
    own, fill, config = [one.detach() for one in pair.base.outputs], pair.fill, pair.model.config

    def mixed(senders, share) -> Run:
        given = {u: share * own[u] + (1 - share) * fill[u] for u in senders}
        return pair.model.run(pair.tokens, given=given, gates=pair.gates)

    if method == "eap":
        return [pair.base]
    if method == "clean-corrupted":
        return [pair.base, pair.model.run(pair.other, gates=pair.gates)]
    if method == "eap-ig-inputs":
        return [mixed([0], (k + right) / steps) for k in range(steps)]
    groups, n = [[0]], config["n_head"] + 1
    for layer in range(config["n_layer"]):
        groups += [list(range(1 + layer * n, layer * n + n)), [layer * n + n]]
    return [mixed(group, k / steps) for group in groups for k in range(1, steps + 1)]


def edge_scores(
    config, weights, task, method: str, *, steps: int = 5, right: bool = False, **options: Any
) -> Array:
    """[senders, receivers], mean over prompts. "exact" patches each component edge alone."""
    found = []
    for pair in pairs(config, weights, task, **options):
        own = [one.detach() for one in pair.base.outputs]
        shape = len(own), len(pair.base.copies)
        before, scores = pair.loss(pair.base).item(), np.zeros(shape)
        real = real_edges(config)
        if method == "exact":
            for u, v in np.argwhere(real):
                patched = np.zeros(shape, bool)
                patched[u, v] = True
                scores[u, v] = pair.loss(changed(pair, patched)).item() - before
        else:
            differences = torch.stack([new - old for new, old in zip(pair.fill, own)])
            for run in (runs := points(pair, method, steps, right)):
                slopes = torch.stack(pair.slopes(run))
                scores += torch.einsum("ute,vte->uv", differences, slopes).numpy() / len(runs)
        found.append(np.where(real, scores, 0.0))
    return np.mean(found, axis=0)


def changed(pair: Pair, patched: Array) -> Run:
    """The run in which these component edges are patched."""
    return pair.model.run(pair.tokens, patched=patched, fill=pair.fill, gates=pair.gates)


def evaluate(config, weights, task, masks, **options: Any) -> Array:
    """The metric [circuits, prompts] where component edges outside of each mask are patched; denoising: those
    inside."""
    inside = options.get("direction") == "denoising"
    found = list(pairs(config, weights, task, **options))
    return np.array([[pair.value(changed(pair, mask == inside)).item() for pair in found] for mask in masks])


def real_edges(config: Mapping) -> Array:
    """Boolean [senders, receivers]."""
    n, shape = (
        config["n_head"],
        (1 + config["n_layer"] * (config["n_head"] + 1), config["n_layer"] * (3 * config["n_head"] + 1) + 1),
    )
    found = np.zeros(shape, bool)
    for layer in range(config["n_layer"]):
        first, column = 1 + layer * (n + 1), layer * (3 * n + 1)
        found[:first, column : column + 3 * n] = True
        found[: first + n, column + 3 * n] = True
    found[:, -1] = True
    return found
