"""Recipes: what "addition" writes, that it goes on where it was stopped, what the shipped models are."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import attnsparse as asp
from attnsparse import recipes, tasks
from attnsparse.errors import CheckpointError
from attnsparse.model.initial_weights import initial_weights
from attnsparse.recipes import addition as recipe_addition
from attnsparse.recipes import demo_evaluation
from attnsparse.recipes.addition_evaluation import evaluate
from attnsparse.tasks import addition
from attnsparse.training.trainer import Trainer
from attnsparse.transcoders.trainer import TranscoderTrainer

SHORT = {"dense_steps": 24, "sparse_steps": 20, "repeats": 1, "repeat_steps": 8, "checkpoint_every": 5}
FILES = ["README.md", "config.json", "history.csv", "history.png", "model.safetensors", "tokenizer.json"]
FILES += ["tokenizer_config.json"]


def train(out: Path, **settings) -> list[Path]:
    return recipes.RECIPES["addition"].train(out, quiet=True, **{**SHORT, **settings})


def given(name: str, folder: Path) -> dict[str, Any]:
    """What a recipe must be given: a text of its own for one that learns from texts."""
    if not recipes.RECIPES[name].needs_corpus:
        return {}
    path = folder.with_name(f"{folder.name}.txt")
    path.write_text("".join(f"{i:x} {i * i:o}\n" for i in range(4000)))
    return {"corpus": path, "tiny": True}


def contents(folders: list[Path]) -> dict[str, bytes]:
    return {f"{f.name}/{path.name}": path.read_bytes() for f in folders for path in sorted(f.iterdir())}


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> list[Path]:
    """The recipe with a few steps, never stopped."""
    return train(tmp_path_factory.mktemp("short"), threads=1)


def test_it_writes_both_models(short):
    assert [folder.name for folder in short] == list(recipes.RECIPES["addition"].models)
    for folder in short:
        assert sorted(path.name for path in folder.iterdir()) == FILES
    dense, sparse = map(asp.load, short)
    assert (dense.config.gated, sparse.config.gated) == (False, True)
    assert sparse.config == recipe_addition.config(gated=True)
    assert dense.n_parameters == 202_560
    assert sparse.run("53+21=").tokens.tolist() == [5, 3, 10, 2, 1, 11]


def test_history_has_every_step_of_every_phase(short):
    dense, sparse = (pd.read_csv(folder / "history.csv") for folder in short)
    assert dense["step"].tolist() == list(range(24))
    assert sparse["step"].tolist() == list(range(28))  # the model is not good enough, so the tail is repeated
    assert sparse["phase"].tolist() == [0] * 20 + [1] * 8
    assert "seconds" not in sparse
    assert sparse["gate_bias"][0] == 5
    assert dense["multiplier"].isna().all()


def test_the_card_says_what_was_measured(short):
    sparse = asp.load(short[1])
    found = evaluate(sparse, 0.0)
    card = (short[1] / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert f"| edges of a sum, most | {found.n_edges.max()} |" in card
    assert sparse.digest in card
    assert "seed 0, sparse_steps 20" in card
    assert "None" not in card


def test_stopped_and_resumed_gives_the_same_bytes(short, tmp_path):
    before, stops = signal.signal(signal.SIGVTALRM, signal.default_int_handler), 0
    try:
        for attempt in range(60):
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.15 if attempt < 5 else 0)
            try:
                folders = train(tmp_path, threads=1 + attempt % 2, resume=attempt > 0)
                break
            except KeyboardInterrupt:
                stops += 1
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    finally:
        signal.signal(signal.SIGVTALRM, before)
    assert stops == 5
    assert contents(folders) == contents(short)


def test_a_second_run_needs_resume(short):
    with pytest.raises(FileExistsError, match="already holds a run"):
        train(short[0].parent)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_resume_needs_a_run(name, tmp_path):
    for out in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"holds no run; .* start without resume"):
            recipes.RECIPES[name].train(out, resume=True, **given(name, tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_run_that_was_stopped_before_its_first_checkpoint_can_be_resumed(name, tmp_path, monkeypatch):
    recipe = recipes.RECIPES[name]

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "__init__", stop)
    monkeypatch.setattr(TranscoderTrainer, "__init__", stop)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            recipe.train(tmp_path, resume=resume, **given(name, tmp_path))


def test_resume_with_other_settings_is_refused(short):
    with pytest.raises(CheckpointError) as caught:
        train(short[0].parent, resume=True, seed=1)
    assert (caught.value.code, caught.value.field) == ("options", "seed")


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_an_unknown_setting_is_named(name, tmp_path):
    with pytest.raises(TypeError, match="unknown setting 'dense_step'; choose from seed, "):
        recipes.RECIPES[name].train(tmp_path, dense_step=3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"seed": -1}, r"seed must be in 0\.\.2\^64-1, got -1"),
        ({"threads": 0}, r"threads must be in 1\.\.64, got 0"),
        ({"resume": 1}, "resume must be True or False, got 1"),
        ({"quiet": "no"}, "quiet must be True or False, got 'no'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(wrong, text, tmp_path):
    with pytest.raises((TypeError, ValueError), match=text):
        recipes.RECIPES["addition"].train(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_held_out_sums_are_not_trained_on():
    held_out = recipe_addition.held_out()
    assert len(set(held_out.tolist())) == recipe_addition.N_HELD_OUT
    data = recipe_addition.data(9000, 0)
    assert len(data) == 9000
    tokens, _, targets, weights = (array.reshape(-1) for array in data.batch(0, 0))
    rows = tokens.reshape(-1, addition.N_TOKENS)
    trained = (10 * rows[:, 0] + rows[:, 1]) * 100 + 10 * rows[:, 3] + rows[:, 4]
    assert np.array_equal(np.sort(trained), np.setdiff1d(np.arange(10_000), held_out))
    assert np.array_equal(np.flatnonzero(weights.reshape(rows.shape)[0]), [5, 6, 7, 8])
    assert np.array_equal(targets.reshape(rows.shape)[:, addition.PREDICTING], rows[:, addition.PREDICTED])


def test_initial_weights_are_a_pure_function():
    config = recipe_addition.config()
    weights = initial_weights(config, 3, std=0.06)
    assert all(np.array_equal(a, initial_weights(config, 3, std=0.06)[n]) for n, a in weights.items())
    assert {n: a.shape for n, a in weights.items()} == config.parameter_shapes()
    assert weights["h.1.mlp.c_fc.weight"].std() == pytest.approx(0.06, rel=0.02)
    assert weights["h.1.mlp.c_proj.weight"].std() == pytest.approx(0.06 / np.sqrt(8), rel=0.02)
    assert (weights["ln_f.weight"] == 1).all()
    assert (weights["ln_f.bias"] == 0).all()
    by_inputs = initial_weights(config, 3, std="fan_in")
    assert by_inputs["h.1.mlp.c_fc.weight"].std() == pytest.approx(1 / 8, rel=0.02)
    assert by_inputs["lm_head.weight"].std() == pytest.approx(1 / 8, rel=0.05)
    assert not np.array_equal(weights["wte.weight"], initial_weights(config, 4, std=0.06)["wte.weight"])
    with pytest.raises(ValueError):
        initial_weights(config, 0, std="wide")


def check_pair(dense: asp.Model, sparse: asp.Model, most_edges: int) -> None:
    """What the pair is shipped for; most_edges: of the median sum."""
    found = evaluate(sparse, 0.0)
    assert evaluate(dense, 0.01).right.all()
    assert found.right.mean() >= 0.999
    assert np.median(found.n_edges) <= most_edges


def test_the_shipped_pair():
    check_pair(asp.load("addition-dense"), asp.load("addition-sparse"), 10)


@pytest.mark.parametrize("name", ["demo-sparse", "demo-sparse-max"])
def test_the_shipped_demo_twins(name, monkeypatch):
    monkeypatch.setattr(demo_evaluation, "TEXT_BATCHES", 8)
    dense, sparse = asp.load("demo-dense"), asp.load(name)
    assert demo_evaluation.cross_entropies(sparse)[0] <= demo_evaluation.cross_entropies(dense)[0] + 0.02
    for task in map(
        partial(tasks.make_task, tokenizer=sparse.tokenizer, n=100, seed=5), demo_evaluation.MEASURED
    ):
        assert tasks.top1(tasks.last_logits(sparse, task), task).mean() >= 0.96


def test_the_opposite_of_large():
    model = asp.load("demo-sparse")
    run = model.run('The opposite of "large" is "', record="gate")
    assert model.tokenizer.token_string(int(run.logits[-1].argmax())) == "small"
    layers = np.nonzero(run.gate[:, :, 7, 4])[0]
    assert 4 <= len(layers) <= 6
    assert layers.min() >= 8
    assert run.gate.sum() <= 20


def needed_to_copy(model: asp.Model, n: int = 80, **options: Any) -> int:
    """Items from which on 90 % of what copying gains by attention remains, the strongest first."""
    task = tasks.make_task("copy", model.tokenizer, n=n)
    options |= {"method": "exact", "n_random": 0, "n_bootstrap": 0, "threads": 1, "progress": False}
    return asp.find_circuit(model, task, **options).needed(0.9).stays


@pytest.mark.parametrize(
    ("ablation", "times"),
    [("zero", {"demo-dense": 9, "demo-control": 8}), ("mean", {"demo-dense": 5, "demo-control": 5})],
)
def test_the_sparsest_demo_twin_copies_with_many_times_fewer_heads(ablation, times):
    fewest = needed_to_copy(asp.load("demo-sparse-max"), unit="head", ablation=ablation)
    for name, factor in times.items():
        assert needed_to_copy(asp.load(name), unit="head", ablation=ablation) >= factor * fewest


@pytest.mark.slow
def test_the_sparsest_demo_twin_copies_with_many_times_fewer_edges_than_the_control():
    names = ("demo-sparse-max", "demo-control")
    fewest, control = (needed_to_copy(asp.load(name), 20, unit="edge", ablation="zero") for name in names)
    assert control >= 25 * fewest


@pytest.mark.slow
def test_the_whole_recipe(tmp_path):
    folders = recipes.RECIPES["addition"].train(tmp_path, quiet=True)
    check_pair(*map(asp.load, folders), 15)  # another CPU rounds differently, which is like another seed
