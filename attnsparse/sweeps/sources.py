"""What a sweep goes over: models by name, path, pattern or as they are, and how each task is made.

Every model and every task gets a name that is different from the others', tells a reader of tables no number
or date, and can be that of a folder.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

from .. import _check
from ..errors import printable, quoted
from ..io.foreign import NO_WEIGHTS
from ..items import name_of
from ..model.load import load
from ..model.locate import TORCH_ENDINGS, TRAINING, named_by
from ..model.model import Model
from ..model.tokenizer import Tokenizer
from ..tasks import TASKS, make_task
from ..tasks.files import read_eap_csv, read_prompts_json
from ..tasks.task import Task

AnyModel: TypeAlias = "Model | str | os.PathLike[str]"
MakesTask: TypeAlias = Callable[[Tokenizer, int], Task]
AnyTask: TypeAlias = "Task | MakesTask | str | os.PathLike[str]"

_READERS: dict[str, Callable[..., Task]] = {".json": read_prompts_json, ".csv": read_eap_csv}
_ENDINGS = (".safetensors", *TORCH_ENDINGS)
_OTHERS = tuple(pattern for pattern in NO_WEIGHTS if not pattern.endswith(TRAINING.ending))
_STEP = re.compile(r"(?:steps?|checkpoint|ckpt|iter|iteration|epoch)[-_=. ]?(\d{1,15})(?!\d)", re.IGNORECASE)
_LONGEST = 120  # bytes of a name as a part of a path
_KEPT = 48  # characters of a longer one
_RESERVED = "__HIVE_DEFAULT_PARTITION__"


class ModelSource(NamedTuple):
    """A model of a sweep: its name in tables, itself or what `load` takes, and its step of training."""

    name: str
    what: AnyModel
    step: int | None

    def load(self, tokenizer: Tokenizer | str | os.PathLike[str] | None) -> Model:
        """The model; what `load` raises."""
        return self.what if isinstance(self.what, Model) else load(self.what, tokenizer=tokenizer)

    @property
    def place(self) -> str | None:
        """Where it comes from, as tables say it."""
        if isinstance(self.what, Model):
            return None
        path = os.fspath(self.what)
        return printable(os.path.abspath(path) if os.path.exists(path) else path)


class TaskSource(NamedTuple):
    """A task of a sweep: its name in tables, and how it is made for a tokenizer and a seed."""

    name: str
    make: MakesTask
    needs_tokenizer: bool = True


# ------------------------------------------------------------------------------------------------ models


def model_sources(models: AnyModel | Iterable[AnyModel] | Mapping[Any, AnyModel]) -> list[ModelSource]:
    """Every model once, in the order given, those of a pattern in the order of their steps and names.

    FileNotFoundError for a pattern without models; ValueError for names that are not different.
    """
    if isinstance(models, Mapping):
        found = [_named_model(name, what) for name, what in models.items()]
    else:
        single = isinstance(models, (Model, str, os.PathLike))
        given = [models] if single else _check.items(models, "models", "models, names or paths")
        found = _with_names([what for each in given for what in _expanded(each)])
    if not found:
        raise ValueError("models must not be empty: give a model, a name, a path or several")
    _check_different([source.name for source in found], "models")
    return found


def _named_model(name: object, what: AnyModel) -> ModelSource:
    if not isinstance(what, (Model, str, os.PathLike)):
        kind = type(what).__name__
        raise TypeError(f"models[{name!r:.40}] must be a Model, a name or a path, got {kind}")
    if isinstance(name, int) and not isinstance(name, bool):  # a step of training
        return ModelSource(f"step-{name}", what, name)
    label = _checked_name(name, "models")
    return ModelSource(label, what, _step_of(label))


def _expanded(what: object) -> Sequence[AnyModel]:
    """What one entry of the list means: itself, or all models that a pattern matches."""
    if isinstance(what, Model):
        return [what]
    if not isinstance(what, (str, os.PathLike)):
        raise TypeError(f"models must be Model, names or paths, got {type(what).__name__}")
    path = _check.path(what, "models")
    if os.path.exists(path) or not glob.has_magic(path):
        return [path]
    matched = [match for match in glob.glob(path) if _looks_like_a_model(Path(match))]
    if not matched:
        raise FileNotFoundError(2, "no model matches this pattern", path)
    return sorted(matched, key=_by_step)


def _by_step(path: str) -> tuple[int, str]:
    return _step_of(name_of(path)) or 0, path


def _looks_like_a_model(path: Path) -> bool:
    if path.is_dir():
        return any(_looks_like_a_model(inner) for inner in path.iterdir() if inner.is_file())
    return path.suffix in _ENDINGS and not any(path.match(other) for other in _OTHERS)


def _with_names(whats: Sequence[AnyModel]) -> list[ModelSource]:
    """Each by the last parts of its path, as many as tell it from the others."""
    steps = []
    parts: list[list[str]] = []
    for what in whats:
        if isinstance(what, Model):
            if not what.name:
                raise ValueError("a model has no name; give models={'its name': model, ...}")
            parts.append([what.name])
        else:
            parts.append(_parts(os.fspath(what)))
        steps.append(_step_of(parts[-1][-1]))
    depth = [
        next((n for n in range(1, len(part)) if _has_letter("/".join(part[-n:]))), len(part))
        for part in parts
    ]
    names = ["/".join(part[-n:]) for part, n in zip(parts, depth)]
    while len(set(names)) < len(names):
        again = [names.count(name) > 1 for name in names]
        longer = [min(n + twice, len(part)) for n, twice, part in zip(depth, again, parts)]
        if longer == depth:
            break  # the same model twice, which is refused
        depth = longer
        names = ["/".join(part[-n:]) for part, n in zip(parts, depth)]
    checked = [_checked_name(_fitting(name), "models") for name in names]
    return [ModelSource(name, what, step) for name, what, step in zip(checked, whats, steps)]


def _parts(path: str) -> list[str]:
    """The parts of a path, the last one without the ending of a file; a name that is no path is one part."""
    if not os.path.exists(path) and not (path[0] in "./" or path.count("/") > 1):
        return [printable(path)]  # of a model in the package or on the hub
    whole = Path(path).resolve()
    named = named_by(whole) if whole.is_file() else whole
    return [printable(part) for part in named.parts[1:]] or [printable(path)]


def _step_of(name: str) -> int | None:
    """The step of training that a name says: step-000400, checkpoint-500, 1000."""
    digits = re.fullmatch(r"\d{1,15}", name)
    if digits:
        return int(name)
    found = _STEP.findall(name)
    return int(found[-1]) if found else None


# ------------------------------------------------------------------------------------------------ tasks


def task_sources(tasks: AnyTask | Iterable[AnyTask] | Mapping[str, AnyTask], n: int) -> list[TaskSource]:
    """Every task once, in the order given; n: prompts of those that are drawn.

    ValueError for unknown names and names that are not different.
    """
    if isinstance(tasks, Mapping):
        found = [_task_source(what, n, _checked_name(name, "tasks")) for name, what in tasks.items()]
    else:
        single = isinstance(tasks, (Task, str, os.PathLike)) or callable(tasks)
        given = [tasks] if single else _check.items(tasks, "tasks", "tasks, names or functions")
        found = [_task_source(what, n, None) for what in given]
    if not found:
        raise ValueError("tasks must not be empty: give a task, a name or several")
    _check_different([source.name for source in found], "tasks")
    return found


def _task_source(what: object, n: int, name: str | None) -> TaskSource:
    if isinstance(what, Task):
        return TaskSource(_checked_name(what.name, "tasks") if name is None else name, lambda *_: what, False)
    if isinstance(what, (str, os.PathLike)):
        return _from_text(_check.path(what, "tasks"), n, name)
    if not callable(what):
        raise TypeError(
            "tasks must be names, Task, files of prompts or functions of a tokenizer and a seed, got "
            f"{type(what).__name__}"
        )
    if name is None:
        raise ValueError("a function that makes a task needs a name: tasks={'its name': function}")
    return TaskSource(name, what)


def _from_text(text: str, n: int, name: str | None) -> TaskSource:
    """A built-in task, or the file of one."""
    if text in TASKS:
        return TaskSource(name or text, lambda tokens, seed: make_task(text, tokens, n=n, seed=seed))
    path = Path(text)
    if path.suffix not in _READERS:
        known = ", ".join(map(repr, TASKS))
        raise ValueError(f"tasks: {text!r:.80} is none of {known}, and no file of prompts (.json, .csv)")
    read = _READERS[path.suffix]
    return TaskSource(
        name or _fitting(name_of(path.stem)), lambda tokens, seed: read(path, tokens, seed=seed)
    )


# ------------------------------------------------------------------------------------------------ names


def folder_name(name: str) -> str:
    """A name as a part of a path, as Hive writes it: everything but letters, digits and -_.~ as %XX."""
    return quote(name, safe="")


def _has_letter(text: str) -> bool:
    return any(sign.isalpha() for sign in text)


def _fitting(name: str) -> str:
    """A name that is not too long for a folder; a longer one is cut, with a part of its digest."""
    if len(folder_name(name)) <= _LONGEST:
        return name
    cut = name[:_KEPT] if name.isascii() else name[: _KEPT // 6]
    return f"{cut}~{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _checked_name(name: object, what: str) -> str:
    """A name that the caller gives."""
    if not isinstance(name, str):
        raise TypeError(f"names of {what} must be strings, got {type(name).__name__}")
    if not _has_letter(name) or name == _RESERVED or not name.isprintable():
        raise ValueError(
            f"{name!r:.60} cannot be a name of {what}: it needs a letter, because readers of tables take "
            "others for numbers or dates, and no character that cannot be shown"
        )
    if len(folder_name(name)) > _LONGEST:
        raise ValueError(f"{name!r:.60} cannot be a name of {what}: it is too long for a folder")
    return name


def _check_different(names: Sequence[str], what: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"{what} must have different names, got {quoted(twice)} twice; give a mapping by name"
        )
