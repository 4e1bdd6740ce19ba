"""Every public call and attribute, with right and wrong uses: what the tests of memory go through.

A name is "Model.run" for an attribute of a class of attnsparse, "_core.Run.array" for one of the extension,
and "asp.load" for a function of the package. CALLS holds the uses, ARRAYS says which of them hand out arrays
and whether these are lent (read-only views of the core's memory) or their own; PLAIN names the rest and why.
"""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import reliability
from reliability import PROMPTS, TOKENS

import attnsparse as asp
from attnsparse import _core, cache, effects, gradients, interventions, run
from attnsparse.tasks_object import Task
from attnsparse.training_data import SequenceData

ALL = ("all", "edges")
WRT = ("parameters", *gradients.ACTIVATIONS)
CLASSES = {
    "Model": asp.Model,
    "Run": asp.Run,
    "Trainer": asp.Trainer,
    "ActivationCache": cache.ActivationCache,
    "Transcoders": asp.Transcoders,
    "Features": asp.Features,
}
CORE_CLASSES = ("Model", "Run", "Gradients", "Trainer", "Features", "CoderTrainer")


def small_transcoders(dtype: str = "float32", **fields: Any) -> asp.Transcoders:
    """Random ones for the model of reliability.py: cross-layer, a skip in layer 1, 40 features a layer."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return (0.3 * random.standard_normal(shape)).astype(dtype)

    arrays = [[draw(*s), draw(*s)] for s in ((40, 64), (40,))]
    source = asp.ArraySource(
        *arrays, [draw(40, 2, 64), draw(40, 1, 64)], [draw(64), draw(64)], arrays[1], [None, draw(64, 64)]
    )
    return asp.Transcoders(source, **({"activation": "jump_relu"} | fields))


def small_task(n_vocab: int = 96) -> Task:
    """Four prompts of eight tokens, two in each half."""
    clean = tuple(((TOKENS + 7 * i) % n_vocab).astype(np.int32) for i in range(4))
    corrupted = tuple(((row + 1) % n_vocab).astype(np.int32) for row in clean)
    answers, wrong = ((np.array([token], np.int32),) * 4 for token in (5, 7))
    halves = np.array([True, False, True, False])
    return Task("small", "logit_diff", None, clean, corrupted, answers, wrong, ("",) * 4, halves)  # type: ignore


class Everything:
    """One of each object; on leaving the `with` block it lets go of all of them."""

    def __enter__(self) -> Everything:
        self.folder = Path(tempfile.mkdtemp())
        self.model = reliability.model()
        self.one = self.model.run(TOKENS, record=ALL, threads=1)
        self.ragged = self.model.run(PROMPTS, record=ALL, threads=1)
        self.even = self.model.run([TOKENS, TOKENS], record=ALL, threads=1)
        self.plain = self.model.run(TOKENS, "none", logits="none", threads=1)
        self.gradients = self.model.gradients(TOKENS, wrt=WRT, threads=1)
        self.many_gradients = self.model.gradients(PROMPTS, wrt=WRT, threads=1)
        self.cache = self.model.run_with_cache(TOKENS)[1]
        self.short_cache = self.model.run_with_cache(TOKENS, "hook_embed")[1]
        self.core = self.model._core
        self.changing = self.model.copy()
        self.batch = reliability.micro_batch()
        self.trained = reliability.model(seed=1)
        self.core_trainer = _core.Trainer(self.trained._core)
        self.core_trainer.step([self.batch], **reliability.step_options())
        self.data = SequenceData([np.arange(n) for n in (5, 9, 2)], batch=2)
        self.dense = reliability.model(seed=2, gated=False)
        self.task = small_task()
        self.edges = effects.candidates(self.model, self.task, "edge")
        self.circuit = asp.find_circuit(self.model, self.task, n_bootstrap=5, n_random=1, threads=1)
        self.circuit.save(self.folder / "circuit")
        self.other = self.dense._core.run(TOKENS, np.array([0, 8]), ("resid", "qkv", "z", "pattern"))
        self.clean = self.core.run(TOKENS, np.array([0, 8]), ("resid", "qkv", "z", "pattern"))
        self.trainer = asp.Trainer(self.dense, self.data, steps=10**9, threads=1)
        self.trainer.step()
        self.coder = _core.CoderTrainer(3, 4, 9)
        self.rows = (np.ones((5, 3), np.float32), np.ones((5, 4), np.float32))
        self.transcoders = small_transcoders()
        self.features = self.transcoders.features(self.model, TOKENS, threads=1)
        self.graph = asp.attribution_graph(self.model, self.transcoders, TOKENS, threads=1)
        self.sources = self.graph.origin[0]
        self.reads = (np.array([4], np.int32), np.array([7], np.int32), np.array([2], np.int32),
                      np.ones((1, 64), np.float32))  # fmt: skip
        self.model.save(self.folder / "saved")
        self.trainer.save(self.folder / "saved.ckpt")
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)
        self.__dict__.clear()


Call = Callable[[Everything], Any]

FEATURE_ARRAYS = ("layer", "position", "feature", "activation", "start", "reconstruction", "error")
ONE = np.array([0, 1], np.int64)
METRIC = ("logit_diff", ONE, np.array([5], np.int32), ONE, np.array([7], np.int32), None)


def sweep_arguments(layer: int = 1, token: int = 5, reference: tuple = (None, None, None)) -> tuple:
    """Variants, unit, order, reference and metric of `_core.Model.sweep`: head 3 of layer 1 ablated."""
    variants = np.array([[0, layer, 0, 0, 0, 8, 7]], np.int64)
    metric = ("logit_diff", ONE, np.array([token], np.int32), *METRIC[3:])
    return variants, 0, np.arange(8, dtype=np.int32), reference, metric


def csr(graph: asp.Graph) -> tuple[np.ndarray, ...]:
    """The edges of a graph as the core takes them."""
    return graph.start, graph.source, graph.weight


def graph_pairs(graph: asp.Graph, target: int) -> tuple[np.ndarray, ...]:
    """Arguments of `_core.graph_loadings`: the last placed source and a target."""
    pairs = np.array([[len(graph.carried) - 1, target]])
    arrays = (graph.carried, graph.received, graph.received_alone, graph.pattern)
    return *arrays, pairs, np.array([[6, 7]]), np.ones(1)


def prune_options(graph: asp.Graph) -> tuple:
    """What `_core.graph_prune` takes beside the edges."""
    n = len(graph)
    return np.ones(n), np.zeros(n, bool), np.zeros(n, bool), 0.8, 0.98


@dataclass(frozen=True)
class Uses:
    """Calls that work, calls that must raise, and about how many times a cheap call's time they take."""

    right: tuple[Call, ...]
    wrong: tuple[Call, ...] = ()
    cost: int = 1


