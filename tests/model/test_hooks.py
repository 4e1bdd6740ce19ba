"""Model.run_with_hooks against the oracle at every hook, and against ablate= and patch=."""

import threading

import numpy as np
import oracle
import oracle_hooks as oh
import pytest
from circuit_cases import CONFIGS, TOLERANCE, case, error

import attnsparse as asp
from attnsparse.model import hook_names
from attnsparse.model.hooks import PLACES
from attnsparse.model.transformer_lens import BLOCK_HOOKS, OTHER_HOOKS

each_config = pytest.mark.parametrize("name", CONFIGS)
T = 5


def everywhere(function):
    return [(lambda name: True, function)]


def looks_back(shape):
    return np.broadcast_to(np.tri(shape[-1], dtype=bool), shape)


def changed(name, value, rng):
    """Another value that is allowed at this hook."""
    if name.endswith("sparse_mask"):
        return (rng.random(value.shape) < 0.6) & looks_back(value.shape)
    noise = 0.3 * rng.standard_normal(value.shape)
    if name.endswith("hook_scale"):
        return value * np.exp(noise)
    if name.endswith("attn_scores"):
        closed = (rng.random(value.shape) < 0.3) & ~np.eye(value.shape[-1], dtype=bool)
        return np.where(looks_back(value.shape) & ~closed, value + noise, -np.inf)
    if name.endswith("hook_pattern"):
        return np.where(looks_back(value.shape), value + noise, 0)
    return value + noise


def replaced(one, names, dtype="float64", prompts=None, **options):
    """A run whose hooks `names` are replaced at random, and what the oracle says of each prompt."""
    rng = np.random.default_rng(3)
    prompts = list(one.task.clean) if prompts is None else prompts
    values = {}

    def draw(i, name, value):
        values[i, name] = changed(name, value, rng) if name in names else value
        return values[i, name]

    expected = [
        oh.forward(one.config, one.weights, tokens, lambda name, value, i=i: draw(i, name, value))
        for i, tokens in enumerate(prompts)
    ]

    def put(value, hook):
        return np.stack([values[i, hook.name] for i in hook.prompts])

    run = one.model(dtype).run_with_hooks(prompts, [(name, put) for name in names], "all", **options)
    return run, expected


def compare(run, expected, names, tolerance):
    """Logits of every prompt, and that every activation is recorded as it was replaced or computed."""
    for i, one in enumerate(expected):
        assert error(np.float64(run[i].logits), one["logits"]) < tolerance
        for name in names:
            found, value = recorded(run[i], name), one[name]
            if value.dtype == bool:
                np.testing.assert_array_equal(found, value)
            else:
                finite = np.isfinite(value)
                np.testing.assert_array_equal(np.isfinite(found), finite)
                assert error(np.float64(found[finite]), value[finite]) < tolerance, name


def recorded(run, name):
    """An activation of a run of one prompt by its hook name, shaped as in the oracle."""
    _, layer, end = name.split(".", 2) if name.startswith("blocks.") else ("", None, name)
    array = getattr(run, OTHER_HOOKS[end] if layer is None else BLOCK_HOOKS[end])
    array = array if layer is None else array[int(layer)]
    return array[..., None] if end.endswith("hook_scale") else array


def test_all_hooks_are_in_the_order_of_the_core():
    names = hook_names(1)
    assert set(names) == {
        name if name.startswith(("hook_embed", "hook_pos", "ln_final")) else f"blocks.0.{name}"
        for name in PLACES
    }
    seen = []
    case("one layer, untied").model().run_with_hooks(
        [1, 2], everywhere(lambda v, hook: seen.append(hook.name))
    )
    assert len(seen) == len(names)
    assert seen == oh.names({"n_layer": 1})


@each_config
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", [(5, 5, 5), (5, 1, 3)])
def test_functions_that_change_nothing_change_no_bit(name, dtype, lengths):
    one = case(name, lengths)
    model, prompts = one.model(dtype), list(one.task.clean)
    plain = model.run(prompts, ["all", "edges"])
    answers = [
        lambda v, hook: None,
        lambda v, hook: v,
        lambda v, hook: v.copy(),
        lambda v, hook: np.float64(v),
    ]
    for answer in answers:
        run = model.run_with_hooks(prompts, everywhere(answer), ["all", "edges"])
        for i in range(len(prompts)):
            assert run[i].recorded == plain[i].recorded
            for array in plain[i].recorded:
                if array != "edges":
                    np.testing.assert_array_equal(getattr(run[i], array), getattr(plain[i], array), array)
            for found, expected in zip(run[i].edge_arrays(), plain[i].edge_arrays()):
                np.testing.assert_array_equal(found, expected)
        alone = model.run_with_hooks(prompts, everywhere(answer), record="none")
        for i in range(len(prompts)):
            np.testing.assert_array_equal(alone[i].logits, plain[i].logits)


