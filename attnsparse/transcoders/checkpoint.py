"""What a checkpoint of a transcoder training holds, and what must fit before a run continues from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..errors import CheckpointError, file_error, quoted
from ..io.bundle import CODES, Schema
from ..io.tensor_source import TensorInfo
from ..training.checkpoint import ENDING, build, check_finite
from .options import TranscoderOptions

if TYPE_CHECKING:
    from .trainer import TranscoderTrainer

SCHEMA = Schema("transcoder checkpoint", 1, ENDING)
WEIGHTS = ("w_enc", "b_enc", "w_dec", "b_dec", "log_threshold")
ARRAYS = (*WEIGHTS, *(f"m/{name}" for name in WEIGHTS), *(f"v/{name}" for name in WEIGHTS), "silent")
RESULTS = ("loss", "error", "penalty", "aux", "l0", "grad_norm", "n_dead")


def meta(trainer: TranscoderTrainer) -> dict[str, Any]:
    """The fields of a checkpoint: what the run is."""
    return {
        "build": build(),
        "model": trainer.model.digest,
        "data": trainer.data.digest,
        "start": "" if trainer.start is None else trainer.start.digest,
        "options": trainer.options.to_dict(),
        "step": trainer.step_count,
    }


def check(
    trainer: TranscoderTrainer, found: dict[str, Any], entries: Mapping[str, TensorInfo], path: Path
) -> None:
    """Check that a checkpoint is one of this run, before a tensor is read.

    CheckpointError: meta, model, data, start, options, missing_tensor, unexpected_tensor, size_mismatch,
    dtype.
    """
    own = meta(trainer)
    for name, value in own.items():
        if type(found.get(name)) is not type(value):
            text = f"{name} is missing or of the wrong kind"
            raise file_error(CheckpointError, "meta", path, text, field=name)
    for name in found:
        if name not in own:
            text = f"meta has {quoted(name)}, which a checkpoint does not have"
            raise file_error(CheckpointError, "meta", path, text, field="meta")
    steps = trainer.options.steps
    if found["step"] < 0:
        text = f"step {found['step']} is out of range 0..{steps}"
        raise file_error(CheckpointError, "meta", path, text, field="step")
    for name in ("model", "data", "start"):
        if found[name] != own[name]:
            digests = f"digest {quoted(found[name][:12])}, given {quoted(own[name][:12])}"
            text = f"was trained with another {name} ({digests})"
            raise file_error(CheckpointError, name, path, text, field=name)
    _check_options(trainer.options, found["options"], path)
    if found["step"] > steps:
        text = f"step {found['step']} is out of range 0..{steps}"
        raise file_error(CheckpointError, "meta", path, text, field="step")
    _check_entries(trainer, entries, found["step"], path)


def check_values(tensors: Mapping[str, np.ndarray], n_features: Sequence[int], path: Path) -> None:
    """Numbers that a run can have: CheckpointError `nonfinite` or `value`, naming the tensor."""
    history = tensors["history"]
    step = history.shape[1]
    for name, array in tensors.items():
        check_finite(array, name, path)
        kind = name.partition("/")[2]
        if kind.startswith("v/") and (array < 0).any():
            _value(path, name, "has a negative second moment")
        if kind.startswith(("m/", "v/")) and step == 0 and array.any():
            _value(path, name, "is not 0 before the first step")
        if kind == "silent" and not ((array >= 0) & (array <= step)).all():
            _value(path, name, f"has counts outside 0..{step}")
    if not ((tensors["output_scale"] >= 1e-15) & (tensors["output_scale"] <= 1e15)).all():
        _value(path, "output_scale", "has numbers outside 1e-15..1e15")
    for name, most in (("l0", n_features), ("n_dead", n_features), ("grad_norm", [np.inf] * len(history))):
        column = history[:, :, RESULTS.index(name)]
        if not ((column >= 0) & (column <= np.reshape(most, (-1, 1)))).all():
            _value(path, "history", f"has a {name} below 0 or above the number of features")


def _value(path: Path, name: str, text: str) -> NoReturn:
    raise file_error(CheckpointError, "value", path, f"tensor {quoted(name)} {text}", field=name)


def _check_options(wanted: TranscoderOptions, data: dict[str, Any], path: Path) -> None:
    try:
        stored = TranscoderOptions.from_dict(data)
    except (TypeError, ValueError) as error:
        raise file_error(CheckpointError, "meta", path, str(error), field="options") from error
    changed = stored.difference(wanted)
    if changed:
        text = (
            f"was trained with {changed}={getattr(stored, changed)!s:.60}, the run asks for "
            f"{getattr(wanted, changed)!s:.60}; continue with the same options or choose another checkpoint"
        )
        raise file_error(CheckpointError, "options", path, text, field=changed)


def _check_entries(
    trainer: TranscoderTrainer, tensors: Mapping[str, TensorInfo], step: int, path: Path
) -> None:
    layers = trainer._layers
    expected = {
        "output_scale": ((len(layers),), "F64"),
        "history": ((len(layers), step, len(RESULTS)), "F64"),
    }
    for layer, (core, i) in enumerate(layers):
        for name in ARRAYS:
            array = core.array(name, i)
            expected[f"{layer}/{name}"] = (array.shape, CODES[array.dtype.name])
    for name, (shape, dtype) in expected.items():
        if name not in tensors:
            text = f"tensor {quoted(name)} is missing"
            raise file_error(CheckpointError, "missing_tensor", path, text, field=name)
        if tensors[name].shape != shape:
            text = f"tensor {quoted(name)} has shape {list(tensors[name].shape)}, expected {list(shape)}"
            raise file_error(CheckpointError, "size_mismatch", path, text, field=name)
        if tensors[name].dtype != dtype:
            text = f"tensor {quoted(name)} has dtype {tensors[name].dtype}, expected {dtype}"
            raise file_error(CheckpointError, "dtype", path, text, field=name)
    for name in tensors:
        if name not in expected:
            text = f"tensor {quoted(name)} does not belong to this run"
            raise file_error(CheckpointError, "unexpected_tensor", path, text, field=name)
