"""Attribution graphs: they close, heads add up, scores split, and every wrong use is said plainly."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import reliability
import tiny_graph
import tokenizers
from graph_toys import PROMPT, random_transcoders, toy, toy_graph
from table_columns import hidden

import attnsparse as asp
from attnsparse import _core
from attnsparse._core_types import Reads, Writes

KINDS = [
    {},
    {"cross_layer": True},
    {"skip": True},
    {"skip": True, "input_hook": "hook_resid_mid"},
    {"activation": "jump_relu"},
    {"activation": "topk", "cross_layer": True},
]
MODELS = [
    {"gated": True},
    {"gated": False},
    {"gated": False, "tied": True, "bias": False},
    {"unembed_bias": True},
]


def closing(graph: asp.Graph) -> np.ndarray:
    """Sum of the incoming edges less the value, for every target."""
    sums = np.array([graph.incoming(int(t))[1].sum(dtype=np.float64) for t in graph.targets])
    return sums - graph.value[graph.targets]


# ----------------------------------------------------------------------------------------- closure


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("changes", MODELS, ids=str)
def test_every_pre_activation_is_the_sum_of_its_edges(kind: dict, changes: dict) -> None:
    model = reliability.model(dtype="float64", **changes)
    graph = asp.attribution_graph(model, random_transcoders(model, **kind), PROMPT)
    assert graph.n_features > 5
    assert graph.closure < 1e-9
    np.testing.assert_allclose(closing(graph), 0, atol=1e-11)


def test_float32_closes_to_rounding() -> None:
    graph = toy_graph()
    assert graph.closure_absolute < 2e-6
    assert graph.closure < 1e-4
    assert np.abs(closing(graph)).max() < 1e-5


def test_values_are_activations_and_logits() -> None:
    model, transcoders = toy("float64")
    graph = asp.attribution_graph(model, transcoders, PROMPT, target=[7, 9])
    features = transcoders.features(model, PROMPT)
    np.testing.assert_array_equal(graph.value[: graph.n_features], features.activation)
    logits = model.run(PROMPT).logits[-1]
    np.testing.assert_allclose(graph.value[graph.logits], logits[[7, 9]] - logits.mean(), rtol=1e-12)
    np.testing.assert_allclose(
        graph.probability[graph.logits].sum(), np.exp(logits[[7, 9]]).sum() / np.exp(logits).sum()
    )
    single = asp.attribution_graph(model, transcoders, PROMPT, target=7, wrong=[9, 11])
    np.testing.assert_allclose(single.value[-1], logits[7] - logits[[9, 11]].mean(), rtol=1e-12)
    assert single.ids[-1] == "logit_diff"


def test_most_likely_tokens_are_the_default() -> None:
    graph = toy_graph(max_n_logits=3, desired_logit_prob=1.0)
    logits = toy()[0].run(PROMPT).logits[-1]
    assert list(graph.feature[graph.logits]) == list(np.argsort(-logits)[:3])
    assert len(toy_graph(max_n_logits=50, desired_logit_prob=1e-9).logits) == 1


def test_features_left_out_are_one_node_and_the_graph_still_closes() -> None:
    whole = toy_graph("float64")
    graph = toy_graph("float64", max_feature_nodes=5)
    assert graph.n_features == 5
    assert graph.kind.count("other") == 1
    assert graph.closure < 1e-9
    assert graph.options["n_active"] == whole.n_features
    for t in graph.targets:
        same = whole.node(graph.ids[t])
        kept = [whole.node(graph.ids[s]) for s in graph.incoming(int(t))[0] if graph.kind[s] != "other"]
        left = sorted(set(range(whole.n_features)) - set(kept))
        other = graph.weight("other", int(t))
        assert other == pytest.approx(whole.weight(left, same) if left else 0.0, abs=1e-12)


def test_no_features_at_all() -> None:
    graph = toy_graph("float64", max_feature_nodes=0)
    assert graph.n_features == 0
    assert graph.closure < 1e-9
    assert len(graph.prune()) > 0


# ------------------------------------------------------------------------------------- heads, totals


@pytest.mark.parametrize("through", ["edge", "features"])
def test_heads_direct_and_remainder_add_up(through: str) -> None:
    graph = toy_graph("float64")
    for source in [*graph.select("feature")[:4], *graph.select("token"), "err_0_2", "P_1", "bias"]:
        for target in (graph.logits[0], graph.select("feature", layer=1)[-1]):
            whole = graph.weight(source, target) if through == "edge" else graph.total(source, target)
            table = graph.heads(source, target, through=through)
            assert table.loading.sum() == pytest.approx(whole, abs=1e-12)
            assert list(table.label[-2:]) == ["direct", "remainder"]


def test_within_a_position_nothing_remains() -> None:
    graph = toy_graph("float64")
    last = len(PROMPT) - 1
    table = graph.heads(f"E_{PROMPT[-1]}_{last}", graph.logits[0]).set_index("label").loading
    assert abs(table["remainder"]) < 1e-12
    assert table["direct"] != 0


def test_a_group_is_the_sum_of_its_edges() -> None:
    graph = toy_graph("float64")
    group, target = ["E_3_0", "P_0", "err_0_0"], int(graph.logits[0])
    assert graph.weight(group, target) == pytest.approx(sum(graph.weight(node, target) for node in group))
    heads = graph.heads(group, target).set_index("label").loading
    parts = [graph.heads(node, target).set_index("label").loading for node in group]
    np.testing.assert_allclose(heads, sum(part[heads.index] for part in parts), atol=1e-13)
    n = graph.needed_heads(group, target, 0.5)
    table = graph.heads(group, target)
    assert n is None or table.share[:-2].sort_values(ascending=False).cumsum().iloc[n - 1] >= 0.5


def test_total_is_the_sum_over_all_ways() -> None:
    graph = toy_graph("float64")
    n = len(graph)
    adjacency = np.zeros((n, n))
    for t in graph.targets:
        sources, weights = graph.incoming(int(t))
        adjacency[t, sources] = weights
    per_unit = adjacency.copy()
    features = graph.select("feature")
    for f in features:
        per_unit[:, f] /= graph.value[f]
    inside = np.zeros((n, n))
    inside[np.ix_(graph.targets, features)] = per_unit[np.ix_(graph.targets, features)]
    ways = np.linalg.inv(np.eye(n) - inside) @ adjacency
    target = int(graph.logits[0])
    for source in [0, int(features[3]), *graph.select("token")]:
        assert graph.total(int(source), target) == pytest.approx(ways[target, source], abs=1e-12)


def test_scores_split_into_pairs() -> None:
    model, transcoders = toy("float64")
    graph = asp.attribution_graph(model, transcoders, PROMPT, max_feature_nodes=6, n_splits=3)
    scores = model.run(PROMPT, "scores").scores
    split = graph.score_pairs(1, 2, -1, 2)
    assert split.pairs.sum() == pytest.approx(scores[1, 2, 5, 2], abs=1e-12)
    assert split.gate_logit == pytest.approx(split.score + model.config.gate_bias)
    assert split.label == "a1.h2[2->5]"
    table, stored = split.to_pandas(), graph.splits[0]
    assert list(table.columns) == ["query_id", "query_label", "key_id", "key_label", "value", "share"]
    assert len(table) == 20
    assert table.value.abs().is_monotonic_decreasing
    row, ids = table.iloc[3], [graph.ids[i] for i in split.nodes]
    assert row.value == split.pairs[ids.index(row.query_id), ids.index(row.key_id)]
    assert row.share == pytest.approx(row.value / split.score)
    assert split.to_pandas(10**9).value.sum() == pytest.approx(split.score)
    assert row.key_label == graph.labels[graph.node(row.key_id)]
    assert "a1.h2[2->5], score" in repr(split)
    assert "<table" in split._repr_html_()
    key = int(graph.layer[0]), int(graph.feature[0])
    named = graph.with_labels({key: "mine"}).splits[0]
    assert [text for i, text in zip(named.nodes, named.labels) if i == 0] in ([], ["mine"])
    assert named.ids == stored.ids == tuple(graph.ids[i] for i in stored.nodes)
    with pytest.raises(ValueError, match="n must be at least 0, got -1"):
        split.to_pandas(-1)
    assert len(graph.splits) == 3
    for stored in graph.splits:
        assert stored.pairs.sum() == pytest.approx(
            scores[stored.layer, stored.head, stored.query, stored.key]
        )
    dense = asp.attribution_graph(reliability.model(gated=False), random_transcoders(model), PROMPT)
    assert np.isnan(dense.score_pairs(0, 0, 3, 3).gate_logit)


# ------------------------------------------------------------------------------------------ check


def test_removing_a_node_is_what_the_graph_says_when_nothing_reacts() -> None:
    """A feature of the last layer at the last position: only the final LayerNorm's scale can react."""
    model, transcoders = toy("float64")
    graph = asp.attribution_graph(model, transcoders, PROMPT, target=7, wrong=9)
    last = graph.select("feature", layer=1, position=-1)
    table = graph.check(nodes=last)
    assert len(table) == len(last) > 0
    np.testing.assert_allclose(table.predicted, table.predicted_edge)
    run = model.run(PROMPT, ("resid_post", "ln_final_scale"))
    sources = graph.origin[0]
    for row, node in zip(table.itertuples(), last):
        final = run.resid_post[-1, -1] - sources.vectors[sources.source == node][0]
        centred = final - final.mean()
        scale = np.sqrt(np.square(centred).mean() + model.config.ln_eps)
        weight, bias = model.parameter("ln_f.weight"), model.parameter("ln_f.bias")
        unembed = model.parameter("lm_head.weight" if not model.config.tied else "wte.weight")
        logits = unembed @ (centred / scale * weight + bias)
        assert row.actual == pytest.approx(logits[7] - logits[9] - graph.value[-1], abs=1e-9)
    np.testing.assert_allclose(table.actual_held, table.predicted, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(table.ratio_held, 1, rtol=1e-6)
    assert (abs(table.actual_held - table.actual) > 1e-6).any()


def test_removing_entries() -> None:
    model, transcoders = toy("float64")
    graph = asp.attribution_graph(model, transcoders, PROMPT, target=7, wrong=9)
    entries = [(1, h, 5, k) for h in range(4) for k in range(6) if graph.pattern[1, h, 5, k] > 0][:3]
    table = graph.check(entries=entries)
    for row, entry in zip(table.itertuples(), entries):
        logits = model.run(PROMPT, ablate=[entry]).logits[-1]
        assert row.actual == pytest.approx(logits[7] - logits[9] - graph.value[-1], abs=1e-12)
        assert row.removed == f"a1.h{entry[1]}[{entry[3]}->5]"
        runs = [model.run(PROMPT, "all", ablate=ablate) for ablate in (None, [entry])]
        normalized = runs[1].ln_final_normalized[-1] * runs[1].ln_final_scale[-1] / runs[0].ln_final_scale[-1]
        weight, bias = model.parameter("ln_f.weight"), model.parameter("ln_f.bias")
        unembed = model.parameter("lm_head.weight" if not model.config.tied else "wte.weight")
        logits = unembed @ (normalized * weight + bias)
        assert row.actual_held == pytest.approx(logits[7] - logits[9] - graph.value[-1], abs=1e-9)
        assert row.ratio_held == pytest.approx(row.actual_held / row.predicted)
    together = graph.check(entries=entries, together=True)
    assert together.predicted[0] == pytest.approx(table.predicted.sum())


def test_the_change_with_the_scale_held_of_likely_tokens() -> None:
    """Each logit less the mean of the vocabulary, as the graph has it."""
    model, transcoders = toy("float64")
    graph = asp.attribution_graph(model, transcoders, PROMPT)
    table = graph.check(nodes=graph.select("feature", layer=1, position=-1), together=True)
    assert len(table) == len(graph.logits) > 1
    np.testing.assert_allclose(table.actual_held, table.predicted, rtol=1e-9, atol=1e-12)


def test_values_of_the_first_layer_are_what_its_sources_and_the_constants_carry() -> None:
    model, transcoders = toy("float64")
    graph = asp.attribution_graph(model, transcoders, PROMPT)
    c, width = model.config, model.config.n_head * model.config.d_head
    weight = model.parameter("h.0.attn.c_attn.weight")[:, 2 * width :]
    constant = model.parameter("h.0.ln_1.bias") @ weight
    constant = constant + model.parameter("h.0.attn.c_attn.bias")[2 * width :]
    values = model.run(PROMPT, "v").v[0]
    for key in range(len(PROMPT)):
        sources = [f"E_{PROMPT[key]}_{key}", f"P_{key}"]
        carried = sum(graph.carried[graph.node(name), 0] for name in sources)
        np.testing.assert_allclose(carried + constant.reshape(c.n_head, c.d_head), values[key], atol=1e-12)


# ----------------------------------------------------------------------------------------- pruning


def test_pruned_graphs_keep_what_matters() -> None:
    graph = toy_graph()
    pruned = graph.prune(0.6, 0.9)
    assert len(pruned) < len(graph)
    assert set(pruned.ids) <= set(graph.ids)
    assert {"token", "position", "logit"} <= set(pruned.kind)
    for t in pruned.targets:
        for source, weight in zip(*pruned.incoming(int(t))):
            assert weight == np.float32(
                graph.weight(graph.ids[graph.node(pruned.ids[source])], pruned.ids[t])
            )
    same = pruned.heads(int(pruned.source[0]), int(pruned.targets[0]))
    assert same.loading.sum() == pytest.approx(
        pruned.weight(int(pruned.source[0]), int(pruned.targets[0])), abs=1e-5
    )
    everything = graph.prune(1.0, 1.0)
    assert len(everything.source) <= len(graph.source)
    assert pruned.influence is not None
    assert 0 < pruned.influence.min() <= pruned.influence.max() <= 1 + 1e-6


def test_a_pruned_graph_says_so_and_keeps_the_scores_of_the_whole(tmp_path) -> None:
    graph = toy_graph(n_splits=1)
    pruned = graph.prune(0.6, 0.9)
    row = pruned.summary().iloc[0]
    assert (graph.summary().pruned[0], row.pruned) == (False, "node_threshold=0.6, edge_threshold=0.9")
    assert np.isnan(row.closure)
    assert graph.summary().closure[0] == graph.closure
    pruned.save(tmp_path / "g")
    again = asp.read_graph_json(pruned.to_neuronpedia(tmp_path / "json", "g"))
    for kept in (pruned, asp.load_graph(tmp_path / "g"), again, pruned.prune(0.5)):
        assert kept.scores() == graph.scores()
        assert dict(kept.summary().iloc[0][list(graph.scores())]) == graph.scores()
    assert len(pruned.prune(0.3)) < len(pruned)
    for options in ({}, {"scores": 5}, {"scores": dict.fromkeys(graph.scores(), "x")}):
        foreign = dataclasses.replace(pruned, options=options)
        assert "replacement" not in foreign.summary()
        with pytest.raises(ValueError, match="came without the scores of the whole"):
            foreign.scores()


def test_scores_are_shares() -> None:
    scores = toy_graph().scores()
    assert set(scores) == {"replacement", "completeness", "replacement_closed", "completeness_closed"}
    assert all(0 <= value <= 1 for value in scores.values())


# ------------------------------------------------------------------------------------------ tables


def test_tables_and_names() -> None:
    graph = toy_graph()
    assert list(graph.nodes().kind) == list(graph.kind)
    assert len(set(graph.ids)) == len(graph)
    assert all(graph.node(name) == i for i, name in enumerate(graph.ids))
    assert graph.links().weight.tolist() == graph.weights.tolist()
    targets, weights = graph.outgoing("E_3_0")
    assert all(graph.weight("E_3_0", int(t)) == w for t, w in zip(targets, weights))
    assert list(graph.select("token", position=2)) == [graph.node("E_4_2")]
    assert graph.summary().n_edges[0] == len(graph.source)
    assert "closure" in repr(graph)
    assert "<table" in graph._repr_html_()
    labelled = asp.attribution_graph(
        *toy(), PROMPT, labels={(int(graph.layer[0]), int(graph.feature[0])): "mine"}
    )
    assert labelled.labels[0] == "mine"
    assert list(labelled.select(label="mine"))


def test_prompt_and_bos_give_the_tokens_again(tmp_path) -> None:
    """Of a text, of ids with and without BOS, of a run; of the graph itself and of all its files."""
    spoken = tiny_graph.model()
    coders = tiny_graph.transcoders(spoken)
    text = tiny_graph.PROMPT
    with_bos = spoken.run(text, prepend_bos=True)
    given = [
        (text, False), (text, True), ("<bos>" + text, False), ("<bos>" + text, True),
        (with_bos.tokens, False), (with_bos.tokens, True), (with_bos.tokens[1:], True),
        (with_bos.tokens[1:], False),
    ]  # fmt: skip
    for prompt, prepend_bos in given:
        graph = asp.attribution_graph(spoken, coders, prompt, prepend_bos=prepend_bos)
        graph.save(tmp_path / "graph")
        read = asp.read_graph_json(graph.to_neuronpedia(tmp_path, "own"))
        for one in (graph, asp.load_graph(tmp_path / "graph"), read, graph.prune()):
            tokens = spoken.run(one.prompt, prepend_bos=one.prepend_bos).tokens
            assert tokens.tolist() == one.tokens.tolist()
            assert (tokens == spoken.tokenizer.bos_id).sum() <= 1
        assert graph.summary().prepend_bos[0] == prepend_bos
    with pytest.raises(ValueError, match="prepend_bos=True, but the run has no BOS token"):
        coders.features(spoken, spoken.run(text, ("ln2_normalized", "mlp_out")), prepend_bos=True)


def test_the_prompt_of_ids_is_their_text() -> None:
    """A letter of several bytes is several tokens of a byte-level vocabulary."""
    signs = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({sign: i for i, sign in enumerate(signs)}, []))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    plain = reliability.model(n_vocab=260)
    model = asp.Model(plain.config, plain.parameters(), asp.Tokenizer(inner))
    coders = tiny_graph.transcoders(model)
    ids = model.to_tokens("aé")
    assert asp.attribution_graph(model, coders, ids).prompt == "aé"
    nameless = asp.attribution_graph(model, coders, [0, 258, *ids], [257, 3])
    assert nameless.token_strings[:2] == ("!", "<258>")
    assert nameless.prompt == "!<258>aé"
    assert nameless.labels[-2].startswith('Output "<257>"')
    model.tokenizer = None
    assert asp.attribution_graph(model, coders, ids, 3).labels[-1].startswith('Output "<3>"')


