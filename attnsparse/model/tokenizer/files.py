"""Reads tokenizers from files: a tokenizer.json, or a folder with one or with GPT-2's vocabulary and merges.

The ids are those of transformers for the same folder: added and special tokens of the files beside the
vocabulary count (see sidecars.py).
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import ConfigError, FormatError, file_error, file_label, quoted
from ...io.limits import Limits
from ...io.regular_file import read_small
from ...io.strict_json import parse_object, shown
from .sidecars import ADDED, GPT2_BOS, SETTINGS, SPECIAL, Sidecars, add_tokens

if TYPE_CHECKING:
    import tokenizers

JSON = "tokenizer.json"
#: vocabulary and merges, as transformers and as OpenAI call them
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
#: all files of a folder that can say something about its tokenizer
FILES = (JSON, *(name for pair in PAIRS for name in pair), SETTINGS, SPECIAL, ADDED)

# All else that the library raises is about the file; pyo3's PanicException is not even an Exception.
PASSED_ON = (KeyboardInterrupt, SystemExit, MemoryError)


class Found(NamedTuple):
    """A tokenizer and its BOS token: text, id or None."""

    inner: tokenizers.Tokenizer
    bos: str | int | None
    path: str


def pair_in(folder: Path) -> tuple[Path, Path] | None:
    """Vocabulary and merges of a folder that has both."""
    for pair in PAIRS:
        vocab, merges = (folder / name for name in pair)
        if vocab.exists() and merges.exists():
            return vocab, merges
    return None


def read_tokenizer(path: Path, limits: Limits) -> Found:
    """See `Tokenizer.load`."""
    if not path.is_dir():
        return Found(_read_json(path, limits)[0], GPT2_BOS, os.fspath(path))
    beside = Sidecars.read(path, limits)
    pair = None if (path / JSON).exists() else pair_in(path)
    gpt2 = beside.is_gpt2(has_json=pair is None)
    own: Sequence[Mapping[str, Any]] = ()
    if pair is not None:
        inner = byte_level(*read_pair(*pair, limits), prefix=beside.flag("add_prefix_space"))
    else:
        inner, values = _read_json(path / JSON, limits)
        own = json.loads(inner.to_str())["added_tokens"]
        gpt2 = gpt2 and _is_byte_level(values)
        if gpt2:
            inner = _as_gpt2(values, path / JSON, prefix=beside.flag("add_prefix_space"))
    declared = beside.declared(own, gpt2=gpt2)
    add_tokens(inner, declared, path)
    inner.encode_special_tokens = beside.flag("split_special_tokens")
    return Found(inner, declared.bos, os.fspath(path / JSON if pair is None else path))


def byte_level(
    ids: Mapping[str, int], merges: Sequence[tuple[str, str]], *, prefix: bool = False
) -> tokenizers.Tokenizer:
    """GPT-2's kind: byte-level BPE. prefix: put a space before a text that has none."""
    import tokenizers

    inner = tokenizers.Tokenizer(tokenizers.models.BPE(dict(ids), list(merges)))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.decoder = tokenizers.decoders.ByteLevel()
    return inner


def read_pair(
    vocab: str | os.PathLike[str], merges: str | os.PathLike[str], limits: Limits
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token -> id, and the merges, all of whose parts are tokens; errors as `Tokenizer.load`."""
    data = read_small(vocab, "max_tokenizer_bytes", limits=limits, code="tokenizer_limit")
    ids = parse_object(data, vocab, limits=limits)
    for name, token in ids.items():
        if type(token) is not int or not 0 <= token < len(ids):
            text = f"token {quoted(name)} has id {shown(token)}, expected a number in 0..{len(ids) - 1:,}"
            raise file_error(ConfigError, "vocab", vocab, text, field=name)
    names_by_id(ids, os.fspath(vocab))
    return ids, _read_merges(merges, ids, limits)


def names_by_id(vocabulary: dict[str, int], path: str | None) -> list[str]:
    """Token texts in the order of their ids; ConfigError `vocab` unless the ids are 0..n-1, each once."""
    names: list[str | None] = [None] * len(vocabulary)
    for name, token in vocabulary.items():
        if not 0 <= token < len(names) or names[token] is not None:
            text = (
                f"{len(names):,} tokens must have the ids 0..{len(names) - 1:,}, each once; "
                f"token {quoted(name)} has id {token:,}"
            )
            raise file_error(ConfigError, "vocab", path, text, field=name)
        names[token] = name
    return names  # type: ignore[return-value]


def guarded(path: str | os.PathLike[str], make: Callable[[], tokenizers.Tokenizer]) -> tokenizers.Tokenizer:
    """Call into the library; whatever it raises about the file becomes a FormatError `tokenizer`."""
    try:
        return make()
    except PASSED_ON:
        raise
    except BaseException as error:
        text = f"not a tokenizer that the tokenizers library reads: {str(error)[:120]}"
        raise file_error(FormatError, "tokenizer", path, text) from error


def _read_json(path: Path, limits: Limits) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer of a tokenizer.json as it is, and its values."""
    import tokenizers

    data = read_small(path, "max_tokenizer_bytes", limits=limits, code="tokenizer_limit")
    values = parse_object(data, path, limits=limits)
    inner = guarded(path, lambda: tokenizers.Tokenizer.from_str(data.decode("utf-8")))
    inner.no_truncation()
    inner.no_padding()
    return inner, values


def _is_byte_level(values: Mapping[str, Any]) -> bool:
    return "merges" in values["model"] and '"ByteLevel"' in json.dumps(values.get("pre_tokenizer"))


def _as_gpt2(values: Mapping[str, Any], path: Path, *, prefix: bool) -> tokenizers.Tokenizer:
    """What GPT-2's class of transformers makes of a tokenizer.json: it takes vocabulary and merges alone."""
    before = values.get("pre_tokenizer") or {}
    if values.get("normalizer") or before.get("type") != "ByteLevel" or not before.get("use_regex", True):
        warnings.warn(
            f"{file_label(path)}: its normalizer and pre_tokenizer are ignored, as GPT2Tokenizer of "
            "transformers ignores them; to use them, set tokenizer_class to "
            "'PreTrainedTokenizerFast' in tokenizer_config.json",
            stacklevel=2,
        )
    model = values["model"]

    def make() -> tokenizers.Tokenizer:
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        return byte_level(model["vocab"], [(first, second) for first, second in pairs], prefix=prefix)

    return guarded(path, make)


def _read_merges(path: str | os.PathLike[str], ids: dict[str, Any], limits: Limits) -> list[tuple[str, str]]:
    data = read_small(path, "max_tokenizer_bytes", limits=limits, code="tokenizer_limit")
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        text = f"not UTF-8 at byte {error.start:,}"
        raise file_error(FormatError, "merges", path, text, offset=error.start) from error
    limits.check("max_merges", len(lines), path, f"{len(lines):,} merges", code="tokenizer_limit")
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = tuple(line.rstrip("\r").split(" "))
        if len(parts) != 2 or not all(part in ids for part in (*parts, "".join(parts))):
            text = f"line {number:,} {quoted(line)} is not two tokens of the vocabulary that make a third"
            raise file_error(FormatError, "merges", path, text, field=f"line {number}")
        pairs.append(parts)
    return pairs
