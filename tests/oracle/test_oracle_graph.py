"""The oracle of the attribution graph judged three ways: sums that must close, paths written out one by one,
and differences of the frozen model run as a whole. And proof that these judges can say no."""

import numpy as np
import oracle
import oracle_graph as og
import pytest
from graph_cases import CASES, frozen_model, some_kept

ROUNDING = 1e-12
each_case = pytest.mark.parametrize("name", CASES)


def made(name, seed=0, kept=None):
    """A graph with a logit and a logit difference."""
    directions = [og.logit_direction(11, 5), og.logit_direction(11, [2, 3], [7])]
    return og.build(frozen_model(name, seed), directions, kept)


def some_edges(graph, n=25):
    """Edges of all kinds, those between two positions and those within one in equal parts."""
    rng, found = np.random.default_rng(1), {True: [], False: []}
    for target, source in np.argwhere(graph.matrix):
        if graph.position[source] >= 0:
            within = graph.position[source] == graph.target_position(target)
            found[bool(within)].append((int(source), int(target)))
    return [edges[i] for edges in found.values() for i in rng.choice(len(edges), min(n, len(edges)), False)]


# ------------------------------------------------------------------------------------------------ closure


@each_case
@pytest.mark.parametrize("kept", [None, some_kept])
def test_incoming_edges_sum_to_the_value(name, kept):
    graph = made(name, kept=kept)
    assert ("other" in graph.kind) == (kept is not None)
    assert len(graph.select("feature")) > 5
    assert graph.closure_errors().max() < ROUNDING


@each_case
def test_transcoders_and_errors_make_the_mlps(name):
    frozen = frozen_model(name)
    features = frozen.features()
    np.testing.assert_allclose(features.reconstruction + features.error, frozen.run["mlp_out"], atol=1e-13)
    order = [tuple(row) for row in features.index]
    assert order == sorted(order)
    assert (features.activation > 0).all()
    if frozen.coders["activation"] == "topk":
        counts = np.unique(features.index[:, :2], axis=0, return_counts=True)[1]
        assert counts.max() == frozen.coders["top_k"]


def test_top_k_takes_the_lower_number_of_equal_ones():
    pre = np.array([[1.0, 2.0, 1.0, 1.0], [-1.0, -2.0, 3.0, 0.0]])
    active = og.activate({"activation": "topk", "top_k": 2}, 0, pre)
    assert active.tolist() == [[True, True, False, False], [False, False, True, False]]


def test_order_and_names():
    graph = made("dense", kept=some_kept)
    order = [og.KINDS.index(kind) for kind in graph.kind]
    assert order == sorted(order)
    ids = og.node_ids(graph)
    assert len(set(ids)) == len(ids)
    assert ids[-2:] == ["3_5_3", "logit_diff"]
    assert [ids[n] for n in graph.select("error")][:5] == [
        "err_0_0",
        "err_0_1",
        "err_0_2",
        "err_0_3",
        "err_1_0",
    ]
    assert [ids[n] for n in graph.select("token")] == ["E_3_0", "E_1_1", "E_4_2", "E_1_3"]


def output_bias(frozen):
    frozen.coders = {**frozen.coders, "output_bias": [0 * row for row in frozen.coders["output_bias"]]}


def value_bias(frozen):
    frozen.weights = {**frozen.weights, "h.1.attn.c_attn.bias": 0 * frozen.weights["h.1.attn.c_attn.bias"]}


def norm_bias(frozen):
    frozen.weights = {**frozen.weights, "ln_f.bias": 0 * frozen.weights["ln_f.bias"]}


def scale(frozen):
    frozen.ln1_scale[1, 2] *= 1.001


def mlp_scale(frozen):
    frozen.ln2_scale[1, 3] *= 1.001


def shifted_key(frozen):
    frozen.pattern[1, 0, 3] = np.roll(frozen.pattern[1, 0, 3], 1)


def renormalized_row(frozen):
    row = frozen.pattern[1, :, 3]
    row /= row.sum(-1, keepdims=True)


def no_skip(frozen):
    frozen.skipped = lambda layer, mid: 0 * mid


def dropped_position(frozen):
    frozen.run["pos_embed"][1] = 0


