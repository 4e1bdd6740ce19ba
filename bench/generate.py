"""Generation with a key/value cache at GPT-2-small size: greedy, random weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .judge import COLUMNS, Options, measure_row
from .peers import generation_peers
from .timing import print_table
from .work import GPT2_SMALL, generation_bytes, generation_flops, random_model, random_tokens


@dataclass(frozen=True)
class Shape:
    """One row: so many prompts of so many tokens, and how many are added to each."""

    n_prompts: int
    length: int
    n_new: int

    @property
    def label(self) -> str:
        """How tables call it."""
        prompts = "1 prompt" if self.n_prompts == 1 else f"{self.n_prompts} prompts"
        return f"{prompts} of {self.length}, {self.n_new} new"


ROWS = {"one": Shape(1, 32, 64), "long": Shape(1, 900, 32), "batch": Shape(16, 32, 64)}


def run(options: Options) -> list[dict[str, Any]]:
    """Measure the rows asked for and print their table."""
    config = dataclasses.replace(GPT2_SMALL, n_layer=2) if options.small else GPT2_SMALL
    model = random_model(config)
    makers, notes = generation_peers(config, options.threads) if options.peers else ({}, [])
    rows = []
    for name, shape in ROWS.items():
        if not options.wants(name):
            continue
        tokens = random_tokens(config, shape.n_prompts, shape.length)
        size = (config, shape.n_prompts, shape.length, shape.n_new)
        row = measure_row(
            shape.label,
            functools.partial(model.generate, list(tokens), shape.n_new, threads=options.threads),
            {peer: functools.partial(_prepare, make, tokens, shape.n_new) for peer, make in makers.items()},
            (generation_flops(*size), generation_bytes(*size)),
            None,
            options,
        )
        row["tokens_per_second"] = shape.n_prompts * shape.n_new / row["best_ms"] * 1e3
        for peer in makers:
            row[f"{peer} tokens/s"] = row["tokens_per_second"] / row[peer]
        rows.append({"name": name, **row})
    columns = {**COLUMNS, "tokens_per_second": "tokens/s"}
    for peer in makers:
        columns |= {f"{peer} tokens/s": f"{peer} tokens/s", peer: f"{peer}/ours"}
    what = f"{config.n_layer} layers of GPT-2 small" if options.small else "GPT-2 small"
    print_table(f"Generation, {what}, greedy, {options.threads} threads", columns, rows)
    for note in notes:
        print(note)
    return rows


def _prepare(
    make: Callable[[], Callable[[np.ndarray, int], Any]], tokens: np.ndarray, n_new: int
) -> Callable[[], Any]:
    return functools.partial(make(), tokens, n_new)
