"""A Run as pandas DataFrames with fixed columns, and as HTML for notebooks.

The arithmetic is the C core's (`Run.value_norms`, `Run.entry_scores`); this file selects, names and sorts.
Positions are counted from `base`: 0 as in Python, or 1 as in figures of papers. `.attrs` repeat it, with
prepend_bos, model, digest and prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import _check
from .._display import escaped, html_rows
from ..items import Head, token_label

if TYPE_CHECKING:
    import pandas as pd

    from .run import Run

__all__ = [
    "edges",
    "entry",
    "first_columns",
    "heads",
    "position",
    "summary_html",
    "text_column",
    "token_id",
]

LogitDiff: TypeAlias = "tuple[str | int, str | int]"

_MAX_LISTED = 8
_MAX_TOKEN_ROWS = 64


def position(run: Run, which: int | str, base: int = 0) -> int:
    """The position, counted from 0, that `which` names in a run of one prompt.

    which: a position counted from `base` (0 or 1), a negative position counted from the end (-1 is the last
    token for either base), or a token as displayed, with or without its leading space.
    Raises ValueError if no token or several tokens match (the message lists their positions), IndexError if
    the position is outside the prompt, TypeError if `which` is neither text nor an integer.
    """
    run, base = _single(run), _check.base(base)
    if isinstance(which, str):
        return _position_of_token(run.token_strings, which, base)
    number = _check.integer(which, "a position")
    n_tokens = len(run.token_strings)
    index = n_tokens + number if number < 0 else number - base
    if not 0 <= index < n_tokens:
        raise IndexError(
            f"position {number} is out of range {base}..{n_tokens - 1 + base} (base={base}, {n_tokens} "
            f"tokens); negative positions reach from -{n_tokens} to -1"
        )
    return index


def heads(
    run: Run,
    key: int | str,
    query: int | str,
    base: int = 0,
    logit_diff: LogitDiff | Iterable[LogitDiff] | None = None,
    texts: bool = False,
) -> pd.DataFrame:
    """See `Run.heads`."""
    base, texts = _check.base(base), _check.flag(texts, "texts")
    needed = ("pattern", "q", "k", "v") + (("ln_final_scale",) if logit_diff is not None else ())
    require(run, needed, "heads")
    runs = _each(run)
    where = ["" if len(run) == 1 else f"prompt {i}: " for i in range(len(run))]
    places = np.array([entry(one, key, query, base, text) for one, text in zip(runs, where)])
    n_layer, n_head = run.model.config.n_layer, run.model.config.n_head
    prompt, layer, head = (index.ravel() for index in np.indices((len(run), n_layer, n_head)))
    entries = (prompt, layer, head, places[prompt, 1], places[prompt, 0])
    weight = np.stack([one.pattern[:, :, q, k] for one, (k, q) in zip(runs, places.tolist())]).ravel()
    directions = None if logit_diff is None else _directions(run, logit_diff, places[:, 1])
    found = _entry_table(run, entries, weight, base, directions, texts)
    by = [name for name in ("prompt", "contribution") if name in found]
    table: pd.DataFrame = found.sort_values(
        by, ascending=[name == "prompt" for name in by], kind="stable", ignore_index=True
    )
    table.attrs.update(_origin(run, base))
    return table


def edges(run: Run, threshold: float = 0.0, base: int = 0, texts: bool = False) -> pd.DataFrame:
    """See `Run.open_edges`."""
    texts = _check.flag(texts, "texts")
    base, threshold = _check.base(base), _check.number(threshold, "threshold", 0.0)
    parts = []
    for i, one in enumerate(_each(run)):
        *entries, weight = _open_entries(one)
        above = weight > threshold
        parts.append((np.full(above.sum(), i), *(index[above] for index in entries), weight[above]))
    *entries, weight = (np.concatenate(columns) for columns in zip(*parts))
    table = _entry_table(run, tuple(entries), weight, base, None, texts)
    table.attrs.update(_origin(run, base))
    return table


def _each(run: Run) -> list[Run]:
    return [run[i] for i in range(len(run))]


def token_id(run: Run, token: str | int) -> int:
    """The id of a token given as text or as an id of this run's model.

    Raises ValueError if the text is not exactly one token, IndexError for an id outside the vocabulary.
    """
    if isinstance(token, str):
        return run.model.to_single_token(token)
    number = _check.integer(token, "a token")
    if not 0 <= number < run.model.config.n_vocab:
        raise IndexError(f"token id {number:,} is out of range 0..{run.model.config.n_vocab - 1:,}")
    return number


def summary_html(run: Run) -> str:
    """A run for a notebook: its tokens with their positions from 0, then one line about model and edges.

    A batch shows one row per prompt. All text from the prompt is escaped and long prompts are cut.
    """
    if len(run) != 1:
        rows = [
            (str(i), str(run[i].n_tokens), _prompt_text(run[i]))
            for i in range(min(len(run), _MAX_TOKEN_ROWS))
        ]
        return html_rows(("prompt", "tokens", "text"), rows, len(run)) + f"<p>{_facts(run[0])}</p>"
    run = run[0]
    shown = run.token_strings[:_MAX_TOKEN_ROWS]
    rows = [(str(i), token_label(token), str(int(run.tokens[i]))) for i, token in enumerate(shown)]
    bos = "with" if run.prepend_bos else "without"
    facts = f"{run.n_tokens} tokens, positions from 0, {bos} a BOS token in front. {_facts(run)}"
    edges_line = _open_edges_text(run)
    return html_rows(("position", "token", "id"), rows, run.n_tokens) + f"<p>{facts}{edges_line}</p>"


# ------------------------------------------------------------------------------------- positions


def _position_of_token(tokens: Sequence[str], which: str, base: int) -> int:
    found = [i for i, token in enumerate(tokens) if token in (which, " " + which)]
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(f"{i + base} ({tokens[i]!r})" for i in found[:_MAX_LISTED])
        more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
        raise ValueError(
            f"token {which[:80]!r} is at positions {places}{more} (base={base}); give the number"
        )
    listed = ", ".join(repr(token)[:24] for token in tokens[:_MAX_LISTED])
    raise ValueError(
        f"no token {which[:80]!r} among the {len(tokens)} tokens {listed}{', ...' * (len(tokens) > 8)}"
    )


def entry(run: Run, key: int | str, query: int | str, base: int, where: str = "") -> tuple[int, int]:
    """Key and query of one prompt from 0, checked; where: begins the text of an error."""
    try:
        key_at, query_at = position(run, key, base), position(run, query, base)
    except (ValueError, IndexError) as error:
        raise type(error)(f"{where}{error}") from error
    if key_at > query_at:
        raise ValueError(
            f"{where}key position {key_at + base} comes after query position {query_at + base} "
            f"(base={base}); attention only looks back"
        )
    return key_at, query_at


def _single(run: Run) -> Run:
    if len(run) != 1:
        raise ValueError(f"this run holds {len(run)} prompts; choose one of them, for example run[0]")
    return run[0]


# ---------------------------------------------------------------------------------------- tables


def _entry_table(
    run: Run,
    entries: tuple[np.ndarray, ...],
    weight: np.ndarray,
    base: int,
    directions: Sequence[np.ndarray] | None,
    texts: bool,
) -> pd.DataFrame:
    """The common columns for attention entries given as five index arrays (prompt, layer, head, query, key);
    directions: in the residual stream, one for each prompt."""
    import pandas as pd

    prompt, layer, head, query, key = (np.asarray(index, np.int64) for index in entries)
    n_head = run.model.config.n_head
    names = np.array(
        [Head(*divmod(i, n_head)).label for i in range(run.model.config.n_layer * n_head)], object
    )
    runs = _each(run)
    tokens = np.array([token for one in runs for token in one.token_strings], object)
    start = np.cumsum([0, *(one.n_tokens for one in runs)])[prompt]
    columns = first_columns(run, prompt, None if run._index is not None else prompt, texts)
    columns |= {
        "layer": layer,
        "head_index": head,
        "label": text_column(names[layer * n_head + head]),
        "query_position": query + base,
        "key_position": key + base,
        "query_token": text_column(tokens[start + query]),
        "key_token": text_column(tokens[start + key]),
        "weight": weight,
    }
    if _recorded(run, "q", "k"):
        columns["score"], columns["gate"] = _scores(runs, prompt, layer, head, query, key)
    if _recorded(run, "v"):
        norms = [one.value_norms(None if directions is None else directions[i]) for i, one in enumerate(runs)]
        value_norm, output_norm = (np.concatenate([each[j] for each in norms], axis=-1) for j in (0, 1))
        columns["value_norm"] = value_norm[layer, head, start + key]
        columns["contribution"] = weight * output_norm[layer, head, start + key]
        if directions is not None:
            projection = np.concatenate([each[2] for each in norms if each[2] is not None], axis=-1)
            columns["logit_diff"] = (
                weight * projection[layer, head, start + key] + 0.0
            )  # so that no -0.0 is shown
    table: pd.DataFrame = pd.DataFrame(columns)
    return table


def _scores(runs: Sequence[Run], prompt: np.ndarray, *entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and gates of entries in rising order of prompts."""
    ends = np.searchsorted(prompt, np.arange(len(runs) + 1))
    spans = [slice(begin, end) for begin, end in itertools.pairwise(ends)]
    found = [one.entry_scores(*(index[span] for index in entries)) for one, span in zip(runs, spans)]
    scores, gates = (np.concatenate(parts) for parts in zip(*found))
    return scores, gates


