"""Model.run with ablations and patches against the oracle, and against the sweeps of effects.py."""

import numpy as np
import oracle_circuits as oc
import oracle_hooks
import pytest
from circuit_cases import CONFIGS, TOLERANCE, case, error

import attnsparse as asp
from attnsparse.circuits import effects
from attnsparse.items import Edge, Head, HeadPosition, Mlp, Resid
from attnsparse.model.interventions import Ablation

each_config = pytest.mark.parametrize("name", CONFIGS)
each_ablation = pytest.mark.parametrize("kind", oc.ABLATIONS)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)
COMPARED = ("logits", "z", "mlp_out", "resid_pre", "resid_mid", "resid_post")
T = 5


def items_of(config):
    """Some items of every kind that a model has."""
    last = config["n_layer"] - 1
    heads = [Head(0, 0), Head(last, config["n_head"] - 1)]
    return {
        "heads": heads,
        "head positions": [HeadPosition(0, 0, 2), HeadPosition(last, 0, T - 1)],
        "edges": [Edge(0, 0, 3, 1), Edge(last, 0, T - 1, 2), Edge(last, 0, T - 1, T - 1)],
        "mlps": [Mlp(0)],
        "stream before": [Resid(last, 1, "pre")],
        "stream between": [Resid(0, T - 1, "mid"), Resid(0, 2, "mid")],
        "stream after": [Resid(0, 3, "post")],
        "mixed": [heads[0], Mlp(last), Edge(last, 0, T - 1, 0), HeadPosition(last, 0, 1)],
    }


KINDS = tuple(items_of({"n_layer": 1, "n_head": 1}))
STREAM = tuple(name for name in KINDS if name.startswith("stream"))  # has no zero ablation
ABLATED = [(kind, which) for kind in oc.ABLATIONS for which in KINDS if kind != "zero" or which not in STREAM]


def place_of(item):
    """The oracle's place of an item and its index there, after the layer."""
    if isinstance(item, Edge):
        return "entry", (item.layer, item.head, item.query, item.key)
    if isinstance(item, Head | HeadPosition):
        return "z", tuple(item)
    if isinstance(item, Mlp):
        return "mlp_out", (item.layer,) if item.position is None else (item.layer, item.position)
    return f"resid_{item.point}", (item.layer, item.position)


def masks_without(config, items):
    """Masks of the oracle with 0 at the items."""
    masks = {}
    for item in items:
        place, index = place_of(item)
        shape = (config["n_layer"], *(config["n_head"],) * (place in ("z", "entry")))
        axes = oc.PLACES[place] - len(shape)
        masks.setdefault(place, np.ones((*shape, *(T,) * axes)))[index] = 0
    return masks


def compare(run, expected, tolerance):
    """Logits, z and the stream of one prompt. A recorded stream has one value between two layers, which
    is what the next one reads."""
    expected = dict(expected, z=np.moveaxis(expected["z"], 1, 2), resid_post=expected["resid_post"].copy())
    expected["resid_post"][:-1] = expected["resid_pre"][1:]
    worst = {}
    for name in COMPARED:
        worst[name] = error(np.float64(getattr(run, name)), expected[name])
    assert max(worst.values()) < tolerance, worst


def reference_prompts(one, kind):
    """What `Ablation` wants as its reference."""
    return None if kind == "zero" else list(one.task.corrupted)


def fills(one, kind, i):
    """The oracle's reference of prompt i, the means being over the corrupted prompts."""
    if kind == "mean":
        return oc.mean_record(one.config, one.weights, one.task.corrupted)
    return one.ask(oc.reference_for, i, kind)


@each_config
@pytest.mark.parametrize(("kind", "which"), ABLATED)
def test_ablations(name, kind, which):
    one = case(name)
    items = items_of(one.config)[which]
    ablation = Ablation(items, kind, reference=reference_prompts(one, kind))
    run = one.model().run(list(one.task.clean), record="all", ablate=ablation)
    for i, tokens in enumerate(one.task.clean):
        masks = masks_without(one.config, items)
        expected = oc.forward(one.config, one.weights, tokens, masks, fills(one, kind, i))
        compare(run[i], expected, 1e-9)


