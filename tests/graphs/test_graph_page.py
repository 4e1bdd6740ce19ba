"""The page of a graph: it holds the graph's numbers, asks for nothing, and no text in it can become code."""

from __future__ import annotations

import base64
import dataclasses
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from graph_toys import toy_graph
from places import IMPORTED
from small_graph import HOSTILE, TOKENS, hostile_graph, small_graph

import attnsparse
from attnsparse import _page
from attnsparse.graphs.layout import edges_between
from attnsparse.graphs.page import SCRIPTS, page
from attnsparse.graphs.page_data import TOP

FOLDER = Path(attnsparse.__file__).parent / "graphs" / "assets"


class Reader(HTMLParser):
    """Elements, attributes and texts as a browser finds them."""

    def __init__(self, data: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(data.decode("ascii"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "input", "rect", "path"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        if self._open:
            self.texts[self._open[-1]][-1] += data

    @property
    def data(self) -> dict:
        return json.loads(self.texts["script"][0])


@pytest.fixture(scope="module")
def whole():
    return small_graph(60)


@pytest.fixture(scope="module")
def pruned(whole):
    return whole.prune()


@pytest.fixture(scope="module")
def hostile():
    return hostile_graph()


# ------------------------------------------------------------------------------------------ numbers


def test_numbers_are_the_graphs(pruned):
    data = Reader(page(pruned)).data
    nodes, edges = data["nodes"], data["edges"]
    assert nodes["id"] == pruned.ids
    assert nodes["kind"] == list(pruned.kind)
    assert nodes["label"] == list(pruned.labels)
    assert data["tokens"] == [token.strip() for token in TOKENS]
    for name in ("layer", "position", "feature"):
        assert nodes[name] == getattr(pruned, name).tolist()
    for name in ("value", "probability", "influence"):
        found = np.array([np.nan if v is None else v for v in nodes[name]], np.float32)
        np.testing.assert_array_equal(found, getattr(pruned, name))
    listed = {(s, t): np.float32(w) for s, t, w in zip(edges["source"], edges["target"], edges["weight"])}
    table = pruned.links()
    assert listed == dict(zip(zip(table["source"], table["target"]), table["weight"].astype(np.float32)))
    assert (np.diff(np.abs(edges["weight"])) <= 0).all()


def test_heads_are_the_graphs(pruned):
    edges = Reader(page(pruned)).data["edges"]
    kinds = set()
    for e, (s, t) in enumerate(zip(edges["source"], edges["target"])):
        table = pruned.heads(s, t)
        names, shown = table["label"].tolist(), edges["heads"][e]
        whole = edges["rest"][e] + edges["direct"][e] + edges["remainder"][e] + sum(edges["loadings"][e])
        assert whole == pytest.approx(edges["weight"][e], rel=1e-5, abs=1e-5)
        by_name = table.set_index("label")["loading"]
        for name in ("direct", "remainder"):
            assert edges[name][e] == pytest.approx(by_name[name], rel=1e-5, abs=1e-5)
        if pruned.position[s] < 0:
            kinds.add("without position")
            assert edges["heads"][e] == edges["loadings"][e] == edges["patterns"][e] == []
            continue
        kinds.add("within" if pruned.position[s] == pruned.position[t] else "across")
        assert [f"L{h // pruned.n_head}H{h % pruned.n_head}" for h in shown] == names[:TOP]
        np.testing.assert_allclose(edges["loadings"][e], table["loading"][:TOP], rtol=1e-6)
        np.testing.assert_allclose(edges["patterns"][e], table["pattern"][:TOP], rtol=1e-6)
    assert kinds == {"within", "across", "without position"}


def test_maps_are_the_patterns_of_the_heads_named(pruned):
    data = Reader(page(pruned)).data
    named = {str(head) for heads in data["edges"]["heads"] for head in heads}
    assert set(data["maps"]) == named
    for head, text in data["maps"].items():
        layer, number = divmod(int(head), pruned.n_head)
        shown = np.frombuffer(base64.b64decode(text), np.uint8) / 255
        expected = pruned.pattern[layer, number][np.tril_indices(len(TOKENS))]
        np.testing.assert_allclose(shown, expected, atol=0.5001 / 255)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_graphs_of_models(dtype):
    graph = toy_graph(dtype, max_feature_nodes=20)
    whole = graph.prune(1.0, 1.0)
    edges = Reader(page(graph, node_threshold=1, edge_threshold=1, max_edges=10**6)).data["edges"]
    assert len(edges["weight"]) == len(whole.source)
    for e in range(0, len(edges["weight"]), 7):
        s, t = edges["source"][e], edges["target"][e]
        assert edges["weight"][e] == pytest.approx(whole.weight(s, t), rel=1e-6)
        table = whole.heads(s, t).set_index("label")["loading"]
        exact = {"rel": 1e-5, "abs": 1e-6 * abs(edges["weight"][e])}
        for head, loading in zip(edges["heads"][e], edges["loadings"][e]):
            assert loading == pytest.approx(table[f"L{head // graph.n_head}H{head % graph.n_head}"], **exact)


def test_few_heads_and_float64():
    graph = small_graph(20, n_layer=2, n_head=2)
    names = ("value", "probability", "weights", "pattern", "carried", "received", "received_alone")
    fields = {name: getattr(graph, name).astype(np.float64) for name in names}
    graph = small_graph(20, n_layer=2, n_head=2, **fields)
    data = Reader(page(graph)).data
    assert {len(heads) for heads in data["edges"]["heads"]} == {0, 4}  # 0: of sources without a position
    assert data["edges"]["rest"] == pytest.approx([0.0] * len(data["edges"]["rest"]), abs=1e-9)
    exact = dict(zip(zip(*(data["edges"][name] for name in ("source", "target"))), data["edges"]["weight"]))
    table = graph.prune().links()
    assert exact == dict(zip(zip(table["source"], table["target"]), table["weight"]))


def test_only_the_strongest_edges(pruned):
    data = Reader(page(pruned, max_edges=7)).data
    edges, _ = edges_between(pruned, np.arange(len(pruned)), 7)
    assert data["edges"]["source"] == edges.source.tolist()
    reader = Reader(page(pruned, max_edges=7))
    assert "the 7 strongest of 134 are in this page" in reader.texts["dd"][3]
    empty = Reader(page(pruned, max_edges=0))
    assert empty.data["edges"]["weight"] == []
    assert empty.data["maps"] == {}


def test_positions_from_one(pruned):
    data = Reader(page(pruned, base=1)).data
    assert data["base"] == 1
    at = pruned.ids.index("P_3")
    assert data["nodes"]["label"][at] == "position 4"
    assert data["nodes"]["position"][at] == 3
    texts = Reader(page(pruned, base=1)).texts["text"]
    assert [text for text in texts if text.isdigit()] == list("12345678")


def test_the_footer_says_what_it_is(whole, pruned):
    reader = Reader(page(whole))
    told = dict(zip(reader.texts["dt"], reader.texts["dd"]))
    assert told["prompt"] == whole.prompt
    assert whole.model_digest in told["model"]
    assert "6 layers of 4 heads" in told["model"]
    assert told["transcoders"] == "made up, scan made-up"
    assert "pruned: nodes with 0.8, edges with 0.98 of the influence" in told["edges"]
    assert told["closure"].startswith("closure 3.1e-06 before pruning")
    for name, value in whole.scores().items():
        assert f"{name} {value:.3f}" in told["scores"]
    assert "before pruning" in told["scores"]
    assert json.loads(told["options"]) == whole.options
    for graph, scores in ((pruned, told["scores"]), (dataclasses.replace(pruned, options={}), "unknown")):
        assert dict(zip(*(Reader(page(graph)).texts[k] for k in ("dt", "dd"))))["scores"] == scores


def test_a_graph_is_pruned_once(whole, pruned):
    both = Reader(page(whole)).data, Reader(page(pruned)).data
    for data in both:
        del data["direct"]  # of edges that were pruned as well
    assert both[0] == both[1]
    loose = Reader(page(whole, node_threshold=1, edge_threshold=1.0)).data
    assert len(loose["edges"]["weight"]) > 2 * len(pruned.source)
    with pytest.raises(ValueError, match="this graph is pruned; use the whole graph for other thresholds"):
        page(pruned, node_threshold=0.5)


def test_the_drawing_has_every_node_and_edge(pruned):
    reader = Reader(page(pruned))
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert sum(bool(re.fullmatch(r"n\d+", i)) for i in ids) == len(pruned)
    assert sum(bool(re.fullmatch(r"e\d+", i)) for i in ids) == len(pruned.source)


def test_a_long_label_has_two_lines():
    plain = small_graph(9)
    label = "\u201cindependent\u201d, \u2026 -> \u201cfree\u201d, \u201calone\u201d"
    pruned = small_graph(9, labels=(label, *plain.labels[1:])).prune(1, 1)
    text = page(pruned).decode("ascii")
    first, second = (
        part.encode("ascii", "xmlcharrefreplace").decode().replace(">", "&gt;")
        for part in label.split(" -> ")
    )
    found = re.search(
        rf'x="(\S+)" y="\S+" text-anchor="\w+">{first}<tspan x="(\S+)" dy="12.5">(.*?)</tspan>', text
    )
    assert found[1] == found[2]
    assert found[3] == f"-&gt; {second}"


# ----------------------------------------------------------------------------------------- security


def test_nothing_is_loaded(whole):
    data = page(whole)
    reader = Reader(data)
    assert not {
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "audio",
        "video",
        "use",
        "a",
        "form",
    } & set(reader.tags)
    assert not [
        a for a in reader.attributes if a[1] in ("src", "href", "srcset", "action", "style", "xlink:href")
    ]
    assert not [a for a in reader.attributes if a[1].startswith("on")]
    assert not re.search(rb"https?:|//[a-z0-9]+\.|url\(|@import", data)


def test_policy_allows_this_script_and_style_alone(whole):
    reader = Reader(page(whole))
    policy = next(
        v for tag, name, v in reader.attributes if tag == "meta" and name == "content" and "default" in v
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    for name, text in (("script-src", reader.texts["script"][1]), ("style-src", reader.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(name) == f"'sha256-{digest}'"
    assert rules == {"base-uri": "'none'", "form-action": "'none'"}
    assert all((FOLDER / name).read_text() in reader.texts["script"][1] for name in SCRIPTS)
    assert {path.name for path in FOLDER.glob("*.js")} == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_make_no_code_of_text(name):
    text = (FOLDER / name).read_text(encoding="ascii")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", text)
    assert not re.search(r"fetch|XMLHttp|import\(|Worker|setTimeout", text)
    assert not re.search(r"</|<!--|<script", text)
    assert max(map(len, text.splitlines())) <= 120
    assert len(text.splitlines()) < 500


def test_no_text_breaks_out(hostile):
    data = page(hostile, title=HOSTILE[0] + HOSTILE[3])
    assert data.isascii()
    reader, plain = Reader(data), Reader(page(small_graph(40)))
    assert set(reader.tags) == set(plain.tags)
    assert reader.tags["script"] == 2
    assert [a for a in reader.attributes if a[0] == "script"] == [
        a for a in plain.attributes if a[0] == "script"
    ]
    assert {a[:2] for a in reader.attributes} - {a[:2] for a in plain.attributes} == {("text", "transform")}
    assert reader.texts["title"][0] == HOSTILE[0] + HOSTILE[3]
    assert reader.texts["h1"][0] == HOSTILE[0] + HOSTILE[3]
    assert reader.texts["script"][1] == plain.texts["script"][1]
    block = re.search(rb'<script id="graph-data" type="application/json">(.*?)</script>', data, re.S)[1]
    assert not set(b"<>&") & set(block)
    assert json.loads(block)["nodes"]["label"][:5] == [HOSTILE[i % len(HOSTILE)] for i in _kept(hostile)[:5]]


def _kept(graph) -> list[int]:
    """Numbers, in the whole graph, of the nodes that `prune` keeps."""
    return [graph.node(name) for name in graph.prune().ids]


# -------------------------------------------------------------------------------------------- files


def test_written_file(whole, tmp_path):
    path = whole.to_html(tmp_path / "graph.html", title="a title")
    assert path == tmp_path / "graph.html"
    assert path.read_bytes() == page(whole, "a title")
    assert Reader(path.read_bytes()).texts["title"][0] == "a title"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_the_old_file(whole, tmp_path, monkeypatch):
    path = whole.to_html(str(tmp_path / "graph.html"))
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"graph\.html"):
        whole.to_html(path, title="other")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


WRITE = """
import sys
sys.path[:0] = sys.argv[2:]
from small_graph import small_graph
small_graph(60).to_html(sys.argv[1])
"""


def test_same_bytes_in_every_process(whole, tmp_path):
    path = tmp_path / "graph.html"
    for seed in ("1", "2"):
        command = [sys.executable, "-c", WRITE, str(path), *IMPORTED]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed, "TZ": f"UTC-{seed}"})
        assert path.read_bytes() == page(whole)


def test_a_large_page_warns(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(_page, "LARGE", 1000)
    with pytest.warns(UserWarning, match=r"graph\.html has 0 MB and will open slowly; lower max_edges"):
        whole.to_html(tmp_path / "graph.html")


def test_a_large_graph_stays_small():
    graph = small_graph(300, n_layer=12, n_head=12, n_logits=6)
    assert len(page(graph, node_threshold=0.95)) < 1_500_000


def test_the_notebook_shows_a_table(whole):
    assert len(whole._repr_html_()) < 10_000
    assert "<script" not in whole._repr_html_()


@pytest.mark.parametrize("length", [1, 2, 40])
def test_prompts_of_other_lengths(length):
    graph = small_graph(30, strings=tuple(f" w{i}" for i in range(length)), n_logits=10)
    assert len(Reader(page(graph)).data["tokens"]) == length


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"node_threshold": 1.5}, ValueError, r"node_threshold must be in 0\.\.1, got 1\.5"),
        ({"edge_threshold": "1"}, TypeError, "edge_threshold must be a number"),
        ({"max_edges": -1}, ValueError, "max_edges must be at least 0, got -1"),
        ({"max_edges": 2.0}, TypeError, "max_edges must be an integer, got float"),
        ({"base": 2}, ValueError, "base must be 0 or 1, got 2"),
        ({"title": 5}, TypeError, "title must be a string, got int"),
    ],
)
def test_wrong_arguments(whole, tmp_path, wrong, error, text):
    with pytest.raises(error, match=text):
        whole.to_html(tmp_path / "graph.html", **wrong)
    assert not list(tmp_path.iterdir())
