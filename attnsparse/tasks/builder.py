"""Prompts as text -> a Task: tokens, answers of one token with or without their space, BOS and positions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import _random
from ..model.tokenizer import Tokenizer
from .task import USE, PromptText, Task, unequal

# After these a word begins with a space: letters, digits, closing signs, a quotation mark that closes.
_SPACE_FOLLOWS = re.compile(r"""(?:[^\W_]|[,.;:!?)\]}%…’”»]|(?<=[\w,.;:!?)\]}%…])["'`])$""")
_CONTRACTIONS = ("s", "t", "d", "m", "re", "ve", "ll")


def build(
    name: str,
    metric: str,
    prompts: Sequence[PromptText],
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    prepend_bos: bool = False,
    prepend_space_to_answer: bool | None = None,
    is_ranking: np.ndarray | None = None,
    options: Mapping[str, Any] | None = None,
    position_labels: Sequence[str] | None = None,
    word_positions: Mapping[str, int] | None = None,
) -> Task:
    """A Task from prompts as text. is_ranking: None splits them in two by `seed`.

    position_labels and word_positions are those of the prompts without a BOS token and move with it.
    prepend_space_to_answer: True puts a space before every answer without one, False takes answers as they
    are, None as well unless both would be a token and the prompt does not say which is meant.

    ValueError names the prompt and the token: text that cannot be encoded, answers that are not one token or
    may lack their space, clean and corrupted prompts of different lengths.
    """
    answers = _Answers(tokenizer, prepend_space_to_answer)
    clean: list[np.ndarray] = []
    corrupted: list[np.ndarray] = []
    right: list[np.ndarray] = []
    wrong: list[np.ndarray] = []
    for i, prompt in enumerate(prompts):
        where = f"task {name!r}, prompt {i} ({prompt.clean!r:.80})"
        clean.append(_encoded(tokenizer, prompt.clean, prepend_bos, where))
        corrupted.append(_encoded(tokenizer, prompt.corrupted, prepend_bos, where))
        if len(clean[-1]) != len(corrupted[-1]):  # at once: prompts may be many and long
            raise unequal(tokenizer, clean[-1], corrupted[-1], where)
        right.append(answers.ids(prompt.answers, prompt, f"{where}, answer"))
        wrong.append(answers.ids(prompt.wrong, prompt, f"{where}, wrong answer"))
    labels, words = _positions(name, tokenizer, clean, prepend_bos, position_labels, word_positions)
    return Task(
        name,
        metric,
        tokenizer,
        tuple(clean),
        tuple(corrupted),
        tuple(right),
        tuple(wrong),
        labels=tuple(prompt.label for prompt in prompts),
        is_ranking=halves(len(prompts), seed) if is_ranking is None else is_ranking,
        prepend_bos=prepend_bos,
        options={"seed": seed} if options is None else options,
        position_labels=labels,
        word_positions=words,
    )


def _positions(
    name: str,
    tokenizer: Tokenizer,
    rows: Sequence[np.ndarray],
    prepend_bos: bool,
    labels: Sequence[str] | None,
    words: Mapping[str, int] | None,
) -> tuple[tuple[str, ...] | None, dict[str, int] | None]:
    """Names of positions and positions of words, moved by the BOS token if there is one; ValueError for those
    that the prompts do not have."""
    lengths = {len(row) - prepend_bos for row in rows}
    if labels is not None:
        if len(lengths) == 1 and len(labels) not in lengths:
            raise ValueError(
                f"task {name!r}: {len(labels)} names of positions, but prompts have {min(lengths)} tokens; "
                "a BOS token gets its own name"
            )
        bos = [tokenizer.token_string(int(rows[0][0]))] if prepend_bos else []
        labels = (*bos, *labels)
    for word, position in (words or {}).items():
        if not 0 <= position < max(lengths, default=0):
            raise ValueError(
                f"task {name!r}: word {word!r:.60} is at position {position}, but prompts have "
                f"{max(lengths, default=0)} tokens (a BOS token is not counted)"
            )
    return labels, None if words is None else {word: at + prepend_bos for word, at in words.items()}


