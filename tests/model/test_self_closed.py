"""Gated models in which no gate opens the entry of a token to itself. The arithmetic of runs, gradients,
training steps and effects is compared with the oracle in tests/c/test_engine.py, test_gradients.py and
tests/circuits."""

from __future__ import annotations

import dataclasses
import json

import engine
import numpy as np
import oracle
import pytest
from reliability import bits_of_run

import attnsparse as asp

SIZES = {"n_ctx": 24, "n_head": 2, "d_model": 12, "n_layer": 2, "n_vocab": 23}


def models(dtype: str = "float32", gate_bias: float = 0.3):
    """The same weights without and with self edges."""
    config = oracle.full_config(**SIZES, gated=True, gate_bias=gate_bias)
    weights = engine.rounded_model(4, config)
    closed = config | {"self_closed": True}
    return config, engine.build(closed, weights, dtype), engine.build(config, weights, dtype)


def test_the_diagonal_alone_is_closed():
    config, closed, other = models()
    tokens = engine.random_tokens(1, config, 24)
    found, expected = (model.run(tokens, record="all") for model in (closed, other))
    layer, own = 0, np.eye(24, dtype=bool)  # of layer 0, whose scores are the same
    assert expected.gate[layer][:, own].any()
    assert not found.gate[:, :, own].any()
    assert not found.pattern[:, :, own].any()
    assert np.array_equal(found.scores[layer], expected.scores[layer])
    assert np.array_equal(found.gate[layer], expected.gate[layer] & ~own)
    assert np.array_equal(found.pattern[layer], np.where(own, 0, expected.pattern[layer]))
    assert not found.z[:, 0].any()  # the first token has nothing to look at


def test_whatever_is_counted_or_listed():
    config, closed, _ = models(gate_bias=engine.OPEN)
    tokens = engine.random_tokens(1, config, 24)
    run = closed.run(tokens, record=("gate", "edges", "pattern", "q", "k"))
    assert run.gate.sum() == 4 * 24 * 23 / 2 == closed.evaluate([tokens]).open_edges[0]
    edges = run.open_edges()
    assert (edges["query_position"] > edges["key_position"]).all()
    assert len(edges) == run.gate.sum()
    layer, head, query, key = np.nonzero(np.broadcast_to(np.tri(24, dtype=bool), run.gate.shape))
    _, gates = run.entry_scores(layer, head, query, key)
    assert np.array_equal(gates, run.gate[layer, head, query, key])


def test_the_same_bits_for_any_number_of_threads():
    config, closed, _ = models()
    prompts = [engine.random_tokens(seed, config, n) for seed, n in enumerate((24, 3, 17, 24, 1))]
    runs = [bits_of_run(closed.run(prompts, record="all", threads=threads)) for threads in (1, 2, 5)]
    assert runs[0] == runs[1] == runs[2]


def test_new_tokens_are_those_of_a_run():
    config, closed, _ = models()
    made = closed.generate(engine.random_tokens(3, config, 6), 12)
    assert np.array_equal(closed.run(made.tokens).logits[5:-1].argmax(-1), made.tokens[6:])


def test_the_score_of_a_self_edge_has_no_gradient_through_its_gate():
    """With a single token nothing is open, so that no weight of the scores and no value matters."""
    config, closed, other = models("float64")
    tokens = engine.random_tokens(3, config, 1)
    dlogits = np.ones((1, config["n_vocab"]))
    found, usual = (
        model.gradients(tokens, dlogits=dlogits, gate_gradient="straight-through").parameters
        for model in (closed, other)
    )
    assert not found["h.0.attn.c_attn.weight"].any()
    assert usual["h.0.attn.c_attn.weight"].any()


def test_a_trainer_counts_none_of_them():
    config, closed, other = models()
    rows = np.stack([engine.random_tokens(seed, config, 24) for seed in range(4)])
    options = asp.TrainingOptions(steps=3, lr=1e-3, tau=1.0, self_edge_weight=5.0)
    found, usual = (
        asp.Trainer(model, asp.TokenData(rows.ravel(), 24, 4), options) for model in (closed, other)
    )
    for trainer in (found, usual):
        trainer.train(progress=False)
    assert (found.history()["self_edges_per_token"] == 0).all()
    assert (usual.history()["self_edges_per_token"] > 0).all()
    assert (found.history()["edges_per_token"] > 0).all()


def test_saved_and_loaded(tmp_path):
    _, closed, other = models()
    closed.save(tmp_path / "closed")
    other.save(tmp_path / "other")
    again = asp.load(tmp_path / "closed")
    assert again.config.self_closed
    assert again.config == closed.config
    assert again.digest == closed.digest != other.digest
    assert again._core.config["self_closed"] is True
    assert "self_closed" in repr(again)
    assert "self_closed" not in repr(other)
    fields = json.loads((tmp_path / "other" / "config.json").read_text())
    assert "attnsparse_self_closed" not in fields
    assert "self_closed" not in other.config.to_dict()


def test_a_dense_model_has_none():
    config = asp.Config.from_dict(oracle.full_config(**SIZES))
    with pytest.raises(asp.ConfigError, match="self_closed is for gated models, this one is dense"):
        dataclasses.replace(config, self_closed=True)
