"""Prompts as people have them: lists, columns of tables, arrays of text; and what is said of other things."""

from __future__ import annotations

import array

import numpy as np
import pandas as pd
import pytest

import attnsparse as asp
from attnsparse.model.batch import listed

TEXTS = ['The opposite of "large" is "', 'The opposite of "hot" is "', 'The opposite of "fast" is "']
FRAME = pd.DataFrame({"prompt": TEXTS, "n": [1, 2, 3]}, index=[7, 3, 9])


class ArrayLike:
    """What a column of Arrow or Polars looks like from here."""

    def __init__(self, values: object) -> None:
        self.values = np.array(values, dtype=object)

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self.values


COLUMNS = {
    "tuple": tuple(TEXTS),
    "Series": FRAME["prompt"],
    "objects": FRAME["prompt"].astype(object),
    "string": FRAME["prompt"].astype("string"),
    "category": FRAME["prompt"].astype("category"),
    "values": FRAME["prompt"].values,
    "extension array": FRAME["prompt"].astype("string").array,
    "Index": pd.Index(TEXTS),
    "array of text": np.array(TEXTS),
    "array of objects": np.array(TEXTS, dtype=object),
    "scalars of text": list(np.array(TEXTS)),
    "a column of another library": ArrayLike(TEXTS),
}
if hasattr(np.dtypes, "StringDType"):
    COLUMNS["strings of NumPy 2"] = np.array(TEXTS, dtype=np.dtypes.StringDType())


@pytest.fixture(scope="module")
def model() -> asp.Model:
    return asp.load("demo-dense")


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_texts(name: str, model: asp.Model) -> None:
    """The same run, with the same texts, from all of them."""
    run, wanted = (model.run(prompts, record="none", logits="last") for prompts in (COLUMNS[name], TEXTS))
    np.testing.assert_array_equal(run.logits, wanted.logits)
    assert listed(COLUMNS[name]) == (TEXTS, False)


def test_iterators_are_the_list_of_what_they_give(model: asp.Model) -> None:
    ids = [model.to_tokens(text) for text in TEXTS]
    for prompts in (iter(TEXTS), (text for text in TEXTS), {"a": TEXTS[0], 3: TEXTS[1]}.values(), iter(ids)):
        run = model.run(prompts, record="none", logits="last")
        np.testing.assert_array_equal(run.logits, model.run(TEXTS, logits="last").logits[: len(run)])
    assert listed(iter([1, 2])) == ([[1, 2]], True)


def test_columns_of_rows_of_ids(model: asp.Model) -> None:
    """Rows as parquet gives them, in an array of arrays; a column of ids is one prompt, as an array is."""
    ids = [model.to_tokens(text) for text in TEXTS]
    wanted = model.run(TEXTS, logits="last").logits
    for rows in (pd.Series(ids, index=[5, 1, 2]), pd.Series([row.tolist() for row in ids]), tuple(ids)):
        np.testing.assert_array_equal(model.run(rows, logits="last").logits, wanted)
    single = model.run(TEXTS[0]).logits
    for row in (pd.Series(ids[0]), ids[0].tolist(), tuple(ids[0]), ids[0].astype(object), pd.Index(ids[0])):
        np.testing.assert_array_equal(model.run(row).logits, single)


def print_nothing(value: np.ndarray, hook: object) -> None:
    """A hook that changes nothing."""


def antonyms(model: asp.Model) -> asp.tasks.Task:
    """Two pairs of prompts, of as many tokens as TEXTS."""
    return asp.tasks.make_task("antonym", model.tokenizer, n=2)


