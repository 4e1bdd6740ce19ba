"""Transcoders.steer against a twin that reads each feature in the run that it changes."""

import engine
import numpy as np
import oracle
import oracle_hooks
import oracle_transcoder as twin
import pytest
from coder_cases import CONFIG, T, each_kind, setting
from engine import relative_error

import attnsparse as asp


def steered(config, weights, coder, tokens, changes, other=lambda name, value: value):
    """The twin's run with features changed as they are in it.

    changes: (layer, feature, position) to (how, number); `other` changes activations besides.
    """
    end = "hook_resid_mid" if coder.input_name == "resid_mid" else "ln2.hook_normalized"
    active, added = {}, {}

    def change(name, value):
        value = other(name, value)
        layer = int(name.split(".")[1]) if name.startswith("blocks.") else -1
        if name == f"blocks.{layer}.{end}":
            active[layer] = twin.encode(coder, layer, value)
        if name == f"blocks.{layer}.hook_mlp_out":
            for (at, feature, position), (how, number) in changes.items():
                if at == layer:
                    own = active[layer][position, feature]
                    new = {"add": own + number, "set": number, "scale": number * own}[how]
                    for k in range(coder.w_dec[layer].shape[1]):
                        place = (layer + k, position)
                        added[place] = added.get(place, 0) + (new - own) * coder.w_dec[layer][feature, k]
            value = value.copy()
            for (at, position), vector in added.items():
                if at == layer:
                    value[position] += vector
        return value

    return oracle_hooks.forward(config, weights, tokens, change)["logits"]


def strongest(config, weights, coder, tokens, n):
    """(layer, feature) of n features that are active in the model as it is, in every layer some."""
    found = []
    for layer in range(config["n_layer"]):
        active = twin.encode(coder, layer, oracle.forward(config, weights, tokens)[coder.input_name][layer])
        found += [(layer, int(feature)) for feature in np.argsort(-active.max(0))[:n]]
    return found


