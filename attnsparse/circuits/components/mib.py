"""The folders that MIB's circuit track takes as a submission, and EAP-IG's torch files in them.

A folder has the name of a task and a model, and holds either one file of importances or nine circuits, of no
more than 0.1, 0.2, 0.5, 1, 2, 5, 10, 20 and 50 % of all component edges. Importances are those of component
edges (written from a `ComponentCircuit`), or of nodes or neurons (from `ComponentScores`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ... import _check
from ...errors import raise_file_error
from ...io.atomic import write_together
from ...io.bundle_fields import check_finite
from ...io.limits import Limits
from ...io.regular_file import read_small
from ...io.strict_json import parse_object, shown
from ...io.torch_file import TorchFile
from ...io.torch_write import torch_bytes
from ...model.model import Model
from . import file as component_file
from . import names
from .values import checked_mask

if TYPE_CHECKING:
    from .circuit import ComponentCircuit
    from .scores import ComponentScores

FOLDERS = {"ioi_gpt2": (12, 12, 768), "ioi_interpbench": (6, 4, None)}
"""Folders of MIB for models of GPT-2's class: layers, heads, and width if MIB's code says it."""
SHARES = names.GRID[:-1]
FORMATS = ("json", "pt")
KINDS = ("importances", "circuits")
_IMPORTANCES = "importances"


def to_mib(
    circuit: ComponentCircuit,
    folder: str | os.PathLike[str],
    *,
    kind: str = "importances",
    masks: npt.ArrayLike | None = None,
    prune: bool = True,
    format: str = "json",
) -> None:
    """Write the folder that MIB's circuit track takes as a submission.

    Parameters
    ----------
    folder : path
        Named as MIB asks: "ioi_gpt2" (12 layers of 12 heads, 768 wide) or "ioi_interpbench" (6 layers of 4
        heads); it is made if it is not there. What this call wrote there before is replaced.
    kind : {"importances", "circuits"}, default "importances"
        "importances": one file with all scores, from which MIB takes circuits by absolute score. "circuits":
        nine files, for 0.1, 0.2, 0.5, 1, 2, 5, 10, 20 and 50 % of all component edges.
    masks : array_like of bool, optional
        [9, senders, receivers]: the nine circuits, the smallest first. Default: the best by this ranking.
    prune : bool, default True
        As in `masks`, for the nine circuits of the ranking.
    format : {"json", "pt"}, default "json"
        "pt" is EAP-IG's file of torch, with scores in float32, and needs torch.

    Raises
    ------
    ValueError
        For a folder that MIB does not ask for, a circuit of another model's sizes, one of the nine with more
        component edges than its share, or masks without kind="circuits".
    FileExistsError
        If the folder holds other files, which MIB would take for circuits.
    OSError
        If a file cannot be written.
    ImportError
        For "pt", if torch is not installed.
    TypeError
        For arguments of another type.
    """
    _check.choice(kind, "kind", KINDS)
    _check.choice(format, "format", FORMATS)
    shape = names.Shape(circuit.n_layer, circuit.n_head)
    target = _submission(folder, shape, circuit.d_model)
    if kind == "importances":
        if masks is not None:
            raise ValueError("masks are circuits of their own: pass kind='circuits' with them")
        all_of_them = component_file.exists(shape)
        inside = {_IMPORTANCES: all_of_them if circuit.given is None else circuit.given}
    else:
        n = circuit.n_edges
        allowed = [int(share * n) for share in SHARES]
        chosen = circuit.masks(allowed, prune=prune)[0] if masks is None else _nine(masks, circuit, allowed)
        inside = {f"circuit-{100 * share:g}": mask for share, mask in zip(SHARES, chosen)}
    scores, d_model = circuit.scores, circuit.d_model
    if format == "json":
        files = {name: component_file.json_bytes(shape, d_model, scores, m) for name, m in inside.items()}
    else:
        files = {name: _pt_bytes(shape, d_model, scores, mask) for name, mask in inside.items()}
    _write(target, files, format)


def scores_to_mib(
    scores: ComponentScores, folder: str | os.PathLike[str], model: Model, *, format: str = "json"
) -> None:
    """Write importances of nodes or neurons as the folder that MIB's circuit track takes.

    The scores are of level="node" or "neuron"; for component edges, see `ComponentCircuit.to_mib`.

    Parameters
    ----------
    folder : path
        As in `ComponentCircuit.to_mib`.
    model : Model
        That the scores are of.
    format : {"json", "pt"}, default "json"
        As in `ComponentCircuit.to_mib`.

    Raises
    ------
    ValueError
        For scores of component edges or of another model, and a folder as in `ComponentCircuit.to_mib`.
    FileExistsError
        If the folder holds other files, which MIB would take for circuits.
    OSError
        If a file cannot be written.
    ImportError
        For "pt", if torch is not installed.
    TypeError
        For arguments of another type.
    """
    _check.instance(model, Model, "model")
    _check.choice(format, "format", FORMATS)
    if scores.level == "edge":
        raise ValueError(
            "these are scores of component edges: component_circuit(scores, model).to_mib(folder) writes them"
        )
    config = model.config
    if scores.senders != tuple(names.senders(config)):
        raise ValueError(f"these scores are of another model than {model.name!r}: its components differ")
    shape = names.Shape(config.n_layer, config.n_head)
    target = _submission(folder, shape, config.d_model)
    values, nothing = scores.scores, np.zeros(component_file.exists(shape).shape)
    outside = nothing.astype(bool)
    if format == "pt":
        told = {f"{scores.level}s_scores": values.astype(np.float32)}
        if scores.level == "neuron":
            told["neurons_in_graph"] = np.ones(values.shape, bool)
        written = _pt_bytes(shape, config.d_model, nothing, outside, told)
    else:
        nodes = _told_of_nodes(scores.senders, values, shape.n_head)
        written = component_file.json_bytes(shape, config.d_model, nothing, outside, nodes)
    _write(target, {_IMPORTANCES: written}, format)


def _told_of_nodes(senders: Iterable[str], values: np.ndarray, n_head: int) -> dict[str, dict[str, Any]]:
    """What EAP-IG's JSON tells of each node; at a head it has the neurons of all heads of the layer."""
    if values.ndim == 1:
        return {name: {"score": value} for name, value in zip(senders, values.tolist())}
    nodes = {}
    for place, name in enumerate(senders):
        first = place - int(name.split(".h")[1]) if ".h" in name else place
        rows = values[first : first + n_head] if ".h" in name else values[place]
        nodes[name] = {"neurons": np.ones(rows.shape, bool).tolist(), "neurons_scores": rows.tolist()}
    return nodes


