"""The figure of a graph shows the graph: its nodes in their places, its edges by weight and sign."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import matplotlib as mpl
from places import IMPORTED

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from small_graph import TOKENS, small_graph

from attnsparse import figures
from attnsparse.figures.style import BLUE, ORANGE, PALE
from attnsparse.graphs.layout import curves, edges_between, lay_out, short_label


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def whole():
    return small_graph(60)


@pytest.fixture(scope="module")
def pruned(whole):
    return whole.prune()


def drawn(ax) -> list:
    """The labels that are shown, after drawing."""
    ax.figure.canvas.draw()
    return [text for text in ax.texts if text.get_visible() and text.get_bbox_patch() is not None]


def marks(ax) -> dict[str, np.ndarray]:
    return {c.get_label(): np.asarray(c.get_offsets()) for c in ax.collections[1:]}


def note(ax) -> str:
    return next(t for t in ax.texts if t.get_bbox_patch() is None).get_text().replace("\n", " ")


# ------------------------------------------------------------------------------------------- layout


def test_places_follow_layer_and_position(whole):
    layout = lay_out(whole, np.arange(len(whole)))
    row = np.array([{"logit": 7}.get(k, int(layer) + 1) for k, layer in zip(whole.kind, whole.layer)])
    edges = np.concatenate([[0], layout.tops])
    assert (edges[row] < layout.y).all()
    assert (layout.y < edges[row + 1]).all()
    placed = whole.position >= 0
    nearest = np.abs(layout.x[placed, None] - layout.columns).argmin(axis=1)
    np.testing.assert_array_equal(nearest, whole.position[placed])
    assert (layout.x[~placed] < layout.columns[0] - 1).all()
    apart = np.hypot(*(np.stack([layout.x, layout.y])[:, :, None] - np.stack([layout.x, layout.y])[:, None]))
    assert (apart + 9 * np.eye(len(whole))).min() > 0.999
    assert (layout.x > 0).all()
    assert (layout.x < layout.width).all()


def test_no_column_for_biases_that_are_not_drawn(whole):
    layout = lay_out(whole, whole.select(("token", "logit")))
    assert layout.columns[0] == pytest.approx(layout.columns[1] - layout.columns[0], rel=0.5)


def test_curves_leave_and_arrive_upwards():
    ends = np.array([[0.0, 0.0], [3.0, 1.0]]), np.array([[0.0, 9.0], [0.0, 4.0]])
    curve = curves(*ends)
    np.testing.assert_array_equal(curve[:, 0], ends[0])
    np.testing.assert_array_equal(curve[:, 3], ends[1])
    assert (np.diff(curve[:, :, 1], axis=1)[:, [0, 2]] > 0).all()
    assert curve[0, 1, 0] > 0.5  # bends
    assert curve[1, 1, 0] == 3


def test_strongest_edges_first(whole):
    edges, n = edges_between(whole, np.arange(len(whole)), 50)
    assert (len(edges), n) == (50, len(whole.source))
    table = whole.links()
    best = table.assign(size=table["weight"].abs()).nlargest(50, "size", keep="first")
    np.testing.assert_array_equal(edges.source, best["source"])
    np.testing.assert_array_equal(edges.target, best["target"])
    np.testing.assert_array_equal(edges.weight, best["weight"].astype(np.float32))
    assert edges_between(whole, np.array([0]), 5)[1] == 0


def test_texts_of_a_drawing():
    label = "line\nfeed " + "x" * 40
    graph = small_graph(9, labels=(label, *small_graph(9).labels[1:]), prompt="start " + "y" * 80 + " end")
    assert short_label(graph, 0) == r"line\nfeed xxxx…xxxxxxxxxxxxxx"
    assert short_label(graph, graph.node("err_1_0")) == "error"
    assert short_label(graph, int(graph.logits[0])) == "'small' (p=0.600)"
    for label, shown in {
        "“independent”, … -> “free”, “alone”": "“independent”, …\n-> “free”, “alone”",
        "“a”, … -> “b”, “c”": "“a”, … -> “b”, “c”",
        f"-> {'x' * 40}": f"-> {'x' * 12}…{'x' * 14}",
        f"{'x' * 40} -> {'y' * 40}": f"{'x' * 15}…{'x' * 14}\n-> {'y' * 12}…{'y' * 14}",
    }.items():
        assert short_label(small_graph(9, labels=(label, *graph.labels[1:])), 0) == shown
    plain = next(i for i, text in enumerate(graph.labels) if text.startswith("feature"))
    assert short_label(graph, plain) == f"#{graph.feature[plain]}"
    figure = figures.graph(graph)
    title = figure.get_title(loc="left")
    assert title.startswith("start yy")
    assert "y…y" in title
    assert title.endswith("yy end")


# ------------------------------------------------------------------------------------------- figure


def test_biases_and_positions_are_drawn_when_asked_for(whole, pruned):
    """Without them the figure is that of the other nodes, and the note says that something is missing."""
    plain = [i for i, kind in enumerate(pruned.kind) if kind in ("bias", "position", "other")]
    rest = np.setdiff1d(np.arange(len(pruned)), plain)
    ax, same = figures.graph(pruned), figures.graph(pruned, nodes=rest)
    assert set(marks(ax)) == {"logit", "feature", "error", "token"}
    for kind, xy in marks(ax).items():
        np.testing.assert_array_equal(xy, marks(same)[kind])
    inside = ~np.isin(pruned.links()[["source", "target"]], plain).any(axis=1)
    assert 0 < inside.sum() < len(inside)
    assert len(ax.collections[0].get_paths()) == inside.sum()
    said = "biases and positions not drawn"
    assert said in note(ax)
    assert f"{len(rest)} of {len(whole)} nodes; {inside.sum()} edges" in note(figures.graph(whole))
    assert not any(said in note(figures.graph(pruned, **how)) for how in ({"biases": True}, {"nodes": plain}))
    assert set(marks(figures.graph(pruned, nodes=plain))) == {"bias", "position", "other"}


def test_every_node_of_a_pruned_graph_is_drawn(pruned):
    ax = figures.graph(pruned, biases=True)
    assert {kind: len(xy) for kind, xy in marks(ax).items()} == {
        kind: pruned.kind.count(kind) for kind in set(pruned.kind)
    }
    layout = lay_out(pruned, np.arange(len(pruned)))
    for kind, xy in marks(ax).items():
        mine = np.array(pruned.kind) == kind
        np.testing.assert_allclose(xy, np.stack([layout.x[mine], layout.y[mine]], axis=1))


def test_edges_are_coloured_by_sign_and_wide_by_size(pruned):
    ax = figures.graph(pruned, max_edges=40, biases=True)
    lines = ax.collections[0]
    edges, _ = edges_between(pruned, np.arange(len(pruned)), 40)
    assert len(lines.get_paths()) == 40
    weight = edges.weight[::-1]
    colours = [to_rgb(BLUE) if w > 0 else to_rgb(ORANGE) for w in weight]
    np.testing.assert_allclose(lines.get_edgecolors()[:, :3], colours)
    assert (np.diff(lines.get_linewidths()) >= 0).all()
    assert (np.diff(lines.get_edgecolors()[:, 3]) >= 0).all()
    layout = lay_out(pruned, np.arange(len(pruned)))
    for path, source, target in zip(lines.get_paths(), edges.source[::-1], edges.target[::-1]):
        np.testing.assert_allclose(path.vertices[0], (layout.x[source], layout.y[source]))
        np.testing.assert_allclose(path.vertices[-1], (layout.x[target], layout.y[target]))


def test_a_graph_that_is_not_pruned_is_pruned_and_the_note_says_so(whole, pruned):
    ax = figures.graph(whole, biases=True)
    assert len(ax.collections[0].get_paths()) == len(pruned.source)
    text = note(ax)
    assert f"{len(pruned)} of {len(whole)} nodes; {len(pruned.source)} edges" in text
    assert "pruned: nodes with 0.8, edges with 0.98 of the influence, for this figure" in text
    assert "closure 3.1e-06 before pruning" in text
    assert ax.get_title(loc="left") == whole.prompt
    assert "for this figure" not in note(figures.graph(pruned))


def test_chosen_nodes_of_the_whole_graph(whole):
    nodes = ["bias", "E_17_0", *whole.select("feature")[:5], -1]
    ax = figures.graph(whole, nodes=nodes, title="$chosen$")
    assert sum(len(xy) for xy in marks(ax).values()) == 8
    inside = set(whole.nodes_of(nodes).tolist())
    expected = sum(int(s) in inside and t in inside for t in range(len(whole)) for s in whole.incoming(t)[0])
    assert len(ax.collections[0].get_paths()) == expected > 4
    assert "not pruned; closure 3.1e-06" in note(ax)
    assert ax.get_title(loc="left") == "$chosen$"


def test_strongest_edges_are_said_to_be_so(pruned):
    assert f"the 10 strongest of {len(pruned.source)} edges" in note(
        figures.graph(pruned, max_edges=10, biases=True)
    )
    ax = figures.graph(pruned, max_edges=0)
    assert not ax.collections[0].get_paths()
    assert {text.get_text() for text in drawn(ax)} == {short_label(pruned, int(i)) for i in pruned.logits}
    for collection in ax.collections[1:]:
        np.testing.assert_allclose(
            collection.get_edgecolors()[:, :3], [to_rgb(PALE)] * len(collection.get_offsets())
        )


@pytest.mark.parametrize("base", [0, 1])
def test_tokens_with_positions(pruned, base):
    ax = figures.graph(pruned, base=base, biases=True)
    words = [token.strip() for token in TOKENS]
    assert [t.get_text() for t in ax.get_xticklabels()] == [f"{w}\n{i + base}" for i, w in enumerate(words)]
    np.testing.assert_allclose(ax.get_xticks(), lay_out(pruned, np.arange(len(pruned))).columns)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["embeddings", *"012345", "logits"]
    assert ax.get_xlabel().endswith(f"(from {base})")


def test_legend_names_what_is_drawn(pruned):
    texts = [text.get_text() for text in figures.graph(pruned).get_legend().get_texts()]
    largest = float(np.abs(pruned.weights).max())
    assert texts[:3] == ["logit", "feature", "error of an MLP"]
    assert texts[-4:] == ["raises", "lowers", f"|weight| {largest:,.0f}", f"|weight| {largest / 4:.2g}"]
    few = figures.graph(pruned, nodes=pruned.select("logit"))
    assert [text.get_text() for text in few.get_legend().get_texts()] == ["logit", "no edge drawn"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("how", ["own", "given", "constrained"])
def test_labels_cover_no_mark_and_no_other_label(seed, how):
    graph = small_graph(150, n_layer=12, n_logits=5, seed=seed)
    names = [f"{label}, … -> {label}, {label}"[: 12 + 9 * (i % 5)] for i, label in enumerate(graph.labels)]
    is_feature = [kind == "feature" for kind in graph.kind]
    labels = tuple(np.where(is_feature, names, graph.labels).tolist())
    graph = small_graph(150, n_layer=12, n_logits=5, seed=seed, labels=labels).prune()
    if how == "own":
        ax = figures.graph(graph)
    else:
        layout = "constrained" if how == "constrained" else None
        _, axes = plt.subplots(1, 2, figsize=(13, 6), layout=layout)
        for each in axes[::-1]:
            ax = figures.graph(graph, ax=each)
            assert ax is each
    texts = drawn(ax)
    assert len(texts) >= 10
    shown = {text.get_text() for text in texts}
    assert {short_label(graph, int(i)) for i in graph.logits} <= shown
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    frame = ax.get_window_extent().padded(1)
    points = ax.transData.transform(np.concatenate(list(marks(ax).values())))
    for box in boxes:
        assert frame.containsx(box.x0)
        assert frame.containsx(box.x1)
        assert frame.containsy(box.y0)
        assert frame.containsy(box.y1)
        assert not any(box.contains(x, y) for x, y in points)


def test_drawing_again_changes_nothing(pruned):
    """A window that redraws whatever has changed would otherwise never come to rest."""
    ax = figures.graph(pruned)
    ax.figure.canvas.draw()
    changed = []
    for text in drawn(ax):
        text.stale_callback = lambda *_: changed.append(1)
    ax.figure.canvas.draw()
    assert not changed
    ax.figure.set_size_inches(9, 4)
    ax.figure.canvas.draw()
    assert changed


def test_number_of_labels(pruned):
    assert len(drawn(figures.graph(pruned, max_labels=3))) == 3
    assert not drawn(figures.graph(pruned, max_labels=0))


def test_nothing_is_cut_off_or_covered(pruned):
    ax = figures.graph(pruned)
    ax.figure.canvas.draw()
    outside = [*ax.get_xticklabels(), *ax.get_yticklabels(), *ax.get_legend().get_texts()]
    outside += [ax.xaxis.label, ax.yaxis.label]
    boxes = [text.get_window_extent() for text in outside]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    whole = ax.figure.bbox
    assert all(whole.x0 <= b.x0 and b.x1 <= whole.x1 and whole.y0 <= b.y0 and b.y1 <= whole.y1 for b in boxes)


def test_strange_texts_are_drawn_as_they_are(tmp_path):
    strings = ("$x$", "</script>", "\n", " ", "é", "\u202e", "long" * 9)
    labels = tuple("$\\frac" if k == "feature" else k for k in small_graph(30, strings=strings).kind)
    graph = small_graph(30, strings=strings, labels=labels)
    ax = figures.graph(graph)
    assert [t.get_text() for t in ax.get_xticklabels()][:4] == ["$x$  0", "</script>  1", "\\n  2", "␣  3"]
    assert ax.get_xticklabels()[6].get_text() == "longlon…nglong  6"
    figures.save(ax, tmp_path / "strange")


@pytest.mark.parametrize("length", [1, 2, 60])
def test_prompts_of_other_lengths(length, tmp_path):
    graph = small_graph(40, strings=tuple(f" w{i}" for i in range(length)), n_logits=10)
    ax = figures.graph(graph)
    assert len(ax.get_xticks()) == length
    figures.save(ax, tmp_path / "graph", ["png"])


def test_a_logit_difference(tmp_path):
    graph = small_graph(30, n_logits=1)
    labels = (*graph.labels[:-1], "Logit of 'small', 'tiny' minus 'large', 'big', ...")
    number = np.array([*graph.feature[:-1], -1], np.int32)
    none = np.full(len(graph), np.nan, np.float32)
    graph = small_graph(30, n_logits=1, labels=labels, feature=number, probability=none)
    assert graph.ids[-1] == "logit_diff"
    assert "Logit of 'small', 'tiny'\nminus 'large', 'big', ..." in {
        t.get_text() for t in drawn(figures.graph(graph))
    }


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"nodes": []}, ValueError, "nodes is empty"),
        ({"nodes": [9999]}, IndexError, "node 9999 is out of range: this graph has 39 nodes"),
        ({"nodes": "x"}, KeyError, "no node 'x'"),
        ({"nodes": 0.5}, TypeError, "a node must be an integer, got float"),
        ({"max_edges": -1}, ValueError, "max_edges must be at least 0, got -1"),
        ({"max_edges": 1.5}, TypeError, "max_edges must be an integer, got float"),
        ({"max_labels": True}, TypeError, "max_labels must be an integer, got True"),
        ({"biases": 1}, TypeError, "biases must be True or False"),
        ({"base": 2}, ValueError, "base must be 0 or 1, got 2"),
    ],
)
def test_wrong_arguments(pruned, wrong, error, text):
    before = plt.get_fignums()
    with pytest.raises(error, match=text):
        figures.graph(pruned, **wrong)
    assert plt.get_fignums() == before


# ------------------------------------------------------------------------------------------- saving

DRAW = """
import sys
sys.path[:0] = sys.argv[2:]
import matplotlib
matplotlib.use("Agg")
from small_graph import small_graph
from attnsparse import figures
figures.save(figures.graph(small_graph(60)), sys.argv[1] + "/graph")
"""


def test_same_bytes_in_every_process(tmp_path):
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        command = [sys.executable, "-c", DRAW, str(folder), *IMPORTED]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed, "TZ": f"UTC-{seed}"})
        found.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())})
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_saving_twice_and_drawing_before(pruned, tmp_path):
    ax = figures.graph(pruned)
    figures.save(ax, tmp_path / "first")
    ax.figure.canvas.draw()
    figures.save(ax, tmp_path / "second")
    for form in ("png", "svg", "pdf"):
        assert (tmp_path / f"first.{form}").read_bytes() == (tmp_path / f"second.{form}").read_bytes()
