"""Uses of the extension itself, with arrays as it takes them; a part of public_calls.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import reliability
from public_calls_curves import CURVE_CALLS
from public_calls_graph import FEATURE_ARRAYS
from public_objects import CORE_GRAPH_ARRAYS, Uses, uses
from reliability import TOKENS

import attnsparse as asp
from attnsparse import _core
from attnsparse._core_types import (
    CircuitOptions,
    ComponentOptions,
    EffectOptions,
    Generated,
    GenerationOptions,
    HeldRun,
    Metric,
    Task,
)
from attnsparse.circuits import circuit
from attnsparse.circuits.asked import packed_task

ONE = np.array([0, 1], np.int64)
CODER_ROWS = (np.ones((1, 3, 4), np.float32), np.ones((1, 3, 5), np.float32), np.zeros(1), np.ones(1))
METRIC = Metric("logit_diff", ONE, np.array([5], np.int32), ONE, np.array([7], np.int32), None)

HEADS = np.array([[0, 1], [1, 3]], np.int32)
COMPONENTS = ComponentOptions("eap", "edge", "counterfactual", 1, False, False, False, 2**40)


def asked(e: Any, unit: str = "head", ablation: str = "zero", **task: Any) -> tuple[Task, EffectOptions]:
    """A task and options as the core takes them."""
    return packed_task(e.model, e.task, None)._replace(**task), EffectOptions(unit, ablation, 2**40)


def attribute(e: Any, unit: str = "head", steps: int = 1, gate: bool = False) -> Any:
    """First-order effects of heads."""
    return e.core.attribution(*asked(e, unit), steps, gate)


def measured(*given: Any) -> np.ndarray:
    """What a search is answered that asks for one size of one prompt, or nothing it can use."""
    return np.zeros(len(given[3]))


def active(n: int = 2) -> tuple[np.ndarray, ...]:
    """Positions, features and activations of a layer."""
    return np.arange(2, dtype=np.int32), np.array([1, 0], np.int32)[:n], np.ones(2, np.float32)


def search(e: Any, n_steps: int = 0, items: np.ndarray = HEADS, **options: Any) -> _core.Circuit:
    """A search for a circuit after some steps."""
    task, of_effects = asked(e)
    given = {
        "method": "greedy", "normalize": "none", "rank_by": "signed", "smaller_is_better": False, "steps": 1,
        "greedy_step": 0.5, "sizes": None, "n_bootstrap": 3, "n_random": 1, "confidence": 0.5, "seed": 0,
        "task_name": "t", "metric_name": "m",
    }  # fmt: skip
    found = e.core.circuit(task, task, items, CircuitOptions(of_effects, **{**given, **options}))
    for _ in range(n_steps):
        found.step(1)
    return found


def print_nothing(*_: Any) -> None:
    """Progress that nobody sees."""


ONE_PROMPT = np.array([0, 8])
CONTEXT_ARRAYS = ("prompt", "position", "activation", "tokens", "activations", "count")
LOGITS, TARGETS = np.arange(12, dtype=np.float32).reshape(3, 4) ** 2, np.array([0, 3, 1], np.int32)
FIRST_SET = (LOGITS, TARGETS, LOGITS[:, None], LOGITS[0])
DRAWN = (np.array([0.1, 0.5, 0.9]), np.arange(24, dtype=np.float64).reshape(2, 3, 4) + 1)


EDGES = np.array([1, -2, 4], np.float32), np.array([1.0, 0.5, -3.0])
PAIRS = (LOGITS, np.ones(3), LOGITS + 1, np.ones(3), np.array([0, 1, 1, 3]))


def entry_arguments(graph: asp.Graph, head: int = 2) -> tuple[np.ndarray, ...]:
    """Arguments of `_core.graph_entries`: one entry, every target by itself and all together."""
    n_layer, n_head, n = graph.pattern.shape[:3]
    values = np.ones((n_layer, n, n_head, graph.received.shape[-1]), np.float32)
    weights = np.ones((2, len(graph.received)))
    return graph.received, graph.pattern, values, np.array([[1, head, 7, 3]]), weights


def moved_arguments(graph: asp.Graph, row: int = 0) -> tuple[np.ndarray, ...]:
    """Arguments of `_core.graph_moved` before the query."""
    arrays = (graph.carried, graph.received, graph.pattern, graph.position[: len(graph.carried)])
    return *arrays, np.array([row]), np.ones(1)


def contexts(n_features: int = 40) -> _core.Contexts:
    """An empty table of two contexts a feature."""
    return _core.Contexts(n_features, None, 2, 1, 1)


def within(e: Any) -> np.ndarray:
    """Positions of a graph's nodes as the core takes them."""
    return np.asarray(e.graph.position, np.int64)


