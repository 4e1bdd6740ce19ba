"""Threads: the same bits for any number of them and in any company, and a GIL that others can have."""

import contextlib
import itertools
import os
import sys
import threading
import time
from functools import partial
from typing import Any

import alone
import numpy as np
import pytest
import reliability
from alone import same_bits_or_close
from public_calls import small_task
from reliability import bits_of_model, bits_of_run, micro_batch, step_options

import attnsparse as asp
from attnsparse import _core, _core64
from attnsparse.circuits import COMPONENT_METHODS, component_scores, effects

LINUX = sys.platform.startswith("linux")
THREADS = (1, 2, 3, 4)
EVERYTHING = ("all", "edges")
# widths below and above every block size: of the kernels' vectors, of BLAS's small products, of the LM head
WIDTHS = {
    "tiny": {"n_head": 2, "d_model": 8, "d_mlp": 16, "n_vocab": 11},
    "odd": {"n_head": 3, "d_model": 33, "d_head": 11, "d_mlp": 37, "n_vocab": 131},
    "usual": {},
    "narrow heads": {"n_head": 8, "d_model": 64, "d_head": 8, "d_mlp": 192, "n_vocab": 800},
    "one wide head": {"n_head": 1, "d_model": 96, "d_mlp": 385, "n_vocab": 1000},
    "wide": {"n_head": 4, "d_model": 256, "d_mlp": 1024, "n_vocab": 1500},
}
LENGTHS = (1, 5, 24, 2, 9, 24)


def prompts_of(model: asp.Model, lengths=LENGTHS, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, model.config.n_vocab, n).astype(np.int32) for n in lengths]


def results(model: asp.Model, prompts, threads: int) -> dict[str, bytes]:
    """All of a run, its edges and its gradients as bytes."""
    run = model.run(prompts, record=EVERYTHING, edge_threshold=0.01, threads=threads)
    gradients = model.gradients(
        prompts, wrt=("parameters", "pattern", "q", "z"), gate_gradient="straight-through", threads=threads
    )
    found = bits_of_run(run) | {f"d {name}": value for name, value in bits_of_run(gradients).items()}
    found |= {f"d {name}": array.tobytes() for name, array in gradients.parameters.items()}
    return found | {"loss": repr((run.loss, gradients.loss)).encode()}


# -------------------------------------------------------------------------------------------- same bits


@pytest.mark.parametrize("width", WIDTHS)
def test_runs_and_gradients_have_the_same_bits(width):
    model = reliability.model(**WIDTHS[width])
    prompts = prompts_of(model)
    expected = results(model, prompts, 1)
    for threads in THREADS:
        assert results(model, prompts, threads) == expected, threads


@pytest.mark.parametrize("ablation", effects.ABLATIONS)
@pytest.mark.parametrize("width", WIDTHS)
def test_effects_have_the_same_bits(width, ablation):
    model, task = reliability.model(**WIDTHS[width]), task_of(width)
    heads, edges = effects.candidates(model, task, "head"), effects.candidates(model, task, "edge")[::7]

    def found(threads: int) -> list[bytes]:
        common = {"threads": threads}
        return [
            effects.knock_out(model, task, heads, ablation, metric="prob_diff", **common).tobytes(),
            effects.knock_out(model, task, edges, ablation, **common).tobytes(),
            effects.keep_only(model, task, edges, [0, 1, len(edges)], ablation, **common).tobytes(),
            effects.attribution(model, task, "edge", ablation, steps=3, **common).tobytes(),
        ]

    expected = found(1)
    assert all(found(threads) == expected for threads in THREADS)


@pytest.mark.parametrize("method", COMPONENT_METHODS)
@pytest.mark.parametrize("width", WIDTHS)
def test_component_scores_have_the_same_bits(width, method):
    model, task = reliability.model(**WIDTHS[width]), task_of(width)

    def found(threads: int) -> bytes:
        return component_scores(model, task, method=method, steps=3, threads=threads).scores.tobytes()

    expected = found(1)
    assert all(found(threads) == expected for threads in THREADS)


def task_of(width: str):
    """The small task with tokens that the model of this width has."""
    return small_task(WIDTHS[width].get("n_vocab", 96))


