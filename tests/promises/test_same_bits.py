"""R24: the same bits of all that is computed: under load, for any number of threads, alone or in a batch."""

import contextlib
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import reliability
from public_calls import small_transcoders
from reliability import micro_batch, report, step_options

import attnsparse as asp
from attnsparse import _core
from attnsparse.circuits import effects
from attnsparse.tasks.task import Task

LENGTHS = (24, 1, 7, 24, 16, 3, 24, 9)
LARGE = {"n_layer": 2, "n_head": 4, "d_model": 64, "n_ctx": 120, "n_vocab": 900, "d_mlp": 256}


def digest(*values: object) -> str:
    """One hash of arrays, of objects that hold arrays as attributes, and of anything else by its repr."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            found.update(repr((value.dtype, value.shape)).encode() + value.tobytes())
        elif isinstance(value, (asp.Circuit, asp.Graph)):
            found.update(digest(*(v for name, v in vars(value).items() if name != "origin")).encode())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()


def task(lengths, n_vocab: int = 96, seed: int = 0) -> Task:
    random = np.random.default_rng(seed)
    clean, corrupted = (
        tuple(random.integers(0, n_vocab, n).astype(np.int32) for n in lengths) for _ in range(2)
    )
    ids = [random.permutation(n_vocab)[:2].astype(np.int32) for _ in lengths]
    answers, wrong = tuple(row[:1].copy() for row in ids), tuple(row[1:].copy() for row in ids)
    halves = np.arange(len(clean)) % 2 == 0
    return Task("random", "logit_diff", None, clean, corrupted, answers, wrong, ("",) * len(clean), halves)


def one_of(whole: Task, i: int) -> Task:
    """The task of one prompt."""
    parts = [getattr(whole, name)[i : i + 1] for name in ("clean", "corrupted", "answers", "wrong", "labels")]
    return Task("one", whole.metric, None, *parts, np.array([True]))


def prompts(n_vocab: int, lengths=LENGTHS, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, n_vocab, n).astype(np.int32) for n in lengths]


def trained(threads: int, n_steps: int) -> str:
    """Weights, moments, and the masks of the trained model."""
    model = reliability.model(n_head=3, d_model=33, d_head=11, d_mlp=37)
    trainer = _core.Trainer(model._core)
    for step in range(n_steps):
        trainer.step([micro_batch((24, 3, 9), seed=step)], **step_options(threads=threads, lr=0.01))
    masks = [model.run(p, "gate", logits="none", threads=threads).gate for p in prompts(96)]
    return digest(*reliability.bits_of_model(model, trainer).values(), *masks)


def everything(threads: int, n_steps: int = 50) -> dict[str, str]:
    """A hash of each kind of result."""
    gated, dense = reliability.model(), reliability.model(1, gated=False)
    large, coders = reliability.model(2, **LARGE), small_transcoders()
    small, common = task((8,) * 6), {"threads": threads, "n_bootstrap": 20, "n_random": 2}
    batch, wide = prompts(96), prompts(900, (120, 80, 120))
    gradients = large.gradients(wide, gate_gradient="straight-through", threads=threads)
    graphs = [asp.attribution_graph(m, coders, batch[0], n_splits=2, threads=threads) for m in (gated, dense)]
    features = coders.features(gated, batch[0], threads=threads)
    run = large.run(wide, ("all", "edges"), threads=threads)
    replaced = coders.replacement_run(gated, batch, record=("attention", "edges"), threads=threads)
    return {
        "run with masks and edges": digest(*reliability.bits_of_run(run).values()),
        "gradients": digest(gradients.loss, *gradients.parameters.values()),
        "training": trained(threads, n_steps),
        "circuit, exact": digest(asp.find_circuit(gated, small, unit="head", method="exact", **common)),
        "circuit of edges": digest(
            asp.find_circuit(gated, small, unit="edge", method="ig", ablation="mean", steps=3, **common)
        ),
        "circuit, attribution": digest(
            asp.find_circuit(dense, small, unit="edge", method="attribution", **common)
        ),
        "features": digest(features.feature, features.position, features.activation, features.error),
        "replacement": digest(*reliability.bits_of_run(replaced).values()),
        "graph, gated": digest(graphs[0], graphs[0].prune(0.8, 0.98)),
        "graph, dense": digest(graphs[1], graphs[1].prune(0.8, 0.98)),
    }


@contextlib.contextmanager
def load(n: int):
    """n processes that use the CPU and its caches."""
    code = "import numpy as np\na = np.ones(1 << 22)\nprint(flush=True)\nwhile True: a += 1e-9"
    busy = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(n)]
    try:
        for process in busy:
            process.stdout.readline()
        assert all(process.poll() is None for process in busy)
        yield
    finally:
        for process in busy:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def on_one_core(wanted: bool):
    if not wanted or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(before)])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("n_repeats", "n_steps"),
    [(2, 5), pytest.param(100, 50, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])],
)
def test_everything_has_the_same_bits_under_load(n_repeats, n_steps):
    """1 to 4 threads in turn, every fifth time on one core, while other processes compute on all cores."""
    expected = everything(1, n_steps)
    with load(os.cpu_count() or 1):
        for repeat in range(n_repeats):
            with on_one_core(repeat % 5 == 1):
                found = everything(1 + (repeat + 1) % 4, n_steps)
            assert [name for name in expected if found[name] != expected[name]] == [], repeat
    if n_repeats > 4:
        report("R24", f"{n_repeats} repeats under load, 1-4 threads, {len(expected)} results: 0 bits differ")


def test_a_different_bit_would_be_seen():
    model = reliability.model()
    run = model.run(prompts(96), ("all", "edges"))
    before = digest(*reliability.bits_of_run(run).values())
    changed = model.parameter("h.1.mlp.c_fc.weight").copy()
    changed[0, 0] = np.nextafter(changed[0, 0], np.float32(np.inf))
    model.assign({"h.1.mlp.c_fc.weight": changed})
    assert digest(*reliability.bits_of_run(model.run(prompts(96), ("all", "edges"))).values()) != before


def different_alone(model: asp.Model, n_vocab: int, seed: int) -> list[str]:
    """Where a prompt alone has other bits than among eight: effects, attributions, features, replacements."""
    whole, coders, different = task(LENGTHS[:1] * 8, n_vocab, seed), small_transcoders(), []
    heads, edges = (effects.candidates(model, whole, unit) for unit in ("head", "edge"))

    def results(some: Task) -> dict[str, np.ndarray]:
        found = {"metric": effects.metric_values(model, some)}
        for ablation in ("zero", "counterfactual"):
            found |= {f"heads, {ablation}": effects.knock_out(model, some, heads, ablation)}
            found |= {f"edges, {ablation}": effects.knock_out(model, some, edges[::29], ablation)}
            found |= {f"kept, {ablation}": effects.keep_only(model, some, edges, [3, 50], ablation)}
        return found

    together = results(whole)
    batch = model.run(prompts(n_vocab, seed=seed), ("all", "edges"))
    replaced = coders.replacement_run(model, prompts(n_vocab, seed=seed), record=("attention", "gate", "z"))
    for i, prompt in enumerate(prompts(n_vocab, seed=seed)):
        alone = results(one_of(whole, i))
        different += [k for k in alone if not np.array_equal(alone[k][..., 0], together[k][..., i])]
        pair = [coders.features(model, source) for source in (prompt, batch[i])]
        for name in ("feature", "position", "activation", "error", "reconstruction"):
            different += [name] * (not np.array_equal(*(getattr(found, name) for found in pair)))
        run = coders.replacement_run(model, prompt, record=("attention", "gate", "z"))
        for name in ("pattern", "gate", "logits", "z"):
            same = np.array_equal(getattr(run, name), getattr(replaced[i], name))
            different += [f"replaced {name}"] * (not same)
    return different


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_effects_and_features_of_a_prompt_alone_have_the_bits_of_a_batch(seed):
    model = reliability.model(seed, gated=seed % 3 < 2, n_vocab=96 + 40 * seed)
    assert different_alone(model, 96 + 40 * seed, seed) == []
    if seed:
        report("R24", f"prompt alone and in a batch of 8, seed {seed}: 0 bits differ")


@pytest.mark.parametrize("n_models", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_masks_in_float64_alone_and_in_a_batch(n_models):
    """float64 is the one path without equal bits in a batch: 1e-6, and equal masks off the threshold."""
    worst, near = 0.0, 0
    for seed in range(n_models):
        model = reliability.model(seed, dtype="float64", **LARGE)
        batch = model.run(prompts(900, seed=seed), "all")
        for i, prompt in enumerate(prompts(900, seed=seed)):
            alone = model.run(prompt, "all")
            seen = np.isfinite(alone.scores)
            far = seen & (np.abs(np.where(seen, alone.scores, 0) + model.config.gate_bias) > 1e-5)
            near += int((seen & ~far).sum())
            assert np.array_equal(alone.gate[far], batch[i].gate[far])
            for name in ("logits", "pattern", "z", "resid_post"):
                expected = getattr(alone, name)
                size = max(np.abs(expected).max(), 1e-30)  # closed gates leave z at 0
                difference = np.abs(getattr(batch[i], name) - expected).max() / size
                worst = max(worst, float(difference))
    assert worst <= 1e-6
    if n_models > 4:
        report("R24", f"float64 alone and in a batch: {worst:.1e}, masks equal, {near} scores within 1e-5")
