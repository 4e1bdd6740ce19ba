"""Model cards: those inside the package are their templates, filled with what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

import attnsparse as asp
from attnsparse.model.locate import MODELS_FOLDER
from attnsparse.recipes import RECIPES, addition, cards, demo, transcoders
from attnsparse.recipes.addition_evaluation import edge_threshold, evaluate, facts
from attnsparse.recipes.demo_evaluation import Measured

TEMPLATES = sorted(path.stem for path in (Path(cards.__file__).parent / "cards").glob("*.md"))


def shipped(name: str) -> str:
    return (MODELS_FOLDER / name / "README.md").read_text(encoding="utf-8")


def number(text: str, before: str) -> float:
    return float(re.search(rf"{before}([0-9.e-]+)", text)[1])


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


def test_every_template_is_used():
    models = {name for recipe in RECIPES.values() for name in recipe.models if "transcoders" not in name}
    assert set(TEMPLATES) == {
        "addition",
        "demo",
        "demo-gate",
        "demo-reading",
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