def text_column(values: Iterable[str]) -> pd.Series:
    """A text column whose type does not depend on whether it is empty.

    Python keeps the text also where pandas would use Arrow, which refuses halves of surrogate pairs.
    """
    import pandas as pd

    dtype: Any = pd.Series([], dtype=str).dtype
    if isinstance(dtype, pd.StringDtype):
        dtype = pd.StringDtype("python", na_value=np.nan)
    column: pd.Series = pd.Series(list(values), dtype=dtype)
    return column


def first_columns(run: Run, number: np.ndarray, prompt: np.ndarray | None, texts: bool) -> dict[str, Any]:
    """The columns that say what a row is of: model, prompt unless it is None, and prompt_text if asked for.

    number: which of the run's prompts each row is of.
    """
    columns: dict[str, Any] = {"model": text_column([run.model.name] * len(number))}
    if prompt is not None:
        columns["prompt"] = prompt
    if texts:
        whole = [_whole_text(one) for one in _each(run)]
        columns["prompt_text"] = text_column(whole[i] for i in number.tolist())
    return columns


def _whole_text(run: Run) -> str:
    return "".join(run.token_strings) if run.prompt is None else run.prompt


def _open_entries(run: Run) -> tuple[np.ndarray, ...]:
    """Index arrays layer, head, query, key and the weights of all entries that are not zero."""
    if _recorded(run, "pattern"):
        entries = np.nonzero(run.pattern)
        return *entries, run.pattern[entries]
    if _recorded(run, "edges"):
        return run.edge_arrays()
    raise ValueError(f"edges need record= with 'pattern' or 'edges', this run has {', '.join(run.recorded)}")


