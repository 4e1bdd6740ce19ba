"""Model.run(freeze=) against the oracle: what is held while something before it changes."""

import dataclasses

import numpy as np
import oracle_hooks as oh
import pytest
from circuit_cases import CONFIGS, TOLERANCE, case, error

import attnsparse as asp
from attnsparse.model.run import FROZEN

each_config = pytest.mark.parametrize("name", CONFIGS)
ENDS = {"pattern": "hook_pattern", "gate": "hook_sparse_mask", "ln_scale": "hook_scale"}
CHOICES = [("pattern",), ("gate",), ("ln_scale",), ("pattern", "ln_scale"), ("pattern", "gate", "ln_scale")]
T = 5


def frozen(one, tokens, source, names, changes):
    """The oracle's run of `tokens` with what is frozen taken from the plain run of `source`, and other values
    put in, by hook name."""
    held = oh.forward(one.config, one.weights, source, lambda name, value: value)
    ends = tuple(ENDS[name] for name in names)

    def change(name, value):
        value = held[name] if name.endswith(ends) else value
        return changes[name](value) if name in changes else value

    return oh.forward(one.config, one.weights, tokens, change)


def moved(value):
    value = value.copy()
    value[min(2, len(value) - 1)] += np.linspace(-2, 3, value.shape[-1])
    return value


def moving(value, hook):
    return np.stack([moved(row) for row in value])


@each_config
@pytest.mark.parametrize("names", CHOICES, ids="+".join)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_is_frozen_does_not_follow(name, names, dtype):
    one = case(name, (5, 1, 3))
    model, prompts = one.model(dtype), list(one.task.clean)
    hooks = [("blocks.0.hook_resid_pre", moving)]
    run = model.run_with_hooks(prompts, hooks, "all", freeze=names)
    for i, tokens in enumerate(prompts):
        expected = frozen(one, tokens, tokens, names, {"blocks.0.hook_resid_pre": moved})
        assert error(np.float64(run[i].logits), expected["logits"]) < TOLERANCE[dtype]
        for layer in range(one.config["n_layer"]):
            found, value = run[i].z[layer], expected[f"blocks.{layer}.attn.hook_z"]
            assert error(np.float64(found), value) < TOLERANCE[dtype]
            np.testing.assert_array_equal(
                run[i].gate[layer], expected[f"blocks.{layer}.attn.hook_sparse_mask"]
            )
    plain = model.run_with_hooks(prompts, hooks)
    if "ln_scale" in names:
        assert error(np.float64(run[0].logits), np.float64(plain[0].logits)) > 1e-4


@each_config
def test_freezing_what_is_there_changes_no_bit(name):
    one = case(name, (5, 1, 3))
    model, prompts = one.model("float32"), list(one.task.clean)
    plain = model.run(prompts, "all")
    run = model.run(prompts, "all", freeze=tuple(FROZEN))
    given = model.run(prompts, "all", freeze=dict.fromkeys(FROZEN, plain))
    for i in range(3):
        for array in plain[i].recorded:
            np.testing.assert_array_equal(getattr(run[i], array), getattr(plain[i], array), array)
            np.testing.assert_array_equal(getattr(given[i], array), getattr(plain[i], array), array)


@each_config
def test_patterns_of_other_prompts(name):
    one = case(name)
    model, prompts, others = one.model(), list(one.task.clean), list(one.task.corrupted)
    clean = model.run(others, ("pattern", "ln1_scale", "ln2_scale", "ln_final_scale"))
    run = model.run(prompts, freeze={"pattern": clean, "ln_scale": clean})
    for i, tokens in enumerate(prompts):
        expected = frozen(one, tokens, others[i], ("pattern", "ln_scale"), {})["logits"]
        assert error(run[i].logits, expected) < 1e-9
        alone = model.run(tokens, freeze={"pattern": clean[i], "ln_scale": clean[i]})
        assert error(alone.logits, expected) < 1e-9
        np.testing.assert_array_equal(alone.pattern, clean[i].pattern)


