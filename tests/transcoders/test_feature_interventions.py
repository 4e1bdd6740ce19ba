"""Features set, scaled or raised in runs with replaced MLPs: the twin, what is held, and the graph."""

from __future__ import annotations

import numpy as np
import oracle_transcoder as twin
import pytest
from coder_cases import KINDS, T, each_kind, setting
from engine import relative_error
from graph_toys import PROMPT, random_transcoders
from graph_toys import toy as graph_toy

import attnsparse as asp
from attnsparse.transcoders.features import RECORDED

ALL = ("pattern", "gate", "ln_scale")


def strongest(transcoders, model, tokens, layer: int) -> list[int]:
    """The features of a layer with the largest activations, so that they are active somewhere."""
    found = transcoders.features(model, tokens).to_pandas()
    return found[found.layer == layer].nlargest(40, "activation").feature.drop_duplicates().tolist()[:2]


@each_kind
@pytest.mark.parametrize("cross_layer", [False, True])
@pytest.mark.parametrize("how", ["add", "set", "scale"])
@pytest.mark.parametrize("with_errors", [False, True])
def test_changed_features_are_those_of_the_twin(activation, cross_layer, how, with_errors):
    config, weights, model, coder, transcoders, tokens = setting(activation, cross_layer)
    one, two = strongest(transcoders, model, tokens, 0)
    changes = {(0, one): 3.0, (0, two, -2): -1.5, (2, 5, 1): 0.75}
    features = transcoders.features(model, tokens) if with_errors else None

    def change(layer, activations):
        found = activations.copy()
        for (of, feature, *position), number in changes.items():
            if of != layer:
                continue
            at = slice(None) if not position else position[0] % T
            own = activations[at, feature]
            found[at, feature] = {"add": own + number, "set": number, "scale": number * own}[how]
        return found

    errors = None if features is None else np.asarray(features.error, np.float64)
    expected = twin.replaced(config, weights, tokens, coder, errors, change)
    found = transcoders.replacement_run(
        model, tokens, errors=features, changes=changes, how=how, record=("mlp_out", "resid_post")
    )
    for name in ("logits", "mlp_out", "resid_post"):
        assert relative_error(getattr(found, name), expected[name]) < 1e-9, name
    plain = transcoders.replacement_run(model, tokens, errors=features)
    assert relative_error(plain.logits, expected["logits"]) > 1e-4


@each_kind
def test_a_feature_set_to_what_it_is_changes_nothing(activation):
    *_, model, _, transcoders, tokens = setting(activation)
    plain = transcoders.replacement_run(model, tokens)
    layer, feature = 0, strongest(transcoders, model, tokens, 0)[0]
    for how, number in (("add", 0.0), ("scale", 1.0)):
        found = transcoders.replacement_run(model, tokens, changes={(layer, feature): number}, how=how)
        assert np.array_equal(found.logits, plain.logits)


def test_positions_are_those_of_each_prompt():
    *_, model, _, transcoders, tokens = setting("relu")
    prompts = [tokens, tokens[:4]]
    both = transcoders.replacement_run(model, prompts, changes={(1, 3, -1): 2.0, (0, 2): 0.5})
    for i, prompt in enumerate(prompts):
        alone = transcoders.replacement_run(model, prompt, changes={(1, 3, -1): 2.0, (0, 2): 0.5})
        assert relative_error(both[i].logits, alone.logits) < 1e-12
    with pytest.raises(IndexError, match="a prompt has 4 tokens"):
        transcoders.replacement_run(model, prompts, changes={(1, 3, 5): 2.0})


@pytest.mark.parametrize("cross_layer", [False, True])
def test_constrained_features_do_not_answer(cross_layer):
    """In constrained layers only what is asked for changes; in the others features are found anew."""
    *_, model, _, transcoders, tokens = setting("jump_relu", cross_layer)
    if any(transcoders.source.skip(layer) is not None for layer in range(3)):
        pytest.skip("skip matrices answer")
    features = transcoders.features(model, tokens)
    feature = strongest(transcoders, model, tokens, 0)[0]
    changes = {(0, feature): 5.0}
    free, held, some = (
        transcoders.replacement_run(
            model, tokens, errors=features, changes=changes, constrained_layers=layers, record="mlp_out"
        )
        for layers in ((), range(3), [0, 1])
    )
    row = transcoders.source.decoder_rows(0, np.array([feature]))[0]
    own = features.run.mlp_out
    for layer in range(3):
        added = 5.0 * row[layer] if layer < len(row) else 0.0
        assert relative_error(held.mlp_out[layer], own[layer] + added) < 1e-10
    assert relative_error(some.mlp_out[1], held.mlp_out[1]) < 1e-10
    assert relative_error(free.mlp_out[1], held.mlp_out[1]) > 1e-4
    assert relative_error(some.mlp_out[2], held.mlp_out[2]) > 1e-4


