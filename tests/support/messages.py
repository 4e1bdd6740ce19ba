"""What the text of every error is held to."""

from __future__ import annotations

MOST_CHARACTERS = 300
# texts of conversions that say neither which argument is meant nor what it should be
BARE = (
    "object is not iterable",
    "unhashable",
    "could not convert string",
    "cannot be interpreted as",
    "invalid literal",
    "bad argument type for built-in",
    "not supported between",
    "has no attribute 'config'",
    "has no attribute 'items'",
    "has no attribute 'to_dict'",
    "cannot unpack",
    "not enough values",
    "inhomogeneous",
    "cannot reshape",
    "too big to",
    "too large to",
    "is greater than maximum",
    "range object",
    "codec can't encode",
    "not understood",
)


def check_message(error: BaseException) -> None:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    assert 0 < len(text) <= MOST_CHARACTERS, text
    assert "\n" not in text
    assert not any(bare in text for bare in BARE), text
    assert " at 0x" not in text
