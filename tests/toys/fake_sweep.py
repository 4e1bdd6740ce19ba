"""Folders of sweeps with given circuits, made without models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from fake_circuit import fake_circuit

from attnsparse.circuits.circuit import Circuit
from attnsparse.sweeps.cell import Cell, Found, Options
from attnsparse.sweeps.sources import model_sources
from attnsparse.sweeps.store import Plan, Store

MACHINE = {"attnsparse_version": "0", "isa": "avx2", "blas_core": "Haswell"}
N_ITEMS = 24


def rising(n: int, n_items: int = N_ITEMS) -> np.ndarray:
    """A curve over 0..n_items that first reaches 0.9 with n items."""
    return np.minimum(np.arange(n_items + 1) * 0.92 / n, 0.92) * (np.arange(n_items + 1) < n_items) + (
        np.arange(n_items + 1) == n_items
    )


def ranked(n: int, seed: int = 0, shuffled: int = N_ITEMS, task: str = "copy") -> Circuit:
    """A circuit that needs n heads, whose first `shuffled` ones are in an order of this seed."""
    circuit = fake_circuit(rising(n), task=task, spread=0.1, seed=seed)
    order = np.arange(len(circuit))
    order[:shuffled] = np.random.default_rng(seed).permutation(shuffled)
    return dataclasses.replace(circuit, items=circuit.items[order])


def write_sweep(
    out: Path,
    models: Mapping[object, object] | Iterable[str],
    tasks: Iterable[str],
    seeds: Iterable[int],
    make: Callable[[str, str, int], Circuit],
    **options: object,
) -> Path:
    """The folder of a sweep whose cell (model, task, seed) has the circuit that `make` gives."""
    store, asked = Store(out), Options.of({"n_bootstrap": 200, "n_random": 0, **options})
    named = models if isinstance(models, Mapping) else {name: name for name in models}
    sources, tasks, seeds = model_sources(named), list(tasks), list(seeds)
    store.write_plan(Plan([source.name for source in sources], tasks, seeds, asked.told))
    for source in sources:
        for task in tasks:
            for seed in seeds:
                circuit = make(source.name, task, seed)
                digests = source.name, circuit.task_digest, "float32", 8
                cell = Cell(source, task, seed, asked, *digests)
                prompts = tuple(f"{i:016x}" for i in range(len(circuit.full)))
                store.write(cell, Found(circuit, prompts, MACHINE, 1.5))
    return out
