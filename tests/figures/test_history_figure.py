"""The curves of a training's history are its columns, in panels of their own axes."""

from __future__ import annotations

import itertools

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from attnsparse import figures
from attnsparse.figures.history import _DOTS

HELD_OUT = ["held_out_ce", "held_out_edges_per_token", "held_out_self_edges_per_token"]
EDGES = ["edges_per_token", "self_edges_per_token"]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def history():
    steps = np.arange(200)
    falling = 1.0 / (steps + 1)
    names = ["loss", "ce", "multiplier", "expected_edges", "open_edges", "grad_norm", "seconds", *EDGES]
    columns = {name: falling / n for n, name in enumerate(names, 1)}
    evaluated = np.where(steps % 2 == 1, falling, np.nan)
    columns |= {name: evaluated / n for n, name in enumerate(HELD_OUT, 11)}
    return pd.DataFrame({"step": steps, **columns})


def labels(ax):
    """Label of the vertical axis -> the labels of its curves."""
    return {panel.get_ylabel(): [line.get_label() for line in panel.lines] for panel in ax.child_axes}


def test_history_shows_every_curve(history):
    ax = figures.training_history(history, target=0.5)
    assert labels(ax) == {
        "cross-entropy\n(nats)": ["training", "held-out", "target"],
        "loss": ["loss"],
        "edges per token": ["all", "to itself", "held-out", "_held-out"],
        "fraction of edges": ["expected", "open"],
        "multiplier": ["multiplier"],
    }
    columns = [
        ["ce", HELD_OUT[0]], ["loss"], [*EDGES, *HELD_OUT[1:]], ["expected_edges", "open_edges"],
        ["multiplier"],
    ]  # fmt: skip
    for panel, names in zip(ax.child_axes, columns, strict=True):
        for line, name in zip(panel.lines, names, strict=False):
            drawn = history[history[name].notna()]
            np.testing.assert_array_equal(line.get_xdata(), drawn["step"])
            np.testing.assert_array_equal(line.get_ydata(), drawn[name])
    assert [panel.get_yscale() for panel in ax.child_axes] == ["linear", "linear", "log", "log", "log"]
    assert list(ax.child_axes[0].lines[2].get_ydata()) == [0.5, 0.5]


def test_curves_of_one_panel_differ_without_colour(history):
    edges = figures.training_history(history).child_axes[2]
    every, own, held_out, _ = edges.lines
    assert (every.get_linestyle(), own.get_linestyle()) == ("-", "--")
    assert (every.get_marker(), held_out.get_marker()) == ("None", ".")
    assert len(held_out.get_xdata()) // held_out.get_markevery() <= _DOTS
    assert [text.get_text() for text in edges.get_legend().get_texts()] == ["all", "to itself", "held-out"]


def test_a_single_evaluation_is_seen(history):
    history.loc[history["step"] != 101, HELD_OUT] = np.nan
    line = figures.training_history(history).child_axes[0].lines[1]
    assert (line.get_xdata().tolist(), line.get_marker(), line.get_markevery()) == ([101], ".", 1)


def test_history_of_before_edges_were_counted_for_each_token(history):
    ax = figures.training_history(history.drop(columns=EDGES + HELD_OUT))
    assert list(labels(ax)) == ["cross-entropy\n(nats)", "loss", "fraction of edges", "multiplier"]
    assert labels(ax)["cross-entropy\n(nats)"] == ["training"]


def test_history_of_a_dense_model_shows_its_cross_entropy_alone(history):
    """Its held-out columns count all pairs."""
    history[["expected_edges", "open_edges", "multiplier", *EDGES]] = np.nan
    history["loss"] = history["ce"]
    assert labels(figures.training_history(history)) == {"cross-entropy\n(nats)": ["training", "held-out"]}
    assert labels(figures.training_history(history[["step", "loss"]])) == {"loss": ["loss"]}


def test_no_edge_leads_from_a_token_to_itself(history):
    history[["self_edges_per_token", "held_out_self_edges_per_token"]] *= 0.0
    assert labels(figures.training_history(history))["edges per token"] == ["all", "held-out"]


def test_every_power_of_ten_of_the_edges_is_named(history):
    history["edges_per_token"] = np.geomspace(9000, 60, len(history))
    history["self_edges_per_token"] = 9.0
    panel = figures.training_history(history.drop(columns=HELD_OUT)).child_axes[2]
    low, high = panel.get_ylim()
    assert [tick for tick in panel.get_yticks() if low <= tick <= high] == [10, 100, 1000, 10_000]


@pytest.mark.parametrize("lowest", [0.4, 0.15, 0.06, 0.025, 0.006, 1e-5])
def test_names_of_a_logarithmic_axis_do_not_touch(history, lowest):
    history["multiplier"] = np.geomspace(0.7, lowest, len(history))
    ax = figures.training_history(history)
    ax.figure.canvas.draw()
    axis = ax.child_axes[-1].yaxis
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    low, high = sorted(axis.get_view_interval())
    names = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()]
    boxes = sorted((name.get_window_extent().extents for name in names), key=lambda box: box[1])
    assert len(boxes) >= 2
    assert all(below[3] <= above[1] for below, above in itertools.pairwise(boxes))


@pytest.mark.parametrize("columns", [["loss", "ce"], ["step", "seconds"], []])
def test_history_without_anything_to_show(history, columns):
    with pytest.raises(ValueError, match="history"):
        figures.training_history(history[columns])
