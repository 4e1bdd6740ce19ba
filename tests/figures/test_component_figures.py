"""Figures of component edges show their scores, circuits and curves; each kind of edge has its own axis."""

from __future__ import annotations

import warnings
from itertools import combinations

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fake_circuit import fake_circuit
from fake_components import fake_component_circuit, fake_component_curve, fake_component_scores
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch
from matplotlib.transforms import Bbox

from attnsparse import figures
from attnsparse.circuits.components import names as names
from attnsparse.figures.style import BLUE, DARK, LARGEST, ORANGE

CIRCUIT = fake_component_circuit()
SHAPE = names.Shape(3, 2)
SCORES = fake_component_scores()
CURVE, OTHER = fake_component_curve(name="one"), fake_component_curve((0.4, 0.9, 1.0, 1.0), name="two")
BESIDE_RANDOM = fake_component_curve(name="one", random=True)
EDGES = fake_circuit([0, 0.3, 0.6, 0.97, 1], [0, 2, 5, 8, 40], unit="edge", spread=0.4, task="fake")
DRAWN = {
    "component_graph": lambda: figures.component_graph(CIRCUIT, 20),
    "component_matrix": lambda: figures.component_matrix(SCORES),
    "component_curve": lambda: figures.component_curve({"one": BESIDE_RANDOM, "two": OTHER}),
    "component_and_attention": lambda: figures.component_and_attention(fake_component_curve(), EDGES),
}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", DRAWN)
def test_same_bytes_again(name, tmp_path):
    for twin in ("first", "second"):
        figures.save(DRAWN[name](), tmp_path / twin)
    for form in ("png", "svg", "pdf"):
        assert (tmp_path / f"first.{form}").read_bytes() == (tmp_path / f"second.{form}").read_bytes()


def test_draws_on_the_axes_given():
    figure, axes = plt.subplots(1, 3)
    before = plt.get_fignums()
    assert figures.component_graph(CIRCUIT, 20, axes[0]) is axes[0]
    assert figures.component_matrix(SCORES, axes[1]) is axes[1]
    assert figures.component_curve(CURVE, axes[2]) is axes[2]
    own = plt.figure()
    assert figures.component_and_attention(fake_component_curve(), EDGES, own) is own
    assert plt.get_fignums() == [*before, own.number]
    figure.draw_without_rendering()


def boxes_of(texts) -> list:
    return [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]


def touching(boxes) -> list:
    return [(a, b) for a, b in combinations(boxes, 2) if a.overlaps(b)]


# ---------------------------------------------------------------------------------------------- graph


def labelled(ax) -> dict:
    return {collection.get_label(): collection for collection in ax.collections}


@pytest.mark.parametrize("prune", [True, False])
def test_curves_are_the_component_edges(prune):
    ax = figures.component_graph(CIRCUIT, 20, prune=prune)
    mask = CIRCUIT.mask(20, prune=prune)
    score = CIRCUIT.scores[mask]
    for label, colour, mine in (("positive", BLUE, score[score > 0]), ("negative", ORANGE, score[score < 0])):
        lines = labelled(ax)[label]
        assert len(lines.get_paths()) == len(mine)
        widths = np.sort(np.abs(mine)) / np.abs(score).max() * 2.3 + 0.5
        np.testing.assert_allclose(lines.get_linewidths(), widths)
        assert {tuple(c[:3]) for c in lines.get_edgecolors()} == {to_rgb(colour)}
    dashes = [labelled(ax)[label].get_linestyles()[0][1] for label in ("positive", "negative")]
    assert dashes[0] is None
    assert dashes[1] is not None


def test_curves_lead_from_the_sender_to_q_k_or_v():
    [(name, u, v)] = [("a0.h1->a2.h0<k>", 2, 16)]
    assert (names.senders(SHAPE)[u], names.receivers(SHAPE)[v]) == tuple(name.split("->"))
    given = np.zeros(CIRCUIT.scores.shape, bool)
    given[u, v] = True
    ax = figures.component_graph(fake_component_circuit(given=given))
    [lines] = ax.collections
    places = {text.get_text(): text.get_position() for text in ax.texts if "." in text.get_text()}
    assert set(places) == {"a0.h1", "a2.h0"}
    corners = lines.get_paths()[0].vertices
    assert corners[0, 0] == places["a0.h1"][0]
    assert corners[-1, 0] == places["a2.h0"][0]  # k in the middle
    assert corners[0, 1] > places["a0.h1"][1]
    assert corners[-1, 1] < places["a2.h0"][1]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["layer 0", "layer 2"]
    assert [text.get_text() for text in ax.get_legend().get_texts()][-1] == "into k"


