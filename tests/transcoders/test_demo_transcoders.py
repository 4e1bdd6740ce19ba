"""The embedded transcoders are what their cards say, and the recipe makes such sets."""

from __future__ import annotations

import gc
import json
import signal
from pathlib import Path

import numpy as np
import pytest

import attnsparse as asp
from attnsparse import recipes
from attnsparse.errors import CheckpointError
from attnsparse.model.locate import MODELS_FOLDER
from attnsparse.recipes import transcoder_evaluation
from attnsparse.recipes import transcoders as recipe_transcoder
from attnsparse.tasks import words as demo_words

SETS = recipe_transcoder.SETS
SHORT = {
    "steps": 12, "first_features": 24, "features": 16, "batch": 4, "top_k": 3, "checkpoint_every": 3,
}  # fmt: skip
MOST_BYTES = 12 * 2**20
ACTIVATIONS = {"demo-dense-transcoders": "topk", "demo-sparse-transcoders": "jump_relu"}
MOST_LOSS = 0.1  # nats, with all MLPs replaced
PROMPT = 'The opposite of "large" is "'
WORD = 4  # position of large


def card(name: str) -> dict:
    return json.loads((MODELS_FOLDER / name / "card.json").read_text())


@pytest.fixture(scope="module")
def sets() -> dict[str, tuple[asp.Model, asp.Transcoders]]:
    models = {name: asp.load(model) for name, model in SETS.items()}
    return {name: (model, asp.load_transcoders(name, model, verify=True)) for name, model in models.items()}


@pytest.mark.parametrize("name", SETS)
def test_the_card_is_of_these_files(sets, name):
    model, transcoders = sets[name]
    facts, text = card(name), (MODELS_FOLDER / name / "README.md").read_text()
    assert facts["digest"] == transcoders.digest
    assert facts["model_digest"] == model.digest
    assert (transcoders.activation, transcoders.model_name) == (ACTIVATIONS[name], SETS[name])
    assert transcoders.n_features == tuple(row["n_features"] for row in facts["layers"])
    for digest in (facts["digest"], facts["model_digest"]):
        assert digest in text
    assert f"| with all MLPs replaced | {facts['cross_entropy_replaced']:.4f} |" in text


@pytest.mark.parametrize("name", SETS)
def test_the_cards_numbers_come_out(sets, name):
    """On all of its text: on the first quarter the loss with replaced MLPs is another one."""
    model, transcoders = sets[name]
    facts, found = card(name), transcoder_evaluation.evaluate(transcoders, model)
    assert found["l0"].mean() == pytest.approx(facts["l0"], rel=0.003)
    assert found["explained_variance"].mean() == pytest.approx(facts["explained_variance"], abs=0.001)
    for key in ("cross_entropy", "cross_entropy_replaced"):
        assert found[key][0] == pytest.approx(facts[key], abs=0.003)


@pytest.mark.parametrize("name", SETS)
def test_what_the_sets_are_shipped_for(name):
    facts = card(name)
    assert facts["cross_entropy_replaced"] <= facts["cross_entropy"] + MOST_LOSS
    assert facts["explained_variance"] > 0.9
    assert 3 <= facts["l0"] <= 12
    assert facts["dead"] < 0.6
    assert facts["cross_entropy_replaced"] == pytest.approx(
        facts["cross_entropy_replaced_before_rounding"], abs=0.01
    )


