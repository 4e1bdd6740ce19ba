"""Scores of component edges in plain NumPy float64: an executable specification.

Nothing here is fast and nothing is shared with the package. The model is written as a graph: what a receiver
v reads is the sum of what senders before it wrote, each mixed with a fill,

    x_v = constants + sum over u before v of  keep[u,v] o_u + (1 - keep[u,v]) fill_u

with the embedding of positions and the biases of attention outputs as constants. keep 1 everywhere is the
plain model, keep 0 everywhere the run that the fill was taken from. LayerNorm stands after the sum, and is
computed for the q, the k and the v of every head by itself. Forward mode and reverse mode are both written by
hand. No gradient goes through a gate.

Names, order and sets of edges are in oracle_component_graph.py. u runs over senders (n_src), v over receivers
(n_dst), T tokens, E residual width, other letters as in oracle.py. A task is as in oracle_circuits.py; its
clean and corrupted prompts have pairwise the same length. The metric may be a callable too: logits after the
last token -> (value, gradient).

loss = -metric, kl: +metric. A positive score is a useful edge, for either direction: noising scores estimate
loss(edge patched) - loss(clean run), denoising ones metric(edge restored) - metric(corrupted run). gate: in a
gated model "held" uses the gates of the run that is changed (noising: the clean one) in all changed runs,
"recomputed" those of the changed scores. What is patched in comes from a plain run, with its own gates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracle
import oracle_circuits as oc
import oracle_component_graph as graph
from numpy.typing import ArrayLike
from oracle import Array

METHODS = (
    "eap", "eap-ig-inputs", "eap-ig-activations", "clean-corrupted", "exact", "information-flow-routes",
)  # fmt: skip
ABLATIONS = ("counterfactual", "zero", "mean", "mean-positional", "mean-all")
DIRECTIONS = ("noising", "denoising")
GATES = ("held", "recomputed")

# ------------------------------------------------------------------------------------- the forward pass


@dataclass
class Run:
    """One run: outputs [n_src,T,E], inputs [n_dst,T,E], logits [T,V], gate [L,H,T,T] as 0 and 1, and what the
    derivatives need. `fixed` are senders whose output was given, so that it depends on nothing."""

    outputs: Array
    inputs: Array
    logits: Array
    gate: Array
    keep: Array
    fixed: frozenset[int]
    parts: dict[str, dict[str, Array]]
    """Of each node what its own computation holds."""


def forward(
    config: Mapping,
    weights: Mapping[str, Array],
    tokens: ArrayLike,
    *,
    keep: ArrayLike | None = None,
    fill: Array | None = None,
    gate: Array | None = None,
    given: Mapping[int, Array] | None = None,
) -> Run:
    """One prompt. keep [n_src,n_dst] or [n_src,n_dst,E], default 1; fill [n_src,T,E]; gate [L,H,T,T]: used
    instead of the run's own; given: outputs of senders, instead of what they compute."""
    tokens, given = np.asarray(tokens, np.int64), dict(given or {})
    names, rows = graph.receivers(config), graph.senders(config)
    width = config["d_model"]
    keep = np.ones((len(rows), len(names), 1)) if keep is None else np.asarray(keep, np.float64)
    keep = keep[..., None] if keep.ndim == 2 else keep
    fill = np.zeros((len(rows), len(tokens), width)) if fill is None else fill
    outputs, inputs = np.zeros_like(fill), np.zeros((len(names), len(tokens), width))
    parts: dict[str, dict[str, Array]] = {}
    gates: list[Array] = []
    constant = weights["wpe.weight"][: len(tokens)]

    def read(receiver: str) -> Array:
        v = names.index(receiver)
        x = constant.copy()
        for u in range(graph.n_before(config, receiver)):
            x += keep[u, v] * outputs[u] + (1 - keep[u, v]) * fill[u]
        inputs[v] = x
        return x

    def write(sender: str, value: Array) -> None:
        u = rows.index(sender)
        outputs[u] = given.get(u, value)

    write("input", weights["wte.weight"][tokens])
    for layer in range(config["n_layer"]):
        for head in range(config["n_head"]):
            name = f"a{layer}.h{head}"
            x = [read(f"{name}<{letter}>") for letter in "qkv"]
            parts[name] = _head(config, weights, layer, head, x, None if gate is None else gate[layer, head])
            gates.append(parts[name]["gate"])
            write(name, parts[name]["z"] @ _w_o(config, weights, layer, head))
        constant = constant + weights.get(f"h.{layer}.attn.c_proj.bias", 0.0)
        parts[f"m{layer}"] = _mlp(config, weights, layer, read(f"m{layer}"))
        write(f"m{layer}", oracle.linear(weights, f"h.{layer}.mlp.c_proj", parts[f"m{layer}"]["post"]))
    parts["logits"] = _normalized(config, read("logits"))
    final = oracle.affine(weights, "ln_f", parts["logits"]["normalized"])
    logits = final @ oracle.unembedding(config, weights).T + weights.get("lm_head.bias", 0.0)
    shape = (config["n_layer"], config["n_head"], len(tokens), len(tokens))
    stacked = np.reshape(gates, shape)
    return Run(outputs, inputs, logits, stacked, keep, frozenset(given), parts)