def test_nothing_changed_under_everything_held_is_the_model():
    *_, model, _, transcoders, tokens = setting("topk", True)
    features = transcoders.features(model, tokens)
    run = transcoders.replacement_run(
        model, tokens, errors=features, constrained_layers=range(3), freeze=ALL, record="all"
    )
    assert relative_error(run.logits, model.run(tokens).logits) < 1e-9
    assert np.array_equal(run.pattern, model.run(tokens).pattern)


def test_frozen_patterns_and_scales_stay():
    *_, model, _, transcoders, tokens = setting("relu")
    changes = {(0, strongest(transcoders, model, tokens, 0)[0]): 4.0}
    clean = model.run(tokens, record="all")
    for names, same in ((("pattern", "gate"), "pattern"), ("ln_scale", "ln2_scale")):
        free, frozen = (
            transcoders.replacement_run(model, tokens, changes=changes, freeze=freeze, record="all")
            for freeze in (None, names)
        )
        assert np.array_equal(getattr(frozen, same), getattr(clean, same))
        assert relative_error(getattr(free, same), getattr(clean, same)) > 1e-4
    own = transcoders.replacement_run(model, tokens, record="all")
    run = transcoders.replacement_run(model, tokens, changes=changes, freeze={"ln_scale": own}, record="all")
    assert np.array_equal(run.ln1_scale, own.ln1_scale)


# --------------------------------------------------------------------------------------------- the graph


def edge(graph: asp.Graph, source: int, target: int) -> float:
    into = slice(graph.start[target], graph.start[target + 1])
    return float(graph.weights[into][graph.source[into] == source].sum())