def test_the_sets_are_small():
    files = [path for name in SETS for path in (MODELS_FOLDER / name).iterdir()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES


@pytest.mark.parametrize("name", SETS)
def test_their_labels_are_those_of_their_features(sets, name):
    """Some features described on the card's text; the graph that has the labels is the same but for them."""
    model, transcoders = sets[name]
    labels = asp.load_feature_labels(name)
    known = len(labels) / sum(transcoders.n_features)
    assert 1 - known == pytest.approx(card(name)["dead"], abs=1e-9)
    some = list(labels)[:: len(labels) // 40]
    text = transcoder_evaluation.prompts(transcoder_evaluation.TEXT_BATCHES)
    found = asp.describe_features(model, transcoders, text, some, progress=False)
    assert sum(found[key] != labels[key] for key in some) <= 1  # rounding may turn the order of two tokens
    plain = asp.attribution_graph(model, transcoders, PROMPT, labels=None)
    named = asp.attribution_graph(model, transcoders, PROMPT, labels=name)
    assert plain.weights.tobytes() == named.weights.tobytes()
    shown = [labels.get((node.layer, node.feature), node.label) for node in plain.nodes().itertuples()]
    assert list(named.labels[: named.n_features]) == shown[: named.n_features]
    assert plain.with_labels(name).labels == named.labels


@pytest.mark.parametrize("name", SETS)
def test_some_feature_is_for_large_and_few_other_words(sets, name):
    """Of the features of layer 0 at a word in quotation marks, the one that fewest of the words share."""
    model, transcoders = sets[name]
    words = [word for pair in demo_words.PAIRS for word in pair]
    active = np.zeros((len(words), transcoders.n_features[0]), bool)
    for row, word in zip(active, words):
        found = transcoders.features(model, PROMPT.replace("large", word))
        row[found.feature[(found.layer == 0) & (found.position == WORD)]] = True
    shared = np.where(active, active.sum(axis=0), len(words)).min(axis=1)
    assert shared[words.index("large")] <= 20
    assert np.median(shared) <= 8


@pytest.mark.parametrize("name", SETS)
def test_the_answer_survives_replacement(sets, name):
    model, transcoders = sets[name]
    logits = transcoders.replacement_run(model, PROMPT).logits[-1]
    assert model.tokenizer.token_string(int(logits.argmax())) == "small"


# ---- the recipe


def train(out: Path, **settings) -> list[Path]:
    return recipes.RECIPES["demo-transcoder"].train(out, quiet=True, **{**SHORT, **settings})


def contents(folders: list[Path]) -> dict[str, bytes]:
    return {f"{f.name}/{path.name}": path.read_bytes() for f in folders for path in sorted(f.iterdir())}


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> list[Path]:
    """The recipe with a few steps, never stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transcoder_evaluation, "TEXT_BATCHES", 1)
        return train(tmp_path_factory.mktemp("short"), threads=1)


def test_it_writes_both_sets(short):
    assert [folder.name for folder in short] == list(recipes.RECIPES["demo-transcoder"].models) == list(SETS)
    for folder in short:
        names = {path.name for path in folder.iterdir()}
        assert names == {"README.md", "card.json", "config.yaml", "history.csv", "labels.csv"} | {
            f"layer_{i}.safetensors" for i in range(12)
        }
        found = asp.load_transcoders(folder, asp.load(SETS[folder.name]))
        assert found.n_features == (24, *[16] * 11)
        assert "nan" not in (folder / "README.md").read_text()


def test_stopped_and_resumed_gives_the_same_bytes(short, tmp_path, monkeypatch):
    monkeypatch.setattr(transcoder_evaluation, "TEXT_BATCHES", 1)
    stops = 0

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    gc.disable()  # an interrupt inside another library's callback would be lost, and warned of
    for attempt in range(40):
        before = signal.signal(signal.SIGVTALRM, stop)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.6 if attempt < 3 else 0)
        try:
            folders = train(tmp_path, threads=1 + attempt % 2, resume=attempt > 0)
            break
        except KeyboardInterrupt:
            stops += 1
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
    gc.enable()
    assert stops >= 1
    assert contents(folders) == contents(short)


def test_a_second_run_needs_resume(short):
    with pytest.raises(FileExistsError, match="already holds a run"):
        train(short[0].parent)


def test_resume_with_other_settings_is_refused(short):
    with pytest.raises(CheckpointError) as caught:
        train(short[0].parent, resume=True, lr=1e-4)
    assert (caught.value.code, caught.value.field) == ("options", "lr")
