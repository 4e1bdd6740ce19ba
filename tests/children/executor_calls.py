"""Every call that takes an executor, on a small model; as a program, in the workers of MPI:

mpirun -n 2 python -m mpi4py.futures executor_calls.py MODEL RESULTS.npz
"""

from __future__ import annotations

import sys
from typing import Any

import executor_metrics as metrics
import numpy as np
import oracle_component_graph as og
from circuit_cases import case

import attnsparse as asp
from attnsparse.circuits import (
    attribution,
    component_circuit,
    component_scores,
    component_values,
    entry_effects,
    find_circuit,
    find_component_circuit,
    keep_only,
    knock_out,
    leave_one_out,
    node_circuit,
    patching_sweep,
    pieces,
)
from attnsparse.circuits.effects import candidates
from attnsparse.transcoders import describe_features

CASE = case("gated", (6, 6, 6, 6))
TASK = CASE.task
#: a few rows and prompts are a piece
SMALL = {"ROWS_AT_ONCE": 3, "VALUES_AT_ONCE": 6, "WHOLE_ROWS": 3, "WHOLE_VALUES": 1, "SUMMED_PROMPTS": 2}


def flat(*arrays: Any) -> np.ndarray:
    return np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays])


def heads(model, **options):
    return knock_out(model, TASK, candidates(model, TASK, "head"), "mean", **options)


def edges(model, **options):
    return knock_out(model, TASK, candidates(model, TASK, "edge"), "counterfactual", **options)


def kept(model, **options):
    items = candidates(model, TASK, "edge")[::-1]
    return keep_only(model, TASK, items, range(0, len(items) + 1, 5), **options)


def dropped(model, **options):
    return leave_one_out(model, TASK, candidates(model, TASK, "edge")[:8], "counterfactual", **options)


def first_order(model, **options):
    return attribution(model, TASK, "edge", steps=2, **options)


def found(model, **options):
    circuit = find_circuit(
        model, TASK, method="greedy", greedy_step=0.5, n_bootstrap=0, n_random=1, **options
    )
    return flat(
        circuit.items, circuit.scores, circuit.values, circuit.full, circuit.empty, circuit.random_low
    )


def found_by_gradients(model, **options):
    given = {"unit": "head_position", "method": "ig", "ablation": "mean", "steps": 2, "n_bootstrap": 0}
    circuit = find_circuit(model, TASK, **given, n_random=1, **options)
    return flat(circuit.items, circuit.scores, circuit.values, circuit.random_low)


def entries(model, **options):
    sweep = entry_effects([model], TASK, [1, 2, 1, 1], 5, **options)
    return flat(*(t.select_dtypes("number") for t in (sweep.to_pandas(), sweep.summary(n_bootstrap=0))))


def scores(model, **options):
    return component_scores(model, TASK, method="eap-ig-inputs", steps=2, **options).scores


def exact_scores(model, **options):
    return component_scores(model, TASK, method="exact", **options).scores


def circuits(model, **options):
    real = og.real_edges(CASE.config)
    masks = real & (np.random.default_rng(0).random((8, *real.shape)) < 0.4)
    return component_values(model, TASK, masks, **options)


def curve(model, **options):
    circuit = component_circuit(component_scores(model, TASK), model)
    return circuit.evaluate(model, TASK, shares=(0.1, 0.4, 0.9), n_random=1, **options).random_values


def nodes(model, **options):
    circuit = node_circuit(component_scores(model, TASK, level="node"), model)
    return circuit.evaluate(model, TASK, shares=(0.1, 0.4, 0.9), **options).values


def found_components(model, **options):
    return find_component_circuit(model, TASK, shares=(0.1, 0.4, 0.9), **options).curve.values


def patched(model, **options):
    sweep = patching_sweep(model, TASK, "z", by=("head", "layer"), **options)
    return flat(sweep.values, sweep.clean, sweep.corrupted)


def features(model, **options):
    of, rng = [], np.random.default_rng(1)
    e, n = model.config.d_model, 12
    for shape in ((n, e), (n,), (n, e), (e,)):
        of.append([rng.standard_normal(shape).astype(np.float32) for _ in range(model.config.n_layer)])
    transcoders = asp.Transcoders(asp.ArraySource(*of), name="random")
    labels = describe_features(model, transcoders, [list(row) for row in TASK.clean] * 200, **options)
    return flat(labels.prompt, labels.activation, labels.activations, labels.density)


CALLS = {
    "heads": heads,
    "edges": edges,
    "keep_only": kept,
    "leave_one_out": dropped,
    "attribution": first_order,
    "find_circuit": found,
    "find_circuit by gradients": found_by_gradients,
    "entry_effects": entries,
    "component_scores": scores,
    "component_scores, exact": exact_scores,
    "component_values": circuits,
    "evaluate": curve,
    "node circuits": nodes,
    "find_component_circuit": found_components,
    "patching_sweep": patched,
    "describe_features": features,
}


def all_results(model, **options) -> dict[str, np.ndarray]:
    return {name: call(model, **options) for name, call in CALLS.items()}


def main() -> None:
    from mpi4py.futures import MPIPoolExecutor

    for name, value in SMALL.items():
        setattr(pieces, name, value)
    with MPIPoolExecutor() as pool:
        results = all_results(asp.load(sys.argv[1]), executor=pool)
        threads = pool.submit(metrics.threads_to_use).result()
    np.savez(sys.argv[2], threads=threads, **results)


if __name__ == "__main__":
    main()
