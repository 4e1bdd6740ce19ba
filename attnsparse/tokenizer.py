"""Text to token ids and back, thin over the `tokenizers` library, which is imported when first needed.

Nothing is added to a text unless `prepend_bos=True` says so: positions then shift by one, so it is never a
default.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, FormatError, located, printable, quoted
from .labels import checked_path
from .limits import DEFAULT_LIMITS, Limits
from .regular_file import read_small
from .saving import write_atomic
from .strict_json import parse_object, shown

if TYPE_CHECKING:
    import tokenizers

GPT2_BOS = "<|endoftext|>"
# how GPT-2 cuts text before it looks up pieces
_GPT2_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CHARACTERS = r"[\s\S]"
# where white space begins, both begin a new piece; \S is narrower in Python than there
_CUT = re.compile(r"(?<=\S)[ \t\r\n]")
_LONGEST_PIECE = 100  # characters of a number or word that is no token of a closed vocabulary
_BLOCK = 16_384  # characters, some milliseconds

# All else that the library raises is about the file; pyo3's PanicException is not even an Exception.
_PASSED_ON = (KeyboardInterrupt, SystemExit, MemoryError)


class Tokenizer:
    """A tokenizer; make one with `load`, `from_files` or `from_words`."""

    def __init__(
        self, inner: tokenizers.Tokenizer, *, path: str | None = None, bos: str | None = GPT2_BOS
    ) -> None:
        """Wrap a `tokenizers.Tokenizer`; `bos` is the token that `prepend_bos` puts first, if it has that
        token.

        Raises ConfigError `vocab` if the token ids are not exactly 0..n-1.
        """
        self._inner = inner
        self.path = path  #: the file or folder it came from, None if made here
        vocabulary = inner.get_vocab(with_added_tokens=True)
        self.n_vocab: int = len(vocabulary)  #: number of tokens; ids are 0..n_vocab-1
        self._names = _names_by_id(vocabulary, path)
        described = json.loads(inner.to_str())
        self._byte_level = '"ByteLevel"' in json.dumps(described.get("decoder"))
        self._may_cut = _may_cut(described)
        #: token id of the BOS token, or None
        self.bos_id: int | None = vocabulary.get(bos) if bos is not None else None

    # --- making one

    @staticmethod
    def is_in(folder: str | os.PathLike[str]) -> bool:
        """True if `load` would find tokenizer files in `folder`."""
        folder = Path(folder)
        return (folder / "tokenizer.json").exists() or (
            (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> Tokenizer:
        """Read a tokenizer.json, or a folder that holds one or GPT-2's vocab.json and merges.txt.

        Raises FormatError (json_*, tokenizer, merges), LimitError tokenizer_limit, ConfigError vocab,
        OSError.
        """
        path = Path(checked_path(path))
        if path.is_dir():
            if not (path / "tokenizer.json").exists() and cls.is_in(path):
                return cls.from_files(path / "vocab.json", path / "merges.txt", limits=limits)
            path = path / "tokenizer.json"
        import tokenizers

        data = read_small(path, "max_tokenizer_bytes", limits=limits, code="tokenizer_limit")
        parse_object(data, path, limits=limits)
        inner = _guarded(path, lambda: tokenizers.Tokenizer.from_str(data.decode("utf-8")))
        inner.no_truncation()
        inner.no_padding()
        return cls(inner, path=os.fspath(path))

    @classmethod
    def from_files(
        cls, vocab: str | os.PathLike[str], merges: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS
    ) -> Tokenizer:
        """GPT-2's byte-level BPE from vocab.json and merges.txt; errors as `load`."""
        import tokenizers

        ids = parse_object(
            read_small(vocab, "max_tokenizer_bytes", limits=limits, code="tokenizer_limit"),
            vocab,
            limits=limits,
        )
        for name, token in ids.items():
            if type(token) is not int or not 0 <= token < len(ids):
                text = f"token {quoted(name)} has id {shown(token)}, expected a number in 0..{len(ids) - 1:,}"
                raise located(ConfigError, "vocab", vocab, text, field=name)
        _names_by_id(ids, os.fspath(vocab))
        pairs = _read_merges(merges, ids, limits)
        inner = _guarded(merges, lambda: tokenizers.Tokenizer(tokenizers.models.BPE(ids, pairs)))
        inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = tokenizers.decoders.ByteLevel()
        if GPT2_BOS in ids:
            inner.add_special_tokens([GPT2_BOS])
        return cls(inner, path=os.fspath(Path(vocab).parent))

    @classmethod
    def from_words(cls, words: Sequence[str], *, split: str = "gpt2", bos: str | None = None) -> Tokenizer:
        """A closed vocabulary: token i is `words[i]`, and text that needs another one is an error.

        `split` says how text is cut: "gpt2" (words with their leading space, as GPT-2 does before its merges)
        or "characters". A piece that is no word is made up of the longest words that begin it, from left to
        right: " 1732" of " 17" and "32". The words must be different; `bos`, if given, is one of them.
        """
        import tokenizers

        if split not in ("gpt2", "characters"):
            raise ValueError(f"split must be 'gpt2' or 'characters', got {split!r}")
        if len(set(words)) != len(words) or not words:
            raise ValueError("words must be different, and at least one")
        if bos is not None and bos not in words:
            raise ValueError(f"bos={bos!r} is not among the words")
        ids = {word: index for index, word in enumerate(words)}
        model = tokenizers.models.WordPiece(
            ids,
            unk_token="<unk>",
            continuing_subword_prefix="",
            max_input_chars_per_word=max(_LONGEST_PIECE, *map(len, words)),
        )
        inner = tokenizers.Tokenizer(model)
        pattern = tokenizers.Regex(_GPT2_PIECES if split == "gpt2" else _CHARACTERS)
        inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "isolated")
        inner.decoder = tokenizers.decoders.Fuse()
        if bos is not None:
            inner.add_special_tokens([bos])
        return cls(inner, bos=bos)

    # --- using it

    def encode(self, text: str, *, prepend_bos: bool = False) -> list[int]:
        """Token ids of `text`; with `prepend_bos` the beginning-of-sequence token first.

        Raises ValueError for text that has no encoding (half a surrogate pair, a word outside a closed
        vocabulary) and if there is no such token to prepend.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"text has half a surrogate pair at character {error.start}") from None
        try:
            ids = self._encode(text)
        except _PASSED_ON:
            raise
        except BaseException as error:
            raise ValueError(self._why_not(text, error)) from error
        if not prepend_bos:
            return ids
        if self.bos_id is None:
            raise ValueError("prepend_bos=True, but this tokenizer has no beginning-of-sequence token")
        return [self.bos_id, *ids]

    def _encode(self, text: str) -> list[int]:
        """Block by block where that changes nothing, so that Ctrl-C is heard: the library itself is deaf."""
        ids: list[int] = []
        begin = 0
        while begin < len(text):
            cut = _CUT.search(text, begin + _BLOCK) if self._may_cut else None
            end = len(text) if cut is None else cut.start()
            ids += self._inner.encode(text[begin:end], add_special_tokens=False).ids
            begin = end
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens included. Bytes that are no UTF-8 become U+FFFD.

        Raises IndexError for an id that there is not, ValueError if the tokenizer's own rules break on them.
        """
        numbers = [self._checked(token) for token in ids]
        try:
            return self._inner.decode(numbers, skip_special_tokens=False)
        except _PASSED_ON:
            raise
        except BaseException as error:
            raise ValueError(f"these tokens cannot be decoded: {printable(error)[:200]}") from error

    def token_string(self, token: int) -> str:
        """The text of one token, leading space included; stray bytes are shown as `\\xe2`."""
        name = self._names[self._checked(token)]
        if not self._byte_level:
            return name
        table = _byte_table()
        if not all(sign in table for sign in name):
            return name  # an added token, which stands for itself
        return bytes(table[sign] for sign in name).decode("utf-8", "backslashreplace")

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """`token_string` of each id."""
        return [self.token_string(token) for token in ids]

    def to_json(self) -> str:
        """The text of a tokenizer.json that `load` reads back."""
        return self._inner.to_str(pretty=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a tokenizer.json, whole or not at all. OSError with errno and file name."""
        write_atomic(path, [self.to_json().encode()])

    def __repr__(self) -> str:
        return f"Tokenizer({self.n_vocab:,} tokens{f' from {self.path}' if self.path else ''})"

    def __reduce__(self) -> tuple:
        bos = None if self.bos_id is None else self._names[self.bos_id]
        return _from_json, (self.to_json(), self.path, bos)

    def _checked(self, token: int) -> int:
        index = int(token)
        if not 0 <= index < self.n_vocab:
            raise IndexError(f"token id {index:,} is out of range 0..{self.n_vocab - 1:,}")
        return index

    def _why_not(self, text: str, error: BaseException) -> str:
        """A closed vocabulary names the first piece that it lacks; else the library's own words are handed
        on."""
        if not self._byte_level and self._inner.pre_tokenizer is not None:
            try:
                pieces = self._inner.pre_tokenizer.pre_tokenize_str(text)
            except _PASSED_ON:
                raise
            except BaseException:
                pieces = []
            for piece, _ in pieces:
                if not self._is_made_up(piece):
                    return f"{piece[:80]!r} is not in this tokenizer's vocabulary of {self.n_vocab:,} tokens"
        return f"text cannot be encoded: {printable(error)[:200]}"

    def _is_made_up(self, piece: str) -> bool:
        """Whether the vocabulary has tokens for this piece of a text."""
        try:
            return bool(self._inner.model.tokenize(piece))
        except _PASSED_ON:
            raise
        except BaseException:
            return False


def positions_of(token_strings: Sequence[str], wanted: str) -> list[int]:
    """Positions, from 0, of the tokens that read `wanted`.

    Without a leading space `wanted` matches a token with or without one: "large" finds "large" and " large".
    With a leading space it matches exactly.
    """
    if wanted.startswith(" "):
        return [position for position, token in enumerate(token_strings) if token == wanted]
    return [position for position, token in enumerate(token_strings) if token.removeprefix(" ") == wanted]


def position_of(token_strings: Sequence[str], wanted: str) -> int:
    """The one position of `positions_of`; ValueError if there is none or more than one, which it lists."""
    found = positions_of(token_strings, wanted)
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{position} {token_strings[position]!r}" for position in found[:8])
        raise ValueError(
            f"{wanted[:80]!r} is at {len(found)} positions (counted from 0): {listed}; give the position"
        )
    listed = ", ".join(map(repr, token_strings[:20])) + (", ..." if len(token_strings) > 20 else "")
    raise ValueError(f"no token reads {wanted[:80]!r}; the tokens are {listed}")


def _names_by_id(vocabulary: dict[str, int], path: str | None) -> list[str]:
    """Token texts in the order of their ids; ConfigError `vocab` unless the ids are 0..n-1, each once."""
    names: list[str | None] = [None] * len(vocabulary)
    for name, token in vocabulary.items():
        if not 0 <= token < len(names) or names[token] is not None:
            text = (
                f"{len(names):,} tokens must have the ids 0..{len(names) - 1:,}, each once; "
                f"token {quoted(name)} has id {token:,}"
            )
            raise located(ConfigError, "vocab", path, text, field=name)
        names[token] = name
    return names  # type: ignore[return-value]


def _may_cut(described: dict[str, Any]) -> bool:
    """Whether texts cut at _CUT have the same tokens, given a tokenizer as JSON: it cuts there itself, as
    GPT-2 and `from_words` do, and neither changes the text nor looks for names with spaces before."""
    before = described.get("pre_tokenizer") or {}
    plain = before.get("type") == "ByteLevel" and before.get("use_regex", True)
    ours = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in (_GPT2_PIECES, _CHARACTERS)
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
def _byte_table() -> dict[str, int]:
    """GPT-2's sign -> byte: printable bytes stand for themselves, the others for signs from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _read_merges(path: str | os.PathLike[str], ids: dict[str, Any], limits: Limits) -> list[tuple[str, str]]:
    data = read_small(path, "max_tokenizer_bytes", limits=limits, code="tokenizer_limit")
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        text = f"not UTF-8 at byte {error.start:,}"
        raise located(FormatError, "merges", path, text, offset=error.start) from error
    limits.check("max_merges", len(lines), path, f"{len(lines):,} merges", code="tokenizer_limit")
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = tuple(line.rstrip("\r").split(" "))
        if len(parts) != 2 or not all(part in ids for part in (*parts, "".join(parts))):
            text = f"line {number:,} {quoted(line)} is not two tokens of the vocabulary that make a third"
            raise located(FormatError, "merges", path, text, field=f"line {number}")
        pairs.append(parts)
    return pairs


def _guarded(path: str | os.PathLike[str], make: Callable[[], tokenizers.Tokenizer]) -> tokenizers.Tokenizer:
    """Call into the library; whatever it raises about the file becomes a FormatError `tokenizer`."""
    try:
        return make()
    except _PASSED_ON:
        raise
    except BaseException as error:
        text = f"not a tokenizer that the tokenizers library reads: {str(error)[:120]}"
        raise located(FormatError, "tokenizer", path, text) from error


def _from_json(text: str, path: str | None, bos: str | None) -> Tokenizer:
    import tokenizers

    return Tokenizer(tokenizers.Tokenizer.from_str(text), path=path, bos=bos)
