"""Logit lens, stacks, attribution, detectors and factored heads against TransformerLens itself.

Its models are made here of random weights. LayerNorms are folded where a logit is asked for, because
TransformerLens leaves out the weight of the final one otherwise; value biases where heads are compared.
"""

from __future__ import annotations

import numpy as np
import pytest
import reliability
import tiny_checkpoints as tiny

torch = pytest.importorskip("torch")
lens = pytest.importorskip("transformer_lens")
detector = pytest.importorskip("transformer_lens.head_detector")
if not hasattr(lens, "HookedTransformer"):
    pytest.skip("this TransformerLens has no HookedTransformer", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of HookedTransformer

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
SHAPE = {"gated": False, "n_layer": 3, "activation": "gelu_new"}


@pytest.fixture(scope="module")
def ours():
    return reliability.model(**SHAPE)


def theirs(model, **process):
    c = model.cfg
    config = lens.HookedTransformerConfig(
        n_layers=c.n_layers, n_heads=c.n_heads, d_model=c.d_model, d_head=c.d_head, d_mlp=c.d_mlp,
        d_vocab=c.d_vocab, n_ctx=c.n_ctx, act_fn=c.act_fn, eps=c.eps, normalization_type="LN",
    )  # fmt: skip
    made = lens.HookedTransformer(config)
    arrays = tiny.transformer_lens(model.parameters(), model.config)
    state = made.state_dict() | {name: torch.tensor(np.array(array)) for name, array in arrays.items()}
    off = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    made.load_and_process_state_dict(state, **(off | process))
    return made


@pytest.fixture(scope="module")
def raw(ours):
    return theirs(ours)


@pytest.fixture(scope="module")
def folded(ours):
    return theirs(ours, fold_ln=True)


@pytest.fixture(scope="module")
def caches(ours, folded):
    """(ours, theirs) of one prompt with a batch axis."""
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        logits, other = folded.run_with_cache(tokens)
        other.compute_head_results()
    own, cache = ours.run_with_cache([TOKENS])
    assert close(own, logits)
    return cache, other


def close(found, expected, tolerance: float = 2e-5) -> bool:
    expected = expected.detach().numpy()
    size = max(1.0, np.abs(expected).max())
    return np.shape(found) == expected.shape and np.abs(found - expected).max() <= tolerance * size


SLICES = (None, -1, (2, 5), [0, 3])


@pytest.mark.parametrize("pos_slice", SLICES)
def test_stacks(caches, pos_slice):
    pairs = [
        ("accumulated_resid", {"incl_mid": True}),
        ("accumulated_resid", {"layer": 1, "mlp_input": True, "apply_ln": True}),
        ("accumulated_resid", {"apply_ln": True}),
        ("decompose_resid", {}),
        ("decompose_resid", {"layer": 2, "mlp_input": True, "apply_ln": True}),
        ("decompose_resid", {"mode": "mlp", "incl_embeds": False, "apply_ln": True}),
        ("stack_head_results", {"incl_remainder": True}),
        ("stack_head_results", {"layer": 2, "apply_ln": True}),
    ]
    for name, options in pairs:
        options = options | {"pos_slice": pos_slice, "return_labels": True}
        (found, labels), (expected, names) = (getattr(cache, name)(**options) for cache in caches)
        assert labels == names, name
        assert close(found, expected), (name, options)


def test_logit_attributions_of_stacks(caches):
    own, other = caches
    for options in ({}, {"incorrect_tokens": 7}):
        found = own.logit_attrs(own.decompose_resid(), 5, **options)
        assert close(found, other.logit_attrs(other.decompose_resid(), 5, **options))
    found = own.logit_attrs(own.stack_head_results(pos_slice=-1), 5, 7, pos_slice=-1)
    assert close(found, other.logit_attrs(other.stack_head_results(pos_slice=-1), 5, 7, pos_slice=-1))


def test_attribution_to_heads_is_theirs_with_folded_value_biases(ours):
    """Folding takes the LayerNorm's bias through W_V into the value bias; here it is 0."""
    ours = ours.copy()
    ours.assign({f"h.{layer}.ln_1.bias": np.zeros(64) for layer in range(3)})
    model = theirs(ours, fold_ln=True, fold_value_biases=True)
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor([TOKENS]))
        cache.compute_head_results()
    heads = cache.logit_attrs(cache.stack_head_results(pos_slice=-1), 5, 7, pos_slice=-1)[:, 0]
    layers = cache.logit_attrs(cache.decompose_resid(pos_slice=-1), 5, 7, pos_slice=-1)[:, 0]
    table = ours.run(TOKENS, "attribution").attribute(5, 7, "head")
    assert close(table[table.component == "head"].contribution.to_numpy(), heads)
    by_layer = ours.run(TOKENS, "attribution").attribute(5, 7, "component")
    mlps = by_layer[by_layer.component == "mlp"].contribution.to_numpy()
    assert close(mlps, layers[3::2])


