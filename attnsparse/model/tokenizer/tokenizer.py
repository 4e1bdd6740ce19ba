"""Text to token ids and back, thin over the `tokenizers` library, which is imported when first needed.

Nothing is added to a text without `prepend_bos=True`, whatever a tokenizer's files say: positions shift by
one, so it is never a default. A prompt that begins with the BOS token gets no second one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import _check
from ...errors import printable
from ...io.atomic import write_atomic
from ...io.limits import DEFAULT_LIMITS, Limits
from ..locate import find_tokenizer
from .files import (
    JSON,
    PASSED_ON,
    byte_level,
    guarded,
    names_by_id,
    pair_in,
    read_pair,
    read_tokenizer,
)
from .library import (
    BLOCK,
    CHARACTERS,
    CUT,
    GPT2_PIECES,
    LONGEST_PIECE,
    MOST_AT_ONCE,
    aside,
    byte_table,
    may_cut,
)
from .sidecars import GPT2_BOS, SETTINGS

if TYPE_CHECKING:
    import tokenizers

_MOST_ID = 2**31 - 1  # ids are int32


class Tokenizer:
    """Texts to token ids and back; made by `load`, `from_files` or `from_words`.

    Parameters
    ----------
    inner : tokenizers.Tokenizer
        The tokenizer to wrap.
    path : str, optional
        The file or folder that it came from.
    bos : str or int, optional
        The token that `prepend_bos` puts first: its id, or its text, which is ignored if there is no such
        token.

    Raises
    ------
    ConfigError
        ``vocab`` if the token ids are not exactly 0..n-1.
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, *, path: str | None = None, bos: str | int | None = GPT2_BOS
    ) -> None:
        self._inner = inner
        self.path = path  #: the file or folder it came from, None if made here
        vocabulary = inner.get_vocab(with_added_tokens=True)
        self.n_vocab: int = len(vocabulary)  #: number of tokens; ids are 0..n_vocab-1
        self._names = names_by_id(vocabulary, path)
        described = json.loads(inner.to_str())
        self._byte_level = '"ByteLevel"' in json.dumps(described.get("decoder"))
        self._may_cut = may_cut(described)
        #: token id of the BOS token, or None
        self.bos_id: int | None = vocabulary.get(bos) if isinstance(bos, str) else bos
        #: token id of "<|endoftext|>", at which texts end, or None
        self.eos_id: int | None = vocabulary.get(GPT2_BOS)

    # --- making one

    @staticmethod
    def is_in(folder: str | os.PathLike[str]) -> bool:
        """Whether a folder has tokenizer files that `load` reads.

        Parameters
        ----------
        folder : path
            The folder.

        Returns
        -------
        bool
        """
        folder = Path(_check.path(folder, "folder"))
        return (folder / JSON).exists() or pair_in(folder) is not None

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> Tokenizer:
        """Read a tokenizer.json, or a folder with one or with GPT-2's vocab.json and merges.txt.

        OpenAI's names encoder.json and vocab.bpe are read too. A folder gives the same ids as in
        transformers: tokenizer_config.json, special_tokens_map.json and added_tokens.json are taken into
        account. Its BOS token is the bos_token of these, or else bos_token_id of config.json, or else
        ``<|endoftext|>`` if it has that. A tokenizer.json named alone is read as it is.

        Parameters
        ----------
        path : str or path
            A file or a folder; or the name of a model that comes with the package, or of one on the Hugging
            Face hub, as for `attnsparse.load`.
        limits : Limits, optional
            Largest sizes that are read.

        Returns
        -------
        Tokenizer

        Raises
        ------
        FormatError
            ``json_*``, ``tokenizer``, ``merges``, and LimitError ``tokenizer_limit``.
        ConfigError
            ``vocab``, ``config_type``.
        OSError
            With errno and file name.
        """
        inner, bos, name = read_tokenizer(find_tokenizer(path), limits)
        return cls(inner, path=name, bos=bos)

    @classmethod
    def from_files(
        cls, vocab: str | os.PathLike[str], merges: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS
    ) -> Tokenizer:
        """GPT-2's byte-level BPE from vocab.json and merges.txt alone.

        Parameters
        ----------
        vocab : path
            JSON: token to id.
        merges : path
            One merge per line.
        limits : Limits, optional
            Largest sizes that are read.

        Returns
        -------
        Tokenizer

        Raises
        ------
        FormatError, ConfigError, OSError
            As `load`.
        """
        ids, pairs = read_pair(vocab, merges, limits)
        inner = guarded(merges, lambda: byte_level(ids, pairs))
        if GPT2_BOS in ids:
            inner.add_special_tokens([GPT2_BOS])
        return cls(inner, path=os.fspath(Path(vocab).parent))

    @classmethod
    def from_words(cls, words: Sequence[str], *, split: str = "gpt2", bos: str | None = None) -> Tokenizer:
        """A closed vocabulary: token i is ``words[i]``, and text that needs another token is an error.

        Parameters
        ----------
        words : sequence of str
            At least one; all different.
        split : {"gpt2", "characters"}, default "gpt2"
            How text is cut: into words with their leading space, as GPT-2 does before its merges, or into
            characters. A piece that is not a word is split from left to right into the longest words that
            begin it: " 1732" into " 17" and "32".
        bos : str, optional
            One of the words.

        Returns
        -------
        Tokenizer

        Raises
        ------
        ValueError
            For duplicate words, or a `bos` that is not one of them.
        """
        import tokenizers

        _check.choice(split, "split", ("gpt2", "characters"))
        if len(set(words)) != len(words) or not words:
            raise ValueError(
                f"words must be unique, at least one, got {len(words):,}, {len(set(words)):,} different"
            )
        if bos is not None and bos not in words:
            raise ValueError(f"bos={bos!r} is not among the words")
        ids = {word: index for index, word in enumerate(words)}
        model = tokenizers.models.WordPiece(
            ids,
            unk_token="<unk>",
            continuing_subword_prefix="",
            max_input_chars_per_word=max(LONGEST_PIECE, *map(len, words)),
        )
        inner = tokenizers.Tokenizer(model)
        pattern = tokenizers.Regex(GPT2_PIECES if split == "gpt2" else CHARACTERS)
        inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "isolated")
        inner.decoder = tokenizers.decoders.Fuse()
        if bos is not None:
            inner.add_special_tokens([bos])
        return cls(inner, bos=bos)

    # --- using it

    def encode(self, text: str, *, prepend_bos: bool = False) -> list[int]:
        """Token ids of a text.

        Parameters
        ----------
        text : str
            The text.
        prepend_bos : bool, default False
            Put the BOS token first, unless the text begins with it.

        Returns
        -------
        list of int

        Raises
        ------
        TypeError
            If `text` is not a string.
        ValueError
            For text that has no encoding (half a surrogate pair, a word outside a closed vocabulary), and if
            there is no BOS token to put first.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"text has half a surrogate pair at character {error.start}") from None
        ids = self._encode(text)
        if not prepend_bos:
            return ids
        if self.bos_id is None:
            raise ValueError("prepend_bos=True, but this tokenizer has no beginning-of-sequence token")
        return ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def _encode(self, text: str) -> list[int]:
        """Block by block if the tokens stay the same, so that Ctrl-C works: the library ignores signals."""
        ids: list[int] = []
        begin = 0
        while begin < len(text):
            cut = CUT.search(text, begin + BLOCK) if self._may_cut else None
            end = len(text) if cut is None else cut.start()
            ids += self._encode_block(text[begin:end])
            begin = end
        return ids

    def _encode_block(self, text: str) -> list[int]:
        try:
            if len(text) <= MOST_AT_ONCE:
                return self._inner.encode(text, add_special_tokens=False).ids
            # encode_batch_fast, since tokenizers 0.20, skips the offsets
            batch = getattr(self._inner, "encode_batch_fast", self._inner.encode_batch)
            ids: list[int] = aside(lambda: batch([text], add_special_tokens=False)[0].ids)
            return ids
        except PASSED_ON:
            raise
        except BaseException as error:
            raise ValueError(self._why_not(text, error)) from error

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens included.

        Parameters
        ----------
        ids : iterable of int
            Token ids.

        Returns
        -------
        str
            Bytes that are not UTF-8 become U+FFFD. An id without a name, as rows of a padded embedding have,
            becomes `<id>`.

        Raises
        ------
        TypeError
            For ids that are not integers.
        IndexError
            For an id that no model has.
        ValueError
            If the tokenizer's own rules fail on them.
        """
        numbers, texts, begin = checked_ids(ids), [], 0
        for at in [i for i, token in enumerate(numbers) if token >= self.n_vocab]:
            texts += [self._decode(numbers[begin:at]), f"<{numbers[at]}>"]
            begin = at + 1
        return "".join([*texts, self._decode(numbers[begin:])])

    def _decode(self, numbers: list[int]) -> str:
        if not numbers:
            return ""
        try:
            if len(numbers) <= MOST_AT_ONCE:
                return self._inner.decode(numbers, skip_special_tokens=False)
            decoded: str = aside(lambda: self._inner.decode_batch([numbers], skip_special_tokens=False)[0])
            return decoded
        except PASSED_ON:
            raise
        except BaseException as error:
            raise ValueError(f"these tokens cannot be decoded: {printable(error)[:200]}") from error

    def token_string(self, token: int) -> str:
        r"""The text of one token.

        Parameters
        ----------
        token : int
            Its id.

        Returns
        -------
        str
            Leading space included; stray bytes are shown as ``\xe2``, an id without a name as `<id>`.

        Raises
        ------
        TypeError, IndexError
            As `decode`.
        """
        return self.token_strings([token])[0]

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """The text of each token.

        Parameters
        ----------
        ids : iterable of int
            Token ids.

        Returns
        -------
        list of str
            `token_string` of each id.

        Raises
        ------
        TypeError, IndexError
            As `decode`.
        """
        return [self._shown(token) for token in checked_ids(ids)]

    def _shown(self, token: int) -> str:
        if token >= self.n_vocab:
            return f"<{token}>"
        name = self._names[token]
        if not self._byte_level:
            return name
        table = byte_table()
        if not all(character in table for character in name):
            return name  # an added token is its own text
        return bytes(table[character] for character in name).decode("utf-8", "backslashreplace")

    def to_json(self) -> str:
        """The text of a tokenizer.json that `load` reads back.

        Returns
        -------
        str
            Such a file does not say which token is BOS; `Model.save` writes that beside it.
        """
        return self._inner.to_str(pretty=True)

    def to_files(self) -> dict[str, str]:
        """The files of a folder that `load` and transformers read back with the same ids.

        Returns
        -------
        dict of str to str
            File name to text. The files name the BOS token if it is a special token or if there is none;
            otherwise only config.json does.
        """
        described = json.loads(self._inner.to_str())
        before = described["pre_tokenizer"] or {}
        added = {token.pop("id"): token for token in described["added_tokens"]}
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": bool(before.get("add_prefix_space", False)),
            "split_special_tokens": self._inner.encode_special_tokens,
            "added_tokens_decoder": added,
        }
        special = {number: token["content"] for number, token in added.items() if token["special"]}
        if self.bos_id is None or self.bos_id in special:
            bos = special.get(self.bos_id)
            settings |= {"bos_token": bos, "eos_token": bos if bos == GPT2_BOS else None}
        return {JSON: self.to_json(), SETTINGS: json.dumps(settings, indent=2) + "\n"}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a tokenizer.json, whole or not at all.

        Parameters
        ----------
        path : path
            The file.

        Raises
        ------
        OSError
            With errno and file name.
        """
        write_atomic(path, [self.to_json().encode()])

    def __repr__(self) -> str:
        return f"Tokenizer({self.n_vocab:,} tokens{f' from {self.path}' if self.path else ''})"

    def __reduce__(self) -> tuple[Any, ...]:
        return tokenizer_from_json, (
            self.to_json(),
            self.path,
            self.bos_id,
            self._inner.encode_special_tokens,
        )

    def _why_not(self, text: str, error: BaseException) -> str:
        """The first piece that a closed vocabulary lacks; otherwise the library's own message."""
        if not self._byte_level and self._inner.pre_tokenizer is not None and len(text) <= MOST_AT_ONCE:
            try:
                pieces = self._inner.pre_tokenizer.pre_tokenize_str(text)
            except PASSED_ON:
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
        except PASSED_ON:
            raise
        except BaseException:
            return False


