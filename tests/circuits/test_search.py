"""The search in the core: its NumPy twin, interrupted, continued, kept in a file, called from Python."""

from __future__ import annotations

import functools
import gc

import numpy as np
import oracle_search
import pytest
from circuit_toy import Toy, heads, toy_task

import attnsparse as asp
from attnsparse import _core64, tasks
from attnsparse.circuits import choices, find
from attnsparse.circuits.circuit import ARRAYS, Circuit
from attnsparse.circuits.search_file import SCHEMA
from attnsparse.io.bundle import Bundle, write_bundle

OPTIONS = {"steps": 3, "greedy_step": 0.3, "n_bootstrap": 40, "n_random": 3, "confidence": 0.8, "seed": 5}


@functools.cache
def addition() -> tuple[asp.Model, tasks.Task]:
    model = asp.load("addition-sparse")
    return model, tasks.make_task("addition", model.tokenizer, n=14)


def bits(found: Circuit) -> dict[str, bytes]:
    return {name: getattr(found, name).tobytes() for name in ARRAYS}


# --- against the twin


@pytest.mark.parametrize("unit", choices.UNITS)
@pytest.mark.parametrize("method", choices.METHODS)
@pytest.mark.parametrize(
    ("ablation", "normalize", "rank_by", "metric"),
    [
        ("zero", "mib", "absolute", None),
        ("mean", "ratio", "signed", "prob_diff"),
        ("counterfactual", "none", "absolute", "log_prob"),
        ("zero", "mib", "signed", "kl"),
    ],
)
def test_the_same_bits_as_in_numpy(unit, method, ablation, normalize, rank_by, metric):
    if method == "attribution" and metric == "kl":
        metric = "logit_diff_max"
    model, task = addition()
    asked = {"unit": unit, "method": method, "ablation": ablation, "normalize": normalize, "metric": metric}
    options = OPTIONS | {"rank_by": rank_by}
    if method == "greedy" and unit == "head_position":
        options["greedy_step"] = 0.8
    found = asp.find_circuit(model, task, **asked, **options)
    wanted = oracle_search.find(model, task, **asked, **options)
    for name, array in wanted.items():
        np.testing.assert_array_equal(getattr(found, name), array, strict=True, err_msg=name)


def test_the_twin_can_differ():
    model, task = addition()
    wanted = oracle_search.find(model, task, unit="head", method="exact", **OPTIONS, rank_by="signed")
    found = asp.find_circuit(model, task, rank_by="absolute", **OPTIONS)
    assert (found.items != wanted["items"]).any()


# --- interrupted and continued


