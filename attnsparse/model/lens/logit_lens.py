"""What the residual stream says about the next token: at the end, and after each layer (logit lens)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ... import _check
from ..._engine import core_for
from ..._tables import text_column, text_table
from .. import tables
from ..tokenizer import token_texts
from .rows import Rows, chosen_rows, origin, row_tokens

if TYPE_CHECKING:
    import pandas as pd

    from ..run import Run

SCALES = ("own", "held")


def logit_lens(
    run: Run,
    n: int = 1,
    tokens: str | int | Sequence[str | int] | None = None,
    *,
    position: int | str | None = None,
    incl_mid: bool = False,
    scale: str = "own",
    base: int = 0,
    texts: bool = False,
) -> pd.DataFrame:
    """The next tokens that the residual stream would predict before each layer and at the end.

    Each point goes through the final LayerNorm and the unembedding. Needs a run with ``record="attribution"``
    (the residual stream), and "resid_mid" for `incl_mid`.

    Parameters
    ----------
    n : int, default 1
        Number of most likely tokens at each point; not used with `tokens`.
    tokens : str or int, or a sequence of these, optional
        Single tokens whose logits are wanted, in place of the most likely ones.
    position : int or str, optional
        Counted from `base`, or a token as text; None: all positions.
    incl_mid : bool, default False
        Also between the attention and the MLP of each layer.
    scale : {"own", "held"}, default "own"
        The final LayerNorm divides by the standard deviation of the residual stream at that point, or by that
        at the end, as in `attribute`, so that logits of points can be subtracted.
    base : int, default 0
        Number of the first position, 0 or 1.
    texts : bool, default False
        Also give each prompt as text, in the column prompt_text.

    Returns
    -------
    pandas.DataFrame
        One row per prompt, point, position and token. Columns: model, prompt (number in the batch),
        prompt_text, layer (number of layers passed; at the end, of all of them), label ("0_pre", "0_mid",
        ..., "final_post", as in TransformerLens), position, position_token, place (0: the most likely),
        token, token_id, logit, probability.

    Raises
    ------
    ValueError
        If an array was not recorded, a text is not one token, or `n` exceeds the vocabulary.
    IndexError
        For a token or position out of range.
    RuntimeError
        If the weights changed after the run.
    """
    _check.choice(scale, "scale", SCALES)
    needed = ("resid_pre", *(("resid_mid",) if _check.flag(incl_mid, "incl_mid") else ()))
    tables.require(run, (*needed, *(("ln_final_scale",) if scale == "held" else ())), "logit_lens")
    rows = chosen_rows(run, position, base)
    last = 2 * run.model.config.n_layer
    points = np.arange(0, last + 1, 1 if incl_mid else 2)
    at = Rows(*(np.tile(column, len(points)) for column in rows))
    point = np.repeat(points, len(rows.row))
    asked = _asked(run, tokens, len(point))
    n = _check.integer(n, "n", 1, run.model.config.n_vocab) if tokens is None else 0
    read = run._core.lens(point, at.row, scale == "held", n, asked)
    names = np.array([_label(int(p), last) for p in points], object)
    labels = np.repeat(names, len(rows.row))
    return _table(run, at, asked, read, base, {"layer": (point + 1) // 2, "label": labels}, texts)


def top(
    run: Run,
    n: int = 5,
    tokens: str | int | Sequence[str | int] | None = None,
    *,
    position: int | str | None = None,
    base: int = 0,
    texts: bool = False,
) -> pd.DataFrame:
    """The most likely next tokens at each position, or chosen ones, with their probabilities.

    Parameters
    ----------
    n : int, default 5
        Number of tokens at each position; not used with `tokens`.
    tokens : str or int, or a sequence of these, optional
        Single tokens whose places and probabilities are wanted, in place of the most likely ones.
    position : int or str, optional
        Counted from `base`, or a token as text. None: all positions that the run has logits of.
    base : int, default 0
        Number of the first position, 0 or 1.
    texts : bool, default False
        Also give each prompt as text, in the column prompt_text.

    Returns
    -------
    pandas.DataFrame
        One row per prompt, position and token. Columns: model, prompt (number in the batch), prompt_text,
        position, position_token (the token there), place (0: the most likely), token, token_id, logit,
        probability.

    Raises
    ------
    ValueError
        If the run computed no logits, if `n` exceeds the vocabulary, if a text is not one token, or for
        another position than the last in a run with logits="last".
    IndexError
        For a token or position out of range.
    """
    n = _check.integer(n, "n", 1, run.model.config.n_vocab) if tokens is None else 0
    tables.require(run, (), "top")
    if "logits" not in run.recorded:
        raise ValueError("top needs logits, which this run did not compute; run with logits='all' or 'last'")
    only_last = run._logits == "last"
    rows = chosen_rows(run, -1 if only_last and position is None else position, base)
    if only_last and (rows.position + 1 != run._batch.lengths[rows.prompt]).any():
        raise ValueError("this run has logits of last positions only; run with logits='all'")
    packed = run._core.array("logits")[rows.prompt if only_last else rows.row]
    asked = _asked(run, tokens, len(packed))
    read = core_for(packed.dtype).lens_read(packed, n, asked)
    return _table(run, rows, asked, read, base, {}, texts)


def _label(point: int, last: int) -> str:
    return "final_post" if point == last else f"{point // 2}_{'mid' if point % 2 else 'pre'}"


def _asked(run: Run, tokens: str | int | Sequence[str | int] | None, n_rows: int) -> np.ndarray:
    """The same tokens for each row, int32 [rows, tokens]."""
    if tokens is None:
        return np.empty((n_rows, 0), np.int32)
    if isinstance(tokens, (str, int, np.integer)):
        items = [tokens]
    else:
        items = _check.items(tokens, "tokens", "a token or a sequence of tokens")
    if not items:
        raise ValueError("tokens must name at least one token")
    ids = [tables.token_id(run, item) for item in items]
    return np.tile(np.array(ids, np.int32), (n_rows, 1))


def _table(
    run: Run,
    rows: Rows,
    asked: np.ndarray,
    read: tuple[np.ndarray, ...],
    base: int,
    first: dict[str, np.ndarray],
    texts: bool,
) -> pd.DataFrame:

    token, logit, probability, *of_asked, place = read
    if asked.shape[1]:
        token, (logit, probability) = asked, of_asked
    else:
        place = np.tile(np.arange(token.shape[1]), (len(token), 1))
    each = np.repeat(np.arange(len(token)), token.shape[1])
    shown = np.array(row_tokens(run, rows), object)
    columns = tables.first_columns(run, rows.number[each], rows.prompt[each], _check.flag(texts, "texts"))
    for name, values in first.items():
        columns[name] = text_column(values[each]) if name == "label" else values[each]
    columns |= {
        "position": rows.position[each] + base,
        "position_token": text_column(shown[each]),
        "place": place.ravel(),
        "token": text_column(_names(run, token.ravel())),
        "token_id": token.ravel().astype(np.int64),
        "logit": logit.ravel(),
        "probability": probability.ravel(),
    }
    table: pd.DataFrame = text_table(columns)
    table.attrs.update(origin(run, base))
    return table


def _names(run: Run, ids: np.ndarray) -> list[str]:
    """Tokens as displayed; each is asked for once."""
    known, index = np.unique(ids, return_inverse=True)
    names = token_texts(run.model.tokenizer, known.tolist())
    return [names[i] for i in index.ravel().tolist()]
