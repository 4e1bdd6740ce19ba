"""What a training checkpoint must hold to make a Trainer again, and which one of a folder is meant."""

from __future__ import annotations

import csv
import io
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ._version import __version__
from .config import Config
from .engine import core_for
from .errors import CheckpointError, located, quoted
from .training_options import TrainingOptions

RESULTS = ("loss", "ce", "expected_edges", "open_edges", "multiplier", "grad_norm")
_NAME = re.compile(r"step-(\d{6,})\.ckpt")
_KINDS = {
    "kind": str, "build": dict, "config": dict, "name": str, "options": dict, "data": str, "step": int,
    "multiplier": float, "ema": (float, type(None)),
}  # fmt: skip


def checkpoint_name(step: int) -> str:
    """File name of the checkpoint after `step` steps."""
    return f"step-{step:06d}.ckpt"


def checkpoint_steps(folder: str | os.PathLike[str]) -> list[int]:
    """Steps of the checkpoints in a folder, rising; none if there is no such folder."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


def last_checkpoint(folder: str | os.PathLike[str]) -> Path:
    """The checkpoint of `folder` with the highest step; FileNotFoundError if there is none."""
    steps = checkpoint_steps(folder)
    if not steps:
        raise FileNotFoundError(2, "no checkpoint step-NNNNNN.ckpt in this folder", os.fspath(folder))
    return Path(folder) / checkpoint_name(steps[-1])


def checked_meta(meta: dict[str, Any], path: Path) -> dict[str, Any]:
    """A checkpoint's meta with config and options built; CheckpointError `meta` if anything makes no
    sense."""
    for name, kind in _KINDS.items():
        if not isinstance(meta.get(name, meta), kind) or isinstance(meta[name], bool):
            text = f"{name} is missing or of the wrong kind"
            raise located(CheckpointError, "meta", path, text, field=name)
    try:
        config = Config.from_dict(meta["config"])
        options = TrainingOptions.from_json(meta["options"])
    except (TypeError, ValueError) as error:
        raise located(CheckpointError, "meta", path, str(error)) from error
    if meta["kind"] != "training" or not 0 <= meta["step"] <= options.steps:
        text = f"kind {quoted(meta['kind'])} or step {meta['step']} of {options.steps} makes no sense"
        raise located(CheckpointError, "meta", path, text, field="step")
    return {**meta, "config": config, "options": options}


def check_tensors(tensors: dict[str, np.ndarray], config: Config, step: int, path: Path) -> str:
    """Check names, shapes and types against the config; gives the dtype of the weights.

    CheckpointError: missing_tensor, unexpected_tensor, size_mismatch, dtype.
    """
    expected: dict[str, tuple[int, ...]] = {"history": (step, len(RESULTS))}
    for name, shape in config.parameter_shapes().items():
        expected |= {f"{kind}/{name}": shape for kind in ("weight", "adam.m", "adam.v")}
    dtype = str(next((a.dtype for name, a in tensors.items() if name.startswith("weight/")), "float32"))
    for name, shape in expected.items():
        if name not in tensors:
            text = f"tensor {quoted(name)} is missing"
            raise located(CheckpointError, "missing_tensor", path, text, field=name)
        array = tensors[name]
        if array.shape != shape:
            text = f"tensor {quoted(name)} has shape {list(array.shape)}, expected {list(shape)}"
            raise located(CheckpointError, "size_mismatch", path, text, field=name)
        wanted = "float64" if name == "history" else dtype
        if array.dtype != wanted or wanted == "int64":
            text = f"tensor {quoted(name)} has dtype {array.dtype}, expected {wanted}"
            raise located(CheckpointError, "dtype", path, text, field=name)
    for name in tensors:
        if name not in expected:
            text = f"tensor {quoted(name)} does not belong to this config"
            raise located(CheckpointError, "unexpected_tensor", path, text, field=name)
    return dtype


def check_options(stored: TrainingOptions, wanted: TrainingOptions, path: Path) -> None:
    """CheckpointError `options`, naming the first option in which `wanted` differs from what is stored."""
    changed = stored.difference(wanted)
    if changed:
        text = (
            f"was trained with {changed}={_shown(getattr(stored, changed))}, the resume asks for "
            f"{_shown(getattr(wanted, changed))}; resume with the same options or start a new run"
        )
        raise located(CheckpointError, "options", path, text, field=changed)


def check_data(stored: str, given: str, path: Path) -> None:
    """CheckpointError `data` if the digests differ."""
    if given != stored:
        text = f"was trained on other data (digest {quoted(stored[:12])}, given {quoted(given[:12])})"
        raise located(CheckpointError, "data", path, text, field="data")


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
                "the run goes on, but its bits may differ from those of an uninterrupted one"
            )
            warnings.warn(text, stacklevel=4)
            return


def read_seconds(path: Path, steps: int) -> dict[int, float]:
    """Seconds per step from a history.csv, as far as it can be read; they are for information only."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        seconds = {int(row["step"]): float(row["seconds"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}
    return {step: value for step, value in seconds.items() if 0 <= step < steps}


def _shown(value: Any) -> str:
    return str(getattr(value, "value", value))[:80]
