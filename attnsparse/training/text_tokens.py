"""From text files to the tokens of a training and a held-out part.

Every file is cut at ends of lines into pieces of about a hundredth of all text; small files are one piece
each. Pieces spread over the whole text are held out. A byte-level BPE is trained on the other ones alone. The
end-of-text token follows every file, every held-out piece, and what comes before one.

With a folder, the tokens are kept there as `train.bin` and `held_out.bin` (uint16, or uint32 for more than
65,536 tokens), with `tokenizer.json` and `text.json`, which says what they were made from. They are used
again as long as that stays the same. The texts themselves are never copied.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _check
from ..errors import FormatError, file_error
from ..io.atomic import write_together
from ..io.checksums import sha256, update
from ..io.regular_file import RegularFile
from ..io.strict_json import parse_object
from ..model.tokenizer import Tokenizer
from ..model.tokenizer.library import aside
from ..model.tokenizer.sidecars import GPT2_BOS as END

VERSION = 1
TRAIN, HELD_OUT, TOKENIZER, RECORD = FILES = ("train.bin", "held_out.bin", "tokenizer.json", "text.json")
_PIECES = 100  # of all text, about
_SHORTEST_PIECE = 200  # characters
_AT_ONCE = 2**20  # characters that the trainer of a BPE is given at once


class TextFile(NamedTuple):
    """What a text was when it was read: model cards name it by this.

    Attributes
    ----------
    source : str
        The source that it belongs to.
    name : str
        File name, without its folder.
    n_bytes : int
        Length of the file.
    n_characters : int
        Characters of its text.
    sha256 : str
        Of its bytes, hexadecimal.
    """

    source: str
    name: str
    n_bytes: int
    n_characters: int
    sha256: str


class Tokens(NamedTuple):
    """Tokens of the two parts, of each source one after the other: source i has begin[i]..begin[i + 1]."""

    train: np.ndarray
    train_begin: np.ndarray
    held_out: np.ndarray
    tokenizer: Tokenizer
    texts: list[TextFile]


class _Piece(NamedTuple):
    begin: int
    end: int
    held_out: bool


class Texts:
    """Files by source, looked through once: lengths and checksums are known, their texts are not kept.

    Parameters
    ----------
    sources : mapping of str to sequence of path
        The files of each source.
    held_out : float
        Share of the text that is held out.

    Raises
    ------
    OSError
        With errno and file name.
    ValueError
        For an empty file, or one that is not UTF-8.
    """

    def __init__(self, sources: Mapping[str, Sequence[str]], held_out: float) -> None:
        self.share = held_out
        self.sources = list(sources)
        self.paths = [path for paths in sources.values() for path in paths]
        self.files: list[TextFile] = []
        for source, paths in sources.items():
            self.files += [_described(source, path) for path in paths]
        total = sum(file.n_characters for file in self.files)
        self._piece = max(total // _PIECES, _SHORTEST_PIECE)

    def prepared(self, tokenizer: Tokenizer | int, folder: Path | None) -> Tokens:
        """The tokens, from `folder` if it has those of the same texts and settings."""
        wanted = {
            "version": VERSION,
            "texts": [[file.source, file.sha256] for file in self.files],
            "held_out": self.share,
            "tokenizer": tokenizer if isinstance(tokenizer, int) else _digest_of(tokenizer),
        }
        if folder is not None:
            known = _read(folder, wanted)
            if known is not None:
                return self._mapped(folder, known)
        found, parts = self._tokens(tokenizer)
        if folder is None:
            train, held = (np.concatenate(parts[part]) for part in (False, True))
            return Tokens(train, found["begin"], held, found["tokenizer"], self.files)
        _write(folder, wanted, found, parts)
        known = _read(folder, wanted)
        if known is None:
            raise RuntimeError(f"the texts' tokens in {folder} were replaced while they were read")
        return self._mapped(folder, known)

    def _mapped(self, folder: Path, record: Mapping[str, Any]) -> Tokens:
        parts = {name: _part(folder / name, record[name]) for name in (TRAIN, HELD_OUT)}
        tokenizer = Tokenizer.load(folder / TOKENIZER)
        begin = np.array(record["begin"], np.int64)
        return Tokens(parts[TRAIN], begin, parts[HELD_OUT], tokenizer, self.files)

    # --- pieces

    def _pieces(self) -> Iterator[tuple[TextFile, str, list[_Piece]]]:
        """Every file with its text and pieces; a piece is held out where the share falls behind."""
        so_far = held = 0
        for path, file in zip(self.paths, self.files):
            text, again = _text_of(path), []
            if _described(file.source, path, text) != file:
                raise ValueError(f"{path}: was written to while it was read")
            for begin, end in _cut(text, self._piece):
                so_far += end - begin
                chosen = held + (end - begin) / 2 < self.share * so_far
                held += (end - begin) * chosen
                again.append(_Piece(begin, end, chosen))
            yield file, text, again

    def _trained(self, size: int) -> Tokenizer:
        """A byte-level BPE of `size` tokens, of which the last merges are the rarest."""
        import tokenizers

        inner = tokenizers.Tokenizer(tokenizers.models.BPE())
        inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[END],
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )

        def texts() -> Iterator[str]:
            for _, text, pieces in self._pieces():
                for piece in pieces:
                    if not piece.held_out:
                        for part in text[piece.begin : piece.end].split(END):
                            yield from (part[i : i + _AT_ONCE] for i in range(0, len(part), _AT_ONCE))

        aside(lambda: inner.train_from_iterator(texts(), trainer))
        found = inner.get_vocab_size()
        if found < size:
            raise ValueError(f"the texts are too short for tokenizer={size:,}: they give {found:,} tokens")
        return Tokenizer(inner, bos=END)

    def _tokens(self, tokenizer: Tokenizer | int) -> tuple[dict[str, Any], dict[bool, list[np.ndarray]]]:
        """Tokenizer and beginnings of the sources, and the tokens of both parts (held out: True)."""
        made = self._trained(tokenizer) if isinstance(tokenizer, int) else tokenizer
        end = made.eos_id
        if end is None:
            raise ValueError(f"tokenizer must have the token {END}, which ends a text, and has no such token")
        dtype = np.dtype("<u2" if made.n_vocab <= 2**16 else "<u4")
        stop = np.array([end], dtype)
        parts: dict[bool, list[np.ndarray]] = {False: [np.zeros(0, dtype)], True: [np.zeros(0, dtype)]}
        lengths = dict.fromkeys(self.sources, 0)
        for file, text, pieces in self._pieces():
            before = len(parts[False])
            for i, piece in enumerate(pieces):
                try:
                    ids = made.encode(text[piece.begin : piece.end])
                except ValueError as error:
                    raise ValueError(f"{file.name}: {error}") from error
                parts[piece.held_out].append(np.array(ids, dtype))
                if piece.held_out or i + 1 == len(pieces) or pieces[i + 1].held_out:
                    parts[piece.held_out].append(stop)
            lengths[file.source] += sum(map(len, parts[False][before:]))
        begin = np.array([0, *itertools.accumulate(lengths.values())], np.int64)
        return {"tokenizer": made, "begin": begin}, parts


def _cut(text: str, size: int) -> Iterator[tuple[int, int]]:
    """Pieces of about `size` characters that end with a line, or else a word; a short rest goes with the
    last one."""
    begin = 0
    while begin < len(text):
        end = begin + size
        if end + size // 2 >= len(text):
            end = len(text)
        else:
            line, word = text.find("\n", end, end + size), text.find(" ", end, end + size)
            end = line + 1 if line >= 0 else word if word >= 0 else end
        yield begin, end
        begin = end


def _text_of(path: str) -> str:
    with RegularFile(path) as file:
        data = file.read(0, file.size)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: must be text in UTF-8, but byte {error.start:,} is not; convert it first"
        ) from None


def _described(source: str, path: str, text: str | None = None) -> TextFile:
    text = _text_of(path) if text is None else text
    if not text.strip():
        raise ValueError(f"{path}: holds no text")
    data = text.encode()
    return TextFile(source, Path(path).name, len(data), len(text), sha256(data))


def _digest_of(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


# --- the folder


def _write(
    folder: Path, wanted: Mapping[str, Any], found: Mapping[str, Any], parts: Mapping[bool, list[np.ndarray]]
) -> None:
    """All four files, or none; FileExistsError if one of these names belongs to something else."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RECORD).exists():
        for name in FILES:
            if (folder / name).exists():
                raise FileExistsError(17, "is there already; give a folder of its own", str(folder / name))
    record = {**wanted, "begin": found["begin"].tolist()}
    for name, held_out in ((TRAIN, False), (HELD_OUT, True)):
        total, arrays = hashlib.sha256(), parts[held_out]
        for array in arrays:
            update(total, array)
        n = sum(map(len, arrays))
        record[name] = {"n": n, "dtype": arrays[0].dtype.str, "sha256": total.hexdigest()}
    text = json.dumps(record, indent=1) + "\n"
    write_together(
        [
            (folder / TRAIN, (array for array in parts[False] if array.size)),
            (folder / HELD_OUT, (array for array in parts[True] if array.size)),
            (folder / TOKENIZER, [found["tokenizer"].to_json().encode()]),
            (folder / RECORD, [text.encode()]),
        ]
    )


