"""Held-out sequences in training: what is measured, the constraint on it, the best one, patience."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tiny_training as tiny

import attnsparse as asp
from attnsparse.errors import CheckpointError
from attnsparse.training.checkpoint import checkpoint_name, checkpoint_steps
from attnsparse.training.held_out import HeldOutResult
from attnsparse.training.schedules import jump
from attnsparse.training.trainer import BEST, Trainer

ROWS = np.random.default_rng(3).integers(0, 10, (6, 8)).astype(np.int32)


def trainer(steps: int = 20, **changes) -> Trainer:
    how = {name: changes.pop(name) for name in ("folder", "keep_best", "patience") if name in changes}
    options = tiny.options(steps, **({"evaluate_every": 4} | changes))
    return Trainer(tiny.model(), tiny.data(), options, held_out=ROWS, **how)


def test_evaluations_are_those_of_the_model_in_use():
    run = trainer(10)
    history = run.train(progress=False).history()
    assert history["held_out_ce"].notna().tolist() == [step + 1 in (4, 8, 10) for step in range(10)]
    found = run.model.evaluate(ROWS)
    last = history.iloc[-1]
    assert last.held_out_ce == found.cross_entropy
    assert last.held_out_edges_per_token == found.open_edges.sum() / ROWS.size
    gate = run.model.run(list(ROWS), record="gate").gate
    own = np.count_nonzero(np.diagonal(gate, axis1=3, axis2=4))
    assert last.held_out_self_edges_per_token == own / ROWS.size > 0


def test_evaluation_changes_no_step():
    plain = Trainer(tiny.model(), tiny.data(), tiny.options(8)).train(progress=False)
    assert trainer(8).train(progress=False).model.digest == plain.model.digest


def test_edges_per_token_follow_from_the_shares():
    run = trainer(3).train(progress=False)
    row, result = run.history().iloc[-1], run._history.results[-1]
    config = run.model.config
    lengths = np.concatenate([np.diff(tiny.data().batch(2, micro)[1]) for micro in range(2)])
    entries = config.n_layer * config.n_head * (lengths * (lengths + 1) / 2).sum() / lengths.sum()
    assert row.edges_per_token == pytest.approx(row.open_edges * entries, rel=1e-12)
    assert row.self_edges_per_token == pytest.approx(result["open_self"] * entries, rel=1e-12)


def test_a_resumed_run_has_the_same_bytes(tmp_path):
    expected = tmp_path / "whole.safetensors"
    trainer(12, constraint="held-out").train(progress=False).save(expected)
    path = tmp_path / "part.safetensors"
    for k in (2, 4, 7):
        trainer(12, constraint="held-out").train(until=k, progress=False).save(path)
        Trainer.resume(path, tiny.data(), held_out=ROWS).train(progress=False).save(path)
        assert path.read_bytes() == expected.read_bytes(), k


def test_a_resume_needs_the_same_sequences(tmp_path):
    path = tmp_path / "a.safetensors"
    trainer(12).train(until=5, progress=False).save(path)
    with pytest.raises(CheckpointError, match="resume with the same ones") as caught:
        Trainer.resume(path, tiny.data(), held_out=ROWS[:3])
    assert caught.value.code == "held_out"
    with pytest.raises(CheckpointError, match="the resume has none"):
        Trainer.resume(path, tiny.data())


def constrained(run: Trainer) -> np.ndarray:
    return np.array([result["constrained"] for result in run.train(progress=False)._history.results])


def test_what_the_constraint_compares():
    run = trainer(9, constraint="held-out")
    measured = constrained(run)
    held = run.history()["held_out_ce"]
    assert np.isnan(measured[:4]).all()
    np.testing.assert_array_equal(measured[4:], [held[3]] * 4 + [held[7]])
    # nothing is random: the hard cross-entropy is that of evaluation, the one of training is not
    dropout = ("entry_dropout", "head_dropout", "attn_out_dropout", "mlp_out_dropout")
    still = {"lr": 0.0, "gate_bias": None, **dict.fromkeys(dropout, 0.0)}
    run = Trainer(tiny.model(), tiny.data(), tiny.options(1, constraint="hard", **still))
    hard = constrained(run)[0]
    total = weight = 0.0
    for micro in range(2):
        tokens, offsets, targets, weights = tiny.data().batch(0, micro)
        for begin, end in itertools.pairwise(offsets):
            found = asp.model.evaluation.token_losses(
                run.model.run(tokens[begin:end]).logits, targets[begin:end]
            )
            total += float(found @ weights[begin:end])
            weight += weights[begin:end].sum()
    assert hard == pytest.approx(total / weight, rel=1e-5)
    assert hard != run._history.results[0]["ce"]
    options = tiny.options(1, constraint="hard", gate_noise=False, **still)
    run = Trainer(tiny.model(), tiny.data(), options)
    assert constrained(run)[0] == run._history.results[0]["ce"] == hard


def test_the_multiplier_follows_the_number_of_edges():
    multipliers = {}
    for target in (0.01, 1000.0):
        run = Trainer(
            tiny.model(), tiny.data(), steps=30, lr=1e-3, constraint="edges", edges_per_token=target,
            multiplier=1.0, multiplier_min=1e-4, multiplier_max=1e4, geco_rate=0.1,
        )  # fmt: skip
        values = constrained(run)
        np.testing.assert_array_equal(values, run.history()["edges_per_token"])
        multipliers[target] = run.multiplier
    assert multipliers[0.01] < 0.2 < 5 < multipliers[1000.0]


def test_the_best_has_the_fewest_edges_within_the_limit(tmp_path):
    run = trainer(24, folder=tmp_path, keep_best=True, tau=100.0, slack=0.0)
    run.train(progress=False)
    edges = run.history()["held_out_edges_per_token"].dropna()
    best = run.best
    assert best is not None
    assert best.step == edges.idxmin() + 1
    assert best.edges_per_token == edges.min() < edges.iloc[0]
    kept = Trainer.resume(tmp_path / BEST, tiny.data(), held_out=ROWS)
    assert kept.step_count == best.step
    assert kept.model.evaluate(ROWS).cross_entropy == best.ce
    assert trainer(8, tau=1e-3, slack=0.0).train(progress=False).best is None


def test_the_best_dense_model_has_the_least_cross_entropy():
    run = Trainer(
        tiny.model(gated=False), tiny.data(), steps=12, lr=1e-2, evaluate_every=3, held_out=ROWS
    ).train(progress=False)
    assert run.best is not None
    assert run.best.ce == run.history()["held_out_ce"].min()


EDGES = {"constraint": "edges", "tau": None}


@pytest.mark.parametrize(
    ("options", "found", "step"),
    [
        ({"tau": 2.0, "slack": 0.5}, [(4, 2.4, 30), (8, 2.6, 10), (12, 2.5, 20), (16, 2.0, 40)], 12),
        ({"tau": 2.0, "slack": jump(1.0, 0.0, 0.5)}, [(16, 2.9, 15), (24, 2.1, 10), (28, 2.0, 20)], 16),
        ({**EDGES, "edges_per_token": 20.0}, [(4, 2.6, 15), (8, 1.0, 21), (12, 2.5, 20), (16, 2.8, 5)], 12),
        ({**EDGES, "edges_per_token": jump(30.0, 9.0, 0.5)}, [(16, 2.0, 25), (24, 1.0, 10), (28, 3, 9)], 16),
        ({**EDGES, "edges_per_token": 20.0}, [(4, 1.0, 21), (8, 1.1, 30)], None),
    ],
    ids=["tau", "tau falls", "edges", "edges fall", "none"],
)
def test_the_best_of_a_gated_model_keeps_the_limit_of_its_step(options, found, step):
    run = trainer(40, **options)
    run._held_out.results = [HeldOutResult(*row, 0.0) for row in found]
    assert (run.best and run.best.step) == step


STILL = {"evaluate_every": 2, "lr": 0.0, "gate_bias": None, "tau": 100.0, "slack": 0.0}  # the first is best


def test_patience_ends_a_run_and_its_last_step_is_saved(tmp_path):
    run = trainer(40, folder=tmp_path, patience=2, **STILL).train(progress=False)
    assert run.step_count == 6  # two evaluations after the best one
    assert not run.finished
    assert checkpoint_steps(tmp_path) == [6]
    file = tmp_path / checkpoint_name(6)
    assert asp.load(file).digest == run.model.digest
    written = file.stat()
    run.train(progress=False)
    how = {"held_out": ROWS, "folder": tmp_path, "patience": 2}
    resumed = Trainer.resume(tmp_path, tiny.data(), **how).train(progress=False)
    assert run.step_count == resumed.step_count == 6
    assert checkpoint_steps(tmp_path) == [6]
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


@pytest.mark.parametrize("k", [1, 4, 5])
def test_a_resumed_run_ends_by_patience_with_the_same_bytes(tmp_path, k):
    whole, part = tmp_path / "whole", tmp_path / "part"
    trainer(40, folder=whole, patience=2, **STILL).train(progress=False)
    first = trainer(40, folder=part, patience=2, **STILL).train(until=k, progress=False)
    first.save(part / checkpoint_name(k))
    how = {"held_out": ROWS, "folder": part, "patience": 2}
    Trainer.resume(part, tiny.data(), **how).train(progress=False)
    assert checkpoint_steps(part) == [k, 6]
    assert (part / checkpoint_name(6)).read_bytes() == (whole / checkpoint_name(6)).read_bytes()


def test_patience_counts_from_the_first_evaluation_within_the_limit():
    run = trainer(8, patience=1, **{**STILL, "tau": 1e-3}).train(progress=False)
    assert run.finished
    assert run.best is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"evaluate_every": 0}, "held_out sequences need evaluate_every"),
        ({"keep_best": True}, "keep_best needs a folder"),
        ({"constraint": "soft"}, "constraint"),
        ({"constraint": "edges"}, "edges_per_token is required"),
        ({"edges_per_token": 3.0}, "edges_per_token is for constraint='edges'"),
        ({"constraint": "edges", "edges_per_token": 3.0}, "tau is a largest cross-entropy"),
        ({"constraint": "held-out", "evaluate_every": 0}, "needs evaluate_every"),
        ({"edges_per_token": 0.0, "constraint": "edges"}, "edges_per_token must stay in"),
    ],
)
def test_wrong_options_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        trainer(8, **changes)


def test_what_needs_held_out_sequences_says_so():
    with pytest.raises(ValueError, match="evaluate_every=3 needs held_out"):
        Trainer(tiny.model(), tiny.data(), steps=5, tau=1, evaluate_every=3)
    with pytest.raises(ValueError, match="patience need held_out"):
        Trainer(tiny.model(), tiny.data(), steps=5, tau=1, patience=3)