def test_logit_lens(ours, folded, caches):
    other = caches[1].accumulated_resid(apply_ln=True)[:, 0]
    logits = other @ folded.W_U + folded.b_U
    table = ours.run(TOKENS, "attribution").logit_lens(tokens=[5, 7])
    found = table.logit.to_numpy().reshape(4, len(TOKENS), 2)
    assert close(found, logits[..., [5, 7]])
    best = ours.run(TOKENS, "attribution").logit_lens(position=-1)
    assert best.token_id.tolist() == logits[:, -1].argmax(-1).tolist()


def test_weights_and_factored_heads(ours, raw):
    names = (
        "W_E",
        "W_pos",
        "W_U",
        "W_Q",
        "W_K",
        "W_V",
        "W_O",
        "b_Q",
        "b_K",
        "b_V",
        "b_O",
        "W_in",
        "b_in",
        "W_out",
        "b_out",
        "b_U",
    )
    for name in names:
        assert close(getattr(ours, name), getattr(raw, name), 0), name
    for name in ("OV", "QK"):
        own, other = getattr(ours, name)(), getattr(raw, name)
        assert own.shape == tuple(other.shape)
        assert close(own.AB, other.AB)
        assert close(own.S, other.svd()[1])
        assert close(own.norm(), other.norm())
        u, _, v = other[1, 2].svd()
        mine = getattr(ours, name)(1, 2)
        assert close(np.abs(np.sum(mine.U * u.detach().numpy(), axis=0)), torch.ones(16), 1e-3)
        assert close(np.abs(np.sum(mine.V * v.detach().numpy(), axis=0)), torch.ones(16), 1e-3)
        assert np.allclose(
            np.sort_complex(mine.eigenvalues),
            np.sort_complex(other[1, 2].eigenvalues.detach().numpy()),
            atol=1e-4,
        )


def test_composition_scores(ours, raw):
    names = ("sender_layer", "sender_head", "receiver_layer", "receiver_head")
    table = ours.composition_scores()
    at = tuple(torch.tensor(table[name].tolist()) for name in names)
    for way in "QKV":
        assert close(table[way.lower()].to_numpy(), raw.all_composition_scores(way)[at])


@pytest.mark.parametrize("measure", ["mul", "abs"])
@pytest.mark.parametrize("exclude", [(False, False), (True, True)])
def test_detectors(ours, raw, measure, exclude):
    options = {"exclude_bos": exclude[0], "exclude_current_token": exclude[1], "error_measure": measure}
    table = ours.run(TOKENS).detect_heads(**options)
    tokens = torch.tensor([TOKENS])
    for name in ("previous_token_head", "duplicate_token_head", "induction_head"):
        pattern = getattr(detector, f"get_{name}_detection_pattern")(tokens)
        with torch.no_grad():
            _, cache = raw.run_with_cache(tokens, remove_batch_dim=True)
        for row in table.to_dict("records"):
            expected = detector.compute_head_attention_similarity_score(
                cache["pattern", row["layer"]][row["head_index"]].clone(), pattern,
                exclude_bos=exclude[0], exclude_current_token=exclude[1], error_measure=measure,
            )  # fmt: skip
            assert row[name] == pytest.approx(
                expected, abs=6e-4 if measure == "abs" else 1e-5
            )  # theirs is rounded
