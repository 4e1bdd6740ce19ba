"""Tasks: their prompts, their checks, files and tables of prompts, and the metrics."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pandas as pd
import pytest
from data_folder import data_folder

from attnsparse import circuits, tasks
from attnsparse.errors import FormatError
from attnsparse.model.tokenizer import Tokenizer
from attnsparse.recipes.demo_text import demo_tokenizer
from attnsparse.tasks import addition, words
from attnsparse.tasks import prompts as tasks_prompts
from attnsparse.tasks.metrics import TASK_METRICS

FOR_GPT2 = tuple(name for name in tasks.TASKS if name != "addition")
FOR_DEMO = ("copy", "induction", "antonym", "ioi", "greater_than")


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer.load(data_folder("gpt2"))


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return demo_tokenizer()


@pytest.fixture(scope="module")
def digits() -> Tokenizer:
    return Tokenizer.from_words(addition.VOCABULARY, split="characters")


def check(task: tasks.Task, n: int) -> None:
    """What every task promises."""
    assert len(task) == n
    assert len({len(row) for row in (*task.clean, *task.corrupted)}) == 1
    assert len({row.tobytes() for row in task.clean}) == n
    assert all((a != b).any() for a, b in zip(task.clean, task.corrupted))
    assert len(task.ranking) == (n + 1) // 2
    assert len(task.ranking) + len(task.evaluation) == n
    ranked = {row.tobytes() for row in task.ranking.clean}
    assert not ranked & {row.tobytes() for row in task.evaluation.clean}


@pytest.mark.parametrize("name", FOR_GPT2)
def test_tasks_for_gpt2(name: str, gpt2: Tokenizer) -> None:
    check(tasks.make_task(name, gpt2, n=41), 41)


@pytest.mark.parametrize("name", FOR_DEMO)
@pytest.mark.parametrize("held_out", [False, True])
def test_tasks_for_demo(name: str, held_out: bool, demo: Tokenizer) -> None:
    check(tasks.make_task(name, demo, n=15, held_out_words=held_out), 15)


@pytest.mark.parametrize("name", FOR_DEMO)
def test_the_same_prompts_for_both_tokenizers(name: str, demo: Tokenizer, gpt2: Tokenizer) -> None:
    ours, theirs = (tasks.make_task(name, tokenizer, n=12, seed=3) for tokenizer in (demo, gpt2))
    pd.testing.assert_frame_equal(ours.to_pandas(), theirs.to_pandas())
    for i in range(12):
        assert demo.token_strings(ours.clean[i]) == gpt2.token_strings(theirs.clean[i])


def test_deterministic_by_seed(demo: Tokenizer) -> None:
    one, again, other = (tasks.make_task("ioi", demo, n=20, seed=seed) for seed in (5, 5, 6))
    assert one.digest == again.digest != other.digest
    assert (one.is_ranking == again.is_ranking).all()
    assert pickle.loads(pickle.dumps(one)).digest == one.digest


def test_a_task_cannot_be_changed(demo: Tokenizer) -> None:
    task = tasks.make_task("copy", demo, n=4)
    with pytest.raises(ValueError):
        task.clean[0][0] = 1
    with pytest.raises(AttributeError):
        task.metric = "prob_diff"


def test_swapped(demo: Tokenizer) -> None:
    task = tasks.make_task("ioi", demo, n=6)
    swapped = task.swapped()
    for i in range(6):
        np.testing.assert_array_equal(swapped.clean[i], task.corrupted[i])
        np.testing.assert_array_equal(swapped.corrupted[i], task.clean[i])
        np.testing.assert_array_equal(swapped.answers[i], task.wrong[i])
        np.testing.assert_array_equal(swapped.wrong[i], task.answers[i])
    assert (swapped.labels, swapped.options, swapped.name) == (task.labels, task.options, task.name)
    np.testing.assert_array_equal(swapped.is_ranking, task.is_ranking)
    assert swapped.digest != task.digest
    assert swapped.swapped().digest == task.digest
    with pytest.raises(ValueError, match="has no corrupted prompts to exchange with"):
        dataclasses.replace(task, corrupted=task.clean).swapped()


def test_the_prompt_of_the_figure(demo: Tokenizer) -> None:
    table = tasks.make_task("antonym", demo, n=112).to_pandas()
    row = table[table.clean == 'The opposite of "large" is "'].iloc[0]
    assert (row.answer, row.n_tokens) == ("small", 8)


def test_antonym_against_the_relation(demo: Tokenizer) -> None:
    row = tasks.make_task("antonym", demo, n=1, counterfactual="relation").to_pandas().iloc[0]
    assert row.corrupted == row.clean.replace("opposite", "start")
    assert row.wrong == row.clean.split('"')[1][0]


def test_lists_ask_for_a_noun_of_the_first_list(demo: Tokenizer) -> None:
    row = tasks.make_task("copy", demo, n=1).to_pandas().iloc[0]
    first, second = row.clean.removeprefix("Copy: ").split(" = ")
    assert first == second + row.answer
    assert row.corrupted == f"Copy: {second}{row.wrong} = {second}"
    row = tasks.make_task("induction", demo, n=1, n_words=5).to_pandas().iloc[0]
    nouns = row.clean.removeprefix("List: ").split()
    assert nouns[5:] == nouns[:2]
    assert row.answer == " " + nouns[2]


@pytest.mark.parametrize("kind", tasks_prompts.COUNTERFACTUALS)
@pytest.mark.parametrize("order", ["ABBA", "BABA"])
def test_ioi_counterfactuals(kind: str, order: str, demo: Tokenizer) -> None:
    task = tasks.make_task("ioi", demo, n=6, order=order, counterfactual=kind)
    assert task.labels == (order,) * 6
    for clean, corrupted, answer, wrong in zip(task.clean, task.corrupted, task.answers, task.wrong):
        first, second, gives = clean[1], clean[3], clean[9]
        assert (gives == second) == (order == "ABBA")
        assert wrong[0] == gives
        assert {answer[0], wrong[0]} == {first, second}
        one, two, other_gives = corrupted[1], corrupted[3], corrupted[9]
        new = {one, two, other_gives}
        if kind.startswith(("abc", "random_names")):
            assert not new & {first, second}
            assert len(new) == (3 if kind.startswith("abc") else 2)
        else:
            assert new == {first, second}
            assert ((one, two) == (second, first)) == ("s1_io" in kind)
            assert (other_gives == answer[0]) == ("s2_io" in kind)
        if not kind.startswith("abc"):
            flipped = ("s1_io" in kind) != ("s2_io" in kind)
            assert ((other_gives == two) == (gives == second)) != flipped


def test_greater_than(gpt2: Tokenizer) -> None:
    task = tasks.make_task("greater_than", gpt2, n=5, corrupted_year="01")
    table = task.to_pandas()
    for _, row in table.iterrows():
        start = int(row.label)
        century = row.clean[-2:]
        assert f"{century}{start} to" in row.clean
        assert f"{century}01 to" in row.corrupted
        assert row.answer == [f"{year}" for year in range(start + 1, 100)]
        assert row.wrong == [f"{year:02d}" for year in range(start + 1)]


def test_docstring(gpt2: Tokenizer) -> None:
    task = tasks.make_task("docstring", gpt2, n=3, n_before=1)
    assert task.metric == "logit_diff_max"
    text, other = task.text(0), task.text(0, corrupted=True)
    compile(text.rsplit("\n", 1)[0] + '\n    """', "docstring", "exec")
    signature = text[text.index("(") + 1 : text.index(")")].split(", ")
    assert gpt2.token_strings(task.answers[0]) == [" " + signature[-1]]
    assert text.split("\n", 1)[1] == other.split("\n", 1)[1]
    assert not set(signature[1:]) & set(other[other.index("(") + 1 : other.index(")")].split(", ")[1:])


