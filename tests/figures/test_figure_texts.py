"""Texts of files and callers in every figure: literal, escaped, short, whatever they hold, however many."""

from __future__ import annotations

import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise

import matplotlib as mpl
from places import IMPORTED

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fake_circuit import fake_circuit
from fake_components import fake_component_circuit, fake_component_curve, fake_component_scores
from fake_entry_effects import fake_entry_effects
from fake_run import FakeModel
from matplotlib.figure import Figure
from matplotlib.text import Text
from planted_calls import find
from small_graph import small_graph

from attnsparse import figures
from attnsparse.figures.entry_overview import draw_sketch
from attnsparse.figures.style import LARGEST, apart, given_text
from attnsparse.items import shortened, token_label
from attnsparse.tasks import addition

MARK = "\\input{"
"""Begins every hostile text and stands in what is drawn of it."""
STRANGE = (
    "$a$", "\\frac{$", "%", "_^&#", "\x00", "\x1b[31m", "\x9b", "\u202e", "\u2028", "\ud800", "\udcff",
    "\ufffe", "\uffff", "\x7f", "</svg>", "-->", "\U000e0001",
)  # fmt: skip
BLANK = ("", " ", "\t", "\u2800", "\u3164", "\xa0")
LONG = "a" * 3000


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def edge():
    return find()


def every_figure(text: str, edge) -> dict[str, object]:
    """Name -> how a figure is drawn that has `text` wherever a file or the caller can put one."""
    words = tuple(f"{text}{i}" if text.strip() else text + " " * i for i in range(6))
    run = FakeModel(3, words=words, name=text).run(np.arange(6, dtype=np.int32))
    adder = FakeModel(0, words=addition.VOCABULARY, n_ctx=11, n_layer=4, name=text)
    graph = small_graph(30, strings=words, n_logits=2)
    labels = tuple(
        text if kind in ("feature", "logit") else label for kind, label in zip(graph.kind, graph.labels)
    )
    graph = replace(graph, labels=labels, model_name=text, transcoders_name=text)
    curve = fake_circuit([0, 0.3, 0.95, 1], [0, 2, 5, 8], spread=0.4, name=text)
    parts = fake_component_circuit(name=text)
    part_curve = fake_component_curve(name=text)
    edges = fake_circuit([0, 0.3, 0.95, 1], [0, 2, 5, 8], unit="edge", task=text, name=text)
    found = fake_entry_effects(3, name=text)
    found.run.model.words = tuple(text + word for word in found.run.model.words)
    found = replace(found, answer=text)
    other = renamed(edge, text)
    return {
        "head_grid": lambda: figures.head_grid(run, title=text),
        "head_grids": lambda: figures.head_grids([(text, run, None), (text, run, ["0.0"])]),
        "attention_map": lambda: figures.attention_map(run, 0, 0),
        "attention_map with a title": lambda: figures.attention_map(run, 0, 0, title=text),
        "edge_lines": lambda: figures.edge_lines(run, title=text, predictions={2: text}),
        "edge_lines with labels": lambda: figures.edge_lines(run, labels=[text] * 6),
        "addition_figure": lambda: figures.addition_figure(adder, adder, ["12+34"], caption=text),
        "effect_curves": lambda: figures.effect_curves({text: curve, f"{text}2": curve}, title=text),
        "component_graph": lambda: figures.component_graph(parts, 20),
        "component_graph with a title": lambda: figures.component_graph(parts, 20, title=text),
        "component_matrix": lambda: figures.component_matrix(fake_component_scores(name=text)),
        "component_matrix with a title": lambda: figures.component_matrix(
            fake_component_scores(), title=text
        ),
        "component_curve": lambda: figures.component_curve({text: part_curve}, title=text),
        "component_and_attention": lambda: figures.component_and_attention(part_curve, edges, title=text),
        "graph": lambda: figures.graph(graph),
        "graph with a title": lambda: figures.graph(graph, title=text),
        "entry_overview": lambda: draw_sketch(found, found),
        "graph_overview": lambda: figures.graph_overview(other, other),
    }


