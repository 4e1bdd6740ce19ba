"""Graphs in files: `path`.json with names and options, `path`.npz with the arrays; see io/paired_file.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from ..errors import raise_file_error
from ..io.folder_commit import read_whole
from ..io.limits import Limits
from ..io.paired_file import (
    Kind,
    Specs,
    check_choice,
    check_finite,
    check_integer,
    check_names,
    check_share,
    check_sides,
    check_text_list,
    check_texts,
    pair_paths,
    read_arrays,
    read_fields,
    save_pair,
)
from ..io.strict_json import shown
from .heads import ScoreSplit
from .select import KINDS

if TYPE_CHECKING:
    from .graph import Graph

VERSION = 1
KIND = Kind("graph", VERSION)

_TEXTS = ("model_name", "model_digest", "transcoders_name", "scan", "prompt")
_FIELDS = (
    *_TEXTS,
    "dtype",
    "token_strings",
    "prepend_bos",
    "n_layer",
    "n_head",
    "options",
    "labels",
    "pruned",
)
_THRESHOLDS = {"node_threshold", "edge_threshold"}
_DTYPES = {"float32": "<f4", "float64": "<f8"}

# name: (dtype, dimensions). n nodes, s = n + 1, m edges, T tokens, L layers, H heads, D head width, P placed
# sources, R targets, 2; of splits: N, their starts S = N + 1, nodes I and pairs J one after the other, 4.
_ARRAYS = {
    "tokens": ("<i4", "T"),
    "kind": ("<i4", "n"),
    "layer": ("<i4", "n"),
    "position": ("<i4", "n"),
    "feature": ("<i4", "n"),
    "value": ("real", "n"),
    "probability": ("real", "n"),
    "influence": ("real", "n"),
    "start": ("<i8", "s"),
    "source": ("<i4", "m"),
    "weight": ("real", "m"),
    "closure": ("<f8", "2"),
    "pattern": ("real", "LHTT"),
    "carried": ("real", "PLHD"),
    "received": ("real", "RLHD"),
    "received_alone": ("real", "RLHD"),
    "split_entries": ("<i4", "N4"),
    "split_scores": ("<f8", "N2"),
    "split_start": ("<i8", "S"),
    "split_nodes": ("<i8", "I"),
    "split_pairs": ("<f8", "J"),
}
_PLAIN = (
    "tokens", "layer", "position", "feature", "value", "probability", "start", "source", "pattern", "carried",
    "received", "received_alone",
)  # fmt: skip
_AS_THEY_ARE = (*_TEXTS, "prepend_bos", "n_layer", "n_head", "options", "pruned", "version")
_OF_HEADS = ("carried", "received", "received_alone")


def save_graph(graph: Graph, path: str | os.PathLike[str], *, heads: bool = True) -> None:
    """Write `path`.json (names and options) and `path`.npz (arrays), both or neither.

    `load_graph` reads them.

    Parameters
    ----------
    path : str or os.PathLike
        With or without .json or .npz.
    heads : bool, default True
        False leaves out the largest arrays, n L H D numbers, which `heads` computes with.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    graph = graph if _check.flag(heads, "heads") else graph.without_heads()
    dtype = graph.weights.dtype.name
    fields = {name: getattr(graph, name) for name in _FIELDS if hasattr(graph, name)}
    fields |= {"dtype": dtype, "options": dict(graph.options)}
    fields["pruned"] = None if graph.pruned is None else dict(graph.pruned)
    arrays = {name: getattr(graph, name) for name in _PLAIN} | {"weight": graph.weights}
    arrays["kind"] = [KINDS.index(kind) for kind in graph.kind]
    arrays["closure"] = [graph.closure, graph.closure_absolute]
    if graph.influence is not None:
        arrays["influence"] = graph.influence
    save_pair(
        path, KIND._replace(version=graph.version), fields, arrays | _split_arrays(graph), _specs(dtype)
    )


def _split_arrays(graph: Graph) -> dict[str, np.ndarray]:
    splits = graph.splits
    none = np.zeros(0)
    return {
        "split_entries": np.reshape([(s.layer, s.head, s.query, s.key) for s in splits], (-1, 4)),
        "split_scores": np.reshape([(s.score, s.gate_logit) for s in splits], (-1, 2)),
        "split_start": np.cumsum([0, *(len(s.nodes) for s in splits)]),
        "split_nodes": np.concatenate([none, *(s.nodes for s in splits)]),
        "split_pairs": np.concatenate([none, *(s.pairs.ravel() for s in splits)]),
    }


