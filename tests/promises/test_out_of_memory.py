"""Memory that runs out: every failing allocation of every public call is survived, and said."""

import contextlib
import gc
import itertools
import re
import sys
import sysconfig
import time

import numpy as np
import pytest
import reliability
from failing import every_failure, failures_of
from no_memory import untrue
from public_calls import CALLS, Everything, small_task
from reliability import PROMPTS, TOKENS, bits_of_model, bits_of_run, counters, nothing_kept, report

import attnsparse as asp
from attnsparse.circuits import effects

#: calls in whose time thousands of cheap ones fit: only in the long form
HEAVY = 40


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


# ------------------------------------------------------------------------------------ every public call


def failures_of_name(name: str, everything) -> int:
    """All uses of a public name with each of the core's allocations failing: what is said is so, afterwards
    the model gives the same bits, and what was lent before still holds what it held."""
    model, kept = bits_of_run(everything.model.run(PROMPTS, "all")), bits_of_run(everything.one)
    count = 0
    for call in (*CALLS[name].right, *CALLS[name].wrong):
        texts = failures_of(lambda call=call: call(everything))
        assert untrue(name, texts) == [], f"{name} without memory says what is not so"
        count += len(texts)
    assert bits_of_run(everything.model.run(PROMPTS, "all")) == model
    assert bits_of_run(everything.one) == kept
    return count


@pytest.mark.parametrize("name", sorted(name for name, entry in CALLS.items() if entry.cost < HEAVY))
def test_every_allocation_of_a_public_call_can_fail(name, everything):
    failures_of_name(name, everything)


@pytest.mark.parametrize("record", ["none", "all", "edges"])
def test_a_run_speaks_of_its_edges_only_where_it_has_some(record, everything):
    texts = failures_of(lambda: everything.model.run(PROMPTS, record))
    assert untrue("Model.run", texts) == []
    assert any("open edges" in text for text in texts) == (record == "edges")


def test_an_untrue_sentence_would_be_seen():
    for text in (
        "this run needs 0.000 GB, which could not be allocated",
        "this run needs 0 bytes, which could not be allocated",
        "no memory for gradients",
        "out of memory",
        "the active features: no memory, or more than max_bytes=100; use fewer tokens or a larger max_bytes",
    ):
        assert untrue("Model.run", ["no memory for a run", text]) == [text]
    assert untrue("Model.gradients", ["no memory for gradients"]) == []


def test_what_hides_a_failure_or_keeps_memory_would_be_seen(everything):
    def hides():
        with contextlib.suppress(MemoryError):
            everything.model.copy()

    kept = []

    def keeps():
        kept.append(everything.model.run([1], threads=1))
        everything.model.copy()

    for call in (hides, keeps):
        with pytest.raises(AssertionError):
            failures_of(call)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_allocation_of_all_public_calls_can_fail(everything):
    counts = {name: failures_of_name(name, everything) for name in sorted(CALLS)}
    failed = sum(counts.values())
    text = f"{len(counts)} public names, {failed:,} failed allocations of the core: all said so, 0 bytes kept"
    report("R13", text)
    assert failed > 1000


# ---------------------------------------------------------------------------------------- single calls


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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_out_of_memory_while_products_are_tried(dtype):
    """For a new width, products with few rows are tried against BLAS first; a trial without memory must not
    count as one that failed, for as long as the process lives."""
    core, widths = reliability.CORES[dtype], itertools.count(512, 16)
    config = reliability.model(dtype=dtype)._core.config
    usual = failures_of(lambda: core.Model(config), dtype)
    assert len(failures_of(lambda: core.Model(config | {"d_mlp": next(widths)}), dtype)) > len(usual)


@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="PyList_New of Python 3.14t does not survive it"
)
def test_out_of_memory_of_python_itself():
    """Python's own allocations fail one by one, in a process of its own."""
    pytest.importorskip("_testcapi")
    found = reliability.child("memory_child.py", timeout=120)
    report(
        "R13", f"{found['calls']} calls of the extension, failed allocations of Python: {found['failures']}"
    )
    assert set(found["failures"]) == {"MemoryError"}
    assert found["failures"]["MemoryError"] > 50
    assert found["kept"] == 0


@pytest.mark.serial
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
    taken = []
    with nothing_kept():
        for _ in range(3):
            begin = time.perf_counter()
            with pytest.raises(MemoryError, match=r"\d [MGT]B"):
                calls[what]()
            taken.append(time.perf_counter() - begin)
    report("R13", f"{what} beyond all memory refused in {1000 * min(taken):.1f} ms")
    assert min(taken) < 0.5  # the aim is 0.1 on a machine that does nothing else


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
    assert all(re.search(r"\d [MG]B, which could not be allocated", text) for text in texts), texts


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS")
@pytest.mark.parametrize("what", ["run", "gradients", "step"])
def test_too_little_for_the_buffers_of_products_does_not_end_the_process(what):
    """OpenBLAS ends the process if it cannot map a buffer: 32 MiB for each product at once."""
    code = (
        "import json, resource, numpy as np, reliability as r\n"
        "from attnsparse import _core\n"
        "m = r.model(n_head=8, d_model=128, d_mlp=512, n_ctx=256, n_vocab=600); t = _core.Trainer(m._core)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + MEGABYTES * 2**20, resource.RLIM_INFINITY))\n"
        "prompts = [np.arange(256, dtype=np.int32)] * 2; batch = r.micro_batch((256, 256), 600); text = ''\n"
        "calls = {'run': lambda: m.run(prompts, threads=4),\n"
        "         'gradients': lambda: m.gradients(prompts, threads=4),\n"
        "         'step': lambda: t.step([batch], **r.step_options(threads=4))}\n"
        "try: calls['WHAT']()\n"
        "except MemoryError as error: text = str(error)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)\n"
        "calls['WHAT'](); print(json.dumps(text))\n"
    ).replace("WHAT", what)
    texts = [reliability.child("-c", code.replace("MEGABYTES", str(n))) for n in (8, 40, 90, 130, 400)]
    assert texts[-1] == ""
    assert all(texts[:2])
    assert any("matrix products" in text and "fewer threads" in text for text in texts)
