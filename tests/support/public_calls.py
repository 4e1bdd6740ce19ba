"""Every public call and attribute, with right and wrong uses: what the tests of memory go through.

A name is "Model.run" for an attribute of a class of attnsparse, "_core.Run.array" for one of the extension,
and "asp.load" for a function of the package. CALLS holds the uses, ARRAYS says which of them hand out arrays
and whether these are lent (read-only views of the core's memory) or their own; PLAIN names the rest and why.
"""

from __future__ import annotations

import inspect

import numpy as np
from public_calls_acdc import ACDC_CALLS
from public_calls_components import COMPONENT_CALLS
from public_calls_core import CORE_CALLS
from public_calls_curves import FAILING, OWN
from public_calls_entries import ENTRY_CALLS
from public_calls_graph import FEATURE_ARRAYS, GRAPH_ARRAYS, GRAPH_CALLS
from public_calls_lens import LENS_ARRAYS, LENS_CALLS
from public_calls_masks import MASK_CALLS
from public_calls_patching import PATCHING_CALLS
from public_calls_trainer import PIECES_CALLS
from public_objects import ALL, CORE_GRAPH_ARRAYS, WRT, Everything, Uses, small_task, small_transcoders, uses
from reliability import PROMPTS, TOKENS

import attnsparse as asp
from attnsparse import _core
from attnsparse._core_types import Frozen, Functions
from attnsparse.circuits import COMPONENT_METHODS, component_scores, effects
from attnsparse.model import gradients, interventions, run
from attnsparse.model import transformer_lens as cache

__all__ = [
    "ARRAYS", "CALLS", "CLASSES", "CORE_CLASSES", "PLAIN", "Everything", "Uses", "public_names", "small_task",
    "small_transcoders", "uses",
]  # fmt: skip

CLASSES = {
    "Model": asp.Model,
    "Run": asp.Run,
    "Trainer": asp.Trainer,
    "ActivationCache": cache.ActivationCache,
    "Transcoders": asp.Transcoders,
    "Features": asp.Features,
    "Graph": asp.Graph,
}
CORE_CLASSES = (
    "Model", "Run", "Gradients", "Trainer", "Features", "Contexts", "CoderTrainer", "Graph", "Circuit",
)  # fmt: skip


