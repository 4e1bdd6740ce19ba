"""Sweeps, circuits and the paper's figures: how long, against the machine's limit and against plain runs."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

import attnsparse
from attnsparse import Edge, Model, tasks
from attnsparse.circuits import effects
from attnsparse.circuits.find import find_circuit
from attnsparse.reproduce import reproduce
from attnsparse.tasks.task import Task

from .judge import COLUMNS, Goal, Options, measure_row
from .peers import patching_peers
from .timing import print_table, progress, time_calls
from .work import GPT2_SMALL, random_model, random_tokens, sweep_flops

ROWS = ("heads", "edges", "growth", "find", "reproduce")
LENGTH = 15  #: tokens of the pair whose heads are patched
GROWTH = (1000, 4000)  #: edges of the dense model
MOST_SHARE = 0.05  #: of the time of one forward pass per edge
MOST_SECONDS = {"find": 20.0, "reproduce": 60.0}


def run(options: Options) -> list[dict[str, Any]]:
    """Measure the rows asked for; one table for each kind."""
    rows = []
    for name, measure in (("heads", _heads), ("edges", _edges), ("growth", _growth), ("find", _seconds)):
        wanted = ("find", "reproduce") if name == "find" else (name,)
        if any(map(options.wants, wanted)):
            rows += measure(options)
    return rows


def _pair(lengths: int) -> Task:
    """A random clean and corrupted prompt for the random model, with a right and a wrong answer."""
    clean, corrupted = random_tokens(GPT2_SMALL, 2, lengths)
    right, wrong = (np.array([token], np.int32) for token in (5, 7))
    prompts = {"clean": (clean,), "corrupted": (corrupted,), "answers": (right,), "wrong": (wrong,)}
    return Task("random", "logit_diff", None, **prompts, labels=("",), is_ranking=np.array([True]))  # type: ignore


def _heads(options: Options) -> list[dict[str, Any]]:
    """Every head of GPT-2 small patched alone with its value in the corrupted prompt."""
    model, task = random_model(GPT2_SMALL), _pair(LENGTH)
    items = effects.candidates(model, task, "head")
    call = functools.partial(
        effects.knock_out, model, task, items, "counterfactual", threads=options.threads, progress=False
    )
    makers, notes = patching_peers(GPT2_SMALL, options.threads) if options.peers else ({}, [])
    needs = (sweep_flops(GPT2_SMALL, LENGTH), 4.0 * GPT2_SMALL.n_parameters())
    peers = {name: functools.partial(make, task.clean[0], task.corrupted[0]) for name, make in makers.items()}
    row = measure_row(f"144 heads, T={LENGTH}, one pair", call, peers, needs, Goal(1500, 950), options)
    columns = {**COLUMNS, **{peer: f"{peer}/ours" for peer in makers}}
    print_table(f"Head patching sweep, GPT-2 small, {options.threads} threads", columns, [row])
    for note in notes:
        print(note)
    return [{"name": "heads", **row}]


def _one_by_one(model: Model, prompt: np.ndarray, items: np.ndarray, threads: int) -> Callable[[], None]:
    """One whole forward pass for every edge."""
    edges = [Edge(*map(int, item)) for item in items]

    def call() -> None:
        for edge in edges:
            model.run(prompt, record=(), logits="last", ablate=edge, threads=threads)

    return call


def _edges(options: Options) -> list[dict[str, Any]]:
    """All open edges of one 16-token prompt of the sparse demo model, each ablated alone."""
    model = attnsparse.load("demo-sparse")
    task = tasks.make_task("copy", model.tokenizer, n=2).subset([0])
    items = effects.candidates(model, task, "edge")
    progress(f"{len(items)} edges")
    sweep = functools.partial(effects.knock_out, model, task, items, threads=options.threads, progress=False)
    ours = time_calls(sweep, options.repeats)
    plain = time_calls(_one_by_one(model, task.clean[0], items, options.threads), options.repeats)
    share = ours.best / plain.best
    row = {
        "name": "edges", "row": f"{len(items)} open edges, T={len(task.clean[0])}",
        "best_ms": 1e3 * ours.best, "plain_ms": 1e3 * plain.best, "share": share, "allowed": MOST_SHARE,
        "holds": share <= MOST_SHARE,
    }  # fmt: skip
    columns = {"row": "row", "best_ms": "best ms", "plain_ms": "one by one, ms", "share": "share",
               "allowed": "goal", "holds": "holds"}  # fmt: skip
    print_table(f"Edge sweep, demo-sparse, {options.threads} threads", columns, [row])
    return [row]


def _growth(options: Options) -> list[dict[str, Any]]:
    """The edge sweep of the dense demo model over some of its edges: time per edge should not grow."""
    model = attnsparse.load("demo-dense")
    task = tasks.make_task("copy", model.tokenizer, n=2).subset([0])
    items = np.random.default_rng(0).permutation(effects.candidates(model, task, "edge"))
    rows = []
    for n in GROWTH:
        progress(f"{n} edges")
        call = functools.partial(
            effects.knock_out, model, task, items[:n], threads=options.threads, progress=False
        )
        times = time_calls(call, options.repeats)
        rows.append({"name": "growth", "row": f"{n} edges", "best_ms": 1e3 * times.best,
                     "us_per_edge": 1e6 * times.best / n})  # fmt: skip
    columns = {"row": "row", "best_ms": "best ms", "us_per_edge": "us per edge"}
    print_table("Edge sweep by the number of edges, demo-dense", columns, rows)
    return rows


def _seconds(options: Options) -> list[dict[str, Any]]:
    """A whole search, and all the paper's figures."""
    model = attnsparse.load("demo-sparse")
    task = tasks.make_task("ioi", model.tokenizer, n=64)
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, tuple[str, Callable[[], Any]]] = {
            "find": ("find_circuit, 144 heads, 64 pairs, 1000 resamples",
                     functools.partial(find_circuit, model, task, threads=options.threads, progress=False)),
            "reproduce": ("reproduce, all figures", functools.partial(reproduce, "all", folder)),
        }  # fmt: skip
        rows = []
        for name, (label, call) in calls.items():
            if options.wants(name):
                progress(label)
                seconds, most = time_calls(call, 1).best, MOST_SECONDS[name]
                rows.append({"name": name, "row": label, "seconds": seconds, "allowed": most,
                             "holds": seconds <= most})  # fmt: skip
    columns = {"row": "row", "seconds": "seconds", "allowed": "goal", "holds": "holds"}
    print_table(f"Whole jobs on the demo models, {options.threads} threads", columns, rows)
    return rows
