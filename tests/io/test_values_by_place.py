"""Every place of a document that is read, with every value that it should not hold: a FormatError (or, of
transcoders, a ConfigError), or the file is read; never another exception."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_transcoders as tiny
from bundle_by_hand import sealed, unsealed
from fake_circuit import fake_circuit
from safetensors_by_hand import from_arrays
from tiny_graph import example

import attnsparse as asp
from attnsparse.circuits.circuit import load_circuit
from attnsparse.errors import ConfigError, FormatError
from attnsparse.graphs.graph import load_graph
from attnsparse.graphs.neuronpedia_read import read_graph_json
from attnsparse.transcoders.label_files import load_feature_labels, save_feature_labels

NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 2, 0.5, 1e300, 2**31, 2**63, 10**307, 10**400, "", "0", "999999", "9" * 400, "\ud800",
    [], [[]], [None], {}, {"a": {"b": []}}, float("nan"), float("-inf"),
)  # fmt: skip
REMOVED = object()


def variants(document: Any) -> Iterator[tuple[str, Any]]:
    """The document with one value replaced or removed, at each place in turn."""
    for place in list(places(document)):
        for value in (*NASTY, REMOVED):
            changed = copy.deepcopy(document)
            holder = changed
            for key in place[:-1]:
                holder = holder[key]
            if value is REMOVED:
                del holder[place[-1]]
            else:
                holder[place[-1]] = value
            yield f"{place} = {value!r:.60}", changed


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value but the whole; of longer lists, to the first item and the last."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    chosen = list(items)
    if isinstance(document, list) and len(chosen) > 4:
        chosen = [chosen[0], chosen[-1]]
    for key, value in chosen:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def graph_of_another_tool(folder: Path) -> tuple[Path, Any]:
    feature = {"node_id": "0_5_1", "feature": 20, "layer": "0", "ctx_idx": 1, "jsNodeId": "0_5-1",
               "clerp": "", "feature_type": "cross layer transcoder", "influence": 0.5,
               "activation": 1.5}  # fmt: skip
    error = feature | {"node_id": "0_1_1", "layer": "1", "feature_type": "mlp reconstruction error"}
    token = feature | {"node_id": "E_3_1", "layer": "E", "feature_type": "embedding"}
    logit = {"node_id": "3_7_1", "feature": 7, "layer": "3", "ctx_idx": 1, "feature_type": "logit",
             "token_prob": 0.9, "jsNodeId": "L", "clerp": 'Output "y" (p=0.900)'}  # fmt: skip
    links = [{"source": name, "target": "3_7_1", "weight": 1.0} for name in ("0_5_1", "0_1_1", "E_3_1")]
    metadata = {"slug": "s", "scan": "gpt2", "transcoder_list": ["a"], "prompt_tokens": ["<bos>", "x"],
                "prompt": "x", "node_threshold": 0.8, "generation_settings": {"max_n_logits": 10},
                "pruning_settings": {"node_threshold": 0.8, "edge_threshold": 0.9}}  # fmt: skip
    nodes = [feature, error, token, logit]
    return folder / "g.json", {"metadata": metadata, "qParams": {}, "nodes": nodes, "links": links}


def own_graph_json(folder: Path) -> tuple[Path, Any]:
    path = example().to_neuronpedia(folder, "own", node_threshold=None, edge_threshold=None)
    return path, json.loads(path.read_text())


def graph_fields(folder: Path) -> tuple[Path, Any]:
    example().save(folder / "graph")
    return bundle_text(folder / "graph.graph.safetensors")


def circuit_fields(folder: Path) -> tuple[Path, Any]:
    fake_circuit([0.0, 0.5, 1.0]).save(folder / "circuit")
    return bundle_text(folder / "circuit.circuit.safetensors")


def bundle_text(path: Path) -> tuple[Path, Any]:
    """The JSON text in a bundle's header."""
    header, _ = unsealed(path.read_bytes())
    return path, json.loads(json.loads(header)["__metadata__"]["attnsparse"])