def uses(*right: Call, wrong: tuple[Call, ...] = (), cost: int = 1) -> Uses:
    return Uses(right, wrong, cost)


def of_runs(name: str) -> Uses:
    """An array of one prompt, of one in a batch, and of an even batch; wrong: not recorded, and ragged."""
    return uses(
        lambda e: getattr(e.one, name),
        lambda e: getattr(e.ragged[2], name),
        lambda e: getattr(e.even, name),
        wrong=(lambda e: getattr(e.plain, name), lambda e: getattr(e.ragged, name)),
    )


def of_gradients(name: str) -> Uses:
    return uses(lambda e: getattr(e.gradients, name), lambda e: getattr(e.many_gradients[2], name))


CALLS: dict[str, Uses] = {
    # --- the package
    "asp.load": uses(
        lambda e: asp.load(e.folder / "saved"), wrong=(lambda e: asp.load(e.folder / "none"),), cost=40
    ),
    "asp.save": uses(
        lambda e: asp.save(e.model, e.folder / "again"),
        wrong=(lambda e: asp.save(e.model, e.folder / "saved.ckpt"),),
        cost=40,
    ),
    "asp.build_info": uses(lambda e: asp.build_info(), cost=500),
    "asp.get_num_threads": uses(lambda e: asp.get_num_threads()),
    "asp.set_num_threads": uses(
        lambda e: asp.set_num_threads(asp.get_num_threads()),
        wrong=(lambda e: asp.set_num_threads(0), lambda e: asp.set_num_threads("2")),
    ),
    "asp.find_circuit": uses(
        lambda e: asp.find_circuit(e.model, e.task, n_bootstrap=5, n_random=1, threads=1),
        lambda e: asp.find_circuit(e.model, e.task, "edge", "ig", "mean", steps=2, n_bootstrap=5, n_random=1),
        wrong=(
            lambda e: asp.find_circuit(e.model, e.task, "neuron"),
            lambda e: asp.find_circuit(e.model, e.task.ranking),
        ),
        cost=100,
    ),
    "asp.load_circuit": uses(
        lambda e: asp.load_circuit(e.folder / "circuit"),
        wrong=(lambda e: asp.load_circuit(e.folder / "none"),),
        cost=40,
    ),
    # --- graphs
    "asp.group_nodes": uses(
        lambda e: asp.group_nodes(e.graph, {"a": {"position": 1}, "b": e.graph.logits.tolist()}),
        wrong=(lambda e: asp.group_nodes(e.graph, {"a": {"position": 1}, "b": {"position": 1}}),),
    ),
    "asp.token_groups": uses(lambda e: asp.token_groups(e.graph)),
    "asp.attribution_graph": uses(
        lambda e: asp.attribution_graph(e.model, e.transcoders, TOKENS, threads=1),
        lambda e: asp.attribution_graph(
            e.model, e.transcoders, TOKENS, 5, wrong=[7], max_feature_nodes=4, n_splits=2
        ),
        wrong=(
            lambda e: asp.attribution_graph(e.model, e.transcoders, TOKENS, 96),
            lambda e: asp.attribution_graph(e.model, e.transcoders, PROMPTS),
            lambda e: asp.attribution_graph(e.model, e.transcoders, TOKENS, max_bytes=20_000),
        ),
        cost=40,
    ),
    "asp.describe_features": uses(
        lambda e: asp.describe_features(e.model, e.transcoders, PROMPTS, threads=1, progress=False),
        lambda e: asp.describe_features(e.model, e.transcoders, PROMPTS, e.graph, 2, threads=1),
        wrong=(
            lambda e: asp.describe_features(e.model, e.transcoders, []),
            lambda e: asp.describe_features(e.model, e.transcoders, PROMPTS, [(2, 0)]),
            lambda e: asp.describe_features(e.model, e.transcoders, PROMPTS, max_bytes=100_000),
        ),
        cost=40,
    ),
    "_core.Model.graph_edges": uses(
        lambda e: e.core.graph_edges(e.sources.frozen, e.sources.writes, e.reads),
        wrong=(
            lambda e: e.core.graph_edges(e.sources.frozen, e.sources.writes, (e.reads[0] + 1, *e.reads[1:])),
            lambda e: e.core.graph_edges((e.plain._core, None, None, False), e.sources.writes, e.reads),
            lambda e: e.core.graph_edges(e.sources.frozen, e.sources.writes[:4], e.reads),
        ),
    ),
    "_core.Model.graph_carried": uses(
        lambda e: e.core.graph_carried(e.sources.frozen, e.sources.writes),
        wrong=(lambda e: e.core.graph_carried((e.ragged._core, None, None, False), e.sources.writes),),
    ),
    "_core.Model.graph_received": uses(
        lambda e: e.core.graph_received(e.sources.frozen, e.reads, False),
        lambda e: e.core.graph_received(e.sources.frozen, e.reads, True),
        wrong=(lambda e: e.core.graph_received(e.sources.frozen, (e.reads[0], *e.reads), False),),
    ),
    "_core.graph_loadings": uses(
        lambda e: _core.graph_loadings(*graph_pairs(e.graph, 0)),
        wrong=(lambda e: _core.graph_loadings(*graph_pairs(e.graph, 10**6)),),
    ),
    "_core.graph_influence": uses(
        lambda e: _core.graph_influence(*csr(e.graph), np.ones(len(e.graph))),
        wrong=(lambda e: _core.graph_influence(*csr(e.graph), np.ones(3)),),
    ),
    "_core.graph_factors": uses(
        lambda e: _core.graph_factors(*csr(e.graph), e.graph.value, *(np.ones(len(e.graph), bool),) * 2),
        wrong=(lambda e: _core.graph_factors(*csr(e.graph), e.graph.value, e.graph.value, e.graph.value),),
    ),
    "_core.graph_prune": uses(
        lambda e: _core.graph_prune(*csr(e.graph), *prune_options(e.graph)),
        wrong=(lambda e: _core.graph_prune(*csr(e.graph)[:2], np.ones(3), *prune_options(e.graph)),),
    ),
    # --- effects
    "effects.metric_values": uses(
        *(lambda e, m=m: effects.metric_values(e.model, e.task, metric=m) for m in effects.METRICS),
        wrong=(lambda e: effects.metric_values(e.model, e.task, metric="x"),),
        cost=5,
    ),
    "effects.candidates": uses(
        *(lambda e, u=u: effects.candidates(e.model, e.task, u) for u in effects.UNITS),
        wrong=(lambda e: effects.candidates(e.model, e.task, "x"),),
        cost=5,
    ),
    "effects.knock_out": uses(
        *(lambda e, a=a: effects.knock_out(e.model, e.task, e.edges[:9], a) for a in effects.ABLATIONS),
        lambda e: effects.knock_out(e.dense, e.task, [[0, 0], [1, 3]], "counterfactual", metric="kl"),
        wrong=(
            lambda e: effects.knock_out(e.model, e.task, [[0, 9]]),
            lambda e: effects.knock_out(e.model, e.task, [[0, 0, 3, 4]]),
            lambda e: effects.knock_out(e.model, e.task, [[0, 0]], "mean", reference=PROMPTS),
        ),
        cost=40,
    ),
    "effects.keep_only": uses(
        lambda e: effects.keep_only(e.model, e.task, e.edges, [0, 3, 9], "mean"),
        wrong=(lambda e: effects.keep_only(e.model, e.task, e.edges[:2], [3]),),
        cost=40,
    ),
    "effects.keep_without": uses(
        lambda e: effects.keep_without(e.model, e.task, [[0, 1], [1, 2]]),
        wrong=(lambda e: effects.keep_without(e.model, e.task, [[0, 1], [0, 1]]),),
        cost=5,
    ),
    "effects.attribution": uses(
        *(lambda e, u=u: effects.attribution(e.model, e.task, u, "mean", steps=2) for u in effects.UNITS),
        lambda e: effects.attribution(e.model, e.task, "edge", path="gate"),
        wrong=(lambda e: effects.attribution(e.dense, e.task, "edge", path="gate"),),
        cost=40,
    ),
    # --- Model
    "asp.Model": uses(
        lambda e: asp.Model(e.model.config, e.model.parameters()),
        wrong=(lambda e: asp.Model(e.model.config, {}), lambda e: asp.Model(e.model.config, {"x": 1})),
        cost=40,
    ),
    "Model.assign": uses(
        lambda e: e.changing.assign({"ln_f.weight": np.ones(64)}),
        wrong=(lambda e: e.changing.assign({"ln_f.weight": [1]}), lambda e: e.changing.assign({"x": [1]})),
    ),
    "Model.copy": uses(lambda e: e.model.copy(), cost=40),
    "Model.digest": uses(lambda e: e.model.digest),
    "Model.n_parameters": uses(lambda e: e.model.n_parameters),
    "Model.version": uses(lambda e: e.model.version),
    "Model.parameter": uses(
        lambda e: e.model.parameter("h.1.mlp.c_fc.weight"), wrong=(lambda e: e.model.parameter("x"),)
    ),
    "Model.parameters": uses(lambda e: e.model.parameters()),
    "Model.run": uses(
        lambda e: e.model.run(PROMPTS, record=ALL, threads=1),
        lambda e: e.model.run(TOKENS, logits="last"),
        lambda e: e.model.run(PROMPTS, ALL, ablate=["L0H1", asp.Mlp(1), "a1.h2[0->0]"], threads=1),
        lambda e: e.model.run(
            TOKENS,
            ablate=interventions.Ablation(["a0.h1[2->5]", (1, 2)], "mean", [TOKENS, TOKENS]),
            patch={asp.Resid(1, -1, "mid"): np.zeros(64), asp.HeadPosition(0, 0, 3): np.ones(16)},
        ),
        wrong=(
            lambda e: e.model.run(TOKENS, ablate=["L0H9"]),
            lambda e: e.model.run(TOKENS, patch={asp.Mlp(0): np.zeros(3)}),
            lambda e: e.model.run([96]),
            lambda e: e.model.run(TOKENS, max_bytes=1000),
            lambda e: e.model.run(TOKENS, record="nothing"),
            lambda e: e.core.run(TOKENS, np.array([0, 5]), ()),
            lambda e: e.core.run(TOKENS + 100, np.array([0, 8]), ()),
        ),
        cost=5,
    ),
    "Model.run_with_cache": uses(
        lambda e: e.model.run_with_cache(TOKENS, "hook_embed"),
        wrong=(lambda e: e.model.run_with_cache(PROMPTS), lambda e: e.model.run_with_cache(TOKENS, "x")),
        cost=5,
    ),
    "Model.gradients": uses(
        lambda e: e.model.gradients(PROMPTS, wrt=WRT, threads=1),
        lambda e: e.model.gradients(TOKENS, dlogits=np.ones((8, 96)), gate_gradient="straight-through"),
        wrong=(
            lambda e: e.model.gradients(TOKENS, targets=[1]),
            lambda e: e.model.gradients(TOKENS, targets=TOKENS + 90),
            lambda e: e.model.gradients(TOKENS, loss_mask=np.zeros(8)),
            lambda e: e.model.gradients(TOKENS, max_bytes=1000),
            lambda e: e.model.gradients([TOKENS] * 100, max_bytes=500_000),
            lambda e: e.core.gradients(TOKENS, np.array([0, 8]), (), True, np.ones((8, 3), np.float32), 0, 0),
        ),
        cost=5,
    ),
    "Model.save": uses(lambda e: e.model.save(e.folder / "again"), cost=40),
    "Model.to_tokens": uses(wrong=(lambda e: e.model.to_tokens("text"),)),
    "Model.to_str_tokens": uses(wrong=(lambda e: e.model.to_str_tokens([1, 2]),)),
    # --- Run
    **{f"Run.{name}": of_runs(name) for name in run.CORE_NAMES if name != "loss"},
    "Run.loss": uses(lambda e: (e.one.loss, e.ragged.loss), wrong=(lambda e: e.plain.loss,)),
    "Run.logits": uses(
        lambda e: e.one.logits,
        lambda e: e.ragged[0].logits,
        lambda e: e.model.run(PROMPTS, "none", logits="last", threads=1).logits,
        wrong=(lambda e: e.plain.logits, lambda e: e.ragged.logits),
        cost=5,
    ),
    "Run.tokens": uses(lambda e: e.one.tokens, lambda e: e.even.tokens, wrong=(lambda e: e.ragged.tokens,)),
    "Run.n_tokens": uses(lambda e: e.one.n_tokens, wrong=(lambda e: e.ragged.n_tokens,)),
    "Run.prepend_bos": uses(lambda e: e.one.prepend_bos),
    "Run.prompt": uses(lambda e: e.one.prompt, wrong=(lambda e: e.ragged.prompt,)),
    "Run.recorded": uses(lambda e: e.one.recorded),
    "Run.token_strings": uses(lambda e: e.one.token_strings, wrong=(lambda e: e.even.token_strings,)),
    "Run.edge_arrays": uses(
        lambda e: e.one.edge_arrays(),
        lambda e: e.ragged[1].edge_arrays(),
        wrong=(lambda e: e.plain.edge_arrays(),),
    ),
    "Run.edge_csr": uses(lambda e: e.ragged.edge_csr, wrong=(lambda e: e.plain.edge_csr,)),
    "Run.edges": uses(lambda e: e.one.edges(), wrong=(lambda e: e.ragged.edges(),), cost=40),
    "Run.heads": uses(lambda e: e.one.heads(1, -1), wrong=(lambda e: e.one.heads(5, 99),), cost=40),
    "Run.value_norms": uses(
        lambda e: e.one.value_norms(),
        lambda e: e.ragged[2].value_norms(np.ones(64, np.float32)),
        wrong=(lambda e: e.one.value_norms([1.0]), lambda e: e.plain.value_norms()),
    ),
    "Run.entry_scores": uses(
        lambda e: e.one.entry_scores([0, 1], [1, 2], [5, 6], [2, 3]),
        wrong=(
            lambda e: e.one.entry_scores([0], [0], [8], [0]),
            lambda e: e.one.entry_scores([9], [0], [0], [0]),
            lambda e: e.one.entry_scores([0, 0], [0], [0], [0]),
        ),
    ),
    # --- Gradients
    **{f"Gradients.{name}": of_gradients(name) for name in gradients.ACTIVATIONS},
    "Gradients.loss": uses(lambda e: e.gradients.loss),
    "Gradients.parameters": uses(
        lambda e: e.gradients.parameters,
        wrong=(lambda e: e.model.gradients(TOKENS, wrt="q").parameters,),
        cost=5,
    ),
    # --- Transcoders and Features
    "asp.Transcoders": uses(
        lambda e: asp.Transcoders(e.transcoders.source, activation="topk", top_k=3),
        wrong=(
            lambda e: asp.Transcoders(None),
            lambda e: asp.Transcoders(e.transcoders.source, activation="gelu"),
        ),
    ),
    "asp.ArraySource": uses(
        lambda e: small_transcoders().source, wrong=(lambda e: asp.ArraySource([1], [1], [1], [1]),)
    ),
    "Transcoders.features": uses(
        lambda e: e.transcoders.features(e.model, TOKENS, threads=1),
        lambda e: small_transcoders(activation="topk", top_k=3).features(e.model, e.features.run),
        wrong=(
            lambda e: e.transcoders.features(e.model, PROMPTS),
            lambda e: e.transcoders.features(e.model, e.one[0], max_bytes=10_000),
            lambda e: e.transcoders.features(e.model, e.plain),
            lambda e: e.transcoders.features(e.dense, e.one),
        ),
        cost=5,
    ),
    "Transcoders.replacement_run": uses(
        lambda e: e.transcoders.replacement_run(e.model, PROMPTS, record="all", threads=1),
        lambda e: e.transcoders.replacement_run(e.model, TOKENS, errors=e.features, ablate="L0H1"),
        wrong=(
            lambda e: e.transcoders.replacement_run(e.model, TOKENS, record="mlp_pre"),
            lambda e: e.transcoders.replacement_run(e.model, TOKENS[1:], errors=e.features),
            lambda e: e.transcoders.replacement_run(e.model, TOKENS, max_bytes=1000),
        ),
        cost=5,
    ),
    "Transcoders.evaluate": uses(
        lambda e: e.transcoders.evaluate(e.model, PROMPTS, threads=1),
        wrong=(lambda e: e.transcoders.evaluate(e.model, [1]),),
        cost=40,
    ),
    "Transcoders.check": uses(
        lambda e: e.transcoders.check(e.model),
        wrong=(lambda e: e.transcoders.check(asp.Model(asp.Config(1, 1, 1, 1, 1, 1, 1))),),
        cost=5,
    ),
    "Transcoders.digest": uses(lambda e: e.transcoders.digest),
    "Transcoders.cross_layer": uses(lambda e: e.transcoders.cross_layer),
    "Transcoders.writes": uses(lambda e: e.transcoders.writes(0)),
    **{f"Features.{name}": uses(lambda e, n=name: getattr(e.features, n)) for name in FEATURE_ARRAYS},
    **{f"Features.{name}": uses(lambda e, n=name: getattr(e.features, n)) for name in ("l0", "n_tokens")},
    "Features.explained_variance": uses(lambda e: e.features.explained_variance),
    "Features.to_pandas": uses(
        lambda e: e.features.to_pandas(base=1), wrong=(lambda e: e.features.to_pandas(base=2),), cost=40
    ),
    # --- Trainer
    "asp.train_transcoders": uses(
        lambda e: asp.train_transcoders(e.dense, e.data, steps=1, n_features=20, threads=1),
        wrong=(
            lambda e: asp.train_transcoders(e.dense, e.data, steps=0),
            lambda e: asp.train_transcoders(e.dense, None, steps=1),
        ),
        cost=200,
    ),
    "asp.Trainer": uses(
        lambda e: asp.Trainer(e.trained, e.data, steps=2, tau=1.0),
        wrong=(
            lambda e: asp.Trainer(e.trained, e.data, steps=0),
            lambda e: asp.Trainer(e.trained, e.data, steps=2),
        ),
        cost=40,
    ),
    "Trainer.step": uses(
        lambda e: asp.Trainer(e.dense, e.data, steps=2, threads=1).step(),
        wrong=(lambda e: asp.Trainer(e.dense, None, steps=2).step(),),
        cost=40,
    ),
    "Trainer.run": uses(lambda e: e.trainer.run(progress=False, until=1), cost=40),
    "Trainer.history": uses(lambda e: e.trainer.history, cost=40),
    "Trainer.save": uses(
        lambda e: e.trainer.save(e.folder / "again.ckpt"),
        wrong=(lambda e: e.trainer.save(e.folder / "none" / "again.ckpt"),),
        cost=40,
    ),
    "Trainer.resume": uses(
        lambda e: asp.Trainer.resume(e.folder / "saved.ckpt", e.data),
        wrong=(lambda e: asp.Trainer.resume(e.folder / "saved" / "config.json", e.data),),
        cost=40,
    ),
    "Trainer.finished": uses(lambda e: e.trainer.finished),
    "Trainer.multiplier": uses(lambda e: e.trainer.multiplier),
    "Trainer.step_count": uses(lambda e: e.trainer.step_count),
    # --- ActivationCache
    "cache.ActivationCache": uses(lambda e: cache.ActivationCache(e.even, ["hook_embed"])),
    "ActivationCache.get": uses(lambda e: e.cache.get("blocks.1.attn.hook_pattern")),
    "ActivationCache.items": uses(lambda e: dict(e.short_cache.items())),
    "ActivationCache.keys": uses(lambda e: list(e.cache.keys())),
    "ActivationCache.values": uses(lambda e: list(e.short_cache.values())),
    # --- the extension
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
    "_core.Model.nonfinite": uses(lambda e: e.core.nonfinite()),
    "_core.Model.names": uses(lambda e: e.core.names),
    "_core.Model.version": uses(lambda e: e.core.version),
    "_core.Model.config": uses(lambda e: e.core.config),
    "_core.Model.run": uses(
        lambda e: e.core.run(TOKENS, np.array([0, 8]), ("scores",), threads=1),
        wrong=(lambda e: e.core.run(TOKENS, np.array([0, 9]), ()), lambda e: e.core.run(TOKENS, [0, 8], ())),
    ),
    "_core.Model.sweep": uses(
        lambda e: e.core.sweep(e.clean, *sweep_arguments()),
        lambda e: e.core.sweep(e.clean, *sweep_arguments(reference=(e.clean, None, None))),
        wrong=(
            lambda e: e.core.sweep(e.plain._core, *sweep_arguments()),
            lambda e: e.core.sweep(e.clean, *sweep_arguments(layer=2)),
            lambda e: e.core.sweep(e.clean, *sweep_arguments(reference=(3, None, None))),
            lambda e: e.core.sweep(e.clean, *sweep_arguments(reference=(e.other, None, None))),
            lambda e: e.core.sweep(e.clean, *sweep_arguments(token=96)),
            lambda e: e.changing._core.sweep(e.clean, *sweep_arguments()),
        ),
        cost=5,
    ),
    "_core.Model.attribution": uses(
        lambda e: e.core.attribution(TOKENS, np.array([0, 8]), 0, 2, False, (None,) * 3, None, METRIC),
        wrong=(
            lambda e: e.core.attribution(TOKENS, np.array([0, 8]), 3, 2, False, (None,) * 3, None, METRIC),
            lambda e: e.core.attribution(TOKENS, np.array([0, 8]), 0, 0, False, (None,) * 3, None, METRIC),
            lambda e: e.core.attribution(TOKENS, np.array([0, 8]), 0, 1, True, (None,) * 3, None, METRIC),
        ),
        cost=5,
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
        lambda e: e.one._core.value_norms(None), wrong=(lambda e: e.plain._core.value_norms(None),)
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
    "_core.Trainer": uses(lambda e: _core.Trainer(e.core), wrong=(lambda e: _core.Trainer(3),)),
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
    "_core.CoderTrainer": uses(
        lambda e: _core.CoderTrainer(3, 4, 9), wrong=(lambda e: _core.CoderTrainer(3, 4, 0),)
    ),
    "_core.CoderTrainer.step": uses(
        lambda e: e.coder.step(*e.rows, lr=1e-3, threads=1),
        lambda e: e.coder.step(*e.rows, activation=2, top_k=3, aux_k=2, dead_after=1, lr=1e-3, threads=1),
        wrong=(
            lambda e: e.coder.step(*e.rows),
            lambda e: e.coder.step(*e.rows[::-1], lr=1e-3),
            lambda e: e.coder.step(*e.rows, activation=2, top_k=10, lr=1e-3),
            lambda e: e.coder.step(e.rows[0] * np.nan, e.rows[1], lr=1e-3),
            lambda e: e.coder.step(e.rows[0], 3, lr=1e-3),
        ),
    ),
    "_core.CoderTrainer.array": uses(
        lambda e: e.coder.array("w_enc"),
        lambda e: e.coder.array("silent"),
        wrong=(lambda e: e.coder.array("x"), lambda e: e.coder.array(3)),
    ),
    "_core.CoderTrainer.load": uses(
        lambda e: e.coder.load("m/b_dec", np.zeros(4, np.float32)),
        wrong=(lambda e: e.coder.load("b_dec", np.zeros(3, np.float32)),),
    ),
    "_core.CoderTrainer.step_count": uses(
        lambda e: setattr(e.coder, "step_count", 3), wrong=(lambda e: setattr(e.coder, "step_count", -1),)
    ),
    "_core.machine": uses(lambda e: _core.machine()),
    "_core.get_num_threads": uses(lambda e: _core.get_num_threads()),
    "_core.set_num_threads": uses(
        lambda e: _core.set_num_threads(_core.get_num_threads()), wrong=(lambda e: _core.set_num_threads(99),)
    ),
}

EFFECTS = [name for name in effects.__all__ if name[0].islower()]
_RUN_ARRAYS = [name for name in run.CORE_NAMES if name != "loss"]
#: names whose results hold arrays: "lent" by the core (or by the run: tokens), or their "own"
ARRAYS: dict[str, str] = {
    **dict.fromkeys([f"Run.{name}" for name in (*_RUN_ARRAYS, "logits", "tokens", "edge_csr")], "lent"),
    **dict.fromkeys([f"Gradients.{name}" for name in (*gradients.ACTIVATIONS, "parameters")], "lent"),
    **dict.fromkeys(["Model.parameter", "Model.parameters", "Model.run_with_cache"], "lent"),
    **dict.fromkeys(["ActivationCache.get", "ActivationCache.items", "ActivationCache.values"], "lent"),
    **dict.fromkeys(["_core.Model.parameter", "_core.Run.array", "_core.Run.edges"], "lent"),
    **dict.fromkeys(["_core.Gradients.array", "_core.Gradients.parameter", "_core.Trainer.moments"], "lent"),
    "_core.CoderTrainer.array": "lent",
    **dict.fromkeys(["_core.Features.array", *(f"Features.{name}" for name in FEATURE_ARRAYS)], "lent"),
    **dict.fromkeys(["Features.l0", "Features.explained_variance", "Features.to_pandas"], "own"),
    "Transcoders.evaluate": "own",
    **dict.fromkeys(["Run.value_norms", "Run.entry_scores", "Run.edge_arrays"], "own"),
    **dict.fromkeys([f"effects.{name}" for name in EFFECTS], "own"),
    **dict.fromkeys(["_core.Model.sweep", "_core.Model.attribution", "_core.Run.mean_entries"], "own"),
    **dict.fromkeys([f"_core.Model.graph_{name}" for name in ("edges", "carried", "received")], "own"),
    **dict.fromkeys([f"_core.graph_{name}" for name in ("loadings", "influence", "factors", "prune")], "own"),
    **dict.fromkeys(["Run.edges", "Run.heads", "Trainer.history"], "own"),
    **dict.fromkeys(["_core.Run.value_norms", "_core.Run.entry_scores", "cache.ActivationCache"], "own"),
}

#: public names without memory of the core, each with the reason
PLAIN: dict[str, str] = {
    **{
        f"asp.{kind.__name__}": "a dataclass of plain values"
        for kind in (asp.Config, asp.Edge, asp.Head, asp.Limits)
    },
    **{
        f"asp.{kind.__name__}": "plain values; see test_interventions.py"
        for kind in (asp.Ablation, asp.HeadPosition, asp.Mlp, asp.Resid)
    },
    "asp.Group": "made by group_nodes; arrays of NumPy's own; see test_graph_groups.py",
    "asp.Graph": "made by attribution_graph; arrays of NumPy's own, and the run's pattern; see test_graph.py",
    "asp.Circuit": "made by find_circuit; arrays of NumPy's own; see test_circuit.py",
    **{
        f"asp.{name}": "an exception"
        for name in asp.__all__
        if inspect.isclass(getattr(asp, name)) and issubclass(getattr(asp, name), Exception)
    },
    **{
        f"asp.{name}": "Python and NumPy alone; see test_train.py"
        for name in ("SequenceData", "TokenData", "TrainingOptions", "TranscoderOptions")
    },
    **{
        f"asp.{name}_transcoders": "Python and NumPy alone; see test_transcoder_files.py"
        for name in ("load", "save")
    },
    **{
        f"asp.{name}": "Python and NumPy alone; see test_graph_file.py and test_graph_json.py"
        for name in ("load_graph", "read_graph_json")
    },
    **{
        f"asp.{name}": "Python and NumPy alone; see test_feature_labels.py"
        for name in ("FeatureLabels", "load_feature_labels", "write_feature_details")
    },
    "asp.Run": "made by Model.run",
    "asp.Encoder": "a dataclass of NumPy's own arrays",
    "asp.Features": "made by Transcoders.features",
    "asp.Gradients": "made by Model.gradients",
    "asp.Tokenizer": "Python's lists and strings; see test_tokenizer.py",
    "_core.Run": "made by _core.Model.run",
    "_core.Gradients": "made by _core.Model.gradients",
}


def public_names() -> set[str]:
    """All that a user can reach without an underscore."""
    found = {f"asp.{name}" for name in asp.__all__ if not name.startswith("_")} | {"cache.ActivationCache"}
    for label, kind in CLASSES.items():
        found |= {f"{label}.{name}" for name in dir(kind) if not name.startswith("_")}
    found |= {f"Run.{name}" for name in run.CORE_NAMES} | {f"effects.{name}" for name in EFFECTS}
    found |= {
        f"Gradients.{name}" for name in (*vars(asp.Gradients), *gradients.ACTIVATIONS) if name[0] != "_"
    }
    found |= {f"_core.{name}" for name in dir(_core) if not name.startswith("_")}
    for label in CORE_CLASSES:
        found |= {f"_core.{label}.{name}" for name in dir(getattr(_core, label)) if not name.startswith("_")}
    return found
