"""Groups of nodes: what belongs to them, on a graph made by hand, and what flows between them."""

from __future__ import annotations

import numpy as np
import planted_graph as pg
import pytest
from graph_toys import toy_graph
from planted_calls import LARGE_TO_LOGIT, by_package

from attnsparse.graphs.groups import drivers, flows, group_nodes, influences, token_groups

LARGE_IDS = [f"{node.layer}_{node.feature}_{node.position}" for node in pg.LARGE]
SMALL_ID = f"{pg.SMALL.layer}_{pg.SMALL.feature}_{pg.SMALL.position}"


@pytest.fixture(scope="module")
def planted():
    return by_package("per layer", True, "float64")


@pytest.fixture(scope="module")
def random_graph():
    return toy_graph("float64", target=7, wrong=[9, 11])


def ids(graph, group) -> list[str]:
    return [graph.ids[i] for i in group.nodes]


# --------------------------------------------------------------------------------------------- the rule


def test_every_word_has_its_features(planted):
    groups = token_groups(planted, "small")
    assert list(groups) == ["The", "opposite", "of", '"', "large", "is", "small"]
    assert ids(planted, groups["large"]) == [*LARGE_IDS, "E_4_4"]
    assert ids(planted, groups["small"]) == [SMALL_ID, planted.ids[-1]]
    assert ids(planted, groups['"']) == ["0_0_3", "0_0_7", "E_3_3", "E_5_5", "E_3_7"]
    assert ids(planted, groups["opposite"]) == ["0_1_1", "E_1_1"]
    assert [ids(planted, groups[name]) for name in ("The", "of", "is")] == [["E_0_0"], ["E_2_2"], ["E_6_6"]]
    assert {name: group.positions for name, group in groups.items()} == {
        "The": (0,), "opposite": (1,), "of": (2,), '"': (3, 5, 7), "large": (4,), "is": (6,), "small": (7,),
    }  # fmt: skip


def test_layers_are_those_of_the_influence(planted):
    """Alone, the features of large do 1995, 367.5, 525 and 105: the first two are not 80 % of it."""
    groups = token_groups(planted, "small")
    alone = np.array([1995, 367.5, 525, 105, 0, 0])
    np.testing.assert_allclose(groups["large"].profile, alone / alone.sum(), rtol=1e-9)
    assert groups["large"].layer_text == "layer 0-2"
    assert groups["small"].layer_text == "layer 5, logits"
    assert groups["opposite"].layer_text == "layer 0"
    assert groups["The"].layer_text == "embedding"
    assert [group.n_features for group in groups.values()] == [0, 1, 0, 2, 4, 0, 1]


def test_influence_of_groups(planted):
    groups = token_groups(planted, "small")
    assert groups["large"].influence == pytest.approx(LARGE_TO_LOGIT)
    assert groups["opposite"].influence == pytest.approx(105)
    assert groups['"'].influence == pytest.approx(0)
    assert groups["small"].influence == pytest.approx(56)
    alone = influences(planted)
    for node, total in pg.TOTALS.items():
        number = planted.select(node.kind, node.layer if node.kind == "feature" else None, node.position)
        number = [i for i in number if planted.feature[i] == node.feature]
        assert alone[number] == pytest.approx(total.weight)


def test_features_are_about_what_drives_them(planted):
    found = drivers(planted)
    assert found.shape == (planted.n_features, 8)
    by_name = dict(zip(planted.ids, found))
    first = 4
    second = first * 2 / 2
    third = first * 8 / 2 + second * 2 / 1
    for name, expected in zip(LARGE_IDS, (first, second, third, third * 3 / 4)):
        np.testing.assert_allclose(by_name[name], np.eye(8)[4] * expected, atol=1e-12)
    assert by_name[SMALL_ID].argmax() == 4


def test_equal_words_are_told_apart():
    graph = toy_graph(target=7)  # the token 1 is at positions 1 and 3
    names = list(token_groups(graph))
    assert names == ["<3>", "<1>", "<4>", "<1>@3", "<5>", "<9>", "output"]


def test_a_prompt_may_have_the_name_of_the_output(planted):
    assert list(token_groups(planted, "large"))[4:] == ["large@4", "is", "large"]


# ---------------------------------------------------------------------------------------------- flows