def test_addition(digits: Tokenizer) -> None:
    for row in tasks.make_task("addition", digits, n=30).to_pandas().itertuples():
        for text, tens in ((row.clean, row.answer), (row.corrupted, row.wrong)):
            a, b = addition.parse_sum(text[:5])
            assert f"{a + b:03d}"[:2] == text[6] + tens
        a, b = addition.parse_sum(row.clean[:5])
        assert (row.label == "carry") == (a % 10 + b % 10 > 9)


def test_addition_refuses_other_tokenizers(demo: Tokenizer) -> None:
    with pytest.raises(ValueError, match="addition models"):
        tasks.make_task("addition", demo)


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("riddles", {}, ValueError, "name must be one of 'copy', .*got 'riddles'"),
        ("antonym", {"n": 113}, ValueError, "only 112 different"),
        ("copy", {"n": 0}, ValueError, "n must be at least 1, got 0"),
        ("copy", {"n": 1.5}, TypeError, "n must be an integer, got float"),
        ("copy", {"prepend_bos": 1}, TypeError, "prepend_bos must be True or False, got 1"),
        ("copy", {"held_out_words": "no"}, TypeError, "held_out_words must be True or False, got 'no'"),
        ("copy", {"n_words": "7"}, TypeError, "n_words must be an integer, got str"),
        ("greater_than", {"corrupted_year": "1701"}, ValueError, "corrupted_year must be two digits"),
        ("copy", {"n_words": 2}, ValueError, "n_words"),
        ("copy", {"n_words": 20, "held_out_words": True}, ValueError, "n_words must be at most 15"),
        ("copy", {"length": 3}, TypeError, "length"),
        ("ioi", {"counterfactual": "abc"}, ValueError, "s2_io_flip_counterfactual"),
        ("ioi", {"order": "AB"}, ValueError, "ABBA"),
    ],
)
def test_wrong_arguments(name: str, options: dict, error: type, text: str, demo: Tokenizer) -> None:
    with pytest.raises(error, match=text):
        tasks.make_task(name, demo, **options)


