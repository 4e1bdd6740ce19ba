"""Processes and the life of the module: fork, spawn, exit, import order, and what is left as it was."""

import os
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
from places import TESTS
from reliability import child, report

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
LONG = pytest.param(50, marks=pytest.mark.slow)


@POSIX
@pytest.mark.parametrize("n_repeats", [6, LONG])
def test_forked_children_compute_the_same(n_repeats):
    codes = child("processes_child.py", "fork", str(n_repeats), timeout=600)
    report("R16", f"{n_repeats} forks after use: {codes.count(0)} children with the same bits, none hung")
    assert codes == [0] * n_repeats


@POSIX
@pytest.mark.parametrize("n_repeats", [10, LONG])
def test_fork_while_another_thread_runs(n_repeats):
    codes, spoiled, same = child("processes_child.py", "fork_while_running", str(n_repeats), timeout=600)
    report(
        "R16",
        f"{n_repeats} forks during a call: {codes.count(0)} good, {spoiled} of the parent's results spoiled",
    )
    assert codes == [0] * n_repeats
    assert spoiled == 0
    assert same


@POSIX
def test_a_handler_forks_in_the_middle_of_a_call():
    codes, same = child("processes_child.py", "fork_in_handler", "8", timeout=200)
    assert codes == [0] * 8
    assert same == 8


@POSIX
def test_fork_beside_calls_of_one_thread():
    codes, spoiled = child("processes_child.py", "fork_beside_products", "60", timeout=600)
    assert codes == [0] * 60
    assert spoiled == 0


@POSIX
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method):
    assert child("processes_child.py", "start", method, timeout=120) == [True]


@POSIX
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing_fifty_times(method):
    found = child("processes_child.py", "start", method, "50", timeout=3000)
    report(
        "R16",
        f"50 processes by {method}: {found.count(True)} with the same bits, {found.count('hangs')} hung",
    )
    assert found == [True] * 50


@pytest.mark.parametrize("n_repeats", [2, LONG])
def test_exit_while_a_call_runs(n_repeats):
    """The interpreter ends within two seconds, without a crash and without a word."""
    slowest = 0.0
    for _ in range(n_repeats):
        command = [sys.executable, "processes_child.py", "exit_while_running"]
        done = subprocess.run(command, cwd=TESTS / "children", capture_output=True, text=True, timeout=60)
        ended = time.time()
        assert (done.returncode, done.stderr) == (0, "")
        slowest = max(slowest, ended - float(done.stdout))
    report("R16", f"{n_repeats} interpreters ended during a call, the slowest in {slowest:.2f} s")
    assert slowest < 2


def test_a_hundred_imports():
    n_results, n_kept, live = child("processes_child.py", "again", timeout=400)
    report("R17", f"100 imports after deletion from sys.modules: {n_results} set of bits")
    assert (n_results, n_kept, live) == (1, 10, True)


def test_subinterpreters_are_refused():
    if not (find_spec("_interpreters") or find_spec("_xxsubinterpreters")):
        pytest.skip("this Python has no module for subinterpreters")
    said, same = child("processes_child.py", "subinterpreter", timeout=120)
    report("R17", f"import in a subinterpreter: {said}; the main one has the same bits: {same}")
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
    report(
        "R17",
        f"import before or after {', '.join(others)}: {len(found)} results, {len(set(found))} set of bits",
    )
    assert len(set(found)) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads glibc's fenv_t")
def test_the_floating_point_environment_stays():
    environments, subnormals = child("-W", "error", "processes_child.py", "floating_point")
    report(
        "R17", f"floating-point environment: {len(set(environments))} state after {len(environments)} calls"
    )
    assert len(set(environments)) == 1
    assert len(environments) == 14
    assert subnormals
