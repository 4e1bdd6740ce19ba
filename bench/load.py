"""Loading a model of GPT-2-small size from the page cache: rate and peak memory."""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import attnsparse

from .child import run_child
from .judge import Options
from .timing import print_table, progress, time_calls
from .work import GPT2_SMALL, random_model

ROWS = ("load",)
LEAST_RATE = 1e9  #: bytes a second
MOST_MEMORY, MEMORY_ALLOWANCE = 1.1, 64 * 2**20  #: times the weights, plus bytes


def run(options: Options) -> list[dict[str, Any]]:
    """Write the model to a temporary folder, load it several times here and once in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        progress("writing a model of GPT-2-small size")
        random_model(GPT2_SMALL).save(folder)
        progress("loading it")
        times = time_calls(functools.partial(attnsparse.load, folder), options.repeats)
        memory = run_child("load", folder)
    weights = memory["weights"]
    rate = weights / times.best
    allowed = MOST_MEMORY * weights + MEMORY_ALLOWANCE
    row = {
        "name": "load",
        "row": "GPT-2 small, safetensors",
        "best_ms": 1e3 * times.best,
        "median_ms": 1e3 * times.median,
        "gbyte_per_second": rate / 1e9,
        "rate_holds": rate >= LEAST_RATE,
        "weights_bytes": weights,
        "peak_bytes": memory["peak"],
        "allowed_bytes": int(allowed),
        "memory_holds": memory["peak"] <= allowed,
    }
    columns = {
        "row": "row", "best_ms": "best ms", "median_ms": "median ms", "gbyte_per_second": "GB/s",
        "rate_holds": f">= {LEAST_RATE / 1e9:g} GB/s", "weights_bytes": "weights, bytes",
        "peak_bytes": "peak, bytes", "allowed_bytes": "allowed, bytes", "memory_holds": "holds",
    }  # fmt: skip
    print_table("Loading from the page cache (peak: above what the imports take)", columns, [row])
    return [row]