@pytest.mark.parametrize("cross_layer", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_the_graph_predicts_the_logits(cross_layer, skip):
    """With all other features, patterns, gates and scales held, an ablated feature takes its edge away."""
    model, _ = graph_toy("float64")
    transcoders = random_transcoders(model, cross_layer=cross_layer, skip=skip)
    graph = asp.attribution_graph(model, transcoders, PROMPT, progress=False)
    features = transcoders.features(model, PROMPT)
    tokens = graph.feature[graph.logits]

    def logits(**changes) -> np.ndarray:
        run = transcoders.replacement_run(
            model, PROMPT, errors=features, constrained_layers=range(graph.n_layer), freeze=ALL, **changes
        )
        return run.logits[-1] - run.logits[-1].mean()

    before, largest = logits(), 0.0
    nodes = [i for i, kind in enumerate(graph.kind) if kind == "feature"]
    for node in np.random.default_rng(0).permutation(nodes)[:12]:
        place = (graph.layer[node], graph.feature[node], graph.position[node])
        place = tuple(int(number) for number in place)
        expected = np.array([edge(graph, node, target) for target in graph.logits])
        for how, number, factor in (("scale", 0.0, -1.0), ("scale", 3.0, 2.0), ("set", 0.0, -1.0)):
            change = logits(changes={place: number}, how=how) - before
            assert change[tokens] == pytest.approx(factor * expected, abs=1e-5 * np.abs(before).max())
        largest = max(largest, float(np.abs(expected).max()))
    assert largest > 1e-3 * np.abs(before).max()


@pytest.mark.parametrize("cross_layer", [False, True])
def test_the_graph_predicts_features(cross_layer):
    """What a feature reads changes by the edge, if the features of all layers before it are held."""
    model, _ = graph_toy("float64")
    transcoders = random_transcoders(model, cross_layer=cross_layer)
    graph = asp.attribution_graph(model, transcoders, PROMPT, progress=False)
    features = transcoders.features(model, PROMPT)
    record = ("ln2_normalized", "mlp_out")
    n_tested = 0
    for target in (i for i, kind in enumerate(graph.kind) if kind == "feature" and graph.layer[i] >= 1):
        layer, at, feature = (int(x[target]) for x in (graph.layer, graph.position, graph.feature))
        encoder = transcoders.source.encoder(layer)
        into = slice(graph.start[target], graph.start[target + 1])
        sources = [s for s in graph.source[into] if graph.kind[s] == "feature"]
        if not sources:
            continue
        source = max(sources, key=lambda s: abs(edge(graph, s, target)))
        place = tuple(int(x[source]) for x in (graph.layer, graph.feature, graph.position))
        run = transcoders.replacement_run(
            model,
            PROMPT,
            errors=features,
            changes={place: 0.0},
            how="set",
            constrained_layers=range(layer),
            freeze=ALL,
            record=record,
        )
        pre = run.ln2_normalized[layer, at] @ encoder.w_enc[feature] + encoder.b_enc[feature]
        expected = graph.value[target] - edge(graph, source, target)
        assert pre == pytest.approx(expected, abs=1e-5 * abs(graph.value[target]))
        if expected > 0:  # it is still active: found in the changed run, as any feature is
            found = transcoders.features(model, run).to_pandas()
            row = found[(found.layer == layer) & (found.position == at) & (found.feature == feature)]
            assert row.activation.item() == pytest.approx(expected, rel=1e-5)
        n_tested += 1
        if n_tested == 15:
            break
    assert n_tested == 15


def test_all_free_is_not_what_the_graph_says():
    """The comparison can fail: with nothing held, other features answer."""
    model, transcoders = graph_toy("float64")
    graph = asp.attribution_graph(model, transcoders, PROMPT, progress=False)
    features = transcoders.features(model, PROMPT)
    node = max(
        (i for i, kind in enumerate(graph.kind) if kind == "feature" and graph.layer[i] == 0),
        key=lambda i: abs(edge(graph, i, graph.logits[0])),
    )
    place = tuple(int(x[node]) for x in (graph.layer, graph.feature, graph.position))
    before, after = (
        transcoders.replacement_run(model, PROMPT, errors=features, changes=changes, how="set").logits[-1]
        for changes in (None, {place: 0.0})
    )
    change = (after - after.mean() - before + before.mean())[graph.feature[graph.logits[0]]]
    assert abs(change + edge(graph, node, graph.logits[0])) > 1e-3 * np.abs(before).max()


def test_steering_differs_by_what_the_mlps_answer():
    """With the features of all later layers held, both add the same; the rest is the answer of MLPs."""
    *_, model, _, transcoders, tokens = setting("relu")
    features = transcoders.features(model, tokens)
    changes = {(2, 7): 1.5}  # of the last layer: nothing answers
    steered = model.run(tokens, patch=transcoders.steer(changes)).logits
    found = transcoders.replacement_run(
        model, tokens, errors=features, changes=changes, constrained_layers=range(3)
    ).logits
    assert relative_error(found, steered) < 1e-9


# --------------------------------------------------------------------------------------------- wrong use


def test_a_changed_run_is_no_graph():
    model, transcoders = graph_toy()
    run = transcoders.replacement_run(model, PROMPT, changes={(0, 1): 1.0}, record=RECORDED)
    with pytest.raises(ValueError, match="had interventions"):
        asp.attribution_graph(model, transcoders, run)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"changes": {(9, 1): 1.0}}, IndexError, "layer"),
        ({"changes": {(0, 70): 1.0}}, IndexError, "features 0..69"),
        ({"changes": {(0, 1, 9): 1.0}}, IndexError, "a prompt has 9 tokens"),
        ({"changes": {(0,): 1.0}}, TypeError, "must be"),
        ({"changes": [(0, 1)]}, TypeError, "mapping"),
        ({"changes": {(0, 1): np.nan}}, ValueError, "changes"),
        ({"changes": {(0, 1): 1.0, (0, 1, 2): 1.0}}, ValueError, "named twice"),
        ({"changes": {(0, 1): 1.0}, "how": "double"}, ValueError, "how"),
        ({"constrained_layers": [0]}, ValueError, "needs errors="),
        ({"constrained_layers": [3]}, IndexError, "layer"),
        ({"constrained_layers": 0}, TypeError, "constrained_layers"),
        ({"freeze": "mlp"}, ValueError, "freeze"),
    ],
)
def test_what_cannot_be_is_refused(arguments, error, text):
    *_, model, _, transcoders, tokens = setting("relu")
    with pytest.raises(error, match=text):
        transcoders.replacement_run(model, tokens, **arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_change_a_bit(kind):
    *_, model, _, transcoders, tokens = setting(kind, True)
    features = transcoders.features(model, tokens)
    runs = [
        transcoders.replacement_run(
            model, tokens, errors=features, changes={(0, 1): 2.0, (1, 4, 3): -1.0}, threads=threads
        ).logits
        for threads in (1, 3)
    ]
    assert np.array_equal(*runs)
