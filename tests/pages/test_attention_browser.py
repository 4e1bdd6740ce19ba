"""The page of attention in a real browser: pointer, keys and links do what they should."""

from __future__ import annotations

import base64
import io
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from chromium import BINARY, Browser
from page_toys import ATTACKS, PROMPT, hostile_model, toy_model, toy_task

import attnsparse as asp
from attnsparse._page import frame
from attnsparse.pages import attention_page

pytestmark = pytest.mark.skipif(BINARY is None, reason="needs chromium or google-chrome")

STATE = "Object.fromEntries(new URLSearchParams(location.hash.slice(1)))"
CARD = "document.querySelector('.asp-card').innerText"
TIP = "document.querySelector('.asp-tip').hidden ? '' : document.querySelector('.asp-tip').textContent"
ROWS = (
    "[...document.querySelectorAll('.asp-view tbody tr')].map(r => [...r.cells].map(c => c.innerText.trim()))"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def sparse():
    return toy_model(name="thin").run(PROMPT)


@pytest.fixture(scope="module")
def dense():
    return toy_model(False, name="thick").run(PROMPT)


@pytest.fixture(scope="module")
def circuit():
    return asp.find_circuit(toy_model(name="thin"), toy_task(), unit="edge", n_bootstrap=5, n_random=1)


@pytest.fixture(scope="module")
def one(folder, sparse):
    return sparse.to_html(folder / "one.html", effects=(7, 8))


@pytest.fixture(scope="module")
def pair(folder, sparse, dense, circuit):
    return attention_page([dense, sparse], folder / "pair.html", circuit=circuit, base=1)


@pytest.fixture(scope="module")
def one_browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(one_browser):
    one_browser.events.clear()
    size(one_browser, 1400, 950)
    yield one_browser
    assert one_browser.complaints() == []
    assert {url for url in one_browser.requests() if not url.startswith("file:///")} <= {"about:blank"}


def size(browser, width: int, height: int) -> None:
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
    )


def opened(browser, path: Path, link: str = "") -> None:
    browser.open(path, link)
    browser.wait("document.querySelector('.asp-view canvas, .asp-view table, .asp-view svg') !== null")


def state(browser) -> dict[str, str]:
    return browser.read(STATE)


def hover(browser, x: float, y: float) -> None:
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)


def slide(browser, selector: str, value: int) -> None:
    told = f"e.value = {value}; e.dispatchEvent(new Event('input'))"
    browser.read(f"(e => {{ {told}; }})(document.querySelector('{selector}'))")


def head_place(browser, layer: int, head: int, figure: int = 0) -> tuple[float, float]:
    """The middle of a head of the toy's grid, in the window."""
    box = f"document.querySelectorAll('.asp-canvas > canvas')[{figure}].getBoundingClientRect()"
    x, y, wide, tall = browser.read(f"(b => [b.x, b.y, b.width, b.height])({box})")
    return x + 30 + (head + 0.45) * (wide - 30) / 4, y + 18 + (layer + 0.45) * (tall - 18) / 3


def entry_place(browser, query: int, key: int) -> tuple[float, float]:
    """The middle of an entry of the map, in the window, found from the one that is chosen. All from 0."""
    box = "document.querySelector('.asp-chosen').getBoundingClientRect()"
    x, y, wide = browser.read(f"(b => [b.x + 2, b.y + 2, b.width - 4])({box})")
    chosen = state(browser)
    return x + (key - int(chosen["key"]) + 0.5) * wide, y + (query - int(chosen["query"]) + 0.5) * wide


