"""How the core makes a graph, against float64 NumPy: order of writes, logits, choice of features, scores."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest
import reliability
from graph_toys import PROMPT, random_transcoders, toy_graph

import attnsparse as asp
from attnsparse import _core, _core64
from attnsparse.graphs import build

ROUNDS = 8


# ------------------------------------------------------------------------------------------ writes


@pytest.mark.parametrize("outputs", [(1, 1, 1), (3, 2, 1), (0, 2, 0), (0, 0, 0)])
def test_writes_are_by_layer_position_and_source(outputs: tuple[int, ...]) -> None:
    rng, t, n_layer = np.random.default_rng(0), 5, len(outputs)
    has = [i for i in range(n_layer) if outputs[i]]
    layer = np.sort(rng.choice(has, 20)).astype(np.int32) if has else np.empty(0, np.int32)
    position = rng.integers(0, t, len(layer)).astype(np.int32)
    order = np.lexsort((position, layer))
    layer, position, n = layer[order], position[order], len(layer)
    found = [(0, p, n + (n_layer + which) * t + p) for which in (0, 1) for p in range(t)]
    found += [(i + 1, p, n + i * t + p) for i in range(n_layer) for p in range(t)]
    for i in range(n_layer):
        mine = np.flatnonzero(layer == i)
        found += [(i + w + 1, int(position[f]), int(f)) for w in range(outputs[i]) for f in mine]
    *got, rows = _core.graph_writes(layer, position, np.array(outputs, np.int64), t)
    assert list(zip(*(array.tolist() for array in got))) == sorted(found)
    assert [sorted(found)[row] for row in rows] == found


# ------------------------------------------------------------------------------------------ logits


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_likely_tokens_are_those_of_a_sorted_softmax(dtype: str) -> None:
    core = {"float32": _core, "float64": _core64}[dtype]
    logits = np.random.default_rng(1).standard_normal(3000).astype(dtype)
    logits[[7, 2000]] = logits.max() + 1  # equal ones: the lower number first
    shifted = np.exp(logits.astype(np.float64) - float(logits.max()))
    expected = shifted / shifted.sum()
    order = np.argsort(-expected, kind="stable")
    for most, desired in ((1, 1.0), (10, 1e-9), (10, 0.005), (10, 1.0), (10**6, 0.5), (10**6, 1.0), (0, 0.5)):
        probability, tokens, n = core.graph_likely(logits, most, desired)
        np.testing.assert_allclose(probability, expected, rtol=1e-13)
        wanted = order[:most]
        wanted = wanted[: int(np.searchsorted(np.cumsum(expected[wanted]), desired)) + 1]
        assert tokens[:n].tolist() == wanted.tolist()


@pytest.mark.parametrize("changes", [{}, {"unembed_bias": True}, {"tied": True}], ids=str)
def test_logits_read_rows_of_the_unembedding(changes: dict) -> None:
    model = reliability.model(dtype="float64", **changes)
    unembed = model.parameter("wte.weight" if model.config.tied else "lm_head.weight")
    v = len(unembed)
    bias = model.parameter("lm_head.bias") if changes.get("unembed_bias") else np.zeros(v)
    logits, none = np.random.default_rng(0).standard_normal(v), np.empty(0, np.int64)
    tokens, wrong = np.array([3, 5, 90]), np.array([4, 6])
    got = model._core.graph_logits(logits, tokens, none)
    for found, of in zip(got, (unembed, bias, logits)):
        np.testing.assert_allclose(found, of[tokens] - of.mean(axis=0), rtol=1e-12, atol=1e-14)
    got = model._core.graph_logits(logits, tokens, wrong)
    for found, of in zip(got, (unembed, bias, logits)):
        np.testing.assert_allclose(found[0], of[tokens].mean(axis=0) - of[wrong].mean(axis=0), atol=1e-14)
    with pytest.raises(IndexError, match=rf"token id {v} is out of range 0\.\.{v - 1}"):
        model._core.graph_logits(logits, np.array([v]), none)


# ------------------------------------------------------------------------------------------ choice


def chosen_by_numpy(whole: asp.Graph, most: int) -> list[int]:
    """The rounds on the dense matrix of a graph of all features."""
    n, dense = len(whole), np.zeros((len(whole), len(whole)))
    for target in whole.targets.tolist():
        sources, weights = whole.incoming(target)
        dense[target, sources] = np.abs(weights)
    dense[:, whole.kind.index("bias")] = 0  # bias is no source: it takes no share
    visited: list[int] = []
    while len(visited) < most:
        known = np.isin(np.arange(n), [*visited, *whole.logits])
        share = np.where(known[:, None], dense / np.maximum(dense.sum(axis=1, keepdims=True), 1e-10), 0)
        step = np.where(np.isin(np.arange(n), whole.logits), np.nan_to_num(whole.probability, nan=1.0), 0.0)
        influence = np.zeros(n)
        while step.any():
            step = step @ share
            influence += step
        influence[visited] = -1
        wanted = min(most - len(visited), max(1, -(-most // ROUNDS)))
        visited += np.argsort(-influence[: whole.n_features], kind="stable")[:wanted].tolist()
    return sorted(visited)


@pytest.mark.parametrize("most", [1, 3, 8, 11, 20])
@pytest.mark.parametrize("wrong", [None, [9, 11]])
def test_features_are_chosen_in_rounds(most: int, wrong: list[int] | None) -> None:
    model = reliability.model(dtype="float64", n_layer=3)
    transcoders = random_transcoders(model, n_features=60, cross_layer=True)
    options = {"target": 7, "wrong": wrong, "progress": False}
    whole = asp.attribution_graph(model, transcoders, PROMPT, max_feature_nodes=None, **options)
    assert whole.n_features > 25
    graph = asp.attribution_graph(model, transcoders, PROMPT, max_feature_nodes=most, **options)
    names = [whole.ids[i] for i in chosen_by_numpy(whole, most)]
    assert graph.ids[: graph.n_features] == names
    assert graph.origin[1].tolist() == [whole.node(name) for name in names]
    np.testing.assert_array_equal(graph.value[:most], [whole.value[whole.node(name)] for name in names])


@pytest.mark.parametrize("most", [None, 3])
def test_progress_counts_nodes_and_arrays(monkeypatch: pytest.MonkeyPatch, most: int | None) -> None:
    told = []

    @contextlib.contextmanager
    def recorder(progress: bool | None):
        yield lambda *step: told.append(step)

    monkeypatch.setattr(build, "stage_bars", recorder)
    graph = toy_graph(max_feature_nodes=most)
    n = graph.n_features + len(graph.logits)
    edges = [done for stage, done, total in told if stage == "graph edges" and total == n]
    assert edges[0] == 0
    assert edges[-1] == n
    assert edges == sorted(edges)
    assert len(set(edges)) > 2
    assert told[len(edges) :] == [("graph heads", i, 3) for i in range(4)]


def test_progress_can_stop_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("graph heads", 1):
            raise KeyboardInterrupt

    monkeypatch.setattr(build, "stage_bars", lambda progress: contextlib.nullcontext(fail))
    with pytest.raises(KeyboardInterrupt):
        toy_graph()


def test_all_features_are_kept_where_there_is_room() -> None:
    whole = toy_graph(max_feature_nodes=None)
    assert "other" not in whole.kind
    for most in (whole.n_features, 10**30):
        graph = toy_graph(max_feature_nodes=most)
        assert graph.weights.tobytes() == whole.weights.tobytes()


# ------------------------------------------------------------------------------------------ ownership


@pytest.mark.parametrize("make", [toy_graph, lambda: toy_graph().prune()], ids=["made", "pruned"])
def test_the_core_owns_the_arrays(make) -> None:
    graph = make()
    core = graph._core
    for name in ("layer", "value", "start", "source", "weights", "carried", "received", "received_alone"):
        array = getattr(graph, name)
        assert array.base is core, name
        assert not array.flags.writeable
        assert array.__array_interface__ == core.array(name).__array_interface__
    assert graph.with_labels({})._core is core  # other names: the same arrays
    weights, before = graph.weights, graph.weights.tobytes()
    del graph, core
    assert weights.tobytes() == before


def test_arrays_from_elsewhere_are_copied_once() -> None:
    graph = toy_graph()
    value = graph.value * 2
    other = dataclasses.replace(graph, value=value)
    assert other._core is not graph._core
    value[:] = 0
    np.testing.assert_array_equal(other.value, graph.value * 2)
    swapped = dataclasses.replace(graph, value=graph.probability)
    np.testing.assert_array_equal(swapped._core.array("value"), graph.probability)
    again = dataclasses.replace(graph, kind=graph.kind)
    assert again._core is graph._core
    for changes, text in (
        ({"kind": ("features", *graph.kind[1:])}, "kind must be one of"),
        ({"kind": graph.kind[::-1]}, "in the order of their kinds"),
        ({"source": graph.source[:-1]}, "source|weights"),
        ({"source": graph.source + len(graph)}, "comes from node"),
        ({"carried": graph.carried[1:]}, "carried must have a row for each"),
        ({"start": graph.start[::-1]}, "start must rise"),
    ):
        with pytest.raises(ValueError, match=text):
            dataclasses.replace(graph, **changes)


# ------------------------------------------------------------------------------------------ scores


def test_scores_by_numpy() -> None:
    graph = toy_graph("float64", max_feature_nodes=9)
    n, kind = len(graph), np.array(graph.kind)
    dense = np.zeros((n, n))
    for target in graph.targets.tolist():
        sources, weights = graph.incoming(target)
        dense[target, sources] = np.abs(weights)
    p = np.where(kind == "logit", graph.probability, 0.0)

    def scores(nodes: np.ndarray, inputs: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
        kept = dense * nodes
        share = kept / np.maximum(kept.sum(axis=1, keepdims=True), 1e-10)
        influence = p @ (np.linalg.inv(np.eye(n) - share) - np.eye(n))
        explained, wrong = influence[inputs].sum(), influence[errors].sum()
        output = np.where(nodes, influence + p, 0)
        part = 1 - share[:, errors].sum(axis=1)
        return explained / (explained + wrong), (part * output).sum() / output.sum()

    in_tracer = np.isin(kind, ("feature", "error", "token", "logit"))
    closed = np.isin(kind, ("token", "position", "bias")), np.isin(kind, ("error", "other"))
    plain = scores(in_tracer, kind == "token", kind == "error")
    expected = dict(zip(graph.scores(), (*plain, *scores(np.ones(n, bool), *closed))))
    assert graph.scores() == pytest.approx(expected, rel=1e-10)
