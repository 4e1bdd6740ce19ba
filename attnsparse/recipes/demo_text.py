"""The demo models' tokenizer and training text: English templates, a pure function of seed and step.

Sentences are packed one after the other into sequences of 33 tokens (32 inputs and their targets); 65 % of
the sequences begin in the middle of a sentence, so that positions say nothing. The loss counts only tokens
that the words before them determine: literals that can follow in one way only (weight 1) and answers
(weight 3). Years are the exception: the last year of something is one of the ten after the first, and has
weight 1. In a sentence whose beginning is cut off only those parts of lists count whose source is still
there.

What is held out of training (see `tasks.words`): nouns from lists, names from sentences about giving, start
years, pairs of opposites from the first form, and a tenth of all combinations of names, place and object and
of event and years.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _check, _random
from ..model.tokenizer import Tokenizer
from ..tasks import words
from ..training.data import Batch

USE = 5  # of random numbers, see _random.py
LENGTH = 32
ANSWER_WEIGHT = 3.0
MIDDLE = 0.65
DRAWS = 256  # random numbers of a sequence; about 60 are used
DIGEST_STEPS = 8

SHARES = {
    "antonym": 0.26,
    "copy": 0.22,
    "giving": 0.24,
    "lasting": 0.12,
    "capital": 0.05,
    "kind": 0.04,
    "mention": 0.05,
    "filler": 0.02,
}
"""Share of each kind of sentence."""

# Out of 20: the five forms of opposites, then the rival relation, which forbids answering by the word alone.
_ANTONYM_FORMS = (0,) * 6 + (1,) * 3 + (2,) * 3 + (3,) * 2 + (4,) * 2 + (5,) * 4

END_YEAR_ENTROPY = math.log(words.LONGEST)
"""Nats of cross-entropy that nobody can avoid at a last year."""


@functools.cache
def demo_tokenizer() -> Tokenizer:
    """Byte-level BPE that cuts the demo text as GPT-2 does, and any other text into smaller pieces.

    Trained on the list of all pieces of the text, until each is one token. Digits come first: a year such as
    " 1732" must become " 17" and "32", whatever else could be merged.
    """
    import tokenizers

    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = [piece for piece in words.all_pieces() for _ in range(_times(piece))]
    inner.train_from_iterator(lines, trainer)
    return Tokenizer(inner)


def _times(piece: str) -> int:
    """How often a piece occurs in the list that the tokenizer is trained on: its rank among the merges."""
    if not piece.strip().isdecimal():
        return 1
    return 1000 if piece[0] == " " else 10


class Sentence(NamedTuple):
    """Token ids, their loss weights, and the first position that must be visible for each to count."""

    tokens: list[int]
    weights: list[float]
    needs: list[int]


class _Template:
    """A template with token ids where it has literals; `fill` puts words into its slots."""

    def __init__(self, text: str, literal_weights: list[float], token: Callable[[str], int]) -> None:
        parts = words.pieces(text)
        self._ids = [0 if words.is_slot(part) else token(part) for part in parts]
        self._slots = [i for i, part in enumerate(parts) if words.is_slot(part)]
        self._weights = literal_weights
        self._needs = [0] * len(parts)

    def fill(self, *values: int) -> Sentence:
        tokens = self._ids.copy()
        for slot, value in zip(self._slots, values):
            tokens[slot] = value
        return Sentence(tokens, self._weights, self._needs)


def literal_weights(templates: Sequence[str]) -> list[list[float]]:
    """Loss weight of every piece of every template.

    A literal counts 1 if no other template continues differently after the same pieces; an answer counts
    ANSWER_WEIGHT, years 1; free words and the first piece of a sentence count 0.
    """
    rows = [words.pieces(template) for template in templates]
    following: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        for i, piece in enumerate(row):
            following.setdefault(tuple(row[:i]), set()).add(piece)
    weights = []
    for row in rows:
        weights.append([0.0])
        for i, piece in enumerate(row[1:], 1):
            if words.is_slot(piece):
                weight = ANSWER_WEIGHT if piece.endswith("!}") else 0.0
                weights[-1].append(1.0 if piece in ("{ century!}", "{end!}") else weight)
            else:
                weights[-1].append(1.0 if len(following[tuple(row[:i])]) == 1 else 0.0)
    return weights


class Sentences:
    """Draws random sentences as token ids of the demo tokenizer.

    kinds: keys of SHARES, which keep their shares among each other; None for all.
    """

    def __init__(self, tokenizer: Tokenizer, kinds: Sequence[str] | None = None) -> None:
        self._ids = {tokenizer.token_string(token): token for token in range(tokenizer.n_vocab)}
        weights = literal_weights(words.TEMPLATES)
        made = [_Template(text, row, self._token) for text, row in zip(words.TEMPLATES, weights)]
        forms = iter(made)
        self._antonym = list(itertools.islice(forms, len(words.ANTONYM)))
        self._rival = next(forms)
        self._giving = list(itertools.islice(forms, len(words.GIVING)))
        self._lasting, self._capital, self._kind, self._mention = forms
        self._lists = [
            tuple([self._token(piece) for piece in words.pieces(part) if piece] for part in parts)
            for parts in words.LISTS
        ]
        self._set_words()
        self.spaced_start = self._starts()
        self._full_stop, self._so = self._token("."), self._token(words.FILLER)
        chosen = list(SHARES) if kinds is None else list(kinds)
        total = 1.0 if kinds is None else sum(SHARES[kind] for kind in chosen)
        shares = np.cumsum([SHARES[kind] / total for kind in chosen])
        self._limits = [int(share * 2**32) for share in shares[:-1]] + [2**32]
        self._makers: list[Callable[[Iterator[int]], Sentence]] = [
            getattr(self, f"_make_{kind}") for kind in chosen
        ]

    def _token(self, piece: str) -> int:
        return self._ids[piece]

    def _spaced(self, items: Sequence[object]) -> list[int]:
        return [self._ids[f" {item}"] for item in items]

    def _set_words(self) -> None:
        """Token ids of the word lists."""
        both = [*words.PAIRS, *((second, first) for first, second in words.PAIRS)]
        kept_out = [pair in words.HELD_OUT_PAIRS for pair in words.PAIRS] * 2
        self._pairs = [
            (self._ids[x], self._ids[y], *self._spaced((x, y)), self._ids[x[0]], kept)
            for (x, y), kept in zip(both, kept_out)
        ]
        self._nouns, self._names = self._spaced(words.NOUNS), self._spaced(words.NAMES)
        self._held_out_nouns = self._spaced(words.HELD_OUT_NOUNS)
        self._held_out_names = self._spaced(words.HELD_OUT_NAMES)
        self._places, self._objects = self._spaced(words.PLACES), self._spaced(words.OBJECTS)
        self._events, self._centuries = self._spaced(words.EVENTS), self._spaced(words.CENTURIES)
        self._years = [self._ids[f"{year:02d}"] for year in range(100)]
        self._capitals = [tuple(self._spaced(pair)) for pair in words.CAPITALS]
        self._kinds = [tuple(self._spaced(pair)) for pair in words.KIND_OF]
        adjectives = [pair[2] for pair in self._pairs]
        held_out = self._held_out_nouns + self._held_out_names
        self._any = self._nouns + self._names + held_out + self._places + self._objects + adjectives

    def _starts(self) -> dict[int, int]:
        """First token of a sentence -> the same with a leading space, for sentences that follow others."""
        templates = (*words.TEMPLATES, *(start for start, _, _ in words.LISTS), words.FILLER)
        starts = {words.pieces(template)[0] for template in templates}
        return {self._ids[start]: self._ids[" " + start] for start in starts}

    def draw(self, draws: Iterator[int]) -> Sentence:
        """The next sentence, from random numbers of 64 bits."""
        place = next(draws) >> 32
        for limit, make in zip(self._limits, self._makers):
            if place < limit:
                return make(draws)
        raise AssertionError("the shares end at 1")

    def _make_antonym(self, draws: Iterator[int]) -> Sentence:
        form = _ANTONYM_FORMS[next(draws) % len(_ANTONYM_FORMS)]
        x, y, spaced_x, spaced_y, letter, held_out = self._pairs[next(draws) % len(self._pairs)]
        if form == len(self._antonym):
            return self._rival.fill(x, letter)
        if form == 0 and held_out:
            form = 1
        values = (x, y) if form < 2 else (spaced_x, spaced_y)
        return self._antonym[form].fill(*values)

    def _make_copy(self, draws: Iterator[int]) -> Sentence:
        form = next(draws) % len(self._lists)
        start, middle, end = self._lists[form]
        n = words.SHORTEST_LIST + next(draws) % (words.LONGEST_LIST - words.SHORTEST_LIST + 1)
        chosen: dict[int, None] = {}
        while len(chosen) < n:
            chosen[self._nouns[next(draws) % len(self._nouns)]] = None
        nouns = list(chosen)
        first, known = len(start), bool(middle)
        free = [0.0] * (first + n + len(middle))
        # Noun i is found after noun i - 1 of the first list, noun 0 after its start if there is a middle.
        found = [ANSWER_WEIGHT if known else 0.0] + [ANSWER_WEIGHT] * (n - 1) + [float(known)]
        needs = [0, *range(first, first + n)]
        return Sentence(start + nouns + middle + nouns + end, free + found, [0] * len(free) + needs)

    def _make_giving(self, draws: Iterator[int]) -> Sentence:
        n = len(self._names)
        a, b = next(draws) % n, next(draws) % (n - 1)
        b += b >= a
        place, thing = next(draws) % len(self._places), next(draws) % len(self._objects)
        if words.giving_is_held_out(a, b, place, thing):
            thing = (thing + 1) % len(self._objects)
        draw = next(draws)
        subject, other = (a, b) if draw & 1 else (b, a)
        names = self._names
        return self._giving[(draw >> 1) % len(self._giving)].fill(
            names[a], names[b], self._places[place], names[subject], self._objects[thing], names[other]
        )

    def _make_lasting(self, draws: Iterator[int]) -> Sentence:
        event, century = next(draws) % len(self._events), next(draws) % len(self._centuries)
        start = words.FIRST_YEAR + next(draws) % (words.LAST_YEAR - words.FIRST_YEAR + 1)
        if start in words.HELD_OUT_YEARS:
            start += 1
        if words.lasting_is_held_out(event, century, start):
            event = (event + 1) % len(self._events)
        end = start + 1 + next(draws) % words.LONGEST
        token = self._centuries[century]
        return self._lasting.fill(self._events[event], token, self._years[start], token, self._years[end])

    def _make_capital(self, draws: Iterator[int]) -> Sentence:
        return self._capital.fill(*self._capitals[next(draws) % len(self._capitals)])

    def _make_kind(self, draws: Iterator[int]) -> Sentence:
        return self._kind.fill(*self._kinds[next(draws) % len(self._kinds)])

    def _make_mention(self, draws: Iterator[int]) -> Sentence:
        # Half of the words are held out of the other sentences, so that they are well known by these.
        draw = next(draws)
        names = self._held_out_names if draw & 1 else self._names
        nouns = self._held_out_nouns if draw & 2 else self._nouns
        name, noun = names[next(draws) % len(names)], nouns[next(draws) % len(nouns)]
        return self._mention.fill(name, noun, noun, name)

    def _make_filler(self, draws: Iterator[int]) -> Sentence:
        n = 4 + next(draws) % 5
        chosen = [self._any[next(draws) % len(self._any)] for _ in range(n)]
        return Sentence([self._so, *chosen, self._full_stop], [0.0] * (n + 2), [0] * (n + 2))


class DemoText:
    """Training data for `Trainer`: batches of the demo text, without end.

    batch: sequences of a micro-batch, each of LENGTH tokens.  seed: another seed is another text.
    kinds: kinds of sentences (keys of SHARES), None for all.
    Sequence r of micro-batch m of step s is a function of (seed, s, m, r) alone.
    """

    def __init__(self, batch: int = 32, *, seed: int = 0, kinds: Sequence[str] | None = None) -> None:
        self.batch_size, self.seed = _check.integer(batch, "batch", 1), _check.seed(seed)
        self.kinds = None if kinds is None else tuple(_check.choice(kind, "kinds", SHARES) for kind in kinds)
        if self.kinds == ():
            raise ValueError(f"kinds is empty; choose from {', '.join(SHARES)}")
        self.tokenizer = demo_tokenizer()
        self._sentences = Sentences(self.tokenizer, self.kinds)
        self._offsets = np.arange(self.batch_size + 1, dtype=np.int64) * LENGTH
        vocabulary = self.tokenizer.token_strings(range(self.tokenizer.n_vocab))
        total = hashlib.sha256(json.dumps([self.describe(), vocabulary]).encode())
        for step in range(DIGEST_STEPS):
            for array in self.batch(step):
                total.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        self._digest = total.hexdigest()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the vocabulary, of `describe()` and of the first batches, which show any change
        of templates, words or shares."""
        return self._digest

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON values."""
        kinds = {} if self.kinds is None else {"kinds": list(self.kinds)}
        return {"kind": "demo text", "length": LENGTH, "batch": self.batch_size, "seed": self.seed, **kinds}

    def batch(self, step: int, micro: int = 0) -> Batch:
        """See `training.data.Data.batch`; N = batch * LENGTH."""
        drawn = _random.raw(DRAWS * self.batch_size, self.seed, USE, step, micro).tolist()
        tokens: list[int] = []
        weights: list[float] = []
        for begin in range(0, len(drawn), DRAWS):
            row, row_weights = self._sequence(itertools.cycle(drawn[begin : begin + DRAWS]))
            tokens += row[: LENGTH + 1]
            weights += row_weights[: LENGTH + 1]
        rows = np.array(tokens, np.int32).reshape(self.batch_size, LENGTH + 1)
        targets = np.array(weights, np.float32).reshape(rows.shape)[:, 1:].reshape(-1)
        return rows[:, :-1].reshape(-1), self._offsets, rows[:, 1:].reshape(-1), targets

    def _sequence(self, draws: Iterator[int]) -> tuple[list[int], list[float]]:
        """Tokens and loss weights of one sequence, LENGTH + 1 of them or a few more."""
        place = next(draws)
        first = self._sentences.draw(draws)
        tokens, weights = first.tokens, first.weights
        if (place >> 32) < MIDDLE * 2**32:
            cut = 1 + (place & 0xFFFFFFFF) % (len(tokens) - 1)
            needed = zip(weights[cut:], first.needs[cut:])
            tokens, weights = tokens[cut:], [weight if need >= cut else 0.0 for weight, need in needed]
        else:
            weights = weights.copy()
        while len(tokens) <= LENGTH:
            sentence = self._sentences.draw(draws)
            tokens.append(self._sentences.spaced_start[sentence.tokens[0]])
            tokens += sentence.tokens[1:]
            weights += sentence.weights
        return tokens, weights

    def text(self, step: int = 0, micro: int = 0) -> list[str]:
        """The sequences of a micro-batch as text, for inspection."""
        tokens = self.batch(step, micro)[0].reshape(self.batch_size, LENGTH)
        return [self.tokenizer.decode(row) for row in tokens]

    def __repr__(self) -> str:
        return f"DemoText(batch={self.batch_size}, seed={self.seed})"