@each_config
def test_functions_see_what_is_recorded(name):
    """And what the oracle says is there."""
    one = case(name)
    seen = {}

    def see(value, hook):
        seen[hook.name] = value

    one.model().run_with_hooks(list(one.task.clean), everywhere(see), record="none")
    _, cache = one.model().run_with_cache(list(one.task.clean))
    assert sorted(seen) == sorted(cache)
    for hook in cache:
        np.testing.assert_array_equal(seen[hook], cache[hook], hook)


@each_config
@pytest.mark.parametrize("place", range(len(PLACES)))
def test_each_hook_replaced(name, place):
    one = case(name)
    every = [hook for hook in hook_names(one.config["n_layer"]) if hook.endswith(PLACES[place])]
    for hook in every:
        run, expected = replaced(one, [hook])
        compare(run, expected, after(one, hook), 1e-9)
        plain = one.model().run(list(one.task.clean)).logits
        if name != "all closed":
            assert error(run.logits, plain) > 1e-4


def after(one, hook):
    """Hooks that are computed after this one, and it."""
    names = oh.names(one.config)
    later = names[names.index(hook) :]
    # what is one array here and two names in the oracle, between two layers
    return [name for name in later if "resid_post" not in name]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", [(5, 5, 5), (5, 1, 3)])
@each_config
def test_all_hooks_replaced_at_once(name, dtype, lengths):
    one = case(name, lengths)
    names = [hook for hook in oh.names(one.config) if "resid_post" not in hook]
    run, expected = replaced(one, names, dtype)
    compare(run, expected, names, TOLERANCE[dtype])
    again, _ = replaced(one, names, dtype, threads=1)
    for i in range(len(lengths)):
        np.testing.assert_array_equal(again[i].logits, run[i].logits)


def test_nothing_recorded_is_the_same_run():
    """What is held for one layer at a time gives the bits of what is recorded."""
    one = case("dense", (5, 4, 3))
    names = [hook for hook in oh.names(one.config) if "resid_post" not in hook]
    rng = np.random.default_rng(0)
    values = {}

    def put(value, hook):
        key = hook.name, hook.prompts.start
        if key not in values:
            values[key] = changed(hook.name, value, rng)
        return values[key]

    hooks = [(name, put) for name in names]
    whole = one.model().run_with_hooks(list(one.task.clean), hooks, "all")
    alone = one.model().run_with_hooks(list(one.task.clean), hooks, "none", logits="last")
    for i in range(3):
        np.testing.assert_array_equal(alone[i].logits, whole[i].logits[-1])


# --------------------------------------------------------------------------- beside ablate= and patch=


@each_config
def test_a_hook_is_a_patch(name):
    one = case(name)
    model, tokens, last = one.model("float32"), one.task.clean[0], one.config["n_layer"] - 1
    rng = np.random.default_rng(0)
    z = rng.standard_normal((T, one.config["d_head"])).astype(np.float32)
    row = rng.standard_normal((T, one.config["d_model"])).astype(np.float32)

    def put_z(value, hook):
        value[0, :, 0] = z

    def put_row(value, hook):
        return row[None]

    def put_position(value, hook):
        value[0, 2] = row[2]

    pairs = [
        ([("z", last), put_z], {asp.Head(last, 0): z}),
        ([("mlp_out", 0), put_row], {asp.Mlp(0): row}),
        ([("resid_mid", last), put_position], {asp.Resid(last, 2, "mid"): row[2]}),
        ([("resid_pre", 0), put_position], {asp.Resid(0, 2): row[2]}),
        ([("resid_post", last), put_position], {asp.Resid(last, 2, "post"): row[2]}),
    ]
    plain = model.run(tokens).logits
    for hook, patch in pairs:
        found = model.run_with_hooks(tokens, [hook]).logits
        np.testing.assert_array_equal(found, model.run(tokens, patch=patch).logits)
        assert np.abs(found - plain).max() > 1e-3


