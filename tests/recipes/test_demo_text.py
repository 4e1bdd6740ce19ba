"""The demo models: tokenizer (GPT-2's pieces), text (weights, what is held out), recipe."""

from __future__ import annotations

import re

import numpy as np
import pytest
from data_folder import data_folder

from attnsparse import recipes, tasks
from attnsparse.model.model import Model
from attnsparse.model.tokenizer import Tokenizer
from attnsparse.recipes import demo as recipe_demo
from attnsparse.recipes import demo_text
from attnsparse.recipes.demo_text import ANSWER_WEIGHT, LENGTH, DemoText, demo_tokenizer
from attnsparse.tasks import words
from attnsparse.training.checkpoint import checkpoint_name
from attnsparse.training.data import Data

SEED_PROMPT = ["The", " opposite", " of", ' "', "large", '"', " is", ' "']


@pytest.fixture(scope="module")
def text() -> DemoText:
    return DemoText(32, seed=7)


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer.load(data_folder("gpt2"))


@pytest.fixture(scope="module")
def sentences(text: DemoText) -> list[str]:
    """Whole sentences of training text."""
    found = []
    for step in range(60):
        for row in text.text(step):
            found += re.split(r"(?<=\.) ", row)[1:-1]
    return found


# --- tokenizer


def test_seed_prompt() -> None:
    tokenizer = demo_tokenizer()
    ids = tokenizer.encode("".join(SEED_PROMPT))
    assert tokenizer.token_strings(ids) == SEED_PROMPT
    assert len(tokenizer.encode("small")) == 1


def test_every_piece_is_one_token() -> None:
    tokenizer = demo_tokenizer()
    assert [piece for piece in words.all_pieces() if len(tokenizer.encode(piece)) != 1] == []


def test_training_is_repeatable() -> None:
    again = demo_text.demo_tokenizer.__wrapped__()
    assert again.to_json() == demo_tokenizer().to_json()


@pytest.mark.parametrize("other", ["Zürich: 東京 🙂 \t\n x=1", "", "\x00", "In 1945 and 73, unheardof words"])
def test_any_text_is_encoded(other: str) -> None:
    tokenizer = demo_tokenizer()
    assert tokenizer.decode(tokenizer.encode(other)) == other


def test_cut_as_gpt2_cuts(text: DemoText, gpt2: Tokenizer) -> None:
    for step in range(5):
        for ids in text.batch(step)[0].reshape(-1, LENGTH):
            pieces = text.tokenizer.token_strings(ids)
            joined = "".join(pieces)
            assert gpt2.token_strings(gpt2.encode(joined)) == pieces
            assert text.tokenizer.encode(joined) == ids.tolist()


# --- batches


def test_is_training_data(text: DemoText) -> None:
    assert isinstance(text, Data)
    tokens, offsets, targets, weights = text.batch(3, 1)
    assert (tokens.dtype, targets.dtype, weights.dtype) == (np.int32, np.int32, np.float32)
    assert (offsets.dtype, offsets.tolist()) == (np.int64, [LENGTH * i for i in range(33)])
    rows, following = tokens.reshape(32, LENGTH), targets.reshape(32, LENGTH)
    np.testing.assert_array_equal(rows[:, 1:], following[:, :-1])
    assert set(np.unique(weights)) == {0, 1, ANSWER_WEIGHT}


def test_a_batch_is_a_function_of_seed_and_place(text: DemoText) -> None:
    again = DemoText(32, seed=7)
    text.batch(11)
    for one, other in zip(text.batch(4, 2), again.batch(4, 2)):
        np.testing.assert_array_equal(one, other)
    assert text.digest == again.digest != DemoText(32, seed=8).digest
    other_places = [text.batch(*place)[0].tobytes() for place in ((4, 2), (4, 3), (5, 2))]
    assert len(set(other_places)) == 3


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="batch"):
        DemoText(0)
    with pytest.raises(ValueError, match="seed"):
        DemoText(4, seed=-1)


def test_most_sequences_begin_in_the_middle(text: DemoText) -> None:
    starts = {words.pieces(template)[0] for template in words.TEMPLATES}
    starts |= {start.split("|")[0] for start, _, _ in words.LISTS} | {words.FILLER}
    first = [row for step in range(40) for row in text.batch(step)[0].reshape(-1, LENGTH)[:, 0]]
    share = np.mean([text.tokenizer.token_string(token) not in starts for token in first])
    assert 0.6 < share < 0.7


# --- what counts


def weighted(text: DemoText, sentence: str) -> list[tuple[str, float]]:
    """Tokens and weights of a sentence of training text, taken from behind the start of a sequence."""
    wanted = text.tokenizer.encode(" " + sentence)
    for step in range(400):
        tokens, _, _, weights = text.batch(step)
        for row, row_weights in zip(tokens.reshape(-1, LENGTH), weights.reshape(-1, LENGTH)):
            for begin in range(1, LENGTH - len(wanted) + 1):
                if row[begin : begin + len(wanted)].tolist() == wanted:
                    found = row_weights[begin - 1 : begin - 1 + len(wanted)].tolist()
                    return list(zip(text.tokenizer.token_strings(wanted), found))
    raise AssertionError(f"{sentence!r} was not found")