@each_dtype
def test_both_precisions_and_a_plain_list(dtype):
    one = case("gated")
    items = items_of(one.config)["mixed"]
    run = one.model(dtype).run(list(one.task.clean), record="all", ablate=items)
    for i, tokens in enumerate(one.task.clean):
        masks = masks_without(one.config, items)
        expected = oc.forward(one.config, one.weights, tokens, masks, fills(one, "zero", i))
        compare(run[i], expected, TOLERANCE[dtype])


@each_ablation
@pytest.mark.parametrize("unit", ["head", "edge"])
def test_keep_only(kind, unit):
    one = case("gated")
    items = one.ask(oc.candidates, unit)[::3]
    kept = [Head(*item) if unit == "head" else Edge(*item) for item in items.tolist()]
    ablation = Ablation(kept, kind, reference=reference_prompts(one, kind), keep_only=True)
    run = one.model().run(list(one.task.clean), record="all", ablate=ablation)
    for i, tokens in enumerate(one.task.clean):
        masks = {oc.UNITS[unit]: oc.mask_of(one.config, unit, T, items, 1.0)}
        fill = one.ask(oc.of_edges, fills(one, kind, i))
        compare(run[i], oc.forward(one.config, one.weights, tokens, masks, fill), 1e-9)


@each_config
@pytest.mark.parametrize("which", [name for name in KINDS if "edges" not in name and name != "mixed"])
def test_patches(name, which):
    one = case(name)
    rng, items = np.random.default_rng(0), items_of(one.config)[which]
    fill = {
        place: np.zeros_like(v) for place, v in oc.record(one.config, one.weights, one.task.clean[0]).items()
    }
    patch = {}
    for item in items:
        place, index = place_of(item)
        patch[item] = rng.standard_normal(fill[place][index].shape)
        fill[place][index] = patch[item]
    run = one.model().run(one.task.clean[0], record="all", patch=patch)
    masks = masks_without(one.config, items)
    compare(run, oc.forward(one.config, one.weights, one.task.clean[0], masks, fill), 1e-9)


def test_a_patch_with_its_own_value_changes_nothing():
    one = case("gated")
    model = one.model()
    run = model.run(one.task.clean[0], record="all")
    patch = {Head(1, 2): run.z[1, :, 2], Mlp(0): run.mlp_out[0], Resid(1, 3, "mid"): run.resid_mid[1, 3]}
    again = model.run(one.task.clean[0], record="all", patch=patch)
    assert error(again.logits, run.logits) < 1e-12


@pytest.mark.parametrize("unit", oc.UNITS)
@each_ablation
@each_dtype
def test_sweeps_are_plain_runs(unit, kind, dtype):
    """knock_out and keep_only of effects.py are runs with `ablate`, one after the other."""
    one = case("gated", seed=3)
    model, items = one.model(dtype), one.ask(oc.candidates, unit)[::4]
    make = {"head": Head, "head_position": HeadPosition, "edge": Edge}[unit]
    listed = [make(*item) for item in items.tolist()]
    prompts, reference = list(one.task.clean), None if kind == "zero" else list(one.task.corrupted)
    if kind == "mean":
        reference = prompts

    def metric(ablation):
        run = model.run(prompts, record=(), logits="last", ablate=ablation)
        logits = np.stack([np.float64(run[i].logits) for i in range(len(prompts))]).reshape(len(prompts), -1)
        return asp.tasks.metric(logits, one.task)

    tolerance = 1e-5 if dtype == "float32" else 1e-12
    found = effects.knock_out(model, one.task, items, kind)
    expected = np.array([metric(Ablation([item], kind, reference=reference)) for item in listed])
    assert error(found, expected) < tolerance
    if unit != "head_position":
        found = effects.keep_only(model, one.task, items, [0, 2, len(items)], kind)
        sets = [Ablation(listed[:n], kind, reference=reference, keep_only=True) for n in (2, len(items))]
        assert error(found[1:], np.array([metric(one_set) for one_set in sets])) < tolerance