def token_texts(tokenizer: Tokenizer | None, ids: Iterable[int]) -> list[str]:
    """How tables, figures and labels show tokens: `token_strings`, and without a tokenizer `<id>` for all."""
    return [f"<{token}>" for token in checked_ids(ids)] if tokenizer is None else tokenizer.token_strings(ids)


def checked_ids(ids: Iterable[int], n_ids: int = _MOST_ID + 1) -> list[int]:
    """Token ids as ints; TypeError for what is not an integer, IndexError for what is not in 0..n_ids-1."""
    if isinstance(ids, str | bytes):
        raise TypeError(f"token ids must be integers, got {type(ids).__name__}")
    if hasattr(ids, "__array__"):
        values = np.asarray(ids)
        if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
            raise TypeError(
                f"token ids must be integers in 1 dimension, got {values.dtype} of shape {values.shape}"
            )
        numbers: list[int] = values.tolist()
    else:
        items = _check.items(ids, "token ids", "a sequence of integers")
        numbers = [token if type(token) is int else _check.integer(token, "a token id") for token in items]
    for token in (min(numbers, default=0), max(numbers, default=0)):
        if not 0 <= token < n_ids:
            raise IndexError(f"token id {token:,} is out of range 0..{n_ids - 1:,}")
    return numbers


def tokenizer_from_json(text: str, path: str | None, bos: int | None, split_special: bool) -> Tokenizer:
    """A tokenizer as pickled, or sent with a model; FormatError `tokenizer` for what is none."""
    import tokenizers

    inner = guarded(path or "the tokenizer", lambda: tokenizers.Tokenizer.from_str(text))
    inner.encode_special_tokens = split_special
    return Tokenizer(inner, path=path, bos=bos)