def csr(graph: asp.Graph) -> tuple[np.ndarray, ...]:
    """The edges of a graph as the core takes them."""
    return graph.start, graph.source, graph.weights


def graph_pairs(graph: asp.Graph, target: int) -> tuple[np.ndarray, ...]:
    """Arguments of `_core.graph_loadings`: the last placed source and a target."""
    pairs = np.array([[len(graph.carried) - 1, target]])
    arrays = (graph.carried, graph.received, graph.received_alone, graph.pattern)
    return *arrays, pairs, np.array([[6, 7]]), np.ones(1)


def generate(e: Any, stop: int = 96, logits: int = 96, writable: bool = True, **options: Any) -> None:
    """Two texts of one prompt."""
    arrays = (np.zeros(2, np.int64), np.zeros((2, 3), np.int32), np.zeros((2, 3)))
    arrays[1].setflags(write=writable)
    given = GenerationOptions(3, 2, 1.0, 0, 0.9, 1, np.zeros(stop, bool), 2**40)._replace(**options)
    out = Generated(*arrays, np.zeros((2, 3, logits), np.float32))
    e.core.generate(TOKENS, np.array([0, 8]), given, out, threads=1, progress=print_nothing)


def held(core: _core.Model) -> None:
    """Hold the weights, twice, and let them go; one more that nobody lets go is gone at the end."""
    core.reading()
    with core.reading() as one, one:
        core.nonfinite()