def test_q_k_and_v_have_marks_of_their_own():
    ax = figures.component_graph(CIRCUIT, CIRCUIT.n_edges)
    marks = {line.get_label(): line for line in ax.lines}
    assert {label: line.get_marker() for label, line in marks.items()} == {"_q": "^", "_k": "s", "_v": "o"}
    across = [np.sort(marks[label].get_xdata()) for label in ("_q", "_k", "_v")]
    assert len(across[0]) == 6
    assert (np.diff(across, axis=0) > 0.2).all()


def test_layers_go_upwards():
    ax = figures.component_graph(CIRCUIT, CIRCUIT.n_edges)
    height = {text.get_text(): text.get_position()[1] for text in ax.texts}
    order = ["input", "a0.h0", "m0", "a1.h1", "m1", "a2.h0", "m2", "logits"]
    assert (np.diff([height[name] for name in order]) > 0).all()


def test_the_note_says_what_is_drawn():
    def note(*arguments, **options) -> str:
        ax = figures.component_graph(*arguments, **options)
        return next(text.get_text() for text in ax.texts if "component" in text.get_text()).replace("\n", " ")

    n = int(CIRCUIT.mask(20).sum())
    assert n < 20
    assert (
        note(CIRCUIT, 20)
        == f"{n} of {CIRCUIT.n_edges} component edges (20 requested); eap; best by absolute score"
    )
    assert note(CIRCUIT, 20, prune=False).startswith(f"20 of {CIRCUIT.n_edges} component edges; eap")
    assert note(CIRCUIT, 20, max_edges=5).startswith(f"the 5 strongest of {n} of")
    assert (
        note(fake_component_circuit(given=CIRCUIT.mask(20)))
        == f"{n} of {CIRCUIT.n_edges} component edges; eap"
    )


@pytest.mark.parametrize(("n_layer", "n_head", "n"), [(1, 1, 8), (3, 2, 20), (12, 12, 400)])
def test_texts_of_a_graph_do_not_touch(n_layer, n_head, n):
    ax = figures.component_graph(fake_component_circuit(n_layer, n_head), n)
    ax.figure.draw_without_rendering()
    legend = ax.get_legend().get_texts()
    boxes = boxes_of([*ax.texts, *legend, *ax.get_yticklabels(), ax.title, ax._left_title])
    assert len(boxes) > 5
    assert touching(boxes) == []
    assert max(ax.figure.get_size_inches()) <= LARGEST


@pytest.mark.parametrize(("n_layer", "n_head", "n"), [(1, 1, 8), (3, 2, 20), (6, 6, 400)])
def test_boxes_of_a_graph_are_whole(n_layer, n_head, n):
    """Also those of the input and the logits above a single column of heads, which is narrower."""
    ax = figures.component_graph(fake_component_circuit(n_layer, n_head), n)
    inside = Bbox([[ax.get_xlim()[0], ax.get_ylim()[0]], [ax.get_xlim()[1], ax.get_ylim()[1]]])
    boxes = [patch.get_bbox() for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    assert len(boxes) >= 2
    assert all(inside.contains(*corner) for box in boxes for corner in box.get_points())


def test_small_axes_leave_out_names():
    _, ax = plt.subplots(figsize=(1, 1))
    figures.component_graph(fake_component_circuit(6, 6), 100, ax, prune=False)
    assert not any("." in text.get_text() for text in ax.texts)


def test_bad_graphs():
    with pytest.raises(TypeError, match="circuit must be a ComponentCircuit"):
        figures.component_graph(SCORES, 3)
    with pytest.raises(ValueError, match="n must be given: this circuit has scores"):
        figures.component_graph(CIRCUIT)
    with pytest.raises(ValueError, match="the circuit of n=0 has no component edge to draw"):
        figures.component_graph(CIRCUIT, 0)
    with pytest.raises(ValueError, match=r"n must be in 0\.\.1"):
        figures.component_graph(CIRCUIT, CIRCUIT.n_edges + 1)
    with pytest.raises(ValueError, match="max_edges must be at least 1"):
        figures.component_graph(CIRCUIT, 20, max_edges=0)
    with pytest.raises(TypeError, match="prune must be True or False"):
        figures.component_graph(CIRCUIT, 20, prune=1)


# --------------------------------------------------------------------------------------------- matrix


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_cells_are_the_scores(scale):
    ax = figures.component_matrix(SCORES, scale=scale)
    cells = ax.collections[0]
    shown = cells.get_array().reshape(SCORES.scores.shape)
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), ~SCORES.exists)
    np.testing.assert_array_equal(shown.filled(0), SCORES.scores)
    end = np.abs(SCORES.scores).max()
    assert cells.get_clim() == (-end, end)
    assert cells.norm(0.0) == pytest.approx(0.5)
    assert cells.norm(-0.3) + cells.norm(0.3) == pytest.approx(1)


