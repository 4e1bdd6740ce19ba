"""Where tests find data that is not in the repository, such as GPT-2's tokenizer files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from places import ROOT


def data_folder(name: str) -> Path:
    """Folder `name` of the test data; skips the test if it is not there.

    The environment variable ATTNSPARSE_TEST_DATA names the folder that holds it; else a folder for
    shared data beside the repository is looked at.
    """
    return _found(name, Path.is_dir)


def data_file(name: str) -> Path:
    """File `name` of the test data; skips the test if it is not there."""
    return _found(name, Path.is_file)


def _found(name: str, there: Callable[[Path], bool]) -> Path:
    given = os.environ.get("ATTNSPARSE_TEST_DATA")
    path = (Path(given) if given else ROOT.parent / "shared" / "data") / name
    if not there(path):
        pytest.skip(f"no test data {name!r}: set ATTNSPARSE_TEST_DATA to the folder that holds it")
    return path
