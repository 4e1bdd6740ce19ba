"""Tasks that running text sets, on a text written for it: which places are found, what is changed there."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

import attnsparse as asp
from attnsparse import tasks

NAMES = {" Mr": ("Knightley", "Weston"), " Mrs": ("Bates", "Goddard")}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    random = np.random.default_rng(0)
    lines = []
    for i in range(900):
        title = (" Mr", " Mrs")[i % 2]
        name, other = random.permutation(NAMES[title])
        word = random.choice(["he was", "he had", "we saw", "she walked", "they talked", "it seemed"])
        lines.append(
            f"and {word} then. The day came, and{title}. {name} spoke of{title}. {other}'s house in {name}'s"
        )
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text(". ".join(lines))
    return asp.TextData(path, 48, 1, tokenizer=330, held_out=0.4)


def strings(task, i, corrupted=False):
    rows = task.corrupted if corrupted else task.clean
    return task.tokenizer.token_strings(rows[i].tolist())


@pytest.mark.parametrize("kind", ["possessive", "capital", "title"])
def test_prompts_are_places_of_the_text(text, kind):
    task = tasks.text_task(kind, text.held_out, text.tokenizer, n=12, n_tokens=9)
    again = tasks.text_task(kind, text.held_out, text.tokenizer, n=12, n_tokens=9)
    other = tasks.text_task(kind, text.held_out, text.tokenizer, n=12, n_tokens=9, seed=1)
    assert task.digest == again.digest != other.digest
    assert len({row.tobytes() for row in task.clean}) == len(task) == 12
    assert task.is_ranking.sum() == 6
    windows = [row.tolist() for row in text.held_out]
    [he] = text.tokenizer.encode(" he")
    counts = Counter(b for row in windows for a, b in itertools.pairwise(row) if a == he)
    after_he = counts.most_common(1)[0][0]
    for i in range(12):
        places = [*task.clean[i].tolist(), int(task.answers[i][0])]
        assert any(places == row[at : at + 10] for row in windows for at in range(39))
        assert (task.clean[i] != task.corrupted[i]).sum() == 1
        right, wrong = (text.tokenizer.token_string(int(ids[i][0])) for ids in (task.answers, task.wrong))
        clean, corrupted = strings(task, i), strings(task, i, True)
        if kind == "possessive":
            assert (right, corrupted[-1]) == ("'s", " he")
            assert clean[-1][1].isupper()
            assert wrong == text.tokenizer.token_string(after_he)
        elif kind == "capital":
            assert (clean[-1], corrupted[-1]) == (".", ",")
            assert right[1].isupper()
            assert wrong == right.lower()
        else:
            assert {clean[-2], corrupted[-2]} == {" Mr", " Mrs"}
            assert clean[-1] == "."
            assert any(name.startswith(right.strip()) for name in NAMES[clean[-2]])
            assert any(name.startswith(wrong.strip()) for name in NAMES[corrupted[-2]])


WORDS = (" the", " un", " mis", "hap", "py", "pen", "ly", " a")


def test_ends_of_words():
    """The end after another first piece is wrong; shared ends and unfinished words are no places."""
    tokenizer = asp.Tokenizer.from_words(WORDS)
    ids = {word: tokenizer.encode(word)[0] for word in WORDS}
    the, un, mis, hap, py, pen, ly, a = (ids[word] for word in WORDS)
    rows = [
        [the, the, a, un, hap, py, the, a],
        [a, the, the, mis, hap, pen, a, the],
        [the, a, a, mis, hap, py, ly, a],
    ]
    task = tasks.text_task("ending", np.array(rows, np.int32), tokenizer, n=2, n_tokens=4)
    found = {clean.tolist()[2]: i for i, clean in enumerate(task.clean)}
    for first, other, answer, wrong in ((un, mis, py, pen), (mis, un, pen, py)):
        i = found[first]
        assert task.corrupted[i].tolist() == [*task.clean[i][:2].tolist(), other, hap]
        assert (task.answers[i].tolist(), task.wrong[i].tolist()) == ([answer], [wrong])
    assert task.labels[found[un]] == "py"
    with pytest.raises(ValueError, match="have 2 prompts of the task 'ending', fewer than n=3"):
        tasks.text_task("ending", rows, tokenizer, n=3, n_tokens=4)


def test_what_it_refuses(text):
    tokenizer = asp.Tokenizer.from_words(WORDS)
    rows = [[0, 1, 2, 3, 4]]
    with pytest.raises(ValueError, match="kind must be one of 'ending', 'possessive', 'capital', 'title'"):
        tasks.text_task("plural", rows, tokenizer)
    with pytest.raises(ValueError, match="needs the token ' Mr', which the tokenizer does not have"):
        tasks.text_task("title", rows, tokenizer)
    with pytest.raises(IndexError, match="token id 99 is out of range"):
        tasks.text_task("ending", [[0, 99]], tokenizer)
    with pytest.raises(TypeError, match="a token id must be an integer"):
        tasks.text_task("ending", [[0.5]], tokenizer)
    with pytest.raises(ValueError, match="n_tokens"):
        tasks.text_task("ending", rows, tokenizer, n_tokens=3)