def _normalized(config, x) -> dict[str, Array]:
    normalized, scale = oracle.layer_norm(x, config["ln_eps"])
    return {"normalized": normalized, "scale": scale}


def _head(config, weights, layer, head, inputs, gate) -> dict[str, Array]:
    """z [T,D] of one head and what led to it, from the inputs of q, k and v [T,E]."""
    part: dict[str, Array] = {}
    for letter, x in zip("qkv", inputs):
        part |= {f"{key}_{letter}": value for key, value in _normalized(config, x).items()}
        weight, bias = _qkv(config, weights, layer, head, letter)
        part[letter] = oracle.affine(weights, f"h.{layer}.ln_1", part[f"normalized_{letter}"]) @ weight + bias
    mask = oracle.causal_mask(len(inputs[0]))
    scores = np.where(mask, part["q"] @ part["k"].T * oracle.score_factor(config, layer), -np.inf)
    if gate is None:
        is_open = scores + config["gate_bias"] > 0 if config["gated"] else mask
        gate = (is_open & oracle.gate_mask(config, len(mask))).astype(np.float64)
    part |= {"softmax": oracle.softmax(scores), "gate": gate}
    part["z"] = (part["softmax"] * gate) @ part["v"]
    return part


def _mlp(config, weights, layer, x) -> dict[str, Array]:
    """The hidden units of one MLP before and after the activation, [T,M]."""
    part = _normalized(config, x)
    pre = oracle.linear(
        weights, f"h.{layer}.mlp.c_fc", oracle.affine(weights, f"h.{layer}.ln_2", part["normalized"])
    )
    return part | {"pre": pre, "post": oracle.activation(config["activation"], pre)}


def _qkv(config, weights, layer, head, letter) -> tuple[Array, Any]:
    """Weight [E,D] and bias [D] of one letter of one head."""
    name, size = f"h.{layer}.attn.c_attn", config["d_head"]
    start = ("qkv".index(letter) * config["n_head"] + head) * size
    bias = weights.get(f"{name}.bias")
    own = slice(start, start + size)
    return weights[f"{name}.weight"][:, own], 0.0 if bias is None else bias[own]


def _w_o(config, weights, layer, head) -> Array:
    """[D,E] of one head."""
    size = config["d_head"]
    return weights[f"h.{layer}.attn.c_proj.weight"][head * size : (head + 1) * size]


# ----------------------------------------------------------------------------------------- reverse mode


@dataclass
class Gradients:
    """Of a loss: inputs [n_dst,T,E], each through its own receiver only, and outputs [n_src,T,E]."""

    inputs: Array
    outputs: Array