def test_prompts_were_not_trained_on() -> None:
    draft = tasks_prompts.draw_prompts("ioi", 50, 0, {})
    for clean, *_ in draft:
        said = clean.replace(",", "").split()
        place = words.PLACES.index(said[7])
        thing = words.OBJECTS.index(said[11])
        assert words.giving_is_held_out(words.NAMES.index(said[1]), words.NAMES.index(said[3]), place, thing)
    for clean, *_ in tasks_prompts.draw_prompts("greater_than", 50, 0, {}):
        said = clean.split()
        century, start = words.CENTURIES.index(int(said[6][:2])), int(said[6][2:])
        assert words.lasting_is_held_out(words.EVENTS.index(said[1]), century, start)


# --- prompts of the user


def frame(**changes: object) -> pd.DataFrame:
    row = {"clean": "The dog is", "corrupted": "The cat is", "answer": " large", "wrong": " small"}
    return pd.DataFrame([{**row}, {**row, **changes}])


def test_dataframe_both_ways(demo: Tokenizer) -> None:
    for name in FOR_DEMO:
        task = tasks.make_task(name, demo, n=6)
        again = tasks.from_dataframe(task.to_pandas(), demo, name=name, metric=task.metric)
        assert again.digest == task.digest


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"corrupted": "The dogs is"},
            r"prompt 1 \('The dog is'\).*3 tokens, corrupted 4.*position 2, ' is'",
        ),
        ({"answer": " zebra"}, r"prompt 1 .*answer: ' zebra' is 5 tokens \(' ', 'z"),
        ({"wrong": " zebra"}, r"prompt 1 .*wrong answer: ' zebra'"),
        ({"answer": "Norway"}, "with a leading space, ' Norway', it is"),
        ({"wrong": " large"}, "prompt 1 .*' large' is listed as both an answer and a wrong answer"),
        ({"wrong": [" small", " small"]}, "prompt 1 .*' small' is listed twice"),
        ({"wrong": []}, "prompt 1 .*at least one"),
        ({"answer": 3}, "prompt 1: answer must be a string"),
        ({"clean": ""}, "prompt 1 .*non-empty"),
        ({"half": "third"}, "half must be"),
    ],
)
def test_dataframe_errors_name_prompt_and_token(changes: dict, text: str, demo: Tokenizer) -> None:
    with pytest.raises(ValueError, match=text):
        tasks.from_dataframe(frame(**changes), demo)


