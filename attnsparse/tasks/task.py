"""Task: prompts in pairs, clean and corrupted, with answers and wrong answers as token ids, checked.

The checks are those without which a result means nothing: clean and corrupted prompts have the same number of
tokens, so that position k of one is position k of the other, and every answer is one token. A task that fails
them is not made; the error names the prompt and the token.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import _check
from .._display import Html, escaped, html_rows
from ..model.tokenizer import Tokenizer
from .metrics import TASK_METRICS

if TYPE_CHECKING:
    import pandas as pd

USE = 6  # of random numbers, see randomness.py
HALVES = ("ranking", "evaluation")
SHOWN = 5  # prompts in the notebook's table


class Draft(NamedTuple):
    """A prompt as text: clean, corrupted, the right and the wrong answer tokens (texts or ids), a label."""

    clean: str
    corrupted: str
    answers: tuple[str | int, ...]
    wrong: tuple[str | int, ...]
    label: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """n prompts of one kind. Made by `make_task` or one of the readers; nothing in it can be changed.

    The metric is taken at the last token of a prompt (see `metric`): "logit_diff" is the mean logit of the
    answers minus that of the wrong ones, "logit_diff_max" minus the largest of the wrong ones, "prob_diff"
    the probability of all answers together minus that of all wrong ones.
    """

    name: str
    metric: str
    tokenizer: Tokenizer = field(repr=False)
    clean: tuple[np.ndarray, ...]
    """n arrays of token ids (int32, read-only); give `list(task.clean)` to `Model.run`."""
    corrupted: tuple[np.ndarray, ...]
    """The same with one thing changed that the answer depends on; lengths as in `clean`."""
    answers: tuple[np.ndarray, ...]
    """n arrays of one or more token ids (int32) that are right."""
    wrong: tuple[np.ndarray, ...]
    """n arrays of token ids that are wrong; none of them is right."""
    labels: tuple[str, ...]
    """What kind of prompt each is: "ABBA", a year, or ""."""
    is_ranking: np.ndarray
    """bool [n]: in the half that heads or edges are ranked on; the others are for the evaluation."""
    prepend_bos: bool = False
    """Whether the prompts begin with the tokenizer's BOS token."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What it was made with: seed and the task's own options, as JSON values."""
    position_labels: tuple[str, ...] | None = None
    """A name for every position, if all prompts have the same shape (`seq_labels` of prompt files)."""
    word_positions: Mapping[str, int] | None = None
    """Positions of named words (`word_idxs` of prompt files)."""

    def __post_init__(self) -> None:
        _check.choice(self.metric, "metric", TASK_METRICS)
        if not self.clean:
            raise ValueError(f"task {self.name!r} has no prompts")
        lengths = {len(part) for part in (self.corrupted, self.answers, self.wrong, self.labels)}
        if {*lengths, len(self.is_ranking)} != {len(self.clean)}:
            raise ValueError(f"task {self.name!r}: its parts have different numbers of prompts")
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
            text = self.tokenizer.token_string(int(ids[counts > 1][0]))
            raise ValueError(f"{self._prompt_name(i)}: {text!r} stands twice among answers and wrong answers")

    def _prompt_name(self, i: int) -> str:
        return f"task {self.name!r}, prompt {i} ({self.text(i)!r:.80})"

    def __len__(self) -> int:
        return len(self.clean)

    def text(self, i: int, corrupted: bool = False) -> str:
        """Text of prompt i, without the BOS token."""
        row = (self.corrupted if corrupted else self.clean)[i]
        return self.tokenizer.decode(row[1:] if self.prepend_bos else row)

    @property
    def ranking(self) -> Task:
        """The prompts to rank on."""
        return self.subset(np.flatnonzero(self.is_ranking))

    @property
    def evaluation(self) -> Task:
        """The prompts to evaluate on, none of which is among those to rank on."""
        return self.subset(np.flatnonzero(~self.is_ranking))

    def subset(self, indices: Sequence[int] | np.ndarray) -> Task:
        """The task with these prompts only. IndexError for others than 0..n-1, ValueError for none, TypeError
        for anything but integers (of a mask, `np.flatnonzero(mask)`)."""
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

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the metric and of all prompts, answers and halves."""
        head = [self.name, self.metric, list(self.labels), self.is_ranking.tolist(), self.prepend_bos]
        rows = [
            [row.tolist() for row in part] for part in (self.clean, self.corrupted, self.answers, self.wrong)
        ]
        return hashlib.sha256(json.dumps([head, rows]).encode()).hexdigest()

    def description(self) -> dict[str, Any]:
        """What all prompts share, as JSON values: name, metric, prepend_bos, options, and, if the task has
        them, seq_labels and word_idxs without the BOS token. ValueError for a word at the BOS token."""
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
                raise ValueError(f"task {self.name!r} has a word at the BOS token, which is not written down")
        return told

    def to_pandas(self) -> pd.DataFrame:
        """One row per prompt: clean, corrupted (texts), answer, wrong (texts, or lists of texts where there
        are several), label (if there are any), half ("ranking" or "evaluation"), n_tokens, task.

        `task` holds `description()` as JSON, the same in every row, so that `from_dataframe` makes the same
        task again; so does `read_eap_csv` of `to_csv(path, index=False)`. pandas' own `read_csv` takes digits
        for numbers: give it `dtype=str, keep_default_na=False`.
        """
        import pandas as pd

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
        return pd.DataFrame(columns)

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
    """The error for prompts of different lengths: where they part."""
    shorter = min(len(clean), len(corrupted))
    differ = np.flatnonzero(clean[:shorter] != corrupted[:shorter])
    at = int(differ[0]) if len(differ) else shorter
    texts = [
        repr(tokenizer.token_string(int(row[at]))) if at < len(row) else "nothing"
        for row in (clean, corrupted)
    ]
    return ValueError(
        f"{where}: clean has {len(clean)} tokens, corrupted {len(corrupted)}; they part at position {at}, "
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
