"""The widget: what Python answers, and the front end with a notebook's side of it played by the test."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from chromium import BINARY, Browser
from page_toys import PROMPT, toy_model

import attnsparse as asp
from attnsparse.pages import attention_widget, widget
from attnsparse.pages.attention import attention_data, style_text


class Notebook:
    """The side of a widget that gets its answers."""

    def __init__(self):
        self.said = []

    def send(self, answer):
        self.said.append(answer)


def test_answers_are_exact_effects():
    runs = [toy_model(False).run([PROMPT, "The opposite"]), toy_model().run([PROMPT, "The opposite"])]
    answer, notebook = widget._answers(runs, (7, 8)), Notebook()
    for model, run in enumerate(runs):
        layer, head, query, key = np.argwhere(run[1].pattern[1:] > 0)[-1] + (1, 0, 0, 0)
        asked = {"model": model, "prompt": 1, "entry": [int(layer), int(head), int(query), int(key)]}
        answer(notebook, asked, None)
        said = notebook.said.pop()
        assert said["asked"] == asked
        without = run.model.run("The opposite", ablate=asp.Edge(*asked["entry"])).logits[-1]
        lost = run[1].logits[-1] - without
        assert said["value"] == pytest.approx(lost[7] - lost[8], abs=2e-5)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"model": 0, "prompt": 0, "entry": [0, 9, 1, 0]}, "out of range"),
        ({"model": 0, "prompt": 0, "entry": [0, 0, 1, 2]}, "attention looks back"),
        ({"model": 0, "prompt": 0, "entry": "L0H0"}, ""),
        ({"model": 4, "prompt": 0, "entry": [0, 0, 0, 0]}, "index out of range"),
    ],
)
def test_wrong_questions_are_answered(asked, text):
    notebook = Notebook()
    widget._answers([toy_model().run(PROMPT)], (7, 8))(notebook, asked, None)
    [said] = notebook.said
    assert said["asked"] == asked
    assert text in said["error"]


def test_without_anywidget(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ImportError, match=r"pip install 'attnsparse\[notebook\]'"):
        toy_model().run(PROMPT).widget()


def test_wrong_arguments():
    run = toy_model().run(PROMPT)
    for options, error, text in (
        ({"height": 3}, ValueError, "height must be at least 100"),
        ({"effects": 3}, TypeError, "effects must be a Task or a pair"),
        ({"circuit": 3}, TypeError, "circuit must be a Circuit"),
    ):
        with pytest.raises(error, match=text):
            attention_widget(run, **options)


def test_the_widget():
    pytest.importorskip("anywidget")
    run = toy_model().run(PROMPT)
    made = run.widget(effects=(7, 8), height=333, base=1)
    data = json.loads(made.data)
    expected = attention_data(run, None, (7, 8), 0, 0.0, None, 1, False)
    assert data == expected | {"live": True}
    assert (made.height, made.chosen) == (333, {})
    assert made._css == style_text()
    assert made._esm == widget.widget_script()
    assert json.loads(run.widget().data)["live"] is False
    with_one = attention_widget([run, toy_model(False).run(PROMPT)])
    assert len(json.loads(with_one.data)["models"]) == 2
    for each in (made, with_one):
        each.close()


PLAY = """<!DOCTYPE html><meta charset="utf-8"><style>{style}</style><div id="cell"></div>
<script type="application/json" id="played">{data}</script><script type="module">
{script}
const values = {{ data: document.getElementById("played").textContent, height: 500, chosen: {{}} }};
const heard = {{}};
window.sent = []; window.outside = 0; window.values = values;
window.say = (answer) => heard["msg:custom"](answer);
document.addEventListener("keydown", () => {{ window.outside += 1; }});
window.end = plugin.render({{ el: document.getElementById("cell"), model: {{
  get: (name) => values[name], set: (name, value) => {{ values[name] = value; }}, save_changes: () => {{}},
  send: (message) => window.sent.push(message), on: (name, hear) => {{ heard[name] = hear; }},
  off: (name, hear) => {{ if (heard[name] === hear) delete heard[name]; }} }} }});
window.listens = () => "msg:custom" in heard;
</script>"""
KEYS = "[...document.querySelectorAll('.asp-widget')].findIndex(e => e.contains(document.activeElement))"
VIEW = "document.querySelector('.asp-tabs [aria-selected=true]').textContent"


def played(folder, live: bool = True):
    """A page that plays the notebook's side of a widget."""
    run = toy_model().run(PROMPT)
    effects = (7, 8) if live else None
    data = attention_data(run, None, effects, 0, 0.0, None, 0, False) | {"live": live}
    script = widget.widget_script().replace("export default", "const plugin =")
    path = folder / "cell.html"
    path.write_text(PLAY.format(style=style_text(), data=json.dumps(data), script=script))
    return run, path


