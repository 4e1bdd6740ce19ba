"""What fuzzing found and what it begins from are read again, with a few hundred fresh changes (R1).

The long form is `python -m tests.fuzz.run`.
"""

from __future__ import annotations

from random import Random

import pytest
from fuzz import harnesses
from fuzz.corpus import FOLDER, kept
from fuzz.harnesses import HARNESSES, MAX_BYTES, Harness, attempt

N_CHANGES = {"model": 40, "transcoders": 100, "circuit": 100}  # of the slow ones; 250 of the others
each_harness = pytest.mark.parametrize("name", HARNESSES)


@each_harness
def test_seeds_are_read(name):
    for data in HARNESSES[name].seeds():
        assert attempt(HARNESSES[name], data)[0]


@each_harness
def test_kept_inputs_end_well(name):
    inputs = kept(name)
    assert len(inputs) >= 20
    outcomes = [attempt(HARNESSES[name], data)[0] for data in inputs]
    assert not all(outcomes)


@each_harness
def test_fresh_changes_end_well(name):
    harness, rng = HARNESSES[name], Random(name)
    seeds = harness.seeds()
    outcomes = []
    for _ in range(N_CHANGES.get(name, 250)):
        data = harness.mutate(rng.choice(seeds), rng)
        if len(data) <= MAX_BYTES:
            outcomes.append(attempt(harness, data)[0])
    assert any(outcomes)
    assert not all(outcomes)


def test_the_corpus_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 200_000


def test_a_failure_is_seen(monkeypatch):
    """Every way of going wrong that is not one of the named errors comes out of `attempt`."""

    def failing(data: bytes) -> None:
        raise {b"k": KeyError("a"), b"o": OSError(5, "b"), b"m": MemoryError()}[data]

    harness = Harness("failing", list, lambda data, rng: data, failing)
    for data, kind in ((b"k", KeyError), (b"o", OSError), (b"m", MemoryError)):
        with pytest.raises(kind):
            attempt(harness, data)
    monkeypatch.setattr(harnesses, "MAX_SECONDS", 0.01)
    slow = harness._replace(read=lambda data: sum(range(3_000_000)))
    with pytest.raises(AssertionError, match=r"\d s"):
        attempt(slow, b"")
