"""Sweeps compute a row that several variants have in common once: the same values, and fewer rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from circuit_cases import CONFIGS, case, error

import attnsparse as asp
from attnsparse import tasks
from attnsparse._core_types import Metric, Reference
from attnsparse.circuits import effects, effects_sweep
from attnsparse.model.build_info import batch_invariant

CLOSED, NEVER = 2**31 - 1, 2**31 - 2
MEMORY = 2**40


def swept(
    core, lengths, unit, kind="zero", metric="logit_diff", *, variants, order, threads=2, count=False, seed=0
):
    """`_core.Model.sweep` of random prompts of these lengths."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens, paired = rng.integers(0, core.config["n_vocab"], (2, offsets[-1])).astype(np.int32)
    clean = core.run(tokens, offsets, ("resid", "qkv"), 0, MEMORY, None, threads)
    reference = Reference()
    if kind != "zero":
        run = core.run(paired, offsets, ("z", "pattern", "qkv"), 0, MEMORY, None, threads)
        z = run.array("z")
        means = z.reshape(len(z), len(lengths), -1, *z.shape[2:]).mean(axis=1) if kind == "mean" else None
        entries = run.mean_entries() if unit == 2 and kind == "mean" else None
        reference = Reference(run) if means is None else Reference(None, np.ascontiguousarray(means), entries)
    starts = 2 * np.arange(len(lengths) + 1, dtype=np.int64)
    right, wrong = rng.integers(0, core.config["n_vocab"], (2, starts[-1])).astype(np.int32)
    logits = core.run(tokens, offsets, (), 1, MEMORY).array("logits") if metric == "kl" else None
    asked = Metric(metric, starts, right, starts, wrong, logits)
    options = {"count": True} if count else {}
    return core.sweep(clean, np.array(variants, np.int64), unit, order, reference, asked, threads, **options)


def places(config, unit: int, length: int) -> int:
    return config["n_layer"] * config["n_head"] * length**unit


def order_with_holes(config, unit: int, length: int) -> np.ndarray:
    """Ranks: some given twice, some left out, some negative, never kept, or closed."""
    rng = np.random.default_rng(1)
    n = places(config, unit, length)
    order, kind = 3 * rng.permutation(n), rng.random(n)
    order[kind < 0.25] //= 7
    for limit, rank in ((0.2, NEVER), (0.15, CLOSED), (0.1, -1)):
        order[kind < limit] = rank
    return order.astype(np.int32)