def renamed(edge, text: str):
    """The edge of another graph: the name of the model, the tokens and the groups are `text` and what was."""
    name = {old: text + old if text.strip() else text + " " * i for i, old in enumerate(edge.named_groups)}
    groups = {name[old]: replace(group, name=name[old]) for old, group in edge.named_groups.items()}
    tokens = tuple(text + token for token in edge.graph.token_strings)
    graph = replace(edge.graph, model_name=text, token_strings=tokens)
    return replace(edge, graph=graph, named_groups=groups, source=name[edge.source], output=name[edge.output])


def figure_of(drawn) -> Figure:
    return drawn if isinstance(drawn, Figure) else drawn.figure


FIGURES = tuple(every_figure("x", find()))


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("usetex", [False, True])
def test_no_text_is_a_formula_or_reaches_tex(name, usetex, edge):
    with mpl.rc_context({"text.usetex": usetex}):
        figure = figure_of(every_figure(MARK + "$x$", edge)[name]())
        found = [text for text in figure.findobj(Text) if "\\inp" in text.get_text()]
        assert found
        assert not any(text.get_usetex() or text.get_parse_math() for text in found)


@pytest.mark.parametrize("name", ["head_grid", "attention_map", "edge_lines", "effect_curves", "graph"])
def test_axes_made_for_tex_get_no_text_of_ours_for_it(name):
    """The title, the labels and the ticks of an Axes are older than the figure."""
    with mpl.rc_context({"text.usetex": True}):
        _, ax = plt.subplots()
        ax.get_xticklabels(), ax.get_yticklabels()
    evil = FakeModel(3, words=tuple(f"{MARK}{i}" for i in range(6))).run(np.arange(6, dtype=np.int32))
    curve = fake_circuit([0, 0.3, 0.95, 1], [0, 2, 5, 8], spread=0.4)
    with mpl.rc_context({"text.usetex": True}):
        {
            "head_grid": lambda: figures.head_grid(evil, ax=ax, title=MARK),
            "attention_map": lambda: figures.attention_map(evil, 0, 0, ax, title=MARK),
            "edge_lines": lambda: figures.edge_lines(evil, ax, title=MARK),
            "effect_curves": lambda: figures.effect_curves({MARK: curve}, ax, title=MARK),
            "graph": lambda: figures.graph(small_graph(9, strings=tuple(evil.token_strings)), ax, title=MARK),
        }[name]()
        found = [text for text in ax.figure.findobj(Text) if "\\inp" in text.get_text()]
    assert found
    assert not any(text.get_usetex() or text.get_parse_math() for text in found)


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_gives_well_formed_files(name, edge, tmp_path):
    """Also SVG, whose comments repeat the texts."""
    text = "".join(STRANGE)
    figure = figure_of(every_figure(text, edge)[name]())
    for drawn in figure.findobj(Text):
        assert all(sign.isprintable() for sign in drawn.get_text().replace("\n", "")), drawn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that the font lacks
        for path in figures.save(figure, tmp_path / "strange"):
            if path.suffix == ".svg":
                ElementTree.parse(path)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("text", BLANK)
