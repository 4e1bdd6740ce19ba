"""Graphs in the JSON of circuit-tracer and Neuronpedia, for their viewers; neuronpedia_read.py reads it.

    large = graph.select("feature", label="large")
    graph.to_neuronpedia("graphs", "large-small", supernodes={"large": large})

Nodes that the format lacks have ids and types of their own, which viewers tolerate. Errors are called
"err_{layer}_{position}", because circuit-tracer's "0_{layer}_{position}" is also the id of feature
`layer` of layer 0.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._version import __version__
from ..errors import FormatError, file_error
from ..io.atomic import write_atomic
from ..io.regular_file import read_small
from ..io.strict_json import parse_object, shown
from ..io.text_bytes import compact_json, shortest
from ..items import cantor
from .select import Nodes

if TYPE_CHECKING:
    from .graph import Graph
    from .heads import ScoreSplit

SCHEMA_VERSION = 1
OWN = "attnsparse"  # what of a graph the format has no place for, in generation_settings
OWN_VERSION = 1
METADATA_FILE = "graph-metadata.json"
TYPES = {
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "token": "embedding",
    "position": "bias",
    "bias": "bias",
    "other": "unknown",
    "logit": "logit",
}
NO_PROBABILITY = " (p=1.000)"  # viewers read "(p=" of every logit
_INFO = {
    "description": "a string", "creator_name": "a string", "creator_url": "a string",
    "source_urls": "a list of strings", "create_time_ms": "a number",
}  # fmt: skip
_DETAILS = dict.fromkeys(
    ("feature_json_base_url", "neuronpedia_source_set", "neuronpedia_lorsa_source_set"), "a string"
)
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def to_neuronpedia(
    graph: Graph,
    folder: str | os.PathLike[str],
    slug: str,
    *,
    node_threshold: float | None = 0.8,
    edge_threshold: float | None = 0.98,
    supernodes: Mapping[str, Nodes] | None = None,
    pinned: Nodes = (),
    clicked: int | str | None = None,
    scan: str | None = None,
    info: Mapping[str, Any] | None = None,
    feature_details: Mapping[str, str] | None = None,
    n_contributors: int = 10,
    warn_bytes: int = 100 * 2**20,
) -> Path:
    """Write `slug`.json into a folder, for circuit-tracer's and Neuronpedia's viewers.

    The folder is made if needed, and the graph is entered in its graph-metadata.json.

    Parameters
    ----------
    folder : str or os.PathLike
        Where the file is written.
    slug : str
        Name of the file without .json: letters, digits, '.', '_' and '-'.
    node_threshold, edge_threshold : float or None
        The graph is pruned first (see `Graph.prune`; defaults 0.8 and 0.98) unless it was before. None for
        both writes it whole, None for one of them is 1.
    supernodes : mapping, optional
        Name to nodes of the graph, shown as groups; members that pruning removed are left out.
    pinned : int, str, or sequence of these, optional
        More nodes for the viewer's subgraph, which holds the supernodes' members.
    clicked : int or str, optional
        The node that is selected at first.
    scan : str, optional
        The name under which viewers look features up, instead of the graph's.
    info : mapping, optional
        description, creator_name, creator_url, source_urls, create_time_ms.
    feature_details : mapping, optional
        feature_json_base_url, neuronpedia_source_set or neuronpedia_lorsa_source_set.
    n_contributors : int, default 10
        The largest number of pairs, and of sums over pairs of each side, for each split score.
    warn_bytes : int, default 100 MiB
        A larger file is written with a UserWarning: Neuronpedia takes 100 MiB.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        For a slug that is no plain file name, a group of which pruning left nothing, a clicked node that it
        removed, other names in info and feature_details, and a negative n_contributors.
    TypeError
        For arguments of other kinds.
    FormatError
        For a graph-metadata.json that is not one.
    OSError
        If a file cannot be written.

    Notes
    -----
    Ids are `Graph.ids`; feature is the Cantor pairing of (layer, number), as of circuit-tracer 0.4; clerp is
    the label, "" for a feature without one. Nodes that circuit-tracer does not have are in the row of the
    tokens: positions and the bias with feature_type "bias", other features with "unknown", types that
    Neuronpedia draws and gives no feature page to ("embedding" would be relabelled with its token); their
    `feature` is a number that no token has. A difference of logits has p=1, its weight in the influence,
    because viewers read a probability from each logit's label.

    qk_tracing_results: each score of `graph.splits` is at the node that its attention entry carries most
    into, among features at the query's position, from the entry's layer on, and logits there; without heads,
    at the first of the logits. It holds the largest pairs and sums, and in "entries" label, score and
    gate_logit. Several at one node follow each other in the order of the splits. Contributors that pruning
    removed are described in qk_only_nodes.
    """
    _check_slug(slug)
    _check_metadata(scan, info, feature_details)
    if not isinstance(supernodes, Mapping | None):
        raise TypeError(f"supernodes must map names to nodes, got {type(supernodes).__name__}")
    n_contributors = _check.integer(n_contributors, "n_contributors", 0)
    shown_graph = _pruned(graph, node_threshold, edge_threshold)
    metadata = _metadata(shown_graph, slug, scan, info, feature_details)
    nodes = node_entries(shown_graph)
    only = _add_splits(nodes, graph, shown_graph, n_contributors)
    data = {
        "metadata": metadata,
        "qParams": _parameters(graph, shown_graph, supernodes or {}, pinned, clicked),
        "nodes": nodes,
        "links": _links(shown_graph),
    }
    content = list(compact_json(data | ({"qk_only_nodes": only} if only else {})))
    folder = Path(_check.path(folder, "folder"))
    folder.mkdir(parents=True, exist_ok=True)
    entries = _other_entries(folder / METADATA_FILE, slug)
    path = folder / f"{slug}.json"
    write_atomic(path, content)
    write_atomic(folder / METADATA_FILE, compact_json({"graphs": [*entries, metadata]}))
    if (n_bytes := sum(map(len, content))) > warn_bytes:
        text = (
            f"{path.name} has {n_bytes / 2**20:,.1f} MiB, above {warn_bytes / 2**20:,.1f}; viewers may "
            "refuse it; lower node_threshold or edge_threshold"
        )
        warnings.warn(text, UserWarning, stacklevel=2)
    return path


def _pruned(graph: Graph, node_threshold: float | None, edge_threshold: float | None) -> Graph:
    if graph.pruned is not None or (node_threshold is None and edge_threshold is None):
        return graph
    return graph.prune(*(1.0 if value is None else value for value in (node_threshold, edge_threshold)))


def _check_slug(slug: str) -> None:
    if not isinstance(slug, str):
        raise TypeError(f"slug must be a string, got {type(slug).__name__}")
    if not _SLUG.fullmatch(slug) or slug == METADATA_FILE.removesuffix(".json"):
        text = "up to 100 letters, digits, '.', '_' and '-', the first a letter or digit"
        raise ValueError(f"slug must be a file name of {text}, got {slug!r:.60}")


def _check_metadata(scan: Any, info: Any, details: Any) -> None:
    if not isinstance(scan, str | None):
        raise TypeError(f"scan must be a string, got {type(scan).__name__}")
    for name, given, known in (("info", info, _INFO), ("feature_details", details, _DETAILS)):
        if not isinstance(given, Mapping | None):
            raise TypeError(f"{name} must be a mapping, got {type(given).__name__}")
        for key, value in (given or {}).items():
            if key not in known:
                raise ValueError(f"{name}: unknown name {key!r:.60}; choose from {', '.join(known)}")
            if not _is(value, known[key]):
                raise TypeError(f"{name}: {key} must be {known[key]}, got {value!r:.60}")


def _is(value: object, kind: str) -> bool:
    if kind == "a list of strings":
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    if kind == "a number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, str)


# ------------------------------------------------------------------------------------------- metadata


def _metadata(
    graph: Graph,
    slug: str,
    scan: str | None,
    info: Mapping[str, Any] | None,
    details: Mapping[str, str] | None,
) -> dict[str, Any]:
    settings = {
        name: graph.options[name]
        for name in ("max_n_logits", "desired_logit_prob", "max_feature_nodes")
        if graph.options.get(name) is not None
    }
    thresholds = dict(graph.pruned or {})
    data: dict[str, Any] = {
        "slug": slug,
        "scan": graph.scan if scan is None else scan,
        "transcoder_list": [graph.transcoders_name] if graph.transcoders_name else [],
        "prompt_tokens": list(graph.token_strings),
        "prompt": graph.prompt,
        "schema_version": SCHEMA_VERSION,
        "info": {"generator": {"name": "attnsparse", "version": __version__}, **(info or {})},
        "generation_settings": settings | {OWN: _own(graph)},
    }
    if "node_threshold" in thresholds:
        data["node_threshold"] = thresholds["node_threshold"]
    if thresholds:
        data["pruning_settings"] = thresholds
    if details:
        data["feature_details"] = dict(details)
    return data


def _own(graph: Graph) -> dict[str, Any]:
    closures = (graph.closure, graph.closure_absolute)
    return {
        "version": OWN_VERSION,
        "model_name": graph.model_name,
        "model_digest": graph.model_digest,
        "transcoders_name": graph.transcoders_name,
        "scan": graph.scan,
        "n_layer": graph.n_layer,
        "prepend_bos": graph.prepend_bos,
        "dtype": graph.weights.dtype.name,
        "closure": [value if np.isfinite(value) else None for value in closures],
        "pruned": graph.pruned is not None,
        "tokens": graph.tokens.tolist(),
        "options": dict(graph.options),
    }


def _other_entries(path: Path, slug: str) -> list[dict[str, Any]]:
    """The entries of graph-metadata.json for other graphs; FormatError header_value if it is not one."""
    try:
        raw = read_small(path, "max_graph_bytes")
    except FileNotFoundError:
        return []
    graphs = parse_object(raw, path).get("graphs")
    if not isinstance(graphs, list) or not all(isinstance(entry, dict) for entry in graphs):
        text = f"'graphs' must be a list of objects, got {shown(graphs)}; move the file away"
        raise file_error(FormatError, "header_value", path, text, field="graphs")
    return [entry for entry in graphs if entry.get("slug") != slug]


def _parameters(
    graph: Graph, kept: Graph, supernodes: Mapping[str, Nodes], pinned: Nodes, clicked: int | str | None
) -> dict[str, Any]:
    ids, left = graph.ids, set(kept.ids)
    groups = []
    for name, nodes in supernodes.items():
        if not isinstance(name, str):
            raise TypeError(f"names of supernodes must be strings, got {type(name).__name__}")
        members = [ids[i] for i in graph.nodes_of(nodes) if ids[i] in left]
        if not members:
            raise ValueError(f"supernode {name!r:.60}: pruning left none of its nodes; raise node_threshold")
        groups.append([name, *members])
    chosen = "" if clicked is None else ids[graph.node(clicked)]
    if chosen and chosen not in left:
        raise ValueError(f"clicked: pruning removed node {chosen!r}; raise node_threshold or choose another")
    wanted = [*(node for group in groups for node in group[1:]), *(ids[i] for i in graph.nodes_of(pinned))]
    return {
        "linkType": "both",
        "pinnedIds": [node for node in dict.fromkeys(wanted) if node in left],
        "clickedId": chosen,
        "supernodes": groups,
        "sg_pos": "",
    }


# ------------------------------------------------------------------------------------ nodes and links


def error_label(layer: int, has_transcoder: bool = True) -> str:
    """The name of an MLP's error, or of its output where nothing explains any of it."""
    return f"error of layer {layer}" if has_transcoder else f"MLP of layer {layer}, which has no transcoder"


