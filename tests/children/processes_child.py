"""Processes of test_processes.py: python processes_child.py WHAT [NUMBER]. Prints what it found as JSON."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

LIMIT = 10.0  # seconds in which a child must have ended


def results() -> str:
    """A digest of a run, gradients and three training steps with two threads."""
    import hashlib

    import reliability as r

    from attnsparse import _core

    model = r.model()
    found = r.bits_of_run(model.run(r.PROMPTS, record=("all", "edges"), threads=2))
    found |= r.bits_of_run(model.gradients(r.PROMPTS, threads=2))
    trainer = _core.Trainer(model._core)
    for _ in range(3):
        trainer.step([r.micro_batch()], **r.step_options(threads=2))
    found |= r.bits_of_model(model, trainer)
    return hashlib.sha256(b"".join(found[name] for name in sorted(found))).hexdigest()


def in_fork(work: Callable[[], None]) -> tuple[int, float]:
    """Exit code (-9 if it had to be killed) and seconds of a forked child that does `work`."""
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 3
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    while time.monotonic() - begin < LIMIT:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), time.monotonic() - begin
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -9, LIMIT


def fork(n_repeats: int) -> Any:
    """Children of a process whose workers have been at work compute the same bits."""
    expected = results()

    def work() -> None:
        assert results() == expected

    return [in_fork(work)[0] for _ in range(n_repeats)]


def fork_while_running(n_repeats: int) -> Any:
    """Forks at random moments of a long call in another thread: children compute the same or raise
    RuntimeError, the parent does not notice."""
    import reliability as r

    import attnsparse as asp

    expected = results()
    model = r.model(n_ctx=200)
    prompts = [np.zeros(200, np.int32)] * 8
    alone = model.run(prompts).logits.tobytes()
    stop, spoiled = threading.Event(), []

    def run() -> None:
        while not stop.is_set():
            spoiled.extend([1] * (model.run(prompts, threads=2).logits.tobytes() != alone))

    def work() -> None:
        assert model.run(prompts, threads=2).logits.tobytes() == alone
        assert results() == expected
        with contextlib.suppress(RuntimeError):  # the model's readers of the parent are still counted
            model.assign({"ln_f.weight": np.zeros(64)})
        asp.set_num_threads(3)
        assert results() == expected

    thread = threading.Thread(target=run)
    thread.start()
    random = np.random.default_rng(0)
    codes = []
    for _ in range(n_repeats):
        time.sleep(float(random.uniform(0, 0.02)))
        codes.append(in_fork(work)[0])
    stop.set()
    thread.join()
    return [codes, len(spoiled), results() == expected]


def put(queue: Any) -> None:
    queue.put(results())


def start(method: str) -> Any:
    """Processes made by multiprocessing after this one has used two threads."""
    expected = results()
    context = multiprocessing.get_context(method)
    found: list[bool | str] = []
    for _ in range(int(sys.argv[3]) if len(sys.argv) > 3 else 1):
        queue = context.SimpleQueue()
        process = context.Process(target=put, args=(queue,))
        process.start()
        process.join(4 * LIMIT)
        if process.is_alive():
            process.kill()
            found.append("hangs")
        else:
            found.append(process.exitcode == 0 and queue.get() == expected)
    return found


def fork_in_handler(n_repeats: int) -> Any:
    """A signal handler forks in the middle of a call of two threads: the parent's call goes on, the child's
    ends with RuntimeError, and the child can begin another."""
    import reliability as r

    model = r.model(n_head=8, d_model=128, d_mlp=512, n_ctx=256, n_vocab=600)
    prompts = [np.arange(256, dtype=np.int32)] * 24
    expected = r.bits_of_run(model.run(prompts, threads=2))
    children: list[int] = []
    signal.signal(signal.SIGALRM, lambda *_: children.append(os.fork()))
    codes, same = [], 0
    for _ in range(n_repeats):
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        try:
            same += r.bits_of_run(model.run(prompts, threads=2)) == expected
        except RuntimeError:
            signal.alarm(int(LIMIT))
            os._exit(0 if r.bits_of_run(model.run(prompts, threads=2)) == expected else 4)
        if children[-1] == 0:  # forked after the call
            os._exit(5)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(children[-1], 0)[1]))
    return codes, same


def fork_beside_products(n_repeats: int) -> Any:
    """Forks while two threads are inside calls of one thread each, which no pool knows of."""
    import reliability as r

    model = r.model(n_layer=1, n_head=1, d_model=96, d_mlp=96, n_ctx=24, n_vocab=96)
    prompts, stop = [np.arange(24, dtype=np.int32)] * 12, []
    expected = r.bits_of_run(model.run(prompts, threads=1))
    spoiled: list[int] = []

    def loop() -> None:
        while not stop:
            if r.bits_of_run(model.run(prompts, threads=1)) != expected:
                spoiled.append(1)

    threads = [threading.Thread(target=loop) for _ in range(2)]
    for thread in threads:
        thread.start()

    def work() -> None:
        assert r.bits_of_run(model.run(prompts, threads=2)) == expected

    codes = [in_fork(work)[0] for _ in range(n_repeats)]
    stop.append(1)
    for thread in threads:
        thread.join()
    return codes, len(spoiled)


def exit_while_running() -> Any:
    """Ends with a call under way in a daemon thread, and one in the pool of the other core."""
    import reliability as r

    for dtype in ("float32", "float64"):
        model = r.model(dtype=dtype, n_ctx=300)
        prompts = [np.zeros(300, np.int32)] * 400
        threading.Thread(target=model.run, args=(prompts,), kwargs={"threads": 2}, daemon=True).start()
    time.sleep(0.3)
    print(json.dumps(time.time()), flush=True)
    sys.exit(0)


def again() -> Any:
    """Imports the package a hundred times, each time as if it never had been."""
    found = set()
    kept = []
    for i in range(100):
        for name in [name for name in sys.modules if name.partition(".")[0] == "attnsparse"]:
            del sys.modules[name]
        asp = importlib.import_module("attnsparse")
        model = asp.Model(asp.Config(1, 1, 8, 8, 8, 8, 8))
        found.add(model.run([1, 2, 3]).logits.tobytes())
        kept += [model] * (i % 10 == 0)  # types of an older import stay alive
    found |= {model.run([1, 2, 3]).logits.tobytes() for model in kept}
    stats = asp._core._debug_stats()
    return [len(found), len(kept), stats["live_blocks"] > 0]


def subinterpreter() -> Any:
    """Importing in a subinterpreter raises ImportError; the main one does not notice."""
    before = results()
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "try:\n    import attnsparse\n"
        "except ImportError as error: text = 'ImportError'\n"
        "except BaseException as error: text = repr(error)\n"
        "else: text = 'imported'\n"
        "import os; os.write(FD, text.encode())\n"
    )
    reader, writer = os.pipe()
    code = code.replace("FD", str(writer))
    try:
        import _interpreters as interpreters

        interpreter = interpreters.create("legacy")
        interpreters.exec(interpreter, code)
    except ImportError:
        import _xxsubinterpreters as interpreters

        interpreter = interpreters.create(isolated=False)
        interpreters.run_string(interpreter, code)
    return [os.read(reader, 1000).decode(), results() == before]


def order(first: str) -> Any:
    """The same bits whether another library was imported before us or after us."""
    if first != "us":
        importlib.import_module(first)
    found = [results()]
    for other in sys.argv[3:]:
        importlib.import_module(other)
    return [*found, results()]


class Environment:
    """The floating-point control word of the calling thread: rounding, masks, flush-to-zero."""

    def __init__(self) -> None:
        self._get = ctypes.CDLL(None).fegetenv

    def __call__(self) -> str:
        state = ctypes.create_string_buffer(64)
        assert self._get(state) == 0
        if platform.machine() in ("x86_64", "AMD64"):  # fenv_t: x87 control word first, MXCSR at byte 28
            control = int.from_bytes(state.raw[28:32], "little") & ~0x3F  # without the sticky exceptions
            return f"{int.from_bytes(state.raw[:2], 'little'):x} {control:x}"
        return f"{int.from_bytes(state.raw[:4], 'little'):x}"


def floating_point() -> Any:
    """The floating-point environment before and after import and every call, in two threads."""
    environment = Environment()
    tiny = np.float32(1e-45)
    found = [environment()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import reliability as r

        from attnsparse import _core

    def calls() -> None:
        model = r.model()
        for call in (
            lambda: model.run(r.PROMPTS, record="all", threads=3),
            lambda: model.gradients(r.PROMPTS),
            lambda: model.run(r.TOKENS).value_norms(),
            lambda: _core.Trainer(model._core).step([r.micro_batch()], **r.step_options()),
            lambda: model.assign({"ln_f.weight": np.full(64, 1e-45)}),
            lambda: model.run(r.PROMPTS),
        ):
            call()
            found.append(environment())

    found.append(environment())
    calls()
    thread = threading.Thread(target=calls)
    thread.start()
    thread.join()
    return [found, bool(tiny + tiny > tiny)]


def blas() -> Any:
    """NumPy's BLAS, its thread count, its results and the environment's variables, before and after."""
    from threadpoolctl import threadpool_info

    matrices = np.random.default_rng(0).standard_normal((2, 300, 300)).astype(np.float32)
    a, b = matrices

    def look() -> Any:
        pools = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
        forms = (a @ b, a @ b.T, a.T @ b, a.T @ b.T, a[0] @ b)
        return [
            pools,
            [form.tobytes().hex()[:200] + str(hash(form.tobytes())) for form in forms],
            dict(os.environ),
        ]

    pools, products, variables = look()
    import attnsparse

    looks = [look()]
    results()
    looks.append(look())
    attnsparse.set_num_threads(1)
    results()
    looks.append(look())
    ours = [path for path in looks[-1][0] if path not in pools]
    return {
        "ours": len(ours),
        "pools": [{path: n for path, n in seen[0].items() if path in pools} == pools for seen in looks],
        "products": [seen[1] == products for seen in looks],
        "variables": [seen[2] == variables for seen in looks],
        "numpy": sorted(pools.values()),
    }


WHATS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        fork, fork_while_running, fork_in_handler, fork_beside_products, start, exit_while_running, again,
        subinterpreter, order, floating_point, blas,
    )
}  # fmt: skip

if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
    arguments = [int(text) if text.isdigit() else text for text in sys.argv[2:3]]
    print(json.dumps(WHATS[sys.argv[1]](*arguments)), flush=True)
