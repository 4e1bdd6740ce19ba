"""The antonym figure with transcoders: the prompt's graph in groups, dense beside sparse, and its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .._tables import text_table
from ..circuits.entry_task import KEY, PROMPT, wrong_words
from ..figures.graph_overview import LEAST_ARROW, LEAST_BOX, graph_overview
from ..graphs.graph import Graph
from ..graphs.groups import MOST as IN_LAYERS
from ..graphs.groups import Group, influences
from ..graphs.word_effect import TOP, WordEffect, edge_row, word_effect
from ..items import token_label
from ..model.model import Model
from ..transcoders import describe_features
from ..transcoders.transcoders import Transcoders

FRACTION = 0.8
FEATURES = 20  # of each group in the table of features


def find(models: Mapping[str, Model], transcoders: Mapping[str, Transcoders]) -> dict[str, WordEffect]:
    """Role -> the edge from the word to its opposite in the model of that role."""
    return {role: word_effect(models[role], transcoders[role], fraction=FRACTION) for role in transcoders}


def draw(found: Mapping[str, WordEffect], base: int) -> Figure:
    """The figure of "dense" and "sparse"."""
    return graph_overview(found["dense"], found["sparse"], base=base)


def tables(found: Mapping[str, WordEffect], base: int) -> dict[str, pd.DataFrame]:
    """What the figure shows, in full, for both models."""
    edges = [
        {"role": role, **edge_row(edge, through, base)}
        for role, edge in found.items()
        for through in edge.loadings
    ]
    return {
        "graph": text_table(edges),
        "graph-checks": _by_role(found, lambda edge: edge.checks),
        "graph-heads": _by_role(found, lambda edge: edge.heads(base)),
        "graph-groups": _by_role(found, lambda edge: edge.groups(base)),
        "graph-arrows": _by_role(found, lambda edge: edge.arrows()),
        "graph-features": _by_role(found, lambda edge: features_table(edge, base)),
    }


def _by_role(found: Mapping[str, WordEffect], table: Callable[[WordEffect], pd.DataFrame]) -> pd.DataFrame:
    parts: list[pd.DataFrame] = []
    for role, edge in found.items():
        part = table(edge)
        part.insert(0, "role", role)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def features_table(found: WordEffect, base: int) -> pd.DataFrame:
    """The features of every group with most influence on the answer, each alone, at most FEATURES.

    label: see `describe_features`, over the sentence with each word of the antonym task. on_word: of the
    activation in its strongest contexts there, the share that is on the group's own word.
    """
    graph, total = found.graph, influences(found.graph)
    assert graph.origin is not None  # as of every graph that was made here
    features = graph.origin[0].features
    shown = {name: _strongest(group, graph, total) for name, group in found.named_groups.items()}
    keys = {(int(graph.layer[i]), int(graph.feature[i])) for nodes in shown.values() for i in nodes}
    prompts = [PROMPT.replace(KEY, word) for word in wrong_words("")]
    labels = describe_features(
        features.run.model, features.transcoders, prompts, sorted(keys), progress=False
    )
    rows: list[dict[str, object]] = []
    for name, nodes in shown.items():
        for i in nodes:
            key = int(graph.layer[i]), int(graph.feature[i])
            rows.append(
                {
                    "group": name,
                    "layer": key[0],
                    "position": int(graph.position[i]) + base,
                    "feature": key[1],
                    "activation": graph.value[i],
                    "influence": total[i],
                    "on_word": _share_on(labels.contexts(*key), name),
                    "label": labels[key],
                }
            )
    table: pd.DataFrame = text_table(rows)
    return table


def _strongest(group: Group, graph: Graph, total: np.ndarray) -> np.ndarray:
    features = group.nodes[group.nodes < graph.n_features]
    return features[np.argsort(-np.abs(total[features]), kind="stable")][:FEATURES]


def _share_on(contexts: pd.DataFrame, word: str) -> float:
    """NaN for a feature that is not active in the prompts."""
    whole = contexts["activation"].sum()
    on = contexts["token"].map(token_label) == word.partition("@")[0]
    return float(contexts["activation"][on].sum() / whole) if whole else float("nan")


def caption(found: Mapping[str, WordEffect], base: int) -> str:
    """What the figure shows, with the numbers of its tables, in one paragraph."""
    one = found["sparse"]
    source, output, prompt = one.source, one.output, one.graph.prompt
    counts = " ".join(f"{role.capitalize()}: {_counts(edge, base)}" for role, edge in found.items())
    return (
        f"Attribution graph of {prompt!r} in groups; positions from {base}, queries downwards, keys to the "
        f"right, the entry {one.key + base} → {one.query + base} in red. A box is everything about one word: "
        f"its embedding, and the features of its position that this embedding drives most (equal punctuation "
        f"together). {output!r} is its logit minus the mean of the other words of the antonym task, and the "
        f"features of the last position that other words drive most. A box reaches over the fewest "
        f"neighbouring layers with {_percent(IN_LAYERS)} of the influence of its features, the darker the "
        f"more; {one.graph.n_layer} are the logits. Arrows: what a box does to the logit difference by way "
        f"of the next box, in units of the logit, dashed if against it; drawn are each box's strongest and "
        f"all above {_percent(LEAST_ARROW)} of the logit difference; boxes below {_percent(LEAST_BOX)} are "
        f"left out. The red arrow is everything that "
        f"{source!r} does, through attention as it is in this prompt and through features, and the maps are "
        f"the fewest heads that carry {_percent(one.fraction)} of it. {counts}"
    )


def _counts(found: WordEffect, base: int) -> str:
    """One model: heads, what goes directly, and the check."""
    graph, split, direct = found.graph, found.loadings["features"], found.loadings["edge"]
    value = float(graph.value[graph.logits[0]])
    group, entries = (row for row in found.checks.itertuples())
    alone = direct.whole / split.whole if split.whole else float("nan")
    return (
        f"{found.n_drawn} heads carry {_percent(found.share)} of {split.whole:.1f} (logit difference "
        f"{value:.1f}), {found.same_entry()} of them look from {found.query + base} at {found.key + base} "
        f"most; the best {TOP} carry {_percent(split.shares[:TOP].sum())}. {_percent(alone)} reach the "
        f"logit without another feature on the way, {_percent(found.by_last)} go through features of the "
        f"last position, {_percent(split.remainder)} hop through other positions; of the direct edge, "
        f"{_needed(direct.needed(found.fraction))} carry {_percent(found.fraction)}. In the model itself, "
        f"the logit difference changes by {group.actual:.1f} without the embedding and the features of "
        f"{found.source!r} (graph: {group.predicted:.1f}), and by {entries.actual:.1f} without the entries "
        f"of the drawn heads (graph: {entries.predicted:.1f})."
    )


def _percent(share: float) -> str:
    return f"{round(100 * share) + 0} %" if np.isfinite(share) else "no part"


def _needed(n: int | None) -> str:
    return "all heads together do not" if n is None else f"{n} head{'s' if n != 1 else ''}"
