"""Masks of component edges, trained: subnetwork probing and edge pruning; and the gradients of masks."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ... import _check
from ..._core_types import MasksOptions
from ..._engine import core_for
from ...model.model import Model
from ...model.run import DEFAULT_MAX_BYTES
from ...tasks.custom import CustomMetric, chosen_metric, metric_name, smaller_is_better
from ...tasks.task import Task
from ..asked import packed_task
from ..search_file import SearchFile
from .circuit import ComponentCircuit
from .options import changed_options
from .training import HISTORY, MaskTraining, mask_question

if TYPE_CHECKING:
    import pandas as pd

_CORE = core_for("float64")
MASK_METHODS = ("subnetwork-probing", "edge-pruning")
"""How masks of component edges are trained."""


class _Defaults(NamedTuple):
    steps: int
    rate: float
    start: float


# Learning rates: the scripts of auto-circuit and of Edge Pruning, and of the latter also the steps and the
# start. Log 5: Cao et al., where a mask without noise is 0.9.
_DEFAULTS = {
    "subnetwork-probing": _Defaults(steps=200, rate=0.1, start=math.log(5)),
    "edge-pruning": _Defaults(steps=3000, rate=0.8, start=10.0),
}


@dataclass(frozen=True, eq=False, repr=False)
class ComponentMasks:
    """Trained masks of component edges, and the circuit that they give.

    Made by `component_masks`.

    Attributes
    ----------
    circuit : ComponentCircuit
        Its scores are the log alphas (with masks of senders the smaller one of the component edge and of its
        sender), ranked with their sign; its `given` is the circuit.
    expected : numpy.ndarray
        float64 [senders, receivers]: the probability that a mask is not 0; 0 where there is no component
        edge.
    node_expected : numpy.ndarray, optional
        float64 [senders]: the same of the masks of senders, if there are any.
    requested : int
        Number of component edges whose mask is open.
    kept : int
        Number of component edges in the circuit, after pruning.
    history : numpy.ndarray
        float64 [steps, 8]: see `to_pandas`.
    method : str
        One of `MASK_METHODS`.
    ablation : str
        One of `COMPONENT_ABLATIONS`.
    direction : str
        "noising" or "denoising".
    gate : str
        Which gates changed runs have: "held" or "recomputed"; "none" in a dense model.
    metric : str
        Name of the metric.
    """

    circuit: ComponentCircuit
    expected: np.ndarray
    node_expected: np.ndarray | None
    requested: int
    kept: int
    history: np.ndarray
    method: str
    ablation: str
    direction: str
    gate: str
    metric: str

    def __post_init__(self) -> None:
        for value in (self.expected, self.node_expected, self.history):
            if value is not None:
                value.setflags(write=False)

    def to_pandas(self) -> pd.DataFrame:
        """One row per step of the training.

        Returns
        -------
        pandas.DataFrame
            Columns step (from 0); objective, the mean over the step's prompts of the divergence, or of minus
            the metric, with the masks that the step drew; loss, the same with what is added to it; density,
            see `component_masks`; target, the density that is aimed at; node_density and node_target, of
            senders; multiplier and square_multiplier, those of the difference of the
            sparsities and of its square. NaN where a method has no such number.
        """
        import pandas as pd

        columns = dict(zip(HISTORY, self.history.T))
        frame: pd.DataFrame = pd.DataFrame({"step": np.arange(len(self.history)), **columns})
        return frame

    def __repr__(self) -> str:
        return (
            f"ComponentMasks({self.circuit.model!r} on {self.circuit.task!r}: {self.kept:,} of "
            f"{self.circuit.n_edges:,} component edges, requested={self.requested:,}, "
            f"method={self.method!r}, {len(self.history):,} steps, ablation={self.ablation!r}, "
            f"direction={self.direction!r}, gate={self.gate!r}, metric={self.metric!r})"
        )


def component_masks(
    model: Model,
    task: Task,
    *,
    method: str = "subnetwork-probing",
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    start: float | None = None,
    penalty: float | None = None,
    sparsity: float | None = None,
    node_sparsity: float | None = None,
    sparsity_steps: int | None = None,
    multiplier_rate: float | None = None,
    seed: int = 0,
    prune: bool = True,
    ablation: str = "counterfactual",
    direction: str = "noising",
    gate: str = "recomputed",
    reference: Task | Iterable[Any] | None = None,
    metric: str | CustomMetric | None = "kl",
    resume: str | os.PathLike[str] | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
    progress: bool | None = None,
) -> ComponentMasks:
    """Train a mask for every component edge, so that few open ones keep the metric.

    Over a component edge a receiver reads the ablated output plus the mask times what the current output
    differs by. Masks are hard concrete: z = min(1, max(0, 1.2 s - 0.1)) with
    s = sigmoid((log u - log(1 - u) + a) / beta), beta = 2/3, and u uniform, drawn anew in each step, the same
    for all its prompts. The log alphas a are trained with Adam (0.9, 0.999, eps 1e-8) on the mean of the
    divergence, or of minus the metric, plus a term for the density, which is the share of masks that are
    open.

    Parameters
    ----------
    model : Model
    task : Task
        A clean prompt and its corrupted prompt have one length; prompts of the task may differ in length.
    method : {"subnetwork-probing", "edge-pruning"}, default "subnetwork-probing"
        "subnetwork-probing": the term is `penalty` times the density, the mean probability that a mask is
        not 0. "edge-pruning": l1 (s - t) + l2 (s - t)^2; s is the sparsity, 1 minus the density, which is
        the mean of the masks that were drawn, and t its target, which rises from 0 to `sparsity` in a line.
        l1 and l2, 0 at first, ascend the same term by Adam. Learning rates rise for the first fifteenth of
        the steps and then fall in a line to 0, and weights decay by 0.01 times the rate.
    steps : int, optional
        Updates of the log alphas. Default: 200, or 3000 for "edge-pruning".
    batch_size : int, optional
        Prompts of each step, taken in their order, round after round. Default: all.
    learning_rate : float, optional
        Of the log alphas. Default: 0.1, or 0.8 for "edge-pruning".
    start : float, optional
        The log alphas at first. Default: log 5, where a mask is 0.9 on average, or 10 for "edge-pruning".
    penalty : float, optional
        For "subnetwork-probing" alone. Default: 10.
    sparsity : float, optional
        For "edge-pruning" alone, as are the next three. Default: 0.97; 0..2, above 1 it pushes harder than
        anything can follow.
    node_sparsity : float, optional
        Each sender has a mask too, which multiplies those of the component edges out of it, and a term of its
        own with this target. Default: senders have no masks.
    sparsity_steps : int, optional
        In which step the target is reached. Default: after five sixths.
    multiplier_rate : float, optional
        The learning rate of l1 and l2. Default: 0.8.
    seed : int, default 0
        Of the masks that are drawn. The result is a function of the arguments, not of `threads`.
    prune : bool, default True
        Afterwards take away what hangs loose, as in `ComponentCircuit.masks`.
    ablation, direction, gate, reference
        As in `component_values`.
    metric : str or CustomMetric, default "kl"
        One of the task's metrics; "kl" is the divergence from the whole model at the last position. None: the
        task's own. A custom metric needs a gradient.
    resume : path, optional
        File that keeps how far the training is; its name gets the ending .search.safetensors unless it ends
        in .safetensors. It is written about every 30 seconds, on Ctrl-C (without the last few seconds), and
        at the end. If it exists, the training continues from there and finds the same bits. It is not
        removed. The functions of a `CustomMetric` are known by its name alone.
    max_bytes : int, default 4 GiB
        What the call may allocate; with less, it takes fewer prompts at a time.
    threads : int, optional
        Default: the number set by `set_num_threads`.
    progress : bool, optional
        Show a bar on stderr. Default: in terminals and notebooks only.

    Returns
    -------
    ComponentMasks
        The circuit are the component edges with a log alpha above 0, and with masks of senders one above 0 of
        the sender too: the masks that are above 1/2 without noise. `circuit.mask(n)` has the n best instead.

    Raises
    ------
    ValueError
        For unknown names, numbers out of range, what an ablation lacks, and a metric without a gradient.
    TrainingDiverged
        If the loss or its gradient is not finite.
    MemoryError
        If even one prompt at a time needs more than `max_bytes`.
    TypeError
        For arguments of another type.
    FormatError
        If the file `resume` is damaged or of another question, as for `find_circuit`.
    OSError
        If that file cannot be read or written.

    References
    ----------
    Cao et al., "Low-Complexity Probing via Finding Subnetworks", 2021. Bhaskar et al., "Finding Transformer
    Circuits with Edge Pruning", 2024. Louizos et al., "Learning Sparse Neural Networks through L0
    Regularization", 2018.
    """
    _check.choice(method, "method", MASK_METHODS)
    prune, default = _check.flag(prune, "prune"), _DEFAULTS[method]
    _check_method(
        method,
        {"subnetwork-probing": {"penalty": penalty},
         "edge-pruning": {"sparsity": sparsity, "node_sparsity": node_sparsity,
                          "sparsity_steps": sparsity_steps, "multiplier_rate": multiplier_rate}},
    )  # fmt: skip
    asked, chosen = packed_task(model, task, metric), chosen_metric(metric, task)
    worse = smaller_is_better(chosen)
    measure = changed_options(model, ablation, direction, gate, reference, max_bytes, worse)
    n_steps = default.steps if steps is None else _check.integer(steps, "steps", 1, 1_000_000)
    rate = default.rate if learning_rate is None else learning_rate
    first = _check.number(default.start if start is None else start, "start", -100.0, 100.0)
    options = MasksOptions(
        measure=measure,
        steps=n_steps,
        batch=len(task) if batch_size is None else _check.integer(batch_size, "batch_size", 1, 2**31),
        lr=_check.number(rate, "learning_rate", 0.0, 1e6),
        penalty=_check.number(10.0 if penalty is None else penalty, "penalty", 0.0, 1e15),
        sparsity=_check.number(0.97 if sparsity is None else sparsity, "sparsity", 0.0, 2.0),
        multiplier_lr=_check.number(
            0.8 if multiplier_rate is None else multiplier_rate, "multiplier_rate", 0.0, 1e6
        ),
        seed=_check.seed(seed),
        **_schedule(method, n_steps, node_sparsity, sparsity_steps),
    )
    training = MaskTraining(model, asked, options, first)
    kept = None
    if resume is not None:
        kept = SearchFile(resume, mask_question(model, task, method, options, first, metric_name(chosen)))
    training.take_all_steps(kept, _check.threads(threads), progress)
    return _result(training, model, task, method, prune, ablation, direction, gate, metric_name(chosen))


def _check_method(method: str, options: Mapping[str, Mapping[str, Any]]) -> None:
    """ValueError if options of another method are given."""
    for other, given in options.items():
        names = [name for name, value in given.items() if value is not None]
        if other != method and names:
            verb = "is" if len(names) == 1 else "are"
            raise ValueError(f"{', '.join(names)} {verb} for method={other!r} alone, got method={method!r}")


def _schedule(method: str, steps: int, node_sparsity: Any, sparsity_steps: Any) -> dict[str, Any]:
    """What follows from the method and the number of steps."""
    pruning = method == "edge-pruning"
    reached = 5 * steps // 6 if sparsity_steps is None else sparsity_steps
    nodes = 0.0 if node_sparsity is None else _check.number(node_sparsity, "node_sparsity", 0.0, 2.0)
    return {
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.01 if pruning else 0.0,
        "lr_steps": steps // 15 if pruning else 0,
        "lr_falls": pruning,
        "pruning": pruning,
        "nodes": node_sparsity is not None,
        "node_sparsity": nodes,
        "sparsity_steps": _check.integer(reached, "sparsity_steps", 0, steps),
    }


def _result(
    training: MaskTraining,
    model: Model,
    task: Task,
    method: str,
    prune: bool,
    ablation: str,
    direction: str,
    gate: str,
    metric: str,
) -> ComponentMasks:
    """What the log alphas say."""
    config, scores, of_senders = model.config, training.log_alpha, training.of_senders
    if of_senders is not None:
        scores = np.where(training.exists, np.minimum(scores, of_senders[0][:, None]), 0)
    mask = training.exists & (scores > 0)
    given = _CORE.component_prune(config.n_layer, config.n_head, mask) if prune else mask
    circuit = ComponentCircuit(
        scores, config.n_layer, config.n_head, config.d_model, rank_by="signed",
        given=given, method=method, model=model.name, task=task.name,
    )  # fmt: skip
    return ComponentMasks(
        circuit=circuit,
        expected=training.expected,
        node_expected=None if of_senders is None else of_senders[1],
        requested=int(mask.sum()),
        kept=int(given.sum()),
        history=training.state.history,
        method=method,
        ablation=ablation,
        direction=direction,
        gate=gate if config.gated else "none",
        metric=metric,
    )
