"""A notebook in JupyterLab, as a person would use it: clicked, run again, closed, opened again, exported."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from chromium import BINARY, Browser
from notebook_server import IS_HERE, SECONDS, command, lab, output, run_all, show_cell

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BINARY is None, reason="needs chromium or google-chrome"),
    pytest.mark.skipif(not IS_HERE, reason="needs jupyterlab and anywidget: the extra [notebook]"),
]

CODE = (
    """import attnsparse as asp
dense, sparse = asp.load("demo-dense"), asp.load("demo-sparse")
prompt = 'The opposite of "large" is "'
run = sparse.run(prompt)""",
    'one = run.widget(effects=("small", "large"))\none',
    "two = asp.pages.attention_widget([dense.run(prompt), run])\ntwo",
    "print(one.chosen, two.chosen)",
    "run.show()",
    """task = asp.tasks.make_task("copy", sparse.tokenizer, n=8)
asp.find_circuit(sparse, task, unit="head", n_bootstrap=5, n_random=1, progress=False).show()""",
    """coders = asp.load_transcoders("demo-sparse-transcoders", sparse)
graph = asp.attribution_graph(sparse, coders, prompt, progress=False)
graph.show()""",
)
WIDGET, PAIR, SAID, RUN, CIRCUIT, GRAPH = 1, 2, 3, 4, 5, 6
FRAMES = {RUN: ".asp-view canvas", CIRCUIT: ".asp-n", GRAPH: ".node"}
TABS = "[...document.querySelectorAll('.asp-tabs [aria-selected=true]')].map(e => e.textContent)"
FOCUS = "(document.activeElement.closest('.asp-widget') || {}).className"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with lab(tmp_path_factory.mktemp("lab")) as found:
        yield found


@pytest.fixture(scope="module")
def notebook(server):
    """Written, run and saved once."""
    return server.write("a.ipynb", CODE)


@pytest.fixture
def browser():
    with Browser() as browser:
        browser.seconds = SECONDS
        size = {"width": 1300, "height": 950, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        yield browser
        assert [text for text in browser.complaints() if "attnsparse" in text or "asp-" in text] == []


def at(cell: int, rest: str) -> str:
    """Something of a cell's output."""
    return f"document.querySelector('[data-windowed-list-index=\"{cell}\"] {rest}')"


def frame_of(browser, cell: int) -> str:
    """The frame of a cell's page, once it is drawn."""
    before = set(browser.frames())
    show_cell(browser, cell)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        for frame in [f for f in browser.frames() if f not in before] or list(before):
            with browser.inside(frame):
                if browser.read(f"document.querySelector({json.dumps(FRAMES[cell])}) !== null"):
                    return frame
    raise AssertionError(f"the page of cell {cell} was not drawn")


def cells(browser) -> tuple[int, str]:
    """How many cells there are, and of which kind: keys of the notebook would change both."""
    kinds = "window.jupyterapp.shell.currentWidget.content.widgets.map(c => c.model.type[0]).join('')"
    kinds = browser.read(kinds)
    return len(kinds), kinds


