"""Transcoders.steer against the oracle: what a changed feature writes is added to the outputs of MLPs."""

import numpy as np
import oracle
import oracle_hooks
import oracle_transcoder as twin
import pytest
from coder_cases import T, each_kind, setting
from engine import relative_error

import attnsparse as asp


def expected_logits(config, weights, tokens, changes):
    """changes: (layer, position) -> what is added to the output of the layer's MLP."""

    def change(name, value):
        value = value.copy()
        for (layer, position), vector in changes.items():
            if name == f"blocks.{layer}.hook_mlp_out":
                value[position] += vector
        return value

    return oracle_hooks.forward(config, weights, tokens, change)["logits"]


def activations(config, weights, coder, tokens, layer):
    """[T, F] of the twin on the model as it is."""
    return twin.encode(coder, layer, oracle.forward(config, weights, tokens)[coder.input_name][layer])


@each_kind
@pytest.mark.parametrize("cross_layer", [False, True])
@pytest.mark.parametrize("how", ["add", "set", "scale"])
def test_steered_features(activation, cross_layer, how):
    config, weights, model, coder, transcoders, tokens = setting(activation, cross_layer)
    features = transcoders.features(model, tokens)
    layer = int(features.layer[0])
    own = activations(config, weights, coder, tokens, layer)
    one, two = np.argsort(-own.max(0))[:2].tolist()  # the strongest, so both are active somewhere
    changes = {(layer, one): 3.0, (layer, two, -2): -1.5}
    added = {}
    for (_, feature, *position), number in changes.items():
        for at in [position[0] % T] if position else range(T):
            a = own[at, feature]
            new = {"add": a + number, "set": number, "scale": number * a}[how]
            for k in range(coder.w_dec[layer].shape[1]):
                place = (layer + k, at)
                added[place] = added.get(place, 0) + (new - a) * coder.w_dec[layer][feature, k]
    patch = transcoders.steer(changes, how, None if how == "add" else features)
    assert all(isinstance(item, asp.Mlp) for item in patch)
    found = model.run(tokens, patch=patch).logits
    expected = expected_logits(config, weights, tokens, added)
    assert relative_error(found, expected) < 1e-9
    assert relative_error(model.run(tokens).logits, expected) > 1e-4


def test_steering_beside_other_patches_and_in_batches():
    _, _, model, _, transcoders, tokens = setting("relu")
    patch = transcoders.steer({(1, 4): 2.0})
    batch = model.run([tokens, tokens[:3]], patch=patch)
    for i, prompt in enumerate((tokens, tokens[:3])):
        alone = model.run(prompt, patch=patch).logits
        assert relative_error(batch[i].logits, alone) < 1e-12
    both = model.run(tokens, patch=patch | {asp.Resid(0, 1): np.ones(24)}).logits
    expected = model.run_with_hooks(
        tokens, [(("mlp_out", 1), lambda value, hook: value + patch[asp.Mlp(1)].values)],
        patch={asp.Resid(0, 1): np.ones(24)},
    ).logits  # fmt: skip
    assert relative_error(both, expected) < 1e-12


def test_a_feature_set_to_what_it_is_changes_nothing():
    _, _, model, _, transcoders, tokens = setting("topk")
    features = transcoders.features(model, tokens)
    place = tuple(int(a[0]) for a in (features.layer, features.feature, features.position))
    assert transcoders.steer({place: float(features.activation[0])}, "set", features) == {}
    assert transcoders.steer({place[:2]: 1.0}, "scale", features) == {}


WRONG = {
    "how": (ValueError, "how must be one of", lambda t, f: t.steer({(0, 1): 1.0}, "double")),
    "no features": (ValueError, "needs the features", lambda t, f: t.steer({(0, 1): 1.0}, "set")),
    "features unused": (ValueError, "takes no features", lambda t, f: t.steer({(0, 1): 1.0}, features=f)),
    "no mapping": (TypeError, "changes must be a mapping", lambda t, f: t.steer([(0, 1)])),
    "text": (TypeError, "a feature must be", lambda t, f: t.steer({"L0F1": 1.0})),
    "layer": (IndexError, "layer 7", lambda t, f: t.steer({(7, 1): 1.0})),
    "feature": (IndexError, "feature 70 is out of range", lambda t, f: t.steer({(0, 70): 1.0})),
    "position": (IndexError, "position 9", lambda t, f: t.steer({(0, 1, 9): 1.0}, "set", f)),
    "number": (ValueError, "finite", lambda t, f: t.steer({(0, 1): np.nan})),
    "kind": (TypeError, "features must be", lambda t, f: t.steer({(0, 1): 1.0}, "set", 3)),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments(what):
    kind, text, call = WRONG[what]
    _, _, model, _, transcoders, tokens = setting("relu")
    with pytest.raises(kind, match=text):
        call(transcoders, transcoders.features(model, tokens))


def test_features_of_other_transcoders():
    _, _, model, _, transcoders, tokens = setting("relu")
    other = setting("relu")[4]
    with pytest.raises(ValueError, match="found by these transcoders"):
        transcoders.steer({(0, 1): 1.0}, "set", other.features(model, tokens))
