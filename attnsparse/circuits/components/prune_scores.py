"""Files of auto-circuit's prune scores: one array for each module that component edges lead into.

The names of modules are TransformerLens's: the q, k or v inputs of a layer's heads [heads, sources], the
input of its MLP [sources], the residual stream after the last layer [sources]. Sources are the senders before
the module: the embedding, then the heads and the MLP of each layer. With positions, each has these first.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ... import _check
from ...errors import quoted, raise_file_error
from ...io.atomic import write_atomic
from ...io.bundle_fields import check_finite
from ...io.limits import DEFAULT_LIMITS, Limits
from ...io.npz_file import NpzFile
from ...io.tensor_source import FileSource
from ...io.torch_file import TorchFile
from ...io.torch_write import torch_bytes
from ...model.model import Model
from . import names

if TYPE_CHECKING:
    from .circuit import ComponentCircuit

_TORCH = (".pkl", ".pt", ".pth")
_JOINT = "hook_attn_in"
_MAX_POSITIONS = 65536


class _Module(NamedTuple):
    """A module: the columns of its receivers, and how many senders are before it."""

    receivers: slice
    n_sources: int
    has_heads: bool

    @property
    def shape(self) -> tuple[int, ...]:
        heads = self.receivers.stop - self.receivers.start
        return (heads, self.n_sources) if self.has_heads else (self.n_sources,)


def _modules(shape: names.Shape) -> Iterator[tuple[str, _Module]]:
    """Name and place of every module, in the order of our receivers."""
    n_layer, n_head = shape
    width = 3 * n_head + 1
    for layer in range(n_layer):
        before = 1 + layer * (n_head + 1)
        for number, letter in enumerate("qkv"):
            first = layer * width + number * n_head
            yield f"blocks.{layer}.hook_{letter}_input", _Module(slice(first, first + n_head), before, True)
        mlp = layer * width + 3 * n_head
        yield f"blocks.{layer}.hook_mlp_in", _Module(slice(mlp, mlp + 1), before + n_head, False)
    last, n_senders = n_layer * width, 1 + n_layer * (n_head + 1)
    yield f"blocks.{n_layer - 1}.hook_resid_post", _Module(slice(last, last + 1), n_senders, False)


def to_prune_scores(circuit: ComponentCircuit, path: str | os.PathLike[str]) -> None:
    """Write the scores as auto-circuit's prune scores.

    Parameters
    ----------
    path : path
        What ends in .pkl, .pt or .pth is written with torch, in float32, for `torch.load` and auto-circuit's
        `load_cache`. Else a .npz in float64, whose ending is added if it is not there; for auto-circuit:
        ``{name: torch.tensor(array) for name, array in numpy.load(path).items()}``.

    Raises
    ------
    OSError
        If the file cannot be written.
    ImportError
        For the endings of torch, if torch is not installed.

    Notes
    -----
    The keys are the modules of a model of TransformerLens that was made patchable with `factorized=True,
    separate_qkv=True`. auto-circuit ranks by the absolute value.
    """
    target = Path(_check.path(path))
    arrays = {
        name: np.ascontiguousarray(circuit.scores[: module.n_sources, module.receivers].T).reshape(
            module.shape
        )
        for name, module in _modules(names.Shape(circuit.n_layer, circuit.n_head))
    }
    if target.suffix in _TORCH:
        data = {name: array.astype(np.float32) for name, array in arrays.items()}
        write_atomic(target, [torch_bytes(data, f"{target.name}: a path that ends in .npz needs no torch")])
        return
    written = io.BytesIO()
    np.savez(written, **arrays)  # type: ignore[arg-type]
    write_atomic(target if target.suffix == ".npz" else f"{target}.npz", [written.getvalue()])


def from_prune_scores(
    cls: type[ComponentCircuit],
    path: str | os.PathLike[str],
    model: Model,
    *,
    sum_positions: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> ComponentCircuit:
    """Read prune scores of auto-circuit.

    Parameters
    ----------
    path : path
        A .npz of `numpy.savez`, or what `torch.save` or auto-circuit's `save_cache` wrote. Nothing in it is
        executed.
    model : Model
        That the scores are of.
    sum_positions : bool, default False
        Add the scores of all positions where the file has positions, which component edges have not. For
        gradients with respect to masks this is what auto-circuit computes without positions.
    limits : Limits
        Of the sizes that files may have.

    Returns
    -------
    ComponentCircuit
        That ranks by the absolute value, as auto-circuit does.

    Raises
    ------
    OSError
        If the file cannot be read.
    FormatError
        With a code: those of .npz or torch files; missing_tensor, unexpected_tensor or size_mismatch for
        scores of another model, or with positions.
    UnsafeFileError
        For a torch file with anything but data.
    LimitError
        Above one of `limits`.
    NonFiniteError
        For scores that are not finite.
    TypeError
        For arguments of another type.
    """
    _check.instance(model, Model, "model")
    _check.flag(sum_positions, "sum_positions")
    label = _check.path(path)
    kind: Any = NpzFile if Path(label).suffix == ".npz" else TorchFile
    config = model.config
    shape = names.Shape(config.n_layer, config.n_head)
    with kind(label, limits=limits) as source:
        scores = _scores(source, dict(_modules(shape)), sum_positions)
    return cls(scores, shape.n_layer, shape.n_head, config.d_model, rank_by="absolute", model=model.name)


def _scores(source: FileSource, modules: dict[str, _Module], sum_positions: bool) -> np.ndarray:
    """float64 [senders, receivers] of a file with exactly these modules."""
    path = source.path
    joint = next((name for name in source.tensors if name.endswith(_JOINT)), None)
    if joint is not None:
        text = f"{quoted(joint)} is the input of q, k and v together: score again with separate_qkv=True"
        raise_file_error("unexpected_tensor", path, text, joint)
    for name in modules:
        if name not in source.tensors:
            text = f"there are no scores of {name}, which this model has: they are of another model"
            raise_file_error("missing_tensor", path, text, name)
    for name in source.tensors:
        if name not in modules:
            text = f"{quoted(name)} is no input of this model: the scores are of another model"
            raise_file_error("unexpected_tensor", path, text, name)
    for name, (found, _) in source.tensors.items():
        wanted = modules[name].shape
        if found == wanted or (sum_positions and found[1:] == wanted and found[0] <= _MAX_POSITIONS):
            continue
        text = f"{quoted(name)} has the shape {list(found)!s:.60}, this model needs {list(wanted)}"
        if found[1:] == wanted:
            text += "; it has positions: pass sum_positions=True to add their scores"
        raise_file_error("size_mismatch", path, text, name)
    last = list(modules.values())[-1]
    scores = np.zeros((last.n_sources, last.receivers.stop))
    for name, module in modules.items():
        array = source.read(name, "float64")
        check_finite({name: array}, (name,), path)
        array = array if array.shape == module.shape else array.sum(0)
        scores[: module.n_sources, module.receivers] = array.reshape(-1, module.n_sources).T
    return scores
