"""ACDC: a circuit of component edges, found by taking them away one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import _check
from ..._display import stage_bars
from ..._engine import core_for
from ...model.model import Model
from ...model.run import DEFAULT_MAX_BYTES
from ...tasks.custom import CustomMetric, chosen_metric, metric_name, smaller_is_better
from ...tasks.task import Task
from ..asked import packed_task
from . import file as component_file
from . import names
from .circuit import ComponentCircuit
from .options import changed_options
from .search import kept_search
from .values import component_values

if TYPE_CHECKING:
    import pandas as pd

_CORE = core_for("float64")


def component_acdc(
    model: Model,
    task: Task,
    threshold: float,
    *,
    prune: bool = True,
    ablation: str = "counterfactual",
    gate: str = "recomputed",
    reference: Task | Iterable[Any] | None = None,
    metric: str | CustomMetric | None = "kl",
    resume: str | os.PathLike[str] | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
    progress: bool | None = None,
) -> ComponentCircuit:
    """Find a circuit by taking component edges away as long as the metric bears it (ACDC).

    All component edges are asked once: receivers from the logits down to the first layer (of a layer the MLP,
    then all v, all k and all q, the last head first), and of each receiver the senders from the last to the
    first. A component edge goes if the metric, averaged over the prompts, then becomes worse by less than
    `threshold` than it was before. The result is that of asking one after the other, though several are
    computed in one pass.

    Parameters
    ----------
    model : Model
    task : Task
        A clean prompt and its corrupted prompt have one length; prompts of the task may differ in length.
    threshold : float
        At least 0. In the units of the metric; papers use 0.001 to 0.1 for KL.
    prune : bool, default True
        Afterwards take away what hangs loose, as in `ComponentCircuit.masks`.
    ablation : str, default "counterfactual"
        What is read in place of a component edge that was taken away, as in `component_scores`.
    gate : {"recomputed", "held"}, default "recomputed"
        In a gated model: whether gates follow from the changed scores, or are those of the prompts as they
        are.
    reference : Task or sequence of prompts, optional
        Prompts that means are taken over. Default: the clean prompts of `task`.
    metric : str or CustomMetric, default "kl"
        One of the task's metrics; "kl" is the divergence from the whole model at the last position. None: the
        task's own. Worse is smaller, or larger for "kl" and where a custom metric says so.
    resume : path, optional
        File that keeps what is found; its name gets the ending .search.safetensors unless it ends in
        .safetensors. It is written about every 30 seconds, on Ctrl-C, and at the end. If it exists, the call
        continues from there and finds the same bits. It is not removed. The functions of a `CustomMetric`
        are known by its name alone.
    max_bytes : int, default 4 GiB
        What the call may allocate. With all prompts at once it is fastest; with less, it goes through blocks
        of prompts for every few component edges, and finds the same.
    threads : int, optional
        Default: the number set by `set_num_threads`.
    progress : bool, optional
        Show a bar on stderr. Default: in terminals and notebooks only.

    Returns
    -------
    ComponentCircuit
        `given` is the circuit. `scores` are by how much the metric became worse when that component edge was
        asked, which depends on what had been taken away by then: a ranking by them is not the circuit.

    Raises
    ------
    ValueError
        For unknown names, a threshold below 0, what an ablation lacks, and a metric that is not finite.
    MemoryError
        If even one prompt at a time needs more than `max_bytes`.
    TypeError
        For arguments of another type.
    FormatError
        If the file `resume` is damaged, or with the code question if it is of another model, task, metric or
        option, of another version of attnsparse or another kind of processor.
    OSError
        If that file cannot be read or written.

    References
    ----------
    Conmy et al., "Towards Automated Circuit Discovery for Mechanistic Interpretability", 2023.
    """
    prune = _check.flag(prune, "prune")
    mask, scores = _ask_all(
        model, task, threshold, ablation=ablation, gate=gate, reference=reference, metric=metric,
        resume=resume, max_bytes=max_bytes, threads=threads, progress=progress,
    )  # fmt: skip
    return _circuit(model, task, _pruned(model, mask) if prune else mask, scores)


def _ask_all(
    model: Model,
    task: Task,
    threshold: float,
    *,
    ablation: str,
    gate: str,
    reference: Task | Iterable[Any] | None,
    metric: str | CustomMetric | None,
    resume: str | os.PathLike[str] | None,
    max_bytes: int,
    threads: int | None,
    progress: bool | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The component edges that are left, and by how much the metric became worse without each."""
    threshold = _check.number(threshold, "threshold", 0.0)
    asked, chosen = packed_task(model, task, metric), chosen_metric(metric, task)
    options = changed_options(
        model, ablation, "noising", gate, reference, max_bytes, smaller_is_better(chosen)
    )
    state, keep = kept_search(resume, model, task, metric, options, method="acdc", threshold=threshold)
    with stage_bars(progress) as tell:
        found: tuple[np.ndarray, np.ndarray] = model._core.component_acdc(
            asked, threshold, options, _check.threads(threads), tell, state, keep
        )
    return found


def _pruned(model: Model, mask: np.ndarray) -> np.ndarray:
    """Without what hangs loose."""
    config = model.config
    left: np.ndarray = _CORE.component_prune(config.n_layer, config.n_head, mask)
    return left


