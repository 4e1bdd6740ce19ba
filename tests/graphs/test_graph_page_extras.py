"""Beside the drawing of a graph's page: groups, cards of features, logits side by side, pins, their code."""

from __future__ import annotations

import ast
import dataclasses
import json
import re

import numpy as np
import pytest
from chromium import BINARY, Browser
from small_graph import HOSTILE, hostile_graph, small_graph

import attnsparse as asp
from attnsparse.errors import printable
from attnsparse.graphs.layout import PLAIN_KINDS, edges_between
from attnsparse.graphs.page import page
from attnsparse.graphs.page_data import N_DIRECT
from attnsparse.graphs.page_groups import group_sums

needs_browser = pytest.mark.skipif(BINARY is None, reason="needs chromium or google-chrome")
TEXT = "document.querySelector('#details').innerText"
STRINGS = {0: " a", 1: HOSTILE[1], 2: "\n", 3: "b\u202e", 4: " c"}


def data_of(graph, **options) -> dict:
    block = re.search(
        rb'<script id="graph-data" type="application/json">(.*?)</script>', page(graph, **options), re.S
    )
    return json.loads(block[1])


def labels_for(graph) -> asp.FeatureLabels:
    """Contexts of the first two features of a graph."""
    layer, feature = (getattr(graph, name)[:2].astype(np.int32) for name in ("layer", "feature"))
    order = np.lexsort((feature, layer))
    tokens = np.array([[[0, 1, 2], [4, 0, -1]], [[3, 4, 0], [-1, -1, -1]]], np.int32)
    activations = np.array([[[0, 2.5, 0.5], [0, 1, 0]], [[0, 4, 0], [0, 0, 0]]], np.float32)
    promoted = np.array([[4, 1], [0, 3]], np.int32)
    return asp.FeatureLabels(
        layer=layer[order], feature=feature[order], automatic=("one", "two"), density=np.array([0.25, 0.5]),
        prompt=np.array([[0, 1], [2, -1]], np.int32), position=np.ones((2, 2), np.int32),
        activation=np.array([[2.5, 1], [4, 0]], np.float32), before=1, tokens=tokens, activations=activations,
        promoted_tokens=promoted, promoted_effects=np.array([[3, 1.5], [2, 1]], np.float32),
        suppressed_tokens=promoted[:, ::-1], suppressed_effects=-np.ones((2, 2), np.float32), strings=STRINGS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def graph():
    return small_graph(60).prune()


def test_groups_keep_what_pruning_left(graph):
    whole = small_graph(60)
    features = whole.select("feature")
    given = {
        "all": features,
        "node": whole.ids[features[0]],
        "token": whole.select("token", position="large"),
    }
    groups = {group["name"]: group["nodes"] for group in data_of(whole, supernodes=given)["groups"]}
    kept = [i for i, name in enumerate(graph.ids) if name in {whole.ids[j] for j in features}]
    assert groups["all"] == kept
    assert 0 < len(kept) < len(features)
    assert all(graph.kind[i] == "token" for i in groups.get("token", []))
    made = data_of(whole, supernodes=asp.token_groups(whole))["groups"]
    assert {group["name"] for group in made} <= set(asp.token_groups(whole))
    assert data_of(whole)["groups"] == []


def test_lines_between_boxes_are_sums_of_edges(graph):
    edges, _ = edges_between(graph, np.arange(len(graph)), 10**6)
    members = [np.arange(0, 9), np.arange(5, 20), graph.logits]
    links = graph.links()
    sums = group_sums(members, edges)
    for a, sources in enumerate(members):
        for b, targets in enumerate(members):
            between = links[links["source"].isin(sources) & links["target"].isin(targets)]
            assert sums[a, b] == pytest.approx(
                0 if a == b else between["weight"].astype(float).sum(), rel=1e-9
            )
    assert np.count_nonzero(sums) >= 3


@pytest.mark.parametrize("n", [1, 8, 40])
def test_boxes_do_not_overlap(graph, n):
    groups = {"group " * (1 + i % 4) + str(i): graph.ids[i % len(graph)] for i in range(n)}
    data = page(graph, supernodes=groups).decode("ascii")
    found = re.findall(r'<rect x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)" rx="6"/>', data)
    boxes = np.array(found, float)
    alone = set(graph.logits.tolist()) - {i % len(graph) for i in range(n)}
    assert len(boxes) == n + len(alone)
    (x, y, w, h) = boxes.T
    apart = (x[:, None] >= (x + w)) | (y[:, None] >= (y + h))
    assert (apart | apart.T | np.eye(len(boxes), dtype=bool)).all()
    assert page(graph, supernodes=groups).decode("ascii") == data
    assert 'class="supernode"' not in page(graph).decode("ascii")


def test_logits_before_pruning():
    """Every logit has its direct edges, an unlikely one too, from the largest sources that are shown."""
    whole = small_graph(60, n_logits=3)
    probability = whole.probability.copy()
    probability[whole.logits[1:]] = 1e-12
    whole = small_graph(60, n_logits=3, probability=probability)
    pruned, direct = whole.prune(), data_of(whole)["direct"]
    assert not any(len(pruned.incoming(int(t))[0]) for t in pruned.logits[1:])
    rows = dict(zip(direct["source"], direct["weight"]))
    size = {}
    for i, name in enumerate(pruned.ids):
        own = [
            np.float32(whole.weight(name, int(t))) if pruned.kind[i] != "logit" else 0 for t in whole.logits
        ]
        size[i] = max(map(abs, own))
        if i in rows:
            np.testing.assert_array_equal(np.array(rows[i], np.float32), np.array(own, np.float32))
    largest = sorted(size, key=lambda i: -size[i])[:N_DIRECT]
    words = [i for i in sorted(size, key=lambda i: -size[i]) if pruned.kind[i] not in PLAIN_KINDS]
    assert set(rows) == set(largest) | set(words[:N_DIRECT])
    assert [size[i] for i in direct["source"]] == sorted((size[i] for i in rows), reverse=True)
    assert np.count_nonzero([w[1:] for w in rows.values()]) > N_DIRECT


def test_cards_are_those_of_the_labels(graph):
    labels = labels_for(graph)
    cards = data_of(graph, features=labels)["cards"]
    assert set(cards) == {"0", "1"}
    key = (int(graph.layer[0]), int(graph.feature[0]))
    card, (strings, values, at) = cards["0"], labels.examples(*key)[0]
    assert card["density"] == labels.density[0 if labels[key] == "one" else 1]
    assert card["contexts"][0]["activations"] == pytest.approx(values.tolist())
    assert card["contexts"][0]["at"] == at
    assert len(card["contexts"]) == len(labels.examples(*key))
    assert [len(t) > 0 for t in card["contexts"][0]["tokens"]] == [len(t) > 0 for t in strings]
    assert all(
        sign.isprintable() for c in cards.values() for x in c["contexts"] for sign in "".join(x["tokens"])
    )
    table = labels.promoted(*key)
    assert [effect for _, effect in card["promoted"]] == pytest.approx(table.iloc[:, -1].tolist())
    assert data_of(graph)["cards"] == {}


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"supernodes": [1]}, TypeError, "supernodes must map names to nodes, got list"),
        ({"supernodes": {3: [1]}}, TypeError, "a name in supernodes must be a string, got int"),
        ({"supernodes": {"a": ["no"]}}, KeyError, "this graph has no node 'no'"),
        ({"features": {}}, TypeError, "features must be FeatureLabels, such as"),
    ],
)
def test_wrong_arguments(graph, wrong, error, text):
    with pytest.raises(error, match=text):
        page(graph, **wrong)