def test_weights_of_opposites(text: DemoText) -> None:
    found = weighted(text, 'The opposite of "large" is "small".')
    assert [weight for _, weight in found] == [0, 0, 1, 0, 0, 1, 1, 1, 3, 1]


def test_weights_are_on_what_is_determined() -> None:
    weights = dict(zip(words.TEMPLATES, demo_text.literal_weights(words.TEMPLATES)))
    giving = dict(zip(words.pieces(words.GIVING[0]), weights[words.GIVING[0]]))
    assert giving["{ s}"] == giving["{ place}"] == 0
    assert giving["{ io!}"] == ANSWER_WEIGHT
    assert giving[" went"] == 1
    lasting = dict(zip(words.pieces(words.LASTING), weights[words.LASTING]))
    assert lasting["{start}"] == 0
    assert lasting["{end!}"] == lasting["{ century!}"] == 1


def test_cut_off_lists_count_where_the_source_is_left(text: DemoText) -> None:
    seen = 0
    for step in range(30):
        tokens, _, targets, weights = text.batch(step)
        for row, row_targets, row_weights in zip(
            *(a.reshape(-1, LENGTH) for a in (tokens, targets, weights))
        ):
            strings = text.tokenizer.token_strings(row)
            if " =" not in strings or any(s in (".", ":", '".') for s in strings[: strings.index(" =")]):
                continue
            middle = strings.index(" =")
            assert row_weights[middle] == 0  # the start of the list is cut off
            for at in range(middle + 1, min(LENGTH, middle + 1 + words.LONGEST_LIST)):
                if strings[at] == ".":
                    break
                visible = row[at] in row[:middle]
                answer = ANSWER_WEIGHT if row_targets[at] in row[:middle] else 1
                assert row_weights[at] == (answer if visible else 0)
                seen += 1
    assert seen > 20


# --- what is held out


def test_held_out_words(sentences: list[str]) -> None:
    lists = [s for s in sentences if s.startswith(("Copy", "Say", "List"))]
    giving = [s for s in sentences if " gave a " in s]
    first_form = [s for s in sentences if s.startswith('The opposite of "')]
    assert min(len(lists), len(giving), len(first_form)) > 200
    assert not [s for s in lists if set(re.findall(r"\w+", s)) & set(words.HELD_OUT_NOUNS)]
    assert not [s for s in giving if set(re.findall(r"\w+", s)) & set(words.HELD_OUT_NAMES)]
    held_out = {word for pair in words.HELD_OUT_PAIRS for word in pair}
    assert not [s for s in first_form if s.split('"')[1] in held_out]
    starts = {int(s[:2]) for s in re.findall(r"from the year \d\d(\d\d) ", " ".join(sentences))}
    assert not starts & set(words.HELD_OUT_YEARS)
    said = set(re.findall(r"\w+", " ".join(sentences)))
    assert {*words.HELD_OUT_NOUNS, *words.HELD_OUT_NAMES, *held_out} <= said


def test_held_out_prompts(sentences: list[str]) -> None:
    everything = "\n".join(sentences)
    for name in ("ioi", "greater_than"):
        for prompt in tasks.make_task(name, demo_tokenizer(), n=100).to_pandas().clean:
            assert prompt not in everything
    for sentence in sentences:
        match = re.fullmatch(r"\w+ (\w+) and (\w+) \w+ \w+ the (\w+), \w+ gave a (\w+) to \w+\.", sentence)
        if match:
            a, b = (words.NAMES.index(match[i]) for i in (1, 2))
            place, thing = words.PLACES.index(match[3]), words.OBJECTS.index(match[4])
            assert not words.giving_is_held_out(a, b, place, thing)


