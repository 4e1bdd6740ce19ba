"""The oracle of interventions and effects, judged by known answers and by second routes to one number.

The package plays no part here.
"""

from types import SimpleNamespace

import numpy as np
import oracle
import oracle_circuits as oc
import oracle_training as ot
import pytest

CONFIGS = {
    "dense": {},
    "gated": {"gated": True, "gate_bias": 0.1, "n_layer": 3, "d_head": 3},
    "relu, untied": {
        "activation": "relu",
        "tied": False,
        "unembed_bias": True,
        "gated": True,
        "gate_bias": -0.2,
    },
    "all closed": {"gated": True, "gate_bias": -1e6},
}
each_config = pytest.mark.parametrize("name", CONFIGS)
each_unit = pytest.mark.parametrize("unit", oc.UNITS)
each_ablation = pytest.mark.parametrize("ablation", oc.ABLATIONS)


def random_task(config, seed=0, lengths=(5, 5, 5), metric="logit_diff"):
    """Random prompts; two answers and three wrong answers each."""
    rng = np.random.default_rng(seed)
    clean, corrupted = ([rng.integers(0, config["n_vocab"], n) for n in lengths] for _ in range(2))
    ids = [rng.permutation(config["n_vocab"])[:5] for _ in lengths]
    return SimpleNamespace(
        clean=clean,
        corrupted=corrupted,
        answers=[i[:2] for i in ids],
        wrong=[i[2:] for i in ids],
        metric=metric,
    )


def case(name, seed=0, **options):
    config = oracle.full_config(**CONFIGS[name])
    return (
        config,
        oracle.random_model(np.random.default_rng(seed), config),
        random_task(config, seed, **options),
    )


def close(found, expected, tolerance=1e-12):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


# ------------------------------------------------------------------------------------------ forward pass


@each_config
def test_without_masks_it_is_the_model(name):
    config, weights, task = case(name)
    run, plain = oc.forward(config, weights, task.clean[0]), oracle.forward(config, weights, task.clean[0])
    close(run["logits"], plain["logits"])
    close(run["pattern"], plain["pattern"])
    close(np.moveaxis(run["z"], 1, 2), plain["z"])
    for place in ("mlp_out", "resid_pre", "resid_mid", "resid_post"):
        close(run[place], plain[place])
    np.testing.assert_array_equal(run["gate"], plain["gate"])


@each_config
@pytest.mark.parametrize("place", oc.PLACES)
def test_masks_of_one_change_nothing_and_variants_do_not_meet(name, place):
    config, weights, task = case(name)
    tokens, fill = task.clean[0], oc.record(config, weights, task.corrupted[0])
    shape = oc.record(config, weights, tokens)[place].shape[:-1]
    masks = np.random.default_rng(1).random((4, *shape))
    masks[2] = 1
    together = oc.forward(config, weights, tokens, {place: masks}, fill)["logits"]
    np.testing.assert_array_equal(together[2], oc.forward(config, weights, tokens)["logits"])
    for mask, logits in zip(masks, together):
        close(logits, oc.forward(config, weights, tokens, {place: mask}, fill)["logits"])


def test_z_is_replaced_by_the_injected_difference():
    """The other oracle can add to z: adding (reference - z) is ablating."""
    config, weights, task = case("gated")
    tokens, fill = task.clean[0], oc.record(config, weights, task.corrupted[0])
    mask = np.ones((config["n_layer"], config["n_head"], len(tokens)))
    mask[1, 0, 3] = 0
    run = oc.forward(config, weights, tokens, {"z": mask}, fill)
    change = np.zeros((config["n_layer"], len(tokens), config["n_head"], config["d_head"]))
    change[1, 3, 0] = fill["z"][1, 0, 3] - oc.record(config, weights, tokens)["z"][1, 0, 3]
    close(run["logits"], oracle.forward(config, weights, tokens, inject={"z": change})["logits"])
    assert np.abs(run["logits"] - oracle.forward(config, weights, tokens)["logits"]).max() > 1e-3