def _submission(folder: str | os.PathLike[str], shape: names.Shape, d_model: int) -> Path:
    """The folder, if MIB asks for one of its name for models of these sizes."""
    target = Path(os.path.abspath(_check.path(folder, "folder")))
    if target.name not in FOLDERS:
        known = " or ".join(map(repr, FOLDERS))
        raise ValueError(
            f"MIB takes folders of a task and one of its models, which are {known} for models of this class; "
            f"got {target.name!r:.60}"
        )
    n_layer, n_head, width = FOLDERS[target.name]
    if (n_layer, n_head) != shape or d_model != (width or d_model):
        wide = "" if width is None else f", {width} wide"
        raise ValueError(
            f"{target.name!r} is for a model of {n_layer} layers of {n_head} heads{wide}; this one has "
            f"{shape.n_layer} of {shape.n_head}, {d_model} wide"
        )
    return target


def _nine(masks: npt.ArrayLike, circuit: ComponentCircuit, allowed: list[int]) -> np.ndarray:
    """Nine sets of component edges, none larger than allowed."""
    chosen = checked_mask(masks, "masks", (len(SHARES), *circuit.scores.shape))
    real = component_file.exists(names.Shape(circuit.n_layer, circuit.n_head))
    for share, most, mask in zip(SHARES, allowed, chosen):
        n = int((mask & real).sum())
        if n > most:
            raise ValueError(
                f"the circuit for {100 * share:g} % has {n:,} component edges, MIB takes at most {most:,} of "
                f"{circuit.n_edges:,}"
            )
    inside: np.ndarray = chosen & real
    return inside