def _directions(
    run: Run, logit_diff: LogitDiff | Iterable[LogitDiff], queries: np.ndarray
) -> list[np.ndarray]:
    """u (E,) of each prompt: adding x to the residual stream at `query` changes logit(right) - logit(wrong)
    by u.x.

    The scale of the final LayerNorm is frozen: u = (gamma d - mean(gamma d)) / scale with
    d = W_U[right] - W_U[wrong].
    """
    wanted = "a pair (right token, wrong token)"
    text = isinstance(logit_diff, str)
    given: Any = [logit_diff] if text else _check.items(logit_diff, "logit_diff", wanted)
    if len(given) == 2 and all(isinstance(token, (str, int, np.integer)) for token in given):
        given = [tuple(given)] * len(run)
    wrong = [
        pair for pair in given if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2
    ]
    if wrong:
        raise ValueError(f"logit_diff must be {wanted}, got {_check.shown(logit_diff)}")
    if len(given) != len(run):
        raise ValueError(
            f"logit_diff must be one pair, or one for each of {len(run)} prompts, got {len(given)}"
        )
    unembedding = run.model.parameter("wte.weight" if run.model.config.tied else "lm_head.weight")
    gain = run.model.parameter("ln_f.weight")
    found = []
    for one, query, pair in zip(_each(run), queries.tolist(), given):
        right, other = (token_id(run, token) for token in pair)
        direction = gain * (unembedding[right] - unembedding[other])
        found.append((direction - direction.mean()) / one.ln_final_scale[query])
    return found


def _recorded(run: Run, *names: str) -> bool:
    return set(names) <= set(run.recorded)


def require(run: Run, names: tuple[str, ...], what: str) -> None:
    """ValueError unless the run recorded these arrays, of all layers."""
    if run.stop_at_layer is not None:
        raise ValueError(f"{what} needs all layers; this run stopped before layer {run.stop_at_layer}")
    missing = [name for name in names if name not in run.recorded]
    if missing:
        raise ValueError(
            f"{what} needs {', '.join(missing)}, which this run did not record; "
            f"run the model again with record={names!r} or a set that contains it"
        )


def _origin(run: Run, base: int) -> dict[str, Any]:
    model = run.model
    return {
        "model": model.name,
        "digest": model.digest,
        "prompt": [one.prompt for one in _each(run)] if len(run) > 1 else run[0].prompt,
        "prepend_bos": bool(run.prepend_bos),
        "base": base,
    }


# ------------------------------------------------------------------------------------------ HTML


def _prompt_text(run: Run) -> str:
    text = _whole_text(run)
    return text if len(text) <= 80 else text[:77] + "..."


def _facts(run: Run) -> str:
    return (
        f"Model {escaped(run.model.name or 'without a name')}; recorded: {escaped(', '.join(run.recorded))}."
    )


def _open_edges_text(run: Run) -> str:
    if not _recorded(run, "pattern") and not _recorded(run, "edges"):
        return ""
    config = run.model.config
    possible = config.n_layer * config.n_head * run.n_tokens * (run.n_tokens + 1) // 2
    if not config.gated:
        return f" Dense attention: all {possible:,} edges are open."
    n_open = np.count_nonzero(_open_entries(run)[-1])
    return f" {n_open:,} of {possible:,} attention edges are open."
