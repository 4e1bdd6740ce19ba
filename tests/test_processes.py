"""Processes and the life of the module: fork, spawn, exit, import order, and what is left as it was."""

import os
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import reliability
from reliability import child

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
LONG = pytest.param(50, marks=pytest.mark.slow)


@POSIX
@pytest.mark.parametrize("n_repeats", [6, LONG])
def test_forked_children_compute_the_same(n_repeats):
    codes = child("processes_child.py", "fork", str(n_repeats), timeout=300)
    assert codes == [0] * n_repeats


@POSIX
@pytest.mark.parametrize("n_repeats", [10, LONG])
def test_fork_while_another_thread_runs(n_repeats):
    codes, spoiled, same = child("processes_child.py", "fork_while_running", str(n_repeats), timeout=300)
    assert codes == [0] * n_repeats
    assert spoiled == 0
    assert same


@POSIX
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method):
    assert child("processes_child.py", "start", method, timeout=120) is True


@pytest.mark.parametrize("n_repeats", [2, LONG])
def test_exit_while_a_call_runs(n_repeats):
    """The interpreter ends within two seconds, without a crash and without a word."""
    for _ in range(n_repeats):
        command = [sys.executable, "processes_child.py", "exit_while_running"]
        done = subprocess.run(command, cwd=reliability.TESTS, capture_output=True, text=True, timeout=60)
        ended = time.time()
        assert (done.returncode, done.stderr) == (0, "")
        assert ended - float(done.stdout) < 2


def test_a_hundred_imports():
    n_results, n_kept, live = child("processes_child.py", "again", timeout=120)
    assert (n_results, n_kept, live) == (1, 10, True)


def test_subinterpreters_are_refused():
    if not (find_spec("_interpreters") or find_spec("_xxsubinterpreters")):
        pytest.skip("this Python has no module for subinterpreters")
    said, same = child("processes_child.py", "subinterpreter", timeout=120)
    assert said == "ImportError"
    assert same


def test_import_order_does_not_matter():
    """numpy, pandas and, where they are installed, scipy and torch before us or after us."""
    others = [
        name for name in ("numpy", "pandas", "scipy.linalg", "torch") if find_spec(name.partition(".")[0])
    ]
    found = child("processes_child.py", "order", "us", *others, timeout=120)
    for other in others:
        found += child("processes_child.py", "order", other, timeout=120)
    assert len(set(found)) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads glibc's fenv_t")
def test_the_floating_point_environment_stays():
    environments, subnormals = child("-W", "error", "processes_child.py", "floating_point")
    assert len(set(environments)) == 1
    assert len(environments) == 14
    assert subnormals


def test_blas_of_numpy_is_left_alone():
    pytest.importorskip("threadpoolctl")
    found = child("processes_child.py", "blas", OPENBLAS_NUM_THREADS="", timeout=120)
    assert found["numpy"]
    for part in ("pools", "products", "variables"):
        assert found[part] == [True] * 3, part
    found = child("processes_child.py", "blas", OPENBLAS_NUM_THREADS="2", timeout=120)
    assert found["numpy"] == [2]
    assert found["variables"] == [True] * 3
