"""Files of circuits of component edges: our own, and the JSON of EAP-IG and MIB."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ... import _check
from ...errors import quoted, raise_file_error
from ...io.bundle import Bundle, Schema, write_bundle
from ...io.bundle_fields import (
    Specs,
    check_choice,
    check_finite,
    check_integer,
    check_names,
    check_sides,
    check_size,
    check_tensors,
    check_text_list,
    check_texts,
    stored,
)
from ...io.limits import Limits
from ...io.regular_file import read_small
from ...io.strict_json import parse_object, shown
from . import names

VERSION = 1
SCHEMA = Schema("component circuit", VERSION, ".component-circuit.safetensors")
ARRAYS: Specs = {"scores": ("F64", "SR"), "given": ("I32", "SR")}  # given: 0 x 0 if there is none
JSON_LIMITS = Limits(max_json_values=8_000_000)
_TEXTS = ("method", "model", "task")
_SIDES = {"n_layer": (1, 512), "n_head": (1, 1024), "d_model": (1, 65536)}
_FIELDS = {*_TEXTS, *_SIDES, "select", "rank_by", "prompts"}
_LETTERS = "qkv"


def exists(shape: names.Shape) -> np.ndarray:
    """Boolean [senders, receivers]: whether there is such a component edge."""
    width = shape.n_head + 1
    before = []
    for layer in range(shape.n_layer):
        before += [1 + layer * width] * (3 * shape.n_head) + [(layer + 1) * width]
    n_senders = 1 + shape.n_layer * width
    real: np.ndarray = np.less.outer(np.arange(n_senders), [*before, n_senders])
    return real


def write(path: str | os.PathLike[str], fields: Mapping[str, Any]) -> None:
    """Write the fields of a circuit, by name."""
    given = np.zeros((0, 0), np.int32) if fields["given"] is None else fields["given"].astype(np.int32)
    told = {name: fields[name] for name in sorted(_FIELDS)} | {"prompts": list(fields["prompts"])}
    write_bundle(path, SCHEMA, told, stored({"scores": fields["scores"], "given": given}, ARRAYS))


def read(path: str | os.PathLike[str], limits: Limits) -> dict[str, Any]:
    """The fields of a circuit, by name, checked."""
    with Bundle(path, SCHEMA, limits=limits) as bundle:
        check_size(bundle, limits)
        data = bundle.fields
        check_names(data, _FIELDS, "the file", bundle.path)
        check_texts(data, _TEXTS, bundle.path)
        check_text_list(data, "prompts", bundle.path)
        for name, (low, high) in _SIDES.items():
            check_integer(data, name, low, high, bundle.path)
        check_choice(data, "select", names.SELECTIONS, bundle.path)
        check_choice(data, "rank_by", ("absolute", "signed"), bundle.path)
        check_tensors(bundle, ARRAYS)
        arrays = bundle.read_all()
        real = exists(names.Shape(data["n_layer"], data["n_head"]))
        check_sides(
            {"scores": arrays["scores"]}, ARRAYS, {"S": real.shape[0], "R": real.shape[1]}, bundle.path
        )
        check_finite(arrays, ("scores",), bundle.path)
        given = arrays.pop("given")
        if given.size and (
            given.shape != real.shape or not np.isin(given, (0, 1)).all() or given[~real].any()
        ):
            raise_file_error(
                "value", bundle.path, "'given' is no set of component edges of this model", "given"
            )
        if arrays["scores"][~real].any():
            raise_file_error(
                "value", bundle.path, "there is a score where there is no component edge", "scores"
            )
        data["prompts"] = tuple(data["prompts"])
        return {**data, **arrays, "given": given.astype(bool) if given.size else None}


# --------------------------------------------------------------------------------------- EAP-IG and MIB


def edge_places(shape: names.Shape) -> Iterator[tuple[str, int, int]]:
    """Name, sender and receiver of all component edges, in the order in which EAP-IG writes them."""
    senders = names.senders(shape)
    n_receivers = shape.n_layer * (3 * shape.n_head + 1) + 1
    for layer in range(shape.n_layer):
        first, mlp = layer * (3 * shape.n_head + 1), (layer + 1) * (3 * shape.n_head + 1) - 1
        before = 1 + layer * (shape.n_head + 1)
        for place, sender in enumerate(senders[:before]):
            for head in range(shape.n_head):
                for number, letter in enumerate(_LETTERS):
                    receiver = first + number * shape.n_head + head
                    yield f"{sender}->a{layer}.h{head}<{letter}>", place, receiver
        for place, sender in enumerate(senders[: before + shape.n_head]):
            yield f"{sender}->m{layer}", place, mlp
    for place, sender in enumerate(senders):
        yield f"{sender}->logits", place, n_receivers - 1


def json_bytes(
    shape: names.Shape,
    d_model: int,
    scores: np.ndarray,
    mask: np.ndarray,
    nodes: Mapping[str, Mapping[str, Any]] | None = None,
) -> bytes:
    """A circuit as EAP-IG writes it; a node is in it if a component edge goes out of it.

    nodes: what is told of a node besides, by its name.
    """
    senders = names.senders(shape)
    told = nodes or {}
    sends = zip(senders, np.any(mask, axis=1).tolist())
    inside = {name: {"in_graph": bool(send), **told.get(name, {})} for name, send in sends}
    edges = {
        name: {"score": float(scores[u, v]), "in_graph": bool(mask[u, v])}
        for name, u, v in edge_places(shape)
    }
    data = {
        "cfg": config(shape, d_model), "nodes": inside | {"logits": {"in_graph": True}}, "edges": edges
    }  # fmt: skip
    return json.dumps(data, allow_nan=False).encode()


def config(shape: names.Shape, d_model: int) -> dict[str, Any]:
    """The sizes of a model under EAP-IG's names."""
    return {
        "n_layers": shape.n_layer,
        "n_heads": shape.n_head,
        "parallel_attn_mlp": False,
        "d_model": d_model,
    }


