"""What the core is told about the runs in which circuits of component edges are measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ... import _check
from ..._core_types import ComponentOptions
from ...model.batch import as_batch
from ...model.model import Model
from ...tasks.task import Task
from ..asked import reference_prompts
from . import names


def apart(options: ComponentOptions) -> bool:
    """Whether prompts can be measured without the others: no mean is taken over all of them."""
    return not options.ablation.startswith("mean")


def changed_options(
    model: Model,
    ablation: str,
    direction: str,
    gate: str,
    reference: Task | Iterable[Any] | None,
    max_bytes: int,
    smaller_is_better: bool = False,
) -> ComponentOptions:
    """Options of the core for circuits, checked."""
    _check.choice(ablation, "ablation", names.ABLATIONS)
    _check.choice(direction, "direction", names.DIRECTIONS)
    _check.choice(gate, "gate", names.GATES)
    mean_of = None if reference is None else as_batch(model, reference_prompts(reference), False)
    return ComponentOptions(
        method="eap",
        level="edge",
        ablation=ablation,
        steps=1,
        denoising=direction == "denoising",
        held_gate=gate == "held",
        smaller_is_better=smaller_is_better,
        max_bytes=_check.byte_limit(max_bytes),
        reference=None if mean_of is None else mean_of.tokens,
        reference_offsets=None if mean_of is None else mean_of.offsets,
    )
