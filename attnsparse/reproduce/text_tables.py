"""What attention edges in running text are: their kinds, what the loss rests on, and where they end.

Windows are rows of token ids of one length, as `TextData.held_out` has them. A gated model's edges are its
open gates; in a dense model every entry is one, and the weights say more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .._display import progress_bar
from .._tables import text_table
from ..model.evaluation import checked_rows
from ..recipes.text_evaluation import mean

if TYPE_CHECKING:
    from ..model.hooks import HookPoint
    from ..model.model import Model
    from ..model.run import Run
    from ..model.tokenizer import Tokenizer

KINDS = (
    "self", "previous", "2-4 back", "induction", "same token", "punctuation", "other",
)  # fmt: skip
_BATCH = 16  # windows in one pass


def kinds_of_entries(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Kind of each entry of a window, an index into KINDS (int8 [T, T], key up to the query; else -1).

    An entry is of the first kind that fits: to the token itself, the one before, the two to four before,
    "induction" (the key follows an earlier occurrence of the query's token), an earlier occurrence itself, a
    token without letter or digit.
    """
    n = len(tokens)
    query, key = np.indices((n, n))
    signs = np.array([not any(map(str.isalnum, text)) for text in tokenizer.token_strings(tokens.tolist())])
    before = np.concatenate([[-1], tokens[:-1]])  # the token before each key; the first has none
    fits = {
        "self": key == query,
        "previous": key == query - 1,
        "2-4 back": key >= query - 4,
        "induction": before[None, :] == tokens[:, None],
        "same token": tokens[None, :] == tokens[:, None],
        "punctuation": np.broadcast_to(signs, (n, n)),
        "other": np.ones((n, n), bool),
    }
    found = np.select([fits[kind] for kind in KINDS], range(len(KINDS))).astype(np.int8)
    return np.where(key <= query, found, np.int8(-1))


def edge_kinds(model: Model, windows: Any, *, progress: bool | None = None) -> pd.DataFrame:
    """What the edges of a model are, and what it costs to take those of a kind away.

    Parameters
    ----------
    model : Model
        With a tokenizer.
    windows : int array [n, T]
        Token ids of two or more windows of text.
    progress : bool, optional
        Whether to show a progress bar; by default only in terminals and notebooks.

    Returns
    -------
    pandas.DataFrame
        One row per kind. `kind`; `edges_per_token`; `edge_share` of all edges; `open_share` of the entries of
        this kind; `weight_share` of the sum of all weights; `loss_increase` (nats per predicted token) when
        the weights of the kind become 0 in all heads and nothing else is changed or renormalised, and its
        standard error over windows, `loss_increase_error`.

    Raises
    ------
    ValueError
        For windows of several lengths, or fewer than two.

    Notes
    -----
    Kinds, of which an entry has the first that fits: "self"; "previous" and "2-4 back", by distance;
    "induction", where the key follows an earlier occurrence of the query's token; "same token", that
    occurrence; "punctuation", a key without letter or digit; "other".
    """
    rows, tokenizer = _windows(model, windows), model._need_tokenizer()
    of = np.stack([kinds_of_entries(row, tokenizer) for row in rows])
    layers = range(model.config.n_layer)
    counts, weights, plain = np.zeros(len(KINDS)), np.zeros(len(KINDS)), np.zeros(len(rows))
    without = np.zeros((len(KINDS), len(rows)))
    with progress_bar(progress, -(-len(rows) // _BATCH), "kinds of edges", "batch") as bar:
        for begin in range(0, len(rows), _BATCH):
            some = slice(begin, begin + _BATCH)
            run = model.run(list(rows[some]), record=("gate", "pattern", "token_loss"))
            plain[some] = _losses(run)
            for i, window in enumerate(of[some]):
                for kind in range(len(KINDS)):
                    counts[kind] += np.count_nonzero(run[i].gate & (window == kind))
                    weights[kind] += run[i].pattern[:, :, window == kind].sum(dtype=np.float64)
            for kind in range(len(KINDS)):
                hooks = [
                    (f"blocks.{layer}.attn.hook_pattern", _without(of[some] == kind)) for layer in layers
                ]
                without[kind, some] = _losses(
                    model.run_with_hooks(list(rows[some]), hooks, record="token_loss")
                )
            if bar is not None:
                bar.update()
    entries = (
        model.config.n_layer * model.config.n_head * np.array([(of == k).sum() for k in range(len(KINDS))])
    )
    costs = [mean(losses - plain) for losses in without]
    table: pd.DataFrame = text_table(
        {
            "kind": KINDS,
            "edges_per_token": counts / rows.size,
            "edge_share": counts / max(counts.sum(), 1),
            "open_share": counts / np.maximum(entries, 1),
            "weight_share": weights / weights.sum() if weights.any() else weights,
            "loss_increase": [cost.value for cost in costs],
            "loss_increase_error": [cost.error for cost in costs],
        }
    )
    return table


def edges_by_position(model: Model, windows: Any) -> pd.DataFrame:
    """Edges of the queries at each position.

    Parameters
    ----------
    model : Model
    windows : int array [n, T]
        Token ids of two or more windows of text.

    Returns
    -------
    pandas.DataFrame
        One row per position, from 0: `position`, `edges` of all heads (mean over windows), `edges_error` (its
        standard error) and `self_edges`.

    Raises
    ------
    ValueError
        For windows of several lengths, or fewer than two.
    """
    rows = _windows(model, windows)
    edges, own = np.zeros(rows.shape), np.zeros(rows.shape)
    for begin in range(0, len(rows), _BATCH):
        run = model.run(list(rows[begin : begin + _BATCH]), record="gate")
        for i in range(len(run)):
            gate = run[i].gate
            edges[begin + i] = gate.sum((0, 1, 3))
            own[begin + i] = np.diagonal(gate, axis1=2, axis2=3).sum((0, 1))
    found = [mean(column) for column in edges.T]
    table: pd.DataFrame = text_table(
        {
            "position": np.arange(rows.shape[1]),
            "edges": [one.value for one in found],
            "edges_error": [one.error for one in found],
            "self_edges": own.mean(0),
        }
    )
    return table


def _windows(model: Model, windows: Any) -> np.ndarray:
    """int32 [n, T], n >= 2."""
    rows, _ = checked_rows(model.config, windows, None, ("windows", "weights"))
    lengths = {len(row) for row in rows}
    if len(rows) < 2 or len(lengths) > 1:
        raise ValueError(
            f"windows must be two or more of one length, got {len(rows)} of {sorted(lengths)} tokens"
        )
    return np.stack(rows)


def _losses(run: Run) -> np.ndarray:
    """Mean loss of each window, float64 [n]."""
    return np.array([run[i].token_loss.mean(dtype=np.float64) for i in range(len(run))])


def _without(removed: np.ndarray) -> Callable[[np.ndarray, HookPoint], np.ndarray]:
    """A function that takes entries (bool [n, T, T]) out of a pattern of the same windows."""

    def changed(pattern: np.ndarray, hook: HookPoint) -> np.ndarray:
        return np.where(removed[hook.prompts.start : hook.prompts.stop, None], 0, pattern).astype(
            pattern.dtype
        )

    return changed
