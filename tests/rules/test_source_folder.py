"""A source folder whose C core is not compiled says so in one sentence, and what to type."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import attnsparse as asp

PACKAGE = Path(asp.__file__).parent
IMPORT = """
import sys
sys.path.insert(0, sys.argv[1])
sys.meta_path = [each for each in sys.meta_path if "ditable" not in getattr(each, "__name__", "")]
import attnsparse
"""


def copied(folder: Path) -> Path:
    """The package's Python files alone, in `folder`."""

    def left_out(where: str, names: list[str]) -> list[str]:
        return [name for name in names if not (name.endswith(".py") or Path(where, name).is_dir())]

    shutil.copytree(PACKAGE, folder / "attnsparse", ignore=left_out)
    return folder / "attnsparse"


def said_on_import(folder: Path) -> str:
    """The last line of `import attnsparse` in a fresh interpreter that finds it in `folder` alone."""
    done = subprocess.run([sys.executable, "-B", "-c", IMPORT, folder], capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("source", [True, False], ids=["source", "installed"])
def test_a_missing_core_says_what_to_type(tmp_path, source):
    package = copied(tmp_path)
    if source:
        (tmp_path / "setup.py").touch()
    said = said_on_import(tmp_path)
    assert said.startswith("ImportError: attnsparse in ")
    assert str(package) in said
    command = f"-m pip install -e {tmp_path}" if source else "-m pip install --force-reinstall attnsparse"
    assert said.endswith(f"type {sys.executable} {command}")
    assert "circular" not in said


def test_a_damaged_core_keeps_the_loaders_reason(tmp_path):
    package = copied(tmp_path)
    (package / f"_core{EXTENSION_SUFFIXES[0]}").write_bytes(b"not a library")
    said = said_on_import(tmp_path)
    assert said.startswith(f"ImportError: the compiled core of attnsparse in {package} cannot be loaded: ")
    assert "file too short" in said or "invalid ELF" in said or "not a mach-o" in said.lower()
