"""The oracle of component edges, judged by known answers and by second routes to one number.

The package plays no part here.
"""

import json
from types import SimpleNamespace

import numpy as np
import oracle
import oracle_circuits as oc
import oracle_component_graph as graph
import oracle_components as comp
import oracle_training as ot
import pytest

CONFIGS = {
    "dense": {},
    "gated": {"gated": True, "gate_bias": 0.1, "d_head": 3},
    "three layers, three heads": {"n_layer": 3, "n_head": 3, "d_head": 2, "activation": "gelu"},
    "gated, relu, untied": {
        "activation": "relu", "tied": False, "unembed_bias": True, "gated": True, "gate_bias": -0.2,
        "scale_by_inverse_layer": True,
    },
    "no biases": {"bias": False},
    "all closed": {"gated": True, "gate_bias": -1e6},
    "self closed": {"gated": True, "self_closed": True, "gate_bias": 0.1},
}  # fmt: skip
FLIPS = ("gated", "gated, relu, untied", "self closed")  # a gate that flips on a path makes a jump
each_config = pytest.mark.parametrize("name", CONFIGS)
each_ablation = pytest.mark.parametrize("ablation", comp.ABLATIONS)
each_gate = pytest.mark.parametrize("gate", comp.GATES)
each_direction = pytest.mark.parametrize("direction", comp.DIRECTIONS)
each_metric = pytest.mark.parametrize("metric", oc.METRICS)


def random_task(config, seed=0, lengths=(4, 5, 3), metric="logit_diff"):
    """Random prompts of different lengths; two answers and three wrong answers each."""
    rng = np.random.default_rng(seed)
    clean, corrupted = ([rng.integers(0, config["n_vocab"], n) for n in lengths] for _ in range(2))
    ids = [rng.permutation(config["n_vocab"])[:5] for _ in lengths]
    return SimpleNamespace(
        clean=clean, corrupted=corrupted, answers=[i[:2] for i in ids], wrong=[i[2:] for i in ids],
        metric=metric,
    )  # fmt: skip


def made(name, seed=0, **options):
    config = oracle.full_config(**CONFIGS[name])
    weights = oracle.random_model(np.random.default_rng(seed), config)
    return config, weights, random_task(config, seed, **options)


def close(found, expected, tolerance=1e-12):
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=tolerance * max(1, np.abs(np.asarray(expected)).max())
    )


def matrix(config):
    return graph.real_edges(config)


# ------------------------------------------------------------------------------------------- the graph


def test_counts_of_gpt2():
    config = oracle.full_config(n_layer=12, n_head=12, d_model=24)
    real = matrix(config)
    assert real.shape == (157, 445)
    assert real.sum() == len(graph.edge_names(config)) == 32491
    assert graph.grid_sizes(32491) == [32, 64, 162, 324, 649, 1624, 3249, 6498, 16245, 32491]


def test_indices_are_those_of_the_files():
    config = oracle.full_config(n_layer=3, n_head=4)
    u, v = graph.senders(config), graph.receivers(config)
    for layer in range(3):
        for head in range(4):
            assert u[1 + layer * 5 + head] == f"a{layer}.h{head}"
            for i, letter in enumerate("qkv"):
                assert v[layer * 13 + i * 4 + head] == f"a{layer}.h{head}<{letter}>"
        assert u[1 + layer * 5 + 4] == v[layer * 13 + 12] == f"m{layer}"
    assert (u[0], v[-1]) == ("input", "logits")


def test_edges_of_a_model_with_one_head_by_hand():
    config = oracle.full_config(n_layer=1, n_head=1)
    assert graph.edge_names(config) == [
        "input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "input->m0", "a0.h0->m0", "input->logits",
        "a0.h0->logits", "m0->logits",
    ]  # fmt: skip
    assert graph.names_of(config, matrix(config)) == set(graph.edge_names(config))


