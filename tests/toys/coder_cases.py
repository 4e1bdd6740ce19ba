"""A gated model of three layers and random transcoders for it, with the twin's weights."""

from __future__ import annotations

import engine
import oracle
import oracle_transcoder as twin
import pytest

import attnsparse as asp

T = 9
KINDS = {"relu": None, "jump_relu": None, "topk": 5}
CONFIG = oracle.full_config(n_layer=3, n_head=2, d_model=24, d_mlp=40, n_ctx=16, n_vocab=50, gated=True)
each_kind = pytest.mark.parametrize("activation", KINDS)


def setting(activation, cross_layer=False):
    """(config, weights, model, coder, transcoders, tokens) in float64."""
    weights = engine.rounded_model(0, CONFIG)
    coder = twin.random_coder(
        0,
        CONFIG["n_layer"],
        CONFIG["d_model"],
        70,
        activation,
        top_k=KINDS[activation],
        cross_layer=cross_layer,
    )
    arrays = (coder.w_enc, coder.b_enc, coder.w_dec, coder.output_bias, coder.threshold, coder.skip)
    hook = "hook_resid_mid" if coder.input_name == "resid_mid" else "ln2.hook_normalized"
    transcoders = asp.Transcoders(
        asp.ArraySource(*arrays), activation=activation, top_k=coder.top_k, input_hook=hook
    )
    tokens = engine.random_tokens(0, CONFIG, T)
    return CONFIG, weights, engine.build(CONFIG, weights, "float64"), coder, transcoders, tokens
