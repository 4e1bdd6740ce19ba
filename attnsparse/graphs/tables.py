"""The tables of a graph: its nodes, its edges, and all of it in one row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._tables import text_table
from .prune import known_scores
from .select import KINDS

if TYPE_CHECKING:
    import pandas as pd

    from .graph import Graph


def nodes(graph: Graph) -> pd.DataFrame:
    """One row per node.

    Returns
    -------
    pandas.DataFrame
        id, kind, layer, position, token, feature, value, probability, label, and influence if it is set.
    """

    strings = [graph.token_strings[p] if p >= 0 else "" for p in graph.position]
    columns = {
        "id": graph.ids, "kind": graph.kind, "layer": graph.layer, "position": graph.position,
        "token": strings, "feature": graph.feature, "value": graph.value, "probability": graph.probability,
        "label": graph.labels,
    }  # fmt: skip
    if graph.influence is not None:
        columns["influence"] = graph.influence
    table: pd.DataFrame = text_table(columns)
    return table


def links(graph: Graph) -> pd.DataFrame:
    """One row per edge.

    Returns
    -------
    pandas.DataFrame
        source, target (node numbers), source_id, target_id, weight.
    """

    target = np.repeat(np.arange(len(graph)), np.diff(graph.start))
    ids = np.array(graph.ids)
    table: pd.DataFrame = text_table(
        {
            "source": graph.source,
            "target": target,
            "source_id": ids[graph.source],
            "target_id": ids[target],
            "weight": graph.weights,
        }
    )
    return table


def summary(graph: Graph) -> pd.DataFrame:
    """The graph in one row.

    Returns
    -------
    pandas.DataFrame
        model, transcoders, prompt, prepend_bos, pruned (False, or the thresholds), n_feature and so on
        for each kind, n_edges, closure (NaN for a pruned graph, whose edges do not add up), and the
        columns of `scores`, if they are known.
    """

    thresholds = ", ".join(f"{name}={value:g}" for name, value in (graph.pruned or {}).items())
    row = {
        "model": graph.model_name,
        "transcoders": graph.transcoders_name,
        "prompt": graph.prompt,
        "prepend_bos": graph.prepend_bos,
        "pruned": False if graph.pruned is None else thresholds or "True",
        **{f"n_{kind}": graph.kind.count(kind) for kind in KINDS},
        "n_edges": len(graph.source),
        "closure": graph.closure if graph.pruned is None else np.nan,
    }
    table: pd.DataFrame = text_table([row | (known_scores(graph) or {})])
    return table
