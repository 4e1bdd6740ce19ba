"""Memory: nothing leaks, and arrays outlive all they came from."""

import copy
import gc
import os
import pickle
import sys
import threading
import time
from typing import Any, ClassVar

import kept_child
import numpy as np
import pytest
import reliability
from public_calls import ARRAYS, CALLS, PLAIN, Everything, public_names, uses
from reliability import (
    PROMPTS,
    TOKENS,
    bits_of_model,
    bits_of_run,
    counters,
    micro_batch,
    nothing_kept,
    report,
    step_options,
)

import attnsparse as asp
from attnsparse import _core
from attnsparse.circuits import (
    AcdcSweep,
    ComponentCircuit,
    ComponentCurve,
    ComponentMasks,
    ComponentScores,
    EntrySweep,
    NodeCircuit,
    PatchingSweep,
    PathPatch,
)
from attnsparse.graphs.heads import ScoreSplit
from attnsparse.model import transformer_lens as cache

#: of a cheap call; fewer the longer a call takes, in the long form no fewer than LONG_LEAST
CI_REPEATS, LONG_REPEATS, LONG_LEAST = 1000, int(os.environ.get("ATTNSPARSE_LEAK_REPEATS", 100_000)), 1000
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
    components = (AcdcSweep, ComponentCircuit, ComponentCurve, ComponentMasks, ComponentScores, NodeCircuit)
    if isinstance(result, (ScoreSplit, *components, PatchingSweep, PathPatch)):
        return arrays_in(vars(result))
    if isinstance(result, EntrySweep):
        return [result.key, result.query, *arrays_in([vars(part) for part in result._found])]
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


def check_leaks(name: str, everything, repeats: int) -> int:
    """Counters of both cores exactly as before after many calls, and Python's blocks nearly so.

    Python's own caches fill up during the first rounds, so it is the last round that counts for them, whose
    drift is returned.
    """
    entry = CALLS[name]
    use(entry, everything, 4)
    before = counters("float32"), counters("float64")
    for _ in range(MOST_ROUNDS):
        objects = sys.getallocatedblocks()
        use(entry, everything, repeats)
        assert (counters("float32"), counters("float64")) == before
        drift = sys.getallocatedblocks() - objects
        if drift <= MOST_DRIFT:
            return drift
    raise AssertionError(f"{drift} blocks of Python more after every {repeats} rounds")


@pytest.mark.parametrize("name", sorted(CALLS))
def test_nothing_leaks(name, everything):
    entry = CALLS[name]
    check_leaks(name, everything, max(3, CI_REPEATS // (len(entry.right) + len(entry.wrong)) // entry.cost))


#: by name, for the numbers of the long form: calls in the last round, Python's blocks and resident bytes more
long_run: dict[str, tuple[int, int, int]] = {}


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", sorted(CALLS))
def test_nothing_leaks_in_the_long_run(name, everything):
    entry = CALLS[name]
    repeats = max(min(LONG_LEAST, LONG_REPEATS), LONG_REPEATS // entry.cost)
    use(entry, everything, repeats // 100 + 1)
    before = resident()
    drift = check_leaks(name, everything, repeats)
    n_calls = repeats * (len(entry.right) + len(entry.wrong))
    long_run[name] = n_calls, drift, resident() - before


@pytest.mark.slow
def test_the_long_run_in_numbers():
    """Resident memory as a cross-check: what single calls seem to add and give back is the heap's own."""
    calls, _, grown = (sum(column) for column in zip(*long_run.values()))
    least = min(calls for calls, *_ in long_run.values())
    most = max(drift for _, drift, _ in long_run.values())
    text = (
        f"{len(long_run)} public names, {calls:,} calls, at least {least:,} of a name: 0 bytes and 0 blocks "
    )
    text += f"of the core kept; Python's blocks at most {most} more per name; "
    text += f"resident {grown / 1024:+.0f} KiB in total"
    report("R10", text)
    assert set(long_run) == set(CALLS)


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
    """Bytes of memory that this process has; 0 where no one says."""
    if not sys.platform.startswith("linux"):
        return 0
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
    n_views = sum(len(pairs) for pairs in views.values())
    report(
        "R11", f"{n_views:,} arrays and views from {len(views)} public names, {len(changed(views))} changed"
    )


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
        assert not np.shares_memory(twin, array)
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


class Spying(np.ndarray):
    """An array that keeps whatever is made from it."""

    seen: ClassVar[list[Any]] = []

    def __array_finalize__(self, other: Any) -> None:
        Spying.seen.append(self)


def test_copies_of_a_call_are_not_shown_to_a_subclass():
    """Or it could resize what the core reads."""
    model, (tokens, offsets, targets, weights) = reliability.model(), micro_batch()
    given = [array.view(Spying) for array in (tokens, offsets, targets, weights)]
    bias = np.zeros(2).view(Spying)
    Spying.seen.clear()
    model._core.run(given[0], given[1], ())
    model._core.gradients(given[0], given[1], (), True, None, given[2], given[3])
    _core.Trainer(model._core).step([tuple(given)], gate_bias=bias, **step_options())
    assert Spying.seen == []


@pytest.mark.parametrize("own", ["array", "view"])
def test_borrowed_arrays_stay_where_they_are(own):
    """NumPy resizes no array, even with refcheck=False, while another thread is in a call that reads it."""
    model = reliability.model(n_head=8, d_model=128, d_mlp=512, n_ctx=256, n_vocab=600)
    tokens, offsets = np.arange(256, dtype=np.int32).repeat(8) // 8, np.arange(9) * 256
    whole = np.ones((len(tokens), 600), np.float32)
    dlogits = whole if own == "array" else whole[:]
    done: list[Any] = []

    def call() -> None:
        done.append(model._core.gradients(tokens, offsets, (), True, dlogits, None, None, threads=1).loss)

    call()
    thread = threading.Thread(target=call)
    thread.start()
    refused = resized = 0
    while thread.is_alive() and not resized:
        time.sleep(0.001)
        if len(done) == 1 and thread.is_alive():
            try:
                if not started(model):
                    continue
                whole.resize((1, 1), refcheck=False)
                resized += thread.is_alive()
            except ValueError:
                refused += 1
    thread.join()
    assert refused
    assert not resized
    assert done[0] == done[1]


def started(model: Any) -> bool:
    """Whether a call reads the model: then its weights cannot be changed."""
    try:
        model._core.assign({})
    except RuntimeError:
        return True
    return False