# a function of a model of two layers that gives nothing
UNFINISHED = Functions(np.array([1, 0, 0], np.int32), lambda place, layer, first, value: None)


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
        wrong=(lambda e: asp.save(e.model, e.folder / "saved.safetensors"),),
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
        lambda e: asp.find_circuit(
            e.model, e.task, unit="edge", method="ig", ablation="mean", steps=2, n_bootstrap=5, n_random=1
        ),
        lambda e: asp.find_circuit(e.model, e.task, metric=OWN, n_bootstrap=5, n_random=1),
        lambda e: asp.find_circuit(e.model, e.task, method="greedy", n_random=1, resume=e.folder / "kept"),
        wrong=(
            lambda e: asp.find_circuit(e.model, e.task, unit="neuron"),
            lambda e: asp.find_circuit(e.model, e.task, metric=FAILING.custom),
            lambda e: asp.find_circuit(e.model, e.task.ranking),
            lambda e: asp.find_circuit(e.model, e.task, resume=e.folder / "saved" / "model.safetensors"),
            lambda e: asp.find_circuit(e.model, e.task, executor="processes"),
        ),
        cost=100,
    ),
    "asp.load_circuit": uses(
        lambda e: asp.load_circuit(e.folder / "circuit"),
        wrong=(lambda e: asp.load_circuit(e.folder / "none"),),
        cost=40,
    ),
    # --- effects
    "effects.metric_values": uses(
        *(lambda e, m=m: effects.metric_values(e.model, e.task, metric=m) for m in (*effects.METRICS, OWN)),
        wrong=(
            lambda e: effects.metric_values(e.model, e.task, metric="x"),
            lambda e: effects.metric_values(e.model, e.task, metric=FAILING.custom),
        ),
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
        lambda e: effects.knock_out(e.model, e.task, [[0, 0], [1, 3]], resume=e.folder / "knock-out"),
        wrong=(
            lambda e: effects.knock_out(e.model, e.task, [[0, 9]]),
            lambda e: effects.knock_out(e.model, e.task, [[0, 0]], executor="processes"),
            lambda e: effects.knock_out(e.model, e.task, [[0, 0, 3, 4]]),
            lambda e: effects.knock_out(e.model, e.task, [[0, 0]], "mean", reference=PROMPTS),
        ),
        cost=40,
    ),
    "effects.keep_only": uses(
        lambda e: effects.keep_only(e.model, e.task, e.edges, [0, 3, 9], "mean"),
        lambda e: effects.keep_only(e.model, e.task, e.edges, [0, 3], resume=e.folder / "keep-only"),
        wrong=(lambda e: effects.keep_only(e.model, e.task, e.edges[:2], [3]),),
        cost=40,
    ),
    "effects.leave_one_out": uses(
        lambda e: effects.leave_one_out(e.model, e.task, [[0, 1], [1, 2]]),
        lambda e: effects.leave_one_out(e.model, e.task, [[0, 1]], resume=e.folder / "leave-one-out"),
        wrong=(lambda e: effects.leave_one_out(e.model, e.task, [[0, 1], [0, 1]]),),
        cost=5,
    ),
    "circuits.component_scores": uses(
        *(lambda e, m=m: component_scores(e.model, e.task, method=m, steps=2) for m in COMPONENT_METHODS),
        lambda e: component_scores(e.dense, e.task, ablation="mean-positional", level="neuron", metric="kl"),
        lambda e: component_scores(e.model, e.task, level="node", gate="held", direction="denoising"),
        lambda e: component_scores(e.model, e.task, level="node", mlp_gradient="input"),
        lambda e: component_scores(e.model, e.task, ablation="mean", reference=PROMPTS, metric=OWN),
        wrong=(
            lambda e: component_scores(e.model, e.task, method="x"),
            lambda e: component_scores(e.model, e.task, method="clean-corrupted", ablation="zero"),
            lambda e: component_scores(e.model, e.task, metric=FAILING.custom),
            lambda e: component_scores(e.model, e.task, max_bytes=1000),
            lambda e: component_scores(e.model, e.task, mlp_gradient="input"),
            lambda e: component_scores(e.model, e.task, executor=3),
            lambda e: component_scores(e.model, e.task, ablation="mean-positional", reference=[[1]]),
        ),
        cost=40,
    ),
    **PATCHING_CALLS,
    **ENTRY_CALLS,
    **ACDC_CALLS,
    **MASK_CALLS,
    **PIECES_CALLS,
    "effects.attribution": uses(
        *(lambda e, u=u: effects.attribution(e.model, e.task, u, "mean", steps=2) for u in effects.UNITS),
        lambda e: effects.attribution(e.model, e.task, "edge", path="gate"),
        lambda e: effects.attribution(e.model, e.task, "head", metric=OWN),
        lambda e: effects.attribution(e.model, e.task, "head", resume=e.folder / "attribution"),
        wrong=(
            lambda e: effects.attribution(e.dense, e.task, "edge", path="gate"),
            lambda e: effects.attribution(e.model, e.task, "head", metric=FAILING.custom),
        ),
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
    "Model.evaluate": uses(
        lambda e: e.model.evaluate(PROMPTS, batch=2), wrong=(lambda e: e.model.evaluate([[1]]),), cost=40
    ),
    "Model.to_bytes": uses(lambda e: e.model.to_bytes(), cost=40),
    "Model.from_bytes": uses(
        lambda e: asp.Model.from_bytes(e.model.to_bytes()),
        wrong=(
            lambda e: asp.Model.from_bytes(b"no model"),
            lambda e: asp.Model.from_bytes("text"),
            lambda e: asp.Model.from_bytes(e.model.to_bytes()[:-1]),
        ),
        cost=40,
    ),
    "Model.initialised": uses(
        lambda e: asp.Model.initialised(e.model.config, 1),
        wrong=(lambda e: asp.Model.initialised(e.model.config, 1, std="wide"),),
        cost=40,
    ),
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
        lambda e: e.model.run(
            PROMPTS, ablate=["L0H1", interventions.Ablation("L1H1", "counterfactual", PROMPTS)], threads=1
        ),
        lambda e: e.model.run(PROMPTS, patch={asp.Mlp(1, 0): asp.Add(np.ones(64))}, threads=1),
        lambda e: e.model.run(PROMPTS, freeze=["pattern", "ln_scale"], ablate="L0H1", threads=1),
        lambda e: e.model.run(TOKENS, freeze={"gate": e.one, "pattern": e.one}, threads=1),
        wrong=(
            lambda e: e.model.run(TOKENS, ablate=["L0H9"]),
            lambda e: e.model.run(TOKENS, freeze="z"),
            lambda e: e.model.run(TOKENS, freeze={"gate": e.plain}),
            lambda e: e.core.run(TOKENS, np.array([0, 8]), (), frozen=Frozen(e.plain)),
            lambda e: e.core.run(TOKENS, np.array([0, 8]), (), frozen=Frozen(e.plain._core, 3)),
            lambda e: e.model.run(TOKENS, patch={asp.Mlp(0): np.zeros(3)}),
            lambda e: e.model.run([96]),
            lambda e: e.model.run(TOKENS, max_bytes=1000),
            lambda e: e.model.run(TOKENS, record="nothing"),
            lambda e: e.core.run(TOKENS, np.array([0, 5]), ()),
            lambda e: e.core.run(TOKENS + 100, np.array([0, 8]), ()),
        ),
        cost=5,
    ),
    "Model.generate": uses(
        lambda e: e.model.generate(PROMPTS, 3, logits=True, threads=1),
        lambda e: e.model.generate(
            TOKENS, 3, temperature=1.0, top_k=9, top_p=0.8, n_samples=2, ablate=["L0H1", asp.Mlp(1)]
        ),
        lambda e: e.model.generate(
            PROMPTS, 3, freeze=["pattern", "ln_scale"], hooks=[(bool, lambda value, hook: None)], threads=1
        ),
        wrong=(
            lambda e: e.model.generate(TOKENS, 3, temperature=0),
            lambda e: e.model.generate(TOKENS, 10**6),
            lambda e: e.model.generate(TOKENS, 3, max_bytes=1000),
            lambda e: e.model.generate(TOKENS, 3, ablate=["L0H9"]),
            lambda e: e.model.generate(TOKENS, 3, hooks=[("hook_embed", lambda value, hook: value[0])]),
        ),
        cost=5,
    ),
    "Model.run_with_cache": uses(
        lambda e: e.model.run_with_cache(TOKENS, "hook_embed"),
        lambda e: e.model.run_with_cache(
            TOKENS, "hook_embed", ablate="L0H1", patch={asp.Mlp(1): np.ones((8, 64))}
        ),
        lambda e: e.model.run_with_cache(TOKENS, "hook_embed", stop_at_layer=1),
        wrong=(
            lambda e: e.model.run_with_cache(TOKENS, stop_at_layer=99),
            lambda e: e.model.run_with_cache(PROMPTS),
            lambda e: e.model.run_with_cache(TOKENS, "x"),
            lambda e: e.model.run_with_cache(TOKENS, ablate="L0H9"),
        ),
        cost=5,
    ),
    "Model.run_with_hooks": uses(
        lambda e: e.model.run_with_hooks(TOKENS, [(("z", 1), lambda value, hook: value * 2)], threads=1),
        lambda e: e.model.run_with_hooks(PROMPTS, [(bool, lambda value, hook: None)], "none", threads=1),
        wrong=(
            lambda e: e.model.run_with_hooks(TOKENS, [("hook_x", print)]),
            lambda e: e.model.run_with_hooks(TOKENS, [("hook_embed", lambda value, hook: value[0])]),
            lambda e: e.core.run(
                TOKENS, np.array([0, 8]), (), functions=Functions(np.zeros(9, np.int32), print)
            ),
            lambda e: e.core.run(TOKENS, np.array([0, 8]), (), functions=UNFINISHED),
        ),
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
    "Run.open_edges": uses(
        lambda e: e.one.open_edges(),
        lambda e: e.ragged.open_edges(0.1, base=1),
        wrong=(lambda e: e.plain.open_edges(), lambda e: e.ragged.open_edges(-1)),
        cost=40,
    ),
    "Run.heads": uses(
        lambda e: e.one.heads(1, -1),
        lambda e: e.ragged.heads(0, -1, logit_diff=(1, 2)),
        wrong=(lambda e: e.one.heads(5, 99), lambda e: e.ragged.heads(0, 99)),
        cost=40,
    ),
    "Run.to_html": uses(
        lambda e: e.one.to_html(),
        lambda e: e.one.to_html(circuit=e.circuit, effects=(5, 7), n_effects=3, progress=False),
        lambda e: e.one.to_html(beside=e.dense.run(TOKENS), effects=e.task, n_effects=2, progress=False),
        wrong=(lambda e: e.plain.to_html(), lambda e: e.one.to_html(beside=e.ragged)),
        cost=100,
    ),
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
    **GRAPH_CALLS,
    # --- Trainer
    "asp.Trainer": uses(
        lambda e: asp.Trainer(e.trained, e.data, steps=2, tau=1.0),
        wrong=(
            lambda e: asp.Trainer(e.trained, e.data, steps=0),
            lambda e: asp.Trainer(e.trained, e.data, steps=2),
            lambda e: asp.Trainer(e.dense, e.data, steps=2, comm=3),
        ),
        cost=40,
    ),
    "Trainer.step": uses(
        lambda e: asp.Trainer(e.dense, e.data, steps=2, threads=1).step(),
        wrong=(lambda e: asp.Trainer(e.dense, None, steps=2).step(),),
        cost=40,
    ),
    "Trainer.train": uses(lambda e: e.trainer.train(progress=False, until=1), cost=40),
    "Trainer.history": uses(lambda e: e.trainer.history(), cost=40),
    "Trainer.save": uses(
        lambda e: e.trainer.save(e.folder / "again.safetensors"),
        wrong=(lambda e: e.trainer.save(e.folder / "none" / "again.safetensors"),),
        cost=40,
    ),
    "Trainer.resume": uses(
        lambda e: asp.Trainer.resume(e.folder / "saved.safetensors", e.data),
        wrong=(lambda e: asp.Trainer.resume(e.folder / "saved" / "config.json", e.data),),
        cost=40,
    ),
    "Trainer.best": uses(lambda e: e.trainer.best),
    "Trainer.finished": uses(lambda e: e.trainer.finished),
    "Trainer.multiplier": uses(lambda e: e.trainer.multiplier),
    "Trainer.step_count": uses(lambda e: e.trainer.step_count),
    # --- ActivationCache
    "cache.ActivationCache": uses(lambda e: cache.ActivationCache(e.even, ["hook_embed"])),
    "ActivationCache.get": uses(lambda e: e.cache.get("blocks.1.attn.hook_pattern")),
    "ActivationCache.items": uses(lambda e: dict(e.short_cache.items())),
    "ActivationCache.keys": uses(lambda e: list(e.cache.keys())),
    "ActivationCache.values": uses(lambda e: list(e.short_cache.values())),
    **LENS_CALLS,
    **CORE_CALLS,
    **COMPONENT_CALLS,
}