@each_config
def test_a_hook_is_an_ablation(name):
    one = case(name)
    model, prompts = one.model("float32"), list(one.task.clean)

    def no_head(value, hook):
        value[:, :, 0] = 0

    def no_mlp(value, hook):
        return np.zeros_like(value)

    def no_edge(value, hook):
        value[:, 0, 3, 1] = 0

    for hook, item in ((("z", 0), "L0H0"), (("mlp_out", 0), asp.Mlp(0)), (("pattern", 0), "a0.h0[1->3]")):
        function = {"z": no_head, "mlp_out": no_mlp, "pattern": no_edge}[hook[0]]
        found = model.run_with_hooks(prompts, [(hook, function)], "all")
        expected = model.run(prompts, "all", ablate=[item])
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(found.pattern, expected.pattern)


def test_functions_come_after_ablations_and_patches():
    one = case("gated")
    model, tokens = one.model(), one.task.clean[0]
    value = np.ones((T, one.config["d_model"]))
    patch = {asp.Mlp(0): value, asp.Resid(1, 2, "mid"): value[0], asp.Head(0, 1): np.ones((T, 5))}
    ablate = ["a0.h0[1->3]"]
    seen = {}

    def double(value, hook):
        seen[hook.name] = value.copy()
        value *= 2

    names = ["hook_mlp_out", "attn.hook_z", "attn.hook_pattern"]
    hooks = [(f"blocks.0.{name}", double) for name in names] + [("blocks.1.hook_resid_mid", double)]
    run = model.run_with_hooks(tokens, hooks, "all", ablate=ablate, patch=patch)
    np.testing.assert_array_equal(seen["blocks.0.hook_mlp_out"][0], value)
    np.testing.assert_array_equal(seen["blocks.0.attn.hook_z"][0, :, 1], np.ones((T, 5)))
    np.testing.assert_array_equal(seen["blocks.1.hook_resid_mid"][0, 2], value[0])
    assert seen["blocks.0.attn.hook_pattern"][0, 0, 3, 1] == 0
    np.testing.assert_array_equal(run.mlp_out[0], 2 * value)
    np.testing.assert_array_equal(run.resid_pre[1], run.resid_mid[0] + 2 * value)
    np.testing.assert_array_equal(run.resid_mid[1, 2], 2 * value[0])
    np.testing.assert_array_equal(run.pattern[0], 2 * seen["blocks.0.attn.hook_pattern"][0])


def test_a_patched_mlp_is_added_to_a_changed_stream():
    one = case("gated")
    model, tokens = one.model(), one.task.clean[0]
    value = np.ones((T, one.config["d_model"]))
    run = model.run_with_hooks(
        tokens, [(("resid_mid", 0), lambda v, hook: 3 * v)], "all", patch={asp.Mlp(0): value}
    )
    np.testing.assert_array_equal(run.resid_pre[1], run.resid_mid[0] + value)


# ------------------------------------------------------------------------------------ calls


def test_shapes_and_prompts():
    one = case("gated", (5, 1, 3))
    c, model = one.config, one.model()
    shapes = {}

    def see(value, hook):
        shapes.setdefault(hook.name, []).append((hook.prompts, value.shape))

    model.run_with_hooks([list(p) for p in one.task.clean], everywhere(see))
    heads = c["n_head"]
    width = {
        "attn.hook_z": (heads, c["d_head"]),
        "attn.hook_result": (heads, c["d_model"]),
        "hook_mlp_out": (c["d_model"],),
    }
    for i, t in enumerate((5, 1, 3)):
        for end, tail in width.items():
            assert shapes[f"blocks.1.{end}"][i] == (range(i, i + 1), (1, t, *tail))
        assert shapes["blocks.0.attn.hook_pattern"][i] == (range(i, i + 1), (1, c["n_head"], t, t))
        assert shapes["ln_final.hook_scale"][i] == (range(i, i + 1), (1, t, 1))
    shapes.clear()
    model.run_with_hooks([[1, 2], [3, 4]], everywhere(see))
    assert shapes["blocks.0.attn.hook_q"] == [(range(2), (2, 2, c["n_head"], c["d_head"]))]
    shapes.clear()
    model.run_with_hooks([1, 2], [("hook_embed", see)])
    assert shapes == {"hook_embed": [(range(1), (1, 2, c["d_model"]))]}


