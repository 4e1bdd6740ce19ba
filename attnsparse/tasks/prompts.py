"""Prompts of the built-in tasks, drawn at random from the words in `words`.

Every word is one token for GPT-2 and for the demo models alike, so a task is the same text for both. The demo
models were not trained on these prompts: lists of nouns are new, and sentences about giving or lasting are
combinations that were held out of training. `held_out_words=True` goes further: the words were never in such
a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from .. import _check, _random
from ..model.tokenizer import Tokenizer
from . import addition, words
from .task import USE, PromptText

T = TypeVar("T")

COUNTERFACTUALS = (
    "s2_io_flip_counterfactual",
    "s1_io_flip_counterfactual",
    "abc_counterfactual",
    "random_names_counterfactual",
    "s1_ioi_flip_s2_ioi_flip_counterfactual",
    "random_names_s1_ioi_flip_counterfactual",
    "random_names_s2_ioi_flip_counterfactual",
    "random_names_s1_ioi_flip_s2_ioi_flip_counterfactual",
)
"""Corrupted prompts of `ioi`, by their names in the benchmark MIB."""


class Draws:
    """Random choices that are a function of seed, task and order."""

    def __init__(self, seed: int, task: int) -> None:
        self._numbers = _numbers(seed, task)

    def below(self, n: int) -> int:
        """An integer in 0..n-1."""
        return next(self._numbers) % n

    def choice(self, items: Sequence[T]) -> T:
        """One of `items`."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], n: int, without: Sequence[T] = ()) -> list[T]:
        """`n` different ones of `items`, none of them in `without`."""
        left = [item for item in items if item not in without]
        return [left.pop(self.below(len(left))) for _ in range(n)]


def _numbers(seed: int, task: int) -> Iterator[int]:
    block = 0
    while True:
        yield from _random.raw(4096, seed, USE, task, 2 + block).tolist()
        block += 1


def copy(draws: Draws, *, n_words: int = 7, held_out_words: bool = False) -> PromptText:
    """Draw `Copy: a b c d e f g = a b c d e f` with the answer ` g`.

    Parameters
    ----------
    draws : Draws
        Random choices.
    n_words : int, default 7
        Length of the list, 3..100; the last word is asked for.
    held_out_words : bool, default False
        Take nouns that the demo models never saw in a list.

    Returns
    -------
    PromptText
        Corrupted: another noun in place of g in the first list, which is the wrong answer.
    """
    n = _check.integer(n_words, "n_words", 3, 100)
    return _list(draws, "Copy:", " =", n, n - 1, held_out_words)


