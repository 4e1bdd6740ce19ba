"""Circuit: heads or attention edges, best first, with how much of an effect the n best explain.

An object without a model: it holds numbers and names, can be saved, and works without the model it came from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import _check
from .._core_types import Curve
from .._display import escaped, html_rows
from .._engine import core_for
from ..io.limits import DEFAULT_LIMITS, Limits
from ..items import Head
from . import circuit_file, circuit_tables
from .choices import COUNTED_BY, ITEMS, MAX_RESAMPLES, NAMES
from .needed import Needed, Ratio

SHOWN = 10  # items in the notebook's table
ARRAYS = (
    "items", "scores", "sizes", "values", "full", "empty", "effect", "effect_low", "effect_high",
    "random_effect", "random_low", "random_high",
)  # fmt: skip
"""Fields of a Circuit that are arrays, as `_core.Circuit.array` knows them."""
_CORE = core_for("float64")


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """A ranking of n items with its evaluation on P prompts at S sizes. Made by `find_circuit`.

    All arrays are read-only; those of `find_circuit` are views of the core's memory. Every number depends on
    the ablation, the normalization and the metric: compare only circuits in which these agree.

    Attributes
    ----------
    model_name, model_digest : str
        Name of the model, and its `Model.digest`.
    task_name, task_digest : str
        Name of the task, and its `Task.digest`.
    unit : str
        What an item is: "head", "head_position" (a head at one position) or "edge" (an attention edge).
    method : str
        How the items were ranked: "exact", "attribution", "ig" or "greedy".
    ablation : str
        What replaces ablated items: "zero", "mean" or "counterfactual".
    normalize : str
        How the metric becomes a faithfulness: "mib", "ratio" or "none".
    metric : str
        One of `tasks.METRICS`, or the name of a `tasks.CustomMetric`.
    options : mapping
        All other options as JSON values: rank_by, steps, greedy_step, sizes, reference (the digest of the
        task it is the mean of), n_bootstrap, n_random, confidence, seed; and n_ranking, the prompts
        ranked on.
    items : numpy.ndarray
        int32 [n, 2 | 3 | 4], best first: layer, head; with position; or layer, head, query, key.
    scores : numpy.ndarray
        float64 [n]. exact: mean drop of the metric without the item. attribution, ig: its estimate.
        Positive: the item supports the task (for "kl", which is better when smaller, the sign is turned).
        greedy: n for the item dropped last, down to 1.
    sizes : numpy.ndarray
        int64 [S], ascending: how many of the best items were kept.
    values : numpy.ndarray
        float64 [S, P]: the metric on each evaluation prompt with only the best items kept.
    full : numpy.ndarray
        float64 [P]: the metric of the whole model.
    empty : numpy.ndarray
        float64 [P]: the metric with all items ablated.
    effect : numpy.ndarray
        float64 [S]: faithfulness (explained effect) f of the best items.
    effect_low, effect_high : numpy.ndarray
        float64 [S]: ends of its bootstrap interval over prompts; NaN without one.
    random_effect : numpy.ndarray
        float64 [S]: f of items in random order, mean over the orders; NaN where it was not evaluated.
    random_low, random_high : numpy.ndarray
        float64 [S]: the smallest and the largest of the random orders.
    position_labels : tuple of str or None
        Names of the positions, where all prompts share them.
    version : int
        Version of the file format.
    """

    model_name: str
    model_digest: str
    task_name: str
    task_digest: str
    unit: str
    method: str
    ablation: str
    normalize: str
    metric: str
    options: Mapping[str, Any]
    items: np.ndarray
    scores: np.ndarray
    sizes: np.ndarray
    values: np.ndarray
    full: np.ndarray
    empty: np.ndarray
    effect: np.ndarray
    effect_low: np.ndarray
    effect_high: np.ndarray
    random_effect: np.ndarray
    random_low: np.ndarray
    random_high: np.ndarray
    position_labels: tuple[str, ...] | None = None
    version: int = field(default=circuit_file.VERSION)

    def __post_init__(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    def __len__(self) -> int:
        return len(self.items)

    # --- how many, and which

    def needed(self, fraction: float = 0.9) -> Needed:
        """How many of the best items reach a faithfulness of `fraction`, with bootstrap intervals.

        Parameters
        ----------
        fraction : float, default 0.9
            Share of the whole model's effect, above 0 and at most 1.

        Returns
        -------
        Needed
            Two numbers, because curves are not monotone: the first n that reaches the fraction, and the n
            from which the curve stays at or above it. Both are exact where every size was evaluated (all
            heads; up to 32 edges), else as fine as `sizes`: 5 %, and finer around 0.9. The intervals are over
            prompts; they keep the ranking and the sizes.

        Raises
        ------
        ValueError
            For a fraction outside (0, 1], and with normalize="none", where f is not a share.
        """
        fraction = _check.fraction(fraction)
        if self.normalize == "none":
            raise ValueError(
                "this circuit has normalize='none': its effect is not a share of the whole model's"
            )
        drawn = (self.options[name] for name in ("n_bootstrap", "seed", "confidence"))
        return Needed(
            *(self._size(i) for i in _CORE.curve_needed_interval(self._measured(), fraction, *drawn))
        )

    def _measured(self) -> Curve:
        """What the core takes."""
        arrays = (self.values, self.full, self.empty, self.effect)
        values, full, empty, effect = (np.ascontiguousarray(array, np.float64) for array in arrays)
        return Curve(values, full, empty, self.normalize, effect, np.ascontiguousarray(self.sizes, np.int64))

    def _size(self, index: int) -> int | None:
        return int(self.sizes[index]) if index < len(self.sizes) else None

    def kept(self, fraction: float = 0.9, by: str = "first") -> list[Any]:
        """The best items that `needed(fraction)` counts, best first.

        Parameters
        ----------
        fraction : float, default 0.9
            As in `needed`.
        by : {"first", "stays"}, default "first"
            Which of the two numbers of `needed` counts.

        Returns
        -------
        list of Head, HeadPosition or Edge
            By `unit`.

        Raises
        ------
        ValueError
            As `needed`; if the curve never reaches the fraction, or does not stay there.
        """
        n = getattr(self.needed(fraction), _check.choice(by, "by", COUNTED_BY))
        if n is None:
            what = "reach" if by == "first" else "stay at"
            raise ValueError(
                f"the faithfulness does not {what} {fraction:g}: with {self.sizes[-1]} of {len(self)} "
                f"{NAMES[self.unit]} it is {self.effect[-1]:.4g}"
            )
        return self.top(n)

    def top(self, n: int) -> list[Any]:
        """The n best items, best first.

        Parameters
        ----------
        n : int
            0 or more; all items if there are no more than n.

        Returns
        -------
        list of Head, HeadPosition or Edge
            By `unit`.
        """
        kind, n = ITEMS[self.unit], _check.integer(n, "n", 0)
        return [kind(*row) for row in self.items[:n].tolist()]

    def heads(self, fraction: float = 0.9, by: str = "first") -> list[Head]:
        """The heads of the items `kept(fraction, by)`, each once, in order of their best item.

        Parameters
        ----------
        fraction, by
            As in `kept`.

        Returns
        -------
        list of Head

        Raises
        ------
        ValueError
            As `kept`.
        """
        return list(dict.fromkeys(Head(item.layer, item.head) for item in self.kept(fraction, by)))

    def ratio_to(
        self,
        other: Circuit,
        fraction: float = 0.9,
        by: str = "first",
        *,
        n_bootstrap: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> Ratio:
        """How many times more items this circuit needs than `other`, with an interval over prompts.

        Parameters
        ----------
        other : Circuit
            Of the same unit, ablation and task.
        fraction : float, default 0.9
            As in `needed`.
        by : {"first", "stays"}, default "first"
            Which of the two numbers of `needed` is divided.
        n_bootstrap : int, default 1000
            Resamples of the prompts, 1 or more. Each takes the same prompts for both circuits if they were
            evaluated on equally many.
        confidence : float, default 0.95
            Share of the resamples inside the interval, above 0 and below 1.
        seed : int, default 0
            Of the resamples.

        Returns
        -------
        Ratio
            Of NaN if one of the circuits never reaches the fraction.

        Raises
        ------
        ValueError
            If the circuits differ in unit, ablation or task.
        """
        _check.instance(other, Circuit, "other")
        fraction, by = _check.fraction(fraction), _check.choice(by, "by", COUNTED_BY)
        n_bootstrap = _check.integer(n_bootstrap, "n_bootstrap", 1, MAX_RESAMPLES)
        confidence, seed = _check.proper_fraction(confidence, "confidence"), _check.seed(seed)
        for name in ("unit", "ablation", "task_name"):
            own, theirs = getattr(self, name), getattr(other, name)
            if own != theirs:
                raise ValueError(f"a ratio needs circuits of the same {name}, got {own!r} and {theirs!r}")
        pair, stays = (self._measured(), other._measured()), by == "stays"
        return Ratio(*_CORE.curve_ratio(*pair, fraction, stays, n_bootstrap, seed, confidence))

    @property
    def labels(self) -> list[str]:
        """The names of all items, best first."""
        return [item.label for item in self.top(len(self))]

    # --- tables

    to_pandas = circuit_tables.to_pandas
    curve = circuit_tables.curve
    summary = circuit_tables.summary

    # --- file

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, which `load_circuit` reads.

        Parameters
        ----------
        path : path
            ".circuit.safetensors" is added if it does not end in .safetensors. The file is replaced whole or
            not at all; the same circuit gives the same bytes.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        circuit_file.write(path, vars(self))

    # --- shown

    def __repr__(self) -> str:
        return (
            f"Circuit({len(self):,} {NAMES[self.unit]}, model={self.model_name!r}, task={self.task_name!r}, "
            f"method={self.method!r}, ablation={self.ablation!r}, normalize={self.normalize!r}"
            f"{self._needed_text(', {share:.0%} of the effect: first {first}, stays {stays}')})"
        )

    def _repr_html_(self) -> str:
        facts = (
            f"{len(self):,} {NAMES[self.unit]} of {self.model_name or 'a model without a name'} on task "
            f"{self.task_name!r}. Ranking: {self.method}, {self.options['rank_by']}, on "
            f"{self.options['n_ranking']} prompts; evaluation on {len(self.full)} others. Ablation: "
            f"{self.ablation}. Normalization: {self.normalize}. Metric: {self.metric}, "
            f"{self.full.mean():.4g} with all, {self.empty.mean():.4g} with none."
        )
        counts = self._needed_text(
            "{share:.0%} of the effect: reached with the first {first} {of_first}, kept from {stays} "
            "{of_stays}; in brackets the interval of "
            f"{self.options['confidence']:.0%} of resampled prompts."
        )
        names = ("rank", "label", "score", "effect up to here")
        known = dict(zip(self.sizes.tolist(), self.effect.tolist()))
        rows = [
            (
                str(i + 1),
                item.label,
                f"{self.scores[i]:.4g}",
                f"{known[i + 1]:.3f}" if i + 1 in known else "",
            )
            for i, item in enumerate(self.top(SHOWN))
        ]
        return f"<p>{escaped(facts)}</p><p>{escaped(counts)}</p>" + html_rows(names, rows, len(self))

    def _needed_text(self, template: str, share: float = 0.9) -> str:
        """`template` filled with what `needed(share)` found; nothing for normalize="none"."""
        if self.normalize == "none":
            return ""
        needed = self.needed(share)
        shown = ["none" if n is None else f"{n:,}" for n in needed]
        return template.format(
            share=share,
            first=shown[0],
            stays=shown[1],
            of_first=f"[{shown[2]} to {shown[3]}]",
            of_stays=f"[{shown[4]} to {shown[5]}]",
        )


def load_circuit(path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> Circuit:
    """Read the file that `Circuit.save(path)` wrote.

    Parameters
    ----------
    path : path
        With or without ".circuit.safetensors".
    limits : Limits
        Of the sizes that files may have.

    Returns
    -------
    Circuit

    Raises
    ------
    OSError
        If the file cannot be read.
    FormatError
        With a code: those of a safetensors file; magic for another safetensors file, version, checksum,
        header_value for its fields; missing_tensor, unexpected_tensor, dtype and size_mismatch for the
        arrays; value for items or sizes that make no sense.
    LimitError
        Above one of `limits`.
    NonFiniteError
        For numbers that are not finite.
    """
    return Circuit(**circuit_file.read(path, limits))
