"""What a sweep goes over: patterns, names, steps of training, and names that folders and readers take."""

from __future__ import annotations

import os

import pytest
from circuit_cases import case

import attnsparse as asp
from attnsparse.sweeps.sources import folder_name, model_sources, task_sources

CASE = case("gated", (6, 6, 6, 6))


def seen(models):
    return [(source.name, source.step) for source in model_sources(models)]


def test_a_pattern_means_all_models_that_it_matches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in (900, 1000, 20):
        CASE.model("float32").save(tmp_path / "run" / f"checkpoint-{step}")
    for name in (
        "step-000007.checkpoint.safetensors",
        "history.csv",
        "a.circuit.safetensors",
        "optimizer.pt",
    ):
        (tmp_path / "run" / name).write_bytes(b"")
    (tmp_path / "run" / "logs").mkdir()
    (tmp_path / "run" / "logs" / "events.txt").write_text("")
    expected = [
        ("step-000007", 7), ("checkpoint-20", 20), ("checkpoint-900", 900), ("checkpoint-1000", 1000)
    ]  # fmt: skip
    assert seen("run/*") == seen(tmp_path / "run" / "*") == seen([str(tmp_path / "run" / "*")]) == expected
    assert seen("run/checkpoint-900/") == [("checkpoint-900", 900)]
    with pytest.raises(FileNotFoundError, match="no model matches this pattern") as caught:
        model_sources("run/none*")
    assert caught.value.filename == "run/none*"


def test_names_are_as_long_as_needed(tmp_path):
    for place in ("a/final", "b/final", "c/100", "c/200"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "d.safetensors").write_bytes(b"")
    at = [str(tmp_path / place) for place in ("a/final", "b/final", "c/100", "c/200", "d.safetensors")]
    assert seen(at) == [("a/final", None), ("b/final", None), ("c/100", 100), ("c/200", 200), ("d", None)]
    assert seen(["gpt2", "owner/gpt2", "demo-sparse"]) == [
        ("gpt2", None), ("owner/gpt2", None), ("demo-sparse", None)
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"models must have different names, got '.*' twice"):
        model_sources([at[0], at[0]])


def test_mappings_give_names_and_steps(tmp_path):
    model = CASE.model("float32")
    assert seen({0: "a", 500: "b"}) == [("step-0", 0), ("step-500", 500)]
    assert seen({"first": "a", "iter_30": model}) == [("first", None), ("iter_30", 30)]
    model.name = "mine"
    assert seen(model) == [("mine", None)]
    model.name = ""
    with pytest.raises(ValueError, match="a model has no name"):
        model_sources([model])


@pytest.mark.parametrize(
    "name", ["", "100", "2024-01-01", "1e", "a\nb", "a\u202eb", "__HIVE_DEFAULT_PARTITION__", "x" * 200, 3.0]
)
def test_names_that_are_refused(name):
    if name == "1e":
        assert seen({name: "a"}) == [("1e", None)]
        return
    with pytest.raises((ValueError, TypeError), match="name"):
        model_sources({name: "a"})
    with pytest.raises((ValueError, TypeError), match="name"):
        task_sources({name: "copy"}, 8)


def test_long_and_strange_names_fit_a_folder(tmp_path):
    for name in ("x" * 200, "é" * 100, "a b=c%d", "\udcff-model"):
        path = tmp_path / os.fsencode(name).decode("utf-8", "surrogateescape")
        path.mkdir()
        [(found, _)] = seen([path])
        assert len(folder_name(found)) <= 120
        assert "/" not in folder_name(found)
        assert "=" not in folder_name(found)
        found.encode()  # UTF-8 can hold it
    assert seen([str(tmp_path / ("x" * 200))]) != seen([str(tmp_path / ("x" * 199))])


def test_tasks(tmp_path):
    model = asp.load("demo-sparse")
    copy = asp.tasks.make_task("copy", model.tokenizer, n=6, seed=3)
    asp.tasks.write_prompts_json(copy, tmp_path / "mine.json")
    copy.to_pandas().to_csv(tmp_path / "table.csv", index=False)
    sources = task_sources(["copy", str(tmp_path / "mine.json"), tmp_path / "table.csv"], 6)
    assert [source.name for source in sources] == ["copy", "mine", "table"]
    for source in sources:
        made = source.make(model.tokenizer, 3)
        assert made.prompt_digests == copy.prompt_digests
    [one] = task_sources(CASE.task, 6)
    assert (one.name, one.needs_tokenizer, one.make(None, 9)) == ("random", False, CASE.task)
    [own] = task_sources({"own": lambda tokens, seed: (tokens, seed)}, 6)
    assert (own.name, own.make(1, 2)) == ("own", (1, 2))


@pytest.mark.parametrize(
    ("tasks", "error", "text"),
    [
        ("nothing", ValueError, "'nothing' is none of 'copy', .*no file of prompts"),
        (["copy", "copy"], ValueError, "tasks must have different names, got 'copy' twice"),
        ([], ValueError, "tasks must not be empty"),
        ([3], TypeError, "tasks must be names, Task, files of prompts or functions"),
        (3, TypeError, "tasks must be tasks, names or functions, got int"),
        ([lambda tokens, seed: None], ValueError, "a function that makes a task needs a name"),
    ],
)
def test_wrong_tasks(tasks, error, text):
    with pytest.raises(error, match=text):
        task_sources(tasks, 6)


@pytest.mark.parametrize(
    ("models", "error", "text"),
    [
        ([], ValueError, "models must not be empty"),
        ([3], TypeError, "models must be Model, names or paths, got int"),
        (3, TypeError, "models must be models, names or paths, got int"),
        ({"a": 3}, TypeError, "models\\['a'\\] must be a Model, a name or a path, got int"),
    ],
)
def test_wrong_models(models, error, text):
    with pytest.raises(error, match=text):
        model_sources(models)
