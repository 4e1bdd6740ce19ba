"""Groups of nodes of an attribution graph, one for everything about a word, and what flows between them.

    groups = asp.token_groups(graph)                              # one for every word, by one rule
    groups = asp.group_nodes(graph, {"large": {"position": "large"}, "small": ["11_17_7", "logit_diff"]})
    flows(graph, list(groups.values()))                           # in units of the logit

The effect of a group on the logits is counted along paths through features, as `Graph.total` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .. import _check
from ..items import token_label
from .graph import Graph

MOST = 0.8  # of the influence of a group's features lies in the layers that are named
MEMBERS = ("feature", "token")

Spec: TypeAlias = "str | int | Sequence[int | str] | Mapping[str, Any] | Callable[[Any], bool]"


@dataclass(frozen=True, eq=False, repr=False)
class Group:
    """Nodes of a graph under one name.

    Attributes
    ----------
    name : str
        Name of the group.
    nodes : numpy.ndarray
        int64, rising.
    positions : tuple of int
        Positions of the nodes, from 0.
    layers : (int, int) or None
        First and last of the fewest neighbouring layers that have 80 % of the influence of its features
        on the logits, by absolute values; logits are at the layer after the last. None: embeddings alone.
    profile : numpy.ndarray
        float64 [L]: share of that influence in each layer; 0 without features.
    n_features : int
        Number of nodes that are features.
    influence : float
        `Graph.total` of the group on the logits, in units of the logit, without the logits themselves.
    """

    name: str
    nodes: np.ndarray
    positions: tuple[int, ...]
    layers: tuple[int, int] | None
    profile: np.ndarray
    n_features: int
    influence: float

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        what = f"{len(self)} nodes, {self.layer_text}, influence {self.influence:.4g}"
        return f"Group({self.name!r:.60}, {what})"

    @property
    def layer_text(self) -> str:
        """`layer 0-3`, `layer 11, logits`, or `embedding`."""
        if self.layers is None:
            return "embedding"
        first, last = self.layers
        logits = len(self.profile)
        if first == logits:
            return "logits"
        most = min(last, logits - 1)
        text = f"layer {first}" if first == most else f"layer {first}-{most}"
        return text if last < logits else f"{text}, logits"


def group_nodes(graph: Graph, groups: Mapping[str, Spec]) -> dict[str, Group]:
    """Named groups of nodes.

    Parameters
    ----------
    graph : Graph
    groups : mapping
        Name to members: a string that a label contains; a node number, or several node numbers and ids;
        arguments of `Graph.select` (kind, layer, position, label); or a function that takes each row of
        `Graph.nodes` as a named tuple and returns True or False. Unless a kind or nodes are named, only
        features and tokens are chosen.

    Returns
    -------
    dict
        Name to `Group`.

    Raises
    ------
    ValueError
        For a group without nodes and for a node in two groups.
    KeyError, IndexError
        For nodes that do not exist.
    TypeError
        For other objects.
    """
    _check.instance(graph, Graph, "graph")
    if not isinstance(groups, Mapping):
        raise TypeError(f"groups must be a mapping from names to nodes, got {type(groups).__name__}")
    chosen: dict[str, np.ndarray] = {}
    owner: dict[int, str] = {}
    for name, spec in groups.items():
        nodes = _nodes(graph, spec)
        if not len(nodes):
            raise ValueError(f"group {name!r:.60} is empty: nothing in the graph matches {spec!r:.80}")
        for node in nodes.tolist():
            if node in owner:
                raise ValueError(
                    f"node {graph._id(node)!r} is in groups {owner[node]!r:.60} and {name!r:.60}; "
                    "its effect would be counted twice"
                )
            owner[node] = name
        chosen[name] = nodes
    return _groups(graph, chosen)


def _nodes(graph: Graph, spec: Spec) -> np.ndarray:
    if isinstance(spec, str):
        spec = {"label": spec}
    if isinstance(spec, Mapping):
        return graph.select(**{"kind": MEMBERS, **spec})
    if callable(spec):
        rows = graph.nodes().itertuples()
        return np.array([i for i, row in enumerate(rows) if row.kind in MEMBERS and spec(row)], np.int64)
    return graph.nodes_of(spec)


def _groups(graph: Graph, chosen: Mapping[str, np.ndarray]) -> dict[str, Group]:
    of = _numbers(graph, chosen.values())
    profiles, layers = graph._core.profile(of, len(chosen), graph.n_layer, MOST)
    kind = np.array(graph.kind)
    result = {}
    for (name, nodes), profile, (first, last) in zip(chosen.items(), profiles, layers.tolist()):
        positions = tuple(np.unique(graph.position[nodes]).tolist())
        inner = nodes[kind[nodes] != "logit"]
        influence = sum(graph.total(inner, int(t)) for t in graph.logits) if len(inner) else 0.0
        extent = None if first < 0 else (first, last)
        n_features = int((kind[nodes] == "feature").sum())
        result[name] = Group(name, nodes, positions, extent, profile, n_features, influence)
    return result


def _numbers(graph: Graph, groups: Iterable[np.ndarray]) -> np.ndarray:
    """int64 [n]: the number of each node's group, -1 for none."""
    of = np.full(len(graph), -1)
    for number, nodes in enumerate(groups):
        of[nodes] = number
    return of


