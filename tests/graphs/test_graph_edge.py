"""The edge from a word to the answer: heads, shares, tables and the check, on a graph made by hand."""

from __future__ import annotations

import graph_engine as ge
import numpy as np
import pandas as pd
import planted_graph as pg
import pytest
from planted_calls import LARGE_TO_LOGIT, WIDE_TO_LOGIT, WRONG, find
from table_columns import hidden

import attnsparse as asp
from attnsparse.graphs.word_effect import edge_row, word_effect
from attnsparse.items import Head
from attnsparse.model.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def found():
    return find()


# A logit difference of 8 out instead of 7.
SCALE = 8 / 7


def test_heads_of_the_planted_edge(found):
    """0.7 and 0.3 of what stands in wide; the embedding's 2 in out by a third head, the decoys nothing."""
    split = found.loadings["features"]
    assert split.whole == pytest.approx(LARGE_TO_LOGIT * SCALE)
    assert split.heads[:3] == (Head(4, 0), Head(5, 1), Head(5, 0))
    expected = np.array([0.7 * WIDE_TO_LOGIT, 0.3 * WIDE_TO_LOGIT, 21]) / LARGE_TO_LOGIT
    np.testing.assert_allclose(split.shares[:4], [*expected, 0], atol=1e-9)
    assert (split.direct, split.remainder) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert [split.needed(fraction) for fraction in (0.5, 0.8, 0.97)] == [1, 2, 3]


def test_the_direct_edge(found):
    split = found.loadings["edge"]
    assert split.whole == pytest.approx((sum(pg.WIDE.values()) * 10 + 2) * 8)
    np.testing.assert_allclose(split.shares[:3], np.array([42, 18, 2]) / 62, atol=1e-9)


def test_what_is_drawn(found):
    assert (found.source, found.output, found.key, found.query) == ("large", "small", 4, 7)
    assert found.drawn == (Head(4, 0), Head(5, 1))
    assert found.share == pytest.approx(WIDE_TO_LOGIT / LARGE_TO_LOGIT)
    assert found.same_entry() == 1  # the other one looks at two positions alike
    assert repr(found) == "WordEffect('large' -> 'small' in 'planted': 2 heads carry 97 %)"
    assert found.by_last == pytest.approx((sum(pg.WIDE.values()) * 5 + 1) * 7 / LARGE_TO_LOGIT)


def test_all_heads_if_they_do_not_reach_the_fraction():
    """Half of what opposite does goes over another position, so no heads have 80 % of it."""
    found = find(key=1)
    assert found.source == "opposite"
    assert found.loadings["features"].needed(0.8) is None
    assert found.loadings["features"].remainder == pytest.approx(0.5)
    assert found.drawn == (Head(2, 1),)
    assert found.share == pytest.approx(0.5)


def test_a_word_that_does_nothing():
    found = find(key=6)
    assert found.loadings["features"].whole == 0
    assert found.n_drawn == 1
    assert found.share == 0


def test_checks_are_the_graphs(found):
    group = found.named_groups["large"].nodes.tolist()
    entries = ["a4.h0[4->7]", "a5.h1[4->7]"]
    expected = [
        found.graph.check(nodes=group, together=True),
        found.graph.check(entries=entries, together=True),
    ]
    for i, table in enumerate(expected):
        for name in ("predicted_edge", "predicted", "actual"):
            assert found.checks[name][i] == table[name][0]
    assert list(found.checks["removed"]) == ["group large", "entries of the drawn heads"]
    assert found.checks["predicted"][0] == pytest.approx(-LARGE_TO_LOGIT * SCALE)


def test_a_bos_token_counts():
    """The same tokens, the first of them put there as the BOS token."""
    tokenizer = Tokenizer.from_words(pg.WORDS, bos="The")
    config, weights = pg.model(True)
    model = asp.Model(asp.Config.from_dict(config), weights, tokenizer, "planted", "float64")
    coders = ge.transcoders(pg.transcoders("per layer"), "float64")
    prompt = pg.PROMPT.removeprefix("The")
    with_bos = word_effect(model, coders, prompt, 4, "small", WRONG, prepend_bos=True)
    assert with_bos.graph.prepend_bos
    assert with_bos.loadings["features"].whole == pytest.approx(LARGE_TO_LOGIT * SCALE)


def test_features_that_are_left_out_are_in_no_group():
    found = find(max_feature_nodes=6)
    assert found.graph.kind.count("other") == 1
    assert sum(group.n_features for group in found.named_groups.values()) == 6


