"""Circuits of nodes and of neurons: senders, or coordinates of what they write, chosen from scores.

A circuit of nodes has all component edges between its nodes, and from them into the logits. A neuron is one
coordinate of a component's output in the residual stream; in a circuit of neurons all later components read
the current output of a component in the coordinates inside, and its ablated output in the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ... import _check
from ..._engine import core_for
from ..._tables import text_table
from ...io.limits import Limits
from ...model.model import Model
from ...model.run import DEFAULT_MAX_BYTES
from ...tasks.custom import CustomMetric, chosen_metric, metric_name
from ...tasks.task import Task
from ..asked import packed_task
from ..choices import RANK_BY
from ..pieces import CoreWork
from . import names
from . import nodes_file as component_nodes_file
from .curve import ComponentCurve
from .file import JSON_LIMITS
from .options import changed_options
from .scores import ComponentScores
from .values import checked_mask, measured_circuits

if TYPE_CHECKING:
    import pandas as pd

_CORE = core_for("float64")


@dataclass(frozen=True, eq=False, repr=False)
class NodeCurve(ComponentCurve):
    """Circuits of nodes or neurons of several sizes, evaluated. Made by `NodeCircuit.evaluate`.

    Areas, bands and tables are those of `ComponentCurve`.

    Attributes
    ----------
    shares : numpy.ndarray
        float64 [S]: requested shares of all nodes or neurons, ascending.
    requested : numpy.ndarray
        int64 [S]: numbers of nodes or neurons that were taken.
    kept : numpy.ndarray
        int64 [S]: how many of them are left after pruning.
    values : numpy.ndarray
        float64 [S, P]: the metric of each circuit on each prompt.
    full : numpy.ndarray
        float64 [P]: the metric with everything in the circuit.
    empty : numpy.ndarray
        float64 [P]: the metric with nothing in it.
    ablation : str
        One of `COMPONENT_ABLATIONS`.
    direction : str
        "noising" or "denoising".
    gate : str
        "held" or "recomputed"; "none" in a dense model.
    metric : str
        Name of the metric.
    model : str
        Name of the model.
    task : str
        Name of the task.
    random_values : numpy.ndarray
        Empty: there are no random rankings of nodes.
    random_kept : numpy.ndarray
        Empty likewise.
    prompts : tuple of str
        `Task.prompt_digests` of the prompts.
    n_shared : int, optional
        None: a ranking of nodes does not know its prompts.
    level : str
        "node" or "neuron".
    """

    level: str = "node"

    def __repr__(self) -> str:
        return super().__repr__().replace("ComponentCurve(", f"NodeCurve({self.level}s, ", 1)


@dataclass(frozen=True, eq=False, repr=False)
class NodeCircuit:
    """A ranking of all nodes or neurons of a model, and the circuits that it gives.

    Made by `node_circuit` and `NodeCircuit.from_json`.

    Attributes
    ----------
    scores : numpy.ndarray
        float64 [senders] of nodes, [senders, d_model] of neurons.
    n_layer : int
        Layers of the model.
    n_head : int
        Heads of a layer.
    d_model : int
        Width of the residual stream.
    rank_by : str
        Whether the best are those of largest absolute score, "absolute", or of largest score, "signed".
    given : numpy.ndarray, optional
        Boolean, of the shape of `scores`: a circuit that came with the scores in a file.
    method : str
        How it was scored; "" if that is not known.
    model : str
        Name of the model.
    task : str
        Name of the task.
    """

    scores: np.ndarray
    n_layer: int
    n_head: int
    d_model: int
    rank_by: str = "absolute"
    given: np.ndarray | None = None
    method: str = ""
    model: str = ""
    task: str = ""

    def __post_init__(self) -> None:
        for value in (self.scores, self.given):
            if value is not None:
                value.setflags(write=False)

    @property
    def level(self) -> str:
        """What is ranked: "node" or "neuron"."""
        return "node" if self.scores.ndim == 1 else "neuron"

    @property
    def _shape(self) -> names.Shape:
        return names.Shape(self.n_layer, self.n_head)

    def order(self) -> np.ndarray:
        """All nodes or neurons, best first.

        Returns
        -------
        numpy.ndarray
            int64 [n] of nodes, [n, 2] (sender, coordinate) of neurons. Of equal ones the first comes first.
        """
        order = self._order()
        return order if self.level == "node" else np.stack(np.unravel_index(order, self.scores.shape), axis=1)

    def _order(self) -> np.ndarray:
        order: np.ndarray = _CORE.component_best(self.scores.ravel(), self.rank_by == "absolute")
        return order

    def masks(
        self, sizes: Sequence[int] | np.ndarray, *, prune: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """The circuits of some sizes.

        Parameters
        ----------
        sizes : sequence of int
            Numbers of nodes or neurons to take, each in 0..n.
        prune : bool, default True
            Afterwards take away nodes that nothing feeds, as EAP-IG does. The input feeds every node, so a
            circuit with any of it loses nothing; without it the first node goes, then the next, until none
            is left.

        Returns
        -------
        tuple of numpy.ndarray
            Boolean [sizes, senders] or [sizes, senders, d_model], and int64 [sizes]: how many nodes or
            neurons each has then.
        """
        prune, width = _check.flag(prune, "prune"), self.scores.size // len(self.scores)
        asked = [_check.integer(size, "each of sizes", 0, self.scores.size) for size in sizes]
        masks, kept = _CORE.component_select_neurons(
            *self._shape, width, self._order(), np.array(asked, np.int64), prune
        )
        return masks.reshape(len(asked), *self.scores.shape), kept

    def mask(self, n: int, *, prune: bool = True) -> np.ndarray:
        """The circuit of the n best.

        Parameters
        ----------
        n : int
            Number of nodes or neurons.
        prune : bool, default True
            As in `masks`.

        Returns
        -------
        numpy.ndarray
            Boolean, of the shape of `scores`.
        """
        mask: np.ndarray = self.masks([n], prune=prune)[0][0]
        return mask

    def evaluate(
        self,
        model: Model,
        task: Task,
        *,
        shares: Sequence[float] = names.GRID,
        prune: bool = True,
        ablation: str = "counterfactual",
        direction: str = "noising",
        gate: str = "recomputed",
        reference: Task | Iterable[Any] | None = None,
        metric: str | CustomMetric | None = None,
        resume: str | os.PathLike[str] | None = None,
        executor: Any = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        threads: int | None = None,
        progress: bool | None = None,
    ) -> NodeCurve:
        """Measure the metric of circuits of several sizes, the whole model and the empty circuit.

        Parameters
        ----------
        model : Model
            Of the sizes that the scores are of.
        task : Task
        shares : sequence of float, default MIB's grid
            Shares of all nodes or neurons, ascending, each in 0..1; their numbers are rounded down.
        prune : bool, default True
            As in `masks`.
        ablation, direction, gate, reference, metric, resume, executor, max_bytes, threads, progress
            As in `node_values`.

        Returns
        -------
        NodeCurve
        """
        _check.instance(model, Model, "model")
        sizes = (self.n_layer, self.n_head, self.d_model)
        own = (model.config.n_layer, model.config.n_head, model.config.d_model)
        if own != sizes:
            raise ValueError(
                f"this circuit is of {sizes[0]} layers of {sizes[1]} heads, {sizes[2]} wide, the model has "
                f"{own[0]} of {own[1]}, {own[2]} wide"
            )
        asked = _check.ascending(shares, "shares", _check.share)
        n = self.scores.size
        requested = np.array([int(share * n) for share in asked], np.int64)
        masks, kept = self.masks([*requested.tolist(), n, 0], prune=prune)
        values = node_values(
            model, task, masks, ablation=ablation, direction=direction, gate=gate, reference=reference,
            metric=metric, resume=resume, executor=executor, max_bytes=max_bytes, threads=threads,
            progress=progress,
        )  # fmt: skip
        return NodeCurve(
            shares=asked,
            requested=requested,
            kept=kept[:-2],
            values=values[:-2],
            full=values[-2],
            empty=values[-1],
            ablation=ablation,
            direction=direction,
            gate=gate if model.config.gated else "none",
            metric=metric_name(chosen_metric(metric, task)),
            model=model.name,
            task=task.name,
            prompts=task.prompt_digests,
            level=self.level,
        )

    # --- tables and files

    def to_pandas(self) -> pd.DataFrame:
        """One row per node or neuron, best first.

        Returns
        -------
        pandas.DataFrame
            Columns node ("a0.h3"), for neurons neuron, and score.
        """

        places = np.unravel_index(self._order(), self.scores.shape)
        table: dict[str, Any] = {"node": np.array(names.senders(self._shape))[places[0]]}
        if self.level == "neuron":
            table["neuron"] = places[1]
        frame: pd.DataFrame = text_table(table | {"score": self.scores[places]})
        return frame

    def to_json(self, path: str | os.PathLike[str], n: int | None = None, *, prune: bool = True) -> None:
        """Write the JSON that EAP-IG and MIB read.

        Parameters
        ----------
        path : path
        n : int, optional
            Number of nodes or neurons in the circuit. Default: the circuit `given`, or all.
        prune : bool, default True
            As in `masks`, for n.
        """
        mask = np.ones(self.scores.shape, bool) if self.given is None else self.given
        if n is not None:
            mask = self.mask(n, prune=prune)
        component_nodes_file.write_json(path, self._shape, self.d_model, self.scores, mask)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str], *, limits: Limits = JSON_LIMITS) -> NodeCircuit:
        """Read scores of nodes or neurons from the JSON of EAP-IG or MIB.

        Parameters
        ----------
        path : path
        limits : Limits
            Of the sizes that files may have.

        Returns
        -------
        NodeCircuit
            Of neurons if the file scores neurons, else of nodes; the circuit in the file as `given`.

        Raises
        ------
        OSError
            If the file cannot be read.
        FormatError
            With a code: those of a JSON text; value for what a circuit of a GPT-2-class model cannot have,
            and for a file that does not score all nodes.
        LimitError
            Above one of `limits`.
        """
        return cls(**component_nodes_file.read_json(path, limits))

    def __repr__(self) -> str:
        return (
            f"NodeCircuit({self.scores.size:,} {self.level}s of {self.n_layer} x {self.n_head} heads, "
            f"rank_by={self.rank_by!r}, method={self.method!r}, model={self.model!r}, task={self.task!r})"
        )


def node_circuit(scores: ComponentScores, model: Model, *, rank_by: str = "absolute") -> NodeCircuit:
    """Make a circuit of nodes or neurons out of their scores.

    Parameters
    ----------
    scores : ComponentScores
        With level="node" or "neuron".
    model : Model
        That the scores are of.
    rank_by : {"absolute", "signed"}, default "absolute"
        Rank by the absolute value of the score, or by the score.

    Returns
    -------
    NodeCircuit

    Raises
    ------
    ValueError
        For unknown names; for scores of component edges, or of a model of other sizes.
    TypeError
        For arguments of another type.
    """
    _check.instance(scores, ComponentScores, "scores")
    _check.instance(model, Model, "model")
    _check.choice(rank_by, "rank_by", RANK_BY)
    config = model.config
    if scores.level == "edge":
        raise ValueError("a circuit of nodes needs scores of level='node' or 'neuron', got 'edge'")
    shape = (len(names.senders(config)), config.d_model)[: scores.scores.ndim]
    if scores.senders != tuple(names.senders(config)) or scores.scores.shape != shape:
        raise ValueError(f"these scores are of another model than {model.name!r}: its components differ")
    return NodeCircuit(
        scores.scores.copy(), config.n_layer, config.n_head, config.d_model, rank_by,
        method=scores.method, model=scores.model, task=scores.task,
    )  # fmt: skip


def node_values(
    model: Model,
    task: Task,
    masks: npt.ArrayLike,
    *,
    ablation: str = "counterfactual",
    direction: str = "noising",
    gate: str = "recomputed",
    reference: Task | Iterable[Any] | None = None,
    metric: str | CustomMetric | None = None,
    resume: str | os.PathLike[str] | None = None,
    executor: Any = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Measure the metric of circuits of nodes or neurons on every prompt.

    Parameters
    ----------
    model : Model
    task : Task
        A clean prompt and its corrupted prompt have one length; prompts of the task may differ in length.
    masks : array_like of bool
        [n, senders]: the nodes of each circuit; or [n, senders, d_model]: its neurons.
    ablation : str, default "counterfactual"
        What is read outside the circuit, as in `component_scores`.
    direction : {"noising", "denoising"}, default "noising"
        "noising": the clean prompts, with ablated outputs outside the circuit. "denoising": the corrupted
        prompts, with clean outputs inside.
    gate, reference, metric, resume, executor, max_bytes, threads, progress
        As in `component_values`.

    Returns
    -------
    numpy.ndarray
        float64 [n, prompts].

    Raises
    ------
    ValueError
        For unknown names, masks of another shape, and what an ablation lacks.
    MemoryError
        If even one prompt at a time needs more than `max_bytes`.
    TypeError
        For arguments of another type.
    FormatError, OSError, RuntimeError
        As `component_values`.
    """
    asked = packed_task(model, task, metric)
    shape = (len(names.senders(model.config)), model.config.d_model)
    array = _check.array(masks, "masks")
    if array.ndim not in (2, 3):
        raise ValueError(
            f"masks must have the shape (n, {shape[0]}) or (n, {shape[0]}, {shape[1]}), got {array.shape}"
        )
    options = changed_options(model, ablation, direction, gate, reference, max_bytes)
    array = checked_mask(array, "masks", (len(array), *shape[: array.ndim - 1]))
    if array.ndim == 2:
        array = np.ascontiguousarray(np.broadcast_to(array[:, :, None], (len(array), *shape)))
    work = CoreWork(
        model,
        task.name,
        "circuits of neurons",
        "component_neuron_values",
        asked,
        (),
        array,
        (options,),
        threads,
    )
    return measured_circuits(work, task, metric, options, progress, executor, resume)
