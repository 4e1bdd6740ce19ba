"""The package's attribution graph against the oracle, which goes the other way, on random models."""

import functools

import engine
import graph_engine as ge
import numpy as np
import oracle
import oracle_graph as og
import oracle_prune as op
import pytest
from graph_cases import CASES, N_VOCAB, TOKENS, any_model, clear_model

import attnsparse as asp

ANSWERS, WRONG = (5, 2, 9), (7, 0)
EDGES = 24  # whose heads are compared, of each kind
THRESHOLDS = ((0.8, 0.98), (0.5, 0.9), (0.3, 0.5), (0.95, 0.999))
each = pytest.mark.parametrize(
    ("name", "number", "dtype"),
    [(name, number, dtype) for name in CASES for number in (0, 1) for dtype in ge.TOLERANCE],
)


@functools.cache
def oracles(name, number, wrong=False):
    """The oracle's graph of three logits, or of one difference."""
    frozen = clear_model(name, number)
    if wrong:
        return og.build(frozen, [og.logit_direction(N_VOCAB, ANSWERS, WRONG)])
    return og.build(frozen, [og.logit_direction(N_VOCAB, answer) for answer in ANSWERS])


@functools.cache
def found(name, number, dtype, wrong=False, max_feature_nodes=None, tokens=TOKENS):
    """The package's graph of the same."""
    frozen = clear_model(name, number)
    model = engine.build(frozen.config, frozen.weights, dtype)
    return asp.attribution_graph(
        model, ge.transcoders(frozen.coders, dtype), np.array(tokens, np.int32), list(ANSWERS),
        wrong=list(WRONG) if wrong else None, max_feature_nodes=max_feature_nodes, threads=1, progress=False,
    )  # fmt: skip


def same(actual, expected, dtype, size=None):
    """Equal to the tolerance of the dtype times the largest number (of `expected`, or `size`)."""
    size = np.nanmax(abs(np.asarray(expected)), initial=0.0) if size is None else size
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ge.TOLERANCE[dtype] * size)


def same_loadings(actual, expected, dtype, size):
    for part, wanted in zip(actual, expected):
        same(part, wanted, dtype, size)


def weights_of(graph):
    """(N,) weight of the logits in pruning: their probability; 1 of a difference."""
    weight = np.zeros(len(graph.kind))
    probability = oracle.softmax(graph.frozen.run["logits"][-1])
    for node in graph.select("logit"):
        weight[node] = 1.0 if graph.feature[node] < 0 else probability[graph.feature[node]]
    return weight


