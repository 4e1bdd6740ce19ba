"""The page of a graph in a real browser: clicks, keys and links do what they should; nothing is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from chromium import BINARY, Browser
from small_graph import HOSTILE, hostile_graph, small_graph

from attnsparse.graphs.layout import edges_between

pytestmark = pytest.mark.skipif(BINARY is None, reason="needs chromium or google-chrome")

TITLE = "document.querySelector('#details h2').textContent"
ON = "[...document.querySelectorAll('.edge.on')].map(e => Number(e.id.slice(1))).sort((a, b) => a - b)"
PICKED = "[...document.querySelectorAll('.picked')].map(e => Number(e.id.slice(1)))"


@pytest.fixture(scope="module")
def graph():
    return small_graph(60).prune()


@pytest.fixture(scope="module")
def edges(graph):
    return edges_between(graph, np.arange(len(graph)), 3000)[0]


@pytest.fixture(scope="module")
def path(graph, tmp_path_factory):
    return graph.to_html(tmp_path_factory.mktemp("page") / "graph.html")


@pytest.fixture(scope="module")
def one_browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(one_browser):
    one_browser.events.clear()
    yield one_browser
    assert one_browser.complaints() == []
    assert {url for url in one_browser.requests() if not url.startswith("file:///")} <= {"about:blank"}


def rows(browser, table: str) -> list[list[str]]:
    cells = "[...r.cells].map(c => (c.querySelector('button') || c).textContent)"
    return browser.read(f"[...document.querySelectorAll('{table} tbody tr')].map(r => {cells})")


def middle(browser, edge: int) -> list[float]:
    """Where the middle of an edge is in the window."""
    path = f"document.getElementById('e{edge}')"
    return browser.read(
        f"(p => {{ const q = p.getPointAtLength(0.5 * p.getTotalLength()).matrixTransform(p.getScreenCTM());"
        f" return [q.x, q.y]; }})({path})"
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def test_a_click_on_a_node_lists_its_edges(browser, path, graph, edges):
    browser.open(path)
    node = int(max(graph.select("feature"), key=lambda i: len(graph.incoming(int(i))[0])))
    browser.click_on(f"#n{node}")
    browser.wait(f"{PICKED}.length > 0")
    assert browser.read("location.hash") == f"#node={graph.ids[node]}"
    assert browser.read(TITLE) == graph.labels[node]
    assert browser.read(PICKED) == [node]
    incoming, outgoing = (np.flatnonzero(side == node) for side in (edges.target, edges.source))
    assert browser.read(ON) == sorted([*incoming.tolist(), *outgoing.tolist()])
    listed = rows(browser, "#details")
    assert len(listed) == len(incoming) + len(outgoing)
    for row, e in zip(listed, [*incoming, *outgoing]):
        other = edges.source[e] if e in incoming else edges.target[e]
        assert row[0] == graph.labels[other]
        assert float(row[1]) == pytest.approx(float(edges.weight[e]), rel=0.006)
        share = float(edges.weight[e]) / float(graph.value[edges.target[e]])
        assert float(row[2].removesuffix(" %")) == pytest.approx(100 * share, abs=0.051)
    weights = [abs(float(row[1])) for row in listed[: len(incoming)]]
    assert weights == sorted(weights, reverse=True)


def test_a_click_on_an_edge_shows_its_heads(browser, graph, edges, tmp_path):
    few = graph.to_html(tmp_path / "few.html", max_edges=4)
    tried = set()
    for e in range(4):
        browser.open(few)
        browser.click(*middle(browser, e))
        browser.wait(f"{PICKED}.length > 0")
        s, t = int(edges.source[e]), int(edges.target[e])
        assert browser.read("location.hash") == f"#edge={graph.ids[s]},{graph.ids[t]}"
        assert browser.read(ON) == [e]
        assert sorted(browser.read(PICKED)) == sorted([s, t])
        key, query = int(graph.position[s]), int(graph.position[t])
        tried.add(key < 0)
        if key < 0:
            assert "at no position" in browser.read("document.querySelector('#details').textContent")
            continue
        table = graph.heads(s, t)
        found = rows(browser, "#heads")
        names = table["label"].tolist()
        last = names[-2] if key == query else names[-1]
        assert [row[0] for row in found] == [*names[:8], "16 other heads", last, "edge"]
        for row, loading, share in zip(found, table["loading"], table["share"]):
            if row[0].startswith("L"):
                assert float(row[1]) == pytest.approx(loading, rel=0.006)
                assert float(row[2].removesuffix(" %")) == pytest.approx(100 * share, abs=0.051)
        assert found[-1][2] == percent(1)
        assert browser.read(
            "[...document.querySelectorAll('#maps rect')].map(r => [r.x, r.y].map(v => v.baseVal.value))"
        ) == ([[key, query]] * 8)
        pixel = (
            f"document.querySelector('#maps canvas').getContext('2d').getImageData({key}, {query}, 1, 1).data"
        )
        red, green, blue, _ = browser.read(f"[...{pixel}]")
        entry = float(table["pattern"][0])
        assert red <= green <= blue
        assert red == pytest.approx(np.interp(4 * entry, range(5), (255, 198, 107, 33, 8)), abs=3)
    assert False in tried


def test_lists_lead_to_edges_and_edges_to_nodes(browser, path, graph, edges):
    logit = int(graph.logits[0])
    browser.open(path, f"#node={graph.ids[logit]}")
    strongest = int(np.flatnonzero(edges.target == logit)[0])
    browser.click_on("#details td button")
    browser.wait(f"{PICKED}.length === 2")
    assert browser.read(ON) == [strongest]
    assert browser.read("location.hash").startswith("#edge=")
    browser.click_on("#details h2 button")
    browser.wait(f"{PICKED}.length === 1")
    assert browser.read("location.hash").startswith("#node=")
    assert browser.read(PICKED) == [int(edges.source[strongest])]
    browser.read("history.back()")
    browser.wait(f"{PICKED}.length === 2")
    assert browser.read(ON) == [strongest]


def test_links(browser, path, graph, edges):
    browser.open(path)
    assert "Click a node" in browser.read("document.querySelector('#details').textContent")
    s, t = graph.ids[edges.source[5]], graph.ids[edges.target[5]]
    browser.open(path, f"#edge={s},{t}")
    assert browser.read(ON) == [5]
    for link, said in (
        ("#node=9_9_9", "This page has no node 9_9_9."),
        (f"#edge={t},{s}", f"This page has no edge {t} \u2192 {s}."),
        ("#node=%E0%A4%A", "This page has no node ."),
        ("#node=", "This page has no node ."),
        ("#else", "Click a node"),
    ):
        browser.open(path, link)
        assert browser.read("document.querySelector('#details').textContent").startswith(said)
        assert browser.read(PICKED) == []


def test_search(browser, path, graph):
    browser.open(path)
    browser.press("/")
    browser.call("Input.insertText", text="NEGA")
    expected = graph.select(label="negation").tolist()
    assert len(expected) > 1
    hits = browser.read("[...document.querySelectorAll('#found button')].map(b => Number(b.dataset.node))")
    assert hits == expected
    assert browser.read("[...document.querySelectorAll('.match')].length") == len(expected)
    browser.press("ArrowDown")
    browser.press("ArrowDown")
    browser.press("Enter")
    browser.wait(f"{PICKED}.length > 0")
    assert browser.read(PICKED) == [expected[1]]
    assert browser.read("document.querySelector('#found').hidden")
    browser.read("query.value = ''; query.focus()")
    browser.call("Input.insertText", text="nothing like this")
    assert browser.read("document.querySelector('#found').textContent") == "nothing found"
    browser.press("Escape")
    assert browser.read("query.value") == ""


def test_keyboard_alone(browser, path, graph):
    browser.open(path)
    for _ in range(12):
        browser.press("Tab")
        if browser.read("document.activeElement.id") == "n0":
            break
    assert browser.read("document.activeElement.id") == "n0"
    browser.press("ArrowUp")
    above = int(browser.read("document.activeElement.id")[1:])
    assert graph.layer[above] > graph.layer[0]
    browser.press("ArrowDown")
    browser.press("Enter")
    browser.wait(f"{PICKED}.length > 0")
    [picked] = browser.read(PICKED)
    assert graph.layer[picked] < graph.layer[above]
    browser.press("Escape")
    browser.wait(f"{PICKED}.length === 0")
    before = browser.read("Number(drawing.getAttribute('width'))")
    browser.press("+")
    assert browser.read("Number(drawing.getAttribute('width'))") == pytest.approx(1.25 * before)


def test_a_click_beside_everything_clears(browser, path, graph):
    browser.open(path, f"#node={graph.ids[0]}")
    box = browser.read("(b => [b.x + 3, b.y + 3])(drawing.getBoundingClientRect())")
    browser.click(*box)
    browser.wait(f"{PICKED}.length === 0")
    assert browser.read("drawing.classList.contains('chosen')") is False


def test_number_of_edges_drawn(browser, path, graph):
    browser.open(path)
    every = "[...document.querySelectorAll('.edge[id]')]"
    shown = f"{every}.filter(e => getComputedStyle(e).display !== 'none').length"
    assert browser.read(shown) == len(graph.source)
    browser.read("drawn.value = 20; drawn.dispatchEvent(new Event('input'))")
    assert browser.read(shown) == 20
    assert browser.read("document.querySelector('#drawn-text').textContent") == "20 strongest of 134"
    browser.click_on(f"#n{int(graph.logits[0])}")
    browser.wait(f"{PICKED}.length > 0")
    assert browser.read(shown) > 20  # those of the node as well


def test_texts_are_shown_and_never_run(browser, tmp_path):
    graph = hostile_graph()
    path = graph.to_html(tmp_path / "hostile.html")
    pruned = graph.prune()
    feature = pruned.labels.index(HOSTILE[0])
    browser.open(path, f"#node={pruned.ids[feature]}")
    assert browser.read(TITLE) == HOSTILE[0]
    browser.press("/")
    browser.call("Input.insertText", text="<img")
    assert browser.read("document.querySelectorAll('#found button').length") > 0
    for e in range(3):
        edges = edges_between(pruned, np.arange(len(pruned)), 3)[0]
        link = f"#edge={pruned.ids[edges.source[e]]},{pruned.ids[edges.target[e]]}"
        browser.open(path, link)
        assert browser.read(ON) == [e]
    assert browser.read("typeof window.hacked") == "undefined"
    assert browser.read("document.querySelectorAll('img, script:not([id])').length") == 1
    assert browser.read("document.title") == pruned.prompt.replace("\u2028", "\\u2028").replace(
        "\u202e", "\\u202e"
    ).replace("\ud800", "\\ud800")


def test_one_token_and_no_edges(browser, tmp_path):
    graph = small_graph(5, strings=("a",))
    browser.open(graph.to_html(tmp_path / "one.html"))
    browser.open(graph.to_html(tmp_path / "none.html", max_edges=0), f"#node={graph.ids[-1]}")
    assert browser.read(TITLE) == graph.labels[-1]


def test_the_policy_holds(one_browser, path):
    """What no text can do, a script that is already running cannot do either."""
    browser = one_browser
    browser.open(path)
    add = "document.body.append(Object.assign(document.createElement('{}'), {{{}}}))"
    for directive, code in (
        ("connect-src", "fetch('https://example.invalid/').catch(() => 0)"),
        ("img-src", add.format("img", "src: 'https://example.invalid/x.png'")),
        ("script-src-elem", add.format("script", "textContent: 'window.hacked = 1'")),
        ("style-src-elem", add.format("style", "textContent: '* {color: red}'")),
    ):
        listen = "'securitypolicyviolation', event => tell(event.effectiveDirective), {once: true}"
        told = f"new Promise(tell => {{ document.addEventListener({listen}); {code}; }})"
        assert browser.read(told) == directive
    assert browser.read("typeof window.hacked") == "undefined"
