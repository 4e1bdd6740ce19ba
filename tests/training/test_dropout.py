"""Dropout of a training step, as far as options decide it. Its arithmetic is judged in
tests/model/test_gradients.py; the runs of test_train.py have it too, with their resumes and threads."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_training as tiny

from attnsparse.model.model import Model
from attnsparse.training import TrainingOptions, per_layer
from attnsparse.training.schedules import jump

NAMES = ("entry_dropout", "head_dropout", "attn_out_dropout", "mlp_out_dropout")


def first_losses(n_seeds: int, **changes) -> np.ndarray:
    """Cross-entropy of the first step, for some seeds of the noise."""
    found = []
    for seed in range(n_seeds):
        trainer = tiny.Trainer(tiny.model(gated=False), tiny.data(), steps=1, lr=0.0, seed=seed, **changes)
        found.append(trainer.step()["ce"])
    return np.array(found)


@pytest.mark.parametrize("name", NAMES)
def test_dropped_values_change_the_loss_by_seed(name):
    without, thinned = first_losses(2), first_losses(3, **{name: 0.3})
    assert without[0] == without[1]
    assert len({*thinned, without[0]}) == 4
    assert np.abs(thinned / without[0] - 1).max() < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_rates_are_checked(name):
    too_much = 1.0001 if name == "head_dropout" else 1.0
    for wrong in (-0.1, too_much, float("nan")):
        with pytest.raises(ValueError, match=name):
            TrainingOptions(steps=3, **{name: wrong})
    with pytest.raises(ValueError, match=name):
        TrainingOptions(steps=3, **{name: jump(0.1, too_much, 0.5)})
    with pytest.raises(ValueError, match="covers 3 layers"):
        tiny.Trainer(tiny.model(gated=False), tiny.data(), steps=3, **{name: per_layer([0.1, 0.2, 0.3])})


def test_a_layer_without_dropout_is_as_before():
    assert first_losses(2, head_dropout=per_layer([0.0, 0.0])).std() == 0
    assert first_losses(2, head_dropout=per_layer([0.0, 0.4])).std() > 0


def test_a_layer_without_heads_has_no_attention():
    """It works and learns as if W_O were 0, whatever its queries, keys and values are."""
    trainer = tiny.Trainer(
        tiny.model(gated=False), tiny.data(), steps=1, lr=1e-2, head_dropout=per_layer([1.0, 0.0])
    )
    before = {name: array.copy() for name, array in trainer.model.parameters().items()}
    out = "h.0.attn.c_proj.weight"
    without = Model(trainer.model.config, {**before, out: np.zeros_like(before[out])})
    other = tiny.Trainer(without, tiny.data(), steps=1, lr=0.0)
    assert trainer.step()["ce"] == pytest.approx(other.step()["ce"], rel=1e-6)
    for part in ("c_attn.weight", "c_attn.bias", "c_proj.weight"):
        assert (trainer.model.parameter(f"h.0.attn.{part}") == before[f"h.0.attn.{part}"]).all()
        assert (trainer.model.parameter(f"h.1.attn.{part}") != before[f"h.1.attn.{part}"]).any()


def test_evaluation_drops_nothing():
    trainer = tiny.Trainer(tiny.model(gated=False), tiny.data(), steps=2, lr=0.0, head_dropout=0.9)
    rows = np.arange(8).reshape(2, 4)
    before = trainer.model.evaluate(rows).cross_entropy
    trainer.train(progress=False)
    assert trainer.model.evaluate(rows).cross_entropy == before


def test_kinds_of_edges_have_their_own_prices():
    """Self edges stay open when they are paid for, while all others close."""
    last = {}
    for price in (None, -1.0):
        trainer = tiny.Trainer(
            tiny.model(), tiny.data(), steps=60, lr=1e-2, tau=10.0, multiplier=1e-3, multiplier_min=1e-3,
            multiplier_max=1e-3, gate_bias=1.0, self_edge_weight=price,
        )  # fmt: skip
        last[price] = trainer.train(progress=False)._history.results[-1]
    assert last[None]["open_edges"] == last[None]["open_self"] == 0
    assert last[-1.0]["open_self"] > 0.05 > last[-1.0]["open_edges"] - last[-1.0]["open_self"]
