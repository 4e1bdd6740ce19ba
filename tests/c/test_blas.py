"""BLAS in company: NumPy's products and thread count stay as they are, whoever calls what from where."""

import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import reliability
from reliability import PROMPTS, bits_of_run, child, report

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def products(seed: int) -> dict[str, bytes]:
    """NumPy's products of two matrices in all four forms, in both precisions, of shapes by the seed."""
    random, found = np.random.default_rng(seed), {}
    m, n, k = (int(size) for size in random.integers(30, 120, 3))
    for dtype in (np.float32, np.float64):
        a, b = random.standard_normal((m, k)).astype(dtype), random.standard_normal((k, n)).astype(dtype)
        at, bt = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
        for form, left, right in (("NN", a, b), ("NT", a, bt.T), ("TN", at.T, b), ("TT", at.T, bt.T)):
            found[f"{form} {np.dtype(dtype)}"] = (left @ right).tobytes()
    return found


@pytest.mark.parametrize("n_calls", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_eight_threads_of_numpy_and_us_have_the_bits_of_one(n_calls):
    """NumPy's products, runs and gradients of models that they share, mixed."""
    models = {dtype: reliability.model(dtype=dtype) for dtype in ("float32", "float64")}
    calls = [lambda seed=seed: products(seed) for seed in range(4)]
    for model in models.values():
        calls += [
            lambda model=model: bits_of_run(model.run(PROMPTS, "all", threads=2)),
            lambda model=model: bits_of_run(model.gradients(PROMPTS, wrt=("q", "z"), threads=1)),
        ]
    expected = [call() for call in calls]
    different, failed = [], []

    def work(number: int) -> None:
        try:
            for i in range(n_calls // 8):
                which = (i + number) % len(calls)
                if calls[which]() != expected[which]:
                    different.append(which)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    report("R15", f"8 threads, {n_calls:,} calls of NumPy and of us mixed, {len(different)} with other bits")
    assert different == []


def test_blas_of_numpy_is_left_alone():
    pytest.importorskip("threadpoolctl")
    for variable in ("", "2"):
        found = child("processes_child.py", "blas", OPENBLAS_NUM_THREADS=variable, timeout=120)
        assert found["numpy"]
        for part in ("pools", "products", "variables"):
            assert found[part] == [True] * 3, part
    assert found["numpy"] == [2]


@pytest.mark.serial
@LINUX
@pytest.mark.slow
def test_two_seconds_after_a_call_nothing_works():
    """Less than one percent of a processor, with workers of both cores asleep."""
    for dtype in ("float32", "float64"):
        reliability.model(dtype=dtype).run(PROMPTS, threads=8)
    time.sleep(2)
    begin, used = time.monotonic(), time.process_time()
    time.sleep(3)
    share = (time.process_time() - used) / (time.monotonic() - begin)
    report("R15", f"{share:.2%} of a processor two seconds after a call with 8 threads")
    assert share < 0.01


@LINUX
@pytest.mark.parametrize(("quota", "most"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64)])
def test_the_default_number_of_threads_is_within_the_cgroup_quota(quota, most):
    """In a mount namespace of its own, where /sys/fs/cgroup/cpu.max can be written."""
    script = 'mount -t tmpfs none /sys/fs/cgroup && echo "$1" > /sys/fs/cgroup/cpu.max && shift && exec "$@"'
    inside = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*inside, quota, "true"], capture_output=True).returncode
    ):
        pytest.skip("no mount namespace for this user")
    command = [sys.executable, "-c", "import attnsparse as asp; print(asp.build_info()['default_threads'])"]
    said = subprocess.run([*inside, quota, *command], capture_output=True, text=True, timeout=60, check=True)
    cores = len(os.sched_getaffinity(0))
    assert int(said.stdout) == min(cores, most)