def _circuit(model: Model, task: Task, mask: np.ndarray, scores: np.ndarray) -> ComponentCircuit:
    config = model.config
    return ComponentCircuit(
        scores, config.n_layer, config.n_head, config.d_model,
        given=mask, method="acdc", model=model.name, task=task.name, prompts=task.prompt_digests,
    )  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class AcdcSweep:
    """The circuits that ACDC finds at several thresholds. Made by `component_acdc_sweep`.

    Attributes
    ----------
    thresholds : numpy.ndarray
        float64 [T], ascending.
    circuits : tuple of ComponentCircuit
        One for each threshold.
    requested : numpy.ndarray
        int64 [T]: component edges that the threshold left.
    kept : numpy.ndarray
        int64 [T]: how many are left without dangling nodes.
    values : numpy.ndarray
        float64 [T, P]: the metric of each circuit on each prompt.
    full : numpy.ndarray
        float64 [P]: the metric with every component edge in the circuit.
    empty : numpy.ndarray
        float64 [P]: the metric with none.
    ablation : str
        One of `COMPONENT_ABLATIONS`.
    gate : str
        "held" or "recomputed"; "none" in a dense model.
    metric : str
        Name of the metric.
    model : str
        Name of the model.
    task : str
        Name of the task that the circuits are of.
    evaluation : str
        Name of the task that `values` are of.
    """

    thresholds: np.ndarray
    circuits: tuple[ComponentCircuit, ...]
    requested: np.ndarray
    kept: np.ndarray
    values: np.ndarray
    full: np.ndarray
    empty: np.ndarray
    ablation: str
    gate: str
    metric: str
    model: str
    task: str
    evaluation: str

    def to_pandas(self) -> pd.DataFrame:
        """One row per threshold.

        Returns
        -------
        pandas.DataFrame
            Columns threshold, requested, kept and metric (mean over prompts).
        """
        import pandas as pd

        table = {"threshold": self.thresholds, "requested": self.requested, "kept": self.kept}
        frame: pd.DataFrame = pd.DataFrame(table | {"metric": self.values.mean(1)})
        return frame

    def __repr__(self) -> str:
        return (
            f"AcdcSweep({self.model!r} on {self.task!r}: {len(self.thresholds)} thresholds, "
            f"{self.kept.min()} to {self.kept.max()} component edges, metric={self.metric!r})"
        )


def component_acdc_sweep(
    model: Model,
    task: Task,
    thresholds: Sequence[float] | np.ndarray,
    *,
    evaluation: Task | None = None,
    ablation: str = "counterfactual",
    gate: str = "recomputed",
    reference: Task | Iterable[Any] | None = None,
    metric: str | CustomMetric | None = "kl",
    resume: str | os.PathLike[str] | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
    progress: bool | None = None,
) -> AcdcSweep:
    """Find a circuit by ACDC at each of several thresholds, and measure it.

    Parameters
    ----------
    model : Model
    task : Task
        Prompts that the circuits are found on.
    thresholds : sequence of float
        Ascending, each at least 0.
    evaluation : Task, optional
        Prompts that the circuits are measured on. Default: `task`.
    ablation, gate, reference, metric
        As in `component_acdc`, also where circuits are measured. Means are taken over `reference`, or over
        the clean prompts of `task`.
    resume : path, optional
        As in `component_acdc`: one file for each threshold, whose name is this one, a hyphen and the
        threshold.
    max_bytes, threads, progress
        As in `component_acdc`.

    Returns
    -------
    AcdcSweep

    Raises
    ------
    ValueError
        For thresholds that do not ascend, and as in `component_acdc`.
    MemoryError, TypeError, FormatError, OSError
        As in `component_acdc`.
    """
    asked = _check.ascending(thresholds, "thresholds", lambda value, name: _check.number(value, name, 0.0))
    _check.instance(model, Model, "model")
    _check.instance(task, Task, "task")
    measured = task if evaluation is None else _check.instance(evaluation, Task, "evaluation")
    path = None if resume is None else _check.path(resume, "resume")
    found = [
        _ask_all(
            model, task, threshold, ablation=ablation, gate=gate, reference=reference, metric=metric,
            resume=None if path is None else f"{path}-{threshold}", max_bytes=max_bytes, threads=threads,
            progress=progress,
        )
        for threshold in asked.tolist()
    ]  # fmt: skip
    pruned = [_pruned(model, mask) for mask, _ in found]
    whole = component_file.exists(names.Shape(model.config.n_layer, model.config.n_head))
    values = component_values(
        model, measured, np.array([*pruned, whole, np.zeros_like(whole)]), ablation=ablation, gate=gate,
        reference=task if reference is None and ablation.startswith("mean") else reference,
        metric=metric, max_bytes=max_bytes, threads=threads, progress=progress,
    )  # fmt: skip
    return AcdcSweep(
        thresholds=asked,
        circuits=tuple(_circuit(model, task, mask, scores) for mask, (_, scores) in zip(pruned, found)),
        requested=np.array([mask.sum() for mask, _ in found], np.int64),
        kept=np.array([mask.sum() for mask in pruned], np.int64),
        values=values[:-2],
        full=values[-2],
        empty=values[-1],
        ablation=ablation,
        gate=gate if model.config.gated else "none",
        metric=metric_name(chosen_metric(metric, task)),
        model=model.name,
        task=task.name,
        evaluation=measured.name,
    )
