"""The README keeps its word: two commands of one line, an example that runs, links that lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings

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
    assert commands[1].endswith("pytest -n auto")


def test_first_command_draws_the_figure(tmp_path):
    arguments = blocks("sh")[0].split(".venv/bin/attnsparse ")[1].split()
    command = [sys.executable, "-m", "attnsparse", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0
    assert (tmp_path / "figures" / "addition.png").stat().st_size > 0


def test_first_ten_lines_have_the_claim_and_an_example():
    first, _, rest = README.read_text().partition("\n## ")
    assert first.index("```python") < first.index("![")
    assert len(first.partition("```python")[0].splitlines()) <= 10
    assert rest


def test_python_examples_run_one_after_the_other(tmp_path, monkeypatch):
    """As a reader types them, without a warning."""
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    variables: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for example in blocks("python"):
            exec(compile(example, str(README), "exec"), variables)
    assert {"circuit", "graph"} <= set(variables)
    assert (tmp_path / "graph.html").stat().st_size > 0
    plt.close("all")


def test_commands_leave_an_installation_that_works_in_the_clone():
    """`import attnsparse` in the clone finds the source folder first, so its core must be compiled there."""
    for command in blocks("sh"):
        assert re.search(r"pip install -e (\.|'\.\[test\]') && ", command), command


def test_links_lead_to_files():
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (README.parent / target).exists()] == []
