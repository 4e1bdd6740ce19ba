"""What a graph's page shows beside the graph: groups of nodes, and cards of features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import _check
from ..errors import printable
from ..items import shortened, token_label
from ..transcoders.labels import FeatureLabels

if TYPE_CHECKING:
    from .graph import Graph
    from .groups import Group
    from .select import Nodes

_CONTEXTS = 6
_PROMOTED = 8
_NAME_SIGNS = 80
_TOKEN_SIGNS = 40


def group_data(
    whole: Graph, shown: Graph, supernodes: Mapping[str, Nodes | Group] | None
) -> list[dict[str, Any]]:
    """Name and nodes of each group that pruning left something of; numbers of the graph that is shown."""
    if not isinstance(supernodes, Mapping | None):
        raise TypeError(f"supernodes must map names to nodes, got {type(supernodes).__name__}")
    number = {name: i for i, name in enumerate(shown.ids)}
    found = []
    for name, given in (supernodes or {}).items():
        if not isinstance(name, str):
            raise TypeError(f"a name in supernodes must be a string, got {type(name).__name__}")
        nodes: Any = given
        members = whole.nodes_of(getattr(nodes, "nodes", nodes))
        left = [number[whole.ids[i]] for i in members.tolist() if whole.ids[i] in number]
        if left:
            found.append({"name": shortened(name, _NAME_SIGNS), "nodes": left})
    return found


def card_data(graph: Graph, features: FeatureLabels | None) -> dict[str, Any]:
    """Node -> what is known of its feature."""
    if features is None:
        return {}
    _check.instance(features, FeatureLabels, "features")
    known = {key: row for row, key in enumerate(zip(features.layer.tolist(), features.feature.tolist()))}
    cards = {}
    for node, kind in enumerate(graph.kind):
        key = (int(graph.layer[node]), int(graph.feature[node]))
        if kind == "feature" and key in known:
            cards[str(node)] = _card(features, key, known[key])
    return cards


def _card(features: FeatureLabels, key: tuple[int, int], row: int) -> dict[str, Any]:
    return {
        "density": float(features.density[row]),
        "contexts": [
            {
                "tokens": [_shown(token) for token in strings],
                "activations": [float(f"{value:.3g}") for value in values],
                "at": int(at),
            }
            for strings, values, at in features.examples(*key)[:_CONTEXTS]
        ],
        "promoted": _effects(features, "promoted", row),
        "suppressed": _effects(features, "suppressed", row),
    }


def _effects(features: FeatureLabels, side: str, row: int) -> list[list[Any]]:
    tokens = getattr(features, f"{side}_tokens")[row][:_PROMOTED].tolist()
    effects = getattr(features, f"{side}_effects")[row][:_PROMOTED].tolist()
    return [
        [shortened(token_label(features.strings[token]), _TOKEN_SIGNS), float(f"{effect:.3g}")]
        for token, effect in zip(tokens, effects)
    ]


def _shown(token: str) -> str:
    """A token inside a sentence: with its space, other signs that cannot be seen escaped."""
    return printable(token)[:_TOKEN_SIGNS]
