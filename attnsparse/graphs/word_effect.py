"""What carries one word of a prompt to the answer: groups of a graph, the heads behind the edge, the check.

    found = word_effect(model, transcoders)                # 'The opposite of "large" is "', large -> small
    found.drawn, found.share, found.loadings["features"].needed(0.8), found.checks

The edge is the effect of the word's group on the logit of the answer; its tables are those of the antonym
figure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._display import html_table, stage_bars
from .._tables import text_table
from ..circuits.entry_task import ANSWER, KEY, PROMPT, wrong_words
from ..items import Edge, Head, token_label
from .build import MAX_FEATURE_NODES, attribution_graph
from .groups import Group, Spec, flows, group_nodes, token_groups
from .heads import first_edges, loadings, shares, total_of

if TYPE_CHECKING:
    import pandas as pd

    from ..model.model import Model
    from ..transcoders.transcoders import Transcoders
    from .graph import Graph

__all__ = ["Loadings", "WordEffect", "word_effect"]

TOP = 5  # heads whose share the tables name, as many as the paper's sparse model has
MOST = 36  # heads drawn of a model
STAGE, STEPS = "word effect", 4  # of its bar


@dataclass(frozen=True, eq=False, repr=False)
class Loadings:
    """The edge from a group to the logit, split by heads: directly ("edge"), or through features as well.

    Attributes
    ----------
    whole : float
        The edge, in units of the logit.
    heads : tuple of Head
        [L * H]: all heads, by falling share.
    shares : numpy.ndarray
        float64 [L * H]: loading / whole, falling.
    cumulative : numpy.ndarray
        float64 [L * H]: share of each head and all before it.
    direct : float
        Share that no head carries.
    remainder : float
        Share of paths that visit other positions on the way.
    """

    whole: float
    heads: tuple[Head, ...]
    shares: np.ndarray
    cumulative: np.ndarray
    direct: float
    remainder: float

    def needed(self, fraction: float) -> int | None:
        """The fewest heads that have a share together.

        Parameters
        ----------
        fraction : float
            Above 0 and at most 1.

        Returns
        -------
        int or None
            None if all heads together do not reach it.

        Raises
        ------
        ValueError
            For another fraction.
        """
        reached = np.flatnonzero(self.cumulative >= _check.fraction(fraction))
        return int(reached[0]) + 1 if len(reached) else None

    def __repr__(self) -> str:
        first = ", ".join(f"{head.label} {share:.0%}" for head, share in zip(self.heads[:3], self.shares))
        return (
            f"Loadings(whole {self.whole:.4g}: {first}, ..., direct {self.direct:.0%}, "
            f"remainder {self.remainder:.0%})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class WordEffect:
    """The effect of one word of a prompt on the answer in one model. Made by `word_effect`.

    Attributes
    ----------
    graph : Graph
        The attribution graph of the prompt.
    named_groups : dict of str to Group
        The groups of the graph by name.
    flows : numpy.ndarray
        float64 [g, g]: entry [a, b] is the effect of group a on the logits by way of group b, the next
        one on the path, in units of the logit; groups in the order of `named_groups`.
    source : str
        Name of the word's group.
    output : str
        Name of the group with the logits.
    key : int
        The word's position, from 0.
    loadings : dict of str to Loadings
        "features" and "edge", as `Graph.heads` takes them.
    by_last : float
        Share of the word's effect through features that first reaches one at the last position.
    fraction : float
        Share of the word's effect that the drawn heads were to have, above 0 and at most 1.
    n_drawn : int
        The fewest heads with `fraction` of the word's effect through features, at most 36.
    checks : pandas.DataFrame
        `Graph.check` of the word's group, and of the drawn heads' entries from it to the last position.
    model_digest : str
        `Model.digest`: SHA-256 of configuration and weights, hexadecimal.
    """

    graph: Graph
    named_groups: dict[str, Group]
    flows: np.ndarray
    source: str
    output: str
    key: int
    loadings: dict[str, Loadings]
    by_last: float
    fraction: float
    n_drawn: int
    checks: pd.DataFrame
    model_digest: str

    @property
    def query(self) -> int:
        """The last position, from 0."""
        return len(self.graph.tokens) - 1

    @property
    def drawn(self) -> tuple[Head, ...]:
        """The heads that the figure shows."""
        return self.loadings["features"].heads[: self.n_drawn]

    @property
    def share(self) -> float:
        """The drawn heads' share of the edge."""
        return float(self.loadings["features"].shares[: self.n_drawn].sum())

    def same_entry(self) -> int:
        """The number of drawn heads whose strongest key at the last position is the word.

        Returns
        -------
        int
            0 to `n_drawn`.
        """
        rows = [self.graph.pattern[head][self.query] for head in self.drawn]
        return sum(int(row.argmax()) == self.key for row in rows)

    def heads(self, base: int = 0) -> pd.DataFrame:
        """The heads that carry anything, through features and directly.

        Parameters
        ----------
        base : int, default 0
            Number of the first position, 0 or 1.

        Returns
        -------
        pandas.DataFrame
            One row per head and way: through ("features", "edge"), item_rank, label, layer, head_index,
            key_position, query_position, weight (entry of the pattern), loading, share, cumulative (share of
            this row and all above it), drawn.
        """
        import pandas as pd

        parts, base = [], _check.base(base)
        for through, split in self.loadings.items():
            heads = [(head, share) for head, share in zip(split.heads, split.shares) if share != 0]
            entry = [float(self.graph.pattern[head][self.query, self.key]) for head, _ in heads]
            carries = split.shares != 0
            table = text_table(
                {
                    "through": through,
                    "item_rank": np.arange(1, len(heads) + 1),
                    "label": [head.label for head, _ in heads],
                    "layer": [head.layer for head, _ in heads],
                    "head_index": [head.head for head, _ in heads],
                    "key_position": self.key + base,
                    "query_position": self.query + base,
                    "weight": entry,
                    "loading": split.shares[carries] * split.whole,
                    "share": split.shares[carries],
                    "cumulative": split.cumulative[carries],
                }
            )
            table["drawn"] = (table["item_rank"] <= self.n_drawn) & (through == "features")
            parts.append(table)
        result: pd.DataFrame = pd.concat(parts, ignore_index=True)
        return result

    def groups(self, base: int = 0) -> pd.DataFrame:
        """The groups: their members, their layers, and their effect on the answer.

        Parameters
        ----------
        base : int, default 0
            Number of the first position, 0 or 1.

        Returns
        -------
        pandas.DataFrame
            One row per group: group, positions (text), n_nodes, n_features, first_layer, last_layer (-1 for
            embeddings alone), influence (in units of the logit).
        """

        groups, base = list(self.named_groups.values()), _check.base(base)
        none = (-1, -1)
        result: pd.DataFrame = text_table(
            {
                "group": [group.name for group in groups],
                "positions": [" ".join(str(p + base) for p in group.positions) for group in groups],
                "n_nodes": [len(group) for group in groups],
                "n_features": [group.n_features for group in groups],
                "first_layer": [(group.layers or none)[0] for group in groups],
                "last_layer": [(group.layers or none)[1] for group in groups],
                "influence": [group.influence for group in groups],
            }
        )
        return result

    def arrows(self) -> pd.DataFrame:
        """The flows between groups: the effect of one on the answer by way of another.

        Returns
        -------
        pandas.DataFrame
            One row per pair of groups with a flow: source, target, weight (in units of the logit), share (of
            the logit difference).
        """

        names = list(self.named_groups)
        value = float(self.graph.value[self.graph.logits[0]])
        rows = [
            {
                "source": names[a],
                "target": names[b],
                "weight": self.flows[a, b],
                "share": self.flows[a, b] / value,
            }
            for a, b in np.argwhere(self.flows)
        ]
        result: pd.DataFrame = text_table(rows, ["source", "target", "weight", "share"])
        return result

    def __repr__(self) -> str:
        what = f"{self.source!r:.40} -> {self.output!r:.40} in {self.graph.model_name!r:.60}"
        heads = "1 head carries" if self.n_drawn == 1 else f"{self.n_drawn} heads carry"
        return f"WordEffect({what}: {heads} {100 * self.share:.0f} %)"

    def _repr_html_(self) -> str:
        return html_table(self, self.heads())