def halves(n: int, seed: int) -> np.ndarray:
    """Which of n prompts are for ranking: bool [n], half of them (the larger one), drawn by `seed`."""
    chosen = np.zeros(n, bool)
    chosen[_random.permutation(n, seed, USE, 0, 1)[: (n + 1) // 2]] = True
    return chosen


def _encoded(tokenizer: Tokenizer, text: Any, prepend_bos: bool, where: str) -> np.ndarray:
    if not isinstance(text, str) or not text:
        raise ValueError(f"{where}: a prompt must be a non-empty string, got {text!r:.60}")
    try:
        ids = np.array(tokenizer.encode(text, prepend_bos=prepend_bos), np.int32)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return ids


class _Answers:
    """Token ids of answers. Texts must be one token; those looked up are kept."""

    def __init__(self, tokenizer: Tokenizer, prepend_space: bool | None) -> None:
        self.tokenizer = tokenizer
        self.prepend_space = prepend_space
        self.known: dict[str, list[int] | None] = {}

    def ids(self, answers: Sequence[str | int], prompt: PromptText, where: str) -> np.ndarray:
        """int32: given ids as they are, texts looked up; `where` names the prompt in errors."""
        found = [a if isinstance(a, int) else self._single(a, prompt, where) for a in answers]
        return np.array(found, np.int32)

    def _single(self, text: str, prompt: PromptText, where: str) -> int:
        spaced = f" {text}"
        if self.prepend_space and not text.startswith(" "):
            text = spaced
        ids = self._tokens(text)
        if ids is None or len(ids) != 1:
            raise ValueError(self._not_one(text, ids, where))
        if self.prepend_space is None and self._may_lack_space(text, prompt):
            raise ValueError(
                f"{where}: {text!r:.60} has no leading space, and {spaced!r:.60} is a token too; pass "
                f"prepend_space_to_answer=True if it follows {prompt.clean[-20:]!r}, False if not"
            )
        return ids[0]

    def _tokens(self, text: str) -> list[int] | None:
        """Token ids, None if the text has none."""
        if text not in self.known:
            self.known[text] = _tokens_or_none(self.tokenizer, text)
        return self.known[text]

    def _not_one(self, text: str, ids: list[int] | None, where: str) -> str:
        if ids is None:
            message = f"{where}: {text!r:.60} is not in this tokenizer's vocabulary"
        else:
            tokens = ", ".join(map(repr, self.tokenizer.token_strings(ids)[:8]))
            message = f"{where}: {text!r:.60} is {len(ids)} tokens ({tokens}), must be one"
        if not text.startswith(" ") and len(self._tokens(f" {text}") or ()) == 1:
            message += f"; with a leading space, {' ' + text!r}, it is"
        return message

    def _may_lack_space(self, text: str, prompt: PromptText) -> bool:
        """Whether the text alone does not say that no space is meant before the answer."""
        clean = prompt.clean
        if not text[0].isalnum() or not _SPACE_FOLLOWS.search(clean):
            return False
        if len(self._tokens(f" {text}") or ()) != 1 or (clean[-1] in "'’" and text in _CONTRACTIONS):
            return False
        return not (text[0].isdigit() and clean[-1].isdigit() and self._continues(prompt))

    def _continues(self, prompt: PromptText) -> bool:
        """Whether an answer continues the number at the end of the prompt: the tokenizer cuts between them,
        as GPT-2's does in "1732", though not in every one ("1700" is a token)."""
        whole = self.tokenizer.encode(prompt.clean)
        for answer in (*prompt.answers, *prompt.wrong):
            if isinstance(answer, str) and answer[:1].isdigit():
                joined = _tokens_or_none(self.tokenizer, prompt.clean + answer)
                if joined is not None and joined[:-1] == whole:
                    return True
        return False


def _tokens_or_none(tokenizer: Tokenizer, text: str) -> list[int] | None:
    try:
        return tokenizer.encode(text) if text else None
    except ValueError:
        return None
