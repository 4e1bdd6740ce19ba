"""From a prompt to its attribution graph: what to include, and the numbers of nodes and edges.

graph = asp.attribution_graph(model, transcoders, 'The opposite of "large" is "')
graph.heads("0_17_4", graph.logits[0])              # which heads carry that edge
graph.prune().to_html("graph.html")
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._display import progress_bar
from ..model.model import Model
from ..model.run import DEFAULT_MAX_BYTES, Run
from ..model.tokenizer import token_texts
from ..transcoders.features import RECORDED
from ..transcoders.label_files import checked_labels
from ..transcoders.transcoders import Transcoders
from .choose import choose_features, sparse_rows
from .graph import Graph
from .neuronpedia_write import error_label
from .score_pairs import strongest_splits
from .sources import Sources, read_sources
from .targets import LogitReads, Reads, feature_reads, logit_reads

if TYPE_CHECKING:
    from ..transcoders.features import Features

__all__ = ["attribution_graph"]

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
    labels: Mapping[tuple[int, int], str] | str | os.PathLike[str] | None = None,
    n_splits: int = 0,
    prepend_bos: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
    progress: bool | None = None,
) -> Graph:
    """The attribution graph of one prompt: what drives its active features and the logits of the next token.

    With attention patterns, gates and LayerNorm scales held as they are in the run, every feature's
    pre-activation and every logit is a sum of direct effects: of features, errors of the MLPs, token and
    position embeddings and biases. These are the edges. Layers without a transcoder have no features: the
    whole output of their MLP is an error node, held as it is in the run, so the effects still add up.

    Parameters
    ----------
    model : Model
        The model that the transcoders were trained on.
    transcoders : Transcoders
        Of all layers or some.
    prompt : str, sequence of int, or Run
        A text or token ids, as for `Model.run`; or a run of one prompt that recorded what
        `Transcoders.features` needs.
    target : int, str, or sequence of these, optional
        Tokens of the logit nodes, as strings or ids. None: the most likely next tokens. The value of a logit
        node is the logit minus the mean logit of the vocabulary.
    wrong : int, str, or sequence of these, optional
        With it there is one logit node: the mean logit of `target` minus that of `wrong`.
    max_n_logits : int, default 10
        The largest number of most likely tokens.
    desired_logit_prob : float, default 0.95
        As few of these tokens are taken as have this probability together.
    max_feature_nodes : int or None, default 2000
        The largest number of features that are kept; None keeps all. The rest become the node "other". They
        are chosen in rounds, as circuit-tracer does: those with most influence on the logits through the
        features chosen so far.
    labels : mapping, str or os.PathLike, optional
        (layer, feature) to a text, for example `describe_features(...)`, or what `load_feature_labels` takes:
        the path of a CSV or JSON, or the name of embedded transcoders for the labels that come with them.
        Features without a label are named by their numbers.
    n_splits : int, default 0
        The number of attention entries (strongest first) whose scores are split into pairs of sources; see
        `Graph.score_pairs`. A few hundredths of a second each at GPT-2's size.
    prepend_bos : bool, default False
        Put a BOS token before the prompt.
    max_bytes : int, default 4 GiB
        Bounds the memory of the run and, again, of the graph.
    threads : int, optional
        1..64; None: the number set by `set_num_threads`.
    progress : bool, optional
        Show a progress bar; None: in a terminal or notebook.

    Returns
    -------
    Graph

    Raises
    ------
    TypeError
        For other objects.
    ConfigError
        If the transcoders do not fit the model.
    ValueError
        For several prompts, a run with interventions or without what is needed, a token string that is not
        one token, and options out of range.
    IndexError
        For token ids and for labels of features that do not exist.
    MemoryError
        Before more than `max_bytes` would be taken.
    OSError, FormatError
        As `load_feature_labels` for files of labels.

    References
    ----------
    Ameisen et al. 2025, "Circuit Tracing", whose graphs leave out positions and biases and therefore do not
    add up.
    """
    _check.instance(model, Model, "model")
    _check.instance(transcoders, Transcoders, "transcoders")
    labels = checked_labels({} if labels is None else labels, n_features=transcoders.n_features)
    threads, max_bytes = _check.threads(threads), _check.byte_limit(max_bytes)
    if isinstance(prompt, Run):
        _check_run(prompt)
    most = None if max_feature_nodes is None else _check.integer(max_feature_nodes, "max_feature_nodes", 0)
    n_splits = _check.integer(n_splits, "n_splits", 0)
    features = transcoders.features(
        model, prompt, prepend_bos=prepend_bos, max_bytes=max_bytes, threads=threads or None, progress=False
    )
    logits = logit_reads(model, features.run, target, wrong, max_n_logits, desired_logit_prob)
    _check_size(features, len(logits), most, max_bytes)
    with progress_bar(progress, 4, "graph", "part") as bar:
        step = (lambda: None) if bar is None else bar.update
        sources = read_sources(model, features, max_bytes)
        step()
        reads = feature_reads(features, model)
        chosen, *effects = choose_features(sources, logits, reads, most, threads)
        step()
        graph = _assemble(sources, logits, reads, chosen, effects, labels, threads)
        step()
        options = {
            "target": _shown(target),
            "wrong": _shown(wrong),
            "max_n_logits": int(max_n_logits),
            "desired_logit_prob": float(desired_logit_prob),
            "max_feature_nodes": most,
            "n_active": len(features),
        }
        if len(transcoders.layers) < model.config.n_layer:
            options["transcoder_layers"] = list(transcoders.layers)
        splits = strongest_splits(graph, n_splits) if n_splits else ()
        return dataclasses.replace(graph, options=options, splits=splits)


def _check_run(run: Run) -> None:
    """ValueError unless a graph can be made of this run."""
    if run._altered == "interventions":
        raise ValueError(
            "a graph describes the model itself, and this run had interventions; run the prompt without them"
        )
    if len(run._batch) != 1:
        raise ValueError(
            f"a graph needs a run of one prompt alone, this one is of {len(run._batch)}; give the prompt"
        )
    if missing := [name for name in (*RECORDED, "logits") if name not in run.recorded]:
        raise ValueError(f"a graph needs a run with {', '.join(missing)} too; give the prompt")


def _check_size(features: Features, n_logits: int, most: int | None, max_bytes: int) -> None:
    """MemoryError if effects, edges and head arrays would take more than `max_bytes`."""
    c, n_active, t = features.run.model.config, len(features), features.n_tokens
    n_kept = n_active if most is None else min(most, n_active)
    n_targets, others = n_logits + n_kept, (c.n_layer + 2) * t
    heads = (3 * n_targets + others) * c.n_layer * c.n_head * c.d_head
    size = features.error.itemsize
    needed = n_targets * ((n_active + others) * size + (n_kept + others) * (size + 4)) + heads * size
    if needed > max_bytes:
        raise MemoryError(
            f"a graph of {n_targets:,} features and logits, with {n_active:,} active features, takes "
            f"{needed / 1e9:.4g} GB, above max_bytes={max_bytes:,}; set max_feature_nodes lower"
        )


def _shown(tokens: Any) -> Any:
    if tokens is None or isinstance(tokens, str):
        return tokens
    if isinstance(tokens, (int, np.integer)):
        return int(tokens)
    return [token if isinstance(token, str) else int(token) for token in tokens]


def _assemble(
    sources: Sources,
    logits: LogitReads,
    reads: Reads,
    chosen: np.ndarray,
    effects: Sequence[np.ndarray],
    labels: Mapping[tuple[int, int], str],
    threads: int,
) -> Graph:
    """The graph of the chosen features and the logits. effects: as `choose_features` gives them."""
    features, run = sources.features, sources.features.run
    reading = reads.take(chosen) + logits
    rows = _Rows(sources, chosen, *effects)
    kept, n_logits, real = rows.kept, len(logits), features.error.dtype
    n = rows.shape[1] + n_logits
    targets = np.concatenate([np.arange(len(chosen)), np.arange(n - n_logits, n)])
    start, source, weight = sparse_rows(rows.block, rows.shape, targets, n, real)
    closure, closure_absolute = _closure(rows.sums[0], rows.sums[1], reading.value)
    value, probability = np.full(n, np.nan, real), np.full(n, np.nan, real)
    value[targets], probability[n - n_logits :] = reading.value, logits.probability
    frozen, writes, core = sources.frozen, sources.writes_of(kept), run.model._core
    strings = tuple(run.token_strings)
    return Graph(
        model_name=run.model.name,
        model_digest=run.model.digest,
        transcoders_name=features.transcoders.name,
        scan=features.transcoders.scan or features.transcoders.name or run.model.name,
        prompt=_prompt_text(run),
        tokens=np.array(run.tokens, dtype=np.int32),
        token_strings=strings,
        prepend_bos=run.prepend_bos,
        n_layer=run.model.config.n_layer,
        n_head=run.model.config.n_head,
        options={},
        **_names(sources, logits, chosen, n - n_logits - len(kept), labels),
        value=value,
        probability=probability,
        start=start,
        source=source,
        weights=weight,
        closure=closure,
        closure_absolute=closure_absolute,
        pattern=run.pattern,
        carried=core.graph_carried(frozen, writes, threads=threads),
        received=core.graph_received(frozen, reading.arrays, False, threads=threads),
        received_alone=core.graph_received(frozen, reading.arrays, True, threads=threads),
        origin=(sources, chosen),
    )


def _prompt_text(run: Run) -> str:
    """The text that gives the run's tokens again with its `prepend_bos`, as far as a text does."""
    if run.prompt is not None:
        return run.prompt
    ids = run.tokens[1:] if run.prepend_bos else run.tokens
    tokenizer = run.model.tokenizer
    return "".join(token_texts(None, ids)) if tokenizer is None else tokenizer.decode(ids)


