"""Curves of explained effect show the circuits' numbers; names and ratios stand where they hide nothing."""

from __future__ import annotations

from itertools import pairwise

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fake_circuit import fake_circuit
from matplotlib.colors import to_rgb

from attnsparse import figures
from attnsparse.figures.effects import _number
from attnsparse.figures.style import BLUE, DARK

DENSE = fake_circuit(
    [0, 0.01, 0.02, 0.1, 0.5, 0.95, 0.85, 0.97, 1.05, 1],
    [0, 1, 3, 10, 60, 200, 400, 1000, 5000, 19584],
    unit="edge",
    spread=0.4,
    random=True,
    name="big",
)
SPARSE = fake_circuit([0, 0.3, 0.6, 0.97, 1], [0, 2, 5, 8, 40], unit="edge", spread=0.4, name="small")
PAIR = {"dense": DENSE, "sparse": SPARSE}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def named(ax) -> dict:
    return {line.get_label(): line for line in ax.lines}


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_text()]


def test_lines_are_the_curves():
    ax = figures.effect_curves(PAIR | {"control": DENSE}, title="copy $x$")
    for label, circuit in {**PAIR, "control": DENSE}.items():
        line = named(ax)[label]
        np.testing.assert_array_equal(line.get_xdata(), circuit.sizes)
        np.testing.assert_array_equal(line.get_ydata(), circuit.effect)
    assert named(ax)["dense"].get_color() == DARK
    assert named(ax)["sparse"].get_color() == BLUE
    assert named(ax)["control"].get_linewidth() < named(ax)["dense"].get_linewidth()
    assert len(ax.collections) == 2  # bands
    assert [line.get_color() for line in ax.lines if line.get_label() == "_first"] == [DARK, BLUE]
    assert ax.get_title() == "copy $x$"
    assert ax.get_xlabel() == "attention edges kept"
    assert ax.get_ylabel() == "explained effect"


def test_bands_are_the_intervals():
    ax = figures.effect_curves(PAIR)
    for band, circuit in zip(ax.collections, PAIR.values()):
        corners = band.get_paths()[0].vertices
        for n, low, high in zip(circuit.sizes, circuit.effect_low, circuit.effect_high):
            heights = corners[corners[:, 0] == n, 1]
            assert heights.min() == low
            assert heights.max() == high


def test_random_orders_are_dotted_where_they_were_evaluated():
    line = named(figures.effect_curves(PAIR))["_dense, random order"]
    np.testing.assert_array_equal(line.get_ydata(), DENSE.random_effect)
    assert "_sparse, random order" not in named(figures.effect_curves(PAIR))
    assert "_dense, random order" not in named(figures.effect_curves(PAIR, random=False))


def test_dots_stand_where_the_fraction_is_reached_and_stays():
    ax = figures.effect_curves(PAIR)
    dots = [line.get_xydata()[0].tolist() for line in ax.lines if line.get_label() == "_first"]
    assert dots == [[200, 0.9], [8, 0.9]]
    open_dots = [line.get_xydata()[0].tolist() for line in ax.lines if line.get_label() == "_stays"]
    assert open_dots == [[1000, 0.9]]
    ax = figures.effect_curves(PAIR, fraction=0.55)
    assert [line.get_xdata()[0] for line in ax.lines if line.get_label() == "_first"] == [200, 5]


def test_ratio_is_written_at_the_line():
    def written(**options) -> list[str]:
        return [text for text in texts(figures.effect_curves(PAIR, **options)) if "×" in text]

    assert len(written()) == 1
    assert written()[0].startswith("25×\n[")
    assert written(by="stays")[0].startswith("125×\n[")
    assert written(fraction=0.55)[0].startswith("40×")
    assert written(ratio=False) == []
    assert not any("×" in text for text in texts(figures.effect_curves({"one": DENSE})))


def test_no_ratio_where_nothing_is_reached():
    short = fake_circuit([0, 0.1, 0.2], unit="edge")
    assert texts(figures.effect_curves({"dense": short, "sparse": SPARSE})) == ["dense", "sparse"]


