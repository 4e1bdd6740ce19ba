"""Which heads move information from one position to another, over many prompts and in several models."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import _check
from .._core_types import Curve
from .._display import html_table
from .._engine import core_for
from .._tables import text_column, text_table
from ..items import Head
from ..model import tables
from ..model.model import Model
from ..model.run import DEFAULT_MAX_BYTES
from .asked import effect_options, packed_task
from .choices import MAX_RESAMPLES
from .entry_work import EntryQuestion, measured_entries

if TYPE_CHECKING:
    import pandas as pd

    from ..tasks.task import Task

Models: TypeAlias = "Model | Iterable[Model] | Mapping[str, Model]"
Where: TypeAlias = "int | str | Iterable[int | str]"

_CORE = core_for("float64")
_PROMPTS_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class _OfModel:
    """The effects in one model, with P prompts, L layers, H heads, and n heads with an open entry."""

    name: str
    weight: np.ndarray  #: real [P, L, H]: the entries of the pattern
    effect: np.ndarray  #: float64 [P, L, H]
    heads: np.ndarray  #: int32 [n, 2], by falling mean effect
    mean: np.ndarray  #: float64 [n]
    values: np.ndarray  #: float64 [n + 1, P]: the metric with the entries of the first 0..n heads kept
    full: np.ndarray  #: float64 [P]

    def kept(self) -> Curve:
        """The metric with the entries of the best heads kept, as a circuit's curve."""
        curve = Curve(self.values, self.full, np.ascontiguousarray(self.values[0]), "mib")
        sizes = np.arange(len(self.values))
        return curve._replace(effect=_CORE.curve_effect(curve), sizes=sizes)

    def effects(self) -> Curve:
        """The effects of the n heads themselves, [n, P], whose resampled means have intervals."""
        rows = np.ascontiguousarray(self.effect[:, self.heads[:, 0], self.heads[:, 1]].T)
        nothing = np.zeros(len(self.full))
        return Curve(rows, nothing, nothing, "none")