def test_top_n_and_greedy_by_hand():
    config = oracle.full_config(n_layer=1, n_head=2)
    scores = np.zeros((4, 8))
    size = {"input->a0.h0<q>": 9, "a0.h0->m0": -5, "m0->logits": 2, "input->a0.h1<v>": 1, "input->logits": 3}
    for name, value in size.items():
        scores[graph.mask_of(config, [name])] = value
    best = ["input->a0.h0<q>", "a0.h0->m0"]
    assert graph.names_of(config, graph.top_n(config, scores, 2)) == set(best)
    assert graph.names_of(config, graph.top_n(config, scores, 2, absolute=False)) == {
        "input->a0.h0<q>", "input->logits",
    }  # fmt: skip
    assert not graph.pruned(config, graph.top_n(config, scores, 2)).any()
    path = ["input->logits", "m0->logits", *reversed(best)]
    for n in range(1, 5):
        assert graph.names_of(config, graph.greedy(config, scores, n)) == set(path[:n])
    found = graph.names_of(config, graph.greedy(config, scores, 5))
    assert found == {
        *path,
        "input->a0.h0<k>",
    }  # not into a0.h1, which is not there; the first of those with 0


def test_what_is_no_edge_is_never_chosen():
    config = oracle.full_config()
    scores = np.where(matrix(config), -1.0, 0.0)
    for n in (3, 46):
        chosen = graph.top_n(config, scores, n, absolute=False)
        assert (chosen.sum(), (chosen & ~matrix(config)).sum()) == (n, 0)


def test_pruning_by_hand():
    config = oracle.full_config(n_layer=2, n_head=1)
    dangling = {
        "nothing into the sender": ["a0.h0->logits"],
        "nothing out of the receiver": ["input->a0.h0<q>"],
        "a chain that ends": ["input->m0", "m0->a1.h0<v>"],
        "a chain that starts nowhere": ["m0->a1.h0<k>", "a1.h0->logits"],
    }
    whole = ["input->a0.h0<q>", "a0.h0->m1", "m1->logits"]  # one letter is enough
    assert graph.names_of(config, graph.pruned(config, graph.mask_of(config, whole))) == set(whole)
    assert graph.kept_nodes(config, graph.mask_of(config, whole)) == {"input", "a0.h0", "m1"}
    for extra in dangling.values():
        alone = graph.pruned(config, graph.mask_of(config, extra))
        assert not alone.any()
        if not set(extra) & {"a0.h0->logits", "input->a0.h0<q>"}:
            both = graph.pruned(config, graph.mask_of(config, whole + extra))
            assert graph.names_of(config, both) == set(whole)


def test_areas_by_hand():
    curve = [0.0, 0.5, 1.0, 1.5]
    grid = (0.1, 0.2, 0.4, 1.0)
    assert graph.cpr(curve, grid=grid) == pytest.approx(0.1 * 0.25 + 0.2 * 0.75 + 0.6 * 1.25)
    assert graph.cmd(curve, grid=grid) == pytest.approx(0.1 * 0.75 + 0.2 * 0.25 + 0.6 * 0.25)
    assert graph.cpr(np.ones(10)) == pytest.approx(0.999)
    assert graph.cmd(np.ones(10)) == 0
    assert graph.cpr([1, 3], grid=(0.1, 1.0), log=True) == pytest.approx(2 * np.log(10))