class Counted:
    """A metric that raises what it is told to at one of its calls."""

    def __init__(self, stop_at: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.n_calls, self.stop_at, self.error = 0, stop_at, error

    def values(self, logits: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        self.n_calls += 1
        if self.n_calls == self.stop_at:
            raise self.error
        return logits[:, -2] - logits[:, -1]

    def gradient(self, logits: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        self.n_calls += 1
        if self.n_calls == self.stop_at:
            raise self.error
        return np.tile(np.eye(logits.shape[1])[-2] - np.eye(logits.shape[1])[-1], (len(logits), 1))

    @property
    def metric(self) -> tasks.CustomMetric:
        return tasks.CustomMetric(self.values, self.gradient, name="counted")


WEIGHTS = heads(*np.random.default_rng(3).normal(size=12))


@functools.cache
def model() -> asp.Model:
    return Toy(WEIGHTS, spread=0.2).model()


def search(counted: Counted, method: str, **options) -> Circuit:
    options = {"n_random": 2, "n_bootstrap": 20, "steps": 2, "method": method, **options}
    return asp.find_circuit(model(), toy_task(6), metric=counted.metric, **options)


@pytest.mark.parametrize("method", choices.METHODS)
def test_interrupted_anywhere_and_continued(tmp_path, method):
    """The bits of a search that nothing interrupted, from the step that was interrupted on."""
    whole = Counted(0)
    expected, path = bits(search(whole, method)), tmp_path / "a"
    assert whole.n_calls > 5
    for stop_at in range(1, whole.n_calls + 1):
        with pytest.raises(KeyboardInterrupt):
            search(Counted(stop_at), method, resume=path)
        rest = Counted(0)
        assert bits(search(rest, method, resume=path)) == expected
        assert whole.n_calls - stop_at < rest.n_calls <= whole.n_calls
        assert stop_at < whole.n_calls - 2 or rest.n_calls < 10  # what is known is not computed again
        (tmp_path / "a.search.safetensors").unlink()


def test_interrupted_many_times(tmp_path):
    expected = bits(search(Counted(0), "greedy", greedy_step=0.2))
    n_interrupts, found = 0, None
    while found is None and n_interrupts < 100:
        try:
            found = search(Counted(4), "greedy", greedy_step=0.2, resume=tmp_path / "a")
        except KeyboardInterrupt:
            n_interrupts += 1
    assert n_interrupts > 8
    assert bits(found) == expected


def test_kept_at_every_step(monkeypatch, tmp_path):
    """What a kill leaves is the state after some step, and every one of them can be continued."""
    expected, states = bits(search(Counted(0), "greedy")), []
    write = find.SearchFile.write
    monkeypatch.setattr(find, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(
        find.SearchFile, "write", lambda self, state: states.append(state.copy()) or write(self, state)
    )
    search(Counted(0), "greedy", resume=tmp_path / "a")
    monkeypatch.setattr(find, "SAVE_SECONDS", 1e9)
    path = str(tmp_path / "a.search.safetensors")
    with Bundle(path, SCHEMA) as bundle:
        fields = bundle.fields
    assert len(states) > 15
    for state in states[:]:
        write_bundle(path, SCHEMA, fields, {"state": state})
        assert bits(search(Counted(0), "greedy", resume=path)) == expected


def test_a_search_that_has_ended_gives_its_circuit_at_once(tmp_path):
    path, second = tmp_path / "a.safetensors", Counted(1)
    first = search(Counted(0), "exact", resume=path)
    found = search(second, "exact", resume=path)
    assert second.n_calls == 0
    assert bits(found) == bits(first)
    assert found.options == first.options
    assert [item.name for item in tmp_path.iterdir()] == ["a.safetensors"]


def test_without_memory_what_is_known_is_kept(tmp_path):
    expected = bits(search(Counted(0), "greedy"))
    with pytest.raises(MemoryError):
        search(Counted(12, MemoryError), "greedy", resume=tmp_path / "a")
    rest = Counted(0)
    assert bits(search(rest, "greedy", resume=tmp_path / "a")) == expected


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError):
        search(Counted(12, ZeroDivisionError), "greedy", resume=tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("method", {"method": "ig"}),
        ("seed", {"seed": 1}),
        ("sizes", {"sizes": [1, 2]}),
        ("ablation", {"ablation": "mean"}),
        ("n_random", {"n_random": 7}),
        ("unit", {"unit": "edge"}),
    ],
)
def test_another_question_is_refused(tmp_path, name, options):
    search(Counted(0), "exact", resume=tmp_path / "a")
    kept = (tmp_path / "a.search.safetensors").read_bytes()
    with pytest.raises(asp.FormatError, match=f"another question: {name} is .* there and .* here") as caught:
        search(Counted(0), **{"method": "exact", **options}, resume=tmp_path / "a")
    assert (caught.value.code, caught.value.field) == ("question", name)
    assert (tmp_path / "a.search.safetensors").read_bytes() == kept


def test_another_model_task_or_metric_is_refused(tmp_path):
    search(Counted(0), "exact", resume=tmp_path / "a")
    common = {"n_random": 2, "n_bootstrap": 20, "steps": 2, "resume": tmp_path / "a"}
    other = Toy(WEIGHTS, spread=0.3).model()
    for name, asked in {
        "model_digest": (other, toy_task(6), Counted(0).metric),
        "task_digest": (model(), toy_task(6, seed=1), Counted(0).metric),
        "metric": (model(), toy_task(6), None),
    }.items():
        with pytest.raises(asp.FormatError, match=f"another question: {name} is"):
            asp.find_circuit(*asked[:2], metric=asked[2], **common)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    search(Counted(0), "exact", resume=path)
    data = path.read_bytes()
    for at in range(0, len(data), 97):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(asp.FormatError):
            search(Counted(0), "exact", resume=path)
        path.write_bytes(data[:at])
        with pytest.raises(asp.FormatError):
            search(Counted(0), "exact", resume=path)


def test_states_of_no_search_are_refused(tmp_path):
    path = str(tmp_path / "a.safetensors")
    search(Counted(0), "greedy", resume=path)
    with Bundle(path, SCHEMA) as bundle:
        fields, state = bundle.fields, bundle.read_all()["state"]
    wrong = {f"stage {n}": np.where(np.arange(len(state)) == 0, n, state) for n in (-1, 7, 2**40)}
    wrong |= {"short": state[:-1], "long": np.append(state, 0), "empty": state[:0]}
    wrong |= {"order": np.where(np.arange(len(state)) == 9, 12, state), "ones": state | 1}
    for tensors in (
        *({"state": state} for state in wrong.values()),
        {"state": state.view(np.float64)},
        {"state": state[None]},
        {"other": state},
    ):
        write_bundle(path, SCHEMA, fields, tensors)
        with pytest.raises(asp.FormatError) as caught:
            search(Counted(0), "greedy", resume=path)
        assert caught.value.code == "value"


@pytest.mark.parametrize("resume", [3, "", b"a", ["a"]])
def test_wrong_paths(resume):
    with pytest.raises((TypeError, ValueError), match="resume"):
        search(Counted(0), "exact", resume=resume)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        search(Counted(0), "exact", resume=tmp_path / "none" / "a")


# --- what Python holds


def test_arrays_are_views_of_the_core():
    found = search(Counted(0), "exact")
    expected = bits(found)
    for name in ARRAYS:
        array = getattr(found, name)
        assert isinstance(array.base, _core64.Circuit)
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.setflags(write=True)
    arrays = {name: getattr(found, name) for name in ARRAYS}
    del found, array
    gc.collect()
    junk = [np.full(8192, 7.0) for _ in range(500)]
    assert {name: value.tobytes() for name, value in arrays.items()} == expected
    del junk


def test_nothing_is_left_over():
    search(Counted(0), "exact")
    gc.collect()
    first = _core64._debug_stats()
    for method in choices.METHODS:
        search(Counted(0), method)
        with pytest.raises(KeyboardInterrupt):
            search(Counted(5), method)
    gc.collect()
    last = _core64._debug_stats()
    assert (last["live_bytes"], last["live_blocks"]) == (first["live_bytes"], first["live_blocks"])


def test_weights_that_change_between_steps(monkeypatch, tmp_path):
    changing = Toy(WEIGHTS).model()

    def change(*_: object) -> None:
        changing.assign({"ln_f.bias": changing.parameter("ln_f.bias").copy()})

    monkeypatch.setattr(find.SearchFile, "write", change)
    monkeypatch.setattr(find, "SAVE_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="the weights changed during this search; begin again"):
        asp.find_circuit(changing, toy_task(6), resume=tmp_path / "a")


def test_a_metric_that_is_better_when_smaller():
    counted = Counted(0)
    smaller = tasks.CustomMetric(counted.values, counted.gradient, name="minus", smaller_is_better=True)
    for method in ("exact", "ig"):
        plain = search(Counted(0), method, rank_by="signed")
        found = asp.find_circuit(
            model(),
            toy_task(6),
            metric=smaller,
            method=method,
            rank_by="signed",
            n_random=0,
            n_bootstrap=0,
            steps=2,
        )
        np.testing.assert_allclose(found.scores, -plain.scores[::-1])
        assert found.labels == plain.labels[::-1]
