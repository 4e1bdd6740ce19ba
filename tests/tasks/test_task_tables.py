"""Tables of prompts: which layouts are known, what their columns mean, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from table_columns import hidden

from attnsparse import tasks
from attnsparse.errors import FormatError, LimitError
from attnsparse.io.limits import Limits
from attnsparse.model.tokenizer import Tokenizer
from attnsparse.recipes.demo_text import demo_tokenizer
from attnsparse.tasks import addition
from attnsparse.tasks.layouts import LAYOUTS

WORDS = ["A", " dog", " cat", " is", " Mary", " John", " x", " y", " z", "x", "Mary", ' "']
YEARS_SAID = [" 1732", " 1701", " 17"]
BOS = "<bos>"
TOKENIZER = Tokenizer.from_words([*WORDS, *YEARS_SAID, BOS, *(f"{year:02d}" for year in range(100))], bos=BOS)
X, Y, Z = (TOKENIZER.encode(word)[0] for word in (" x", " y", " z"))
PROMPTS = {"clean": "A dog is", "corrupted": "A cat is"}
YEARS = {"clean": "A dog is 1732 is 17", "corrupted": "A dog is 1701 is 17"}


def ids(texts: list[str]) -> list[int]:
    return [TOKENIZER.encode(text)[0] for text in texts]


def read(tmp_path, row: dict, frame: bool = False, **options: object) -> tasks.Task:
    """One row, from a CSV or as a DataFrame."""
    if frame:
        return tasks.from_dataframe(pd.DataFrame([row]), TOKENIZER, **options)
    pd.DataFrame([row]).to_csv(tmp_path / "table.csv", index=False)
    return tasks.read_eap_csv(tmp_path / "table.csv", TOKENIZER, **options)


PUBLISHED = {
    "IOI": ({**PROMPTS, "corrupted_hard": "A cat is", "correct_idx": X, "incorrect_idx": Y}, [X], [Y]),
    "gender bias": ({**PROMPTS, "clean_answer_idx": X, "corrupted_answer_idx": Y, "label": 1}, [X], [Y]),
    "fact retrieval": ({**PROMPTS, "capital": "p", "country": "q", "country_idx": X, "corrupted_capital": "r",
                        "corrupted_country": "s", "corrupted_country_idx": Y}, [X], [Y]),
    "the capital": ({**PROMPTS, "capital_idx": X, "corrupted_capital_idx": Y, "country": "q"}, [X], [Y]),
    "countries in words": ({**PROMPTS, "country": " x", "corrupted_country": " y"}, [X], [Y]),
    "hypernymy": ({**PROMPTS, "h1": "t", "answers": ["u"], "answers_idx": [X, Y],
                   "corrupted_answers_idx": [Z], "prob_diff": 0.5}, [X, Y], [Z]),
    "lists of words": ({**PROMPTS, "answers": [" x", " y"], "corrupted_answers": [" z"]}, [X, Y], [Z]),
    "sums": ({**PROMPTS, "answer_idx": X, "corrupted_idx": Y}, [X], [Y]),
    "names in words": ({**PROMPTS, "correct": " x", "incorrect": " y"}, [X], [Y]),
    "pronouns in words": ({**PROMPTS, "clean_answer": " x", "corrupted_answer": [" y"]}, [X], [Y]),
    "NPI": ({**PROMPTS, "clean_idx": X, "corrupted_idx": Y}, [X], [Y]),
    "sums of MIB": ({**YEARS, "label": "32", "corrupted_label": "33", "operand1": 1, "operand2": 2},
                    ids(["32"]), ids(["33"])),
    "own": ({**PROMPTS, "answer": " x", "wrong": [" y", " z"], "label": "kind"}, [X], [Y, Z]),
}  # fmt: skip


@pytest.mark.parametrize("frame", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts(name: str, frame: bool, tmp_path) -> None:
    row, right, wrong = PUBLISHED[name]
    options = {"prepend_space_to_answer": False} if "operand1" in row else {}
    task = read(tmp_path, row, frame, **options)
    assert (task.answers[0].tolist(), task.wrong[0].tolist()) == (right, wrong)


@pytest.mark.parametrize("column", ["label", "correct_idx", "year"])
def test_greater_than_has_the_year_of_its_prompts(column: str, tmp_path) -> None:
    for frame in (False, True):
        task = read(tmp_path, {**YEARS, column: 1732 if column == "year" else 32}, frame)
        assert task.metric == "prob_diff"
        assert task.answers[0].tolist() == ids([f"{year:02d}" for year in range(33, 100)])
        assert task.wrong[0].tolist() == ids([f"{year:02d}" for year in range(33)])
    for wrong in (31, 99, 2):  # numbers of other tables, which say no year
        with pytest.raises(FormatError, match=r"year|0\.\."):
            read(tmp_path, {**YEARS, column: 1700 + wrong if column == "year" else wrong})


def test_verbs_are_asked_for(tmp_path) -> None:
    row = {**PROMPTS, "plural": 1, "group": "g"}
    with pytest.raises(FormatError, match=r"pass verbs="):
        read(tmp_path, row)
    pairs = [
        ("x", "y"),
        ("Mary", "dogs"),
        ("cats", "z"),
    ]  # no one token, no pair
    task = read(tmp_path, row, verbs=pairs)
    assert task.answers[0].tolist() == [Y]
    assert task.wrong[0].tolist() == ids([" x", " Mary"])


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"correct_idx": 1, "incorrect_idx": 2, "label": 3}, "no layout has the answer columns"),
        ({"clean_answer_idx": 1, "corrupted_answer_idx": 2, "correct_idx": 1}, "no layout"),
        ({"label": "32", "corrupted_label": "33"}, "no layout"),  # ids in one benchmark, sums in another
        ({"capital": " x", "country": " y", "corrupted_capital": " z", "corrupted_country": " x"}, "can be"),
        ({"country_idx": 1}, "no column 'corrupted_country_idx' beside 'country_idx'"),
        ({"answer": " x"}, "no column 'wrong' beside 'answer'"),
        ({"other": 1}, "no layout has the answer columns none; right answers can be in answer, correct_idx"),
        ({"label": 0}, "would be the year"),
        ({"correct_idx": 1.0, "incorrect_idx": 2}, "must be an integer in 0..115, got"),
        ({"correct_idx": True, "incorrect_idx": 2}, "must be an integer"),
        ({"correct_idx": 116, "incorrect_idx": 2}, "must be an integer in 0..115"),
        ({"correct_idx": None, "incorrect_idx": 2}, "must be an integer"),
        ({"answers_idx": "[1, 2.5]", "corrupted_answers_idx": "[3]"}, "must be an integer"),
        ({"answers_idx": "[1, [2]]", "corrupted_answers_idx": "[3]"}, "must be an integer"),
        ({"answers_idx": "__import__('os').getcwd()", "corrupted_answers_idx": "[3]"}, "must be an integer"),
        ({"answers_idx": "[]", "corrupted_answers_idx": "[3]"}, "at least one"),
    ],
)  # fmt: skip
def test_refused_tables(row: dict, text: str, tmp_path) -> None:
    for frame in (False, True):
        with pytest.raises(ValueError, match=text) as caught:
            read(tmp_path, {**PROMPTS, **row}, frame)
        assert len(str(caught.value)) <= 300


def test_every_layout_is_read_by_a_test() -> None:
    columns = [set(row) for row, _, _ in PUBLISHED.values()]
    by_a_number = {("label",), ("correct_idx",), ("year",), ("plural",)}  # tests of their own
    for layout in LAYOUTS:
        known = layout.answers in by_a_number or any(found.issuperset(layout.answers) for found in columns)
        assert known or layout.answers == ("capital", "corrupted_capital"), layout


def test_columns_of_no_layout_are_left_out_with_a_warning(tmp_path) -> None:
    with pytest.warns(UserWarning, match="IOI.*left out: 'note'"):
        read(tmp_path, {**PROMPTS, "correct_idx": X, "incorrect_idx": Y, "note": "n"})


# --- the CSV itself


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clean,corrupted,clean,label\nA,B,A,1\n", "'clean' occurs twice"),
        ("clean,corrupted,label\nA,B\n", "line 2: 2 values, the header has 3 columns"),
        ("clean,corrupted,label\nA,B,1,2\n", "line 2: 4 values"),
        ("clean,corrupted,label\nA,B\0,1\n", "NUL at byte 25"),
        ("clean,corrupted,label\nA,\udcff,1\n", "not UTF-8"),
        ('clean,corrupted,label\n"A,B,1\n', "not a CSV, in line 2"),
        ('clean,corrupted,label\n"' + "A" * 200_000 + '",B,1\n', "field larger"),
        ("clean,corrupted,label\n", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_bad_csv(text: str, message: str, tmp_path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError, match=message) as caught:
        tasks.read_eap_csv(path, TOKENIZER)
    assert caught.value.code == "csv"


def test_the_cost_of_a_csv_is_bounded(tmp_path) -> None:
    """Cells that are not there are not made up, and rows and cells are counted."""
    path = tmp_path / "wide.csv"
    path.write_text("clean,corrupted,label," + ",".join(f"c{i}" for i in range(8000)) + "\n" + "1\n" * 50_000)
    with pytest.raises(FormatError, match="line 2: 1 values, the header has 8,003"):
        tasks.read_eap_csv(path, TOKENIZER)
    path.write_text("clean,corrupted,correct_idx,incorrect_idx\n" + "A dog,A cat,1,2\n" * 3)
    assert len(tasks.read_eap_csv(path, TOKENIZER)) == 3
    for limits in (Limits(max_prompts=2), Limits(max_table_cells=14), Limits(max_index_bytes=60)):
        with pytest.raises(LimitError) as caught:
            tasks.read_eap_csv(path, TOKENIZER, limits=limits)
        assert caught.value.code == "file_limit"


def test_byte_order_mark_and_numbers_of_rows(tmp_path) -> None:
    path = tmp_path / "bom.csv"
    path.write_text(
        f",clean,corrupted,correct_idx,incorrect_idx\r\n7,A dog,A cat,{X},{Y}\r\n\r\n", "utf-8-sig"
    )
    assert tasks.read_eap_csv(path, TOKENIZER).answers[0].tolist() == [X]


# --- tasks written as tables


def tables_of(task: tasks.Task, path) -> dict[str, object]:
    """A task read again from whatever it can be written to, by way."""
    assert hidden(task.to_pandas()) == []
    tasks.write_prompts_json(task, path / "t.json")
    task.to_pandas().to_csv(path / "t.csv", index=False)
    text = pd.read_csv(path / "t.csv", dtype=str, keep_default_na=False)
    return {
        "frame": tasks.from_dataframe(task.to_pandas(), task.tokenizer),
        "csv": tasks.read_eap_csv(path / "t.csv", task.tokenizer),
        "pandas": tasks.from_dataframe(text, task.tokenizer),
        "json": tasks.read_prompts_json(path / "t.json", task.tokenizer),
    }


def test_a_task_returns_whole(tmp_path) -> None:
    demo = demo_tokenizer()
    with_bos = Tokenizer.from_words([*WORDS, BOS], bos=BOS)
    own = pd.DataFrame(
        [{"clean": f"A dog is{more}", "corrupted": f"A cat is{more}", "answer": "x", "wrong": [" y", " z"],
          "label": label, "half": half} for more, label, half in
         [(" x", "05", "evaluation"), (" y", "", "ranking"), (" z", "NA", "evaluation")]]
    )  # fmt: skip
    made = tasks.from_dataframe(own, with_bos, name="mine", metric="logit_diff_max", seed=3, prepend_bos=True,
                                prepend_space_to_answer=False)  # fmt: skip
    named = dataclasses.replace(
        made, position_labels=(BOS, "a", "animal", "verb", "end"), word_positions={"animal": 2}
    )
    digits = Tokenizer.from_words(addition.VOCABULARY, split="characters")
    sums = tasks.make_task("addition", digits, n=5, seed=7)
    for task in (named, sums, tasks.make_task("greater_than", demo, n=4), tasks.make_task("ioi", demo, n=5)):
        for way, again in tables_of(task, tmp_path).items():
            assert again.digest == task.digest, way
            for part in (
                "name",
                "metric",
                "prepend_bos",
                "labels",
                "options",
                "position_labels",
                "word_positions",
            ):
                assert getattr(again, part) == getattr(task, part), (way, part)


def test_the_caller_overrules_a_table() -> None:
    table = tasks.make_task("copy", demo_tokenizer(), n=4).to_pandas()
    task = tasks.from_dataframe(table, demo_tokenizer(), name="mine", metric="prob_diff")
    assert (task.name, task.metric) == ("mine", "prob_diff")


def test_what_a_csv_loses_is_said(tmp_path) -> None:
    """pandas takes "05" for 5, "NA" for nothing and "8" for a number, unless it is told not to."""
    row = {"clean": 'A dog is "', "corrupted": 'A cat is "', "answer": "x", "wrong": "Mary"}
    for label, text in (
        ("05", "label must be a string, got int"),
        ("NA", "label must be a string, but it is missing"),
    ):
        task = tasks.from_dataframe(pd.DataFrame([{**row, "label": label}]), TOKENIZER)
        task.to_pandas().to_csv(tmp_path / "t.csv", index=False)
        with pytest.raises(ValueError, match=text):
            tasks.from_dataframe(pd.read_csv(tmp_path / "t.csv"), TOKENIZER)
    two = pd.concat([task.to_pandas(), dataclasses.replace(task, name="b").to_pandas()])
    with pytest.raises(ValueError, match="same text in every row"):
        tasks.from_dataframe(two, TOKENIZER)
    with pytest.raises(ValueError, match=r"must be what Task\.to_pandas writes"):
        tasks.from_dataframe(task.to_pandas().assign(task="ioi"), TOKENIZER)
    with pytest.raises(ValueError, match="'prepend_bos' must be true or false"):
        tasks.from_dataframe(task.to_pandas().assign(task='{"prepend_bos": 1}'), TOKENIZER)


def test_positions_must_be_in_the_prompts(tmp_path) -> None:
    prompt = '{"clean": "A dog", "corrupt": "A cat", "answers": [" x"], "wrong_answers": [" y"]}'
    for positions, text in (('"seq_labels": ["a"]', "1 names of positions, but prompts have 2"),
                            ('"word_idxs": {"w": 2}', "word 'w' is at position 2"),
                            ('"word_idxs": {"w": -1}', "word 'w' is at position -1")):  # fmt: skip
        (tmp_path / "p.json").write_text(f'{{{positions}, "prompts": [{prompt}]}}')
        with pytest.raises(ValueError, match=text):
            tasks.read_prompts_json(tmp_path / "p.json", TOKENIZER, prepend_bos=True)
    (tmp_path / "p.json").write_text(f'{{"prompts": [{prompt}, {prompt}]}}')
    with pytest.raises(LimitError, match="max_prompts"):
        tasks.read_prompts_json(tmp_path / "p.json", TOKENIZER, limits=Limits(max_prompts=1))


# --- the space before an answer


@pytest.mark.parametrize(
    ("prompt", "answer", "asked"),
    [
        ("A dog is", "x", True),
        ("A dog is Mary,", "x", True),
        ("A dog is (", "x", False),
        ('A dog is "', "x", False),
        ('A dog is "Mary"', "x", True),
        ("A dog is ", "x", False),
        ("A dog is", " x", False),
        ("A dog is", "bare", False),  # there is no " bare"
        ("A dog is 17", "33", False),  # a number goes on
        ("A dog is 6", "8", True),  # "68" is one token: the number does not go on
        ("A dog's", "x", True),
        ('A dog ="', "x", False),
        ("A dog'", "s", False),
    ],
)
def test_a_missing_space_is_asked_for(prompt: str, answer: str, asked: bool) -> None:
    pieces = """A| dog| is| Mary|Mary|,| (| "|"| |x| x|bare|'|s| s| =| no"""
    numbers = " 17|33| 33|00| 00| 1700| 6|8| 8| 68"
    tokenizer = Tokenizer.from_words([*pieces.split("|"), *numbers.split("|")])
    wrong = ["00", " no"] if answer == "33" else " no"  # " 1700" is one token, " 1733" is not
    table = pd.DataFrame([{"clean": prompt, "corrupted": prompt, "answer": answer, "wrong": wrong}])
    if asked:
        with pytest.raises(ValueError, match=r"prompt 0 .*prepend_space_to_answer=True"):
            tasks.from_dataframe(table, tokenizer)
    else:
        task = tasks.from_dataframe(table, tokenizer)
        assert tokenizer.token_strings(task.answers[0]) == [answer]
    plain = tasks.from_dataframe(table, tokenizer, prepend_space_to_answer=False)
    assert tokenizer.token_strings(plain.answers[0]) == [answer]


def test_the_space_is_put_where_it_is_asked_for(tmp_path) -> None:
    row = {**PROMPTS, "answer": ["x", "Mary"], "wrong": " y"}
    for frame in (False, True):
        with pytest.raises(ValueError, match="'x' has no leading space, and ' x' is a token too"):
            read(tmp_path, row, frame)
        task = read(tmp_path, row, frame, prepend_space_to_answer=True)
        assert task.answers[0].tolist() == ids([" x", " Mary"])
        with pytest.raises(ValueError, match="for answers in words"):
            read(tmp_path, PUBLISHED["IOI"][0], frame, prepend_space_to_answer=True)
    with pytest.raises(ValueError, match=r"'John' is not in.*; with a leading space, ' John', it is"):
        read(tmp_path, {**row, "answer": "John"})


# --- MIB


def choice(prompt: str, labels: list, key: int) -> dict:
    return {"prompt": prompt, "answerKey": key,
            "choices": {"label": np.array(labels, object), "text": np.array(["p", "q"], object)}}  # fmt: skip


MIB = {
    "IOI": ({"prompt": "A dog is", "metadata": {"indirect_object": "Mary", "subject": "John"},
             "choices": ["Mary", "John"], "answerKey": 0,
             "s2_io_flip_counterfactual": {"prompt": "A cat is"}}, [" Mary"], [" John"]),
    "MCQA": ({**choice('A dog is "', ["x", "y"], 0),
              "symbol_counterfactual": choice('A cat is "', ["Mary", "x"], 0)}, ["x"], ["Mary"]),
    "arithmetic": ({"prompt": "A dog is 17", "label": "32", "operator": "+", "operand1": 1, "operand2": 2,
                    "random_counterfactual": {"prompt": "A cat is 17", "label": 33}}, ["32"], ["33"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MIB)
def test_tables_of_mib(name: str) -> None:
    row, right, wrong = MIB[name]
    task = tasks.from_dataframe(pd.DataFrame([row]), TOKENIZER)
    assert TOKENIZER.token_strings(task.answers[0]) == right
    assert TOKENIZER.token_strings(task.wrong[0]) == wrong
    assert task.text(0, corrupted=True) == next(v for k, v in row.items() if "_counter" in k)["prompt"]


def test_refused_tables_of_mib(tmp_path) -> None:
    row = MIB["MCQA"][0]
    for changes, options, text in [
        ({}, {"counterfactual": "abc"}, "no column 'abc_counterfactual'; it has symbol_counterfactual"),
        ({"symbol_counterfactual": None}, {}, "must be an object with a prompt, got NoneType"),
        ({"answerKey": 2}, {}, "answer is not at choices.label"),
        ({"answerKey": -1}, {}, "answer is not at choices.label"),
        ({"answerKey": 0.0}, {}, "answer is not at choices.label"),
    ]:
        with pytest.raises(ValueError, match=text):
            tasks.from_dataframe(pd.DataFrame([{**row, **changes}]), TOKENIZER, **options)
    pd.DataFrame([row]).to_csv(tmp_path / "mib.csv", index=False)
    with pytest.raises(FormatError, match="objects a CSV does not hold"):
        tasks.read_eap_csv(tmp_path / "mib.csv", TOKENIZER)
    with pytest.raises(ValueError, match="not a known table of MIB"):
        tasks.from_dataframe(pd.DataFrame([row]).drop(columns="choices"), TOKENIZER)
    with pytest.raises(ValueError, match="counterfactual is for tables of MIB"):
        tasks.from_dataframe(pd.DataFrame([PROMPTS]), TOKENIZER, counterfactual="abc")


# --- columns as pandas and parquet have them


def test_answers_as_arrays_and_missing_cells() -> None:
    table = pd.DataFrame([{**PROMPTS, "answer": " x", "wrong": " y"}] * 2, index=[7, 3])
    arrays = table.assign(answer=[np.array([" x", " z"]), np.array([" x"], object)], wrong=[(" y",), [" y"]])
    assert tasks.from_dataframe(arrays, TOKENIZER).answers[0].tolist() == [X, Z]
    for column in ("clean", "answer"):
        for nothing in (None, float("nan"), pd.NA):
            bad = table.astype(object)
            bad.loc[3, column] = nothing
            with pytest.raises(ValueError, match=f"prompt 1: {column} must be a string.* but it is missing"):
                tasks.from_dataframe(bad, TOKENIZER)
    with pytest.raises(ValueError, match="column 'clean' twice"):
        tasks.from_dataframe(pd.concat([table, table[["clean"]]], axis=1), TOKENIZER)
    with pytest.raises(ValueError, match="the table has no rows"):
        tasks.from_dataframe(table[:0].assign(task=""), TOKENIZER)
    with pytest.raises(TypeError, match="DataFrame"):
        tasks.from_dataframe({"clean": []}, TOKENIZER)


def test_indices_and_ids_are_integers() -> None:
    task = tasks.make_task("copy", demo_tokenizer(), n=4)
    for indices in ([0.0], [True, False], task.is_ranking):
        with pytest.raises(TypeError, match="index of subset"):
            task.subset(indices)
    assert len(task.subset(np.flatnonzero(task.is_ranking))) == 2
    with pytest.raises(TypeError, match="integers"):
        dataclasses.replace(task, answers=tuple(row.astype(float) for row in task.answers))


def test_one_bos() -> None:
    table = pd.DataFrame([{**PROMPTS, "answer": " x", "wrong": " y"}])
    twice = table.assign(clean=f"{BOS}{PROMPTS['clean']}", corrupted=f"{BOS}{PROMPTS['corrupted']}")
    assert tasks.from_dataframe(table, TOKENIZER, prepend_bos=True).clean[0][0] == TOKENIZER.bos_id
    assert tasks.from_dataframe(twice, TOKENIZER).clean[0][0] == TOKENIZER.bos_id
    once = tasks.from_dataframe(twice, TOKENIZER, prepend_bos=True)
    assert (once.clean[0] == TOKENIZER.bos_id).sum() == 1
    assert (
        once.clean[0].tolist() == tasks.from_dataframe(table, TOKENIZER, prepend_bos=True).clean[0].tolist()
    )


def test_flags_are_true_or_false() -> None:
    table = pd.DataFrame([{**PROMPTS, "answer": " x", "wrong": " y"}])
    for flag in ("prepend_bos", "prepend_space_to_answer"):
        with pytest.raises(TypeError, match=f"{flag} must be True or False, got 'no'"):
            tasks.from_dataframe(table, TOKENIZER, **{flag: "no"})