def test_ablated_and_patched_edges_stay_so():
    one = case("gated")
    model, tokens = one.model(), one.task.clean[0]
    edges = [asp.Edge(0, 0, 3, 1), asp.Edge(1, 2, 4, 4)]
    value = np.ones(one.config["d_head"])
    run = model.run(tokens, "all", ablate=edges, freeze="pattern", patch={asp.Edge(0, 1, 2, 0): value})
    again = model.run_with_hooks(
        tokens, [(("pattern", 0), lambda v, hook: None)], "all", ablate=edges, freeze="pattern",
        patch={asp.Edge(0, 1, 2, 0): value},
    )  # fmt: skip
    np.testing.assert_array_equal(again.logits, run.logits)

    def without(layer):
        def change(pattern):
            pattern = pattern.copy()
            for edge in [*edges, asp.Edge(0, 1, 2, 0)]:
                if edge.layer == layer:
                    pattern[edge.head, edge.query, edge.key] = 0
            return pattern

        return change

    def add(z):
        z = z.copy()
        z[2, 1] += value
        return z

    changes = {f"blocks.{layer}.attn.hook_pattern": without(layer) for layer in range(2)}
    expected = frozen(one, tokens, tokens, ("pattern",), changes | {"blocks.0.attn.hook_z": add})
    assert error(run.logits, expected["logits"]) < 1e-9
    assert run.pattern[0, 0, 3, 1] == run.pattern[1, 2, 4, 4] == 0


def test_functions_see_what_is_frozen():
    one = case("gated")
    model, tokens, seen = one.model(), one.task.clean[0], {}
    clean = model.run(one.task.corrupted[0], ("pattern",))

    def double(value, hook):
        seen[hook.name] = value.copy()
        return 2 * value

    run = model.run_with_hooks(tokens, [(("pattern", 1), double)], "all", freeze={"pattern": clean})
    np.testing.assert_array_equal(seen["blocks.1.attn.hook_pattern"][0], clean.pattern[1])
    np.testing.assert_array_equal(run.pattern[1], 2 * clean.pattern[1])
    np.testing.assert_array_equal(run.pattern[0], clean.pattern[0])


def test_run_with_cache_freezes():
    one = case("gated")
    model, prompts = one.model(), list(one.task.clean)
    logits, cache = model.run_with_cache(prompts, ablate=["L0H0"], freeze=("pattern", "ln_scale"))
    clean = model.run(prompts, "all")
    np.testing.assert_array_equal(cache["pattern", 1], clean.pattern[:, 1])
    np.testing.assert_array_equal(cache["ln_final.hook_scale"][..., 0], clean.ln_final_scale)
    run = model.run(prompts, ablate=["L0H0"], freeze=("pattern", "ln_scale"))
    np.testing.assert_array_equal(logits, run.logits)


def test_the_pattern_of_a_dense_twin():
    one = case("gated")
    config = dataclasses.replace(one.model().config, gated=False)
    dense = asp.Model(config, one.model().parameters(), dtype="float64")
    tokens = one.task.clean[0]
    clean = dense.run(tokens, ("pattern",))
    run = one.model().run(tokens, freeze={"pattern": clean})
    assert error(run.logits, dense.run(tokens).logits) < 1e-12
    assert error(run.logits, one.model().run(tokens).logits) > 1e-3


def test_the_same_bits_for_any_number_of_threads():
    one = case("gated", (5, 4, 3))
    model, prompts = one.model("float32"), list(one.task.clean)
    runs = [model.run(prompts, ablate=["L0H0"], freeze=tuple(FROZEN), threads=n) for n in (1, 2, 3)]
    for i in range(3):
        for run in runs[1:]:
            np.testing.assert_array_equal(run[i].logits, runs[0][i].logits)


def other(name, dtype):
    return case(name).model(dtype).run([1, 2, 3])


WRONG = {
    "name": (ValueError, "freeze must be one of 'pattern', .*got 'scores'", lambda m: "scores"),
    "number": (TypeError, "freeze must be a name", lambda m: 3),
    "no run": (TypeError, "must be a Run", lambda m: {"pattern": np.zeros(3)}),
    "not recorded": (ValueError, "did not record ln1_scale", lambda m: {"ln_scale": m.run([1, 2, 3])}),
    "two prompts": (ValueError, "has 2 prompts, expected 1", lambda m: {"pattern": m.run([[1, 2, 3]] * 2)}),
    "length": (ValueError, "prompt 0 has 3 tokens, in the given run 2", lambda m: {"pattern": m.run([1, 2])}),
    "type": (ValueError, "float32, this one has", lambda m: {"pattern": other("gated", "float32")}),
    "layers": (ValueError, "a model of 3 layers", lambda m: {"pattern": other("dense", "float64")}),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments(what):
    kind, text, give = WRONG[what]
    model = case("gated").model()
    with pytest.raises(kind, match=text):
        model.run([1, 2, 3], freeze=give(model))