def test_auc_is_the_area_under_the_roc_even_with_ties():
    config, rng = oracle.full_config(), np.random.default_rng(0)
    for absolute in (True, False):
        scores = rng.integers(-3, 4, matrix(config).shape).astype(float)
        true = matrix(config) & (rng.random(scores.shape) < 0.3)
        x, y = graph.roc(config, scores, true, absolute)
        assert graph.auc(config, scores, true, absolute) == pytest.approx(
            ((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum()
        )
    assert graph.auc(config, true.astype(float), true) == 1
    assert graph.auc(config, np.zeros_like(scores), true) == 0.5


def test_json_has_every_node_and_edge():
    config = oracle.full_config()
    scores, mask = np.where(matrix(config), 0.5, 0), graph.mask_of(config, ["input->m1", "m1->logits"])
    found = json.loads(json.dumps(graph.to_json(config, scores, mask, range(7))))
    assert list(found["nodes"]) == [*graph.senders(config), "logits"]
    assert list(found["edges"]) == graph.edge_names(config)
    assert found["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    assert {name for name, node in found["nodes"].items() if node["in_graph"]} == {"input", "m1", "logits"}
    assert found["nodes"]["m1"]["score"] == 6
    assert found["edges"]["input->m1"] == {"score": 0.5, "in_graph": True}


# ----------------------------------------------------------------------------------------- forward pass


@each_config
def test_the_sum_of_senders_is_the_model(name):
    config, weights, task = made(name)
    for tokens in task.clean:
        run, plain = comp.forward(config, weights, tokens), oracle.forward(config, weights, tokens)
        close(run.logits, plain["logits"])
        close(run.gate, plain["gate"].astype(float) if config["gated"] else run.gate)
        rows, columns = graph.senders(config), graph.receivers(config)
        for layer in range(config["n_layer"]):
            for head in range(config["n_head"]):
                close(run.outputs[rows.index(f"a{layer}.h{head}")], plain["result"][layer, :, head])
                for letter in "qkv":
                    close(run.inputs[columns.index(f"a{layer}.h{head}<{letter}>")], plain["resid_pre"][layer])
            close(run.outputs[rows.index(f"m{layer}")], plain["mlp_out"][layer])
            close(run.inputs[columns.index(f"m{layer}")], plain["resid_mid"][layer])
        close(run.inputs[-1], plain["resid_post"][-1])


@each_config
@each_gate
def test_everything_kept_is_the_clean_run_and_nothing_the_corrupted_one(name, gate):
    config, weights, task = made(name)
    full, empty = comp.whole_and_empty(config, weights, task, gate=gate)
    close(full, oc.metric_values(config, weights, task))
    other = SimpleNamespace(**vars(task) | {"clean": task.corrupted})
    close(empty, oc.metric_values(config, weights, other))
    assert np.abs(full - empty).min() > 1e-3


def test_nothing_kept_with_zeros_leaves_positions_and_biases():
    config, weights, task = made("dense")
    x = weights["wpe.weight"][len(task.clean[0]) - 1] + sum(
        weights[f"h.{layer}.attn.c_proj.bias"] for layer in range(2)
    )
    normalized = oracle.layer_norm(x[None], config["ln_eps"])[0]
    logits = (oracle.affine(weights, "ln_f", normalized) @ weights["wte.weight"].T)[0]
    empty = comp.whole_and_empty(config, weights, task, ablation="zero")[1]
    expected = logits[task.answers[0]].mean() - logits[task.wrong[0]].mean()
    close(empty[0], expected)


@each_config
@pytest.mark.parametrize("ablation", ["zero", "counterfactual"])
def test_heads_without_outgoing_edges_are_ablated_heads(name, ablation):
    """The other oracle replaces z of heads; here their edges go. Both compute the rest anew."""
    config, weights, task = made(name)
    heads = [(0, 1), (1, 0)]
    keep = matrix(config).copy()
    for layer, head in heads:
        keep[graph.senders(config).index(f"a{layer}.h{head}")] = False
    found = comp.evaluate(config, weights, task, [keep], ablation=ablation)[0]
    close(found, oc.sets_values(config, weights, task, "head", [heads], 0.0, ablation)[0])


@each_config
def test_with_patching_dangling_nodes_change_nothing(name):
    config, weights, task = made(name)
    rng = np.random.default_rng(3)
    sets = [matrix(config) & (rng.random(matrix(config).shape) < share) for share in (0.1, 0.2, 0.4)]
    pruned = [graph.pruned(config, mask) for mask in sets]
    assert any((one != other).any() for one, other in zip(sets, pruned))
    close(comp.evaluate(config, weights, task, sets), comp.evaluate(config, weights, task, pruned))


def test_with_zeros_dangling_nodes_do_change_something():
    config, weights, task = made("dense")
    mask = graph.mask_of(config, ["m0->logits", "input->logits"])
    sets = [mask, graph.pruned(config, mask)]
    found = comp.evaluate(config, weights, task, sets, ablation="zero")
    assert np.abs(found[0] - found[1]).min() > 1e-3


def test_all_neurons_are_the_set_and_no_neurons_are_nothing():
    config, weights, task = made("gated")
    mask = matrix(config) & (np.random.default_rng(1).random(matrix(config).shape) < 0.6)
    neurons = np.ones((len(mask), config["d_model"]))
    close(
        comp.evaluate(config, weights, task, [mask], neurons=neurons),
        comp.evaluate(config, weights, task, [mask]),
    )
    empty = comp.whole_and_empty(config, weights, task)[1]
    close(comp.evaluate(config, weights, task, [mask], neurons=0 * neurons)[0], empty)
    neurons[0, ::2] = 0
    assert (
        np.abs(
            comp.evaluate(config, weights, task, [mask], neurons=neurons)
            - comp.evaluate(config, weights, task, [mask])
        ).min()
        > 1e-4
    )


def test_some_neurons_of_the_last_mlp_are_one_sum_before_the_logits():
    config, weights, task = made("dense", lengths=(4,))
    neurons = np.ones((len(matrix(config)), 8))
    neurons[-1, 2:5] = 0
    plain, other = (oracle.forward(config, weights, t[0]) for t in (task.clean, task.corrupted))
    x = plain["resid_post"][-1].copy()
    x[:, 2:5] += (other["mlp_out"][-1] - plain["mlp_out"][-1])[:, 2:5]
    final = oracle.affine(weights, "ln_f", oracle.layer_norm(x, config["ln_eps"])[0])
    logits = (final @ weights["wte.weight"].T)[-1]
    expected = logits[task.answers[0]].mean() - logits[task.wrong[0]].mean()
    close(comp.evaluate(config, weights, task, [matrix(config)], neurons=neurons).item(), expected)


def test_a_held_gate_differs_from_a_recomputed_one_only_if_gated():
    for name, differs in (("dense", False), ("gated", True)):
        config, weights, task = made(name)
        mask = matrix(config) & (np.random.default_rng(2).random(matrix(config).shape) < 0.5)
        held, anew = (comp.evaluate(config, weights, task, [mask], gate=gate) for gate in comp.GATES)
        assert (np.abs(held - anew).max() > 1e-3) == differs


def test_means_by_hand():
    config, weights, task = made("dense")
    runs = [comp.forward(config, weights, tokens).outputs for tokens in task.clean]
    for u in (0, 2, 6):
        found = {kind: comp.references(config, weights, task, 1, kind)[u] for kind in comp.ABLATIONS[2:]}
        close(found["mean"][4], sum(run[u].sum(0) / run.shape[1] for run in runs) / 3)
        close(found["mean-all"][0], sum(run[u].sum(0) for run in runs) / (4 + 5 + 3))
        close(found["mean-positional"][3], (runs[0][u, 3] + runs[1][u, 3]) / 2)
        close(found["mean-positional"][4], runs[1][u, 4])


# ------------------------------------------------------------------------------------------ derivatives


@each_metric
def test_slope_of_metrics(metric):
    rng = np.random.default_rng(0)
    logits, full = rng.standard_normal((2, 11))
    value, slope = comp.measured(metric, logits, [1, 4], [2, 3, 9], full)
    assert value == oc.metric_value(logits, [1, 4], [2, 3, 9], metric, full)
    step = 1e-5
    for i in range(11):
        up, down = (
            oc.metric_value(logits + sign * step * np.eye(11)[i], [1, 4], [2, 3, 9], metric, full)
            for sign in (1, -1)
        )
        assert slope[i] == pytest.approx((up - down) / (2 * step), abs=1e-8)


@each_config
def test_reverse_mode_is_that_of_training(name):
    """The gradients of all receivers of a place add up to those of the residual stream; the oracle of
    training has another backward pass."""
    config, weights, task = made(name)
    tokens = task.clean[0]
    run, plain = comp.forward(config, weights, tokens), oracle.forward(config, weights, tokens)
    dlogits = np.random.default_rng(1).standard_normal(run.logits.shape)
    grad = comp.backward(config, weights, run, dlogits)
    other = ot.backward(config, weights, tokens, plain, dlogits).activations
    rows = graph.senders(config)
    for layer in range(config["n_layer"]):
        close(grad.outputs[rows.index(f"m{layer}")], other["resid_post"][layer])
        close(grad.outputs[rows.index(f"a{layer}.h0")], other["resid_mid"][layer])
    close(grad.outputs[0], other["resid_pre"][0])


@each_config
def test_forward_and_reverse_mode_agree(name):
    config, weights, task = made(name)
    rng = np.random.default_rng(1)
    shape = (*matrix(config).shape, config["d_model"])
    tokens, keep = task.clean[0], rng.random(shape)
    fill = comp.forward(config, weights, task.corrupted[0]).outputs
    given = {2: rng.standard_normal(fill[2].shape)}
    run = comp.forward(config, weights, tokens, keep=keep, fill=fill, given=given)
    dlogits = rng.standard_normal(run.logits.shape)
    grad = comp.backward(config, weights, run, dlogits)
    for v in range(shape[1]):
        seed = rng.standard_normal(run.inputs[v].shape)
        moved = comp.tangent(config, weights, run, {v: seed})
        close((grad.inputs[v] * seed).sum(), (moved * dlogits).sum())


@each_config
@each_ablation
@each_gate
def test_eap_is_the_slope_of_patching_an_edge(name, ablation, gate):
    """In the share of the fill that is mixed into one edge, where nothing is mixed in; by differences."""
    config, weights, task = made(name)
    scores = comp.edge_scores(config, weights, task, "eap", ablation=ablation, gate=gate)
    step, rng = 1e-5, np.random.default_rng(0)
    for u, v in rng.permutation(np.argwhere(matrix(config)))[:8]:
        slopes = []
        for i in range(len(task.clean)):
            one = comp.case(config, weights, task, i, ablation=ablation, gate=gate)
            values = []
            for sign in (1, -1):
                keep = np.ones(matrix(config).shape)
                keep[u, v] -= sign * step
                values.append(one.loss(one.run(keep=keep)))
            slopes.append((values[0] - values[1]) / (2 * step))
        assert scores[u, v] == pytest.approx(np.mean(slopes), abs=2e-7)


@each_config
@each_direction
def test_scores_of_edges_add_up_to_those_of_their_sender(name, direction):
    config, weights, task = made(name)
    for method, gate in (("eap", "held"), ("clean-corrupted", "recomputed"), ("eap-ig-activations", "held")):
        options = {"direction": direction, "gate": gate, "steps": 2}
        edges = comp.edge_scores(config, weights, task, method, **options)
        close(edges.sum(1), comp.node_scores(config, weights, task, method, **options))
        neurons = comp.node_scores(config, weights, task, method, neuron=True, **options)
        close(neurons.sum(1), edges.sum(1))


@each_config
def test_clean_corrupted_is_the_mean_of_both_directions(name):
    config, weights, task = made(name)
    both = [comp.edge_scores(config, weights, task, "eap", direction=way) for way in comp.DIRECTIONS]
    close(comp.edge_scores(config, weights, task, "clean-corrupted"), np.mean(both, axis=0))


@each_direction
@pytest.mark.parametrize("metric", [metric for metric in oc.METRICS if metric != "kl"])
def test_denoising_is_noising_of_the_swapped_task_with_the_other_sign(direction, metric):
    config, weights, task = made("gated", metric=metric)
    swapped = SimpleNamespace(**vars(task) | {"clean": task.corrupted, "corrupted": task.clean})
    other = next(way for way in comp.DIRECTIONS if way != direction)
    for method in comp.METHODS[:-1]:
        one, two = (
            comp.edge_scores(config, weights, on, method, direction=way, steps=2)
            for on, way in ((task, direction), (swapped, other))
        )
        close(one, -two)
        assert np.abs(one).max() > 1e-3


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in FLIPS])
def test_inputs_complete_the_difference(name):
    """sum over edges out of `input` of the integrated scores -> loss(corrupted) - loss(clean): a sum over the
    path, midpoint instead of left so that it converges faster; and left and right sums meet."""
    config, weights, task = made(name, lengths=(4,))
    one = comp.case(config, weights, task, 0)
    own, fill = one.base.outputs[0], one.fill[0]
    steps, total = 400, 0.0
    for k in range(steps):
        share = (k + 0.5) / steps
        run = one.run(given={0: share * own + (1 - share) * fill})
        total += ((fill - own) * one.gradients(run).outputs[0]).sum() / steps
    full, empty = comp.whole_and_empty(config, weights, task)
    assert total == pytest.approx((full - empty).item(), abs=1e-4)
    left, right = (
        np.mean([one.gradients(run).outputs[0] for run in comp.points(one, "eap-ig-inputs", 50, side)], 0)
        for side in (False, True)
    )
    ends = [one.gradients(run).outputs[0] for run in (one.run(one.other_tokens), one.base)]
    close(left - right, (ends[0] - ends[1]) / 50)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if "relu" not in name])  # kinks on the path
