"""Training checkpoints: what one must hold to make a Trainer again, and which one of a folder is meant."""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .._engine import core_for
from .._version import __version__
from ..errors import CheckpointError, FormatError, file_error, quoted
from ..io.atomic import remove_stale
from ..io.bundle import SUFFIX, Bundle, Schema
from ..io.limits import DEFAULT_LIMITS
from ..io.regular_file import RegularFile
from ..io.tensor_source import TensorInfo
from ..model.config import Config
from ..model.locate import TRAINING
from .held_out import FIELDS
from .options import TrainingOptions
from .schedules import value_at

SCHEMA = TRAINING
ENDING = SCHEMA.ending
FIRST_RESULTS = ("loss", "ce", "expected_edges", "open_edges", "multiplier", "grad_norm")
# what is kept of each step; files of before have the first ones alone
FIRST_COLUMNS = ["step", *FIRST_RESULTS, "seconds", "lr", "gate_bias", "tau"]  # of their history.csv
RESULTS = (*FIRST_RESULTS, "edges_per_token", "self_edges_per_token")
MOST_MULTIPLIER = 1e15
_NAME = re.compile(r"step-(\d{6,})" + re.escape(ENDING))
_LINE_BYTES = 400  # of history.csv, at most
_NUMBER = re.compile(r"nan|-?\d{1,30}(\.\d{1,30})?(e[+-]\d{1,3})?")
_KINDS: dict[str, type | tuple[type, ...]] = {
    "build": dict, "config": dict, "name": str, "options": dict, "data": str, "step": int,
    "multiplier": float, "ema": (float, type(None)), "held_out": str,
}  # fmt: skip
_OPTIONAL = {"held_out"}


def checkpoint_name(step: int) -> str:
    """File name of the checkpoint after `step` steps."""
    return f"step-{step:06d}{ENDING}"


def checkpoint_steps(folder: str | os.PathLike[str]) -> list[int]:
    """Steps of the checkpoints in a folder, rising; none if there is no such folder."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


def prepare(folder: Path) -> None:
    """Make the folder of a run if need be, and remove what a killed save left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale(folder)


def remove_old(folder: Path, newest: int, keep: int) -> None:
    """Remove the checkpoints of a folder up to step `newest` but the last `keep`."""
    steps = [step for step in checkpoint_steps(folder) if step <= newest]
    for step in steps[:-keep]:
        (folder / checkpoint_name(step)).unlink(missing_ok=True)


def last_checkpoint(folder: str | os.PathLike[str]) -> Path:
    """The checkpoint of `folder` with the highest step; FileNotFoundError if there is none."""
    steps = checkpoint_steps(folder)
    if not steps:
        raise FileNotFoundError(2, f"no checkpoint step-NNNNNN{ENDING} in this folder", os.fspath(folder))
    return Path(folder) / checkpoint_name(steps[-1])


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], schema: Schema) -> Iterator[Bundle]:
    """A checkpoint, open for reading.

    What its reader or the body raises as FormatError becomes CheckpointError; if another checkpoint of the
    folder is intact, the message names it. A CheckpointError of the body, which is about the run, passes.
    """
    try:
        with Bundle(path, schema) as bundle:
            yield bundle
    except FormatError as error:
        if type(error) is not FormatError:  # a limit, or what the body refused
            raise
        text, file = str(error), Path(schema.file(path))
        other = None if error.code in ("version", "not_a_file") else intact_sibling(file, schema)
        if other is not None:
            text += f"; {other.name} in the same folder is intact"
        raise file_error(
            CheckpointError, error.code, file, text.partition(": ")[2], offset=error.offset, field=error.field
        ) from error


def intact_sibling(path: Path, schema: Schema) -> Path | None:
    """Another checkpoint of the same folder that is intact, the last by name; or None."""
    try:
        others = sorted(p for p in path.parent.iterdir() if p.suffix == SUFFIX and p.name != path.name)
    except OSError:
        return None
    for other in reversed(others):
        with contextlib.suppress(FormatError, OSError, MemoryError), Bundle(other, schema) as bundle:
            bundle.verify()
            return other
    return None


