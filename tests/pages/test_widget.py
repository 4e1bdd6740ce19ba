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
  send: (message) => window.sent.push(message), on: (name, hear) => {{ heard[name] = hear; }} }} }});
</script>"""


@pytest.mark.skipif(BINARY is None, reason="needs chromium or google-chrome")
def test_the_front_end(tmp_path):
    run = toy_model().run(PROMPT)
    data = attention_data(run, None, (7, 8), 0, 0.0, None, 0, False) | {"live": True}
    script = widget.widget_script().replace("export default", "const plugin =")
    path = tmp_path / "cell.html"
    path.write_text(PLAY.format(style=style_text(), data=json.dumps(data), script=script))
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
        browser.click_on(".asp-ask")
        [asked] = browser.read("sent")
        assert asked == {"model": 0, "prompt": 0, "entry": [layer, head, query, key]}
        text = "document.querySelector('.asp-facts').innerText"
        assert "computing" in browser.read(text)
        browser.read(f"say({{asked: {json.dumps(asked)}, value: 1.25}})")
        assert "1.25" in browser.read(text)
        browser.read("document.querySelector('.asp-widget').focus()")
        browser.press("Escape")
        assert browser.read("values.chosen.query") is None
        assert browser.read("outside") == 0  # the notebook does not hear keys that the widget used
        browser.press("x")
        assert browser.read("outside") == 1
        assert browser.read("location.hash") == ""
        browser.read("end()")
        assert browser.complaints() == []