def test_groups_complete_their_ablation_with_held_gates(name):
    """The path of one group, the right sum of many steps: its end is the run with the group filled."""
    config, weights, task = made(name, lengths=(4,))
    one = comp.case(config, weights, task, 0, gate="held")
    own, steps = one.base.outputs, 400
    for group in comp.groups(config):
        total = 0.0
        for k in range(steps):
            share = (k + 0.5) / steps
            run = one.run(given={u: share * own[u] + (1 - share) * one.fill[u] for u in group})
            slope = one.gradients(run).outputs
            total += sum(((one.fill[u] - own[u]) * slope[u]).sum() for u in group) / steps
        keep = np.ones(matrix(config).shape)
        keep[group] = 0
        assert total == pytest.approx(one.loss(one.run(keep=keep)) - one.loss(one.base), abs=2e-5)


@each_config
@each_gate
def test_ig_activations_is_its_definition_written_another_way(name, gate):
    """Forward mode at every point, for some edges."""
    config, weights, task = made(name, lengths=(4,))
    scores = comp.edge_scores(config, weights, task, "eap-ig-activations", steps=2, gate=gate)
    one = comp.case(config, weights, task, 0, gate=gate)
    difference = one.fill - one.base.outputs
    for u, v in np.random.default_rng(0).permutation(np.argwhere(matrix(config)))[:4]:
        slopes = []
        for group in comp.groups(config):
            for share in (0.5, 1.0):
                given = {w: share * one.base.outputs[w] + (1 - share) * one.fill[w] for w in group}
                run = one.run(given=given)
                moved = comp.tangent(config, weights, run, {v: difference[u]})[-1]
                slope = comp.measured("logit_diff", run.logits[-1], task.answers[0], task.wrong[0], None)[1]
                slopes.append(-moved @ slope)
        close(scores[u, v], np.mean(slopes))


