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


def test_columns_of_rows_of_ids(model: asp.Model) -> None:
    """Rows as parquet gives them, in an array of arrays; a column of ids is one prompt, as an array is."""
    ids = [model.to_tokens(text) for text in TEXTS]
    wanted = model.run(TEXTS, logits="last").logits
    for rows in (pd.Series(ids, index=[5, 1, 2]), pd.Series([row.tolist() for row in ids]), tuple(ids)):
        np.testing.assert_array_equal(model.run(rows, logits="last").logits, wanted)
    single = model.run(TEXTS[0]).logits
    for row in (pd.Series(ids[0]), ids[0].tolist(), tuple(ids[0]), ids[0].astype(object), pd.Index(ids[0])):
        np.testing.assert_array_equal(model.run(row).logits, single)


def test_everything_that_takes_prompts_takes_columns(model: asp.Model) -> None:
    column = FRAME["prompt"].iloc[:1]
    logits, _ = model.run_with_cache(column)
    np.testing.assert_array_equal(logits, model.run_with_cache(list(column))[0])
    ablation = asp.Ablation("L0H0", ablation="mean", reference=column)
    listed_ = asp.Ablation("L0H0", ablation="mean", reference=list(column))
    np.testing.assert_array_equal(
        model.run(TEXTS[:1], ablate=ablation).logits, model.run(TEXTS[:1], ablate=listed_).logits
    )
    transcoders = asp.load_transcoders("demo-dense-transcoders", model)
    assert len(transcoders.features(model, column, progress=False)) == len(
        transcoders.features(model, list(column), progress=False)
    )
    labels = [
        asp.describe_features(model, transcoders, prompts, features=[(0, 0)], progress=False)
        for prompts in (column, list(column))
    ]
    pd.testing.assert_frame_equal(*(label.to_pandas() for label in labels))


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
