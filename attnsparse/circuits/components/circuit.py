"""Circuits of component edges: chosen from scores, evaluated exactly, compared, saved, exchanged as JSON.

A circuit is a set of component edges. It is evaluated in one pass for a prompt, in which every receiver (the
q, k or v of a head, an MLP, the logits) has an input of its own: the current outputs of the senders whose
component edges are in the circuit, and the ablated outputs of all others before it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ... import _check
from ..._engine import core_for
from ..._tables import text_table
from ...io.atomic import write_atomic
from ...io.limits import DEFAULT_LIMITS, Limits
from ...model.model import Model
from ..choices import RANK_BY
from . import evaluate as component_evaluate
from . import file as component_file
from . import mib as component_mib
from . import names
from . import prune_scores as component_prune_scores
from .curve import Roc
from .scores import ComponentScores
from .values import checked_mask

if TYPE_CHECKING:
    import pandas as pd

_CORE = core_for("float64")


@dataclass(frozen=True, eq=False, repr=False)
class ComponentCircuit:
    """A ranking of all component edges of a model, and the circuits that it gives.

    Made by `component_circuit`, `component_acdc`, `load_component_circuit` and `ComponentCircuit.from_json`.

    Attributes
    ----------
    scores : numpy.ndarray
        float64 [senders, receivers], 0 where there is no component edge.
    n_layer : int
        Layers of the model.
    n_head : int
        Heads of a layer.
    d_model : int
        Width of the residual stream.
    select : str
        How component edges are taken: "top", the best of all; "greedy", the best into the logits or a node
        that a chosen one comes from.
    rank_by : str
        Whether the best are those of largest absolute score, "absolute", or of largest score, "signed".
    given : numpy.ndarray, optional
        Boolean [senders, receivers]: a set of component edges that came with the scores: in a file, or
        from `component_acdc`.
    method : str
        How it was scored; "" if that is not known.
    model : str
        Name of the model.
    task : str
        Name of the task.
    prompts : tuple of str
        `Task.prompt_digests` of the prompts that it was ranked on; empty if they are not known.
    """

    scores: np.ndarray
    n_layer: int
    n_head: int
    d_model: int
    select: str = "top"
    rank_by: str = "absolute"
    given: np.ndarray | None = None
    method: str = ""
    model: str = ""
    task: str = ""
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for value in (self.scores, self.given):
            if value is not None:
                value.setflags(write=False)

    @property
    def _shape(self) -> names.Shape:
        return names.Shape(self.n_layer, self.n_head)

    @property
    def n_edges(self) -> int:
        """Number of component edges of the model: 32,491 for 12 layers of 12 heads."""
        return int(component_file.exists(self._shape).sum())

    def order(self) -> np.ndarray:
        """All component edges, best first.

        Returns
        -------
        numpy.ndarray
            int64 [n, 2]: sender and receiver. Of equal ones the first in the matrix comes first.
        """
        return np.stack(np.unravel_index(self._order(), self.scores.shape), axis=1)

    def _order(self) -> np.ndarray:
        order: np.ndarray = _CORE.component_order(
            *self._shape, self.scores, self.rank_by == "absolute", self.select == "greedy"
        )
        return order

    def masks(
        self, sizes: Sequence[int] | np.ndarray, *, prune: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """The circuits of some sizes.

        Parameters
        ----------
        sizes : sequence of int
            Numbers of component edges to take, each in 0..n_edges.
        prune : bool, default True
            Afterwards take away the component edges of nodes that none feeds (but the input) or from which
            none goes out, until there is no such node, as EAP-IG does when it evaluates a circuit.

        Returns
        -------
        tuple of numpy.ndarray
            Boolean [sizes, senders, receivers], and int64 [sizes]: how many component edges each has then.
        """
        n, prune = self.n_edges, _check.flag(prune, "prune")
        asked = np.array([_check.integer(size, "each of sizes", 0, n) for size in sizes], np.int64)
        found: tuple[np.ndarray, np.ndarray] = _CORE.component_select(
            *self._shape, self._order(), asked, prune
        )
        return found

    def mask(self, n: int, *, prune: bool = True) -> np.ndarray:
        """The circuit of the n best component edges.

        Parameters
        ----------
        n : int
            0..n_edges.
        prune : bool, default True
            As in `masks`.

        Returns
        -------
        numpy.ndarray
            Boolean [senders, receivers].
        """
        mask: np.ndarray = self.masks([n], prune=prune)[0][0]
        return mask

    def edges(self, n: int, *, prune: bool = True) -> list[str]:
        """Names of the component edges of a circuit, in the order of the matrix.

        Parameters
        ----------
        n, prune
            As in `mask`.

        Returns
        -------
        list of str
            As EAP-IG writes them: "a0.h3->a5.h1<q>".
        """
        senders, receivers = names.senders(self._shape), names.receivers(self._shape)
        return [f"{senders[u]}->{receivers[v]}" for u, v in np.argwhere(self.mask(n, prune=prune)).tolist()]

    # --- evaluation

    evaluate = component_evaluate.evaluate

    def roc(self, truth: npt.ArrayLike) -> Roc:
        """Compare the ranking with a given circuit.

        Parameters
        ----------
        truth : array_like of bool
            [senders, receivers]: the component edges of that circuit.

        Returns
        -------
        Roc
            Of the scores, or their absolute values, by `rank_by`; `select` has no part in it.

        Raises
        ------
        ValueError
            For another shape; for a circuit of no component edge, or of all.
        """
        mask = checked_mask(truth, "truth", self.scores.shape)
        return Roc(*_CORE.component_roc(*self._shape, self.scores, mask, self.rank_by == "absolute"))

    # --- tables and files

    def to_pandas(self) -> pd.DataFrame:
        """One row per component edge, best first.

        Returns
        -------
        pandas.DataFrame
            Columns item_rank (from 1), name ("a0.h3->a5.h1<q>"), sender, receiver, score.
        """

        places = self.order()
        sender = np.array(names.senders(self._shape))[places[:, 0]]
        receiver = np.array(names.receivers(self._shape))[places[:, 1]]
        table = {
            "item_rank": np.arange(1, len(places) + 1),
            "name": [f"{one}->{other}" for one, other in zip(sender, receiver)],
            "sender": sender,
            "receiver": receiver,
            "score": self.scores[places[:, 0], places[:, 1]],
        }
        frame: pd.DataFrame = text_table(table)
        return frame

    def to_json(self, path: str | os.PathLike[str], n: int | None = None, *, prune: bool = True) -> None:
        """Write the JSON that EAP-IG and MIB read.

        Parameters
        ----------
        path : path
            For a folder that MIB takes as a submission, see `to_mib`.
        n : int, optional
            Number of component edges in the circuit. Default: the set `given`, or all.
        prune : bool, default True
            As in `masks`, for n.
        """
        mask = component_file.exists(self._shape) if self.given is None else self.given
        if n is not None:
            mask = self.mask(n, prune=prune)
        written = component_file.json_bytes(self._shape, self.d_model, self.scores, mask)
        write_atomic(_check.path(path), [written])

    @classmethod
    def from_json(
        cls, path: str | os.PathLike[str], *, limits: Limits = component_file.JSON_LIMITS
    ) -> ComponentCircuit:
        """Read a circuit of EAP-IG or MIB.

        Parameters
        ----------
        path : path
        limits : Limits
            Of the sizes that files may have.

        Returns
        -------
        ComponentCircuit
            With its scores, and its set of component edges as `given`. What is not listed scores 0 and is
            outside.

        Raises
        ------
        OSError
            If the file cannot be read.
        FormatError
            With a code: those of a JSON text; value for what a circuit of a GPT-2-class model cannot have.
        LimitError
            Above one of `limits`.
        """
        return cls(**component_file.read_json(path, limits))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, which `load_component_circuit` reads.

        Parameters
        ----------
        path : path
            ".component-circuit.safetensors" is added if it does not end in .safetensors.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        component_file.write(path, vars(self))

    to_prune_scores = component_prune_scores.to_prune_scores
    from_prune_scores = classmethod(component_prune_scores.from_prune_scores)
    to_mib = component_mib.to_mib
    from_mib = classmethod(component_mib.from_mib)

    def __repr__(self) -> str:
        return (
            f"ComponentCircuit({self.n_edges:,} component edges of {self.n_layer} x {self.n_head} heads, "
            f"select={self.select!r}, rank_by={self.rank_by!r}, method={self.method!r}, "
            f"model={self.model!r}, task={self.task!r})"
        )


def component_circuit(
    scores: ComponentScores, model: Model, *, select: str = "top", rank_by: str = "absolute"
) -> ComponentCircuit:
    """Make a circuit of component edges out of their scores.

    Parameters
    ----------
    scores : ComponentScores
        With level="edge".
    model : Model
        That the scores are of.
    select : {"top", "greedy"}, default "top"
        "greedy": each time the best component edge into the logits or into a node that a chosen one comes
        from, as MIB does for information flow routes.
    rank_by : {"absolute", "signed"}, default "absolute"
        Rank by the absolute value of the score, or by the score.

    Returns
    -------
    ComponentCircuit

    Raises
    ------
    ValueError
        For unknown names; for scores of nodes or neurons, or of a model of other sizes.
    TypeError
        For arguments of another type.
    """
    _check.instance(scores, ComponentScores, "scores")
    _check.instance(model, Model, "model")
    _check.choice(select, "select", names.SELECTIONS)
    _check.choice(rank_by, "rank_by", RANK_BY)
    config = model.config
    if scores.level != "edge":
        text = f"a circuit of component edges needs scores of level='edge', got {scores.level!r}"
        raise ValueError(f"{text}; node_circuit takes these")
    if (scores.senders, scores.receivers) != (tuple(names.senders(config)), tuple(names.receivers(config))):
        raise ValueError(f"these scores are of another model than {model.name!r}: its components differ")
    return ComponentCircuit(
        scores.scores.copy(), config.n_layer, config.n_head, config.d_model, select, rank_by,
        method=scores.method, model=scores.model, task=scores.task, prompts=scores.prompts,
    )  # fmt: skip


def load_component_circuit(
    path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS
) -> ComponentCircuit:
    """Read the file that `ComponentCircuit.save(path)` wrote.

    Parameters
    ----------
    path : path
        With or without ".component-circuit.safetensors".
    limits : Limits
        Of the sizes that files may have.

    Returns
    -------
    ComponentCircuit

    Raises
    ------
    OSError
        If the file cannot be read.
    FormatError
        With a code: those of a safetensors file and of our own; value for scores or sets that make no sense.
    LimitError
        Above one of `limits`.
    NonFiniteError
        For scores that are not finite.
    """
    return ComponentCircuit(**component_file.read(path, limits))