def test_answers_are_right(sentences: list[str]) -> None:
    opposite = dict((*words.PAIRS, *(pair[::-1] for pair in words.PAIRS)))
    kinds, capitals = dict(words.KIND_OF), dict(words.CAPITALS)
    rules = {
        r'The opposite of "(\w+)" is "(\w+)"\.': opposite.get,
        r'"(\w+)" is the opposite of "(\w+)"\.': opposite.get,
        r"The opposite of (\w+) is (\w+)\.": opposite.get,
        r"If it is not (\w+), it is (\w+)\.": opposite.get,
        r"From (\w+) to (\w+)\.": opposite.get,
        r'The start of "(\w+)" is "(\w)"\.': lambda word: word[0],
        r"The capital of (\w+) is (\w+)\.": capitals.get,
        r"A (\w+) is a kind of (\w+)\.": kinds.get,
        r"Copy: (.+) = (.+)\.": lambda nouns: nouns,
        r"Say (.+) then (.+)\.": lambda nouns: nouns,
        r"List: (.+) (\1)\.": lambda nouns: nouns,
        r"Today (\w+ has a \w+) and the (.+)\.": lambda s: " is from ".join(s.split(" has a ")[::-1]),
        r"\w+ (.+) \w+ \w+ the \w+, (.+) to \w+\.": None,
        r"The \w+ lasted from the year (\d+) to the year (\d+)\.": None,
        r"So (.+)(\.)": None,
    }
    counts = dict.fromkeys(rules, 0)
    for sentence in sentences:
        rule, match = next((r, m) for r in rules if (m := re.fullmatch(r, sentence)))
        counts[rule] += 1
        if rules[rule] is not None:
            assert rules[rule](match[1]) == match[2], sentence
        elif "gave" in sentence:
            a, b = match[1].split(" and ")
            gives, gets = re.search(r", (\w+) gave .* (\w+)\.", sentence).groups()
            assert sorted((a, b)) == sorted((gives, gets)), sentence
        elif "lasted" in sentence:
            assert 1 <= int(match[2]) - int(match[1]) <= words.LONGEST, sentence
    assert min(counts.values()) > 5


# --- recipe


def test_recipe_schedules() -> None:
    settings = recipe_demo.Settings(common_steps=1000)
    options = recipe_demo.common_options(settings, 0.09)
    start, later, end = (options.at(step, 12, True, 0.0) for step in (0, 450, 999))
    assert start["gate_bias"] == [-30] * 8 + [3] * 4
    assert start["edge_weight"] == [5] * 8 + [0.05] * 4
    assert later["gate_bias"] == [0] * 12
    assert later["edge_weight"] == pytest.approx([3] * 8 + [1] * 4)
    assert (start["tau"], end["tau"]) == pytest.approx((0.27, 0.17))
    assert end["lr"] < 0.03 * settings.common_lr
    assert start["geco_relative"] is False


def test_options_of_the_later_phases() -> None:
    settings = recipe_demo.Settings()
    options = recipe_demo.twin_options(settings, 0.03)
    assert set(recipe_demo.PHASES) == {"dense", "spread", *options}
    assert options["settle"].steps == settings.settle.steps
    assert options["settle"].at(0, 12, True, 0.0)["tau"] == pytest.approx(0.03 + settings.settle.slack)
    for name in recipe_demo.LONGEST:
        control = recipe_demo.control_options(settings, options[name])
        assert (control.steps, control.lr, control.tau) == (options[name].steps, options[name].lr, None)


def test_recipe_runs_and_resumes(tmp_path) -> None:
    stage = recipe_demo.Stage(2, 0.0, 0.1, 0.1, 0.1)
    small = {"quiet": True, "batch": 2, "dense_steps": 2, "common_steps": 3, "near_from": 2}
    small |= {"checkpoint_every": 1, "near": stage, "settle": stage, "spread": recipe_demo.Spread(steps=2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnsparse.recipes.demo_evaluation.PROMPTS", 4)
        patch.setattr("attnsparse.recipes.demo_evaluation.TEXT_BATCHES", 1)
        patch.setattr("attnsparse.recipes.demo_evaluation.MEASURED", ("copy", "antonym"))
        folders = recipe_demo.train(tmp_path, seed=1, **small)
        weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
        with pytest.raises(FileExistsError):
            recipe_demo.train(tmp_path, seed=1, **small)
        for phase, step in (("common", 3), ("near", 2), ("control-settle", 2)):
            (tmp_path / "checkpoints" / phase / checkpoint_name(step)).unlink()
        again = recipe_demo.train(tmp_path, seed=1, resume=True, **small)
    assert [folder.name for folder in again] == list(recipes.RECIPES["demo"].models)
    assert [(folder / "model.safetensors").read_bytes() for folder in again] == weights
    assert "tiger" in (again[1] / "README.md").read_text()
    assert (again[1] / "tasks.csv").read_text().startswith("task,words,prompts,top1,")
    histories = [(folder / "history.csv").read_text() for folder in again]
    assert [text.splitlines()[0].split(",")[:2] for text in histories] == [["phase", "step"]] * 4


def test_sparse_start_scales_queries_and_keys_of_early_layers() -> None:
    config = recipe_demo.config()
    dense = Model.initialised(config, 0, std="fan_in", name="demo-dense")
    start = recipe_demo.sparse_start(dense, recipe_demo.Settings())
    assert start.config.gated
    for layer, scale in ((0, 0.1), (7, 0.1), (8, 1.0)):
        name = f"h.{layer}.attn.c_attn.weight"
        ratio = start.parameter(name) / dense.parameter(name)
        np.testing.assert_allclose(ratio[:, :192], scale, rtol=1e-6)
        np.testing.assert_array_equal(ratio[:, 192:], 1)
