"""Graph: which features, tokens and errors drive which, on one prompt, and which heads carry each edge.

An object without a model: it holds numbers and names, can be saved, and works without the model it came from.
Only what must be computed anew (`score_pairs`, `check`) needs the model, and says so.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._display import SHOWN, html_table
from ..transcoders.label_files import checked_labels
from . import heads as graph_heads
from . import prune as graph_prune
from . import select as graph_find
from .select import KINDS

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

VERSION = 1

Nodes = int | str | Sequence[int | str]


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """The attribution graph of one prompt: n nodes and m edges. Made by `attribution_graph`.

    Nodes are ordered: features by layer, position and number; errors of the MLPs by layer and position;
    tokens; positions; the bias; other; logits. The edge from a source to a target is the linear effect of
    the source on the target's pre-activation with attention patterns, gates and LayerNorm scales held as
    they are (Ameisen et al. 2025, "Circuit Tracing"); with position embeddings and biases as nodes, the
    edges into every feature and logit add up to its value. All arrays are read-only.
    """

    model_name: str
    model_digest: str
    transcoders_name: str
    scan: str
    """What names model and transcoders where graphs are shared."""
    prompt: str
    """The text without a BOS token that was put before it: `model.run(graph.prompt,
    prepend_bos=graph.prepend_bos)` has the graph's tokens, unless the graph is of ids that no text gives."""
    tokens: np.ndarray
    """int32 [T]."""
    token_strings: tuple[str, ...]
    prepend_bos: bool
    """True if a BOS token was put before the prompt; positions count it."""
    n_layer: int
    n_head: int
    options: Mapping[str, Any]
    """Options of `attribution_graph` as JSON values; n_active, the active features before the choice; of a
    pruned graph scores, what `scores` gave before; and if only some layers have transcoders their numbers,
    transcoder_layers."""
    kind: tuple[str, ...]
    """One of "feature", "error", "token", "position", "bias", "other", "logit" per node. other: all active
    features that were not kept, together."""
    layer: np.ndarray
    """int32 [n]; -1 for tokens, positions, bias and other, the number of layers for logits."""
    position: np.ndarray
    """int32 [n]; -1 for bias and other."""
    feature: np.ndarray
    """int32 [n]: the number of a feature, the token id of tokens and logits, -1 for the rest."""
    value: np.ndarray
    """real [n]: activation of a feature, which is its pre-activation; value of a logit node; NaN for the
    rest."""
    probability: np.ndarray
    """real [n]: the probability of a logit node's token; NaN for the rest."""
    labels: tuple[str, ...]
    """What people read for each node."""
    start: np.ndarray
    """int64 [n + 1]: the edges into node t are [start[t], start[t + 1])."""
    source: np.ndarray
    """int32 [m], ascending for each target."""
    weight: np.ndarray
    """real [m]."""
    closure: float
    """Largest |sum of the incoming edges - value| / |value| over all features and logits; of a pruned graph
    that before pruning."""
    closure_absolute: float
    """Largest |sum - value| / (sum of |edges|): what rounding does, whatever cancels."""
    pattern: np.ndarray
    """real [L, H, query, key]: the attention pattern of the prompt."""
    carried: np.ndarray
    """real [n_placed, L, H, D]: what each head's values hold of a source at its own position, where the
    source has been carried by the residual stream and by attention to itself. n_placed: all nodes before
    the bias."""
    received: np.ndarray
    """real [n_targets, L, H, D]: derivative of a target with respect to each head's z at the target's own
    position, on paths that stay there. Targets: features, then logits."""
    received_alone: np.ndarray
    """The same through the residual stream alone, without attention to itself."""
    influence: np.ndarray | None = None
    """real [n]: cumulative share of the influence on the logits, nodes taken by falling influence; set by
    `prune` (circuit-tracer's definition)."""
    splits: tuple[graph_heads.ScoreSplit, ...] = ()
    """Scores of the attention entries that carry most, split into pairs of sources; see `score_pairs`."""
    pruned: Mapping[str, float] | None = None
    """The thresholds, for a graph made by `prune`; its edges do not add up any more."""
    version: int = field(default=VERSION)
    origin: Any = None
    """What `score_pairs` and `check` compute with: model, features. None for a graph read from a file,
    unpickled or copied."""

    def __post_init__(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
        splits = tuple(graph_heads.named(split, self) for split in self.splits)
        object.__setattr__(self, "splits", splits)

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
        """The number of a node given by number (negative ones count from the end) or id.

        Raises IndexError for a number out of range, KeyError for an unknown id, TypeError for other things.
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
        """int64: the numbers of one node or of several, without doubles, in order. Raises as `node` does."""
        if isinstance(nodes, str) or not isinstance(nodes, Iterable):
            return np.array([self.node(nodes)])
        numbers = self._numbers() if any(isinstance(node, str) for node in nodes) else {}
        found = [numbers[node] if node in numbers else self.node(node) for node in nodes]
        return np.unique(np.array(found, dtype=np.int64))

    def select(
        self,
        kind: str | Sequence[str] | None = None,
        layer: int | range | Sequence[int] | None = None,
        position: int | str | None = None,
        label: str | None = None,
    ) -> np.ndarray:
        """int64: the nodes that fit all that is given; none may be.

        layer: -1 for nodes of no layer, such as tokens; the number of layers for logits. position: a number
        (negative ones count from the end) or a token string that occurs once. label: a text that the node's
        label contains.
        Raises ValueError for kinds and token strings that there are not, IndexError for layers and positions
        out of range, TypeError for other things.
        """
        return graph_find.select(self, kind, layer, position, label)

    def position_of(self, position: int | str) -> int:
        """A position given as a number or as a token string; an ambiguous string is a ValueError."""
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

    # --- edges

    @property
    def n_features(self) -> int:
        """How many nodes are features."""
        return self.kind.count("feature")

    @property
    def targets(self) -> np.ndarray:
        """int64: the nodes that edges lead to, in the order of `received`: features, then logits."""
        return np.flatnonzero(np.isin(self.kind, ("feature", "logit")))

    @property
    def logits(self) -> np.ndarray:
        """int64: the logit nodes."""
        return np.flatnonzero(np.array(self.kind) == "logit")

    def incoming(self, target: int | str) -> tuple[np.ndarray, np.ndarray]:
        """(sources int32, weights real) of the edges into a node."""
        t = self.node(target)
        edges = slice(self.start[t], self.start[t + 1])
        return self.source[edges], self.weight[edges]

    def outgoing(self, source: int | str) -> tuple[np.ndarray, np.ndarray]:
        """(targets int64, weights real) of the edges from a node."""
        at = np.flatnonzero(self.source == self.node(source))
        return np.searchsorted(self.start, at, side="right") - 1, self.weight[at]

    def edge(self, source: Nodes, target: Nodes) -> float:
        """Weight of an edge, 0.0 where there is none; of groups, the sum of all edges between them.

        Raises as `node` does, and ValueError for no nodes, for targets that no edge leads to (all but
        features and logits) and for logits as sources.
        """
        sources, targets = graph_find.ends(self, source, target)
        total = 0.0
        for t in targets:
            found, weights = self.incoming(int(t))
            total += float(weights[np.isin(found, sources)].sum(dtype=np.float64))
        return total

    def total(self, source: Nodes, target: Nodes) -> float:
        """Influence of a source on a target through features as well as directly.

        The direct edge, plus over all features f: edge(source, f) / activation(f) * total(f, target): the
        effect in the replacement model linearised at this prompt, where an active feature's activation is
        its pre-activation. Groups: the sum, where no path is counted twice: what leaves the group and comes
        back to it is left out. Raises as `edge` does.
        """
        return graph_heads.total(self, *graph_find.ends(self, source, target))

    def heads(self, source: Nodes, target: Nodes, *, through: str = "edge", base: int = 0) -> pd.DataFrame:
        """Which heads carry the edge from a source to a target, or from one group of nodes to another.

        One row per (layer, head), by falling |loading|, then the rows "direct" and "remainder"; columns
        label, layer, head, loading, share (of the whole), cumulative (share of this and all rows above it),
        and, if all edges run between the same two positions, key, query (from `base`) and pattern. The
        loadings add up to the edge. From position k to q > k: a head's loading is what hops from k to q
        through its entry of the pattern, carried at k before and at q after by the residual stream and by
        attention to itself; what visits other positions is the remainder. Within one position: direct is
        the residual stream alone, a head's loading what made its last hop through it. through="features": of
        `total` instead, each first edge with its further way. The bias and other nodes have no position:
        theirs is all remainder.
        Raises ValueError for another `through` and for a graph without what this needs, see `has_heads`; as
        `edge` does for nodes.
        """
        return graph_heads.table(self, *graph_find.ends(self, source, target), through, _check.base(base))

    def needed_heads(
        self, source: Nodes, target: Nodes, fraction: float = 0.8, *, through: str = "edge"
    ) -> int | None:
        """The fewest heads whose loadings sum to `fraction` of the whole; None if all together do not.

        Raises as `heads` does, and ValueError for a fraction that is not above 0 and at most 1.
        """
        return graph_heads.needed(self, *graph_find.ends(self, source, target), fraction, through)

    def score_pairs(self, layer: int, head: int, query: int | str, key: int | str) -> graph_heads.ScoreSplit:
        """Why a head looked there: the score of one attention entry, split over pairs of sources.

        score = q . k / sqrt(D) is bilinear in the residual streams of query and key, and these are sums over
        the sources of the graph, so it is the sum of one number for every pair (query-side source, key-side
        source); the constants of a side are its bias node. Patterns and scales before the entry are held.
        Raises ValueError for a graph without its model or a pruned one, IndexError for an entry that does
        not exist.
        """
        from .score_pairs import score_pairs

        return graph_heads.named(score_pairs(self, layer, head, query, key), self)

    def check(
        self, nodes: Nodes | None = None, entries: Any = None, *, together: bool = False
    ) -> pd.DataFrame:
        """Take nodes, or attention entries, out of the real model, and compare with what the graph predicts.

        nodes: features, errors, tokens or positions; what they write is taken out of the residual stream.
        entries: attention edges such as "a9.h6[4->7]" or (layer, head, query, key), of the last position;
        they are set to zero. Each alone, or all `together`. Everything else in the model is free to react,
        while the graph holds patterns and scales and takes active features to be linear. One row per item
        and logit node; columns removed, target, label, predicted_edge (change of the logit's value on
        direct paths), predicted (through features as well), actual, ratio (actual / predicted).
        Raises ValueError for a graph without its model or a pruned one, for no nodes, for other kinds of
        nodes and for entries of other positions.
        """
        from .check import check

        if nodes is not None and not len(nodes := self.nodes_of(nodes)):
            raise ValueError("nodes has no nodes: nothing was selected")
        return check(self, nodes, entries, together)

    # --- the whole

    @property
    def has_heads(self) -> bool:
        """Whether `heads` can split edges: not if saved with heads=False or read from a graph JSON."""
        return self.carried.shape[-1] > 0

    def without_heads(self) -> Graph:
        """The graph without the arrays of `heads`, which are most of its memory."""
        from .graph_file import without_heads

        return without_heads(self)

    def with_labels(self, labels: Mapping[tuple[int, int], str] | str | os.PathLike[str]) -> Graph:
        """The graph with other labels of features: (layer, feature) to what people read, for example
        `FeatureLabels`, or what `load_feature_labels` takes. Features that `labels` lacks keep theirs.

        Raises TypeError for other keys or labels, IndexError for layers that the model lacks; as
        `load_feature_labels` for files.
        """
        names, labels = list(self.labels), checked_labels(labels, self.n_layer)
        for i in range(self.n_features):
            names[i] = labels.get((int(self.layer[i]), int(self.feature[i]))) or names[i]
        return dataclasses.replace(self, labels=tuple(names))

    def prune(self, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> Graph:
        """The nodes and edges with most influence on the logits, as circuit-tracer prunes.

        Nodes with `node_threshold` of the influence are kept, then of the edges between them those with
        `edge_threshold`; tokens, positions, bias, other and logits stay; features without an edge to or from
        them and errors without one from them go. `influence` of the result is set. Nodes are numbered anew,
        their ids stay: `pruned.node(graph.ids[i])` is where node i went.
        A pruned graph can be pruned again: thresholds are then shares of the influence on what is left.
        Raises ValueError for thresholds outside 0..1.
        """
        return graph_prune.prune(self, node_threshold, edge_threshold)

    def scores(self) -> dict[str, float]:
        """How much of the influence on the logits is explained.

        replacement, completeness: circuit-tracer's definitions, on the nodes that it has (features, errors,
        tokens, logits). replacement_closed, completeness_closed: the same on all nodes, with positions and
        biases as explained and other features as error. Of a pruned graph: those of the whole one, which
        `prune` notes in `options`; ValueError if it came from elsewhere without them. A graph read from
        another tool's file that names no thresholds counts as whole.
        """
        return graph_prune.scores(self)

    @property
    def nodes(self) -> pd.DataFrame:
        """One row per node: id, kind, layer, position, token, feature, value, probability, label."""
        import pandas as pd

        strings = [self.token_strings[p] if p >= 0 else "" for p in self.position]
        columns = {
            "id": self.ids, "kind": self.kind, "layer": self.layer, "position": self.position,
            "token": strings, "feature": self.feature, "value": self.value, "probability": self.probability,
            "label": self.labels,
        }  # fmt: skip
        if self.influence is not None:
            columns["influence"] = self.influence
        return pd.DataFrame(columns)

    @property
    def edges(self) -> pd.DataFrame:
        """One row per edge: source, target (node numbers), source_id, target_id, weight."""
        import pandas as pd

        target = np.repeat(np.arange(len(self)), np.diff(self.start))
        ids = np.array(self.ids)
        return pd.DataFrame(
            {
                "source": self.source,
                "target": target,
                "source_id": ids[self.source],
                "target_id": ids[target],
                "weight": self.weight,
            }
        )

    def to_pandas(self) -> pd.DataFrame:
        """`edges`."""
        return self.edges

    def summary(self) -> pd.DataFrame:
        """One row: model, transcoders, prompt, prepend_bos, pruned (False, or the thresholds), nodes of each
        kind, edges, closure (NaN for a pruned graph, whose edges do not add up), scores (as `scores` gives
        them, if it does)."""
        import pandas as pd

        thresholds = ", ".join(f"{name}={value:g}" for name, value in (self.pruned or {}).items())
        row = {
            "model": self.model_name,
            "transcoders": self.transcoders_name,
            "prompt": self.prompt,
            "prepend_bos": self.prepend_bos,
            "pruned": False if self.pruned is None else thresholds or "True",
            **{f"n_{kind}": self.kind.count(kind) for kind in KINDS},
            "n_edges": len(self.source),
            "closure": self.closure if self.pruned is None else np.nan,
        }
        return pd.DataFrame([row | (graph_prune.known_scores(self) or {})])

    # --- files

    def save(self, path: str | os.PathLike[str], *, heads: bool = True) -> None:
        """Write `path`.json (names and options) and `path`.npz (arrays), each whole or not at all.

        heads=False leaves out the largest arrays, n L H D numbers, which `heads` computes with. `load_graph`
        reads both. Raises OSError.
        """
        from .graph_file import save_graph

        save_graph(self, path, heads=heads)

    def to_json(
        self,
        folder: str | os.PathLike[str],
        slug: str,
        *,
        node_threshold: float | None = 0.8,
        edge_threshold: float | None = 0.98,
        supernodes: Mapping[str, Nodes] | None = None,
        pinned: Nodes = (),
        clicked: int | str | None = None,
        scan: str | None = None,
        info: Mapping[str, Any] | None = None,
        feature_details: Mapping[str, str] | None = None,
        n_contributors: int = 10,
        warn_bytes: int = 100 * 2**20,
    ) -> Path:
        """Write `slug`.json for circuit-tracer's and Neuronpedia's viewers; see `write_graph_json`."""
        from .neuronpedia_write import write_graph_json

        return write_graph_json(
            self, folder, slug, node_threshold=node_threshold, edge_threshold=edge_threshold,
            supernodes=supernodes, pinned=pinned, clicked=clicked, scan=scan, info=info,
            feature_details=feature_details, n_contributors=n_contributors, warn_bytes=warn_bytes,
        )  # fmt: skip

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        title: str | None = None,
        node_threshold: float | None = None,
        edge_threshold: float | None = None,
        max_edges: int = 3000,
        base: int = 0,
    ) -> Path:
        """Write one page to look at the graph in a browser and return its path; it needs no other file.

        Clicking a node shows its edges, clicking an edge the eight heads that carry most of it with their
        attention maps; labels can be searched, and `#node=ID` or `#edge=ID,ID` after the address leads to a
        node or an edge. The page loads nothing and may not: its policy forbids the network. The same graph
        gives the same bytes.
        A graph that is not pruned is pruned first, by `prune` with node_threshold (None = 0.8) and
        edge_threshold (None = 0.98). max_edges: of its edges, so many with the largest |weight| are in it.
        title: in place of the prompt. base: the number of the first position, 0 or 1.
        Warns above 20 MB.
        Raises ValueError for thresholds outside 0..1 or for a pruned graph, for a negative
        max_edges and another base, TypeError for other things, OSError if the file cannot be written.
        """
        from .page import write_page

        return write_page(self, path, title, node_threshold, edge_threshold, max_edges, base)

    # --- display

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied is all but `origin`, as in a file."""
        names = [item.name for item in dataclasses.fields(self) if item.name != "origin"]
        return partial(Graph, **{name: getattr(self, name) for name in names}), ()

    def __repr__(self) -> str:
        size = f"{len(self)} nodes, {len(self.source):,} edges{graph_find.layers_with_features(self)}"
        state = "pruned" if self.pruned else f"closure {self.closure:.1e}"
        return f"Graph({self.prompt!r:.60}, {self.model_name!r}, {size}, {state})"

    def _repr_html_(self) -> str:
        nodes = self.nodes.assign(influence=graph_prune.node_influence(self))
        return html_table(self, nodes.nlargest(SHOWN, "influence"))
