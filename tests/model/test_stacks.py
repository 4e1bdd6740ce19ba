"""Stacks of the residual stream from an ActivationCache, as TransformerLens has them."""

from __future__ import annotations

import numpy as np
import oracle
import oracle_lens as ol
import pytest
import reliability

PROMPTS = [[3, 1, 4, 1, 5], [2, 7, 1, 8, 2], [9, 9, 8, 7, 6]]
L, H = 2, 4


@pytest.fixture(scope="module", params=["float32", "float64"])
def model(request):
    return reliability.model(dtype=request.param)


@pytest.fixture(scope="module", params=[False, True], ids=["batch", "one"])
def cache(request, model):
    prompts = PROMPTS[0] if request.param else PROMPTS
    return model.run_with_cache(prompts, remove_batch_dim=request.param)[1]


def close(cache, found, expected) -> bool:
    tolerance = 1e-9 if cache.run.model.dtype == np.float64 else 2e-5
    return found.shape == expected.shape and np.abs(found - expected).max() <= tolerance * max(
        1, np.abs(expected).max()
    )


SLICES = (None, -1, slice(1, 4), (1, 3), [0, 4, 2])


def sliced(array, pos_slice):
    index = slice(*pos_slice) if isinstance(pos_slice, tuple) else pos_slice
    return array if pos_slice is None else array[..., index, :]