def induction(draws: Draws, *, n_words: int = 7, held_out_words: bool = False) -> PromptText:
    """Draw `List: a b c d e f g a b c` with the answer ` d`; nothing announces that the list begins again.

    Parameters
    ----------
    draws : Draws
        Random choices.
    n_words : int, default 7
        Length of the list, 3..100; the word in its middle is asked for.
    held_out_words : bool, default False
        Take nouns that the demo models never saw in a list.

    Returns
    -------
    PromptText
        Corrupted: another noun in place of d in the first list, which is the wrong answer.
    """
    n = _check.integer(n_words, "n_words", 3, 100)
    return _list(draws, "List:", "", n, n // 2, held_out_words)


def _list(draws: Draws, start: str, middle: str, n: int, asked: int, held_out_words: bool) -> PromptText:
    pool = words.HELD_OUT_NOUNS if held_out_words else words.NOUNS
    if n + 1 > len(pool):
        raise ValueError(f"n_words must be at most {len(pool) - 1}, one less than there are words, got {n}")
    chosen = draws.sample(pool, n + 1)
    other, listed = chosen[-1], chosen[:-1]
    right = listed[asked]
    changed = [*listed[:asked], other, *listed[asked + 1 :]]
    repeated = listed[:asked]
    texts = [" ".join([start, *first]) + middle + "".join(f" {word}" for word in repeated)
             for first in (listed, changed)]  # fmt: skip
    return PromptText(texts[0], texts[1], (f" {right}",), (f" {other}",))


def antonym(draws: Draws, *, counterfactual: str = "word", held_out_words: bool = False) -> PromptText:
    """Draw `The opposite of "large" is "` with the answer `small`.

    Parameters
    ----------
    draws : Draws
        Random choices.
    counterfactual : {"word", "relation"}, default "word"
        "word" asks for the opposite of another word, which is the wrong answer; "relation" asks for the start
        of the word, and its first letter is the wrong answer.
    held_out_words : bool, default False
        Take pairs that the demo models never saw in this sentence.

    Returns
    -------
    PromptText
        Clean and corrupted prompt with one answer and one wrong answer.
    """
    _check.choice(counterfactual, "counterfactual", ("word", "relation"))
    pool = [pair for pair in words.PAIRS if (pair in words.HELD_OUT_PAIRS) == held_out_words]
    pair, other = draws.sample(pool, 2)
    x, y = pair if draws.below(2) else pair[::-1]
    text = words.until(words.ANTONYM[0], "y")
    clean = words.filled(text, x=x)
    if counterfactual == "relation":
        return PromptText(clean, words.filled(words.until(words.RIVAL, "letter"), x=x), (y,), (x[0],))
    other_x, other_y = other if draws.below(2) else other[::-1]
    return PromptText(clean, words.filled(text, x=other_x), (y,), (other_y,))


def ioi(
    draws: Draws,
    *,
    order: str = "both",
    counterfactual: str = COUNTERFACTUALS[0],
    held_out_words: bool = False,
) -> PromptText:
    """Draw `When Mary and John went to the store, John gave a drink to` with the answer ` Mary`.

    Parameters
    ----------
    draws : Draws
        Random choices.
    order : {"both", "ABBA", "BABA"}, default "both"
        Whether the one who gives is named second ("ABBA") or first ("BABA").
    counterfactual : str, default "s2_io_flip_counterfactual"
        One of `COUNTERFACTUALS`. s1_io_flip exchanges the two names at the start, s2_io_flip lets the other
        one give, abc puts different new names in all three places, random_names replaces both names.
    held_out_words : bool, default False
        Take names that the demo models never saw in such a sentence.

    Returns
    -------
    PromptText
        The wrong answer is the name of the one who gives; the label is "ABBA" or "BABA".

    References
    ----------
    Wang et al. (2022), "Interpretability in the Wild"; counterfactuals as in MIB (Mueller et al., 2025).
    """
    _check.choice(order, "order", ("ABBA", "BABA", "both"))
    _check.choice(counterfactual, "counterfactual", COUNTERFACTUALS)
    pool = words.HELD_OUT_NAMES if held_out_words else words.NAMES
    while True:
        a, b = draws.sample(range(len(pool)), 2)
        place, thing = draws.below(len(words.PLACES)), draws.below(len(words.OBJECTS))
        if words.giving_is_held_out(a, b, place, thing) or held_out_words:
            break
    label = order if order != "both" else draws.choice(("ABBA", "BABA"))
    form = words.until(draws.choice(words.GIVING), "io")
    first, second = pool[a], pool[b]
    subject, other = (second, first) if label == "ABBA" else (first, second)

    def text(one: str, two: str, gives: str) -> str:
        return words.filled(
            form, a=one, b=two, s=gives, place=words.PLACES[place], object=words.OBJECTS[thing]
        )

    changed = _changed_names(draws, pool, (first, second, subject), counterfactual)
    return PromptText(text(first, second, subject), text(*changed), (f" {other}",), (f" {subject}",), label)


def _changed_names(
    draws: Draws, pool: Sequence[str], names: tuple[str, str, str], counterfactual: str
) -> tuple[str, str, str]:
    """(first, second, giving) name of the corrupted prompt."""
    kind = counterfactual.removesuffix("_counterfactual")
    first, second, gives = names
    if kind == "abc":
        new = draws.sample(pool, 3, without=names)
        return new[0], new[1], new[2]
    if kind.startswith("random_names"):
        one, two = draws.sample(pool, 2, without=names)
        first, second, gives = one, two, (one if gives == first else two)
    other = second if gives == first else first
    if "s2_io" in kind:
        gives = other
    if "s1_io" in kind:
        first, second = second, first
    return first, second, gives


def greater_than(
    draws: Draws, *, corrupted_year: str | None = None, held_out_words: bool = False
) -> PromptText:
    """Draw `The war lasted from the year 1732 to the year 17` with any of `33` ... `99` as answer.

    Parameters
    ----------
    draws : Draws
        Random choices.
    corrupted_year : str, optional
        Two digits that replace those of the start year in the corrupted prompt ("01" in the literature). By
        default the start is 20 years earlier there.
    held_out_words : bool, default False
        Take years that the demo models never saw as a start.

    Returns
    -------
    PromptText
        The wrong answers are `00` ... `32`; the label is the two-digit start year.

    References
    ----------
    Hanna et al. (2023), "How does GPT-2 compute greater-than?"
    """
    if corrupted_year is not None and re.fullmatch("[0-9]{2}", str(corrupted_year)) is None:
        raise ValueError(f"corrupted_year must be two digits, such as '01', got {corrupted_year!r:.60}")
    years = range(words.FIRST_YEAR + 20, words.LAST_YEAR + 1)
    pool = [year for year in years if (year in words.HELD_OUT_YEARS) == held_out_words]
    while True:
        event, century = draws.below(len(words.EVENTS)), draws.below(len(words.CENTURIES))
        start = draws.choice(pool)
        if words.lasting_is_held_out(event, century, start) or held_out_words:
            break
    other = f"{start - 20:02d}" if corrupted_year is None else corrupted_year
    form = words.until(words.LASTING, "end").replace("{ century!}", "{ century}")
    texts = [
        words.filled(form, event=words.EVENTS[event], century=words.CENTURIES[century], start=year)
        for year in (f"{start:02d}", other)
    ]
    ends = tuple(f"{year:02d}" for year in range(100))
    return PromptText(texts[0], texts[1], ends[start + 1 :], ends[: start + 1], f"{start:02d}")


def docstring(draws: Draws, *, n_before: int = 2) -> PromptText:
    """Draw a Python function whose documentation names its parameters in order; the next one is asked for.

    Parameters
    ----------
    draws : Draws
        Random choices.
    n_before : int, default 2
        Number of parameters before the three that matter, 0..6; the last of the three is the answer.

    Returns
    -------
    PromptText
        Corrupted: other parameters in the signature. The wrong answers are all other parameters of both
        signatures; the metric takes the largest of them. For GPT-2's tokenizer.

    References
    ----------
    Heimersheim and Janiak (2023), "A circuit for Python docstrings in a 4-layer attention-only transformer".
    """
    n = _check.integer(n_before, "n_before", 0, 6) + 3
    drawn = draws.sample(words.ALL_NOUNS, 2 * n + 7)
    name, signature, others, about = drawn[0], drawn[1 : n + 1], drawn[n + 1 : 2 * n + 1], drawn[2 * n + 1 :]
    documented = signature[n_before:]

    def text(parameters: Sequence[str]) -> str:
        lines = [
            f"def {name}(self, {', '.join(parameters)}):",
            f'    """Use the {about[0]} {about[1]}',
            "",
            f"    :param {documented[0]}: {about[2]} {about[3]}",
            f"    :param {documented[1]}: {about[4]} {about[5]}",
            "    :param",
        ]
        return "\n".join(lines)

    right = signature[-1]
    wrong = tuple(f" {word}" for word in (*signature[:-1], *others))
    return PromptText(text(signature), text(others), (f" {right}",), wrong)


def add(draws: Draws) -> PromptText:
    """Draw `53+28=0` with the answer `8`, the tens of the sum, for the addition models.

    Parameters
    ----------
    draws : Draws
        Random choices.

    Returns
    -------
    PromptText
        Corrupted: other ones in the first number, so that they carry where they did not, or the other way
        round; the wrong answer is the tens of that sum. The label is "carry" or "no carry".
    """
    while True:
        a, b = draws.below(100), draws.below(100)
        other = a - a % 10 + draws.below(10)
        carries = [x % 10 + b % 10 > 9 for x in (a, other)]
        hundreds = [(x + b) // 100 for x in (a, other)]
        if carries[0] != carries[1] and hundreds[0] == hundreds[1]:
            break
    texts = [f"{x:02d}+{b:02d}={hundreds[0]}" for x in (a, other)]
    tens = [str((x + b) // 10 % 10) for x in (a, other)]
    return PromptText(texts[0], texts[1], (tens[0],), (tens[1],), "carry" if carries[0] else "no carry")


def needs_addition(tokenizer: Tokenizer) -> None:
    """ValueError unless the tokenizer is that of the toy models of addition."""
    if tokenizer.token_strings(range(tokenizer.n_vocab)) != list(addition.VOCABULARY):
        raise ValueError(
            f"task 'addition' is for the addition models and their {len(addition.VOCABULARY)} tokens, "
            f"this tokenizer has {tokenizer.n_vocab:,}"
        )


class Builder(NamedTuple):
    """How a task is made: a function that draws one prompt, and its metric."""

    draw: Callable[..., PromptText]
    metric: str


BUILDERS = {
    "copy": Builder(copy, "logit_diff"),
    "induction": Builder(induction, "logit_diff"),
    "antonym": Builder(antonym, "logit_diff"),
    "ioi": Builder(ioi, "logit_diff"),
    "greater_than": Builder(greater_than, "prob_diff"),
    "docstring": Builder(docstring, "logit_diff_max"),
    "addition": Builder(add, "logit_diff"),
}


def draw_prompts(name: str, n: int, seed: int, options: dict[str, Any]) -> list[PromptText]:
    """`n` different prompts of a task; ValueError if there are not that many, TypeError for options that the
    task does not have."""
    _check.flag(options.get("held_out_words", False), "held_out_words")
    draws = Draws(seed, list(BUILDERS).index(name))
    found: dict[str, PromptText] = {}
    missed = 0
    while len(found) < n and missed < 200 + 20 * n:
        try:
            prompt = BUILDERS[name].draw(draws, **options)
        except TypeError as error:
            raise TypeError(f"task {name!r}: {error}") from error
        missed += prompt.clean in found
        found.setdefault(prompt.clean, prompt)
    if len(found) < n:
        raise ValueError(f"task {name!r} has only {len(found)} different prompts of this kind, asked for {n}")
    return list(found.values())