def facts(browser) -> dict[str, list[str]]:
    rows = (
        "[...document.querySelectorAll('.asp-facts tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    )
    return {row[0]: row[1:] for row in browser.read(rows)}


def an_open_entry(run) -> asp.Edge:
    """One below the first rows."""
    table = np.argwhere(run.pattern[1:, :, 3:] > 0.05)
    layer, head, query, key = table[len(table) // 2]
    return asp.Edge(int(layer) + 1, int(head), int(query) + 3, int(key))


# -------------------------------------------------------------------------------------------- views


def test_from_the_grid_to_a_head_to_an_entry(browser, one, sparse):
    edge = an_open_entry(sparse)
    opened(browser, one)
    x, y = head_place(browser, edge.layer, edge.head)
    hover(browser, x, y)
    tip = browser.read(TIP)
    n_open = np.count_nonzero(sparse.pattern[edge.layer, edge.head])
    assert tip.startswith(f"L{edge.layer}H{edge.head}, {n_open} open, strongest ")
    browser.click(x, y)
    browser.wait("document.querySelector('.asp-tabs [aria-selected=true]').textContent === 'One head'")
    assert state(browser) == {"view": "head", "layer": str(edge.layer), "head": str(edge.head)}
    browser.press("ArrowDown")  # the strongest entry of the head
    strongest = np.unravel_index(sparse.pattern[edge.layer, edge.head].argmax(), (8, 8))
    assert (int(state(browser)["query"]), int(state(browser)["key"])) == strongest
    x, y = entry_place(browser, edge.query, edge.key)
    hover(browser, x, y)
    weight = sparse.pattern[edge]
    assert f"weight {float(f'{weight:.3g}'):g}"[:9] in browser.read(TIP)
    browser.click(x, y)
    assert (int(state(browser)["query"]), int(state(browser)["key"])) == (edge.query, edge.key)
    assert f"L{edge.layer}H{edge.head}" in browser.read(CARD)


@pytest.mark.parametrize("is_open", [True, False])
def test_what_is_said_of_an_entry(browser, one, sparse, is_open):
    edge = an_open_entry(sparse)
    if not is_open:
        closed = np.argwhere((sparse.pattern == 0) & np.tri(8, dtype=bool))
        edge = asp.Edge(*map(int, closed[len(closed) // 2]))
    opened(browser, one, f"#view=head&layer={edge.layer}&head={edge.head}&query={edge.query}&key={edge.key}")
    found, model = facts(browser), sparse.model
    weight = float(sparse.pattern[edge])
    [score], _ = sparse.entry_scores(*([n] for n in edge))
    norm = float(sparse.value_norms()[1][edge.layer, edge.head, edge.key])
    difference = sparse.logits[-1] - model.run(PROMPT, ablate=edge).logits[-1]
    assert float(found["weight"][0]) == pytest.approx(weight, rel=0.006, abs=2e-5)
    assert found["gate"] == ["open" if is_open else "closed"]
    assert float(found["score"][0]) == pytest.approx(score, rel=0.006, abs=1e-3)
    expected = 100 / (1 + np.exp(-(score + model.config.gate_bias)))
    assert float(found["expected gate"][0].removesuffix(" %")) == pytest.approx(expected, abs=0.51)
    assert float(found["contribution"][0]) == pytest.approx(weight * norm, rel=0.006, abs=1e-4)
    if is_open:
        effect = float(difference[7] - difference[8])
        assert float(found["exact effect"][0]) == pytest.approx(effect, rel=0.006, abs=1e-4)
    else:
        assert found["exact effect"] == ["0 (closed)"]
    assert "logit(7) - logit(8)" in browser.read(CARD)
    n = np.count_nonzero(sparse.pattern[:, :, edge.query, edge.key])
    assert f"open in {n} of 12" in browser.read(CARD)


def test_keys_alone(browser, one, sparse):
    opened(browser, one, "#layer=1&head=1")
    browser.press("ArrowRight")
    browser.press("ArrowDown")
    assert (state(browser)["layer"], state(browser)["head"]) == ("2", "2")
    for _ in range(5):
        browser.press("ArrowRight")  # not beyond the last one
    assert state(browser)["head"] == "3"
    browser.press("Enter")
    assert state(browser)["view"] == "head"
    browser.press("ArrowUp")
    query, key = (int(state(browser)[name]) for name in ("query", "key"))
    assert sparse.pattern[2, 3, query, key] == sparse.pattern[2, 3].max()
    browser.press("ArrowDown")
    assert int(state(browser)["query"]) == min(query + 1, 7)
    browser.press("Escape")
    assert "query" not in state(browser)
    browser.press("Escape")
    assert state(browser)["view"] == "heads"
    for key, view in (("3", "sentence"), ("4", "list"), ("2", "head"), ("1", "heads")):
        browser.press(key)
        assert state(browser)["view"] == view
    browser.press("g")
    assert state(browser)["shade"] == "gate"
    browser.press("?")
    assert "one level up" in browser.read("document.querySelector('.asp-help').innerText")
    browser.press("Escape")
    assert browser.read("document.querySelector('.asp-help')") is None


def test_links(browser, pair, sparse):
    opened(browser, pair, "#view=head&model=1&layer=2&head=3&query=8&key=2&n=3")
    assert 'key opposite 2 → query " 8' in browser.read(CARD).replace("\n", " ")
    assert browser.read("document.querySelector('.asp-circuit output').textContent").startswith("best 3 of")
    browser.press("Escape")
    browser.press("Escape")
    browser.read("history.back()")
    browser.wait(f"{STATE}.view === 'head'")
    browser.read("history.back()")
    browser.wait(f"{STATE}.key === '2'")
    browser.wait(f"{CARD}.includes('opposite')")
    for link in (
        "#view=nothing&layer=99&head=-1&query=x&n=1e9",
        "#%E0%A4%A",
        "#key=3",
        "#query=2&key=7",
        "#",
    ):
        opened(browser, pair, link)
        assert browser.read("document.querySelectorAll('.asp-canvas > canvas').length") == 2


def test_the_sentence(browser, one, sparse):
    edge = an_open_entry(sparse)
    opened(browser, one, f"#view=sentence&layer={edge.layer}")
    lines = "document.querySelectorAll('.asp-lines g:first-child path').length"
    assert browser.read(lines) == np.count_nonzero(sparse.pattern[edge.layer])
    token = f".asp-query li[data-position='{edge.query}']"
    x, y = browser.read(
        f'(b => [b.x + 9, b.y + 9])(document.querySelector("{token}").getBoundingClientRect())'
    )
    hover(browser, x, y)
    bright = "document.querySelectorAll('.asp-bright path').length"
    assert browser.read(bright) == np.count_nonzero(sparse.pattern[edge.layer, :, edge.query])
    lit = "[...document.querySelectorAll('.asp-key li')].flatMap((li, i) => li.style.background ? [i] : [])"
    assert browser.read(lit) == np.flatnonzero(sparse.pattern[edge.layer, :, edge.query].any(axis=0)).tolist()
    browser.click_on(token)
    assert state(browser)["query"] == str(edge.query)
    browser.click_on(f".asp-key li[data-position='{edge.key}']")
    strongest = int(sparse.pattern[edge.layer, :, edge.query, edge.key].argmax())
    assert (state(browser)["key"], state(browser)["head"]) == (str(edge.key), str(strongest))
    browser.click_on(".asp-chip[data-head='0']")
    assert browser.read(lines) == np.count_nonzero(sparse.pattern[edge.layer, 1:])
    browser.click_on(".asp-tools input[type=checkbox]")  # all layers
    assert browser.read(lines) == np.count_nonzero(sparse.pattern)
    slide(browser, ".asp-least input", 50)
    assert browser.read(lines) == np.count_nonzero(sparse.pattern >= 0.5)


def test_the_list(browser, one, sparse):
    opened(browser, one, "#view=list")
    table = browser.read(ROWS)
    n = np.count_nonzero(sparse.pattern)
    assert len(table) == min(n, 200)
    effects = [abs(float(row[-1])) for row in table]
    assert effects == sorted(effects, reverse=True)
    browser.read("[...document.querySelectorAll('.asp-sort')].find(b => b.textContent === 'weight').click()")
    weights = [float(row[3]) for row in browser.read(ROWS)]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == pytest.approx(sparse.pattern.max(), rel=0.006)
    browser.read("document.querySelector('.asp-filter').focus()")
    browser.call("Input.insertText", text="L1H2")
    assert browser.read("document.activeElement.className") == "asp-filter"
    found = browser.read(ROWS)
    assert {row[0] for row in found} == {"L1H2"}
    assert len(found) == np.count_nonzero(sparse.pattern[1, 2])
    browser.click_on(".asp-view tbody tr:nth-child(2) button")
    assert state(browser)["layer"] == "1"
    assert "exact effect" in facts(browser)


def test_dense_beside_sparse_and_a_circuit(browser, pair, sparse, dense, circuit):
    opened(browser, pair, "#model=1&n=3")
    captions = browser.read("[...document.querySelectorAll('.asp-caption')].map(e => e.textContent)")
    assert captions == ["thick", "thin"]
    about = browser.read("document.querySelector('.asp-about').innerText")
    n_open = np.count_nonzero(sparse.pattern)
    assert f"{n_open} of 432 entries open" in about
    assert "dense, 432 entries" in about
    frames = "document.querySelector('.asp-circuit output').textContent"
    assert browser.read(frames) == f"best 3 of {len(circuit)} attention edges"
    slide(browser, ".asp-n", 1000)
    assert browser.read(frames) == f"best {len(circuit)} of {len(circuit)} attention edges"
    assert "faithfulness 1.00" in browser.read("document.querySelector('.asp-circuit').innerText")
    for _ in range(2):
        browser.press("-")
    assert state(browser)["n"] == str(len(circuit) - 2)
    opened(browser, pair, "#view=list&model=1&n=4")
    listed = [(row[0], row[1].split()[-1], row[2].split()[-1]) for row in browser.read(ROWS)]
    is_open = [edge for edge in circuit.top(4) if sparse.pattern[edge] > 0]
    assert listed == [(f"L{e.layer}H{e.head}", str(e.key + 1), str(e.query + 1)) for e in is_open]
    browser.press("c")
    assert len(browser.read(ROWS)) == min(n_open, 200)
    browser.press("m")
    assert state(browser)["model"] == "0"
    edge = an_open_entry(sparse)
    link = f"#view=head&layer={edge.layer}&head={edge.head}&query={edge.query + 1}&key={edge.key + 1}"
    opened(browser, pair, link)
    weights = [float(text) for text in facts(browser)["weight"]]
    np.testing.assert_allclose(weights, [dense.pattern[edge], sparse.pattern[edge]], rtol=0.006, atol=2e-5)


def test_a_circuit_alone(browser, folder, circuit):
    for unit in ("edge", "head", "head_position"):
        found = circuit
        if unit != "edge":
            found = asp.find_circuit(toy_model(name="thin"), toy_task(), unit=unit, n_bootstrap=5, n_random=1)
        opened(browser, found.to_html(folder / f"{unit}.html"), "#view=list&n=1000")
        assert browser.read("document.querySelectorAll('.asp-view tbody tr').length") > 5
        first = found.top(1)[0]
        assert browser.read(ROWS)[0][0] == f"L{first.layer}H{first.head}"


def test_several_prompts(browser, folder):
    run = toy_model().run([PROMPT, 'The opposite of "'])
    opened(browser, run.to_html(folder / "batch.html"), "#view=sentence")
    assert browser.read("document.querySelectorAll('.asp-query li').length") == 8
    browser.press("p")
    assert state(browser)["prompt"] == "1"
    assert browser.read("document.querySelectorAll('.asp-query li').length") == run[1].n_tokens
    assert browser.read("document.querySelector('.asp-prompt').value") == "1"


def test_expected_gates(browser, one, sparse):
    opened(browser, one, "#view=head&layer=1&head=1&shade=gate&query=7&key=0")
    x, y = entry_place(browser, 6, 2)
    box = browser.read(
        "(b => [b.x, b.y])(document.querySelector('.asp-canvas > canvas').getBoundingClientRect())"
    )
    context = "document.querySelector('.asp-canvas > canvas').getContext('2d')"
    red, green, *_ = browser.read(f"[...{context}.getImageData({x - box[0]}, {y - box[1]}, 1, 1).data]")
    [score], _ = sparse.entry_scores([1], [1], [6], [2])
    gate = 1 / (1 + np.exp(-(score + sparse.model.config.gate_bias)))
    assert red == pytest.approx(np.interp(4 * gate, range(5), (255, 204, 102, 35, 0)), abs=3)
    assert green == pytest.approx(np.interp(4 * gate, range(5), (255, 236, 194, 139, 68)), abs=3)


# ------------------------------------------------------------------------------- security, sizes, time


def test_texts_are_shown_and_never_run(browser, folder):
    model = hostile_model()
    run = model.run([*range(len(ATTACKS)), 0])
    path = run.to_html(folder / "hostile.html", title=ATTACKS[1], effects=(0, 1))
    for link in ("", "#view=head&layer=1&head=1&query=5&key=0", "#view=sentence&query=3", "#view=list"):
        opened(browser, path, link)
        if link.startswith("#view=s"):
            tokens = browser.read(
                "[...document.querySelectorAll('.asp-query .asp-token')].map(e => e.textContent)"
            )
            assert len(tokens) == len(ATTACKS) + 1
            assert tokens[1].startswith('"><img')
        assert browser.read("document.querySelectorAll('img, script').length") == 2
        assert browser.read("document.title") == browser.read("document.querySelector('h1').textContent")
    assert browser.read("typeof window.hacked") == "undefined"


def test_the_policy_holds(one_browser, one):
    """What no text can do, a script that is already running cannot do either."""
    browser = one_browser
    browser.open(one)
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


@pytest.mark.parametrize(("width", "height"), [(420, 700), (700, 640), (1000, 800), (1400, 950)])
def test_nothing_runs_over_the_edge(browser, pair, width, height):
    size(browser, width, height)
    for view in ("heads", "head", "sentence", "list"):
        opened(browser, pair, f"#view={view}&model=1&layer=1&head=2&query=8&key=2")
        assert browser.read("document.scrollingElement.scrollWidth") <= width
        texts = (
            "[...document.querySelectorAll('.asp-bar button, .asp-card td, .asp-card th, .asp-crumbs > *')]"
        )
        cut = browser.read(f"{texts}.filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth).length")
        assert cut == 0


def big_model(n_ctx: int, gate_bias: float) -> asp.Model:
    config = asp.Config(
        n_layer=12,
        n_head=12,
        d_model=96,
        d_head=8,
        d_mlp=96,
        n_ctx=n_ctx,
        n_vocab=50,
        gated=True,
        gate_bias=gate_bias,
    )
    return asp.Model.initialised(config, seed=0)


def seconds(browser, code: str) -> float:
    return (
        browser.read(f"(() => {{ const t = performance.now(); {code}; return performance.now() - t; }})()")
        / 1000
    )


def test_a_model_of_usual_size(browser, folder, capsys):
    run = big_model(64, 0.0).run(np.arange(64) % 50)
    path = run.to_html(folder / "usual.html")
    start = time.perf_counter()
    opened(browser, path)
    took = time.perf_counter() - start
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    redraw = seconds(browser, "document.querySelector('[data-view=heads]').click()")
    move = "new PointerEvent('pointermove', {clientX: 300, clientY: 300, bubbles: true})"
    point = seconds(browser, f"document.querySelector('.asp-canvas > canvas').dispatchEvent({move})")
    with capsys.disabled():
        print(
            f"\n12 x 12 heads, 64 tokens: {path.stat().st_size / 1e6:.1f} MB, loaded {took:.2f} s, "
            f"first paint {browser.read(paint) / 1000:.2f} s, drawn again {redraw:.3f} s, hover {point:.4f} s"
        )
    assert browser.read("document.querySelectorAll('.asp-canvas > canvas').length") == 1


def test_a_long_prompt_opens_as_edges(browser, folder, capsys):
    short = big_model(64, 0.0).run(np.arange(64) % 50, record="scores").scores
    bias = -float(np.quantile(short[np.isfinite(short)], 0.997))
    run = big_model(1024, bias).run(np.arange(1024) % 50, record=("edges", "q", "k", "v"))
    path = run.to_html(folder / "long.html")
    n_open = len(run.edge_arrays()[0])
    start = time.perf_counter()
    opened(browser, path)
    with capsys.disabled():
        took = time.perf_counter() - start
        print(f"\n1,024 tokens, {n_open:,} edges: {path.stat().st_size / 1e6:.1f} MB, loaded {took:.2f} s")
    assert f"{n_open:,} of 75,571,200 entries open" in browser.read(
        "document.querySelector('.asp-about').innerText"
    )
    for view in ("head", "sentence", "list"):
        browser.click_on(f"[data-view={view}]")
        browser.wait(f"{STATE}.view === '{view}'")
    assert len(browser.read(ROWS)) == 200


def test_inside_a_notebook(browser, folder, one):
    """In a frame without rights, as `show` makes it, the page is drawn and hears the pointer."""
    path = folder / "notebook.html"
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{frame(one.read_bytes(), 640)}</body>")
    size(browser, 760, 700)
    browser.open(path)
    until = time.monotonic() + 30
    while blue(browser) < 500:
        assert time.monotonic() < until, "the page in the frame was not drawn"
    x, y = browser.read("(b => [b.x, b.y])(document.querySelector('iframe').getBoundingClientRect())")
    before = picture(browser)
    browser.click(x + 150, y + 75)  # the second tab
    while (picture(browser) == before).all():
        assert time.monotonic() < until, "nothing changed"


def test_the_scales_name_every_colour(browser, pair):
    opened(browser, pair, "#view=head&shade=gate&model=1")
    texts = browser.read("[...document.querySelectorAll('.asp-scale span')].map(e => e.textContent)")
    assert texts == ["expected gate, sigmoid(score + bias)", "weight, thick"]


def picture(browser) -> np.ndarray:
    data = browser.call("Page.captureScreenshot", format="png")["data"]
    return plt.imread(io.BytesIO(base64.b64decode(data)), format="png")


def blue(browser) -> int:
    """Points with the colour of the chosen tab."""
    return int((np.abs(picture(browser)[..., :3] * 255 - (11, 79, 158)).max(axis=2) < 2).sum())