def backward(config: Mapping, weights: Mapping, run: Run, dlogits: Array) -> Gradients:
    """From dloss/dlogits [T,V]. Nothing flows into a sender whose output was given."""
    names, rows = graph.receivers(config), graph.senders(config)
    grad = Gradients(np.zeros_like(run.inputs), np.zeros_like(run.outputs))

    def arrive(receiver: str, ln: str, part: Mapping[str, Array], dout: Array, suffix: str = "") -> None:
        """dout: gradient of the LayerNorm's output."""
        v = names.index(receiver)
        dn = dout * weights[f"{ln}.weight"]
        grad.inputs[v] = _layer_norm_slope(part["normalized" + suffix], part["scale" + suffix], dn)
        for u in range(graph.n_before(config, receiver)):
            grad.outputs[u] += run.keep[u, v] * grad.inputs[v]

    arrive("logits", "ln_f", run.parts["logits"], dlogits @ oracle.unembedding(config, weights))
    for layer in reversed(range(config["n_layer"])):
        u = rows.index(f"m{layer}")
        if u not in run.fixed:
            part = run.parts[f"m{layer}"]
            dpost = grad.outputs[u] @ weights[f"h.{layer}.mlp.c_proj.weight"].T
            dpre = dpost * oracle.activation_slope(config["activation"], part["pre"])
            arrive(f"m{layer}", f"h.{layer}.ln_2", part, dpre @ weights[f"h.{layer}.mlp.c_fc.weight"].T)
        for head in range(config["n_head"]):
            name = f"a{layer}.h{head}"
            u, part = rows.index(name), run.parts[name]
            if u in run.fixed:
                continue
            dz = grad.outputs[u] @ _w_o(config, weights, layer, head).T
            for letter, value in _head_backward(config, layer, part, dz).items():
                dout = value @ _qkv(config, weights, layer, head, letter)[0].T
                arrive(f"{name}<{letter}>", f"h.{layer}.ln_1", part, dout, f"_{letter}")
    return grad


def _layer_norm_slope(normalized: Array, scale: Array, d: Array) -> Array:
    """(d - mean d - n mean(d n)) / scale: the Jacobian of the normalisation, which is symmetric."""
    along = (d * normalized).mean(-1, keepdims=True)
    return (d - d.mean(-1, keepdims=True) - normalized * along) / scale[:, None]


def _head_backward(config, layer, part, dz) -> dict[str, Array]:
    """Gradients of q, k and v [T,D] from that of z."""
    used = part["softmax"] * part["gate"]
    dused = dz @ part["v"].T
    dscores = part["softmax"] * part["gate"] * dused
    dscores -= part["softmax"] * (used * dused).sum(-1, keepdims=True)
    dscores *= oracle.score_factor(config, layer)
    return {"q": dscores @ part["k"], "k": dscores.T @ part["q"], "v": used.T @ dz}


# ----------------------------------------------------------------------------------------- forward mode


def tangent(config: Mapping, weights: Mapping, run: Run, seeds: Mapping[int, Array]) -> Array:
    """How the logits [T,V] move if the inputs of receivers move by the seeds {v: [T,E]}."""
    names, rows = graph.receivers(config), graph.senders(config)
    moved = np.zeros_like(run.outputs)

    def read(receiver: str, ln: str, part: Mapping[str, Array], suffix: str = "") -> Array:
        v = names.index(receiver)
        dx = np.zeros_like(run.inputs[v]) + seeds.get(v, 0.0)
        for u in range(graph.n_before(config, receiver)):
            dx += run.keep[u, v] * moved[u]
        dn = _layer_norm_slope(part["normalized" + suffix], part["scale" + suffix], dx)
        return dn * weights[f"{ln}.weight"]

    for layer in range(config["n_layer"]):
        for head in range(config["n_head"]):
            name = f"a{layer}.h{head}"
            part, u = run.parts[name], rows.index(name)
            dq, dk, dv = (
                read(f"{name}<{letter}>", f"h.{layer}.ln_1", part, f"_{letter}")
                @ _qkv(config, weights, layer, head, letter)[0]
                for letter in "qkv"
            )
            dscores = (dq @ part["k"].T + part["q"] @ dk.T) * oracle.score_factor(config, layer)
            soft = part["softmax"]
            dsoft = soft * (dscores - (soft * dscores).sum(-1, keepdims=True))
            dz = (dsoft * part["gate"]) @ part["v"] + (soft * part["gate"]) @ dv
            if u not in run.fixed:
                moved[u] = dz @ _w_o(config, weights, layer, head)
        part, u = run.parts[f"m{layer}"], rows.index(f"m{layer}")
        dpre = read(f"m{layer}", f"h.{layer}.ln_2", part) @ weights[f"h.{layer}.mlp.c_fc.weight"]
        dpost = dpre * oracle.activation_slope(config["activation"], part["pre"])
        if u not in run.fixed:
            moved[u] = dpost @ weights[f"h.{layer}.mlp.c_proj.weight"]
    return read("logits", "ln_f", run.parts["logits"]) @ oracle.unembedding(config, weights).T


