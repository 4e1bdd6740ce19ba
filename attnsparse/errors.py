"""The exceptions of attnsparse and the one way in which their messages are written.

Every exception carries `code` (a short fixed word, the same for the same cause in every format), `path` (the
file), `offset` (a byte in it) and `field` (a tensor, a config key, an entry), where they are known, and
can be pickled. Text from a file is escaped and cut; a message is one line of at most 300 characters.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn, TypeVar

MAX_MESSAGE = 300
MAX_QUOTED = 80


class _Located(Exception):
    """What all exceptions here share: a message and the place that it is about."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        path: str | os.PathLike[str] | None = None,
        offset: int | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.path = None if path is None else os.fspath(path)
        self.offset = offset
        self.field = field

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.code, self.path, self.offset, self.field)


Error = TypeVar("Error", bound=_Located)


def _rebuild(
    kind: type[_Located], message: str, code: str, path: str | None, offset: int | None, field: str | None
) -> _Located:
    return kind(message, code=code, path=path, offset=offset, field=field)


class FormatError(_Located, ValueError):
    """A file is malformed, whatever its format.

    Attributes
    ----------
    code : str
        A short fixed word, the same for the same cause in every format, such as "truncated".
    path : str or None
        The file.
    offset : int or None
        A byte in the file.
    field : str or None
        A tensor, a config key, or an entry of an archive.
    """


class UnsafeFileError(FormatError):
    """A file holds more than data: a call, or a name outside the short list of those that are read.

    Nothing of the file was executed. Attributes as in `FormatError`.
    """


class LimitError(FormatError):
    """A file is well-formed but above one of `Limits`; the message names the limit and how to raise it.

    Attributes as in `FormatError`.
    """


class CheckpointError(FormatError):
    """A training checkpoint is damaged, cut short or of another version.

    Attributes as in `FormatError`.
    """


class NonFiniteError(FormatError):
    """Weights contain NaN or infinity.

    Attributes as in `FormatError`.
    """


class ConfigError(_Located, ValueError):
    """A configuration is invalid, or does not fit the weights or the tokenizer beside it.

    Attributes as in `FormatError`.
    """


class TrainingDiverged(_Located, ArithmeticError):
    """The loss or the gradient became infinite or NaN; the step that found it changed nothing.

    Attributes as in `FormatError`.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "diverged",
        path: str | os.PathLike[str] | None = None,
        offset: int | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(message, code=code, path=path, offset=offset, field=field)


def quoted(text: object) -> str:
    """Text from a file, escaped, in single quotes, at most 80 characters between them."""
    shown = str(text)[: MAX_QUOTED + 1]
    escaped = ascii(shown)[1:-1]
    return "'" + (escaped if len(escaped) <= MAX_QUOTED else escaped[: MAX_QUOTED - 3] + "...") + "'"


def file_label(path: str | os.PathLike[str] | None) -> str:
    """The last part of a path as it begins a message, escaped if it has strange characters."""
    name = os.path.basename(os.path.normpath(os.fspath(path))) if path is not None else "input"
    return name if name.isprintable() and 0 < len(name) <= MAX_QUOTED else quoted(name)


def printable(text: object) -> str:
    """Text with everything that cannot be shown escaped: the one form in files, pages and terminals.

    Escaped are control characters, line feeds, marks that turn the direction of writing, half surrogate
    pairs, and what Unicode has not assigned.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in shown)


def file_error(
    kind: type[Error],
    code: str,
    path: str | os.PathLike[str] | None,
    text: str,
    *,
    offset: int | None = None,
    field: str | None = None,
) -> Error:
    """Build `kind` with the message `file: text`, one line, at most 300 characters; the caller raises it."""
    line = printable(" ".join(f"{file_label(path)}: {text}".split()))
    if len(line) > MAX_MESSAGE:
        line = line[: MAX_MESSAGE - 3] + "..."
    return kind(line, code=code, path=path, offset=offset, field=field)


def raise_file_error(
    code: str, path: str | os.PathLike[str] | None, text: str, field: str | None = None
) -> NoReturn:
    """Raise FormatError with the message `file: text`; see `file_error`."""
    raise file_error(FormatError, code, path, text, field=field)
