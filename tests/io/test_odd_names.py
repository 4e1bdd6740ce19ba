"""Names that are no UTF-8 and labels that are blank: what was computed is written all the same, and read."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import tiny_transcoders as tiny
from safetensors_by_hand import from_arrays
from tiny_graph import example

import attnsparse as asp
from attnsparse.io.text_bytes import compact_json, shortest, text_bytes
from attnsparse.transcoders.labels import FeatureLabels

ODD = "caf\udce9"  # what os.fsdecode makes of b"caf\xe9"
LABELS = (ODD, " ", "", "\n", "\0", "\u202e")


def test_json_in_blocks_is_the_json_of_the_whole():
    for data in ({}, {"a": []}, {"a": [1, None], "b": {"c": "\u00e4"}}, {"a": list(range(2500)), "b": "x"}):
        whole = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
        assert b"".join(compact_json(data)) == whole
    with pytest.raises(ValueError, match="not JSON compliant"):
        list(compact_json({"a": [float("nan")]}))
    odd = json.loads(b"".join(compact_json({ODD: [ODD, {"a": ODD}]})))
    assert odd == {"caf\\udce9": ["caf\\udce9", {"a": "caf\\udce9"}]}
    assert text_bytes(ODD) == b"caf\\udce9"


def test_numbers_in_blocks_are_the_shortest():
    array = np.random.default_rng(0).standard_normal(40_000).astype(np.float32)
    array[20_000] = np.nan
    found = shortest(array)
    assert found[20_000] is None
    assert all(float(np.float32(x)) == float(y) for x, y in zip(found, array) if x is not None)
    assert found[:3] == [float(str(x)) for x in array[:3]]


@pytest.mark.parametrize("label", LABELS)
def test_graphs_with_odd_labels(tmp_path, label):
    graph = example()
    key = int(graph.layer[0]), int(graph.feature[0])
    graph = graph.with_labels({key: label})
    shown = graph.labels[0].encode("utf-8", "backslashreplace").decode()
    graph.save(tmp_path / "graph")
    assert asp.load_graph(tmp_path / "graph").labels[0] == shown
    path = graph.to_neuronpedia(
        tmp_path, "odd", node_threshold=None, edge_threshold=None, supernodes={label: [0]},
        info={"description": label}, scan=label,
    )  # fmt: skip
    assert asp.read_graph_json(path).labels[0] == shown
    graph.to_html(tmp_path / "page.html", title=label)
    assert (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("label", LABELS)
def test_labels_that_are_odd(tmp_path, label):
    labels = FeatureLabels(given={(0, 1): label, (1, 2): "plain"})
    for name in ("labels.json", "labels.csv"):
        labels.save(tmp_path / name)
        again = asp.load_feature_labels(tmp_path / name)
        assert again[1, 2] == "plain"
        assert again.get((0, 1), "") in (label, label.encode("utf-8", "backslashreplace").decode())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_folder_whose_name_is_no_utf_8(tmp_path):
    folder = os.path.join(os.fspath(tmp_path), ODD)
    w = tiny.weights()
    os.mkdir(folder)
    for i in range(tiny.L):
        with open(os.path.join(folder, f"layer_{i}.safetensors"), "wb") as file:
            file.write(from_arrays(tiny.plain_layer(w, i)))
    with open(os.path.join(folder, "config.yaml"), "w") as file:
        file.write(tiny.config(model_name=""))
    transcoders = asp.load_transcoders(folder)
    config = asp.Config(n_layer=tiny.L, n_head=2, d_model=tiny.E, d_head=3, d_mlp=8, n_ctx=6, n_vocab=11)
    graph = asp.attribution_graph(asp.Model(config), transcoders, [1, 2, 3], target=[4])
    path = os.path.join(folder, "graph")
    graph.save(path)
    assert asp.load_graph(path).transcoders_name == "caf\\udce9"
    assert asp.read_graph_json(graph.to_neuronpedia(folder, "g")).transcoders_name == "caf\\udce9"
    graph.to_html(os.path.join(folder, "page.html"))
    asp.save_transcoders(transcoders, os.path.join(folder, ODD))
    assert asp.load_transcoders(os.path.join(folder, ODD)).digest == transcoders.digest
