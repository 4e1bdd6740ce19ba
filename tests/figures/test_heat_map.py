"""Heat maps show the numbers of their table, at the right squares, under labels that do not touch."""

from __future__ import annotations

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fake_run import PROMPT, FakeModel

from attnsparse import figures
from attnsparse.model import tables

RUN = FakeModel(3).run(PROMPT)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def squares(n_layer: int, n_columns: int, name: str = "head_index", seed: int = 0) -> pd.DataFrame:
    layer, column = (index.ravel() for index in np.indices((n_layer, n_columns)))
    value = np.random.default_rng(seed).normal(size=len(layer))
    return pd.DataFrame({"layer": layer, name: column, "value": value}).sample(frac=1, random_state=seed)


def shown(ax: plt.Axes) -> np.ndarray:
    """The numbers [row, column] of a map, NaN where it has none."""
    mesh = ax.collections[0]
    return np.ma.filled(mesh.get_array().reshape(mesh.get_coordinates().shape[0] - 1, -1), np.nan)


def labels_touch(ax: plt.Axes) -> bool:
    ax.figure.canvas.draw()
    renderer = ax.figure.canvas.get_renderer()
    for axis in (ax.xaxis, ax.yaxis):
        boxes = [t.get_window_extent(renderer) for t in axis.get_ticklabels() if t.get_text()]
        if any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]):
            return True
    return False


def test_numbers_and_axes():
    table = squares(3, 5)
    ax = figures.heat_map(table, "value")
    wanted = table.pivot(index="layer", columns="head_index", values="value").to_numpy()
    np.testing.assert_array_equal(shown(ax), wanted)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title(loc="left")) == ("head", "layer", "")
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # layer 0 on top
    assert [t.get_text() for t in ax.get_xticklabels()] == list("01234")
    norm = ax.collections[0].norm
    assert norm.vmax == -norm.vmin == np.abs(wanted).max()
    assert figures.heat_map(table, "value", largest=9).collections[0].norm.vmax == 9


def test_numbers_of_one_sign_are_white_to_blue():
    table = squares(2, 2).abs()
    mesh = figures.heat_map(table, "value").collections[0]
    assert (mesh.norm.vmin, mesh.cmap.name) == (0, "white_to_blue")
    assert figures.heat_map(squares(2, 2), "value").collections[0].cmap.name == "orange_to_blue"
    figures.heat_map(table.assign(value=0.0), "value")


def test_heads_of_a_run():
    table = tables.heads(RUN, 4, 7)
    ax = figures.heat_map(table, "contribution", title="contribution\nof each head")
    for row in table.itertuples():
        assert shown(ax)[row.layer, row.head_index] == pytest.approx(row.contribution)
    assert ax.get_title(loc="left") == "contribution\nof each head"


def test_squares_without_a_row_have_no_number():
    table = squares(4, 4)
    some = table[(table.layer > 1) & (table.head_index < 3) & (table.layer + table.head_index != 3)]
    found = shown(figures.heat_map(some, "value"))
    assert found.shape == (4, 3)
    assert np.isnan(found[:2]).all()
    assert np.isnan(found[2, 1])
    assert np.isnan(found).sum() == 12 - len(some)


def test_positions_with_tokens():
    table = tables.edges(RUN, base=1).groupby(["layer", "query_position", "query_token"], as_index=False)
    table = table.contribution.sum()
    ax = figures.heat_map(table, "contribution")
    assert ax.get_xlabel() == "query position"
    assert f"large  {RUN.token_strings.index('large') + 1}" in [t.get_text() for t in ax.get_xticklabels()]
    assert not labels_touch(ax)
    other = figures.heat_map(squares(3, 4, "position"), "value", columns="position")
    assert other.get_xlabel() == "position"


def test_the_mean_over_prompts():
    parts = [squares(2, 3, seed=i).assign(prompt=i, model="m") for i in range(4)]
    ax = figures.heat_map(pd.concat(parts), "value")
    wanted = np.mean([part.sort_values(["layer", "head_index"]).value for part in parts], axis=0)
    np.testing.assert_allclose(shown(ax).ravel(), wanted)
    assert ax.get_title(loc="left") == "m"


@pytest.mark.parametrize("shape", [(48, 64), (12, 12), (2, 200), (1, 1)])
def test_labels_do_not_touch(shape):
    for name in ("head_index", "position"):
        table = squares(*shape, name)
        if name == "position":
            table = table.assign(token=[f"token{i}" for i in table.position])
        assert not labels_touch(figures.heat_map(table, "value"))
        _, ax = plt.subplots(figsize=(2.2, 1.6))
        assert not labels_touch(figures.heat_map(table, "value", ax))


def test_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        figures.save(figures.heat_map(squares(3, 4), "value", title="$x <b>"), tmp_path / name)
    for form in ("png", "svg", "pdf"):
        first, second = ((tmp_path / f"{name}.{form}").read_bytes() for name in ("first", "second"))
        assert first == second


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda t: figures.heat_map(t, "x"), KeyError, "no column 'x'; it has layer, head_index, value"),
        (lambda t: figures.heat_map(t.drop(columns="layer"), "value"), KeyError, "no column 'layer'"),
        (lambda t: figures.heat_map(t[:0], "value"), ValueError, "no rows"),
        (
            lambda t: figures.heat_map(pd.concat([t, t]), "value"),
            ValueError,
            "several rows for one layer and head",
        ),
        (lambda t: figures.heat_map(t.assign(model=list("ab") * 3), "value"), ValueError, "several models"),
        (lambda t: figures.heat_map(t.assign(value="a"), "value"), TypeError, "'value' must hold numbers"),
        (lambda t: figures.heat_map(t, "value", largest=0), ValueError, "largest must be above 0"),
        (lambda t: figures.heat_map([1], "value"), TypeError, "table must be a DataFrame"),
    ],
)
def test_wrong_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call(squares(2, 3))
