"""Task: pairs of prompts, clean and corrupted, with answers and wrong answers as token ids.

A task is checked when it is made, because without that a result means nothing: clean and corrupted prompts
have the same number of tokens, so that position k of one is position k of the other, and every answer is one
token. The error names the prompt and the token.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _check
from .._display import Html, escaped, html_rows
from .._tables import text_table
from ..model.tokenizer import Tokenizer
from .metrics import TASK_METRICS

if TYPE_CHECKING:
    import pandas as pd

USE = 6  # of random numbers, see _random.py
HALVES = ("ranking", "evaluation")
SHOWN = 5  # prompts in the notebook's table
DIGITS = 16  # of a prompt's digest


class PromptText(NamedTuple):
    """A prompt as text: clean, corrupted, the right and the wrong answer tokens (texts or ids), a label."""

    clean: str
    corrupted: str
    answers: tuple[str | int, ...]
    wrong: tuple[str | int, ...]
    label: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """n prompts of one kind with their answers; immutable.

    Made by `make_task`, `from_dataframe` or one of the readers.

    Attributes
    ----------
    name : str
        As tables and figures show it.
    metric : {"logit_diff", "logit_diff_max", "prob_diff"}
        Read after the last token of a prompt; see Notes.
    tokenizer : Tokenizer
        The prompts were encoded with it.
    clean : tuple of numpy.ndarray
        n arrays of token ids, int32 [T], read-only; give ``list(task.clean)`` to `Model.run`.
    corrupted : tuple of numpy.ndarray
        The same prompts with a change on which the answer depends; lengths as in `clean`.
    answers : tuple of numpy.ndarray
        n arrays of one or more right token ids, int32.
    wrong : tuple of numpy.ndarray
        n arrays of one or more wrong token ids, int32; none of them is right.
    labels : tuple of str
        The kind of each prompt: "ABBA", a year, or "".
    is_ranking : numpy.ndarray
        bool [n]: True for the prompts on which items are ranked; the others are for evaluation.
    prepend_bos : bool
        Whether the prompts begin with the tokenizer's BOS token.
    options : mapping
        Seed and options with which the task was made, as JSON values.
    position_labels : tuple of str or None
        A name for each position, if all prompts have the same form (`seq_labels` of prompt files).
    word_positions : mapping of str to int, or None
        Positions of named words (`word_idxs` of prompt files).

    Notes
    -----
    "logit_diff" is the mean logit of the answers minus that of the wrong answers, "logit_diff_max" subtracts
    the largest logit of the wrong answers instead, "prob_diff" is the total probability of the answers minus
    that of the wrong answers.
    """

    name: str
    metric: str
    tokenizer: Tokenizer = field(repr=False)
    clean: tuple[np.ndarray, ...]
    corrupted: tuple[np.ndarray, ...]
    answers: tuple[np.ndarray, ...]
    wrong: tuple[np.ndarray, ...]
    labels: tuple[str, ...]
    is_ranking: np.ndarray
    prepend_bos: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    position_labels: tuple[str, ...] | None = None
    word_positions: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        _check.choice(self.metric, "metric", TASK_METRICS)
        if not self.clean:
            raise ValueError(f"task {self.name!r} has no prompts")
        lengths = {len(part) for part in (self.corrupted, self.answers, self.wrong, self.labels)}
        if {*lengths, len(self.is_ranking)} != {len(self.clean)}:
            raise ValueError(
                f"task {self.name!r}: all its parts (clean, corrupted, ...) must have equal lengths, "
                f"got {sorted({*lengths, len(self.is_ranking), len(self.clean)})}"
            )
        for array in (*self.clean, *self.corrupted, *self.answers, *self.wrong, self.is_ranking):
            array.setflags(write=False)
            if array.ndim != 1 or array.dtype.kind not in "iub":
                raise TypeError(
                    f"task {self.name!r}: token ids must be flat arrays of integers, got {array.dtype}"
                )
        for i in range(len(self)):
            self._check(i)

    def _check(self, i: int) -> None:
        """Equal lengths; answers, and no token among them twice."""
        if len(self.clean[i]) != len(self.corrupted[i]):
            raise unequal(self.tokenizer, self.clean[i], self.corrupted[i], self._prompt_name(i))
        if not len(self.answers[i]) or not len(self.wrong[i]):
            raise ValueError(f"{self._prompt_name(i)}: needs at least one answer and one wrong answer")
        ids, counts = np.unique([*self.answers[i], *self.wrong[i]], return_counts=True)
        if counts.max() > 1:
            twice = int(ids[counts > 1][0])
            both = twice in self.answers[i] and twice in self.wrong[i]
            what = "listed as both an answer and a wrong answer" if both else "listed twice"
            raise ValueError(f"{self._prompt_name(i)}: {self.tokenizer.token_string(twice)!r} is {what}")

    def _prompt_name(self, i: int) -> str:
        return f"task {self.name!r}, prompt {i} ({self.text(i)!r:.80})"

    def __len__(self) -> int:
        return len(self.clean)

    def text(self, i: int, corrupted: bool = False) -> str:
        """Return the text of a prompt, without the BOS token.

        Parameters
        ----------
        i : int
            0..n-1.
        corrupted : bool, default False
            Return the corrupted prompt instead of the clean one.

        Returns
        -------
        str
            The decoded tokens.
        """
        row = (self.corrupted if corrupted else self.clean)[i]
        return self.tokenizer.decode(row[1:] if self.prepend_bos else row)

    @property
    def ranking(self) -> Task:
        """The task with the prompts to rank on."""
        return self.subset(np.flatnonzero(self.is_ranking))

    @property
    def evaluation(self) -> Task:
        """The task with the prompts to evaluate on; none of them is in `ranking`."""
        return self.subset(np.flatnonzero(~self.is_ranking))

    def subset(self, indices: Sequence[int] | np.ndarray) -> Task:
        """Return the task with some of its prompts.

        Parameters
        ----------
        indices : sequence of int
            Prompts, each 0..n-1. For a mask give `np.flatnonzero(mask)`.

        Returns
        -------
        Task
            The prompts in the order of `indices`.

        Raises
        ------
        IndexError
            If there is no such prompt.
        ValueError
            If `indices` is empty.
        TypeError
            If an index is not an integer.
        """
        chosen = [_check.integer(i, "an index of subset") for i in indices]
        if not all(0 <= i < len(self) for i in chosen):
            raise IndexError(f"task {self.name!r} has prompts 0..{len(self) - 1}, got {chosen[:8]}")
        rows = {
            name: tuple(getattr(self, name)[i] for i in chosen)
            for name in ("clean", "corrupted", "answers", "wrong", "labels")
        }
        return Task(
            self.name,
            self.metric,
            self.tokenizer,
            **rows,
            is_ranking=self.is_ranking[chosen],
            prepend_bos=self.prepend_bos,
            options=self.options,
            position_labels=self.position_labels,
            word_positions=self.word_positions,
        )

    def swapped(self) -> Task:
        """Return the task with clean and corrupted prompts exchanged, and answers with wrong answers.

        In tasks whose corrupted prompts have the wrong answers as their right ones, this asks the same
        question the other way round.

        Returns
        -------
        Task
            The same prompts in the same order, with all else that this task has.

        Raises
        ------
        ValueError
            If no corrupted prompt differs from its clean one.
        """
        if all(np.array_equal(a, b) for a, b in zip(self.clean, self.corrupted)):
            raise ValueError(
                f"task {self.name!r} has no corrupted prompts to exchange with: all equal the clean ones"
            )
        return replace(
            self, clean=self.corrupted, corrupted=self.clean, answers=self.wrong, wrong=self.answers
        )

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of name, metric, prompts, answers, labels and halves, hexadecimal."""
        head = [self.name, self.metric, list(self.labels), self.is_ranking.tolist(), self.prepend_bos]
        rows = [
            [row.tolist() for row in part] for part in (self.clean, self.corrupted, self.answers, self.wrong)
        ]
        return hashlib.sha256(json.dumps([head, rows]).encode()).hexdigest()

    @functools.cached_property
    def prompt_digests(self) -> tuple[str, ...]:
        """A name for each prompt: 16 hexadecimal digits of the SHA-256 of its clean and corrupted tokens.

        Prompts of the same tokens have the same name, in whatever task; so two tasks share the prompts whose
        names they share.
        """
        pairs = zip(self.clean, self.corrupted)
        texts = (json.dumps([clean.tolist(), corrupted.tolist()]) for clean, corrupted in pairs)
        return tuple(hashlib.sha256(text.encode()).hexdigest()[:DIGITS] for text in texts)

    def description(self) -> dict[str, Any]:
        """Return what all prompts share, as files and tables record it.

        Returns
        -------
        dict
            JSON values: name, metric, prepend_bos, options, and, if the task has them, seq_labels and
            word_idxs, counted without the BOS token.

        Raises
        ------
        ValueError
            If a named word is the BOS token, which files do not hold.
        """
        told: dict[str, Any] = {
            "name": self.name,
            "metric": self.metric,
            "prepend_bos": self.prepend_bos,
            "options": dict(self.options),
        }
        if self.position_labels is not None:
            told["seq_labels"] = list(self.position_labels[self.prepend_bos :])
        if self.word_positions is not None:
            told["word_idxs"] = {word: at - self.prepend_bos for word, at in self.word_positions.items()}
            if min(told["word_idxs"].values(), default=0) < 0:
                raise ValueError(f"task {self.name!r} has a word at the BOS token, which files do not hold")
        return told

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with one row per prompt.

        Returns
        -------
        pandas.DataFrame
            clean, corrupted : str
            answer, wrong : str, or list of str where there are several
            label : str, if any prompt has one
            half : "ranking" or "evaluation"
            n_tokens : int
            task : `description()` as JSON, the same in every row

        Notes
        -----
        `from_dataframe` makes the same task again, and so does `read_eap_csv` of `to_csv(path, index=False)`.
        pandas' own `read_csv` reads digits as numbers: give it `dtype=str, keep_default_na=False`.
        """

        rows = range(len(self))
        columns = {
            "clean": [self.text(i) for i in rows],
            "corrupted": [self.text(i, corrupted=True) for i in rows],
            "answer": [self._texts(self.answers[i]) for i in rows],
            "wrong": [self._texts(self.wrong[i]) for i in rows],
            "label": list(self.labels),
            "half": np.where(self.is_ranking, *HALVES),
            "n_tokens": [len(row) for row in self.clean],
            "task": json.dumps(self.description(), ensure_ascii=False),
        }
        if not any(self.labels):
            del columns["label"]
        frame: pd.DataFrame = text_table(columns)
        return frame

    def _texts(self, ids: np.ndarray) -> str | list[str]:
        texts = self.tokenizer.token_strings(ids)
        return texts[0] if len(texts) == 1 else texts

    def __repr__(self) -> str:
        lengths = sorted({len(row) for row in self.clean})
        tokens = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]}-{lengths[-1]}"
        n_ranking = int(self.is_ranking.sum())
        return (
            f"Task({self.name!r}, {len(self)} prompts of {tokens} tokens, {n_ranking} for ranking, "
            f"{len(self) - n_ranking} for evaluation, {self.metric}, digest {self.digest[:8]})"
        )

    def _repr_html_(self) -> str:
        rows = []
        for i in range(min(len(self), SHOWN)):
            clean, corrupted, answers, wrong = (
                self.tokenizer.token_strings(part[i])
                for part in (self.clean, self.corrupted, self.answers, self.wrong)
            )
            marked = (_marked(clean, corrupted), _marked(corrupted, clean))
            rows.append((*marked, _short(answers), _short(wrong), self.labels[i]))
        names = ("clean", "corrupted", "answer", "wrong", "label")
        return f"<p>{escaped(repr(self))}</p>" + html_rows(names, rows, len(self))


def unequal(tokenizer: Tokenizer, clean: np.ndarray, corrupted: np.ndarray, where: str) -> ValueError:
    """The error for prompts of different lengths, with the position where they differ."""
    shorter = min(len(clean), len(corrupted))
    differ = np.flatnonzero(clean[:shorter] != corrupted[:shorter])
    at = int(differ[0]) if len(differ) else shorter
    texts = [
        repr(tokenizer.token_string(int(row[at]))) if at < len(row) else "nothing"
        for row in (clean, corrupted)
    ]
    return ValueError(
        f"{where}: clean has {len(clean)} tokens, corrupted {len(corrupted)}; they differ at position {at}, "
        f"{texts[0]} against {texts[1]}"
    )


def _marked(tokens: Sequence[str], others: Sequence[str]) -> Html:
    """The text of tokens with those in bold that differ from the other prompt."""
    return Html(
        "".join(
            escaped(token) if token == other else f"<b>{escaped(token)}</b>"
            for token, other in zip(tokens, others)
        )
    )


def _short(texts: Sequence[str]) -> str:
    shown = " ".join(repr(text) for text in texts[:3])
    return f"{shown} ... ({len(texts)})" if len(texts) > 3 else shown