@pytest.mark.parametrize("text", ["L1H2", "1.2", (1, 2), Head(1, 2)])
def test_heads_in_every_writing(text):
    one = case("gated")
    model = one.model()
    expected = model.run(one.task.clean[0], ablate=[Head(1, 2)]).logits
    np.testing.assert_array_equal(model.run(one.task.clean[0], ablate=[text]).logits, expected)
    assert error(model.run(one.task.clean[0]).logits, expected) > 1e-3


@pytest.mark.parametrize("text", ["a1.h2[0->3]", (1, 2, 3, 0), Edge(1, 2, 3, 0)])
def test_edges_in_every_writing(text):
    one = case("dense")
    model = one.model()
    expected = model.run(one.task.clean[0], ablate=[Edge(1, 2, 3, 0)]).logits
    np.testing.assert_array_equal(model.run(one.task.clean[0], ablate=[text]).logits, expected)
    assert error(model.run(one.task.clean[0]).logits, expected) > 1e-3


@pytest.mark.parametrize("item", ["L1H2", Head(1, 2), "a1.h2[0->3]", HeadPosition(1, 2, 0), Mlp(1)])
def test_one_item_without_a_list(item):
    one = case("gated")
    model, prompt = one.model(), one.task.clean[0]
    for kind in ("zero", "mean"):
        reference = None if kind == "zero" else [prompt, one.task.corrupted[0]]
        alone, listed = (
            model.run(prompt, ablate=Ablation(items, kind, reference)).logits for items in (item, [item])
        )
        np.testing.assert_array_equal(alone, listed)


def test_the_same_bits_for_any_number_of_threads():
    one = case("gated")
    model, items = one.model("float32"), items_of(one.config)["mixed"]
    ablation = Ablation(items, "mean", reference=list(one.task.corrupted))
    runs = [model.run(list(one.task.clean), record="all", ablate=ablation, threads=n) for n in (1, 2, 3)]
    for name in (*COMPARED, "pattern"):
        for i in range(len(one.task)):
            first = getattr(runs[0][i], name)
            assert not first.flags.writeable
            for run in runs[1:]:
                np.testing.assert_array_equal(getattr(run[i], name), first)


@each_config
def test_run_with_cache_takes_what_run_takes(name):
    """Every hook of a changed run is the array of `run` with the same changes."""
    one = case(name)
    model, prompts = one.model(), list(one.task.clean)
    items = items_of(one.config)["mixed"]
    ablation = Ablation(items, "mean", reference=list(one.task.corrupted))
    patch = {Resid(0, 2, "mid"): np.ones(one.config["d_model"])}
    logits, cache = model.run_with_cache(prompts, ablate=ablation, patch=patch)
    run = model.run(prompts, record="all", ablate=ablation, patch=patch)
    np.testing.assert_array_equal(logits, run.logits)
    assert error(logits, model.run(prompts).logits) > 1e-3
    for layer in range(one.config["n_layer"]):
        for hook, array in (("attn.hook_z", run.z), ("attn.hook_pattern", run.pattern)):
            np.testing.assert_array_equal(cache[f"blocks.{layer}.{hook}"], array[:, layer])
        np.testing.assert_array_equal(cache["mlp_out", layer], run.mlp_out[:, layer])
        np.testing.assert_array_equal(cache["resid_mid", layer], run.resid_mid[:, layer])


