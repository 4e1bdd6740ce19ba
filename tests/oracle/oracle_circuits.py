"""Interventions, effects and rankings in plain NumPy float64: an executable specification.

Nothing here is fast and nothing is shared with the package. Every intervention is one formula: a quantity of
the run is replaced by

    mask * value + (1 - mask) * reference

where value is what the (already changed) run computes at that place. mask 1 leaves it, mask 0 ablates it, and
a derivative with respect to a mask is an attribution. Derivatives are differences of the forward pass, so
nothing is shared with any backward pass either.

Letters as in oracle.py; ... stands for leading axes, one entry per variant of the masks. A reference has the
mask's shape without them and one more axis, the width of the quantity.

    place                               mask           width
    z                                   ... L H T      D   output of a head before W_O
    entry                               ... L H T T    D   contribution A[q,k] v[k] of an attention edge to z
    mlp_out                             ... L T        E   with the bias of the MLP's output
    resid_pre, resid_mid, resid_post    ... L T        E

A task is anything with clean, corrupted, answers, wrong (sequences over prompts) and metric. Items are rows
of integers: (layer, head), (layer, head, position) or (layer, head, query, key).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import oracle
from numpy.typing import ArrayLike
from oracle import Array, Record

PLACES = {"z": 3, "entry": 4, "mlp_out": 2, "resid_pre": 2, "resid_mid": 2, "resid_post": 2}  # axes of a mask
UNITS = {"head": "z", "head_position": "z", "edge": "entry"}
METRICS = ("logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl")
ABLATIONS = ("zero", "mean", "counterfactual")
STEP, RELU_STEP = 1e-4, 1e-5  # of the differences, see `mask_gradient`; a kink must not lie within two steps

# ------------------------------------------------------------------------------------- the forward pass


def forward(
    config: Mapping,
    weights: Mapping[str, Array],
    tokens: ArrayLike,
    masks: Mapping[str, Array] | None = None,
    reference: Mapping[str, Array] | None = None,
) -> Record:
    """One sequence through the model with every variant of `masks`; a place without a mask is left alone.

    Returns the places above, pattern and gate (... L H T T) and logits (... T V). Gates are those of
    evaluation, from the scores of the changed run. Entries are replaced before they are summed to z, z after
    that.
    """
    tokens = np.asarray(tokens, np.int64)
    masks, reference = masks or {}, reference or {}
    found: dict[str, list[Array]] = {name: [] for name in (*PLACES, "pattern", "gate")}

    def blend(place: str, layer: int, value: Array) -> Array:
        if place in masks:
            mask = np.asarray(masks[place], np.float64)
            mask = mask.take(layer, axis=mask.ndim - PLACES[place])[..., None]
            value = mask * value + (1 - mask) * reference[place][layer]
        found[place].append(value)
        return value

    x = weights["wte.weight"][tokens] + weights["wpe.weight"][: len(tokens)]
    for layer in range(config["n_layer"]):
        x = blend("resid_pre", layer, x)
        contribution, pattern, gate = _contributions(config, weights, layer, x)
        found["pattern"].append(pattern)
        found["gate"].append(gate)
        z = blend("z", layer, blend("entry", layer, contribution).sum(-2))
        x = blend("resid_mid", layer, x + _merged(weights, layer, z))
        x = blend("resid_post", layer, x + blend("mlp_out", layer, _mlp(config, weights, layer, x)))
    final = oracle.affine(weights, "ln_f", oracle.layer_norm(x, config["ln_eps"])[0])
    logits = final @ oracle.unembedding(config, weights).T + weights.get("lm_head.bias", 0.0)
    own_axes = PLACES | {"pattern": 3, "gate": 3}
    return {name: _stacked(values, own_axes[name]) for name, values in found.items()} | {"logits": logits}


def _contributions(config, weights, layer, x) -> tuple[Array, Array, Array]:
    """A[q,k] v[k] (... H T T D), the pattern A and the gate (... H T T) of one layer from x = resid_pre
    (... T E)."""
    heads = (config["n_head"], config["d_head"])
    normalized = oracle.affine(weights, f"h.{layer}.ln_1", oracle.layer_norm(x, config["ln_eps"])[0])
    block = oracle.linear(weights, f"h.{layer}.attn.c_attn", normalized)
    q, k, v = (part.reshape(*part.shape[:-1], *heads) for part in np.split(block, 3, axis=-1))
    scores = np.einsum("...qhd,...khd->...hqk", q, k) * oracle.score_factor(config, layer)
    causal = oracle.causal_mask(x.shape[-2])
    is_open = scores + config["gate_bias"] > 0 if config["gated"] else np.ones_like(scores, bool)
    is_open = is_open & oracle.gate_mask(config, scores.shape[-1])
    gate = causal & is_open
    pattern = np.where(gate, oracle.softmax(np.where(causal, scores, -np.inf)), 0.0)
    return np.einsum("...hqk,...khd->...hqkd", pattern, v), pattern, gate


def _merged(weights, layer, z) -> Array:
    """attn_out (... T E) from z (... H T D)."""
    by_token = np.moveaxis(z, -3, -2)
    return oracle.linear(weights, f"h.{layer}.attn.c_proj", by_token.reshape(*by_token.shape[:-2], -1))


def _mlp(config, weights, layer, x) -> Array:
    """mlp_out (... T E) from x = resid_mid (... T E)."""
    normalized = oracle.affine(weights, f"h.{layer}.ln_2", oracle.layer_norm(x, config["ln_eps"])[0])
    post = oracle.activation(config["activation"], oracle.linear(weights, f"h.{layer}.mlp.c_fc", normalized))
    return oracle.linear(weights, f"h.{layer}.mlp.c_proj", post)


def _stacked(values: list[Array], own_axes: int) -> Array:
    """The layers of one place as one array; the layer's axis stands before the `own_axes` last ones."""
    lead = np.broadcast_shapes(*(value.shape[: value.ndim - own_axes] for value in values))
    full = [np.broadcast_to(value, lead + value.shape[value.ndim - own_axes :]) for value in values]
    return np.stack(full, axis=len(lead))


