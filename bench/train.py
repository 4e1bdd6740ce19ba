"""Training steps: forward, backward, clipping and AdamW, dense and gated; and how their memory grows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from attnsparse import Config
from attnsparse import _engine as engine

from .child import run_child
from .judge import COLUMNS, Goal, Options, measure_row
from .peers import torch_with_threads
from .timing import print_table, progress
from .work import GPT2_SMALL, random_model, random_tokens, step_bytes, step_flops

MULTIPLIER, TAU = 0.3, 0.03
ADDITION_VOCAB = 14
MEMORY_ROW = "memory"
MEMORY_LENGTHS = (256, 512, 1024)
#: increase of memory from 512 to 1024 tokens over that from 256 to 512: 2 if linear, 4 if quadratic
MOST_GROWTH = 2.2


@dataclasses.dataclass(frozen=True)
class Shape:
    """One row: a model and the batch of a step."""

    label: str
    config: Config
    n_sequences: int
    length: int
    goal: Goal


def _config(n_layer: int, n_head: int, d_head: int, mlp: int, n_ctx: int, n_vocab: int) -> Config:
    """mlp: d_mlp over d_model. The addition models' unembedding is untied, as in their recipe."""
    width = n_head * d_head
    return Config(
        n_layer=n_layer, n_head=n_head, d_model=width, d_head=d_head, d_mlp=mlp * width, n_ctx=n_ctx,
        n_vocab=n_vocab, tied=n_vocab != ADDITION_VOCAB,
    )  # fmt: skip


ADDITION = _config(4, 4, 32, 4, 11, ADDITION_VOCAB)
ADDITION_RECIPE = _config(4, 4, 16, 4, 11, ADDITION_VOCAB)
DEMO = _config(12, 12, 16, 4, 32, 2000)
DEMO_RECIPE = _config(12, 12, 8, 2, 32, 800)
ROWS = {
    "toy": Shape("addition 4x4x128, 256 x 11", ADDITION, 256, 11, Goal(80, 65)),
    "demo": Shape("demo 12x12x192, 64 x 32", DEMO, 64, 32, Goal(400, 333)),
    "demo-recipe": Shape("demo 12x12x96, 32 x 32", DEMO_RECIPE, 32, 32, Goal(60, 30)),
    "toy-recipe": Shape("addition 4x4x64, 64 x 11", ADDITION_RECIPE, 64, 11, Goal(10, 4)),
    "gpt2-4x64": Shape("GPT-2 small, 4 x 64", GPT2_SMALL, 4, 64, Goal(1200, 905)),
    "gpt2-1x1024": Shape("GPT-2 small, 1 x 1024", GPT2_SMALL, 1, 1024, Goal(5000, 3900)),
}


def run(options: Options) -> list[dict[str, Any]]:
    """Measure the rows asked for and print their tables."""
    rows = [
        _measure(name, shape, gated, options)
        for name, shape in ROWS.items()
        if options.wants(name)
        for gated in (False, True)
    ]
    if rows:
        columns = {**COLUMNS, "torch": "torch/ours"}
        print_table(f"Training step, float32, {options.threads} threads", columns, rows)
    if options.wants(MEMORY_ROW):
        rows += _memory(options.threads)
    return rows


def our_step(config: Config, n_sequences: int, length: int, threads: int) -> Callable[[], dict[str, Any]]:
    """A call that takes one step of a new random model; every token counts in the loss."""
    trainer = engine.core_for("float32").Trainer(random_model(config)._core)
    trainer.multiplier = MULTIPLIER
    tokens = random_tokens(config, n_sequences, length)
    offsets = np.arange(n_sequences + 1, dtype=np.int64) * length
    targets = np.roll(tokens, -1, axis=1)
    batch = (tokens.ravel(), offsets, targets.ravel(), np.ones(tokens.size, np.float32))
    return functools.partial(
        trainer.step, [batch], lr=1e-4, beta1=0.9, beta2=0.98, eps=1e-8, weight_decay=0.1, clip=1.0, seed=0,
        tau=TAU, threads=threads,
    )  # fmt: skip


def torch_step(config: Config, n_sequences: int, length: int, threads: int) -> Callable[[], float]:
    """The same step in PyTorch."""
    torch = torch_with_threads(threads)
    from .torch_gpt import TorchTrainer

    tokens = torch.from_numpy(random_tokens(config, n_sequences, length)).long()
    return TorchTrainer(config, tokens, tokens.roll(-1, 1), MULTIPLIER, TAU).step


def _measure(name: str, shape: Shape, gated: bool, options: Options) -> dict[str, Any]:
    config = dataclasses.replace(shape.config, gated=gated)
    size = (config, shape.n_sequences, shape.length)
    return {
        "name": name,
        "gated": gated,
        **measure_row(
            f"{shape.label}, {'gated' if gated else 'dense'}",
            our_step(*size, options.threads),
            _peers(size, options),
            (step_flops(*size), step_bytes(config)),
            shape.goal,
            options,
        ),
    }


def _peers(size: tuple[Config, int, int], options: Options) -> dict[str, Callable[[], Callable[[], Any]]]:
    if not options.peers:
        return {}
    try:
        torch_with_threads(options.threads)
    except ImportError as error:
        progress(f"torch is left out: {error}")
        return {}
    return {"torch": functools.partial(torch_step, *size, options.threads)}


def peak_of_step(length: int, gated: bool, threads: int) -> Callable[[], Any]:
    """For a process of its own: a step on one sequence of the demo's model, with a longer context."""
    config = dataclasses.replace(DEMO, n_ctx=max(MEMORY_LENGTHS), gated=gated)
    return our_step(config, 1, length, threads)


def _memory(threads: int) -> list[dict[str, Any]]:
    """Peak memory of a process that takes one step, against the length of its only sequence."""
    rows = []
    for gated in (False, True):
        peaks = []
        for length in MEMORY_LENGTHS:
            progress(f"memory of a step, T={length}, {'gated' if gated else 'dense'}")
            peaks.append(run_child("step", str(length), str(int(gated)), str(threads))["peak"])
        growth = (peaks[2] - peaks[1]) / max(peaks[1] - peaks[0], 1)
        rows.append({
            "name": MEMORY_ROW,
            "row": f"demo 12x12x192, 1 x T, {'gated' if gated else 'dense'}",
            **{f"T={length}": peak for length, peak in zip(MEMORY_LENGTHS, peaks)},
            "growth": growth,
            "allowed": MOST_GROWTH,
            "holds": growth <= MOST_GROWTH,
        })  # fmt: skip
    columns = {
        "row": "row", **{f"T={length}": f"bytes, T={length}" for length in MEMORY_LENGTHS},
        "growth": "growth", "allowed": "allowed", "holds": "holds",
    }  # fmt: skip
    print_table("Peak memory of a process taking one step (growth: 2 is linear, 4 quadratic)", columns, rows)
    return rows
