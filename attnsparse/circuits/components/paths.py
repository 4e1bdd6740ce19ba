"""Path patching: outputs of components in the other prompt of the pair go straight into chosen components.

Only the direct paths carry them: each receiver has its own copy of the residual stream, so that nothing else
reads what is patched, and everything behind the receivers is computed anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ... import _check
from ..._display import stage_bars
from ..._tables import text_table
from ...items import Head
from ...model.model import Model
from ...model.run import DEFAULT_MAX_BYTES
from ...tasks.custom import CustomMetric, chosen_metric, metric_name
from ...tasks.task import Task
from ..asked import packed_task
from . import names as component_names
from .names import DIRECTIONS, GATES
from .patching import recovered

if TYPE_CHECKING:
    import pandas as pd

    from ...model.config import Config

EACH = ("senders", "receivers", "both")


@dataclass(frozen=True, eq=False, repr=False)
class PathPatch:
    """The metric with paths from senders straight into receivers patched.

    Made by `path_patch`.

    Attributes
    ----------
    values : numpy.ndarray
        float64 [prompts]; with `each` [senders, prompts], [receivers, prompts] or [senders,
        receivers, prompts].
    clean : numpy.ndarray
        float64 [prompts]: the metric of the clean prompts as they are.
    corrupted : numpy.ndarray
        float64 [prompts]: the metric of the corrupted prompts as they are, with the same answers.
    senders : tuple of str
        As in `values`.
    receivers : tuple of str
        As in `values`.
    each : str or None
        Which of them are patched one at a time.
    direction : str
        "noising" (corrupted outputs in the clean prompts) or "denoising".
    gate : str
        Which gates changed runs have: "held" or "recomputed"; "none" in a dense model.
    metric : str
        Name of the metric.
    model : str
        Name of the model.
    task : str
        Name of the task.
    """

    values: np.ndarray
    clean: np.ndarray
    corrupted: np.ndarray
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    each: str | None
    direction: str
    gate: str
    metric: str
    model: str
    task: str

    @property
    def mean(self) -> np.ndarray:
        """float64, the axes of `values` without prompts: the mean over prompts."""
        return np.asarray(self.values.mean(-1))

    @property
    def effect(self) -> np.ndarray:
        """Like `mean`, minus the mean metric with nothing patched."""
        return np.asarray(self.mean - (self.clean if self.direction == "noising" else self.corrupted).mean())

    @property
    def recovered(self) -> np.ndarray:
        """Like `mean`, as a share of the way from the corrupted prompts (0) to the clean ones (1).

        NaN if both have the same metric on average.
        """
        return recovered(self.mean, self.clean, self.corrupted)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each set of paths that is patched together.

        Returns
        -------
        pandas.DataFrame
            senders and receivers, joined by blanks; mean_metric, effect and recovered, float.
        """

        rows = [" ".join(group) for group in _groups(self.senders, self.each, "senders")]
        columns = [" ".join(group) for group in _groups(self.receivers, self.each, "receivers")]
        table: dict[str, Any] = {
            "senders": np.repeat(np.array(rows, object), len(columns)),
            "receivers": np.tile(np.array(columns, object), len(rows)),
        }
        numbers = {"mean_metric": self.mean.ravel(), "effect": self.effect.ravel()}
        numbers["recovered"] = self.recovered.ravel()
        frame: pd.DataFrame = text_table(table | numbers)
        return frame

    def __repr__(self) -> str:
        each = f", each={self.each!r}" if self.each else ""
        return (
            f"PathPatch({self.model!r} on {self.task!r}: {len(self.senders)} senders, {len(self.receivers)} "
            f"receivers{each}, {len(self.clean)} prompts, direction={self.direction!r}, gate={self.gate!r}, "
            f"metric={self.metric!r})"
        )


