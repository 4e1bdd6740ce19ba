"""Which heads move information from one position of a prompt to another: exact effects of one entry per head.

A head moves information from position `key` to position `query` through one entry of its pattern. Here that
entry is ablated in one head at a time, in all heads, and in all but the best few; nothing is approximated.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .. import _check
from .._core_types import Curve
from .._engine import core_for
from .._tables import text_table
from ..items import Head
from ..model import tables
from ..model.model import Model
from ..model.run import DEFAULT_MAX_BYTES
from ..tasks.task import Task
from .asked import effect_options
from .entry_sweep import EntrySweep, Models, Where, named_models, sweep_entries
from .entry_task import KEY, PROMPT, QUERY, task_of_prompts
from .entry_work import EntryQuestion, measured_entries

if TYPE_CHECKING:
    import pandas as pd

    from ..model.run import Run

_CORE = core_for("float64")


@dataclass(frozen=True, eq=False, repr=False)
class EntryEffects:
    """The heads of one model with an open entry from `key` to `query` of one prompt, largest effect first.

    Made by `entry_effects`.

    Attributes
    ----------
    run : Run
        The prompt, with its pattern.
    key : int
        Position that is looked at, from 0.
    query : int
        Position that looks, from 0.
    answer : str
        The token whose logit is measured.
    ablation : str
        "zero" or "mean": what replaces an ablated entry.
    heads : tuple of Head
        n heads; those whose gate is closed at this entry are not among them.
    weight : numpy.ndarray
        float64 [n]: the entry of the pattern, in 0..1.
    effect : numpy.ndarray
        float64 [n], in logits: logit difference of the model minus that with this head's entry ablated.
    kept : numpy.ndarray
        float64 [n + 1]: faithfulness (m(first n) - m(none)) / (m(all) - m(none)) of the best 0..n
        entries, where the entries of the other heads from `key` to `query` are ablated and nothing else
        is changed.
    full : float
        Logit difference of the model, in logits: the answer's logit minus the mean of the wrong ones.
    without : float
        The same with this entry ablated in all heads.
    answer_is_top : bool
        Whether the answer is the most likely next token at `query`.
    """

    run: Run
    key: int
    query: int
    answer: str
    ablation: str
    heads: tuple[Head, ...]
    weight: np.ndarray
    effect: np.ndarray
    kept: np.ndarray
    full: float
    without: float
    answer_is_top: bool

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.run.model.name

    @property
    def shares(self) -> np.ndarray:
        """float64 [n + 1]: sum of the best 0..n effects, as a share of the sum of all positive ones."""
        shares: np.ndarray = _CORE.curve_shares(self.effect)
        return shares

    def needed(self, fraction: float) -> int:
        """The fewest heads, best first, whose effects add up to a share of all positive effects.

        Parameters
        ----------
        fraction : float
            The share, above 0 and at most 1.

        Returns
        -------
        int
        """
        return _first_at(self.shares, fraction)

    def needed_to_keep(self, fraction: float) -> int:
        """The fewest heads, best first, whose entries keep a fraction of the effect of all entries together.

        Parameters
        ----------
        fraction : float
            The fraction of `kept`, above 0 and at most 1.

        Returns
        -------
        int
        """
        return _first_at(self.kept, fraction)

    def to_pandas(self, base: int = 0) -> pd.DataFrame:
        """One row per head, largest effect first.

        Parameters
        ----------
        base : {0, 1}, default 0
            Number of the first position.

        Returns
        -------
        pandas.DataFrame
            Columns item_rank, layer, head_index, label, query_position, key_position, query_token, key_token,
            weight, effect, and share and kept of this and all better heads together.
        """

        base, n, tokens = _check.base(base), len(self.heads), self.run.token_strings
        table: pd.DataFrame = text_table(
            {
                "item_rank": np.arange(1, n + 1),
                "layer": [head.layer for head in self.heads],
                "head_index": [head.head for head in self.heads],
                "label": [head.label for head in self.heads],
                "query_position": np.full(n, self.query + base),
                "key_position": np.full(n, self.key + base),
                "query_token": [tokens[self.query]] * n,
                "key_token": [tokens[self.key]] * n,
                "weight": self.weight,
                "effect": self.effect,
                "share": self.shares[1:],
                "kept": self.kept[1:],
            }
        )
        return table

    def __repr__(self) -> str:
        tokens = self.run.token_strings
        where = f"{tokens[self.key]!r:.30} -> {tokens[self.query]!r:.30} in {self.name!r:.60}"
        return f"EntryEffects({where}: {len(self.heads)} heads, {self.needed(0.8)} have 80 % of the effect)"


@overload
def entry_effects(  # type: ignore[overload-overlap]  # a text is an iterable of texts as well
    model: Model,
    prompt: str = ...,
    key: int | str = ...,
    query: int | str = ...,
    answer: str | None = ...,
    wrong: Sequence[str] | None = ...,
    *,
    ablation: str = ...,
    reference: Task | Iterable[Any] | None = ...,
    base: int = ...,
    prepend_space_to_answer: bool | None = ...,
    resume: str | os.PathLike[str] | None = ...,
    executor: Any = ...,
    threads: int | None = ...,
    progress: bool | None = ...,
) -> EntryEffects: ...


@overload
def entry_effects(
    model: Models,
    prompt: Task | Iterable[str] = ...,
    key: Where = ...,
    query: Where = ...,
    answer: str | Sequence[str] | None = ...,
    wrong: Sequence[str] | Sequence[Sequence[str]] | None = ...,
    *,
    ablation: str = ...,
    reference: Task | Iterable[Any] | None = ...,
    base: int = ...,
    prepend_space_to_answer: bool | None = ...,
    resume: str | os.PathLike[str] | None = ...,
    executor: Any = ...,
    threads: int | None = ...,
    progress: bool | None = ...,
) -> EntrySweep: ...


def entry_effects(
    model: Models,
    prompt: Task | Iterable[str] = PROMPT,
    key: Where = KEY,
    query: Where = QUERY,
    answer: str | Sequence[str] | None = None,
    wrong: Sequence[str] | Sequence[Sequence[str]] | None = None,
    *,
    ablation: str = "zero",
    reference: Task | Iterable[Any] | None = None,
    base: int = 0,
    prepend_space_to_answer: bool | None = None,
    resume: str | os.PathLike[str] | None = None,
    executor: Any = None,
    threads: int | None = None,
    progress: bool | None = None,
) -> EntryEffects | EntrySweep:
    """Ablate the entry from `key` to `query` in each head, and measure the effect on the answer.

    Parameters
    ----------
    model : Model, iterable of Model, or mapping of str to Model
        One model, or several, by name.
    prompt : str, iterable of str, or Task
        One prompt, several, or a task, which has its own answers and metric; a list, tuple, array, Series or
        generator of texts is several.
    key, query : int, str, or iterable of these
        Positions counted from `base`, or tokens, as in `attnsparse.model.tables.position`; for several
        prompts one for all, or one for each. For one prompt, `query` is the last token.
    answer : str or sequence of str, optional
        One token; for several prompts one for all, or one for each. The metric is its logit after the prompt
        minus the mean logit of the wrong answers. Default: that of the default prompt.
    wrong : sequence of str, or of such sequences, optional
        Wrong answers, each one token, for all prompts or one sequence for each. Default: all other words of
        the antonym task.
    ablation : {"zero", "mean", "counterfactual"}, default "zero"
        What replaces the entry: zero, its mean over prompts, or what it is in the corrupted prompt of a task.
    reference : Task or iterable of prompts, optional
        For "mean" alone: the prompts, as long as these. Default: those of the task itself.
    base : {0, 1}, default 0
        Number of the first position.
    prepend_space_to_answer : bool, optional
        True: put a space before answers without one. False: take them as they are. Default: raise where both
        are tokens and a space is likely.
    resume : path, optional
        File that keeps what is measured, of all models; its name gets the ending .search.safetensors unless
        it ends in .safetensors. It is written about every 30 seconds, on Ctrl-C, and at the end. If it
        exists, the call continues from there and finds the same bits as without the stop. It is not removed.
    executor : concurrent.futures.Executor or Dask Client, optional
        Whose workers measure, in pieces that do not depend on their number: the bits are those of a call
        without. See docs/cluster.md.
    threads : int, optional
        Default: the number set by `set_num_threads`.
    progress : bool, optional
        Show a bar on stderr. Default: in terminals and notebooks only.

    Returns
    -------
    EntryEffects or EntrySweep
        An EntryEffects of one model and one prompt that is a text; an EntrySweep of everything else.

    Raises
    ------
    TypeError
        If `model` or `prompt` is something else.
    ValueError
        For another ablation, a key after the query, answers that are not one token, and positions or answers
        of another number than the prompts. For one prompt alone: a mean without a reference, a query that is
        not the last token, an entry that is closed in every head, and an answer that does not depend on the
        entry (with it ablated in all heads, the logit difference is not below the model's).
    IndexError
        If a position is outside a prompt.
    FormatError
        If the file `resume` is damaged, or with the code question if it is of another call.
    OSError
        If that file cannot be read or written.
    RuntimeError
        For a piece that failed three times in the workers of an executor, unless it is one of the above.
    """
    if isinstance(prompt, Task):
        if answer is not None or wrong is not None:
            raise ValueError("a task has its own answers; leave answer and wrong out")
        task = prompt
    elif isinstance(model, Model) and isinstance(prompt, str):
        return _of_one(model, prompt, key, query, answer, wrong, ablation, reference, base,
                       prepend_space_to_answer, executor, resume, threads, progress)  # fmt: skip
    else:
        model = named_models(model)
        first = next(iter(model.values()))
        task = task_of_prompts(first, prompt, answer, wrong, prepend_space_to_answer)
    return sweep_entries(
        model, task, key, query, ablation=ablation, reference=reference, base=base, resume=resume,
        executor=executor, threads=threads, progress=progress,
    )  # fmt: skip


def _of_one(
    model: Model, prompt: str, key: Where, query: Where, answer: Any, wrong: Any, ablation: str,
    reference: Task | Iterable[Any] | None, base: int, prepend_space: bool | None,
    executor: Any, resume: str | os.PathLike[str] | None, threads: int | None, progress: bool | None,
) -> EntryEffects:  # fmt: skip
    """The effects in one model and one prompt."""
    if ablation not in ("zero", "mean") or (ablation == "mean") != (reference is not None):
        raise ValueError(
            f"ablation of one prompt must be 'zero', or 'mean' with a reference, got {ablation!r:.60} "
            f"{'without' if reference is None else 'with'} a reference"
        )
    run, base = model.run(prompt, record="attention"), _check.base(base)
    key_at, query_at = _last_entry(run, key, query, base)
    task = task_of_prompts(model, prompt, answer, wrong, prepend_space)
    weight = np.ascontiguousarray(run.pattern[:, :, query_at, key_at])
    if not weight.any():
        raise ValueError(
            f"no head of {model.name!r} looks from position {query_at + base} to {key_at + base} "
            f"(base={base}): the gate is closed in all of them"
        )
    options = effect_options(model, "edge", ablation, reference, DEFAULT_MAX_BYTES)
    asked = EntryQuestion(model, options, weight[None], np.array([query_at]), np.array([key_at]))
    rows, effect, _, values, full = measured_entries(task, [asked], executor, resume, threads, progress)[0]
    if not values[0, 0] < full[0]:
        raise ValueError(
            f"{model.name!r} does not need what it sees from position {query_at + base} to {key_at + base}: "
            f"the logit difference is {full[0]:.3g}, "
            f"and {values[0, 0]:.3g} with this entry ablated in all heads"
        )
    heads = tuple(Head(*row) for row in rows.tolist())
    return EntryEffects(
        run=run,
        key=key_at,
        query=query_at,
        answer=task.tokenizer.token_string(int(task.answers[0][0])) if answer is None else answer,
        ablation=ablation,
        heads=heads,
        weight=np.array([weight[head] for head in heads], np.float64),
        effect=effect,
        kept=_CORE.curve_effect(Curve(values, full, np.ascontiguousarray(values[0]), "mib")),
        full=float(full[0]),
        without=float(values[0, 0]),
        answer_is_top=int(np.argmax(run.logits[query_at])) == int(task.answers[0][0]),
    )


def _last_entry(run: Run, key: Any, query: Any, base: int) -> tuple[int, int]:
    """Both positions from 0, of an entry into the last token."""
    for which in (key, query):
        if not isinstance(which, (int, str, np.integer)):
            raise TypeError(
                f"a position of one prompt must be an integer or a token, got {type(which).__name__}"
            )
    key_at, query_at = tables.entry(run, key, query, base)
    if query_at != run.n_tokens - 1:
        raise ValueError(
            f"query must be the last token, after which the answer is read: position "
            f"{run.n_tokens - 1 + base}, got {query_at + base} (base={base})"
        )
    return key_at, query_at


def _first_at(rising: np.ndarray, fraction: float) -> int:
    """The first index at which `rising` reaches the fraction, the last one if rounding keeps it below 1."""
    first, _ = _CORE.curve_needed(rising[None], fraction)
    return min(int(first[0]), len(rising) - 1)
