"""The page of attention: it holds the numbers of its runs, asks for nothing; no text in it becomes code."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from page_toys import ATTACKS, PROMPT, WORDS, hostile_model, toy_model, toy_task

import attnsparse as asp
from attnsparse import _page
from attnsparse.pages import attention, attention_data, attention_page, show_attention

FOLDER = Path(asp.__file__).parent / "pages" / "assets"
LATE_TOKEN = 5  # of the toy's 8, from 0


class Reader(HTMLParser):
    """Elements, attributes and texts as a browser finds them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.texts.setdefault(tag, []).append("")
        self._open = tag

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open:
            self.texts[self._open][-1] += data

    @property
    def data(self) -> dict:
        return json.loads(self.texts["script"][0])


def data_of(run, **options) -> dict:
    return Reader(attention_page(run, **options)).data


def array(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def dense_form(prompt: dict, n_heads: int, t: int, name: str, kind: str) -> np.ndarray:
    """An array of a prompt as [heads, query, key]; entries that were not sent are 0."""
    found = np.zeros((n_heads, t, t))
    values = array(prompt[name], kind)
    if prompt.get("form") == "all":
        query, key = np.tril_indices(t)
        found[:, query, key] = values.reshape(n_heads, -1)
        return found
    start, cell = array(prompt["start"], "<u4"), array(prompt["cell"], "<u4")
    assert start[0] == 0
    assert start[-1] == len(cell) == len(values)
    head = np.repeat(np.arange(n_heads), np.diff(start))
    found[head, cell // t, cell % t] = values
    return found


# ------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("gated", [False, True])
def test_weights_scores_and_contributions_are_those_of_the_run(gated):
    run = toy_model(gated).run(PROMPT)
    data = data_of(run)
    [model], [prompt] = data["models"], data["models"][0]["prompts"]
    n_heads, t = model["n_layer"] * model["n_head"], run.n_tokens
    pattern = run.pattern.reshape(n_heads, t, t)
    sent = dense_form(prompt, n_heads, t, "weight", "<u2")
    np.testing.assert_allclose(sent / 65535, pattern, atol=1 / 65535)
    np.testing.assert_array_equal(sent > 0, pattern > 0)
    assert (model["gated"], prompt["form"]) == (gated, "all")
    assert prompt["n_open"] == np.count_nonzero(pattern)
    assert prompt["n_left_out"] == 0
    norms = array(prompt["norm"], "<f4").reshape(n_heads, t)
    table = run.open_edges()
    head = table["layer"] * model["n_head"] + table["head_index"]
    query, key = table["query_position"], table["key_position"]
    contribution = pattern[head, query, key] * norms[head, key]
    np.testing.assert_allclose(contribution, table["contribution"], rtol=1e-5)
    if not gated:
        assert prompt["score"] is None
        return
    scores = dense_form(prompt, n_heads, t, "score", "<i2") * prompt["score_scale"]
    query, key = np.tril_indices(t)
    expected = toy_model(True).run(PROMPT, record="scores").scores.reshape(n_heads, t, t)
    np.testing.assert_allclose(
        scores[:, query, key], expected[:, query, key], atol=0.51 * prompt["score_scale"] + 1e-5
    )


def test_open_entries_alone_are_the_same_numbers(monkeypatch):
    run = toy_model().run(PROMPT)
    every = data_of(run)["models"][0]["prompts"][0]
    monkeypatch.setattr(attention_data, "_ALWAYS_ALL", 0)
    some = data_of(run)["models"][0]["prompts"][0]
    assert (every["form"], some["form"]) == ("all", "open")
    weights = [dense_form(prompt, 12, 8, "weight", "<u2") for prompt in (every, some)]
    np.testing.assert_array_equal(*weights)
    is_open = weights[0] > 0
    scores = [dense_form(prompt, 12, 8, "score", "<i2") * prompt["score_scale"] for prompt in (every, some)]
    np.testing.assert_allclose(scores[0][is_open], scores[1][is_open], atol=2 * every["score_scale"])
    from_edges = data_of(toy_model().run(PROMPT, record="edges"))["models"][0]["prompts"][0]
    np.testing.assert_array_equal(dense_form(from_edges, 12, 8, "weight", "<u2"), weights[0])
    assert from_edges["norm"] is from_edges["score"] is None


def test_threshold():
    run = toy_model(False).run(PROMPT)
    prompt = data_of(run, threshold=0.2)["models"][0]["prompts"][0]
    kept = run.pattern.reshape(12, 8, 8)
    expected = np.where(kept > 0.2, kept, 0)
    np.testing.assert_allclose(dense_form(prompt, 12, 8, "weight", "<u2") / 65535, expected, atol=1 / 65535)
    assert prompt["n_left_out"] == np.count_nonzero(kept) - np.count_nonzero(expected) > 0


@pytest.mark.parametrize("gated", [False, True])
def test_exact_effects_are_those_of_ablated_runs(gated):
    model = toy_model(gated)
    run = model.run(PROMPT)
    data = data_of(run, effects=(" small", 8), n_effects=20)
    assert data["effect"] == "logit( small) - logit(8) after the last token"
    sent = data["models"][0]["prompts"][0]["effects"]
    start, cell, value = (
        array(sent[name], kind) for name, kind in (("start", "<u4"), ("cell", "<u4"), ("value", "<f4"))
    )
    head = np.repeat(np.arange(12), np.diff(start))
    assert len(value) == 20
    largest = run.open_edges().sort_values("contribution", ascending=False)["contribution"].to_numpy()[:20]
    contributions = []
    norms = run.value_norms()[1]
    for h, c, effect in zip(head, cell, value):
        edge = asp.Edge(h // 4, h % 4, c // 8, c % 8)
        without = model.run(PROMPT, ablate=edge).logits[-1]
        difference = run.logits[-1] - without
        assert effect == pytest.approx(difference[7] - difference[8], abs=2e-5)
        contributions.append(run.pattern[edge] * norms[edge.layer, edge.head, edge.key])
    np.testing.assert_allclose(sorted(contributions, reverse=True), largest, rtol=1e-5)
    assert np.abs(value).max() > 1e-3


def test_effects_on_a_task_are_means_over_its_prompts():
    model, task = toy_model(), toy_task()
    run = model.run(task.clean[0])
    data = data_of(run, effects=task, n_effects=3)
    assert data["effect"] == "logit_diff of toy, mean of 6 prompts"
    sent = data["models"][0]["prompts"][0]["effects"]
    head = np.repeat(np.arange(12), np.diff(array(sent["start"], "<u4")))
    for h, c, effect in zip(head, array(sent["cell"], "<u4"), array(sent["value"], "<f4")):
        edge = asp.Edge(h // 4, h % 4, c // 8, c % 8)
        lost = []
        for prompt in task.clean:
            whole, without = (model.run(prompt, ablate=a).logits[-1] for a in (None, edge))
            lost.append((whole - without)[7] - (whole - without)[8])
        assert effect == pytest.approx(np.mean(lost), abs=2e-5)


def test_prompts_models_and_words():
    dense, sparse = (toy_model(gated, name=name) for gated, name in ((False, "thick"), (True, "thin")))
    prompts = [PROMPT, "The opposite"]
    data = data_of([dense.run(prompts), sparse.run(prompts)], title="a title", base=1)
    assert [model["name"] for model in data["models"]] == ["thick", "thin"]
    assert [prompt["text"] for prompt in data["prompts"]] == prompts
    assert data["prompts"][0]["tokens"] == ["The", "opposite", "of", '"', "large", '"', "is", '"']
    assert [len(model["prompts"]) for model in data["models"]] == [2, 2]
    assert (data["title"], data["base"], data["effect"]) == ("a title", 1, "")
    short = sparse.run(prompts)[1]
    sent = dense_form(data["models"][1]["prompts"][1], 12, 2, "weight", "<u2")
    np.testing.assert_allclose(sent / 65535, short.pattern.reshape(12, 2, 2), atol=1 / 65535)
    assert data_of(sparse.run([0, 1]))["title"] == "The opposite"


def circuit_of(model, unit="edge"):
    return asp.find_circuit(model, toy_task(), unit=unit, n_bootstrap=5, n_random=1, progress=False)


@pytest.mark.parametrize("unit", ["edge", "head", "head_position"])
def test_circuits(unit):
    model = toy_model()
    circuit = circuit_of(model, unit)
    run = model.run(PROMPT)
    data = data_of([run, toy_model(False).run(PROMPT)], circuit=circuit)
    sent = data["models"][0]["circuit"]
    assert data["models"][1]["circuit"] is None
    np.testing.assert_array_equal(array(sent["items"], "<i4").reshape(-1, sent["width"]), circuit.items)
    np.testing.assert_allclose(array(sent["scores"], "<f4"), circuit.scores, rtol=1e-6)
    assert sent["sizes"] == circuit.sizes.tolist()
    np.testing.assert_allclose(np.array(sent["effect"], float), circuit.effect, rtol=1e-3)
    assert sent["first"] == circuit.needed().first
    alone = Reader(circuit.to_html()).data
    assert alone["models"][0]["circuit"] == sent
    assert alone["title"] == "Circuit of toy in toy"
    assert alone["models"][0]["value"] == "|score|"
    [prompt] = alone["models"][0]["prompts"]
    shares = array(prompt["weight"], "<u2") / 65535
    assert shares.max() == pytest.approx(1)
    assert len(shares) == len(circuit)


# ----------------------------------------------------------------------------------------- security


def test_nothing_is_loaded():
    text = toy_model().run(PROMPT).to_html()
    reader = Reader(text)
    known = {"html", "head", "meta", "title", "style", "body", "div", "noscript", "footer", "script"}
    assert set(reader.tags) == known
    assert not [a for a in reader.attributes if a[1] in ("src", "href", "srcset", "action", "style")]
    assert not [a for a in reader.attributes if a[1].startswith("on")]
    names = text.replace("http://www.w3.org/2000/svg", "")  # the name of a language
    assert not re.search(r"https?:|url\(|@import", names)


def test_the_policy_allows_this_script_and_style_alone():
    reader = Reader(toy_model().run(PROMPT).to_html())
    [policy] = [value for tag, name, value in reader.attributes if name == "content" and "default" in value]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    for name, text in (("script-src", reader.texts["script"][1]), ("style-src", reader.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(name) == f"'sha256-{digest}'"
    assert rules == {"base-uri": "'none'", "form-action": "'none'"}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.js")), ids=lambda path: path.name)
def test_scripts_make_no_code_of_text(path):
    text = path.read_text(encoding="ascii")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", text)
    assert not re.search(r"fetch\(|XMLHttp|import\(|Worker|setTimeout|\.src\b", text)
    assert not re.search(r"</|<!--|<script", text)
    assert max(map(len, text.splitlines())) <= 120
    assert len(text.splitlines()) < 300


def test_every_script_is_in_the_page():
    assert {path.name for path in FOLDER.glob("*.js")} == {*attention.SCRIPTS, "page.js", "widget.js"}


def test_no_text_breaks_out():
    model = hostile_model()
    run = model.run(list(range(len(ATTACKS))))
    text = run.to_html(title=ATTACKS[1] + ATTACKS[3] + "\ud800", effects=(0, 1), n_effects=3)
    assert text.isascii()
    reader, plain = Reader(text), Reader(toy_model().run(PROMPT).to_html())
    assert reader.tags == plain.tags
    assert reader.texts["script"][1] == plain.texts["script"][1]
    assert [a for a in reader.attributes if a[0] == "script"] == [
        a for a in plain.attributes if a[0] == "script"
    ]
    block = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1]
    assert not set("<>&") & set(block)
    data = json.loads(block)
    assert data["models"][0]["name"] == ATTACKS[0]
    assert data["prompts"][0]["tokens"][0] == ATTACKS[0].replace(" ", "␣")
    shown = [data["title"], *data["prompts"][0]["tokens"], data["models"][0]["name"]]
    assert all(sign.isprintable() for sign in "".join(shown))
    assert reader.texts["title"][0] == data["title"]


# ------------------------------------------------------------------------------- files and notebooks


def test_files(tmp_path):
    run = toy_model().run(PROMPT)
    path = run.to_html(tmp_path / "page.html", base=1)
    assert path == tmp_path / "page.html"
    assert path.read_text() == run.to_html(base=1) == attention_page(run, base=1)
    twin = toy_model(False).run(PROMPT)
    assert run.to_html(beside=twin) == run.to_html(beside=[twin]) == attention_page([run, twin])
    circuit = circuit_of(toy_model())
    assert circuit.to_html(tmp_path / "circuit.html", title="x").read_text() == circuit.to_html(title="x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["circuit.html", "page.html"]


def test_a_large_page(tmp_path, monkeypatch):
    run = toy_model().run(PROMPT)
    monkeypatch.setattr(_page, "LARGE", 1000)
    with pytest.warns(UserWarning, match=r"page\.html has 0 MB and will open slowly; raise threshold"):
        run.to_html(tmp_path / "page.html")
    monkeypatch.setattr(attention, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"would have 0 MB, and at most 0 MB are made; raise thresh"):
        run.to_html()


def shown_in_a_terminal(show, capsys, tmp_path, monkeypatch) -> str:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert capsys.readouterr().out == ""
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert show(open_browser=False) is None
    [path] = tmp_path.rglob("*.html")
    assert capsys.readouterr().out == f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser\n"
    assert opened == []
    show(open_browser=True)
    assert opened == [next(p for p in tmp_path.rglob("*.html") if p != path).as_uri()]
    capsys.readouterr()
    return path.read_text()


def test_show_outside_a_notebook(capsys, tmp_path, monkeypatch):
    run = toy_model().run(PROMPT)
    for i, (thing, page) in enumerate(((run, run.to_html()), (circuit_of(toy_model()), None))):
        folder = tmp_path / str(i)
        folder.mkdir()
        page = page or thing.to_html()
        assert shown_in_a_terminal(thing.show, capsys, folder, monkeypatch) == page


class ipykernel_shell:
    __module__ = "ipykernel.zmqshell"


@pytest.fixture
def displayed(monkeypatch):
    """What a notebook was given to display."""
    shown: list[dict[str, str]] = []
    fake = SimpleNamespace(
        get_ipython=ipykernel_shell, display=SimpleNamespace(display=lambda data, raw: shown.append(data))
    )
    monkeypatch.setitem(sys.modules, "IPython", fake)
    return shown


def test_show_in_a_notebook(displayed, monkeypatch, capsys):
    run = toy_model().run(PROMPT)
    show_attention(run, height=333)
    [bundle] = displayed
    assert bundle.keys() == {"text/html", "text/plain"}
    assert "trusted" in bundle["text/plain"]
    reader = Reader(bundle["text/html"])
    assert reader.tags == Counter({"iframe": 1})
    attributes = {name: value for _, name, value in reader.attributes}
    assert attributes["srcdoc"] == run.to_html()
    assert (attributes["sandbox"], attributes["height"]) == ("allow-scripts", "333")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(_page, "MAX_SHOWN", 1000)
    with pytest.raises(ValueError, match=r"has 0 MB, and a notebook with it would be as large; raise"):
        run.show()


# ------------------------------------------------------------------------------------ wrong arguments


def other_prompt(e):
    return toy_model(False).run("The opposite")


WRONG = {
    "no runs": (lambda e: attention_page([]), ValueError, "runs must hold at least one run"),
    "no run": (lambda e: attention_page(3), TypeError, "runs must be a Run, got int"),
    "no pattern": (lambda e: toy_model().run(PROMPT, "z").to_html(), ValueError, "needs the pattern or"),
    "another prompt": (lambda e: e.to_html(beside=other_prompt(e)), ValueError, "tokens of prompt 0 differ"),
    "more prompts": (
        lambda e: e.to_html(beside=toy_model(False).run([PROMPT, PROMPT])),
        ValueError,
        "must have the same prompts, got 1 and 2",
    ),
    "another circuit": (
        lambda e: toy_model(False).run(PROMPT).to_html(circuit=circuit_of(toy_model())),
        ValueError,
        "circuit is of the model 'toy', and the runs are of 'toy'",
    ),
    "no circuit": (lambda e: e.to_html(circuit=[3]), TypeError, "circuit must be a Circuit, got int"),
    "a short prompt": (
        lambda e: toy_model().run("The opposite").to_html(circuit=circuit_of(toy_model())),
        ValueError,
        "circuit has items at position 7, and a prompt of these runs is shorter",
    ),
    "effects": (lambda e: e.to_html(effects="small"), TypeError, "effects must be a Task or a pair"),
    "equal tokens": (lambda e: e.to_html(effects=(7, " small")), ValueError, "the same, 7"),
    "two tokens": (
        lambda e: e.to_html(effects=("The opposite", 3)),
        ValueError,
        r"is 2 tokens \(.*\), expected one",
    ),
    "effects of a changed run": (
        lambda e: toy_model().run(PROMPT, ablate="L0H0").to_html(effects=(7, 8)),
        ValueError,
        "this run was made with interventions; leave out effects=",
    ),
    "a longer task": (
        lambda e: toy_model().run("The opposite").to_html(effects=toy_task()),
        ValueError,
        "have 8 tokens, and this run has 2",
    ),
    "base": (lambda e: e.to_html(base=2), ValueError, "base must be 0 or 1, got 2"),
    "title": (lambda e: e.to_html(title=5), TypeError, "title must be a string, got int"),
    "threshold": (lambda e: e.to_html(threshold=2), ValueError, r"threshold must be a finite number in 0"),
    "n_effects": (lambda e: e.to_html(effects=(7, 8), n_effects=-1), ValueError, "n_effects must be at"),
    "height": (lambda e: e.show(height=5), ValueError, "height must be at least 100, got 5"),
    "open_browser": (lambda e: e.show(open_browser=3), TypeError, "open_browser must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    call, error, text = WRONG[name]
    with pytest.raises(error, match=text):
        call(toy_model().run(PROMPT))


def test_words_of_the_toy():
    assert toy_model().run(PROMPT).n_tokens == 8
    assert len(WORDS) == 9
    assert 0 < np.count_nonzero(toy_model().run(PROMPT, record="gate").gate) < 12 * 36