CORE_CALLS: dict[str, Uses] = {
    "_core.Model": uses(
        lambda e: _core.Model(e.core.config),
        wrong=(lambda e: _core.Model({}), lambda e: _core.Model(e.core.config | {"n_layer": 10**6})),
    ),
    "_core.Model.parameter": uses(
        lambda e: e.core.parameter("wte.weight"), wrong=(lambda e: e.core.parameter(3),)
    ),
    "_core.Model.shape": uses(lambda e: e.core.shape("wte.weight"), wrong=(lambda e: e.core.shape("x"),)),
    "_core.Model.assign": uses(
        lambda e: e.changing._core.assign({"ln_f.bias": np.zeros(64, np.float32)}),
        wrong=(
            lambda e: e.changing._core.assign({"ln_f.bias": np.zeros(64)}),
            lambda e: e.changing._core.assign({"ln_f.bias": np.zeros(63, np.float32)}),
        ),
    ),
    "_core.Model.reading": uses(lambda e: held(e.core)),
    "_core.Reading": uses(lambda e: held(e.core), wrong=(lambda e: _core.Reading(),)),
    "_core.Model.share": uses(lambda e: e.core.share()),
    "_core.Model.take_shared": uses(
        lambda e: e.core.take_shared(0),
        wrong=(lambda e: e.core.take_shared("x"), lambda e: e.core.take_shared(-1)),
    ),
    "_core.Model.nonfinite": uses(lambda e: e.core.nonfinite()),
    "_core.Model.names": uses(lambda e: e.core.names),
    "_core.Model.version": uses(lambda e: e.core.version),
    "_core.Model.config": uses(lambda e: e.core.config),
    "_core.Model.run": uses(
        lambda e: e.core.run(TOKENS, np.array([0, 8]), ("scores",), threads=1),
        wrong=(lambda e: e.core.run(TOKENS, np.array([0, 9]), ()), lambda e: e.core.run(TOKENS, [0, 8], ())),
    ),
    "_core.Model.generate": uses(
        generate,
        wrong=(
            lambda e: generate(e, stop=95),
            lambda e: generate(e, logits=95),
            lambda e: generate(e, writable=False),
            lambda e: generate(e, n_samples=1),
            lambda e: generate(e, top_p=2.0),
            lambda e: generate(e, seed=-1),
            lambda e: e.core.generate(TOKENS, np.array([0, 8]), None, None),
        ),
        cost=5,
    ),
    "_core.Model.candidates": uses(
        lambda e: e.core.candidates(asked(e)[0], "edge"),
        wrong=(lambda e: e.core.candidates(asked(e)[0], "x"),),
        cost=5,
    ),
    "_core.Model.whole": uses(
        lambda e: e.core.whole(asked(e)[0]), wrong=(lambda e: e.core.whole(asked(e, metric=3)[0]),), cost=5
    ),
    **{
        f"_core.Model.{name}": uses(
            lambda e, name=name, n=n: getattr(e.core, name)(
                asked(e)[0], HEADS, *n, asked(e, ablation="mean")[1]
            ),
            wrong=(
                lambda e, name=name, n=n: getattr(e.core, name)(asked(e)[0], 2 * HEADS, *n, asked(e)[1]),
                lambda e, name=name, n=n: getattr(e.core, name)(asked(e)[0], HEADS, *n, asked(e, "edge")[1]),
                lambda e, name=name, n=n: getattr(e.core, name)(
                    asked(e, corrupted=HEADS[0])[0], HEADS, *n, asked(e)[1]
                ),
            ),
            cost=5,
        )
        for name, n in (("knock_out", ()), ("leave_one_out", (ONE,)))
    },
    "_core.Model.keep_only": uses(
        lambda e: e.core.keep_only(asked(e)[0], HEADS, ONE, asked(e)[1]),
        wrong=(
            lambda e: e.core.keep_only(asked(e)[0], HEADS, 3 * ONE, asked(e)[1]),
            lambda e: e.core.keep_only(asked(e)[0], HEADS, [1], asked(e)[1]),
        ),
        cost=5,
    ),
    "_core.Model.attribution": uses(
        lambda e: attribute(e, steps=2),
        wrong=(
            lambda e: attribute(e, "x"),
            lambda e: attribute(e, steps=0),
            lambda e: attribute(e, gate=True),
        ),
        cost=5,
    ),
    "_core.Model.component_scores": uses(
        lambda e: e.core.component_scores(asked(e)[0], COMPONENTS),
        wrong=(
            lambda e: e.core.component_scores(asked(e)[0], COMPONENTS._replace(level="x")),
            lambda e: e.core.component_scores(asked(e)[0], COMPONENTS._replace(steps=0)),
            lambda e: e.core.component_scores(asked(e)[0], COMPONENTS._replace(steps="2")),
            lambda e: e.core.component_scores(
                asked(e)[0], COMPONENTS._replace(denoising=True, ablation="zero")
            ),
            lambda e: e.core.component_scores(asked(e)[0], COMPONENTS._replace(reference=ONE)),
            lambda e: e.core.component_scores(asked(e)[0], 3),
        ),
        cost=5,
    ),
    "_core.Model.component_senders_before": uses(lambda e: e.core.component_senders_before()),
    "_core.Model.circuit": uses(
        lambda e: search(e),
        wrong=(
            lambda e: search(e, method="x"),
            lambda e: search(e, confidence=1.0),
            lambda e: search(e, sizes=3 * ONE),
            lambda e: search(e, items=HEADS[:, :1]),
            lambda e: e.core.circuit(asked(e)[0], 3, HEADS, 3),
        ),
        cost=5,
    ),
    "_core.Circuit": uses(lambda e: search(e), wrong=(lambda e: _core.Circuit(),), cost=5),
    "_core.Circuit.step": uses(
        lambda e: search(e, 9).step(),
        lambda e: search(e, 9, method="ig", normalize="mib").step(),
        wrong=(
            lambda e: search(e, items=7 * HEADS).step(),
            lambda e: search(e).step(65),
            lambda e: search(e).step(0, None, 3),
            lambda e: search(e).step(0, None, measured),
        ),
        cost=20,
    ),
    "_core.Circuit.state": uses(lambda e: search(e, 3).state(), cost=10),
    "_core.Circuit.restore": uses(
        lambda e: search(e).restore(search(e, 3).state()),
        wrong=(
            lambda e: search(e).restore(search(e, 3).state()[1:]),
            lambda e: search(e).restore(search(e, 3).state() + 1),
            lambda e: search(e).restore(3),
            lambda e: search(e, 9).restore(search(e, 3).state()),
        ),
        cost=10,
    ),
    "_core.Circuit.array": uses(
        lambda e: list(map(search(e, 9).array, circuit.ARRAYS)),
        wrong=(lambda e: search(e).array("items"), lambda e: search(e, 9).array("x")),
        cost=20,
    ),
    "_core.Run.mean_entries": uses(
        lambda e: e.clean.mean_entries(), wrong=(lambda e: e.plain._core.mean_entries(),)
    ),
    "_core.Model.gradients": uses(
        lambda e: e.core.gradients(*e.batch[:2], (), True, None, *e.batch[2:], threads=1),
        wrong=(lambda e: e.core.gradients(*e.batch[:2], ("logits",), True, None, *e.batch[2:]),),
        cost=5,
    ),
    "_core.Run.array": uses(
        lambda e: [e.one._core.array(name) for name in e.one._core.names],
        wrong=(lambda e: e.plain._core.array("z"), lambda e: e.one._core.array("x")),
    ),
    "_core.Run.edges": uses(lambda e: e.ragged._core.edges(), wrong=(lambda e: e.plain._core.edges(),)),
    "_core.Run.names": uses(lambda e: e.one._core.names),
    "_core.Run.nbytes": uses(lambda e: e.one._core.nbytes),
    "_core.Run.value_norms": uses(
        lambda e: e.one._core.value_norms(None, 0, 2),
        wrong=(
            lambda e: e.plain._core.value_norms(None, 0, 1),
            lambda e: e.one._core.value_norms(None, 1, 10**6),
        ),
    ),
    "_core.Run.entry_scores": uses(
        lambda e: e.one._core.entry_scores(*[np.zeros(2, np.int64)] * 4),
        wrong=(lambda e: e.plain._core.entry_scores(*[np.zeros(2, np.int64)] * 4),),
    ),
    "_core.Gradients.array": uses(
        lambda e: [e.gradients._core.array(name) for name in e.gradients._core.names],
        wrong=(lambda e: e.gradients._core.array("logits"),),
    ),
    "_core.Gradients.parameter": uses(
        lambda e: e.gradients._core.parameter("wte.weight"),
        wrong=(lambda e: e.gradients._core.parameter("x"),),
    ),
    "_core.Gradients.names": uses(lambda e: e.gradients._core.names),
    "_core.Gradients.loss": uses(lambda e: e.gradients._core.loss),
    "_core.Features": uses(
        lambda e: _core.Features(e.core, 8, "relu"),
        wrong=(
            lambda e: _core.Features(e.core, 0, "relu"),
            lambda e: _core.Features(e.core, 8, "gelu"),
            lambda e: _core.Features(e.core, 8, "topk"),
            lambda e: _core.Features(e.one._core, 8, "relu"),
            lambda e: _core.Features(e.core, 8, "relu", max_bytes=100),
        ),
    ),
    "_core.Features.fill": uses(
        wrong=(
            lambda e: e.features._core.fill(e.one._core, 0, None),
            lambda e: _core.Features(e.core, 8, "relu").fill(e.one._core, 0, None),
            lambda e: _core.Features(e.core, 8, "relu").fill(e.one._core, 1, None),
            lambda e: _core.Features(e.core, 8, "relu").fill(e.plain._core, 0, None),
            lambda e: _core.Features(e.core, 8, "relu").fill(e.other, 0, None),
        ),
    ),
    "_core.Features.array": uses(
        lambda e: [e.features._core.array(name) for name in FEATURE_ARRAYS],
        wrong=(
            lambda e: e.features._core.array("x"),
            lambda e: _core.Features(e.core, 8, "relu").array("layer"),
        ),
    ),
    "_core.Features.nbytes": uses(lambda e: e.features._core.nbytes),
    "_core.Trainer": uses(
        lambda e: _core.Trainer(e.core),
        wrong=(lambda e: _core.Trainer(3), lambda e: _core.Trainer(e.core, 2, 2)),
    ),
    "_core.Trainer.step": uses(
        lambda e: e.core_trainer.step([e.batch, e.batch], **reliability.step_options(threads=1)),
        wrong=(
            lambda e: e.core_trainer.step([e.batch, e.batch[:3]], **reliability.step_options()),
            lambda e: e.core_trainer.step([e.batch], **reliability.step_options(gate_bias=[0.0])),
            lambda e: e.core_trainer.step([e.batch], **reliability.step_options(edge_weight="ab")),
            lambda e: e.core_trainer.step([e.batch], **reliability.step_options(lr=-1)),
            lambda e: e.core_trainer.step(
                [(e.batch[0], *e.batch[1:3], e.batch[3] * 0)], **reliability.step_options()
            ),
            lambda e: e.core_trainer.step([(e.batch[0] + 96, *e.batch[1:])], **reliability.step_options()),
        ),
        cost=5,
    ),
    "_core.Trainer.moments": uses(
        lambda e: e.core_trainer.moments("wte.weight"), wrong=(lambda e: e.core_trainer.moments("x"),)
    ),
    "_core.Trainer.load_moments": uses(
        lambda e: e.core_trainer.load_moments("ln_f.bias", *[np.zeros(64, np.float32)] * 2),
        wrong=(lambda e: e.core_trainer.load_moments("ln_f.bias", *[np.zeros(63, np.float32)] * 2),),
    ),
    "_core.Trainer.step_count": uses(lambda e: setattr(e.core_trainer, "step_count", 3)),
    "_core.Trainer.multiplier": uses(lambda e: setattr(e.core_trainer, "multiplier", 1.0)),
    "_core.Trainer.ema": uses(
        lambda e: setattr(e.core_trainer, "ema", 1.0), wrong=(lambda e: setattr(e.core_trainer, "ema", "a"),)
    ),
    "_core.machine": uses(lambda e: _core.machine()),
    "_core.get_num_threads": uses(lambda e: _core.get_num_threads()),
    "_core.set_num_threads": uses(
        lambda e: _core.set_num_threads(_core.get_num_threads()), wrong=(lambda e: _core.set_num_threads(99),)
    ),
    # --- graphs
    "_core.Model.graph_edges": uses(
        lambda e: e.core.graph_edges(e.sources.frozen, e.sources.writes, e.reads),
        wrong=(
            lambda e: e.core.graph_edges(
                e.sources.frozen, e.sources.writes, e.reads._replace(point=e.reads.point + 1)
            ),
            lambda e: e.core.graph_edges(HeldRun(e.plain._core), e.sources.writes, e.reads),
            lambda e: e.core.graph_edges(e.sources.frozen, e.reads, e.reads),
        ),
    ),
    "_core.Model.graph_logits": uses(
        lambda e: e.core.graph_logits(e.last_logits, np.array([5, 7]), ONE[:0]),
        lambda e: e.core.graph_logits(e.last_logits, np.array([5, 7]), np.array([9])),
        wrong=(
            lambda e: e.core.graph_logits(e.last_logits, np.array([96]), ONE[:0]),
            lambda e: e.core.graph_logits(e.last_logits, ONE[:0], ONE[:0]),
            lambda e: e.core.graph_logits(np.ones(3, np.float32), ONE, ONE[:0]),
        ),
    ),
    "_core.Model.graph_build": uses(
        lambda e: e.core.graph_build(**e.ingredients),
        lambda e: e.core.graph_build(**e.ingredients | {"most": -1, "progress": print_nothing}),
        lambda e: e.core.graph_build(**e.ingredients | {"most": 0}),
        wrong=(
            lambda e: e.core.graph_build(**e.ingredients | {"max_bytes": 1000}),
            lambda e: e.core.graph_build(**e.ingredients | {"progress": 3}),
            lambda e: e.core.graph_build(**e.ingredients | {"tokens": TOKENS[:3]}),
            lambda e: e.core.graph_build(
                **e.ingredients | {"writes": e.sources.writes._replace(n_sources=10**6)}
            ),
            lambda e: e.core.graph_build(**e.ingredients | {"frozen": HeldRun(e.plain._core)}),
            lambda e: e.core.graph_build(**e.ingredients | {"features": e.reads}),
        ),
        cost=5,
    ),
    "_core.Graph": uses(
        lambda e: _core.Graph(**e.graph_arrays),
        wrong=(
            lambda e: _core.Graph(**e.graph_arrays | {"start": e.graph.start[:-1]}),
            lambda e: _core.Graph(**e.graph_arrays | {"start": e.graph.start[::-1].copy()}),
            lambda e: _core.Graph(**e.graph_arrays | {"source": e.graph.source + 10**6}),
            lambda e: _core.Graph(**e.graph_arrays | {"kind": e.graph._core.array("kind")[::-1].copy()}),
            lambda e: _core.Graph(**e.graph_arrays | {"carried": e.graph.carried[1:]}),
            lambda e: _core.Graph(**e.graph_arrays | {"value": 3}),
        ),
    ),
    "_core.Graph.array": uses(
        lambda e: [e.graph._core.array(name) for name in CORE_GRAPH_ARRAYS],
        wrong=(lambda e: e.graph._core.array("x"), lambda e: e.graph._core.array(3)),
    ),
    "_core.Graph.nbytes": uses(lambda e: e.graph._core.nbytes),
    "_core.Graph.influence": uses(lambda e: e.graph._core.influence()),
    "_core.Graph.scores": uses(lambda e: e.graph._core.scores()),
    "_core.Graph.prune": uses(
        lambda e: e.graph._core.prune(0.8, 0.98), wrong=(lambda e: e.graph._core.prune(0.8),)
    ),
    "_core.Graph.total_influence": uses(lambda e: e.graph._core.total_influence()),
    "_core.Graph.drivers": uses(lambda e: e.graph._core.drivers()),
    "_core.Graph.flows": uses(
        lambda e: e.graph._core.flows(e.group, 2),
        wrong=(
            lambda e: e.graph._core.flows(e.group, 1),
            lambda e: e.graph._core.flows(e.no_group, 1),
            lambda e: e.graph._core.flows(ONE, 2),
        ),
    ),
    "_core.Graph.profile": uses(
        lambda e: e.graph._core.profile(e.group, 2, 2, 0.8),
        wrong=(
            lambda e: e.graph._core.profile(e.group, 2, -1, 0.8),
            lambda e: e.graph._core.profile(e.group - 3, 2, 2, 0.8),
        ),
    ),
    "_core.graph_writes": uses(
        lambda e: _core.graph_writes(e.features.layer, e.features.position, e.n_outputs, 8),
        wrong=(
            lambda e: _core.graph_writes(e.features.layer, e.features.position, np.array([2, 2]), 8),
            lambda e: _core.graph_writes(e.features.layer, e.features.position, e.n_outputs, 3),
            lambda e: _core.graph_writes(
                e.features.layer[::-1].copy(), e.features.position, np.array([2, 1]), 8
            ),
            lambda e: _core.graph_writes(e.features.layer, e.features.position[1:], np.array([2, 1]), 8),
        ),
    ),
    "_core.graph_likely": uses(
        lambda e: _core.graph_likely(e.last_logits, 5, 0.9),
        wrong=(
            lambda e: _core.graph_likely(np.ones(0, np.float32), 5, 0.9),
            lambda e: _core.graph_likely(3, 5, 1),
        ),
    ),
    "_core.graph_loadings": uses(
        lambda e: _core.graph_loadings(*graph_pairs(e.graph, 0)),
        wrong=(lambda e: _core.graph_loadings(*graph_pairs(e.graph, 10**6)),),
    ),
    "_core.graph_within": uses(
        lambda e: _core.graph_within(*csr(e.graph), e.graph.value, within(e), np.ones(len(e.graph), bool)),
        wrong=(
            lambda e: _core.graph_within(*csr(e.graph), e.graph.value, within(e)[1:], within(e)),
            lambda e: _core.graph_within(*csr(e.graph), e.graph.value, within(e), within(e)),
        ),
    ),
    "_core.graph_factors": uses(
        lambda e: _core.graph_factors(*csr(e.graph), e.graph.value, *(np.ones(len(e.graph), bool),) * 2),
        wrong=(lambda e: _core.graph_factors(*csr(e.graph), e.graph.value, e.graph.value, e.graph.value),),
    ),
    # --- training of transcoders
    "_core.CoderTrainer": uses(
        lambda e: _core.CoderTrainer(4, 5, np.array([6])),
        lambda e: _core.CoderTrainer(4, 5, np.array([6, 7])),
        wrong=(
            lambda e: _core.CoderTrainer(4, 5, 6),
            lambda e: _core.CoderTrainer(4, 5, np.array([6, 0])),
            lambda e: _core.CoderTrainer(*[2**31 - 1] * 2, np.array([2**31 - 1])),
        ),
    ),
    "_core.CoderTrainer.step": uses(
        *(
            lambda e, a=a: e.coder.step(*CODER_ROWS, activation=a, top_k=2, lr=1e-3, threads=1)
            for a in range(3)
        ),
        lambda e: e.coder.step(*CODER_ROWS, dead_after=1, aux_k=2, aux_weight=0.5, clip=1.0, lr=1e-3),
        wrong=(
            lambda e: e.coder.step(*CODER_ROWS[1::-1], *CODER_ROWS[2:], lr=1e-3),
            lambda e: e.coder.step(*CODER_ROWS, lr=-1.0),
            lambda e: e.coder.step(*CODER_ROWS),
            lambda e: e.coder.step(CODER_ROWS[0] * np.float32(np.nan), *CODER_ROWS[1:], lr=1e-3),
        ),
        cost=5,
    ),
    "_core.CoderTrainer.array": uses(
        lambda e: [e.coder.array(f"{block}w_enc") for block in ("", "m/", "v/", "g/")],
        lambda e: e.coder.array("silent", 0),
        wrong=(
            lambda e: e.coder.array("x"),
            lambda e: e.coder.array(3),
            lambda e: e.coder.array("silent", 1),
        ),
    ),
    "_core.CoderTrainer.load": uses(
        lambda e: e.coder.load("b_dec", np.zeros(5, np.float32)),
        wrong=(
            lambda e: e.coder.load("b_dec", np.zeros(5)),
            lambda e: e.coder.load("b_dec", np.zeros(4, np.float32)),
            lambda e: e.coder.load("b_dec", np.zeros(5, np.float32), -1),
        ),
    ),
    "_core.CoderTrainer.scaled": uses(
        lambda e: e.coder.scaled(np.ones(1)),
        wrong=(
            lambda e: e.coder.scaled(2.0),
            lambda e: e.coder.scaled(),
            lambda e: e.coder.scaled(np.ones(2)),
            lambda e: e.coder.scaled(np.ones(1), 1),
        ),
    ),
    "_core.graph_total": uses(
        lambda e: _core.graph_total(*EDGES),
        wrong=(
            lambda e: _core.graph_total(EDGES[0], EDGES[1][:1]),
            lambda e: _core.graph_total(*EDGES[::-1]),
        ),
    ),
    "_core.graph_between": uses(
        lambda e: _core.graph_between(*graph_pairs(e.graph, 0), EDGES[0][:1], *EDGES),
        wrong=(
            lambda e: _core.graph_between(*graph_pairs(e.graph, 0), *EDGES, EDGES[1]),
            lambda e: _core.graph_between(*graph_pairs(e.graph, 0), EDGES[0][:1], EDGES[0], EDGES[1][:2]),
            lambda e: _core.graph_between(*graph_pairs(e.graph, 10**6), EDGES[0][:1], *EDGES),
            lambda e: _core.graph_between(1, 2, 3),
        ),
    ),
    "_core.graph_shares": uses(
        lambda e: _core.graph_shares(EDGES[1], EDGES[1][:2], True),
        lambda e: _core.graph_shares(EDGES[1][:0], EDGES[1][:0], False),
        wrong=(lambda e: _core.graph_shares(EDGES[0], EDGES[1], True),),
    ),
    "_core.graph_entries": uses(
        lambda e: _core.graph_entries(*entry_arguments(e.graph)),
        wrong=(
            lambda e: _core.graph_entries(*entry_arguments(e.graph, head=4)),
            lambda e: _core.graph_entries(*entry_arguments(e.graph)[:4], np.ones((2, 1))),
        ),
    ),
    "_core.graph_moved": uses(
        lambda e: _core.graph_moved(*moved_arguments(e.graph), 7),
        wrong=(
            lambda e: _core.graph_moved(*moved_arguments(e.graph), 8),
            lambda e: _core.graph_moved(*moved_arguments(e.graph, row=10**6), 7),
            lambda e: _core.graph_moved(*moved_arguments(e.graph)[::-1], 7),
        ),
    ),
    "_core.graph_pairs": uses(
        lambda e: _core.graph_pairs(*PAIRS, 4, 2, 0.5),
        wrong=(
            lambda e: _core.graph_pairs(*PAIRS, 4, 4, 0.5),
            lambda e: _core.graph_pairs(*PAIRS, 3, 2, 0.5),
            lambda e: _core.graph_pairs(*PAIRS[:4], PAIRS[4][:2], 4, 2, 0.5),
        ),
    ),
    "_core.graph_largest_pairs": uses(
        lambda e: _core.graph_largest_pairs(np.arange(9.0).reshape(3, 3), 0, 2),
        lambda e: _core.graph_largest_pairs(np.arange(9.0).reshape(3, 3), 0, 10),
        wrong=(
            lambda e: _core.graph_largest_pairs(np.arange(9.0).reshape(3, 3), 3, 2),
            lambda e: _core.graph_largest_pairs(np.arange(6.0).reshape(3, 2), 0, 2),
            lambda e: _core.graph_largest_pairs(np.arange(9.0).reshape(3, 3), 0, 0),
        ),
    ),
    "_core.token_losses": uses(
        lambda e: _core.token_losses(LOGITS, TARGETS),
        lambda e: _core.token_losses(LOGITS[:0], TARGETS[:0], threads=2),
        wrong=(
            lambda e: _core.token_losses(LOGITS, TARGETS + 7),
            lambda e: _core.token_losses(LOGITS, TARGETS[:1]),
            lambda e: _core.token_losses(LOGITS, TARGETS.astype(np.int64)),
            lambda e: _core.token_losses(LOGITS, TARGETS, threads=-1),
        ),
    ),
    "_core.first_weights_from_text": uses(
        lambda e: _core.first_weights_from_text(LOGITS, LOGITS, 1.0, *DRAWN),
        wrong=(
            lambda e: _core.first_weights_from_text(LOGITS, LOGITS[:1], 1.0, *DRAWN),
            lambda e: _core.first_weights_from_text(LOGITS, LOGITS, 0.0, *DRAWN),
            lambda e: _core.first_weights_from_text(LOGITS, LOGITS, 1.0, *DRAWN[::-1]),
        ),
    ),
    "_core.first_weights_from_set": uses(
        lambda e: _core.first_weights_from_set(*FIRST_SET, TARGETS + 1, np.array([2.0])),
        wrong=(
            lambda e: _core.first_weights_from_set(*FIRST_SET, None, np.array([0.0])),
            lambda e: _core.first_weights_from_set(*FIRST_SET, None, np.ones(2)),
            lambda e: _core.first_weights_from_set(*FIRST_SET[:3], LOGITS, None, np.ones(1)),
            lambda e: _core.first_weights_from_set(
                LOGITS, *FIRST_SET[1:2], LOGITS, LOGITS[0], None, np.ones(1)
            ),
        ),
    ),
    "_core.first_weights_scale": uses(
        lambda e: _core.first_weights_scale(LOGITS),
        wrong=(lambda e: _core.first_weights_scale(LOGITS[:0]), lambda e: _core.first_weights_scale(3)),
    ),
    "_core.first_weights_threshold": uses(
        lambda e: _core.first_weights_threshold(DRAWN[1][0], DRAWN[0], LOGITS, 1.5),
        wrong=(
            lambda e: _core.first_weights_threshold(DRAWN[1][0], DRAWN[0][:1], LOGITS, 1.5),
            lambda e: _core.first_weights_threshold(DRAWN[1][0], DRAWN[0], LOGITS, -1.0),
        ),
    ),
    "_core.Model.promoted_tokens": uses(
        lambda e: e.core.promoted_tokens(np.ones((3, 2, 64), np.float32), 4, threads=1),
        wrong=(
            lambda e: e.core.promoted_tokens(np.ones((3, 2, 63)), 4),
            lambda e: e.core.promoted_tokens(np.ones((3, 2, 64)), 97),
            lambda e: e.core.promoted_tokens("rows", 4),
        ),
    ),
    "_core.Contexts": uses(
        lambda e: _core.Contexts(9, np.array([2, 5]), 3, 1, 0),
        lambda e: _core.Contexts(0, None, 1, 0, 0),
        wrong=(
            lambda e: _core.Contexts(9, np.array([5, 2]), 3, 1, 0),
            lambda e: _core.Contexts(9, None, 0, 1, 0),
            lambda e: _core.Contexts(2**31 - 1, None, 2**40, 2**30, 0),
        ),
    ),
    "_core.Contexts.add": uses(
        lambda e: contexts().add(*active(), TOKENS, ONE_PROMPT, 3),
        wrong=(
            lambda e: contexts().add(*active(), TOKENS, ONE_PROMPT, -1),
            lambda e: contexts().add(*active(), TOKENS[:1], np.array([0, 1]), 0),
            lambda e: contexts().add(*active(1), TOKENS, ONE_PROMPT, 0),
            lambda e: contexts(1).add(*active(), TOKENS, ONE_PROMPT, 0),
            lambda e: contexts().add(active()[0][::-1].copy(), *active()[1:], TOKENS, ONE_PROMPT, 0),
        ),
    ),
    "_core.Contexts.array": uses(
        lambda e: [contexts().array(name) for name in CONTEXT_ARRAYS],
        wrong=(lambda e: contexts().array("x"), lambda e: contexts().array(3)),
    ),
    "_core.CoderTrainer.step_count": uses(
        lambda e: setattr(e.coder, "step_count", 3),
        wrong=(lambda e: setattr(e.coder, "step_count", -1), lambda e: delattr(e.coder, "step_count")),
    ),
    **CURVE_CALLS,
}