def test_zero_has_its_place_on_the_logarithmic_axis():
    ax = figures.effect_curves(PAIR)
    ax.figure.canvas.draw()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "10", "100", "1,000", "19,584"]
    place = ax.transData.transform([[n, 0.0] for n in (0, 1, 10, 100)])[:, 0]
    steps = np.diff(place)
    assert ax.get_window_extent().x0 <= place[0]
    assert steps[0] > 8
    assert steps[1] == pytest.approx(steps[2], rel=0.01)


def test_a_linear_axis_if_asked():
    heads = {"dense": fake_circuit([0, 0.5, 1]), "sparse": fake_circuit([0, 0.95, 1])}
    assert figures.effect_curves(heads).get_xlabel() == "heads kept"
    assert figures.effect_curves(heads).get_xscale() == "symlog"
    assert figures.effect_curves(PAIR, log=False).get_xscale() == "linear"


def test_every_point_is_inside_and_wild_ones_are_cut():
    ax = figures.effect_curves(PAIR)
    low, high = ax.get_ylim()
    assert low < 0
    assert high > 1.05
    wild = fake_circuit([0, -7, 9, 1])
    assert figures.effect_curves({"wild": wild}).get_ylim() == pytest.approx((-1.08, 2.22))
    assert figures.effect_curves({"wild": wild}, ylim=(-8, 10)).get_ylim() == (-8, 10)


def test_names_have_their_colours_and_cover_no_curve():
    ax = figures.effect_curves(PAIR)
    ax.figure.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts if text.get_text()}
    assert set(boxes) >= {"dense", "sparse"}
    for label, colour in (("dense", DARK), ("sparse", BLUE)):
        text = next(text for text in ax.texts if text.get_text() == label)
        assert to_rgb(text.get_color()) == to_rgb(colour)
        for name in PAIR:
            points = ax.transData.transform(named(ax)[name].get_xydata())
            path = np.concatenate([np.linspace(a, b, 50) for a, b in pairwise(points)])
            box = boxes[label]
            inside = (
                (box.x0 < path[:, 0]) & (path[:, 0] < box.x1) & (box.y0 < path[:, 1]) & (path[:, 1] < box.y1)
            )
            assert not inside.any(), (label, name)
    ordered = list(boxes.values())
    assert not any(a.overlaps(b) for i, a in enumerate(ordered) for b in ordered[i + 1 :])


def test_draws_on_the_axes_given():
    _, ax = plt.subplots()
    before = plt.get_fignums()
    assert figures.effect_curves(PAIR, ax) is ax
    assert plt.get_fignums() == before


def test_same_bytes_again(tmp_path):
    for name in ("first", "second"):
        figures.save(figures.effect_curves(PAIR), tmp_path / name)
    for form in ("png", "svg", "pdf"):
        assert (tmp_path / f"first.{form}").read_bytes() == (tmp_path / f"second.{form}").read_bytes()


def test_bad_input():
    with pytest.raises(ValueError, match="one unit, got 'edge', 'head'"):
        figures.effect_curves({"a": DENSE, "b": fake_circuit([0, 1])})
    with pytest.raises(TypeError, match="circuits must be a mapping, label: Circuit, got Circuit"):
        figures.effect_curves(fake_circuit([0, 1]))
    with pytest.raises(ValueError, match="got no circuit"):
        figures.effect_curves({})
    for fraction in (0, 1.5, -1):
        with pytest.raises(ValueError, match="fraction must be above 0 and at most 1"):
            figures.effect_curves(PAIR, fraction=fraction)
    with pytest.raises(ValueError, match="same ablation"):
        figures.effect_curves({"a": DENSE, "b": fake_circuit([0, 1], unit="edge", ablation="mean")})


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.52, "4.5"), (1, "1.0"), (9.96, "10"), (97.4, "97"), (1230.4, "1,230"), (np.inf, "∞")],
)
def test_numbers(value, text):
    assert _number(value) == text
