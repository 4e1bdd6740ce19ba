"""The layouts in which tables of prompts are published, and how a row of each becomes a prompt with answers.

All columns of a table together decide what it means, never one of them. `LAYOUTS` is the whole list; its
source are the readers of EAP-IG, eap-ig-faithfulness and MIB's circuit track. Prompts are always in `clean`
and `corrupted`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._check import is_missing
from ..errors import quoted
from ..model.tokenizer import Tokenizer
from .task import PromptText

YEARS = tuple(f"{year:02d}" for year in range(100))
_AS_TEXT = "a CSV stays text with pandas.read_csv(..., dtype=str, keep_default_na=False)"
Columns = Mapping[str, Sequence[Any]]
Refuse = Callable[[str, "str | None"], Exception]
"""Makes the exception for a sentence and the column that it is about."""


class Layout(NamedTuple):
    """Columns and what they mean."""

    of: str
    """Whose tables look so."""
    right: str
    """Column of the right answers."""
    wrong: str | None
    """Column of the wrong answers; None if `right` says both."""
    kind: str
    """"ids" and "words" may be one or a list; "year" is the two last digits that answers must exceed, or the
    four of the year; "number" is 0 for a singular and 1 for a plural subject."""
    metric: str = "logit_diff"
    also: tuple[str, ...] = ()
    """Columns that belong to it and are not read."""
    needs: tuple[str, ...] = ()
    """Columns without which it is another layout."""

    @property
    def answers(self) -> tuple[str, ...]:
        """The columns that decide."""
        return (self.right, *((self.wrong,) if self.wrong else ()), *self.needs)


_PLACES = ("capital", "country", "corrupted_capital", "corrupted_country")
_KINDS = ("h1", "h2", "hypernym", "answers", "c1", "c2", "corrupted_hypernym", "corrupted_answers",
          "clean2", "corrupted2", "prob_diff")  # fmt: skip
_NAMES = ("corrupted_hard", "correct", "incorrect")
_PRONOUNS = ("label", "clean_answer", "corrupted_answer")
_SUM = ("operand1", "operand2")
_WORDS = (
    "label",
    "year",
    "plural",
    "corrupted_label",
    "answers",
    "corrupted_answers",
    *_PLACES,
    *_SUM,
    *_NAMES,
    *_PRONOUNS,
)
LAYOUTS = (
    Layout("own tables", "answer", "wrong", "words", also=_WORDS),
    Layout("IOI, colored objects", "correct_idx", "incorrect_idx", "ids", also=_NAMES),
    Layout("IOI, colored objects", "correct", "incorrect", "words", also=_NAMES),
    Layout("greater-than", "correct_idx", None, "year", "prob_diff"),
    Layout("greater-than", "label", None, "year", "prob_diff"),
    Layout("greater-than of MIB", "year", None, "year", "prob_diff"),
    Layout("gender bias", "clean_answer_idx", "corrupted_answer_idx", "ids", also=_PRONOUNS),
    Layout("gender bias", "clean_answer", "corrupted_answer", "words", also=_PRONOUNS),
    Layout("subject-verb agreement", "plural", None, "number", "prob_diff", ("group",)),
    Layout("fact retrieval", "country_idx", "corrupted_country_idx", "ids", "prob_diff", _PLACES),
    Layout("fact retrieval", "country", "corrupted_country", "words", "prob_diff", _PLACES),
    Layout("country-capital", "capital_idx", "corrupted_capital_idx", "ids", "prob_diff", _PLACES),
    Layout("country-capital", "capital", "corrupted_capital", "words", "prob_diff", _PLACES),
    Layout("hypernymy", "answers_idx", "corrupted_answers_idx", "ids", "prob_diff", _KINDS),
    Layout("hypernymy", "answers", "corrupted_answers", "words", "prob_diff", _KINDS),
    Layout("arithmetic", "answer_idx", "corrupted_idx", "ids"),
    Layout("arithmetic of MIB", "label", "corrupted_label", "words", needs=_SUM,
           also=("operator", "num_digit", "template")),
    Layout("NPI, EWoK", "clean_idx", "corrupted_idx", "ids"),
)  # fmt: skip
"""All layouts that are known."""

_DECIDING = frozenset(column for layout in LAYOUTS for column in layout.answers)
ALWAYS = frozenset(("clean", "corrupted", "half", "n_tokens", "task", "", "Unnamed: 0", "index", "idx"))
"""Columns that any layout may have: prompts, what `Task.to_pandas` adds, numbers of rows."""


def recognised(columns: Columns, refuse: Refuse) -> Layout:
    """The one layout that fits; `refuse` makes the error if there is none or more than one."""
    for column in ("clean", "corrupted"):
        if column not in columns:
            raise refuse(f"has no column {column!r}; prompts belong in 'clean' and 'corrupted'", column)
    found = _DECIDING.intersection(columns)
    fits = [
        layout
        for layout in LAYOUTS
        if found.issuperset(layout.answers) and found.issubset((*layout.answers, *layout.also))
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        meant = " or ".join(f"{layout.right!r} ({layout.of})" for layout in fits)
        raise refuse(f"the answers can be {meant}; leave out the columns that are not the answers", None)
    for layout in LAYOUTS:
        lacking = set(layout.answers) - found
        if len(lacking) == 1 < len(layout.answers) and found.issubset((*layout.answers, *layout.also)):
            have = next(column for column in layout.answers if column in found)
            raise refuse(f"has no column {lacking.copy().pop()!r} beside {have!r}", *lacking)
    shown = ", ".join(sorted(found)) or "none"
    known = ", ".join(dict.fromkeys(layout.right for layout in LAYOUTS))
    raise refuse(f"no layout has the answer columns {shown:.60}; right answers can be in {known}", None)


def read_rows(
    layout: Layout,
    columns: Columns,
    tokenizer: Tokenizer,
    verbs: Sequence[Sequence[str]] | None,
    refuse: Refuse,
) -> list[PromptText]:
    """All rows as prompts with answers; every value is checked."""
    read = _Reader(layout, tokenizer, refuse, verbs)
    labels = _labels(columns, "task" in columns, refuse) if layout.kind != "year" else None
    drafts = []
    for i, texts in enumerate(zip(columns["clean"], columns["corrupted"])):
        for name, text in zip(("clean", "corrupted"), texts):
            if not isinstance(text, str):
                raise refuse(f"prompt {i}: {name} must be a string, {_got(text)}", name)
        cells = [columns[name][i] for name in (layout.right, layout.wrong) if name]
        draft = PromptText(str(texts[0]), str(texts[1]), *read.answers(i, cells, texts[0]))
        drafts.append(draft if labels is None else draft._replace(label=labels[i]))
    return drafts


def _labels(columns: Columns, from_task: bool, refuse: Refuse) -> list[str] | None:
    """The labels as text. Numbers are refused in a table that a task wrote: "05" would be another label."""
    values = columns.get("label", ())
    if not len(values) or (not from_task and all(map(is_missing, values))):
        return None
    for i, value in enumerate(values):
        if not isinstance(value, str) and (from_task or is_missing(value)):
            raise refuse(f"prompt {i}: label must be a string, {_got(value)}; {_AS_TEXT}", "label")
    return [str(value) for value in values]


class _Reader:
    """Answers of a row, by the kind of the layout."""

    def __init__(
        self, layout: Layout, tokenizer: Tokenizer, refuse: Refuse, verbs: Sequence[Sequence[str]] | None
    ) -> None:
        self.layout, self.tokenizer, self.refuse = layout, tokenizer, refuse
        kinds = {"ids": self._pair, "words": self._pair, "year": self._years, "number": self._numbers}
        self.answers = kinds[layout.kind]
        self.item: Callable[[int, str, Any], int | str] = self._id if layout.kind == "ids" else self._word
        if layout.kind == "number":
            self.by_number = self._verb_ids(verbs)

    def _pair(self, i: int, cells: Sequence[Any], clean: str) -> tuple[Any, ...]:
        names = [name for name in (self.layout.right, self.layout.wrong) if name]
        return tuple(
            tuple(self.item(i, name, value) for value in items_of(cell)) for name, cell in zip(names, cells)
        )

    def _id(self, i: int, column: str, value: Any) -> int:
        return self._integer(i, column, value, self.tokenizer.n_vocab - 1)

    def _word(self, i: int, column: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.refuse(
                f"prompt {i}: {column} must be a string or a list of strings, {_got(value)}", column
            )
        return str(value)

    def _years(self, i: int, cells: Sequence[Any], clean: str) -> tuple[Any, ...]:
        """The year must be in the prompt, so that no other number is taken for one."""
        column = self.layout.right
        number = self._integer(i, column, cells[0], 9998 if column == "year" else 98)
        digits = f"{number:04d}" if column == "year" else YEARS[number]
        if not re.search(rf"{digits}(?!\d)", clean) or digits[-2:] == "99":
            raise self.refuse(
                f"prompt {i}: {column} {number} would be the year of greater-than, but no number in the "
                f"prompt {quoted(clean)} ends in {digits}, with years to follow",
                column,
            )
        start = number % 100
        return YEARS[start + 1 :], YEARS[: start + 1], YEARS[start]

    def _numbers(self, i: int, cells: Sequence[Any], clean: str) -> tuple[Any, ...]:
        number = self._integer(i, self.layout.right, cells[0], 1)
        return self.by_number[number], self.by_number[1 - number]

    def _verb_ids(self, verbs: Sequence[Sequence[str]] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids of singular and of plural forms; pairs whose singular is not one token are left out."""
        if verbs is None:
            raise self.refuse(
                "is of subject-verb agreement and names no verbs; pass verbs=[('is', 'are'), ...], "
                "singular and plural",
                "plural",
            )
        found: tuple[dict[int, None], dict[int, None]] = ({}, {})
        for pair in verbs:
            if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(word, str) for word in pair):
                raise TypeError(f"verbs must be pairs of strings, singular and plural, got {pair!r:.60}")
            tokens = [self._spaced_token(word) for word in pair]
            if tokens[0] is not None:
                found[0][tokens[0]] = None
                if tokens[1] is not None:
                    found[1][tokens[1]] = None
        if not found[0] or not found[1]:
            raise ValueError("verbs: no pair has a singular and a plural that are one token each")
        return tuple(found[0]), tuple(found[1])

    def _spaced_token(self, word: str) -> int | None:
        try:
            ids = self.tokenizer.encode(f" {word.strip()}")
        except ValueError:
            return None
        return ids[0] if len(ids) == 1 else None

    def _integer(self, i: int, column: str, value: Any, high: int) -> int:
        number = exact_integer(value)
        if number is None or not 0 <= number <= high:
            text = f"prompt {i}: {column} must be an integer in 0..{high:,}, {_got(value)}"
            raise self.refuse(text, column)
        return number


