"""Effects of an entry of each head's pattern as work that is cut into pieces.

Neighbouring prompts that are as long and have the entry at the same place are measured together.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _check
from .._core_types import EffectOptions
from .._core_types import Task as PackedTask
from .._display import stage_bars
from ..model.model import Model
from .asked import packed_task, part_of_task, told_options
from .pieces import Piece, Tell, cut, source_of
from .resumed import Results, array_digest, sweep_question

if TYPE_CHECKING:
    from ..tasks.task import Task


class EntryQuestion(NamedTuple):
    """The entry from one position to another of each prompt in all heads of a model."""

    model: Model
    options: EffectOptions
    weight: np.ndarray  #: real [P, L, H]
    query: np.ndarray  #: int64 [P]
    key: np.ndarray  #: int64 [P]


class EntryAnswer(NamedTuple):
    """What the entries of the n heads do that have one in some prompt."""

    heads: np.ndarray  #: int32 [n, 2]: by falling mean effect, of equal ones the first
    mean: np.ndarray  #: float64 [n]: their effects, averaged over the prompts
    effect: np.ndarray
    """float64 [P, L, H]: what the metric loses without the entry; 0 where an entry of weight 0 is ablated to
    0: not even the effect of rounding."""
    values: np.ndarray  #: float64 [n + 1, P]: the metric with the entries of the first 0..n heads kept
    full: np.ndarray  #: float64 [P]


@dataclass(frozen=True)
class EntryWork:
    """The metric of the model and with the entry of each head ablated, or with the first few entries kept."""

    model: Model
    task_name: str
    task: PackedTask
    options: EffectOptions
    query: np.ndarray
    key: np.ndarray
    heads: np.ndarray  # int32 [n, 2]
    keeps: bool
    threads: int | None = None

    def __post_init__(self) -> None:
        _check.threads(self.threads)

    @property
    def stage(self) -> str:
        """What bars and errors call it."""
        return "keep only" if self.keeps else "knock-out"

    @property
    def source(self) -> str:
        """For errors: the model and the task."""
        return source_of(self.model, self.task_name)

    def __call__(self, piece: Piece, threads: int | None, tell: Tell) -> np.ndarray:
        """float64 [rows, prompts]: row i with the first i kept, or of all heads; or 0 of the model and i
        without entry i - 1."""
        core, n_threads, (begin, end) = self.model._core, _check.threads(threads), piece.rows
        task = part_of_task(self.task, *piece.prompts)
        place = (int(self.query[piece.prompts[0]]), int(self.key[piece.prompts[0]]))
        items = np.ascontiguousarray(np.insert(self.heads, [2, 2], place, axis=1))
        if self.keeps:
            options = self.options._replace(others_stay=True)
            return core.keep_only(task, items, np.arange(begin, end), options, n_threads, tell)
        values = core.knock_out(task, items[max(0, begin - 1) : end - 1], self.options, n_threads, tell)
        return values if begin else np.concatenate([core.whole(task, n_threads)[None], values])

    def pieces(self) -> list[Piece]:
        """Of n + 1 rows for all prompts."""
        lengths = np.diff(self.task.offsets)
        alike = np.stack([lengths, self.query, self.key])
        begins = [0, *(np.flatnonzero((np.diff(alike) != 0).any(0)) + 1).tolist(), len(lengths)]
        found = [
            Piece(rows, (first + a, first + b))
            for first, end in itertools.pairwise(begins)
            for rows, (a, b) in cut(len(self.heads) + 1, end - first)
        ]
        return sorted(found)


def measured_entries(
    task: Task,
    asked: Sequence[EntryQuestion],
    executor: Any,
    resume: str | os.PathLike[str] | None,
    threads: int | None,
    progress: bool | None,
) -> list[EntryAnswer]:
    """The answers; resume: the file in which they are kept."""
    works = [_work(task, one, threads) for one in asked]
    arrays = [
        [np.zeros(shape) for shape in (one.query.shape, one.weight.shape, (len(work.heads) + 1, len(task)))]
        for one, work in zip(asked, works)
    ]

    def question() -> dict[str, Any]:
        others = [
            [one.model.digest, str(one.model.dtype), *map(array_digest, (one.query, one.key))]
            for one in asked
        ]
        options = told_options(asked[0].options)
        return sweep_question(asked[0].model, task, None, "entries", entries=others, **options)

    n_pieces = 2 * sum(len(work.pieces()) for work in works)
    flat = [array for each in arrays for array in each]
    results = Results(flat, n_pieces, executor, resume, question)
    with stage_bars(progress) as tell:
        return [_answer(one, work, results, each, tell) for one, work, each in zip(asked, works, arrays)]


def _work(task: Task, asked: EntryQuestion, threads: int | None) -> EntryWork:
    model, options, weight, query, key = asked
    packed = packed_task(model, task, None)
    if options.ablation == "mean" and options.reference is None:
        options = options._replace(reference=packed.tokens, reference_offsets=packed.offsets)
    heads = np.argwhere(weight.any(0)).astype(np.int32)
    return EntryWork(model, task.name, packed, options, query, key, heads, False, threads)


def _answer(
    asked: EntryQuestion, work: EntryWork, results: Results, arrays: Sequence[np.ndarray], tell: Tell
) -> EntryAnswer:
    full, effect, values = arrays
    closed = asked.weight == 0 if asked.options.ablation == "zero" else np.zeros(effect.shape, bool)

    def put_effects(i: int, piece: Piece, result: np.ndarray) -> None:
        prompts, begin = slice(*piece.prompts), piece.rows[0]
        if begin == 0:
            full[prompts] = result[0]
        for head, row in zip(work.heads[max(0, begin - 1) :], result[begin == 0 :]):
            at = (prompts, *head)
            effect[at] = np.where(closed[at], 0.0, full[prompts] - row)

    def put_values(i: int, piece: Piece, result: np.ndarray) -> None:
        values[piece.place] = result

    results.add(work, work.pieces(), put_effects, tell)
    mean = effect.sum(axis=0)[tuple(work.heads.T)] / len(full)
    order = np.argsort(-mean, kind="stable")
    heads = np.ascontiguousarray(work.heads[order])
    best = EntryWork(**{**vars(work), "heads": heads, "keeps": True})
    results.add(best, best.pieces(), put_values, tell)
    return EntryAnswer(heads, mean[order], effect, values, full)