def _specs(dtype: str) -> Specs:
    return {
        name: (_DTYPES[dtype] if kind == "real" else kind, sides) for name, (kind, sides) in _ARRAYS.items()
    }


def read(path: str | os.PathLike[str], limits: Limits) -> dict[str, Any]:
    """The fields of the `Graph` that `save_graph` wrote; raises as `load_graph`."""
    json_path, npz_path = pair_paths(path)
    return read_whole(Path(json_path).parent, lambda: _read(json_path, npz_path, limits))


def _read(json_path: str, npz_path: str, limits: Limits) -> dict[str, Any]:
    data = read_fields(json_path, KIND, _FIELDS, limits)
    _check_fields(data, json_path)
    specs = _specs(data["dtype"])
    arrays = read_arrays(npz_path, KIND, data["arrays_sha256"], specs, limits, optional=("influence",))
    _check_arrays(arrays, data, specs, npz_path)
    return {
        **{name: data[name] for name in _AS_THEY_ARE},
        **{name: arrays[name] for name in _PLAIN},
        "weights": arrays["weight"],
        "token_strings": tuple(data["token_strings"]),
        "labels": tuple(data["labels"]),
        "kind": tuple(KINDS[code] for code in arrays["kind"].tolist()),
        "closure": float(arrays["closure"][0]),
        "closure_absolute": float(arrays["closure"][1]),
        "influence": arrays.get("influence"),
        "splits": _read_splits(arrays),
    }


def _read_splits(arrays: dict[str, np.ndarray]) -> tuple[ScoreSplit, ...]:
    splits, start, at = [], arrays["split_start"], 0
    entries, scores = arrays["split_entries"].tolist(), arrays["split_scores"].tolist()
    for i, ((layer, head, query, key), (score, gate_logit)) in enumerate(zip(entries, scores)):
        nodes = arrays["split_nodes"][start[i] : start[i + 1]].copy()
        p = len(nodes)
        pairs = arrays["split_pairs"][at : at + p * p].reshape(p, p).copy()
        splits.append(ScoreSplit(layer, head, query, key, score, gate_logit, nodes, pairs))
        at += p * p
    return tuple(splits)


# ------------------------------------------------------------------------------------------- checks


def _check_fields(data: dict[str, Any], path: str) -> None:
    check_texts(data, _TEXTS, path)
    check_choice("dtype", data["dtype"], tuple(_DTYPES), path)
    for name in ("token_strings", "labels"):
        check_text_list(data, name, path)
    if type(data["prepend_bos"]) is not bool:
        raise_file_error(
            "header_value",
            path,
            f"'prepend_bos' must be true or false, got {shown(data['prepend_bos'])}",
            "prepend_bos",
        )
    check_integer(data, "n_layer", 1, 2**20, path)
    check_integer(data, "n_head", 0, 2**20, path)
    if not isinstance(data["options"], dict):
        raise_file_error(
            "header_value", path, f"'options' must be an object, got {shown(data['options'])}", "options"
        )
    pruned = data["pruned"]
    if pruned is None:
        return
    if not isinstance(pruned, dict):
        raise_file_error(
            "header_value", path, f"'pruned' must be null or an object, got {shown(pruned)}", "pruned"
        )
    check_names(pruned, set(pruned) & _THRESHOLDS, "'pruned'", KIND, path)
    for name in pruned:
        check_share(pruned, name, path)


def _check_arrays(arrays: dict[str, np.ndarray], data: dict[str, Any], specs: Specs, path: str) -> None:
    """Check that the arrays fit each other and the names, and that nodes and edges make sense."""
    n, n_splits = len(arrays["kind"]), len(arrays["split_entries"])
    start = arrays["split_start"]
    if len(start) != n_splits + 1 or start[0] != 0 or (np.diff(start) < 0).any():
        raise_file_error(
            "value",
            path,
            "array 'split_start' must rise from 0, with one more number than there are splits",
            "split_start",
        )
    kind, carried = arrays["kind"], arrays["carried"]
    if n and (kind.min() < 0 or kind.max() >= len(KINDS) or (np.diff(kind) < 0).any()):
        raise_file_error("value", path, f"array 'kind' must rise within 0..{len(KINDS) - 1}", "kind")
    names = np.array(KINDS)[kind]
    sides = {
        "n": n, "s": n + 1, "m": len(arrays["source"]), "T": len(arrays["tokens"]), "L": data["n_layer"],
        "H": data["n_head"], "D": carried.shape[3], "P": int((kind < KINDS.index("bias")).sum()),
        "R": int(np.isin(names, ("feature", "logit")).sum()), "2": 2, "4": 4,
        "N": n_splits, "S": n_splits + 1, "I": int(start[-1]), "J": _n_pairs(start, path),
    }  # fmt: skip
    check_sides(arrays, specs, sides, path)
    for name, wanted in (("labels", n), ("token_strings", sides["T"])):
        if len(data[name]) != wanted:
            raise_file_error(
                "header_value", path, f"'{name}' has {len(data[name])} texts, {wanted} are needed", name
            )
    check_finite(arrays, ("weight", "pattern", *_OF_HEADS, "split_pairs"), path)
    if (arrays["closure"] < 0).any():
        raise_file_error("value", path, "array 'closure' has a negative number", "closure")
    if np.isinf(arrays.get("influence", arrays["weight"])).any():
        raise_file_error("value", path, "array 'influence' has an infinite number", "influence")
    check_nodes(arrays, names, data["n_layer"], path)
    check_edges(arrays, names, path)
    _check_splits(arrays, sides, path)


