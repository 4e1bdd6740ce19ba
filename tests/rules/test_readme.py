"""The README keeps its word: two commands of one line, an example that runs, links that lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from places import ROOT

README = ROOT / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="needs the source tree, not only the package")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), flags=re.S | re.M)


def test_two_commands_of_one_line():
    commands = [block.strip() for block in blocks("sh")]
    assert [command.count("\n") for command in commands] == [0, 0]
    assert commands[0].endswith("attnsparse reproduce --out figures")
    assert commands[1].endswith("pytest")


def test_first_command_draws_the_figure(tmp_path):
    arguments = blocks("sh")[0].split(".venv/bin/attnsparse ")[1].split()
    command = [sys.executable, "-m", "attnsparse.cli.main", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0
    assert (tmp_path / "figures" / "addition.png").stat().st_size > 0


def test_python_example_runs(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    [example] = blocks("python")
    exec(compile(example, str(README), "exec"), {})
    plt.close("all")


def test_links_lead_to_files():
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (README.parent / target).exists()] == []
