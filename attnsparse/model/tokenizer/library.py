"""What the `tokenizers` library needs: where texts may be cut, names of bytes, a way to hear Ctrl-C."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
# how GPT-2 cuts text before it looks up pieces
GPT2_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHARACTERS = r"[\s\S]"
# where white space begins, both begin a new piece; \S is narrower in Python than there
CUT = re.compile(r"(?<=\S)[ \t\r\n]")
LONGEST_PIECE = 100  # characters of a number or word that is not in a closed vocabulary
BLOCK = 16_384  # characters, some milliseconds
MOST_AT_ONCE = 8 * BLOCK  # characters or tokens of one call in the main thread, which delays Ctrl-C


def aside(call: Callable[[], T]) -> T:
    """The result of a call that releases the GIL but ignores signals.

    It is made in another thread, so that Ctrl-C ends the wait; the call itself runs to completion, and its
    result is discarded.
    """
    result: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            result.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="attnsparse-tokenizer")
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
    if failed:
        raise failed[0]
    return result[0]


def may_cut(described: dict[str, Any]) -> bool:
    """Whether texts cut at CUT have the same tokens, given a tokenizer as JSON.

    That is the case if it cuts there itself, as GPT-2 and `from_words` do, and before that neither changes
    the text nor looks for names with spaces.
    """
    before = described.get("pre_tokenizer") or {}
    plain = before.get("type") == "ByteLevel" and before.get("use_regex", True)
    ours = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in (GPT2_PIECES, CHARACTERS)
    ]
    return (
        (before in ours or (plain and not before.get("add_prefix_space")))
        and not any(described.get(name) for name in ("normalizer", "truncation", "padding"))
        and not any(
            token["lstrip"] or token["rstrip"] or token["single_word"] or re.search(r"\s", token["content"])
            for token in described.get("added_tokens", ())
        )
    )


@functools.cache
def byte_table() -> dict[str, int]:
    """GPT-2's character -> byte: printable bytes are themselves, others are characters above U+00FF."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
