"""Component edges of GPT-2 small: scores, one circuit evaluated, and every edge replaced alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from attnsparse import Model
from attnsparse.circuits import component_scores
from attnsparse.circuits.components.circuit import component_circuit
from attnsparse.circuits.components.values import component_values
from attnsparse.tasks.task import Task

from .judge import COLUMNS, Goal, Options, measure_row
from .timing import print_table
from .work import GPT2_SMALL, forward_flops, random_model, random_tokens

ROWS = ("eap", "eap-ig", "evaluate", "exact")
N_PAIRS, LENGTH, STEPS, N_EDGES = 30, 15, 5, 200
N_SENDERS = 1 + GPT2_SMALL.n_layer * (GPT2_SMALL.n_head + 1)
N_RECEIVERS = 1 + GPT2_SMALL.n_layer * (3 * GPT2_SMALL.n_head + 1)


def run(options: Options) -> list[dict[str, Any]]:
    """Measure the rows asked for."""
    model, task = random_model(GPT2_SMALL), _pairs(N_PAIRS)
    rows = []
    for name, (label, call, flops, goal) in _calls(model, task, options.threads).items():
        if options.wants(name):
            needs = (flops, 4.0 * GPT2_SMALL.n_parameters())
            few = dataclasses.replace(options, repeats=1) if name == "exact" else options
            rows.append({"name": name, **measure_row(label, call, {}, needs, goal, few)})
    print_table(f"Component edges, GPT-2 small, {options.threads} threads", COLUMNS, rows)
    return rows


def _calls(model: Model, task: Task, threads: int) -> dict[str, tuple[str, Callable[[], Any], float, Goal]]:
    """Label, call, operations and goal of every row."""
    given: dict[str, Any] = {"threads": threads, "progress": False}
    pass_ = _pass_flops(N_PAIRS)
    product = 2.0 * N_SENDERS * N_RECEIVERS * GPT2_SMALL.d_model * LENGTH * N_PAIRS
    one = _pairs(1)
    scores = component_scores(model, one, **given)
    mask = component_circuit(scores, model).mask(N_EDGES)[None]
    where = f"{N_PAIRS} pairs of {LENGTH} tokens"
    return {
        "eap": (f"EAP, {scores.n_edges:,} component edges, {where}",
                lambda: component_scores(model, task, method="eap", **given),
                3 * pass_ + product, Goal(4000, 2200)),
        "eap-ig": (f"EAP-IG inputs, {STEPS} steps, {where}",
                   lambda: component_scores(model, task, method="eap-ig-inputs", steps=STEPS, **given),
                   (2 + 2 * STEPS) * pass_ + product, Goal(12000, 7000)),
        "evaluate": (f"a circuit of {N_EDGES} component edges evaluated, {where}",
                     lambda: component_values(model, task, mask, **given), 2 * pass_, Goal(2000, 1300)),
        "exact": (f"every component edge replaced alone, one pair of {LENGTH} tokens",
                  lambda: component_scores(model, one, method="exact", **given),
                  _exact_flops(), Goal(120000, 60000)),
    }  # fmt: skip


def _pairs(n: int) -> Task:
    """Random clean and corrupted prompts for the random model, each with a right and a wrong answer."""
    tokens = random_tokens(GPT2_SMALL, 2 * n, LENGTH)
    right, wrong = (tuple(np.array([token], np.int32) for _ in range(n)) for token in (5, 7))
    prompts = {"clean": tuple(tokens[:n]), "corrupted": tuple(tokens[n:]), "answers": right, "wrong": wrong}
    return Task("random", "logit_diff", None, **prompts, labels=("",) * n, is_ranking=np.ones(n, bool))  # type: ignore


def _pass_flops(n: int) -> float:
    """One forward pass with the logits of the last position, or one backward pass without weights."""
    others = 2.0 * GPT2_SMALL.n_vocab * GPT2_SMALL.d_model * n * (LENGTH - 1)
    return forward_flops(GPT2_SMALL, n, LENGTH) - others


def _exact_flops() -> float:
    """The layers above each receiver, once for each component edge into it."""
    c = GPT2_SMALL
    layer = (forward_flops(c, 1, LENGTH) - 2.0 * c.n_vocab * c.d_model * LENGTH) / c.n_layer
    mlp = 4.0 * c.d_model * c.d_mlp * LENGTH
    total = 0.0
    for i in range(c.n_layer):
        before = 1 + i * (c.n_head + 1)
        above = (c.n_layer - 1 - i) * layer + mlp
        total += 3 * c.n_head * before * above + (before + c.n_head) * above
    return total
