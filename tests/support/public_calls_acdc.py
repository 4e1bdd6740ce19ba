"""Right and wrong uses of ACDC; see public_calls.py."""

from __future__ import annotations

from typing import Any

from public_calls_core import asked
from public_calls_curves import FAILING, OWN
from public_objects import Uses, uses
from reliability import PROMPTS

from attnsparse._core_types import ComponentOptions
from attnsparse.circuits import component_acdc


def find(e: Any, threshold: Any = 1.0, max_bytes: Any = 2**40, ablation: str = "counterfactual", **task: Any):
    """By the core."""
    options = ComponentOptions("eap", "edge", ablation, 1, False, True, False, max_bytes)
    return e.core.component_acdc(asked(e, **task)[0], threshold, options)


ACDC_CALLS: dict[str, Uses] = {
    "circuits.component_acdc": uses(
        lambda e: component_acdc(e.model, e.task, 0.5),
        lambda e: component_acdc(e.dense, e.task, 0.5, ablation="mean", metric=None, prune=False),
        lambda e: component_acdc(e.model, e.task, 0.5, gate="held", metric=OWN),
        wrong=(
            lambda e: component_acdc(e.model, e.task, -1),
            lambda e: component_acdc(e.model, e.task, 0.5, ablation="x"),
            lambda e: component_acdc(e.model, e.task, 0.5, reference=PROMPTS),
            lambda e: component_acdc(e.model, e.task, 0.5, max_bytes=1000),
            lambda e: component_acdc(e.model, e.task, 0.5, metric=FAILING.custom),
            lambda e: component_acdc(e.model, 3, 0.5),
        ),
        cost=40,
    ),
    "_core.Model.component_acdc": uses(
        lambda e: find(e),
        lambda e: find(e, ablation="zero"),
        wrong=(
            lambda e: find(e, "x"),
            lambda e: find(e, max_bytes="x"),
            lambda e: find(e, max_bytes=1000),
            lambda e: find(e, corrupted=None),
            lambda e: e.core.component_acdc(3, 1.0, None),
        ),
        cost=40,
    ),
}
