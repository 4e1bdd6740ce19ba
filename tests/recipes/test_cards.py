"""Model cards: those inside the package are their templates, filled with what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from data_folder import data_file

import attnsparse as asp
from attnsparse.model.locate import MODELS_FOLDER
from attnsparse.recipes import RECIPES, addition, cards, demo, text, text_frontier, transcoders
from attnsparse.recipes.addition_evaluation import edge_threshold, evaluate, facts
from attnsparse.recipes.demo_evaluation import Measured
from attnsparse.recipes.text_evaluation import Mean
from attnsparse.training.text_tokens import TextFile

TEMPLATES = sorted(path.stem for path in (Path(cards.__file__).parent / "cards").glob("*.md"))


def shipped(name: str) -> str:
    return (MODELS_FOLDER / name / "README.md").read_text(encoding="utf-8")


def number(card: str, before: str) -> float:
    return float(re.search(rf"{before}([0-9.e-]+)", card)[1])


def integer(digits: str) -> int:
    return int(digits.replace(",", ""))


@pytest.mark.parametrize("name", RECIPES["addition"].models)
def test_addition_cards(name):
    model, card = asp.load(name), shipped(name)
    found = facts(model, evaluate(model, edge_threshold(model)), addition.held_out())
    stored = number(card, r"per predicted token, all sums \| ")
    assert found["cross_entropy"] == pytest.approx(stored, rel=0.02)
    settings = addition.Settings().of_model(model.config.gated)
    assert cards.addition_card(found | {"cross_entropy": stored}, settings) + "\n" == card


@pytest.mark.parametrize("name", RECIPES["demo"].models)
def test_demo_cards(name):
    model, card = asp.load(name), shipped(name)
    table = pd.read_csv(MODELS_FOLDER / name / "tasks.csv")
    found = Measured(number(card, "Cross-entropy on new text: "), number(card, "be told exactly: "), table)
    made = cards.demo_card(model, found, demo.Settings().shown(), demo.HISTORY_EVERY)
    assert made + "\n" == card


def test_the_card_of_a_spread_dense_model_says_that_its_schedule_places_the_heads():
    model, table = asp.load("demo-dense"), pd.read_csv(MODELS_FOLDER / "demo-dense" / "tasks.csv")
    settings = demo.Settings(spread=demo.Spread(steps=2000, early_layers=3))
    made = cards.demo_card(model, Measured(0.04, 0.02, table), settings.shown(), demo.HISTORY_EVERY)
    assert "2,000 further steps" in made
    assert "first 3 layers" in made
    assert "made by this schedule, not found" in made
    assert "spread (steps 2000, lr 0.002," in made


@pytest.mark.parametrize("name", RECIPES["demo-transcoder"].models)
def test_transcoder_cards(name):
    found = json.loads((MODELS_FOLDER / name / "card.json").read_text())
    settings = found.pop("settings")
    assert settings == transcoders.Settings(**settings).shown()  # all that the recipe has
    assert transcoders.card(name, found, settings) + "\n" == shipped(name)


def test_a_card_says_how_its_set_is_made_again():
    for name in transcoders.SETS:
        usual = transcoders.Settings(seed=3).of_set(name).shown()
        assert transcoders.how_to_repeat(name, usual) == "`attnsparse train demo-transcoder --seed 3`"
    changed = (
        transcoders.Settings(seed=3, activation="topk", top_k=4).of_set("demo-sparse-transcoders").shown()
    )
    found = transcoders.how_to_repeat("demo-sparse-transcoders", changed).strip("`")
    assert found.endswith('["demo-transcoder"].train("models", seed=3, activation="topk", top_k=4)')


@pytest.mark.parametrize("activation", ["topk", "jump_relu"])
def test_the_recipe_has_as_many_active_features_as_it_says(activation):
    settings = transcoders.Settings(activation=activation, first_features=24, features=16)
    options = transcoders.options(settings, 3)
    if activation == "topk":
        assert (options.activation, options.top_k, options.l0) == ("topk", 6, None)
    else:
        assert options.l0_of(0, 3) == [24, 16, 16]  # there are not more
        assert options.l0_of(settings.steps // 2, 3) == [16, 5, 5]


@pytest.mark.parametrize("name", RECIPES["text"].models)
def test_text_cards(name):
    """The card is its template; what was measured is measured again where the texts are at hand."""
    model, card = asp.load(name), shipped(name)
    files = [
        TextFile("", file, integer(n_bytes), integer(n_characters), sha)
        for file, n_bytes, n_characters, sha in re.findall(
            r"\| (\S+) \| ([\d,]+) \| ([\d,]+) \| `(\w+)` \|", card
        )
    ]
    counts = {"tokens": r"training part: ([\d,]+) tokens", "held_out": r"are held out: ([\d,]+) tokens"}
    found = {what: integer(re.search(pattern, card)[1]) for what, pattern in counts.items()}
    rows = re.findall(r"\| ([a-z][^|]+) \| (-?[\d.]+) \| ([\d.]+) \|", card)
    measured = {what: Mean(float(value), float(error)) for what, value, error in rows}
    about = SimpleNamespace(texts=files, describe=lambda: found)
    made = cards.text_card(model, measured, about, text.Settings().shown(), text.HISTORY_EVERY)
    assert made + "\n" == card
    paths = [data_file(file.name) for file in files]
    source = asp.TextData(
        paths, model.config.n_ctx, 1, tokenizer=model.tokenizer, held_out=text.Settings.held_out
    )
    assert [file[1:] for file in source.texts] == [file[1:] for file in files]
    windows = source.held_out[np.arange(len(source.held_out)) % text.STEERING != 0]
    again = model.evaluate(windows, progress=False)
    assert again.cross_entropy == pytest.approx(measured["cross-entropy, nats per token"].value, abs=2e-3)
    edges = again.open_edges.sum() / windows.size
    assert edges == pytest.approx(measured["open edges per token"].value, rel=1e-2)


def test_the_shipped_frontier():
    """What the text pair is shipped for, and the same numbers as in the cards."""
    table = pd.read_csv(MODELS_FOLDER / "text-sparse" / text_frontier.FRONTIER)
    gates = table[table["sparse_by"] == text_frontier.GATE]
    assert len(gates) >= 5
    assert set(table.loc[table["trained"], "sparse_by"]) == {"none", "gate", *text_frontier.RULES}
    assert set(table.loc[~table["trained"], "sparse_by"]) == set(text_frontier.RULES)
    rows = {
        "text-control": table.iloc[0],
        "text-sparse": gates[gates["setting"] == text.Settings.fourth.multiplier].iloc[0],
    }
    for name, row in rows.items():
        card = dict(re.findall(r"\| ([a-z][^|]+) \| (-?[\d.]+) \|", shipped(name)))
        assert row["cross_entropy"] == pytest.approx(float(card["cross-entropy, nats per token"]), abs=1e-4)
        assert row["edges_per_token"] == pytest.approx(float(card["open edges per token"]), abs=1e-3)
    twin = rows["text-sparse"]
    assert twin["above_control"] <= 0.03
    assert twin["open_per_cent"] <= 0.5


def test_every_template_is_used():
    models = {name for recipe in RECIPES.values() for name in recipe.models if "transcoders" not in name}
    assert set(TEMPLATES) == {
        "addition",
        "demo",
        "demo-gate",
        "demo-reading",
        "demo-spread",
        "text",
        "transcoders",
        "transcoders-topk",
        "transcoders-jump-relu",
        *models,
    }


def test_a_field_that_is_not_given_is_named():
    with pytest.raises(KeyError, match="gate"):
        cards.fill("demo-sparse")


def test_only_all_is_100_per_cent():
    assert cards._share(10_000, 10_000) == "100 %"
    assert cards._share(9_999, 10_000) == "99.99 % (9,999 of 10,000)"
    assert cards._share(99_999, 100_000) == "99.99 % (99,999 of 100,000)"


def test_settings_inside_of_settings_are_listed():
    assert cards.listed({"seed": 0, "near": {"steps": 3, "lr": 0.1}}) == "seed 0, near (steps 3, lr 0.1)"
