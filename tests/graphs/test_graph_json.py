"""The graph JSON of circuit-tracer and Neuronpedia: what is written, what is read, what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from places import TESTS
from tiny_graph import FEATURES, T, assert_same, example, traced

from attnsparse.errors import FormatError, LimitError
from attnsparse.graphs.graph import Graph, load_graph
from attnsparse.graphs.neuronpedia_read import read_graph_json
from attnsparse.io.limits import Limits
from attnsparse.items import cantor

SCHEMA = json.loads((TESTS / "support" / "graph_schema.json").read_text())
WHOLE = {"node_threshold": None, "edge_threshold": None}
NOT_IN_IT = ("carried", "received", "received_alone", "pattern", "n_head", "splits", "closure")


@pytest.fixture(scope="module")
def real() -> Graph:
    return traced()


def written(graph: Graph, folder: Path, slug: str = "g", **options: Any) -> dict[str, Any]:
    path = graph.to_neuronpedia(folder, slug, **options)
    assert path == folder / f"{slug}.json"
    data = json.loads(path.read_text())
    jsonschema.Draft7Validator(SCHEMA).validate(data)
    for entry in json.loads((folder / "graph-metadata.json").read_text())["graphs"]:
        jsonschema.Draft7Validator(SCHEMA["properties"]["metadata"]).validate(entry)
    return data


def by_id(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    nodes = {node["node_id"]: node for node in data["nodes"]}
    assert len(nodes) == len(data["nodes"])
    return nodes


# --- written


def test_nodes_as_the_viewers_want_them(tmp_path):
    data = written(example(), tmp_path, **WHOLE)
    nodes = by_id(data)
    assert nodes["0_9_1"] == {
        "node_id": "0_9_1", "feature": cantor(0, 9), "layer": "0", "ctx_idx": 1,
        "feature_type": "cross layer transcoder", "jsNodeId": "0_9-0", "clerp": "label 1 <b>",
        "token_prob": 0.0,
        "is_target_logit": False, "run_idx": 0, "reverse_ctx_idx": 0, "activation": 0.1,
    }  # fmt: skip
    chosen = ("feature", "layer", "ctx_idx", "feature_type", "jsNodeId")
    expected = {
        "err_7_2": (-1, "7", 2, "mlp reconstruction error", "err_7-2"),
        "E_11_2": (2, "E", 2, "embedding", "E_11-2"),
        "P_1": (T + 1, "E", 1, "bias", "P_1-0"),
        "bias": (2 * T, "E", 0, "bias", "bias-0"),
        "other": (2 * T + 1, "E", 0, "unknown", "other-0"),
        "9_3_2": (3, "9", 2, "logit", "L_3-2"),
    }
    for node_id, values in expected.items():
        assert tuple(nodes[node_id][name] for name in chosen) == values
    logits = [nodes[name] for name in ("9_3_2", "9_4_2")]
    assert [node["clerp"] for node in logits] == ['Output " x" (p=0.625)', 'Output " y" (p=0.2)']
    assert [(node["token_prob"], node["is_target_logit"]) for node in logits] == [(0.625, True), (0.2, False)]
    rows = [(node["layer"], node["feature"], node["ctx_idx"]) for node in data["nodes"]]
    assert len({row for row in rows if row[0] == "E"}) == 2 * T + 2


def test_the_cantor_pairing_is_one_to_one():
    pairs = [(a, b) for a in range(30) for b in range(60)]
    assert len({cantor(a, b) for a, b in pairs}) == len(pairs)
    assert [cantor(a, b) for a, b in ((0, 0), (1, 0), (0, 1), (2, 0), (3, 5))] == [0, 1, 2, 3, 41]


def test_links_and_metadata(tmp_path):
    graph = example()
    data = written(graph, tmp_path, **WHOLE, info={"creator_name": "me", "create_time_ms": 1})
    links = {(link["source"], link["target"]): link["weight"] for link in data["links"]}
    edges = graph.links()
    assert len(links) == len(edges)
    for source, target, weight in zip(edges.source_id, edges.target_id, edges.weight):
        assert np.float32(links[source, target]) == weight
    metadata = data["metadata"]
    assert (metadata["slug"], metadata["scan"], metadata["prompt"]) == ("g", "tiny", graph.prompt)
    assert metadata["prompt_tokens"] == list(graph.token_strings)
    assert metadata["info"]["generator"]["name"] == "attnsparse"
    assert metadata["info"]["creator_name"] == "me"
    assert {"node_threshold", "pruning_settings"}.isdisjoint(metadata)
    assert metadata["generation_settings"]["max_feature_nodes"] == 4
    assert metadata["transcoder_list"] == ["coders"]


def test_pruned_before_written_unless_it_was(tmp_path, real):
    data = written(real, tmp_path)
    kept = real.prune(0.8, 0.98)
    assert [node["node_id"] for node in data["nodes"]] == kept.ids
    assert len(data["links"]) == len(kept.source) < len(real.source)
    assert data["metadata"]["node_threshold"] == 0.8
    assert data["metadata"]["pruning_settings"] == {"node_threshold": 0.8, "edge_threshold": 0.98}
    again = written(kept, tmp_path, node_threshold=0.1)
    for entry in (*again["nodes"], *data["nodes"]):
        entry.pop("qk_tracing_results", None)
    assert again["nodes"] == data["nodes"]
    half = written(real, tmp_path, node_threshold=0.5, edge_threshold=None)
    assert half["metadata"]["pruning_settings"] == {"node_threshold": 0.5, "edge_threshold": 1.0}
    assert len(written(real, tmp_path, **WHOLE)["links"]) == len(real.source)


def test_supernodes(tmp_path, real):
    features = real.select("feature")
    groups = {"all": features, "one": real.ids[0]}
    data = written(real, tmp_path, **WHOLE, supernodes=groups, pinned=[-1], clicked=-1)
    last = real.ids[-1]
    assert data["qParams"]["supernodes"] == [["all", *(real.ids[i] for i in features)], ["one", real.ids[0]]]
    assert data["qParams"]["pinnedIds"] == [*(real.ids[i] for i in features), last]
    assert data["qParams"]["clickedId"] == last
    kept = set(real.prune().ids)
    data = written(real, tmp_path, supernodes={"all": features})
    assert data["qParams"]["supernodes"] == [["all", *(real.ids[i] for i in features if real.ids[i] in kept)]]
    gone = [i for i in features if real.ids[i] not in kept]
    with pytest.raises(ValueError, match="supernode 'lost': pruning left none"):
        real.to_neuronpedia(tmp_path, "g", supernodes={"lost": gone})
    with pytest.raises(KeyError, match="no node"):
        real.to_neuronpedia(tmp_path, "g", supernodes={"lost": "9_9_9"})


def test_the_list_of_graphs(tmp_path):
    for slug in ("b", "a", "b"):
        written(example(prompt=slug * 2), tmp_path / "new", slug, **WHOLE)
    entries = json.loads((tmp_path / "new" / "graph-metadata.json").read_text())["graphs"]
    assert [(entry["slug"], entry["prompt"]) for entry in entries] == [("a", "aa"), ("b", "bb")]
    assert sorted(os.listdir(tmp_path / "new")) == ["a.json", "b.json", "graph-metadata.json"]
    (tmp_path / "new" / "graph-metadata.json").write_text('{"graphs": 3}')
    with pytest.raises(FormatError, match="'graphs' must be a list of objects") as caught:
        example().to_neuronpedia(tmp_path / "new", "c")
    assert caught.value.code == "header_value"
    assert not (tmp_path / "new" / "c.json").exists()


@pytest.mark.parametrize("slug", ["", "a/b", "..", ".a", "a b", "ä", "x" * 101, "graph-metadata", "a\n"])
def test_bad_slugs(tmp_path, slug):
    with pytest.raises(ValueError, match="slug must be a file name"):
        example().to_neuronpedia(tmp_path, slug)
    with pytest.raises(TypeError, match="slug must be a string"):
        example().to_neuronpedia(tmp_path, 3)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"n_contributors": -1}, ValueError, "n_contributors must be at least 0"),
        (
            {"info": {"descripton": "a"}},
            ValueError,
            "info: unknown name 'descripton'; choose from desc",
        ),
        ({"info": 5}, TypeError, "info must be a mapping, got int"),
        ({"info": {"creator_name": 5}}, TypeError, "info: creator_name must be a string, got 5"),
        ({"info": {"source_urls": [1]}}, TypeError, "source_urls must be a list of strings"),
        ({"info": {"create_time_ms": "now"}}, TypeError, "create_time_ms must be a number"),
        ({"feature_details": {"x": "y"}}, ValueError, "feature_details: unknown name 'x'"),
        ({"feature_details": {"neuronpedia_source_set": 3}}, TypeError, "must be a string"),
        ({"scan": 5}, TypeError, "scan must be a string, got int"),
        ({"supernodes": [["x", 0]]}, TypeError, "supernodes must map names to nodes, got list"),
        ({"clicked": "gone"}, ValueError, "clicked: pruning removed node"),
    ],
)
def test_bad_options(tmp_path, real, options, error, text):
    kept = set(real.prune().ids)
    if options.get("clicked"):
        options = {"clicked": next(name for name in real.ids if name not in kept)}
    with pytest.raises(error, match=text):
        real.to_neuronpedia(tmp_path / "none", "g", **options)
    assert not (tmp_path / "none").exists()


def test_large_files_warn(tmp_path):
    with pytest.warns(UserWarning, match=r"g\.json has 0\.0 MiB, above 0\.0; viewers may refuse it"):
        example().to_neuronpedia(tmp_path, "g", warn_bytes=1000, **WHOLE)
    assert (tmp_path / "g.json").stat().st_size > 1000


def test_same_graph_same_bytes(tmp_path, real):
    first = real.to_neuronpedia(tmp_path / "a", "g").read_bytes()
    assert real.to_neuronpedia(tmp_path / "b", "g").read_bytes() == first


# --- the score of an entry


def test_splits_stand_where_the_entry_carries_most(tmp_path, real):
    data = written(real, tmp_path, n_contributors=5)
    nodes = by_id(data)
    holders = [node for node in data["nodes"] if "qk_tracing_results" in node]
    found = [entry for node in holders for entry in node["qk_tracing_results"]["entries"]]
    assert sorted(entry["label"] for entry in found) == sorted(split.label for split in real.splits)
    kept = real.prune()
    for split in real.splits:
        (holder,) = [
            node for node in holders
            if split.label in [entry["label"] for entry in node["qk_tracing_results"]["entries"]]
        ]  # fmt: skip
        effects = {}
        for row, target in enumerate(kept.targets):
            if kept.position[target] == split.query and kept.layer[target] >= split.layer:
                here = np.flatnonzero(real.position[: len(real.carried)] == split.key)
                values = real.carried[here, split.layer, split.head].sum(axis=0)
                effects[kept.ids[target]] = abs(float(kept.received[row, split.layer, split.head] @ values))
        assert effects[holder["node_id"]] == max(effects.values())
    for node in holders:
        results = node["qk_tracing_results"]
        n = len(results["entries"])
        for name, width in (("pair_wise", 3), ("top_q_marginal", 2), ("top_k_marginal", 2)):
            rows = results[f"{name}_contributors"]
            assert 0 < len(rows) <= 5 * n
            assert all(len(row) == width for row in rows)
            for name_of_node in (name for row in rows for name in row[:-1]):
                assert (name_of_node in nodes) != (name_of_node in data.get("qk_only_nodes", {}))
    first = next(s for s in real.splits if s.label == holders[0]["qk_tracing_results"]["entries"][0]["label"])
    q, k = np.unravel_index(np.argmax(np.abs(first.pairs)), first.pairs.shape)
    top = holders[0]["qk_tracing_results"]["pair_wise_contributors"][0]
    assert top == [real.ids[first.nodes[q]], real.ids[first.nodes[k]], first.pairs[q, k]]


def test_splits_without_heads_stand_at_a_logit(tmp_path, real):
    data = written(real.without_heads(), tmp_path)
    (holder,) = [node for node in data["nodes"] if "qk_tracing_results" in node]
    assert holder["is_target_logit"]
    assert len(holder["qk_tracing_results"]["entries"]) == len(real.splits)


# --- there and back


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_comes_back(tmp_path, dtype):
    saved = example(dtype)
    found = read_graph_json(saved.to_neuronpedia(tmp_path, "g", **WHOLE))
    assert_same(saved, found, NOT_IN_IT)
    assert np.isnan(found.closure)
    assert found.closure_absolute == saved.closure_absolute


@pytest.mark.parametrize("options", [WHOLE, {}, {"node_threshold": 0.5, "edge_threshold": 0.7}])
def test_a_traced_graph_comes_back(tmp_path, real, options):
    saved = real if options is WHOLE else real.prune(**options)
    found = read_graph_json(real.to_neuronpedia(tmp_path, "g", **options))
    assert_same(saved, found, NOT_IN_IT)
    assert found.scores() == saved.scores()
    source, target = saved.ids[0], saved.ids[-1]
    assert found.total(source, target) == saved.total(source, target)
    assert found._repr_html_() == saved._repr_html_()
    for call in (found.heads, found.needed_heads):
        with pytest.raises(ValueError, match="read from a graph JSON"):
            call(source, target)
    with pytest.raises(ValueError, match="no model to compute with"):
        found.score_pairs(0, 0, 2, 1)
    found.save(tmp_path / "again")
    assert_same(found, load_graph(tmp_path / "again"))
    twice = read_graph_json(found.to_neuronpedia(tmp_path, "twice", **WHOLE))
    assert_same(found, twice)


def test_a_difference_of_logits_comes_back(tmp_path):
    graph = traced(target="small", wrong=[" tall", " short"])
    data = written(graph, tmp_path)
    node = by_id(data)["logit_diff"]
    assert node["clerp"] == graph.labels[-1] + " (p=1.000)"
    assert (node["token_prob"], node["feature"]) == (1.0, -1)
    assert_same(graph.prune(), read_graph_json(tmp_path / "g.json"), NOT_IN_IT)


def test_a_feature_may_be_called_like_an_error_of_circuit_tracer(tmp_path):
    """Layer 0, feature 7 at position 1, beside the error of layer 7 at position 1."""
    graph = example()
    assert FEATURES[0] == (0, 1, 7)
    data = written(graph, tmp_path, **WHOLE)
    nodes = by_id(data)
    assert nodes["0_7_1"]["feature_type"] == "cross layer transcoder"
    assert nodes["err_7_1"]["feature_type"] == "mlp reconstruction error"
    assert len({node["jsNodeId"] for node in data["nodes"] if node["ctx_idx"] == 1}) == sum(
        node["ctx_idx"] == 1 for node in data["nodes"]
    )
    found = read_graph_json(tmp_path / "g.json")
    assert [found.kind[found.node(name)] for name in ("0_7_1", "err_7_1")] == ["feature", "error"]


def test_labels(tmp_path, real):
    layer, number = int(real.layer[0]), int(real.feature[0])
    named = real.with_labels({(layer, number): 'the "large" <one>'})
    data = written(named, tmp_path, **WHOLE)
    clerps = [node["clerp"] for node in data["nodes"] if node["feature"] == cantor(layer, number)]
    assert 'the "large" <one>' in clerps
    assert sum(node["clerp"] == "" for node in data["nodes"]) == sum(
        t.startswith("feature ") for t in named.labels
    )
    assert read_graph_json(tmp_path / "g.json").labels == named.labels


# --- files of circuit-tracer


def node(node_id: str, feature: int | None, layer: str | int, position: int, kind: str, **more: Any) -> dict:
    plain = {
        "node_id": node_id,
        "feature": feature,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": kind,
    }
    return plain | {"jsNodeId": node_id, "clerp": ""} | more


def link(source: str, target: str, weight: float) -> dict[str, Any]:
    return {"source": source, "target": target, "weight": weight}


CLT, ERROR = "cross layer transcoder", "mlp reconstruction error"


def foreign(error: str = "0_1_2", number: Callable[[int, int], int | None] = cantor) -> dict[str, Any]:
    """A file as circuit-tracer writes it, for a model of two layers."""
    return {
        "metadata": {"slug": "s", "scan": "gpt2", "transcoder_list": [],
                     "prompt_tokens": ["<bos>", "a", " b"],
                     "prompt": "<bos>a b", "node_threshold": 0.8, "schema_version": 1},
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [
            node("1_21_2", number(1, 21), "1", 2, CLT, influence=0.5, activation=2.5, token_prob=0.0),
            node("0_7_1", number(0, 7), "0", 1, CLT, influence=0.25, activation=0.5),
            node(error, -1, "1", 2, ERROR, influence=0.75),
            node("E_2_0", 0, "E", 0, "embedding"),
            node("E_64_1", 1, "E", 1, "embedding", influence=0.6),
            node("E_275_2", 2, "E", 2, "embedding", influence=0.7),
            node("3_500_2", 500, "3", 2, "logit", token_prob=0.75, clerp='Output " c" (p=0.750)'),
            node("3_20_2", 20, "3", 2, "logit", clerp='Output " d" (p=0.125)'),
        ],
        "links": [
            link("E_275_2", "1_21_2", -1.5), link("0_7_1", "1_21_2", 2), link("E_64_1", "0_7_1", 0.5),
            link("1_21_2", "3_500_2", 3.25), link(error, "3_500_2", -0.5), link("1_21_2", "3_20_2", 1e-3),
        ],
    }  # fmt: skip


def read(tmp_path: Path, data: Any, **options: Any) -> Graph:
    (tmp_path / "f.json").write_text(json.dumps(data))
    return read_graph_json(tmp_path / "f.json", **options)


@pytest.mark.parametrize("error", ["0_1_2", "1_-1_2", "err_1_2", "1_error_mlp_2"])
@pytest.mark.parametrize(
    "number",
    [cantor, lambda a, b: a * 10**5 + b, lambda a, b: int(f"{a}{b:02d}"), lambda a, b: b, lambda a, b: None],
)
def test_files_of_circuit_tracer(tmp_path, error, number):
    data = foreign(error, number)
    jsonschema.Draft7Validator(SCHEMA).validate(data)
    graph = read(tmp_path, data)
    assert graph.kind == ("feature", "feature", "error", "token", "token", "token", "logit", "logit")
    assert graph.ids == ["0_7_1", "1_21_2", "err_1_2", "E_2_0", "E_64_1", "E_275_2", "3_500_2", "3_20_2"]
    assert (graph.n_layer, graph.prepend_bos, graph.scan, graph.prompt) == (2, True, "gpt2", "a b")
    assert graph.tokens.tolist() == [2, 64, 275]
    data["metadata"] |= {"prompt_tokens": ["[BOS]", "a", " b"], "prompt": "a b"}  # an unusual sign, not in it
    graph = read(tmp_path, data)
    assert (graph.prompt, graph.prepend_bos) == ("a b", True)
    data["metadata"]["prompt"] = "[BOS]a b"
    graph = read(tmp_path, data)
    assert (graph.prompt, graph.prepend_bos) == ("[BOS]a b", False)
    assert graph.value[:2].tolist() == [0.5, 2.5]
    assert graph.probability[-2:].tolist() == [0.75, 0.125]
    assert graph.influence[2] == 0.75
    assert np.isnan(graph.influence[3])
    assert graph.pruned == {"node_threshold": 0.8}
    assert graph.weight("0_7_1", "1_21_2") == 2
    assert graph.weight("err_1_2", "3_500_2") == -0.5
    assert graph.total("0_7_1", "3_500_2") == pytest.approx(2 / 2.5 * 3.25)
    assert graph.labels[0] == "feature 7 of layer 0"
    assert graph.labels[-2:] == ('Output " c" (p=0.750)', 'Output " d" (p=0.125)')
    assert np.isnan(graph.closure)
    assert_same(graph, read_graph_json(graph.to_neuronpedia(tmp_path, "again", **WHOLE)))
    assert len(graph.prune().ids) <= 8


def test_without_influence_activation_and_logits(tmp_path):
    data = foreign()
    for entry in data["nodes"]:
        entry.pop("influence", None)
        entry.pop("activation", None)
    data["nodes"] = data["nodes"][:6]
    data["links"] = data["links"][:3]
    data["metadata"].pop("node_threshold")
    graph = read(tmp_path, data)
    assert (graph.influence, graph.pruned, graph.n_layer) == (None, {}, 2)
    assert np.isnan(graph.value).all()


@pytest.mark.parametrize(
    ("thresholds", "known"),
    [
        ({}, True),
        ({"node_threshold": 1.0, "pruning_settings": {"node_threshold": 1.0, "edge_threshold": 1}}, True),
        ({"node_threshold": 1.0}, False),
        ({"pruning_settings": {"node_threshold": 0.8, "edge_threshold": 1.0}}, False),
    ],
)
def test_scores_of_a_file_that_was_not_pruned(tmp_path, thresholds, known):
    """They are those of the same nodes and edges as a whole graph."""
    data = foreign()
    data["metadata"].pop("node_threshold")
    data["metadata"] |= thresholds
    graph = read(tmp_path, data)
    if not known:
        with pytest.raises(ValueError, match="without the scores of the whole one"):
            graph.scores()
        assert "replacement" not in graph.summary()
        return
    whole = dataclasses.replace(graph, pruned=None)
    assert graph.scores() == whole.scores()
    assert 0 < graph.scores()["replacement"] < 1
    assert graph.summary().replacement.item() == graph.scores()["replacement"]


def test_an_old_file_with_two_nodes_of_one_name_is_refused(tmp_path):
    data = foreign("0_1_2")
    data["nodes"].append(node("0_1_2", cantor(0, 1), "0", 2, CLT))
    with pytest.raises(
        FormatError, match=r"duplicate node id '0_1_2'.*calls errors like features of layer 0"
    ) as caught:
        read(tmp_path, data)
    assert caught.value.code == "duplicate_name"


def at(data: Any, *path: str | int) -> Any:
    for key in path:
        data = data[key]
    return data


BAD = [
    (("metadata",), [], "header_value"),
    (("nodes",), {}, "header_value"),
    (("links",), None, "header_value"),
    (("qParams",), [], "header_value"),
    (("metadata", "slug"), 3, "header_value"),
    (("metadata", "prompt"), None, "header_value"),
    (("metadata", "prompt_tokens"), ["a", 1, 2], "header_value"),
    (("metadata", "prompt_tokens"), [], "header_value"),
    (("metadata", "prompt_tokens"), ["a"], "node"),
    (("metadata", "node_threshold"), 2, "header_value"),
    (("metadata", "node_threshold"), "0.8", "header_value"),
    (("metadata", "generation_settings"), [], "header_value"),
    (("metadata", "pruning_settings"), {"node_threshold": -1}, "header_value"),
    (("metadata", "generation_settings"), {"attnsparse": 3}, "version"),
    (("metadata", "generation_settings"), {"attnsparse": {"version": 2}}, "version"),
    (("metadata", "generation_settings"), {"attnsparse": {"version": 1}}, "header_value"),
    (("nodes", 0), [], "node"),
    (("nodes", 0, "node_id"), 3, "node"),
    (("nodes", 0, "node_id"), "1_21", "node"),
    (("nodes", 0, "node_id"), "1_21_1", "node"),
    (("nodes", 0, "node_id"), "0_21_2", "node"),
    (("nodes", 0, "node_id"), "01_21_2", "node"),
    (("nodes", 0, "node_id"), "1_99999999999_2", "node"),
    (("nodes", 0, "feature"), 3, "node"),
    (("nodes", 0, "feature"), True, "node"),
    (("nodes", 0, "layer"), 0.5, "node"),
    (("nodes", 0, "layer"), "E", "node"),
    (("nodes", 0, "ctx_idx"), 3, "node"),
    (("nodes", 0, "ctx_idx"), -1, "node"),
    (("nodes", 0, "ctx_idx"), None, "node"),
    (("nodes", 0, "feature_type"), "lorsa", "node"),
    (("nodes", 0, "feature_type"), "bias", "node"),
    (("nodes", 0, "jsNodeId"), None, "node"),
    (("nodes", 0, "clerp"), None, "node"),
    (("nodes", 0, "influence"), "0.5", "node"),
    (("nodes", 0, "activation"), [1], "node"),
    (("nodes", 0, "activation"), 1e300, "value"),
    (("nodes", 2, "node_id"), "0_0_2", "node"),
    (("nodes", 2, "node_id"), "err_1_1", "node"),
    (("nodes", 3, "node_id"), "E_2_1", "node"),
    (("nodes", 3, "influence"), 1e300, "value"),
    (("nodes", 6, "token_prob"), 1.5, "value"),
    (("nodes", 6, "node_id"), "4_500_2", "node"),
    (("nodes", 6, "layer"), "2", "node"),
    (("nodes", 1), node("2_7_1", cantor(2, 7), "2", 1, CLT), "link"),
    (("nodes", 7), node("3_500_2", 500, "3", 2, "logit"), "duplicate_name"),
    (("links", 0), "E_275_2", "link"),
    (("links", 0, "source"), "x", "link"),
    (("links", 0, "source"), 3, "link"),
    (("links", 0, "target"), "1_21_1", "link"),
    (("links", 0, "weight"), None, "link"),
    (("links", 0, "weight"), "1", "link"),
    (("links", 0, "weight"), True, "link"),
    (("links", 0, "weight"), 1e300, "link"),
    (("links", 1), link("E_275_2", "1_21_2", 1.0), "link"),
    (("links", 0), link("1_21_2", "E_275_2", 1.0), "value"),
]


@pytest.mark.parametrize(("path", "value", "code"), BAD)
def test_bad_files(tmp_path, path, value, code):
    data = foreign()
    at(data, *path[:-1])[path[-1]] = value
    with pytest.raises(FormatError) as caught:
        read(tmp_path, data)
    error = caught.value
    assert error.code == code
    assert str(error).startswith("f.json: ")
    assert len(str(error)) <= 300
    assert "\n" not in str(error)
    assert pickle.loads(pickle.dumps(error)).code == code


@pytest.mark.parametrize("field", ["metadata", "qParams", "nodes", "links"])
def test_missing_fields(tmp_path, field):
    data = foreign()
    del data[field]
    with pytest.raises(FormatError) as caught:
        read(tmp_path, data)
    assert caught.value.code == "header_value"


@pytest.mark.parametrize(
    "field", ["node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"]
)
def test_missing_fields_of_nodes(tmp_path, field):
    data = foreign()
    del data["nodes"][1][field]
    with pytest.raises(FormatError, match=rf"nodes\[1\]: '{field}' must be .*, got nothing") as caught:
        read(tmp_path, data)
    assert (caught.value.code, caught.value.field) == ("node", "nodes[1]")


@pytest.mark.parametrize(
    "field", ["n_layer", "prepend_bos", "dtype", "closure", "tokens", "options", "pruned", "scan"]
)
def test_bad_own_fields(tmp_path, real, field):
    data = written(real, tmp_path)
    own = data["metadata"]["generation_settings"]["attnsparse"]
    for value in (None, {"a": 1} if field != "options" else 3, [] if field != "options" else [1]):
        changed = copy.deepcopy(data)
        changed["metadata"]["generation_settings"]["attnsparse"] = own | {field: value}
        with pytest.raises(FormatError) as caught:
            read(tmp_path, changed)
        assert caught.value.code == "header_value"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "json_syntax"),
        ("[]", "json_type"),
        ('{"a": NaN}', "json_syntax"),
        ('{"a": 1, "a": 2}', "duplicate_name"),
    ],
)
def test_bad_json(tmp_path, text, code):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(FormatError) as caught:
        read_graph_json(tmp_path / "f.json")
    assert caught.value.code == code


def test_limits_and_missing_files(tmp_path):
    for limits, code in (
        (Limits(max_graph_bytes=100), "graph_limit"),
        (Limits(max_json_values=9), "json_limit"),
    ):
        with pytest.raises(LimitError) as caught:
            read(tmp_path, foreign(), limits=limits)
        assert caught.value.code == code
    with pytest.raises(FileNotFoundError):
        read_graph_json(tmp_path / "none.json")
