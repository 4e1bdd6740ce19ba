"""The ports of TransformerLens's demos in bench/ run, on a small model and without TransformerLens."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from places import ROOT

DEMOS = ROOT / "bench" / "lens_demos"
pytestmark = pytest.mark.skipif(not DEMOS.is_dir(), reason="needs the source tree, not only the package")


def test_every_step_runs_here():
    command = [sys.executable, "-m", "bench", "lens_demos", "--small", "--no-peers"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(main|ioi): (.*?) +(\d+) +(\d+) +(\d+\.\d+)$", done.stdout, flags=re.M)
    steps = {demo: [row for row in rows if row[0] == demo] for demo in ("main", "ioi")}
    for demo, (*parts, whole) in steps.items():
        text = (DEMOS / f"{demo}_ours.py").read_text()
        assert len(parts) == text.count("\ndef "), demo
        assert whole[1] == "all steps"
        for column in (2, 3):
            assert int(whole[column]) == sum(int(row[column]) for row in parts) > len(parts)
