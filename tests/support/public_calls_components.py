"""Uses of circuits of component edges; a part of public_calls.py."""

from __future__ import annotations

import json

import numpy as np
from public_objects import Uses, uses

from attnsparse import _core
from attnsparse._core_types import ComponentOptions
from attnsparse.circuits import (
    ComponentCircuit,
    ComponentScores,
    NodeCircuit,
    component_circuit,
    component_scores,
    component_values,
    find_component_circuit,
    load_component_circuit,
    node_circuit,
    node_values,
)
from attnsparse.circuits.components.file import exists
from attnsparse.circuits.components.names import Shape

OPTIONS = ComponentOptions("eap", "edge", "counterfactual", 1, False, False, False, 2**40)
SCORES = np.arange(35.0) % 9 - 4
SMALL = np.resize(SCORES, (5, 11))  # one layer of three heads has 5 senders and 11 receivers
EDGES = 9 + 4 + 5  # into its heads, its MLP and the logits


def some(e) -> np.ndarray:
    """Two circuits for the model of `e`."""
    shape = component_scores(e.model, e.task).scores.shape
    return np.arange(2 * shape[0] * shape[1]).reshape(2, *shape) % 3 > 0


def small() -> ComponentCircuit:
    return ComponentCircuit(SMALL * exists(Shape(1, 3)), 1, 3, 8)


def made(e) -> ComponentCircuit:
    return component_circuit(component_scores(e.model, e.task), e.model)


def saved(e) -> ComponentCircuit:
    small().save(e.folder / "components")
    return load_component_circuit(e.folder / "components")


def exchanged(e) -> ComponentCircuit:
    small().to_json(e.folder / "importances.json", 9)
    return ComponentCircuit.from_json(e.folder / "importances.json")


def pruned(e) -> ComponentCircuit:
    made(e).to_prune_scores(e.folder / "scores")
    return ComponentCircuit.from_prune_scores(e.folder / "scores.npz", e.model)


def of_interpbench() -> ComponentCircuit:
    """Of the smallest model that MIB asks for."""
    there = exists(Shape(6, 4))
    return ComponentCircuit(np.resize(SCORES, there.shape) * there, 6, 4, 64)


def submitted(e, kind: str = "importances", share: float | None = None) -> ComponentCircuit:
    of_interpbench().to_mib(e.folder / "ioi_interpbench", kind=kind)
    return ComponentCircuit.from_mib(e.folder / "ioi_interpbench", share)


def submitted_nodes(e) -> ComponentScores:
    """Importances of nodes, in a folder whose name MIB would take for those of other sizes."""
    folder = e.folder / "nodes"
    folder.mkdir(exist_ok=True)
    names = component_scores(e.model, e.task, level="node").senders
    config = e.model.config
    data = {
        "cfg": {"n_layers": config.n_layer, "n_heads": config.n_head, "d_model": config.d_model},
        "nodes": {name: {"score": 1.0} for name in names},
    }
    (folder / "importances.json").write_text(json.dumps(data))
    return ComponentScores.from_mib(folder, e.model)


def ranked(e, level: str = "node") -> NodeCircuit:
    return node_circuit(component_scores(e.model, e.task, level=level), e.model)


def neurons(e) -> np.ndarray:
    """Two circuits for the model of `e`."""
    shape = component_scores(e.model, e.task, level="neuron").scores.shape
    return np.arange(2 * shape[0] * shape[1]).reshape(2, *shape) % 3 > 0


def node_json(e) -> NodeCircuit:
    NODES.to_json(e.folder / "nodes.json", 3)
    return NodeCircuit.from_json(e.folder / "nodes.json")


NODES = NodeCircuit(SCORES[:5], 1, 3, 8)
ORDER = _core.component_order(1, 3, SMALL, True, False)