def token_groups(graph: Graph, output: str = "output") -> dict[str, Group]:
    """A group for every word of the prompt, and one for the output, by one rule.

    A feature is about the token whose embedding drives it most: the one with the largest total influence on
    its pre-activation, along all paths through attention and features. The group of a token: its embedding
    and the features at its position that are about it. Equal tokens without a letter or digit, such as
    quotation marks, are one group; other equal tokens are told apart as "word@position". The output: the
    logits, and the features at the last position that are about other tokens, brought there by attention.
    Features elsewhere that are about another position's token are in no group. (The paper groups features by
    hand, by what their labels say: see `group_nodes`.)

    Parameters
    ----------
    graph : Graph
    output : str, default "output"
        Name of the group with the logits.

    Returns
    -------
    dict
        Name to `Group`, in the order of the prompt.

    Raises
    ------
    TypeError
        If `graph` is not a Graph.
    """
    _check.instance(graph, Graph, "graph")
    places: dict[str, list[int]] = {}
    for i, token in enumerate(graph.token_strings):
        name = token_label(token)
        if (name in places and any(character.isalnum() for character in name)) or name == output:
            name = f"{name}@{i}"
        places.setdefault(name, []).append(i)
    about = drivers(graph).argmax(axis=1)
    of = np.full(len(graph.tokens), -1)
    for number, positions in enumerate(places.values()):
        of[positions] = number
    n = graph.n_features
    own = of[about] == of[graph.position[:n]]
    tokens = graph.select("token")
    chosen = {}
    for number, (name, positions) in enumerate(places.items()):
        features = np.flatnonzero(own & (of[graph.position[:n]] == number))
        chosen[name] = np.concatenate([features, tokens[positions]])
    brought = np.flatnonzero(~own & (graph.position[:n] == len(graph.tokens) - 1))
    chosen[output] = np.concatenate([brought, graph.logits])
    return _groups(graph, chosen)


# ----------------------------------------------------------------------------------------- influence


def influences(graph: Graph) -> np.ndarray:
    """float64 [n]: total influence of every node on the logits (their sum), each node taken alone."""
    return graph._core.total_influence()


def drivers(graph: Graph) -> np.ndarray:
    """float64 [n_features, T]: total influence of each token's embedding on each feature's pre-activation."""
    return graph._core.drivers()


def flows(graph: Graph, groups: Sequence[Group]) -> np.ndarray:
    """float64 [g, g]: effect of group a on the logits by way of group b, the next one on the path.

    Every path from a to the logits is cut where it first meets another group; entry [a, b] sums those that
    meet b first, through features of no group or none, in units of the logits. Paths within a group are not
    counted (the diagonal is 0), so a row sums to `Graph.total` of the group, up to paths that come back.
    Raises ValueError unless every logit is in a group.
    """
    return graph._core.flows(_numbers(graph, (group.nodes for group in groups)), len(groups))
