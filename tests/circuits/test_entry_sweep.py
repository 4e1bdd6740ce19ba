"""Effects of an entry over prompts and models: the oracle's numbers, and a bootstrap of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from circuit_cases import TOLERANCE, Case, case, error, oc
from table_columns import hidden

import attnsparse as asp
from attnsparse.circuits.entry_effects import entry_effects
from attnsparse.circuits.entry_sweep import EntrySweep

ONE_LENGTH, LENGTHS = (5, 5, 5), (5, 5, 3, 5)
PROMPTS = ['The opposite of "large" is "', 'The opposite of "hot" is "', 'The opposite of "fast" is "']


def part(one: Case, i: int) -> Case:
    """One prompt of a case."""
    names = ("clean", "corrupted", "answers", "wrong", "labels")
    fields = {name: getattr(one.task, name)[i : i + 1] for name in names}
    return dataclasses.replace(
        one, task=dataclasses.replace(one.task, is_ranking=one.task.is_ranking[i : i + 1], **fields)
    )


def found_by(one: Case, dtype: str, key, query, **options) -> EntrySweep:
    return entry_effects(one.model(dtype), one.task, key, query, progress=False, **options)


def expected_effects(one: Case, key: list[int], query: list[int], ablation: str) -> tuple[np.ndarray, ...]:
    """Of each prompt, by the oracle: weights and effects [P, L, H], and the metric of the model [P]."""
    config, n = one.config, len(one.task)
    weight, effect = np.zeros((2, n, config["n_layer"], config["n_head"]))
    full = one.ask(oc.metric_values)
    for i in range(n):
        alone = part(one, i)
        weight[i] = oc.forward(config, one.weights, alone.task.clean[0])["pattern"][:, :, query[i], key[i]]
        items = [(*head, query[i], key[i]) for head in np.ndindex(effect.shape[1:])]
        options = {"reference": one.task} if ablation == "mean" else {}
        values = alone.ask(oc.knock_out, "edge", items, ablation, **options)[:, 0]
        effect[i] = (full[i] - values).reshape(effect.shape[1:])
    listed = weight.any(axis=0)
    return weight, np.where(listed, effect, 0), full


def expected_values(one: Case, heads: np.ndarray, key, query, ablation: str) -> np.ndarray:
    """The metric with the entries of the first 0..n heads kept, [n + 1, P], by the oracle."""
    columns = []
    for i in range(len(one.task)):
        items = [(*head, query[i], key[i]) for head in heads.tolist()]
        options = {"reference": one.task} if ablation == "mean" else {}
        sets = [items[n:] for n in range(len(items) + 1)]
        columns.append(part(one, i).ask(oc.sets_values, "edge", sets, 0.0, ablation, **options)[:, 0])
    return np.stack(columns, axis=1)


CASES = [
    ("dense", ONE_LENGTH, [1, 1, 1], [4, 4, 4], "zero"),
    ("dense", ONE_LENGTH, [1, 1, 2], [4, 4, 3], "mean"),
    ("dense", ONE_LENGTH, [1, 0, 0], [4, 4, 4], "counterfactual"),
    ("gated", LENGTHS, [1, 1, 1, 0], [4, 4, 2, 3], "zero"),
    ("gated", ONE_LENGTH, [2, 2, 2], [4, 4, 4], "counterfactual"),
    ("relu, layer scale", ONE_LENGTH, [2, 2, 2], [4, 4, 4], "mean"),
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "lengths", "key", "query", "ablation"), CASES)
def test_everything_is_the_oracles(name, lengths, key, query, ablation, dtype):
    one = case(name, lengths)
    found = found_by(one, dtype, key, query, ablation=ablation)
    [of_model] = found._found
    weight, effect, full = expected_effects(one, key, query, ablation)
    np.testing.assert_array_equal(of_model.weight != 0, weight != 0)
    np.testing.assert_allclose(of_model.weight, weight, atol=TOLERANCE[dtype])
    if ablation == "zero":
        assert (of_model.effect[weight == 0] == 0).all()
    size = np.abs(full).max()
    np.testing.assert_allclose(of_model.effect, effect, atol=TOLERANCE[dtype] * size)
    np.testing.assert_allclose(of_model.full, full, atol=TOLERANCE[dtype] * size)
    listed = {tuple(row) for row in np.argwhere(weight.any(axis=0)).tolist()}
    assert {tuple(row) for row in of_model.heads.tolist()} == listed
    assert len(listed) > 1
    mean = of_model.effect.mean(axis=0)[tuple(of_model.heads.T)]
    np.testing.assert_allclose(of_model.mean, mean, rtol=1e-12, atol=1e-15)
    assert (np.diff(of_model.mean) <= 0).all()
    kept = expected_values(one, of_model.heads, key, query, ablation)
    assert error(of_model.values, kept) < TOLERANCE[dtype]


def test_tables():
    one = case("gated", LENGTHS)
    key, query = [1, 1, 1, 0], [4, 4, 2, 3]
    found = found_by(one, "float64", key, query)
    table = found.to_pandas(base=1)
    assert list(table) == [
        "model", "prompt", "layer", "head_index", "label", "query_position", "key_position", "query_token",
        "key_token", "weight", "effect",
    ]  # fmt: skip
    texts = found.to_pandas(texts=True)
    assert list(texts)[:4] == ["model", "prompt", "prompt_text", "layer"]
    assert texts.prompt_text.tolist() == [one.task.text(i) for i in texts.prompt]
    assert len(table) == 4 * 6 == len(table.drop_duplicates(["prompt", "label"]))
    assert table.groupby("prompt").key_position.first().tolist() == [2, 2, 2, 1]
    assert table.groupby("prompt").query_position.first().tolist() == [5, 5, 3, 4]
    row = table[table.weight > 0].iloc[-1]
    assert row.key_token == f"<{one.task.clean[row.prompt][key[row.prompt]]}>"
    pattern = oc.forward(one.config, one.weights, one.task.clean[row.prompt])["pattern"]
    at = row.layer, row.head_index, row.query_position - 1, row.key_position - 1
    assert row.weight == pytest.approx(pattern[at], abs=1e-12)
    assert row.label == f"L{row.layer}H{row.head_index}"
    summary = found.summary()
    assert [hidden(each) for each in (table, summary, found.needed())] == [[]] * 3
    assert len(found) == 4
    assert "4 prompts of 'random'" in repr(found)
    assert "<table" in found._repr_html_()


def test_summary_is_a_bootstrap_over_prompts():
    one = case("dense", (5,) * 8)
    found = found_by(one, "float64", 1, -1)
    [of_model] = found._found
    summary = found.summary(n_bootstrap=4000, seed=3)
    by_head = found.to_pandas().groupby("label").effect.mean()
    np.testing.assert_allclose(summary.mean_effect, by_head[summary.label], rtol=1e-12)
    assert summary.item_rank.tolist() == list(range(1, len(summary) + 1))
    assert (summary.n_open == 8).all()
    positive = summary.mean_effect.clip(lower=0)
    np.testing.assert_allclose(summary.share, positive.cumsum() / positive.sum(), rtol=1e-12)
    assert summary.kept.iloc[-1] == pytest.approx(1, abs=1e-12)
    rng = np.random.default_rng(0)
    rows = of_model.effect[:, of_model.heads[:, 0], of_model.heads[:, 1]]
    means = np.stack([rows[rng.integers(0, 8, 8)].mean(axis=0) for _ in range(4000)])
    width = means.std(axis=0).max()
    np.testing.assert_allclose(summary.low, np.quantile(means, 0.025, axis=0), atol=0.15 * width)
    np.testing.assert_allclose(summary.high, np.quantile(means, 0.975, axis=0), atol=0.15 * width)
    assert ((summary.low <= summary.mean_effect) & (summary.mean_effect <= summary.high)).all()
    narrow = found.summary(n_bootstrap=4000, seed=3, confidence=0.5)
    assert (narrow.high - narrow.low < summary.high - summary.low).all()
    assert found.summary(n_bootstrap=0)[["low", "high", "kept_low", "kept_high"]].isna().all(axis=None)


def test_needed():
    one = case("dense", (5,) * 8)
    found = found_by(one, "float64", 1, -1)
    summary, [row] = found.summary(), list(found.needed(0.8).itertuples())
    reached = summary.kept >= 0.8
    assert row.n_first == summary.item_rank[reached].iloc[0]
    assert row.n_first_low <= row.n_first <= row.n_first_high
    assert (row.n_prompts, row.n_heads, row.n_open, row.fraction) == (8, 9, 9, 0.8)
    [of_model] = found._found
    assert row.full_metric == of_model.full.mean()
    assert row.empty_metric == of_model.values[0].mean()
    assert found.needed(0.8, n_bootstrap=0).n_first_low.isna().all()


def test_a_model_whose_gates_are_closed_has_no_heads():
    one = case("all closed")
    found = found_by(one, "float64", 1, -1)
    assert len(found.summary()) == 0
    assert (found.to_pandas().effect == 0).all()
    [row] = found.needed().itertuples()
    assert row.n_open == 0
    assert pd.isna(row.n_first)


def test_several_models_are_each_alone():
    models = [asp.load(name) for name in ("demo-dense", "demo-sparse")]
    task = asp.tasks.make_task("antonym", models[0].tokenizer, n=6)
    both = entry_effects(models, task, key=5, query=8, base=1, progress=False)
    alone = [entry_effects(model, task, key=5, query=8, base=1, progress=False) for model in models]
    assert both.models == ("demo-dense", "demo-sparse")
    for name in ("to_pandas", "summary", "needed"):
        together, apart = getattr(both, name)(), [getattr(each, name)() for each in alone]
        pd.testing.assert_frame_equal(together, pd.concat(apart, ignore_index=True))
    named = entry_effects(dict(zip("ab", models)), task, key=5, query=8, base=1, progress=False)
    assert named.models == ("a", "b")
    with pytest.raises(ValueError, match="different names, got 'demo-dense', 'demo-dense'"):
        entry_effects([models[0]] * 2, task, 4, 7)


def test_prompts_of_every_kind():
    model = asp.load("demo-dense")
    answers, keys = ["small", "cold", "slow"], ["large", "hot", "fast"]
    wanted = entry_effects(model, PROMPTS, keys, -1, answers, progress=False).to_pandas()
    for prompts in (tuple(PROMPTS), pd.Series(PROMPTS), pd.Index(PROMPTS), np.array(PROMPTS), iter(PROMPTS)):
        found = entry_effects(model, prompts, pd.Series(keys), -1, tuple(answers), progress=False)
        pd.testing.assert_frame_equal(found.to_pandas(), wanted)
    single = [entry_effects(model, *each) for each in zip(PROMPTS, keys, [-1] * 3, answers)]
    for i, each in enumerate(single):
        mine = wanted[(wanted.prompt == i) & (wanted.weight > 0)].set_index("label").effect
        np.testing.assert_allclose(mine[[head.label for head in each.heads]], each.effect, atol=1e-4)
    own = entry_effects(model, PROMPTS[1:], "is", -1, ["cold", "slow"], ["hot", "fast"], progress=False)
    assert [len(row) for row in own.task.wrong] == [2, 2]
    own = entry_effects(
        model, PROMPTS[1:], "is", -1, ["cold", "slow"], [["hot"], ["big", "old"]], progress=False
    )
    assert [len(row) for row in own.task.wrong] == [1, 2]


def test_the_same_bits_for_any_number_of_threads():
    one = case("gated", LENGTHS)
    found = [found_by(one, "float32", [1, 1, 1, 0], [4, 4, 2, 3], threads=n)._found[0] for n in (1, 3)]
    for name in ("effect", "mean", "values", "full", "heads"):
        np.testing.assert_array_equal(*(getattr(each, name) for each in found))


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (ValueError, r"key position 4 comes after query position 1", lambda m, t: entry_effects(m, t, 4, 1)),
        (IndexError, r"prompt 0: position 9 is out of range", lambda m, t: entry_effects(m, t, 9, -1)),
        (ValueError, r"one for each of the 3 prompts, got 2", lambda m, t: entry_effects(m, t, [1, 1], -1)),
        (ValueError, "a task has its own answers", lambda m, t: entry_effects(m, t, 1, -1, "a")),
        (ValueError, "ablation must be one of", lambda m, t: entry_effects(m, t, 1, -1, ablation="x")),
        (TypeError, "model must be a Model or several, got int", lambda m, t: entry_effects(3, t, 1, -1)),
        (TypeError, "model must be a Model", lambda m, t: entry_effects([m, 3], t, 1, -1)),
        (ValueError, "got none", lambda m, t: entry_effects([], t, 1, -1)),
        (TypeError, "must be texts, got list", lambda m, t: entry_effects(m, [[1, 2]], 1, -1, "a")),
        (ValueError, "2 answers and 1 prompts", lambda m, t: entry_effects(m, ["a"], 0, -1, ["a", "b"])),
        (ValueError, "need answer=", lambda m, t: entry_effects(m, ["ab"], 0, -1)),
        (ValueError, "base must be 0 or 1", lambda m, t: entry_effects(m, t, 1, -1, base=2)),
        (
            ValueError,
            "n_bootstrap",
            lambda m, t: entry_effects(m, t, 1, -1, progress=False).summary(n_bootstrap=-1),
        ),
        (
            ValueError,
            "confidence",
            lambda m, t: entry_effects(m, t, 1, -1, progress=False).needed(confidence=1),
        ),
    ],
)
def test_wrong_arguments(error, text, call):
    one = case("dense")
    model = one.model()
    model.tokenizer = one.task.tokenizer
    with pytest.raises(error, match=text):
        call(model, one.task)
