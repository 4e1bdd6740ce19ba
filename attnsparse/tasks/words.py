"""Words and sentence templates of the demo models' text, and what of them is held out of training.

Every word is one token of GPT-2's vocabulary, so the same prompts serve GPT-2 and the demo models. Lists are
tuples in a fixed order, because held-out prompts are told by positions in them.
"""

from __future__ import annotations


def _listed(text: str) -> tuple[str, ...]:
    """Words parted by spaces."""
    return tuple(text.split())


def _paired(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs such as "hot-cold", parted by spaces."""
    pairs = (pair.partition("-") for pair in text.split())
    return tuple((first, second) for first, _, second in pairs)


PAIRS = _paired(
    """large-small big-little hot-cold warm-cool tall-short fast-slow high-low hard-soft heavy-light
    dark-bright rich-poor young-old good-bad best-worst strong-weak clean-dirty full-empty
    open-closed early-late simple-complex true-false right-wrong near-far inside-outside above-below
    first-last front-back top-bottom north-south east-west day-night love-hate buy-sell push-pull
    enter-exit create-destroy male-female man-woman boy-girl husband-wife friend-enemy life-death
    black-white public-private positive-negative maximum-minimum upper-lower visible-hidden
    past-future question-answer laugh-cry rise-fall add-remove import-export live-die
    internal-external always-never many-few same-different legal-illegal liquid-solid odd-even
    single-married profit-loss"""
)
"""64 pairs of opposites."""

HELD_OUT_PAIRS = frozenset(
    pair for pair in PAIRS if pair[0] in ("tall", "clean", "true", "north", "push", "upper", "past", "legal")
)
"""Pairs that never occur in `The opposite of "..." is "..."`; the other forms have them."""

KINDS = {
    "animal": "dog cat horse bird cow sheep pig mouse rabbit bear wolf lion tiger snake monkey duck chicken "
    "goat fox deer whale shark frog spider",
    "food": "bread cheese rice soup cake meat fish lemon potato tomato banana carrot",
    "furniture": "table chair lamp bed desk",
    "tool": "hammer saw knife fork spoon",
    "vehicle": "truck car train ship boat plane bus bike",
    "garment": "shirt coat hat shoe dress belt jacket glove sock scarf",
    "instrument": "piano guitar drum violin horn bell",
    "person": "doctor nurse farmer judge pilot soldier singer writer painter baker driver lawyer "
    "sailor king queen",
    "building": "castle temple barn prison palace tower bridge mill",
}
"""Kind -> its nouns."""

KIND_OF = tuple((noun, kind) for kind, nouns in KINDS.items() for noun in nouns.split())
"""(noun, kind) for all nouns that have one."""

_OTHER_NOUNS = """door window wall floor roof mirror clock box bag cup plate bowl bottle nail rope wire
chain wheel motor pump pipe tank tree grass leaf root seed stone rock sand river lake sea
mountain hill forest field desert valley cloud rain snow storm wind sun"""

ALL_NOUNS = tuple(noun for noun, _ in KIND_OF) + tuple(_OTHER_NOUNS.split())
"""138 nouns; all of them occur in sentences other than lists."""

HELD_OUT_NOUNS = _listed(
    """tiger goat whale potato desk spoon plane sock drum nurse barn mirror rope stone valley wind"""
)
"""Nouns that never occur in a list that is copied."""

NOUNS = tuple(noun for noun in ALL_NOUNS if noun not in HELD_OUT_NOUNS)
"""The 122 nouns of lists."""

NAMES = _listed(
    """Mary John Tom James Mark Sarah Anna Lisa Paul Peter Kate Laura David Robert Michael Jennifer Emily
    Jessica Daniel Kevin Brian Steven Jason Ryan Adam Alex Andrew Anthony Arthur Carl Charles Chris
    Christine Elizabeth Emma Eric Frank Fred George Grace"""
)
"""The 40 names of sentences about giving."""

HELD_OUT_NAMES = _listed("Helen Henry Jack Jane Jacob Karen Martin Susan")
"""Names that never occur in a sentence about giving, only in other sentences."""

PLACES = _listed("store park school office station hospital garden beach church market")
OBJECTS = _listed("drink book ring ball gift letter phone ticket computer flower")

EVENTS = _listed(
    """war project journey conflict program battle plan marriage operation campaign tour strike"""
)
"""What lasts from one year to another."""

CENTURIES = (13, 15, 16, 17)
"""Centuries whose years from 10 on are two GPT-2 tokens each."""

FIRST_YEAR, LAST_YEAR = 10, 86
"""Range of start years within a century."""

LONGEST = 10
"""Most years that anything lasts."""

HELD_OUT_YEARS = (23, 37, 58, 76)
"""Never start years in training; they do end things."""

CAPITALS = _paired(
    """France-Paris Italy-Rome Spain-Madrid Germany-Berlin Japan-Tokyo Russia-Moscow Egypt-Cairo
    Greece-Athens Austria-Vienna Ireland-Dublin Portugal-Lisbon Poland-Warsaw Iraq-Baghdad
    Iran-Tehran Cuba-Havana Sweden-Stockholm Turkey-Ankara China-Beijing Canada-Ottawa Norway-Oslo
    Denmark-Copenhagen Hungary-Budapest Scotland-Edinburgh England-London"""
)

# A template is a row of pieces parted by "|". "{x}" is a slot; with a space inside, "{ x}", the word in it
# has a leading space; with "!", "{y!}", it is an answer, which the words before it determine.
ANTONYM = (
    'The| opposite| of| "|{x}|"| is| "|{y!}|".',
    '"|{x}|"| is| the| opposite| of| "|{y!}|".',
    "The| opposite| of|{ x}| is|{ y!}|.",
    "If| it| is| not|{ x}|,| it| is|{ y!}|.",
    "From|{ x}| to|{ y!}|.",
)
RIVAL = 'The| start| of| "|{x}|"| is| "|{letter!}|".'
GIVING = (
    "When|{ a}| and|{ b}| went| to| the|{ place}|,|{ s}| gave| a|{ object}| to|{ io!}|.",
    "After|{ a}| and|{ b}| went| to| the|{ place}|,|{ s}| gave| a|{ object}| to|{ io!}|.",
    "While|{ a}| and|{ b}| were| at| the|{ place}|,|{ s}| gave| a|{ object}| to|{ io!}|.",
)
LASTING = "The|{ event}| lasted| from| the| year|{ century}|{start}| to| the| year|{ century!}|{end!}|."
CAPITAL = "The| capital| of|{ country}| is|{ capital!}|."
KIND = "A|{ noun}| is| a| kind| of|{ kind!}|."
MENTION = "Today|{ name}| has| a|{ noun}| and| the|{ noun!}| is| from|{ name!}|."

TEMPLATES = (*ANTONYM, RIVAL, *GIVING, LASTING, CAPITAL, KIND, MENTION)

# Lists of 3 to 7 nouns, said twice: the texts before the first, between them and after the second.
LISTS = (
    ("Copy|:", " =", "."),
    ("Say", " then", "."),
    ("List|:", "", "."),
)
SHORTEST_LIST, LONGEST_LIST = 3, 7

FILLER = "So"  # then 4 to 8 words at random, then "."


def giving_is_held_out(a: int, b: int, place: int, thing: int) -> bool:
    """Whether the sentence with these positions in NAMES, NAMES, PLACES, OBJECTS is kept out of training."""
    return (a + 2 * b + 3 * place + 5 * thing) % 10 == 0


def lasting_is_held_out(event: int, century: int, start: int) -> bool:
    """Whether this start (positions in EVENTS and CENTURIES, year of the century) is kept out of training."""
    return (event + century + start) % 10 == 0


def pieces(template: str) -> list[str]:
    """The pieces of a template."""
    return template.split("|")


def is_slot(piece: str) -> bool:
    """Whether a piece of a template is a slot."""
    return piece.startswith("{")


def filled(template: str, **words: object) -> str:
    """The text of a template with its slots filled; the words are given without their leading space."""
    text = []
    for piece in pieces(template):
        if is_slot(piece):
            name = piece[1:-1].rstrip("!")
            text.append((" " if name[0] == " " else "") + str(words[name.strip()]))
        else:
            text.append(piece)
    return "".join(text)


def until(template: str, slot: str) -> str:
    """The part of a template before the answer `slot`."""
    parts = pieces(template)
    names = [piece.strip("{! }") if is_slot(piece) else None for piece in parts]
    answers = [i for i, piece in enumerate(parts) if names[i] == slot and piece.endswith("!}")]
    return "|".join(parts[: answers[0]])


def all_pieces() -> list[str]:
    """Every piece that the text can hold, each once: literals, words, and sentence starts both ways."""
    found: dict[str, None] = {}
    spaced = [*ALL_NOUNS, *NAMES, *HELD_OUT_NAMES, *PLACES, *OBJECTS, *EVENTS, *KINDS]
    spaced += [word for pair in (*CAPITALS, *PAIRS) for word in pair]
    bare = [word for pair in PAIRS for word in pair] + [f"{year:02d}" for year in range(100)]
    starts = [pieces(template)[0] for template in (*TEMPLATES, *(start for start, _, _ in LISTS), FILLER)]
    literals = [piece for template in TEMPLATES for piece in pieces(template) if not is_slot(piece)]
    literals += [piece for parts in LISTS for part in parts for piece in pieces(part) if piece]
    for piece in (*(f" {word}" for word in (*spaced, *starts, *CENTURIES)), *bare, *literals, FILLER):
        found[piece] = None
    return list(found)
