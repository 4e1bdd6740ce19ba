"""The names of component edges, as EAP-IG and MIB write them, and the options of their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ...model.config import Config

METHODS = (
    "eap", "eap-ig-inputs", "eap-ig-activations", "clean-corrupted", "exact", "information-flow-routes",
)  # fmt: skip
"""How component edges are scored."""
ABLATIONS = ("counterfactual", "zero", "mean", "mean-positional", "mean-all")
"""What replaces the output of a component: not those of attention edges, whose mean is one per position."""
LEVELS = ("edge", "node", "neuron")
"""What is scored: component edges, senders, or each coordinate of what senders write."""
DIRECTIONS = ("noising", "denoising")
"""Whether corrupted values go into the clean run, or clean ones into the corrupted run."""
GATES = ("recomputed", "held")
"""Which gates of a gated model changed runs have."""
MLP_GRADIENTS = ("output", "input")
"""With which gradient an MLP is scored as a node: of what it writes, or of what it reads."""
SELECTIONS = ("top", "greedy")
"""How component edges are taken: the best of all, or the best into the logits or a node that is there."""
GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all component edges at which MIB evaluates circuits."""


class Shape(NamedTuple):
    """What of a model's config numbers its components."""

    n_layer: int
    n_head: int


def senders(config: Config | Shape) -> list[str]:
    """Names in the core's order: "input", then the heads and the MLP of each layer."""
    found = ["input"]
    for layer in range(config.n_layer):
        found += [f"a{layer}.h{head}" for head in range(config.n_head)] + [f"m{layer}"]
    return found


def receivers(config: Config | Shape) -> list[str]:
    """Names in the core's order: q of all heads of a layer, k, v, its MLP; "logits" at the end."""
    found = []
    for layer in range(config.n_layer):
        found += [f"a{layer}.h{head}<{letter}>" for letter in "qkv" for head in range(config.n_head)]
        found.append(f"m{layer}")
    return [*found, "logits"]
