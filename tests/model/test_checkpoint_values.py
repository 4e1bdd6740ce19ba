"""Training checkpoints whose checksums are right and whose values are not: every field, one nasty value after
the other, is refused at once or makes a run that goes on."""

from __future__ import annotations

import copy
import json
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_training as tiny
from bundle_by_hand import BEGIN, Contents, contents, sealed
from tiny_coders import made

import attnsparse as asp
from attnsparse.io import bundle
from attnsparse.io.bundle import Schema, write_bundle
from attnsparse.training import schedules
from attnsparse.training.checkpoint import SCHEMA as TRAINING
from attnsparse.training.history import HISTORY, History
from attnsparse.training.options import TrainingOptions
from attnsparse.training.options_fields import turning_steps
from attnsparse.training.trainer import Trainer
from attnsparse.transcoders.checkpoint import SCHEMA as TRANSCODERS
from attnsparse.transcoders.options import TranscoderOptions

NASTY = [
    10**15, -(10**15), 10**400, 2**31, 2**63, 2**64, -1, 0, 1, 1e300, -1e300, 5e-324, -0.5, 0.5, True, None,
    "", "0", "x" * 2000, "\x1b[2J\n", [], {}, [[]], [1, 2], {"kind": "constant", "value": -1.0},
    {"kind": "pieces", "points": [[0.5, 1e308], [0.5, -1e308]]},
    {"kind": "warmup", "peak": 1, "steps_up": 10**30},
    {"kind": "per_layer", "ranges": [[0, 10**12, {"kind": "constant", "value": 1.0}]]},
    {"kind": "per_layer", "ranges": [["0", 1.5, {"kind": "constant", "value": 1.0}]]},
]  # fmt: skip
SECONDS = 2.0


def places(value: Any, before: tuple = ()) -> Iterator[tuple]:
    """Where there are values in JSON, from the outside in."""
    if before:
        yield before
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*before, key))


def changed(meta: dict, place: tuple, value: Any) -> dict:
    result = copy.deepcopy(meta)
    inner = result
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return result


def write(path: Path, fields: dict, tensors: dict, schema: Schema = TRAINING) -> bool:
    """False for what the format itself does not take, such as a number of 400 digits in a float's place."""
    try:
        write_bundle(path, schema, fields, tensors)
    except (ValueError, TypeError):
        return False
    return True


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, Contents]:
    path = tmp_path_factory.mktemp("run") / "a.safetensors"
    Trainer(tiny.model(), tiny.data(), tiny.options(10)).train(until=2).save(path)
    (path.parent / HISTORY).unlink()
    return path, contents(path)


def test_every_field_of_a_checkpoint(saved, tmp_path):
    _, (fields, tensors) = saved
    path, refused, gone_on, wrong = tmp_path / "a.safetensors", 0, 0, []
    for place in places(fields):
        for value in NASTY:
            if not write(path, changed(fields, place, value), tensors):
                continue
            begin = time.monotonic()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    trainer = Trainer.resume(path, tiny.data())
                trainer.step()
                gone_on += 1
            except asp.FormatError as error:
                refused += bool(error.code)
            except Exception as error:
                wrong.append(f"{place} = {str(value)[:40]}: {type(error).__name__} {error}")
            if time.monotonic() - begin > SECONDS:
                wrong.append(f"{place} = {str(value)[:40]}: {time.monotonic() - begin:.1f} s")
    assert wrong == []
    assert refused > 1000
    assert 0 < gone_on < refused / 5


def code(path: Path, meta: dict, tensors: dict) -> tuple[str, str | None]:
    write_bundle(path, TRAINING, meta, tensors)
    with pytest.raises(asp.CheckpointError) as caught:
        Trainer.resume(path, tiny.data())
    return caught.value.code, caught.value.field


