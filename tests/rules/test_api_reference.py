"""docs/api.md is what docs/make_api.py makes of the docstrings, with everything public and no dead link."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest
from places import ROOT

import attnsparse as asp

DOCS = ROOT / "docs"
SCRIPT, REFERENCE = DOCS / "make_api.py", DOCS / "api.md"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="needs the source tree, not only the package")


@pytest.fixture(scope="module")
def make_api():
    spec = importlib.util.spec_from_file_location("make_api", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def headings(text: str) -> list[str]:
    return [line.lstrip("# ").replace("`", "") for line in text.splitlines() if re.match(r"#+ ", line)]


def test_reference_is_what_the_script_makes(tmp_path):
    made = tmp_path / "api.md"
    subprocess.run([sys.executable, str(SCRIPT), str(made)], check=True)
    assert made.read_text() == REFERENCE.read_text(), "run `python docs/make_api.py`"


def test_everything_public_is_there_once(make_api):
    found = headings(REFERENCE.read_text())
    assert len(found) == len(set(found))
    names = {name for name in asp.__all__ if not name.startswith("_")}
    for module in make_api.public_modules():
        names |= {f"{make_api.short(module)}.{name}" for name in make_api.own_names(module)}
    described = {name for name in found if not name.startswith("attnsparse ")}
    under_another_name = {name for name in names if name.rpartition(".")[2] in described}
    assert names - described - under_another_name == set()
    assert {"Model.run", "Trainer.step", "tasks.make_task", "attnsparse heads"} <= set(found)


def test_every_entry_says_something(make_api):
    for entry in make_api.entries():
        if callable(entry.value):
            text = make_api.described(entry)
            said = re.sub(r"```.*?```|^#[^\n]*", "", text, flags=re.S | re.M).strip()
            assert len(said) >= 8, entry.name


def test_every_module_has_a_group(make_api):
    assert [
        entry.name
        for entry in make_api.entries()
        if make_api.group_of(make_api.short(entry.module)) == "More"
    ] == []


def test_links_lead_to_headings_and_files(make_api):
    text = REFERENCE.read_text()
    anchors = {make_api.slug(heading) for heading in headings(text)}
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(targets) > 50
    for target in targets:
        file, _, anchor = target.partition("#")
        assert (DOCS / file).exists() if file else anchor in anchors, target


def test_prose_makes_lists_formulas_and_escapes(make_api):
    text = (
        "Does a * b < c.\n\nx, y [n]: one thing,\nand more. z: `*` another.\nA sentence.\nRaises ValueError."
    )
    assert make_api.prose(text, ["x", "y", "z"]) == (
        "Does a \\* b &lt; c.\n\n* `x`, `y` [n]: one thing,\nand more.\n* `z`: `*` another.\n\n"
        "A sentence.\n\nRaises ValueError."
    )
    assert make_api.prose("So:\n    a * b\nis it.") == "So:\n\n    a * b\n\nis it."
