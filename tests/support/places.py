"""Where things are: the repository, what the tests read, and the folders that test code is imported from."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
FIXTURES = TESTS / "fixtures"
IMPORTED = [str(TESTS / name) for name in ("", "support", "toys", "files", "oracle", "planted", "children")]


def child_environment(**changes: str) -> dict[str, str]:
    """Variables of a child process that imports test code; `changes` on top."""
    paths = [*IMPORTED, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | changes