def _part(path: Path, stored: Mapping[str, Any]) -> np.ndarray:
    """One part, as a map of its file."""
    dtype = np.dtype(stored["dtype"])
    if path.stat().st_size == stored["n"] * dtype.itemsize:
        found = np.memmap(path, dtype, "r") if stored["n"] else np.zeros(0, dtype)
        if sha256(found) == stored["sha256"]:
            return found
    text = "is not as it was written; delete the folder to have the texts read again"
    raise file_error(FormatError, "checksum", path, text)


def _read(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of `folder` if it is of these texts and settings, else None."""
    path = folder / RECORD
    try:
        with RegularFile(path) as file:
            data = file.read(0, file.size)
    except (FileNotFoundError, NotADirectoryError):
        return None
    record = parse_object(data, path)
    if {name: record.get(name) for name in wanted} != dict(wanted):
        return None
    if not _is_record(record):
        raise file_error(FormatError, "value", path, "is not as TextData writes it; delete the folder")
    return record


def _is_record(record: dict[str, Any]) -> bool:
    """Whether the parts and the beginnings of the sources are what `_write` writes."""
    begin, parts = record.get("begin"), [record.get(name) for name in (TRAIN, HELD_OUT)]
    if not isinstance(begin, list) or not all(type(place) is int for place in begin):
        return False
    for part in parts:
        if not isinstance(part, dict) or part.get("dtype") not in ("<u2", "<u4"):
            return False
        if type(part.get("n")) is not int or not isinstance(part.get("sha256"), str):
            return False
    return begin == sorted(begin) and begin[:1] == [0] and begin[-1] == record[TRAIN]["n"]


def checked_sources(files: Any) -> dict[str, list[str]]:
    """Paths by source: those of a mapping, or all of them as the source "text"."""
    named = dict(files) if isinstance(files, Mapping) else {"text": files}
    sources: dict[str, list[str]] = {}
    for name, value in named.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"the name of a source must be a string, got {name!r:.60}")
        several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        sources[name] = [_check.path(path, "files") for path in (value if several else [value])]
        if not sources[name]:
            raise ValueError(f"files must name at least one file, got none for source {name!r:.60}")
    if not sources:
        raise ValueError("files must name at least one file, got none")
    return sources