def test_show(graph, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    graph.show(base=1, features=labels_for(graph))
    [path] = tmp_path.rglob("graph.html")
    assert path.read_bytes() == page(graph, base=1, features=labels_for(graph))
    assert str(path) in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def one_browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(one_browser):
    one_browser.events.clear()
    yield one_browser
    assert one_browser.complaints() == []


@pytest.fixture(scope="module")
def path(graph, tmp_path_factory):
    groups = {HOSTILE[0]: graph.ids[:3], "logits": graph.logits}
    return graph.to_html(
        tmp_path_factory.mktemp("page") / "graph.html", supernodes=groups, features=labels_for(graph)
    )


@needs_browser
def test_cards(browser, path, graph):
    browser.open(path, f"#node={graph.ids[0]}")
    contexts = browser.read("[...document.querySelectorAll('.contexts li')].map(e => e.textContent)")
    key = (int(graph.layer[0]), int(graph.feature[0]))
    assert len(contexts) == len(labels_for(graph).examples(*key))
    peaks = "document.querySelectorAll('.contexts .peak').length"
    assert browser.read(peaks) == len(contexts)
    assert browser.read("document.querySelectorAll('#details .word').length") == 4
    assert browser.read("typeof window.hacked") == "undefined"
    assert browser.read("document.querySelectorAll('img').length") == 0


@needs_browser
def test_groups(browser, path, graph):
    browser.open(path)
    names = browser.read("[...document.querySelectorAll('#groups button')].map(e => e.textContent)")
    assert names == [HOSTILE[0], "logits"]
    browser.click_on("#groups button")
    picked = "[...document.querySelectorAll('.picked')].map(e => Number(e.id.slice(1)))"
    browser.wait(f"{picked}.length === 3")
    assert browser.read(picked) == [0, 1, 2]
    inside = graph.links()
    inside = inside[inside["source"].isin([0, 1, 2]) & inside["target"].isin(graph.logits)]
    said = re.search(r"to the logits sum to (\S+)", browser.read(TEXT))[1]
    assert float(said) == pytest.approx(inside["weight"].sum(), rel=0.006)
    browser.read("history.back()")
    browser.wait("document.querySelector('#groups') !== null")


@needs_browser
def test_logits_side_by_side(browser, path, graph):
    browser.open(path)
    shown = browser.read("[...document.querySelectorAll('#logits thead th')].map(e => e.textContent)")
    assert shown[1:] == [graph.labels[i] for i in graph.logits]
    links = graph.links()
    links = links[links["target"].isin(graph.logits)]
    largest = links.loc[links["weight"].abs().idxmax()]
    first = browser.read("[...document.querySelector('#logits tbody tr').cells].map(c => c.textContent)")
    assert first[0] == graph.labels[int(largest["source"])]
    assert browser.read("document.querySelectorAll('#logits tbody tr').length") == N_DIRECT
    column = 1 + graph.logits.tolist().index(int(largest["target"]))
    assert float(first[column]) == pytest.approx(largest["weight"], rel=0.006)


@needs_browser
def test_pins(browser, path, graph):
    browser.open(path, f"#node={graph.ids[0]}")
    browser.click_on(".pin")
    browser.wait("!document.querySelector('#pins').hidden")
    assert browser.read("location.hash") == f"#node={graph.ids[0]}&pins={graph.ids[0]}"
    logit = int(graph.logits[0])
    browser.click_on(f"#n{logit}")
    browser.wait(f"location.hash.startsWith('#node={graph.ids[logit]}')")
    browser.click_on(".pin")
    code = "document.querySelector('#pin-code').textContent"
    browser.wait("document.querySelectorAll('#pin-list li').length === 2")
    place = f"({graph.layer[0]}, {graph.feature[0]}, {graph.position[0]}): 0,"
    assert browser.read(code).count("): 0,") == 1  # a logit cannot be changed
    assert place in browser.read(code)
    compile(browser.read(code), "page", "exec")
    browser.click_on("#only")
    visible = "[...document.querySelectorAll('.node')].filter(e => getComputedStyle(e).display !== 'none')"
    assert browser.read(f"{visible}.map(e => Number(e.id.slice(1)))") == [0, logit]
    browser.open(path, f"#edge=&pins={graph.ids[1]},nothing")
    assert browser.read("document.querySelectorAll('#pin-list li').length") == 1
    browser.click_on("#unpin-all")
    browser.wait("document.querySelector('#pins').hidden")


def code_of(browser, how: str, amount: float) -> str:
    """The code of the pinned nodes once their features are set, scaled or raised."""
    change = "dispatchEvent(new Event('input'))"
    browser.read(f"(e => {{ e.value = '{how}'; e.{change}; }})(document.querySelector('#how'))")
    browser.read(f"(e => {{ e.value = '{amount}'; e.{change}; }})(document.querySelector('#amount'))")
    return browser.read("document.querySelector('#pin-code').textContent")


@needs_browser
def test_the_code_of_the_page_runs(browser, tmp_path):
    """It gives what `graph.check` and `Transcoders.steer` say of the features that were pinned."""
    model = asp.load("demo-sparse")
    transcoders = asp.load_transcoders("demo-sparse-transcoders", model)
    graph = asp.attribution_graph(
        model, transcoders, 'The opposite of "large" is "', ["small", "large", "cold"]
    )
    pruned = graph.prune()
    features = pruned.select("feature", position=4)[:2]
    pins = ",".join(pruned.ids[i] for i in features)
    browser.open(graph.to_html(tmp_path / "graph.html"), f"#&pins={pins}")

    def run(how: str, amount: float) -> np.ndarray:
        names: dict = {}
        exec(code_of(browser, how, amount), names)
        return names["change"]

    targets = graph.feature[graph.logits]
    change = run("set", 0)
    removed = graph.check([pruned.ids[i] for i in features], together=True)
    np.testing.assert_allclose(change[targets] - change.mean(), removed.actual, atol=2e-4)
    assert np.abs(change).max() > 0.1
    places = {(int(pruned.layer[i]), int(pruned.feature[i]), 4): 2.5 for i in features}
    before = model.run(graph.tokens).logits[-1]
    for how in ("scale", "add"):
        patch = transcoders.steer(places, how)
        expected = model.run(graph.tokens, patch=patch).logits[-1] - before
        np.testing.assert_array_equal(run(how, 2.5), expected)
    for token in (pruned.select("token")[0], pruned.select("error")[0]):
        browser.open(tmp_path / "graph.html", f"#&pins={pruned.ids[token]}")
        code = browser.read("document.querySelector('#pin-code').textContent")
        assert "steer" not in code
        assert browser.read("document.querySelector('#steering').hidden")
        exec(code, {"graph": graph})


@needs_browser
def test_no_name_becomes_code(browser, tmp_path):
    """Names of models and transcoders are strings in the code to copy, whatever they are."""
    hostile = hostile_graph()
    names = {"model_name": 'a"); print("\n#', "transcoders_name": "\\\u2028\"'"}
    for graph in (hostile, dataclasses.replace(hostile, **names)):
        pins = ",".join(graph.prune().ids[:2])
        browser.open(graph.to_html(tmp_path / "graph.html", supernodes={HOSTILE[1]: [0]}), f"#&pins={pins}")
        tree = ast.parse(browser.read("document.querySelector('#pin-code').textContent"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        name = {getattr(call.func, "attr", ""): call for call in calls}
        for load, given in (("load", graph.model_name), ("load_transcoders", graph.transcoders_name)):
            assert ast.literal_eval(name[load].args[0]) == printable(given)
        assert sum(getattr(call.func, "id", "") == "print" for call in calls) == 1
        assert browser.read("typeof window.hacked") == "undefined"


@needs_browser
def test_groups_as_boxes(browser, path, graph):
    browser.open(path)
    shown = (
        "[...document.querySelectorAll('{}')].filter(e => getComputedStyle(e.parentNode).display !== 'none')"
    )
    marks, boxes = f"{shown.format('.node')}.length", shown.format(".supernode")
    assert (browser.read(marks), browser.read(f"{boxes}.length")) == (len(graph), 0)
    browser.click_on("#grouped")
    assert (browser.read(marks), browser.read(f"{boxes}.length")) == (0, 2)
    assert browser.read(f"{boxes}.map(e => e.querySelector('.name').textContent)")[1] == "logits"
    browser.click_on("#g1")
    browser.wait("location.hash.startsWith('#group=logits')")
    browser.wait("document.querySelector('.open') !== null")
    assert browser.read("[...document.querySelectorAll('.open')].map(e => e.id)") == ["g1"]
    browser.click_on(".pin-all")
    browser.wait(f"document.querySelectorAll('#pin-list li').length === {len(graph.logits)}")
    browser.read("document.querySelector('#g0').focus()")
    browser.press("Enter")
    browser.wait("document.querySelector('#g0').classList.contains('open')")
    browser.click_on("#grouped")
    assert (browser.read(marks), browser.read(f"{boxes}.length")) == (len(graph), 0)


@needs_browser
def test_biases_and_positions_can_be_hidden(browser, path, graph):
    browser.open(path)
    visible = "filter(e => getComputedStyle(e).display !== 'none').length"
    shown = f"[...document.querySelectorAll('.node')].{visible}"
    assert browser.read(shown) == len(graph)
    browser.click_on("#plain")
    hidden = sum(kind in ("bias", "position", "other") for kind in graph.kind)
    assert hidden > 0
    assert browser.read(shown) == len(graph) - hidden
    edges = f"[...document.querySelectorAll('.edge[id]')].{visible}"
    links = graph.links()
    plain = {i for i, kind in enumerate(graph.kind) if kind in ("bias", "position", "other")}
    left = [s not in plain and t not in plain for s, t in zip(links["source"], links["target"])]
    assert browser.read(edges) == sum(left)
