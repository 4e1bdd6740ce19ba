"""How many heads and attention edges the demo models need for 90 % of a task's metric."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attnsparse
from attnsparse import recipes, tasks
from attnsparse.circuits.find import find_circuit

from .judge import Options
from .timing import print_table, progress

ROWS = ("copy", "ioi", "antonym", "greater_than")
PROMPTS, SEED = 80, 0
#: column -> unit, how items are ranked, ablation
WAYS = {
    "heads_zero": ("head", "exact", "zero"),
    "heads_mean": ("head", "exact", "mean"),
    "edges_zero": ("edge", "exact", "zero"),
    "edges_mean": ("edge", "exact", "mean"),
}


def run(options: Options) -> list[dict[str, Any]]:
    """One row for each folder of models, task and model."""
    rows = []
    for folder, name in _models(tuple(map(Path, options.folders))):
        model = attnsparse.load(name if folder is None else folder / name)
        for task in filter(options.wants, ROWS):
            progress(f"{folder or 'shipped'}: {name}, {task}")
            label = f"{task}: {name}" if folder is None else f"{folder.name}: {task}: {name}"
            rows.append({"row": label, **measure(model, task, options.threads)})
    columns = {"row": "row", "top1": "top-1 %", "open": "open entries"}
    columns |= {way: way.replace("_", ", ") for way in WAYS}
    print_table(
        "Needed for 90 % of the metric: the first number that reaches it (the one from which it stays)",
        columns,
        rows,
    )
    return rows


def measure(model: attnsparse.Model, name: str, threads: int) -> dict[str, Any]:
    """Of one model on one task: top-1 in percent, mean open entries of a prompt, and what is needed."""
    task = tasks.make_task(name, model.tokenizer, n=PROMPTS, seed=SEED)
    hits = tasks.top1(tasks.last_logits(model, task), task)
    opened = model.run(list(task.clean), record="gate", logits="none")
    found: dict[str, Any] = {
        "top1": 100 * float(hits.mean()),
        "open": sum(int(opened[i].gate.sum()) for i in range(len(task))) / len(task),
    }
    for way, (unit, method, ablation) in WAYS.items():
        circuit = find_circuit(
            model,
            task,
            unit=unit,
            method=method,
            ablation=ablation,
            n_random=0,
            threads=threads,
            progress=False,
        )
        needed = circuit.needed(0.9)
        found[way] = f"{_number(needed.first)} ({_number(needed.stays)})"
    return found


def _number(n: int | None) -> str:
    return "-" if n is None else f"{n:,}"


def _models(folders: tuple[Path, ...]) -> Iterator[tuple[Path | None, str]]:
    """Every model of every folder that `attnsparse train demo` wrote; without folders the shipped ones."""
    for folder in folders or (None,):
        for name in recipes.RECIPES["demo"].models:
            yield folder, name