@pytest.mark.parametrize("pos_slice", SLICES)
def test_stacks_hold_what_the_cache_holds(cache, pos_slice):
    stack, labels = cache.accumulated_resid(incl_mid=True, pos_slice=pos_slice, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"]
    names = [("resid_pre", 0), ("resid_mid", 0), ("resid_pre", 1), ("resid_mid", 1), ("resid_post", 1)]
    assert np.array_equal(stack, [sliced(cache[name], pos_slice) for name in names])
    stack, labels = cache.decompose_resid(pos_slice=pos_slice, return_labels=True)
    assert labels == ["embed", "pos_embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
    assert close(cache, stack.sum(axis=0), sliced(cache["resid_post", 1], pos_slice))
    stack, labels = cache.stack_head_results(pos_slice=pos_slice, return_labels=True, incl_remainder=True)
    assert labels == [*(f"L{layer}H{head}" for layer in range(L) for head in range(H)), "remainder"]
    for i in range(L * H):
        assert np.array_equal(stack[i], sliced(cache["result", i // H][..., i % H, :], pos_slice))
    assert close(cache, stack.sum(axis=0), sliced(cache["resid_post", 1], pos_slice))


def test_stacks_before_a_layer(cache):
    assert np.array_equal(cache.accumulated_resid(1), [cache["resid_pre", 0], cache["resid_pre", 1]])
    both = cache.accumulated_resid(1, mlp_input=True, return_labels=True)
    assert both[1] == ["0_pre", "1_pre", "1_mid"]
    assert np.array_equal(both[0][-1], cache["resid_mid", 1])
    assert close(cache, cache.decompose_resid(1, mlp_input=True).sum(axis=0), cache["resid_mid", 1])
    assert cache.decompose_resid(1, mode="attn", incl_embeds=False, return_labels=True)[1] == ["0_attn_out"]
    assert cache.decompose_resid(mode="mlp", return_labels=True)[1][2:] == ["0_mlp_out", "1_mlp_out"]
    assert cache.stack_head_results(1).shape[0] == H
    with pytest.raises(ValueError, match="no heads before layer 0"):
        cache.stack_head_results(0)
    with pytest.raises(ValueError, match="nothing is written before this layer"):
        cache.decompose_resid(0, incl_embeds=False)
    with pytest.raises(ValueError, match=r"layer must be in 0\.\.2, got 3"):
        cache.accumulated_resid(3)
    with pytest.raises(ValueError, match="mode must be one of"):
        cache.decompose_resid(mode="both")


@pytest.mark.parametrize("pos_slice", SLICES)
def test_layernorm_of_stacks(cache, pos_slice):
    for layer, mlp_input, hook in (
        (1, False, "blocks.1.ln1"),
        (1, True, "blocks.1.ln2"),
        (None, False, "ln_final"),
    ):
        stack = cache.decompose_resid(layer, mlp_input, apply_ln=True, pos_slice=pos_slice)
        assert close(cache, stack.sum(axis=0), sliced(cache[f"{hook}.hook_normalized"], pos_slice))
    stack = cache.stack_head_results(apply_ln=True, pos_slice=pos_slice, incl_remainder=True)
    assert close(cache, stack.sum(axis=0), sliced(cache["ln_final.hook_normalized"], pos_slice))
    own = cache.accumulated_resid(apply_ln=True, pos_slice=pos_slice)
    for i, part in enumerate(cache.accumulated_resid(pos_slice=pos_slice)):
        assert close(cache, own[i], oracle.layer_norm(part.astype(np.float64), 1e-5)[0])
    held = cache.accumulated_resid(1, apply_ln=True, pos_slice=pos_slice)
    assert close(cache, held[-1], sliced(cache["blocks.1.ln1.hook_normalized"], pos_slice))


@pytest.mark.parametrize("pos_slice", SLICES)
def test_logit_attributions_of_stacks(cache, model, pos_slice):
    stack = cache.decompose_resid(pos_slice=pos_slice)
    weights = {name: array.astype(np.float64) for name, array in model.parameters().items()}
    scale = sliced(cache["ln_final.hook_scale"].astype(np.float64), pos_slice)
    for right, wrong in ((5, None), (5, 17)):
        unembed = weights["wte.weight"][right] - (0 if wrong is None else weights["wte.weight"][wrong])
        centred = stack.astype(np.float64)
        centred = (centred - centred.mean(-1, keepdims=True)) / scale
        expected = centred * weights["ln_f.weight"] @ unembed
        found = cache.logit_attrs(stack, right, wrong, pos_slice=pos_slice)
        assert found.dtype == np.float64
        assert close(cache, found, expected)
    logits = ol.logits_at(
        weights,
        dict(vars(model.config)),
        sliced(cache["resid_post", 1], pos_slice).reshape(-1, 64).astype(np.float64),
    )
    bias = float(weights["ln_f.bias"] @ (weights["wte.weight"][5] - weights["wte.weight"][17]))
    found = cache.logit_attrs(stack, 5, 17, pos_slice=pos_slice).sum(axis=0).ravel() + bias
    assert np.abs(found - (logits[:, 5] - logits[:, 17])).max() < (
        1e-9 if model.dtype == np.float64 else 2e-4
    )


def test_tokens_of_prompts_and_positions(model):
    cache = model.run_with_cache(PROMPTS)[1]
    stack = cache.decompose_resid()
    tokens = np.array([5, 6, 7])
    found = cache.logit_attrs(stack, tokens)
    each = np.arange(15).reshape(3, 5)
    for i, token in enumerate(tokens):
        assert np.array_equal(found[:, i], cache.logit_attrs(stack, int(token))[:, i])
        assert cache.logit_attrs(stack, each)[2, i, 4] == cache.logit_attrs(stack, int(each[i, 4]))[2, i, 4]
    assert np.array_equal(
        cache.logit_attrs(cache.decompose_resid(pos_slice=-1), tokens, pos_slice=-1), found[:, :, -1]
    )
    part = cache.logit_attrs(stack, tokens[1:], tokens[:2], batch_slice=slice(1, 3))
    assert np.array_equal(part, cache.logit_attrs(stack, tokens, np.array([0, 5, 6]))[:, 1:])
    run = model.run(PROMPTS, "attribution").attribute(tokens.tolist(), 9)
    mlps = run[(run.component == "mlp")].contribution.to_numpy().reshape(3, L).T
    found = cache.logit_attrs(cache.decompose_resid(pos_slice=-1), tokens, np.full(3, 9), pos_slice=-1)
    assert np.abs(found[[3, 5]] - mlps).max() < 1e-5


def test_what_stacks_refuse(cache):
    stack = cache.decompose_resid()
    with pytest.raises(ValueError, match="residual_stack must have shape"):
        cache.logit_attrs(stack, 1, pos_slice=0)
    with pytest.raises(ValueError, match="residual_stack must have shape"):
        cache.apply_ln_to_stack(np.ones(64))
    with pytest.raises(TypeError, match="residual_stack must be real numbers"):
        cache.apply_ln_to_stack(np.array(["a"]))
    with pytest.raises(IndexError, match=r"tokens must be in 0\.\.95"):
        cache.logit_attrs(stack, 96)
    with pytest.raises(TypeError, match="incorrect_tokens must be a single token, or integers"):
        cache.logit_attrs(stack, 1, 2.5)
    with pytest.raises(ValueError, match=r"tokens has shape \(7, 7\)"):
        cache.logit_attrs(stack, np.ones((7, 7), int))
    with pytest.raises(ValueError, match="has no tokenizer"):
        cache.logit_attrs(stack, "a")