def test_prompts_of_other_lengths_are_runs_of_their_own():
    one = case("gated", (5, 1, 3))
    model, prompts = one.model(), list(one.task.clean)

    def shrink(value, hook):
        return value * 0.5

    hooks = [(("z", 0), shrink), (("resid_mid", 1), shrink)]
    run = model.run_with_hooks(prompts, hooks)
    for i, tokens in enumerate(prompts):
        assert error(run[i].logits, model.run_with_hooks(tokens, hooks).logits) < 1e-12


def test_names_filters_and_order():
    one = case("gated")
    model, tokens, seen = one.model(), one.task.clean[0], []

    def first(value, hook):
        seen.append(("first", hook.name, hook.layer()))
        return value + 1

    def second(value, hook):
        seen.append(("second", hook.name, hook.layer()))
        return value * 2

    run = model.run_with_hooks(tokens, [(("z", -1), first), ("blocks.1.attn.hook_z", second)], "z")
    assert seen == [("first", "blocks.1.attn.hook_z", 1), ("second", "blocks.1.attn.hook_z", 1)]
    np.testing.assert_array_equal(run.z[1], (model.run(tokens, "z").z[1] + 1) * 2)
    seen.clear()
    same = model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith("hook_z"), first)])
    assert [name for _, name, _ in seen] == ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]
    np.testing.assert_array_equal(
        same.logits, model.run_with_hooks(tokens, {("z", 0): first, ("z", 1): first}).logits
    )
    with pytest.raises(ValueError, match="belongs to no layer"):
        model.run_with_hooks(tokens, [("hook_embed", lambda value, hook: hook.layer())])
    assert "blocks.0.hook_mlp_out" in repr(asp.model.HookPoint("blocks.0.hook_mlp_out", range(2), range(3)))


def test_an_array_may_be_kept_and_changed_later():
    one = case("gated")
    model, tokens, kept = one.model(), one.task.clean[0], []
    run = model.run_with_hooks(tokens, everywhere(lambda value, hook: kept.append(value)), "all")
    before = run.z.copy()
    for array in kept:
        array[...] = 0
    np.testing.assert_array_equal(run.z, before)
    assert not run.z.flags.writeable


def test_a_function_may_run_the_model():
    one = case("gated")
    model, tokens = one.model(), one.task.clean[0]
    clean = model.run(one.task.clean[1], "z").z

    def put(value, hook):
        return model.run(one.task.clean[1], "z").z[None, hook.layer()]

    run = model.run_with_hooks(tokens, [(("z", 0), put)], "z")
    np.testing.assert_array_equal(run.z[0], clean[0])


def test_a_function_may_not_change_the_weights():
    one = case("gated")
    model = one.model()
    weights = {"ln_f.weight": np.ones(one.config["d_model"])}
    with pytest.raises(RuntimeError, match="in use"):
        model.run_with_hooks([1, 2], [("hook_embed", lambda value, hook: model.assign(weights))])
    model.assign(weights)


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt, MemoryError, StopIteration])
def test_what_a_function_raises_is_raised(kind):
    one = case("gated", (5, 1, 3))
    raised, calls = kind("mine"), []

    def fail(value, hook):
        calls.append(hook.prompts)
        if len(calls) == 2:
            raise raised

    with pytest.raises(kind) as caught:
        one.model().run_with_hooks(list(one.task.clean), everywhere(fail))
    assert caught.value is raised
    assert len(calls) == 2
    one.model().run_with_hooks([1, 2], [("hook_embed", lambda value, hook: None)])


def test_runs_in_threads_do_not_disturb_each_other():
    one = case("gated")
    model, tokens = one.model(), one.task.clean[0]
    expected = [
        model.run_with_hooks(tokens, [(("z", 0), lambda v, hook, i=i: v * i)]).logits for i in range(4)
    ]
    found = [None] * 4

    def work(i):
        for _ in range(20):
            found[i] = model.run_with_hooks(tokens, [(("z", 0), lambda v, hook: v * i)], threads=2).logits

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(found[i], expected[i])


# ---------------------------------------------------------------------------------- wrong arguments

