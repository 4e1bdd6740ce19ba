"""Texts of files and callers in notebooks' tables and in the page of a graph: no markup, nothing obeyed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
from fake_circuit import fake_circuit
from small_graph import small_graph

import attnsparse as asp
from attnsparse._display import escaped, html_table, printable_table
from attnsparse.model.initial_weights import initial_weights

EVIL = (
    "</script><img src=x onerror=alert(1)>\x00\x1b\u202e\ud800\ufffe\u2028"
    "<a href='javascript:alert(2)'>&amp;\"'"
)
SHOWN = "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;"


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [name for name, _ in attrs]


def model() -> asp.Model:
    config = asp.Config(n_layer=2, n_head=2, d_model=8, d_head=4, d_mlp=16, n_ctx=8, n_vocab=4)
    tokenizer = asp.Tokenizer.from_words([EVIL.replace("\ud800", ""), "a", "b", "c"])
    return asp.Model(config, initial_weights(config, 0), tokenizer, name=EVIL)


OBJECTS = {
    "run": lambda: model().run([0, 1, 2]),
    "batch": lambda: model().run([[0, 1], [0]]),
    "graph": lambda: replace(
        small_graph(9, strings=(EVIL, " b")), labels=tuple([EVIL] * len(small_graph(9, strings=(EVIL, " b"))))
    ),
    "circuit": lambda: fake_circuit([0, 0.3, 0.95, 1], [0, 2, 5, 8], spread=0.4, name=EVIL),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_tables_in_notebooks(name):
    text = OBJECTS[name]()._repr_html_()
    found = Elements(text)
    assert SHOWN[:20] in text
    assert not {"img", "script", "a"} & set(found.names)
    assert set(found.attributes) <= {"border", "class", "style", "colspan"}
    assert all(sign.isprintable() or sign == "\n" for sign in text)
    text.encode()


def test_any_table():
    columns = pd.Index([EVIL, "number", "empty"], dtype=object)  # Arrow would refuse the texts
    cells = [[EVIL, 1.5, ""], [None, 2, " "], [3, 3, EVIL]]
    table = pd.DataFrame(cells, columns=columns, dtype=object)
    table["number"] = table["number"].astype(float)
    shown = printable_table(table)
    assert next(iter(table.columns)) == EVIL  # a copy
    assert shown["number"].equals(table["number"])
    text = html_table(EVIL, table)
    assert set(Elements(text).names) <= {"p", "table", "thead", "tbody", "tr", "th", "td"}
    assert all(sign.isprintable() or sign == "\n" for sign in text)


def test_escaped():
    assert escaped("<b>\x00\u202e'") == "&lt;b&gt;\\x00\\u202e&#x27;"


def test_the_page(tmp_path):
    graph = small_graph(12, strings=(EVIL, " b", EVIL * 50), prompt=EVIL)
    graph = replace(
        graph, labels=tuple([EVIL] * len(graph)), model_name=EVIL, transcoders_name=EVIL, scan=EVIL,
        options={EVIL: EVIL},
    )  # fmt: skip
    text = graph.to_html(tmp_path / "page.html", title=EVIL).read_text("ascii")
    clean = graph.to_html(tmp_path / "clean.html").read_text("ascii")
    assert not {"img", "a"} & set(Elements(text).names)
    assert not {"href", "onerror", "src"} & set(Elements(text).attributes)
    assert text.count("<script") == text.count("</script") == clean.count("<script") == 2
    assert not re.search(r"&#(0|27|8238|8232|55296|65534|x1b|x202e);", text, re.IGNORECASE)
    [data] = re.findall(r'<script id="graph-data" type="application/json">(.*?)</script>', text)
    shown = json.loads(data)
    for label in (*shown["nodes"]["label"], *shown["tokens"], *shown["nodes"]["id"]):
        assert label.isprintable()
        assert len(label) <= 300
    assert len(text) < len(clean) + 5000


def test_a_path_in_a_warning_is_escaped(tmp_path, monkeypatch):
    monkeypatch.setattr("attnsparse._page.LARGE", 10)
    with pytest.warns(UserWarning, match=r"\\x1b\.html has \d+ MB") as caught:
        small_graph(9).to_html(tmp_path / "\x1b.html")
    assert "\x1b" not in str(caught[0].message)
