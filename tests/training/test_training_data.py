"""What a trainer is fed: maps of files in place, identity of data, marks of ignored targets, types of
weights."""

from __future__ import annotations

import mmap
import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tiny_training as tiny

import attnsparse as asp
from attnsparse.training import column as training_column
from attnsparse.training import data as training_data
from attnsparse.training.data import SequenceData, TokenData
from attnsparse.training.trainer import Trainer


def same(one: tuple, other: tuple) -> bool:
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one, other))


# ---- maps


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for module in (training_column, training_data):
        monkeypatch.setattr(module, "BLOCK", 7)


def mapped(path: Path, dtype: str, mode: str = "r") -> np.memmap:
    (np.arange(200) * 7 % 50).astype(dtype).tofile(path)
    return np.memmap(path, dtype=dtype, mode=mode)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4", "<i8", "u1"])
def test_a_map_feeds_what_its_array_feeds(tmp_path, dtype):
    data = mapped(tmp_path / "train.bin", dtype)
    weights = np.memmap(tmp_path / "mask.bin", dtype="u1", mode="w+", shape=200)
    weights[:] = np.arange(200) % 3
    for loss_weights in (None, weights):
        plain = None if loss_weights is None else np.array(loss_weights)
        found = TokenData(data, 5, 3, loss_weights=loss_weights)
        expected = TokenData(np.array(data), 5, 3, loss_weights=plain)
        assert found.digest == expected.digest
        assert all(same(found.batch(step, 1), expected.batch(step, 1)) for step in range(5))


