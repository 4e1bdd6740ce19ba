"""R30: the suite in processes whose kernels, or whose OpenBLAS, are those of another CPU."""

import json
import re
import subprocess
import sys

import pytest
from alone import PROMISED
from places import TESTS, child_environment
from reliability import report

from attnsparse import _core

# variable, the entry of build_info that then is its value, the value
FORCED = {
    "baseline": ("ATTNSPARSE_ISA", "isa", "baseline"),
    "avx2": ("ATTNSPARSE_ISA", "isa", "avx2"),
    "Nehalem": ("OPENBLAS_CORETYPE", "blas_core", "Nehalem"),
}
SHORT = ("c/test_engine.py", "c/test_sparse_dense.py", "-k", "not random")
# what another instruction set cannot change: documents, sources, and this file itself
WITHOUT = (
    "notebooks", "readme", "docs_examples", "source", "layers", "build", "packaging",
    "forced_instruction_sets", "instruction_sets",
)  # fmt: skip


def forced(name: str) -> dict[str, str]:
    """The environment of a process; skips the test where this CPU or this BLAS does not have it."""
    variable, key, value = FORCED[name]
    environment = child_environment(**{variable: value})
    code = "import json, attnsparse as asp; print(json.dumps(asp.build_info()))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if done.returncode and "does not run" in done.stderr:
        pytest.skip(f"this CPU does not run {name}")
    found = json.loads(done.stdout)
    if key == "blas_core" and found.get(key) == _core.machine().get(key):
        pytest.skip("this BLAS does not choose by CPU")
    assert found[key] == value
    assert found["batch_invariant"] or found["blas_core"] not in PROMISED
    return environment


def suite(name: str, *arguments: str) -> str:
    """What pytest says last."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=TESTS, env=forced(name), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("name", FORCED)
def test_the_oracle_agrees_with_forced_kernels(name):
    passed = re.search(r"(\d+) passed", suite(name, *SHORT))
    assert int(passed[1]) > 40


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", FORCED)
def test_the_whole_suite_with_forced_kernels(name):
    ignored = [f"--ignore-glob=*/test_{part}.py" for part in WITHOUT]
    report("R30", f"{name}: {suite(name, *ignored)}")