class _Rows:
    """Effects of the nodes before the logits on the targets, a block of rows at a time."""

    def __init__(
        self, sources: Sources, chosen: np.ndarray, effects: np.ndarray, bias: np.ndarray, place: np.ndarray
    ) -> None:
        n_active = len(sources.features)
        self.effects, self.bias, self.place = effects, bias, place
        self.kept = np.concatenate([chosen, np.arange(n_active, sources.n)])  #: sources that are nodes
        self.unkept = np.setdiff1d(np.arange(n_active), chosen)
        self.shape = len(place), len(self.kept) + 1 + (len(self.unkept) > 0)
        self.sums = np.zeros((2, len(place)))  #: of each row that was given out, and of its sizes

    def block(self, some: slice) -> np.ndarray:
        """float64: some rows, by kept source, bias and, if there are any, other features."""
        rows = self.place[some]
        values = np.empty((len(rows), self.shape[1]))
        values[:, : len(self.kept)] = self.effects[np.ix_(rows, self.kept)]
        values[:, len(self.kept)] = self.bias[rows]
        if len(self.unkept):
            values[:, -1] = self.effects[np.ix_(rows, self.unkept)].sum(axis=1, dtype=np.float64)
        self.sums[:, some] = values.sum(axis=1), np.abs(values).sum(axis=1)
        return values


