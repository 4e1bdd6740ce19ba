"""The file of a graph: a bundle with names and options in its fields and the arrays as tensors.

Here is what the file must hold and the checks of it; a `Graph` is made of it in graph.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import raise_file_error
from ..io.bundle import Bundle, Schema, write_bundle
from ..io.bundle_fields import (
    Specs,
    check_choice,
    check_finite,
    check_flag,
    check_integer,
    check_names,
    check_object,
    check_share,
    check_sides,
    check_size,
    check_tensors,
    check_text_list,
    check_texts,
    stored,
)
from ..io.limits import Limits
from .heads import ScoreSplit
from .select import KINDS

VERSION = 1
SCHEMA = Schema("graph", VERSION, ".graph.safetensors")

_TEXTS = ("model_name", "model_digest", "transcoders_name", "scan", "prompt")
FIELDS = (
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
_DTYPES = {"float32": "F32", "float64": "F64"}

# name: (type, dimensions). n nodes, s = n + 1, m edges, T tokens, L layers, H heads, D head width, P placed
# sources, R targets, 2; of splits: N, their starts S = N + 1, nodes I and pairs J one after the other, 4.
ARRAYS = {
    "tokens": ("I32", "T"),
    "kind": ("I32", "n"),
    "layer": ("I32", "n"),
    "position": ("I32", "n"),
    "feature": ("I32", "n"),
    "value": ("real", "n"),
    "probability": ("real", "n"),
    "influence": ("real", "n"),
    "start": ("I64", "s"),
    "source": ("I32", "m"),
    "weight": ("real", "m"),
    "closure": ("F64", "2"),
    "pattern": ("real", "LHTT"),
    "carried": ("real", "PLHD"),
    "received": ("real", "RLHD"),
    "received_alone": ("real", "RLHD"),
    "split_entries": ("I32", "N4"),
    "split_scores": ("F64", "N2"),
    "split_start": ("I64", "S"),
    "split_nodes": ("I64", "I"),
    "split_pairs": ("F64", "J"),
}
_PLAIN = (
    "tokens", "layer", "position", "feature", "value", "probability", "start", "source", "pattern", "carried",
    "received", "received_alone",
)  # fmt: skip
_AS_THEY_ARE = (*_TEXTS, "prepend_bos", "n_layer", "n_head", "options", "pruned")
_OF_HEADS = ("carried", "received", "received_alone")


def write(path: str | os.PathLike[str], graph: Mapping[str, Any]) -> None:
    """Write the fields of a graph, by name."""
    fields = {name: graph[name] for name in FIELDS if name in graph}
    fields |= {"dtype": graph["weights"].dtype.name, "options": dict(graph["options"])}
    fields["pruned"] = None if graph["pruned"] is None else dict(graph["pruned"])
    arrays = {name: graph[name] for name in _PLAIN} | {"weight": graph["weights"]}
    arrays["kind"] = [KINDS.index(kind) for kind in graph["kind"]]
    arrays["closure"] = [graph["closure"], graph["closure_absolute"]]
    if graph["influence"] is not None:
        arrays["influence"] = graph["influence"]
    arrays |= _split_arrays(graph["splits"])
    schema = SCHEMA._replace(version=graph["version"])
    write_bundle(path, schema, fields, stored(arrays, _specs(fields["dtype"])))


def _split_arrays(splits: Sequence[ScoreSplit]) -> dict[str, np.ndarray]:
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
        name: (_DTYPES[dtype] if kind == "real" else kind, sides) for name, (kind, sides) in ARRAYS.items()
    }


def read(path: str | os.PathLike[str], limits: Limits) -> dict[str, Any]:
    """The fields of a graph, by name, checked; raises as `load_graph`."""
    with Bundle(path, SCHEMA, limits=limits) as bundle:
        check_size(bundle, limits)
        data = bundle.fields
        _check_fields(data, bundle.path)
        specs = _specs(data["dtype"])
        check_tensors(bundle, specs, optional=("influence",))
        arrays = bundle.read_all()
        _check_arrays(arrays, data, specs, bundle.path)
    return {
        **{name: data[name] for name in _AS_THEY_ARE},
        "version": bundle.version,
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
    check_names(data, set(FIELDS), "the file", path)
    check_texts(data, _TEXTS, path)
    check_choice(data, "dtype", tuple(_DTYPES), path)
    for name in ("token_strings", "labels"):
        check_text_list(data, name, path)
    check_flag(data, "prepend_bos", path)
    check_integer(data, "n_layer", 1, 2**20, path)
    check_integer(data, "n_head", 0, 2**20, path)
    check_object(data, "options", path)
    check_object(data, "pruned", path, optional=True)
    pruned = data["pruned"] or {}
    check_names(pruned, set(pruned) & _THRESHOLDS, "'pruned'", path)
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
            "tensor 'split_start' must rise from 0, with one more number than there are splits",
            "split_start",
        )
    kind, carried = arrays["kind"], arrays["carried"]
    if n and (kind.min() < 0 or kind.max() >= len(KINDS) or (np.diff(kind) < 0).any()):
        raise_file_error("value", path, f"tensor 'kind' must rise within 0..{len(KINDS) - 1}", "kind")
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
        raise_file_error("value", path, "tensor 'closure' has a negative number", "closure")
    if np.isinf(arrays.get("influence", arrays["weight"])).any():
        raise_file_error("value", path, "tensor 'influence' has an infinite number", "influence")
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