def test_dataframe_without_a_column(demo: Tokenizer) -> None:
    with pytest.raises(ValueError, match="no column 'wrong'"):
        tasks.from_dataframe(frame().drop(columns="wrong"), demo)


def test_prompt_files_both_ways(tmp_path, gpt2: Tokenizer) -> None:
    task = tasks.make_task("docstring", gpt2, n=6)
    path = tmp_path / "docstring.json"
    tasks.write_prompts_json(task, path)
    again = tasks.read_prompts_json(path, gpt2, metric=task.metric)
    assert again.name == "docstring"
    for part in ("clean", "corrupted", "answers", "wrong"):
        for one, other in zip(getattr(task, part), getattr(again, part), strict=True):
            np.testing.assert_array_equal(one, other)


def test_prompt_file_with_everything(tmp_path, gpt2: Tokenizer) -> None:
    path = tmp_path / "own.json"
    prompt = {"clean": "A cat", "corrupt": "A dog", "answers": [" sat"], "wrong_answers": [" ran", " was"]}
    data = {"seq_labels": ["A", "x"], "word_idxs": {"end": 1}, "prompts": [prompt]}
    path.write_text(json.dumps(data))
    task = tasks.read_prompts_json(path, gpt2, prepend_bos=True)
    assert task.clean[0][0] == gpt2.bos_id
    assert task.text(0) == "A cat"
    assert task.position_labels == ("<|endoftext|>", "A", "x")  # what describes a prompt moves with it
    assert task.word_positions == {"end": 2}
    tasks.write_prompts_json(task, path)
    written = json.loads(path.read_text())
    assert {key: written[key] for key in ("seq_labels", "word_idxs")} == {
        "seq_labels": ["A", "x"],
        "word_idxs": {"end": 1},
    }
    assert written["prompts"][0].items() >= prompt.items()
    again = tasks.read_prompts_json(path, gpt2)
    assert (again.digest, again.position_labels, again.word_positions) == (
        task.digest, task.position_labels, task.word_positions)  # fmt: skip
    assert tasks.read_prompts_json(path, gpt2, prepend_bos=False).word_positions == {"end": 1}


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"prompts": []},
        {"prompts": [3]},
        {"prompts": [{"clean": "A", "answers": [" a"], "wrong_answers": [" b"]}]},
        {"prompts": [{"clean": "A", "corrupt": "B", "answers": " a", "wrong_answers": [" b"]}]},
        {"prompts": [{"clean": "A", "corrupt": "B", "answers": [1], "wrong_answers": [" b"]}]},
        {
            "prompts": [{"clean": "A", "corrupt": "B", "answers": ["A"], "wrong_answers": ["B"]}],
            "seq_labels": 1,
        },
        {
            "prompts": [{"clean": "A", "corrupt": "B", "answers": ["A"], "wrong_answers": ["B"]}],
            "word_idxs": [],
        },
    ],
)
def test_bad_prompt_files(tmp_path, data: dict, demo: Tokenizer) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data))
    with pytest.raises(FormatError) as caught:
        tasks.read_prompts_json(path, demo)
    assert caught.value.code == "prompts"
    assert caught.value.field