def test_groups_by_hand():
    assert comp.groups(oracle.full_config()) == [[0], [1, 2], [3], [4, 5], [6]]


def test_nodes_take_the_right_sum_and_edges_the_left():
    config, weights, task = made("dense", lengths=(4,))
    one = comp.case(config, weights, task, 0)
    nodes = comp.node_scores(config, weights, task, "eap-ig-inputs", steps=3)
    edges = comp.edge_scores(config, weights, task, "eap-ig-inputs", steps=3).sum(1)
    slopes = [one.gradients(run).outputs for run in (one.base, one.run(one.other_tokens))]
    close(nodes - edges, ((one.fill - one.base.outputs) * (slopes[0] - slopes[1]) / 3).sum((1, 2)))


def test_the_gradient_of_an_mlp_at_its_input_by_forward_mode():
    config, weights, task = made("gated", lengths=(4,))
    one = comp.case(config, weights, task, 0)
    found = comp.node_scores(config, weights, task, "eap", mlp_gradient="input")
    plain = comp.node_scores(config, weights, task, "eap")
    slope = comp.measured("logit_diff", one.base.logits[-1], task.answers[0], task.wrong[0], None)[1]
    rows, columns = graph.senders(config), graph.receivers(config)
    for u, name in enumerate(rows):
        if not name.startswith("m"):
            assert found[u] == plain[u]
            continue
        seed = one.fill[u] - one.base.outputs[u]
        close(found[u], -comp.tangent(config, weights, one.base, {columns.index(name): seed})[-1] @ slope)
        assert abs(found[u] - plain[u]) > 1e-3