COMPONENT_CALLS: dict[str, Uses] = {
    "circuits.component_values": uses(
        lambda e: component_values(e.model, e.task, some(e)),
        lambda e: component_values(e.dense, e.task, some(e), ablation="mean", metric="kl"),
        lambda e: component_values(e.model, e.task, some(e), direction="denoising", gate="held"),
        lambda e: component_values(e.model, e.task, some(e), resume=e.folder / "circuits"),
        wrong=(
            lambda e: component_values(e.model, e.task, some(e)[:, :2]),
            lambda e: component_values(e.model, e.task, some(e), ablation="x"),
            lambda e: component_values(e.model, e.task, some(e), ablation="zero", direction="denoising"),
            lambda e: component_values(e.model, e.task, some(e), max_bytes=1000),
        ),
        cost=40,
    ),
    "circuits.component_circuit": uses(made, wrong=(lambda e: component_circuit(3, e.model),), cost=10),
    "circuits.load_component_circuit": uses(
        saved, wrong=(lambda e: load_component_circuit(e.folder / "none"),), cost=10
    ),
    "ComponentCircuit.from_json": uses(
        exchanged, wrong=(lambda e: ComponentCircuit.from_json(e.folder / "none"),), cost=10
    ),
    "circuits.find_component_circuit": uses(
        lambda e: find_component_circuit(e.model, e.task, method="eap", shares=[0.1, 1], n_random=1),
        wrong=(
            lambda e: find_component_circuit(e.model, e.task.ranking),
            lambda e: find_component_circuit(e.model, e.task, n_random=-1),
        ),
        cost=40,
    ),
    "ComponentCircuit.from_prune_scores": uses(
        pruned, wrong=(lambda e: ComponentCircuit.from_prune_scores(e.folder / "none", e.model),), cost=10
    ),
    "ComponentCircuit.to_mib": uses(
        submitted,
        lambda e: submitted(e, "circuits", 0.1),
        wrong=(lambda e: small().to_mib(e.folder / "ioi_gpt2"), lambda e: small().to_mib(e.folder / "x")),
        cost=40,
    ),
    "ComponentCircuit.from_mib": uses(
        submitted, wrong=(lambda e: ComponentCircuit.from_mib(e.folder / "none"),), cost=40
    ),
    "ComponentScores.to_mib": uses(
        wrong=(
            lambda e: component_scores(e.model, e.task).to_mib(e.folder / "ioi_gpt2", e.model),
            lambda e: component_scores(e.model, e.task, level="node").to_mib(e.folder / "ioi_gpt2", e.model),
        )
    ),
    "ComponentScores.from_mib": uses(
        submitted_nodes, wrong=(lambda e: ComponentScores.from_mib(e.folder / "none", e.model),), cost=10
    ),
    "ComponentCircuit.evaluate": uses(
        lambda e: made(e).evaluate(e.model, e.task, shares=[0.1, 0.5, 1]).to_pandas(),
        lambda e: made(e).evaluate(e.model, e.task, shares=[0.1, 1], n_random=2).random_effect,
        wrong=(lambda e: made(e).evaluate(e.model, e.task, shares=[2]),),
        cost=40,
    ),
    "ComponentCircuit.masks": uses(
        lambda e: small().masks([0, 5, EDGES]), wrong=(lambda e: small().masks([99]),)
    ),
    "ComponentCircuit.roc": uses(
        lambda e: small().roc(small().mask(5, prune=False)), wrong=(lambda e: small().roc(SMALL),)
    ),
    "_core.Model.component_values": uses(
        lambda e: e.core.component_values(*asked(e), OPTIONS),
        wrong=(
            lambda e: e.core.component_values(asked(e)[0], some(e)[:, :1].copy(), OPTIONS),
            lambda e: e.core.component_values(*asked(e), OPTIONS._replace(ablation="x")),
            lambda e: e.core.component_values(*asked(e), 3),
        ),
        cost=10,
    ),
    "_core.Model.component_exact": uses(
        lambda e: e.core.component_exact(asked(e)[0], (3, 9), OPTIONS),
        wrong=(
            lambda e: e.core.component_exact(asked(e)[0], (0, 1), OPTIONS._replace(max_bytes=1000)),
            lambda e: e.core.component_exact(asked(e)[0], (0, 10**6), OPTIONS),
            lambda e: e.core.component_exact(asked(e)[0], (2, 1), OPTIONS),
        ),
        cost=40,
    ),
    "circuits.node_circuit": uses(
        lambda e: ranked(e).to_pandas(),
        lambda e: ranked(e, "neuron").mask(9),
        wrong=(lambda e: node_circuit(component_scores(e.model, e.task), e.model), lambda e: ranked(e, "x")),
        cost=10,
    ),
    "circuits.node_values": uses(
        lambda e: node_values(e.model, e.task, ranked(e).masks([2, 5])[0]),
        lambda e: node_values(e.dense, e.task, ranked(e, "neuron").masks([9])[0], ablation="mean"),
        wrong=(
            lambda e: node_values(e.model, e.task, np.ones((1, 2), bool)),
            lambda e: node_values(e.model, e.task, ranked(e).masks([2])[0], max_bytes=1000),
            lambda e: node_values(e.model, e.task, ranked(e).masks([2])[0] * 1.0),
        ),
        cost=20,
    ),
    "NodeCircuit.evaluate": uses(
        lambda e: ranked(e).evaluate(e.model, e.task, shares=[0.1, 0.5, 1]),
        wrong=(lambda e: ranked(e).evaluate(e.model, e.task, shares=[2]),),
        cost=40,
    ),
    "NodeCircuit.masks": uses(
        lambda e: NODES.masks([0, 3], prune=False), wrong=(lambda e: NODES.masks([99]),)
    ),
    "NodeCircuit.from_json": uses(
        node_json, wrong=(lambda e: NodeCircuit.from_json(e.folder / "none"),), cost=10
    ),
    "_core.Model.component_neuron_values": uses(
        lambda e: e.core.component_neuron_values(asked(e)[0], neurons(e), OPTIONS),
        wrong=(
            lambda e: e.core.component_neuron_values(asked(e)[0], neurons(e)[:, :1].copy(), OPTIONS),
            lambda e: e.core.component_neuron_values(asked(e)[0], neurons(e), 3),
        ),
        cost=10,
    ),
    "_core.component_best": uses(
        *(lambda e, a=a: _core.component_best(SMALL.ravel(), a) for a in (False, True)),
        wrong=(lambda e: _core.component_best(SMALL.ravel() * np.nan, True),),
    ),
    "_core.component_select_neurons": uses(
        lambda e: _core.component_select_neurons(1, 3, 2, np.arange(10), np.array([0, 5]), True),
        wrong=(
            lambda e: _core.component_select_neurons(1, 3, 3, np.arange(10), np.array([0, 5]), True),
            lambda e: _core.component_select_neurons(1, 3, 0, np.arange(0), np.array([0]), True),
            lambda e: _core.component_select_neurons(1, 3, 2, np.arange(10) + 1, np.array([0]), True),
            lambda e: _core.component_select_neurons(1, 3, 2, np.arange(10), np.array([99]), True),
        ),
    ),
    "_core.component_order": uses(
        *(lambda e, g=g: _core.component_order(1, 3, SMALL, True, g) for g in (False, True)),
        wrong=(
            lambda e: _core.component_order(1, 4, SMALL, True, False),
            lambda e: _core.component_order(0, 3, SMALL, True, False),
            lambda e: _core.component_order(1, 3, SMALL * np.nan, True, False),
        ),
    ),
    "_core.component_select": uses(
        lambda e: _core.component_select(1, 3, ORDER, np.array([0, 5]), True),
        wrong=(
            lambda e: _core.component_select(1, 3, ORDER[:3].copy(), np.array([0, 5]), True),
            lambda e: _core.component_select(1, 3, ORDER, np.array([99]), True),
            lambda e: _core.component_select(1, 3, ORDER + 99, np.array([1]), True),
        ),
    ),
    "_core.component_prune": uses(
        lambda e: _core.component_prune(1, 3, SMALL > 0),
        wrong=(lambda e: _core.component_prune(2, 3, SMALL > 0),),
    ),
    "_core.component_roc": uses(
        lambda e: _core.component_roc(1, 3, SMALL, SMALL > 2, True),
        wrong=(
            lambda e: _core.component_roc(1, 3, SMALL, SMALL > 99, True),
            lambda e: _core.component_roc(1, 3, SMALL, SMALL, True),
        ),
    ),
    "_core.component_areas": uses(
        lambda e: _core.component_areas(SMALL, np.arange(11.0)),
        wrong=(lambda e: _core.component_areas(SMALL, np.arange(3.0)),),
    ),
}


def asked(e) -> tuple:
    from attnsparse.circuits.asked import packed_task

    return packed_task(e.model, e.task, None), some(e)