def assorted(config, unit: int, lengths) -> list[list[int]]:
    """Curves in both directions, the same variant twice, exceptions, every scope, every start."""
    rng = np.random.default_rng(2)
    n_layer, most = config["n_layer"], 3 * places(config, unit, lengths[0])
    found = []
    for b, length in enumerate(lengths):
        curve = [0, 1, 2, 5, most // 4, most // 4 + 1, most // 2, most - 1, most, most]
        found += [[b, 0, 0, 0, 0, n, -1] for n in (*curve, *curve[::-3])]
        found += [[b, 0, 0, 0, n, most - n, 3 * n] for n in range(6)]
        for _ in range(4):
            start, first = int(rng.integers(n_layer)), int(rng.integers(length))
            for scope in (0, 1, 2) if start < n_layer - 1 else (0,):
                found += [
                    [b, start, first, scope, 0, most, int(dropped)] for dropped in rng.integers(-2, most, 3)
                ]
        found.append([b, n_layer - 1, length - 1, 0, 0, 0, -1])
    return found


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("unit", [0, 1, 2])
@pytest.mark.parametrize("kind", ["zero", "mean", "counterfactual"])
def test_variants_together_are_variants_alone(name, unit, kind):
    """One variant of a call has no other one to share with."""
    config = case(name).config
    lengths = (3, 9, 1) if unit == 0 and kind != "mean" else (7, 7)
    variants, order = assorted(config, unit, lengths), order_with_holes(config, unit, lengths[0])
    for dtype, metric in (("float64", "logit_diff"), ("float32", "kl")):
        core = case(name).model(dtype)._core
        given = {"order": order, "metric": metric}
        together = swept(core, lengths, unit, kind, variants=variants, **given)
        alone = np.concatenate([swept(core, lengths, unit, kind, variants=[v], **given) for v in variants])
        assert error(together, alone) < (1e-12 if dtype == "float64" else 1e-5)
        if dtype == "float32" and batch_invariant():
            np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("unit", [0, 1, 2])
@pytest.mark.parametrize("metric", ["logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl"])
def test_threads_and_metrics(unit, metric):
    core = case("gated").model("float32")._core
    given = {
        "variants": assorted(core.config, unit, (5, 5, 5)),
        "order": order_with_holes(core.config, unit, 5),
        "metric": metric,
    }
    one = swept(core, (5, 5, 5), unit, threads=1, **given)
    for threads in (2, 3, 4):
        np.testing.assert_array_equal(swept(core, (5, 5, 5), unit, threads=threads, **given), one)


# ----------------------------------------------------------------------------------- rows


def own_rows(config, unit: int, length: int, order: np.ndarray, sizes) -> int:
    """Rows of a curve that differ from those of the size before, by what each depends on."""
    n_layer, n_head = config["n_layer"], config["n_head"]
    ranks = order.reshape(n_layer, n_head, *[length] * unit)
    if unit == 2:
        ranks = np.where(np.tri(length, dtype=bool), ranks, -1)
    found, before = 0, None
    for n in sizes:
        ablated = (ranks >= n) & (ranks >= 0)
        if unit == 0:
            ablated = np.broadcast_to(ablated[..., None], (n_layer, n_head, length))
        for layer, t in itertools.product(range(1, n_layer + 1), range(length)):
            if layer == n_layer and t < length - 1:
                continue
            here = [ablated[: layer - 1, :, : t + 1], ablated[layer - 1, :, t]]
            if before is None:
                found += 1
                continue
            there = [before[: layer - 1, :, : t + 1], before[layer - 1, :, t]]
            found += any((a != b).any() for a, b in zip(here, there))
        before = ablated
    return found


@pytest.mark.parametrize("unit", [0, 1, 2])
@pytest.mark.parametrize("name", ["dense", "relu, layer scale", "one layer, untied"])
def test_only_rows_that_differ_are_computed(unit, name):
    core, length = case(name).model()._core, 6
    n = places(core.config, unit, length)
    order = np.random.default_rng(3).permutation(n).astype(np.int32)
    sizes = sorted({0, 1, 2, 3, 4, 5, n // 3, n // 3 + 1, n // 2, n - 1, n})
    variants = [[0, 0, 0, 0, 0, size, -1] for size in sizes]
    _, computed, separate = swept(core, (length,), unit, variants=variants, order=order, count=True)
    n_layer = core.config["n_layer"]
    assert separate == len(sizes) * ((n_layer - 1) * length + 1)
    assert computed == own_rows(core.config, unit, length, order, sizes)
    assert computed < separate or (unit == 0 and n_layer == 1)


def test_the_same_variant_costs_nothing_twice():
    core = case("dense").model()._core
    order = np.arange(places(core.config, 0, 5), dtype=np.int32)
    _, once, _ = swept(core, (5,), 0, variants=[[0, 0, 0, 0, 0, 4, -1]], order=order, count=True)
    values, rows, separate = swept(
        core, (5,), 0, variants=[[0, 0, 0, 0, 0, 4, -1]] * 9, order=order, count=True
    )
    assert (rows, separate) == (once, 9 * once)
    assert len(set(values.tolist())) == 1


@pytest.mark.parametrize("role", ["demo-dense", "demo-sparse"])
@pytest.mark.parametrize("unit", ["head", "edge"])
def test_a_curve_costs_less_than_its_passes(role, unit):
    """The share of rows that a keep-only curve of a demo model computes; printed with -s."""
    model = asp.load(role)
    for name in ("copy", "antonym", "ioi", "greater_than"):
        task = tasks.make_task(name, model._need_tokenizer(), n=4, seed=0)
        items = effects.candidates(model, task, unit)
        scores = effects.attribution(model, task, unit)[tuple(items.T)]
        items = items[np.argsort(-np.abs(scores), kind="stable")]
        sizes = np.unique(np.r_[: min(33, len(items) + 1), np.geomspace(1, len(items), 60).astype(int)])
        sweep = effects_sweep.AblationSweep(model, task, unit, "zero", None, None, None)
        batch = sweep.batch(task.clean)
        variants = [[b, 0, 0, 0, 0, n, -1] for b in range(len(task)) for n in sizes]
        _, computed, separate = model._core.sweep(
            sweep.run(batch, ("resid", "qkv")),
            np.array(variants, np.int64),
            effects.UNITS.index(unit),
            sweep.order(items, NEVER).ravel(),
            Reference(),
            sweep.metric(batch, 0, len(task)),
            count=True,
        )
        print(f"{role}, {name}, {len(items)} {unit}s, {len(sizes)} sizes: {computed / separate:.3f}")
        assert computed < 0.8 * separate