# ---------------------------------------------------------------------------------------------- metrics


def measured(metric: Any, logits: Array, answers: ArrayLike, wrong: ArrayLike, full: Array):
    """Value and gradient [V] of a metric at the logits [V] after the last token; full: the clean run's."""
    if callable(metric):
        return metric(logits)
    value = float(oc.metric_value(logits, answers, wrong, metric, full))
    answers, wrong = np.asarray(answers, int), np.asarray(wrong, int)
    p, slope = oracle.softmax(logits), np.zeros_like(logits)
    if metric in ("logit_diff", "logit_diff_max"):
        worst = wrong[[logits[wrong].argmax()]] if metric == "logit_diff_max" else wrong
        np.add.at(slope, answers, 1 / len(answers))
        np.add.at(slope, worst, -1 / len(worst))
    elif metric == "prob_diff":
        signs = np.zeros_like(logits)
        np.add.at(signs, answers, 1.0)
        np.add.at(signs, wrong, -1.0)
        slope = p * (signs - (signs * p).sum())
    elif metric == "log_prob":
        inside = np.zeros_like(logits)
        inside[answers] = p[answers] / p[answers].sum()
        slope = inside - p
    elif metric == "kl":
        slope = p - oracle.softmax(full)
    else:
        raise KeyError(metric)
    return value, slope


def loss_sign(metric: Any) -> float:
    """loss = loss_sign * metric."""
    return 1.0 if metric == "kl" else -1.0


# ------------------------------------------------------------------------------------ ablations, prompts


def references(config, weights, task, i: int, ablation: str, reference: Any = None) -> Array:
    """fill [n_src,T,E] of prompt i. The means are over the clean prompts of `reference`, default the task.

    mean: of each prompt's mean over its positions. mean-positional: at every position, of the prompts that
    have it. mean-all: over all positions of all prompts at once.
    """
    if ablation == "counterfactual":
        return forward(config, weights, task.corrupted[i]).outputs
    if ablation == "zero":
        return np.zeros_like(forward(config, weights, task.clean[i]).outputs)
    outputs = [forward(config, weights, tokens).outputs for tokens in (reference or task).clean]
    n_tokens = len(task.clean[i])
    if ablation == "mean-positional":
        positions = range(n_tokens)
        return np.stack(
            [np.mean([one[:, t] for one in outputs if one.shape[1] > t], axis=0) for t in positions], axis=1
        )
    if ablation == "mean":
        mean = np.mean([one.mean(1) for one in outputs], axis=0)
    elif ablation == "mean-all":
        mean = np.concatenate(outputs, axis=1).mean(1)
    else:
        raise KeyError(ablation)
    return np.repeat(mean[:, None], n_tokens, axis=1)


@dataclass
class Case:
    """One prompt and what is done to it: the run that is changed, what edges are filled with, the tokens that
    the fill comes from, the sign of scores and the gates of changed runs."""

    config: Mapping
    weights: Mapping
    tokens: ArrayLike
    other_tokens: ArrayLike
    base: Run
    fill: Array
    sign: float
    gate: Array | None
    metric: Any
    answers: ArrayLike
    wrong: ArrayLike
    full: Array

    def run(self, tokens: ArrayLike | None = None, **options: Any) -> Run:
        """A changed run."""
        chosen = self.tokens if tokens is None else tokens
        return forward(self.config, self.weights, chosen, fill=self.fill, gate=self.gate, **options)

    def value(self, run: Run) -> float:
        """The metric of a run."""
        return measured(self.metric, run.logits[-1], self.answers, self.wrong, self.full)[0]

    def loss(self, run: Run) -> float:
        """sign * loss: what a score is the rise of."""
        return self.sign * loss_sign(self.metric) * self.value(run)

    def gradients(self, run: Run) -> Gradients:
        """Of `loss`."""
        dlogits = np.zeros_like(run.logits)
        slope = measured(self.metric, run.logits[-1], self.answers, self.wrong, self.full)[1]
        dlogits[-1] = self.sign * loss_sign(self.metric) * slope
        return backward(self.config, self.weights, run, dlogits)