def word_effect(
    model: Model,
    transcoders: Transcoders,
    prompt: str = PROMPT,
    key: int | str = KEY,
    answer: str = ANSWER,
    wrong: Sequence[str] | None = None,
    *,
    groups: Mapping[str, Spec] | None = None,
    fraction: float = 0.8,
    max_feature_nodes: int | None = MAX_FEATURE_NODES,
    labels: Mapping[tuple[int, int], str] | str | os.PathLike[str] | None = None,
    prepend_bos: bool = False,
    progress: bool | None = None,
) -> WordEffect:
    """The attribution graph of a prompt, in groups, and the heads behind the edge from a word to the answer.

    Parameters
    ----------
    model : Model
    transcoders : Transcoders
    prompt : str
        One prompt.
    key : int or str
        The word, as a position from 0 or a token.
    answer : str
        The logit node is the logit of this token minus the mean logit of the wrong ones.
    wrong : sequence of str, optional
        None: all other words of the antonym task.
    groups : mapping, optional
        As for `group_nodes`; one of them must be at the position of `key` alone. The logits become one more
        group unless they are in one. None: `token_groups`.
    fraction : float, default 0.8
        Of the edge, which the drawn heads carry; above 0 and at most 1.
    max_feature_nodes : int, optional
        As for `attribution_graph`; features that are not kept are in no group.
    labels : mapping, str or os.PathLike, optional
        As for `attribution_graph`.
    prepend_bos : bool, default False
        Put a BOS token before the prompt, at position 0.
    progress : bool, optional
        Show a bar; None: in a terminal or notebook, after a second.

    Returns
    -------
    WordEffect

    Raises
    ------
    ValueError
        As `attribution_graph` and `group_nodes` do, for another fraction, and if no group is at the position
        of `key` alone.
    """
    fraction = _check.fraction(fraction)
    others = wrong_words(answer) if wrong is None else wrong
    with stage_bars(progress) as tell:
        graph = attribution_graph(
            model,
            transcoders,
            prompt,
            answer,
            wrong=others,
            max_feature_nodes=max_feature_nodes,
            labels=labels,
            prepend_bos=prepend_bos,
            progress=progress,
        )
        return _carried(model, graph, key, token_label(answer), groups, fraction, tell or _silent)