def write_document(path: Path, document: Any) -> None:
    """Put a document into its file; of a bundle, the rest of which stays, with the right checksum."""
    if path.suffix != ".safetensors":
        path.write_text(json.dumps(document))
        return
    header, body = unsealed(path.read_bytes())
    whole = json.loads(header)
    whole["__metadata__"]["attnsparse"] = json.dumps(document)
    path.write_bytes(sealed(json.dumps(whole, separators=(",", ":")).encode(), body))


def labels(folder: Path) -> tuple[Path, Any]:
    model = asp.load("demo-dense")
    coders = asp.load_transcoders("demo-dense-transcoders", model)
    found = asp.describe_features(model, coders, ['The opposite of "large" is "'], [(0, 1), (1, 2)], top=2)
    save_feature_labels(found, folder / "labels.json", None)
    data = json.loads((folder / "labels.json").read_text())
    return folder / "labels.json", data | {"given": [[0, 1, "mine"]]}


def saelens(folder: Path) -> tuple[Path, Any]:
    w = tiny.weights(threshold=True)
    for i in range(tiny.L):
        (folder / f"l{i}").mkdir()
        (folder / f"l{i}" / "sae_weights.safetensors").write_bytes(from_arrays(tiny.saelens_layer(w, i)))
        settings = {"architecture": "jumprelu_transcoder", "activation_fn_kwargs": {}, "metadata": {}}
        (folder / f"l{i}" / "cfg.json").write_text(
            json.dumps(tiny.saelens_config(i, tiny.COUNTS[i], **settings))
        )
    return folder / "l1" / "cfg.json", json.loads((folder / "l1" / "cfg.json").read_text())


def clt_forge(folder: Path) -> tuple[Path, Any]:
    files, _ = tiny.FORMATS["CLT-Forge"][0]()
    tiny.write(folder, files)
    path = folder / "clt_cfg.json"
    return path, json.loads(path.read_text())


def yaml_config(folder: Path) -> tuple[Path, Any]:
    w = tiny.weights(counts=(7, 7, 7))
    for i in range(tiny.L):
        (folder / f"layer_{i}.safetensors").write_bytes(from_arrays(tiny.plain_layer(w, i)))
    data = {"model_name": "tiny", "model_kind": "transcoder_set", **tiny.HOOKS, "scan": ["a", "b"],
            "activation": "topk", "k": 3, "attnsparse_n_features": [7, 6, 5],
            "transcoders": [f"layer_{i}.safetensors" for i in range(tiny.L)]}  # fmt: skip
    return folder / "config.yaml", data


def load_folder(path: Path) -> Any:
    return asp.load_transcoders(path.parent.parent if path.name == "cfg.json" else path.parent)


READERS: dict[str, tuple[Callable[[Path], tuple[Path, Any]], Callable[[Path], Any]]] = {
    "graph JSON of another tool": (graph_of_another_tool, read_graph_json),
    "graph JSON of ours": (own_graph_json, read_graph_json),
    "graph": (graph_fields, load_graph),
    "circuit": (circuit_fields, load_circuit),
    "labels": (labels, load_feature_labels),
    "SAELens": (saelens, load_folder),
    "CLT-Forge": (clt_forge, load_folder),
    "config.yaml": (yaml_config, load_folder),
}


@pytest.mark.parametrize("name", READERS)
def test_a_bad_value_at_any_place(tmp_path, name):
    make, read = READERS[name]
    path, document = make(tmp_path)
    write_document(path, document)
    read(path)
    wrong, refused, n = [], 0, 0
    for what, changed in variants(document):
        write_document(path, changed)
        n += 1
        try:
            _use(read(path))
        except (FormatError, ConfigError):
            refused += 1
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__}: {error!s:.80}")
    assert not wrong, f"{len(wrong)} of {n}: " + "; ".join(wrong[:8])
    assert 0.3 * n < refused < n


def _use(found: Any) -> None:
    """What was read must do what such an object does."""
    repr(found)
    if isinstance(found, asp.Graph):
        assert np.isfinite(found.weights).all()
        found.summary()
