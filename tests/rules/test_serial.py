"""With several processes a test that is marked serial runs while no other does."""

import shutil
import subprocess
import sys

from places import TESTS, child_environment

OTHERS = """
import time, pytest
from pathlib import Path

def note(name):
    begin = time.monotonic()
    time.sleep(0.1)
    Path(__file__).with_name(f"{name}.txt").write_text(f"{begin} {time.monotonic()}")
"""
SERIAL = (
    "@pytest.mark.serial\n"
    + "@pytest.mark.parametrize('n', range(3))\n"
    + "def test_alone(n): note(f'alone {n}')\n"
)
USUAL = "@pytest.mark.parametrize('n', range(4))\n" + "def test_usual(n): note(f'usual %s {n}')\n"


def test_serial_tests_run_alone(tmp_path):
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = serial\naddopts = --dist=loadgroup\n")
    for i in range(4):
        (tmp_path / f"test_{i}.py").write_text(OTHERS + USUAL % i + (SERIAL if i == 1 else ""))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=child_environment(), capture_output=True, text=True)
    assert "19 passed" in done.stdout, done.stdout + done.stderr
    times = {path.stem: tuple(map(float, path.read_text().split())) for path in tmp_path.glob("*.txt")}
    overlaps = [
        (one, other)
        for one, (begin, end) in times.items()
        for other, (first, last) in times.items()
        if one < other and begin < last and first < end
    ]
    assert overlaps, "the usual ones run at the same time"
    assert [pair for pair in overlaps if any("alone" in name for name in pair)] == []
