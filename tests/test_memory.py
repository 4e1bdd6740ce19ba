"""Memory: nothing leaks, arrays outlive all they came from, and every failing allocation is survived."""

import copy
import gc
import pickle
import sys
import threading
import time

import kept_child
import numpy as np
import pytest
import reliability
from public_calls import ARRAYS, CALLS, PLAIN, Everything, public_names, small_task, uses
from reliability import PROMPTS, TOKENS, bits_of_model, bits_of_run, counters, nothing_kept

import attnsparse as asp
from attnsparse import cache, effects
from attnsparse.graph_heads import ScoreSplit

CI_REPEATS, LONG_REPEATS = 1000, 100_000  # of a cheap call; fewer the longer a call takes
PYTHON_COUNTS = sys.getallocatedblocks() > 0  # not with PYTHONMALLOC=malloc, as under sanitizers
MOST_DRIFT, MOST_ROUNDS = 50, 8  # Python objects


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """What exists before these tests is left out of garbage collections: there are thousands here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def everything():
    with Everything() as one_of_each:
        yield one_of_each


# ------------------------------------------------------------------ the lists of public calls are complete


def test_every_public_name_is_in_a_list():
    """A new public function or attribute fails here until it is in CALLS, and in ARRAYS if it has any."""
    known = set(CALLS) | set(PLAIN)
    assert public_names() - known == set()
    assert known - public_names() == set()
    assert not set(CALLS) & set(PLAIN)
    assert set(ARRAYS) <= set(CALLS)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_the_list_of_arrays_is_complete(name, everything):
    """What a call hands back holds arrays exactly if the call is in ARRAYS."""
    for call in CALLS[name].right:
        assert bool(arrays_in(call(everything))) == (name in ARRAYS)


def arrays_in(result) -> list[np.ndarray]:
    """All NumPy arrays in what a call returned, through tuples, dictionaries, tables, caches and runs."""
    if isinstance(result, np.ndarray):
        return [result]
    if isinstance(result, (asp.Run, asp.Gradients, asp.Graph)):
        return []  # their own arrays are in the list by name
    if isinstance(result, cache.ActivationCache):
        return [result[name] for name in result]
    if isinstance(result, ScoreSplit):
        return arrays_in(vars(result))
    if isinstance(result, dict):
        return [array for value in result.values() for array in arrays_in(value)]
    if isinstance(result, (tuple, list)):
        return [array for value in result for array in arrays_in(value)]
    return [result[name].to_numpy() for name in result] if hasattr(result, "to_numpy") else []


# ------------------------------------------------------------------------------------------------ leaks


def repeat(call, everything, wrong) -> None:
    if not wrong:
        call(everything)
        return
    try:
        call(everything)
    except Exception:
        return  # which one is for test_numbers.py
    raise AssertionError("a wrong call raised nothing")


def use(entry, everything, repeats: int) -> None:
    for call, wrong in [*((c, False) for c in entry.right), *((c, True) for c in entry.wrong)]:
        for _ in range(repeats):
            repeat(call, everything, wrong)


def check_leaks(name: str, everything, repeats: int) -> None:
    """Counters of both cores exactly as before after many calls, and Python's blocks nearly so.

    Python's own caches fill up during the first rounds, so it is the last round that counts for them.
    """
    entry = CALLS[name]
    repeats = max(3, repeats // entry.cost)
    use(entry, everything, 4)
    before = counters("float32"), counters("float64")
    for _ in range(MOST_ROUNDS):
        objects = sys.getallocatedblocks()
        use(entry, everything, repeats)
        assert (counters("float32"), counters("float64")) == before
        drift = sys.getallocatedblocks() - objects
        if drift <= MOST_DRIFT:
            return
    raise AssertionError(f"{drift} blocks of Python more after every {repeats} rounds")


@pytest.mark.parametrize("name", sorted(CALLS))
def test_nothing_leaks(name, everything):
    entry = CALLS[name]
    check_leaks(name, everything, CI_REPEATS // (len(entry.right) + len(entry.wrong)))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", sorted(CALLS))
def test_nothing_leaks_in_the_long_run(name, everything):
    check_leaks(name, everything, LONG_REPEATS)


def test_a_leak_would_be_seen(everything, monkeypatch):
    """One run kept by every call, and one Python object kept by every call: both must be found."""
    kept = []
    calls = [lambda e: kept.append(e.model.run([1], threads=1)), lambda e: kept.append(object())]
    for call in calls if PYTHON_COUNTS else calls[:1]:
        monkeypatch.setitem(CALLS, "a leak", uses(call))
        with pytest.raises(AssertionError):
            check_leaks("a leak", everything, 200)
    kept.clear()


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif(not PYTHON_COUNTS, reason="sanitizers keep freed memory for a while")
def test_resident_memory_does_not_grow():
    model = reliability.model()
    for _ in range(100):
        model.run(PROMPTS, record="all", threads=1)
    before = resident()
    for _ in range(200):
        model.run(PROMPTS, record="all", threads=1)
    assert resident() - before < 2 * 2**20


def test_a_run_gives_back_its_memory_with_its_last_array():
    model = reliability.model()
    with nothing_kept():
        run = model.run(TOKENS, record="all")
        row, held = run.pattern[0, 1, -1], counters()[0]
        del run
        assert counters()[0] == held
        del row


# ------------------------------------------------------------------------------- views outlive everything


def junk(total: int) -> None:
    """Allocate, fill and drop memory in pieces of 64 KiB, so that freed memory is written over."""
    pieces = [np.full(65536, 0xA5, np.uint8) for _ in range(total // 65536)]
    assert all(piece[-1] == 0xA5 for piece in pieces)


def outlived() -> dict[str, list[tuple[np.ndarray, bytes]]]:
    """By name of the call, arrays and their bytes, when all objects they came from are gone."""
    found = {}
    with Everything() as everything:
        for name in ARRAYS:
            arrays = [array for call in CALLS[name].right for array in arrays_in(call(everything))]
            views = [view for array in arrays for view in (array, array[..., :1], np.asarray(array).T)]
            found[name] = [(view, view.tobytes()) for view in views]
    del everything, arrays, views
    gc.collect()
    return found


def changed(views: dict[str, list[tuple[np.ndarray, bytes]]]) -> list[str]:
    return [name for name, pairs in views.items() if any(view.tobytes() != old for view, old in pairs)]


def test_arrays_outlive_everything():
    views = outlived()
    assert all(views[name] for name in ARRAYS)
    junk(64 * 2**20)
    found = []
    thread = threading.Thread(target=lambda: found.append(changed(views)))
    thread.start()
    thread.join()
    assert found == [[]]


@pytest.mark.slow
def test_arrays_outlive_everything_and_a_gigabyte():
    views = outlived()
    junk(2**30)
    assert changed(views) == []


@pytest.mark.parametrize("name", sorted(name for name, lent in ARRAYS.items() if lent == "lent"))
def test_lent_arrays_are_read_only_for_good(name, everything):
    arrays = [array for call in CALLS[name].right for array in arrays_in(call(everything))]
    for array in [a for a in arrays if a.size]:
        for view in (array, array[:], array.view(), array.T, np.asarray(array), array[..., :1]):
            assert not view.flags.writeable
            with pytest.raises(ValueError):
                view.flags.writeable = True
            with pytest.raises(ValueError):
                view[...] = 0
        assert memoryview(array).readonly
        assert array.__array_interface__["data"][1], "the address is marked read-only"
        with pytest.raises(ValueError):
            array.sort(axis=0)
        twin = pickle.loads(pickle.dumps(array))
        assert np.array_equal(twin, array, equal_nan=array.dtype.kind == "f")
        assert twin.flags.writeable
        assert not np.shares_memory(twin, array)


def test_a_new_run_leaves_old_arrays_alone():
    model = reliability.model()
    run = model.run(TOKENS, record=("all", "edges"))
    before = bits_of_run(run)
    again = model.run(TOKENS[::-1], record=("all", "edges"))
    assert not any(np.shares_memory(run._core.array(n), again._core.array(n)) for n in run._core.names)
    model.assign({"wte.weight": np.zeros((96, 64), np.float32)})
    trainer = reliability.CORES["float32"].Trainer(model._core)
    trainer.step([reliability.micro_batch()], **reliability.step_options())
    model.gradients(TOKENS)
    assert bits_of_run(run) == before


def test_memory_used_again_leaves_no_trace():
    """Large blocks are kept for later calls: what is left in them, here NaN, never shows."""
    expected = reliability.child("kept_child.py")
    for dtype in ("float32", "float64"):
        kept_child.leave_nan(dtype)
        assert kept_child.digest(dtype) == expected[dtype]


def test_memory_is_not_used_again_while_an_array_refers_to_it():
    model, prompts = reliability.model(), kept_child.prompts()
    views = [model.run(prompts, "all")._core.array(name) for name in ("pattern", "z", "logits")]
    before = [view.tobytes() for view in views]
    for shift in range(6):
        model.run([(prompt + shift) % 96 for prompt in prompts], "all")
        model.gradients(prompts)
        assert [view.tobytes() for view in views] == before


def test_kept_memory_does_not_stand_in_the_way():
    """Under a limit of the system, blocks kept for later calls are given back when there is no other room."""
    code = (
        "import resource, numpy as np, reliability as r\n"
        "m = r.model(n_layer=1, n_head=8, n_ctx=4000)\n"
        "def pattern(n):\n"
        "    return m.run(np.zeros(n, np.int32), 'pattern', logits='none', threads=1).pattern.nbytes\n"
        "pattern(10)\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4096 * pages + 700 * 2**20,) * 2)\n"
        "print([pattern(n) for n in (3800, 2600, 3800, 1700, 4000)])\n"
    )
    assert reliability.child("-c", code)[-1] == 8 * 4 * 4000 * 4000


def test_parameters_lent_before_a_change_show_it():
    model = reliability.model()
    lent, version = model.parameter("ln_f.weight"), model.version
    model.assign({"ln_f.weight": np.full(64, 7.0)})
    assert (lent == 7).all()
    assert model.version > version


def test_copies_share_nothing():
    model = reliability.model()
    twin, before = model.copy(), bits_of_model(model)
    twin.assign({name: np.zeros_like(value) for name, value in twin.parameters().items()})
    assert bits_of_model(model) == before
    run = model.run(TOKENS)
    assert np.shares_memory(copy.copy(run).pattern, run.pattern)


def test_arrays_held_until_the_interpreter_ends():
    code = (
        "import sys, reliability as r\n"
        "m = r.model(); run = m.run(r.TOKENS, record='all'); g = m.gradients(r.TOKENS)\n"
        "sys.kept = [run.pattern, run.logits[1:], g.parameters, m.parameter('wte.weight')]\n"
        "a = sys.kept[1]; del m, run, g\n"
        "print(1)\n"
    )
    assert reliability.child("-W", "error", "-c", code) == 1


# ----------------------------------------------------------------------------- every allocation can fail


def every_failure(dtype: str, call, check) -> int:
    """Let allocation 1, 2, ... of `call` fail until none does; `check` after each; how many there were.

    Each failure must be a MemoryError that leaves the core's memory in use as it was.
    """
    fail_at, texts = reliability.CORES[dtype]._debug_fail_at, []
    for n in range(1, 2000):
        before, result = counters(dtype), None
        fail_at(n)
        try:
            result = call()
        except MemoryError as error:
            texts.append(str(error))
        finally:
            fail_at(0)
        # the exception is gone here, and with it what the frames of its traceback held
        if result is not None:
            del result
            check()
            assert all(texts)
            return n - 1
        assert counters(dtype) == before, f"allocation {n}"
        check()
    raise AssertionError("allocations never end")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_out_of_memory_while_a_model_is_made(dtype):
    original = reliability.model(dtype=dtype)
    assert every_failure(dtype, original.copy, lambda: None) >= 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("record", ["attention", "all", "edges", ("all", "edges")])
def test_out_of_memory_in_a_run(record, dtype):
    model = reliability.model(dtype=dtype)
    held = model.run(PROMPTS, record="all")
    expected, kept = bits_of_run(model.run(PROMPTS, record=record)), bits_of_run(held)

    def check():
        assert bits_of_run(model.run(PROMPTS, record=record)) == expected
        assert bits_of_run(held) == kept

    assert every_failure(dtype, lambda: model.run(PROMPTS, record=record), check) >= 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_out_of_memory_in_gradients_and_norms(dtype):
    model = reliability.model(dtype=dtype)
    run, wrt = model.run(TOKENS), ("parameters", "pattern", "q", "resid_pre")
    expected = bits_of_run(model.gradients(PROMPTS, wrt=wrt))

    def check():
        assert bits_of_run(model.gradients(PROMPTS, wrt=wrt)) == expected

    assert every_failure(dtype, lambda: model.gradients(PROMPTS, wrt=wrt), check) >= 3
    assert every_failure(dtype, run.value_norms, check) >= 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ablation", effects.ABLATIONS)
def test_out_of_memory_in_effects(ablation, dtype):
    model, task = reliability.model(dtype=dtype), small_task()
    edges = effects.candidates(model, task, "edge")[::40]
    calls = (
        lambda: effects.knock_out(model, task, edges, ablation, metric="kl"),
        lambda: effects.attribution(model, task, "edge", ablation, steps=2),
        lambda: model.run(
            TOKENS, ablate=["L0H1", asp.Mlp(1), "a1.h2[0->3]"], patch={asp.Resid(1, 2): [0] * 64}
        ),
    )
    for call, least in zip(calls, (6, 3, 6)):
        expected = bits_of(call())

        def check(call=call, expected=expected):
            assert bits_of(call()) == expected

        assert every_failure(dtype, call, check) >= least


def bits_of(result) -> object:
    return result.tobytes() if isinstance(result, np.ndarray) else bits_of_run(result)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_out_of_memory_while_a_trainer_is_made(dtype):
    core, model = reliability.CORES[dtype], reliability.model(dtype=dtype)
    assert every_failure(dtype, lambda: core.Trainer(model._core), lambda: None) >= 7


def failing_steps(dtype: str, trainer, micro, model) -> None:
    """A step with its allocation 1, 2, ... failing, until it succeeds: no failure changes anything.

    A trainer may keep the scratch that it got so far, but not more of it the second time.
    """
    fail_at = reliability.CORES[dtype]._debug_fail_at
    before = bits_of_model(model, trainer)
    for n in range(1, 100):
        kept = []
        for _ in range(2):
            fail_at(n)
            try:
                trainer.step(micro, **reliability.step_options())
            except MemoryError:
                kept.append(counters(dtype))
            else:
                return
            finally:
                fail_at(0)
            assert bits_of_model(model, trainer) == before
        assert kept[0] == kept[1]
    raise AssertionError("allocations never end")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_out_of_memory_in_training(dtype):
    """Also in a step that needs more room than the one before; afterwards all is as if nothing had failed."""
    core, model, twin = reliability.CORES[dtype], *(reliability.model(dtype=dtype) for _ in range(2))
    with nothing_kept(dtype):
        trainer, untouched = core.Trainer(model._core), core.Trainer(twin._core)
        for lengths in ((5, 1), (2,), (20, 24, 3)):
            micro = [reliability.micro_batch(part, dtype=dtype) for part in (lengths, (3,))]
            failing_steps(dtype, trainer, micro, model)
            untouched.step(micro, **reliability.step_options())
            assert bits_of_model(model, trainer) == bits_of_model(twin, untouched)
        del trainer, untouched


def test_out_of_memory_of_python_itself():
    """Python's own allocations fail one by one, in a process of its own."""
    pytest.importorskip("_testcapi")
    found = reliability.child("memory_child.py", timeout=120)
    assert set(found["failures"]) == {"MemoryError"}
    assert found["failures"]["MemoryError"] > 50
    assert found["kept"] == 0


