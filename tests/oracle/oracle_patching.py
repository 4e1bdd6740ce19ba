"""Patching of activations and of paths in plain NumPy float64: an executable specification.

A pair has a base prompt and another one: "denoising" puts what the clean prompt has into the corrupted one,
"noising" the other way. The answers are those of the clean prompt. Letters and tasks are as in
oracle_circuits.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import product

import numpy as np
import oracle
import oracle_circuits as oc
import oracle_component_graph as graph
import oracle_components
from numpy.typing import ArrayLike
from oracle import Array

RECORDS = {
    "resid": "resid_pre", "resid_mid": "resid_mid", "attn_out": "attn_out", "mlp_out": "mlp_out", "z": "z",
    "q": "q", "k": "k", "v": "v", "pattern": "pattern",
}  # fmt: skip
OF_HEADS = ("z", "q", "k", "v", "pattern")


def pair(task, i: int, direction: str) -> tuple[Array, Array]:
    """Tokens of the base prompt and of the other one."""
    both = task.clean[i], task.corrupted[i]
    return both if direction == "noising" else both[::-1]


def value(config, weights, task, i: int, logits: Array, metric: str | None) -> float:
    """The metric of prompt i from logits [T,V]."""
    full = oracle.forward(config, weights, task.clean[i])["logits"][-1]
    return oc.metric_value(logits[-1], task.answers[i], task.wrong[i], metric or task.metric, full)


def sweep(
    config: Mapping,
    weights: Mapping,
    task,
    kind: str,
    by: tuple[str, ...],
    direction: str,
    metric=None,
    gate: str = "recomputed",
) -> Array:
    """[.., P], the axes as in `by`: the metric with one activation of the base run made that of the other."""
    return np.stack(
        [
            _sweep_prompt(config, weights, task, i, kind, by, direction, metric, gate)
            for i in range(len(task.clean))
        ],
        -1,
    )


def _sweep_prompt(config, weights, task, i, kind, by, direction, metric, gate) -> Array:
    base, other = (oracle.forward(config, weights, tokens) for tokens in pair(task, i, direction))
    name = RECORDS[kind]
    sizes = {"layer": config["n_layer"], "head": config["n_head"], "position": len(task.clean[i])}
    found = np.zeros([sizes[axis] for axis in by])
    for place in product(*(range(n) for n in found.shape)):
        at = dict(zip(by, place))
        index = _index(config, kind, at)
        change = np.zeros_like(base[name])
        change[index] = (other[name] - base[name])[index]
        held = {"gate": lambda layer, g: base["gate"][layer]} if gate == "held" else {}
        run = oracle.forward(config, weights, pair(task, i, direction)[0], inject={name: change}, **held)
        found[place] = value(config, weights, task, i, run["logits"], metric)
    return found


def _index(config, kind: str, at: Mapping[str, int]) -> tuple:
    """Of an array of all layers: resid_pre [L,T,E], z [L,T,H,D], pattern [L,H,T,T]."""
    position = at.get("position", slice(None))
    if kind == "pattern":
        return at["layer"], at["head"], position
    return (at["layer"], position, at["head"]) if kind in OF_HEADS else (at["layer"], position)


def paths(
    config: Mapping,
    weights: Mapping,
    task,
    senders: Collection[str],
    receivers: Collection[str],
    direction: str = "noising",
    *,
    positions: ArrayLike | None = None,
    gate: str = "recomputed",
    metric: str | None = None,
) -> Array:
    """[P]: each of the receivers reads each of the senders before it as it is in the other prompt."""
    found = []
    for i in range(len(task.clean)):
        base, other = (
            oracle_components.forward(config, weights, tokens) for tokens in pair(task, i, direction)
        )
        keep = np.ones((*graph.real_edges(config).shape, len(task.clean[i]), 1))
        for u, v in product(senders, receivers):
            row, column = graph.senders(config).index(u), graph.receivers(config).index(v)
            keep[row, column, slice(None) if positions is None else np.asarray(positions)] = 0
        run = oracle_components.forward(
            config,
            weights,
            pair(task, i, direction)[0],
            keep=keep,
            fill=other.outputs,
            gate=base.gate if gate == "held" else None,
        )
        found.append(value(config, weights, task, i, run.logits, metric))
    return np.array(found)
