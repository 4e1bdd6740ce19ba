"""What the reliability tests share: small models, the allocator's counters, bytes of results, processes."""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine
import numpy as np
import oracle
from places import TESTS, child_environment

import attnsparse as asp
from attnsparse import _core, _core64

CORES = {"float32": _core, "float64": _core64}

#: wide enough that a forward pass needs little scratch, so that it can be repeated thousands of times
SHAPE = {"n_layer": 2, "n_head": 4, "d_model": 64, "d_mlp": 128, "n_ctx": 24, "n_vocab": 96}
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32)
FEATURE_ARRAYS = ("layer", "position", "feature", "activation", "start", "reconstruction", "error")
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7]]


def report(goal: str, text: str) -> None:
    """Print `goal: text`, and append it to the file that ATTNSPARSE_RELIABILITY_LOG names."""
    line = f"{goal}: {text}"
    print(line, flush=True)
    if log := os.environ.get("ATTNSPARSE_RELIABILITY_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def model(seed: int = 0, dtype: str = "float32", **changes: Any) -> asp.Model:
    """A gated model of SHAPE with random weights; `changes` are fields of its Config."""
    config = oracle.full_config(**({"gated": True} | SHAPE | changes))
    return engine.build(config, engine.rounded_model(seed, config), dtype)


def micro_batch(
    lengths: tuple[int, ...] = (5, 1, 7), n_vocab: int = 96, dtype: str = "float32", seed: int = 0
) -> tuple:
    """(tokens, offsets, targets, weights) as `_core.Trainer.step` takes them."""
    random, n = np.random.default_rng(seed), sum(lengths)
    tokens, targets = (random.integers(0, n_vocab, n).astype(np.int32) for _ in range(2))
    return tokens, np.cumsum([0, *lengths]).astype(np.int64), targets, np.ones(n, dtype)


def step_options(**changes: Any) -> dict[str, Any]:
    """Keywords of `_core.Trainer.step`."""
    usual = {
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "clip": 1.0,
        "seed": 5,
    }
    return usual | {"tau": 1.0, "geco_rate": 0.1} | changes


def counters(dtype: str = "float32") -> tuple[int, int]:
    """Bytes and blocks of the C core that are in use now."""
    gc.collect()
    stats = CORES[dtype]._debug_stats()
    return stats["live_bytes"], stats["live_blocks"]


@contextlib.contextmanager
def nothing_kept(dtype: str = "float32") -> Iterator[None]:
    """Fails if the C core's memory in use is another one at the end, by a single byte."""
    before = counters(dtype)
    yield
    assert counters(dtype) == before


def bits_of_run(run: asp.Run) -> dict[str, bytes]:
    """Every recorded array of a run of any number of prompts, as bytes."""
    found = {name: run._core.array(name).tobytes() for name in run._core.names}
    if "edges" in run.recorded:
        found |= {f"edges {i}": array.tobytes() for i, array in enumerate(run._core.edges())}
    return found


def bits_of_features(features: asp.Features) -> dict[str, bytes]:
    """What a call of `features` found, as bytes."""
    return {name: getattr(features, name).tobytes() for name in FEATURE_ARRAYS}


def bits_of_model(model: asp.Model, trainer: Any = None) -> dict[str, bytes]:
    """Weights as bytes, and with an engine's trainer all that a step changes."""
    found = {name: array.tobytes() for name, array in model.parameters().items()}
    for name in model.parameters() if trainer is not None else ():
        found |= {f"{name} {i}": moment.tobytes() for i, moment in enumerate(trainer.moments(name))}
    if trainer is not None:
        found["state"] = repr((trainer.step_count, trainer.multiplier, trainer.ema)).encode()
    return found


def child(*arguments: str, timeout: float = 60, **environment: str) -> Any:
    """Run Python on `arguments` among these tests, with a hard time limit; what it printed last, as JSON.

    A crash, a time limit or anything on standard error fails the calling test.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS / "children",
        env=child_environment(**environment),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-3000:]}"
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else None


def new_folder() -> Path:
    """A folder for a process of its own, gone when that ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
