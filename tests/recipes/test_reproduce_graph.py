"""The antonym figure with transcoders: its files agree with each other, and with the graph they are of."""

from __future__ import annotations

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from graph_toys import random_transcoders
from table_columns import hidden

import attnsparse as asp
from attnsparse.cli import main as cli
from attnsparse.graphs.word_effect import word_effect
from attnsparse.reproduce import TRANSCODERS, reproduce
from attnsparse.reproduce import graph as reproduce_graph

NAMES = ("demo-dense", "demo-sparse")
TABLES = ("graph", "graph-checks", "graph-heads", "graph-groups", "graph-arrows", "graph-features", "models")
FORMATS = ("png", "svg", "pdf", "txt")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def models():
    return {role: asp.load(name) for role, name in zip(("dense", "sparse"), NAMES)}


@pytest.fixture(scope="module")
def random_sets(models, tmp_path_factory):
    """Folders of random transcoders."""
    folder = tmp_path_factory.mktemp("sets")
    for role, model in models.items():
        asp.save_transcoders(random_transcoders(model, 40), folder / role)
    return [folder / role for role in models]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The figure of the package's models with the package's transcoders."""
    return reproduce("antonym", tmp_path_factory.mktemp("figures"), progress=False)


def table(files, name):
    [found] = [value for path, value in files.items() if path.name == f"antonym-{name}.csv"]
    return found


def caption(files) -> str:
    [text] = [path.read_text(encoding="utf-8") for path in files if path.suffix == ".txt"]
    assert max(map(len, text.splitlines())) <= 140
    return " ".join(text.split())


def test_columns_can_be_typed(own):
    assert {
        path.name: names for path, value in own.items() if value is not None and (names := hidden(value))
    } == {}


def test_files(own):
    names = [f"antonym.{form}" for form in FORMATS]
    names += [f"antonym-{name}.csv" for name in (*TABLES, "heads")]
    assert [path.name for path in own] == names
    for path, value in own.items():
        if value is not None:
            assert len(pd.read_csv(path, keep_default_na=False)) == len(value) > 0


def test_what_is_shown_of_the_packages_models(own):
    """Heads that carry 80 % of the edge look from 8 at 5: many in the dense model, few in the sparse one."""
    graph = table(own, "graph")
    assert list(zip(graph["role"], graph["through"])) == [
        ("dense", "features"), ("dense", "edge"), ("sparse", "features"), ("sparse", "edge"),
    ]  # fmt: skip
    assert list(graph["transcoders"].unique()) == list(TRANSCODERS)
    assert set(graph["key_position"]) == {5}
    assert set(graph["query_position"]) == {8}
    assert (graph["closure"] < 1e-4).all()
    shown = graph[graph["through"] == "features"]
    assert (shown["heads_drawn"] == shown["heads_needed"]).all()
    drawn = shown.set_index("role")["heads_drawn"]
    assert drawn["dense"] >= 15
    assert 4 <= drawn["sparse"] <= 6
    assert (shown["share_drawn"] >= 0.8).all()
    assert (shown["drawn_look_at_key"] == shown["heads_drawn"]).all()
    assert (shown["weight"] > 0.5 * shown["logit_diff"]).all()
    checks = table(own, "graph-checks")
    assert (checks["predicted"] < 0).all()
    assert (checks["actual"] < 0).all()
    assert checks["ratio"].between(0.2, 3).all()


def test_tables_agree(own):
    graph, heads = table(own, "graph"), table(own, "graph-heads")
    for row in graph.itertuples():
        mine = heads[(heads["role"] == row.role) & (heads["through"] == row.through)]
        np.testing.assert_allclose(mine["share"].sum() + row.direct + row.remainder, 1, atol=1e-6)
        np.testing.assert_allclose(mine["loading"].sum(), row.weight * mine["share"].sum(), rtol=1e-6)
        assert mine["cumulative"].iloc[row.heads_needed - 1] >= 0.8
        assert (mine["cumulative"].iloc[: row.heads_needed - 1] < 0.8).all()
        assert mine["drawn"].sum() == row.heads_drawn
    groups, arrows = table(own, "graph-groups"), table(own, "graph-arrows")
    for role in ("dense", "sparse"):
        mine = groups[groups["role"] == role].set_index("group")
        assert list(mine.index) == ["The", "opposite", "of", '"', "large", "is", "small"]
        assert mine.loc['"', "positions"] == "4 6 8"
        assert mine.loc["small", "last_layer"] == 12
        [weight] = graph.query("role == @role and through == 'features'")["weight"]
        assert mine.loc["large", "influence"] == pytest.approx(weight, rel=1e-6)
        flows = arrows[(arrows["role"] == role) & (arrows["source"] == "large")]
        assert flows["weight"].sum() == pytest.approx(weight, rel=0.05)
    features = table(own, "graph-features")
    assert features.groupby(["role", "group"]).size().max() <= reproduce_graph.FEATURES


def test_features_are_described_by_the_sentence_with_other_words(own):
    """Those of a word that stands in every sentence are mostly on it; chance is one in 128 for large."""
    features = table(own, "graph-features")
    assert features["on_word"].dropna().between(0, 1).all()
    assert (features["label"] != "").all()
    for role in ("dense", "sparse"):
        mine = features[features["role"] == role].groupby("group")["on_word"]
        assert mine.mean()["opposite"] > 0.2
        assert mine.max()["large"] > 5 / 128


def test_caption_says_the_numbers(own):
    text = caption(own)
    for row in table(own, "graph").query("through == 'features'").itertuples():
        said = f"{row.role.capitalize()}: {row.heads_drawn} heads carry {100 * row.share_drawn:.0f} % of"
        assert f"{said} {row.weight:.1f} (logit difference {row.logit_diff:.1f})" in text
    for row in table(own, "graph-checks").itertuples():
        assert f"by {row.actual:.1f} without" in text
        assert f"(graph: {row.predicted:.1f})" in text
    assert "Zero ablation: dense" in text


def test_same_bytes_again(own, tmp_path):
    for path in reproduce("antonym", tmp_path, progress=False):
        [before] = [other for other in own if other.name == path.name]
        assert path.read_bytes() == before.read_bytes(), path.name


def test_own_transcoders(random_sets, models, tmp_path, capsys):
    folders = [str(folder) for folder in random_sets]
    arguments = ["reproduce", "antonym", "--transcoders", *folders, "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert "Attribution graph of" in capsys.readouterr().out
    graph = pd.read_csv(tmp_path / "antonym-graph.csv")
    assert list(graph["transcoders"].unique()) == ["dense", "sparse"]
    loaded = asp.load_transcoders(random_sets[1], models["sparse"])
    found = word_effect(models["sparse"], loaded)
    weights = graph.query("role == 'sparse'")["weight"]
    np.testing.assert_allclose(
        weights, [found.loadings[name].whole for name in ("features", "edge")], rtol=1e-5
    )


def test_transcoders_as_objects(models, tmp_path):
    sets = [random_transcoders(model, 40) for model in models.values()]
    files = reproduce("antonym", tmp_path, ("svg",), **models, transcoders=sets, progress=False)
    assert list(table(files, "graph")["model"].unique()) == list(NAMES)


def test_own_models_without_transcoders_show_attention(models, tmp_path):
    files = reproduce("antonym", tmp_path, ("svg",), **models, progress=False)
    assert [path.name for path in files] == [
        "antonym.svg", "antonym.txt", "antonym-models.csv", "antonym-heads.csv",
    ]  # fmt: skip
    assert "Heads that carry 'large'" in caption(files)


def test_wrong_transcoders(random_sets, tmp_path):
    where = tmp_path / "x"
    with pytest.raises(ValueError, match="transcoders are for the figure 'antonym'; 'copy' shows attention"):
        reproduce("copy", where, transcoders=random_sets)
    for wrong in (random_sets[:1], str(random_sets[0])):
        with pytest.raises(ValueError, match="transcoders must be two sets"):
            reproduce("antonym", where, transcoders=wrong)
    with pytest.raises(FileNotFoundError, match="no-such-set"):
        reproduce("antonym", where, transcoders=("no-such-set", random_sets[1]))
    small = random_transcoders(asp.load("addition-dense"), 8)
    with pytest.raises(asp.ConfigError, match="n_layer"):
        reproduce("antonym", where, transcoders=(small, random_sets[1]))
    assert not where.exists()