def _n_pairs(start: np.ndarray, path: str) -> int:
    if start[-1] >= 2**31:
        text = f"the splits have {int(start[-1]):,} nodes, at most {2**31 - 1:,} are read"
        raise_file_error("value", path, text, "split_start")
    return int((np.diff(start) ** 2).sum())


def check_nodes(arrays: dict[str, np.ndarray], kind: np.ndarray, n_layer: int, path: str | None) -> None:
    """Layers, positions and numbers that a node of its kind (text [n]) can have, and no node twice."""
    layer, position, feature = (arrays[name] for name in ("layer", "position", "feature"))
    n_tokens = len(arrays["tokens"])
    placed = ~np.isin(kind, ("bias", "other"))
    in_layer = np.isin(kind, ("feature", "error"))
    layers = np.where(kind == "logit", n_layer, -1)
    good = np.where(in_layer, (layer >= 0) & (layer < n_layer), layer == layers)
    good &= np.where(placed, (position >= 0) & (position < n_tokens), position == -1)
    good &= np.where(np.isin(kind, ("feature", "token")), feature >= 0, feature >= -1)
    if not good.all():
        i = int(np.argmin(good))
        place = f"layer {layer[i]}, position {position[i]}, number {feature[i]}"
        text = f"node {i} ({kind[i]}) has {place}, out of range for its kind"
        raise_file_error("value", path, text, "layer")
    rows = np.stack([np.unique(kind, return_inverse=True)[1].reshape(-1), layer, position, feature], axis=1)
    if len(np.unique(rows, axis=0)) != len(rows):
        raise_file_error("value", path, "a node occurs twice", "feature")
    known = np.isfinite(arrays["value"]) | np.isnan(arrays["value"])
    share = arrays["probability"]
    if not known.all() or ((share < 0) | (share > 1)).any():
        raise_file_error("value", path, "a value is infinite or a probability is outside 0..1", "value")


def check_edges(arrays: dict[str, np.ndarray], kind: np.ndarray, path: str | None) -> None:
    """Edges from nodes into features and logits, the sources of each in rising order."""
    start, source, n = arrays["start"], arrays["source"], len(kind)
    if start[0] != 0 or start[-1] != len(source) or (np.diff(start) < 0).any():
        raise_file_error(
            "value", path, f"array 'start' must rise from 0 to the number of edges, {len(source)}", "start"
        )
    counts = np.diff(start)
    target = np.repeat(np.arange(n), counts)
    if len(source) and (source.min() < 0 or source.max() >= n):
        raise_file_error("value", path, f"an edge comes from a node outside 0..{n - 1}", "source")
    if not np.isin(kind[target], ("feature", "logit")).all():
        raise_file_error("value", path, "an edge leads to a node that is no feature and no logit", "start")
    rising = (np.diff(source) > 0) | (np.diff(target) > 0)
    if not rising.all():
        raise_file_error("value", path, "the sources of a target are not in rising order", "source")


def _check_splits(arrays: dict[str, np.ndarray], sides: dict[str, int], path: str) -> None:
    entries, nodes = arrays["split_entries"], arrays["split_nodes"]
    most = np.array([sides["L"], sides["H"], sides["T"], sides["T"]])
    if (entries < 0).any() or (entries >= most).any() or (entries[:, 3] > entries[:, 2]).any():
        raise_file_error(
            "value", path, "a split is of an attention entry that does not exist", "split_entries"
        )
    if ((nodes < 0) | (nodes >= sides["n"])).any():
        raise_file_error("value", path, f"a split has a node outside 0..{sides['n'] - 1}", "split_nodes")
