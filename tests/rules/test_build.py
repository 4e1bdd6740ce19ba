"""An object is compiled again when its source, a header it includes or setup.py changed, and only then."""

from __future__ import annotations

import ast
import os
import shlex
from pathlib import Path

import pytest
from places import ROOT

SETUP = ROOT / "setup.py"
pytestmark = pytest.mark.skipif(not SETUP.is_file(), reason="needs the source tree, not only the package")


@pytest.fixture
def is_current(tmp_path, monkeypatch):
    """The function of setup.py, which cannot be imported, in a folder with an object made of two files."""
    [function] = [
        node for node in ast.parse(SETUP.read_text()).body if getattr(node, "name", "") == "is_current"
    ]
    names = {"os": os, "shlex": shlex, "Path": Path}
    exec(compile(ast.Module([function], []), str(SETUP), "exec"), names)
    monkeypatch.chdir(tmp_path)
    for name in ("setup.py", "one.c", "a header.h", "other.h"):
        Path(name).touch()
        os.utime(name, (1000, 1000))
    for name in ("one.o", "one.d"):
        Path(name).write_text("one.o: one.c \\\n a\\ header.h\n")
        os.utime(name, (2000, 2000))
    return lambda: names["is_current"](Path("one.o"))


@pytest.mark.parametrize("name", ["setup.py", "one.c", "a header.h"])
def test_a_changed_or_missing_input_compiles_again(is_current, name):
    assert is_current()
    os.utime(name, (3000, 3000))
    assert not is_current()
    os.remove(name)
    assert not is_current()


@pytest.mark.parametrize("name", ["one.o", "one.d"])
def test_without_the_object_or_its_list_it_is_compiled(is_current, name):
    os.remove(name)
    assert not is_current()


def test_another_header_is_no_reason(is_current):
    os.utime("other.h", (3000, 3000))
    assert is_current()
