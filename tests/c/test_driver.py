"""The C core without Python: every operation, every failing allocation, eight threads; under each checker."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import TESTS
from reliability import report

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the checkers are those of Linux"),
    pytest.mark.skipif(not (TESTS.parent / "csrc").is_dir(), reason="needs the source tree"),
    pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc"),
]
GOALS = {"none": "R13", "address": "R10", "thread": "R14", "valgrind": "R12"}


def run(checker: str, precisions: str) -> list[str]:
    """What the script says, line by line; any report fails."""
    command = [Path(TESTS, "run_driver.sh"), checker]
    variables = os.environ | {"PYTHON": sys.executable, "PRECISIONS": precisions}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_the_driver_fits_the_interface():
    """That it compiles; the rest takes a minute."""
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-maybe-uninitialized", "-fsyntax-only"]
    for define in ("-DASP_REAL_IS_FLOAT", "-DASP_DOUBLE=1"):
        sources = sorted((TESTS / "driver").glob("*.c"))
        command = ["gcc", *flags, define, f"-I{TESTS.parent / 'csrc'}", *sources]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("checker", sorted(GOALS))
def test_the_core_alone_under(checker):
    if checker == "valgrind" and not shutil.which("valgrind"):
        pytest.skip("needs valgrind")
    lines = run(checker, "float32 float64")
    for line in lines:
        report(GOALS[checker], line)
    assert len(lines) in (2, 4)