@pytest.mark.parametrize("n_repeats", [10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_repeats_have_the_same_bits(dtype, n_repeats):
    model = reliability.model(dtype=dtype, **WIDTHS["odd"])
    prompts = prompts_of(model)
    expected = results(model, prompts, 1)
    for repeat in range(n_repeats):
        assert results(model, prompts, 1 + repeat % 4) == expected, repeat


def trained(threads: int, n_steps: int, width: str, gated: bool) -> dict[str, bytes]:
    model = reliability.model(gated=gated, **WIDTHS[width])
    trainer = _core.Trainer(model._core)
    lengths = [(24, 3, 9), (5,), (17, 17), (1, 2, 24, 8)]
    steps = []
    for step in range(n_steps):
        micro = [micro_batch(lengths[(step + i) % 4], model.config.n_vocab, seed=step) for i in range(2)]
        steps.append(trainer.step(micro, **step_options(threads=threads, edge_weight=[1.0, 2.0])))
    return bits_of_model(model, trainer) | {"steps": repr(steps).encode()}


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("width", ["tiny", "odd", "wide"])
def test_fifty_training_steps_have_the_same_bits(width, gated):
    n_steps = 10 if width == "wide" else 50
    expected = trained(1, n_steps, width, gated)
    for threads in THREADS[1:]:
        assert trained(threads, n_steps, width, gated) == expected


def test_the_number_of_threads_may_change_between_steps():
    expected = trained(1, 8, "usual", True)
    model = reliability.model()
    trainer = _core.Trainer(model._core)
    assert trained(4, 8, "usual", True) == trained(2, 8, "usual", True) == expected
    for threads in (4, 1, 3):
        trainer.step([micro_batch()], **step_options(threads=threads))


def alone_and_together(model: asp.Model, prompts, threads: int) -> list[str]:
    """Names of arrays in which a prompt alone differs from the same prompt among others."""
    batch = model.run(prompts, record=EVERYTHING, threads=threads)
    different = []
    for i, prompt in enumerate(prompts):
        one = model.run(prompt, record=EVERYTHING, threads=1)
        names = [name for name in one.recorded if name != "edges"]
        different += [n for n in names if not same_bits_or_close(getattr(batch[i], n), getattr(one, n))]
        pairs = zip(one.edge_arrays(), batch[i].edge_arrays())
        different += ["edges"] * (not all(same_bits_or_close(b, a) for a, b in pairs))
    return different


@pytest.mark.parametrize("width", WIDTHS)
def test_a_prompt_alone_has_the_bits_of_the_prompt_in_a_batch(width):
    model = reliability.model(**WIDTHS[width])
    for seed, lengths in enumerate([LENGTHS, (24,) * 8, (1,) * 7, (3, 24, 1)]):
        assert alone_and_together(model, prompts_of(model, lengths, seed), 1 + seed) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_in_float64_it_has_nearly_the_bits(width):
    """The same bits are promised in float32 only."""
    model = reliability.model(dtype="float64", **WIDTHS[width])
    prompts = prompts_of(model)
    batch = model.run(prompts, "all", threads=2)
    for i, prompt in enumerate(prompts):
        one = model.run(prompt, "all", threads=1)
        for name in one.recorded:
            assert np.allclose(getattr(batch[i], name), getattr(one, name), rtol=1e-10, atol=1e-10), name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_many_widths_alone_and_in_batches(seed):
    random = np.random.default_rng(seed)
    n_head, d_head = int(random.integers(1, 9)), int(random.choice([1, 3, 8, 16, 40, 64]))
    shape = {"n_head": n_head, "d_head": d_head, "d_model": int(random.integers(3, 400)), "n_ctx": 80}
    shape |= {"d_mlp": int(random.integers(1, 1200)), "n_vocab": int(random.integers(2, 3000))}
    model = reliability.model(seed, **shape)
    lengths = tuple(int(n) for n in random.integers(1, 81, 6))
    assert alone_and_together(model, prompts_of(model, lengths, seed), 2) == []


def test_the_package_says_so_too():
    info = asp.build_info()
    if info["blas_core"] not in alone.PROMISED:
        pytest.skip(f"equal bits are not promised for {info['blas_core']}")
    assert info["batch_invariant"]


# ---------------------------------------------------------------------------------------- Python threads


def in_threads(n: int, call) -> None:
    """Run call(0), ..., call(n - 1) at the same time; the first exception is raised here."""
    failed: list[BaseException] = []

    def work(i: int) -> None:
        try:
            call(i)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


@pytest.mark.parametrize("seconds", [1.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_many_threads_share_one_model(seconds):
    """Runs, gradients, NumPy's own products and training of other models: all as if alone."""
    model = reliability.model()
    prompts = [prompts_of(model, seed=seed) for seed in range(4)]
    expected = [results(model, p, 1) for p in prompts]
    steps = trained(1, 4, "tiny", True)
    matrices = [np.random.default_rng(i).standard_normal((70, 90)).astype(np.float32) for i in range(2)]
    products = [f(*matrices).tobytes() for f in (lambda a, b: a @ b.T, lambda a, b: a.T @ b)]
    end = time.monotonic() + seconds

    def work(i: int) -> None:
        while True:
            assert results(model, prompts[i % 4], 1 + i % 3) == expected[i % 4]
            if i == 4:
                assert trained(2, 4, "tiny", True) == steps
            assert (matrices[0] @ matrices[1].T).tobytes() == products[0]
            assert (matrices[0].T @ matrices[1]).tobytes() == products[1]
            if time.monotonic() > end:
                return

    in_threads(5, work)
    model.assign({"ln_f.weight": np.ones(64)})  # no reader was left behind


def long_steps(model: asp.Model, running: threading.Event, until: threading.Event) -> None:
    trainer = _core.Trainer(model._core)
    batch = micro_batch((24,) * 40)
    running.set()
    while not until.is_set():
        with contextlib.suppress(RuntimeError):  # the other thread was first
            trainer.step([batch] * 4, **step_options(threads=1))


def test_a_run_while_training_is_refused():
    model, running, until = reliability.model(), threading.Event(), threading.Event()
    thread = threading.Thread(target=long_steps, args=(model, running, until))
    thread.start()
    refused: dict[str, str] = {}
    calls = {
        "run": lambda: model.run([1, 2], threads=1),
        "gradients": lambda: model.gradients([1, 2], threads=1),
        "assign": lambda: model.assign({"ln_f.weight": np.ones(64)}),
    }
    try:
        running.wait()
        end = time.monotonic() + 20
        while len(refused) < len(calls) and time.monotonic() < end:
            time.sleep(0.01)  # the other thread's turn
            for name, call in calls.items():
                try:
                    call()
                except RuntimeError as error:
                    refused[name] = str(error)
    finally:
        until.set()
        thread.join()
    assert set(refused) == set(calls)
    assert all("another thread" in text and "copy" in text for text in refused.values())
    for call in calls.values():
        call()


def test_a_change_while_running_is_refused():
    """A step of training while a run is under way: nothing of it happens."""
    model, until, refused = reliability.model(), threading.Event(), []
    prompts = prompts_of(model, (24,) * 200)
    trainer = _core.Trainer(model._core)

    def runs() -> None:
        while not until.is_set():
            with contextlib.suppress(RuntimeError):  # the other thread was first
                model.run(prompts, threads=1)

    thread = threading.Thread(target=runs)
    thread.start()
    end = time.monotonic() + 20
    try:
        while len(refused) < 6 and time.monotonic() < end:
            time.sleep(0.01)  # the other thread's turn
            before = bits_of_model(model, trainer)
            try:
                trainer.step([micro_batch((2,))], **step_options(threads=1))
            except RuntimeError as error:
                refused.append(str(error))
                assert bits_of_model(model, trainer) == before
    finally:
        until.set()
        thread.join()
    assert len(refused) == 6
    assert all("in use in another thread" in text for text in refused)


def test_two_steps_of_one_trainer_at_once():
    """Each step is either taken or refused, and the refused ones leave no trace."""
    model, twin = reliability.model(), reliability.model()
    trainer, other = _core.Trainer(model._core), _core.Trainer(twin._core)
    batch, taken, refused = [micro_batch((24,) * 10)], [], []

    def work(_: int) -> None:
        for _ in range(40):
            try:
                trainer.step(batch, **step_options(threads=1))
                taken.append(1)
            except RuntimeError as error:
                refused.append(str(error))

    in_threads(3, work)
    for _ in taken:
        other.step(batch, **step_options(threads=1))
    assert all("another thread" in text for text in refused)
    assert trainer.step_count == len(taken)
    assert bits_of_model(model, trainer) == bits_of_model(twin, other)


@pytest.mark.parametrize("what", ["targets", "tokens", "offsets"])
def test_arrays_changed_by_another_thread_do_no_harm(what):
    """Another thread spoils the arrays of a call under way: an IndexError or ValueError, never a crash."""
    code = (
        "import json, threading, time, numpy as np, reliability as r\n"
        "from attnsparse import _core\n"
        "m = r.model(); t = _core.Trainer(m._core); core = m._core\n"
        "b = list(r.micro_batch((24,) * 60)); i = ['tokens', 'offsets', 'targets'].index('WHAT')\n"
        "good, bad, stop = b[i].copy(), np.full_like(b[i], 2**30), []\n"
        "def spoil():\n"
        "    while not stop: time.sleep(0.0007); b[i][:] = bad\n"
        "thread = threading.Thread(target=spoil); thread.start(); refused = 0\n"
        "for n in range(60):\n"
        "    for call in (lambda: t.step([tuple(b)], **r.step_options(threads=1)),\n"
        "                 lambda: core.gradients(b[0], b[1], (), True, None, b[2], b[3], threads=1),\n"
        "                 lambda: core.run(b[0], b[1], ('pattern',), threads=1)):\n"
        "        b[i][:] = good\n"
        "        try: call()\n"
        "        except (IndexError, ValueError): refused += 1\n"
        "stop.append(1); thread.join(); print(json.dumps(refused))\n"
    )
    assert reliability.child("-c", code.replace("WHAT", what)) >= 0


@pytest.mark.serial
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_thread_with_a_small_stack(dtype):
    """128 KiB: NumPy's products need 64."""
    code = (
        "import json, sys, threading, numpy as np, reliability as r\n"
        "m = r.model(dtype='DTYPE', n_head=8, d_model=128, d_mlp=512, n_ctx=64, n_vocab=600)\n"
        "found = []\n"
        "def work():\n"
        "    for n in (1, 3, 64): found.append(m.run([[1] * n] * n, 'all', threads=1).logits.shape)\n"
        "    found.append(m.gradients([[1] * 30] * 9, wrt='pattern', threads=1).loss)\n"
        "work(); first = list(found); found.clear()\n"
        "threading.stack_size(128 * 1024)\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        "print(json.dumps(found == first))\n"
    )
    assert reliability.child("-c", code.replace("DTYPE", dtype))


def test_keeping_patterns_costs_many_prompts_little():
    """Where a prompt's pattern begins is summed once, not once more for every prompt, head and layer."""
    model = reliability.model(n_head=8, d_model=16, d_head=2, d_mlp=16, n_ctx=8, n_vocab=8)
    prompts = np.zeros((32_000, 2), np.int32)
    taken: dict[str, list[float]] = {"pattern": [], "none": []}
    for _ in range(3):
        for record, times in taken.items():
            begin = time.perf_counter()
            run = model.run(prompts, record=record, logits="none")
            for i in range(0, len(prompts) if record == "pattern" else 0, 16):
                assert run[i].pattern.shape == (2, 8, 2, 2)
            times.append(time.perf_counter() - begin)
    assert min(taken["pattern"]) < 4 * min(taken["none"])


# ------------------------------------------------------------------------------------------------ the GIL


def advance(call) -> tuple[float, float]:
    """Longest time in which another Python thread did not advance while `call` ran, and how long it ran."""
    ticks, stop = [], threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.monotonic()
    try:
        call()
    finally:
        end = time.monotonic()
        stop.set()
        thread.join()
    during = [begin, *[t for t in ticks if begin < t < end], end]
    return max(b - a for a, b in itertools.pairwise(during)), end - begin


def complete_graph(n: int) -> Any:
    """A `_core.Graph` in which every node has an edge to all later ones: errors, and a logit."""
    start = np.concatenate([[0], np.cumsum(np.arange(n))])
    source = np.concatenate([np.arange(t, dtype=np.int32) for t in range(n)])
    weight = np.random.default_rng(0).random(len(source), np.float32)
    kind = np.where(np.arange(n) < n - 1, 1, 6).astype(np.int32)
    reals, heads = np.ones(n, np.float32), np.zeros((n, 1, 0, 0), np.float32)
    alone = heads[:1]
    return _core.Graph(kind, kind, kind, kind, reals, reals, start, source, weight, heads[1:], alone, alone)


@pytest.fixture(scope="module")
def long_call():
    """A model and prompts for calls of a tenth of a second and more."""
    model = reliability.model(n_head=8, d_model=128, d_mlp=512, n_ctx=256, n_vocab=2000)
    return model, prompts_of(model, (256,) * 24)


@pytest.mark.serial
@pytest.mark.parametrize("what", ["run", "gradients", "step", "entry_scores", "prune"])
def test_other_threads_advance_during_a_call(what, long_call):
    """The work doubles until one call takes long enough on this machine to be compared with a pause."""
    model, prompts = long_call
    model = model.copy()
    trainer = _core.Trainer(model._core)
    entries = model.run([1, 2, 3])
    make = {
        "run": lambda n: partial(model.run, prompts * n, record="pattern", threads=1),
        "gradients": lambda n: partial(model.gradients, prompts[:12] * n, threads=1),
        "step": lambda n: partial(
            trainer.step, [micro_batch((256,) * 12 * n, 2000)], **step_options(threads=1)
        ),
        "entry_scores": lambda n: partial(
            entries._core.entry_scores, *[np.zeros(5_000_000 * n, np.int64)] * 4
        ),
        "prune": lambda n: partial(complete_graph(int(1500 * n**0.5)).prune, 0.8, 0.98),
    }[what]
    for size in (1, 2, 4, 8, 16, 32):
        call = make(size)
        pause, duration = min((advance(call) for _ in range(3)), key=lambda found: found[0] / found[1])
        if duration > 0.2:
            break
    assert pause < 0.3 * duration


@pytest.mark.serial
@pytest.mark.slow
def test_other_threads_advance_nearly_as_fast_as_alone(long_call):
    """On a machine that is otherwise idle."""
    model, prompts = long_call

    def count(stop) -> int:
        n = 0
        while not stop():
            n += 1
        return n

    def rate_alone() -> float:
        end = time.monotonic() + 1
        return float(count(lambda: time.monotonic() > end))

    rates = []
    for _ in range(3):
        alone, running, found = rate_alone(), [True], []
        thread = threading.Thread(
            target=lambda r=running, f=found: f.append(count(lambda: time.monotonic() and not r[0]))
        )
        begin = time.monotonic()
        thread.start()
        while time.monotonic() - begin < 2:
            model.run(prompts, record="none", threads=1)
        running[0] = False
        thread.join()
        rates.append(found[0] / (time.monotonic() - begin) / alone)
    reliability.report("R14", f"a Python thread beside runs advances {max(rates):.2f} times as fast as alone")
    assert max(rates) > 0.9


# -------------------------------------------------------------------------------------- how many there are


def test_set_num_threads():
    before = asp.get_num_threads()
    try:
        for n in (1, 3, 64):
            asp.set_num_threads(n)
            assert asp.get_num_threads() == _core.get_num_threads() == _core64.get_num_threads() == n
            assert asp.build_info()["threads"] == n
        for wrong, error in (
            (0, ValueError),
            (65, ValueError),
            (-1, ValueError),
            (1.5, TypeError),
            ("2", TypeError),
        ):
            with pytest.raises(error):
                asp.set_num_threads(wrong)
            assert asp.get_num_threads() == 64
    finally:
        asp.set_num_threads(before)


@pytest.mark.parametrize("threads", [-1, 65, 2**31 - 1])
def test_a_wrong_number_of_threads_is_named(threads):
    model = reliability.model()
    trainer = _core.Trainer(model._core)
    for call in (
        lambda: model.run([1, 2], threads=threads),
        lambda: model.gradients([1, 2], threads=threads),
        lambda: trainer.step([micro_batch()], **step_options(threads=threads)),
    ):
        with pytest.raises(ValueError, match="thread"):
            call()


COUNT = (
    "import json\n"
    "def threads():\n"
    "    return int(next(l for l in open('/proc/self/status') if l.startswith('Threads')).split()[1])\n"
    "import numpy as np\n"
    "numpy_alone = threads()\n"
)


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_threads_are_started_by_calls_only():
    """Import starts none; a call with n threads leaves n - 1 sleeping workers, as few as were ever needed."""
    code = COUNT + (
        "import reliability as r\n"
        "found = [threads() - numpy_alone]\n"
        "m = r.model()\n"
        "for n in (1, 2, 2, 4, 1, 3):\n"
        "    m.run(r.PROMPTS, threads=n); found.append(threads() - numpy_alone)\n"
        "print(json.dumps(found))\n"
    )
    assert reliability.child("-c", code) == [0, 0, 1, 1, 3, 3, 3]


@pytest.mark.skipif(not LINUX, reason="Linux keeps the affinity of processes")
def test_the_default_is_what_the_process_may_use():
    code = (
        "import json, os\n"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "import attnsparse as asp\n"
        "print(json.dumps([asp.get_num_threads(), asp.build_info()['default_threads']]))\n"
    )
    assert reliability.child("-c", code) == [1, 1]
    assert _core.machine()["default_threads"] <= len(os.sched_getaffinity(0))


@pytest.mark.serial
@pytest.mark.serial
@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_never_more_threads_work_than_were_asked_for():
    """Of all threads of a process but the one that looks, no more than were asked for use the processor at a
    time."""
    found = reliability.child("threads_child.py")
    assert found["eight"] > 2, "eight can be told from two"
    assert found["two"] <= 2
    assert found["two after eight"] <= 2
    assert found["one"] <= 1


def test_idle_workers_sleep():
    model = reliability.model()
    model.run(reliability.PROMPTS, threads=4)
    time.sleep(0.05)
    begin = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - begin < 0.02
