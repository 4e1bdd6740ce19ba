"""Uses of effects of an entry over prompts, and of tables of circuits; a part of public_calls.py."""

from __future__ import annotations

from public_objects import Uses, uses

from attnsparse.circuits import component_scores, entry_effects, table

ENTRY_CALLS: dict[str, Uses] = {
    "circuits.entry_effects": uses(
        lambda e: entry_effects(e.model, e.task, 1, -1),
        lambda e: entry_effects({"a": e.model, "b": e.dense}, e.task, [0, 1, 2, 2], -1, ablation="mean"),
        lambda e: entry_effects(e.model, e.task, 1, 3, ablation="counterfactual", base=1, threads=1),
        wrong=(
            lambda e: entry_effects(e.model, e.task, 9, -1),
            lambda e: entry_effects(e.model, e.task, [0], -1),
            lambda e: entry_effects(e.model, e.task, 3, 1),
            lambda e: entry_effects(e.model, e.task, 1, -1, executor=3),
            lambda e: entry_effects(3, e.task, 1, -1),
            lambda e: entry_effects(e.model, e.task, 1, -1, ablation="x"),
            lambda e: entry_effects(e.model, [[1, 2]], 0, -1),
            lambda e: entry_effects(e.model, "text"),
        ),
        cost=100,
    ),
    "circuits.table": uses(
        *(lambda e, of=of: table([e.circuit] * 2, of) for of in ("summary", "items", "curve")),
        wrong=(
            lambda e: table([]),
            lambda e: table([3]),
            lambda e: table(e.circuit, "x"),
            lambda e: table(component_scores(e.model, e.task), "items"),
        ),
        cost=40,
    ),
}
