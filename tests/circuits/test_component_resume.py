"""Exact scores and ACDC that are stopped and continue from a file: the same bits as without the stop."""

from collections.abc import Callable

import numpy as np
import pytest
from circuit_cases import case

from attnsparse import FormatError
from attnsparse.circuits import component_acdc, component_scores, pieces, resumed
from attnsparse.circuits.components import search as component_search
from attnsparse.circuits.search_file import SCHEMA
from attnsparse.io.bundle import Bundle, write_bundle
from attnsparse.tasks import CustomMetric

LENGTHS = (4, 3, 6)


class Counted:
    """A metric that raises what it is told to at one of its calls."""

    def __init__(self, stop_at: int = 0, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.n_calls, self.stop_at, self.error = 0, stop_at, error

    def __call__(self, logits: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        self.n_calls += 1
        if self.n_calls == self.stop_at:
            raise self.error
        return logits[:, 1] - logits[:, 2]


def exact(counted: Counted, resume=None, name: str = "gated", **options) -> bytes:
    one = case(name, LENGTHS)
    metric = CustomMetric(counted, name="counted")
    found = component_scores(one.model(), one.task, method="exact", metric=metric, resume=resume, **options)
    return found.scores.tobytes()


def acdc(counted: Counted, resume=None, name: str = "gated", threshold: float = 0.02, **options) -> bytes:
    one = case(name, LENGTHS)
    metric = CustomMetric(counted, name="counted")
    found = component_acdc(
        one.model(), one.task, threshold, prune=False, metric=metric, resume=resume, **options
    )
    return found.given.tobytes() + found.scores.tobytes()


def smallest(measure: Callable[..., bytes]) -> int:
    """Bytes that are enough for one prompt at a time."""
    with pytest.raises(MemoryError, match="one prompt at a time") as caught:
        measure(Counted(), max_bytes=1000)
    number, unit = str(caught.value).split("needs ")[1].split()[:2]
    return int(1.002 * float(number) * {"kB": 1e3, "MB": 1e6}[unit])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Ten component edges at a time."""
    monkeypatch.setattr(pieces, "ROWS_AT_ONCE", 10)
    monkeypatch.setattr(pieces, "WHOLE_ROWS", 10)
    monkeypatch.setattr(pieces, "WHOLE_VALUES", 1)


measure = pytest.mark.parametrize("measure", [exact, acdc])
Measure = Callable[..., bytes]


@measure
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("options", [{}, {"ablation": "mean", "gate": "held"}])
def test_the_same_bits_after_every_stop(measure: Measure, error, options, tmp_path):
    whole, n_stops, found = Counted(), 0, None
    expected, path = measure(whole, **options), tmp_path / "a"
    while found is None:
        try:
            found = measure(Counted(8 if measure is exact else 5, error), resume=path, **options)
        except error:
            n_stops += 1
    assert found == expected
    assert n_stops > 1
    ended = Counted()
    assert measure(ended, resume=path, **options) == expected
    assert ended.n_calls <= 1  # the metric of the prompts as they are


@measure
def test_every_state_that_is_kept_leads_to_the_same_bits(measure: Measure, tmp_path, monkeypatch):
    states, write = [], component_search.SearchFile.write
    expected = measure(Counted())
    for module in (component_search, resumed):
        monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(
        component_search.SearchFile, "write", lambda self, state: states.append(state) or write(self, state)
    )
    assert measure(Counted(), resume=tmp_path / "a") == expected
    for module in (component_search, resumed):
        monkeypatch.setattr(module, "SAVE_SECONDS", 1e9)
    monkeypatch.setattr(component_search.SearchFile, "write", write)
    path = str(tmp_path / "a.search.safetensors")
    with Bundle(path, SCHEMA) as bundle:
        fields = bundle.fields
    assert len(states) > 5
    for state in states[:: max(1, len(states) // 10)]:
        write_bundle(path, SCHEMA, fields, {"state": state})
        assert measure(Counted(), resume=path) == expected


def test_acdc_continues_in_blocks_of_another_size(tmp_path):
    expected = acdc(Counted())
    with pytest.raises(KeyboardInterrupt):
        acdc(Counted(8), tmp_path / "a")
    assert acdc(Counted(), tmp_path / "a", max_bytes=smallest(acdc)) == expected


def test_exact_scores_need_the_same_memory(tmp_path):
    exact(Counted(), tmp_path / "a")
    with pytest.raises(FormatError, match="max_bytes"):
        exact(Counted(), tmp_path / "a", max_bytes=smallest(exact))


@measure
@pytest.mark.parametrize(
    "options", [{"name": "dense"}, {"ablation": "zero"}, {"gate": "held"}, {"ablation": "mean"}]
)
def test_another_question(measure: Measure, options, tmp_path):
    measure(Counted(), resume=tmp_path / "a")
    with pytest.raises(FormatError, match="of another question") as caught:
        measure(Counted(), resume=tmp_path / "a", **options)
    assert caught.value.code == "question"


def test_another_threshold_method_and_reference(tmp_path):
    acdc(Counted(), tmp_path / "a")
    exact(Counted(), tmp_path / "b", ablation="mean")
    with pytest.raises(FormatError, match="threshold"):
        acdc(Counted(), tmp_path / "a", threshold=0.03)
    with pytest.raises(FormatError, match="another question"):
        exact(Counted(), tmp_path / "a")
    with pytest.raises(FormatError, match="reference"):
        exact(Counted(), tmp_path / "b", ablation="mean", reference=case("gated", (5, 7)).task)


@measure
def test_a_state_that_cannot_be(measure: Measure, tmp_path):
    measure(Counted(), resume=tmp_path / "a")
    path = str(tmp_path / "a.search.safetensors")
    with Bundle(path, SCHEMA) as bundle:
        fields, state = bundle.fields, bundle.read_all()["state"].copy()
    for place, value in ((0, -1), (0, 10**9), (1, 0 if measure is acdc else -1)):
        wrong = state.copy()
        wrong[place] = value
        write_bundle(path, SCHEMA, fields, {"state": wrong})
        with pytest.raises(ValueError):
            measure(Counted(), resume=path)
    write_bundle(path, SCHEMA, fields, {"state": state[:-1]})
    with pytest.raises(FormatError, match="must have"):
        measure(Counted(), resume=path)


def test_a_mask_that_cannot_be(tmp_path):
    acdc(Counted(), tmp_path / "a")
    path = str(tmp_path / "a.search.safetensors")
    with Bundle(path, SCHEMA) as bundle:
        fields, state = bundle.fields, bundle.read_all()["state"].copy()
    state[-3:] = 2
    write_bundle(path, SCHEMA, fields, {"state": state})
    with pytest.raises(ValueError, match="no state that a search can have"):
        acdc(Counted(), path)


def test_all_scores_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "SUMMED_PROMPTS", 1)
    one = case("dense", LENGTHS)
    expected = component_scores(one.model(), one.task).scores
    for _ in range(2):
        found = component_scores(one.model(), one.task, resume=tmp_path / "a").scores
        np.testing.assert_array_equal(found, expected)


@measure
def test_a_file_that_cannot_be_written(measure: Measure, tmp_path):
    with pytest.raises(OSError):
        measure(Counted(), resume=tmp_path / "none" / "a")
