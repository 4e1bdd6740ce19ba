"""Which nodes of a graph are meant: those that match what is known of them, and the two ends of edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import _check
from ..transcoders.arrays import layers_text

if TYPE_CHECKING:
    from .graph import Graph

KINDS = ("feature", "error", "token", "position", "bias", "other", "logit")

Nodes: TypeAlias = int | str | Sequence[int | str] | np.ndarray
"""Nodes of a graph by number or id: one, several, or the array that `Graph.select` gives."""


def select(
    graph: Graph,
    kind: str | Sequence[str] | None = None,
    layer: int | range | Sequence[int] | np.ndarray | None = None,
    position: int | str | None = None,
    label: str | None = None,
) -> np.ndarray:
    """The nodes that match everything given; possibly none.

    Parameters
    ----------
    kind : str or sequence of str, optional
        One or several of "feature", "error", "token", "position", "bias", "other", "logit".
    layer : int or sequence of int, optional
        -1 for nodes without a layer, such as tokens; the number of layers for logits.
    position : int or str, optional
        A number (negative ones count from the end) or a token string that occurs once.
    label : str, optional
        A text that the node's label contains.

    Returns
    -------
    numpy.ndarray
        int64 [k], rising: node numbers.

    Raises
    ------
    ValueError
        For an unknown kind, and for a token string that does not occur exactly once.
    IndexError
        For a layer or position out of range.
    TypeError
        For other objects.
    """
    fits = np.ones(len(graph), dtype=bool)
    if kind is not None:
        fits &= np.isin(graph.kind, _kinds(kind))
    if layer is not None:
        fits &= np.isin(graph.layer, _layers(layer, graph.n_layer))
    if position is not None:
        fits &= graph.position == graph.position_of(position)
    if label is not None:
        if not isinstance(label, str):
            raise TypeError(f"label must be a string that labels contain, got {type(label).__name__}")
        fits &= np.array([label in text for text in graph.labels])
    return np.flatnonzero(fits)


def _kinds(kind: Any) -> list[str]:
    return [_check.choice(name, "kind", KINDS) for name in _check.names(kind, "kind")]


def _layers(layer: Any, n_layer: int) -> list[int]:
    several = isinstance(layer, Sequence | np.ndarray) and not isinstance(layer, str)
    numbers = [_check.integer(number, "layer") for number in (layer if several else [layer])]
    for number in numbers:
        if not -1 <= number <= n_layer:
            text = f"layers are 0..{n_layer - 1}, {n_layer} of logits and -1 of tokens"
            raise IndexError(f"layer {number} is out of range: {text}")
    return numbers


def ends(graph: Graph, source: Nodes, target: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the sources and the targets of edges; ValueError where there cannot be any."""
    sources, targets = graph.nodes_of(source), graph.nodes_of(target)
    for name, nodes in (("source", sources), ("target", targets)):
        if not len(nodes):
            raise ValueError(f"{name} is empty: nothing was selected")
    if not np.isin(targets, graph.targets).any():
        what = f"{graph._id(targets[0])!r} ({graph.kind[targets[0]]})"
        raise ValueError(f"no edge leads to {what}: targets are features and logits; the source comes first")
    if np.isin(sources, graph.logits).all():
        raise ValueError(f"no edge leaves {graph._id(sources[0])!r} (logit); the source comes first")
    return sources, targets


def layers_with_features(graph: Graph) -> str:
    """What a graph's repr says of its layers if only some of them have transcoders."""
    layers = graph.options.get("transcoder_layers")
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        return ""
    return f", features of {layers_text(layers)} of {graph.n_layer}"
