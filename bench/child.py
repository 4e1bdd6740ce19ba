"""In a process of its own: `load FOLDER`, `step T GATED THREADS` or `graph FOLDER KEPT THREADS`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from .memory import current_bytes, peak_bytes

ROOT = Path(__file__).resolve().parents[1]


def run_child(*arguments: str) -> dict[str, int]:
    """Run this module with `arguments` in a fresh process; what it measured, in bytes."""
    command = [sys.executable, "-m", f"{__package__}.child", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def load_memory(folder: str) -> dict[str, int]:
    """Peak while loading `folder`, above what the imports take, and the bytes of the weights."""
    import numpy  # noqa: F401
    import pandas  # noqa: F401

    import attnsparse

    before = current_bytes()
    model = attnsparse.load(folder)
    return {"peak": peak_bytes() - before, "weights": 4 * model.n_parameters}


def step_memory(length: str, gated: str, threads: str) -> dict[str, int]:
    """Peak of the process after one training step."""
    from .train import peak_of_step

    peak_of_step(int(length), gated == "1", int(threads))()
    return {"peak": peak_bytes()}


def graph_memory(folder: str, kept: str, threads: str) -> dict[str, int]:
    """Peak of model and graph above what the imports take, and the bytes of one layer of the transcoders."""
    import pandas  # noqa: F401

    from .graph import make_graph, open_both

    before = current_bytes()
    model, transcoders = open_both(folder)
    make_graph(model, transcoders, int(kept), int(threads))
    layer = Path(folder) / "set" / "layer_0.safetensors"
    return {"peak": peak_bytes() - before, "layer": layer.stat().st_size}


if __name__ == "__main__":
    work = {"load": load_memory, "step": step_memory, "graph": graph_memory}[sys.argv[1]]
    print(json.dumps(work(*sys.argv[2:])))
