"""Ctrl-C: soon, at any moment, and without harm to model, trainer or memory."""

import os
import random
import sys
import time

import pytest
import reliability
from places import TESTS
from reliability import report

CALLS = [
    "run",
    "generation",
    "gradients",
    "sweep",
    "attribution",
    "circuit",
    "curves",
    "metric",
    "train",
    "features",
]
CALLS += [
    "acdc",
    "component_edges",
    "component_exact",
    "component_circuits",
    "masks",
    "patching",
    "paths",
    "edges",
    "graph",
    "checks",
    "coders",
    "load",
    "save",
    "checkpoint",
    "tokenise",
    "normalise",
    "decode",
    "worker",
]
# of seconds between SIGINT and KeyboardInterrupt
USUAL, WORST = 0.2, 0.5
N_CPUS = 2
COUNT = int(os.environ.get("ATTNSPARSE_INTERRUPTS", "100"))  # for each call, in the long form


def interrupts(what: str, size: str, count: int, timeout: float = 120) -> dict:
    return reliability.child("interrupt_child.py", what, size, str(count), timeout=timeout)


@pytest.mark.parametrize("what", CALLS)
def test_interrupts_of_long_calls(what):
    """Processor time, so that a busy machine does not matter; with two threads it is twice the time."""
    found = interrupts(what, "small", 5)
    assert found["fine"]
    assert found["processor"][-1] < N_CPUS * USUAL
    assert found["seconds"][0] < WORST


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("what", CALLS)
def test_interrupts_of_a_model_as_large_as_gpt2(what):
    """99 of 100 within 200 ms, the last within 500 ms; on a machine that is busy with something else, of the
    processor's time."""
    found = interrupts(what, "gpt2", COUNT, timeout=3000)
    report("R18", described(what, found))
    assert found["fine"]
    busy = found["runnable"] > N_CPUS
    times, factor = (found["processor"], N_CPUS) if busy else (found["seconds"], 1)
    assert percentile(times, 99) < factor * USUAL
    assert times[-1] < factor * WORST


def percentile(times: list[float], percent: int) -> float:
    return times[-(-percent * len(times) // 100) - 1]


def described(what: str, found: dict) -> str:
    seconds = found["seconds"]
    shown = " ".join(f"{p} % {1000 * percentile(seconds, p):.1f}," for p in (50, 90, 99))
    within = sum(time < USUAL for time in seconds)
    return (
        f"{what}: ms from Ctrl-C: {shown} worst {1000 * seconds[-1]:.1f}; {within} of {len(seconds)} within "
        f"200; of the processor, worst {1000 * found['processor'][-1]:.1f}; {found['runnable']} threads "
        "of the machine want a processor"
    )


def test_a_second_interrupt_does_no_harm():
    found = interrupts("twice", "small", 6)
    assert found["fine"]
    assert 6 <= found["caught"] <= 12


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGUSR1")
def test_handlers_of_the_user_run_during_a_call():
    found = interrupts("handlers", "small", 4)
    assert found["calls"] == 4
    assert found["raised"] == 4
    assert found["same"]
    assert found["nested"] == [True] * 4
    assert 0 < found["refused"] <= 4


def test_a_trainer_has_exactly_the_steps_it_did():
    found = interrupts("trainer_object", "small", 25)
    assert found["caught"] == 25
    assert found["fine"]
    assert found["same"]


@pytest.mark.serial
def test_some_interrupts_in_a_notebook():
    interrupts_in_a_notebook(3)


@pytest.mark.slow
def test_interrupts_in_a_notebook():
    interrupts_in_a_notebook(20)
    report("R18", "20 interrupts of a Jupyter kernel, which lived on and computed the same")


def interrupts_in_a_notebook(count: int) -> None:
    """Interrupts of a Jupyter kernel during runs; it lives on and computes the same."""
    manager_module = pytest.importorskip("jupyter_client.manager")
    manager, client = manager_module.start_new_kernel(cwd=str(TESTS / "children"))
    try:
        client.execute_interactive(
            "import interrupt_child as i; m = i.large_model('small'); t = i.np.arange(384, dtype='int32')\n"
            "expected = m.run(t).logits.tobytes()",
            timeout=60,
        )
        for _ in range(count):
            message = client.execute("print('running', flush=True)\nwhile True: m.run([t, t])")
            while True:  # a kernel that is interrupted before the code runs answers in other ways
                reply = client.get_iopub_msg(timeout=30)
                if reply["parent_header"].get("msg_id") == message and reply["msg_type"] == "stream":
                    break
            time.sleep(random.uniform(0.0, 0.3))
            manager.interrupt_kernel()
            while True:
                reply = client.get_shell_msg(timeout=30)
                if reply["parent_header"]["msg_id"] == message:
                    break
            assert reply["content"]["ename"] == "KeyboardInterrupt"
        reply = client.execute_interactive("assert m.run(t).logits.tobytes() == expected", timeout=60)
        assert reply["content"]["status"] == "ok"
        assert manager.is_alive()
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