def case(
    config, weights, task, i, ablation="counterfactual", direction="noising", gate="recomputed",
    reference=None, metric=None,
) -> Case:  # fmt: skip
    """What is done to prompt i. Denoising exchanges the clean and the corrupted prompt."""
    clean, corrupted = task.clean[i], task.corrupted[i]
    full = forward(config, weights, clean).logits[-1]
    metric = metric or task.metric
    if direction == "denoising":
        if ablation != "counterfactual":
            raise ValueError("denoising restores clean values in the corrupted run: counterfactual only")
        base, fill = forward(config, weights, corrupted), forward(config, weights, clean).outputs
        tokens, other, sign = corrupted, clean, -1.0
    else:
        base, fill = (
            forward(config, weights, clean),
            references(config, weights, task, i, ablation, reference),
        )
        tokens, other, sign = clean, corrupted, 1.0
    held = base.gate if gate == "held" else None
    return Case(
        config, weights, tokens, other, base, fill, sign, held, metric, task.answers[i], task.wrong[i], full
    )


def _cases(config, weights, task, options) -> Iterator[Case]:
    return (case(config, weights, task, i, **options) for i in range(len(task.clean)))


# ----------------------------------------------------------------------------------------------- scores


def points(one: Case, method: str, steps: int = 5, right: bool = False) -> list[Run]:
    """The runs whose gradients a method averages.

    eap: the run itself. clean-corrupted: it and the run of the other prompt. eap-ig-inputs: the output of
    `input` between the fill and its own, at k / steps with k = 0 .. steps-1, or 1 .. steps if `right`.
    eap-ig-activations: the same at k = 1 .. steps for `input`, all heads of a layer at once, and each MLP,
    one group after another, everything else recomputed.
    """
    own, fill = one.base.outputs, one.fill
    if method == "eap":
        return [one.base]
    if method == "clean-corrupted":
        return [one.base, one.run(one.other_tokens)]
    if method == "eap-ig-inputs":
        shares = [(k + right) / steps for k in range(steps)]
        return [one.run(given={0: share * own[0] + (1 - share) * fill[0]}) for share in shares]
    if method == "eap-ig-activations":
        return [
            one.run(given={u: k / steps * own[u] + (1 - k / steps) * fill[u] for u in group})
            for group in groups(one.config)
            for k in range(1, steps + 1)
        ]
    raise KeyError(method)


def groups(config: Mapping) -> list[list[int]]:
    """Senders that eap-ig-activations moves together."""
    found, n_head = [[0]], config["n_head"]
    for layer in range(config["n_layer"]):
        first = 1 + layer * (n_head + 1)
        found += [list(range(first, first + n_head)), [first + n_head]]
    return found


def edge_scores(config, weights, task, method: str, *, steps: int = 5, **options: Any) -> Array:
    """[n_src,n_dst], mean over prompts; 0 where there is no edge. Options: see `case`."""
    if method in ("eap-ig-inputs", "clean-corrupted"):
        _only_counterfactual(options)
    if method == "information-flow-routes":
        return information_flow_routes(config, weights, task)
    found = []
    for one in _cases(config, weights, task, options):
        found.append(_exact_edges(one) if method == "exact" else _by_gradient(one, method, steps))
    return np.mean(found, axis=0)


def _only_counterfactual(options: Mapping) -> None:
    if options.get("ablation", "counterfactual") != "counterfactual":
        raise ValueError("this method is between two prompts: counterfactual only")


def _by_gradient(one: Case, method: str, steps: int) -> Array:
    """sum over positions of (fill - own output) . gradient of the receiver's input."""
    runs = points(one, method, steps)
    slope = np.mean([one.gradients(run).inputs for run in runs], axis=0)
    scores = np.einsum("ute,vte->uv", one.fill - one.base.outputs, slope)
    return np.where(graph.real_edges(one.config), scores, 0.0)


def _exact_edges(one: Case) -> Array:
    """Every edge alone filled."""
    real = graph.real_edges(one.config)
    scores, before = np.zeros(real.shape), one.loss(one.base)
    for u, v in np.argwhere(real):
        keep = np.ones(real.shape)
        keep[u, v] = 0.0
        scores[u, v] = one.loss(one.run(keep=keep)) - before
    return scores


