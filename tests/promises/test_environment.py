"""The calling thread's floating-point environment changes no bit, and is what it was after every call."""

from __future__ import annotations

import platform
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import reliability
from float_environment import FLUSH, NEAREST, ROUND_UP, control, environment, set_control
from public_calls_core import CORE_CALLS
from public_objects import Everything
from reliability import bits_of_model, micro_batch, step_options

from attnsparse import _core, _core64

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="sets MXCSR through glibc's fenv_t"
)
ODD = {"rounding up": ROUND_UP, "flushing to zero": FLUSH, "both": ROUND_UP | FLUSH}
# Each changes what it is called on, so a second call has another result.
CHANGING = {"_core.Trainer.step", "_core.CoderTrainer.step", "_core.Model.version"}


def content(found: Any) -> list[bytes]:
    """All numbers of a result as bytes."""
    if isinstance(found, np.ndarray):
        return [found.tobytes()]
    if isinstance(found, dict):
        return content(list(found.values()))
    if isinstance(found, (tuple, list)):
        return [part for item in found for part in content(item)]
    if hasattr(found, "array") and hasattr(found, "names"):
        return content([found.array(name) for name in found.names])
    return [repr(found).encode()] if isinstance(found, (int, float, str, bytes, type(None))) else []


@pytest.fixture(scope="module")
def everything() -> Iterator[Everything]:
    with Everything() as made:
        yield made


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", CORE_CALLS)
def test_a_call_has_the_same_bits_and_leaves_it(name, odd, everything):
    for call in CORE_CALLS[name].right:
        expected = content(call(everything))
        with environment(ODD[odd]):
            found = call(everything)
        assert content(found) == expected or name in CHANGING


@pytest.mark.parametrize("core", [_core, _core64], ids=["float32", "float64"])
@pytest.mark.parametrize("odd", ODD)
def test_training_has_the_same_bits_for_any_number_of_threads(odd, core):
    """Steps so small that moments and products become subnormal."""

    def train(threads: int, mxcsr: int) -> dict[str, bytes]:
        model = reliability.model(dtype="float64" if core is _core64 else "float32")
        trainer, batch = core.Trainer(model._core), micro_batch(dtype=model.dtype)
        with environment(mxcsr):
            for _ in range(6):
                trainer.step([batch], **step_options(threads=threads, lr=1e-41, beta2=0.0))
        return bits_of_model(model, trainer)

    expected = train(1, NEAREST)
    for threads in (1, 2, 3):
        assert train(threads, ODD[odd]) == expected


def test_numbers_do_depend_on_it():
    """What the tests above would see: NumPy's sums in the same environments."""
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    tiny = np.full(4, 1e-30, np.float32)
    with environment(ROUND_UP):
        up = np.add.reduce(x * x)
    with environment(FLUSH):
        flushed = tiny * np.float32(1e-10)
    assert up != np.add.reduce(x * x)
    assert not flushed.any()
    assert (tiny * np.float32(1e-10)).all()


def test_a_trap_of_the_caller_is_not_met():
    """Overflow in the scores of a model with huge weights would end the process by SIGFPE."""
    code = (
        "import json, numpy as np, reliability, float_environment as t\n"
        "m = reliability.model()\n"
        "m.assign({n: np.full_like(v, 1e30) for n, v in m.parameters().items()})\n"
        "with t.environment(t.TRAP_OVERFLOW):\n"
        "    run = m._core.run(reliability.TOKENS, np.array([0, 8]), ('scores',))\n"
        "print(json.dumps(bool(np.isfinite(run.array('logits')).all())))\n"
    )
    assert reliability.child("-c", code) is False


def test_handlers_run_in_the_environment_of_the_caller():
    """A handler in the middle of a call sees what its thread has set, and what it sets stays."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are handled in the main thread")
    model = reliability.model(n_head=8, d_model=128, d_mlp=512, n_ctx=256, n_vocab=2000)
    prompts = [np.zeros(256, np.int32)] * 24
    expected = content(model.run(prompts, record="pattern")._core)
    seen: list[int] = []

    def handler(*_: object) -> None:
        seen.append(control())
        set_control(ROUND_UP)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        set_control(FLUSH)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        found = model.run(prompts, record="pattern")
        left = control()
    finally:
        set_control(NEAREST)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen == [FLUSH]
    assert left == ROUND_UP
    assert content(found._core) == expected
