"""A step cut into parts: the same gradients in another order of sums, whoever computes which part."""

from __future__ import annotations

import dataclasses
import signal
import threading
from typing import Any

import numpy as np
import pytest
import tiny_training as tiny

import attnsparse as asp
from attnsparse._engine import core_for
from attnsparse.training.data import settled
from attnsparse.training.processes import Interrupts, nodes, share

KINDS: dict[str, dict[str, Any]] = {
    "training": {},
    "hard": {"constraint": "hard"},
    "no noise": {"gate_noise": False},
    "edges": {"constraint": "edges", "tau": None, "edges_per_token": 3.0},
}
DTYPES = ("float32", "float64")


class Steps:
    """A few steps of `ranks` trainers, each with a model of its own, that pass arrays to each other here."""

    def __init__(self, kind: str, dtype: str, ranks: int = 1, gated: bool = True) -> None:
        first = tiny.model(gated)
        weights = {name: array.astype(dtype) for name, array in first.parameters().items()}
        self.models = [asp.Model(first.config, weights, dtype=dtype) for _ in range(ranks)]
        self.options = tiny.options(10, **KINDS[kind]) if gated else asp.TrainingOptions(steps=10)
        core, data = core_for(dtype), tiny.data(batch=4)
        self.engines = [core.Trainer(model._core, rank, ranks) for rank, model in enumerate(self.models)]
        for engine in self.engines:
            engine.multiplier = self.options.first_multiplier()
        self.results: list[dict[str, Any]] = []
        self.batches = [
            [settled(data.batch(step, micro), np.dtype(dtype)) for micro in range(2)] for step in range(4)
        ]

    def arguments(self, step: int) -> dict[str, Any]:
        config = self.models[0].config
        return self.options.at(step, config.n_layer, config.gated, config.gate_bias)

    def whole(self, parts: int, threads: int = 1) -> Steps:
        for step, micro in enumerate(self.batches):
            arguments = self.arguments(step)
            self.results.append(self.engines[0].step(micro, parts=parts, threads=threads, **arguments))
        return self

    def shared(self, parts: int) -> Steps:
        for step, micro in enumerate(self.batches):
            self._shared_step(micro, parts, self.arguments(step))
        return self

    def _shared_step(self, micro: list[Any], parts: int, arguments: dict[str, Any]) -> None:
        n, found = len(self.engines), []
        for rank, engine in enumerate(self.engines):
            first, count = share(parts, rank, n)
            found.append(engine.gradients(micro, parts=parts, first=first, count=count, **arguments))
            assert [node[:2] for node in found[-1][1]] == nodes(first, count)
        sums = [node for _, own in found for node in own]
        table, slices = np.array([node[:2] for node in sums]), [self.engines[0].slice(r) for r in range(n)]
        squares = [
            engine.combine(table, np.concatenate([node[2][begin:end] for node in sums]))
            for engine, (begin, end, *_) in zip(self.engines, slices)
        ]
        weights = np.empty(slices[-1][1], sums[0][2].dtype)
        gathered = (np.concatenate([numbers for numbers, _ in found]), np.concatenate(squares), weights)
        results = [engine.update(gathered, **arguments) for engine in self.engines]
        for engine in self.engines:
            engine.adopt(weights)
        assert all(str(result) == str(results[0]) for result in results)
        self.results.append(results[0])

    def bits(self) -> tuple[bytes, bytes, str]:
        """Weights, moments and results; the weights of all models are the same."""
        weights = {b"".join(a.tobytes() for a in model.parameters().values()) for model in self.models}
        moments = [np.concatenate([e.slice_moments()[i] for e in self.engines]).tobytes() for i in (0, 1)]
        (only,) = weights
        return only, b"".join(moments), str(self.results)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_depend_on_the_number_of_parts_alone(kind, dtype):
    for parts in (1, 2, 3, 6, 8, 13):
        expected = Steps(kind, dtype).whole(parts).bits()
        assert Steps(kind, dtype).whole(parts, threads=3).bits() == expected
        for ranks in (1, 2, 3, 5):
            if ranks <= parts:
                assert Steps(kind, dtype, ranks).shared(parts).bits() == expected, (parts, ranks)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 2e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_change_rounding_and_nothing_else(kind, dtype, most):
    one, many = (Steps(kind, dtype).whole(parts) for parts in (1, 5))
    for result, other in zip(one.results, many.results):
        for name in result:
            assert other[name] == pytest.approx(result[name], rel=most, nan_ok=True), name
    for name, weights in one.models[0].parameters().items():
        np.testing.assert_allclose(many.models[0].parameter(name), weights, rtol=0, atol=100 * most)
    if dtype == "float32":
        assert one.bits() != many.bits()


