"""The figures of heads and attention edges: their tables and captions on planted circuits, then for real.

For the real models the numbers of prompts and steps are made small: that the figures say what was computed
does not depend on them.
"""

from __future__ import annotations

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fake_circuit import fake_circuit
from table_columns import hidden

import attnsparse
from attnsparse.circuits.entry_effects import entry_effects
from attnsparse.cli import main as cli
from attnsparse.items import Head
from attnsparse.reproduce import FIGURES, reproduce
from attnsparse.reproduce import antonym as reproduce_antonym
from attnsparse.reproduce import copy as reproduce_copy
from attnsparse.reproduce import curves as reproduce_curves
from attnsparse.reproduce import pair as reproduce_pair
from attnsparse.reproduce.pair import ModelPair

DENSE, SPARSE = "demo-dense", "demo-sparse"
NEEDED = {("dense", "zero"): 5, ("sparse", "zero"): 2, ("dense", "mean"): 4, ("sparse", "mean"): 1}


def words(text: str) -> str:
    return " ".join(text.split())


class PlantedPair(ModelPair):
    """Circuits that need as many items as NEEDED says, of models that are real but never ranked."""

    def candidates(self, role, task, unit, ablation):
        n = NEEDED.get((role, ablation), 6)
        curve = [0.1 * min(i, 8) if i < n else 0.95 for i in range(8)] + [1]
        options = {"unit": unit, "task": task, "ablation": ablation, "name": self.models[role].name}
        return [fake_circuit(curve, spread=0.2, **options), fake_circuit([0] * 8 + [1], **options)]


@pytest.fixture(scope="module")
def models():
    return {"dense": attnsparse.load(DENSE), "sparse": attnsparse.load(SPARSE)}


@pytest.fixture(scope="module")
def planted(models):
    return PlantedPair(models)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


# ------------------------------------------------------------------------------------------------- copy


def test_copy_draws_the_heads_that_are_needed(planted):
    [made] = reproduce_copy.make(planted)
    assert made.name == "copy"
    upper, lower = made.figure.axes[:2]
    assert upper.get_title(loc="left") == "Dense (demo-dense): 5 of 8 heads"
    assert lower.get_title(loc="left") == "Sparse (demo-sparse): 2 of 8 heads"
    assert [text.get_text() for text in upper.texts] == [f"L0H{i}" for i in range(5)]
    assert len(lower.collections) == 2
    patterns = planted.models["sparse"].run(list(planted.task("copy").evaluation.clean)).pattern
    shown = lower.collections[1].get_array()
    mean = np.tril(patterns.mean(axis=0)[0, 1])
    np.testing.assert_allclose(shown, mean[mean > 1 / 512], rtol=1e-5)


def test_copy_says_its_numbers(planted):
    [made] = reproduce_copy.make(planted)
    assert [hidden(table) for table in made.tables.values()] == [[]] * len(made.tables)
    needed = made.tables["needed"]
    assert list(needed["role"]) == ["dense", "dense", "sparse", "sparse"] * 2
    assert list(needed["taken"]) == [True, False] * 4
    taken = needed[needed["taken"]].set_index(["role", "ablation"])["n_first"]
    assert {key: int(taken[key]) for key in NEEDED} == NEEDED
    text = words(made.caption)
    assert "Zero ablation: dense 5 [" in text
    assert "ratio 2.5 [" in text
    assert "Mean ablation: dense 4 [" in text
    assert "ratio 4.0 [" in text
    assert f"means over {reproduce_pair.PROMPTS // 2} prompts such as 'Copy: " in text
    assert max(map(len, made.caption.splitlines())) <= 140
    heads = made.tables["heads"].groupby(["role", "ablation"])["in_first"].sum()
    assert heads.to_dict() == NEEDED
    assert len(made.tables["curves"]) == 4 * 9


# ----------------------------------------------------------------------------------------------- curves


