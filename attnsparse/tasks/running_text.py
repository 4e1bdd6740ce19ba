"""Tasks that running text sets: prompts are cut out of windows of tokens, answers are what follows there.

A corrupted prompt differs from its clean one in one token, on which the answer depends.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import _check, _random
from ..model.tokenizer import Tokenizer, checked_ids
from .builder import halves
from .task import USE, Task

_TITLES = (" Mr", " Mrs")
_OTHER_SUBJECT = " he"


class _Found(NamedTuple):
    """A place in a text whose next token is the answer: which token of the prompt is changed, counted back
    from its last one (0), into which, and the wrong answer."""

    window: int
    end: int  # position behind the prompt
    back: int
    changed: int
    answer: int
    wrong: int


class _Texts(NamedTuple):
    windows: list[np.ndarray]
    tokenizer: Tokenizer
    texts: list[str]  # of every token
    ids: dict[str, int]

    def bigrams(self) -> dict[int, Counter[int]]:
        """How often which token follows each."""
        follows: dict[int, Counter[int]] = defaultdict(Counter)
        for window in self.windows:
            for first, second in zip(window.tolist(), window[1:].tolist()):
                follows[first][second] += 1
        return follows


def text_task(
    kind: str, windows: Any, tokenizer: Tokenizer, *, n: int = 80, n_tokens: int = 24, seed: int = 0
) -> Task:
    """Draw prompts of a task out of windows of text, half of them to rank on, half to evaluate on.

    Parameters
    ----------
    kind : {"ending", "possessive", "capital", "title"}
        "ending": the last piece of a word of three or more pieces; the piece before the last two is changed
        into that of another word, which has the same second last piece and another end. "possessive": 's
        after a word with a capital, which becomes " he"; what follows that most often is wrong. "capital": a
        word with a capital after a full stop, which becomes a comma; the same word without the capital is
        wrong. "title": the name after "Mr." or "Mrs.", which becomes the other one; a name that follows the
        other one, and never this one, is wrong.
    windows : list of int arrays, or int array [n, T]
        Token ids of text that the model was not trained on, such as `TextData.held_out`.
    tokenizer : Tokenizer
        That of the windows.
    n : int, default 80
        Number of prompts, at least 1.
    n_tokens : int, default 24
        Tokens of each prompt, at least 4.
    seed : int, default 0
        Draws the prompts and their halves, 0..2^64-1.

    Returns
    -------
    Task
        `n` different prompts; `labels` are their answers.

    Raises
    ------
    ValueError
        For an unknown kind, for windows that do not have so many such places, and for a tokenizer that cuts
        what the task needs into several tokens.
    """
    _check.choice(kind, "kind", tuple(_KINDS))
    _check.instance(tokenizer, Tokenizer, "tokenizer")
    n, n_tokens, seed = _check.integer(n, "n", 1), _check.integer(n_tokens, "n_tokens", 4), _check.seed(seed)
    rows = [np.array(checked_ids(row, tokenizer.n_vocab), np.int32) for row in windows]
    texts = tokenizer.token_strings(list(range(tokenizer.n_vocab)))
    found = list(_KINDS[kind](_Texts(rows, tokenizer, texts, {text: i for i, text in enumerate(texts)})))
    prompts = {rows[place.window][place.end - n_tokens : place.end].tobytes(): place for place in found
               if place.end >= n_tokens}  # fmt: skip
    places = list(prompts.values())
    if len(places) < n:
        raise ValueError(
            f"these windows have {len(places):,} prompts of the task {kind!r}, fewer than n={n:,}"
        )
    order = _random.permutation(len(places), seed, USE, list(_KINDS).index(kind), 3)[:n]
    chosen = [places[i] for i in order.tolist()]
    clean = [rows[place.window][place.end - n_tokens : place.end].copy() for place in chosen]
    corrupted = [row.copy() for row in clean]
    for row, place in zip(corrupted, chosen):
        row[-1 - place.back] = place.changed
    return Task(
        kind,
        "logit_diff",
        tokenizer,
        tuple(clean),
        tuple(corrupted),
        tuple(np.array([place.answer], np.int32) for place in chosen),
        tuple(np.array([place.wrong], np.int32) for place in chosen),
        labels=tuple(texts[place.answer].strip() for place in chosen),
        is_ranking=halves(n, seed),
        options={"seed": seed, "n_tokens": n_tokens},
    )


def _ending(text: _Texts) -> Iterator[_Found]:
    inside = [part.isalpha() for part in text.texts]  # without a space: goes on with a word
    begins = [part[:1] == " " and part[1:].isalpha() for part in text.texts]
    places: list[tuple[int, int]] = []
    for w, window in enumerate(text.windows):
        within = [inside[token] for token in window.tolist()] + [False]
        for end in range(2, len(window)):
            first = within[end - 2] or begins[window[end - 2]]
            if first and within[end - 1] and within[end] and not within[end + 1]:
                places.append((w, end))
    ends: dict[int, dict[int, Counter[int]]] = defaultdict(lambda: defaultdict(Counter))
    for w, end in places:
        first, middle, last = text.windows[w][end - 2 : end + 1].tolist()
        ends[middle][first][last] += 1
    for w, end in places:
        first, middle, last = text.windows[w][end - 2 : end + 1].tolist()
        own = ends[middle][first]
        others = [
            (counts.most_common(1)[0], other)
            for other, counts in ends[middle].items()
            if counts.most_common(1)[0][0] not in own and last not in counts
        ]
        if others and own.most_common(1)[0][0] == last:
            (wrong, _), other = max(others, key=lambda pair: (pair[0][1], -pair[1]))
            yield _Found(w, end, 1, other, last, wrong)


def _possessive(text: _Texts) -> Iterator[_Found]:
    mark, other = _token(text, "'s"), _token(text, _OTHER_SUBJECT)
    follows = text.bigrams()[other]
    if not follows:
        return
    wrong = follows.most_common(1)[0][0]
    named = [part[:1] == " " and part[1:].isalpha() and part[1].isupper() for part in text.texts]
    for w, window in enumerate(text.windows):
        for end in np.flatnonzero(window == mark).tolist():
            if end and named[window[end - 1]] and wrong != mark:
                yield _Found(w, end, 0, other, mark, wrong)


def _capital(text: _Texts) -> Iterator[_Found]:
    stop, comma = _token(text, "."), _token(text, ",")
    lower = [text.ids.get(part.lower(), -1) if part[1:2].isupper() else -1 for part in text.texts]
    for w, window in enumerate(text.windows):
        for end in np.flatnonzero(window == stop).tolist():
            if (
                end + 1 < len(window)
                and text.texts[window[end + 1]][0] == " "
                and lower[window[end + 1]] >= 0
            ):
                answer = int(window[end + 1])
                yield _Found(w, end + 1, 0, comma, answer, lower[answer])


def _title(text: _Texts) -> Iterator[_Found]:
    titles, stop = [_token(text, title) for title in _TITLES], _token(text, ".")
    names: dict[int, Counter[int]] = {title: Counter() for title in titles}
    places: list[tuple[int, int]] = []
    for w, window in enumerate(text.windows):
        for end in range(2, len(window)):
            if (
                window[end - 1] == stop
                and window[end - 2] in titles
                and text.texts[window[end]][1:2].isupper()
            ):
                names[int(window[end - 2])][int(window[end])] += 1
                places.append((w, end))
    for w, end in places:
        title, answer = int(text.windows[w][end - 2]), int(text.windows[w][end])
        other = titles[1 - titles.index(title)]
        wrong = [name for name, _ in names[other].most_common() if name not in names[title]]
        if wrong and answer not in names[other]:
            yield _Found(w, end, 1, other, answer, wrong[0])


def _token(text: _Texts, part: str) -> int:
    if part not in text.ids:
        raise ValueError(f"this task needs the token {part!r}, which the tokenizer does not have")
    return text.ids[part]


_KINDS: dict[str, Callable[[_Texts], Iterator[_Found]]] = {
    "ending": _ending,
    "possessive": _possessive,
    "capital": _capital,
    "title": _title,
}
TEXT_TASKS = tuple(_KINDS)
"""Kinds of tasks in running text, see `text_task`."""