def test_an_entry_at_zero_is_a_pattern_entry_at_zero():
    config, weights, task = case("gated")
    tokens = task.clean[0]
    layer, head, query, key = oc.open_edges(config, weights, [tokens])[-3]
    found = oc.knock_out(config, weights, task, "edge", [(layer, head, query, key)])[0, 0]
    change = np.zeros((config["n_layer"], config["n_head"], len(tokens), len(tokens)))
    change[layer, head, query, key] = -oracle.forward(config, weights, tokens)["pattern"][
        layer, head, query, key
    ]
    logits = oracle.forward(config, weights, tokens, inject={"pattern": change})["logits"][-1]
    close(found, oc.metric_value(logits, task.answers[0], task.wrong[0], task.metric, logits))


def test_resid_places_that_are_one_number():
    """resid_post of a layer is resid_pre of the next; the last resid_post decides the logits alone."""
    config, weights, task = case("dense")
    tokens, fill = task.clean[0], oc.record(config, weights, task.corrupted[0])
    one = np.ones((2, len(tokens)))
    first, second = one.copy(), one.copy()
    first[0, 2], second[1, 2] = 0, 0
    after = oc.forward(config, weights, tokens, {"resid_post": first}, fill)["logits"]
    before = oc.forward(
        config, weights, tokens, {"resid_pre": second}, fill | {"resid_pre": fill["resid_pre"]}
    )
    close(after, before["logits"])
    last = np.ones((2, len(tokens)))
    last[1] = 0
    logits = oc.forward(config, weights, tokens, {"resid_post": last}, fill)["logits"]
    close(logits, oc.forward(config, weights, task.corrupted[0])["logits"])


def test_a_zeroed_mlp_leaves_the_stream_alone():
    config, weights, task = case("dense")
    mask = np.ones((2, 5))
    mask[0] = 0
    zeros = {name: 0 * value for name, value in oc.record(config, weights, task.clean[0]).items()}
    run = oc.forward(config, weights, task.clean[0], {"mlp_out": mask}, zeros)
    np.testing.assert_array_equal(run["resid_post"][0], run["resid_mid"][0])
    assert np.abs(run["resid_post"][1] - run["resid_mid"][1]).max() > 1e-3


# ------------------------------------------------------------------------------------------------ effects


@each_config
@each_unit
@each_ablation
def test_all_kept_is_the_model_and_none_kept_is_the_empty_set(name, unit, ablation):
    config, weights, task = case(name)
    items = oc.all_items(config, unit, 5)
    everything, nothing = oc.keep_only(config, weights, task, unit, items, [len(items), 0], ablation)
    whole = oc.metric_values(config, weights, task)
    np.testing.assert_array_equal(everything, whole)
    candidates = oc.candidates(config, weights, task, unit)
    close(oc.keep_only(config, weights, task, unit, candidates, [len(candidates)], ablation)[0], whole)
    all_out = oc.sets_values(config, weights, task, unit, [items], 0.0, ablation)[0]
    np.testing.assert_array_equal(nothing, all_out)


@each_config
@each_ablation
def test_heads_are_their_positions_and_their_entries(name, ablation):
    """Ablating a head is ablating it at every position, and ablating all its entries."""
    config, weights, task = case(name)
    heads = oc.all_items(config, "head", 5)
    expected = oc.knock_out(config, weights, task, "head", heads, ablation)
    for unit in ("head_position", "edge"):
        items = oc.all_items(config, unit, 5)
        sets = [items[(items[:, :2] == head).all(1)] for head in heads]
        close(oc.sets_values(config, weights, task, unit, sets, 0.0, ablation), expected)