WRONG_HOOKS = {
    "nothing": (ValueError, "give hooks=", None),
    "a text": (TypeError, "pairs", "hook_embed"),
    "a name": (TypeError, "pairs", ["hook_embed"]),
    "a triple": (TypeError, "pairs", [("hook_embed", 1, 2)]),
    "no function": (TypeError, "needs a function of", [("hook_embed", 3)]),
    "unknown": (ValueError, r"did you mean 'blocks\.0\.attn\.hook_z'", [("blocks.0.attn.hook_zz", id)]),
    "layer": (ValueError, r"unknown hook 'blocks\.7\.attn\.hook_z'", [("blocks.7.attn.hook_z", len)]),
    "layer of a pair": (ValueError, "layer must be an integer", [(("z", 7), len)]),
    "number": (ValueError, "a key must be a hook name", [(3, len)]),
    "input of q": (ValueError, "attn.hook_q, or circuits.path_patch", [("blocks.0.hook_q_input", len)]),
    "rotated": (ValueError, "no query is rotated", [("blocks.0.attn.hook_rot_q", len)]),
    "filter": (ValueError, "matches no hook", [(lambda name: False, len)]),
}  # fmt: skip
Z, SCORES, MASK, PATTERN = (
    f"blocks.0.attn.hook_{name}" for name in ("z", "attn_scores", "sparse_mask", "pattern")
)
SCALE = "blocks.0.ln1.hook_scale"
WRONG_VALUES = {
    "shape": (ValueError, Z, r"must have shape \(1, 5, 3, 5\), got \(5, 3, 5\)", lambda v: v[0]),
    "number": (ValueError, Z, r"must have shape .*got \(1,\)", lambda v: 1.0),
    "nan": (ValueError, Z, r"got nan at index \(0, 2, 1, 0\)", lambda v: at(v, (0, 2, 1, 0), np.nan)),
    "inf in place": (ValueError, Z, r"must be finite, got inf", lambda v: v.fill(np.inf)),
    "text": (TypeError, Z, "real numbers", lambda v: "x"),
    "complex": (TypeError, Z, "real numbers", lambda v: v * 1j),
    "objects": (TypeError, Z, "real numbers", lambda v: np.full(v.shape, None)),
    "reshaped": (ValueError, Z, "must have shape", lambda v: setattr(v, "shape", (5, 1, 3, 5))),
    "scores nan": (ValueError, SCORES, "finite or -inf", lambda v: at(v, (0, 0, 1, 0), np.nan)),
    "scores inf": (ValueError, SCORES, "finite or -inf", lambda v: at(v, (0, 0, 1, 0), np.inf)),
    "scores later": (ValueError, SCORES, "-inf at keys after their query", lambda v: np.zeros_like(v)),
    "no scores": (ValueError, SCORES, "one key of each query", lambda v: at(v, (0, 0, 2), -np.inf)),
    "mask": (ValueError, MASK, "must be True or False", lambda v: np.full(v.shape, 0.5)),
    "mask later": (ValueError, MASK, "keys after their query", lambda v: np.ones_like(v)),
    "pattern later": (ValueError, PATTERN, "must be 0 at keys after", lambda v: v + 1),
    "pattern nan": (ValueError, PATTERN, "must be finite", lambda v: v * np.nan),
    "scale": (ValueError, SCALE, "must be above 0, got 0.0", lambda v: v * 0),
}  # fmt: skip


def at(value, index, what):
    value[index] = what
    return value


@pytest.mark.parametrize("what", WRONG_HOOKS)
def test_wrong_hooks(what):
    kind, text, hooks = WRONG_HOOKS[what]
    with pytest.raises(kind, match=text):
        case("gated").model().run_with_hooks([1, 2, 3, 4, 5], hooks)


@pytest.mark.parametrize("what", WRONG_VALUES)
def test_wrong_values(what):
    kind, name, text, give = WRONG_VALUES[what]
    with pytest.raises(kind, match=text) as caught:
        case("gated").model().run_with_hooks([1, 2, 3, 4, 5], [(name, lambda value, hook: give(value))])
    assert name in str(caught.value)


def test_both_names_of_hooks():
    hooks = [("hook_embed", lambda value, hook: None)]
    with pytest.raises(ValueError, match="give hooks="):
        case("gated").model().run_with_hooks([1], hooks, fwd_hooks=hooks)


def test_a_mask_in_numbers_and_a_column_of_other_numbers():
    one = case("dense")
    model, tokens = one.model("float32"), one.task.clean[0]
    closed = model.run_with_hooks(tokens, [(MASK, lambda v, hook: at(v.astype(int), (0, 0, 3, 1), 0))], "all")
    assert closed.pattern[0, 0, 3, 1] == 0
    np.testing.assert_array_equal(closed.logits, model.run(tokens, ablate=["a0.h0[1->3]"]).logits)
    assert oracle.causal_mask(T).sum() * one.config["n_head"] - 1 == closed.gate[0].sum()