def test_arrays_are_read_only() -> None:
    graph = toy_graph()
    for field in dataclasses.fields(graph):
        value = getattr(graph, field.name)
        if isinstance(value, np.ndarray):
            with pytest.raises(ValueError, match="read-only"):
                value[...] = 0


def test_same_bits_for_any_number_of_threads() -> None:
    first, second = (toy_graph(threads=n, n_splits=2) for n in (1, 4))
    for name in ("weights", "source", "start", "carried", "received", "received_alone", "value"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    assert first.splits[0].pairs.tobytes() == second.splits[0].pairs.tobytes()


# ------------------------------------------------------------------------------------- wrong uses


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"target": 96}, IndexError, "token id 96 is out of range 0..95"),
        ({"target": []}, ValueError, "at least one token"),
        ({"target": [3, 3]}, ValueError, "twice"),
        ({"target": "word"}, ValueError, "no tokenizer"),
        ({"target": 2.5}, TypeError, "integer"),
        ({"wrong": 3}, ValueError, "needs target"),
        ({"max_n_logits": 0}, ValueError, "at least 1"),
        ({"desired_logit_prob": 0}, ValueError, "desired_logit_prob"),
        ({"max_feature_nodes": -1}, ValueError, "max_feature_nodes must be at least 0"),
        ({"max_feature_nodes": 1.5}, TypeError, "integer"),
        ({"n_splits": True}, TypeError, "integer"),
        ({"max_bytes": 10}, MemoryError, "max_bytes|[kMG]B"),
        ({"threads": 0}, ValueError, "threads"),
    ],
)  # fmt: skip
def test_wrong_options(options: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        toy_graph(**options)


def test_wrong_questions() -> None:
    graph = toy_graph()
    pruned = graph.prune()
    loaded = dataclasses.replace(graph, origin=None)
    cases = [
        (lambda: graph.weight("nobody", 0), KeyError, "no node 'nobody'"),
        (lambda: graph.weight(10**6, 0), IndexError, "out of range"),
        (lambda: graph.weight(1.5, 0), TypeError, "integer"),
        (lambda: graph.heads(0, -1, through="magic"), ValueError, "through"),
        (lambda: graph.heads(0, -1, base=2), ValueError, "base"),
        (lambda: graph.needed_heads(0, -1, 0), ValueError, "fraction"),
        (lambda: graph.select("neuron"), ValueError, "kind must be one of 'feature', .*, got 'neuron'"),
        (lambda: graph.select(position=6), IndexError, "6 tokens"),
        (lambda: graph.prune(1.1), ValueError, "node_threshold"),
        (lambda: graph.prune(edge_threshold="x"), TypeError, "edge_threshold"),
        (lambda: graph.score_pairs(2, 0, 1, 0), IndexError, "out of range"),
        (lambda: pruned.score_pairs(0, 0, 1, 0), ValueError, "before pruning"),
        (lambda: loaded.score_pairs(0, 0, 1, 0), ValueError, "no model"),
        (lambda: loaded.check(nodes=[0]), ValueError, "needs the model"),
        (lambda: graph.check(), ValueError, "one of them"),
        (lambda: graph.check(nodes=["bias"]), ValueError, "can be removed"),
        (lambda: graph.check(entries=[(0, 0, 2, 1)]), ValueError, "last position"),
        (lambda: graph.weight("large", -1), KeyError, r"ids .* '0_.*select\('token', position='large'\)"),
        (lambda: graph.weight([], -1), ValueError, "source is empty"),
        (lambda: graph.total(0, []), ValueError, "target is empty"),
        (lambda: graph.heads(graph.select("feature", label="?"), -1), ValueError, "source is empty"),
        (lambda: graph.check([]), ValueError, "nothing was selected"),
        (lambda: graph.check([0], together=1), TypeError, "together must be True or False, got 1"),
        (lambda: graph.weight(0, "P_1"), ValueError, r"no edge leads to 'P_1' \(position\)"),
        (lambda: graph.heads(-1, 0), ValueError, r"no edge leaves .*\(logit\)"),
        (lambda: graph.needed_heads(0, -1, "a"), TypeError, "fraction must be a number"),
        (lambda: graph.select(layer=3), IndexError, r"layer 3 is out of range: .* 0\.\.1, 2 of logits"),
        (lambda: graph.select(layer=[0, -2]), IndexError, "layer -2"),
        (lambda: graph.select(layer="a"), TypeError, "layer must be an integer, got str"),
        (lambda: graph.select(layer=slice(0, 1)), TypeError, "layer must be an integer, got slice"),
        (lambda: graph.select(label=5), TypeError, "label must be a string"),
        (lambda: graph.select(5), TypeError, "kind must be a name or a sequence of names"),
    ]  # fmt: skip
    for call, error, text in cases:
        with pytest.raises(error, match=text) as caught:
            call()
        assert len(str(caught.value)) <= 300
    assert graph.weight(graph.select("feature", layer=1)[0], graph.select("feature", layer=0)[0]) == 0.0
    assert graph.select(layer=range(-1, 3)).tolist() == list(range(len(graph)))


def test_other_objects_in_the_place_of_ours(tmp_path) -> None:
    model, transcoders = toy()
    frame = pd.DataFrame({"clean": ["a"], "corrupted": ["b"], "answer": ["c"], "wrong": ["d"]})
    graph, made_by = toy_graph(), {"model": r"asp\.load", "transcoders": r"asp\.load_transcoders"}
    cases = [
        (lambda: asp.attribution_graph(model, "demo-sparse-transcoders", PROMPT), "transcoders", "str"),
        (lambda: asp.attribution_graph(PROMPT, model, transcoders), "model", "ndarray"),
        (lambda: asp.attribution_graph(transcoders, model, PROMPT), "model", "Transcoders"),
        (lambda: asp.graphs.word_effect(transcoders, model, wrong=["a"]), "model", "Transcoders"),
        (lambda: asp.describe_features(transcoders, model, [PROMPT]), "transcoders", "Model"),
        (lambda: asp.describe_features(model, transcoders, [PROMPT], window=5), "window", "5"),
        (lambda: asp.tasks.make_task("copy", model), "tokenizer", "Model"),
        (lambda: asp.tasks.make_task("addition", None), "tokenizer", "NoneType"),
        (lambda: asp.tasks.from_dataframe(frame, model), "tokenizer", "Model"),
        (lambda: asp.tasks.read_eap_csv("none.csv", None), "tokenizer", "NoneType"),
        (lambda: asp.token_groups(5), "graph", "int"),
        (lambda: asp.group_nodes(graph.nodes(), {}), "graph", "DataFrame"),
        (lambda: asp.group_nodes(graph, 5), "groups", "int"),
        (lambda: asp.write_feature_details(tmp_path / "none", {}), "labels", "dict"),
        (lambda: asp.figures.graph(graph.nodes()), "graph", "DataFrame"),
        (lambda: asp.figures.graph_overview(1, 2), "dense", "int"),
    ]
    for call, name, got in cases:
        with pytest.raises(TypeError, match=f"{name} must be .*{made_by.get(name, '')}.*got {got}$"):
            call()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        ("", ValueError, "must not be empty"),
        (0, TypeError, "labels must be a mapping from .*, or a path, got int"),
        ({"0_2": "a"}, TypeError, r"a feature is a pair \(layer, feature\) such as \(0, 17\), got '0_2'"),
        ({0: "a"}, TypeError, "got 0"),
        ({(0, 2): 5}, TypeError, r"the label of \(0, 2\) must be a string, got int"),
        ({(9, 0): "a"}, IndexError, r"there is no .*layer 9"),
        ({(-1, 0): "a"}, IndexError, r"must be at least 0, got \(-1, 0\)"),
        ("none.csv", FileNotFoundError, "none.csv"),
    ],
)
def test_wrong_labels(labels, error: type, text: str) -> None:
    for call in (lambda: toy_graph(labels=labels), lambda: toy_graph().with_labels(labels)):
        with pytest.raises(error, match=text):
            call()


