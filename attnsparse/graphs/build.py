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
from .._display import stage_bars
from ..model.model import Model
from ..model.run import DEFAULT_MAX_BYTES, Run
from ..model.tokenizer import token_texts
from ..transcoders.features import RECORDED
from ..transcoders.label_files import checked_labels
from ..transcoders.transcoders import Transcoders
from .graph import Graph
from .neuronpedia_write import error_label
from .score_pairs import strongest_splits
from .select import KINDS
from .sources import Sources, read_sources
from .targets import LogitTargets, feature_targets, logit_targets

if TYPE_CHECKING:
    from .. import _core

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
        (layer, feature) to a string, for example `describe_features(...)`, or what `load_feature_labels`
        takes: the path of a CSV or JSON, or the name of embedded transcoders for the labels that come with
        them.
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
    logits = logit_targets(model, features.run, target, wrong, max_n_logits, desired_logit_prob)
    sources = read_sources(model, features, max_bytes)
    targets = feature_targets(features)
    with stage_bars(progress) as tell:
        core, chosen, *closure = model._core.graph_build(
            frozen=sources.frozen,
            writes=sources.writes,
            features=targets,
            logits=logits.targets,
            probability=logits.probability,
            tokens=np.array(features.run.tokens, np.int32),
            most=-1 if most is None else min(most, len(features)),
            max_bytes=max_bytes,
            threads=threads,
            progress=tell,
        )
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
    graph = _assemble(core, sources, chosen, logits, labels, closure, options)
    return dataclasses.replace(graph, splits=strongest_splits(graph, n_splits)) if n_splits else graph


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


def _shown(tokens: Any) -> Any:
    if tokens is None or isinstance(tokens, str):
        return tokens
    if isinstance(tokens, (int, np.integer)):
        return int(tokens)
    return [token if isinstance(token, str) else int(token) for token in tokens]


def _assemble(
    core: _core.Graph,
    sources: Sources,
    chosen: np.ndarray,
    logits: LogitTargets,
    labels: Mapping[tuple[int, int], str],
    closure: Sequence[float],
    options: Mapping[str, Any],
) -> Graph:
    """The graph that the core made, with its names."""
    features, run = sources.features, sources.features.run
    arrays = Graph._owned(core)
    return Graph(
        model_name=run.model.name,
        model_digest=run.model.digest,
        transcoders_name=features.transcoders.name,
        scan=features.transcoders.scan or features.transcoders.name or run.model.name,
        prompt=_prompt_text(run),
        tokens=np.array(run.tokens, dtype=np.int32),
        token_strings=tuple(run.token_strings),
        prepend_bos=run.prepend_bos,
        n_layer=run.model.config.n_layer,
        n_head=run.model.config.n_head,
        options=options,
        kind=tuple(KINDS[code] for code in core.array("kind").tolist()),
        labels=_labels(arrays, sources, logits, labels),
        closure=closure[0],
        closure_absolute=closure[1],
        pattern=run.pattern,
        origin=(sources, chosen),
        **arrays,
    )


def _prompt_text(run: Run) -> str:
    """The text that gives the run's tokens again with its `prepend_bos`, as far as a text does."""
    if run.prompt is not None:
        return run.prompt
    ids = run.tokens[1:] if run.prepend_bos else run.tokens
    tokenizer = run.model.tokenizer
    return "".join(token_texts(None, ids)) if tokenizer is None else tokenizer.decode(ids)


def _labels(
    arrays: Mapping[str, np.ndarray],
    sources: Sources,
    logits: LogitTargets,
    labels: Mapping[tuple[int, int], str],
) -> tuple[str, ...]:
    """The texts of all nodes."""
    f, run = sources.features, sources.features.run
    (n_layer, t, _), n_placed = f.error.shape, len(arrays["carried"])
    n_features = n_placed - (n_layer + 2) * t
    numbers = zip(arrays["layer"][:n_features].tolist(), arrays["feature"][:n_features].tolist())
    shown = [labels.get(number) or f"feature {number[1]} of layer {number[0]}" for number in numbers]
    errors = [error_label(i, i in f.transcoders.layers) for i in range(n_layer) for _ in range(t)]
    tokens = [f"token {text!r}" for text in run.token_strings]
    positions = [f"position {i}" for i in range(t)]
    other = ["other features"] * (len(arrays["layer"]) - n_placed - 1 - len(logits))
    return (*shown, *errors, *tokens, *positions, "biases", *other, *logits.labels)