def checked_meta(meta: dict[str, Any], path: Path) -> dict[str, Any]:
    """A checkpoint's fields with config and options built; CheckpointError `meta` if anything makes no
    sense."""
    for name, kind in _KINDS.items():
        if name not in meta and name in _OPTIONAL:
            continue
        if name not in meta or not isinstance(meta[name], kind) or isinstance(meta[name], bool):
            _no_run(path, name, "is missing or of the wrong kind")
    for name in meta:
        if name not in _KINDS:
            _no_run(path, "meta", f"has {quoted(name)}, which a checkpoint does not have")
    try:
        config = Config.from_dict(meta["config"])
        options = TrainingOptions.from_dict(meta["options"])
        options.check(config.gated, config.n_layer)
    except (TypeError, ValueError) as error:
        raise file_error(CheckpointError, "meta", path, str(error)) from error
    step = meta["step"]
    if not 0 <= step <= options.steps:
        _no_run(path, "step", f"is {str(step)[:40]} of a run of {options.steps}")
    if len(meta["name"].encode("utf-8", "replace")) > DEFAULT_LIMITS.max_name_bytes:
        _no_run(path, "name", f"has more than {DEFAULT_LIMITS.max_name_bytes:,} bytes")
    if bool(options.evaluate_every) != ("held_out" in meta):
        _no_run(path, "held_out", f"does not fit evaluate_every={options.evaluate_every}")
    _check_multiplier(meta, config, options, path)
    return {**meta, "config": config, "options": options}


def _check_multiplier(meta: dict[str, Any], config: Config, options: TrainingOptions, path: Path) -> None:
    """Multiplier and moving average are what a run can have after so many steps."""
    step, multiplier, ema = meta["step"], meta["multiplier"], meta["ema"]
    if config.gated:
        limits = (options.multiplier_min, options.multiplier_max)
        low, high = (value_at(limit, step, options.steps) for limit in limits)
    else:
        low = high = options.first_multiplier()
    if not low <= multiplier <= high:
        _no_run(path, "multiplier", f"is {multiplier:g}, a run has {low:g}..{high:g} after {step} steps")
    # with held-out sequences there is nothing to average before the first evaluation
    first = options.evaluate_every if options.constraint == "held-out" else 0
    if (ema is None) != (step <= first or not config.gated):
        _no_run(path, "ema", f"is {'missing' if ema is None else f'{ema:g}'} after {step} steps")
    if ema is not None and (not math.isfinite(ema) or (options.geco_relative and ema < 0)):
        _no_run(path, "ema", f"is {ema:g}, a cross-entropy is not below 0")


def _no_run(path: Path, field: str, text: str) -> NoReturn:
    raise file_error(CheckpointError, "meta", path, f"{field} {text}", field=field)


def check_entries(tensors: Mapping[str, TensorInfo], meta: Mapping[str, Any], path: Path) -> None:
    """Check names, shapes and types against the config, before a tensor is read.

    CheckpointError: missing_tensor, unexpected_tensor, size_mismatch, dtype.
    """
    config, step = meta["config"], meta["step"]
    before = "history" in tensors and tensors["history"].shape == (step, len(FIRST_RESULTS))
    expected: dict[str, tuple[int, ...]] = {"history": (step, len(FIRST_RESULTS if before else RESULTS))}
    if "held_out" in meta:
        every, steps = meta["options"].evaluate_every, meta["options"].steps
        n = step // max(every, 1) + (step == steps and bool(step % max(every, 1)))
        expected["held_out"] = (n, FIELDS)
    for name, shape in config.parameter_shapes().items():
        expected |= {f"{kind}/{name}": shape for kind in ("weight", "adam.m", "adam.v")}
    dtype = next((info.dtype for name, info in tensors.items() if name.startswith("weight/")), "F32")
    for name, shape in expected.items():
        if name not in tensors:
            text = f"tensor {quoted(name)} is missing"
            raise file_error(CheckpointError, "missing_tensor", path, text, field=name)
        array = tensors[name]
        if array.shape != shape:
            text = f"tensor {quoted(name)} has shape {list(array.shape)}, expected {list(shape)}"
            raise file_error(CheckpointError, "size_mismatch", path, text, field=name)
        wanted = "F64" if name in ("history", "held_out") else dtype
        if array.dtype != wanted or not wanted.startswith("F"):
            text = f"tensor {quoted(name)} has dtype {array.dtype}, expected {wanted}"
            raise file_error(CheckpointError, "dtype", path, text, field=name)
    for name in tensors:
        if name not in expected:
            text = f"tensor {quoted(name)} does not belong to this config"
            raise file_error(CheckpointError, "unexpected_tensor", path, text, field=name)


def check_values(tensors: Mapping[str, np.ndarray], meta: dict[str, Any], path: Path) -> None:
    """Numbers that a run can have: CheckpointError `nonfinite` or `value`, naming the tensor."""
    for name, array in tensors.items():
        check_finite(_known_history(array) if name == "history" else array, name, path)
        if name.startswith("adam.v/") and (array < 0).any():
            _value(path, name, "has a negative second moment")
        if name.startswith("adam.") and meta["step"] == 0 and array.any():
            _value(path, name, "is not 0 before the first step")
    if (tensors["history"][:, 1:] < 0).any() or (tensors.get("held_out", np.zeros(0)) < 0).any():
        _value(path, "history", "holds a cross-entropy, number of edges, multiplier or norm below 0")