def _closure(total: np.ndarray, whole: np.ndarray, value: np.ndarray) -> tuple[float, float]:
    """Largest |sum - value| over |value|, and over the sum of |effects|; float64 [targets] each."""
    off = np.abs(total - value)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = [np.where(off > 0, off / size, 0.0) for size in (np.abs(value), whole)]
    return float(shares[0].max(initial=0)), float(shares[1].max(initial=0))


def _names(
    sources: Sources,
    logits: LogitReads,
    chosen: np.ndarray,
    n_unplaced: int,
    labels: Mapping[tuple[int, int], str],
) -> dict[str, Any]:
    """kind, layer, position, feature and labels of all nodes; n_unplaced: the bias, and other if there is
    one."""
    f, run = sources.features, sources.features.run
    n_layer, t = f.error.shape[:2]
    layers, places, n_logits = np.repeat(np.arange(n_layer), t), np.arange(t), len(logits)
    unplaced, numbers = (
        np.full(n_unplaced, -1),
        list(zip(f.layer[chosen].tolist(), f.feature[chosen].tolist())),
    )
    counts = {
        "feature": len(chosen), "error": n_layer * t, "token": t, "position": t, "bias": 1,
        "other": n_unplaced - 1, "logit": n_logits,
    }  # fmt: skip
    shown = [labels.get(number) or f"feature {number[1]} of layer {number[0]}" for number in numbers]
    errors, tokens = (
        [error_label(i, i in f.transcoders.layers) for i in layers.tolist()],
        [f"token {text!r}" for text in run.token_strings],
    )
    positions, other = [f"position {i}" for i in places], ["other features"] * (n_unplaced - 1)
    return {
        "kind": tuple(kind for kind, count in counts.items() for _ in range(count)),
        "layer": _ints(f.layer[chosen], layers, np.full(2 * t, -1), unplaced, np.full(n_logits, n_layer)),
        "position": _ints(
            f.position[chosen], np.tile(places, n_layer), places, places, unplaced, logits.position
        ),
        "feature": _ints(
            f.feature[chosen], np.full(n_layer * t, -1), run.tokens, np.full(t, -1), unplaced, logits.token
        ),
        "labels": (*shown, *errors, *tokens, *positions, "biases", *other, *logits.labels),
    }


def _ints(*parts: Any) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])