@pytest.mark.parametrize("what", ["model", "run", "gradients"])
def test_too_much_is_refused_at_once_and_by_name(what):
    """10^15 bytes and more: MemoryError with the amount, without trying for long."""
    large = asp.Config(512, 64, 65_536, 1024, 1_048_576, 1, 1)
    model = reliability.model(n_ctx=500)
    prompts = [np.zeros(500, np.int32)] * 40
    calls = {
        "model": lambda: asp.Model(large),
        "run": lambda: model.run(prompts, record="all", max_bytes=10**6),
        "gradients": lambda: model.gradients(prompts, max_bytes=10**6),
    }
    with nothing_kept():
        begin = time.perf_counter()
        with pytest.raises(MemoryError, match=r"\d GB"):
            calls[what]()
        assert time.perf_counter() - begin < 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS")
def test_too_much_under_a_limit_of_the_system():
    code = (
        "import json, resource, numpy as np, reliability as r\n"
        "m = r.model(n_ctx=2000); expected = r.bits_of_run(m.run(r.TOKENS, threads=1))\n"
        "limit = 2 ** 30 + 1024 * int(open('/proc/self/statm').read().split()[0]) * 4\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "prompts = [np.zeros(2000, np.int32)] * 20\n"
        "texts = []\n"
        "for call in (m.run, m.gradients):\n"
        "    what = {'record': 'all'} if call == m.run else {'wrt': 'pattern'}\n"
        "    try: call(prompts, threads=1, max_bytes=2**60, **what)\n"
        "    except MemoryError as error: texts.append(str(error))\n"
        "same = r.bits_of_run(m.run(r.TOKENS, threads=1)) == expected\n"
        "print(json.dumps([texts, same]))\n"
    )
    texts, same = reliability.child("-c", code)
    assert same
    assert len(texts) == 2
    assert all("could not be allocated" in text and "GB" in text for text in texts)