# ------------------------------------------------------------------------------------------ references


def record(config: Mapping, weights: Mapping, tokens: ArrayLike) -> dict[str, Array]:
    """What every place holds in the plain run of one prompt."""
    run = forward(config, weights, tokens)
    return {place: run[place] for place in PLACES}


def mean_record(config: Mapping, weights: Mapping, prompts: Sequence[ArrayLike]) -> dict[str, Array]:
    """The mean over prompts of one length, per position; of entries the mean of A[q,k] v[k], in which a
    closed gate counts as 0."""
    records = [record(config, weights, tokens) for tokens in prompts]
    return {place: np.mean([one[place] for one in records], axis=0) for place in PLACES}


def reference_for(config, weights, task, i: int, ablation: str, reference: Any = None) -> dict[str, Array]:
    """What ablated places of prompt i hold. reference: the task whose clean prompts the means are over."""
    if ablation == "counterfactual":
        return record(config, weights, task.corrupted[i])
    if ablation == "mean":
        return mean_record(config, weights, (reference or task).clean)
    return {place: np.zeros_like(value) for place, value in record(config, weights, task.clean[i]).items()}


def of_edges(config, weights, task, fill: Mapping[str, Array], listed: ArrayLike = ()) -> dict[str, Array]:
    """A reference whose entries are 0 where they are no edges of the task (closed in all its prompts) and
    are not listed either: "a closed gate contributes nothing". So all edges kept is the whole model."""
    entry = np.zeros_like(fill["entry"])
    for item in (*open_edges(config, weights, task.clean), *np.asarray(listed, int)):
        entry[tuple(item)] = fill["entry"][tuple(item)]
    return dict(fill, entry=entry)


# ------------------------------------------------------------------------------------ items and masks


def all_items(config: Mapping, unit: str, n_tokens: int) -> Array:
    """Every head, head position or causal entry of a model, in order."""
    shape = {"head": (), "head_position": (n_tokens,), "edge": (n_tokens, n_tokens)}[unit]
    items = np.array(list(np.ndindex(config["n_layer"], config["n_head"], *shape)))
    return items[items[:, 3] <= items[:, 2]] if unit == "edge" else items


def open_edges(config: Mapping, weights: Mapping, prompts: Sequence[ArrayLike]) -> Array:
    """The entries whose gate is open in the plain run of at least one prompt; dense: every causal entry."""
    return np.argwhere(np.any([forward(config, weights, tokens)["gate"] for tokens in prompts], axis=0))


def candidates(config: Mapping, weights: Mapping, task: Any, unit: str) -> Array:
    """What the circuits of a task are chosen from: heads, head positions, or edges open in a clean prompt."""
    if unit == "edge":
        return open_edges(config, weights, task.clean)
    return all_items(config, unit, len(task.clean[0]))


def mask_of(config: Mapping, unit: str, n_tokens: int, items: ArrayLike, inside: float) -> Array:
    """A mask of the unit's place with the value `inside` at the items and 1 - inside everywhere else."""
    mask = np.full(
        (config["n_layer"], config["n_head"], *(n_tokens,) * (PLACES[UNITS[unit]] - 2)), 1.0 - inside
    )
    for item in np.asarray(items, int):
        mask[tuple(item)] = inside
    return mask