def test_labels_of_features_that_there_are_not(tmp_path) -> None:
    n = toy()[1].n_features[1]
    with pytest.raises(IndexError, match=rf"labels: there is no feature {n} in layer 1 \(it has {n}\)"):
        toy_graph(labels={(1, n): "a"})
    graph = toy_graph()
    (tmp_path / "l.csv").write_text(f"layer,feature,label\n{graph.layer[0]},{graph.feature[0]},mine\n")
    assert toy_graph(labels=tmp_path / "l.csv").labels == graph.with_labels(str(tmp_path / "l.csv")).labels
    assert graph.with_labels(tmp_path / "l.csv").labels[0] == "mine"


def test_a_run_whose_weights_changed_is_refused() -> None:
    model, transcoders = toy()
    graph = asp.attribution_graph(model, transcoders, PROMPT)
    model.assign({"wte.weight": model.parameter("wte.weight") * 2})
    with pytest.raises(RuntimeError, match="weights changed"):
        graph.score_pairs(0, 0, 1, 0)


def test_core_refuses_what_would_leave_its_arrays() -> None:
    model, transcoders = toy()
    graph = asp.attribution_graph(model, transcoders, PROMPT)
    sources, core = graph.origin[0], model._core
    n, layer, position, source, vectors = sources.writes
    bad = np.array([1], np.int32)
    reads = Reads(bad, bad * 0, bad * 0, vectors[:1].copy())
    wrong = [(layer + 9, position, source), (layer, position + 6, source), (layer, position, source + n)]
    for changed in wrong:
        with pytest.raises(IndexError, match="out of range"):
            core.graph_edges(sources.frozen, Writes(n, *changed, vectors), reads)
    with pytest.raises(ValueError, match="in order"):
        core.graph_edges(sources.frozen, Writes(n, layer[::-1].copy(), position, source, vectors), reads)
    with pytest.raises(IndexError, match="target 0"):
        core.graph_edges(sources.frozen, sources.writes, reads._replace(point=bad * 99))


