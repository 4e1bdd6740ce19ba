"""The graph that was made by hand: by the oracle, and by the package."""

import graph_engine as ge
import numpy as np
import oracle_graph as og
import planted_graph as pg
import pytest
from places import ROOT
from planted_calls import by_package

KINDS = ("per layer", "cross-layer", "resid_mid")
EXACT = 1e-13
FLOAT32 = 1e-6
PAGE = ROOT / "docs" / "known-answers.md"
each = pytest.mark.parametrize(
    ("kind", "gated"), [(kind, gated) for kind in KINDS for gated in (False, True)]
)


def by_oracle(kind, gated, direction=None):
    config, weights = pg.model(gated)
    frozen = og.Frozen(config, weights, pg.TOKENS, pg.transcoders(kind))
    direction = og.logit_direction(len(pg.WORDS), pg.SMALL_TOKEN) if direction is None else direction
    return og.build(frozen, [direction])


def check_edges(graph, kind, tolerance):
    """Exactly the planted features are active, and exactly the planted edges are not 0."""
    features = {node for node in graph.nodes if node[0] == "feature"}
    assert features == {tuple(node) for node in pg.VALUES if node.kind == "feature"}
    for node, value in pg.VALUES.items():
        assert abs(graph.value[graph.number(node)] - value) <= tolerance * value
    expected = np.zeros_like(graph.matrix)
    for (source, target), edge in pg.edges(kind).items():
        expected[graph.number(target), graph.number(source)] = edge.weight
    np.testing.assert_allclose(graph.matrix, expected, rtol=0, atol=tolerance * 1000)
    np.testing.assert_allclose(
        np.nansum(expected, 1)[~np.isnan(graph.value)], graph.value[~np.isnan(graph.value)]
    )


def check_loadings(found, edge, tolerance):
    """The heads of an edge, and no other."""
    expected = np.zeros((pg.N_LAYER, pg.N_HEAD))
    for head, loading in edge.heads.items():
        expected[head] = loading
    np.testing.assert_allclose(found.head, expected, rtol=0, atol=tolerance * 1000)
    assert abs(found.direct - edge.direct) <= tolerance * 1000
    assert abs(found.remainder - edge.remainder) <= tolerance * 1000


# ------------------------------------------------------------------------------------------- by the oracle


@each
def test_edges_by_the_oracle(kind, gated):
    check_edges(ge.truth(by_oracle(kind, gated)), kind, EXACT)


@each
def test_heads_by_the_oracle(kind, gated):
    graph = by_oracle(kind, gated)
    nodes = ge.truth(graph)
    for (source, target), edge in pg.edges(kind).items():
        if source != pg.BIAS:
            check_loadings(graph.heads(nodes.number(source), nodes.number(target)), edge, EXACT)


@each
def test_totals_by_the_oracle(kind, gated):
    graph = by_oracle(kind, gated)
    nodes = ge.truth(graph)
    logit, totals = nodes.number(pg.LOGIT), graph.totals(nodes.number(pg.LOGIT))
    for source, edge in pg.TOTALS.items():
        assert abs(totals[nodes.number(source)] - edge.weight) < 1e-9
        check_loadings(graph.total_heads(nodes.number(source), logit), edge, EXACT)
    for node, wide in pg.errors(kind).items():
        assert abs(totals[nodes.number(node)] - wide * pg.TOTAL_PER_WIDE) < 1e-9
    assert abs(totals[nodes.number(pg.BIAS)] - pg.TOTAL_OF_BIAS) < 1e-9


@each
def test_totals_of_all_that_no_feature_makes_are_the_logit(kind, gated):
    graph = by_oracle(kind, gated)
    roots = [n for n, name in enumerate(graph.kind) if name not in ("feature", "logit")]
    logit = graph.select("logit")[0]
    assert abs(graph.totals(logit)[roots].sum() - pg.VALUES[pg.LOGIT]) < 1e-9


def test_by_hand_the_sums_are_right():
    """Pencil against pencil: edges into every target, and the totals of all roots."""
    for kind in KINDS:
        for target, value in pg.VALUES.items():
            assert sum(edge.weight for (_, t), edge in pg.edges(kind).items() if t == target) == value
        roots = sum(pg.TOTALS[node].weight for node in pg.TOKEN if node in pg.TOTALS) + pg.TOTAL_OF_BIAS
        assert roots + pg.TOTAL_PER_WIDE * sum(pg.errors(kind).values()) == pg.VALUES[pg.LOGIT]


@pytest.mark.parametrize("gated", [False, True])
def test_a_decoy_is_looked_at_and_carries_nothing(gated):
    graph = by_oracle("per layer", gated)
    assert graph.frozen.run["pattern"][pg.DECOY] == 1
    nodes = ge.truth(graph)
    for source in pg.LARGE:
        found = graph.heads(nodes.number(source), nodes.number(pg.LOGIT))
        assert found.head[pg.DECOY[:2]] == 0
        for head, share in pg.CARRIERS.items():
            assert abs(found.head[head] / found.head.sum() - share) < 1e-15


