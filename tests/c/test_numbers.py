"""NaN, infinities and subnormal numbers: they stay where they belong, reach the output and never linger."""

import numpy as np
import pytest
import reliability
from reliability import TOKENS, bits_of_run, micro_batch, step_options

import attnsparse as asp
from attnsparse import _core

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_nan_stays_where_it_belongs(threads):
    """NaN in one token's embedding: only that prompt's run has it, from that position on."""
    model = reliability.model(gated=False)
    embedding = model.parameter("wte.weight").copy()
    embedding[7] = NAN
    clean = model.run([[1, 2, 3, 4], [5, 6]])
    model.assign({"wte.weight": embedding})
    run = model.run([[1, 2, 7, 4], [5, 6], [7]], "resid_post", logits="none", threads=threads)
    assert np.isnan(run[0].resid_post[:, 2:]).all()
    assert not np.isnan(run[0].resid_post[:, :2]).any()
    assert not np.isnan(run[1].resid_post).any()
    assert np.isnan(run[2].resid_post).all()
    again = model.run([[1, 2, 7, 4], [5, 6], [7]], "resid_post", logits="none", threads=1)
    assert bits_of_run(again) == bits_of_run(run)
    assert not np.isnan(clean.logits if len(set(clean._batch.lengths)) == 1 else clean[0].logits).any()


@pytest.mark.parametrize("gated", [False, True])
def test_nan_in_norms_scores_and_edges(gated):
    model = reliability.model(gated=gated)
    bias = model.parameter("h.1.attn.c_attn.bias").copy()
    bias[128] = NAN  # one value of head 0
    model.assign({"h.1.attn.c_attn.bias": bias})
    run = model.run(TOKENS, record=("attention", "edges", "scores"))
    value, output, projection = run.value_norms(np.ones(64))
    for norms in (value, output, projection):
        assert np.isnan(norms[1, 0]).all()
        assert not np.isnan(norms[0]).any()
    assert np.isnan(run.value_norms(np.full(64, NAN))[2]).all()
    bias[128], bias[64] = 0, NAN  # now one key of head 0
    model.assign({"h.1.attn.c_attn.bias": bias})
    runs = [model.run(TOKENS, record=("attention", "edges", "scores"), threads=n) for n in (1, 2)]
    rows, columns = np.tril_indices(len(TOKENS))
    assert np.isnan(runs[0].scores[1, 0][rows, columns]).all()
    assert np.isnan(runs[0].entry_scores([1], [0], [3], [2])[0]).all()
    assert np.isnan(runs[0].logits).any()
    assert bits_of_run(runs[0]) == bits_of_run(runs[1])


def test_nan_from_a_diverged_step_does_not_linger():
    """Scratch of a step that diverged is used again by the next one: nothing of it may be left there."""
    model, twin = reliability.model(), reliability.model()
    trainer, other = _core.Trainer(model._core), _core.Trainer(twin._core)
    good = model.parameter("wte.weight").copy()
    model.assign({"wte.weight": np.full_like(good, NAN)})
    for _ in range(2):
        with pytest.raises(asp.TrainingDiverged):
            trainer.step([micro_batch((24, 24, 9))], **step_options())
    model.assign({"wte.weight": good})
    for lengths in ((3,), (24, 1), (1,), (24, 24, 9)):
        found = trainer.step([micro_batch(lengths)], **step_options())
        assert found == other.step([micro_batch(lengths)], **step_options())
    assert reliability.bits_of_model(model, trainer) == reliability.bits_of_model(twin, other)


def test_steps_do_not_depend_on_the_sizes_of_earlier_ones():
    """The scratch of a large step, used again by a small one, gives the bits of fresh scratch."""
    model, twin = reliability.model(), reliability.model()
    trainer, other = _core.Trainer(model._core), _core.Trainer(twin._core)
    for one in (trainer, other):
        one.step([micro_batch((24, 24, 24, 24))], **step_options())
    for lengths in ((2,), (7, 1), (24,)):
        fresh = _core.Trainer(twin._core)
        for name in twin.parameters():
            fresh.load_moments(name, *other.moments(name))
        fresh.step_count, fresh.multiplier, fresh.ema = other.step_count, other.multiplier, other.ema
        other = fresh
        trainer.step([micro_batch(lengths)], **step_options())
        other.step([micro_batch(lengths)], **step_options())
        assert reliability.bits_of_model(model, trainer) == reliability.bits_of_model(twin, other)


@pytest.mark.parametrize("value", [NAN, INF, -INF, 3.4e38, 1e-45, -0.0])
def test_any_value_in_dlogits_and_direction(value):
    model = reliability.model()
    dlogits = np.zeros((len(TOKENS), 96), np.float32)
    dlogits[2, 5] = value
    gradients = model.gradients(TOKENS, dlogits=dlogits, wrt=("parameters", "pattern"))
    same = model.gradients(TOKENS, dlogits=dlogits, wrt=("parameters", "pattern"), threads=3)
    assert bits_of_run(gradients) == bits_of_run(same)
    if not np.isfinite(value):
        assert not np.isfinite(gradients.parameters["ln_f.bias"]).all()
        assert not np.isfinite(gradients.loss)
    direction = np.zeros(64, np.float32)
    direction[1] = value
    projection = model.run(TOKENS).value_norms(direction)[2]
    assert np.isfinite(projection).all() == np.isfinite(value) or abs(value) > 1e38


def test_subnormal_weights_are_kept():
    """No flush to zero: a sum of the smallest numbers comes out exactly."""
    model = reliability.model(gated=False)
    tiny = np.float32(1e-45)
    zeros = {name: np.zeros_like(array) for name, array in model.parameters().items()}
    model.assign(zeros | {"wte.weight": np.full((96, 64), tiny), "wpe.weight": np.full((24, 64), tiny)})
    run = model.run(TOKENS, record="resid_post", threads=2)
    assert (run.resid_post == tiny + tiny).all()
    assert (tiny + tiny) > tiny