@dataclass(frozen=True, eq=False, repr=False)
class EntrySweep:
    """The entries from one position to another of each prompt of a task, in all heads of one or more models.

    Made by `entry_effects` for a task, several prompts or several models.

    Attributes
    ----------
    models : tuple of str
        Names of the models.
    task : Task
        P prompts, with the metric.
    ablation : str
        What replaces an ablated entry: "zero", "mean" or "counterfactual".
    key : numpy.ndarray
        int64 [P]: position that is looked at, from 0.
    query : numpy.ndarray
        int64 [P]: position that looks, from 0.
    key_tokens, query_tokens : tuple of str
        The tokens there.
    """

    models: tuple[str, ...]
    task: Task
    ablation: str
    key: np.ndarray
    query: np.ndarray
    key_tokens: tuple[str, ...]
    query_tokens: tuple[str, ...]
    _found: tuple[_OfModel, ...]

    def __len__(self) -> int:
        return len(self.key)

    def to_pandas(self, base: int = 0, *, texts: bool = False) -> pd.DataFrame:
        """One row per model, prompt and head, in this order.

        Parameters
        ----------
        base : {0, 1}, default 0
            Number of the first position.
        texts : bool, default False
            Also give each prompt as text, in the column prompt_text.

        Returns
        -------
        pandas.DataFrame
            Columns model, prompt (from 0, as in the task), prompt_text, layer, head_index, label,
            query_position, key_position, query_token, key_token, weight (the entry of the pattern, 0 if the
            gate is closed), effect (the metric of the model minus that without this head's entry; 0 for a
            closed gate).
        """
        import pandas as pd

        base, texts, parts = _check.base(base), _check.flag(texts, "texts"), []
        whole = [self.task.text(i) for i in range(len(self))] if texts else []
        for one in self._found:
            n_prompts, n_layer, n_head = one.effect.shape
            prompt, layer, head = (index.ravel() for index in np.indices(one.effect.shape))
            labels = [Head(i, j).label for i in range(n_layer) for j in range(n_head)]
            columns: dict[str, Any] = {
                "model": one.name,
                "prompt": prompt,
                "layer": layer,
                "head_index": head,
                "label": text_column(labels * n_prompts),
                "query_position": self.query[prompt] + base,
                "key_position": self.key[prompt] + base,
                "query_token": text_column([self.query_tokens[i] for i in prompt.tolist()]),
                "key_token": text_column([self.key_tokens[i] for i in prompt.tolist()]),
                "weight": one.weight.ravel(),
                "effect": one.effect.ravel(),
            }
            parts.append(text_table(columns))
        table: pd.DataFrame = pd.concat(parts, ignore_index=True)
        if texts:
            table.insert(2, "prompt_text", text_column(whole[i] for i in table["prompt"].tolist()))
        return table

    def summary(self, *, n_bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """One row per model and head with an open entry in any prompt, largest mean effect first.

        Parameters
        ----------
        n_bootstrap : int, default 1000
            Resamples of the prompts for the intervals; all models are resampled alike.
        confidence : float, default 0.95
            Share of the resamples inside an interval.
        seed : int, default 0
            Of the resamples.

        Returns
        -------
        pandas.DataFrame
            Columns model, item_rank (from 1), layer, head_index, label, n_open (prompts in which the entry is
            not 0), mean_weight, mean_effect, low and high (of its interval), share (of the sum of all
            positive mean effects, of this and all better heads together), kept (faithfulness
            ``(m(first n) - m(none)) / (m(all) - m(none))`` of the entries of this and all better heads, m
            being the mean metric and everything else unchanged), kept_low, kept_high. Intervals are NaN
            without resamples.
        """
        import pandas as pd

        drawn, confidence = _resamples(n_bootstrap, confidence, seed)
        parts = []
        for one in self._found:
            layer, head = one.heads.T
            low, high = _CORE.curve_band(_CORE.curve_bootstrap(one.effects(), *drawn), confidence)
            kept_low, kept_high = _CORE.curve_band(_CORE.curve_bootstrap(one.kept(), *drawn), confidence)
            weight = one.weight[:, layer, head]
            columns: dict[str, Any] = {
                "model": one.name,
                "item_rank": np.arange(1, len(layer) + 1),
                "layer": layer.astype(np.int64),
                "head_index": head.astype(np.int64),
                "label": text_column([Head(*row).label for row in one.heads.tolist()]),
                "n_open": np.count_nonzero(weight, axis=0),
                "mean_weight": weight.mean(axis=0, dtype=np.float64),
                "mean_effect": one.mean,
                "low": low,
                "high": high,
                "share": _CORE.curve_shares(np.ascontiguousarray(one.mean))[1:],
                "kept": _CORE.curve_effect(one.kept())[1:],
                "kept_low": kept_low[1:],
                "kept_high": kept_high[1:],
            }
            parts.append(text_table(columns))
        table: pd.DataFrame = pd.concat(parts, ignore_index=True)
        return table

    def needed(
        self,
        fraction: float = 0.8,
        *,
        n_bootstrap: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> pd.DataFrame:
        """How many heads carry the fraction of what the entries of all heads do together, one row per model.

        Parameters
        ----------
        fraction : float, default 0.8
            Of the faithfulness, see kept in `summary`; above 0 and at most 1.
        n_bootstrap, confidence, seed
            As in `summary`.

        Returns
        -------
        pandas.DataFrame
            Columns model, n_prompts, n_heads (in the model), n_open (heads with an open entry in any prompt),
            full_metric and empty_metric (means of the model, and of it without the entry in all heads),
            fraction, n_first (the fewest heads that reach it, best first), n_first_low, n_first_high, n_stays
            (the fewest from which it stays reached), n_stays_low, n_stays_high; missing if it is never
            reached. The ranking is on the same prompts, and is kept in the resamples.
        """

        fraction, (drawn, confidence) = _check.fraction(fraction), _resamples(n_bootstrap, confidence, seed)
        names = ("n_first", "n_stays", "n_first_low", "n_first_high", "n_stays_low", "n_stays_high")
        shown = ("n_first", "n_first_low", "n_first_high", "n_stays", "n_stays_low", "n_stays_high")
        rows = []
        for one in self._found:
            counts = _CORE.curve_needed_interval(one.kept(), fraction, *drawn, confidence)
            known = [count if count < len(one.values) else None for count in counts]
            rows.append(
                {
                    "model": one.name,
                    "n_prompts": len(self),
                    "n_heads": one.effect[0].size,
                    "n_open": len(one.heads),
                    "full_metric": one.full.mean(),
                    "empty_metric": one.values[0].mean(),
                    "fraction": fraction,
                    **dict(zip(names, known)),
                }
            )
        table: pd.DataFrame = text_table(rows).astype(dict.fromkeys(names, "Int64"))
        ordered: pd.DataFrame = table[[*(name for name in table if name not in names), *shown]]
        return ordered

    def __repr__(self) -> str:
        positions = sorted({f"{key}->{query}" for key, query in zip(self.key.tolist(), self.query.tolist())})
        where = positions[0] if len(positions) == 1 else "positions by token"
        return (
            f"EntrySweep({where} in {', '.join(map(repr, self.models))}: {len(self)} prompts of "
            f"{self.task.name!r}, ablation={self.ablation!r}, metric={self.task.metric!r})"
        )

    def _repr_html_(self) -> str:
        return html_table(self, self.summary())


def _resamples(n: int, confidence: float, seed: int) -> tuple[tuple[int, int], float]:
    n = _check.integer(n, "n_bootstrap", 0, MAX_RESAMPLES)
    return (n, _check.seed(seed)), _check.proper_fraction(confidence, "confidence")


def sweep_entries(
    models: Models,
    task: Task,
    key: Where,
    query: Where,
    *,
    ablation: str,
    reference: Task | Iterable[Any] | None,
    base: int,
    resume: str | os.PathLike[str] | None,
    executor: Any,
    threads: int | None,
    progress: bool | None,
) -> EntrySweep:
    """See `entry_effects`."""
    named, base = named_models(models), _check.base(base)
    asked: list[EntryQuestion] = []
    tokens: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    for model in named.values():
        packed_task(model, task, None)
        options = effect_options(model, "edge", ablation, reference, DEFAULT_MAX_BYTES)
        keys, queries, weight, tokens = _entries(model, task, key, query, base)
        asked.append(EntryQuestion(model, options, weight, queries, keys))
    found = measured_entries(task, asked, executor, resume, threads, progress)
    each = [
        _OfModel(name, one.weight, two.effect, two.heads, two.mean, two.values, two.full)
        for name, one, two in zip(named, asked, found)
    ]
    return EntrySweep(tuple(named), task, ablation, asked[0].key, asked[0].query, *tokens, tuple(each))


def named_models(models: Models) -> dict[str, Model]:
    """Models by name."""
    if isinstance(models, Model):
        return {models.name or "model": models}
    if not isinstance(models, Iterable):
        raise TypeError(f"model must be a Model or several, got {type(models).__name__}")
    if isinstance(models, Mapping):
        listed = [(str(name), model) for name, model in models.items()]
    else:
        listed = [(getattr(model, "name", None) or f"model {i}", model) for i, model in enumerate(models)]
    if not listed:
        raise ValueError("model must be a Model or several, got none")
    for _, model in listed:
        _check.instance(model, Model, "model")
    if len(dict(listed)) < len(listed):
        raise ValueError(
            f"models must have different names, got {', '.join(repr(name) for name, _ in listed)}; "
            "give a mapping of names to models"
        )
    return dict(listed)


def _entries(
    model: Model, task: Task, key: Where, query: Where, base: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Of each prompt: the positions, the weights of all heads there [P, L, H], and the tokens."""
    n = len(task)
    asked = [_one_each(which, name, n) for which, name in ((key, "key"), (query, "query"))]
    places = np.empty((2, n), np.int64)
    weight = np.empty((n, model.config.n_layer, model.config.n_head), model.dtype)
    tokens: tuple[list[str], list[str]] = ([], [])
    for begin in range(0, n, _PROMPTS_AT_ONCE):
        runs = model.run(list(task.clean[begin : begin + _PROMPTS_AT_ONCE]), "pattern", logits="none")
        for i, run in enumerate(runs, begin):
            places[:, i] = tables.entry(run, asked[0][i], asked[1][i], base, f"prompt {i}: ")
            weight[i] = run.pattern[:, :, places[1, i], places[0, i]]
            for side, place in zip(tokens, places[:, i]):
                side.append(run.token_strings[place])
    return places[0], places[1], weight, (tuple(tokens[0]), tuple(tokens[1]))


def _one_each(which: Where, name: str, n: int) -> list[int | str]:
    """A position for each of n prompts."""
    if isinstance(which, str) or not isinstance(which, Iterable):
        return [which] * n
    each = list(which)
    if len(each) != n:
        raise ValueError(f"{name} must be one position, or one for each of the {n} prompts, got {len(each)}")
    return each
