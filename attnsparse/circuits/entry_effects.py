"""Which heads move information from one position of a prompt to another: exact effects of one entry per head.

A head moves information from position `key` to position `query` through one entry of its pattern. Here that
entry is ablated in one head at a time, in all heads, and in all but the best few; nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import _check
from .._engine import core_for
from ..items import Head
from ..model import tables
from ..model.run import DEFAULT_MAX_BYTES
from ..tasks import words as demo_words
from ..tasks.builder import build
from ..tasks.task import PromptText
from .effects import effect_options, packed_task

if TYPE_CHECKING:
    import pandas as pd

    from ..model.model import Model
    from ..model.run import Run
    from ..tasks.task import Task

PROMPT = 'The opposite of "large" is "'
KEY, QUERY, ANSWER = "large", -1, "small"
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
        import pandas as pd

        base, n, tokens = _check.base(base), len(self.heads), self.run.token_strings
        table: pd.DataFrame = pd.DataFrame(
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


def entry_effects(
    model: Model,
    prompt: str = PROMPT,
    key: int | str = KEY,
    query: int | str = QUERY,
    answer: str = ANSWER,
    wrong: Sequence[str] | None = None,
    *,
    ablation: str = "zero",
    reference: Task | None = None,
    base: int = 0,
    prepend_space_to_answer: bool | None = None,
) -> EntryEffects:
    """Ablate the entry from `key` to `query` in each head of `model`, and measure the effect on the answer.

    Parameters
    ----------
    model : Model
    prompt : str
        One prompt.
    key, query : int or str
        Positions counted from `base`, or tokens, as in `attnsparse.model.tables.position`. `query` is the
        last token.
    answer : str
        One token. The metric is its logit after `query` minus the mean logit of the wrong answers.
    wrong : sequence of str, optional
        Wrong answers, each one token. Default: all other words of the antonym task.
    ablation : {"zero", "mean"}, default "zero"
        What replaces the entry: zero, or its mean over the clean prompts of `reference`.
    reference : Task, optional
        For "mean" alone: prompts as long as this one.
    base : {0, 1}, default 0
        Number of the first position.
    prepend_space_to_answer : bool, optional
        True: put a space before answers without one. False: take them as they are. Default: raise where both
        are tokens and a space is likely.

    Returns
    -------
    EntryEffects

    Raises
    ------
    ValueError
        For another ablation, a mean without a reference, a key after the query, a query that is not the last
        token, answers that are not one token, an entry that is closed in every head, and an answer that does
        not depend on the entry (with it ablated in all heads, the logit difference is not below the model's).
    """
    if ablation not in ("zero", "mean") or (ablation == "mean") != (reference is not None):
        raise ValueError(
            f"ablation must be 'zero', or 'mean' with a reference task, got {ablation!r:.60} "
            f"{'without' if reference is None else 'with'} a reference"
        )
    run = model.run(prompt, record="attention")
    key_at, query_at = _positions(run, key, query, base)
    task = _one_prompt(model, prompt, answer, wrong, prepend_space_to_answer)
    weight = np.ascontiguousarray(run.pattern[:, :, query_at, key_at])
    if not weight.any():
        raise ValueError(
            f"no head of {model.name!r} looks from position {query_at + base} to {key_at + base} "
            f"(base={base}): the gate is closed in all of them"
        )
    heads, weight, effect, kept, full, without = model._core.entry_effects(
        packed_task(model, task, None),
        effect_options(model, "edge", ablation, reference, DEFAULT_MAX_BYTES),
        weight,
        query_at,
        key_at,
    )
    if not without < full:
        raise ValueError(
            f"{model.name!r} does not need what it sees from position {query_at + base} to {key_at + base}: "
            f"the logit difference is {full:.3g}, and {without:.3g} with this entry ablated in all heads"
        )
    return EntryEffects(
        run=run,
        key=key_at,
        query=query_at,
        answer=answer,
        ablation=ablation,
        heads=tuple(Head(*row) for row in heads.tolist()),
        weight=weight,
        effect=effect,
        kept=kept,
        full=full,
        without=without,
        answer_is_top=int(np.argmax(run.logits[query_at])) == int(task.answers[0][0]),
    )


def _positions(run: Run, key: int | str, query: int | str, base: int) -> tuple[int, int]:
    """Both positions from 0, checked."""
    key_at, query_at = tables.position(run, key, base), tables.position(run, query, base)
    if key_at > query_at:
        raise ValueError(
            f"key position {key_at + base} comes after query position {query_at + base} (base={base}); "
            "attention only looks back"
        )
    if query_at != run.n_tokens - 1:
        raise ValueError(
            f"query must be the last token, after which the answer is read: position "
            f"{run.n_tokens - 1 + base}, got {query_at + base} (base={base})"
        )
    return key_at, query_at


def _one_prompt(
    model: Model, prompt: str, answer: str, wrong: Sequence[str] | None, prepend_space: bool | None
) -> Task:
    """A task of this prompt alone."""
    wrong = wrong_words(answer) if wrong is None else wrong
    wrong = (wrong,) if isinstance(wrong, str) else tuple(wrong)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(f"model {model.name!r} has no tokenizer, which an answer in text needs")
    draft = PromptText(prompt, prompt, (answer,), wrong)
    return build(
        "one prompt", "logit_diff", [draft], tokenizer,
        is_ranking=np.array([True]), prepend_space_to_answer=prepend_space,
    )  # fmt: skip


def wrong_words(answer: str) -> tuple[str, ...]:
    """All words of the antonym task but the answer: what it is measured against where nothing is given."""
    words = dict.fromkeys(word for pair in demo_words.PAIRS for word in pair)
    return tuple(word for word in words if word != answer)


def _first_at(rising: np.ndarray, fraction: float) -> int:
    """The first index at which `rising` reaches the fraction, the last one if rounding keeps it below 1."""
    first, _ = _CORE.curve_needed(rising[None], fraction)
    return min(int(first[0]), len(rising) - 1)
