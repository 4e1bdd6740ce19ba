"""The prompts of the tasks that come with the package, drawn at random from the words of `demo_words`.

Every word is one token for GPT-2 and for the demo models alike, so a task is the same text for both. The
prompts are those that the demo models were not trained on: lists of nouns are new, and sentences about giving
or lasting are from the combinations that are held out of training. `held_out_words=True` goes further and
uses words that were never in such a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from .. import _random
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
    """`Copy: a b c d e f g = a b c d e f` -> ` g`; corrupted: another noun for g in the first list.

    n_words: length of the list; the last word is asked for.
    """
    return _list_draft(draws, "Copy:", " =", _length(n_words), n_words - 1, held_out_words)


def induction(draws: Draws, *, n_words: int = 7, held_out_words: bool = False) -> PromptText:
    """`List: a b c d e f g a b c` -> ` d`, with nothing to say that the list begins again.

    n_words: length of the list; the word in its middle is asked for. Corrupted: another noun for d in the
    first list.
    """
    return _list_draft(draws, "List:", "", _length(n_words), n_words // 2, held_out_words)


def _length(n_words: int) -> int:
    if isinstance(n_words, bool) or not isinstance(n_words, int) or not 3 <= n_words <= 100:
        raise ValueError(f"n_words must be an integer in 3..100, got {n_words!r:.60}")
    return n_words


def _list_draft(
    draws: Draws, start: str, middle: str, n: int, asked: int, held_out_words: bool
) -> PromptText:
    pool = words.HELD_OUT_NOUNS if held_out_words else words.NOUNS
    if n + 1 > len(pool):
        raise ValueError(f"n_words={n} is too many: there are {len(pool)} words, and one more is needed")
    chosen = draws.sample(pool, n + 1)
    other, listed = chosen[-1], chosen[:-1]
    right = listed[asked]
    changed = [*listed[:asked], other, *listed[asked + 1 :]]
    repeated = listed[:asked]
    texts = [" ".join([start, *first]) + middle + "".join(f" {word}" for word in repeated)
             for first in (listed, changed)]  # fmt: skip
    return PromptText(texts[0], texts[1], (f" {right}",), (f" {other}",))


def antonym(draws: Draws, *, counterfactual: str = "word", held_out_words: bool = False) -> PromptText:
    """`The opposite of "large" is "` -> `small`.

    counterfactual: "word" asks for another word's opposite; "relation" asks for the start of the word, and
    its first letter is the wrong answer.
    """
    _one_of("counterfactual", counterfactual, ("word", "relation"))
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
    """`When Mary and John went to the store, John gave a drink to` -> ` Mary` (against ` John`).

    order: "ABBA" (who gives is named second), "BABA" (first) or "both".
    counterfactual: one of COUNTERFACTUALS. s1_io_flip exchanges the two names at the start, s2_io_flip lets
    the other one give, abc gives all three places different new names, random_names replaces both names.
    """
    _one_of("order", order, ("ABBA", "BABA", "both"))
    _one_of("counterfactual", counterfactual, COUNTERFACTUALS)
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
    """`The war lasted from the year 1732 to the year 17` -> any of `33` ... `99`, against `00` ... `32`.

    Label: the two-digit start year. Corrupted: the start 20 years earlier, or the two digits of
    `corrupted_year` ("01" in the literature).
    """
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
    """A Python function whose documentation names its parameters in order; the next name is asked for.

    n_before: parameters before the three that matter (the last of these is the answer). Corrupted: the
    parameters in the signature are others. The wrong answers are all parameters but the right one, of both
    signatures; for the metric the largest of them counts. Needs GPT-2's tokenizer.
    """
    if isinstance(n_before, bool) or not isinstance(n_before, int) or not 0 <= n_before <= 6:
        raise ValueError(f"n_before must be an integer in 0..6, got {n_before!r:.60}")
    n = n_before + 3
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
    """`53+28=0` -> `8`, the tens of the sum, for the toy models of addition.

    Corrupted: other ones in the first number, so that the ones carry where they did not, or the other way
    round; the wrong answer is the tens of that sum. Label: "carry" or "no carry".
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
    return PromptText(*texts, (tens[0],), (tens[1],), "carry" if carries[0] else "no carry")


def needs_addition(tokenizer: Tokenizer) -> None:
    """ValueError unless the tokenizer is that of the toy models of addition."""
    if tokenizer.token_strings(range(tokenizer.n_vocab)) != list(addition.VOCABULARY):
        raise ValueError(
            f"task 'addition' is for the addition models and their {len(addition.VOCABULARY)} tokens, "
            f"this tokenizer has {tokenizer.n_vocab:,}"
        )


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r:.60}")


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


def drafts(name: str, n: int, seed: int, options: dict[str, Any]) -> list[PromptText]:
    """`n` different prompts of a task. Raises ValueError if there are not so many, TypeError for options that
    the task does not have."""
    draws = Draws(seed, list(BUILDERS).index(name))
    found: dict[str, PromptText] = {}
    missed = 0
    while len(found) < n and missed < 200 + 20 * n:
        try:
            draft = BUILDERS[name].draw(draws, **options)
        except TypeError as error:
            raise TypeError(f"task {name!r}: {error}") from error
        missed += draft.clean in found
        found.setdefault(draft.clean, draft)
    if len(found) < n:
        raise ValueError(f"task {name!r} has only {len(found)} different prompts of this kind, asked for {n}")
    return list(found.values())