def read_json(path: str | os.PathLike[str], limits: Limits) -> dict[str, Any]:
    """Scores, the set of component edges and the sizes of a circuit of EAP-IG or MIB.

    Edges that are not listed score 0 and are outside; so are scores that are not listed, as in MIB's files of
    membership alone.
    """
    label = _check.path(path)
    data = parse_object(read_small(label, "max_graph_bytes", limits=limits), label, limits=limits)
    for name in ("cfg", "edges"):
        if not isinstance(data.get(name), dict):
            raise_file_error("value", label, f"'{name}' must be an object, got {shown(data.get(name))}", name)
    edges, sides = data["edges"], checked_sides(data["cfg"], label)
    shape = names.Shape(sides["n_layer"], sides["n_head"])
    n_senders = 1 + shape.n_layer * (shape.n_head + 1)
    if n_senders * n_senders > limits.max_json_values:
        raise_file_error(
            "value", label, f"{len(edges)} component edges are too few for {n_senders} senders", "edges"
        )
    scores, given = np.zeros(exists(shape).shape), np.zeros(exists(shape).shape, bool)
    known = {name: (u, v) for name, u, v in edge_places(shape)}
    for name, entry in edges.items():
        place = known.get(name)
        if place is None:
            raise_file_error("value", label, f"{quoted(name)} is no component edge of this model", name)
        scores[place], given[place] = _entry(name, entry, label)
    return {**sides, "scores": scores, "given": given}


def checked_sides(config: Mapping[str, Any], label: str) -> dict[str, int]:
    """The sizes in a config of EAP-IG, under our names."""
    sides = {}
    for name, own in (("n_layers", "n_layer"), ("n_heads", "n_head"), ("d_model", "d_model")):
        low, high = _SIDES[own]
        value = config.get(name)
        if type(value) is not int or not low <= value <= high:
            text = f"'{name}' must be an integer in {low}..{high}, got {shown(value)}"
            raise_file_error("value", label, text, name)
        sides[own] = value
    if config.get("parallel_attn_mlp"):
        text = "attention and MLPs side by side ('parallel_attn_mlp') are not GPT-2's"
        raise_file_error("value", label, text, "parallel_attn_mlp")
    return sides


def _entry(name: str, entry: Any, label: str) -> tuple[float, bool]:
    """Score and membership of one component edge."""
    if not isinstance(entry, dict):
        raise_file_error("value", label, f"{quoted(name)} must be an object, got {shown(entry)}", name)
    score, inside = entry.get("score", 0.0), entry.get("in_graph", False)
    if type(score) not in (int, float) or type(inside) is not bool:
        text = f"{quoted(name)} must have a number 'score' and a flag 'in_graph', got {shown(entry)}"
        raise_file_error("value", label, text, name)
    return float(score), inside
