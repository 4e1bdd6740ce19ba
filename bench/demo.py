"""How many heads and attention edges the demo models need for 90 % of a task's metric, and how many times
fewer the sparsest of them needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attnsparse
from attnsparse import recipes, tasks
from attnsparse.circuits.circuit import Circuit
from attnsparse.circuits.find import find_circuit
from attnsparse.recipes.demo import CONTROL, DENSE, MAX

from .judge import Options
from .timing import print_table, progress

ROWS = ("copy", "ioi", "antonym", "greater_than")
PROMPTS, SEED = 80, 0
FRACTION = 0.9
#: how items are ranked; no ranking is the best one for every model, and a bad one asks for more items
METHODS = {"exact": "exact ranking", "ig": "ranking by integrated gradients"}
#: column -> unit, ablation
WAYS = {
    "heads_zero": ("head", "zero"),
    "heads_mean": ("head", "mean"),
    "edges_zero": ("edge", "zero"),
    "edges_mean": ("edge", "mean"),
}


def run(options: Options) -> list[dict[str, Any]]:
    """For each ranking: one row for each folder of models, task and model; then one for each folder, task and
    model without a gate, that says how many times fewer `demo-sparse-max` needs."""
    rows = []
    circuits: dict[tuple[str, str, str], dict[str, Circuit]] = {}
    for folder, name in _models(tuple(map(Path, options.folders))):
        model = attnsparse.load(name if folder is None else folder / name)
        for row in filter(options.wants, ROWS):
            progress(f"{folder or 'shipped'}: {name}, {row}")
            begin = row if folder is None else f"{folder.name}: {row}"
            task = tasks.make_task(row, model.tokenizer, n=PROMPTS, seed=SEED)
            found = opened(model, task)
            for method in METHODS:
                circuits[method, begin, name] = find(model, task, method, options.threads)
                count = needed(circuits[method, begin, name])
                rows.append({"method": method, "row": f"{begin}: {name}", **found, **count})
    ways = {way: way.replace("_", ", ") for way in WAYS}
    times = [
        {
            "method": method,
            "row": f"{begin}: {name}, times {MAX}",
            **ratios(found, circuits[method, begin, MAX]),
        }
        for (method, begin, name), found in circuits.items()
        if name in (DENSE, CONTROL)
    ]
    for method, how in METHODS.items():
        print_table(
            f"Needed for 90 %, {how}: the first number that reaches it (the one from which it stays)",
            {"row": "row", "top1": "top-1 %", "open": "open entries", **ways},
            [row for row in rows if row["method"] == method],
        )
        print_table(
            f"Times more, {how}, 95 % intervals: by the first number (by the one from which it stays)",
            {"row": "row", **ways},
            [row for row in times if row["method"] == method],
        )
    return rows + times


def find(model: attnsparse.Model, task: tasks.Task, method: str, threads: int) -> dict[str, Circuit]:
    """Circuits of a model on one task, by the names of WAYS."""
    return {
        way: find_circuit(
            model,
            task,
            unit=unit,
            method=method,
            ablation=ablation,
            n_random=0,
            threads=threads,
            progress=False,
        )
        for way, (unit, ablation) in WAYS.items()
    }


def opened(model: attnsparse.Model, task: tasks.Task) -> dict[str, Any]:
    """Top-1 in percent and the mean number of open entries of a prompt."""
    hits = tasks.top1(tasks.last_logits(model, task), task)
    found = model.run(list(task.clean), record="gate", logits="none")
    return {
        "top1": 100 * float(hits.mean()),
        "open": sum(int(found[i].gate.sum()) for i in range(len(task))) / len(task),
    }


def needed(circuits: dict[str, Circuit]) -> dict[str, str]:
    """What is needed, as text, by the names of WAYS."""
    numbers = {way: circuit.needed(FRACTION) for way, circuit in circuits.items()}
    return {way: f"{_number(n.first)} ({_number(n.stays)})" for way, n in numbers.items()}


def ratios(more: dict[str, Circuit], fewer: dict[str, Circuit]) -> dict[str, str]:
    """How many times more, as text, by the names of WAYS."""
    texts = {}
    for way in WAYS:
        first, stays = (more[way].ratio_to(fewer[way], FRACTION, by) for by in ("first", "stays"))
        texts[way] = f"{first} ({stays})"
    return texts


def _number(n: int | None) -> str:
    return "-" if n is None else f"{n:,}"


def _models(folders: tuple[Path, ...]) -> Iterator[tuple[Path | None, str]]:
    """Every model of every folder that `attnsparse train demo` wrote; without folders the shipped ones."""
    for folder in folders or (None,):
        for name in recipes.RECIPES["demo"].models:
            yield folder, name
