"""The task behind effects of an entry: prompts, the answer due after each, and what is wrong there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _check
from ..model.batch import listed
from ..model.model import Model
from ..tasks import words as demo_words
from ..tasks.builder import build
from ..tasks.task import PromptText, Task

PROMPT = 'The opposite of "large" is "'
KEY, QUERY, ANSWER = "large", -1, "small"


def wrong_words(answer: str) -> tuple[str, ...]:
    """All words of the antonym task but the answer: what it is measured against where nothing is given."""
    words = dict.fromkeys(word for pair in demo_words.PAIRS for word in pair)
    return tuple(word for word in words if word != answer)


def task_of_prompts(
    model: Model,
    prompts: Any,
    answer: str | Sequence[str] | None,
    wrong: Sequence[str] | Sequence[Sequence[str]] | None,
    prepend_space: bool | None,
) -> Task:
    """A task of texts; answer: one for all, or one for each; wrong: None, some for all, or some for each."""
    if model.tokenizer is None:
        raise ValueError(f"model {model.name!r} has no tokenizer, which an answer in text needs")
    texts, single = listed(prompts)
    if not texts:
        raise ValueError("prompt must hold at least one prompt, got none")
    odd = [type(text).__name__ for text in texts if not isinstance(text, str)]
    if odd:
        raise TypeError(f"prompts with answers must be texts, got {odd[0]}; give a Task of token ids instead")
    answers = _answers(texts, answer)
    each = _wrong_of_each(answers, wrong)
    drafts = [PromptText(text, text, (right,), others) for text, right, others in zip(texts, answers, each)]
    return build(
        "one prompt" if single else f"{len(texts)} prompts", "logit_diff", drafts, model.tokenizer,
        is_ranking=np.ones(len(texts), bool), prepend_space_to_answer=prepend_space,
    )  # fmt: skip


def _answers(texts: Sequence[str], answer: str | Sequence[str] | None) -> list[str]:
    if answer is None:
        if any(text != PROMPT for text in texts):
            raise ValueError("prompts of your own need answer=..., the token whose logit is measured")
        return [ANSWER] * len(texts)
    if isinstance(answer, str):
        return [answer] * len(texts)
    found = [
        _text(word, "an answer")
        for word in _check.items(answer, "answer", "one text, or one for each prompt")
    ]
    if len(found) != len(texts):
        raise ValueError(f"there are {len(found)} answers and {len(texts)} prompts")
    return found


def _wrong_of_each(
    answers: Sequence[str], wrong: Sequence[str] | Sequence[Sequence[str]] | None
) -> list[tuple[str, ...]]:
    if wrong is None:
        return [wrong_words(answer) for answer in answers]
    if isinstance(wrong, str):
        return [(wrong,)] * len(answers)
    given = _check.items(wrong, "wrong", "texts, or texts for each prompt")
    if all(isinstance(word, str) for word in given):
        return [tuple(given)] * len(answers)
    if len(given) != len(answers):
        raise ValueError(f"there are wrong answers for {len(given)} prompts, and {len(answers)} prompts")
    each = [
        [words] if isinstance(words, str) else _check.items(words, "each of wrong", "texts")
        for words in given
    ]
    return [tuple(_text(word, "a wrong answer") for word in words) for words in each]


def _text(value: Any, what: str) -> str:
    return _check.instance(value, str, what)
