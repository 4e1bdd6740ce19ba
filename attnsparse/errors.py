"""The exceptions of attnsparse and the one way their messages are written.

Every exception carries `code` (a short fixed word, the same for the same cause in every format), `path` (the
file), `offset` (a byte in it) and `field` (a tensor, a config key, an entry), as far as they are known, and
can be pickled. Text that comes from a file is escaped and cut, a message is one line of at most 300
characters.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn, TypeVar

MAX_MESSAGE = 300
MAX_QUOTED = 80


class _Located(Exception):
    """Shared by all exceptions here: a message and where it belongs."""

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
    """A file is malformed, whatever its format."""


class UnsafeFileError(FormatError):
    """A file asks for something that is not data: running code, or a name outside the list of those read."""


class LimitError(FormatError):
    """A file is legal but above a limit of `Limits`; the message names the field that raises it."""


class CheckpointError(FormatError):
    """A training checkpoint of ours is damaged, cut short or of another version."""


class NonFiniteError(FormatError):
    """Weights hold NaN or infinity."""


class ConfigError(_Located, ValueError):
    """A configuration makes no sense, or does not fit the weights or the tokenizer beside it."""


class TrainingDiverged(_Located, ArithmeticError):
    """The loss or the gradient stopped being finite; nothing was changed by the step that found it."""

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