def test_a_part_has_the_gradient_of_its_sequences():
    steps, parts = Steps("training", "float64", gated=False), 3
    micro, model = steps.batches[0], steps.models[0]
    sequences = [
        tuple(batch[i][batch[1][s] : batch[1][s + 1]] for i in (0, 2, 3))
        for batch in micro
        for s in range(len(batch[1]) - 1)
    ]
    total = sum(weights.sum() for *_, weights in sequences)
    engine, at = steps.engines[0], 0
    for part, count in enumerate((3, 3, 2)):  # of eight sequences
        _, ((_, _, found),) = engine.gradients(micro, parts=parts, first=part, count=1, **steps.arguments(0))
        found, chosen = found.copy(), sequences[at : at + count]
        engine.abandon()
        expected = dict.fromkeys(model.parameters(), 0.0)
        for tokens, targets, weights in chosen:
            if weights.any():
                batch = (tokens, np.array([0, len(tokens)], np.int64))
                gradients = model._core.gradients(*batch, (), True, None, targets, weights)
                for name in expected:
                    expected[name] += gradients.parameter(name) * weights.sum() / total
        for name, wanted in expected.items():
            begin, end = engine.place(name)
            np.testing.assert_allclose(found[begin:end], np.ravel(wanted), rtol=0, atol=1e-12)
        at += count


def test_pieces_come_in_order_and_let_the_model_go():
    steps = Steps("training", "float32")
    (engine,), (model,), micro = steps.engines, steps.models, steps.batches[0]
    arguments, before = steps.arguments(0), steps.bits()
    with pytest.raises(RuntimeError, match="combine is not the next piece of this trainer's step"):
        engine.combine(np.array([[0, 1]]), np.zeros(engine.slice(0)[1], np.float32))
    _, sums = engine.gradients(micro, parts=2, first=0, count=2, **arguments)
    with pytest.raises(RuntimeError, match="is taking a step"):
        engine.step(micro, **arguments)
    with pytest.raises(RuntimeError, match="is being changed"):
        model.run([1, 2])
    with pytest.raises(ValueError, match="sums of parts must follow each other: part 0 was expected"):
        engine.combine(np.array([[1, 1]]), sums[0][2].copy())
    with pytest.raises(ValueError, match="the sums are of 1 parts, the step has 2"):
        engine.combine(np.array([[0, 1]]), sums[0][2].copy())
    engine.abandon()
    engine.abandon()
    assert steps.bits() == before
    assert steps.whole(2).bits() == Steps("training", "float32").whole(2).bits()


def test_a_step_that_diverged_ends_and_changes_nothing():
    steps = Steps("training", "float32")
    (engine,), arguments, before = steps.engines, steps.arguments(0), steps.bits()
    numbers, ((_, _, gradient),) = engine.gradients(steps.batches[0], parts=1, first=0, count=1, **arguments)
    squares = engine.combine(np.array([[0, 1]]), gradient * np.float32(np.nan))
    with pytest.raises(asp.TrainingDiverged, match="step 0"):
        engine.update((numbers, squares, np.empty_like(gradient)), **arguments)
    assert steps.bits() == before
    engine.step(steps.batches[0], **arguments)


def test_parts_are_an_option_of_a_run(tmp_path):
    options = tiny.options(6, parts=3)
    run = asp.Trainer(tiny.model(), tiny.data(), options).train(progress=False, until=3)
    run.save(tmp_path / "half")
    again = asp.Trainer.resume(tmp_path / "half.checkpoint.safetensors", tiny.data(), options)
    whole = asp.Trainer(tiny.model(), tiny.data(), options, threads=2).train(progress=False)
    for name, weights in whole.model.parameters().items():
        assert (again.train(progress=False).model.parameter(name) == weights).all()
    other = dataclasses.replace(options, parts=1)
    with pytest.raises(asp.CheckpointError, match="was trained with parts=3, the resume asks for 1"):
        asp.Trainer.resume(tmp_path / "half.checkpoint.safetensors", tiny.data(), other)
    with pytest.raises(ValueError, match="parts must be"):
        tiny.options(6, parts=0)
    for wrong in (3, "world", object()):
        with pytest.raises(TypeError, match="comm must be an intracommunicator of mpi4py"):
            asp.Trainer(tiny.model(), tiny.data(), options, comm=wrong)


# ---- Ctrl-C


def test_ctrl_c_waits_where_it_is_held_and_acts_where_it_is_let_in():
    interrupts, before = Interrupts(), signal.getsignal(signal.SIGINT)
    seen = []

    def interrupted() -> None:
        with interrupts.held():
            with interrupts.held():
                signal.raise_signal(signal.SIGINT)
            seen.append("still held")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == ["still held"]
    assert signal.getsignal(signal.SIGINT) is before
    with interrupts.held():
        with pytest.raises(KeyboardInterrupt), interrupts.let_in():
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), interrupts.let_in():
            seen.append("too far")
        signal.raise_signal(signal.SIGINT)
        interrupts.await_one()
    assert seen == ["still held"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_that_goes_on_is_called_and_kept():
    calls = []
    before = signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    try:
        interrupts = Interrupts()
        with interrupts.held(), interrupts.let_in():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        assert len(calls) == 2
        thread = threading.Thread(target=lambda: interrupts.held().__enter__())
        thread.start()
        thread.join()
        signal.raise_signal(signal.SIGINT)
        assert len(calls) == 3
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("first", "count"), [(0, 8), (3, 5), (5, 1), (6, 7), (0, 13), (1, 14)])
def test_nodes_are_aligned_and_cover_all_parts(first, count):
    found = nodes(first, count)
    assert [part for begin, n in found for part in range(begin, begin + n)] == list(
        range(first, first + count)
    )
    assert all(begin % n == 0 and n & (n - 1) == 0 for begin, n in found)