def _silent(stage: str, done: int, total: int) -> None:
    """For calls without a bar."""


def _carried(
    model: Model,
    graph: Graph,
    key: int | str,
    name: str,
    groups: Mapping[str, Spec] | None,
    fraction: float,
    tell: Callable[[str, int, int], None],
) -> WordEffect:
    """What the graph says of the word; name: of the answer."""
    key_at = graph.position_of(key)
    tell(STAGE, 0, STEPS)
    named = token_groups(graph, name) if groups is None else _own_groups(graph, groups, name)
    source = _group_at(graph, named, key_at)
    output = next(name for name, group in named.items() if np.isin(graph.logits, group.nodes).all())
    split = {}
    for done, through in enumerate(("features", "edge")):
        tell(STAGE, done, STEPS)
        split[through] = _split(graph, named[source].nodes, through)
    tell(STAGE, 2, STEPS)
    by_features = split["features"]
    n = by_features.needed(fraction) or int((by_features.shares > 0).sum())
    n = min(max(n, 1), MOST)
    weights = flows(graph, list(named.values()))
    tell(STAGE, 3, STEPS)
    checks = _checks(graph, named[source], by_features.heads[:n], key_at)
    tell(STAGE, STEPS, STEPS)
    return WordEffect(
        graph=graph,
        named_groups=named,
        flows=weights,
        source=source,
        output=output,
        key=key_at,
        loadings=split,
        by_last=_by_last(graph, named[source].nodes),
        fraction=fraction,
        n_drawn=n,
        checks=checks,
        model_digest=model.digest,
    )