def test_a_circle_of_edges_has_no_influence() -> None:
    """Two features, each of which has an edge from the other, and a logit."""
    nodes, reals = np.zeros(3, np.int32), np.ones(3, np.float32)
    heads = np.zeros((3, 1, 0, 0), np.float32)
    circle = _core.Graph(
        np.array([0, 0, 6], np.int32), nodes, nodes, nodes, reals, reals, np.array([0, 1, 2, 3]),
        np.array([1, 0, 1], np.int32), reals, heads[:2], heads, heads,
    )  # fmt: skip
    for ask in (circle.influence, circle.scores, lambda: circle.prune(0.8, 0.98)):
        with pytest.raises(ValueError, match="run in a circle"):
            ask()


def test_arrays_of_numbers_are_nodes() -> None:
    """What select gives, of any integer type, goes into every question."""
    graph = toy_graph()
    features = graph.select("feature")
    for nodes in (features, features.astype(np.int32), features.tolist(), [graph.ids[i] for i in features]):
        assert graph.nodes_of(nodes).tolist() == features.tolist()
        assert graph.weight(nodes, graph.logits) == graph.weight(features, graph.logits)
        assert graph.total(nodes, graph.logits) == graph.total(features, graph.logits)
        assert graph.heads(nodes, graph.logits).equals(graph.heads(features, graph.logits))
    with pytest.raises(TypeError, match="a node must be an integer, got float"):
        graph.weight(features.astype(float), graph.logits)


