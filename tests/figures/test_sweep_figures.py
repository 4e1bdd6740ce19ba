"""Figures over sweeps: what is drawn is what the tables say, and the bytes are the same every time."""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from attnsparse import figures

STEPS = [0, 50, 100, 1000]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def needed(tasks=("copy", "ioi"), steps=STEPS) -> pd.DataFrame:
    rows = [
        {
            "task": task, "training_step": step, "model": f"step-{step}", "unit": "head", "fraction": 0.9,
            "needed": 20.0 - 4 * i - k, "low": 19.0 - 4 * i - k, "high": 22.0 - 4 * i - k,
        }
        for k, task in enumerate(tasks)
        for i, step in enumerate(steps)
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"training_step": "Int64"})


def agreement(n: int = 3) -> pd.DataFrame:
    names = ("jaccard", "jaccard_low", "jaccard_high", "jaccard_chance")
    values = {name: np.linspace(0.1, 0.9, n) for name in names}
    values |= {
        name: np.linspace(-0.2, 1, n) for name in ("correlation", "correlation_low", "correlation_high")
    }
    return pd.DataFrame({"task": [f"task {i}" for i in range(n)], "model": "m", **values})


@pytest.mark.parametrize("log", [False, True])
def test_lines_are_the_rows_in_the_order_of_steps(log):
    table = needed()
    ax = figures.needed_over_training(table.sample(frac=1, random_state=1).reset_index(drop=True), log=log)
    lines = {line.get_label(): line for line in ax.lines}
    assert set(lines) == {"copy", "ioi"}
    for task, line in lines.items():
        rows = table[table["task"] == task]
        np.testing.assert_array_equal(line.get_xdata(), rows["training_step"].to_numpy(float))
        np.testing.assert_array_equal(line.get_ydata(), rows["needed"])
    assert len({(line.get_color(), line.get_marker()) for line in ax.lines}) == 2
    assert len(ax.collections) == 2
    band = ax.collections[0].get_paths()[0].vertices
    first = table[table["task"] == ax.lines[0].get_label()]
    assert (band[:, 1].min(), band[:, 1].max()) == (first["low"].min(), first["high"].max())
    assert ax.get_ylabel() == "heads for 90 % of the effect"
    assert ax.get_xlabel() == "training step"
    assert {text.get_text() for text in ax.texts} == {"copy", "ioi"}
    assert set(ax.get_xticks()) >= {0, 1000}
    ax.figure.canvas.draw()
    names = [text.get_text() for text in ax.get_xticklabels()]
    assert names[-1] == "1,000"
    boxes = [text.get_window_extent() for text in ax.get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_what_is_missing_is_a_gap():
    table = needed(("copy",))
    table.loc[1, ["needed", "low", "high"]] = np.nan
    [line] = figures.needed_over_training(table).lines
    assert np.isnan(line.get_ydata()).tolist() == [False, True, False, False]
    table[["needed", "low", "high"]] = np.nan
    assert not figures.needed_over_training(table).texts


def test_one_step_and_one_task():
    ax = figures.needed_over_training(needed(("copy",), [500]), title="a $ b")
    assert ax.lines[0].get_xdata().tolist() == [500]
    assert ax.get_title() == "a $ b"
    assert figures.needed_over_training(needed(("copy",), [0]), log=True).get_xticks().tolist() == [0]


def test_given_axes_and_limits():
    figure, axes = plt.subplots(1, 2)
    assert figures.needed_over_training(needed(), axes[0], ylim=(1, 9)) is axes[0]
    assert axes[0].get_ylim() == (1, 9)
    assert figures.circuit_agreement(agreement(), axes[1]) is axes[1]
    assert figure.axes == [*axes]


@pytest.mark.parametrize(("n", "columns", "grid"), [(1, 3, (1, 1)), (5, 3, (2, 3)), (5, 2, (3, 2))])
def test_small_multiples(n, columns, grid):
    tasks = [f"task {i}" for i in range(n)]
    figure = figures.needed_by_task(needed(tasks), columns=columns, title="all")
    assert [ax.get_title() for ax in figure.axes] == tasks
    assert figure.axes[0].get_gridspec().get_geometry() == grid
    for ax, task in zip(figure.axes, tasks):
        table = needed(tasks)
        [line] = ax.lines
        np.testing.assert_array_equal(line.get_ydata(), table[table["task"] == task]["needed"])
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    assert len({ax.get_xlim() for ax in figure.axes}) == 1
    other = Figure()
    assert figures.needed_by_task(needed(tasks), other) is other


def test_agreement_has_a_row_for_each_group():
    table = agreement(4)
    ax = figures.circuit_agreement(table)
    lines = {line.get_label(): line for line in ax.lines}
    for label, name in (("jaccard", "jaccard"), ("chance", "jaccard_chance"), ("correlation", "correlation")):
        np.testing.assert_array_equal(lines[label].get_xdata(), table[name])
    assert [text.get_text() for text in ax.get_yticklabels()] == table["task"].tolist()
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first row is at the top"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "shared items (Jaccard)", "shared by chance", "rank correlation"
    ]  # fmt: skip
    several = table.assign(model=["a", "b", "a", "b"], seed=[1, 2, 3, 4])
    names = [text.get_text() for text in figures.circuit_agreement(several).get_yticklabels()]
    assert names[1] == "task 1, b, seed 2"
    one = agreement(1).assign(jaccard_low=np.nan, jaccard_high=np.nan)
    assert figures.circuit_agreement(one).get_yticklabels()[0].get_text() == "task 0"


DRAWN = {
    "over": lambda: figures.needed_over_training(needed(), log=True),
    "by": lambda: figures.needed_by_task(needed(("a", "b", "c"))),
    "agreement": lambda: figures.circuit_agreement(agreement()),
}


@pytest.mark.parametrize("name", DRAWN)
def test_the_bytes_are_the_same_every_time(name, tmp_path):
    first, second = (figures.save(DRAWN[name](), tmp_path / str(i), dpi=60) for i in range(2))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.drop(columns="needed"), "the table has no column 'needed'"),
        (lambda t: t.iloc[:0], "the table has no rows"),
        (lambda t: t.assign(unit=["head", "edge"] * 4), "several values of unit: head, edge"),
        (lambda t: t.assign(fraction=[0.9, 0.5] * 4), "several values of fraction"),
        (lambda t: t.assign(training_step=pd.NA), "step-0 has no step of training"),
        (lambda t: t.assign(training_step=7), "several models are at step 7 of task copy"),
    ],
)
def test_tables_that_are_refused(change, text):
    for draw in (figures.needed_over_training, figures.needed_by_task):
        with pytest.raises(ValueError, match=text):
            draw(change(needed()))


def test_wrong_arguments():
    many = needed([f"task {i}" for i in range(5)])
    for call, kind, text in (
        (
            lambda: figures.needed_over_training(many),
            ValueError,
            "up to 4 tasks, got 5; figures.needed_by_task",
        ),
        (lambda: figures.needed_over_training({}), TypeError, "table must be a DataFrame"),
        (lambda: figures.needed_over_training(needed(), log=1), TypeError, "log must be True or False"),
        (lambda: figures.needed_by_task(needed(), columns=0), ValueError, "columns must be"),
        (lambda: figures.needed_by_task(needed(), 3), TypeError, "figure must be a Figure"),
        (lambda: figures.circuit_agreement(needed()), ValueError, "no column 'jaccard'"),
        (lambda: figures.circuit_agreement(agreement(3).iloc[:0]), ValueError, "no rows"),
    ):
        with pytest.raises(kind, match=text):
            call()