@each_config
@each_unit
def test_keep_without_is_keep_only_of_one_less(name, unit):
    config, weights, task = case(name)
    items = oc.all_items(config, unit, 5)[::-1][:6]
    found = oc.keep_without(config, weights, task, unit, items)
    for j in range(len(items)):
        rest = np.delete(items, j, axis=0)
        np.testing.assert_array_equal(
            found[j], oc.keep_only(config, weights, task, unit, rest, [len(rest)])[0]
        )
    whole = oc.keep_without(config, weights, task, unit, oc.all_items(config, unit, 5))
    close(whole, oc.knock_out(config, weights, task, unit, oc.all_items(config, unit, 5)))


def test_closed_entries_have_no_effect_at_zero():
    config, weights, task = case("gated")
    edges = oc.all_items(config, "edge", 5)
    found = oc.knock_out(config, weights, task, "edge", edges)
    gates = np.array([oc.forward(config, weights, tokens)["gate"] for tokens in task.clean])
    closed = ~np.moveaxis(gates, 0, -1)[tuple(edges.T)]
    same = found == oc.metric_values(config, weights, task)
    assert 0.2 < closed.mean() < 0.8
    assert same[closed].all()
    assert (~same).mean() > 0.2
    opened = {tuple(edge) for edge in oc.candidates(config, weights, task, "edge")}
    assert opened == {tuple(edge) for edge, shut in zip(edges, closed) if not shut.all()}


@each_unit
def test_one_corrupted_prompt_for_all_is_its_mean(unit):
    config, weights, task = case("gated")
    task.corrupted = [task.corrupted[0]] * 3
    items = oc.all_items(config, unit, 5)
    reference = SimpleNamespace(clean=[task.corrupted[0]] * 2)
    mean = oc.knock_out(config, weights, task, unit, items, "mean", reference=reference)
    close(mean, oc.knock_out(config, weights, task, unit, items, "counterfactual"))


@each_unit
def test_a_prompt_is_its_own_mean(unit):
    """Ablating any one item by the mean over the prompt itself changes nothing, because the run before it is
    unchanged; so does ablating all of them."""
    config, weights, task = case("gated", lengths=(5,))
    items = oc.all_items(config, unit, 5)
    whole = oc.metric_values(config, weights, task)
    close(oc.knock_out(config, weights, task, unit, items, "mean"), np.broadcast_to(whole, (len(items), 1)))
    close(oc.keep_only(config, weights, task, unit, items, [0, 3], "mean"), np.broadcast_to(whole, (2, 1)))


def test_unequal_lengths_are_single_prompts():
    config, weights, task = case("gated", lengths=(1, 4, 7))
    items = oc.all_items(config, "head", 1)
    for ablation in ("zero", "counterfactual"):
        together = oc.knock_out(config, weights, task, "head", items, ablation)
        slopes = oc.attribution(config, weights, task, "head", ablation, steps=2)
        alone = [
            SimpleNamespace(**{k: v if k == "metric" else [v[i]] for k, v in vars(task).items()})
            for i in range(3)
        ]
        close(
            together,
            np.hstack([oc.knock_out(config, weights, one, "head", items, ablation) for one in alone]),
        )
        parts = [oc.attribution(config, weights, one, "head", ablation, steps=2) for one in alone]
        close(slopes, np.mean(parts, axis=0))


def test_metrics_by_hand():
    logits = np.log([0.1, 0.2, 0.3, 0.4])
    full = np.log([0.25] * 4)

    def value(metric):
        return oc.metric_value(logits + 5, [0, 3], [1, 2], metric, full)

    close(value("logit_diff"), (np.log(0.1 * 0.4) - np.log(0.2 * 0.3)) / 2)
    close(value("logit_diff_max"), np.log(0.1 * 0.4) / 2 - np.log(0.3))
    close(value("prob_diff"), 0.0)
    close(value("log_prob"), np.log(0.5))
    close(value("kl"), np.mean(np.log(0.25) - logits))


# -------------------------------------------------------------------------------------------- attribution