@pytest.mark.skipif(BINARY is None, reason="needs chromium or google-chrome")
def test_the_front_end(tmp_path):
    run, path = played(tmp_path)
    layer, head, query, key = (int(n) for n in np.argwhere(run.pattern > 0.1)[-1])
    with Browser() as browser:
        browser.open(path)
        browser.wait("document.querySelector('.asp-view canvas') !== null")
        chosen = browser.read("values.chosen")
        assert set(chosen) == {"prompt", "model", "layer", "head", "query", "key"}
        assert (chosen["query"], chosen["key"]) == (None, None)
        browser.click_on("[data-view=list]")
        browser.read(f"document.querySelector('.asp-filter').value = 'L{layer}H{head} {key}->{query}'")
        browser.read("document.querySelector('.asp-filter').dispatchEvent(new Event('input'))")
        browser.click_on(".asp-view tbody button")
        expected = {"prompt": 0, "model": 0, "layer": layer, "head": head, "query": query, "key": key}
        assert browser.read("values.chosen") == expected
        assert browser.read("document.querySelector('.asp-facts').innerText").endswith("not computed")
        assert browser.read("sent") == ["here?"]  # no answer: a notebook that was opened again, or exported
        browser.read("say({here: true})")
        browser.click_on(".asp-ask")
        _, asked = browser.read("sent")
        assert asked == {"model": 0, "prompt": 0, "entry": [layer, head, query, key]}
        text = "document.querySelector('.asp-facts').innerText"
        assert "computing" in browser.read(text)
        browser.read(f"say({{asked: {json.dumps(asked)}, value: 1.25}})")
        assert "1.25" in browser.read(text)
        browser.read("document.querySelector('.asp-widget').focus()")
        browser.press("Escape")
        assert browser.read("values.chosen.query") is None
        assert browser.read("outside") == 0  # the notebook does not hear keys that the widget used
        assert browser.read("location.hash") == ""
        browser.read("end()")
        assert browser.read("listens()") is False
        assert browser.complaints() == []


@pytest.mark.skipif(BINARY is None, reason="needs chromium or google-chrome")
def test_keys_stay_in_the_widget(tmp_path):
    """Whatever is drawn anew, the widget keeps the keyboard, and no plain key reaches the notebook."""
    _, path = played(tmp_path)
    with Browser() as browser:
        browser.open(path)
        browser.wait("document.querySelector('.asp-view canvas') !== null")
        browser.read("document.querySelector('.asp-view canvas').focus()")
        for key, view in (
            ("3", "Sentence"),
            ("4", "Entries"),
            ("2", "One head"),
            ("1", "Heads"),
            ("Enter", "One head"),
        ):
            browser.press(key)
            assert (browser.read(VIEW), browser.read(KEYS)) == (view, 0)
        for key in "xdd":  # in a notebook, x cuts the cell and dd deletes it
            browser.press(key)
        browser.press("3")
        browser.read("document.querySelector('.asp-least input').focus()")
        browser.press("ArrowRight")  # a slider's key, which is the notebook's too
        assert browser.read("outside") == 0
        browser.read("document.querySelector('.asp-widget').focus()")
        shift = {"type": "keyDown", "key": "Enter", "windowsVirtualKeyCode": 13, "modifiers": 8}
        browser.call("Input.dispatchKeyEvent", **shift)  # runs the cell
        assert (browser.read("outside"), browser.read(VIEW)) == (1, "Sentence")
        assert browser.complaints() == []


@pytest.mark.skipif(BINARY is None, reason="needs chromium or google-chrome")
def test_the_size_of_the_cell(tmp_path):
    """A widget draws for its own height, not for the window's, and its tip is beside the pointer."""
    _, path = played(tmp_path)
    with Browser() as browser:
        sizes = {"width": 1000, "height": 3000, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **sizes)
        browser.open(path)
        browser.wait("document.querySelector('.asp-view canvas') !== null")
        root = "document.querySelector('.asp-widget')"
        assert browser.read(f"{root}.clientHeight") <= 500
        canvas = browser.read("document.querySelector('.asp-view canvas').getBoundingClientRect().toJSON()")
        assert canvas["height"] <= 400
        browser.read("values.height = 260")
        browser.press("4")
        browser.read(f"{root}.style.maxHeight = '260px'")
        browser.click_on("[data-view=heads]")
        browser.read(f"{root}.scrollTop = 60")
        assert browser.read(f"{root}.scrollTop") > 20
        x, y = browser.read(
            "(b => [b.x + 40, b.y + 130])(document.querySelector('canvas').getBoundingClientRect())"
        )
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        tip = browser.read("document.querySelector('.asp-tip').getBoundingClientRect().toJSON()")
        assert min(abs(tip["top"] - y), abs(tip["bottom"] - y)) < 20


@pytest.mark.skipif(BINARY is None, reason="needs chromium or google-chrome")
def test_two_widgets_in_one_notebook(tmp_path):
    _, path = played(tmp_path)
    text = path.read_text()
    twice = text.replace('<div id="cell"></div>', '<div id="cell"></div><hr><div id="other"></div>').replace(
        "window.listens",
        """const others = {{ ...values, chosen: {{}} }};
const set = (name, value) => {{ others[name] = value; }}, nothing = () => {{}};
plugin.render({{ el: document.getElementById("other"), model: {{ get: (name) => others[name], set,
  save_changes: nothing, send: nothing, on: nothing, off: nothing }} }});
window.others = others;
window.listens""".replace("{{", "{").replace("}}", "}"),
    )
    path.write_text(twice)
    with Browser() as browser:
        browser.open(path)
        browser.wait("document.querySelectorAll('.asp-canvas canvas').length === 2")
        assert (
            browser.read("document.querySelectorAll('[id]').length") == 3
        )  # the test's own: a widget names none
        browser.read("document.querySelectorAll('.asp-canvas canvas')[1].focus()")
        for _ in range(2):
            browser.press("ArrowUp")
            browser.press("ArrowLeft")
        before = browser.read("values.chosen")
        assert browser.read("[others.chosen.layer, others.chosen.head]") != [before["layer"], before["head"]]
        browser.press("4")
        views = "[...document.querySelectorAll('.asp-tabs [aria-selected=true]')].map(e => e.textContent)"
        assert browser.read(views) == ["Heads", "Entries"]
        assert browser.read("values.chosen") == before
        assert browser.read(KEYS) == 1
        assert browser.complaints() == []
