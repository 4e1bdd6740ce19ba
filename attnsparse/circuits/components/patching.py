"""Activation patching: each activation of a layer or a head takes its value in the other prompt of the pair.

One number for every layer, head and position, and for every prompt: the task's metric with that activation
alone replaced and everything behind it computed anew.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import _check
from ..._display import stage_bars
from ...items import COLUMNS
from ...model.model import Model
from ...model.run import DEFAULT_MAX_BYTES
from ...tasks.custom import CustomMetric, chosen_metric, metric_name
from ...tasks.task import Task
from ..asked import check_lengths, packed_task
from ..pieces import CoreWork, Piece, cut
from ..resumed import Results, sweep_question
from .names import DIRECTIONS, GATES

if TYPE_CHECKING:
    import pandas as pd

LAYER_KINDS = ("resid", "resid_mid", "attn_out", "mlp_out")
HEAD_KINDS = ("z", "q", "k", "v", "pattern")
AXES = ("layer", "head", "position")


@dataclass(frozen=True, eq=False, repr=False)
class PatchingSweep:
    """The metric with each activation of a kind alone replaced.

    Made by `patching_sweep`.

    Attributes
    ----------
    values : numpy.ndarray
        float64 [.., prompts]: the metric of each prompt, with one axis before it for each name in
        `by`.
    clean : numpy.ndarray
        float64 [prompts]: the metric of the clean prompts as they are.
    corrupted : numpy.ndarray
        float64 [prompts]: the metric of the corrupted prompts as they are, with the same answers.
    kind : str
        What is replaced.
    by : tuple of str
        Names of the axes: "layer", "head", "position".
    direction : str
        "denoising" (clean values in the corrupted prompts) or "noising".
    metric : str
        Name of the metric.
    model : str
        Name of the model.
    task : str
        Name of the task.
    gate : str
        Which gates changed runs have: "held" or "recomputed"; "none" in a dense model.
    layers : tuple of int, optional
        Layers on the axis "layer"; None: all.
    positions : tuple of int, optional
        Positions on the axis "position"; None: all.
    """

    values: np.ndarray
    clean: np.ndarray
    corrupted: np.ndarray
    kind: str
    by: tuple[str, ...]
    direction: str
    metric: str
    model: str
    task: str
    gate: str = "none"
    layers: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None

    @property
    def mean(self) -> np.ndarray:
        """float64, one axis for each name in `by`: the mean over prompts."""
        return np.asarray(self.values.mean(-1))

    @property
    def recovered(self) -> np.ndarray:
        """Like `mean`, as a share of the way from the corrupted prompts (0) to the clean ones (1).

        NaN if both have the same metric on average.
        """
        return recovered(self.mean, self.clean, self.corrupted)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each replaced activation.

        Returns
        -------
        pandas.DataFrame
            A column of int for each name in `by` ("head" is head_index), then mean_metric and recovered,
            float.
        """
        import pandas as pd

        places = dict(zip(self.by, np.indices(self.mean.shape).reshape(len(self.by), -1)))
        for name, chosen in (("layer", self.layers), ("position", self.positions)):
            if chosen is not None:
                places[name] = np.array(chosen, np.int64)[places[name]]
        table = {COLUMNS.get(name, name): values for name, values in places.items()}
        frame: pd.DataFrame = pd.DataFrame(
            table | {"mean_metric": self.mean.ravel(), "recovered": self.recovered.ravel()}
        )
        return frame

    def __repr__(self) -> str:
        shape = " x ".join(f"{n} {name}s" for n, name in zip(self.mean.shape, self.by))
        return (
            f"PatchingSweep({self.kind!r} of {self.model!r} on {self.task!r}: {shape}, "
            f"{len(self.clean)} prompts, direction={self.direction!r}, metric={self.metric!r})"
        )


def recovered(mean: np.ndarray, clean: np.ndarray, corrupted: np.ndarray) -> np.ndarray:
    """A mean metric as a share of the way from the corrupted prompts to the clean ones."""
    low, high = corrupted.mean(), clean.mean()
    if high == low:
        return np.full(np.shape(mean), np.nan)
    return np.asarray((mean - low) / (high - low))


