"""The reproduced figures and their numbers: counted by hand on planted models, then on the real ones."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from table_columns import hidden

import attnsparse
from attnsparse.recipes import addition_evaluation
from attnsparse.reproduce import addition as reproduce_addition
from attnsparse.reproduce import reproduce
from attnsparse.tasks import addition

ALL = addition.sequences(*addition.all_sums())


class PlantedModel:
    """Adds rightly except where b = 7 (wrong ones) and where a = 3 (no end); its edges follow a simple rule.

    Layer 0 head 0: 4 <- 1 always. Layer 1 head 1: 6 <- 4 with a carry from the ones; 5 <- 4 where a is even.
    """

    name, digest = "planted", "d" * 64
    config = SimpleNamespace(n_layer=2, n_head=2, n_vocab=14, gated=True, tied=False)

    def run(self, tokens, record):
        tokens = np.stack(tokens)
        a, b = 10 * tokens[:, 0] + tokens[:, 1], 10 * tokens[:, 3] + tokens[:, 4]
        logits = np.zeros((*tokens.shape, 14), np.float32)
        np.put_along_axis(logits[:, :-1], tokens[:, 1:, None], 5.0, axis=2)
        logits[b == 7, 7] = np.roll(logits[b == 7, 7], 1, axis=1)
        logits[a == 3, 8] = 0.0
        pattern = np.zeros((len(tokens), 2, 2, 11, 11), np.float32)
        pattern[:, 0, 0, 4, 1] = 0.005
        pattern[tokens[:, 1] + tokens[:, 4] > 9, 1, 1, 6, 4] = 0.5
        pattern[a % 2 == 0, 1, 1, 5, 4] = 0.5
        return SimpleNamespace(pattern=pattern, logits=logits)


@pytest.fixture(scope="module")
def planted():
    return addition_evaluation.evaluate(PlantedModel(), 0.0)


# --------------------------------------------------------------------------------------- addition


def test_sequences():
    text = ["".join(addition.VOCABULARY[token] for token in row) for row in ALL]
    assert len(text) == len(set(text)) == 10_000
    assert [text[i] for i in (5321, 3628, 4359, 0, 9999)] == [
        "53+21=074EE", "36+28=064EE", "43+59=102EE", "00+00=000EE", "99+99=198EE",
    ]  # fmt: skip
    for row in text:
        assert int(row[:2]) + int(row[3:5]) == int(row[6:9])
    np.testing.assert_array_equal(addition.sequence(53, 21), ALL[5321])
    assert ALL.dtype == np.int32


@pytest.mark.parametrize(("a", "b"), [(100, 0), (0, -1), (-1, 0)])
def test_numbers_out_of_range(a, b):
    with pytest.raises(ValueError, match="from 0 to 99"):
        addition.sequence(a, b)


def test_carries():
    assert [int(addition.carries(*addition.parse_sum(text))) for text in addition.SUMS] == [0, 1, 2]
    assert int(addition.carries(60, 60)) == 1
    assert int(addition_evaluation.ones_carry(*addition.all_sums()).sum()) == 4500


# ------------------------------------------------------------------------------------- evaluation


def test_evaluation_counts_right_answers_and_edges(planted):
    a, b = addition.all_sums()
    np.testing.assert_array_equal(planted.right, (b != 7) & (a != 3))
    carry = a % 10 + b % 10 > 9
    np.testing.assert_array_equal(planted.n_edges, 1 + carry + (a % 2 == 0))
    assert planted.with_carry.shape == (2, 2, 11, 11)
    assert [planted.with_carry[0, 0, 4, 1], planted.without_carry[0, 0, 4, 1]] == [1, 1]
    assert [planted.with_carry[1, 1, 6, 4], planted.without_carry[1, 1, 6, 4]] == [1, 0]
    assert planted.with_carry[1, 1, 5, 4] == pytest.approx(np.mean(a[carry] % 2 == 0))
    assert planted.without_carry[1, 1, 5, 4] == pytest.approx(np.mean(a[~carry] % 2 == 0))
    assert planted.used.sum() == 3


def test_evaluation_measures_cross_entropy(planted):
    right, wrong, flat = np.log(np.exp(5) + 13) - 5, np.log(np.exp(5) + 13), np.log(14)
    expected = (40_000 * right + 100 * (wrong - right) + 100 * (flat - right)) / 40_000
    assert planted.cross_entropy == pytest.approx(expected, rel=1e-6)


def test_evaluation_counts_above_its_threshold():
    found = addition_evaluation.evaluate(PlantedModel(), 0.01)
    assert not found.used[0].any()


# ------------------------------------------------------------------------------ tables and caption


def test_carry_table_is_sorted_by_difference(planted):
    table = reproduce_addition.carry_table(planted)
    assert list(table["label"]) == ["L1H1", "L1H1", "L0H0"]
    assert (table["difference"].abs().diff().dropna() <= 0).all()
    first = table.iloc[0]
    assert (first["key_column"], first["query_column"], first["difference"]) == ("b ones", "hundreds", 1.0)


def test_caption_says_what_was_measured(planted):
    models = {"dense": PlantedModel(), "sparse": PlantedModel()}
    models["dense"].config = SimpleNamespace(**{**vars(PlantedModel.config), "gated": False})
    dense = addition_evaluation.evaluate(models["dense"], 0.01)
    table = reproduce_addition.models_table(models, {"dense": dense, "sparse": planted})
    assert list(table["right"]) == [9801, 9801]
    assert list(table["edges_median"]) == [1, 2]
    assert list(table["edges_max"]) == [2, 3]
    assert list(table["edges_possible"]) == [264, 264]
    assert list(table["heads_used"]) == [1, 2]
    text = " ".join(reproduce_addition.caption(table, reproduce_addition.carry_table(planted)).split())
    assert "dense 1 edges (median), 98.01 % right; sparse 2 edges (most 3), 98.01 % right" in text
    assert "1 of them open in every sum" in text
    assert "Edges that tell whether the ones carry, open in" in text
    assert text.endswith("L1H1 b ones to hundreds (predicts tens) 100 %, 0 %.")


def test_caption_when_no_edge_tells_a_carry(planted):
    carry = reproduce_addition.carry_table(planted).iloc[1:].reset_index(drop=True)
    sentence = reproduce_addition._carry_sentence(carry)
    assert sentence.startswith("No single edge tells whether the ones carry; the nearest is open in")
    assert "L1H1 b ones to = (predicts hundreds)" in sentence
    assert reproduce_addition._carry_sentence(carry.iloc[:0]) == "No edge is ever open."


def test_caption_names_at_most_three_edges(planted):
    carry = reproduce_addition.carry_table(planted)
    many = pd.concat([carry.iloc[:1]] * 5, ignore_index=True)
    assert reproduce_addition._carry_sentence(many).count("L1H1") == 3
    assert reproduce_addition._carry_sentence(many).endswith("; and 2 more.")


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (1.0, "100 %"),
        (0.0, "0 %"),
        (0.99999, "99.9 %"),
        (0.00001, "0.1 %"),
        (0.5, "50.0 %"),
        (0.9801, "98.0 %"),
    ],
)
def test_only_all_is_100_per_cent(fraction, text):
    assert reproduce_addition._percent(fraction, 1) == text


# ---------------------------------------------------------------------------------- the real models


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    before = plt.get_fignums()
    made = reproduce("addition", tmp_path_factory.mktemp("figures") / "new")
    assert plt.get_fignums() == before
    return made


def test_files(reproduced):
    names = ["addition.png", "addition.svg", "addition.pdf", "addition.txt"]
    names += [f"addition-{table}.csv" for table in ("models", "sums", "carry", "edges")]
    assert [path.name for path in reproduced] == names
    [folder] = {path.parent for path in reproduced}
    assert sorted(folder.iterdir()) == sorted(reproduced)
    for path, table in reproduced.items():
        assert (table is not None) == (path.suffix == ".csv")
        if table is not None:
            assert len(pd.read_csv(path, keep_default_na=False)) == len(table) > 0


def test_same_bytes_again(reproduced, tmp_path):
    for path in reproduce("addition", tmp_path):
        [before] = [other for other in reproduced if other.name == path.name]
        assert path.read_bytes() == before.read_bytes(), path.name


def test_the_sparse_model_adds_with_few_edges(reproduced):
    [models] = [table for path, table in reproduced.items() if path.name == "addition-models.csv"]
    dense, sparse = (models.set_index("model").loc[name] for name in ("dense", "sparse"))
    assert dense["right"] >= 9990
    assert sparse["right"] >= 9990
    assert sparse["edges_median"] <= 25
    assert dense["edges_median"] >= 30 * sparse["edges_median"]
    assert sparse["edges_possible"] == dense["edges_possible"] == 1056


def test_tables_agree_with_each_other(reproduced):
    tables = {path.stem: table for path, table in reproduced.items() if table is not None}
    assert {name: names for name, table in tables.items() if (names := hidden(table))} == {}
    sums, edges = tables["addition-sums"].set_index("addends"), tables["addition-edges"]
    assert list(sums["carries"]) == [0, 1, 2]
    for (model, text), drawn in edges.groupby(["model", "addends"]):
        assert len(drawn) == sums.loc[text, f"{model}_edges"]


@pytest.mark.parametrize("name", ["addition-dense", "addition-sparse"])
def test_teacher_forcing_and_greedy_writing_agree(name):
    """An answer counts as right exactly if the model writes it by itself, one token after the other."""
    model = attnsparse.load(name)
    rows = ALL[::97]
    forced = addition_evaluation.evaluate(model, 0.0).right[::97]
    written = rows[:, :6]
    for _ in range(4):
        logits = model.run(list(written), record="logits").logits
        written = np.concatenate([written, logits[:, -1].argmax(axis=1)[:, None].astype(np.int32)], axis=1)
    np.testing.assert_array_equal((written == rows[:, :10]).all(axis=1), forced)


def test_unknown_figure(tmp_path):
    known = "'all', 'copy', 'antonym', 'curves', 'addition', 'text'"
    with pytest.raises(ValueError, match=f"what must be one of {known}, got 'circuit'"):
        reproduce("circuit", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("role", ["dense", "sparse"])
def test_addition_takes_its_own_models_or_others_of_its_tokens(role, tmp_path):
    files = reproduce("addition", tmp_path, ("svg",), **{role: "addition-sparse"})
    [models] = [table for path, table in files.items() if path.name == "addition-models.csv"]
    assert models.set_index("model").loc[role, "edge_is"] == "open gate"
    kind = (
        "Dense: open gates; sparse: open gates." if role == "dense" else "Dense: entries above 0.01; sparse"
    )
    assert kind in " ".join((tmp_path / "addition.txt").read_text().split())
    with pytest.raises(ValueError, match="for the addition models and their 14 tokens"):
        reproduce("addition", tmp_path / "none", **{role: "demo-sparse"})
    assert not (tmp_path / "none").exists()
