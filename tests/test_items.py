"""Items and names: every notation of heads and edges, and texts as they are shown."""

from __future__ import annotations

import pytest

import attnsparse as asp
from attnsparse.items import HeadPosition, cantor, name_of, shortened, token_label


@pytest.mark.parametrize(
    "text", ["L9H6", "L9-H6", "9.6", "A9.6", "a9.h6", " L9H6 ", (9, 6), [9, 6], asp.Head(9, 6)]
)
def test_notations_of_a_head(text: object) -> None:
    found = asp.Head.parse(text)
    assert found == (9, 6)
    assert found.label == "L9H6"


@pytest.mark.parametrize(
    "text", ["a9.h6[5->8]", "L9H6[5->8]", "9.6[5->8]", (9, 6, 8, 5), asp.Edge(9, 6, 8, 5)]
)
def test_notations_of_an_edge(text: object) -> None:
    found = asp.Edge.parse(text)
    assert found == (9, 6, 8, 5)
    assert found.label == "a9.h6[5->8]"


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: asp.Head.parse("m3"), ValueError, "'m3' is not a head"),
        (lambda: asp.Head.parse((0, -1)), ValueError, r"must be at least 0, got \(0, -1\)"),
        (lambda: asp.Head.parse(3), TypeError, "got int"),
        (lambda: asp.Head.parse((0, 1.5)), TypeError, "head must be an integer, got float"),
        (lambda: asp.Head(2, 0).within(2, 4), IndexError, r"L2H0 is out of range: there are layers 0\.\.1"),
        (lambda: asp.Edge.parse("a0.h0[3->1]"), ValueError, "key 3 comes after query 1"),
        (lambda: asp.Edge.parse("a0.h0"), ValueError, "is not an attention edge"),
        (lambda: asp.Edge.parse((0, 0, 1)), TypeError, "four integers, got tuple"),
        (lambda: asp.Edge(0, 0, 4, 1).within(1, 1, 4), IndexError, r"positions 0\.\.3"),
    ],
)
def test_what_is_no_item(call, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_labels() -> None:
    assert HeadPosition(9, 6, 7).label == "L9H6@7"
    shown = {" large": "large", " ": "␣", "\n": "\\n", "": "∅", " a b": "a␣b", "\u202e": "\\u202e"}
    assert {text: token_label(text) for text in shown} == shown
    assert shortened("abcdefghij", 5) == "ab…ij"
    assert shortened("abcde", 5) == "abcde"
    assert name_of("/some/where/caf\udce9") == "caf\\udce9"


def test_cantor() -> None:
    assert len({cantor(a, b) for a in range(30) for b in range(30)}) == 900
