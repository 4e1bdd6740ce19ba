"""The sketch of a graph shows what was found: these boxes, arrows, heads and numbers, none upon another."""

from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from graph_toys import random_transcoders
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from planted_calls import find

import attnsparse as asp
from attnsparse import figures
from attnsparse.figures.style import RED
from attnsparse.graphs.groups import group_nodes
from attnsparse.graphs.word_effect import word_effect
from attnsparse.items import Head


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def planted():
    return find()


@pytest.fixture(scope="module")
def demo():
    """Dense and sparse demo models with random transcoders, on other prompts."""
    models = [asp.load(name) for name in ("demo-dense", "demo-sparse")]
    return [(model, random_transcoders(model, 40)) for model in models]


def edges(demo, prompt, key, answer):
    return [word_effect(*pair, prompt, key, answer) for pair in demo]


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def boxes(ax) -> list[FancyBboxPatch]:
    """Filled boxes but the panel, which is the first."""
    found = [patch for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    return [patch for patch in found[1:] if patch.get_fill()]


def arrows(ax) -> list[FancyArrowPatch]:
    return [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]


def all_apart(ax) -> bool:
    """No text on another, and all of them on the figure."""
    ax.figure.canvas.draw()
    places = [text.get_window_extent() for text in ax.texts if text.get_text()]
    whole = ax.figure.bbox
    inside = all(
        whole.x0 <= p.x0 and p.x1 <= whole.x1 and whole.y0 <= p.y0 and p.y1 <= whole.y1 for p in places
    )
    return inside and not any(a.overlaps(b) for i, a in enumerate(places) for b in places[i + 1 :])


def boxes_apart(ax) -> bool:
    ax.figure.canvas.draw()
    places = [box.get_window_extent() for box in boxes(ax)]
    return not any(a.overlaps(b) for i, a in enumerate(places) for b in places[i + 1 :])


def test_the_planted_graph(planted):
    figure = figures.graph_overview(planted, planted)
    left, right = figure.axes[:2]
    assert len(left.collections) == len(right.collections) == 2
    written = texts(right)
    assert "planted: 2 of 24 heads" in written
    assert "97 % of what 'large' does to 'small'" in written
    assert "Modulated at 97 % by" in written
    assert "1 of 2 heads map key pos 4 to query pos 7 most" in written
    assert [text for text in written if text.startswith("layer ")] == [
        "layer 0-2",
        "layer 5, logits",
        "layer 0",
    ]
    assert "+744.0" in written  # 651 * 8 / 7, the red arrow
    assert "+120.0" in written  # 105 * 8 / 7, from opposite
    assert len(boxes(right)) == 3  # the quotation marks do nothing
    assert len(arrows(right)) == 3  # with the pointer
    red = [arrow for arrow in arrows(right) if to_rgb(arrow.get_edgecolor()) == to_rgb(RED)]
    assert len(red) == 1
    assert boxes_apart(right)
    assert all_apart(right)


@pytest.mark.parametrize("base", [0, 1])
def test_positions_count_from_base(planted, base):
    right = figures.graph_overview(planted, planted, base=base).axes[1]
    written = texts(right)
    start = written.index("The")
    tokens = ["The", "opposite", "of", '"', "large", '"', "is", '"']
    assert written[start : start + 16 : 2] == tokens
    assert written[start + 1 : start + 16 : 2] == [str(i + base) for i in range(8)]
    assert f"1 of 2 heads map key pos {4 + base} to query pos {7 + base} most" in written


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (3, 1), (5, 2), (7, 3), (13, 4), (24, 5)])
def test_the_left_grid_is_narrow_and_as_high_as_the_right_panel_or_square(planted, n, columns):
    figure = figures.graph_overview(replace(planted, n_drawn=n), replace(planted, n_drawn=5))
    left, right = (ax.get_window_extent() for ax in figure.axes[:2])
    other = figures.graph_overview(
        replace(planted, n_drawn=n), replace(planted, n_drawn=5), columns=columns
    ).axes[0]
    assert left.width == pytest.approx(other.get_window_extent().width)
    assert left.height <= right.height or columns == 5


def test_columns_that_are_none(planted):
    for columns, kind in ((0, ValueError), ("a", TypeError)):
        with pytest.raises(kind, match="columns must be"):
            figures.graph_overview(planted, planted, columns=columns)


def test_numbers_are_those_of_the_edge(planted):
    """Whatever the numbers are, they are written: nothing is typed in."""
    flows = planted.flows.copy()
    names = list(planted.named_groups)
    flows[names.index("opposite"), names.index("small")] = -33.3
    right = figures.graph_overview(planted, replace(planted, flows=flows, n_drawn=1)).axes[1]
    written = texts(right)
    assert "−33.3" in written
    assert "Modulated at 68 % by" in written
    assert "The head maps key pos 4 to query pos 7" in written
    dashed = [arrow for arrow in arrows(right) if arrow.get_linestyle() not in ("-", "solid")]
    assert len(dashed) == 1


def test_a_box_reaches_over_its_layers(planted):
    right = figures.graph_overview(planted, planted).axes[1]
    large, small, opposite = boxes(right)  # the word, the answer, then by influence
    heights = [box.get_height() for box in (large, small, opposite)]
    layer = 1.75 / 7
    assert heights[0] == pytest.approx(3 * layer, abs=0.03)
    assert heights[1] == pytest.approx(2 * layer, abs=0.03)
    assert small.get_y() < large.get_y() < opposite.get_y()  # downwards


def test_groups_with_little_or_no_features_are_not_drawn(planted):
    graph = planted.graph
    spec = {"large": {"position": "large"}, "is": {"position": "is"}, "small": graph.logits.tolist()}
    found = find(groups=spec)
    assert list(found.named_groups) == ["large", "is", "small"]
    right = figures.graph_overview(found, found).axes[1]
    assert len(boxes(right)) == 2
    assert all(np.diag(found.flows) == 0)
    assert group_nodes(graph, spec)["is"].layer_text == "embedding"


PROMPTS = [
    ('The opposite of "large" is "', "large", "small"),
    ('The opposite of "hot" is "', "hot", "cold"),
    ("From hot to", "hot", " cold"),
    ('The start of "open" is "o". The opposite of "large" is "', "large", "small"),
    ("From dark to bright. From rich to poor. From rise to fall. From hot to", 13, " cold"),
]


@pytest.mark.parametrize(("prompt", "key", "answer"), PROMPTS)
def test_nothing_overlaps(demo, prompt, key, answer, tmp_path):
    figure = figures.graph_overview(*edges(demo, prompt, key, answer))
    right = figure.axes[1]
    assert boxes_apart(right)
    assert all_apart(right)
    figures.save(figure, tmp_path / "sketch", ["png"])


def test_many_heads(demo):
    found = edges(demo, *PROMPTS[0])
    heads = tuple(Head(*divmod(i, 12)) for i in range(36))
    many = replace(found[0].loadings["features"], heads=heads, shares=np.full(36, 1 / 36))
    dense = replace(found[0], n_drawn=36, loadings={**found[0].loadings, "features": many})
    figure = figures.graph_overview(dense, found[1])
    assert len(figure.axes[0].collections) == 36
    assert "Modulated at" in " ".join(texts(figure.axes[1]))


def test_same_bytes_again(planted, tmp_path):
    for name in ("first", "second"):
        figures.save(figures.graph_overview(planted, planted), tmp_path / name)
    for form in ("png", "svg", "pdf"):
        assert (tmp_path / f"first.{form}").read_bytes() == (tmp_path / f"second.{form}").read_bytes()
