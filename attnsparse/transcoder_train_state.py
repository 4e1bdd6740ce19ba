"""What a checkpoint of a transcoder training holds, and what must fit before a run goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import CheckpointError, located, quoted
from .training_file import Contents
from .training_state import build, warn_of_other_build
from .transcoder_options import TranscoderOptions

if TYPE_CHECKING:
    from .transcoder_train import TranscoderTrainer

KIND = "transcoder training"
WEIGHTS = ("w_enc", "b_enc", "w_dec", "b_dec", "log_threshold")
ARRAYS = (*WEIGHTS, *(f"m/{name}" for name in WEIGHTS), *(f"v/{name}" for name in WEIGHTS), "silent")
RESULTS = ("loss", "error", "penalty", "aux", "l0", "grad_norm", "n_dead")


def meta(trainer: TranscoderTrainer) -> dict[str, Any]:
    """The header of a checkpoint: what the run is."""
    return {
        "kind": KIND,
        "build": build(),
        "model": trainer.model.digest,
        "data": trainer.data.digest,
        "start": "" if trainer.start is None else trainer.start.digest,
        "options": trainer.options.to_json(),
        "step": trainer.step_count,
    }


def checked(trainer: TranscoderTrainer, contents: Contents, path: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint of this run.

    CheckpointError: meta, model, data, start, options, missing_tensor, unexpected_tensor, size_mismatch,
    dtype.
    """
    found, own = contents.meta, meta(trainer)
    for name, value in own.items():
        if type(found.get(name)) is not type(value):
            text = f"{name} is missing or of the wrong kind"
            raise located(CheckpointError, "meta", path, text, field=name)
    steps = trainer.options.steps
    if found["kind"] != KIND or found["step"] < 0:
        text = f"kind {quoted(found['kind'])} or step {found['step']} of {steps} makes no sense"
        raise located(CheckpointError, "meta", path, text, field="kind")
    for name in ("model", "data", "start"):
        if found[name] != own[name]:
            digests = f"digest {quoted(found[name][:12])}, given {quoted(own[name][:12])}"
            text = f"was trained with another {name} ({digests})"
            raise located(CheckpointError, name, path, text, field=name)
    _check_options(trainer.options, found["options"], path)
    if found["step"] > steps:
        text = f"step {found['step']} of {steps} makes no sense"
        raise located(CheckpointError, "meta", path, text, field="step")
    _check_tensors(trainer, contents.tensors, found["step"], path)
    warn_of_other_build(found["build"], path)
    return contents.tensors


def _check_options(wanted: TranscoderOptions, data: dict[str, Any], path: Path) -> None:
    try:
        stored = TranscoderOptions.from_json(data)
    except (TypeError, ValueError) as error:
        raise located(CheckpointError, "meta", path, str(error), field="options") from error
    changed = stored.difference(wanted)
    if changed:
        text = (
            f"was trained with {changed}={getattr(stored, changed)!s:.60}, the run asks for "
            f"{getattr(wanted, changed)!s:.60}; go on with the same options or choose another checkpoint"
        )
        raise located(CheckpointError, "options", path, text, field=changed)


def _check_tensors(trainer: TranscoderTrainer, tensors: dict[str, np.ndarray], step: int, path: Path) -> None:
    layers = trainer._layers
    expected = {
        "output_scale": ((len(layers),), "float64"),
        "history": ((len(layers), step, len(RESULTS)), "float64"),
    }
    for layer, core in enumerate(layers):
        for name in ARRAYS:
            array = core.array(name)
            expected[f"{layer}/{name}"] = (array.shape, str(array.dtype))
    for name, (shape, dtype) in expected.items():
        if name not in tensors:
            text = f"tensor {quoted(name)} is missing"
            raise located(CheckpointError, "missing_tensor", path, text, field=name)
        if tensors[name].shape != shape:
            text = f"tensor {quoted(name)} has shape {list(tensors[name].shape)}, expected {list(shape)}"
            raise located(CheckpointError, "size_mismatch", path, text, field=name)
        if tensors[name].dtype != dtype:
            text = f"tensor {quoted(name)} has dtype {tensors[name].dtype}, expected {dtype}"
            raise located(CheckpointError, "dtype", path, text, field=name)
    for name in tensors:
        if name not in expected:
            text = f"tensor {quoted(name)} does not belong to this run"
            raise located(CheckpointError, "unexpected_tensor", path, text, field=name)