def test_several_graphs_are_one_table() -> None:
    model, transcoders = toy("float64")
    prompts = [PROMPT, PROMPT[:-1]]
    graphs = [asp.attribution_graph(model, transcoders, prompt) for prompt in prompts]
    own = {"summary": asp.Graph.summary, "nodes": asp.Graph.nodes, "links": asp.Graph.links}
    for of, method in own.items():
        table = asp.graphs.table((graph for graph in graphs), of)
        assert list(table)[:2] == ["model", "prompt"]
        for i, graph in enumerate(graphs):
            part = method(graph).drop(columns=["model", "prompt"], errors="ignore")
            mine = table[table.prompt == i].reset_index(drop=True)
            pd.testing.assert_frame_equal(mine[list(part)], part)
            assert set(mine.model) == {model.name}
        assert hidden(table) == []
    named = asp.graphs.table({"a": graphs[0], "b": graphs[1]}, texts=True)
    assert list(named)[:4] == ["graph", "model", "prompt", "prompt_text"]
    assert named.graph.tolist() == ["a", "b"]
    assert named.prompt_text.tolist() == [graph.prompt for graph in graphs]
    pd.testing.assert_frame_equal(asp.graphs.table(graphs[0]), asp.graphs.table(graphs[:1]))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([],), ValueError, "got none"),
        ((3,), TypeError, "got int"),
        (([3],), TypeError, "graphs must be a Graph, .*got int"),
        (([], "heads"), ValueError, "got none"),
    ],
)
def test_wrong_arguments_of_a_table(arguments, error, text) -> None:
    with pytest.raises(error, match=text):
        asp.graphs.table(*arguments)