def information_flow_routes(config, weights, task) -> Array:
    """max(0, |x_v| - |x_v - o_u|) with sums of absolute values as lengths, as a share of its sum over the
    senders before v; mean over the positions of a prompt, then over prompts. Clean prompts only. A position
    at which no sender is near counts as 0."""
    found, real = [], graph.real_edges(config)
    for tokens in task.clean:
        run = forward(config, weights, tokens)
        scores = np.zeros(real.shape)
        for v, x in enumerate(run.inputs):
            parts = run.outputs[real[:, v]]
            near = np.maximum(np.abs(x).sum(-1) - np.abs(x - parts).sum(-1), 0.0)
            total = near.sum(0)
            share = np.divide(near, total, out=np.zeros_like(near), where=total > 0)
            scores[real[:, v], v] = share.mean(-1)
        found.append(scores)
    return np.mean(found, axis=0)


def node_scores(
    config, weights, task, method: str, *, neuron: bool = False, steps: int = 5, mlp_gradient: str = "output",
    **options: Any,
) -> Array:  # fmt: skip
    """[n_src], or [n_src,E] of neurons: the coordinates of what a node writes. eap-ig-inputs takes the right
    sum, k = 1 .. steps. mlp_gradient="input": the difference of an MLP's output times the gradient of its
    input, as the public tool computes it."""
    if method in ("eap-ig-inputs", "clean-corrupted"):
        _only_counterfactual(options)
    found = []
    for one in _cases(config, weights, task, options):
        if method == "exact":
            found.append(_exact_nodes(one))
            continue
        slopes = []
        for run in points(one, method, steps, right=True):
            gradients = one.gradients(run)
            slopes.append(_slopes_of_nodes(config, gradients, mlp_gradient))
        found.append(((one.fill - one.base.outputs) * np.mean(slopes, axis=0)).sum(1))
    scores = np.mean(found, axis=0)
    return scores if neuron or method == "exact" else scores.sum(-1)


def _slopes_of_nodes(config, gradients: Gradients, mlp_gradient: str) -> Array:
    slope = gradients.outputs.copy()
    if mlp_gradient == "input":
        for layer in range(config["n_layer"]):
            name = f"m{layer}"
            slope[graph.senders(config).index(name)] = gradients.inputs[graph.receivers(config).index(name)]
    return slope


def _exact_nodes(one: Case) -> Array:
    """Every node alone: all edges out of it filled."""
    real = graph.real_edges(one.config)
    before, scores = one.loss(one.base), []
    for u in range(len(real)):
        keep = np.ones(real.shape)
        keep[u] = 0.0
        scores.append(one.loss(one.run(keep=keep)) - before)
    return np.array(scores)


# ------------------------------------------------------------------------------------------- evaluation


def evaluate(
    config, weights, task, sets: Sequence[Array], *, neurons: Array | None = None, **options: Any
) -> Array:
    """The metric [n_sets,P] with every edge outside a set filled; nothing is pruned. neurons [n_src,E]: of a
    node inside, which coordinates are kept; an edge outside is filled whole."""
    rows = []
    cases = list(_cases(config, weights, task, options))
    for mask in sets:
        keep = np.asarray(mask, np.float64)[..., None]
        keep = keep * (np.ones(1) if neurons is None else np.asarray(neurons, float)[:, None])
        rows.append([one.value(one.run(keep=keep)) for one in cases])
    return np.array(rows)


def whole_and_empty(config, weights, task, **options: Any) -> tuple[Array, Array]:
    """The metric [P] with every edge kept and with every edge filled."""
    real = graph.real_edges(config)
    full, empty = evaluate(config, weights, task, [real, np.zeros_like(real)], **options)
    return full, empty


def kl_of(config, weights, task, **options: Any):
    """The mean divergence from the whole model of a set, for `acdc`."""

    def divergence(mask: Array) -> float:
        return float(evaluate(config, weights, task, [mask], metric="kl", **options).mean())

    return divergence


def curve(config, weights, task, scores: Array, sizes: Sequence[int], *, select=graph.top_n, **options: Any):
    """Values [n_sizes,P], faithfulness [n_sizes] and edges left after pruning [n_sizes] of the best edges at
    every size."""
    sets = [graph.pruned(config, select(config, scores, n)) for n in sizes]
    values = evaluate(config, weights, task, sets, **options)
    full, empty = whole_and_empty(config, weights, task, **options)
    return values, graph.faithfulness(values, full, empty), [int(mask.sum()) for mask in sets]
