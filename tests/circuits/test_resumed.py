"""Sweeps that continue from a file: the same bits with and without a stop."""

import contextlib

import numpy as np
import oracle_component_graph as og
import pytest
from circuit_cases import TOLERANCE, case, error

from attnsparse import FormatError
from attnsparse.circuits import (
    attribution,
    component_circuit,
    component_scores,
    component_values,
    entry_effects,
    entry_work,
    find_component_circuit,
    keep_only,
    knock_out,
    leave_one_out,
    pieces,
)
from attnsparse.circuits.effects import candidates
from attnsparse.io.bundle import Bundle
from attnsparse.tasks import CustomMetric

LENGTHS = (6, 6, 6)
SHARES = (0.05, 0.2, 0.6, 1.0)


def masks_of(one, n=5):
    rng, real = np.random.default_rng(0), og.real_edges(one.config)
    return real & (rng.random((n, *real.shape)) < 0.4)


def heads(ablation):
    return lambda one, model, **o: knock_out(
        model, one.task, candidates(model, one.task, "head"), ablation, **o
    )


def edges(ablation):
    return lambda one, model, **o: knock_out(
        model, one.task, candidates(model, one.task, "edge"), ablation, **o
    )


def kept(ablation, unit):
    def call(one, model, **options):
        items = candidates(model, one.task, unit)[::-1]
        return keep_only(
            model, one.task, items, range(0, len(items) + 1, 1 if unit == "head" else 3), ablation, **options
        )

    return call


def dropped(ablation, unit):
    def call(one, model, **options):
        items = candidates(model, one.task, unit)[: None if unit == "head" else 12]
        return leave_one_out(model, one.task, items, ablation, **options)

    return call


def circuits(**fixed):
    return lambda one, model, **o: component_values(model, one.task, masks_of(one), **fixed, **o)


def curve(one, model, **options):
    circuit = component_circuit(component_scores(model, one.task), model)
    found = circuit.evaluate(model, one.task, shares=SHARES, n_random=2, **options)
    return np.concatenate([found.values, found.random_values.reshape(-1, len(one.task))])