@each_config
def test_nothing_lowers_a_divergence_from_the_whole_model(name):
    config, weights, task = made(name, lengths=(3, 4))
    exact = comp.edge_scores(config, weights, task, "exact", metric="kl")
    assert exact[matrix(config)].min() > -1e-12
    assert exact.max() > 1e-4
    close(comp.edge_scores(config, weights, task, "eap", metric="kl"), np.zeros_like(exact))


def test_eap_is_the_same_for_both_gates_and_integrated_scores_are_not():
    config, weights, task = made("gated")
    for method, same in (("eap", True), ("eap-ig-inputs", False), ("eap-ig-activations", False)):
        held, anew = (comp.edge_scores(config, weights, task, method, gate=gate) for gate in comp.GATES)
        assert np.array_equal(held, anew) == same
        assert (np.abs(held - anew).max() > 1e-4) != same


# ------------------------------------------------------------------------------------------ exact scores


@each_config
@each_ablation
def test_exact_scores_are_evaluations_without_one_edge(name, ablation):
    config, weights, task = made(name, lengths=(3, 4))
    scores = comp.edge_scores(config, weights, task, "exact", ablation=ablation)
    full = oc.metric_values(config, weights, task).mean()
    for u, v in np.random.default_rng(0).permutation(np.argwhere(matrix(config)))[:5]:
        without = matrix(config).copy()
        without[u, v] = False
        value = comp.evaluate(config, weights, task, [without], ablation=ablation).mean()
        close(scores[u, v], full - value)