def test_flows_of_the_planted_graph(planted):
    groups = token_groups(planted, "small")
    names = list(groups)
    expected = np.zeros((7, 7))
    expected[names.index("large"), names.index("small")] = LARGE_TO_LOGIT
    expected[names.index("opposite"), names.index("small")] = 105
    np.testing.assert_allclose(flows(planted, list(groups.values())), expected, atol=1e-9)


def by_elimination(graph, groups) -> np.ndarray:
    """The same by linear algebra: features of no group are solved for."""
    n = len(graph)
    step = np.zeros((n, n))  # from a source to a target, per unit of the target's value
    for target in graph.targets.tolist():
        sources, weights = graph.incoming(target)
        step[sources, target] = weights / (1.0 if graph.kind[target] == "logit" else graph.value[target])
    total = np.linalg.solve(np.eye(n) - step, np.isin(np.arange(n), graph.logits).astype(float))
    of = np.full(n, -1)
    for number, group in enumerate(groups):
        of[group.nodes] = number
    ends = np.zeros((n, len(groups)))
    ends[of >= 0, of[of >= 0]] = total[of >= 0]
    free = (of < 0) & (np.array(graph.kind) == "feature")
    through = np.linalg.solve(np.eye(free.sum()) - step[np.ix_(free, free)], step[free] @ ends)
    reach = step @ ends + step[:, free] @ through
    result = np.stack([reach[group.nodes].sum(axis=0) for group in groups])
    np.fill_diagonal(result, 0)
    return result


def test_flows_by_linear_algebra(random_graph):
    groups = list(token_groups(random_graph, "output").values())
    found = flows(random_graph, groups)
    assert np.abs(found).max() > 0
    np.testing.assert_allclose(found, by_elimination(random_graph, groups), atol=1e-9)


def test_flows_to_the_only_other_group_are_totals(random_graph):
    for position in range(6):
        spec = {"word": {"position": position}, "out": random_graph.logits.tolist()}
        groups = group_nodes(random_graph, spec)
        [[_, weight], _] = flows(random_graph, list(groups.values()))
        total = random_graph.total(groups["word"].nodes, random_graph.logits)
        assert weight == pytest.approx(total, abs=1e-12)
        assert groups["word"].influence == pytest.approx(total, abs=1e-12)


def test_flows_need_the_logits(planted):
    groups = group_nodes(planted, {"large": {"position": 4}})
    with pytest.raises(ValueError, match="flows need a group that holds the logits"):
        flows(planted, list(groups.values()))


# --------------------------------------------------------------------------------------- own groups


def test_groups_by_everything_that_names_nodes(planted):
    groups = group_nodes(
        planted,
        {
            "by label": "token ' opposite'",
            "by position": {"position": "large"},
            "errors too": {"kind": ("feature", "error"), "position": 1},
            "by ids": [SMALL_ID, planted.ids[-1]],
            "by number": int(planted.select("token", position=0)[0]),
            "by predicate": lambda node: node.token == ' "' and node.layer == 0,
        },
    )
    assert ids(planted, groups["by label"]) == ["E_1_1"]
    assert ids(planted, groups["by position"]) == [*LARGE_IDS, "E_4_4"]
    assert ids(planted, groups["errors too"]) == ["0_1_1", *(f"err_{layer}_1" for layer in range(6))]
    assert ids(planted, groups["by ids"]) == [SMALL_ID, planted.ids[-1]]
    assert ids(planted, groups["by number"]) == ["E_0_0"]
    assert ids(planted, groups["by predicate"]) == ["0_0_3", "0_0_7"]
    assert [len(group) for group in groups.values()] == [1, 5, 7, 2, 1, 2]


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        ({"a": "nothing is called so"}, ValueError, "group 'a' is empty"),
        ({"a": {"position": 4}, "b": ["E_4_4"]}, ValueError, "'E_4_4' is in groups 'a' and 'b'"),
        ({"a": ["E_9_9"]}, KeyError, "no node 'E_9_9'"),
        ({"a": [100_000]}, IndexError, "out of range"),
        ({"a": {"position": "small"}}, ValueError, "not in the prompt"),
        ({"a": {"kind": "head"}}, ValueError, "kind must be one of"),
    ],
)
def test_wrong_groups(planted, spec, error, text):
    with pytest.raises(error, match=text):
        group_nodes(planted, spec)


def test_what_groups_say_of_themselves():
    for name, group in token_groups(toy_graph()).items():
        assert repr(group).startswith(f"Group({name!r}, {len(group)} nodes, {group.layer_text}, influence ")