def test_eap_csv(tmp_path, gpt2: Tokenizer) -> None:
    path = tmp_path / "greater.csv"
    made = tasks.make_task("greater_than", gpt2, n=4, corrupted_year="01")
    made.to_pandas()[["clean", "corrupted", "label"]].to_csv(path, index=False)
    task = tasks.read_eap_csv(path, gpt2)
    assert task.metric == "prob_diff"
    assert [row.tolist() for row in task.wrong] == [row.tolist() for row in made.wrong]
    path.write_text("clean,corrupted,correct_idx,incorrect_idx\nA cat,A dog,262,257\n")
    task = tasks.read_eap_csv(path, gpt2)
    assert (task.metric, task.answers[0].tolist(), task.wrong[0].tolist()) == ("logit_diff", [262], [257])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "clean,corrupted\nA,B\n",
        "clean,corrupted,label\nA,B,-1\n",
        "clean,corrupted,label\nA,B,99\n",
        "clean,corrupted,correct_idx,incorrect_idx\nA,B,1,99999999\n",
        'clean,corrupted,label\n"A,B,1\n',
    ],
)
def test_bad_csv(tmp_path, text: str, demo: Tokenizer) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(FormatError) as caught:
        tasks.read_eap_csv(path, demo)
    assert caught.value.code == "csv"


def test_notebook_table(demo: Tokenizer) -> None:
    task = tasks.from_dataframe(frame(clean='The dog is "<&', corrupted='The cat is "<&'), demo)
    shown = task._repr_html_()
    assert "<b> cat</b>" in shown
    assert "&lt;&amp;" in shown
    assert "2 prompts" in repr(task)


# --- metrics


def by_hand(task: tasks.Task, row: np.ndarray, i: int) -> float:
    if task.metric == "prob_diff":
        p = np.exp(row) / np.exp(row).sum()
        return sum(p[t] for t in task.answers[i]) - sum(p[t] for t in task.wrong[i])
    wrong = [row[t] for t in task.wrong[i]]
    worst = max(wrong) if task.metric == "logit_diff_max" else sum(wrong) / len(wrong)
    return sum(row[t] for t in task.answers[i]) / len(task.answers[i]) - worst


@pytest.fixture(scope="module")
def three(demo: Tokenizer) -> list[tasks.Task]:
    made = [tasks.make_task(name, demo, n=4) for name in ("ioi", "greater_than")]
    several = frame(wrong=[" small", " big", " hot"], answer=[" large", " cold"])
    return [*made, tasks.from_dataframe(several, demo, metric="logit_diff_max")]


def test_metrics_by_hand(three: list[tasks.Task], demo: Tokenizer) -> None:
    for task in three:
        logits = np.random.default_rng(0).normal(size=(len(task), demo.n_vocab)) * 3
        wanted = [by_hand(task, row, i) for i, row in enumerate(logits)]
        np.testing.assert_allclose(tasks.metric(logits, task), wanted, rtol=1e-10)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        right = [np.log(p[i][ids].sum()) for i, ids in enumerate(task.answers)]
        np.testing.assert_allclose(tasks.log_probability(logits, task), right, rtol=1e-10)
        best = [(row > row[ids].max()).sum() for row, ids in zip(logits, task.answers)]
        np.testing.assert_array_equal(tasks.rank(logits, task), best)


def test_one_list_of_metrics(three: list[tasks.Task], demo: Tokenizer) -> None:
    assert circuits.METRICS is tasks.METRICS
    assert set(tasks.METRICS) - set(TASK_METRICS) == {"log_prob", "kl"}
    assert {task.metric for task in three} == set(TASK_METRICS)
    with pytest.raises(ValueError, match=r"metric must be one of 'logit_diff', .*got 'kl'"):
        tasks.from_dataframe(frame(), demo, metric="kl")


def test_kl_divergence() -> None:
    logits = np.log([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]])
    reference = np.log([[0.25, 0.25, 0.5], [0.2, 0.3, 0.5]])
    wanted = [0.25 * np.log(0.5) + 0.5 * np.log(2), 0.0]
    np.testing.assert_allclose(tasks.kl_divergence(logits, reference), wanted, atol=1e-12)


def test_logits_of_other_shapes(three: list[tasks.Task], demo: Tokenizer) -> None:
    for shape in ((3, demo.n_vocab), (4, 5, demo.n_vocab), (4, 50)):
        with pytest.raises(ValueError, match="logits"):
            tasks.metric(np.zeros(shape), three[0])