@each_config
def test_exact_of_the_last_edge_is_one_logit_shift(name):
    """Into the logits nothing comes after: LayerNorm and unembedding of another sum."""
    config, weights, task = made(name, lengths=(4,))
    plain, other = (oracle.forward(config, weights, t[0]) for t in (task.clean, task.corrupted))
    x = plain["resid_post"][-1] - plain["mlp_out"][-1] + other["mlp_out"][-1]
    final = oracle.affine(weights, "ln_f", oracle.layer_norm(x, config["ln_eps"])[0])
    logits = final @ oracle.unembedding(config, weights).T + weights.get("lm_head.bias", 0.0)
    value = oc.metric_value(logits[-1], task.answers[0], task.wrong[0], "logit_diff", None)
    scores = comp.edge_scores(config, weights, task, "exact")
    place = graph.mask_of(config, [f"m{config['n_layer'] - 1}->logits"])
    close(scores[place][0], oc.metric_values(config, weights, task)[0] - value)


@each_config
def test_exact_nodes_are_heads_of_the_other_oracle(name):
    config, weights, task = made(name)
    scores = comp.node_scores(config, weights, task, "exact")
    heads = oc.all_items(config, "head", 0)
    values = oc.knock_out(config, weights, task, "head", heads, "counterfactual").mean(1)
    rows = [graph.senders(config).index(f"a{layer}.h{head}") for layer, head in heads]
    close(scores[rows], oc.metric_values(config, weights, task).mean() - values)


