"""The metric of circuits of component edges, evaluated exactly."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import _check
from ..._core_types import ComponentOptions
from ..._display import stage_bars
from ...model.model import Model
from ...model.run import DEFAULT_MAX_BYTES
from ...tasks.custom import CustomMetric
from ...tasks.task import Task
from ..asked import packed_task
from ..pieces import CoreWork, Job, cut
from ..resumed import in_values, sweep_question
from . import names
from .options import apart, changed_options


def checked_mask(value: npt.ArrayLike, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Booleans of a shape."""
    mask = np.asarray(value)
    if mask.dtype != np.bool_:
        raise TypeError(f"{name} must be booleans, got {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {mask.shape}")
    return np.ascontiguousarray(mask)


def component_values(
    model: Model,
    task: Task,
    masks: npt.ArrayLike,
    *,
    ablation: str = "counterfactual",
    direction: str = "noising",
    gate: str = "recomputed",
    reference: Task | Iterable[Any] | None = None,
    metric: str | CustomMetric | None = None,
    resume: str | os.PathLike[str] | None = None,
    executor: Any = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Measure the metric of circuits of component edges on every prompt.

    Parameters
    ----------
    model : Model
    task : Task
        A clean prompt and its corrupted prompt have one length; prompts of the task may differ in length.
    masks : array_like of bool
        [n, senders, receivers]: the component edges of each circuit; what is no component edge is not read.
    ablation : str, default "counterfactual"
        What is read over component edges outside the circuit, as in `component_scores`.
    direction : {"noising", "denoising"}, default "noising"
        "noising": the clean prompts, with ablated outputs over component edges outside the circuit.
        "denoising": the corrupted prompts, with clean outputs over those inside. In both the whole model's
        metric is that of the circuit of all component edges.
    gate : {"recomputed", "held"}, default "recomputed"
        In a gated model: whether gates follow from the changed scores, or are those of the unchanged prompts.
    reference : Task or sequence of prompts, optional
        Prompts that means are taken over. Default: the clean prompts of `task`.
    metric : {"logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl"} or CustomMetric, optional
        Default: the task's own.
    resume : path, optional
        File that keeps the circuits that are measured; its name gets the ending .search.safetensors unless it
        ends in .safetensors. It is written about every 30 seconds, on Ctrl-C, and at the end. If it exists,
        the call continues from there and finds the same bits as without the stop. It is not removed. The
        functions of a `CustomMetric` are known by its name alone.
    executor : concurrent.futures.Executor or Dask Client, optional
        Whose workers measure the circuits, in pieces that do not depend on their number: the bits are those
        of a call without. See docs/cluster.md.
    max_bytes : int, default 4 GiB
        What the call may allocate; with less, it takes fewer prompts at a time.
    threads : int, optional
        Default: the number set by `set_num_threads`.
    progress : bool, optional
        Show a bar on stderr. Default: in terminals and notebooks only.

    Returns
    -------
    numpy.ndarray
        float64 [n, prompts].

    Raises
    ------
    ValueError
        For unknown names, masks of another shape, and what an ablation lacks.
    MemoryError
        If even one prompt at a time needs more than `max_bytes`.
    TypeError
        For arguments of another type.
    FormatError
        If the file `resume` is damaged, or with the code question if it is of another call.
    OSError
        If that file cannot be read or written.
    RuntimeError
        For a piece that failed three times in the workers of an executor, unless it is one of the above.
    """
    asked = packed_task(model, task, metric)
    shape = (len(names.senders(model.config)), len(names.receivers(model.config)))
    array = _check.array(masks, "masks")
    if array.ndim != 3:
        raise ValueError(f"masks must have the shape (n, {shape[0]}, {shape[1]}), got {array.shape}")
    options = changed_options(model, ablation, direction, gate, reference, max_bytes)
    array = checked_mask(array, "masks", (len(array), *shape))
    work = CoreWork(model, task.name, "circuits", "component_values", asked, (), array, (options,), threads)
    return measured_circuits(work, task, metric, options, progress, executor, resume)


def measured_circuits(
    work: CoreWork,
    task: Task,
    metric: str | CustomMetric | None,
    options: ComponentOptions,
    progress: bool | None,
    executor: Any,
    resume: str | os.PathLike[str] | None,
) -> np.ndarray:
    """float64 [circuits, prompts]: the values of circuits of component edges or of neurons."""
    masks = work.rows
    assert isinstance(masks, np.ndarray)
    shape = (len(masks), len(task))

    def question() -> dict[str, Any]:
        given = {name: value for name, value in options._asdict().items() if name != "max_bytes"}
        given["method"] = work.stage
        return sweep_question(work.model, task, metric, masks=np.packbits(masks, axis=-1), **given)

    with stage_bars(progress) as tell:
        job = Job(work, cut(*shape, apart(options)), shape)
        return in_values(job, tell, executor, resume, question)
