"""Training from Python: the data are a pure function of the step, and a run can stop and go on anywhere."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reliability
import tiny_training as tiny
from bundle_by_hand import contents
from hypothesis import given, settings
from hypothesis import strategies as st

import attnsparse as asp
from attnsparse.errors import CheckpointError, TrainingDiverged
from attnsparse.io.bundle import write_bundle
from attnsparse.training import schedules
from attnsparse.training.checkpoint import SCHEMA, checkpoint_name, checkpoint_steps, last_checkpoint
from attnsparse.training.data import SequenceData, TokenData
from attnsparse.training.history import HISTORY, progress_text
from attnsparse.training.options import TrainingOptions
from attnsparse.training.trainer import Trainer

SCRIPT = Path(tiny.__file__)
N_STEPS = 40


def child(folder: Path, *numbers: int) -> None:
    """Run tiny_training.py as a process of its own."""
    subprocess.run([sys.executable, SCRIPT, folder, *map(str, numbers)], check=True, timeout=120)


def uninterrupted(folder: Path, steps: int = N_STEPS) -> bytes:
    """The final checkpoint of a run that nothing stopped."""
    path = folder / "uninterrupted.safetensors"
    Trainer(tiny.model(), tiny.data(), tiny.options(steps), threads=1).train().save(path)
    return path.read_bytes()


def state_of(trainer: Trainer) -> dict[str, bytes]:
    """Everything that a step may change."""
    state = {name: array.tobytes() for name, array in trainer.model.parameters().items()}
    for name in trainer.model.parameters():
        first, second = trainer._engine.moments(name)
        state |= {f"m {name}": first.tobytes(), f"v {name}": second.tobytes()}
    numbers = (trainer.step_count, trainer.multiplier, str(trainer._engine.ema), len(trainer.history()))
    return {**state, "numbers": repr(numbers).encode()}


# ---- data


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**9), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_batches_are_a_pure_function(seed, step, micro):
    for make in (tiny.data, lambda seed: TokenData(np.arange(50), 7, 4, seed=seed)):
        first, second = make(seed=seed), make(seed=seed)
        second.batch(step + 1, micro)
        for a, b in zip(first.batch(step, micro), second.batch(step, micro)):
            assert a.dtype == b.dtype
            assert a.tobytes() == b.tobytes()
        assert first.digest == second.digest


def test_windows_of_tokens():
    tokens, offsets, targets, weights = TokenData(
        np.arange(100), 5, 3, loss_weights=np.arange(100) % 2
    ).batch(0)
    assert offsets.tolist() == [0, 5, 10, 15]
    assert (tokens.dtype, offsets.dtype, targets.dtype, weights.dtype) == ("i4", "i8", "i4", "f4")
    assert np.array_equal(targets, tokens + 1)
    assert np.array_equal(weights, targets % 2)
    assert (np.diff(tokens.reshape(3, 5)) == 1).all()


def test_windows_reach_both_ends():
    data = TokenData(np.arange(8), 3, 64)
    tokens, _, targets, _ = data.batch(0)
    assert (tokens.min(), targets.max()) == (0, 7)


def test_an_epoch_has_every_sequence_once():
    data = SequenceData([np.full(3, i) for i in range(10)], 4, seed=2)
    seen = np.concatenate([data.batch(step, 0)[0].reshape(-1, 3)[:, 0] for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])
    other = np.concatenate([data.batch(step, 1)[0].reshape(-1, 3)[:, 0] for step in range(5)])
    assert list(other) != list(seen)


def test_targets_are_the_next_tokens_of_the_same_sequence():
    sequences, weights = [[1, 2, 3], [4], [5, 6]], [[9, 1, 2], [9], [9, 3]]
    tokens, offsets, targets, found = SequenceData(sequences, 3, loss_weights=weights).batch(0)
    for begin, end in itertools.pairwise(offsets):
        row = sequences.index(tokens[begin:end].tolist())
        assert targets[begin : end - 1].tolist() == sequences[row][1:]
        assert found[begin:end].tolist() == [*weights[row][1:], 0]


def test_digests_tell_data_apart():
    digests = {
        tiny.data().digest,
        tiny.data(batch=4).digest,
        tiny.data(seed=6).digest,
        SequenceData([[1, 2], [3]], 1).digest,
        SequenceData([[1], [2, 3]], 1).digest,
        SequenceData([[1], [2, 3]], 1, loss_weights=[[1], [1, 0]]).digest,
        TokenData([1, 2, 3], 1, 1).digest,
        TokenData([1, 2, 3], 2, 1).digest,
    }
    assert len(digests) == 8


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: TokenData([1, 2, 3], 3, 1), ValueError),
        (lambda: TokenData([1.0, 2.0], 1, 1), TypeError),
        (lambda: TokenData([-1, 2], 1, 1), IndexError),
        (lambda: TokenData([1, 2, 3], 0, 1), ValueError),
        (lambda: TokenData([1, 2, 3], 1, True), TypeError),
        (lambda: TokenData([1, 2, 3], 1, 1, seed=-1), ValueError),
        (lambda: TokenData([1, 2, 3], 1, 1, loss_weights=[1, 2]), ValueError),
        (lambda: SequenceData([], 1), ValueError),
        (lambda: SequenceData([[]], 1), TypeError),
        (lambda: SequenceData([[1]], 1, loss_weights=[[np.nan]]), ValueError),
        (lambda: SequenceData([[1]], 1, loss_weights=[[1], [1]]), ValueError),
    ],
)
def test_bad_data(make, error):
    with pytest.raises(error):
        make()


# ---- options


def test_options_survive_json():
    options = tiny.options(40)
    assert TrainingOptions.from_dict(options.to_dict()) == options
    assert TrainingOptions.from_dict(TrainingOptions(steps=3).to_dict()) == TrainingOptions(steps=3)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"steps": 0}, ValueError, "steps"),
        ({"steps": 1.0}, TypeError, "steps"),
        ({"lr": "fast"}, TypeError, "lr"),
        ({"lr": schedules.per_layer([1])}, TypeError, "lr"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas"),
        ({"clip": -1}, ValueError, "clip"),
        ({"seed": -1}, ValueError, "seed"),
        ({"geco_relative": 1}, TypeError, "geco_relative"),
        ({"gate_noise": 1}, TypeError, "gate_noise"),
        ({"geco_ema": 1.0}, ValueError, "geco_ema"),
        ({"speed": 1}, TypeError, "speed"),
    ],
)
def test_bad_options_are_named(changes, error, named):
    with pytest.raises(error, match=named):
        TrainingOptions(**{"steps": 3, **changes})


def test_options_must_fit_the_model():
    with pytest.raises(ValueError, match="tau is for gated models"):
        Trainer(tiny.model(gated=False), tiny.data(), steps=3, tau=0.1)
    with pytest.raises(ValueError, match="gate_noise is for gated models"):
        Trainer(tiny.model(gated=False), tiny.data(), steps=3, gate_noise=False)
    with pytest.raises(ValueError, match="tau, the largest cross-entropy in nats, is required"):
        Trainer(tiny.model(), tiny.data(), steps=3)
    with pytest.raises(ValueError, match="above 0"):
        Trainer(tiny.model(), tiny.data(), steps=3, tau=0.1, slack=-0.1)
    with pytest.raises(TypeError, match="not both"):
        Trainer(tiny.model(), tiny.data(), tiny.options(3), steps=3)
    with pytest.raises(TypeError, match="digest"):
        Trainer(tiny.model(), [1, 2], steps=3, tau=1)
    with pytest.raises(ValueError, match="covers 3 layers"):
        Trainer(tiny.model(), tiny.data(), steps=3, tau=1, gate_bias=schedules.per_layer([1, 2, 3])).step()


def test_every_step_gets_its_scheduled_values():
    options = tiny.options(10)
    first, late = (options.at(step, 2, True, 0.0) for step in (0, 8))
    assert (first["lr"], late["lr"]) == (3e-3 / 5, pytest.approx(3e-3 * (0.1 + 0.9 * 0.5)))
    assert (first["gate_bias"], late["gate_bias"]) == ([3.0, 1.0], [0.0, 1.0])
    assert (first["edge_weight"], late["edge_weight"]) == ([2.0, 0.5], [2.0, 0.9])
    assert (first["tau"], late["tau"]) == (2.3, 2.0)
    assert (first["lambda_min"], late["lambda_min"]) == (0.1, 0.6)
    assert options.at(6, 2, True, 0.0)["lambda_min"] == 0.6  # the multiplier of step 7
    assert TrainingOptions(steps=5, tau=1).at(0, 2, True, 1.5)["gate_bias"] == [1.5, 1.5]
    assert "gate_bias" not in TrainingOptions(steps=5).at(0, 2, False, 0.0)


# ---- steps


def test_a_dense_model_learns():
    """A copy of the previous token is learned in a few hundred steps."""
    config = asp.Config(**{**tiny.SHAPE, "d_model": 16, "d_head": 8, "d_mlp": 32})
    model = asp.Model.initialised(config, 0, std=0.15)
    random = np.random.default_rng(0)
    rows = np.repeat(random.integers(0, 11, (500, 4)), 2, axis=1)
    weights = np.tile([0, 1], (500, 4))
    data = SequenceData(rows, 32, loss_weights=weights)
    before = model.evaluate(rows, weights)
    Trainer(model, data, steps=150, lr=schedules.Warmup(1e-2, 10, "cosine")).train()
    after = model.evaluate(rows, weights)
    assert before.accuracy < 0.5
    assert before.cross_entropy > 1
    assert after.accuracy == 1
    assert after.cross_entropy < 0.05


def test_a_gated_model_loses_edges():
    trainer = Trainer(tiny.model(), tiny.data(), steps=150, lr=1e-2, tau=2.5, multiplier=0.1, gate_bias=3.0)
    history = trainer.train().history()
    assert history["open_edges"].iloc[-10:].mean() < 0.3 * history["open_edges"].iloc[:10].mean()


def test_history_and_results():
    trainer = Trainer(tiny.model(), tiny.data(), tiny.options(6))
    result = trainer.step()
    history = trainer.train().history()
    assert history.columns.tolist() == [
        "step", "loss", "ce", "expected_edges", "open_edges", "multiplier", "grad_norm", "edges_per_token",
        "self_edges_per_token", "seconds", "lr", "gate_bias", "tau", "held_out_ce",
        "held_out_edges_per_token", "held_out_self_edges_per_token",
    ]  # fmt: skip
    assert history["step"].tolist() == list(range(6))
    assert result["ce"] == history["ce"][0]
    assert history["gate_bias"][0] == 2.0
    assert history.iloc[:, :13].notna().all().all()
    assert history.iloc[:, 13:].isna().all().all()
    assert trainer.finished
    last = history.iloc[-1]
    edges = f"{last.edges_per_token:.1f} edges per token ({100 * last.open_edges:.2f} %)"
    assert repr(trainer) == f"Trainer(tiny, gated, step 6 of 6, ce {last.ce:.4f}, {edges})"
    with pytest.raises(ValueError, match="all 6 steps are done"):
        trainer.step()


def test_the_first_multiplier_is_within_its_limits():
    trainer = Trainer(tiny.model(), tiny.data(), steps=2, tau=1, multiplier=5, multiplier_max=0.7)
    assert trainer.step()["multiplier"] == 0.7


def test_progress_is_shown_on_demand_only(capsys):
    Trainer(tiny.model(), tiny.data(), tiny.options(3)).train()
    assert capsys.readouterr().err == ""
    Trainer(tiny.model(), tiny.data(), tiny.options(3)).train(progress=True)
    assert "tiny: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("edges", "gated", "text"),
    [
        (61.23, True, "ce 3.2134, 61.2 edges per token (0.50 %)"),
        (float("nan"), True, "ce 3.2134, open 0.50 %"),  # of a checkpoint of before edges were counted
        (61.23, False, "ce 3.2134"),
    ],
)
def test_progress_names_edges_of_gated_models(edges, gated, text):
    result = {"ce": 3.21341, "open_edges": 0.005, "edges_per_token": edges}
    assert progress_text(result, gated) == text


def test_divergence_changes_nothing():
    trainer = Trainer(tiny.model(), tiny.data(), tiny.options(50, lr=1e15, clip=0.0))
    before = state_of(trainer)

    def go_on() -> None:
        while True:
            before.update(state_of(trainer))
            trainer.step()

    with pytest.raises(TrainingDiverged):
        go_on()
    assert state_of(trainer) == before
    assert 0 < trainer.step_count < 50


def test_threads_do_not_change_a_bit(tmp_path):
    expected = uninterrupted(tmp_path)
    for threads in (2, 3):
        trainer = Trainer(tiny.model(), tiny.data(), tiny.options(N_STEPS), threads=threads)
        trainer.train().save(tmp_path / "a.safetensors")
        assert (tmp_path / "a.safetensors").read_bytes() == expected


def test_interrupts_leave_a_run_that_goes_on(tmp_path):
    """R18 for the trainer: interrupts at random moments change no bit of the result."""
    expected = uninterrupted(tmp_path, 300)
    folder = tmp_path / "run"
    trainer = Trainer(tiny.model(), tiny.data(), tiny.options(300), folder=folder, checkpoint_every=7)
    moments = random.Random(0)
    before, interrupts = signal.signal(signal.SIGVTALRM, signal.default_int_handler), 0
    callbacks, gc.callbacks[:] = gc.callbacks[:], []  # an interrupt in one of hypothesis's would be lost
    try:
        while not trainer.finished:
            signal.setitimer(signal.ITIMER_VIRTUAL, moments.uniform(0.001, 0.03))
            try:
                trainer.train(progress=False)
            except KeyboardInterrupt:
                interrupts += 1
                assert len(trainer.history()) == trainer.step_count
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    finally:
        signal.signal(signal.SIGVTALRM, before)
        gc.callbacks[:] = callbacks
    assert interrupts >= 5
    trainer.save(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == expected
    assert list(folder.glob(".*")) == []


# ---- checkpoints


def check_resume(tmp_path: Path, steps: int, k: int, first_threads: int, second_threads: int) -> bool:
    """k steps here, save, the rest in a new process: whether every byte is that of an uninterrupted run."""
    folder = tmp_path / f"{k}-{first_threads}-{second_threads}"
    trainer = tiny.continued(folder, steps, first_threads)
    trainer.train(until=k).save(folder / checkpoint_name(k))
    child(folder, steps, steps, second_threads, 0)
    return (folder / checkpoint_name(steps)).read_bytes() == (
        tmp_path / "uninterrupted.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(("k", "threads"), [(0, (1, 1)), (5, (1, 2)), (17, (2, 2)), (28, (2, 1))])
def test_resume_in_a_new_process_gives_the_same_bytes(tmp_path, k, threads):
    """R20, some of it."""
    uninterrupted(tmp_path)
    assert check_resume(tmp_path, N_STEPS, k, *threads)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [(1, 1), (2, 2), (1, 2), (2, 1)])
def test_resume_from_every_step_gives_the_same_bytes(tmp_path, threads):
    """R20, all of it."""
    uninterrupted(tmp_path)
    assert [k for k in range(N_STEPS + 1) if not check_resume(tmp_path, N_STEPS, k, *threads)] == []
    text = f"saved with {threads[0]} and resumed with {threads[1]} threads after each of 0..{N_STEPS} steps"
    reliability.report("R20", f"{text}: {N_STEPS + 1} of {N_STEPS + 1} final checkpoints equal")


def test_resume_in_this_process(tmp_path):
    expected = uninterrupted(tmp_path)
    path = tmp_path / "a.safetensors"
    for k in range(0, N_STEPS, 3):
        Trainer(tiny.model(), tiny.data(), tiny.options(N_STEPS)).train(until=k).save(path)
        Trainer.resume(path, tiny.data()).train().save(path)
        assert path.read_bytes() == expected, k


def kill_test(kills: int, steps: int) -> dict:
    """Of processes killed at random moments, a third of them in a save, nothing but whole checkpoints stays,
    the last one less than an interval old, and the run ends with the bytes of one that nothing stopped."""
    found = reliability.child("kill_child.py", str(kills), str(steps), timeout=1500)
    assert found["wrong"] == []
    return found


def test_kill_9():
    """R19, some of it."""
    kill_test(20, 1000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_often():
    found = kill_test(200, 5000)
    assert found["half_saves"] > 0
    text = (
        f"200 kills -9, {found['aimed']} aimed at a save, {found['half_saves']} left half a temporary file; "
    )
    reliability.report("R19", text + "0 lost or damaged checkpoints, same final bytes")


def test_run_saves_and_keeps_the_last_ones(tmp_path):
    trainer = Trainer(tiny.model(), tiny.data(), tiny.options(10), folder=tmp_path, checkpoint_every=4)
    trainer.train()
    assert checkpoint_steps(tmp_path) == [8, 10]
    assert last_checkpoint(tmp_path).name == "step-000010.checkpoint.safetensors"
    assert (tmp_path / HISTORY).exists()
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        last_checkpoint(tmp_path / "none")


def test_resume_knows_model_history_and_seconds(tmp_path):
    trainer = Trainer(tiny.model(), tiny.data(), tiny.options(10)).train(until=6)
    trainer.save(tmp_path / "a.safetensors")
    resumed = Trainer.resume(tmp_path / "a.safetensors", tiny.data())
    assert resumed.history().equals(trainer.history())
    assert resumed.model.name == "tiny"
    assert resumed.model.config == trainer.model.config
    assert state_of(resumed) == state_of(trainer)
    (tmp_path / HISTORY).unlink()
    assert Trainer.resume(tmp_path / "a.safetensors", tiny.data()).history()["seconds"].isna().all()


def test_a_dense_run_is_resumed(tmp_path):
    whole = Trainer(tiny.model(gated=False), tiny.data(), steps=8).train()
    whole.save(tmp_path / "whole.safetensors")
    Trainer(tiny.model(gated=False), tiny.data(), steps=8).train(until=3).save(tmp_path / "a.safetensors")
    Trainer.resume(tmp_path / "a.safetensors", tiny.data()).train().save(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def resume_code(path: Path, *arguments, **options) -> tuple[str, str | None]:
    with pytest.raises(CheckpointError) as caught:
        Trainer.resume(path, *arguments, **options)
    assert len(str(caught.value)) <= 300
    return caught.value.code, caught.value.field


def test_resume_refuses_another_run_by_name(tmp_path):
    path = tmp_path / "a.safetensors"
    Trainer(tiny.model(), tiny.data(), tiny.options(10)).train(until=2).save(path)
    assert resume_code(path, tiny.data(), lr=0.5) == ("options", "lr")
    assert resume_code(path, tiny.data(), steps=11) == ("options", "steps")
    assert resume_code(path, tiny.data(), tiny.options(10, clip=2.0)) == ("options", "clip")
    assert resume_code(path, tiny.data(seed=6)) == ("data", "data")
    with pytest.raises(CheckpointError, match=r"was trained with clip=1\.0, the resume asks for 2\.0"):
        Trainer.resume(path, tiny.data(), clip=2)
    assert Trainer.resume(path, tiny.data(), tiny.options(10), threads=2).step_count == 2


def test_resume_checks_what_a_checksum_cannot(tmp_path):
    path = tmp_path / "a.safetensors"
    Trainer(tiny.model(), tiny.data(), tiny.options(10)).train(until=2).save(path)
    meta, tensors = contents(path)
    name = "adam.m/h.0.ln_1.bias"

    def code(meta: dict, tensors: dict) -> tuple[str, str | None]:
        write_bundle(path, SCHEMA, meta, tensors)
        return resume_code(path, tiny.data())

    missing = {key: value for key, value in tensors.items() if key != name}
    assert code(meta, missing) == ("missing_tensor", name)
    assert code(meta, {**tensors, "more": np.zeros(1)}) == ("unexpected_tensor", "more")
    assert code(meta, {**tensors, name: tensors[name][:-1]}) == ("size_mismatch", name)
    assert code(meta, {**tensors, name: tensors[name].astype("f8")}) == ("dtype", name)
    assert code({**meta, "step": True}, tensors) == ("meta", "step")
    assert code({**meta, "step": 11}, tensors) == ("meta", "step")
    assert code({key: value for key, value in meta.items() if key != "ema"}, tensors) == ("meta", "ema")
    assert code({**meta, "options": {}}, tensors)[0] == "meta"
    assert code({**meta, "config": {**meta["config"], "n_layer": 0}}, tensors)[0] == "meta"
    assert (
        code({**meta, "config": {**meta["config"], "n_layer": 3}}, tensors)[0] == "meta"
    )  # schedules of two


def test_resume_warns_of_another_build(tmp_path):
    path = tmp_path / "a.safetensors"
    Trainer(tiny.model(), tiny.data(), tiny.options(10)).save(path)
    fields, tensors = contents(path)
    build = {**fields["build"], "isa": "abacus"}
    write_bundle(path, SCHEMA, {**fields, "build": build}, tensors)
    with pytest.warns(UserWarning, match="isa 'abacus'"):
        Trainer.resume(path, tiny.data())


def test_a_failed_save_leaves_a_trainer_that_goes_on(tmp_path):
    expected = uninterrupted(tmp_path)
    trainer = Trainer(tiny.model(), tiny.data(), tiny.options(N_STEPS)).train(until=9)
    with pytest.raises(OSError, match="nowhere"):
        trainer.save(tmp_path / "nowhere" / "a.safetensors")
    trainer.train().save(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == expected


WRONG = {
    "checkpoint_every": (
        ValueError, "checkpoint_every must be at least 0", {"steps": 1, "checkpoint_every": -1}
    ),
    "keep": (ValueError, "keep must be at least 1, got 0", {"steps": 1, "keep": 0}),
    "keep of another kind": (TypeError, "keep must be an integer, got float", {"steps": 1, "keep": 1.0}),
    "options": (TypeError, "options must be TrainingOptions, got dict", {"options": {"steps": 1}}),
    "a text for a number": (TypeError, "lr must be a number, got str", {"steps": 1, "lr": "fast"}),
    "beyond all floats": (ValueError, "lr must be a finite number", {"steps": 1, "lr": 10**400}),
    "layers where none may differ": (
        TypeError, "tau cannot differ from layer to layer", {"steps": 1, "tau": schedules.per_layer([1, 2])}
    ),
    "betas": (ValueError, "betas must be two numbers", {"steps": 1, "betas": (0.9,)}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name):
    kind, text, arguments = WRONG[name]
    with pytest.raises(kind, match=text):
        Trainer(tiny.model(gated=False), tiny.data(), **arguments)
    with pytest.raises(ValueError, match="until must be at least 0, got -1"):
        Trainer(tiny.model(gated=False), tiny.data(), steps=1).train(until=-1)


# ---- evaluation


def test_evaluation_agrees_with_a_run_alone():
    model, rows = tiny.model(), [[1, 2, 3, 4], [5, 6], [7]]
    weights = [[0, 1, 0, 2], [0, 1], [1]]
    found = model.evaluate(rows, weights, batch=2)
    total = sum(w * loss for row, ws in zip(rows, weights) for w, loss in zip(ws[1:], losses(model, row)))
    assert found.cross_entropy == pytest.approx(total / 4, rel=1e-5)
    assert found.open_edges.tolist() == [int(model.run(row, record="gate").gate.sum()) for row in rows]
    assert found.right[2]  # nothing is asked of it
    assert os.linesep not in repr(found)


def losses(model: asp.Model, row: list[int]) -> list[float]:
    return model.run(row, record="token_loss").token_loss.tolist() if len(row) > 1 else []
