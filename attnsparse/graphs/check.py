"""Is the graph right about the model?  Nodes and attention entries are removed from the real model, where
nothing is held, and the change of the logits is compared with what the graph predicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import _check
from .._display import progress_bar
from .._engine import core_for
from .._tables import text_table
from ..items import Edge, Mlp, Resid
from .heads import factors
from .select import Nodes
from .targets import token_ids

if TYPE_CHECKING:
    import pandas as pd

    from ..model.run import Run
    from .graph import Graph
    from .sources import Sources

REMOVABLE = ("feature", "error", "token", "position")

COLUMNS = (
    "removed", "target", "label", "predicted_edge", "predicted", "actual", "ratio", "actual_held",
    "ratio_held",
)  # fmt: skip
Row: TypeAlias = tuple[str, str, str, float, float, float, float, float, float]


def check(
    graph: Graph,
    nodes: Nodes | None = None,
    entries: Any = None,
    *,
    together: bool = False,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Remove nodes, or attention entries, from the real model, and compare with what the graph predicts.

    Everything else in the model is free to react, while the graph holds patterns and scales and takes active
    features to be linear. Give either `nodes` or `entries`.

    Parameters
    ----------
    nodes : int, str, or sequence of these, optional
        Features, errors, tokens or positions; what they write is subtracted from the residual stream.
    entries : Edge, str, tuple, or sequence of these, optional
        Attention edges of the last position such as "a9.h6[4->7]" or (layer, head, query, key); they are set
        to zero.
    together : bool, default False
        Remove all at once instead of each alone.
    progress : bool, optional
        Show a bar; None: in a terminal or notebook, after a second.

    Returns
    -------
    pandas.DataFrame
        One row per item and logit node: removed, target, label, predicted_edge (change of the logit's value
        on direct paths), predicted (through features as well), actual, ratio (actual / predicted), and
        actual_held and ratio_held: the same where the scale of the final LayerNorm, which grows smaller when
        something large is removed and enlarges all that is left, stays as the graph holds it.

    Raises
    ------
    ValueError
        For a graph without its model or a pruned one, for no nodes, for other kinds of nodes and for entries
        of other positions.
    RuntimeError
        If the model's weights changed after the graph was made.
    """

    chosen = None if nodes is None else graph.nodes_of(nodes)
    if chosen is not None and not len(chosen):
        raise ValueError("nodes is empty: nothing was selected")
    sources, _ = _origin(graph)
    run, together = sources.features.run, _check.flag(together, "together")
    if sources.version != run.model._core.version:
        raise RuntimeError("the weights changed after the graph was made; compute the graph again")
    if run._altered:
        raise ValueError(
            f"a check needs a graph of the model itself; this one is of a run with {run._altered}"
        )
    if (chosen is None) == (entries is None):
        raise ValueError("give nodes=... or entries=..., one of them")
    groups = _entry_groups(graph, entries, together) if chosen is None else _groups(graph, chosen, together)
    rows: list[Row] = []
    with progress_bar(progress, len(groups), "check", "item") as bar:
        for group in groups:
            rows += _node_rows(graph, group) if isinstance(group, np.ndarray) else _entry_rows(graph, group)
            if bar is not None:
                bar.update()
    table: pd.DataFrame = text_table([dict(zip(COLUMNS, row)) for row in rows], COLUMNS)
    return table


def _origin(graph: Graph) -> tuple[Sources, np.ndarray]:
    if graph.origin is None or graph.pruned is not None:
        raise ValueError("a check needs the model: use the graph that attribution_graph gave, before pruning")
    return graph.origin


def _rows(
    graph: Graph, name: str, changed: Run, direct: Sequence[float], total: Sequence[float]
) -> list[Row]:
    """One row for each logit node; changed: a run of the changed model with the last logits and the scale."""
    before, after = graph.value[graph.logits].astype(np.float64), logit_values(graph, changed.logits)
    changes, held = after - before, _held(graph, changed, after) - before
    return [
        (
            name,
            graph.ids[t],
            graph.labels[t],
            edge,
            whole,
            float(change),
            float(change) / whole if whole else np.nan,
            float(kept),
            float(kept) / whole if whole else np.nan,
        )
        for t, edge, whole, change, kept in zip(graph.logits, direct, total, changes, held)
    ]


def logit_values(graph: Graph, logits: np.ndarray) -> np.ndarray:
    """float64: the values of the graph's logit nodes for other logits [V] of the last token."""
    model, logits = _origin(graph)[0].features.run.model, logits.astype(np.float64)
    if graph.options["wrong"] is None:
        return np.asarray(logits[graph.feature[graph.logits]] - logits.mean())
    right, wrong = (token_ids(model, graph.options[name], name) for name in ("target", "wrong"))
    return np.array([logits[right].mean() - logits[wrong].mean()])


