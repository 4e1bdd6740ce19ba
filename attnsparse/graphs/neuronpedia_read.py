"""Reads the graph JSON of circuit-tracer (from 0.1 on), of Neuronpedia and of `Graph.to_neuronpedia`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _check
from ..errors import quoted, raise_file_error
from ..io.limits import Limits
from ..io.regular_file import read_small
from ..io.strict_json import parse_object, shown
from ..items import cantor
from .graph import Graph
from .graph_file import check_edges, check_nodes
from .neuronpedia_write import NO_PROBABILITY, OWN, OWN_VERSION, error_label, plain_label
from .select import KINDS

GRAPH_LIMITS = Limits(max_json_values=8_000_000)  # what links of max_graph_bytes have

_KINDS = {
    "cross layer transcoder": "feature",
    "mlp reconstruction error": "error",
    "embedding": "token",
    "logit": "logit",
}
_NUMBER = r"(0|[1-9][0-9]{0,8})"
_FEATURE = re.compile(f"{_NUMBER}_{_NUMBER}_{_NUMBER}")
_ERRORS = tuple(
    re.compile(form.replace("N", _NUMBER)) for form in ("err_N_N", "N_-1_N", "0_N_N", "N_error_mlp_N")
)
_TOKEN = re.compile(f"E_{_NUMBER}_{_NUMBER}")
_POSITION = re.compile(f"P_{_NUMBER}")
_PROBABILITY = re.compile(r"\(p=([0-9.]{1,20})\)")
_BOS = ("<bos>", "<s>", "<|endoftext|>", "<|begin_of_text|>")
MAX_LAYERS, MAX_TOKENS = 4096, 2**20  # of a graph JSON
_DIGITS = range(1, 10)  # of a feature number in circuit-tracer 0.1
_NODE_FIELDS: dict[str, tuple[type, ...]] = {
    "node_id": (str,),
    "feature": (int, type(None)),
    "layer": (str, int),
    "ctx_idx": (int,),
    "feature_type": (str,),
    "jsNodeId": (str,),
    "clerp": (str,),
}
_NUMBERS = ("influence", "activation", "token_prob")
_OWN_FIELDS: dict[str, type] = {
    "model_name": str, "model_digest": str, "transcoders_name": str, "scan": str, "n_layer": int,
    "prepend_bos": bool, "dtype": str, "closure": list, "pruned": bool, "tokens": list, "options": dict,
}  # fmt: skip


class _Node(NamedTuple):
    kind: int  # place in KINDS
    layer: int
    position: int
    number: int
    place: int  # in the file
    label: str
    value: float
    probability: float
    influence: float


def read_graph_json(path: str | os.PathLike[str], *, limits: Limits = GRAPH_LIMITS) -> Graph:
    """The graph in a JSON of circuit-tracer, Neuronpedia or `Graph.to_neuronpedia`.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    limits : Limits, optional
        The largest file that is read.

    Returns
    -------
    Graph
        With the nodes, links, labels, activations, probabilities and influence of the file. The format has no
        heads, so `heads` raises ValueError, and no model, so `score_pairs` and `check` do; the splits of
        scores are not read, because the file holds only their largest parts. Fields that a file of another
        tool lacks are empty or NaN; the number of layers is one less than the logits' layer; prepend_bos is
        true if the first token is one of the usual BOS tokens, or not in the prompt.

    Raises
    ------
    OSError
        If the file cannot be read.
    FormatError
        With a code: json_* and duplicate_name for the JSON; header_value for its metadata; node and link for
        something else in their place, with the field "nodes[3]"; value for nodes and links that make no
        sense.
    LimitError
        Above one of `limits`.

    Notes
    -----
    Ids of features and logits are "{layer}_{number}_{position}", of tokens "E_{id}_{position}"; of errors
    "err_{layer}_{position}", circuit-tracer's "{layer}_-1_{position}" or its other "0_{layer}_{position}",
    or "{layer}_error_mlp_{position}". In the latter of circuit-tracer's styles an error can have the id of a
    feature; if both are there, their links cannot be told apart and the file is refused (duplicate_name).
    """
    name = _check.path(path)
    raw = read_small(name, "max_graph_bytes", limits=limits, code="graph_limit")
    data = parse_object(raw, name, limits=limits)
    for field, kind in (("metadata", dict), ("qParams", dict), ("nodes", list), ("links", list)):
        if not isinstance(data.get(field), kind):
            wanted = "an object" if kind is dict else "a list"
            raise_file_error(
                "header_value", name, f"'{field}' must be {wanted}, got {shown(data.get(field))}", field
            )
    metadata = data["metadata"]
    _check_metadata(metadata, name)
    own = _own_fields(metadata, name)
    strings = tuple(metadata["prompt_tokens"])
    n_layer = own["n_layer"] if own else _count_layers(data["nodes"], name)
    found = [_node(entry, i, strings, n_layer, name) for i, entry in enumerate(data["nodes"])]
    order = sorted(range(len(found)), key=lambda i: _key(found[i]))
    place = _places(data["nodes"], order, name)
    nodes = [found[i] for i in order]
    arrays = _node_arrays(nodes, own, len(strings), name)
    arrays |= _edges(data["links"], place, len(nodes), arrays["value"].dtype, name)
    kinds = np.array([KINDS[node.kind] for node in nodes], dtype=object).astype(str)
    check_nodes(arrays, kinds, n_layer, name)
    check_edges(arrays, kinds, name)
    return _graph(metadata, own, nodes, arrays, n_layer)


# ------------------------------------------------------------------------------------------- metadata


def _check_metadata(metadata: dict[str, Any], path: str) -> None:
    for field in ("slug", "scan", "prompt"):
        if not isinstance(metadata.get(field), str):
            text = f"metadata '{field}' must be a string, got {shown(metadata.get(field))}"
            raise_file_error("header_value", path, text, field)
    tokens = metadata.get("prompt_tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise_file_error(
            "header_value", path, "metadata 'prompt_tokens' must be a list of strings", "prompt_tokens"
        )
    if len(tokens) > MAX_TOKENS:
        text = f"metadata 'prompt_tokens' has {len(tokens):,} tokens, a graph has at most {MAX_TOKENS:,}"
        raise_file_error("header_value", path, text, "prompt_tokens")
    names = metadata.get("transcoder_list")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        text = f"metadata 'transcoder_list' must be a list of strings, got {shown(names)}"
        raise_file_error("header_value", path, text, "transcoder_list")
    for field in ("generation_settings", "pruning_settings"):
        if not isinstance(metadata.get(field, {}), dict):
            text = f"metadata '{field}' must be an object, got {shown(metadata[field])}"
            raise_file_error("header_value", path, text, field)
    thresholds = metadata.get("pruning_settings", {}) | {"of viewers": metadata.get("node_threshold")}
    for field, value in thresholds.items():
        if value is not None and (type(value) not in (int, float) or not 0 <= value <= 1):
            text = f"metadata threshold {quoted(field)} must be a number in 0..1, got {shown(value)}"
            raise_file_error("header_value", path, text, "pruning_settings")


def _own_fields(metadata: dict[str, Any], path: str) -> dict[str, Any] | None:
    """What `Graph.to_neuronpedia` adds; None in a file of another tool."""
    own: dict[str, Any] | None = metadata.get("generation_settings", {}).get(OWN)
    if own is None:
        return None
    version = own.get("version") if isinstance(own, dict) else None
    if type(version) is not int or version < 1:
        raise_file_error("version", path, f"'{OWN}' in generation_settings has no version", OWN)
    if version > OWN_VERSION:
        text = f"from a newer attnsparse: graph JSON version {version}, this one reads up to {OWN_VERSION}"
        raise_file_error("version", path, f"{text}; update", OWN)
    for field, kind in _OWN_FIELDS.items():
        if type(own.get(field)) is not kind:
            raise_file_error(
                "header_value",
                path,
                f"'{OWN}' has {field}={shown(own.get(field))}, expected {_wanted((kind,))}",
                field,
            )
    good = own["n_layer"] in range(1, MAX_LAYERS + 1) and own["dtype"] in ("float32", "float64")
    good = good and len(own["tokens"]) == len(metadata["prompt_tokens"]) and len(own["closure"]) == 2
    good = good and all(type(token) is int and 0 <= token < 2**31 for token in own["tokens"])
    closures = own["closure"]
    if not good or not all(x is None or (type(x) in (int, float) and x >= 0) for x in closures):
        raise_file_error("header_value", path, f"'{OWN}' has a value out of range", OWN)
    return own


def _count_layers(nodes: Sequence[Any], path: str) -> int:
    """Layers of the model: one less than the logits' layer, or all that features and errors are in."""
    layers: dict[bool, list[int]] = {True: [], False: []}
    for node in nodes:
        if isinstance(node, dict) and re.fullmatch("[0-9]{1,6}", str(node.get("layer"))):
            layers[node.get("feature_type") == "logit"].append(int(node["layer"]))
    n_layer = max(max(layers[True]) - 1 if layers[True] else max(layers[False], default=0) + 1, 1)
    if n_layer > MAX_LAYERS:
        text = f"its nodes are in {n_layer:,} layers, a graph has at most {MAX_LAYERS:,}"
        raise_file_error("header_value", path, text, "layer")
    return n_layer