def exact_integer(value: Any) -> int | None:
    """An integer, or its decimal digits, as int; None for floats, truth values and all else."""
    if isinstance(value, str):
        digits = value.strip()
        return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 10 else None
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    return None


def items_of(cell: Any) -> list[Any]:
    """What a cell holds: one thing, or the items of a list, of an array, or of a list written as text."""
    if isinstance(cell, str):
        listed = _written_list(cell)
        return [cell] if listed is None else listed
    if isinstance(cell, np.ndarray):
        return list(np.atleast_1d(cell))
    return list(cell) if isinstance(cell, (list, tuple)) else [cell]


_LIST = re.compile(r"\s*\[(.*)\]\s*", re.DOTALL)
_ITEM = re.compile(r"""\s*(\d{1,10}|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")\s*(?:,|\Z)""")


def _written_list(text: str) -> list[Any] | None:
    """The items of a list as Python and JSON write it, integers and quoted texts; None for anything else."""
    inner = _LIST.fullmatch(text)
    if inner is None:
        return None
    items, at, end = [], 0, len(inner[1].rstrip())
    while at < end:
        item = _ITEM.match(inner[1], at)
        if item is None:
            return None
        try:
            items.append(ast.literal_eval(item[1]) if item[1][0] in "'\"" else int(item[1]))
        except (SyntaxError, ValueError):  # an unknown escape
            return None
        at = item.end()
    return items


def _got(value: Any) -> str:
    """What was found instead, for a message."""
    if is_missing(value):
        return f"but it is missing ({value})"
    return f"got {quoted(value)}" if isinstance(value, str) else f"got {type(value).__name__} {value!r:.40}"
