"""Circuits of nodes and neurons in the JSON of EAP-IG and MIB."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from ... import _check
from ...errors import quoted, raise_file_error
from ...io.atomic import write_atomic
from ...io.limits import Limits
from ...io.regular_file import read_small
from ...io.strict_json import parse_object, shown
from . import names
from .file import edge_places, exists

_SIDES = {"n_layers": (1, 512), "n_heads": (1, 1024), "d_model": (1, 65536)}


def write_json(
    path: str | os.PathLike[str], shape: names.Shape, d_model: int, scores: np.ndarray, mask: np.ndarray
) -> None:
    """Write a circuit as EAP-IG does: the component edges between nodes that have anything inside."""
    inside = np.asarray(mask.reshape(len(mask), -1).any(1))
    nodes: dict[str, Any] = {}
    for name, own, score, taken in zip(names.senders(shape), inside.tolist(), scores, mask):
        entry: dict[str, Any] = {"in_graph": own}
        if scores.ndim == 1:
            entry["score"] = float(score)
        else:
            entry |= {"neurons": taken.tolist(), "neurons_scores": score.tolist()}
        nodes[name] = entry
    linked = _links(shape, inside)
    edges = {name: {"score": 0.0, "in_graph": bool(linked[u, v])} for name, u, v in edge_places(shape)}
    config = {
        "n_layers": shape.n_layer,
        "n_heads": shape.n_head,
        "parallel_attn_mlp": False,
        "d_model": d_model,
    }
    data = {"cfg": config, "nodes": nodes | {"logits": {"in_graph": True}}, "edges": edges}
    write_atomic(_check.path(path), [json.dumps(data, allow_nan=False).encode()])


def _links(shape: names.Shape, inside: np.ndarray) -> np.ndarray:
    """Boolean [senders, receivers]: the component edges between nodes, and from them into the logits."""
    known = dict(zip(names.senders(shape), inside.tolist()))
    reads = [known.get(name.partition("<")[0], True) for name in names.receivers(shape)]
    links: np.ndarray = exists(shape) & np.logical_and.outer(inside, reads)
    return links


def read_json(path: str | os.PathLike[str], limits: Limits) -> dict[str, Any]:
    """Scores, the circuit and the sizes of a file of EAP-IG or MIB that scores neurons, or nodes."""
    label = _check.path(path)
    data = parse_object(read_small(label, "max_graph_bytes", limits=limits), label, limits=limits)
    for name in ("cfg", "nodes"):
        if not isinstance(data.get(name), dict):
            raise_file_error("value", label, f"'{name}' must be an object, got {shown(data.get(name))}", name)
    sides = {name: _side(data["cfg"].get(name), name, label) for name in _SIDES}
    if data["cfg"].get("parallel_attn_mlp"):
        text = "attention and MLPs side by side ('parallel_attn_mlp') are not GPT-2's"
        raise_file_error("value", label, text, "parallel_attn_mlp")
    shape = names.Shape(sides["n_layers"], sides["n_heads"])
    nodes = data["nodes"]
    n_senders = 1 + shape.n_layer * (shape.n_head + 1)
    known = set(names.senders(shape)) if n_senders <= len(nodes) + 1 else set()
    for name in known ^ (nodes.keys() - {"logits"}):
        text = f"{quoted(name)} is no node of this model" if name in nodes else f"{quoted(name)} has no entry"
        raise_file_error("value", label, text, name)
    if not known:
        raise_file_error("value", label, f"{len(nodes)} nodes are too few for {n_senders} senders", "nodes")
    of_neurons = any(isinstance(entry, dict) and "neurons_scores" in entry for entry in nodes.values())
    read = _neurons if of_neurons else _node
    found = [read(name, nodes[name], sides["d_model"], label) for name in names.senders(shape)]
    return {
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "d_model": sides["d_model"],
        "scores": np.array([score for score, _ in found], np.float64),
        "given": np.array([inside for _, inside in found], bool),
    }


def _side(value: Any, name: str, label: str) -> int:
    low, high = _SIDES[name]
    if type(value) is not int or not low <= value <= high:
        text = f"'{name}' must be an integer in {low}..{high}, got {shown(value)}"
        raise_file_error("value", label, text, name)
    return value


def _node(name: str, entry: Any, d_model: int, label: str) -> tuple[float, bool]:
    """Score and membership of a node."""
    del d_model
    told = entry if isinstance(entry, dict) else {}
    score, inside = told.get("score", ""), told.get("in_graph")
    if type(score) not in (int, float) or type(inside) is not bool:
        text = f"{quoted(name)} must have a number 'score' and a flag 'in_graph', got {shown(entry)}"
        raise_file_error("value", label, text, name)
    return float(score), inside


def _neurons(name: str, entry: Any, d_model: int, label: str) -> tuple[list[float], list[bool]]:
    """Scores and membership of the neurons of a node."""
    told = entry if isinstance(entry, dict) else {}
    scores, inside = told.get("neurons_scores", ""), told.get("neurons", "")
    good = isinstance(scores, list) and all(type(value) in (int, float) for value in scores)
    good = good and isinstance(inside, list) and all(value in (0, 1) for value in inside)
    if not good or not len(scores) == len(inside) == d_model:
        text = f"{quoted(name)} must have {d_model} numbers 'neurons_scores' and {d_model} flags 'neurons'"
        raise_file_error("value", label, text, name)
    return [float(value) for value in scores], [bool(value) for value in inside]