@each_config
def test_several_ablations_of_different_kinds(name):
    one = case(name)
    last = one.config["n_layer"] - 1
    kinds = {Head(0, 0): "zero", Mlp(0, 2): "mean", Edge(last, 0, 3, 1): "counterfactual", Mlp(last): "mean"}
    reference = list(one.task.corrupted)
    listed = [Ablation(item, kind, None if kind == "zero" else reference) for item, kind in kinds.items()]
    run = one.model().run(list(one.task.clean), "all", ablate=listed)
    plain = one.model().run(list(one.task.clean), "all", ablate=[Head(0, 0), *listed[1:]])
    for i, tokens in enumerate(one.task.clean):
        masks, fill = masks_without(one.config, kinds), fills(one, "zero", i)
        fill = {place: np.array(array, float) for place, array in fill.items()}
        for item, kind in kinds.items():
            place, index = place_of(item)
            fill[place][index] = fills(one, kind, i)[place][index]
        compare(run[i], oc.forward(one.config, one.weights, tokens, masks, fill), 1e-9)
        np.testing.assert_array_equal(plain[i].logits, run[i].logits)


def test_of_several_ablations_of_one_place_the_last_counts():
    one = case("gated")
    model, prompts = one.model(), list(one.task.clean)
    mean = Ablation(["L0H0", "a1.h0[1->3]"], "mean", list(one.task.corrupted))
    for ablate, expected in (
        ([mean, "L0H0", "a1.h0[1->3]"], ["L0H0", "a1.h0[1->3]"]),
        ([Ablation(["L0H0", "a1.h0[1->3]"]), mean], mean),
    ):
        found = model.run(prompts, ablate=ablate).logits
        np.testing.assert_array_equal(found, model.run(prompts, ablate=expected).logits)


@each_config
def test_patches_with_one_value_per_prompt(name):
    one = case(name)
    model, prompts, c = one.model(), list(one.task.clean), one.config
    rng, last = np.random.default_rng(0), one.config["n_layer"] - 1
    patch = {
        Head(0, 0): rng.standard_normal((3, T, c["d_head"])),
        HeadPosition(last, 0, 2): rng.standard_normal((3, c["d_head"])),
        Edge(last, 0, 3, 1): rng.standard_normal((3, c["d_head"])),
        Mlp(0, -1): rng.standard_normal((3, c["d_model"])),
        Resid(last, None, "mid"): rng.standard_normal((3, T, c["d_model"])),
        Mlp(last): rng.standard_normal((T, c["d_model"])),  # the same for all
    }
    run = model.run(prompts, "all", patch=patch)
    listed = model.run(prompts, "all", patch={item: list(v) for item, v in patch.items()})
    for i, tokens in enumerate(prompts):
        own = {item: v if item == Mlp(last) else v[i] for item, v in patch.items()}
        alone = model.run(tokens, "all", patch=own)
        assert error(run[i].logits, alone.logits) < 1e-12
        np.testing.assert_array_equal(listed[i].logits, run[i].logits)
        np.testing.assert_array_equal(run[i].mlp_out[last], patch[Mlp(last)])
        np.testing.assert_array_equal(run[i].resid_mid[last], patch[Resid(last, None, "mid")][i])
        if last:
            np.testing.assert_array_equal(run[i].mlp_out[0, -1], patch[Mlp(0, -1)][i])
            np.testing.assert_array_equal(run[i].z[0, :, 0], patch[Head(0, 0)][i])


def test_patches_of_prompts_of_different_lengths():
    one = case("gated", (5, 1, 3))
    model, prompts, c = one.model(), list(one.task.clean), one.config
    values = [np.full((t, c["d_model"]), i + 1.0) for i, t in enumerate((5, 1, 3))]
    run = model.run(prompts, "all", patch={Mlp(1): values, Resid(0, -1): np.ones(c["d_model"])})
    for i in range(3):
        np.testing.assert_array_equal(run[i].mlp_out[1], values[i])
        np.testing.assert_array_equal(run[i].resid_pre[0, -1], np.ones(c["d_model"]))
    with pytest.raises(
        ValueError, match=r"a list of 3 arrays, one for each prompt, of shapes \(5, 8\), \(1, 8\)"
    ):
        model.run(prompts, patch={Mlp(1): values[:2]})


