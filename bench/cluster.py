"""Work on the workers of a pool: what a piece costs beside its computation, and checkpoints times tasks."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import attnsparse
from attnsparse import Model
from attnsparse.circuits import pieces
from attnsparse.circuits.effects import candidates, knock_out
from attnsparse.tasks.task import Task

from .judge import Options
from .timing import print_table, progress
from .work import random_tokens

ROWS = ("pieces", "checkpoints")
WORKERS = (1, 2)
N_PROMPTS = 1024
N_CHECKPOINTS, N_TASKS = 200, 8
CONFIG = attnsparse.Config(
    n_layer=2, n_head=4, d_model=32, d_head=8, d_mlp=64, n_vocab=64, n_ctx=16, gated=True, gate_bias=0.5
)


def run(options: Options) -> list[dict[str, Any]]:
    """Measure the rows asked for."""
    rows = []
    for name, measure in (("pieces", _pieces), ("checkpoints", _checkpoints)):
        if options.wants(name):
            progress(name)
            rows += measure(options)
    columns = {"row": "", "workers": "workers", "seconds": "seconds", "each": "ms for each piece or call"}
    print_table("On the workers of a pool of processes", columns, rows)
    return rows


def _pool(n_workers: int) -> ProcessPoolExecutor:
    """Workers that have started."""
    pool = ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn"))
    list(pool.map(_load, range(4 * n_workers)))
    return pool


def _load(i: int) -> int:
    time.sleep(0.05)
    return attnsparse.get_num_threads()


def _task(n: int, name: str = "random") -> Task:
    tokens = random_tokens(CONFIG, 2 * n, 8)
    answers = [(np.array([i % 60], np.int32), np.array([i % 60 + 1], np.int32)) for i in range(n)]
    right, wrong = zip(*answers)
    prompts = {"clean": tuple(tokens[:n]), "corrupted": tuple(tokens[n:]), "answers": right, "wrong": wrong}
    is_ranking = np.arange(n) % 2 == 0
    return Task(name, "logit_diff", None, **prompts, labels=("",) * n, is_ranking=is_ranking)  # type: ignore


def _pieces(options: Options) -> list[dict[str, Any]]:
    """Pieces so small that their computation hardly counts: a row for one prompt each."""
    n = N_PROMPTS // 16 if options.small else N_PROMPTS
    task = _task(n)
    before, pieces.VALUES_AT_ONCE = pieces.VALUES_AT_ONCE, 1
    rows = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            Model.initialised(CONFIG, seed=0).save(Path(folder) / "model")
            model = attnsparse.load(Path(folder) / "model")
            items = candidates(model, task, "head")[:1]
            for n_workers in (0, *WORKERS):
                pool = _pool(n_workers) if n_workers else None
                knock_out(model, task, items, executor=pool, threads=1)  # the workers load the model
                begun = time.perf_counter()
                knock_out(model, task, items, executor=pool, threads=1)
                seconds = time.perf_counter() - begun
                rows.append(_row("pieces", n_workers, seconds, n))
                if pool is not None:
                    pool.shutdown()
    finally:
        pieces.VALUES_AT_ONCE = before
    return rows


def _find(model: Model, task: Task) -> int:
    return len(attnsparse.find_circuit(model, task, threads=1, n_bootstrap=100, progress=False))


def _checkpoints(options: Options) -> list[dict[str, Any]]:
    """find_circuit for every checkpoint and task, as whole calls."""
    n_models = N_CHECKPOINTS // 50 if options.small else N_CHECKPOINTS
    tasks = [_task(32, f"task {i}") for i in range(N_TASKS)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n_models):
            Model.initialised(CONFIG, seed=i).save(Path(folder) / f"checkpoint-{i}")
        models = [attnsparse.load(Path(folder) / f"checkpoint-{i}") for i in range(n_models)]
        cells = [(model, task) for model in models for task in tasks]
        for n_workers in WORKERS:
            with _pool(n_workers) as pool:
                begun = time.perf_counter()
                list(pool.map(_find, *zip(*cells)))
                rows.append(_row("checkpoints", n_workers, time.perf_counter() - begun, len(cells)))
    return rows


def _row(name: str, n_workers: int, seconds: float, n_pieces: int) -> dict[str, Any]:
    return {
        "row": f"{name}: {n_pieces:,}",
        "workers": n_workers or "none",
        "seconds": seconds,
        "each": 1e3 * seconds / n_pieces,
    }