def test_values_that_no_run_has(saved, tmp_path):
    _, (meta, tensors) = saved
    path = tmp_path / "a.safetensors"

    def with_value(name: str, value: float) -> dict:
        array = tensors[name].copy()
        array.flat[-1] = value
        return {**tensors, name: array}

    for name in ("weight/wte.weight", "adam.m/ln_f.bias", "adam.v/ln_f.bias", "history"):
        for value in (np.nan, np.inf, -np.inf):
            assert code(path, meta, with_value(name, value)) == ("nonfinite", name)
    assert code(path, meta, with_value("adam.v/ln_f.bias", -1e-9)) == ("value", "adam.v/ln_f.bias")
    assert code(path, meta, with_value("history", -1.0)) == ("value", "history")
    for name, values in {"multiplier": (-1.0, 0.0, 1e300), "ema": (None, -1.0)}.items():
        for value in values:
            assert code(path, {**meta, name: value}, tensors) == ("meta", name)
    start = {**meta, "step": 0, "ema": None, "multiplier": 0.5}
    empty = {**tensors, "history": np.zeros((0, 8))}
    assert code(path, start, empty) == ("value", "adam.m/h.0.attn.c_attn.bias")
    assert code(path, {**meta, "more": 1}, tensors) == ("meta", "meta")
    assert code(path, {**meta, "name": "x" * 2000}, tensors) == ("meta", "name")


def test_a_checkpoint_of_holes_is_refused_before_it_is_in_memory(tmp_path, monkeypatch):
    """Of 3 GiB: one whose header is damaged, one of another run."""
    path, size = tmp_path / "a.safetensors", 3 * 2**30
    data, asked, real = tiny.data(), [], np.empty
    monkeypatch.setattr(bundle.np, "empty", lambda *a, **k: asked.append(a) or real(*a, **k))
    text = {"schema": "training checkpoint", "version": 1, "fields": {}, "tensors": {"x": "0" * 64}}
    header = {
        "__metadata__": {"sha256": "0" * 64, "attnsparse": json.dumps(text)},
        "x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]},
    }
    begin = json.dumps(header, separators=(",", ":")).encode()
    damaged = BEGIN + b"1" * 64 + begin[len(BEGIN) + 64 :]
    for whole, code in ((damaged, "checksum"), (begin, "meta")):
        path.write_bytes(sealed(whole))
        os.truncate(path, 8 + len(begin) + size)
        with pytest.raises(asp.CheckpointError) as caught:
            Trainer.resume(path, data)
        assert caught.value.code == code
    assert asked == []


def test_a_tensor_is_only_read_once_its_checksum_is_right(saved, tmp_path, monkeypatch):
    whole, asked, real = bytearray(saved[0].read_bytes()), [], np.empty
    whole[-1] ^= 1
    (tmp_path / "a.safetensors").write_bytes(whole)
    monkeypatch.setattr(bundle.np, "empty", lambda *a, **k: asked.append(a) or real(*a, **k))
    with pytest.raises(asp.FormatError, match="fails its checksum"):
        contents(tmp_path / "a.safetensors")
    assert asked == []


# ---- history.csv


N_COLUMNS = len(History.columns) - 1  # beside the step


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1), ("nonsense", 1), ("{header}\n0,1\n", 2), ("{header}\n1{row}\n", 2), ("{header}\n0{row}", 2),
        ("{header}\n0{row}\n0{row}\n", 3), ("{header}\n0{bad}\n", 2), ("{header}\n\xff\n", 2),
        ("{header}\n" + "x" * 10**6, 2),
    ],
)  # fmt: skip
def test_a_history_that_no_trainer_wrote_is_refused(saved, text, line):
    path, (fields, tensors) = saved
    write_bundle(path, TRAINING, fields, tensors)
    header = ",".join(History.columns)
    text = text.format(header=header, row=",1.5e-05" * N_COLUMNS, bad=",1_0" * N_COLUMNS)
    (path.parent / HISTORY).write_text(text, encoding="latin-1")
    try:
        with pytest.raises(asp.FormatError, match=f"line {line} .*delete the file") as caught:
            Trainer.resume(path, tiny.data())
        assert caught.value.code == "value"
    finally:
        (path.parent / HISTORY).unlink()


def test_no_more_of_a_history_is_read_than_belongs_to_the_checkpoint(saved):
    path, (fields, tensors) = saved
    write_bundle(path, TRAINING, fields, tensors)
    row = ",1.0" * N_COLUMNS + "\n"
    begin = ",".join(History.columns) + "\n0" + row + "1" + row
    with open(path.parent / HISTORY, "wb") as file:
        file.write(begin.encode() + b"2,half a row")
        file.truncate(2**40)
    try:
        assert Trainer.resume(path, tiny.data()).history()["seconds"].tolist() == [1.0, 1.0]
    finally:
        (path.parent / HISTORY).unlink()


# ---- options


