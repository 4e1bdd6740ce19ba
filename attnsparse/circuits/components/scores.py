"""Scores of component edges: of the output of the embedding, a head or an MLP into a later component.

A component edge is not an attention edge: it has no positions, and goes from what one component writes to
what another reads. The scores are those of edge attribution patching (EAP), its integrated forms, and
information flow routes, in the order, with the signs and with the points of the public implementation EAP-IG.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import _check
from ..._display import stage_bars
from ..._tables import text_table
from ...model.run import DEFAULT_MAX_BYTES
from ...tasks.custom import CustomMetric, chosen_metric, metric_name, smaller_is_better
from ...tasks.task import Task
from ..asked import packed_task
from ..pieces import CoreWork, Job, cut, cut_sums
from ..resumed import summed, sweep_question
from . import mib as component_mib
from . import names
from .options import apart, changed_options

if TYPE_CHECKING:
    import pandas as pd

    from ...model.model import Model


@dataclass(frozen=True, eq=False, repr=False)
class ComponentScores:
    """Scores of all component edges of a model on a task, or of its components.

    Made by `component_scores`.

    Attributes
    ----------
    scores : numpy.ndarray
        float64 [senders, receivers], 0 where there is no component edge; [senders] for nodes; [senders,
        d_model] for neurons. Positive: useful to the metric.
    senders : tuple of str
        "input", then "a0.h0", ..., "m0" and so on.
    receivers : tuple of str
        "a0.h0<q>", ..., "a0.h0<k>", ..., "a0.h0<v>", ..., "m0" and so on; "logits".
    n_before : numpy.ndarray
        int64 [receivers]: there is a component edge into a receiver from the first so many senders.
    level : str
        "edge", "node" or "neuron".
    method : str
        One of `COMPONENT_METHODS`.
    ablation : str
        One of `COMPONENT_ABLATIONS`; "none" for information flow routes.
    direction : str
        "noising" or "denoising".
    steps : int
        Of the integrated methods; 1 for others.
    gate : str
        Which gates changed runs have: "held" or "recomputed"; "none" in a dense model.
    metric : str
        Name of the metric; "none" for information flow routes.
    model : str
        Name of the model.
    task : str
        Name of the task.
    prompts : tuple of str
        `Task.prompt_digests` of the prompts that it was scored on; empty if they are not known.
    mlp_gradient : str
        Of nodes and neurons: whether MLPs are scored with the gradient of their "output" or their "input".
    """

    scores: np.ndarray
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    n_before: np.ndarray
    level: str
    method: str
    ablation: str
    direction: str
    steps: int
    gate: str
    metric: str
    model: str
    task: str
    prompts: tuple[str, ...] = ()
    mlp_gradient: str = "output"

    @property
    def exists(self) -> np.ndarray:
        """Boolean [senders, receivers]: whether there is such a component edge."""
        return np.arange(len(self.senders))[:, None] < self.n_before

    @property
    def n_edges(self) -> int:
        """Number of component edges."""
        return int(self.n_before.sum())

    def to_pandas(self) -> pd.DataFrame:
        """One row per score, in the order of the matrix.

        Returns
        -------
        pandas.DataFrame
            Columns name ("a0.h3->a5.h1<q>"), sender, receiver and score for component edges; name and score
            for nodes; node, neuron and score for neurons.
        """

        table: dict[str, Any]
        if self.level == "node":
            table = {"name": self.senders, "score": self.scores}
        elif self.level == "neuron":
            width = self.scores.shape[1]
            node, neuron = np.repeat(self.senders, width), np.tile(np.arange(width), len(self.senders))
            table = {"node": node, "neuron": neuron, "score": self.scores.ravel()}
        else:
            row, column = np.nonzero(self.exists)
            sender, receiver = np.array(self.senders)[row], np.array(self.receivers)[column]
            edges = [f"{one}->{other}" for one, other in zip(sender, receiver)]
            scores = self.scores[row, column]
            table = {"name": edges, "sender": sender, "receiver": receiver, "score": scores}
        frame: pd.DataFrame = text_table(table)
        return frame

    to_mib = component_mib.scores_to_mib
    from_mib = classmethod(component_mib.scores_from_mib)

    def __repr__(self) -> str:
        steps = f", steps={self.steps}" if self.steps > 1 else ""
        n = {"edge": self.n_edges, "node": len(self.senders), "neuron": self.scores.size}[self.level]
        what = {"edge": "component edges", "node": "nodes", "neuron": "neurons"}[self.level]
        return (
            f"ComponentScores({self.model!r} on {self.task!r}: {n} {what}, method={self.method!r}{steps}, "
            f"ablation={self.ablation!r}, direction={self.direction!r}, gate={self.gate!r}, "
            f"metric={self.metric!r})"
        )


def component_scores(
    model: Model,
    task: Task,
    *,
    method: str = "eap",
    level: str = "edge",
    ablation: str = "counterfactual",
    direction: str = "noising",
    steps: int = 5,
    gate: str = "recomputed",
    mlp_gradient: str = "output",
    reference: Task | Iterable[Any] | None = None,
    metric: str | CustomMetric | None = None,
    resume: str | os.PathLike[str] | None = None,
    executor: Any = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
    progress: bool | None = None,
) -> ComponentScores:
    """Score all component edges (or nodes, or neurons) of a model at once.

    Parameters
    ----------
    model : Model
    task : Task
        A clean prompt and its corrupted prompt have one length; prompts of the task may differ in length.
    method : str, default "eap"
        "eap": the difference of a sender's outputs times the gradient of the loss at the receiver's input, in
        the clean run. "eap-ig-inputs": the mean gradient over `steps` runs whose token embeddings are mixed,
        from the corrupted to just before the clean ones. "eap-ig-activations": the mean gradient over
        runs in which the embedding, all heads of one layer, or one MLP are mixed, each in `steps` steps.
        "clean-corrupted": the mean gradient of the clean and the corrupted run. "exact": each component edge
        is patched alone and everything behind it recomputed; for level="edge". "information-flow-routes": the
        share that a sender has in a receiver's input, without any gradient or corrupted prompt.
    level : {"edge", "node", "neuron"}, default "edge"
        "node": the difference of a component's outputs times the gradient of its output. "neuron": the same
        for every coordinate. Here "eap-ig-inputs" goes from after the corrupted to the clean embeddings, as
        EAP-IG does.
    ablation : str, default "counterfactual"
        What an output is replaced by. "counterfactual": its value in the corrupted prompt. "zero". "mean":
        the mean over the positions of each reference prompt, then over these prompts (`ablation="mean"` of
        attention edges is "mean-positional" here). "mean-positional": the mean at each position. "mean-all":
        the mean over all positions of all reference prompts at once.
    direction : {"noising", "denoising"}, default "noising"
        "denoising": clean values go into the corrupted run, in which the gradient is taken then.
    steps : int, default 5
        Of the two integrated methods.
    gate : {"recomputed", "held"}, default "recomputed"
        In a gated model: whether mixed runs recompute the gates or have those of the run that is changed.
        Corrupted values have their own gates in either case, and no gradient goes through a gate.
    mlp_gradient : {"output", "input"}, default "output"
        Of nodes and neurons: "input" multiplies the difference of an MLP's outputs with the gradient of its
        input, as EAP-IG does, so that its numbers come out; they are not a first-order effect.
    reference : Task or sequence of prompts, optional
        Prompts that means are taken over. Default: the clean prompts of `task`.
    metric : {"logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl"} or CustomMetric, optional
        Default: the task's own. A custom metric needs a gradient.
    resume : path, optional
        File that keeps what is found; its name gets the ending .search.safetensors unless it ends in
        .safetensors. It is written about every 30 seconds, on Ctrl-C, and at the end. If it exists, the call
        continues from there and finds the same bits. It is refused with another `max_bytes`. It is not
        removed. The functions of a `CustomMetric` are known by its name alone.
    executor : concurrent.futures.Executor or Dask Client, optional
        Whose workers measure, in pieces that do not depend on their number: the bits are those of a call
        without. See docs/cluster.md.
    max_bytes : int, default 4 GiB
        What the call may allocate; with less, it takes fewer prompts at a time.
    threads : int, optional
        Default: the number set by `set_num_threads`.
    progress : bool, optional
        Show a bar on stderr. Default: in terminals and notebooks only.

    Returns
    -------
    ComponentScores
        Means over prompts of sums over positions. Positive: patching the component edge lowers the metric (or
        raises it, if smaller is better), to first order; so the component edge is useful.

    Raises
    ------
    ValueError
        For unknown names, numbers out of range, and what a method or an ablation lacks.
    MemoryError
        If even one prompt at a time needs more than `max_bytes`.
    TypeError
        For arguments of another type.
    FormatError
        If the file `resume` is damaged, or with the code question if it is of another model, task, metric or
        option, of another version of attnsparse or another kind of processor.
    OSError
        If that file cannot be read or written.
    RuntimeError
        For a piece that failed three times in the workers of an executor, unless it is one of the above.

    References
    ----------
    Syed et al., "Attribution Patching Outperforms Automated Circuit Discovery", 2023. Hanna et al., "Have
    Faith in Faithfulness", 2024. Ferrando and Voita, "Information Flow Routes", 2024.
    """
    _check.choice(method, "method", names.METHODS)
    _check.choice(level, "level", names.LEVELS)
    steps = _check.integer(steps, "steps", 1, 1_000_000)
    max_bytes = _check.integer(max_bytes, "max_bytes", 1, 2**63 - 1)
    asked, chosen = packed_task(model, task, metric), chosen_metric(metric, task)
    changed = changed_options(
        model, ablation, direction, gate, reference, max_bytes, smaller_is_better(chosen)
    )
    _check_combination(method, level, ablation, direction, reference)
    if _check.choice(mlp_gradient, "mlp_gradient", names.MLP_GRADIENTS) == "input" and level == "edge":
        raise ValueError("mlp_gradient='input' is for level='node' and 'neuron', got level='edge'")
    routes, gated = method == "information-flow-routes", model.config.gated
    options = changed._replace(
        method="eap" if method == "exact" else method,
        level=level,
        steps=steps,
        mlp_input=mlp_gradient == "input",
    )
    senders, receivers = names.senders(model.config), names.receivers(model.config)
    n_before = model._core.component_senders_before()
    width = {"edge": [len(receivers)], "node": [], "neuron": [model.config.d_model]}[level]
    if method == "exact":
        edges = range(int(n_before.sum()))
        work = CoreWork(model, task.name, "exact", "component_exact", asked, (), edges, (options,), threads)
        pieces = cut(len(edges), len(task), apart(options))
    else:
        stage = "component scores"
        work = CoreWork(model, task.name, stage, "component_scores", asked, (), None, (options,), threads)
        pieces = cut_sums(len(task), routes or apart(options))

    def question() -> dict[str, Any]:
        return sweep_question(model, task, metric, **{**options._asdict(), "method": method})

    with stage_bars(progress) as tell:
        job = Job(work, pieces, (len(senders), *width))
        scores = summed(job, tell, executor, resume, question) / len(task)
    return ComponentScores(
        scores=scores,
        senders=tuple(senders),
        receivers=tuple(receivers),
        n_before=n_before,
        level=level,
        method=method,
        ablation="none" if routes else ablation,
        direction=direction,
        steps=steps if "-ig-" in method else 1,
        gate=gate if gated else "none",
        metric="none" if routes else metric_name(chosen),
        model=model.name,
        task=task.name,
        prompts=task.prompt_digests,
        mlp_gradient=mlp_gradient,
    )


def _check_combination(method: str, level: str, ablation: str, direction: str, reference: object) -> None:
    """ValueError for options that do not go together."""
    if method == "information-flow-routes":
        if level != "edge" or direction != "noising":
            raise ValueError(
                "method='information-flow-routes' is for level='edge' and direction='noising', got "
                f"level={level!r} and direction={direction!r}"
            )
    elif ablation != "counterfactual" and method in ("eap-ig-inputs", "clean-corrupted"):
        raise ValueError(
            f"method={method!r} runs the corrupted prompts, so it needs ablation='counterfactual', "
            f"got {ablation!r}"
        )
    if method == "exact" and level != "edge":
        raise ValueError(f"method='exact' is for level='edge', got {level!r}")
    if ablation != "counterfactual" and direction == "denoising":
        raise ValueError(f"direction='denoising' needs ablation='counterfactual', got {ablation!r}")
    if reference is not None and not ablation.startswith("mean"):
        raise ValueError(f"reference is for means alone, got ablation={ablation!r}")