# -------------------------------------------------------------------------------------------- metrics


def metric_value(logits: Array, answers: ArrayLike, wrong: ArrayLike, metric: str, full: Array) -> Array:
    """One metric from the logits after the last token (... V); full (V) are those of the whole model.

    logit_diff: mean logit of the answers minus mean of the wrong; logit_diff_max: minus the largest of the
    wrong; prob_diff: probability of all answers minus that of all wrong; log_prob: log of the probability of
    all answers; kl: KL(whole model || this one), in nats.
    """
    answers, wrong = np.asarray(answers, int), np.asarray(wrong, int)
    logs = oracle.log_softmax(logits)
    if metric == "logit_diff":
        return logits[..., answers].mean(-1) - logits[..., wrong].mean(-1)
    if metric == "logit_diff_max":
        return logits[..., answers].mean(-1) - logits[..., wrong].max(-1)
    if metric == "prob_diff":
        return np.exp(logs[..., answers]).sum(-1) - np.exp(logs[..., wrong]).sum(-1)
    if metric == "log_prob":
        return np.log(np.exp(logs[..., answers]).sum(-1))
    if metric == "kl":
        own = oracle.log_softmax(full)
        return (np.exp(own) * (own - logs)).sum(-1)
    raise KeyError(metric)


def values_under(
    config, weights, task, i: int, masks: Mapping, reference: Mapping, metric: str | None
) -> Array:
    """The metric (...) of prompt i under every variant of the masks."""
    logits = forward(config, weights, task.clean[i], masks, reference)["logits"][..., -1, :]
    full = forward(config, weights, task.clean[i])["logits"][-1]
    return metric_value(logits, task.answers[i], task.wrong[i], metric or task.metric, full)


def metric_values(config, weights, task, metric: str | None = None) -> Array:
    """The whole model: [P]."""
    return np.array([values_under(config, weights, task, i, {}, {}, metric) for i in range(len(task.clean))])


# -------------------------------------------------------------------------------------------- effects


def sets_values(
    config, weights, task, unit, sets, inside, ablation="zero", reference=None, metric=None, listed=()
) -> Array:
    """[n_sets, P]: inside=0 ablates what is in each set, inside=1 ablates everything of the unit but it; of
    edges, all of the task's and those `listed` (see `of_edges`)."""
    columns = []
    for i in range(len(task.clean)):
        stacked = np.stack([mask_of(config, unit, len(task.clean[i]), items, inside) for items in sets])
        fill = reference_for(config, weights, task, i, ablation, reference)
        if unit == "edge" and inside == 1:
            fill = of_edges(config, weights, task, fill, listed)
        columns.append(values_under(config, weights, task, i, {UNITS[unit]: stacked}, fill, metric))
    return np.stack(columns, axis=1)


def knock_out(config, weights, task, unit, items, ablation="zero", **options) -> Array:
    """Each item alone ablated: [n_items, P]."""
    return sets_values(config, weights, task, unit, [[item] for item in items], 0.0, ablation, **options)


def keep_only(config, weights, task, unit, items, sizes, ablation="zero", **options) -> Array:
    """items[:n] kept and everything else of the unit ablated, for every n of sizes: [n_sizes, P]."""
    sets = [items[:n] for n in sizes]
    return sets_values(config, weights, task, unit, sets, 1.0, ablation, listed=items, **options)


def keep_without(config, weights, task, unit, items, ablation="zero", **options) -> Array:
    """All items kept except each one in turn: [n_items, P]."""
    items = np.asarray(items)
    sets = [np.delete(items, j, axis=0) for j in range(len(items))]
    return sets_values(config, weights, task, unit, sets, 1.0, ablation, listed=items, **options)


# ---------------------------------------------------------------------------------------- attribution


def mask_gradient(f, mask: Array, items: ArrayLike, step: float = STEP) -> Array:
    """df/dmask at each item, for f: variants of the mask (n, ...) -> values (n), by
    (8 (f(+h) - f(-h)) - (f(+2h) - f(-2h))) / 12 h, whose error is of the order h^4."""
    items = np.asarray(items, int)
    variants = np.repeat(mask[None], 4 * len(items), axis=0)
    for j, item in enumerate(items):
        for i, shift in enumerate((1, -1, 2, -2)):
            variants[(4 * j + i, *item)] += shift * step
    plus, minus, plus2, minus2 = f(variants).reshape(len(items), 4).T
    return (8 * (plus - minus) - (plus2 - minus2)) / (12 * step)