def _own_groups(graph: Graph, groups: Mapping[str, Spec], output: str) -> dict[str, Group]:
    named = group_nodes(graph, groups)
    if any(np.isin(graph.logits, group.nodes).all() for group in named.values()):
        return named
    return group_nodes(graph, {**groups, output: graph.logits.tolist()})


def _group_at(graph: Graph, groups: Mapping[str, Group], key: int) -> str:
    for name, group in groups.items():
        if group.positions == (key,) and not np.isin(graph.logits, group.nodes).any():
            return name
    raise ValueError(
        f"no group is at position {key} ({graph.token_strings[key]!r}) alone; groups are at "
        + ", ".join(f"{name!r:.40}: {list(group.positions)}" for name, group in groups.items())
    )


def _split(graph: Graph, nodes: np.ndarray, through: str) -> Loadings:
    by_head, rest, _ = loadings(graph, nodes, graph.logits, through)
    order, share, cumulative, whole = shares(by_head, rest)
    if not whole:
        share, cumulative = np.zeros((2, len(share)))
    n, heads = len(order), tuple(Head(*divmod(int(i), graph.n_head)) for i in order)
    return Loadings(whole, heads, share[:n], cumulative[:n], *map(float, share[n:]))


def _by_last(graph: Graph, nodes: np.ndarray) -> float:
    _, target, weight, factor = first_edges(graph, nodes, graph.logits, "features")
    there = (graph.position[target] == len(graph.tokens) - 1) & ~np.isin(target, graph.logits)
    whole = total_of(graph, weight, factor)
    return total_of(graph, weight[there], factor[there]) / whole if whole else 0.0


def _checks(graph: Graph, group: Group, heads: Sequence[Head], key: int) -> pd.DataFrame:
    import pandas as pd

    last = len(graph.tokens) - 1
    entries = [Edge(*head, last, key) for head in heads]
    rows = [
        graph.check(nodes=group.nodes.tolist(), together=True, progress=False).assign(
            removed=f"group {group.name}"
        ),
        graph.check(entries=entries, together=True, progress=False).assign(
            removed="entries of the drawn heads"
        ),
    ]
    table: pd.DataFrame = pd.concat(rows, ignore_index=True)
    return table


def edge_row(found: WordEffect, through: str, base: int) -> dict[str, Any]:
    """The numbers behind the arrow from the word to the answer, positions counted from `base`."""
    graph, split = found.graph, found.loadings[through]
    scores = graph.scores()
    return {
        "model": graph.model_name,
        "transcoders": graph.transcoders_name,
        "prompt": graph.prompt,
        "prepend_bos": graph.prepend_bos,
        "source": found.source,
        "target": found.output,
        "key_position": found.key + base,
        "query_position": found.query + base,
        "through": through,
        "logit_diff": float(graph.value[graph.logits[0]]),
        "weight": split.whole,
        "fraction": found.fraction,
        "heads": graph.n_layer * graph.n_head,
        "heads_needed": split.needed(found.fraction),
        f"share_of_{TOP}": float(split.shares[:TOP].sum()),
        "direct": split.direct,
        "remainder": split.remainder,
        "by_last_position": found.by_last if through == "features" else 0.0,
        "heads_drawn": found.n_drawn if through == "features" else 0,
        "share_drawn": found.share if through == "features" else float("nan"),
        "drawn_look_at_key": found.same_entry() if through == "features" else 0,
        "closure": graph.closure,
        "n_features": graph.n_features,
        "n_active": graph.options["n_active"],
        "replacement_closed": scores["replacement_closed"],
        "completeness_closed": scores["completeness_closed"],
        "digest": found.model_digest,
    }
