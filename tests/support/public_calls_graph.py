"""Uses of transcoders, features and graphs; a part of public_calls.py."""

from __future__ import annotations

from public_objects import Uses, small_transcoders, uses
from reliability import PROMPTS, TOKENS

import attnsparse as asp

FEATURE_ARRAYS = ("layer", "position", "feature", "activation", "start", "reconstruction", "error")
GRAPH_ARRAYS = (
    "tokens", "layer", "position", "feature", "value", "probability", "start", "source", "weights", "pattern",
    "carried", "received", "received_alone", "targets", "logits",
)  # fmt: skip
GRAPH_VALUES = ("ids", "n_features", "has_heads", "pruned", "version")

GRAPH_CALLS: dict[str, Uses] = {
    # --- Transcoders and Features
    "asp.Transcoders": uses(
        lambda e: small_transcoders(activation="topk", top_k=3),
        wrong=(
            lambda e: asp.Transcoders(None),
            lambda e: asp.Transcoders(e.transcoders.source, activation="gelu"),
        ),
    ),
    "asp.ArraySource": uses(
        lambda e: small_transcoders().source, wrong=(lambda e: asp.ArraySource([1], [1], [1], [1]),)
    ),
    "asp.train_transcoders": uses(
        lambda e: asp.train_transcoders(e.dense, e.data, steps=1, n_features=20, threads=1),
        lambda e: asp.train_transcoders(e.dense, e.data, steps=1, n_features=20, cross_layer=True),
        wrong=(
            lambda e: asp.train_transcoders(e.dense, e.data, steps=0),
            lambda e: asp.train_transcoders(e.dense, None, steps=1),
        ),
        cost=200,
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
        lambda e: e.transcoders.replacement_run(
            e.model,
            TOKENS,
            errors=e.features,
            changes={(0, 1): 2.0, (1, 2, -1): 1.0},
            constrained_layers=[0],
            freeze=("pattern", "gate", "ln_scale"),
        ),
        wrong=(
            lambda e: e.transcoders.replacement_run(e.model, TOKENS, record="mlp_pre"),
            lambda e: e.transcoders.replacement_run(e.model, TOKENS, changes={(0, -1): 2.0}),
            lambda e: e.transcoders.replacement_run(e.model, TOKENS, constrained_layers=[0]),
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
    "Transcoders.steer": uses(
        lambda e: e.transcoders.steer({(0, 1): 1.0, (1, 2, -1): 2.0}),
        lambda e: e.model.run(
            TOKENS, patch=e.transcoders.steer({(0, 1): 1.0, (1, 2, -1): 2.0}, "set"), threads=1
        ),
        lambda e: e.model.generate(TOKENS, 2, patch=e.transcoders.steer({(1, 3): 0.5}, "scale"), threads=1),
        wrong=(
            lambda e: e.transcoders.steer({(0, 1): 1.0}, "double"),
            lambda e: e.model.run(TOKENS, patch=e.transcoders.steer({(0, 1, 99): 1.0})),
        ),
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
    # --- graphs
    "asp.group_nodes": uses(
        lambda e: asp.group_nodes(e.graph, {"a": {"position": 1}, "b": e.graph.logits.tolist()}),
        wrong=(lambda e: asp.group_nodes(e.graph, {"a": {"position": 1}, "b": {"position": 1}}),),
    ),
    "asp.token_groups": uses(lambda e: asp.token_groups(e.graph), cost=40),
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
    "graphs.table": uses(
        lambda e: asp.graphs.table([e.graph, e.graph], texts=True),
        lambda e: asp.graphs.table({"a": e.graph}, "nodes"),
        lambda e: asp.graphs.table(e.graph, "links"),
        wrong=(
            lambda e: asp.graphs.table([]),
            lambda e: asp.graphs.table([3]),
            lambda e: asp.graphs.table(e.graph, "heads"),
        ),
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
    **{
        f"Graph.{name}": uses(lambda e, n=name: getattr(e.graph, n))
        for name in (*GRAPH_ARRAYS, *GRAPH_VALUES)
    },
    **{
        f"Graph.{name}": uses(lambda e, n=name: getattr(e.graph, n)(), cost=40) for name in ("links", "nodes")
    },
    "Graph.influence": uses(lambda e: e.pruned.influence),
    "Graph.splits": uses(lambda e: e.graph.splits),
    "Graph.origin": uses(lambda e: e.graph.origin[1]),
    "Graph.check": uses(
        lambda e: e.graph.check(e.graph.select("feature")[:2]),
        lambda e: e.graph.check(entries=["a1.h2[3->7]"]),
        wrong=(lambda e: e.pruned.check("bias"), lambda e: e.graph.check(entries=["a1.h2[3->6]"])),
        cost=40,
    ),
    "Graph.weight": uses(
        lambda e: e.graph.weight("bias", e.graph.logits[0]),
        wrong=(lambda e: e.graph.weight("no", 0),),
        cost=5,
    ),
    "Graph.total": uses(
        lambda e: e.graph.total(0, e.graph.logits[0]), wrong=(lambda e: e.graph.total(0, 10**6),), cost=5
    ),
    "Graph.heads": uses(
        lambda e: e.graph.heads(0, e.graph.logits[0]),
        lambda e: e.graph.heads("bias", e.graph.logits[0], through="features"),
        wrong=(lambda e: e.graph.heads(0, 1, through="no"),),
        cost=40,
    ),
    "Graph.incoming": uses(
        lambda e: e.graph.incoming(e.graph.logits[0]), wrong=(lambda e: e.graph.incoming("no"),)
    ),
    "Graph.outgoing": uses(lambda e: e.graph.outgoing("bias"), wrong=(lambda e: e.graph.outgoing(10**6),)),
    "Graph.needed_heads": uses(lambda e: e.graph.needed_heads(0, e.graph.logits[0]), cost=5),
    "Graph.node": uses(lambda e: e.graph.node("bias"), wrong=(lambda e: e.graph.node("no"),)),
    "Graph.nodes_of": uses(
        lambda e: e.graph.nodes_of(["bias", 0]), wrong=(lambda e: e.graph.nodes_of([10**6]),)
    ),
    "Graph.position_of": uses(lambda e: e.graph.position_of(-1), wrong=(lambda e: e.graph.position_of(99),)),
    "Graph.prune": uses(lambda e: e.graph.prune(), wrong=(lambda e: e.graph.prune(2.0),), cost=5),
    "Graph.score_pairs": uses(
        lambda e: e.graph.score_pairs(1, 2, 7, 3),
        wrong=(lambda e: e.graph.score_pairs(1, 9, 7, 3), lambda e: e.pruned.score_pairs(1, 2, 7, 3)),
        cost=40,
    ),
    "Graph.scores": uses(lambda e: e.graph.scores(), cost=5),
    "Graph.select": uses(
        lambda e: e.graph.select("feature", layer=1), wrong=(lambda e: e.graph.select("no"),), cost=5
    ),
    "Graph.summary": uses(lambda e: e.graph.summary(), cost=40),
    "Graph.to_pandas": uses(lambda e: e.graph.to_pandas(), cost=40),
    "Graph.with_labels": uses(lambda e: e.graph.with_labels({(0, 1): "one"}), cost=5),
    "Graph.without_heads": uses(lambda e: e.graph.without_heads()),
}
