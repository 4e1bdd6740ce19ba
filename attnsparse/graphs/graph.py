"""Graph: which features, tokens and errors drive which, on one prompt, and which heads carry each edge.

An object without a model: it holds numbers and names, can be saved, and works without the model it came from.
Only what must be computed again (`score_pairs`, `check`) needs the model, and says so.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .. import _check
from .._display import SHOWN, html_table
from .._engine import CORES, core_for
from ..io.limits import DEFAULT_LIMITS, Limits
from ..transcoders.label_files import checked_labels
from . import check as graph_check
from . import edges, graph_file, neuronpedia_write, page, tables
from . import heads as graph_heads
from . import prune as graph_prune
from . import score_pairs as graph_scores
from . import select as graph_select
from .graph_file import VERSION
from .select import KINDS, Nodes

if TYPE_CHECKING:
    import pandas as pd

    from .. import _core as engine
    from .sources import Sources

__all__ = ["Graph", "load_graph"]

# Arrays that the core's object owns; real: of the type of the weights.
_INTEGERS = {
    "layer": np.int32,
    "position": np.int32,
    "feature": np.int32,
    "start": np.int64,
    "source": np.int32,
}
_REALS = ("value", "probability", "weights", "carried", "received", "received_alone")
_OWNED = (*_INTEGERS, *_REALS)
_CORE_GRAPHS = tuple(core.Graph for core in CORES.values())


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.base is other.base and one.__array_interface__ == other.__array_interface__


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """The attribution graph of one prompt: n nodes and m edges.

    `attribution_graph`, `load_graph` and `read_graph_json` make it. Nodes are ordered: features by layer,
    position and number; errors of the MLPs by layer and position; tokens; positions; the bias; other;
    logits. The edge from a source to a target is the linear effect of the source on the target's
    pre-activation with attention patterns, gates and LayerNorm scales held as they are; with position
    embeddings and biases as nodes, the edges into every feature and logit add up to its value. All arrays are
    read-only.

    Attributes
    ----------
    model_name, model_digest : str
        Name of the model, and its `Model.digest`.
    transcoders_name : str
        Name of the transcoders.
    scan : str
        The name of model and transcoders where graphs are shared.
    prompt : str
        The text without a BOS token that was put before it: `model.run(graph.prompt,
        prepend_bos=graph.prepend_bos)` has the graph's tokens, unless the graph is of ids that no text
        gives.
    tokens : numpy.ndarray
        int32 [T]: ids of the tokens.
    token_strings : tuple of str
        [T]: the tokens as strings.
    prepend_bos : bool
        True if a BOS token was put before the prompt; positions count it.
    n_layer, n_head : int
        Number of layers, and of heads in each.
    options : mapping
        Options of `attribution_graph` as JSON values; n_active, the active features before the choice; of
        a pruned graph scores, the result of `scores` before; and transcoder_layers, the layers with
        transcoders if only some have one.
    kind : tuple of str
        [n]: "feature", "error", "token", "position", "bias", "other" (all active features that were not
        kept, together) or "logit".
    layer : numpy.ndarray
        int32 [n]; -1 for tokens, positions, bias and other, the number of layers for logits.
    position : numpy.ndarray
        int32 [n]; -1 for bias and other.
    feature : numpy.ndarray
        int32 [n]: the number of a feature, the token id of tokens and logits, -1 for the rest.
    value : numpy.ndarray
        real [n]: activation of a feature, which is its pre-activation; value of a logit node; NaN for the
        rest.
    probability : numpy.ndarray
        real [n]: the probability of a logit node's token; NaN for the rest.
    labels : tuple of str
        [n]: a readable name of each node.
    start : numpy.ndarray
        int64 [n + 1]: the edges into node t are [start[t], start[t + 1]).
    source : numpy.ndarray
        int32 [m]: the node that each edge comes from, ascending for each target.
    weights : numpy.ndarray
        real [m]: the weight of each edge.
    closure : float
        Largest ``|sum of the incoming edges - value| / |value|`` over all features and logits; of a pruned
        graph that before pruning.
    closure_absolute : float
        Largest ``|sum - value| / (sum of |edges|)``: the rounding error, however much cancels.
    pattern : numpy.ndarray
        real [L, H, query, key]: the attention pattern of the prompt.
    carried : numpy.ndarray
        real [n_placed, L, H, D]: the part of each head's values that comes from a source, at the source's
        own position, through the residual stream and attention to itself. n_placed: all nodes before the
        bias.
    received : numpy.ndarray
        real [n_targets, L, H, D]: derivative of a target with respect to each head's z at the target's
        own position, on paths that stay there. Targets: features, then logits.
    received_alone : numpy.ndarray
        The same through the residual stream alone, without attention to itself.
    influence : numpy.ndarray or None
        real [n]: cumulative share of the influence on the logits, nodes taken by falling influence; set
        by `prune` (circuit-tracer's definition).
    splits : tuple of ScoreSplit
        Scores of the strongest attention entries, split into pairs of sources; see `score_pairs`.
    pruned : mapping of str to float or None
        The thresholds, for a graph made by `prune`; its edges no longer add up.
    version : int
        Version of the file format.
    origin : (Sources, numpy.ndarray) or None
        Sources and chosen features, with which `score_pairs` and `check` compute. None for a graph read
        from a file, unpickled or copied.

    References
    ----------
    Ameisen et al. 2025, "Circuit Tracing".
    """

    model_name: str
    model_digest: str
    transcoders_name: str
    scan: str
    prompt: str
    tokens: np.ndarray
    token_strings: tuple[str, ...]
    prepend_bos: bool
    n_layer: int
    n_head: int
    options: Mapping[str, Any]
    kind: tuple[str, ...]
    layer: np.ndarray
    position: np.ndarray
    feature: np.ndarray
    value: np.ndarray
    probability: np.ndarray
    labels: tuple[str, ...]
    start: np.ndarray
    source: np.ndarray
    weights: np.ndarray
    closure: float
    closure_absolute: float
    pattern: np.ndarray
    carried: np.ndarray
    received: np.ndarray
    received_alone: np.ndarray
    influence: np.ndarray | None = None
    splits: tuple[graph_heads.ScoreSplit, ...] = ()
    pruned: Mapping[str, float] | None = None
    version: int = field(default=VERSION)
    origin: tuple[Sources, np.ndarray] | None = None

    def __post_init__(self) -> None:
        if not self._is_owned():
            for name in set(self.kind):
                _check.choice(name, "kind", KINDS)
            real = self.weights.dtype.newbyteorder("=")
            types = _INTEGERS | dict.fromkeys(_REALS, real)
            arrays = {name: np.ascontiguousarray(getattr(self, name), types[name]) for name in _OWNED}
            kind = np.array([KINDS.index(name) for name in self.kind], np.int32)
            core = core_for(real).Graph(kind, **arrays)
            for name, array in self._owned(core).items():
                object.__setattr__(self, name, array)
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
        splits = tuple(graph_heads.named(split, self) for split in self.splits)
        object.__setattr__(self, "splits", splits)

    @property
    def _core(self) -> engine.Graph:
        """The core's object, which owns the nodes, edges and arrays of heads."""
        return cast("engine.Graph", self.start.base)

    @staticmethod
    def _owned(core: engine.Graph) -> dict[str, Any]:
        """The arrays that the core's object owns."""
        return {name: core.array(name) for name in _OWNED}

    def _is_owned(self) -> bool:
        """Whether one object of the core has these kinds of nodes, and all these arrays are its own."""
        core = self.start.base
        if not isinstance(core, _CORE_GRAPHS):
            return False
        kind = tuple(KINDS[code] for code in core.array("kind").tolist())
        return kind == self.kind and all(
            _is_same(getattr(self, name), array) for name, array in self._owned(core).items()
        )

    def __len__(self) -> int:
        return len(self.kind)

    # --- names

    @property
    def ids(self) -> list[str]:
        """The id of every node: "{layer}_{feature}_{position}", "err_{layer}_{position}",
        "E_{token}_{position}", "P_{position}", "bias", "other", "{n_layer + 1}_{token}_{position}"."""
        return [self._id(i) for i in range(len(self))]

    def _id(self, i: int) -> str:
        layer, position, feature = int(self.layer[i]), int(self.position[i]), int(self.feature[i])
        match self.kind[i]:
            case "feature":
                return f"{layer}_{feature}_{position}"
            case "error":
                return f"err_{layer}_{position}"
            case "token":
                return f"E_{feature}_{position}"
            case "position":
                return f"P_{position}"
            case "logit":
                return f"{self.n_layer + 1}_{feature}_{position}" if feature >= 0 else "logit_diff"
            case kind:
                return kind

    def node(self, node: int | str) -> int:
        """The number of a node.

        Parameters
        ----------
        node : int or str
            A number (negative ones count from the end) or an id.

        Returns
        -------
        int

        Raises
        ------
        IndexError
            For a number out of range.
        KeyError
            For an unknown id.
        TypeError
            For other objects.
        """
        if isinstance(node, str):
            found = self._numbers().get(node)
            if found is None:
                raise KeyError(
                    f"this graph has no node {node!r:.60}; ids look like {self._id(0)!r}, and "
                    f"graph.select('token', position={node!r:.60}) finds the nodes of a token"
                )
            return found
        number, n = _check.integer(node, "a node"), len(self)
        if not -n <= number < n:
            raise IndexError(f"node {number} is out of range: this graph has {n} nodes")
        return number % n

    def _numbers(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ids)}

    def nodes_of(self, nodes: Nodes) -> np.ndarray:
        """The numbers of one node or of several.

        Parameters
        ----------
        nodes : int, str, or sequence of these
            By number or id.

        Returns
        -------
        numpy.ndarray
            int64 [k], rising, each once.

        Raises
        ------
        IndexError, KeyError, TypeError
            As `node` does.
        """
        if isinstance(nodes, str) or not isinstance(nodes, Iterable):
            return np.array([self.node(nodes)])
        numbers = self._numbers() if any(isinstance(node, str) for node in nodes) else {}
        found = [numbers[node] if node in numbers else self.node(node) for node in nodes]
        return np.unique(np.array(found, dtype=np.int64))

    def position_of(self, position: int | str) -> int:
        """The number of a position.

        Parameters
        ----------
        position : int or str
            A number (negative ones count from the end) or a token string.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            For a token string that does not occur exactly once.
        IndexError
            For a number out of range.
        """
        n = len(self.tokens)
        if isinstance(position, str):
            same = [i for i, token in enumerate(self.token_strings) if token.strip() == position.strip()]
            if len(same) != 1:
                where = f"is at positions {same}; give a number" if same else "is not in the prompt"
                raise ValueError(f"token {position!r:.60} {where}")
            return same[0]
        number = _check.integer(position, "position")
        if not -n <= number < n:
            raise IndexError(f"position {number} is out of range: the prompt has {n} tokens")
        return number % n

    # --- nodes

    @property
    def n_features(self) -> int:
        """The number of nodes that are features."""
        return self.kind.count("feature")

    @property
    def targets(self) -> np.ndarray:
        """int64: the nodes that edges lead to, in the order of `received`: features, then logits."""
        return np.flatnonzero(np.isin(self.kind, ("feature", "logit")))

    @property
    def logits(self) -> np.ndarray:
        """int64: the logit nodes."""
        return np.flatnonzero(np.array(self.kind) == "logit")

    @property
    def has_heads(self) -> bool:
        """Whether `heads` can split edges: not if saved with heads=False or read from a graph JSON."""
        return bool(self.carried.shape[-1] > 0)

    # --- methods that are functions of a graph, each in the module of its subject

    select = graph_select.select
    incoming = edges.incoming
    outgoing = edges.outgoing
    weight = edges.weight
    total = graph_heads.total
    heads = graph_heads.heads
    needed_heads = graph_heads.needed_heads
    score_pairs = graph_scores.score_pairs
    check = graph_check.check
    prune = graph_prune.prune
    scores = graph_prune.scores
    to_neuronpedia = neuronpedia_write.to_neuronpedia
    to_html = page.to_html
    show = page.show
    nodes = tables.nodes
    links = tables.links
    summary = tables.summary

    # --- file

    def save(self, path: str | os.PathLike[str], *, heads: bool = True) -> None:
        """Write one safetensors file, which `load_graph` reads.

        Parameters
        ----------
        path : str or os.PathLike
            ".graph.safetensors" is added if it does not end in .safetensors. The file is replaced whole or
            not at all; the same graph gives the same bytes.
        heads : bool, default True
            False leaves out the largest arrays, n L H D numbers, which `heads` computes with.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        graph = self if _check.flag(heads, "heads") else self.without_heads()
        graph_file.write(path, vars(graph))

    # --- other graphs

    def without_heads(self) -> Graph:
        """The graph without the arrays of `heads`, which are most of its memory.

        Returns
        -------
        Graph
        """
        carried, received, alone = (
            array[..., :0].copy() for array in (self.carried, self.received, self.received_alone)
        )
        return dataclasses.replace(self, carried=carried, received=received, received_alone=alone)

    def with_labels(self, labels: Mapping[tuple[int, int], str] | str | os.PathLike[str]) -> Graph:
        """The graph with other labels of features.

        Parameters
        ----------
        labels : mapping, str or os.PathLike
            (layer, feature) to a string, for example `FeatureLabels`, or what `load_feature_labels` takes.
            Features that it lacks keep their labels.

        Returns
        -------
        Graph

        Raises
        ------
        TypeError
            For other keys or labels.
        IndexError
            For layers that the model lacks.
        OSError, FormatError
            As `load_feature_labels` for files.
        """
        names, given = list(self.labels), checked_labels(labels, self.n_layer)
        for i in range(self.n_features):
            names[i] = given.get((int(self.layer[i]), int(self.feature[i]))) or names[i]
        return dataclasses.replace(self, labels=tuple(names))

    def to_pandas(self) -> pd.DataFrame:
        """The table of edges.

        Returns
        -------
        pandas.DataFrame
            As `links`.
        """
        return self.links()

    # --- display

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied is all but `origin`, as in a file."""
        names = [item.name for item in dataclasses.fields(self) if item.name != "origin"]
        return partial(Graph, **{name: getattr(self, name) for name in names}), ()

    def __repr__(self) -> str:
        size = f"{len(self)} nodes, {len(self.source):,} edges{graph_select.layers_with_features(self)}"
        state = "pruned" if self.pruned else f"closure {self.closure:.1e}"
        return f"Graph({self.prompt!r:.60}, {self.model_name!r}, {size}, {state})"

    def _repr_html_(self) -> str:
        nodes = self.nodes().assign(influence=self._core.influence())
        return html_table(self, nodes.nlargest(SHOWN, "influence"))


def load_graph(path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> Graph:
    """Read the file that `Graph.save` wrote.

    The graph answers everything but `score_pairs` and `check`, which need the model; one saved with
    heads=False has no `heads` either.

    Parameters
    ----------
    path : str or os.PathLike
        With or without ".graph.safetensors".
    limits : Limits, optional
        The largest file that is read.

    Returns
    -------
    Graph

    Raises
    ------
    OSError
        If the file cannot be read.
    FormatError
        With a code: those of a safetensors file; magic for another safetensors file, version, checksum,
        header_value for its fields; missing_tensor, unexpected_tensor, dtype and size_mismatch for the
        arrays; value for nodes and edges that make no sense.
    LimitError
        Above one of `limits`.
    NonFiniteError
        For weights and values that are not finite.
    """
    return Graph(**graph_file.read(path, limits))