def test_a_map_is_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(training_column, "BLOCK", 2**16)
    monkeypatch.setattr(training_data, "BLOCK", 2**16)
    np.zeros(4_000_000, np.uint16).tofile(tmp_path / "train.bin")
    tokens = np.memmap(tmp_path / "train.bin", dtype=np.uint16, mode="r")
    with open(tmp_path / "train.bin", "rb") as file:
        plain = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint16)
    for array in (tokens, tokens[1000:], np.asarray(tokens), plain):
        assert training_column.is_mapped(array)
        tracemalloc.start()
        TokenData(array, 8, 2).batch(0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < array.nbytes / 4
    assert not training_column.is_mapped(np.array(tokens))


def test_ids_of_a_map_are_checked(tmp_path):
    data = mapped(tmp_path / "train.bin", "<i4", "r+")
    data[150] = -1
    with pytest.raises(IndexError, match=r"-1\.\."):
        TokenData(data, 5, 3)


# ---- identity


def test_arrays_that_change_afterwards_do_not_change_the_data():
    tokens, weights = np.arange(100, dtype=np.int32) % 50, np.ones(100, np.float32)
    rows = [np.arange(8, dtype=np.int32), np.arange(3, dtype=np.int32)]
    row_weights = [np.ones(8, np.float32), np.ones(3, np.float32)]
    for data, arrays in (
        (TokenData(tokens, 4, 2, loss_weights=weights), (tokens, weights)),
        (SequenceData(rows, 2, loss_weights=row_weights), (*rows, *row_weights)),
    ):
        digest, before = data.digest, data.batch(0)
        for array in arrays:
            array[:] = 7
        assert same(data.batch(0), before)
        assert data.digest == digest


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_the_digest_of_a_map_is_that_of_its_numbers_now(tmp_path, mode):
    """So a run that was begun on other numbers is not gone on with."""
    path = tmp_path / "train.bin"
    data = TokenData(mapped(path, "<u2", mode), 5, 3)
    digest = data.digest
    os.utime(path, ns=(0, 0))
    assert data.digest == digest
    other = np.memmap(path, dtype="<u2", mode="r+")
    other[3] += 1
    other.flush()
    os.utime(path, ns=(10**9, 10**9))
    assert data.digest != digest
    assert data.digest == TokenData(np.array(other), 5, 3).digest


def test_a_resume_refuses_a_map_that_has_changed(tmp_path):
    path = tmp_path / "train.bin"
    data = TokenData(mapped(path, "<u2", "r+"), 5, 3)
    config = asp.Config(n_layer=1, n_head=1, d_model=4, d_head=4, d_mlp=4, n_ctx=8, n_vocab=50)
    trainer = Trainer(asp.Model(config, tiny_weights(config)), data, steps=3)
    trainer.step()
    trainer.save(tmp_path / "a.safetensors")
    assert Trainer.resume(tmp_path / "a.safetensors", data).step_count == 1
    np.memmap(path, dtype="<u2", mode="r+")[0] += 1
    with pytest.raises(asp.CheckpointError, match="other data"):
        Trainer.resume(tmp_path / "a.safetensors", data)


def tiny_weights(config: asp.Config) -> dict[str, np.ndarray]:
    return {name: np.full(shape, 0.1) for name, shape in config.parameter_shapes().items()}


# ---- batches


class Given:
    """Data that are the same batch always."""

    digest = "0"

    def __init__(self, targets: object, weights: object) -> None:
        self.targets, self.weights = targets, weights

    def batch(self, step: int, micro: int = 0) -> tuple:
        tokens = np.array([1, 2, 3, 4, 5, 6], np.int32)
        return tokens, np.array([0, 4, 6]), self.targets, self.weights


def stepped(targets: list[int], weights: np.ndarray, dtype: str = "float32") -> tuple[float, bytes]:
    config = tiny.model(gated=False).config
    weights_of = {name: array.copy() for name, array in tiny.model(gated=False).parameters().items()}
    model = asp.Model(config, weights_of, dtype=dtype)
    result = Trainer(model, Given(np.array(targets, np.int32), weights), steps=1).step()
    return result["ce"], model.parameter("wte.weight").tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_of_either_type_fit_either_model(dtype):
    found = [stepped([2, 3, 4, 5, 6, 7], np.ones(6, kind), dtype) for kind in ("f4", "f8")]
    assert found[0] == found[1]
    for data in (TokenData(np.arange(50) % 11, 4, 2), SequenceData([[1, 2, 3], [4, 5]], 2)):
        model = asp.Model(tiny.model(gated=False).config, tiny.model(False).parameters(), dtype=dtype)
        assert Trainer(model, data, steps=1).step()["ce"] > 0


def test_an_ignored_target_is_one_of_weight_0():
    masked = stepped([2, -100, 4, 5, -100, 7], np.ones(6, "f4"))
    assert masked == stepped([2, 3, 4, 5, 6, 7], np.array([1, 0, 1, 1, 0, 1], "f4"))
    assert masked != stepped([2, 3, 4, 5, 6, 7], np.ones(6, "f4"))
    with pytest.raises(IndexError, match="target -1 "):
        stepped([2, -1, 4, 5, 6, 7], np.ones(6, "f4"))
    with pytest.raises(ValueError, match="must sum to more than 0"):
        stepped([-100] * 6, np.ones(6, "f4"))
    with pytest.raises(ValueError, match="must not be negative"):
        stepped([2, 3, 4, 5, 6, 7], np.array([1, -1, 1, 1, 1, 1], "f4"))
    with pytest.raises(IndexError, match="-100 is for targets"):
        TokenData([1, 2, -100, 3], 2, 1)


# ---- one thread at a time


class Waiting(Given):
    """Data whose batch waits until it is let go."""

    def __init__(self) -> None:
        super().__init__(np.array([2, 3, 4, 5, 6, 7], np.int32), np.ones(6, np.float32))
        self.asked, self.go = threading.Event(), threading.Event()

    def batch(self, step: int, micro: int = 0) -> tuple:
        self.asked.set()
        assert self.go.wait(30)
        return super().batch(step, micro)


@pytest.mark.parametrize("work", ["step", "train"])
def test_a_trainer_is_used_by_one_thread_at_a_time(tmp_path, work):
    data = Waiting()
    trainer = Trainer(tiny.model(gated=False), data, steps=2)
    thread = threading.Thread(target=getattr(trainer, work))
    thread.start()
    assert data.asked.wait(30)
    for call in (trainer.step, trainer.train, lambda: trainer.save(tmp_path / "a.safetensors")):
        with pytest.raises(RuntimeError, match="this trainer is in use in another thread"):
            call()
    assert list(tmp_path.iterdir()) == []
    data.go.set()
    thread.join(30)
    trainer.train()
    assert trainer.history()["step"].tolist() == [0, 1]


def test_what_reads_all_weights_holds_them(tmp_path, monkeypatch):
    """A step in another thread meanwhile would give a mixture: it is refused, and so is a reading beside a
    step."""
    data = Given(np.array([2, 3, 4, 5, 6, 7], np.int32), np.ones(6, np.float32))
    model = tiny.model(gated=False)
    trainer, refused = Trainer(model, data, steps=9), []

    def meanwhile(*arguments: object, **names: object) -> None:
        try:
            Trainer(model, data, steps=1).step()
        except RuntimeError as error:
            refused.append(str(error))

    for module, name, reading in (
        ("attnsparse.model.weights.update", "update", lambda: model.digest),
        ("attnsparse.model.load.write_together", "write", lambda: model.save(tmp_path)),
        (
            "attnsparse.training.trainer.write_bundle",
            "save",
            lambda: trainer.save(tmp_path / "a.safetensors"),
        ),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, meanwhile)
            reading()
        assert refused.pop().startswith("model is in use in another thread"), name
        refused.clear()
    with model._core.reading():
        model.copy()
        with pytest.raises(RuntimeError):
            trainer.step()
    held = model._core.reading()
    del held
    trainer.step()