EFFECTS = [name for name in effects.__all__ if name[0].islower()]
GRAPH_TABLES = (
    "check", "heads", "incoming", "influence", "links", "nodes", "nodes_of", "origin", "outgoing",
    "score_pairs", "select", "splits", "summary", "to_pandas",
)  # fmt: skip
CORE_GRAPH_RESULTS = ("influence", "prune", "total_influence", "drivers", "flows", "profile")
_RUN_ARRAYS = [name for name in run.CORE_NAMES if name != "loss"]
CORE_EFFECTS = (
    "candidates", "whole", "knock_out", "keep_only", "leave_one_out", "attribution",
    "component_scores", "component_senders_before", "component_values", "component_exact", "patching_sweep",
    "path_values",
)  # fmt: skip
#: names whose results hold arrays: "lent" by the core (or by the run: tokens), or their "own"
ARRAYS: dict[str, str] = {
    **LENS_ARRAYS,
    **dict.fromkeys([f"Run.{name}" for name in (*_RUN_ARRAYS, "logits", "tokens")], "lent"),
    **dict.fromkeys([f"Gradients.{name}" for name in (*gradients.ACTIVATIONS, "parameters")], "lent"),
    **dict.fromkeys(["Model.parameter", "Model.parameters", "Model.run_with_cache"], "lent"),
    **dict.fromkeys(["ActivationCache.get", "ActivationCache.items", "ActivationCache.values"], "lent"),
    **dict.fromkeys(["_core.Model.parameter", "_core.Run.array", "_core.Run.edges"], "lent"),
    **dict.fromkeys(["_core.Gradients.array", "_core.Gradients.parameter", "_core.Trainer.moments"], "lent"),
    **dict.fromkeys(["_core.Trainer.gradients", "_core.Trainer.slice_moments"], "lent"),
    "_core.Trainer.combine": "own",
    **dict.fromkeys(["_core.Features.array", *(f"Features.{name}" for name in FEATURE_ARRAYS)], "lent"),
    **dict.fromkeys(["Features.l0", "Features.explained_variance", "Features.to_pandas"], "own"),
    "Transcoders.evaluate": "own",
    **dict.fromkeys([f"Graph.{name}" for name in (*GRAPH_ARRAYS, *GRAPH_TABLES)], "own"),
    **dict.fromkeys([f"Graph.{name}" for name in CORE_GRAPH_ARRAYS if name != "kind"], "lent"),
    **dict.fromkeys(["_core.Graph.array", "Graph.incoming", "Graph.pattern"], "lent"),
    **dict.fromkeys([f"_core.Graph.{name}" for name in CORE_GRAPH_RESULTS], "own"),
    "_core.CoderTrainer.array": "lent",
    "_core.Contexts.array": "lent",
    **dict.fromkeys([f"_core.graph_{name}" for name in ("between", "shares", "entries", "moved")], "own"),
    **dict.fromkeys(["_core.graph_pairs", "_core.graph_largest_pairs"], "own"),
    **dict.fromkeys(
        ["_core.CoderTrainer.scaled", "_core.Model.promoted_tokens", "_core.token_losses"], "own"
    ),
    **dict.fromkeys([f"_core.first_weights_from_{name}" for name in ("text", "set")], "own"),
    **dict.fromkeys(["Run.value_norms", "Run.entry_scores", "Run.edge_arrays"], "own"),
    **dict.fromkeys([f"circuits.component_{name}" for name in ("scores", "values", "circuit")], "own"),
    **dict.fromkeys(
        [
            *(
                f"ComponentCircuit.{name}"
                for name in (
                    "evaluate",
                    "from_json",
                    "from_mib",
                    "from_prune_scores",
                    "masks",
                    "roc",
                    "to_mib",
                )
            ),
            *(f"circuits.{name}" for name in ("find_component_circuit", "node_circuit", "node_values")),
            "ComponentScores.from_mib",
            "_core.Model.component_neuron_values",
            *(f"NodeCircuit.{name}" for name in ("evaluate", "from_json", "masks")),
        ],
        "own",
    ),
    "circuits.load_component_circuit": "own",
    **dict.fromkeys(
        [
            f"_core.component_{name}"
            for name in ("order", "select", "select_neurons", "best", "prune", "roc", "areas")
        ],
        "own",
    ),
    **dict.fromkeys([f"effects.{name}" for name in EFFECTS], "own"),
    **dict.fromkeys(["circuits.patching_sweep", "circuits.path_patch", "graphs.table", *ENTRY_CALLS], "own"),
    **dict.fromkeys(
        [
            "circuits.component_acdc",
            "circuits.component_acdc_sweep",
            "_core.Model.component_acdc",
            *MASK_CALLS,
        ],
        "own",
    ),
    **dict.fromkeys([f"_core.metric_{name}" for name in ("values", "gradients")], "own"),
    **dict.fromkeys(
        [f"_core.curve_{name}" for name in ("effect", "bootstrap", "band", "shares", "needed")], "own"
    ),
    **dict.fromkeys([f"_core.Model.{name}" for name in CORE_EFFECTS], "own"),
    **dict.fromkeys(["_core.Circuit.state", "_core.Run.mean_entries"], "own"),
    "_core.Circuit.array": "lent",
    **dict.fromkeys([f"_core.Model.graph_{name}" for name in ("edges", "logits", "build")], "own"),
    **dict.fromkeys(
        [f"_core.graph_{name}" for name in ("loadings", "factors", "within", "writes", "likely")], "own"
    ),
    **dict.fromkeys(["Run.open_edges", "Run.heads", "Trainer.history"], "own"),
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
        for kind in (asp.Ablation, asp.Add, asp.HeadPosition, asp.Mlp, asp.Resid)
    },
    "asp.Group": "made by group_nodes; arrays of NumPy's own; see test_graph_groups.py",
    "asp.Graph": "made by attribution_graph",
    **{
        f"Graph.{name}": "writes files or text; Python and NumPy alone"
        for name in ("save", "show", "to_html", "to_neuronpedia")
    },
    "asp.Circuit": "made by find_circuit, of arrays that _core.Circuit lends; see test_circuit.py",
    **{
        f"asp.{name}": "an exception"
        for name in asp.__all__
        if inspect.isclass(getattr(asp, name)) and issubclass(getattr(asp, name), Exception)
    },
    **{
        f"asp.{name}": "Python and NumPy alone; see test_train.py"
        for name in ("SequenceData", "TokenData", "TrainingOptions", "TranscoderOptions")
    },
    "asp.sweep": "find_circuit and files; see test_sweep.py",
    "asp.sweep_status": "Python and pyarrow alone; see test_sweep.py",
    "asp.TextData": "Python, NumPy and tokenizers alone; see test_text_data.py",
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
    **{f"asp.{name}": "a package" for name in asp.__all__ if inspect.ismodule(getattr(asp, name))},
    "asp.Run": "made by Model.run",
    "Run.show": "to_html and a temporary file or a cell; see test_attention_page.py",
    "Run.widget": "needs anywidget; see test_widget.py",
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
    found |= {"model.FactoredMatrix"}
    found |= {f"Graph.{name}" for name in GRAPH_ARRAYS} | {"circuits.component_scores"}
    found |= {name for name in (*COMPONENT_CALLS, *MASK_CALLS) if not name.startswith("_core")}
    found |= {
        f"circuits.{name}"
        for name in ("component_acdc", "component_acdc_sweep", "patching_sweep", "path_patch")
    }
    found |= {"graphs.table", *ENTRY_CALLS}
    found |= {f"_core.{name}" for name in dir(_core) if not name.startswith("_")}
    for label in CORE_CLASSES:
        found |= {f"_core.{label}.{name}" for name in dir(getattr(_core, label)) if not name.startswith("_")}
    return found
