"""From a prompt to its attribution graph: what to include, and the numbers of nodes and edges.

    graph = asp.attribution_graph(model, transcoders, 'The opposite of "large" is "')
    graph.heads("0_17_4", graph.logits[0])              # which heads carry that edge
    graph.prune().to_html("graph.html")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .engine import checked_threads
from .graph_heads import ScoreSplit
from .graph_nodes import Sources, read_sources
from .graph_object import Graph, Nodes
from .graph_scores import strongest_splits
from .graph_select import choose_features
from .graph_targets import Reads, feature_reads, logit_reads
from .labels import whole_number
from .progress import progress_bar
from .run import DEFAULT_MAX_BYTES, checked_bytes

if TYPE_CHECKING:
    from .model import Model
    from .transcoder import Transcoders

MAX_N_LOGITS = 10
DESIRED_LOGIT_PROB = 0.95
MAX_FEATURE_NODES = 2000


def attribution_graph(
    model: Model,
    transcoders: Transcoders,
    prompt: Any,
    target: int | str | Sequence[int | str] | None = None,
    *,
    wrong: int | str | Sequence[int | str] | None = None,
    max_n_logits: int = MAX_N_LOGITS,
    desired_logit_prob: float = DESIRED_LOGIT_PROB,
    max_feature_nodes: int | None = MAX_FEATURE_NODES,
    labels: Mapping[tuple[int, int], str] | None = None,
    n_splits: int = 0,
    prepend_bos: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
    progress: bool | None = None,
) -> Graph:
    """The attribution graph of one prompt: what drives its active features and the logits of the next token.

    With attention patterns, gates and LayerNorm scales held as they are in the run, every feature's
    pre-activation and every logit is a sum of direct effects: of features, errors of the MLPs, token and
    position embeddings and biases. These are the edges (Ameisen et al. 2025, "Circuit Tracing", whose graphs
    leave out positions and biases and therefore do not add up).

    target: None for the most likely next tokens, as few as have `desired_logit_prob` together and at most
    `max_n_logits`; or one token or several, as strings or ids. A logit node's value is the logit minus the
    mean logit of the vocabulary. With `wrong`, tokens too, there is one logit node: the mean logit of `target`
    minus that of `wrong`. max_feature_nodes: keep at most so many features, those with most influence on the
    logits; None = all; the rest become the node "other". labels: (layer, feature) to what people read, for
    example `label_features(...)`. n_splits: also split the scores of so many attention entries, those that
    carry most, into pairs of sources (see `Graph.score_pairs`); takes a few hundredths of a second each at
    GPT-2's size. max_bytes bounds the run and, again, the graph.

    Raises ConfigError if the transcoders do not fit the model, ValueError for several prompts, for a token
    string that is not one token and for options out of range, IndexError for token ids, MemoryError before
    more than `max_bytes` would be taken, KeyboardInterrupt on Ctrl-C.
    """
    threads, max_bytes = checked_threads(threads), checked_bytes(max_bytes)
    most = None if max_feature_nodes is None else _count(max_feature_nodes, "max_feature_nodes")
    n_splits = _count(n_splits, "n_splits")
    features = transcoders.features(
        model, prompt, prepend_bos=prepend_bos, max_bytes=max_bytes, threads=threads or None, progress=False
    )
    logits = logit_reads(model, features.run, target, wrong, max_n_logits, desired_logit_prob)
    with progress_bar(progress, 4, "graph", "part") as bar:
        step = (lambda: None) if bar is None else bar.update
        sources = read_sources(model, features, max_bytes)
        step()
        reads = feature_reads(features, model)
        chosen, rows, bias = choose_features(sources, logits, reads, most, threads)
        step()
        graph = _assemble(sources, logits, reads, chosen, rows, bias, labels, threads)
        step()
        options = {
            "target": _shown(target),
            "wrong": _shown(wrong),
            "max_n_logits": int(max_n_logits),
            "desired_logit_prob": float(desired_logit_prob),
            "max_feature_nodes": most,
            "n_active": len(features),
        }
        object.__setattr__(graph, "options", options)
        if n_splits:
            object.__setattr__(graph, "splits", strongest_splits(graph, n_splits))
    return graph


def _count(value: Any, name: str) -> int:
    number = whole_number(value, name)
    if number < 0:
        raise ValueError(f"{name} must not be negative, got {number}")
    return number


def _shown(tokens: Any) -> Any:
    if tokens is None or isinstance(tokens, str):
        return tokens
    if isinstance(tokens, (int, np.integer)):
        return int(tokens)
    return [token if isinstance(token, str) else int(token) for token in tokens]


def _assemble(
    sources: Sources,
    logits: Reads,
    reads: Reads,
    chosen: np.ndarray,
    rows: np.ndarray,
    bias: np.ndarray,
    labels: Mapping[tuple[int, int], str] | None,
    threads: int,
) -> Graph:
    """The graph of the chosen features and the logits. rows, bias: their effects, features first."""
    f, run = sources.features, sources.features.run
    n_active, n_kept, n_logits = len(f), len(chosen), len(logits)
    kept = np.concatenate([chosen, np.arange(n_active, sources.n)])
    unkept = np.ones(n_active, bool)
    unkept[chosen] = False
    other = rows[:, :n_active][:, unkept].sum(axis=1, dtype=np.float64)[:, None]
    parts = [rows[:, kept], bias[:, None], *([other] if unkept.any() else [])]
    effects = np.concatenate(parts, axis=1)
    reading = reads.take(chosen) + logits
    n = effects.shape[1] + n_logits
    targets = np.concatenate([np.arange(n_kept), np.arange(n - n_logits, n)])
    start, source, weight = sparse_rows(effects, targets, n, rows.dtype)
    sums, absolute = effects.sum(axis=1, dtype=np.float64), np.abs(effects).sum(axis=1, dtype=np.float64)
    off = np.abs(sums - reading.value)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(off > 0, off / np.abs(reading.value), 0)
    n_layer, t = f.error.shape[:2]
    blank = np.full(effects.shape[1] - len(kept), -1)
    layers = np.repeat(np.arange(n_layer), t)
    none = np.full(2 * t, -1)
    real = rows.dtype
    frozen, writes = sources.frozen, sources.writes_of(kept)
    core = run.model._core
    chosen_layer, chosen_feature = f.layer[chosen], f.feature[chosen]
    names = [] if labels is None else [labels.get((int(a), int(b))) for a, b in zip(chosen_layer, chosen_feature)]
    plain = [f"feature {b} of layer {a}" for a, b in zip(chosen_layer, chosen_feature)]
    strings = tuple(run.token_strings)
    kinds = [("feature", n_kept), ("error", n_layer * t), ("token", t), ("position", t), ("bias", 1),
             ("other", len(blank) - 1), ("logit", n_logits)]  # fmt: skip
    return Graph(
        model_name=run.model.name,
        model_digest=run.model.digest,
        transcoders_name=f.transcoders.name,
        scan=f.transcoders.scan or f.transcoders.name or run.model.name,
        prompt="".join(strings) if run.prompt is None else run.prompt,
        tokens=np.array(run.tokens, dtype=np.int32),
        token_strings=strings,
        prepend_bos=run.prepend_bos,
        n_layer=n_layer,
        n_head=run.pattern.shape[1],
        options={},
        kind=tuple(kind for kind, count in kinds for _ in range(count)),
        layer=_ints(chosen_layer, layers, none, blank, np.full(n_logits, n_layer)),
        position=_ints(
            f.position[chosen], np.tile(np.arange(t), n_layer), np.arange(t), np.arange(t), blank, logits.position
        ),
        feature=_ints(chosen_feature, np.full(n_layer * t, -1), run.tokens, np.full(t, -1), blank, logits.token),
        value=np.concatenate(
            [f.activation[chosen], np.full(n - n_kept - n_logits, np.nan), logits.value]
        ).astype(real),
        probability=np.concatenate([np.full(n - n_logits, np.nan), logits.probability]).astype(real),
        labels=(
            *(name or text for name, text in zip(names or plain, plain)),
            *(f"error of layer {a}" for a in layers),
            *(f"token {token!r}" for token in strings),
            *(f"position {i}" for i in range(t)),
            "biases",
            *["other features"] * (len(blank) - 1),
            *logits.labels,
        ),
        start=start,
        source=source,
        weight=weight,
        closure=float(relative.max(initial=0)),
        closure_absolute=float((off / np.maximum(absolute, 1e-300)).max(initial=0)),
        pattern=run.pattern,
        carried=core.graph_carried(frozen, writes, threads=threads),
        received=core.graph_received(frozen, reading.arrays, False, threads=threads),
        received_alone=core.graph_received(frozen, reading.arrays, True, threads=threads),
        origin=(sources, chosen),
    )  # fmt: skip


def _ints(*parts: Any) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])


def sparse_rows(
    effects: np.ndarray, targets: np.ndarray, n: int, real: np.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start, source, weight) of n nodes, of which `targets`, rising, have the rows of `effects`."""
    at, source = np.nonzero(effects)
    counts = np.zeros(n + 1, np.int64)
    counts[1 + targets] = np.bincount(at, minlength=len(targets))
    return np.cumsum(counts), source.astype(np.int32), effects[at, source].astype(real)


__all__ = ["Graph", "Nodes", "ScoreSplit", "attribution_graph"]
