"""Training by several processes: a step and what it passes on, at 1, 2 and 4 processes of one thread each.

What follows for a cluster is arithmetic.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from attnsparse import Config

from .judge import Options
from .timing import print_table, progress
from .train import DEMO
from .work import GPT2_SMALL, step_flops

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = (1, 2, 4)
PARTS = 4
CLUSTER_ROW = "cluster"
#: the cluster of the arithmetic: cores of a node, tokens in all, sequences of a step and their length
CORES, TOKENS, BATCH, LENGTH = 32, 400_000_000, 512, 1024
NODES, GBITS = (8, 64, 512), (25, 100)
MESSAGE_SECONDS = 2e-5  # of one message to another node, beside its bytes


@dataclasses.dataclass(frozen=True)
class Shape:
    """One row: a gated model, and the batch of a step."""

    label: str
    config: Config
    n_sequences: int
    length: int
    steps: int


ROWS = {
    "demo": Shape("demo 12x12x192, 64 x 32", dataclasses.replace(DEMO, gated=True), 64, 32, 10),
    "gpt2": Shape("GPT-2 small, 4 x 128", dataclasses.replace(GPT2_SMALL, gated=True), 4, 128, 2),
}


def run(options: Options) -> list[dict[str, Any]]:
    """Measure the rows asked for and print their tables."""
    if shutil.which("mpirun") is None:
        progress("mpi is left out: there is no mpirun")
        return []
    rows = [row for name in ROWS if options.wants(name) for row in _measure(name, PROCESSES)]
    if options.wants(CLUSTER_ROW) and not options.wants("gpt2"):
        rows += _measure("gpt2", (1,))
    columns = {
        "row": "row", "processes": "processes", "step": "step ms", "gradients": "gradients ms",
        "passing": "passing ms", "update": "sum, update ms", "speedup": "1/n", "gbyte": "GB passed",
        "gbyte_per_second": "GB/s", "processor": "cpu ms, gradients",
        "processor_update": "cpu ms, sum, update", "gflop_per_second": "GFLOP/s of a cpu",
    }  # fmt: skip
    print_table("Training step of several processes, one thread each, in four parts", columns, rows)
    if options.wants(CLUSTER_ROW):
        rows += _cluster(next(row for row in rows if row["name"] == "gpt2" and row["processes"] == 1))
    return rows


def _measure(name: str, processes: tuple[int, ...]) -> list[dict[str, Any]]:
    shape, rows = ROWS[name], []
    for n in processes:
        progress(f"{shape.label}, {n} processes")
        command = ["mpirun", "-n", str(n), sys.executable, "-m", "bench.mpi_child", name]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        passed = 2 * (n - 1) / n * 4 * shape.config.n_parameters()
        whole = found["gradients"] + found["update"] + found["passing"]
        first = rows[0]["step"] if rows else 1000 * whole
        rows.append({
            "name": name, "row": shape.label, "processes": n, "step": 1000 * whole,
            **{key: 1000 * value for key, value in found.items()},
            "speedup": first / (1000 * whole),
            "gbyte": passed / 1e9, "gbyte_per_second": passed / 1e9 / found["passing"],
            "gflop_per_second": step_flops(shape.config, shape.n_sequences, shape.length)
            / 1e9 / found["processor"],
        })  # fmt: skip
    return rows


def _cluster(alone: dict[str, Any]) -> list[dict[str, Any]]:
    """GPT-2 small on TOKENS tokens: a step takes the time of its operations, of the bytes passed on, and of
    what each process does for all weights."""
    config, steps = GPT2_SMALL, TOKENS / (BATCH * LENGTH)
    measured = ROWS["gpt2"]
    flops = step_flops(config, measured.n_sequences, measured.length)
    node = CORES * flops / (alone["processor"] / 1000)
    n_bytes, whole = 4 * config.n_parameters(), alone["processor_update"] / 1000
    rows = []
    for gbit in GBITS:
        for n in NODES:
            computing = step_flops(config, BATCH, LENGTH) / n / node
            passing = 2 * ((n - 1) / n * n_bytes / (gbit / 8 * 1e9) + (n - 1) * MESSAGE_SECONDS)
            fixed = whole / CORES * (1 + 1 / n) / 2
            step = computing + passing + fixed
            rows.append({
                "name": CLUSTER_ROW, "row": f"{n} nodes, {gbit} Gbit/s", "computing": 1000 * computing,
                "passing": 1000 * passing, "fixed": 1000 * fixed, "hours": steps * step / 3600,
                "share": 100 * (passing + fixed) / step,
                "equal": round(computing * n / (2 * n_bytes / (gbit / 8 * 1e9))),
            })  # fmt: skip
    columns = {
        "row": "row", "computing": "computing ms", "passing": "passing ms", "fixed": "for all weights ms",
        "hours": "hours", "share": "% not computing", "equal": "nodes where passing = computing",
    }  # fmt: skip
    title = f"By arithmetic: GPT-2 small, {TOKENS / 1e6:.0f} M tokens, {BATCH} x {LENGTH} a step, nodes of"
    print_table(f"{title} {CORES} cores at {node / CORES / 1e9:.0f} GFLOP/s each", columns, rows)
    return rows