CALLS = {
    "knock_out": heads("zero"),
    "knock_out, mean": heads("mean"),
    "knock_out of edges": edges("counterfactual"),
    "keep_only": kept("zero", "head"),
    "keep_only of edges": kept("counterfactual", "edge"),
    "leave_one_out": dropped("mean", "head"),
    "leave_one_out of edges": dropped("zero", "edge"),
    "component_values": circuits(),
    "component_values, mean": circuits(ablation="mean"),
    "evaluate": curve,
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Two rows or one prompt at a time."""
    monkeypatch.setattr(pieces, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(pieces, "VALUES_AT_ONCE", 6)
    monkeypatch.setattr(pieces, "WHOLE_ROWS", 2)
    monkeypatch.setattr(pieces, "WHOLE_VALUES", 1)
    monkeypatch.setattr(pieces, "SUMMED_PROMPTS", 1)


def n_kept(path):
    """Pieces, and those that are kept."""
    with Bundle(path.with_suffix(".search.safetensors"), resumed_schema()) as bundle:
        n_pieces, n_done = bundle.read_all()["state"][:2].tolist()
    return n_pieces, n_done


def resumed_schema():
    from attnsparse.circuits.search_file import SCHEMA

    return SCHEMA


@each_call
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_file_changes_no_bit(call, dtype, tmp_path):
    one = case("gated", LENGTHS)
    model = one.model(dtype)
    expected = call(one, model)
    found = call(one, model, resume=tmp_path / "kept")
    np.testing.assert_array_equal(found, expected)
    n_pieces, n_done = n_kept(tmp_path / "kept")
    assert n_done == n_pieces > 1
    np.testing.assert_array_equal(call(one, model, resume=tmp_path / "kept"), found)


@each_call
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_parts_are_as_the_whole(call, dtype, monkeypatch):
    one = case("gated", LENGTHS)
    model = one.model(dtype)
    found = call(one, model)
    for name in ("ROWS_AT_ONCE", "VALUES_AT_ONCE", "WHOLE_ROWS"):
        monkeypatch.setattr(pieces, name, 1000)
    assert error(found, call(one, model)) < TOLERANCE[dtype]


@each_call
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_stopped_sweep_continues(call, error, tmp_path):
    one = case("gated", LENGTHS)
    model, n_left = one.model("float32"), [12]

    def values(logits, prompts):
        n_left[0] -= len(prompts)
        if n_left[0] < 0:
            raise error
        return logits[:, 3] - logits[:, 1]

    def gradient(logits, prompts):
        found = np.zeros_like(logits)
        found[:, 3], found[:, 1] = 1, -1
        return found

    metric = CustomMetric(values, gradient)
    with pytest.raises(error):
        call(one, model, metric=metric, resume=tmp_path / "kept")
    n_pieces, begun = n_kept(tmp_path / "kept")
    assert 0 < begun < n_pieces
    n_left[0] = 10**9
    expected = call(one, model, metric=metric, resume=tmp_path / "other")
    used, n_left[0] = 10**9 - n_left[0], 10**9
    np.testing.assert_array_equal(call(one, model, metric=metric, resume=tmp_path / "kept"), expected)
    assert 10**9 - n_left[0] < used  # what was there is not asked again


def test_nothing_is_kept_of_a_sweep_that_has_not_begun(tmp_path):
    one = case("gated", LENGTHS)
    with pytest.raises(ValueError, match="ablation"):
        knock_out(one.model(), one.task, [[0, 0]], "other", resume=tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda one, model, **o: knock_out(model, one.task, [[0, 1]], **o), "items"),
        (lambda one, model, **o: knock_out(model, one.task, [[0, 0]], "mean", **o), "ablation"),
        (lambda one, model, **o: knock_out(model, one.task, [[0, 0]], metric="kl", **o), "metric"),
        (lambda one, model, **o: knock_out(model, one.task.ranking, [[0, 0]], **o), "task_digest"),
        (lambda one, model, **o: knock_out(one.model("float32"), one.task, [[0, 0]], **o), "dtype"),
        (lambda one, model, **o: keep_only(model, one.task, [[0, 0]], [1], **o), "method"),
        (circuits(), "method"),
    ],
)
def test_another_question_is_refused(change, field, tmp_path):
    one = case("gated", LENGTHS)
    model = one.model()
    knock_out(model, one.task, [[0, 0]], resume=tmp_path / "kept")
    with pytest.raises(FormatError) as caught:
        change(one, model, resume=tmp_path / "kept")
    assert caught.value.code == "question"
    assert field in str(caught.value) or caught.value.field in ("items", "sizes", "masks", "model_digest")


@pytest.mark.parametrize(
    "state", [[], [1, 1], [1, 2, 0, 0, 0], [2, 1, 0, 0, 0], [1, -1, 0, 0, 0], [1, 1, 0, 0]]
)
def test_a_state_that_makes_no_sense(state, tmp_path):
    from attnsparse.circuits.search_file import SearchFile

    one = case("gated", LENGTHS)
    model = one.model()
    knock_out(model, one.task, [[0, 0]], resume=tmp_path / "kept")
    with Bundle(tmp_path / "kept.search.safetensors", resumed_schema()) as bundle:
        asked = bundle.fields
    SearchFile(tmp_path / "kept", asked).write(np.array(state, np.int64))
    with pytest.raises(FormatError, match="'state' must have 5 numbers, the first 1") as caught:
        knock_out(model, one.task, [[0, 0]], resume=tmp_path / "kept")
    assert caught.value.code == "value"


def test_one_call_of_both_halves_keeps_its_evaluation(tmp_path):
    one = case("gated", (5, 6, 7, 4))
    expected = find_component_circuit(one.model(), one.task, method="eap", shares=SHARES).curve
    for _ in range(2):
        found = find_component_circuit(
            one.model(), one.task, method="eap", shares=SHARES, resume=tmp_path / "kept"
        ).curve
        np.testing.assert_array_equal(found.values, expected.values)
        np.testing.assert_array_equal(found.random_values, expected.random_values)
    n_pieces, n_done = n_kept(tmp_path / "kept")
    assert n_done == n_pieces


# --------------------------------------------------------------------- calls that write into arrays


class Stopping:
    """A metric that raises what it is told to at one of its calls."""

    def __init__(self, stop_at=0, error=KeyboardInterrupt):
        self.n_calls, self.stop_at, self.error = 0, stop_at, error

    def values(self, logits, prompts):
        self.n_calls += 1
        if self.n_calls == self.stop_at:
            raise self.error
        return logits[:, 3] - logits[:, 1]

    def gradient(self, logits, prompts):
        found = np.zeros_like(logits)
        found[:, 3], found[:, 1] = 1, -1
        return found

    def metric(self):
        return CustomMetric(self.values, self.gradient, name="stopping")

    @contextlib.contextmanager
    def bars(self, progress):
        """In place of `stage_bars`: raises when it is told something for so many times."""

        def tell(stage, done, total):
            self.values(np.zeros((1, 4)), None)

        yield tell


def attributed(unit, **fixed):
    def call(one, model, stopping, **options):
        metric = stopping.metric()
        return attribution(model, one.task, unit, metric=metric, **fixed, **options).tobytes()

    return call


def swept(ablation):
    def call(one, model, stopping, **options):
        places = {"key": [1, 2, 1], "query": [4, 5, 4]}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(entry_work, "stage_bars", stopping.bars)
            found = entry_effects({"a": model, "b": model}, one.task, **places, ablation=ablation, **options)
        tables = found.to_pandas(), found.summary(n_bootstrap=0)
        return b"".join(table.select_dtypes("number").to_numpy(float).tobytes() for table in tables)

    return call


IN_PLACE = {
    "attribution": attributed("head"),
    "attribution of positions": attributed("head_position", ablation="counterfactual", steps=3),
    "attribution of gates": attributed("edge", path="gate"),
    "entry_effects": swept("zero"),
    "entry_effects, mean": swept("mean"),
}
each_in_place = pytest.mark.parametrize("call", IN_PLACE.values(), ids=IN_PLACE)


@each_in_place
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_the_same_bits_after_every_stop(call, error, tmp_path):
    one = case("gated", LENGTHS)
    model, found, n_stops, whole = one.model("float32"), None, 0, Stopping()
    expected = call(one, model, whole)
    assert whole.n_calls > 2
    while found is None and n_stops < 20:
        try:
            stopping = Stopping(2 * whole.n_calls // 3, error)
            found = call(one, model, stopping, resume=tmp_path / "kept")
        except error:
            n_stops += 1
    assert found == expected
    assert n_stops > 0
    ended = Stopping()
    assert call(one, model, ended, resume=tmp_path / "kept") == expected
    assert ended.n_calls < whole.n_calls / 2


@each_in_place
def test_calls_into_arrays_refuse_what_is_of_another_question(call, tmp_path):
    one = case("gated", LENGTHS)
    call(one, one.model(), Stopping(), resume=tmp_path / "kept")
    with pytest.raises(FormatError) as caught:
        call(one, one.model("float32"), Stopping(), resume=tmp_path / "kept")
    assert caught.value.code == "question"


@each_in_place
@pytest.mark.parametrize(
    "change", [lambda s: s[:-1], lambda s: np.r_[-1, s[1:]], lambda s: np.r_[s[0], 99, s[2:]]]
)
def test_calls_into_arrays_refuse_a_state_that_makes_no_sense(call, change, tmp_path):
    from attnsparse.circuits.search_file import SearchFile

    one = case("gated", LENGTHS)
    model = one.model()
    call(one, model, Stopping(), resume=tmp_path / "kept")
    with Bundle(tmp_path / "kept.search.safetensors", resumed_schema()) as bundle:
        asked, state = bundle.fields, bundle.read_all()["state"]
    SearchFile(tmp_path / "kept", asked).write(change(state))
    with pytest.raises(FormatError, match="'state' must have") as caught:
        call(one, model, Stopping(), resume=tmp_path / "kept")
    assert caught.value.code == "value"


def test_sums_with_other_memory_are_refused(tmp_path):
    one = case("gated", LENGTHS)
    model, call = one.model(), IN_PLACE["attribution"]
    call(one, model, Stopping(), resume=tmp_path / "kept")
    with pytest.raises(FormatError, match="max_bytes"):
        call(one, model, Stopping(), resume=tmp_path / "kept", max_bytes=10**9)