def test_the_hatched_area_is_where_there_is_no_component_edge():
    [stairs] = figures.component_matrix(SCORES).patches
    assert stairs.get_hatch()
    rows, columns = np.indices(SCORES.scores.shape)
    inside = stairs.get_path().contains_points(np.stack([columns.ravel(), rows.ravel()], axis=1))
    np.testing.assert_array_equal(inside.reshape(rows.shape), ~SCORES.exists)


def test_blue_and_orange_are_equally_dark():
    colours = figures.component_matrix(SCORES).collections[0].cmap(np.linspace(0, 1, 65))[:, :3]
    luminance = colours @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(luminance[:33]) > 0).all()
    assert (np.diff(luminance[32:]) < 0).all()
    assert np.abs(luminance - luminance[::-1]).max() < 0.12


@pytest.mark.parametrize(("n_layer", "n_head"), [(1, 1), (3, 2), (4, 4), (12, 12), (24, 16)])
def test_names_of_a_matrix_do_not_touch(n_layer, n_head):
    ax = figures.component_matrix(fake_component_scores(n_layer, n_head))
    ax.figure.draw_without_rendering()
    scale = ax.figure.axes[-1].get_yticklabels()
    for texts in (ax.get_xticklabels(), ax.get_yticklabels(), [*ax.texts, ax._left_title], scale):
        assert touching(boxes_of(texts)) == []
    labels = [label.get_text() for label in ax.get_yticklabels()]
    layers = [f"layer {layer}" for layer in range(n_layer)]
    assert (
        labels == list(names.senders(names.Shape(n_layer, n_head)))
        if n_layer <= 4
        else labels[-n_layer:] == layers
    )
    assert max(ax.figure.get_size_inches()) <= LARGEST


def test_a_large_matrix_is_stored_as_pixels(tmp_path):
    ax = figures.component_matrix(fake_component_scores(12, 12))
    for path in figures.save(ax, tmp_path / "matrix"):
        assert path.stat().st_size < 500_000, path


def test_no_score_at_all_is_drawn_without_a_warning():
    none = np.zeros_like(SCORES.scores)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = figures.component_matrix(fake_scores_of(none))
        ax.figure.draw_without_rendering()


def fake_scores_of(scores: np.ndarray):
    found = fake_component_scores()
    return type(found)(**{**vars(found), "scores": scores})


def test_bad_matrices():
    with pytest.raises(TypeError, match="scores must be ComponentScores"):
        figures.component_matrix(CIRCUIT)
    with pytest.raises(ValueError, match="needs scores of level='edge', got 'node'"):
        figures.component_matrix(fake_component_scores(level="node"))
    with pytest.raises(ValueError, match="scale must be one of 'log', 'linear'"):
        figures.component_matrix(SCORES, scale="sqrt")
    with pytest.raises(ValueError, match="largest must be above 0"):
        figures.component_matrix(SCORES, largest=0)


# --------------------------------------------------------------------------------------------- curves