@pytest.mark.parametrize("gated", [False, True])
def test_a_score_is_of_one_pair(gated):
    graph = by_oracle("per layer", gated)
    pairs = graph.score_pairs(*pg.SCORE)
    query, key = (ge.truth(graph).number(pg.Node("position", -1, p)) for p in pg.SCORE[2:])
    assert pairs[query, key] == pg.SURE
    pairs[query, key] = 0
    assert not pairs.any()


@pytest.mark.parametrize("gated", [False, True])
def test_difference_of_two_logits(gated):
    direction = og.logit_direction(len(pg.WORDS), pg.SMALL_TOKEN, pg.LARGE_TOKEN)
    graph = by_oracle("per layer", gated, direction)
    usual = by_oracle("per layer", gated)
    factor = pg.DIFFERENCE / pg.PER_OUT[pg.LOGIT]
    np.testing.assert_allclose(graph.matrix[-1], factor * usual.matrix[-1], atol=1e-12)
    assert graph.value[-1] == 720


# ------------------------------------------------------------------------------------------- by the package

each_dtype = pytest.mark.parametrize(("dtype", "tolerance"), [("float32", FLOAT32), ("float64", EXACT)])


@each
@each_dtype
def test_edges(kind, gated, dtype, tolerance):
    graph = by_package(kind, gated, dtype)
    check_edges(ge.read(graph), kind, tolerance)
    assert graph.closure < tolerance


@each
@each_dtype
def test_heads(kind, gated, dtype, tolerance):
    graph = by_package(kind, gated, dtype)
    nodes = ge.read(graph)
    for (source, target), edge in pg.edges(kind).items():
        source, target = nodes.number(source), nodes.number(target)
        if source != nodes.number(pg.BIAS):
            check_loadings(ge.heads(graph, source, target), edge, tolerance)
        assert abs(graph.weight(source, target) - edge.weight) <= tolerance * 1000


@each
@each_dtype
def test_totals(kind, gated, dtype, tolerance):
    graph = by_package(kind, gated, dtype)
    nodes = ge.read(graph)
    logit = nodes.number(pg.LOGIT)
    for source, edge in pg.TOTALS.items():
        source = nodes.number(source)
        assert abs(graph.total(source, logit) - edge.weight) <= tolerance * 10000
        check_loadings(ge.heads(graph, source, logit, through="features"), edge, 10 * tolerance)
    assert abs(graph.total("bias", logit) - pg.TOTAL_OF_BIAS) <= tolerance * 10000


@pytest.mark.parametrize("gated", [False, True])
def test_the_sentence_of_the_figure(gated):
    """From the features of `large` at position 4 to `small` at 7: 70 % by one head, all by two, none by the
    decoy."""
    graph = by_package("per layer", gated)
    nodes = ge.read(graph)
    group, logit = [nodes.number(node) for node in pg.LARGE], nodes.number(pg.LOGIT)
    table = graph.heads(group, logit).set_index("label")
    assert table.index.tolist()[:2] == ["L4H0", "L5H1"]
    for (layer, head), share in pg.CARRIERS.items():
        assert abs(table.loc[f"L{layer}H{head}", "share"] - share) < FLOAT32
    assert table["pattern"].tolist()[:2] == [1, 0.5]
    assert set(table["key_position"].iloc[:-2]) == {4}
    assert set(table["query_position"].iloc[:-2]) == {7}
    assert graph.needed_heads(group, logit, 0.69) == 1
    assert graph.needed_heads(group, logit, 0.8) == 2
    decoy = f"L{pg.DECOY[0]}H{pg.DECOY[1]}"
    assert decoy not in table.index or table.loc[decoy, "loading"] == 0
    assert graph.pattern[pg.DECOY] == 1


@pytest.mark.parametrize("gated", [False, True])
def test_score_and_difference(gated):
    graph = by_package("per layer", gated)
    pairs = ge.pairs(graph, *pg.SCORE)
    query, key = (ge.read(graph).number(pg.Node("position", -1, p)) for p in pg.SCORE[2:])
    assert pairs[query, key] == pg.SURE
    pairs[query, key] = 0
    assert abs(pairs).max() < FLOAT32 * pg.SURE
    graph = by_package("per layer", gated, wrong="large")
    assert abs(ge.read(graph).value[-1] - 720) < 720 * FLOAT32
    assert ge.read(graph).nodes[-1] == ("logit", pg.N_LAYER, 7, -1)


@pytest.mark.parametrize("gated", [False, True])
def test_a_feature_without_effect_is_pruned(gated):
    """Brackets are active and reach nothing; the decoy's coordinate is read by nobody."""
    graph = by_package("per layer", gated)
    pruned = graph.prune(1.0, 1.0)
    assert not {f"{q.layer}_{q.feature}_{q.position}" for q in pg.QUOTES} & set(pruned.ids)
    assert {f"{n.layer}_{n.feature}_{n.position}" for n in (*pg.LARGE, pg.SMALL, pg.OPPOSITE)} <= set(
        pruned.ids
    )


@pytest.mark.skipif(not PAGE.is_file(), reason="needs the source tree, not only the package")
def test_the_page_shows_these_edges():
    assert pg.table() in PAGE.read_text()