def test_curves_have_a_panel_for_every_task_and_unit(planted):
    figures = reproduce_curves.make(planted)
    assert [made.name for made in figures] == ["curves", "curves-mean"]
    for made, ablation in zip(figures, ("zero", "mean")):
        axes = made.figure.axes
        assert [ax.get_title() for ax in axes[:4]] == ["Copy", "Antonym", "Indirect object", "Greater than"]
        assert [ax.get_xlabel() for ax in axes] == ["heads kept"] * 4 + ["attention edges kept"] * 4
        for ax in axes:
            lines = {line.get_label(): line for line in ax.lines}
            for role in ("dense", "sparse"):
                expected = planted.circuit(role, "copy", "head", ablation)
                np.testing.assert_array_equal(lines[role].get_ydata(), expected.effect)
            assert any("×" in text.get_text() for text in ax.texts)
        ratios = made.tables["ratios"]
        assert [hidden(table) for table in made.tables.values()] == [[]] * len(made.tables)
        assert list(ratios["task"]) == ["copy", "antonym", "ioi", "greater_than"] * 2
        assert list(ratios["unit"]) == ["head"] * 4 + ["edge"] * 4
        assert set(ratios["ratio_first"]) == {NEEDED["dense", ablation] / NEEDED["sparse", ablation]}
        assert (ratios["ratio_first_low"] <= ratios["ratio_first"]).all()
        assert f"{ablation} ablation" in words(made.caption)
        assert "copy heads 2.5 (2.5)" in words(made.caption) or ablation == "mean"


def test_the_control_is_a_third_line(models):
    pair = PlantedPair({**models, "control": models["dense"]})
    made = reproduce_curves.make(pair)[0]
    for ax in made.figure.axes:
        assert {"dense", "sparse", "control"} <= {line.get_label() for line in ax.lines}
    assert set(made.tables["needed"]["role"]) == {"dense", "sparse", "control"}
    assert "Dense demo-dense, sparse demo-sparse, control demo-dense." in words(made.caption)
    assert list(made.tables["ratios"]["role"]) == ["dense", "control"] * 8
    assert "Control to sparse: copy heads 3.0 (3.0); antonym heads" in words(made.caption)
    mean = reproduce_curves.make(pair)[1]
    assert set(mean.tables["needed"]["role"]) == {"dense", "sparse"}
    assert "control" not in mean.caption


# ---------------------------------------------------------------------------------------------- antonym


def test_antonym_tables_and_caption_agree(models):
    [made] = reproduce_antonym.make(ModelPair(models))
    table, heads = made.tables["models"], made.tables["heads"]
    assert hidden(table) == hidden(heads) == []
    assert list(zip(table["ablation"], table["role"])) == [
        ("zero", "dense"), ("zero", "sparse"), ("mean", "dense"), ("mean", "sparse"),
    ]  # fmt: skip
    for row in table.itertuples():
        own = heads[(heads["ablation"] == row.ablation) & (heads["role"] == row.role)]
        assert len(own) == row.heads_open <= row.heads == 144
        assert own["drawn"].sum() == row.heads_drawn
        n = row.heads_needed
        assert own["share"].iloc[n - 1] >= 0.8
        assert (own["share"].iloc[: n - 1] < 0.8).all()
        if n <= 36:
            assert (own["share"].iloc[n - 1], own["kept"].iloc[n - 1]) == (row.share, row.kept)
        assert own["kept"].iloc[row.heads_needed_to_keep - 1] >= 0.8
        assert (np.diff(own["effect"]) <= 0).all()
    needed = table.groupby("role")["heads_needed"]
    assert needed.min()["dense"] >= 15
    assert needed.max()["sparse"] <= 6
    assert set(heads["query_position"]) == {8}
    assert set(heads["key_position"]) == {5}
    assert table["answer_is_top"].all()
    dense, sparse = made.figure.axes[:2]
    drawn = heads[heads["drawn"]]
    for ax, role in ((dense, "dense"), (sparse, "sparse")):
        labels = [text.get_text() for text in ax.texts if text.get_text().startswith("L")]
        assert labels == list(drawn[drawn["role"] == role]["label"])
    found = entry_effects(models["sparse"])
    text = words(made.caption)
    n = found.needed(0.8)
    assert f"kept {100 * found.kept[n]:.0f} % (metric {found.full:.1f}, without the entry in all" in text
    assert "Heads that carry 'large' (position 5) to position 8" in text
    assert "where 'small' is due" in text


def test_antonym_patterns_are_those_of_the_prompt(models):
    [made] = reproduce_antonym.make(ModelPair(models))
    run = models["sparse"].run('The opposite of "large" is "')
    first = Head.parse(made.tables["heads"].query("role == 'sparse' and drawn")["label"].iloc[0])
    expected = run.pattern[first]
    np.testing.assert_array_equal(
        made.figure.axes[1].collections[0].get_array(), expected[np.tril(expected) > 1 / 512]
    )


# ------------------------------------------------------------------------------------------------- pairs