def linear_case(seed=0):
    """One layer and a huge ln_eps: LayerNorm is centring to 1e-12, and logits are linear in what the heads
    write, so that every method must give the same numbers."""
    config = oracle.full_config(n_layer=1, n_head=3, d_head=3, gated=True, gate_bias=0.3, ln_eps=1e12)
    weights = oracle.random_model(np.random.default_rng(seed), config)
    for name in weights:
        if name.startswith("h.0.mlp.c_proj"):
            weights[name] = 0 * weights[name]
        if name.endswith(("ln_1.weight", "ln_f.weight")):
            weights[name] = 1e6 * weights[name]
    return config, weights, random_task(config, seed)


@each_unit
@each_ablation
@pytest.mark.parametrize("steps", [1, 3])
def test_in_a_linear_model_all_methods_agree(unit, ablation, steps):
    config, weights, task = linear_case()
    items = oc.all_items(config, unit, 5)
    exact = oc.metric_values(config, weights, task) - oc.knock_out(
        config, weights, task, unit, items, ablation
    )
    scores = oc.attribution(config, weights, task, unit, ablation, steps=steps)
    assert np.abs(scores).max() > 0.05
    close(scores[tuple(items.T)], exact.mean(1), 1e-9)


def test_linear_attribution_by_hand():
    """d metric / d mask of an entry = A[q,k] v[k] W_O . (direction that LN_f and the unembedding read)."""
    config, weights, task = linear_case()
    scores = oc.attribution(config, weights, task, "edge")
    expected = np.zeros_like(scores)
    for tokens, answers, wrong in zip(task.clean, task.answers, task.wrong):
        unembed = oracle.unembedding(config, weights)
        direction = unembed[answers].mean(0) - unembed[wrong].mean(0)
        direction = direction * weights["ln_f.weight"] / 1e6
        direction = direction - direction.mean()
        w_o = weights["h.0.attn.c_proj.weight"].reshape(config["n_head"], config["d_head"], -1)
        run = oracle.forward(config, weights, tokens)
        for head, key in np.ndindex(config["n_head"], 5):
            moved = run["pattern"][0, head, 4, key] * run["v"][0, key, head] @ w_o[head]
            expected[0, head, 4, key] += moved @ direction / 3
    close(scores, expected, 1e-9)


@each_unit
@each_ablation
def test_integrated_gradients_are_complete(unit, ablation):
    """Their sum is m(M) - m(0); the midpoint rule's error falls as 1 / steps^2. Without gates, which jump."""
    config, weights, task = case("dense", lengths=(3, 3))
    gap = oc.metric_values(config, weights, task).mean()
    gap -= oc.keep_only(config, weights, task, unit, oc.all_items(config, unit, 3), [0], ablation).mean()
    sums = [oc.attribution(config, weights, task, unit, ablation, steps=n).sum() for n in (8, 16, 24)]
    errors = np.abs(np.array(sums) - gap)
    assert errors[2] < 0.01 * abs(gap)
    assert errors[2] < 0.6 * errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize(
    ("name", "metric"),
    [(name, "logit_diff") for name in CONFIGS]
    + [("gated", m) for m in ("logit_diff_max", "prob_diff", "log_prob")],
)
def test_head_attribution_from_the_other_oracles_backward_pass(name, metric):
    """At the full model the slope is sum over positions of dz . (z - reference)."""
    config, weights, task = case(name, metric=metric)
    for ablation in oc.ABLATIONS:
        expected = np.zeros((config["n_layer"], config["n_head"], 5))
        for i, tokens in enumerate(task.clean):
            run = oracle.forward(config, weights, tokens)
            dlogits = np.zeros_like(run["logits"])
            dlogits[-1] = metric_slope(run["logits"][-1], task.answers[i], task.wrong[i], metric)
            found = ot.backward(config, weights, tokens, run, dlogits, gate_logits=None)
            fill = oc.reference_for(config, weights, task, i, ablation)["z"]
            difference = run["z"] - np.moveaxis(fill, 1, 2)
            expected += (found.activations["z"] * difference).sum(-1).transpose(0, 2, 1) / 3
        close(oc.attribution(config, weights, task, "head_position", ablation), expected, 1e-9)
        close(oc.attribution(config, weights, task, "head", ablation), expected.sum(-1), 1e-9)