def plain_label(layer: int, number: int) -> str:
    """The name of a feature without a label."""
    return f"feature {number} of layer {layer}"


def node_entries(graph: Graph) -> list[dict[str, Any]]:
    """The nodes as the format has them."""
    value, probability = (shortest(array) for array in (graph.value, graph.probability))
    influence = None if graph.influence is None else shortest(graph.influence)
    first_logit = int(graph.logits[0]) if len(graph.logits) else -1
    entries = []
    for i, (node_id, kind) in enumerate(zip(graph.ids, graph.kind)):
        entry = _place(graph, i, kind, node_id)
        known = probability[i] if kind == "logit" else 0.0
        p = 1.0 if known is None else known
        entry |= {"token_prob": p, "is_target_logit": i == first_logit, "run_idx": 0, "reverse_ctx_idx": 0}
        if influence is not None:
            entry["influence"] = influence[i]
        if kind in ("feature", "logit"):
            entry["activation"] = value[i]
        entries.append(entry)
    return entries


def _place(graph: Graph, i: int, kind: str, node_id: str) -> dict[str, Any]:
    """Id, place, type and label of a node."""
    layer, position, number = int(graph.layer[i]), int(graph.position[i]), int(graph.feature[i])
    n_tokens, label = len(graph.tokens), graph.labels[i]
    feature, row, script = number, "E", f"{node_id}-0"
    if kind == "feature":
        feature, row, script = cantor(layer, number), str(layer), f"{layer}_{number}-0"
        label = "" if label == plain_label(layer, number) else label
    elif kind == "error":
        row, script = str(layer), f"err_{layer}-{position}"
    elif kind == "token":
        feature, script = position, f"E_{number}-{position}"
    elif kind == "logit":
        row, script = str(graph.n_layer + 1), f"L_{number}-{position}"
        label = label if "(p=" in label else label + NO_PROBABILITY
    else:
        feature = n_tokens + position if kind == "position" else 2 * n_tokens + (kind == "other")
    return {
        "node_id": node_id,
        "feature": feature,
        "layer": row,
        "ctx_idx": max(position, 0),
        "feature_type": TYPES[kind],
        "jsNodeId": script,
        "clerp": label,
    }