def test_the_ranking_that_explains_more_is_taken(models, monkeypatch):
    monkeypatch.setattr(reproduce_pair, "PROMPTS", 8)
    monkeypatch.setattr(reproduce_pair, "STEPS", 2)
    said: list[str] = []
    pair = ModelPair(models, said.append)
    found = pair.candidates("dense", "antonym", "head", "zero")
    assert {circuit.method for circuit in found} == {"exact", "ig"}
    areas = [pair._area("dense", "antonym", circuit) for circuit in found]
    assert areas[0] >= areas[1]
    assert pair.circuit("dense", "antonym", "head", "zero") is found[0]
    [edges] = pair.candidates("sparse", "antonym", "edge", "mean")
    assert (edges.method, edges.unit, edges.ablation) == ("ig", "edge", "mean")
    assert pair.circuit("sparse", "antonym", "edge", "mean") is edges
    assert said == [
        "antonym: heads of dense, zero ablation",
        "antonym: edges of sparse, mean ablation",
    ]


def test_a_model_that_cannot_do_the_task(models, monkeypatch):
    monkeypatch.setattr(reproduce_pair, "PROMPTS", 8)
    spoilt = models["dense"].copy()
    spoilt.assign({name: -spoilt.parameter(name) for name in ("ln_f.weight", "ln_f.bias")})
    with pytest.raises(
        ValueError, match="'demo-dense' does not do the task 'antonym' by attention: logit_diff"
    ):
        ModelPair({"dense": spoilt}).circuit("dense", "antonym", "head", "zero")


def test_a_pair_needs_one_tokenizer(models):
    words = ["The", *(f"w{i}" for i in range(9))]
    config = attnsparse.Config(n_layer=1, n_head=1, d_model=4, d_head=4, d_mlp=4, n_ctx=8, n_vocab=len(words))
    other = attnsparse.Model(config, None, attnsparse.Tokenizer.from_words(words), "other")
    with pytest.raises(ValueError):
        ModelPair({"dense": models["dense"], "sparse": other}).task("copy")


# -------------------------------------------------------------------------------------------- everything


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """All figures, with few prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce_pair, "PROMPTS", 6)
        patch.setattr(reproduce_pair, "STEPS", 2)
        patch.setattr(reproduce_pair, "CHOICE_SIZES", (4, 16, 64))
        before = plt.get_fignums()
        made = reproduce("all", tmp_path_factory.mktemp("figures") / "new", progress=False)
        assert plt.get_fignums() == before
        yield made


def test_files(small):
    parts = {
        "copy": ("needed", "heads", "curves"),
        "antonym": (
            *("graph", "graph-checks", "graph-heads", "graph-groups", "graph-arrows", "graph-features"),
            *("models", "heads"),
        ),
        "curves": ("needed", "ratios", "curves", "items"),
        "curves-mean": ("needed", "ratios", "curves", "items"),
        "addition": ("models", "sums", "carry", "edges"),
    }
    names = []
    for figure, tables in parts.items():
        names += [f"{figure}.{form}" for form in ("png", "svg", "pdf", "txt")]
        names += [f"{figure}-{table}.csv" for table in tables]
    assert [path.name for path in small] == names
    [folder] = {path.parent for path in small}
    assert sorted(folder.iterdir()) == sorted(small)
    for path, table in small.items():
        if table is not None:
            read = pd.read_csv(path, keep_default_na=False)
            assert list(read) == list(table)
            assert len(read) == len(table) > 0


def test_same_bytes_again(small, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce_pair, "PROMPTS", 6)
    monkeypatch.setattr(reproduce_pair, "STEPS", 2)
    monkeypatch.setattr(reproduce_pair, "CHOICE_SIZES", (4, 16, 64))
    for what in ("copy", "antonym"):
        for path in reproduce(what, tmp_path, progress=False):
            [before] = [other for other in small if other.name == path.name]
            assert path.read_bytes() == before.read_bytes(), path.name


def test_the_command_knows_every_figure():
    assert ("all", *FIGURES) == cli.FIGURES


def test_given_models_are_drawn(tmp_path, models, capsys):
    given = reproduce("antonym", tmp_path, ("svg",), dense=models["sparse"], sparse=models["dense"])
    [table] = [table for path, table in given.items() if path.name == "antonym-models.csv"]
    assert list(table["model"]) == [SPARSE, DENSE] * 2
    assert list(table["role"]) == ["dense", "sparse"] * 2
    arguments = ["reproduce", "antonym", "--dense", DENSE, "--sparse", SPARSE, "--out", str(tmp_path / "x")]
    assert cli.main(arguments) == 0
    assert "Heads that carry 'large'" in capsys.readouterr().out
    assert (tmp_path / "x" / "antonym.pdf").is_file()


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such-model"):
        reproduce("copy", tmp_path / "x", sparse="no-such-model")
    assert not (tmp_path / "x").exists()