def some_edges(graph):
    """(source, target) within a position and between two: those with the largest edges and some others."""
    rng, groups = np.random.default_rng(3), {True: [], False: []}
    for target, source in np.argwhere(graph.matrix):
        groups[bool(graph.position[source] == graph.target_position(target))].append((source, target))
    chosen = []
    for edges in groups.values():
        edges.sort(key=lambda edge: -abs(graph.matrix[edge[1], edge[0]]))
        others = rng.permutation(len(edges) - EDGES // 2)[: EDGES // 2] + EDGES // 2
        chosen += edges[: EDGES // 2] + [edges[i] for i in others]
    return [(int(source), int(target)) for source, target in chosen]


@each
@pytest.mark.parametrize("wrong", [False, True])
def test_nodes_edges_and_values(name, number, dtype, wrong):
    expected, graph = oracles(name, number, wrong), found(name, number, dtype, wrong)
    actual, wanted = ge.read(graph), ge.truth(expected)
    assert actual.nodes == wanted.nodes
    assert list(graph.ids) == og.node_ids(expected)
    assert graph.start[0] == 0
    assert graph.start[-1] == len(graph.source) == len(graph.weights)
    same(actual.matrix, wanted.matrix, dtype)
    assert not actual.matrix[wanted.matrix == 0].any()
    np.testing.assert_array_equal(np.isnan(actual.value), np.isnan(wanted.value))
    targets = expected.targets()
    same(actual.value[targets], wanted.value[targets], dtype)
    assert graph.closure < {"float64": 1e-9, "float32": 1e-2}[dtype]


@each
def test_probabilities(name, number, dtype):
    expected, graph = oracles(name, number), found(name, number, dtype)
    logits = expected.select("logit")
    same(graph.probability[logits], weights_of(expected)[logits], dtype)


@each
def test_head_loadings(name, number, dtype):
    expected, graph = oracles(name, number), found(name, number, dtype)
    size = abs(expected.matrix).max()
    for source, target in some_edges(expected):
        same_loadings(ge.heads(graph, source, target), expected.heads(source, target), dtype, size)
        same(graph.weight(source, target), expected.matrix[target, source], dtype, size)


@each
def test_head_loadings_of_what_has_no_place(name, number, dtype):
    expected, graph = oracles(name, number), found(name, number, dtype)
    target = int(expected.targets()[-1])
    loadings = expected.heads(expected.node("bias"), target)
    same_loadings(ge.heads(graph, expected.node("bias"), target), loadings, dtype, abs(expected.matrix).max())


@each
def test_totals(name, number, dtype):
    expected, graph = oracles(name, number), found(name, number, dtype)
    for target in (*expected.select("logit"), expected.select("feature")[-1]):
        wanted = expected.totals(target)
        actual = [graph.total(source, int(target)) for source in range(len(expected.sent))]
        same(actual, wanted[: len(actual)], dtype)


@each
def test_head_loadings_of_totals(name, number, dtype):
    expected, graph = oracles(name, number), found(name, number, dtype)
    target = int(expected.select("logit")[0])
    totals = expected.totals(target)
    sources = [s for s in np.argsort(-abs(totals)) if expected.position[s] >= 0 and totals[s]]
    for source in map(int, [*sources[:4], *sources[-2:]]):
        wanted = expected.total_heads(source, target)
        size = max(abs(totals).max(), abs(wanted.head).max())
        same_loadings(ge.heads(graph, source, target, through="features"), wanted, dtype, size)


@each
def test_heads_by_which_paths_leave_their_position(name, number, dtype):
    expected, graph = oracles(name, number), found(name, number, dtype)
    target = int(expected.select("logit")[0])
    totals = expected.totals(target)
    sources = [s for s in np.argsort(-abs(totals)) if expected.position[s] >= 0 and totals[s]]
    for source in map(int, [*sources[:3], *sources[-2:]]):
        wanted = expected.leaving_heads(source, target)
        size = max(abs(totals).max(), abs(wanted.head).max())
        same_loadings(ge.heads(graph, source, target, through="any"), wanted, dtype, size)
        whole = graph.heads(source, target, through="any").loading.sum()
        same(whole, graph.total(source, target), dtype, size)


@each
def test_groups(name, number, dtype):
    """Edges and loadings of groups are sums; a total leaves out what comes back to the group."""
    expected, graph = oracles(name, number), found(name, number, dtype)
    group, logits = [int(f) for f in expected.select("feature")[::3]], expected.select("logit").tolist()
    same(graph.weight(group, logits), expected.matrix[np.ix_(logits, group)].sum(), dtype, 10.0)
    loadings = [expected.heads(source, target) for source in group for target in logits]
    same_loadings(
        ge.heads(graph, group, logits),
        [sum(part) for part in zip(*loadings)],
        dtype,
        abs(expected.matrix).max(),
    )
    for target in logits:
        same(graph.total(group, target), expected.total_of_group(group, target), dtype, 10.0)


@each
def test_score_pairs(name, number, dtype):
    expected, graph = oracles(name, number), found(name, number, dtype)
    config, scores = expected.frozen.config, expected.frozen.run["scores"]
    for layer, head in np.ndindex(config["n_layer"], config["n_head"]):
        for query, key in ((3, 1), (2, 2), (1, 0)):
            wanted = expected.score_pairs(layer, head, query, key)
            same(ge.pairs(graph, layer, head, query, key), wanted, dtype)
            split = graph.score_pairs(layer, head, query, key)
            same(split.score, scores[layer, head, query, key], dtype, abs(wanted).max())
            if config["gated"]:
                assert split.gate_logit == pytest.approx(split.score + config["gate_bias"])


@each
@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_pruning(name, number, dtype, wrong, thresholds):
    """Of the package's own edges: a threshold may pass between two edges that are one in float32."""
    expected, graph = oracles(name, number, wrong), found(name, number, dtype, wrong)
    wanted = op.prune(ge.read(graph).matrix, graph.kind, weights_of(expected), *thresholds)
    nodes, edges = ge.kept(graph, graph.prune(*thresholds))
    np.testing.assert_array_equal(nodes, wanted.node)
    np.testing.assert_array_equal(edges, wanted.edge)
    if thresholds[0] < 0.9:
        assert not nodes.all()
    assert edges.sum() < len(graph.source)


@each
@pytest.mark.parametrize("wrong", [False, True])
def test_scores(name, number, dtype, wrong):
    """circuit-tracer's on what it has, and the same on all nodes."""
    expected, scores = oracles(name, number, wrong), found(name, number, dtype, wrong).scores()
    weight, kind = weights_of(expected), expected.kind
    comparable = op.graph_scores(op.only(op.COMPARABLE, expected.matrix, kind), kind, weight)
    closed = op.graph_scores(expected.matrix, kind, weight, ("token", "position", "bias"), ("error", "other"))
    same([scores["replacement"], scores["completeness"]], comparable, dtype, 1.0)
    same([scores["replacement_closed"], scores["completeness_closed"]], closed, dtype, 1.0)


@each
def test_other_features_are_one_node(name, number, dtype):
    """Features with most influence stay, nearly: it is known of a feature when its edges are, which are found
    from the logits on. Edges, totals and scores are then of the smaller graph."""
    everything, graph = oracles(name, number), found(name, number, dtype, max_feature_nodes=6)
    actual = ge.read(graph)
    stay = {node[1:] for node in actual.nodes if node[0] == "feature"}
    assert len(stay) == 6
    influence = op.influence(everything.matrix, weights_of(everything))
    most = np.sort(influence[everything.select("feature")])[-6:].sum()
    nodes = ge.truth(everything)
    assert sum(influence[nodes.number(("feature", *node))] for node in stay) > 0.9 * most
    expected = og.build(everything.frozen, everything.directions, lambda *node: node in stay)
    assert actual.nodes == ge.truth(expected).nodes
    same(actual.matrix, expected.matrix, dtype)
    logit, source = int(expected.select("logit")[0]), int(expected.select("feature")[0])
    same(graph.total(source, logit), expected.totals(logit)[source], dtype, 1.0)
    same(ge.pairs(graph, 1, 1, 3, 1), expected.score_pairs(1, 1, 3, 1), dtype)
    closed = op.graph_scores(
        expected.matrix,
        expected.kind,
        weights_of(expected),
        ("token", "position", "bias"),
        ("error", "other"),
    )
    scores = graph.scores()
    same([scores["replacement_closed"], scores["completeness_closed"]], closed, dtype, 1.0)


@pytest.mark.parametrize("dtype", ge.TOLERANCE)
def test_one_token(dtype):
    """Position 0 alone: every edge is within it."""
    frozen = clear_model("gated", 0)
    frozen = og.Frozen(frozen.config, frozen.weights, TOKENS[:1], frozen.coders)
    expected = og.build(frozen, [og.logit_direction(N_VOCAB, answer) for answer in ANSWERS])
    graph = found("gated", 0, dtype, tokens=TOKENS[:1])
    same(ge.read(graph).matrix, expected.matrix, dtype)
    for source, target in ((0, len(graph) - 1), (expected.node("token", -1, 0, 3), len(graph) - 2)):
        same_loadings(ge.heads(graph, source, target), expected.heads(source, target), dtype, 1.0)


@pytest.mark.parametrize("seed", range(24))
def test_any_model(seed):
    """Odd sizes: one token, one layer, one head, a width of 3; whatever options."""
    frozen = any_model(seed)
    answers = np.random.default_rng(seed).permutation(frozen.config["n_vocab"])[:2].tolist()
    expected = og.build(frozen, [og.logit_direction(frozen.config["n_vocab"], token) for token in answers])
    graph = asp.attribution_graph(
        engine.build(frozen.config, frozen.weights, "float64"), ge.transcoders(frozen.coders, "float64"),
        frozen.tokens.astype(np.int32), answers, max_feature_nodes=None, threads=1, progress=False,
    )  # fmt: skip
    actual, size = ge.read(graph), abs(expected.matrix).max()
    assert actual.nodes == ge.truth(expected).nodes
    same(actual.matrix, expected.matrix, "float64")
    edges = np.argwhere(expected.matrix)
    for target, source in edges[:: max(1, len(edges) // 12)].tolist():
        same_loadings(ge.heads(graph, source, target), expected.heads(source, target), "float64", size)
    logit, last = (
        int(expected.select("logit")[1]),
        (expected.frozen.shape[0] - 1, 0, len(frozen.tokens) - 1, 0),
    )
    totals = expected.totals(logit)[: len(expected.sent)]
    same([graph.total(source, logit) for source in range(len(totals))], totals, "float64")
    same(ge.pairs(graph, *last), expected.score_pairs(*last), "float64")
    wanted = op.prune(actual.matrix, graph.kind, weights_of(expected), 0.6, 0.9)
    for found_mask, mask in zip(ge.kept(graph, graph.prune(0.6, 0.9)), wanted):
        np.testing.assert_array_equal(found_mask, mask)


def test_the_comparison_can_fail():
    """A thousandth more in one edge, one loading moved to another head, one pair on the wrong side."""
    expected = oracles("gated", 0)
    matrix = expected.matrix.copy()
    matrix[np.unravel_index(abs(matrix).argmax(), matrix.shape)] *= 1.001
    with pytest.raises(AssertionError):
        same(matrix, expected.matrix, "float32")
    loadings = expected.heads(*some_edges(expected)[0])
    with pytest.raises(AssertionError):
        same_loadings([loadings.head[:, ::-1], *loadings[1:]], loadings, "float32", abs(loadings.head).max())
    pairs = expected.score_pairs(1, 1, 3, 1)
    with pytest.raises(AssertionError):
        same(pairs.T, pairs, "float32")
