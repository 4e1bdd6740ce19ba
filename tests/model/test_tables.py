"""Tables say what the run holds: values against oracle.py, order, columns, positions, errors."""

from __future__ import annotations

import html
import re

import numpy as np
import oracle
import pandas as pd
import pytest
from fake_run import PROMPT, PROMPT_TOKENS, WORDS, FakeModel

from attnsparse.items import Head, edge_label, token_label
from attnsparse.model import tables

HEAD_COLUMNS = [
    "model", "layer", "head_index", "label", "query_position", "key_position", "query_token", "key_token",
    "weight", "score", "gate", "value_norm", "contribution",
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return FakeModel(3)


@pytest.fixture(scope="module")
def run(model):
    return model.run(PROMPT)


# ------------------------------------------------------------------------------------------ heads


def test_heads_agree_with_oracle(run, model):
    table = tables.heads(run, key=4, query=7)
    assert list(table.columns) == HEAD_COLUMNS
    assert len(table) == 3 * 4
    for row in table.itertuples():
        at = row.layer, row.head_index, 7, 4
        v = run.oracle["v"][row.layer, 4, row.head_index]
        rows = slice(row.head_index * 2, row.head_index * 2 + 2)
        written = run.oracle["pattern"][at] * v @ model.weights[f"h.{row.layer}.attn.c_proj.weight"][rows]
        assert row.label == f"L{row.layer}H{row.head_index}"
        assert (row.query_position, row.key_position, row.query_token, row.key_token) == (7, 4, ' "', "large")
        assert row.weight == pytest.approx(run.oracle["pattern"][at], rel=1e-5)
        assert row.score == pytest.approx(run.oracle["scores"][at], rel=1e-5)
        assert row.gate == run.oracle["gate"][at]
        assert row.value_norm == pytest.approx(np.linalg.norm(v), rel=1e-5)
        assert row.contribution == pytest.approx(np.linalg.norm(written), rel=1e-5, abs=1e-7)


def test_heads_are_sorted_by_contribution_and_ties_keep_their_order(run):
    table = tables.heads(run, key=4, query=7)
    assert list(table.index) == list(range(len(table)))
    assert (np.diff(table["contribution"]) <= 0).all()
    closed = table[~table["gate"]]
    assert len(closed) > 2
    assert (closed["contribution"] == 0).all()
    assert closed[["layer", "head_index"]].apply(tuple, axis=1).is_monotonic_increasing


def test_heads_of_a_dense_model_are_all_open():
    table = tables.heads(FakeModel(3, gated=False).run(PROMPT), key=4, query=7)
    assert table["gate"].all()
    assert (table["weight"] > 0).all()


@pytest.mark.parametrize("tied", [True, False])
def test_logit_diff_is_what_removing_the_entry_changes_with_the_scale_frozen(tied):
    model = FakeModel(5, tied=tied)
    run = model.run(PROMPT)
    table = tables.heads(run, key="large", query=-1, logit_diff=(" small", 1))
    unembedding = oracle.unembedding(model._config, model.weights)

    def logit_diff(residual, scale):
        final = (residual - residual.mean()) / scale * model.weights["ln_f.weight"] + model.weights[
            "ln_f.bias"
        ]
        return final @ (unembedding[WORDS.index(" small")] - unembedding[1])

    residual, scale = run.oracle["resid_post"][-1, 7], run.oracle["ln_final_scale"][7]
    for row in table.itertuples():
        rows = slice(row.head_index * 2, row.head_index * 2 + 2)
        w_o = model.weights[f"h.{row.layer}.attn.c_proj.weight"][rows]
        written = (
            run.oracle["pattern"][row.layer, row.head_index, 7, 4]
            * run.oracle["v"][row.layer, 4, row.head_index]
            @ w_o
        )
        change = logit_diff(residual, scale) - logit_diff(residual - written, scale)
        assert row.logit_diff == pytest.approx(change, rel=1e-4, abs=1e-6)


def test_logit_diff_column_only_when_asked(run):
    assert "logit_diff" not in tables.heads(run, 4, 7)
    assert "logit_diff" in tables.heads(run, 4, 7, logit_diff=(7, 4))


@pytest.mark.parametrize("logit_diff", [("small",), "small", ("small", "large", "is")])
def test_logit_diff_must_be_a_pair(run, logit_diff):
    with pytest.raises(ValueError, match="pair"):
        tables.heads(run, 4, 7, logit_diff=logit_diff)


def test_logit_diff_token_must_be_one_token_of_the_model(run):
    with pytest.raises(ValueError, match="is 2 tokens"):
        tables.heads(run, 4, 7, logit_diff=("large is", " small"))
    with pytest.raises(IndexError, match=rf"0\.\.{len(WORDS) - 1}"):
        tables.heads(run, 4, 7, logit_diff=(len(WORDS), 0))
    with pytest.raises(TypeError, match="a token must be an integer"):
        tables.heads(run, 4, 7, logit_diff=(True, 0))


def test_key_after_query_is_refused(run):
    with pytest.raises(ValueError, match=r"key position 8 comes after query position 5 \(base=1\)"):
        tables.heads(run, key=8, query=5, base=1)


def test_missing_arrays_are_named(model):
    run = model.run(PROMPT, record="pattern")
    with pytest.raises(ValueError, match="heads needs q, k, v, which this run did not record"):
        tables.heads(run, 4, 7)
    with pytest.raises(ValueError, match="ln_final_scale"):
        tables.heads(model.run(PROMPT, record=("pattern", "q", "k", "v")), 4, 7, logit_diff=(0, 1))


# ------------------------------------------------------------------------------------------ edges


def test_edges_are_the_open_gates(run):
    table = tables.edges(run)
    assert list(table.columns) == HEAD_COLUMNS
    found = table[["layer", "head_index", "query_position", "key_position"]].to_numpy()
    np.testing.assert_array_equal(found, np.argwhere(run.oracle["gate"]))
    np.testing.assert_allclose(table["weight"], run.oracle["pattern"][run.oracle["gate"]], rtol=1e-5)
    assert table["gate"].all()
    tokens = np.array(run.token_strings)
    np.testing.assert_array_equal(table["query_token"], tokens[table["query_position"]])
    np.testing.assert_array_equal(table["key_token"], tokens[table["key_position"]])


def test_threshold_is_exclusive(run):
    weights = np.sort(tables.edges(run)["weight"])
    middle = weights[len(weights) // 2]
    kept = tables.edges(run, threshold=float(middle))
    assert (kept["weight"] > middle).all()
    assert len(kept) == (weights > middle).sum() < len(weights)


def test_edges_of_a_dense_model_are_its_entries_above_the_threshold():
    run = FakeModel(3, gated=False).run(PROMPT)
    assert len(tables.edges(run)) == 3 * 4 * 8 * 9 // 2
    assert len(tables.edges(run, 0.25)) == np.count_nonzero(run.pattern > 0.25)


def test_no_edges_is_an_empty_table_of_the_same_types(run):
    full, empty = tables.edges(run), tables.edges(run, threshold=1.0)
    assert len(empty) == 0
    assert list(empty.columns) == list(full.columns)
    assert list(empty.dtypes) == list(full.dtypes)
    assert empty.attrs == full.attrs


def test_edges_from_pattern_and_from_csr_agree(model):
    wide = tables.edges(model.run(PROMPT))
    names = [
        "model",
        "layer",
        "head_index",
        "label",
        "query_position",
        "key_position",
        "query_token",
        "key_token",
        "weight",
    ]
    for record in ("pattern", "edges"):
        narrow = tables.edges(model.run(PROMPT, record=record))
        assert list(narrow.columns) == names
        assert narrow.equals(wide[names])
    with_scores = tables.edges(model.run(PROMPT, record=("edges", "q", "k", "v")))
    assert with_scores.equals(wide)


@pytest.mark.parametrize("threshold", [-0.1, float("nan")])
def test_bad_threshold(run, threshold):
    with pytest.raises(ValueError, match="threshold must be a finite number at least 0"):
        tables.edges(run, threshold)


def test_edges_without_edges_recorded(model):
    with pytest.raises(ValueError, match="'pattern' or 'edges', this run has q"):
        tables.edges(model.run(PROMPT, record="q"))


# --------------------------------------------------------------------------- what every table records


@pytest.mark.parametrize("base", [0, 1])
def test_base_and_bos_are_recorded(model, base):
    run = model.run(PROMPT)
    run.prepend_bos = True
    for table in (tables.heads(run, 3 + base, 5 + base, base=base), tables.edges(run, base=base)):
        origin = {"prepend_bos": True, "base": base, "model": "fake", "digest": "0" * 64, "prompt": PROMPT}
        assert table.attrs == origin
    np.testing.assert_array_equal(
        tables.edges(run, base=base)["key_position"], tables.edges(run)["key_position"] + base
    )


def test_batch_is_refused_by_name(model):
    batch = model.run([PROMPT_TOKENS, PROMPT_TOKENS[:3]])
    with pytest.raises(ValueError, match="holds 2 prompts; choose one"):
        tables.position(batch, 0)
    assert len(tables.edges(batch[1])) > 0


# --------------------------------------------------------------------------- tables of several prompts

MANY = ["The opposite of", PROMPT, 'The opposite of large is "', "The"]


@pytest.mark.parametrize("gated", [True, False])
def test_a_batch_is_the_tables_of_its_prompts(gated):
    run = FakeModel(3, gated=gated).real().run(MANY, ["attention", "edges"])
    apart = [one.open_edges(0.05, base=1).assign(prompt=i) for i, one in enumerate(run)]
    table = run.open_edges(0.05, base=1)
    assert table.columns[:2].tolist() == ["model", "prompt"]
    pd.testing.assert_frame_equal(table, pd.concat(apart, ignore_index=True)[list(table)])
    pairs = [(" small", "large"), ("large", "The"), (" is", 4), (0, 1)][:3]
    same = {"key": "The", "query": -1, "base": 1}
    for asked in ({}, {"logit_diff": (" small", "large")}):
        apart = [one.heads(**same, **asked).assign(prompt=i) for i, one in enumerate(run)]
        table = run.heads(**same, **asked)
        pd.testing.assert_frame_equal(table, pd.concat(apart, ignore_index=True)[list(table)])
    few = run.model.run(MANY[:3], "attention")
    apart = [one.heads(**same, logit_diff=pair) for one, pair in zip(few, pairs)]
    table = few.heads(**same, logit_diff=pairs)
    pd.testing.assert_frame_equal(table.drop(columns="prompt"), pd.concat(apart, ignore_index=True))
    assert table.attrs["prompt"] == MANY[:3]
    assert "prompt" not in few[0].heads(0, 1)
    assert set(table.model) == {run.model.name}
    with_texts = few.heads(**same, logit_diff=pairs, texts=True)
    assert with_texts.prompt_text.tolist() == [MANY[i] for i in with_texts.prompt]
    pd.testing.assert_frame_equal(with_texts.drop(columns="prompt_text"), table)
    assert set(few[1].open_edges(texts=True).prompt_text) == {MANY[1]}
    assert run.model.run(MANY[:1], "attention").heads(0, 1).prompt.tolist() == [0] * 12


def test_edges_without_the_pattern_of_a_batch():
    model = FakeModel(3).real()
    tables_ = [model.run(MANY, record).open_edges() for record in ("edges", "pattern")]
    pd.testing.assert_frame_equal(*tables_)
    assert len(model.run(MANY, "edges").open_edges(2.0)) == 0


def test_what_does_not_fit_one_prompt_of_a_batch_names_it():
    run = FakeModel(3).real().run(MANY, "attention")
    with pytest.raises(IndexError, match="prompt 0: position 7 is out of range"):
        run.heads(0, 7)
    with pytest.raises(ValueError, match="prompt 0: no token 'large'"):
        run.heads("large", -1)
    with pytest.raises(ValueError, match="one for each of 4 prompts, got 1"):
        run.heads(0, -1, logit_diff=[(0, 1)])


# --------------------------------------------------------------------------- tables of real runs


@pytest.mark.parametrize("gated", [True, False])
def test_tables_of_a_real_run_agree_with_the_oracle(gated):
    fake = FakeModel(7, gated=gated)
    real = fake.real()
    expected, run = fake.run(PROMPT), real.run(PROMPT)
    arguments = {"key": "large", "query": -1, "base": 1, "logit_diff": (" small", " large")}
    by_head = [
        tables.heads(each, **arguments).sort_values(["layer", "head_index"]) for each in (expected, run)
    ]
    pd.testing.assert_frame_equal(*by_head, rtol=1e-4, atol=1e-5, check_index_type=False)
    pd.testing.assert_frame_equal(tables.edges(expected), tables.edges(run), rtol=1e-4, atol=1e-5)
    assert run.heads(**arguments).equals(tables.heads(run, **arguments))
    assert run.heads(**arguments).attrs["digest"] == real.digest
    assert run.open_edges(0.1).equals(tables.edges(run, 0.1))
    assert run._repr_html_() == tables.summary_html(run)


@pytest.mark.parametrize("record", ["pattern", "edges", ("edges", "q", "k", "v"), ("edges", "v")])
def test_edges_of_a_real_run_do_not_depend_on_how_they_were_recorded(record):
    real = FakeModel(7).real()
    batch = real.run([PROMPT, PROMPT_TOKENS[:5], PROMPT_TOKENS[2:]], record=record)
    for i, prompt in enumerate([PROMPT, PROMPT_TOKENS[:5], PROMPT_TOKENS[2:]]):
        found, whole = tables.edges(batch[i]), tables.edges(real.run(prompt))
        assert len(found) > 0
        pd.testing.assert_frame_equal(found, whole[list(found.columns)], rtol=1e-5)


def test_real_run_without_the_arrays():
    run = FakeModel(7).real().run(PROMPT, record="q", logits="none")
    with pytest.raises(ValueError, match="heads needs pattern"):
        run.heads(0, 1)
    with pytest.raises(ValueError, match="'pattern' or 'edges'"):
        run.open_edges()
    assert "edges are open" not in run._repr_html_()


# -------------------------------------------------------------------------------------- positions


@pytest.mark.parametrize(
    ("which", "base", "expected"),
    [
        (0, 0, 0), (7, 0, 7), (1, 1, 0), (8, 1, 7), (-1, 0, 7), (-1, 1, 7), (-8, 0, 0), (-8, 1, 0),
        (np.int32(5), 1, 4), ("large", 0, 4), ("large", 1, 4), ("opposite", 0, 1), (" opposite", 0, 1),
        ("The", 1, 0),
    ],
)  # fmt: skip
def test_position(run, which, base, expected):
    assert tables.position(run, which, base) == expected


@pytest.mark.parametrize(
    ("which", "base", "message"),
    [(8, 0, r"8 is out of range 0\.\.7"), (0, 1, r"0 is out of range 1\.\.8 \(base=1"), (-9, 0, "-8 to -1")],
)
def test_position_out_of_range(run, which, base, message):
    with pytest.raises(IndexError, match=message):
        tables.position(run, which, base)


def test_ambiguous_token_lists_its_positions(run):
    with pytest.raises(
        ValueError, match=re.escape("""'"' is at positions 4 (' "'), 6 ('"'), 8 (' "') (base=1)""")
    ):
        tables.position(run, '"', base=1)
    with pytest.raises(ValueError, match=r"positions 3 .* 7 "):
        tables.position(run, ' "')


def test_unknown_token_lists_what_there_is(run):
    with pytest.raises(ValueError, match="no token 'huge' among the 8 tokens 'The', ' opposite'"):
        tables.position(run, "huge")


@pytest.mark.parametrize("which", [True, 1.0, None, [1]])
def test_position_of_wrong_type(run, which):
    with pytest.raises(TypeError, match="a position must be an integer"):
        tables.position(run, which)


@pytest.mark.parametrize("base", [2, -1])
def test_base_is_0_or_1(run, base):
    with pytest.raises(ValueError, match="base must be 0 or 1"):
        tables.heads(run, 0, 1, base=base)


# ----------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    "text", ["9.6", "L9H6", "L9-H6", "a9.h6", "A9.6", " L9H6 ", (9, 6), [9, 6], Head(9, 6)]
)
def test_head_is_read_in_every_form(text):
    assert Head.parse(text) == (9, 6)
    assert Head.parse(text).label == "L9H6"


@pytest.mark.parametrize(
    "text", ["", "9", "9-6", "L9", "H6", "l9h6", "L9H6.", "9.h6", "a9.6", "-1.2", "٩.٦", (1, -1)]
)
def test_text_that_is_no_head(text):
    with pytest.raises(ValueError):
        Head.parse(text)


@pytest.mark.parametrize("value", [9, None, (1, 2, 3), (1.0, 2), (True, 0), b"L9H6"])
def test_wrong_kind_of_head(value):
    with pytest.raises(TypeError):
        Head.parse(value)


def test_head_within():
    assert Head(11, 0).within(12, 1) == (11, 0)
    with pytest.raises(IndexError, match=r"L12H0 is out of range: there are layers 0\.\.11 and heads 0\.\.3"):
        Head(12, 0).within(12, 4)
    with pytest.raises(IndexError):
        Head(0, 4).within(12, 4)
    with pytest.raises(IndexError, match="L11H-1"):
        Head(11, -1).within(12, 4)
    with pytest.raises(TypeError, match="layer must be an integer"):
        Head("a", 1).within(12, 4)


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" large", "large"), ("large", "large"), (" ", "␣"), ("  ", "␣␣"), ("\n", "\\n"), (" a b", "a␣b"),
     ("", "∅"), ("\x1b[0m", "\\x1b[0m"), ("é", "é"), ("\u202e", "\\u202e")],
)  # fmt: skip
def test_token_label(token, shown):
    assert token_label(token) == shown