ANSWERS = {"key": "opposite", "query": -1, "answer": ["small", "cold", "slow"], "progress": False}
TAKES_PROMPTS = {  # what a call gives, as arrays or tables
    "run": lambda m, t, p: m.run(p, logits="last").logits,
    "run with a mean": lambda m, t, p: (
        m.run(TEXTS, logits="last", ablate=asp.Ablation("L0H0", "mean", p)).logits
    ),
    "run with counterfactuals": lambda m, t, p: (
        m.run(TEXTS, logits="last", ablate=asp.Ablation("L0H0", "counterfactual", p)).logits
    ),
    "Model.evaluate": lambda m, t, p: m.evaluate(p, progress=False).cross_entropy,
    "knock_out by means": lambda m, t, p: asp.circuits.knock_out(
        m, antonyms(m), [(0, 0), (1, 1)], "mean", reference=p, progress=False
    ),
    "attribution by means": lambda m, t, p: asp.circuits.attribution(
        m, antonyms(m), "head", "mean", reference=p, progress=False
    ),
    "component_scores by means": lambda m, t, p: (
        asp.circuits.component_scores(m, antonyms(m), ablation="mean", reference=p, progress=False).scores
    ),
    "run_with_cache": lambda m, t, p: m.run_with_cache(p)[0],
    "run_with_hooks": lambda m, t, p: (
        m.run_with_hooks(p, [("blocks.0.attn.hook_z", print_nothing)], logits="last").logits
    ),
    "gradients": lambda m, t, p: m.gradients(p).loss,
    "generate": lambda m, t, p: m.generate(p, 2).to_pandas(),
    "tokens_of": lambda m, t, p: m.tokens_of(p),
    "features": lambda m, t, p: t.features(m, p, progress=False).to_pandas(),
    "evaluate": lambda m, t, p: t.evaluate(m, p, progress=False),
    "describe_features": lambda m, t, p: asp.describe_features(
        m, t, p, features=[(0, 0)], progress=False
    ).to_pandas(),
    "entry_effects": lambda m, t, p: asp.circuits.entry_effects(m, p, **ANSWERS).to_pandas(),
}
KINDS = {
    "tuple": tuple,
    "Series": lambda texts: pd.Series(texts, index=[7, 3, 9][: len(texts)]),
    "Index": pd.Index,
    "array of text": np.array,
    "generator": lambda texts: (text for text in texts),
}


@pytest.fixture(scope="module")
def transcoders(model: asp.Model) -> asp.Transcoders:
    return asp.load_transcoders("demo-dense-transcoders", model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", TAKES_PROMPTS)
def test_everything_that_takes_prompts_takes_them_in_every_way(
    call: str, kind: str, model: asp.Model, transcoders: asp.Transcoders
) -> None:
    texts = TEXTS[: 1 if call == "features" else None]
    found, wanted = (TAKES_PROMPTS[call](model, transcoders, way(texts)) for way in (KINDS[kind], list))
    if isinstance(wanted, pd.DataFrame):
        pd.testing.assert_frame_equal(found, wanted)
    else:
        np.testing.assert_array_equal(found, wanted)


def test_a_generator_of_reference_prompts_is_read_once(model: asp.Model) -> None:
    ablation = asp.Ablation("L0H0", "mean", (text for text in TEXTS))
    runs = [model.run(TEXTS, ablate=ablation, logits="last").logits for _ in range(2)]
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize(
    ("prompts", "error", "text"),
    [
        (FRAME["prompt"].where(FRAME["n"] != 2), ValueError, r"prompt 1 is missing \(nan\)"),
        (FRAME["prompt"].astype("string").where(FRAME["n"] != 2), ValueError, "prompt 1 is missing"),
        ([TEXTS[0], None], ValueError, r"prompt 1 is missing \(None\)"),
        ([TEXTS[0], pd.NA], ValueError, "prompt 1 is missing"),
        (FRAME, ValueError, r"one column of texts, .* shape \(3, 2\)"),
        (FRAME[["prompt"]], ValueError, "one column"),
        (b"The", TypeError, "must be strings or integers, got bytes; decode"),
        ([b"The"], TypeError, "prompt 0 must be a string or integers, got bytes"),
        (np.array([b"The"]), TypeError, "prompt 0 must be a string or integers, got bytes"),
        (memoryview(b"The"), TypeError, "must be strings or integers, got memoryview"),
        ([[TEXTS[0]]], TypeError, "prompt 0"),
        ([1.0, 2.0], TypeError, "tokens must be integers, got float64 in prompt 0"),
        (np.array([1.0, 2.0]), TypeError, "tokens must be integers, got float64"),
        (np.array([True]), TypeError, "tokens must be integers, got bool"),
        (pd.Series([], dtype=object), ValueError, "empty list"),
        ({"a": 1}, TypeError, "got dict"),
        (np.array("The"), ValueError, r"got shape \(\)"),
    ],
)
def test_what_is_no_prompt(prompts: object, error: type, text: str, model: asp.Model) -> None:
    with pytest.raises(error, match=text):
        model.run(prompts)


def test_arrays_of_the_standard_library_are_ids(model: asp.Model) -> None:
    ids = array.array("i", model.to_tokens(TEXTS[0]).tolist())
    np.testing.assert_array_equal(model.run(ids).logits, model.run(TEXTS[0]).logits)