def metric_slope(logits, answers, wrong, metric):
    """Its derivative with respect to the logits, by differences."""
    variants = logits + np.vstack([1e-6 * np.eye(len(logits)), -1e-6 * np.eye(len(logits))])
    plus, minus = oc.metric_value(variants, answers, wrong, metric, logits).reshape(2, -1)
    return (plus - minus) / 2e-6


def test_what_is_no_edge_scores_nothing():
    config, weights, task = case("gated")
    scores = oc.attribution(config, weights, task, "edge", "counterfactual")
    edges = {tuple(edge) for edge in oc.candidates(config, weights, task, "edge")}
    others = [tuple(item) for item in oc.all_items(config, "edge", 5) if tuple(item) not in edges]
    assert len(others) > 10
    assert not any(scores[item] for item in others)


def test_edges_add_up_to_heads():
    """The slope of a head's mask is the sum of the slopes of its entries' masks, at the full model."""
    config, weights, task = case("dense")
    for ablation in oc.ABLATIONS:
        heads = oc.attribution(config, weights, task, "head", ablation)
        edges = oc.attribution(config, weights, task, "edge", ablation)
        close(edges.sum((2, 3)), heads, 1e-9)


def test_kl_has_its_minimum_at_the_full_model():
    config, weights, task = case("dense", metric="kl")
    close(oc.metric_values(config, weights, task), np.zeros(3))
    close(oc.attribution(config, weights, task, "head"), np.zeros((2, 2)), 1e-9)
    assert (oc.knock_out(config, weights, task, "head", oc.all_items(config, "head", 5)) > 0).all()


def test_differences_do_not_depend_on_their_step():
    config, weights, task = case("gated", lengths=(4,))
    fine = oc.attribution(config, weights, task, "edge", "mean", steps=2)
    close(oc.attribution(config, weights, task, "edge", "mean", steps=2, step=4e-3), fine, 1e-9)


# --------------------------------------------------------------------------------------- circuits


def test_explained_effect_and_needed_by_hand():
    values = np.array([[1.0, 1.0], [2.0, 6.0], [3.0, 3.0], [5.0, 5.0]])
    full, empty = np.array([4.0, 6.0]), np.array([1.0, 1.0])
    close(oc.explained_effect(values, full, empty), [0, 0.75, 0.5, 1])
    close(oc.explained_effect(values, full, empty, "ratio"), [0.2, 0.8, 0.6, 1])
    close(oc.explained_effect(values, full, empty, "none"), [1, 4, 3, 5])
    assert oc.needed([0, 1, 2, 3], [0, 0.75, 0.5, 1], 0.7) == (1, 3)
    assert oc.needed([0, 1, 5], [0, 0.95, 0.5]) == (1, None)
    assert oc.needed([0, 1, 5], [0, 0.5, 0.6]) == (None, None)


def test_greedy_in_a_linear_model_is_the_signed_exact_ranking():
    config, weights, task = linear_case()
    items = oc.candidates(config, weights, task, "edge")
    items = items[items[:, 2] == 4]
    exact = (
        oc.metric_values(config, weights, task) - oc.knock_out(config, weights, task, "edge", items)
    ).mean(1)
    for share in (0.0, 0.3):
        order = oc.greedy(config, weights, task, "edge", items, share=share)
        np.testing.assert_array_equal(order, items[np.argsort(-exact, kind="stable")])
    np.testing.assert_array_equal(oc.ranked(items, exact)[0], items[np.argmax(np.abs(exact))])
