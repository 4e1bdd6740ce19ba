"""Command line: `python -m bench COMMAND ...`; README.md says what the commands and columns mean."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import attnsparse

from . import (
    circuits,
    cluster,
    components,
    demo,
    forward,
    generate,
    graph,
    imports,
    lens_demos,
    load,
    mpi,
    train,
)
from .judge import Options
from .limits import Blas, Limits, measure_limits
from .timing import print_table, progress

COMMANDS = {
    "forward": forward,
    "generate": generate,
    "train": train,
    "load": load,
    "import": imports,
    "circuits": circuits,
    "components": components,
    "cluster": cluster,
    "graph": graph,
    "demo": demo,
    "lens_demos": lens_demos,
    "mpi": mpi,
}
ROW_NAMES = {
    "forward": tuple(forward.ROWS),
    "generate": tuple(generate.ROWS),
    "train": (*train.ROWS, train.MEMORY_ROW),
    "load": load.ROWS,
    "import": imports.ROWS,
    "circuits": circuits.ROWS,
    "components": components.ROWS,
    "cluster": cluster.ROWS,
    "graph": graph.ROWS,
    "demo": demo.ROWS,
    "lens_demos": lens_demos.ROWS,
    "mpi": (*mpi.ROWS, mpi.CLUSTER_ROW),
}


def main() -> None:
    """Measure, print tables, and write everything to a JSON file if asked to."""
    arguments = _parser().parse_args()
    commands = list(dict.fromkeys(arguments.command))
    options = Options(
        tuple(arguments.rows),
        arguments.repeats,
        arguments.threads,
        arguments.peers,
        tuple(arguments.folders),
        arguments.small,
    )
    known = [name for command in commands for name in ROW_NAMES[command]]
    for row in options.rows:
        if row not in known:
            raise SystemExit(f"python -m bench: there is no row {row!r}; known: {', '.join(known)}")
    machine = _machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    report: dict[str, Any] = {"machine": machine, "options": dataclasses.asdict(options)}
    if "forward" in commands or "train" in commands:
        report["limits"] = [_as_row(limits) for limits in _limits(options.threads)]
        print_limits(report["limits"])
    for command in commands:
        if any(map(options.wants, ROW_NAMES[command])):
            report[command] = COMMANDS[command].run(options)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("command", nargs="+", choices=COMMANDS)
    rows = "; ".join(f"{command}: {', '.join(names)}" for command, names in ROW_NAMES.items())
    parser.add_argument("--rows", nargs="+", default=(), metavar="ROW", help=f"only these rows ({rows})")
    parser.add_argument("--repeats", type=int, default=5, help="calls timed at least (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of all that is measured (default 2)")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True,
                        help="also time transformers, TransformerLens and torch where installed")  # fmt: skip
    folders = "demo: folders that `attnsparse train demo` wrote (default: the shipped models)"
    parser.add_argument("--folders", nargs="+", default=(), metavar="FOLDER", help=folders)
    parser.add_argument(
        "--small", action="store_true", help="lens_demos, generate: a model of 2 layers, to try them"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser


def _machine() -> dict[str, str]:
    info = attnsparse.build_info()
    return {
        "attnsparse": str(info["version"]),
        "kernels": str(info["isa"]),
        "BLAS": f"{Blas().name} ({info['blas_core']})",
        "Python": platform.python_version(),
        "CPU": _cpu(),
    }


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} logical)" if names else platform.processor() or platform.machine()


def _limits(threads: int) -> list[Limits]:
    progress("measuring the machine's limits")
    return [measure_limits(n) for n in sorted({1, threads})]


def _as_row(limits: Limits) -> dict[str, Any]:
    return {
        "row": limits.threads,
        "gflop_per_second": limits.flops / 1e9,
        "gbyte_per_second": limits.read / 1e9,
    }


def print_limits(rows: list[dict[str, Any]]) -> None:
    """The table of the machine's rates."""
    columns = {"row": "threads", "gflop_per_second": "sgemm GFLOP/s", "gbyte_per_second": "read GB/s"}
    print_table("What the machine allows", columns, rows)


if __name__ == "__main__":
    main()
