"""Where tests find data that is not in the repository, such as GPT-2's tokenizer files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from places import ROOT


def data_folder(name: str) -> Path:
    """Folder `name` of the test data; skips the test if it is not there.

    The environment variable ATTNSPARSE_TEST_DATA names the folder that holds it; else a folder for
    shared data beside the repository is looked at.
    """
    given = os.environ.get("ATTNSPARSE_TEST_DATA")
    root = Path(given) if given else ROOT.parent / "shared" / "data"
    if not (root / name).is_dir():
        pytest.skip(f"no test data {name!r}: set ATTNSPARSE_TEST_DATA to the folder that holds it")
    return root / name