def attribution(
    config, weights, task, unit, ablation="zero", *, steps=1, reference=None, metric=None, step=None
) -> Array:
    """Scores of all items, averaged over prompts: [L,H], [L,H,T] or [L,H,T,T].

    steps=1: derivative with respect to the mask of one item where all masks are 1. steps=k: mean of it over
    masks all equal to (j - 1/2) / k, j = 1..k (integrated gradients, midpoint rule).
    """
    step = step or (RELU_STEP if config["activation"] == "relu" else STEP)
    points = [1.0] if steps == 1 else [(j + 0.5) / steps for j in range(steps)]
    place, scores = UNITS[unit], []
    for i, tokens in enumerate(task.clean):
        items = all_items(config, unit, len(tokens))
        fill = reference_for(config, weights, task, i, ablation, reference)
        shape = mask_of(config, unit, len(tokens), [], 1.0).shape
        if unit == "edge":
            fill = of_edges(config, weights, task, fill)

        def f(variants, i=i, fill=fill):
            return values_under(config, weights, task, i, {place: variants}, fill, metric)

        one = np.zeros(shape[: items.shape[1]])
        slopes = [mask_gradient(f, np.full(shape, point), items, step) for point in points]
        one[tuple(items.T)] = np.mean(slopes, axis=0)
        scores.append(one)
    return np.mean(scores, axis=0)


def gate_attribution(config, weights, task, metric=None) -> Array:
    """g P (dm/dA) sigmoid'(g) of every entry, mean over prompts: [L,H,T,T]. To first order what the metric
    loses if the gate logit g is moved to 0, the gate's slope being that of a sigmoid as in training; P is the
    softmax before the gate, A the pattern that is used."""
    scores = []
    for tokens, answers, wrong in zip(task.clean, task.answers, task.wrong):
        items = all_items(config, "edge", len(tokens))
        run = oracle.forward(config, weights, tokens)

        def f(patterns, tokens=tokens, answers=answers, wrong=wrong, run=run):
            runs = [
                oracle.forward(config, weights, tokens, inject={"pattern": change}) for change in patterns
            ]
            logits = np.array([one["logits"][-1] for one in runs])
            return metric_value(logits, answers, wrong, metric or task.metric, run["logits"][-1])

        slope = np.zeros_like(run["pattern"])
        slope[tuple(items.T)] = mask_gradient(f, slope.copy(), items)
        g = np.where(oracle.gate_mask(config, len(tokens)), run["scores"] + config["gate_bias"], 0.0)
        scores.append(g * oracle.softmax(run["scores"]) * slope * oracle.sigmoid_slope(g))
    return np.mean(scores, axis=0)


# --------------------------------------------------------------------------------- rankings and circuits


def ranked(items: ArrayLike, scores: ArrayLike) -> Array:
    """Items by falling absolute score; equal scores keep their order."""
    return np.asarray(items)[np.argsort(-np.abs(scores), kind="stable")]


def greedy(
    config, weights, task, unit, items, ablation="zero", *, share=0.0, absolute=False, **options
) -> Array:
    """Items by backward elimination, best first: of those left, the `share` (at least one) whose removal
    lowers the metric least (absolute: changes it least) goes first; among equals the last."""
    left, dropped = np.asarray(items), []
    while len(left):
        now = keep_only(config, weights, task, unit, left, [len(left)], ablation, **options).mean()
        costs = now - keep_without(config, weights, task, unit, left, ablation, **options).mean(1)
        costs = np.abs(costs) if absolute else costs
        order = np.argsort(-costs, kind="stable")[::-1][: max(1, int(share * len(left)))]
        dropped.extend(left[order])
        left = np.delete(left, order, axis=0)
    return np.array(dropped[::-1])


def explained_effect(values: Array, full: Array, empty: Array, normalize: str = "mib") -> Array:
    """f of every set from values [n_sets, P], means over prompts first. mib: (m(C) - m(0)) / (m(M) - m(0));
    ratio: m(C) / m(M); none: m(C)."""
    means, whole, none = values.mean(1), full.mean(), empty.mean()
    return {
        "mib": lambda: (means - none) / (whole - none),
        "ratio": lambda: means / whole,
        "none": lambda: means,
    }[normalize]()


def needed(
    sizes: Sequence[int], effect: Sequence[float], fraction: float = 0.9
) -> tuple[int | None, int | None]:
    """(first, stays): the smallest evaluated n with effect >= fraction, and the smallest one from which it
    stays so to the last; None where there is none."""
    enough = [value >= fraction for value in effect]
    first = next((n for n, good in zip(sizes, enough) if good), None)
    stays = next((n for j, n in enumerate(sizes) if all(enough[j:])), None)
    return first, stays
