"""Right and wrong uses of ACDC; see public_calls.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from public_calls_core import asked
from public_calls_curves import FAILING, OWN
from public_objects import Uses, uses
from reliability import PROMPTS

from attnsparse._core_types import ComponentOptions
from attnsparse.circuits import component_acdc, component_acdc_sweep


def find(
    e: Any, threshold: Any = 1.0, max_bytes: Any = 2**40, ablation: str = "counterfactual", **others: Any
):
    """By the core."""
    state, keep = others.pop("state", None), others.pop("keep", None)
    options = ComponentOptions("eap", "edge", ablation, 1, False, True, False, max_bytes)
    return e.core.component_acdc(asked(e, **others)[0], threshold, options, state=state, keep=keep)


class Keeping:
    """Keeps every state, and forgets it."""

    def due(self) -> bool:
        return True

    def write(self, state: np.ndarray) -> None:
        assert state.dtype == np.int64


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
            lambda e: component_acdc(e.model, e.task, 0.5, resume=e.folder / "none" / "a"),
        ),
        cost=40,
    ),
    "circuits.component_acdc_sweep": uses(
        lambda e: component_acdc_sweep(e.model, e.task, [0.5, 1]).to_pandas(),
        lambda e: component_acdc_sweep(e.dense, e.task, [0.5], ablation="mean", evaluation=e.task),
        wrong=(
            lambda e: component_acdc_sweep(e.model, e.task, [1, 0.5]),
            lambda e: component_acdc_sweep(e.model, e.task, []),
            lambda e: component_acdc_sweep(e.model, e.task, [0.5], evaluation=3),
        ),
        cost=40,
    ),
    "_core.Model.component_acdc": uses(
        lambda e: find(e),
        lambda e: find(e, ablation="zero"),
        lambda e: find(e, keep=Keeping()),
        wrong=(
            lambda e: find(e, "x"),
            lambda e: find(e, max_bytes="x"),
            lambda e: find(e, max_bytes=1000),
            lambda e: find(e, corrupted=None),
            lambda e: e.core.component_acdc(3, 1.0, None),
            lambda e: find(e, state=np.zeros(3, np.int64)),
            lambda e: find(e, keep=3),
        ),
        cost=40,
    ),
}