def path_patch(
    model: Model,
    task: Task,
    senders: str | Head | Iterable[str | Head] | None,
    receivers: str | Iterable[str],
    *,
    each: str | None = None,
    positions: Sequence[int | str] | npt.ArrayLike | None = None,
    direction: str = "noising",
    gate: str = "recomputed",
    metric: str | CustomMetric | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
    progress: bool | None = None,
) -> PathPatch:
    """Measure the metric when senders' outputs of the other prompt go straight into receivers.

    Parameters
    ----------
    model : Model
    task : Task
        The answers are those of the clean prompts in either direction; `Task.swapped` exchanges them.
    senders : str, Head, sequence of these, or None
        "input" (the token embedding), heads ("a9.h6", or a `Head`), MLPs ("m3"). None: all.
    receivers : str or sequence of str
        The q, k or v of heads ("a9.h6<q>"; "a9.h6" is all three), MLPs ("m3"), "logits". Paths from senders
        that do not come before a receiver do not exist and are left out.
    each : {"senders", "receivers", "both"}, optional
        Patch each sender (or receiver, or pair) by itself, in one call. Default: all together.
    positions : sequence of int or str, or integer array [prompts, n], optional
        Where the paths are patched: positions of all prompts, below 0 from their end, or words that the task
        names (`Task.word_positions`); or those of each prompt. Default: everywhere.
    direction : {"noising", "denoising"}, default "noising"
        "noising" puts corrupted outputs into the clean prompts, "denoising" clean ones into the corrupted
        prompts.
    gate : {"recomputed", "held"}, default "recomputed"
        Gates of a gated model follow from what is patched, or stay those of the prompts as they are.
    metric : {"logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl"} or CustomMetric, optional
        Default: the task's own. "kl" compares with the clean prompt.
    max_bytes : int, default 4 GiB
        What the call may allocate; with less, it takes fewer prompts at a time.
    threads : int, optional
        Default: the number set by `set_num_threads`.
    progress : bool, optional
        Show a bar on stderr. Default: in terminals and notebooks only.

    Returns
    -------
    PathPatch
        The metric of every prompt.

    Raises
    ------
    ValueError
        For unknown names, components that the model does not have, and positions that a prompt does not have.
    TypeError
        For arguments of another type.
    MemoryError
        If `max_bytes` is too little for one prompt at a time.

    Notes
    -----
    A receiver reads the residual stream plus, for each patched path, the sender's output in the other prompt
    minus what it gives now. So a sender that itself comes after a receiver is replaced as a whole. MLPs and
    heads between a sender and a receiver are components of their own: they read what they would read without
    the patch. Patched paths are component edges, not attention edges.

    References
    ----------
    Wang et al., "Interpretability in the Wild", 2022. Goldowsky-Dill et al., "Localizing Model Behavior with
    Path Patching", 2023.
    """
    _check.instance(model, Model, "model")
    _check.instance(task, Task, "task")
    _check.choice(direction, "direction", DIRECTIONS)
    _check.choice(gate, "gate", GATES)
    if each is not None:
        _check.choice(each, "each", EACH)
    rows = _senders(model.config, senders)
    columns = _receivers(model.config, receivers)
    at = None if positions is None else _positions(task, positions)
    asked = packed_task(model, task, metric)
    max_bytes = _check.byte_limit(max_bytes)
    n_rows, n_columns = (
        len(_groups(names, each, what)) for names, what in ((rows, EACH[0]), (columns, EACH[1]))
    )
    chosen = (
        np.repeat(_masks(rows, each, "senders", component_names.senders(model.config)), n_columns, 0),
        np.tile(_masks(columns, each, "receivers", component_names.receivers(model.config)), (n_rows, 1)),
    )
    with stage_bars(progress) as tell:
        values, base, other = model._core.path_values(
            asked,
            *chosen,
            at,
            direction == "denoising",
            gate == "held",
            max_bytes,
            _check.threads(threads),
            tell,
        )
    shape = {None: (), "senders": (n_rows,), "receivers": (n_columns,), "both": (n_rows, n_columns)}[each]
    clean, corrupted = (base, other) if direction == "noising" else (other, base)
    return PathPatch(
        values=values.reshape(*shape, len(task)),
        clean=clean,
        corrupted=corrupted,
        senders=rows,
        receivers=columns,
        each=each,
        direction=direction,
        gate=gate if model.config.gated else "none",
        metric=metric_name(chosen_metric(metric, task)),
        model=model.name,
        task=task.name,
    )