@pytest.mark.parametrize("by", ["kept", "requested"])
def test_lines_are_the_curves(by):
    ax = figures.component_curve({"one": CURVE, "two": OTHER}, by=by, title="copy $x$")
    lines = {line.get_label(): line for line in ax.lines}
    for label, curve, colour in (("one", CURVE, DARK), ("two", OTHER, BLUE)):
        np.testing.assert_array_equal(lines[label].get_xdata(), getattr(curve, by))
        np.testing.assert_array_equal(lines[label].get_ydata(), curve.faithfulness)
        assert lines[label].get_color() == colour
    assert ax.get_xlabel() == f"component edges {by}"
    assert ax.get_title() == "copy $x$"


def test_bands_are_the_intervals():
    ax = figures.component_curve(CURVE, n_bootstrap=100, seed=3)
    low, high = CURVE.band(n_bootstrap=100, seed=3)
    corners = ax.collections[0].get_paths()[0].vertices
    for n, bottom, top in zip(CURVE.kept, low, high):
        heights = corners[corners[:, 0] == n, 1]
        assert (heights.min(), heights.max()) == (bottom, top)
    assert figures.component_curve(CURVE, n_bootstrap=0).collections[0].get_paths() == []


def test_the_dotted_line_is_the_mean_of_random_rankings():
    ax = figures.component_curve({"two": OTHER, "one": BESIDE_RANDOM})
    line = next(line for line in ax.lines if line.get_label() == "_random, random order")
    np.testing.assert_allclose(line.get_ydata(), [0, 0.05, 0.3, 1], atol=1e-12)
    np.testing.assert_array_equal(line.get_xdata(), [0, 0, 35, 100])
    assert "random" in [text.get_text() for text in ax.texts]
    corners = ax.collections[2].get_paths()[0].vertices
    heights = corners[corners[:, 0] == 35, 1]
    np.testing.assert_allclose((heights.min(), heights.max()), (0.2, 0.4), atol=1e-12)


def test_random_rankings_are_left_out():
    for curve, random in ((CURVE, True), (BESIDE_RANDOM, False)):
        ax = figures.component_curve(curve, random=random)
        assert "random" not in [text.get_text() for text in ax.texts]
        assert len(ax.collections) == 1


def test_names_of_curves_do_not_touch():
    ax = figures.component_curve({"one": BESIDE_RANDOM, "two": OTHER})
    ax.figure.draw_without_rendering()
    boxes = boxes_of(ax.texts)
    assert len(boxes) == 3
    assert touching(boxes) == []


def test_each_kind_of_edge_has_its_own_axis():
    figure = figures.component_and_attention(fake_component_curve(random=True), {"sparse": EDGES})
    left, right = figure.axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("component edges kept", "attention edges kept")
    assert left.get_ylim() == right.get_ylim()
    assert left.get_ylabel() == right.get_ylabel()
    assert left.get_xlim() != right.get_xlim()
    assert not left.get_shared_x_axes().joined(left, right)


def test_bad_curves():
    with pytest.raises(
        TypeError, match="curves must be a ComponentCurve or a mapping, label: ComponentCurve"
    ):
        figures.component_curve(EDGES)
    with pytest.raises(ValueError, match="curves must not be empty"):
        figures.component_curve({})
    with pytest.raises(TypeError, match=r"curves\['a'\] must be a ComponentCurve"):
        figures.component_curve({"a": EDGES})
    with pytest.raises(ValueError, match="by must be one of 'kept', 'requested'"):
        figures.component_curve(CURVE, by="share")
    with pytest.raises(TypeError, match="random must be True or False"):
        figures.component_curve(CURVE, random=CURVE)


def test_bad_pairs_of_panels():
    with pytest.raises(ValueError, match="circuits must be of unit 'edge', got 'head'"):
        figures.component_and_attention(fake_component_curve(), fake_circuit([0, 1], task="fake"))
    with pytest.raises(ValueError, match="curves and circuits must be of one task, got 'copy', 'fake'"):
        figures.component_and_attention(fake_component_curve(), fake_circuit([0, 1], unit="edge"))
    with pytest.raises(TypeError, match="circuits must be a Circuit or a mapping"):
        figures.component_and_attention(fake_component_curve(), fake_component_curve())
    with pytest.raises(TypeError, match="figure must be a Figure of matplotlib, got Axes"):
        figures.component_and_attention(fake_component_curve(), EDGES, plt.gca())