# ------------------------------------------------------------------------------------------- nodes


def _node(entry: Any, i: int, strings: Sequence[str], n_layer: int, path: str) -> _Node:
    field = f"nodes[{i}]"
    if not isinstance(entry, dict):
        raise_file_error("node", path, f"{field} must be an object, got {shown(entry)}", field)
    for name, kinds in _NODE_FIELDS.items():
        if name not in entry or type(entry[name]) not in kinds:
            got = shown(entry[name]) if name in entry else "nothing"
            raise_file_error("node", path, f"{field}: '{name}' must be {_wanted(kinds)}, got {got}", field)
    for name in _NUMBERS:
        if type(entry.get(name)) not in (int, float, type(None)):
            raise_file_error(
                "node", path, f"{field}: '{name}' must be a number or null, got {shown(entry[name])}", field
            )
    kind, layer, position, number = _place(entry, field, path)
    if entry["ctx_idx"] not in range(len(strings)):
        text = f"{field}: ctx_idx {entry['ctx_idx']} is not one of the {len(strings)} positions of the prompt"
        raise_file_error("node", path, text, field)
    value, probability, influence = np.nan, np.nan, _float(entry.get("influence"))
    if kind in ("feature", "logit"):
        value = _float(entry.get("activation"))
    if kind == "logit":
        probability, layer = _probability(entry, number), n_layer
    label = _label(entry["clerp"], kind, layer, number, strings[entry["ctx_idx"]])
    return _Node(KINDS.index(kind), layer, position, number, i, label, value, probability, influence)