@each_kind
@pytest.mark.parametrize("cross_layer", [False, True])
@pytest.mark.parametrize("how", ["add", "set", "scale"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_steered_features(activation, cross_layer, how, dtype):
    """In all layers at once: later features are changed from what the earlier ones have made of them."""
    config, weights, model, coder, transcoders, tokens = setting(activation, cross_layer)
    changes, expected = {}, {}
    for i, (layer, feature) in enumerate(strongest(config, weights, coder, tokens, 3)):
        number = 1.5 - 0.4 * i
        changes[(layer, feature) if i % 3 else (layer, feature, i % T - T)] = number
        positions = range(T) if i % 3 else [i % T]
        expected |= {(layer, feature, position): (how, number) for position in positions}
    if dtype == "float32":
        model = engine.build(config, weights, "float32")
    found = model.run(tokens, patch=transcoders.steer(changes, how)).logits
    wanted = steered(config, weights, coder, tokens, expected)
    assert relative_error(np.float64(found), wanted) < {"float64": 1e-9, "float32": 2e-5}[dtype]
    assert relative_error(model.run(tokens).logits, wanted) > 1e-4


@each_kind
def test_steering_reads_the_run_that_it_changes(activation):
    """Not the model as it is: another patch comes before it, and a feature set to 0 is 0 in that run."""
    config, weights, model, coder, transcoders, tokens = setting(activation)
    vector = np.linspace(-1, 2, config["d_model"])

    def other(name, value):
        return value + vector if name == "blocks.0.hook_resid_pre" else value

    places = {(1, feature, 4): 0.0 for feature in range(0, 70, 2)}
    patch = {asp.Resid(0, at): asp.Add(vector) for at in range(T)} | transcoders.steer(places, "set")
    found = model.run(tokens, patch=patch).logits
    expected = steered(config, weights, coder, tokens, dict.fromkeys(places, ("set", 0.0)), other)
    assert relative_error(found, expected) < 1e-9
    hooks = [(("resid_pre", 0), lambda value, hook: value + vector)]
    hooked = model.run_with_hooks(tokens, hooks, patch=transcoders.steer(places, "set"))
    assert relative_error(hooked.logits, expected) < 1e-9


def test_kinds_together_and_the_last_one_counts():
    config, weights, model, coder, transcoders, tokens = setting("jump_relu", True)
    one, two, three = strongest(config, weights, coder, tokens, 1)
    patch = transcoders.steer({one: 2.0}) | transcoders.steer({(*one, 3): 0.0, two: 1.5}, "set")
    patch |= transcoders.steer({three: -1.0}, "scale")
    expected = {(*one, at): ("add", 2.0) for at in range(T)} | {(*one, 3): ("set", 0.0)}
    expected |= {(*two, at): ("set", 1.5) for at in range(T)}
    expected |= {(*three, at): ("scale", -1.0) for at in range(T)}
    found = model.run(tokens, patch=patch).logits
    assert relative_error(found, steered(config, weights, coder, tokens, expected)) < 1e-9


def test_steering_in_batches_and_beside_a_replaced_output():
    config, _, model, _, transcoders, tokens = setting("relu")
    patch = transcoders.steer({(1, 4): 2.0, (0, 3, 1): 1.0})
    batch = model.run([tokens, tokens[:3]], patch=patch)
    for i, prompt in enumerate((tokens, tokens[:3])):
        alone = model.run(prompt, patch=patch).logits
        assert relative_error(batch[i].logits, alone) < 1e-12
    row = np.linspace(0, 1, config["d_model"])
    rows = np.asarray(transcoders.source.decoder_rows(1, np.array([4])), np.float64)[0, 0]
    both = model.run(tokens, patch=transcoders.steer({(1, 4, 2): 2.0}) | {asp.Mlp(1, 2): row}).logits
    one = model.run(tokens, patch={asp.Mlp(1, 2): row + 2.0 * rows}).logits
    assert relative_error(both, one) < 1e-12
    _, cache = model.run_with_cache(
        tokens, "blocks.1.hook_mlp_out", patch=transcoders.steer({(1, 4, 2): 2.0})
    )
    moved = cache["mlp_out", 1][0] - model.run(tokens, "mlp_out").mlp_out[1]
    assert relative_error(moved[2], 2.0 * rows) < 1e-9
    np.testing.assert_allclose(np.delete(moved, 2, 0), 0, atol=1e-12)


@pytest.mark.parametrize("how", ["add", "set", "scale"])
@each_kind
def test_features_during_generation(activation, how):
    """New tokens too: logits are those of runs of the whole text under the same patch, for each sample."""
    config, weights, model, coder, transcoders, tokens = setting(activation, True)
    changes = dict.fromkeys(strongest(config, weights, coder, tokens, 2), 1.7)
    changes[(*next(iter(changes)), -1)] = -0.5
    patch = transcoders.steer(changes, how)
    prompts = [tokens[:6], tokens[:2], tokens[2:5]]
    texts = model.generate(prompts, 4, temperature=2.0, n_samples=2, seed=3, logits=True, patch=patch)
    for i, text in enumerate(texts):
        n = len(prompts[i // 2])
        # a position counts from the end of the prompt, not of the text
        whole = transcoders.steer({p: v for p, v in changes.items() if len(p) == 2}, how) | transcoders.steer(
            {(*p[:2], n - 1): v for p, v in changes.items() if len(p) == 3}, how
        )
        run = model.run(text.tokens, patch=whole)
        assert relative_error(text.logits, run.logits[n - 1 : -1]) < 1e-11
        assert relative_error(text.logits, model.run(text.tokens).logits[n - 1 : -1]) > 1e-4


def test_a_feature_set_to_what_it_is_changes_nothing():
    _, _, model, _, transcoders, tokens = setting("topk")
    features = transcoders.features(model, tokens)
    place = tuple(int(a[0]) for a in (features.layer, features.feature, features.position))
    plain = model.run(tokens).logits
    for patch in (
        transcoders.steer({place: float(features.activation[0])}, "set"),
        transcoders.steer({place[:2]: 1.0}, "scale"),
        transcoders.steer({}),
    ):
        assert relative_error(model.run(tokens, patch=patch).logits, plain) < 1e-13


WRONG = {
    "how": (ValueError, "how must be one of", lambda t: t.steer({(0, 1): 1.0}, "double")),
    "no mapping": (TypeError, "changes must be a mapping", lambda t: t.steer([(0, 1)])),
    "text": (TypeError, "a feature must be", lambda t: t.steer({"L0F1": 1.0})),
    "layer": (IndexError, "layer 7", lambda t: t.steer({(7, 1): 1.0})),
    "feature": (IndexError, "feature 70 is out of range", lambda t: t.steer({(0, 70): 1.0})),
    "number": (ValueError, "finite", lambda t: t.steer({(0, 1): np.nan})),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments(what):
    kind, text, call = WRONG[what]
    with pytest.raises(kind, match=text):
        call(setting("relu")[4])


def test_runs_that_do_not_fit():
    _, _, model, _, transcoders, tokens = setting("relu")
    other = setting("relu")[4]
    with pytest.raises(IndexError, match="position 9 is out of range: prompt 0 has 9 tokens"):
        model.run(tokens, patch=transcoders.steer({(0, 1, 9): 1.0}))
    with pytest.raises(ValueError, match="one set of transcoders"):
        model.run(tokens, patch=transcoders.steer({(0, 1): 1.0}) | other.steer({(0, 2): 1.0}))
    with pytest.raises(ValueError, match="for runs of the model itself"):
        transcoders.replacement_run(model, tokens, patch=transcoders.steer({(0, 1): 1.0}))
    wide = engine.build(
        dict(CONFIG, d_model=16), engine.rounded_model(0, dict(CONFIG, d_model=16)), "float64"
    )
    with pytest.raises(asp.ConfigError, match="d_model"):
        wide.run(tokens, patch=transcoders.steer({(0, 1): 1.0}))
    huge = {asp.Resid(0, 0): np.full(24, 1e308)}
    with pytest.raises(ValueError, match="steered features of layer 0 read is not finite"):
        model.run(tokens, patch=huge | transcoders.steer({(0, 1): 0.0}, "set"))