# ------------------------------------------------------------------------------------- which components


def _senders(config: Config, given: object) -> tuple[str, ...]:
    known = component_names.senders(config)
    if given is None:
        return tuple(known)
    listed = [given] if isinstance(given, (str, Head)) else _listed(given, "senders")
    named = [f"a{one.layer}.h{one.head}" if isinstance(one, Head) else one for one in listed]
    return _known(named, known, "senders", "'input', 'a0.h1', 'm0'")


def _receivers(config: Config, given: object) -> tuple[str, ...]:
    known = component_names.receivers(config)
    listed = [given] if isinstance(given, str) else _listed(given, "receivers")
    named: list[object] = []
    for one in listed:
        heads = [f"{one}<{letter}>" for letter in "qkv"]
        named += heads if heads[0] in known else [one]
    return _known(named, known, "receivers", "'a0.h1<q>', 'a0.h1', 'm0', 'logits'")


def _listed(given: object, name: str) -> list[object]:
    if not isinstance(given, Iterable):
        raise TypeError(f"{name} must be a name or a sequence of names, got {type(given).__name__}")
    return list(given)


def _known(named: Sequence[object], known: Sequence[str], name: str, examples: str) -> tuple[str, ...]:
    """The names, each once, in the order given."""
    for one in named:
        if not isinstance(one, str):
            raise TypeError(f"{name} must be names such as {examples}, got {type(one).__name__}")
        if one not in known:
            raise ValueError(
                f"{name}: {one!r:.60} is none of this model, whose names are such as {examples} and end with "
                f"{known[-1]!r}"
            )
    if not named:
        raise ValueError(f"{name} is empty; give at least one name such as {examples}")
    return tuple(dict.fromkeys(str(one) for one in named))


def _groups(names: tuple[str, ...], each: str | None, what: str) -> list[tuple[str, ...]]:
    """Names that are patched together."""
    return [(name,) for name in names] if each in (what, "both") else [names]


def _masks(names: tuple[str, ...], each: str | None, what: str, known: Sequence[str]) -> np.ndarray:
    """bool [groups, known]."""
    return np.array([[name in group for name in known] for group in _groups(names, each, what)])


# ------------------------------------------------------------------------------------------- positions


def _positions(task: Task, given: Sequence[int | str] | npt.ArrayLike) -> np.ndarray:
    """bool [tokens of all prompts]."""
    words = task.word_positions or {}
    listed = given
    if isinstance(given, Sequence) and not isinstance(given, str):
        listed = [words.get(one, one) if isinstance(one, str) else one for one in given]
        unknown = [one for one in listed if isinstance(one, str)]
        if unknown:
            raise ValueError(f"task {task.name!r} names no word {unknown[0]!r:.60}; it names {sorted(words)}")
    array = np.asarray(listed)
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or not array.size:
        raise TypeError(
            "positions must be integers, or names of words of the task, for all prompts or [prompts, n], got "
            f"{given!r:.80}"
        )
    if array.ndim == 2 and len(array) != len(task):
        raise ValueError(f"positions has rows for {len(array)} prompts, and the task has {len(task)}")
    marks = []
    for row, clean in zip(np.broadcast_to(array, (len(task), array.shape[-1])), task.clean):
        mark = np.zeros(len(clean), bool)
        if row.min() < -len(clean) or row.max() >= len(clean):
            raise ValueError(f"positions {row.tolist()} are not all in a prompt of {len(clean)} tokens")
        mark[row] = True
        marks.append(mark)
    return np.concatenate(marks)
