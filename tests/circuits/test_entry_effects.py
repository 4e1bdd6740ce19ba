"""Who carries one position to another: against the NumPy model, one entry set at a time."""

from __future__ import annotations

import numpy as np
import oracle_circuits
import pytest
from fake_run import PROMPT, FakeModel
from table_columns import hidden

import attnsparse as asp
from attnsparse.circuits.entry_effects import entry_effects
from attnsparse.items import Head
from attnsparse.tasks.builder import build
from attnsparse.tasks.task import PromptText

ANSWER, WRONG = " small", ("large", " is", "The")


@pytest.fixture(scope="module", params=[False, True], ids=["dense", "gated"])
def model(request) -> FakeModel:
    return FakeModel(10, gated=request.param)


@pytest.fixture(scope="module")
def reference(model):
    """A task of three other prompts of as many tokens."""
    drafts = [
        PromptText(text, text, (ANSWER,), WRONG)
        for text in (
            'large opposite of "large" is "',
            'The is of "large" is "',
            'The opposite of "large" small "',
        )
    ]
    made = build("others", "logit_diff", drafts, model.real().tokenizer)
    assert {len(row) for row in made.clean} == {8}
    return made


def task_of(model: FakeModel):
    draft = PromptText(PROMPT, PROMPT, (ANSWER,), WRONG)
    return build("one", "logit_diff", [draft], model.real().tokenizer)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_effects_are_exact(model, reference, ablation):
    reference = reference if ablation == "mean" else None
    found = entry_effects(
        model.real(), PROMPT, "large", -1, ANSWER, WRONG, ablation=ablation, reference=reference
    )
    task = task_of(model)
    items = [(*head, 7, 4) for head in found.heads]
    arguments = (model._config, model.weights, task, "edge")
    options = {"ablation": ablation, "reference": reference}
    full = oracle_circuits.metric_values(model._config, model.weights, task)[0]
    alone = oracle_circuits.knock_out(*arguments, items, **options)[:, 0]
    rest = [items[n:] for n in range(len(items) + 1)]
    kept = oracle_circuits.sets_values(*arguments, rest, 0.0, **options)[:, 0]
    assert found.full == pytest.approx(full, abs=1e-4)
    assert found.without == pytest.approx(kept[0], abs=1e-4)
    np.testing.assert_allclose(found.effect, full - alone, atol=1e-4)
    np.testing.assert_allclose(found.kept, (kept - kept[0]) / (full - kept[0]), atol=1e-3)
    assert (np.diff(found.effect) <= 0).all()
    assert found.kept[0] == 0
    assert found.kept[-1] == pytest.approx(1, abs=1e-4)


def test_heads_are_those_with_an_open_entry(model):
    found = entry_effects(model.real(), PROMPT, "large", -1, ANSWER, WRONG)
    pattern = model.run(PROMPT).pattern
    expected = {Head(*pair) for pair in np.argwhere(pattern[:, :, 7, 4] > 0).tolist()}
    assert set(found.heads) == expected
    assert len(found.heads) == (12 if not model.config.gated else len(expected)) > 1
    assert (found.key, found.query) == (4, 7)
    np.testing.assert_allclose(found.weight, [pattern[(*head, 7, 4)] for head in found.heads], atol=1e-6)


def test_shares_and_needed_numbers(model):
    found = entry_effects(model.real(), PROMPT, "large", -1, ANSWER, WRONG)
    for rising, needed in ((found.kept, found.needed_to_keep), (found.shares, found.needed)):
        n = needed(0.8)
        assert (rising[:n] < 0.8).all()
        assert rising[n] >= 0.8
        assert n <= needed(1.0) <= len(found.heads)
    positive = found.effect[found.effect > 0]
    assert found.shares[1] == pytest.approx(positive[0] / positive.sum())
    assert found.shares[0] == 0
    assert found.shares[-1] == pytest.approx(1)


@pytest.mark.parametrize("base", [0, 1])
def test_table(model, base):
    found = entry_effects(model.real(), PROMPT, 4 + base, 7 + base, ANSWER, WRONG, base=base)
    table = found.to_pandas(base) if base else found.to_pandas()
    assert list(table) == [
        "item_rank", "layer", "head_index", "label", "query_position", "key_position", "query_token",
        "key_token", "weight", "effect", "share", "kept",
    ]  # fmt: skip
    assert hidden(table) == []
    assert list(table["item_rank"]) == list(range(1, len(found.heads) + 1))
    assert set(table["query_position"]) == {7 + base}
    assert set(table["key_position"]) == {4 + base}
    assert set(table["key_token"]) == {"large"}
    assert table["label"][0] == found.heads[0].label
    np.testing.assert_array_equal(table["kept"], found.kept[1:])
    np.testing.assert_array_equal(table["share"], found.shares[1:])
    assert repr(found).startswith("EntryEffects('large' -> ' \"' in ")
    assert len(repr(found)) < 200


def test_bad_questions(model):
    real = model.real()
    with pytest.raises(ValueError, match="key position 7 comes after query position 4"):
        entry_effects(real, PROMPT, 7, 4, ANSWER, WRONG)
    with pytest.raises(ValueError, match=r"query must be the last token.*position 7, got 6 \(base=0\)"):
        entry_effects(real, PROMPT, "large", 6, ANSWER, WRONG)
    with pytest.raises(ValueError, match="no token 'huge'"):
        entry_effects(real, PROMPT, "huge", -1, ANSWER, WRONG)
    with pytest.raises(ValueError, match="must be one"):
        entry_effects(real, PROMPT, "large", -1, " small is", WRONG)
    with pytest.raises(ValueError, match="mean"):
        entry_effects(real, PROMPT, "large", -1, ANSWER, WRONG, reference=task_of(model))


def test_an_entry_that_does_not_help(model):
    """With right and wrong exchanged, one of the two questions has no positive answer."""
    real, refused = model.real(), 0
    for answer, wrong in ((ANSWER, ("The",)), ("The", (ANSWER,))):
        try:
            entry_effects(real, PROMPT, "large", -1, answer, wrong)
        except ValueError as error:
            refused += 1
            assert "does not need what it sees from position 7 to 4" in str(error)  # noqa: PT017
    assert refused == 1


def test_a_gate_closed_in_every_head():
    shut = FakeModel(3, gated=True, gate_bias=-1e3).real()
    with pytest.raises(ValueError, match=r"no head of 'fake' looks from position 7 to 4 \(base=0\)"):
        entry_effects(shut, PROMPT, "large", -1, ANSWER, WRONG)


def test_an_answer_that_may_lack_its_space_is_asked_for():
    """The demo models have " is" and "is"; after a word the one with its space is likely."""
    model = asp.load("demo-dense")
    text = "The opposite of large"
    logits = model.run(text).logits[-1]
    wrong, *answers = (int(model.to_tokens(token)[0]) for token in (" of", "is", " is"))
    with pytest.raises(ValueError, match="pass prepend_space_to_answer=True"):
        entry_effects(model, text, "opposite", -1, "is", [" of"])
    for flag, answer in zip((False, True), answers):
        found = entry_effects(model, text, "opposite", -1, "is", [" of"], prepend_space_to_answer=flag)
        assert found.full == pytest.approx(float(logits[answer] - logits[wrong]), abs=1e-4)