def _links(graph: Graph) -> list[dict[str, Any]]:
    ids, target = graph.ids, np.repeat(np.arange(len(graph)), np.diff(graph.start))
    rows = zip(graph.source.tolist(), target.tolist(), shortest(graph.weights))
    return [{"source": ids[s], "target": ids[t], "weight": w} for s, t, w in rows]


# ------------------------------------------------------------------------------------ scores


def _add_splits(nodes: list[dict[str, Any]], whole: Graph, kept: Graph, n: int) -> dict[str, dict[str, Any]]:
    """Put the splits of the whole graph to the nodes of the pruned one; contributors that it lacks, by id."""
    if not whole.splits:
        return {}
    ids, left, described = whole.ids, set(kept.ids), node_entries(whole)
    only: dict[str, dict[str, Any]] = {}
    for split in whole.splits:
        at = _fed_most(split, whole, kept)
        if at is None:
            continue
        names = [ids[i] for i in split.nodes]
        found = _contributors(split, names, n)
        used = {name for rows in found.values() for row in rows for name in row[:-1]}
        for i in split.nodes:
            if ids[i] in used and ids[i] not in left:
                only[ids[i]] = described[i]
        entry = {"label": split.label, "layer": split.layer, "head": split.head, "query": split.query,
                 "key": split.key, "score": split.score}  # fmt: skip
        if np.isfinite(split.gate_logit):
            entry["gate_logit"] = split.gate_logit
        results = nodes[at].setdefault("qk_tracing_results", {name: [] for name in (*found, "entries")})
        for name, rows in found.items():
            results[name] += rows
        results["entries"].append(entry)
    return only


