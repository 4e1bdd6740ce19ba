"""Rules of the tests themselves: none imports another, and those that are marked serial run alone."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

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


def imports_of_tests(folder: Path) -> list[str]:
    """Where test code imports a test, in a child's text too: what is shared belongs to tests/support."""
    pattern = re.compile(r"(?:\bfrom|\bimport|,) *(?:\w+\.)*(test_\w+)\b(?= import| as|$|,|\\n)", flags=re.M)
    return [
        f"{path.name}: {match[1]}"
        for path in sorted(folder.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if (match := pattern.search(line)) and "import " in line
    ]


def test_no_test_imports_a_test(tmp_path):
    assert imports_of_tests(TESTS) == []
    lines = ("import {}_a", "from {}_b import x", '    "import json, {}_c as t\\n"')
    for i, line in enumerate(lines):
        (tmp_path / f"{i}.py").write_text(line.format("test") + "\n")
    assert len(imports_of_tests(tmp_path)) == 3


def test_serial_tests_run_alone(tmp_path):
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = serial\naddopts = --dist=loadfile\n")
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