@each_config
@pytest.mark.parametrize("lengths", [(5, 5, 5), (5, 1, 3)])
def test_added_values(name, lengths):
    """Steering vectors, against the oracle."""
    one = case(name, lengths)
    c, last, rng = one.config, one.config["n_layer"] - 1, np.random.default_rng(0)
    vectors = {place: rng.standard_normal(c["d_model"]) for place in ("mlp", "mid", "post")}
    z = rng.standard_normal(c["d_head"])
    patch = {
        HeadPosition(last, 0, -1): asp.Add(z),
        Mlp(0): asp.Add(vectors["mlp"]),
        Resid(last, 0, "mid"): asp.Add(vectors["mid"]),
        Resid(last, -1, "post"): asp.Add([vectors["post"]] * 3),
    }
    run = one.model().run(list(one.task.clean), "all", patch=patch)

    def change(name, value):
        value = value.copy()
        if name == f"blocks.{last}.attn.hook_z":
            value[-1, 0] += z
        if name == "blocks.0.hook_mlp_out":
            value += vectors["mlp"]
        if name == f"blocks.{last}.hook_resid_mid":
            value[0] += vectors["mid"]
        if name == f"blocks.{last}.hook_resid_post":
            value[-1] += vectors["post"]
        return value

    for i, tokens in enumerate(one.task.clean):
        expected = oracle_hooks.forward(c, one.weights, tokens, change)
        assert error(run[i].logits, expected["logits"]) < 1e-9
        assert error(run[i].mlp_out[0], expected["blocks.0.hook_mlp_out"]) < 1e-9


def test_values_are_added_in_the_order_of_the_patch():
    one = case("gated")
    model, tokens, ones = one.model(), one.task.clean[0], np.ones(one.config["d_model"])
    patch = {Mlp(0): np.zeros((T, len(ones))), Mlp(0, 2): asp.Add(ones), Mlp(0, -3): asp.Add(2 * ones)}
    run = model.run(tokens, "all", patch=patch)
    np.testing.assert_array_equal(run.mlp_out[0, 2], 3 * ones)
    np.testing.assert_array_equal(run.resid_pre[1, 2], run.resid_mid[0, 2] + ones + 2 * ones)
    again = model.run(tokens, "all", ablate=[Mlp(0)], patch={Mlp(0, 2): asp.Add(3 * ones)})
    assert error(again.logits, run.logits) < 1e-12
    with pytest.raises(TypeError, match=r"nothing can be added to a0.h0\[1->3\]"):
        model.run(tokens, patch={"a0.h0[1->3]": asp.Add(ones)})
    with pytest.raises(ValueError, match=r"must have shape \(5, 8\), got \(4,\)"):
        model.run(tokens, patch={Mlp(0): asp.Add(np.ones(4))})


@pytest.mark.parametrize("item", [Mlp(0, 2), Resid(1, 2, "mid"), Resid(1, None)])
def test_mlps_and_streams_at_positions(item):
    """One position is what the whole has there; the others stay."""
    one = case("gated")
    model, prompts = one.model(), list(one.task.clean)
    ablation = Ablation(item, "mean", reference=list(one.task.corrupted))
    run = model.run(prompts, "all", ablate=ablation)
    places = [2] if item.position is not None else range(T)
    for i, tokens in enumerate(prompts):
        masks = {}
        for at in places:
            place, index = (
                ("mlp_out", (0, at)) if isinstance(item, Mlp) else place_of(item._replace(position=at))
            )
            masks.setdefault(place, np.ones((one.config["n_layer"], T)))[index] = 0
        expected = oc.forward(one.config, one.weights, tokens, masks, fills(one, "mean", i))
        compare(run[i], expected, 1e-9)


def test_nothing_is_remembered():
    one = case("gated")
    model = one.model()
    before = model.run(one.task.clean[0]).logits.copy()
    model.run(one.task.clean[0], ablate=["L0H0"])
    np.testing.assert_array_equal(model.run(one.task.clean[0]).logits, before)


