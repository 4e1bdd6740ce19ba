"""Pages inside what shows the output of a notebook: VS Code, Colab and Jupyter by their rules, played here.

VS Code shows all outputs in one frame and may give it a policy, which frames inside inherit. Colab gives each
output a frame of its own. JupyterLab and an exported file put the output into their page.
"""

from __future__ import annotations

import html
import json

import pytest
from chromium import BINARY, Browser
from page_toys import ATTACKS, PROMPT, hostile_model, toy_model
from small_graph import hostile_graph, small_graph

from attnsparse._page import frame
from attnsparse.graphs.page import page

pytestmark = pytest.mark.skipif(BINARY is None, reason="needs chromium or google-chrome")

VS_CODE = (
    "default-src 'none'; script-src 'self' https://*.vscode-cdn.net 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' https://*.vscode-cdn.net 'unsafe-inline'; img-src 'self' https: http: data:; "
    "font-src 'self' https:; connect-src https:; child-src https: data:"
)
WEBVIEW = "allow-scripts allow-same-origin allow-forms allow-pointer-lock allow-downloads"
OUTPUT_FRAME = (
    "allow-downloads allow-forms allow-modals allow-popups allow-popups-to-escape-sandbox allow-same-origin "
    "allow-scripts allow-storage-access-by-user-activation"
)
OUTPUT = """<!DOCTYPE html><meta charset="utf-8">{policy}
<style>table, th, tr {{ text-align: left !important; }} * {{ color: red; }}</style><div id="container"></div>
<script type="application/json" id="output">{output}</script>
<script>document.getElementById("container").innerHTML = {text};</script>"""
OF_OUTPUT = "JSON.parse(document.getElementById('output').textContent)"
PLACES = {
    "VS Code": (VS_CODE, WEBVIEW),
    "Colab": ("", OUTPUT_FRAME),
    "a page": ("", ""),
}


@pytest.fixture(scope="module")
def one_browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(one_browser):
    one_browser.events.clear()
    one_browser.call(
        "Emulation.setDeviceMetricsOverride", width=1200, height=950, deviceScaleFactor=1, mobile=False
    )
    yield one_browser
    assert one_browser.complaints() == []
    assert {url for url in one_browser.requests() if not url.startswith("file:///")} <= {
        "about:blank",
        "about:srcdoc",
    }


def opened(browser, folder, place: str, output: str) -> str:
    """Show an output as a place does: the frame with the page."""
    policy, sandbox = PLACES[place]
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">' if policy else ""
    told = json.dumps(output).replace("<", "\\u003c")
    (folder / "output.html").write_text(OUTPUT.format(policy=meta, output=told, text=OF_OUTPUT))
    if sandbox:
        inner = f'<iframe src="output.html" sandbox="{sandbox}" width="1180" height="920"></iframe>'
        (folder / "notebook.html").write_text(f'<!DOCTYPE html><meta charset="utf-8"><title>n</title>{inner}')
    browser.open(folder / ("notebook.html" if sandbox else "output.html"))
    browser.wait("document.readyState === 'complete'")
    for _ in range(500):
        if browser.frames():
            return browser.frames()[-1]
    raise AssertionError("there is no frame")


def attention() -> str:
    return frame(toy_model().run(PROMPT).to_html().encode(), 640)


def graph() -> str:
    return frame(page(small_graph(60)), 800)


@pytest.mark.parametrize("place", PLACES)
def test_attention(browser, tmp_path, place):
    inner = opened(browser, tmp_path, place, attention())
    before = browser.read("[location.href, history.length]")
    with browser.inside(inner):
        browser.wait("document.querySelector('.asp-view canvas') !== null")
        browser.read("document.querySelector('[data-view=list]').click()")
        browser.read("document.querySelector('.asp-view tbody button').click()")
        assert "contribution" in browser.read("document.querySelector('.asp-card').innerText")
        assert (
            browser.read("getComputedStyle(document.querySelector('.asp-card')).color") == "rgb(28, 28, 28)"
        )
        assert browser.read("location.hash") == ""
    assert browser.read("[location.href, history.length]") == before


@pytest.mark.parametrize("place", PLACES)
def test_graph(browser, tmp_path, place):
    inner = opened(browser, tmp_path, place, graph())
    before = browser.read("[location.href, history.length]")
    title = "(document.querySelector('#details h2') || {}).textContent"
    with browser.inside(inner):
        browser.wait("document.querySelector('.node') !== null")
        for number in (5, 7):
            browser.read(
                f"document.getElementById('n{number}').dispatchEvent(new Event('click', {{bubbles: true}}))"
            )
            browser.read("document.querySelector('.pin').click()")
        assert browser.read("document.querySelectorAll('#pin-list li').length") == 2
        assert browser.read("document.querySelectorAll('.node.pinned').length") == 2
        assert browser.read(title) is not None
        assert browser.read("location.hash") == ""
        browser.read("document.querySelector('#pin-list button').click()")
        assert browser.read(title) == browser.read("document.querySelector('#pin-list button').textContent")
        browser.read("document.getElementById('unpin-all').click()")
        assert browser.read("document.getElementById('pins').hidden") is True
    assert browser.read("[location.href, history.length]") == before


def test_the_code_is_copied_where_the_clipboard_is_closed(browser, tmp_path):
    inner = opened(browser, tmp_path, "a page", graph())
    with browser.inside(inner):
        browser.wait("document.querySelector('.node.feature, .node .feature') !== null")
        click = "dispatchEvent(new Event('click', {bubbles: true}))"
        browser.read(f"document.querySelector('.mark.feature').parentNode.{click}")
        browser.read("document.querySelector('.pin').click()")
        browser.read("document.getElementById('pin-copy').scrollIntoView({block: 'center'})")
        box = "document.getElementById('pin-copy').getBoundingClientRect()"
        x, y = browser.read(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")
    left, top = browser.read("(b => [b.x, b.y])(document.querySelector('iframe').getBoundingClientRect())")
    browser.click(left + x, top + y)
    with browser.inside(inner):
        browser.wait("document.getElementById('pin-said').textContent !== ''")
        assert browser.read("document.getElementById('pin-said').textContent") in (
            "copied",
            "selected: press Ctrl+C",
        )
        code = browser.read("document.getElementById('pin-code').textContent")
        assert browser.read("getSelection().toString()").strip() == code.strip()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", ["attention", "graph"])
def test_no_text_is_code(browser, tmp_path, place, what):
    if what == "graph":
        output = frame(page(hostile_graph()), 800)
    else:
        run = hostile_model().run([*range(len(ATTACKS)), 0])
        output = frame(run.to_html(title=ATTACKS[1]).encode(), 640)
    inner = opened(browser, tmp_path, place, output)
    with browser.inside(inner):
        browser.wait("document.readyState === 'complete' && document.querySelector('canvas, .node') !== null")
        assert browser.read("typeof window.hacked") == "undefined"
        assert browser.read("document.querySelectorAll('img').length") == 0
    assert browser.read("typeof window.hacked") == "undefined"
    assert browser.read("document.querySelectorAll('img').length") == 0


def test_words_where_frames_are_taken_out():
    """What cleans an output of a notebook that is not trusted leaves the words inside the frame."""
    text = attention()
    start = text.index(">", text.rindex('title="attnsparse"')) + 1
    words = text[start : text.index("</iframe>")]
    assert words == html.escape(words)
    assert "trusted" in words
