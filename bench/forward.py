"""Forward passes of GPT-2-small shape, all patterns returned and logits of all positions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .judge import COLUMNS, Goal, Options, measure_row
from .peers import forward_peers
from .timing import print_table
from .work import GPT2_SMALL, forward_bytes, forward_flops, random_model, random_tokens

RECORD = "pattern"


@dataclass(frozen=True)
class Shape:
    """One row: so many prompts of so many tokens."""

    n_sequences: int
    length: int
    goal: Goal | None

    @property
    def label(self) -> str:
        """How tables call it."""
        return f"T={self.length}" if self.n_sequences == 1 else f"{self.n_sequences} prompts of {self.length}"


ROWS = {
    "t8": Shape(1, 8, Goal(25, 15.5)),
    "t64": Shape(1, 64, Goal(95, 76)),
    "t256": Shape(1, 256, Goal(350, 305)),
    "t512": Shape(1, 512, None),
    "t1024": Shape(1, 1024, Goal(1500, 1300)),
    "batch": Shape(64, 16, Goal(1350, 1210)),
}


def run(options: Options) -> list[dict[str, Any]]:
    """Measure the rows asked for and print their table."""
    model = random_model(GPT2_SMALL)
    makers, notes = forward_peers(GPT2_SMALL, options.threads) if options.peers else ({}, [])
    rows = []
    for name, shape in ROWS.items():
        if not options.wants(name):
            continue
        tokens = random_tokens(GPT2_SMALL, shape.n_sequences, shape.length)
        size = (GPT2_SMALL, shape.n_sequences, shape.length)
        row = measure_row(
            shape.label,
            functools.partial(model.run, list(tokens), RECORD, threads=options.threads),
            {peer: functools.partial(_prepare, make, tokens) for peer, make in makers.items()},
            (forward_flops(*size), forward_bytes(*size)),
            shape.goal,
            options,
        )
        row["ms_per_token"] = row["best_ms"] / tokens.size
        rows.append({"name": name, **row})
    columns = {**COLUMNS, "ms_per_token": "ms/token", **{peer: f"{peer}/ours" for peer in makers}}
    print_table(f"Forward, GPT-2 small, patterns and logits, {options.threads} threads", columns, rows)
    for note in notes:
        print(note)
    return rows


def _prepare(make: Callable[[], Callable[[np.ndarray], Any]], tokens: np.ndarray) -> Callable[[], Any]:
    return functools.partial(make(), tokens)