def test_edge_label():
    assert edge_label(9, 6, query=8, key=5) == "a9.h6[5->8]"


# ------------------------------------------------------------------------------------------- HTML


def test_html_begins_with_the_tokens_and_escapes_them(model):
    run = model.run(np.array([11, 9, 0], np.int32))
    run.prepend_bos = True
    page = tables.summary_html(run)
    assert page.startswith("<table>")
    assert "<b>" not in page
    assert "<td>0</td><td>&lt;b&gt;</td><td>11</td>" in page
    assert "<td>1</td><td>\\n</td><td>9</td>" in page
    assert "positions from 0, with a BOS token" in page
    open_edges = np.count_nonzero(run.oracle["gate"])
    assert f"{open_edges} of 72 attention edges are open" in page


def test_html_escapes_the_model_name(model):
    run = FakeModel(0, name='<i>"x"').run(PROMPT)
    assert "<i>" not in tables.summary_html(run)
    assert html.escape('<i>"x"') in tables.summary_html(run)


def test_html_of_a_dense_and_of_an_unrecorded_run():
    assert "all 432 edges are open" in tables.summary_html(FakeModel(0, gated=False).run(PROMPT))
    assert "edges" not in tables.summary_html(FakeModel(0).run(PROMPT, record="q"))


def test_html_of_a_long_prompt_is_cut():
    run = FakeModel(0, n_ctx=80).run(np.zeros(80, np.int32))
    page = tables.summary_html(run)
    assert page.count("<tr>") == 1 + 64
    assert "and 16 more" in page


def test_html_of_a_batch_has_one_row_per_prompt(model):
    page = tables.summary_html(model.run(['The"', "<b>", PROMPT_TOKENS]))
    assert page.count("<tr>") == 1 + 3
    assert "&lt;b&gt;" in page
    assert html.escape(PROMPT) in page