MISTAKES = {
    output_bias: "dense", value_bias: "dense", norm_bias: "dense", scale: "gated", mlp_scale: "gated",
    shifted_key: "dense", renormalized_row: "gated", no_skip: "skip, untied", dropped_position: "dense",
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_closure_sees_a_mistake(mistake):
    """The mistake is in the linear model alone: features and errors are those of the right one."""
    frozen = frozen_model(MISTAKES[mistake])
    features = frozen.features()
    frozen.features = lambda: features
    mistake(frozen)
    assert og.build(frozen, [og.logit_direction(11, 5)]).closure_errors().max() > 1e-6


# ------------------------------------------------------------------------------------ paths one by one


def paths(frozen, vector, position, layer, end, stage="pre", hops=()):
    """Every path of a vector from resid_pre of `layer` at `position` to resid_mid of layer `end`, or to the
    end of the model: yields (hops, position, vector), hops being (layer, head, from, to)."""
    n_layer, n_head, n_tokens, _ = frozen.shape
    if layer == n_layer or (layer == end and stage == "mid"):
        yield hops, position, vector
        return
    if stage == "mid":
        branches = [(vector, position, hops)]
        if frozen.coders["skip"] is not None:
            read = vector
            if frozen.coders["input_hook"] == og.NORMALIZED:
                read = (vector - vector.mean()) / frozen.run["ln2_scale"][layer, position]
            branches.append((frozen.coders["skip"][layer] @ read, position, hops))
        for value, at, taken in branches:
            yield from paths(frozen, value, at, layer + 1, end, "pre", taken)
        return
    yield from paths(frozen, vector, position, layer, end, "mid", hops)
    read = (vector - vector.mean()) / frozen.run["ln1_scale"][layer, position]
    width, name = frozen.config["d_head"], f"h.{layer}.attn"
    columns = (read * frozen.weights[f"h.{layer}.ln_1.weight"]) @ frozen.weights[f"{name}.c_attn.weight"]
    values = columns[2 * n_head * width :].reshape(n_head, width)
    for head in range(n_head):
        written = values[head] @ frozen.weights[f"{name}.c_proj.weight"].reshape(n_head, width, -1)[head]
        for query in range(position, n_tokens):
            entry = frozen.run["pattern"][layer, head, query, position]
            if entry:
                hop = (layer, head, position, query)
                yield from paths(frozen, entry * written, query, layer, end, "mid", (*hops, hop))


def vectors_of(graph, source):
    """(vector, layer that reads it first) of one source."""
    frozen, layer, position = graph.frozen, graph.layer[source], graph.position[source]
    if graph.kind[source] in ("token", "position"):
        name, row = {"token": ("wte", frozen.tokens[position]), "position": ("wpe", position)}[
            graph.kind[source]
        ]
        return [(frozen.weights[f"{name}.weight"][row], 0)]
    if graph.kind[source] == "error":
        return [(graph.features.error[layer, position], layer + 1)]
    rows = graph.value[source] * frozen.coders["w_dec"][layer][graph.feature[source]]
    return [(row, layer + later + 1) for later, row in enumerate(rows)]


def read_of(graph, target, vector):
    """What the target makes of a vector that has arrived, by the model's own weights."""
    frozen, position = graph.frozen, graph.target_position(target)
    if graph.kind[target] == "logit":
        read = (vector - vector.mean()) / frozen.run["ln_final_scale"][position]
        logits = oracle.unembedding(frozen.config, frozen.weights) @ (read * frozen.weights["ln_f.weight"])
        return graph.directions[target - graph.select("logit")[0]] @ logits
    layer = graph.layer[target]
    if frozen.coders["input_hook"] == og.NORMALIZED:
        vector = (vector - vector.mean()) / frozen.run["ln2_scale"][layer, position]
    return frozen.coders["w_enc"][layer][graph.feature[target]] @ vector


def loadings_by_paths(graph, source, target):
    """The definitions word by word, applied to every single path."""
    k, q = graph.position[source], graph.target_position(target)
    found, direct, remainder = np.zeros(graph.frozen.shape[:2]), 0.0, 0.0
    for vector, first in vectors_of(graph, source):
        if graph.kind[target] == "feature" and first > graph.layer[target]:
            continue
        for hops, position, arrived in paths(graph.frozen, vector, k, first, graph.layer[target]):
            if position != q:
                continue
            amount = read_of(graph, target, arrived)
            moves = [hop for hop in hops if hop[2] != hop[3]]
            if k < q and len(moves) == 1:
                found[moves[0][:2]] += amount
            elif k == q and hops:
                found[hops[-1][:2]] += amount
            elif k == q:
                direct += amount
            else:
                remainder += amount
    return og.Loadings(found, direct, remainder)


@each_case
def test_loadings_are_sums_over_paths(name):
    graph = made(name)
    largest = {"within": 0.0, "between": 0.0, "remainder": 0.0}
    for source, target in some_edges(graph):
        found, expected = graph.heads(source, target), loadings_by_paths(graph, source, target)
        np.testing.assert_allclose(found.head, expected.head, rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(found[1:], expected[1:], rtol=0, atol=ROUNDING)
        total = expected.head.sum() + expected.direct + expected.remainder
        assert abs(total - graph.matrix[target, source]) < ROUNDING
        where = "within" if graph.position[source] == graph.target_position(target) else "between"
        largest[where] = max(largest[where], abs(expected.head).max())
        largest["remainder"] = max(largest["remainder"], abs(expected.remainder))
        assert where == "between" or abs(found.remainder) < ROUNDING
        assert where == "within" or found.direct == 0
    assert largest["within"] > 1e-3
    assert largest["between"] > 1e-3
    assert largest["remainder"] > 1e-6 or name == "resid_mid"


@pytest.mark.parametrize("forgotten", ["key", "query"])
def test_paths_see_forgotten_self_attention(forgotten):
    """Sums do not: the remainder takes it up."""
    graph, worst = made("gated"), 0.0
    for source, target in some_edges(graph):
        k, q = graph.position[source], graph.target_position(target)
        if k < q:
            expected, kept = loadings_by_paths(graph, source, target), graph.frozen.pattern.copy()
            stay = k if forgotten == "key" else q
            graph.frozen.pattern[:, :, stay, stay] = 0
            found = graph.heads(source, target)
            graph.frozen.pattern[:] = kept
            worst = max(worst, abs(found.head - expected.head).max())
            assert abs(found.head.sum() + found.remainder - graph.matrix[target, source]) < ROUNDING
    assert worst > 1e-4


def test_a_source_without_a_place_has_no_heads():
    graph = made("dense")
    found = graph.heads(graph.node("bias"), graph.targets()[-1])
    assert not found.head.any()
    assert found[1:] == (0.0, graph.matrix[graph.targets()[-1], graph.node("bias")])


@each_case
def test_a_source_behind_its_target_has_no_edge(name):
    graph = made(name)
    for target in graph.select("feature"):
        behind = (graph.position > graph.position[target]) | (
            (graph.layer >= graph.layer[target]) & (graph.layer >= 0)
        )
        assert not graph.matrix[target, behind].any()


# ------------------------------------------------------------------------------- differences of the whole


def replay(graph, doubled=(), live=()):
    """Targets (N,) of the model run as a whole with frozen patterns and scales, the transcoders in place of
    the MLPs and errors added. What the `doubled` sources send is doubled. `live` features follow what they
    read; all others are held at their values."""
    frozen, coders = graph.frozen, graph.frozen.coders
    n_layer, n_head, n_tokens, _ = frozen.shape
    sizes = np.ones(len(graph.kind))
    sizes[list(doubled)] = 2
    constant = sizes[graph.node("bias")]
    weights = {n: constant * w if n.endswith("bias") else w for n, w in frozen.weights.items()}
    x = (sizes[graph.select("token"), None] * frozen.run["embed"]
         + sizes[graph.select("position"), None] * frozen.run["pos_embed"])  # fmt: skip
    value, later = np.full(len(graph.kind), np.nan), np.zeros_like(graph.features.error)
    for layer in range(n_layer):
        read = (x - x.mean(1, keepdims=True)) / frozen.run["ln1_scale"][layer][:, None]
        block = oracle.linear(
            weights, f"h.{layer}.attn.c_attn", oracle.affine(weights, f"h.{layer}.ln_1", read)
        )
        v = np.split(block, 3, axis=1)[2].reshape(n_tokens, n_head, -1)
        z = np.einsum("hqk,khd->qhd", frozen.run["pattern"][layer], v).reshape(n_tokens, -1)
        x = x + oracle.linear(weights, f"h.{layer}.attn.c_proj", z)
        u = x
        if coders["input_hook"] == og.NORMALIZED:
            u = (x - x.mean(1, keepdims=True)) / frozen.run["ln2_scale"][layer][:, None]
        pre = u @ coders["w_enc"][layer].T + constant * coders["b_enc"][layer]
        later[layer] += constant * coders["output_bias"][layer]
        later[layer] += sizes[graph.select("error")].reshape(n_layer, n_tokens)[layer][:, None] * (
            graph.features.error[layer])  # fmt: skip
        for f in graph.select("feature")[graph.layer[graph.select("feature")] == layer]:
            position, feature = graph.position[f], graph.feature[f]
            value[f] = pre[position, feature]
            for i, row in enumerate(coders["w_dec"][layer][feature]):
                later[layer + i, position] += sizes[f] * (value if f in live else graph.value)[f] * row
        x = x + later[layer] + (0 if coders["skip"] is None else u @ coders["skip"][layer].T)
    read = (x - x.mean(1, keepdims=True)) / frozen.run["ln_final_scale"][:, None]
    unembedding = oracle.unembedding(frozen.config, weights)
    logits = oracle.affine(weights, "ln_f", read) @ unembedding.T + weights.get("lm_head.bias", 0.0)
    value[graph.select("logit")] = [c @ logits[-1] for c in graph.directions]
    return value


@each_case
def test_effect_of_scaling_a_source(name):
    """The frozen model is linear: doubling a source adds its edges to all targets, and its totals if features
    follow what they read."""
    graph = made(name)
    targets, before = graph.targets(), replay(graph)
    np.testing.assert_allclose(before[targets], graph.value[targets], rtol=1e-9)
    totals = {int(target): graph.totals(target) for target in targets}
    for source in range(len(graph.sent)):
        held = replay(graph, [source]) - before
        np.testing.assert_allclose(held[targets], graph.matrix[targets, source], atol=1e-11)
        live = replay(graph, [source], graph.select("feature")) - before
        expected = [totals[int(target)][source] for target in targets]
        np.testing.assert_allclose(live[targets], expected, atol=1e-10)


def test_scaling_sees_a_mistake():
    graph = made("dense")
    graph.matrix[graph.targets()] *= 1.001
    source = graph.node("token", -1, 0)
    held = replay(graph, [source]) - replay(graph)
    assert abs(held - graph.matrix[:, source])[graph.targets()].max() > 1e-6


@each_case
def test_total_of_a_group(name):
    """That of features which are held at twice their values: what one does to another does not show."""
    graph = made(name)
    features, logit = graph.select("feature"), graph.select("logit")[0]
    group = [int(f) for f in features[::3]]
    moved = replay(graph, group, set(features) - set(group)) - replay(graph)
    assert abs(graph.total_of_group(group, logit) - moved[logit]) < 1e-11
    assert abs(moved[logit] - graph.totals(logit)[group].sum()) > 1e-6


@each_case
def test_loadings_of_a_total_sum_to_it(name):
    graph = made(name)
    for source, target in some_edges(graph, 6):
        found = graph.total_heads(source, target)
        expected = graph.totals(target)[source]
        assert abs(found.head.sum() + found.direct + found.remainder - expected) < ROUNDING


@each_case
def test_pairs_sum_to_the_score(name):
    graph = made(name, kept=some_kept)
    frozen = graph.frozen
    for layer, head in np.ndindex(*frozen.shape[:2]):
        for query in range(4):
            for key in range(query + 1):
                pairs = graph.score_pairs(layer, head, query, key)
                assert abs(pairs.sum() - frozen.run["scores"][layer, head, query, key]) < 1e-11
                assert not pairs[graph.select("logit")].any()
                assert not pairs[:, (graph.position > key) | (graph.layer >= layer)].any()


def test_one_pair_by_hand():
    """Layer 0, two position embeddings: (LN part of wpe[q] W_Q) . (LN part of wpe[k] W_K) / sqrt(D)."""
    graph = made("dense")
    frozen, sides = graph.frozen, []
    for position, columns in ((3, slice(4, 8)), (1, slice(12, 16))):
        row = frozen.weights["wpe.weight"][position]
        read = (row - row.mean()) / frozen.run["ln1_scale"][0, position] * frozen.weights["h.0.ln_1.weight"]
        sides.append(read @ frozen.weights["h.0.attn.c_attn.weight"][:, columns])
    found = graph.score_pairs(0, 1, 3, 1)[graph.node("position", -1, 3), graph.node("position", -1, 1)]
    assert abs(found - sides[0] @ sides[1] / 2) < ROUNDING