def test_own_groups():
    spec = {"big": {"position": "large", "layer": range(2)}, "answer": {"kind": "logit"}}
    found = find(groups=spec)
    assert (found.source, found.output) == ("big", "answer")
    assert found.graph.ids[found.named_groups["big"].nodes[0]] == "0_3_4"
    found = find(groups={"big": {"position": "large"}})
    assert list(found.named_groups) == ["big", "small"]
    assert found.output == "small"
    assert found.loadings["features"].whole == pytest.approx(LARGE_TO_LOGIT * SCALE)


def test_what_an_edge_says_of_itself(found):
    for split in found.loadings.values():
        assert repr(split).startswith(f"Loadings(whole {split.whole:.4g}: {split.heads[0].label} ")
        assert len(repr(split)) < 200
    assert "<table" in found._repr_html_()


def test_tables(found):
    row = edge_row(found, "features", 1)
    assert (row["key_position"], row["query_position"], row["heads_needed"], row["heads_drawn"]) == (
        5,
        8,
        2,
        2,
    )
    assert row["drawn_look_at_key"] == 1
    assert row["logit_diff"] == pytest.approx(720)
    assert row["share_of_5"] == pytest.approx(1)
    heads = found.heads(1)
    assert list(heads.query("through == 'features'")["label"]) == ["L4H0", "L5H1", "L5H0"]
    assert list(heads["drawn"]) == [True, True, False, False, False, False]
    assert list(heads["weight"][:3]) == [1, 0.5, 1]
    assert heads.query("through == 'features'")["loading"].sum() == pytest.approx(LARGE_TO_LOGIT * SCALE)
    groups = found.groups(1).set_index("group")
    assert groups.loc['"', "positions"] == "4 6 8"
    assert tuple(groups.loc["large", ["first_layer", "last_layer", "n_features"]]) == (0, 2, 4)
    places = ["key_position", "query_position"]
    assert found.heads().equals(heads.assign(**{name: heads[name] - 1 for name in places}))
    for table in (found.heads, found.groups):
        with pytest.raises(ValueError, match="base must be 0 or 1, got 2"):
            table(2)
    arrows = found.arrows()
    assert list(zip(arrows["source"], arrows["target"])) == [("opposite", "small"), ("large", "small")]
    np.testing.assert_allclose(arrows["weight"], np.array([105, LARGE_TO_LOGIT]) * SCALE)
    np.testing.assert_allclose(arrows["share"], arrows["weight"] / 720)
    assert [hidden(table) for table in (found.heads(), found.groups(), arrows)] == [[]] * 3


def test_words_of_several_prompts_in_one_table(found):
    own = {
        "heads": found.heads,
        "groups": found.groups,
        "arrows": found.arrows,
        "checks": lambda: found.checks,
    }
    for of, table in own.items():
        made = asp.graphs.table({"a": found, "b": found}, of, texts=True)
        assert list(made)[:4] == ["graph", "model", "prompt", "prompt_text"]
        assert made.groupby("prompt").graph.first().tolist() == ["a", "b"]
        pd.testing.assert_frame_equal(made[made.prompt == 1].reset_index(drop=True)[list(table())], table())
        assert hidden(made) == []
    assert asp.graphs.table([found]).loc[0, "heads_needed"] == 2
    with pytest.raises(TypeError, match=r"graphs must be a WordEffect, .*got Graph"):
        asp.graphs.table([found, found.graph])
    with pytest.raises(
        ValueError, match="of must be one of 'summary', 'heads', 'groups', 'arrows', 'checks'"
    ):
        asp.graphs.table(found, "nodes")


def test_heads_of_several_graphs_in_one_table(found):
    graph = found.graph

    def word(one):
        return one.select("token", position=found.key)

    for target in (None, graph.logits):
        made = asp.graphs.table([graph, graph], "heads", source=word, target=target)
        wanted = graph.heads(word(graph), graph.logits, through="any")
        pd.testing.assert_frame_equal(made[made.prompt == 1].reset_index(drop=True)[list(wanted)], wanted)
    with pytest.raises(ValueError, match="of='heads' needs source="):
        asp.graphs.table(graph, "heads")
    with pytest.raises(ValueError, match="source and target are for of='heads'"):
        asp.graphs.table(graph, "nodes", source=word)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"fraction": "a"}, TypeError, "fraction must be a number"),
        ({"fraction": 0}, ValueError, "fraction must be above 0 and at most 1"),
        ({"key": '"'}, ValueError, "is at positions"),
        ({"key": 3}, ValueError, "no group is at position 3"),
        ({"key": "small"}, ValueError, "is not in the prompt"),
        ({"groups": {"o": {"position": 1}}}, ValueError, "no group is at position 4"),
        ({"wrong": ("neither",)}, ValueError, "not in this tokenizer"),
    ],
)
def test_wrong_arguments(options, error, text):
    with pytest.raises(error, match=text):
        find(**options)
