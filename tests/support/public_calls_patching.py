"""Right and wrong uses of patching sweeps and of path patching; see public_calls.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from public_calls_core import asked
from public_calls_curves import FAILING, OWN
from public_objects import Uses, uses

from attnsparse.circuits import patching_sweep, path_patch
from attnsparse.circuits.components import patching as patching

KINDS = (*patching.LAYER_KINDS, *patching.HEAD_KINDS)
N_SENDERS, N_RECEIVERS, N_TOKENS = 1 + 2 * 5, 2 * 13 + 1, 32  # of the model and the task
SENDERS, RECEIVERS = np.ones((2, N_SENDERS), bool), np.ones((2, N_RECEIVERS), bool)
POSITIONS = np.arange(N_TOKENS) % 2 == 0


def sweep(
    e: Any, kind: str = "resid", by_position: bool = True, max_bytes: Any = 2**40, **others: Any
) -> Any:
    layers = others.pop("layers", None)
    return e.core.patching_sweep(
        asked(e, **others)[0], kind, by_position, True, False, layers, None, max_bytes
    )


def values(
    e: Any, senders: Any = SENDERS, receivers: Any = RECEIVERS, positions: Any = None, **task: Any
) -> Any:
    return e.core.path_values(asked(e, **task)[0], senders, receivers, positions, False, True, 2**40)


PATCHING_CALLS: dict[str, Uses] = {
    "circuits.patching_sweep": uses(
        *(lambda e, k=k: patching_sweep(e.model, e.task, k) for k in KINDS),
        lambda e: patching_sweep(e.dense, e.task, "q", by=("layer", "position", "head"), metric="kl"),
        lambda e: patching_sweep(e.model, e.task, "mlp_out", direction="noising", metric=OWN),
        lambda e: patching_sweep(e.model, e.task, "k", gate="held", layers=[0]),
        wrong=(
            lambda e: patching_sweep(e.model, e.task, "x"),
            lambda e: patching_sweep(e.model, e.task, "z", by=("layer", "position")),
            lambda e: patching_sweep(e.model, e.task, "resid", max_bytes=1000),
            lambda e: patching_sweep(e.model, e.task, "resid", metric=FAILING.custom),
            lambda e: patching_sweep(e.model, 3, "resid"),
            lambda e: patching_sweep(e.model, e.task, "resid", layers=[99]),
        ),
        cost=40,
    ),
    "circuits.path_patch": uses(
        lambda e: path_patch(e.model, e.task, None, "logits", each="senders"),
        lambda e: path_patch(e.dense, e.task, ["m0"], ["a1.h0", "m1"], positions=[0, -1], metric="kl"),
        lambda e: path_patch(
            e.model, e.task, "a0.h1", "a1.h0", direction="denoising", gate="held", metric=OWN
        ),
        wrong=(
            lambda e: path_patch(e.model, e.task, "x", "logits"),
            lambda e: path_patch(e.model, e.task, "m0", 3),
            lambda e: path_patch(e.model, e.task, "m0", "logits", positions=[8]),
            lambda e: path_patch(e.model, e.task, "m0", "logits", max_bytes=1000),
            lambda e: path_patch(e.model, e.task, "m0", "logits", metric=FAILING.custom),
        ),
        cost=40,
    ),
    "_core.Model.patching_sweep": uses(
        lambda e: sweep(e),
        lambda e: sweep(e, "pattern", False),
        lambda e: sweep(e, "q", layers=np.array([1])),
        wrong=(
            lambda e: sweep(e, "x"),
            lambda e: sweep(e, max_bytes="x"),
            *(lambda e, n=n: sweep(e, layers=np.array(n, np.int64)) for n in ([], [1, 0], [9])),
            lambda e: sweep(e, corrupted=None),
            lambda e: e.core.patching_sweep(3, "z", True, True, False, None, None, 2**40),
        ),
        cost=5,
    ),
    "_core.Model.path_values": uses(
        lambda e: values(e),
        lambda e: values(e, positions=np.ones(len(asked(e)[0].tokens), bool)),
        wrong=(
            lambda e: values(e, SENDERS[:1]),
            lambda e: values(e, SENDERS[:, 1:]),
            lambda e: values(e, receivers=3),
            lambda e: values(e, positions=POSITIONS[:3]),
            lambda e: values(e, corrupted=None),
        ),
        cost=5,
    ),
}