def _contributors(split: ScoreSplit, names: list[str], n: int) -> dict[str, list[list[Any]]]:
    """The n largest pairs, and sums over pairs of each side."""
    order = np.argsort(-np.abs(split.pairs), axis=None, kind="stable")
    pairs = [np.unravel_index(i, split.pairs.shape) for i in order[:n]]
    found = {
        "pair_wise_contributors": [
            [names[q], names[k], float(split.pairs[q, k])] for q, k in pairs if split.pairs[q, k] != 0
        ]
    }
    for side, name in ((1, "top_q_marginal_contributors"), (0, "top_k_marginal_contributors")):
        sums = split.pairs.sum(axis=side)
        largest = np.argsort(-np.abs(sums), kind="stable")[:n]
        found[name] = [[names[i], float(sums[i])] for i in largest if sums[i] != 0]
    return found


def _fed_most(split: ScoreSplit, whole: Graph, kept: Graph) -> int | None:
    """The node of `kept` that an attention entry carries most into."""
    targets = kept.targets
    rows = np.flatnonzero((kept.position[targets] == split.query) & (kept.layer[targets] >= split.layer))
    if not len(rows):
        return None
    if not whole.has_heads:
        logits = [int(i) for i in targets[rows] if kept.kind[i] == "logit"]
        return logits[0] if logits else int(targets[rows[0]])
    sources = np.flatnonzero(whole.position[: len(whole.carried)] == split.key)
    values = whole.carried[sources, split.layer, split.head].sum(axis=0, dtype=np.float64)
    effect = np.abs(kept.received[rows, split.layer, split.head] @ values)
    return int(targets[rows[int(np.argmax(effect))]])