def test_a_notebook(server, notebook, browser):
    server.open(browser, notebook.name)
    run_all(browser)
    url = browser.read("location.href")

    # The widget draws, fits into its cell, keeps its keys, and tells Python.
    show_cell(browser, WIDGET)
    browser.wait(f"{at(WIDGET, '.asp-canvas canvas')} !== null")
    root = at(WIDGET, ".asp-widget")
    assert browser.read(f"{root}.scrollHeight - {root}.clientHeight") <= 1
    x, y = browser.read(f"(b => [b.x + 60, b.y + 40])({at(WIDGET, 'canvas')}.getBoundingClientRect())")
    browser.click(x, y)
    assert browser.read(f"{at(WIDGET, '[aria-selected=true]')}.textContent") == "One head"
    for key in ("3", "4", "1", "x", "d", "d", "ArrowRight", "4"):
        browser.press(key)
    assert cells(browser) == (len(CODE), "c" * len(CODE))
    assert "asp-widget" in browser.read(FOCUS)
    browser.read(f"{at(WIDGET, '.asp-view tbody button')}.click()")
    browser.wait(f"{at(WIDGET, '.asp-ask')} !== null")  # Python has answered that it is there
    browser.read(f"{at(WIDGET, '.asp-ask')}.click()")
    browser.wait(f"/exact effect\\s+-?[0-9.]+/.test({at(WIDGET, '.asp-facts')}.innerText)")

    # The second one is for itself.
    show_cell(browser, PAIR)
    browser.wait(f"{at(PAIR, '.asp-canvas canvas')} !== null")
    assert browser.read(f"{at(PAIR, '[aria-selected=true]')}.textContent") == "Heads"
    browser.read(f"window.jupyterapp.shell.currentWidget.content.activeCellIndex = {SAID}")
    command(browser, "notebook:run-cell")
    browser.wait(f"({at(SAID, '.jp-OutputArea-output')} || {{innerText: ''}}).innerText.includes('layer')")
    one, two = (part + "}" for part in output(browser, SAID).strip().split("}")[:2])
    one, two = (json.loads(part.strip().replace("'", '"').replace("None", "null")) for part in (one, two))
    assert one["query"] is not None
    assert two["query"] is None

    # Pages in frames react, and leave the notebook's address, history and keys alone.
    before = browser.read("[location.href, history.length]")
    for cell in FRAMES:
        frame = frame_of(browser, cell)
        with browser.inside(frame):
            if cell == GRAPH:
                browser.read(
                    "document.getElementById('n0').dispatchEvent(new Event('click', {bubbles: true}))"
                )
                browser.read("document.querySelector('.pin').click()")
                assert browser.read("document.querySelectorAll('#pin-list li').length") == 1
            else:
                browser.read("document.querySelector('[data-view=list]').click()")
                assert browser.read(TABS)[0] == "Entries"
        assert output(browser, cell).strip() == ""  # no warning beside the page
    assert browser.read("[location.href, history.length]") == before
    assert before[0] == url

    # In the dark theme the text stays dark on white.
    command(browser, "apputils:change-theme", theme="JupyterLab Dark")
    browser.wait("document.body.dataset.jpThemeLight === 'false'")
    show_cell(browser, WIDGET)
    style = f"getComputedStyle({at(WIDGET, '.asp-widget')})"
    assert browser.read(f"[{style}.color, {style}.backgroundColor]") == [
        "rgb(28, 28, 28)",
        "rgb(255, 255, 255)",
    ]

    # Run again: a new widget in place of the old one.
    run_all(browser)
    show_cell(browser, WIDGET)
    browser.wait(f"{at(WIDGET, '.asp-canvas canvas')} !== null")
    assert (
        browser.read(
            f"document.querySelectorAll('[data-windowed-list-index=\"{WIDGET}\"] .asp-widget').length"
        )
        == 1
    )
    command(browser, "docmanager:save")
    browser.wait("!window.jupyterapp.shell.currentWidget.context.model.dirty")


def test_opened_again(server, notebook, browser):
    """Pages stay in the file, and are shown where it is trusted; a widget needs its kernel."""
    server.stop_kernels()
    server.open(browser, notebook.name)
    for cell in FRAMES:
        frame_of(browser, cell)


def test_not_trusted(server, notebook, browser):
    book = json.loads(notebook.read_text())
    book["cells"][0]["source"] = "# from somebody else\n" + "".join(book["cells"][0]["source"])
    (server.folder / "foreign.ipynb").write_text(json.dumps(book))
    server.open(browser, "foreign.ipynb")
    for cell in FRAMES:
        assert "It is shown when the notebook is trusted" in output(browser, cell)
    assert "run the cell to see it" in output(browser, WIDGET)
    assert browser.frames() == []


def test_exported(notebook, browser, tmp_path):
    """nbconvert's HTML has the pages; they need no network."""
    pytest.importorskip("nbconvert")
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "html", "--output-dir", str(tmp_path)]
    subprocess.run([*command, str(notebook)], check=True, capture_output=True, timeout=300)
    tall = {"width": 1300, "height": 6000, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **tall)  # a frame out of sight is not drawn
    browser.open(tmp_path / "a.html")
    until = time.monotonic() + SECONDS
    missing = set(FRAMES.values())
    while missing:
        assert time.monotonic() < until, missing
        for frame in browser.frames():
            with browser.inside(frame):
                missing -= {
                    what
                    for what in missing
                    if browser.read(f"document.querySelector({json.dumps(what)}) !== null")
                }
