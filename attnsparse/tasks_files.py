"""Tasks from files and tables: prompt files in JSON as auto-circuit has them, EAP's CSV, DataFrames.

Prompt file: `{"prompts": [{"clean": ..., "corrupt": ..., "answers": [...], "wrong_answers": [...]}]}`, with
`"seq_labels"` (a name for each position) and `"word_idxs"` (positions of named words) if it likes. CSV:
columns `clean,corrupted` and either `label`, the two digits of the start year for greater-than, or
`correct_idx,incorrect_idx`, token ids of a right and a wrong answer.

Files hold no BOS token; `prepend_bos=True` puts one in front of every prompt. Published numbers differ in
this: auto-circuit and EAP put one there, ACDC's IOI does not.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from .arguments import checked_object
from .errors import FormatError, located, quoted
from .limits import DEFAULT_LIMITS, Limits
from .regular_file import read_small
from .saving import write_atomic
from .strict_json import parse_object, shown
from .tasks_object import Draft, Task, build
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    import pandas as pd

YEARS = tuple(f"{year:02d}" for year in range(100))


def read_prompts_json(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    metric: str = "logit_diff",
    name: str | None = None,
    seed: int = 0,
    prepend_bos: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Task:
    """The task in a prompt file; halves are drawn by `seed`, the name is that of the file if not given.

    Raises FormatError (codes json_*, prompts) and ValueError for prompts that fail a task's checks; both name
    the prompt.
    """
    checked_object(tokenizer, Tokenizer, "tokenizer")
    data = parse_object(read_small(path, "max_tokenizer_bytes", limits=limits), path, limits=limits)
    prompts = data.get("prompts")
    if not isinstance(prompts, list) or not prompts:
        _refuse(path, "prompts", f"'prompts' must be a list that is not empty, got {shown(prompts)}")
    drafts = []
    for i, prompt in enumerate(prompts):
        field = f"prompts[{i}]"
        if not isinstance(prompt, dict):
            _refuse(path, field, f"{field} must be an object, got {shown(prompt)}")
        texts = [_text(prompt, key, path, field) for key in ("clean", "corrupt")]
        lists = [_texts(prompt, key, path, field) for key in ("answers", "wrong_answers")]
        drafts.append(Draft(*texts, *lists))
    labels = data.get("seq_labels")
    if labels is not None and not _all_of(labels, list, str):
        _refuse(path, "seq_labels", f"'seq_labels' must be a list of texts, got {shown(labels)}")
    places = data.get("word_idxs")
    if places is not None and not (isinstance(places, dict) and _all_of(list(places.values()), list, int)):
        _refuse(path, "word_idxs", f"'word_idxs' must have a position for each word, got {shown(places)}")
    return build(
        Path(path).stem if name is None else name,
        metric,
        drafts,
        tokenizer,
        seed=seed,
        prepend_bos=prepend_bos,
        options={"seed": seed},
        position_labels=None if labels is None else tuple(labels),
        word_positions=places,
    )


def write_prompts_json(task: Task, path: str | os.PathLike[str]) -> None:
    """Write a task as a prompt file, complete or not at all. It holds no labels, halves or metric."""
    data: dict[str, Any] = {}
    if task.position_labels is not None:
        data["seq_labels"] = list(task.position_labels)
    if task.word_positions is not None:
        data["word_idxs"] = dict(task.word_positions)
    data["prompts"] = [
        {
            "clean": task.text(i),
            "corrupt": task.text(i, corrupted=True),
            "answers": task.tokenizer.token_strings(task.answers[i]),
            "wrong_answers": task.tokenizer.token_strings(task.wrong[i]),
        }
        for i in range(len(task))
    ]
    text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
    write_atomic(path, [text.encode()])


def read_eap_csv(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    name: str | None = None,
    seed: int = 0,
    prepend_bos: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Task:
    """The task in a CSV of EAP; with `label` it is greater-than (metric "prob_diff"), else "logit_diff".

    Raises FormatError (codes csv, file_limit) and ValueError for prompts that fail a task's checks; both name
    the row.
    """
    checked_object(tokenizer, Tokenizer, "tokenizer")
    data = read_small(path, "max_tokenizer_bytes", limits=limits)
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise located(FormatError, "csv", path, f"not a CSV in UTF-8: {error}") from error
    columns = set(rows[0]) if rows else set()
    years = "label" in columns
    wanted = ("clean", "corrupted", *(("label",) if years else ("correct_idx", "incorrect_idx")))
    missing = [column for column in wanted if column not in columns]
    if missing or not rows:
        what = f"has no column {missing[0]!r}" if rows else "has no rows"
        raise located(FormatError, "csv", path, f"{what}; needs clean, corrupted and label, or "
                      "clean, corrupted, correct_idx and incorrect_idx")  # fmt: skip
    drafts = [_eap_row(row, i, years, tokenizer, path) for i, row in enumerate(rows)]
    return build(
        Path(path).stem if name is None else name,
        "prob_diff" if years else "logit_diff",
        drafts,
        tokenizer,
        seed=seed,
        prepend_bos=prepend_bos,
        options={"seed": seed},
    )


def _eap_row(
    row: Mapping[str, Any], i: int, years: bool, tokenizer: Tokenizer, path: str | os.PathLike[str]
) -> Draft:
    columns = ("label",) if years else ("correct_idx", "incorrect_idx")
    numbers = []
    for column in columns:
        high = 98 if years else tokenizer.n_vocab - 1
        value = str(row[column]).strip()
        if not (value.isascii() and value.isdecimal() and len(value) <= 10 and int(value) <= high):
            text = f"row {i}: {column} must be a number in 0..{high:,}, got {quoted(value)}"
            raise located(FormatError, "csv", path, text, field=column)
        numbers.append(int(value))
    clean, corrupted = row["clean"] or "", row["corrupted"] or ""
    if years:
        start = numbers[0]
        return Draft(clean, corrupted, YEARS[start + 1 :], YEARS[: start + 1], YEARS[start])
    texts = [tokenizer.token_string(number) for number in numbers]
    return Draft(clean, corrupted, (texts[0],), (texts[1],))


def from_dataframe(
    frame: pd.DataFrame,
    tokenizer: Tokenizer,
    *,
    name: str = "own",
    metric: str = "logit_diff",
    seed: int = 0,
    prepend_bos: bool = False,
) -> Task:
    """A task from columns clean, corrupted, answer, wrong: texts, the last two also lists of texts.

    Answers are tokens, so they have their leading space where the text would have one. Optional columns:
    label, and half ("ranking" or "evaluation"); without it halves are drawn by `seed`.
    Raises ValueError that names the column, or the prompt and the token.
    """
    checked_object(tokenizer, Tokenizer, "tokenizer")
    missing = [column for column in ("clean", "corrupted", "answer", "wrong") if column not in frame]
    if missing:
        raise ValueError(f"the table has no column {missing[0]!r}; it has {', '.join(map(str, frame))}")
    labels = frame["label"].astype(str) if "label" in frame else [""] * len(frame)
    drafts = [
        Draft(clean, corrupted, _several(answer, "answer", i), _several(wrong, "wrong", i), label)
        for i, (clean, corrupted, answer, wrong, label) in enumerate(
            zip(frame["clean"], frame["corrupted"], frame["answer"], frame["wrong"], labels)
        )
    ]
    ranking = None
    if "half" in frame:
        unknown = set(frame["half"]) - {"ranking", "evaluation"}
        if unknown:
            raise ValueError(f"half must be 'ranking' or 'evaluation', got {min(map(repr, unknown)):.60}")
        ranking = np.array(frame["half"] == "ranking", bool)
    return build(
        name, metric, drafts, tokenizer,
        seed=seed, prepend_bos=prepend_bos, is_ranking=ranking, options={"seed": seed},
    )  # fmt: skip


def _several(value: Any, column: str, i: int) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"prompt {i}: {column} must be a text or a list of texts, got {value!r:.60}")
    return tuple(texts)


def _text(prompt: dict[str, Any], key: str, path: Any, field: str) -> str:
    value = prompt.get(key)
    if not isinstance(value, str):
        _refuse(path, field, f"{field}: {key!r} must be a text, got {shown(value)}")
    return value


def _texts(prompt: dict[str, Any], key: str, path: Any, field: str) -> tuple[str, ...]:
    value = prompt.get(key)
    if not _all_of(value, list, str):
        _refuse(path, field, f"{field}: {key!r} must be a list of texts, got {shown(value)}")
    return tuple(value)


def _all_of(value: Any, kind: type, item: type) -> bool:
    return isinstance(value, kind) and all(type(entry) is item for entry in value)


def _refuse(path: Any, field: str, text: str) -> NoReturn:
    raise located(FormatError, "prompts", path, text, field=field)