def _wanted(kinds: tuple[type, ...]) -> str:
    words = {
        str: "a string", int: "an integer", type(None): "null", bool: "true or false", list: "a list",
        dict: "an object",
    }  # fmt: skip
    return " or ".join(words[kind] for kind in kinds)


def _float(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _place(entry: dict[str, Any], field: str, path: str) -> tuple[str, int, int, int]:
    """(kind, layer, position, number) by id, checked against the other fields."""
    node_id, layer, position = entry["node_id"], str(entry["layer"]), entry["ctx_idx"]
    if entry["feature_type"] in ("bias", "unknown"):
        match = _POSITION.fullmatch(node_id)
        if match and int(match[1]) == position:
            return "position", -1, position, -1
        if node_id in ("bias", "other"):
            return node_id, -1, -1, -1
    kind = _KINDS.get(entry["feature_type"])
    if kind is None:
        text = f"{field} {quoted(node_id)} has feature_type {quoted(entry['feature_type'])}, expected one of"
        raise_file_error("node", path, f"{text} {', '.join(_KINDS)}", field)
    found = _layer_and_number(kind, node_id, layer, str(position), entry["feature"])
    if found is None:
        text = (
            f"{field}: id {quoted(node_id)} does not fit feature_type {quoted(entry['feature_type'])}, layer "
        )
        text += f"{quoted(layer)}, ctx_idx {position} and feature {shown(entry['feature'])}"
        raise_file_error("node", path, text, field)
    return kind, found[0], position, found[1]


def _layer_and_number(
    kind: str, node_id: str, layer: str, position: str, feature: int | None
) -> tuple[int, int] | None:
    """What an id says, or None if it does not fit the rest."""
    if kind == "logit" and node_id == "logit_diff":
        return 0, -1
    if kind == "error":
        matches = (form.fullmatch(node_id) for form in _ERRORS)
        good = any(match and match.groups() == (layer, position) for match in matches)
        return (int(layer), -1) if good else None
    if kind == "token":
        match = _TOKEN.fullmatch(node_id)
        return (-1, int(match[1])) if match and match[2] == position else None
    match = _FEATURE.fullmatch(node_id)
    if not match or (match[1], match[3]) != (layer, position):
        return None
    number = int(match[2])
    good = kind == "logit" or _is_number_of(feature, int(layer), number)
    return (int(layer), number) if good else None


def _is_number_of(feature: int | None, layer: int, number: int) -> bool:
    """Whether `feature` is one of the ways to write (layer, number)."""
    if feature is None or feature in (cantor(layer, number), number):
        return True
    return any(feature == layer * 10**k + number and number < 10**k for k in _DIGITS)


def _probability(entry: dict[str, Any], token: int) -> float:
    if token < 0:
        return np.nan
    if entry.get("token_prob") is not None:
        return float(entry["token_prob"])
    match = _PROBABILITY.search(entry["clerp"])
    try:
        return np.nan if match is None else float(match[1])
    except ValueError:
        return np.nan


def _label(clerp: str, kind: str, layer: int, number: int, token: str) -> str:
    if kind == "logit" and number < 0:
        return clerp.removesuffix(NO_PROBABILITY)
    if clerp:
        return clerp
    plain = {"feature": plain_label(layer, number), "error": error_label(layer)}
    return plain.get(kind, f"token {token!r}" if kind == "token" else kind)


def _key(node: _Node) -> tuple[int, ...]:
    """Sorts nodes as `Graph` has them; logits stay in the file's order."""
    if KINDS[node.kind] == "logit":
        return node.kind, 0, 0, 0, node.place
    return node.kind, node.layer, node.position, node.number, node.place


def _places(entries: Sequence[dict[str, Any]], order: Sequence[int], path: str) -> dict[str, int]:
    place: dict[str, int] = {}
    for number, i in enumerate(order):
        node_id = entries[i]["node_id"]
        if node_id in place:
            first = entries[order[place[node_id]]]
            text = f"duplicate node id {quoted(node_id)}"
            if first["feature_type"] != entries[i]["feature_type"]:
                text += (
                    f", {quoted(first['feature_type'])} and {quoted(entries[i]['feature_type'])}, because "
                    "circuit-tracer calls errors like features of layer 0; their links cannot be told apart: "
                    "write the graph with another node_threshold"
                )
            raise_file_error("duplicate_name", path, text, f"nodes[{i}]")
        place[node_id] = number
    return place


def _node_arrays(
    nodes: Sequence[_Node], own: dict[str, Any] | None, t: int, path: str
) -> dict[str, np.ndarray]:
    real = np.dtype(own["dtype"] if own else "float32")
    arrays = {
        "layer": np.array([node.layer for node in nodes], np.int32),
        "position": np.array([node.position for node in nodes], np.int32),
        "feature": np.array([node.number for node in nodes], np.int32),
    }
    with np.errstate(over="ignore"):
        for name in ("value", "probability", "influence"):
            arrays[name] = np.array([getattr(node, name) for node in nodes], np.float64).astype(real)
    if np.isinf(arrays["influence"]).any():
        raise_file_error("value", path, "an influence is too large", "influence")
    tokens = np.full(t, -1, np.int32)
    if own:
        tokens[:] = own["tokens"]
    for node in nodes:
        if KINDS[node.kind] == "token":
            tokens[node.position] = node.number
    return arrays | {"tokens": tokens}


# ------------------------------------------------------------------------------------------- links


def _edges(
    links: Sequence[Any], place: dict[str, int], n: int, real: np.dtype, path: str
) -> dict[str, np.ndarray]:
    source, target = np.empty((2, len(links)), np.int64)
    weight = np.empty(len(links))
    for i, link in enumerate(links):
        if not isinstance(link, dict) or type(link.get("weight")) not in (int, float):
            raise_file_error(
                "link", path, f"links[{i}] must have source, target and a number as weight", f"links[{i}]"
            )
        for name, ends in (("source", source), ("target", target)):
            end = link.get(name)
            if not isinstance(end, str) or end not in place:
                raise_file_error("link", path, f"links[{i}]: unknown {name} node {shown(end)}", f"links[{i}]")
            ends[i] = place[end]
        weight[i] = link["weight"]
    with np.errstate(over="ignore"):
        weight = weight.astype(real)
    if not np.isfinite(weight).all():
        i = int(np.argmin(np.isfinite(weight)))
        raise_file_error(
            "link", path, f"links[{i}]: weight {shown(links[i]['weight'])} is too large", f"links[{i}]"
        )
    order = np.lexsort((source, target))
    same = (np.diff(source[order]) == 0) & (np.diff(target[order]) == 0)
    if same.any():
        i = int(order[1:][same][0])
        raise_file_error("link", path, f"links[{i}]: a second link between the same two nodes", f"links[{i}]")
    return {
        "start": np.concatenate([[0], np.cumsum(np.bincount(target, minlength=n))]).astype(np.int64),
        "source": source[order].astype(np.int32),
        "weight": weight[order],
    }


def _without_bos(metadata: dict[str, Any]) -> tuple[str, bool]:
    """The prompt without the text of a BOS token, and whether one was put before it."""
    prompt, (first, *others) = metadata["prompt"], metadata["prompt_tokens"]
    if first in _BOS:
        return prompt.removeprefix(first), True
    outside = not prompt.startswith(first) and bool(others) and prompt.startswith(others[0])
    return prompt, outside and bool(others[0])


def _graph(
    metadata: dict[str, Any],
    own: dict[str, Any] | None,
    nodes: Sequence[_Node],
    arrays: dict[str, np.ndarray],
    n_layer: int,
) -> Graph:
    kind = tuple(KINDS[node.kind] for node in nodes)
    t, real = len(arrays["tokens"]), arrays["weight"].dtype
    n_placed = sum(k in ("feature", "error", "token", "position") for k in kind)
    n_targets = sum(k in ("feature", "logit") for k in kind)
    influence = arrays["influence"]
    pruned = {name: float(value) for name, value in metadata.get("pruning_settings", {}).items()
              if name in ("node_threshold", "edge_threshold") and value is not None}  # fmt: skip
    if metadata.get("node_threshold") is not None:
        pruned.setdefault("node_threshold", float(metadata["node_threshold"]))
    names = metadata.get("transcoder_list") or ()
    closure = [np.nan if value is None else float(value) for value in own["closure"]] if own else [np.nan] * 2
    prompt, prepend_bos = (metadata["prompt"], own["prepend_bos"]) if own else _without_bos(metadata)
    return Graph(
        model_name=own["model_name"] if own else "",
        model_digest=own["model_digest"] if own else "",
        transcoders_name=own["transcoders_name"] if own else ", ".join(names),
        scan=own["scan"] if own else metadata["scan"],
        prompt=prompt,
        token_strings=tuple(metadata["prompt_tokens"]),
        prepend_bos=prepend_bos,
        n_layer=n_layer,
        n_head=0,
        options=own["options"] if own else metadata.get("generation_settings", {}),
        kind=kind,
        labels=tuple(node.label for node in nodes),
        closure=closure[0],
        closure_absolute=closure[1],
        pattern=np.zeros((n_layer, 0, t, t), real),
        carried=np.zeros((n_placed, n_layer, 0, 0), real),
        received=np.zeros((n_targets, n_layer, 0, 0), real),
        received_alone=np.zeros((n_targets, n_layer, 0, 0), real),
        tokens=arrays["tokens"],
        layer=arrays["layer"],
        position=arrays["position"],
        feature=arrays["feature"],
        value=arrays["value"],
        probability=arrays["probability"],
        start=arrays["start"],
        source=arrays["source"],
        weights=arrays["weight"],
        influence=None if np.isnan(influence).all() else influence,
        pruned=pruned if own is None or own["pruned"] else None,
    )