def _known_history(history: np.ndarray) -> np.ndarray:
    """All numbers of a history that must be known.

    A run that was continued from a file of before has no edges per token for the steps until there.
    """
    later = history[:, len(FIRST_RESULTS) :]
    unknown = int(np.isnan(later).all(axis=1).argmin()) if later.size else len(history)
    return np.concatenate([history[:, : len(FIRST_RESULTS)].ravel(), later[unknown:].ravel()])


def check_finite(array: np.ndarray, name: str, path: Path) -> None:
    """CheckpointError `nonfinite` if an array of numbers holds NaN or infinity."""
    if not np.isfinite(array).all():
        text = f"tensor {quoted(name)} has numbers that are not finite"
        raise file_error(CheckpointError, "nonfinite", path, text, field=name)


def _value(path: Path, name: str, text: str) -> NoReturn:
    raise file_error(CheckpointError, "value", path, f"tensor {quoted(name)} {text}", field=name)


def check_options(stored: TrainingOptions, wanted: TrainingOptions, path: Path) -> None:
    """CheckpointError `options`, naming the first option in which `wanted` differs from what is stored."""
    changed = stored.difference(wanted)
    if changed:
        text = (
            f"was trained with {changed}={_shown(getattr(stored, changed))}, the resume asks for "
            f"{_shown(getattr(wanted, changed))}; resume with the same options or start a new run"
        )
        raise file_error(CheckpointError, "options", path, text, field=changed)


def check_data(stored: str, given: str, path: Path) -> None:
    """CheckpointError `data` if the digests differ."""
    if given != stored:
        text = f"was trained on other data (digest {quoted(stored[:12])}, given {quoted(given[:12])})"
        raise file_error(CheckpointError, "data", path, text, field="data")


def check_held_out(stored: str | None, given: str | None, path: Path) -> None:
    """CheckpointError `held_out` unless the run has the held-out sequences it began with."""
    if stored == given:
        return
    was = "without held-out sequences" if stored is None else f"with held_out of digest {quoted(stored[:12])}"
    asked = "none" if given is None else quoted(given[:12])
    text = f"was trained {was}, the resume has {asked}; resume with the same ones"
    raise file_error(CheckpointError, "held_out", path, text, field="held_out")


def build() -> dict[str, str]:
    """What the bits of a run depend on beside its input: version, kernels and BLAS."""
    machine = core_for("float32").machine()
    return {"version": __version__, **{name: machine[name] for name in ("isa", "blas_core", "blas_config")}}


def warn_of_other_build(stored: dict[str, Any], path: Path) -> None:
    """UserWarning that names what differs: bits are promised for one build on one kind of CPU only."""
    for name, value in build().items():
        if stored.get(name) != value:
            text = (
                f"{path.name} was written with {name} {quoted(stored.get(name))}, this is {quoted(value)}: "
                "the run continues, but its bits may differ from those of an uninterrupted one"
            )
            warnings.warn(text, stacklevel=4)
            return


def read_seconds(path: Path, steps: int, columns: list[str]) -> dict[int, float]:
    """Seconds of each of the first `steps` steps from a history.csv; none if there is no such file.

    No more of the file is read than so many lines take. Raises FormatError `value` for what is no history:
    the seconds are for information only, so the file may be deleted.
    """
    try:
        with RegularFile(path) as file:
            whole = file.size <= _LINE_BYTES * (steps + 1)
            data = file.read(0, min(file.size, _LINE_BYTES * (steps + 1)))
    except FileNotFoundError:
        return {}
    *lines, rest = data.decode("utf-8", "replace").split("\n")
    columns = lines[0].split(",") if lines and lines[0].split(",") in (columns, FIRST_COLUMNS) else columns
    if lines[:1] != [",".join(columns)]:
        _no_history(path, 1)
    if rest and (whole or len(lines) <= steps):  # else a part of a line that is not wanted
        _no_history(path, len(lines) + 1)
    seconds = {}
    for step, line in enumerate(lines[1 : steps + 1]):
        fields = line.split(",")
        right = len(fields) == len(columns) and all(map(_NUMBER.fullmatch, fields))
        if not right or fields[0] != str(step) or fields[columns.index("seconds")].startswith("-"):
            _no_history(path, step + 2)
        seconds[step] = float(fields[columns.index("seconds")])
    return seconds


def _no_history(path: Path, line: int) -> NoReturn:
    text = f"line {line} is not as a trainer writes it; delete the file to continue without seconds per step"
    raise file_error(FormatError, "value", path, text)


def _shown(value: Any) -> str:
    return str(getattr(value, "value", value))[:80]