def test_blank_texts_are_drawn(name, text, edge, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures.save(every_figure(text, edge)[name](), tmp_path / "blank", "svg")


@pytest.mark.parametrize("name", FIGURES)
def test_long_texts_are_cut_in_the_middle(name, edge):
    figure = figure_of(every_figure(LONG, edge)[name]())
    lines = [line for text in figure.findobj(Text) for line in text.get_text().split("\n")]
    assert any("a…a" in line for line in lines)
    assert max(map(len, lines)) <= 160
    box = figure.get_tightbbox(figure.canvas.get_renderer())
    assert max(box.width, box.height) < LARGEST


def test_shortened():
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcde…hijk"
    assert shortened("a" + "\x00" * 10**6 + "z", 11) == "a\\x00…\\x00z"
    assert len(shortened("\x00" * 50, 13)) == 13
    assert shortened("abc", 1) == "…"


def test_lines_of_the_caller_stay_lines():
    assert given_text("one\ntwo\tthree") == "one\ntwo\\tthree"
    assert given_text("\n" * 100).count("\n") == 11


def test_one_visible_form():
    assert token_label(" a b") == "a␣b"
    assert token_label("\x1b\u202e\ud800\ufffe\n\x00") == "\\x1b\\u202e\\ud800\\ufffe\\n\\x00"


# -------------------------------------------------------------------------------------------- many


def test_names_that_can_be_read():
    assert apart([0, 10, 20], 7) == [0, 1, 2]
    assert apart([0, 5, 10, 15], 7) == [0, 2]
    assert apart([], 7) == []


@pytest.mark.parametrize("n", [40, 128, 300])
@pytest.mark.parametrize("draw", [lambda run: figures.attention_map(run, 0, 0), figures.edge_lines])
def test_names_of_many_tokens_do_not_touch(n, draw):
    run = FakeModel(3, n_ctx=n, n_layer=1, n_head=1).run(np.arange(n, dtype=np.int32) % 8)
    ax = draw(run)
    ax.figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert len(boxes) >= 20
    assert all(a.x1 <= b.x0 for a, b in pairwise(boxes))
    assert max(ax.figure.get_size_inches()) <= LARGEST
    shown = [label.get_text().split() for label in ax.get_xticklabels()]
    assert [int(place) for _, place in shown] == [int(x) for x in ax.get_xticks()]


def test_figures_of_many_heads_are_bounded():
    pattern = np.broadcast_to(np.eye(2), (40, 40, 2, 2))
    for columns in (1, 9, 1600):
        size = figures.head_grid(pattern, columns=columns).figure.get_size_inches()
        assert max(size) <= LARGEST + 0.1, columns


def test_many_entries_make_small_files(tmp_path):
    """Small maps, but so many that squares would be a file of 80 MB."""
    pattern = np.tril(np.full((12, 12, 60, 60), 0.5))
    for path in figures.save(figures.head_grid(pattern), tmp_path / "many"):
        assert path.stat().st_size < 3e6, path


def test_an_image_looks_like_the_squares(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pattern = np.tril(rng.random((1, 2, 48, 48)) ** 3)
    pictures = []
    for most in (64, 1):
        monkeypatch.setattr("attnsparse.figures.attention._VECTOR_TOKENS", most)
        ax = figures.head_grid(pattern)
        assert bool(ax.images) == (most == 1)
        [path] = figures.save(ax, tmp_path / str(most), "png", dpi=1200)
        pictures.append(plt.imread(path))
    assert pictures[0].shape == pictures[1].shape
    assert np.abs(pictures[0] - pictures[1]).mean() < 0.01


# -------------------------------------------------------------------------------------------- settings


def test_the_typeface_is_the_users():
    graph = small_graph(20)
    with mpl.rc_context({"font.family": ["DejaVu Serif"]}):
        ax = figures.graph(graph)
        ax.figure.draw_without_rendering()
    for text in ax.figure.findobj(Text):
        assert text.get_fontfamily() == ["DejaVu Serif"], text


def test_a_huge_token_costs_little_memory(tmp_path):
    code = f"""
import sys
sys.path[:0] = {IMPORTED!r}
import matplotlib
matplotlib.use("Agg")
import numpy as np
from fake_run import FakeModel
from peak_memory import peak_bytes
from attnsparse import figures
run = FakeModel(0, words=("x", "a" * 10**6, "y"), n_layer=1).run(np.arange(3, dtype=np.int32))
figures.save(figures.attention_map(run, 0, 0), {str(tmp_path / "map")!r})
print(peak_bytes())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**30  # 65,000 pixels a side would take 17 GB