def _held(graph: Graph, changed: Run, values: np.ndarray) -> np.ndarray:
    """float64: values of the logit nodes of a changed run if its final scale were that of the graph's run."""
    run = _origin(graph)[0].features.run
    right, wrong = graph.feature[graph.logits].astype(np.int64), np.empty(0, np.int64)
    if graph.options["wrong"] is not None:
        right, wrong = (token_ids(run.model, graph.options[name], name) for name in ("target", "wrong"))
    vectors, bias, _ = run.model._core.graph_logits(changed.logits, right, wrong)
    fixed = bias
    if run.model.config.bias:
        fixed = fixed + (vectors.astype(np.float64) * run.model.parameter("ln_f.bias")).sum(axis=1)
    scale = run.model.run(run.tokens, "ln_final_scale", logits="none").ln_final_scale[-1]
    factor = float(changed.ln_final_scale[-1]) / float(scale)
    return np.asarray(fixed + factor * (values - fixed))


# ----------------------------------------------------------------------------------------------- nodes


def _groups(graph: Graph, chosen: np.ndarray, together: bool) -> list[np.ndarray]:
    """Nodes that are removed at once."""
    for node in chosen:
        if graph.kind[node] not in REMOVABLE:
            kinds = ", ".join(REMOVABLE)
            raise ValueError(
                f"node {graph._id(node)!r} is not part of the model's run; {kinds} can be removed"
            )
    return [chosen] if together else [np.array([node]) for node in chosen]


def _node_rows(graph: Graph, group: np.ndarray) -> list[Row]:
    name = graph._id(group[0]) if len(group) == 1 else f"{len(group)} nodes"
    changed = run_without(graph, group)
    direct = [-graph.weight(group, int(t)) for t in graph.logits]
    total = [-graph.total(group, int(t)) for t in graph.logits]
    return _rows(graph, name, changed, direct, total)


def run_without(graph: Graph, nodes: np.ndarray) -> Run:
    """The last logits and the final scale when what the nodes write is subtracted from the residual stream.

    Layer by layer: the output of an MLP in the changed run, less what is removed there.
    """
    sources, chosen = _origin(graph)
    run = sources.features.run
    numbers = np.concatenate([chosen, np.arange(len(sources.features), sources.n)])
    writes = np.flatnonzero(np.isin(sources.source, numbers[nodes]))
    patch = _patches(sources, run, writes)
    return run.model.run(run.tokens, "ln_final_scale", logits="last", patch=patch or None)


def _patches(sources: Sources, run: Run, writes: np.ndarray) -> dict[Mlp | Resid, np.ndarray]:
    patch: dict[Mlp | Resid, np.ndarray] = {}
    start = (run.embed + run.pos_embed).copy()
    for layer in np.unique(sources.layer[writes]):
        here = writes[sources.layer[writes] == layer]
        if layer == 0:
            np.subtract.at(start, sources.position[here], sources.vectors[here])
            patch |= {Resid(0, int(p), "pre"): start[p] for p in np.unique(sources.position[here])}
            continue
        changed = (
            run.model.run(run.tokens, "mlp_out", logits="none", patch=patch or None).mlp_out[layer - 1].copy()
        )
        np.subtract.at(changed, sources.position[here], sources.vectors[here])
        patch[Mlp(int(layer) - 1)] = changed
    return patch


# --------------------------------------------------------------------------------------------- entries


def _entry_groups(graph: Graph, entries: Any, together: bool) -> list[list[Edge]]:
    """Entries that are removed at once."""
    listed = list(entries) if isinstance(entries, Iterable) and not isinstance(entries, str) else [entries]
    if len(listed) == 4 and not any(isinstance(part, Iterable) for part in listed):
        listed = [tuple(listed)]  # (layer, head, query, key)
    last = len(graph.tokens) - 1
    edges = [Edge.parse(entry).within(graph.n_layer, graph.n_head, last + 1) for entry in listed]
    for edge in edges:
        if edge.query != last:
            raise ValueError(
                f"{edge.label}: only entries of the last position {last} lead to the logits directly"
            )
    return [edges] if together else [[edge] for edge in edges]


def _entry_rows(graph: Graph, group: list[Edge]) -> list[Row]:
    run = _origin(graph)[0].features.run
    values = run.model.run(run.tokens, "v", logits="none").v
    name = group[0].label if len(group) == 1 else f"{len(group)} entries"
    changed = run.model.run(run.tokens, "ln_final_scale", logits="last", ablate=group)
    predicted = [_predicted(graph, group, values, int(t)) for t in graph.logits]
    return _rows(graph, name, changed, [p[0] for p in predicted], [p[1] for p in predicted])


def _predicted(graph: Graph, edges: Sequence[Edge], values: np.ndarray, target: int) -> tuple[float, float]:
    """Change of a logit without some entries of its position: on direct paths, and through features as
    well."""
    factor = factors(graph, np.isin(np.arange(len(graph)), target))
    at_last = graph.position[graph.targets] == len(graph.tokens) - 1
    weights = np.where([graph.targets == target, at_last], [np.ones(len(at_last)), factor[graph.targets]], 0)
    direct, total = core_for(str(graph.received.dtype)).graph_entries(
        graph.received, graph.pattern, np.ascontiguousarray(values), np.array(edges, np.int64), weights
    )
    return -float(direct), -float(total)
