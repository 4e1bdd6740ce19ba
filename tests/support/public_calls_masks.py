"""Right and wrong uses of masks of component edges; see public_calls.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from public_calls_core import asked
from public_calls_curves import FAILING, OWN
from public_objects import Uses, uses
from reliability import PROMPTS

from attnsparse._core_types import ComponentOptions, MasksOptions
from attnsparse.circuits import component_mask_gradients, component_masks

N_SENDERS, N_RECEIVERS = 1 + 2 * 5, 2 * 13 + 1  # of the model
N_MASKS = N_SENDERS * N_RECEIVERS + N_SENDERS
SOFT = np.linspace(0, 1, 2 * N_SENDERS * N_RECEIVERS).reshape(2, N_SENDERS, N_RECEIVERS)
MEASURE = ComponentOptions("eap", "edge", "counterfactual", 1, False, True, False, 2**40)
TRAINING = MasksOptions(
    measure=MEASURE,
    steps=4,
    batch=2,
    lr=0.1,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.01,
    lr_steps=1,
    lr_falls=True,
    penalty=1.0,
    pruning=True,
    nodes=True,
    sparsity=0.9,
    node_sparsity=0.5,
    sparsity_steps=3,
    multiplier_lr=0.1,
    seed=3,
)


def slopes(e: Any, masks: Any = SOFT, ablation: str = "counterfactual", **task: Any) -> Any:
    options = MEASURE._replace(ablation=ablation)
    return e.core.component_gradients(asked(e, **task)[0], masks, options)


def train(
    e: Any, step: Any = 0, end: Any = 2, n: int = N_MASKS, dtype: Any = None, task: Any = None, **options: Any
) -> Any:
    kind = e.model.dtype if dtype is None else dtype
    parameters, multipliers = np.ones((3, n), kind), np.zeros((3, 4), kind)
    asked_of = asked(e)[0] if task is None else task
    return e.core.component_masks(
        asked_of, step, end, parameters, multipliers, TRAINING._replace(**options)
    )  # fmt: skip


def resumed(e: Any) -> Any:
    path = e.folder / "masks"
    component_masks(e.model, e.task, steps=3, resume=path)
    return component_masks(e.model, e.task, steps=3, resume=path)


MASK_CALLS: dict[str, Uses] = {
    "circuits.component_mask_gradients": uses(
        lambda e: component_mask_gradients(e.model, e.task, SOFT),
        lambda e: component_mask_gradients(e.dense, e.task, SOFT, ablation="mean", metric="kl"),
        lambda e: component_mask_gradients(e.model, e.task, SOFT, direction="denoising", gate="held"),
        wrong=(
            lambda e: component_mask_gradients(e.model, e.task, SOFT[0]),
            lambda e: component_mask_gradients(e.model, e.task, "x"),
            lambda e: component_mask_gradients(e.model, e.task, SOFT * np.nan),
            lambda e: component_mask_gradients(e.model, e.task, SOFT, ablation="x"),
            lambda e: component_mask_gradients(e.model, e.task, SOFT, max_bytes=1000),
            lambda e: component_mask_gradients(e.model, e.task, SOFT, metric=FAILING.custom),
            lambda e: component_mask_gradients(e.model, 3, SOFT),
        ),
        cost=20,
    ),
    "circuits.component_masks": uses(
        lambda e: component_masks(e.model, e.task, steps=3),
        lambda e: component_masks(e.dense, e.task, steps=3, ablation="mean", metric=None, batch_size=1),
        lambda e: component_masks(e.model, e.task, method="edge-pruning", steps=5, node_sparsity=0.5),
        lambda e: component_masks(e.model, e.task, steps=2, metric=OWN),
        resumed,
        wrong=(
            lambda e: component_masks(e.model, e.task, steps=0),
            lambda e: component_masks(e.model, e.task, method="x"),
            lambda e: component_masks(e.model, e.task, node_sparsity=0.5),
            lambda e: component_masks(e.model, e.task, reference=PROMPTS),
            lambda e: component_masks(e.model, e.task, max_bytes=1000),
            lambda e: component_masks(e.model, e.task, metric=FAILING.custom),
            lambda e: component_masks(e.model, 3),
        ),
        cost=60,
    ),
    "_core.Model.component_gradients": uses(
        lambda e: slopes(e),
        lambda e: slopes(e, ablation="zero"),
        wrong=(
            lambda e: slopes(e, 3),
            lambda e: slopes(e, SOFT[:, 1:]),
            lambda e: slopes(e, SOFT.astype(np.float32)),
            lambda e: slopes(e, corrupted=None),
            lambda e: e.core.component_gradients(3, SOFT, None),
        ),
        cost=20,
    ),
    "_core.Model.component_masks": uses(
        lambda e: train(e),
        lambda e: train(e, 2, 4, pruning=False, nodes=False),
        wrong=(
            lambda e: train(e, -1),
            lambda e: train(e, 3, 2),
            lambda e: train(e, 0, 5),
            lambda e: train(e, n=7),
            lambda e: train(e, dtype=np.int32),
            lambda e: train(e, task=3),
            lambda e: train(e, measure=None),
            lambda e: train(e, steps="x"),
            lambda e: train(e, lr=-1.0),
            lambda e: train(e, eps="x"),
            lambda e: train(e, seed=-1),
            lambda e: train(e, sparsity_steps=9),
            lambda e: train(e, pruning=False),
        ),
        cost=20,
    ),
}
