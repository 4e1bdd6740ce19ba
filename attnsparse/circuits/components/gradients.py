"""The metric with masks of component edges between 0 and 1, and its gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import _check
from ..._display import stage_bars
from ...model.model import Model
from ...model.run import DEFAULT_MAX_BYTES
from ...tasks.custom import CustomMetric
from ...tasks.task import Task
from ..asked import packed_task
from . import names
from .options import changed_options


def component_mask_gradients(
    model: Model,
    task: Task,
    masks: npt.ArrayLike,
    *,
    ablation: str = "counterfactual",
    direction: str = "noising",
    gate: str = "recomputed",
    reference: Task | Iterable[Any] | None = None,
    metric: str | CustomMetric | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
    progress: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Measure the metric with masks of component edges, and its gradient with respect to the masks.

    Over a component edge a receiver reads the ablated output plus the mask times what the current output
    differs by; with direction="denoising", the clean output plus 1 minus the mask times that. With masks of 0
    and 1 these are the circuits of `component_values`.

    Parameters
    ----------
    model : Model
    task : Task
        A clean prompt and its corrupted prompt have one length; prompts of the task may differ in length.
    masks : array_like of float
        [n, senders, receivers]: usually in 0..1; what is no component edge is not read.
    ablation, direction, gate, reference
        As in `component_values`. No gradient goes through a gate.
    metric : {"logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl"} or CustomMetric, optional
        Default: the task's own. A custom metric needs a gradient.
    max_bytes : int, default 4 GiB
        What the call may allocate; with less, it takes fewer prompts at a time.
    threads : int, optional
        Default: the number set by `set_num_threads`.
    progress : bool, optional
        Show a bar on stderr. Default: in terminals and notebooks only.

    Returns
    -------
    tuple of numpy.ndarray
        float64 [n, prompts], the metric, and float64 [n, senders, receivers], the gradient of its mean over
        the prompts; 0 where there is no component edge.

    Raises
    ------
    ValueError
        For unknown names, masks of another shape or not finite, what an ablation lacks, and a metric without
        a gradient.
    MemoryError
        If even one prompt at a time needs more than `max_bytes`.
    TypeError
        For arguments of another type.
    """
    asked = packed_task(model, task, metric)
    shape = (len(names.senders(model.config)), len(names.receivers(model.config)))
    array = np.ascontiguousarray(_check.reals(masks, "masks", np.float64))
    if array.ndim != 3 or array.shape[1:] != shape:
        raise ValueError(f"masks must have the shape (n, {shape[0]}, {shape[1]}), got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("masks must be finite")
    options = changed_options(model, ablation, direction, gate, reference, max_bytes)
    with stage_bars(progress) as tell:
        found: tuple[np.ndarray, np.ndarray] = model._core.component_gradients(
            asked, array, options, _check.threads(threads), tell
        )
    return found
