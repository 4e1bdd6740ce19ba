"""ACDC: a circuit of component edges, found by taking them away one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .. import _check
from .._display import stage_bars
from .._engine import core_for
from ..model.model import Model
from ..model.run import DEFAULT_MAX_BYTES
from ..tasks.custom import CustomMetric, chosen_metric, smaller_is_better
from ..tasks.task import Task
from .component_circuit import ComponentCircuit
from .component_options import changed_options
from .effects import packed_task

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
    max_bytes : int, default 4 GiB
        What the call may allocate. It takes all prompts at once.
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
        If all prompts at once need more than `max_bytes`.
    TypeError
        For arguments of another type.

    References
    ----------
    Conmy et al., "Towards Automated Circuit Discovery for Mechanistic Interpretability", 2023.
    """
    threshold, prune = _check.number(threshold, "threshold", 0.0), _check.flag(prune, "prune")
    asked, chosen = packed_task(model, task, metric), chosen_metric(metric, task)
    options = changed_options(
        model, ablation, "noising", gate, reference, max_bytes, smaller_is_better(chosen)
    )
    with stage_bars(progress) as tell:
        mask, scores = model._core.component_acdc(asked, threshold, options, _check.threads(threads), tell)
    config = model.config
    if prune:
        mask = _CORE.component_prune(config.n_layer, config.n_head, mask)
    return ComponentCircuit(
        scores, config.n_layer, config.n_head, config.d_model,
        given=mask, method="acdc", model=model.name, task=task.name, prompts=task.prompt_digests,
    )  # fmt: skip