def test_exact_and_eap_meet_where_the_difference_is_small():
    """With a corrupted embedding close to the clean one both tend to the same number."""
    config, weights, task = made("dense")
    ratios = []
    for step in (1e-2, 1e-3):
        near = dict(weights)
        near["wte.weight"] = np.concatenate(
            [
                weights["wte.weight"],
                weights["wte.weight"] + step * np.random.default_rng(5).standard_normal((11, 8)),
            ]
        )
        close_by = SimpleNamespace(**vars(task) | {"corrupted": [tokens + 11 for tokens in task.clean]})
        wide = config | {"n_vocab": 22}
        exact, eap = (comp.edge_scores(wide, near, close_by, method) for method in ("exact", "eap"))
        ratios.append(np.abs(exact - eap).max() / np.abs(exact).max())
    assert ratios[1] < ratios[0] / 5 < 1e-2


# ------------------------------------------------------------------------------------------- the others


@each_config
def test_information_flow_is_shared_out(name):
    config, weights, task = made(name)
    scores = comp.edge_scores(config, weights, task, "information-flow-routes")
    assert (scores >= 0).all()
    sums = scores.sum(0)
    assert (sums <= 1 + 1e-12).all()
    assert sums.max() == pytest.approx(1)
    assert (scores[~matrix(config)] == 0).all()


def test_information_flow_of_one_edge_by_hand():
    config, weights, task = made("dense", lengths=(2,))
    plain = oracle.forward(config, weights, task.clean[0])
    x, parts = plain["resid_mid"][0], [plain["embed"], plain["result"][0, :, 0], plain["result"][0, :, 1]]
    near = [np.maximum(0, np.abs(x).sum(1) - np.abs(x - part).sum(1)) for part in parts]
    share = near[1] / (near[0] + near[1] + near[2])
    scores = comp.edge_scores(config, weights, task, "information-flow-routes")
    close(scores[graph.mask_of(config, ["a0.h0->m0"])][0], share.mean())


def test_acdc_by_hand():
    """Of an additive cost the edges go whose own cost is below the threshold; of a pair that covers for one
    another the one that is asked first."""
    config = oracle.full_config(n_layer=1, n_head=1)
    cost = {"m0->logits": 3.0, "a0.h0->logits": 0.2, "input->logits": 0.4, "input->m0": 1.0}

    def kl(mask):
        names = graph.names_of(config, mask)
        pair = 5.0 * (not names & {"input->a0.h0<q>", "input->a0.h0<k>"})
        return pair + sum(value for name, value in cost.items() if name not in names)

    found = graph.names_of(config, graph.acdc(config, kl, 0.5))
    assert found == {"m0->logits", "input->m0", "input->a0.h0<q>"}


def test_methods_between_two_prompts_take_nothing_else():
    config, weights, task = made("dense")
    for method in ("eap-ig-inputs", "clean-corrupted"):
        with pytest.raises(ValueError, match="counterfactual"):
            comp.edge_scores(config, weights, task, method, ablation="zero")
    with pytest.raises(ValueError, match="denoising"):
        comp.edge_scores(config, weights, task, "eap", ablation="zero", direction="denoising")


def test_a_metric_of_ones_own():
    config, weights, task = made("dense")
    row = np.random.default_rng(0).standard_normal(11)
    own = comp.edge_scores(config, weights, task, "eap", metric=lambda logits: (logits @ row, row))
    exact = comp.edge_scores(config, weights, task, "exact", metric=lambda logits: (logits @ row, row))
    assert np.corrcoef(own[matrix(config)], exact[matrix(config)])[0, 1] > 0.5
    assert np.abs(own - comp.edge_scores(config, weights, task, "eap")).max() > 1e-3


def test_a_curve_ends_at_the_whole_model():
    config, weights, task = made("three layers, three heads", lengths=(4, 4))
    scores = comp.edge_scores(config, weights, task, "eap")
    sizes = [0, *graph.grid_sizes(int(matrix(config).sum()))]
    values, effect, left = comp.curve(config, weights, task, scores, sizes)
    close(effect[[0, -1]], [0, 1])
    assert left[0] == 0
    assert left[-1] == matrix(config).sum()
    assert values.shape == (11, 2)