def test_recorded_patterns_are_those_that_are_used():
    one = case("gated")
    run = one.model().run(one.task.clean[0], record="all", ablate=items_of(one.config)["edges"])
    expected = oc.forward(one.config, one.weights, one.task.clean[0])["pattern"][0].copy()
    for layer, head, query, key in items_of(one.config)["edges"]:
        assert run.pattern[layer, head, query, key] == 0
        if layer == 0:
            expected[head, query, key] = 0
    assert error(run.pattern[0], expected) < 1e-12
    z = np.einsum("lhqk,lkhd->lqhd", run.pattern, run.v)
    assert error(z, run.z) < 1e-12


def test_prompts_of_different_lengths():
    one = case("gated", (5, 1, 3))
    model, prompts = one.model(), list(one.task.clean)
    for ablation in (["L0H0"], Ablation(["L0H0"], "counterfactual", list(one.task.corrupted))):
        run = model.run(prompts, ablate=ablation)
        for i, tokens in enumerate(prompts):
            kind = "zero" if isinstance(ablation, list) else "counterfactual"
            mask = np.ones((one.config["n_layer"], one.config["n_head"], len(tokens)))
            mask[0, 0] = 0
            fill = one.ask(oc.reference_for, i, kind)
            expected = oc.forward(one.config, one.weights, tokens, {"z": mask}, fill)["logits"]
            assert error(run[i].logits, expected) < 1e-12


# ------------------------------------------------------------------------------------ wrong arguments