def _pt_bytes(
    shape: names.Shape,
    d_model: int,
    scores: np.ndarray,
    mask: np.ndarray,
    nodes: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """A circuit as EAP-IG's Graph.to_pt writes it."""
    data = {
        "cfg": component_file.config(shape, d_model),
        "src_nodes": names.senders(shape),
        "dst_nodes": names.receivers(shape),
        "edges_scores": scores.astype(np.float32),
        "edges_in_graph": mask,
        "nodes_in_graph": mask.any(axis=1),
        **(nodes or {}),
    }
    return torch_bytes(data, "format='json' needs no torch")


def _write(folder: Path, files: Mapping[str, bytes], format: str) -> None:
    """Write the files of a submission in place of the ones of an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {f"circuit-{100 * share:g}" for share in SHARES} | {_IMPORTANCES}
    there = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    for path in there:
        if path.suffix[1:] not in FORMATS or path.name.removesuffix(path.suffix) not in own:
            raise FileExistsError(
                f"{folder} holds {path.name!r:.60}, and MIB takes every file of a submission for a circuit; "
                "remove it or give another folder"
            )
    pieces = [(folder / f"{name}.{format}", [data]) for name, data in files.items()]
    write_together(pieces, [path.name for path in there])


# ------------------------------------------------------------------------------------------------ reading


def from_mib(
    cls: type[ComponentCircuit],
    folder: str | os.PathLike[str],
    share: float | None = None,
    *,
    limits: Limits = component_file.JSON_LIMITS,
) -> ComponentCircuit:
    """Read a submission to MIB's circuit track, of component edges.

    Parameters
    ----------
    folder : path
        With one .json or .pt file of importances, or nine of circuits; its name may be any.
    share : float, optional
        Which of nine circuits: 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2 or 0.5. None: importances.
    limits : Limits
        Of the sizes that files may have.

    Returns
    -------
    ComponentCircuit
        Its set of component edges is `given`. MIB ranks by the absolute score.

    Raises
    ------
    OSError
        If a file cannot be read.
    FormatError
        With a code: those of JSON texts and torch files; value for another number of files, a circuit with
        more component edges than its share, and scores of nodes.
    UnsafeFileError
        For a torch file with anything but data.
    LimitError
        Above one of `limits`.
    ValueError
        If the folder holds importances and `share` is given, or circuits and it is not one of theirs.
    """
    path = Path(_check.path(folder, "folder"))
    if share is not None and _check.share(share, "share") not in SHARES:
        raise ValueError(f"share must be one of {', '.join(map(str, SHARES))}, got {share}")
    files = _files(path)
    if (share is None) != (len(files) == 1):
        wanted = "give no share" if share is not None else "give the share of one of them"
        holds = "importances" if len(files) == 1 else "nine circuits"
        raise ValueError(f"{path} holds {holds}: {wanted}")
    circuits = [_read(file, limits) for file in files]
    if share is None:
        [fields] = circuits
        if not fields["scores"].any() and not fields["given"].any():
            text = "no component edge has a score: scores of nodes are read by ComponentScores.from_mib"
            raise_file_error("value", str(files[0]), text, "edges")
        return cls(**fields)
    circuits.sort(key=lambda fields: int(fields["given"].sum()))
    n = len(list(component_file.edge_places(_shape(circuits[0]))))
    for of_all, fields in zip(SHARES, circuits):
        found = int(fields["given"].sum())
        if found > int(of_all * n):
            text = (
                f"of its nine circuits, the one for {100 * of_all:g} % has {found:,} of {n:,} component edges"
            )
            raise_file_error("value", str(path), text, "edges")
    return cls(**circuits[SHARES.index(share)])


def scores_from_mib(
    cls: type[ComponentScores],
    folder: str | os.PathLike[str],
    model: Model,
    *,
    limits: Limits = component_file.JSON_LIMITS,
) -> ComponentScores:
    """Read a submission to MIB's circuit track, of importances of nodes or neurons.

    Parameters
    ----------
    folder : path
        With one .json or .pt file; its name may be any.
    model : Model
        That the scores are of.
    limits : Limits
        Of the sizes that files may have.

    Returns
    -------
    ComponentScores
        With level="neuron" if the file has scores of neurons, else "node". How they were made is not known,
        and the names say so by being empty.

    Raises
    ------
    OSError
        If a file cannot be read.
    FormatError
        With a code: those of JSON texts and torch files; value for another number of files, nodes without a
        score, and sizes of another model.
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
    files = _files(Path(_check.path(folder, "folder")))
    if len(files) != 1:
        raise_file_error("value", str(files[0].parent), "nine circuits are no scores of nodes", None)
    label, config = str(files[0]), model.config
    sides, level, scores = (_pt_nodes if files[0].suffix == ".pt" else _json_nodes)(label, limits)
    wanted = {"n_layer": config.n_layer, "n_head": config.n_head, "d_model": config.d_model}
    if sides != wanted:
        raise_file_error("value", label, f"it is of a model of {sides}, this one has {wanted}", "cfg")
    n_senders = 1 + config.n_layer * (config.n_head + 1)
    shape = (n_senders,) if level == "node" else (n_senders, config.d_model)
    if scores.shape != shape:
        text = f"scores of {level}s have the shape {list(scores.shape)!s:.60}, this model has {list(shape)}"
        raise_file_error("value", label, text, "nodes")
    check_finite({"nodes": scores}, ("nodes",), label)
    return cls(
        scores=scores,
        senders=tuple(names.senders(config)),
        receivers=tuple(names.receivers(config)),
        n_before=component_file.exists(names.Shape(config.n_layer, config.n_head)).sum(0),
        level=level,
        method="",
        ablation="",
        direction="",
        steps=1,
        gate="",
        metric="",
        model=model.name,
        task="",
    )


def _files(folder: Path) -> list[Path]:
    """One file, or nine."""
    files = sorted(path for path in folder.iterdir() if path.suffix[1:] in FORMATS)
    if len(files) not in (1, len(SHARES)):
        text = f"{len(files)} .json or .pt files; MIB takes one of importances, or nine circuits"
        raise_file_error("value", str(folder), text, None)
    return files


def _shape(fields: Mapping[str, Any]) -> names.Shape:
    return names.Shape(fields["n_layer"], fields["n_head"])


def _read(path: Path, limits: Limits) -> dict[str, Any]:
    """Scores, set of component edges and sizes of one file."""
    if path.suffix == ".json":
        return component_file.read_json(path, limits)
    with TorchFile(path, limits=limits) as source:
        sides = _pt_sides(source)
        real = component_file.exists(_shape(sides))
        _check_tensors(source, {"edges_scores": real.shape, "edges_in_graph": real.shape})
        scores, given = source.read("edges_scores", "float64"), source.read_flags("edges_in_graph")
        check_finite({"edges_scores": scores}, ("edges_scores",), source.path)
    return {**sides, "scores": scores * real, "given": given & real}


def _pt_sides(source: TorchFile) -> dict[str, int]:
    """Sizes of the model of a torch file, whose nodes must be in our order."""
    if source.config is None:
        raise_file_error("value", source.path, "'cfg' is missing: this is no circuit of EAP-IG", "cfg")
    sides = component_file.checked_sides(source.config, source.path)
    n_senders = 1 + sides["n_layer"] * (sides["n_head"] + 1)
    listed = source.beside.get("src_nodes")
    if not isinstance(listed, list) or len(listed) != n_senders or listed != names.senders(_shape(sides)):
        text = "'src_nodes' must be the senders of the model in EAP-IG's order"
        raise_file_error("value", source.path, text, "src_nodes")
    return sides


def _check_tensors(source: TorchFile, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Tensors of these names and shapes."""
    for name, shape in shapes.items():
        if name not in source.tensors:
            raise_file_error("missing_tensor", source.path, f"tensor '{name}' is missing", name)
        if source.tensors[name].shape != shape:
            found = list(source.tensors[name].shape)
            text = f"tensor '{name}' has shape {found!s:.60}, expected {list(shape)}"
            raise_file_error("size_mismatch", source.path, text, name)


def _pt_nodes(label: str, limits: Limits) -> tuple[dict[str, int], str, np.ndarray]:
    """Sizes, level and scores of nodes or neurons in a torch file."""
    with TorchFile(label, limits=limits) as source:
        sides = _pt_sides(source)
        n_senders = 1 + sides["n_layer"] * (sides["n_head"] + 1)
        level = "neuron" if "neurons_scores" in source.tensors else "node"
        shape = (n_senders,) if level == "node" else (n_senders, sides["d_model"])
        name = "nodes_scores" if level == "node" else "neurons_scores"
        _check_tensors(source, {name: shape})
        return sides, level, source.read(name, "float64")


def _json_nodes(label: str, limits: Limits) -> tuple[dict[str, int], str, np.ndarray]:
    """Sizes, level and scores of nodes or neurons in a JSON text."""
    data = parse_object(read_small(label, "max_graph_bytes", limits=limits), label, limits=limits)
    for name in ("cfg", "nodes"):
        if not isinstance(data.get(name), dict):
            raise_file_error("value", label, f"'{name}' must be an object, got {shown(data.get(name))}", name)
    sides = component_file.checked_sides(data["cfg"], label)
    nodes = data["nodes"]
    if (n_senders := 1 + sides["n_layer"] * (sides["n_head"] + 1)) >= len(nodes) + 1:
        raise_file_error("value", label, f"{len(nodes)} nodes are too few for {n_senders} senders", "nodes")
    first = nodes.get("input")
    level = "neuron" if isinstance(first, dict) and "neurons_scores" in first else "node"
    field, width = ("score", 1) if level == "node" else ("neurons_scores", sides["d_model"])
    rows = []
    for name in names.senders(_shape(sides)):
        entry = nodes.get(name)
        value = entry.get(field) if isinstance(entry, dict) else None
        row = [value] if level == "node" else _own_neurons(name, value, sides["n_head"])
        if not isinstance(row, list) or len(row) != width or not _are_numbers(row):
            what = "a number" if level == "node" else f"{width} numbers"
            text = f"node '{name}' must have '{field}', {what}, got {shown(value)}"
            raise_file_error("value", label, text, name)
        rows.append(row)
    scores = np.array(rows, np.float64)
    return sides, level, scores[:, 0] if level == "node" else scores


def _own_neurons(name: str, value: Any, n_head: int) -> Any:
    """The neurons of a node: those of a head among those of all heads of its layer."""
    if ".h" not in name:
        return value
    return value[int(name.split(".h")[1])] if isinstance(value, list) and len(value) == n_head else None


def _are_numbers(values: Iterable[object]) -> bool:
    return all(type(value) in (int, float) for value in values)
