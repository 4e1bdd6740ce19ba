"""Tasks from files and tables: prompt files in JSON as auto-circuit has them, CSV of EAP-IG, DataFrames.

Prompt file: `{"prompts": [{"clean": ..., "corrupt": ..., "answers": [...], "wrong_answers": [...]}]}`, with
optional `"seq_labels"` (a name for each position) and `"word_idxs"` (positions of named words). The layouts
of tables are in `layouts`.

Files hold no BOS token, and their positions count without it; `prepend_bos=True` puts one in front of every
prompt. Published numbers differ in this: auto-circuit and EAP put one there, ACDC's IOI does not. A file or
table that was written from a task records it, with name, metric, labels and halves.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from .. import _check
from ..errors import FormatError, file_error, quoted
from ..io.atomic import write_atomic
from ..io.limits import DEFAULT_LIMITS, Limits
from ..io.regular_file import read_small
from ..io.strict_json import parse_object, shown
from ..model.tokenizer import Tokenizer
from .builder import build
from .csv_file import read_csv
from .layouts import ALWAYS, LAYOUTS, Columns, Refuse, read_rows, recognised
from .mib import flattened, is_nested
from .task import HALVES, PromptText, Task

if TYPE_CHECKING:
    import pandas as pd


_POSITIONS = ("seq_labels", "word_idxs")


def read_prompts_json(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    metric: str | None = None,
    name: str | None = None,
    seed: int = 0,
    prepend_bos: bool | None = None,
    prepend_space_to_answer: bool | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Task:
    """Read a task from a prompt file.

    Parameters
    ----------
    path : str or path-like
        A file as auto-circuit and `write_prompts_json` write it.
    tokenizer : Tokenizer
        Encodes prompts and answers.
    metric : {"logit_diff", "logit_diff_max", "prob_diff"}, optional
        Default: what the file says, else "logit_diff".
    name : str, optional
        Default: what the file says, else the name of the file.
    seed : int, default 0
        Draws the halves if the file has none, 0..2^64-1.
    prepend_bos : bool, optional
        Put the tokenizer's BOS token in front of every prompt. Default: what the file says, else False.
    prepend_space_to_answer : bool, optional
        See `from_dataframe`.
    limits : Limits, optional
        Bounds for the file.

    Returns
    -------
    Task
        The prompts in the order of the file.

    Raises
    ------
    FormatError
        If the file is malformed; codes json_*, prompts, file_limit.
    ValueError
        If a prompt fails the checks of a task. The message names the prompt.
    """
    _check.instance(tokenizer, Tokenizer, "tokenizer")
    data = parse_object(read_small(path, "max_index_bytes", limits=limits), path, limits=limits)
    prompts = data.get("prompts")
    if not isinstance(prompts, list) or not prompts:
        _raise_file_error(path, "prompts", f"'prompts' must be a non-empty list, got {shown(prompts)}")
    limits.check("max_prompts", len(prompts), path, f"a file of {len(prompts):,} prompts", code="file_limit")
    texts = []
    for i, prompt in enumerate(prompts):
        field = f"prompts[{i}]"
        if not isinstance(prompt, dict):
            _raise_file_error(path, field, f"{field} must be an object, got {shown(prompt)}")
        clean, corrupted = (_text(prompt, key, path, field) for key in ("clean", "corrupt"))
        answers, wrong = (_texts(prompt, key, path, field) for key in ("answers", "wrong_answers"))
        label = _text({"label": "", **prompt}, "label", path, field)
        texts.append(PromptText(clean, corrupted, answers, wrong, label))
    ranking = None
    if any("half" in prompt for prompt in prompts):
        ranking = _ranking([prompt.get("half") for prompt in prompts], _file_refuse(path, "prompts"))
    told = data.get("task", {})
    if not isinstance(told, dict):
        _raise_file_error(path, "task", f"'task' must be an object, got {shown(told)}")
    positions: dict[str, Any] = {key: data[key] for key in _POSITIONS if key in data}
    if "task" in data:  # its answers were tokens, as they are
        prepend_space_to_answer = prepend_space_to_answer or False
    return _task(
        texts, tokenizer, _described({**told, **positions}, _file_refuse(path, "prompts")), Path(path).stem,
        is_ranking=ranking, seed=seed, name=name, metric=metric, prepend_bos=prepend_bos,
        prepend_space_to_answer=prepend_space_to_answer,
    )  # fmt: skip


def write_prompts_json(task: Task, path: str | os.PathLike[str]) -> None:
    """Write a task as a prompt file that `read_prompts_json` and auto-circuit read.

    Parameters
    ----------
    task : Task
        The task. Its name, metric, BOS and options go under "task", label and half beside each prompt.
    path : str or path-like
        The file; after an error the previous one is as it was.

    Raises
    ------
    OSError
        If the file cannot be written.

    Notes
    -----
    Positions are written without the BOS token, as auto-circuit counts them.
    """
    _check.instance(task, Task, "task")
    told = task.description()
    data: dict[str, Any] = {key: told.pop(key) for key in _POSITIONS if key in told}
    data["task"] = told
    data["prompts"] = [
        {
            "clean": task.text(i),
            "corrupt": task.text(i, corrupted=True),
            "answers": task.tokenizer.token_strings(task.answers[i]),
            "wrong_answers": task.tokenizer.token_strings(task.wrong[i]),
            "label": task.labels[i],
            "half": HALVES[int(not task.is_ranking[i])],
        }
        for i in range(len(task))
    ]
    text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
    write_atomic(path, [text.encode()])


def read_eap_csv(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    metric: str | None = None,
    name: str | None = None,
    seed: int = 0,
    prepend_bos: bool | None = None,
    prepend_space_to_answer: bool | None = None,
    verbs: Sequence[Sequence[str]] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Task:
    """Read a task from a CSV of EAP-IG, of its benchmark, or of `Task.to_pandas`.

    Parameters
    ----------
    path : str or path-like
        The file. Its columns together say which layout it has; a table that fits none is refused, and columns
        that no layout has are left out with a warning. Columns that end in `_idx` hold ids of the vocabulary
        for which the file was made: gpt2.csv is for GPT-2's tokenizer.
    tokenizer : Tokenizer
        Encodes prompts and answers.
    metric : {"logit_diff", "logit_diff_max", "prob_diff"}, optional
        Default: what the file says, else the metric with which the layout is published.
    name : str, optional
        Default: what the file says, else the name of the file.
    seed : int, default 0
        Draws the halves if the file has none, 0..2^64-1.
    prepend_bos : bool, optional
        Put the tokenizer's BOS token in front of every prompt. Default: what the file says, else False.
    prepend_space_to_answer : bool, optional
        See `from_dataframe`.
    verbs : sequence of (str, str), optional
        Pairs (singular, plural), which tables of subject-verb agreement (column `plural`) need.
    limits : Limits, optional
        Bounds for the file.

    Returns
    -------
    Task
        The prompts in the order of the file.

    Raises
    ------
    FormatError
        If the file is malformed; codes csv, file_limit.
    ValueError
        If a prompt fails the checks of a task. The message names the prompt.

    References
    ----------
    EAP-IG: Hanna et al. (2024), "Have faith in faithfulness".
    """
    _check.instance(tokenizer, Tokenizer, "tokenizer")
    columns = read_csv(path, limits)
    if is_nested(columns):
        text = (
            "a table of MIB, whose objects a CSV does not hold; use from_dataframe with datasets' to_pandas()"
        )
        raise file_error(FormatError, "csv", path, text)
    return _from_table(
        columns, tokenizer, _file_refuse(path, "csv"), Path(path).stem, verbs, metric=metric, name=name,
        seed=seed, prepend_bos=prepend_bos, prepend_space_to_answer=prepend_space_to_answer,
    )  # fmt: skip


def from_dataframe(
    frame: pd.DataFrame,
    tokenizer: Tokenizer,
    *,
    name: str | None = None,
    metric: str | None = None,
    seed: int = 0,
    prepend_bos: bool | None = None,
    prepend_space_to_answer: bool | None = None,
    verbs: Sequence[Sequence[str]] | None = None,
    counterfactual: str | None = None,
) -> Task:
    """Make a task from a table of prompts.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns clean, corrupted, answer, wrong: texts, the last two also lists of texts. Optional: label, and
        half ("ranking" or "evaluation"). The tables of EAP-IG's benchmark (see `read_eap_csv`), those of MIB
        as `datasets` gives them with `to_pandas()`, and `Task.to_pandas` are read as well.
    tokenizer : Tokenizer
        Encodes prompts and answers.
    name : str, optional
        Default: what a table of `Task.to_pandas` says, else "own".
    metric : {"logit_diff", "logit_diff_max", "prob_diff"}, optional
        Default: what a table of `Task.to_pandas` says, else the metric with which the
        layout is published ("logit_diff" for answer and wrong).
    seed : int, default 0
        Draws the halves if there is no column half, 0..2^64-1.
    prepend_bos : bool, optional
        Put the tokenizer's BOS token in front of every prompt. Default: what a table of `Task.to_pandas`
        says, else False.
    prepend_space_to_answer : bool, optional
        Answers are tokens, so they have their leading space where the text would have one. True puts it
        before answers without one, False takes all as they are. By default they are taken as they are, and an
        answer without a space is an error where both would be tokens and a space is likely: " Mary" is meant
        after "gave it to", "33" after "the year 17".
    verbs : sequence of (str, str), optional
        Pairs (singular, plural), which tables of subject-verb agreement (column `plural`) need.
    counterfactual : str, optional
        Which counterfactual of a table of MIB, such as "abc". Default: the benchmark's own (s2_io_flip,
        symbol, random).

    Returns
    -------
    Task
        The prompts in the order of the table.

    Raises
    ------
    ValueError
        If columns are missing or a prompt fails the checks of a task. The message names the column, or the
        prompt and the token.
    """
    _check.instance(tokenizer, Tokenizer, "tokenizer")
    columns: Columns = _columns_of(frame)
    if is_nested(columns):
        columns = flattened(columns, counterfactual, _table_refuse)
    elif counterfactual is not None:
        raise ValueError("counterfactual is for tables of MIB, and this table is not one")
    return _from_table(
        columns, tokenizer, _table_refuse, "own", verbs, metric=metric, name=name, seed=seed,
        prepend_bos=prepend_bos, prepend_space_to_answer=prepend_space_to_answer,
    )  # fmt: skip


def _columns_of(frame: Any) -> dict[str, list[Any]]:
    if not hasattr(frame, "columns") or not hasattr(frame, "iloc"):
        raise TypeError(f"frame must be a pandas DataFrame, got {type(frame).__name__}")
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise ValueError(f"the table has column {Counter(names).most_common(1)[0][0]!r:.60} twice")
    return {name: list(frame.iloc[:, at]) for at, name in enumerate(names)}


def _from_table(
    columns: Columns,
    tokenizer: Tokenizer,
    refuse: Refuse,
    default_name: str,
    verbs: Sequence[Sequence[str]] | None,
    *,
    metric: str | None,
    prepend_space_to_answer: bool | None,
    **arguments: Any,
) -> Task:
    layout = recognised(columns, refuse)
    if not len(columns["clean"]):
        raise refuse("has no rows", None)
    texts = read_rows(layout, columns, tokenizer, verbs, refuse)
    if layout is not LAYOUTS[0]:
        unknown = [quoted(name) for name in columns if name not in ALWAYS.union(layout.answers, layout.also)]
        if unknown:
            warnings.warn(
                f"columns that tables of {layout.of} do not have are left out: {', '.join(unknown):.200}",
                stacklevel=3,
            )
    if layout.kind != "words":
        if prepend_space_to_answer is not None:
            raise ValueError(
                f"prepend_space_to_answer is for answers in words; {layout.right!r} says the tokens"
            )
        prepend_space_to_answer = False
    told: dict[str, Any] = {}
    if "task" in columns:
        told = _one_task(columns["task"], refuse)
        prepend_space_to_answer = prepend_space_to_answer or False
    return _task(
        texts, tokenizer, told, default_name,
        is_ranking=_ranking(columns["half"], refuse) if "half" in columns else None,
        metric=metric or told.get("metric") or layout.metric,
        prepend_space_to_answer=prepend_space_to_answer, **arguments,
    )  # fmt: skip


def _task(
    texts: Sequence[PromptText],
    tokenizer: Tokenizer,
    told: Mapping[str, Any],
    default_name: str,
    *,
    name: str | None,
    metric: str | None,
    prepend_bos: bool | None,
    prepend_space_to_answer: bool | None,
    **arguments: Any,
) -> Task:
    """What the caller says comes before what the file says."""
    for flag, value in (("prepend_bos", prepend_bos), ("prepend_space_to_answer", prepend_space_to_answer)):
        if value is not None:
            _check.flag(value, flag)
    return build(
        told.get("name", default_name) if name is None else name,
        told.get("metric", "logit_diff") if metric is None else metric,
        texts,
        tokenizer,
        prepend_bos=told.get("prepend_bos", False) if prepend_bos is None else prepend_bos,
        options=told.get("options"),
        position_labels=told.get("seq_labels"),
        word_positions=told.get("word_idxs"),
        prepend_space_to_answer=prepend_space_to_answer,
        **arguments,
    )


def _one_task(cells: Sequence[Any], refuse: Refuse) -> dict[str, Any]:
    """The description in the column `task`, which is the same in every row."""
    if not isinstance(cells[0], str) or not cells[0].startswith("{") or any(c != cells[0] for c in cells):
        text = "column 'task' must be what Task.to_pandas writes, the same text in every row; rename others"
        raise refuse(text, "task")
    return _described(parse_object(cells[0].encode("utf-8", "surrogatepass"), None), refuse)


def _described(told: Mapping[str, Any], refuse: Refuse) -> dict[str, Any]:
    """A description of a task as `Task.description` writes it, checked field by field."""
    for key, kind, words in _DESCRIPTION:
        if told.get(key) is not None and not kind(told[key]):
            raise refuse(f"{key!r} must be {words}, got {shown(told[key])}", key)
    return {key: told[key] for key, _, _ in _DESCRIPTION if told.get(key) is not None}


def _all_of(value: Any, kind: type[list[Any]], item: type) -> bool:
    return isinstance(value, kind) and all(type(entry) is item for entry in value)


_DESCRIPTION: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("name", lambda value: isinstance(value, str), "a string"),
    ("metric", lambda value: isinstance(value, str), "a string"),
    ("prepend_bos", lambda value: isinstance(value, bool), "true or false"),
    ("options", lambda value: isinstance(value, dict), "an object"),
    ("seq_labels", lambda value: _all_of(value, list, str), "a list of strings"),
    ("word_idxs", lambda value: isinstance(value, dict) and _all_of(list(value.values()), list, int),
     "an object with a position for each word"),
)  # fmt: skip


def _ranking(values: Sequence[Any], refuse: Refuse) -> np.ndarray:
    for i, value in enumerate(values):
        if value not in HALVES:
            raise refuse(f"prompt {i}: half must be 'ranking' or 'evaluation', got {value!r:.60}", "half")
    return np.array([value == HALVES[0] for value in values], bool)


def _text(prompt: dict[str, Any], key: str, path: Any, field: str) -> str:
    value = prompt.get(key)
    if not isinstance(value, str):
        _raise_file_error(path, field, f"{field}: {key!r} must be a string, got {shown(value)}")
    return value


def _texts(prompt: dict[str, Any], key: str, path: Any, field: str) -> tuple[str, ...]:
    value = prompt.get(key)
    if not isinstance(value, list) or not _all_of(value, list, str):
        _raise_file_error(path, field, f"{field}: {key!r} must be a list of strings, got {shown(value)}")
    return tuple(value)


def _raise_file_error(path: Any, field: str, text: str) -> NoReturn:
    raise file_error(FormatError, "prompts", path, text, field=field)


def _file_refuse(path: Any, code: str) -> Refuse:
    return lambda text, field: file_error(FormatError, code, path, text, field=field)


def _table_refuse(text: str, field: str | None) -> Exception:
    return ValueError(f"the table {text}" if text.startswith(("has ", "is ")) else text)
