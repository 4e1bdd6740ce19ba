"""Influence, pruning and scores of the oracle on graphs small enough for a pencil."""

import numpy as np
import oracle_prune as op
import pytest

KIND = ["feature", "feature", "feature", "error", "token", "position", "bias", "logit"]
F1, F2, F3, ERR, TOK, POS, BIAS, OUT = range(8)


def small_graph():
    """logit <- F1 6, F2 -2, error 1, bias 1;   F1 <- token 3, bias 1;   F2 <- F3 1, position 1;
    F3 <- token 1. Node probabilities: the logit 0.5."""
    matrix, weight = np.zeros((8, 8)), np.zeros(8)
    weight[OUT] = 0.5
    for target, source, value in (
        (OUT, F1, 6), (OUT, F2, -2), (OUT, ERR, 1), (OUT, BIAS, 1), (F1, TOK, 3), (F1, BIAS, 1), (F2, F3, 1),
        (F2, POS, 1), (F3, TOK, 1),
    ):  # fmt: skip
        matrix[target, source] = value
    return matrix, weight


def test_influence_by_hand():
    """In twentieths of the logit's 0.5: F1 12, F2 4, error 2, bias 2 + 12/4, token 12 * 3/4 + 2, F3 4/2."""
    matrix, weight = small_graph()
    expected = np.zeros(8)
    expected[[F1, F2, F3, ERR, TOK, POS, BIAS]] = np.array([12, 4, 2, 2, 11, 2, 5]) * 0.5 / 20
    np.testing.assert_allclose(op.influence(matrix, weight), expected, atol=1e-15)


def test_scores_by_hand():
    """Replacement: 11 / (11 + 2). Completeness: only the logit (20 of 58) has an error, with a tenth."""
    matrix, weight = small_graph()
    found = op.graph_scores(matrix, KIND, weight)
    np.testing.assert_allclose(found, [11 / 13, 1 - 20 / 58 / 10], rtol=1e-14)


def test_scores_of_what_circuit_tracer_has():
    """Without position and bias, of 18: F1 12, F2 4, error 2; token 12 + 4, F3 4; importance 18 + 38 = 56."""
    matrix, weight = small_graph()
    found = op.graph_scores(op.only(op.COMPARABLE, matrix, KIND), KIND, weight)
    np.testing.assert_allclose(found, [16 / 18, 1 - 18 / 56 / 9], rtol=1e-14)


@pytest.mark.parametrize(
    ("node_threshold", "nodes"),
    [(0.3, {F1}), (0.7, {F1}), (0.8, {F1, F2}), (0.9, {F1, F2, F3, ERR}), (1.0, {F1, F2, F3, ERR})],
)
def test_node_pruning_by_hand(node_threshold, nodes):
    """Sorted: 12, 11, 5, 4, 2, 2, 2 of 38; cumulative .316, .605, .737, .842, .895, .947, 1. At 0.7 the node
    that passes it is the bias, which stays anyway; at 0.9 all with 2 stay: they equal the one that passes."""
    matrix, weight = small_graph()
    found = op.prune(matrix, KIND, weight, node_threshold, 1.0)
    assert set(np.flatnonzero(found.node)) == nodes | {TOK, POS, BIAS, OUT}
    inside = found.node[:, None] & found.node
    np.testing.assert_array_equal(found.edge, (matrix != 0) & inside)


def test_edge_pruning_by_hand():
    """Scores in twentieths: logit <- F1 12, F2 4, error 2, bias 2; F1 <- token 9, bias 3; F2 <- F3 2,
    position 2; F3 <- token 2: 38 in all. At 0.7 (26.6) bias -> F1 (12 + 9 + 4 + 3 = 28) is the last. Then F2
    sends 4 but hears nothing and goes; F3 and the error go too."""
    matrix, weight = small_graph()
    found = op.prune(matrix, KIND, weight, 1.0, 0.7)
    assert set(map(tuple, np.argwhere(found.edge))) == {(OUT, F1), (F1, TOK), (F1, BIAS)}
    assert set(np.flatnonzero(found.node)) == {F1, TOK, POS, BIAS, OUT}


def test_pruning_repeats_until_nothing_changes():
    """A chain token -> F3 -> F2 -> F1 -> logit whose last link is too weak is taken down link by link."""
    kind = ["feature", "feature", "feature", "token", "logit"]
    matrix, weight = np.zeros((5, 5)), np.array([0, 0, 0, 0, 1.0])
    for target, source, value in ((4, 0, 1), (4, 3, 99), (0, 1, 1), (1, 2, 1), (2, 3, 1)):
        matrix[target, source] = value
    found = op.prune(matrix, kind, weight, 1.0, 0.9)
    assert found.node.tolist() == [False, False, False, True, True]
    assert set(map(tuple, np.argwhere(found.edge))) == {(4, 3)}


def test_a_row_of_nothing_is_divided_by_the_smallest_sum():
    found = op.normalized(np.array([[0.0, 0.0], [-1e-11, 0.0]]))
    np.testing.assert_allclose(found, [[0, 0], [0.1, 0]], rtol=1e-14)


def test_a_circle_is_refused():
    with pytest.raises(ValueError, match="circle"):
        op.influence(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1.0, 0.0]))