PROMPTS = [[1, 2, 3, 4, 5]] * 3
WRONG_ABLATIONS = {
    "layer": (IndexError, "L2H0", lambda: ["L2H0"]),
    "head": (IndexError, "L0H3", lambda: [(0, 3)]),
    "head below 0": (IndexError, "L0H-1", lambda: [Head(0, -1)]),
    "position of no head": (IndexError, "L-1H0", lambda: [HeadPosition(-1, 0, 1)]),
    "head by text": (TypeError, "layer must be an integer", lambda: [Head("a", 1)]),
    "head yes or no": (TypeError, "head must be an integer", lambda: [Head(0, True)]),
    "edge looks forward": (ValueError, "key 3 comes after query 1", lambda: [Edge(0, 0, 1, 3)]),
    "edge below 0": (IndexError, r"positions 0\.\.4", lambda: [Edge(0, 0, 1, -1)]),
    "edge of halves": (TypeError, "query must be an integer", lambda: [Edge(0, 0, 1.5, 1)]),
    "keep a head below 0": (IndexError, "L0H-1", lambda: Ablation(Head(0, -1), keep_only=True)),
    "keep a forward edge": (ValueError, "key 3 comes", lambda: Ablation([Edge(0, 0, 1, 3)], keep_only=True)),
    "a mapping": (TypeError, "goes to patch=", lambda: {"L0H0": 0}),
    "a mapping inside": (TypeError, "goes to patch=", lambda: Ablation({"L0H0": 0})),
    "an mlp as text": (ValueError, r"'m3' is not a head.*an MLP is asp\.Mlp\(3\)", lambda: "m3"),
    "no head": (ValueError, "is not a head", lambda: ["x"]),
    "a number": (TypeError, "an item must be a Head", lambda: [3]),
    "a number alone": (TypeError, "ablate must be", lambda: 3),
    "an ablation in an ablation": (TypeError, "an item must be a Head", lambda: Ablation([Ablation("L0H0")])),
    "one bad of several": (IndexError, "L7H0", lambda: [Ablation("L0H0"), Ablation("L7H0")]),
    "a triple": (TypeError, "an item must be a Head", lambda: [(0, 0, 0)]),
    "negative": (ValueError, "must be at least 0", lambda: [(0, -1)]),
    "key after query": (ValueError, "key 3 comes after query 1", lambda: ["a0.h0[3->1]"]),
    "query beyond": (IndexError, r"positions 0\.\.4", lambda: ["a0.h0[1->5]"]),
    "position beyond": (IndexError, "position 5", lambda: [HeadPosition(0, 0, 5)]),
    "position no number": (TypeError, "position must be an integer", lambda: [HeadPosition(0, 0, 1.5)]),
    "mlp beyond": (IndexError, "layer 2", lambda: [Mlp(2)]),
    "mlp by text": (TypeError, "layer must be an integer", lambda: [Mlp("0")]),
    "stream at zero": (ValueError, "residual stream", lambda: [Resid(0, 1)]),
    "kind": (ValueError, "ablation must be one of", lambda: Ablation(["L0H0"], "none")),
    "mean of nothing": (ValueError, "needs reference prompts", lambda: Ablation(["L0H0"], "mean")),
    "zero of something": (ValueError, "takes no reference", lambda: Ablation(["L0H0"], "zero", PROMPTS)),
    "short reference": (ValueError, "one length", lambda: Ablation(["L0H0"], "mean", [[1, 2, 3]])),
    "few references": (
        ValueError,
        "one reference prompt",
        lambda: Ablation(["L0H0"], "counterfactual", PROMPTS[:2]),
    ),
    "reference no prompts": (TypeError, "reference|prompts", lambda: Ablation(["L0H0"], "counterfactual", 5)),
    "keep two kinds": (ValueError, "one kind", lambda: Ablation(["L0H0", "a0.h0[0->1]"], keep_only=True)),
    "keep an mlp": (ValueError, "one kind", lambda: Ablation([Mlp(0)], keep_only=True)),
    "keep nothing": (ValueError, "keep_only", lambda: Ablation([], keep_only=True)),
}
WRONG_PATCHES = {
    "width": (ValueError, "must have shape", {"L0H0": np.zeros((5, 4))}),
    "tokens": (ValueError, "must have shape", {"L0H0": np.zeros((4, 5))}),
    "one position": (ValueError, "must have shape", {HeadPosition(0, 0, 1): np.zeros(4)}),
    "mlp": (ValueError, "must have shape", {Mlp(0): np.zeros((5, 7))}),
    "stream": (ValueError, "must have shape", {Resid(0, 1): np.zeros(7)}),
    "text": (TypeError, "real numbers", {"L0H0": "x"}),
    "nothing": (TypeError, "real numbers", {"L0H0": None}),
    "a list": (TypeError, "mapping", [("L0H0", 0)]),
    "too many prompts": (ValueError, "got \\(2, 7\\)", {Mlp(0, 1): np.zeros((2, 7))}),
    "mlp at a position beyond": (IndexError, "position 5", {Mlp(0, 5): np.zeros(8)}),
    "mlp at half a position": (TypeError, "position must be an integer", {Mlp(0, 0.5): np.zeros(8)}),
    "beyond": (IndexError, "L2H0", {"L2H0": np.zeros((5, 5))}),
    "below 0": (IndexError, "L0H-1", {Head(0, -1): np.zeros((5, 5))}),
    "forward": (ValueError, "key 3 comes after query 1", {Edge(0, 0, 1, 3): np.zeros(5)}),
}
BARE = ("not iterable", "has no attribute", "inhomogeneous", "too big to convert")


@pytest.mark.parametrize(("kind", "text", "make"), WRONG_ABLATIONS.values(), ids=WRONG_ABLATIONS)
def test_wrong_ablations(kind, text, make):
    one = case("gated")
    with pytest.raises(kind, match=text) as found:
        one.model().run(PROMPTS, ablate=make())
    assert not any(bare in str(found.value) for bare in BARE)


@pytest.mark.parametrize(("kind", "text", "patch"), WRONG_PATCHES.values(), ids=WRONG_PATCHES)
def test_wrong_patches(kind, text, patch):
    one = case("gated")
    with pytest.raises(kind, match=text):
        one.model().run(PROMPTS, patch=patch)