def patching_sweep(
    model: Model,
    task: Task,
    kind: str,
    *,
    by: Sequence[str] | None = None,
    direction: str = "denoising",
    gate: str = "recomputed",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    metric: str | CustomMetric | None = None,
    resume: str | os.PathLike[str] | None = None,
    executor: Any = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
    progress: bool | None = None,
) -> PatchingSweep:
    """Measure the metric with each activation replaced by its value in the other prompt of the pair.

    Parameters
    ----------
    model : Model
    task : Task
        The answers are those of the clean prompts in either direction; `Task.swapped` exchanges them. By
        position all prompts must have one length.
    kind : str
        Of a layer: "resid" (the residual stream before it), "resid_mid" (between its attention and its MLP),
        "attn_out", "mlp_out". Of a head: "z", "q", "k", "v", "pattern" (with "position": a query's row).
    by : sequence of str, optional
        Which activations are replaced one at a time, and the order of the axes: "layer", for kinds of heads
        "head", and "position" or not; without "position" all positions are replaced at once. Default:
        ("layer", "position"), or ("layer", "head") for heads.
    direction : {"denoising", "noising"}, default "denoising"
        "denoising" puts clean values into the corrupted prompts, "noising" corrupted values into the clean
        ones.
    gate : {"recomputed", "held"}, default "recomputed"
        In a gated model: whether gates follow from the changed scores, or are those of the prompts as they
        are. Patterns that are put in have their own gates in either case.
    layers : sequence of int, optional
        Layers to replace activations of, ascending. Default: all.
    positions : sequence of int, optional
        With "position" in `by`: positions to replace, ascending. Default: all.
    metric : {"logit_diff", "logit_diff_max", "prob_diff", "log_prob", "kl"} or CustomMetric, optional
        Default: the task's own. "kl" compares with the clean prompt.
    resume : path, optional
        File that keeps what is measured; its name gets the ending .search.safetensors unless it ends in
        .safetensors. It is written about every 30 seconds, on Ctrl-C, and at the end. If it exists, the call
        continues from there and finds the same bits. It is not removed. The functions of a `CustomMetric`
        are known by its name alone.
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
    PatchingSweep
        The metric of every prompt for every activation.

    Raises
    ------
    ValueError
        For unknown names, axes that a kind does not have, layers or positions that do not ascend or do not
        exist, and, by position, prompts of different lengths.
    TypeError
        For arguments of another type.
    MemoryError
        If `max_bytes` is too little for one prompt at a time.
    FormatError
        If the file `resume` is damaged, or with the code question if it is of another call.
    OSError
        If that file cannot be read or written.
    RuntimeError
        For a piece that failed three times in the workers of an executor, unless it is one of the above.

    Notes
    -----
    This is the `get_act_patch_*` family of TransformerLens with `metric` for every prompt by itself: "resid",
    "attn_out" and "mlp_out" are `get_act_patch_resid_pre`, `_attn_out` and `_mlp_out` (all three:
    `get_act_patch_block_every`); "z", "q", "k", "v" and "pattern" by ("layer", "head") are
    `get_act_patch_attn_head_out_all_pos`, `_q_all_pos`, `_k_all_pos`, `_v_all_pos` and `_pattern_all_pos`,
    and by ("layer", "position", "head") the `_by_pos` ones.

    Nothing before the first token that differs within a pair can change, and is not computed.
    """
    _check.choice(kind, "kind", (*LAYER_KINDS, *HEAD_KINDS))
    _check.choice(direction, "direction", DIRECTIONS)
    _check.choice(gate, "gate", GATES)
    axes = _axes(kind, by)
    asked = packed_task(model, task, metric)
    max_bytes = _check.byte_limit(max_bytes)
    chosen_layers = _places(layers, "layers", model.config.n_layer)
    if positions is not None and "position" not in axes:
        raise ValueError(f"positions needs 'position' in by, got by={axes!r}")
    chosen_positions = _places(positions, "positions", max(map(len, task.clean)))
    denoising = direction == "denoising"
    by_position = "position" in axes
    if by_position:
        check_lengths(asked, "positions")
    layers_of = np.arange(model.config.n_layer) if chosen_layers is None else chosen_layers
    positions_of = range(len(task.clean[0])) if chosen_positions is None else chosen_positions
    n_heads = model.config.n_head if kind in HEAD_KINDS else 1
    shape = (len(layers_of), n_heads, len(positions_of) if by_position else 1, len(task))
    before = (kind, by_position, denoising, gate == "held")
    after = (chosen_positions, max_bytes)
    work = CoreWork(model, task.name, "patching", "patching_sweep", asked, before, layers_of, after, threads)
    values, base, other = np.zeros(shape), np.zeros(len(task)), np.zeros(len(task))

    def question() -> dict[str, Any]:
        given = {"kind": kind, "by_position": by_position, "direction": direction, "gate": gate}
        places = {"layers": layers_of, "positions": np.array(positions_of)}
        return sweep_question(model, task, metric, "patching", **given, **places)

    def put(i: int, piece: Piece, result: tuple[np.ndarray, ...]) -> None:
        layers, prompts = piece.place
        values[layers, :, :, prompts], base[prompts], other[prompts] = result

    pieces = cut(len(layers_of), len(task), each=shape[1] * shape[2])
    results = Results([values, base, other], len(pieces), executor, resume, question)
    with stage_bars(progress) as tell:
        results.add(work, pieces, put, tell)
    values = values.transpose(*(AXES.index(name) for name in axes), *_left_out(axes), 3)
    values = np.ascontiguousarray(values.reshape(*values.shape[: len(axes)], len(task)))
    clean, corrupted = (other, base) if denoising else (base, other)
    names = (metric_name(chosen_metric(metric, task)), model.name, task.name)
    return PatchingSweep(
        values, clean, corrupted, kind, axes, direction, *names,
        gate=gate if model.config.gated else "none",
        layers=None if chosen_layers is None else tuple(chosen_layers.tolist()),
        positions=None if chosen_positions is None else tuple(chosen_positions.tolist()),
    )  # fmt: skip


def _places(places: Sequence[int] | None, name: str, n: int) -> np.ndarray | None:
    """Ascending numbers in 0..n-1."""
    if places is None:
        return None
    found = np.array([_check.integer(place, f"each of {name}", 0, n - 1) for place in places], np.int64)
    if not len(found) or (np.diff(found) <= 0).any():
        raise ValueError(f"{name} must ascend, got {found.tolist()}")
    return found


def _axes(kind: str, by: Sequence[str] | None) -> tuple[str, ...]:
    """`by`, checked."""
    of_heads = kind in HEAD_KINDS
    if by is None:
        return ("layer", "head") if of_heads else ("layer", "position")
    axes = tuple(_check.names(by, "by"))
    wanted = {"layer", "head"} if of_heads else {"layer"}
    if set(axes) - {"position"} != wanted or len(set(axes)) != len(axes):
        names = ", ".join(map(repr, sorted(wanted, reverse=True)))
        raise ValueError(f"by must have {names} and may have 'position' for kind={kind!r}, got {axes!r}")
    return axes


def _left_out(axes: tuple[str, ...]) -> list[int]:
    return [i for i, name in enumerate(AXES) if name not in axes]