@pytest.mark.parametrize("kind", [TrainingOptions, TranscoderOptions])
def test_very_long_runs_are_checked_at_once(kind):
    falling = schedules.linear(3.0, 1.0)
    if kind is TrainingOptions:
        options = kind(steps=10**12, tau=falling, slack=schedules.jump(0.0, -0.5, 0.3))
        options.check(gated=True, n_layer=2)
        with pytest.raises(ValueError, match="must stay above 0"):
            kind(steps=10**12, tau=falling, slack=schedules.jump(0.0, -1.5, 0.999)).check(True)
        with pytest.raises(ValueError, match="steps must be in"):
            kind(steps=10**15)
    else:
        kind(steps=2**31 - 1, l0=falling)
        with pytest.raises(ValueError, match="l0 must stay above 0"):
            kind(steps=2**31 - 1, l0=schedules.linear(3.0, -1.0))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": -1.0}, "lr must stay in 0"), ({"lr": schedules.linear(1.0, -1.0)}, "lr must stay"),
        ({"lr": schedules.Warmup(1e300, 10)}, "lr must stay"), ({"eps": 0.0}, "eps"),
        ({"multiplier_min": 2.0, "multiplier_max": 1.0}, "multiplier_min must not be above"),
        ({"accumulation": 10**9}, "accumulation must be in"), ({"betas": (0.5, 1.0)}, "betas"),
        ({"gate_bias": schedules.per_layer([1e300, 0.0])}, "gate_bias must stay"),
    ],
)  # fmt: skip
def test_options_of_a_user_go_through_the_same_checks(options, named):
    with pytest.raises(ValueError, match=named):
        TrainingOptions(steps=10, **options)


def test_schedules_turn_where_they_are_smallest_and_largest():
    random = np.random.default_rng(0)
    for _ in range(200):
        steps = int(random.integers(1, 60))
        schedule = schedules.Pieces(tuple(zip(sorted(random.random(4)), random.normal(size=4))))
        if random.random() < 0.5:
            kind = ("constant", "linear", "cosine")[int(random.integers(3))]
            schedule = schedules.Warmup(1.0, int(random.integers(70)), kind, random.random(), random.random())
        values = [schedule.at(step, steps) for step in range(steps + 1)]
        turning = [values[step] for step in turning_steps(schedule, steps)]
        assert (min(turning), max(turning)) == pytest.approx((min(values), max(values)), abs=1e-12)


# ---- transcoders in training


def test_every_field_of_a_transcoder_checkpoint(tmp_path):
    path, wrong, refused = tmp_path / "a.safetensors", [], 0
    made(3).train(path)
    fields, tensors = contents(path, TRANSCODERS)
    trainer = made(3)
    for place in places({k: v for k, v in fields.items() if k != "build"}):
        for value in NASTY:
            if not write(path, changed(fields, place, value), tensors, TRANSCODERS):
                continue
            begin = time.monotonic()
            try:
                trainer.load(path)
                wrong += [] if trainer.options.to_dict() == made(3).options.to_dict() else [f"{place}"]
            except asp.FormatError as error:
                refused += bool(error.code)
            except Exception as error:
                wrong.append(f"{place} = {str(value)[:40]}: {type(error).__name__} {error}")
            if time.monotonic() - begin > SECONDS:
                wrong.append(f"{place} = {str(value)[:40]}: slow")
    assert wrong == []
    assert refused > 300


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("0/v/w_enc", -1.0, "value"), ("0/v/w_enc", np.nan, "nonfinite"), ("1/w_dec", np.inf, "nonfinite"),
        ("0/silent", -1, "value"), ("0/silent", 4, "value"), ("output_scale", 0.0, "value"),
        ("output_scale", np.nan, "nonfinite"), ("history", np.nan, "nonfinite"), ("history", -1.0, "value"),
    ],
)  # fmt: skip
def test_values_that_no_transcoder_training_has(tmp_path, name, value, code):
    path = tmp_path / "a.safetensors"
    made(3).train(path)
    fields, tensors = contents(path, TRANSCODERS)
    array = tensors[name].copy()
    array.flat[-1] = value
    write_bundle(path, TRANSCODERS, fields, {**tensors, name: array})
    trainer = made(3)
    with pytest.raises(asp.CheckpointError) as caught:
        trainer.load(path)
    assert (caught.value.code, caught.value.field) == (code, name)
    assert trainer.step_count == 0
