"""Direct attribution: what each part of a model adds to a logit or a logit difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ... import _check
from ..._tables import text_column, text_table
from ...items import Head
from .. import tables
from .rows import Rows, chosen_rows, origin

if TYPE_CHECKING:
    import pandas as pd

    from ..run import Run

# arrays of a run that each table needs beyond ln_final_scale and ln_final_normalized
NEEDED = {
    "layer": ("embed", "pos_embed", "z", "pattern", "mlp_out"),
    "component": ("embed", "pos_embed", "z", "pattern", "mlp_out"),
    "head": ("embed", "pos_embed", "z", "pattern", "mlp_out"),
    "position": ("embed", "pos_embed", "pattern", "v", "mlp_out"),
    "neuron": ("embed", "pos_embed", "z", "pattern", "mlp_post"),
}
ALWAYS = ("ln_final_scale", "ln_final_normalized")
_BEFORE, _AFTER = -1, 1 << 20  # layers of what is before all layers and after all of them


class _Piece(NamedTuple):
    """Contributions of one kind of component: at each row, to be laid out in the order of layers."""

    component: str
    values: np.ndarray  # (n, k)
    layer: np.ndarray  # (k)
    number: np.ndarray | None = None  # (k): of the head, key or neuron


def attribute(
    run: Run,
    right: str | int | Sequence[str | int],
    wrong: str | int | Sequence[str | int] | None = None,
    by: str = "component",
    *,
    position: int | str | None = -1,
    base: int = 0,
    texts: bool = False,
) -> pd.DataFrame:
    """What each part of the model adds to logit(right) - logit(wrong), directly.

    Direct logit attribution: every part writes a vector into the residual stream; with the scale of the final
    LayerNorm held at its value in this run, the logit difference is linear in what was written, so that the
    rows of a prompt add up to it. Effects through later layers are not part of it. Needs a run with
    ``record="attribution"``.

    Parameters
    ----------
    right : str or int, or a sequence of these
        A single token as text or id; or one for each prompt.
    wrong : str or int, or a sequence of these, optional
        The same; None: the logit of `right` alone.
    by : {"component", "layer", "head", "position", "neuron"}, default "component"
        What a row is. "component": embeddings, the heads of each layer together, each MLP, each kind of bias.
        "layer": all that a layer writes. "head": as "component", with a row for each head. "position": as
        "component", with the heads of all layers together, split by the position that they read from.
        "neuron": as "component", with a row for each neuron of the MLPs.
    position : int or str, optional
        Where the logits are read, counted from `base`, or a token as text; by default the last position of
        each prompt. None: all positions.
    base : int, default 0
        Number of the first position, 0 or 1.
    texts : bool, default False
        Also give each prompt as text, in the column prompt_text.

    Returns
    -------
    pandas.DataFrame
        One row per prompt, position and part, in the order of the model. Columns: model, prompt (number
        in the batch), prompt_text, position, component, layer (missing where a part belongs to no layer),
        with `by`: head_index and label ("L9H6"), key_position and key_token, or neuron; contribution.
        Components: embed, pos_embed; attn (or head, position); value_bias, what b_V adds through all heads of
        a layer; attn_bias, b_O; mlp, with its bias b_out (or neuron, and mlp_bias by itself); ln_final_bias,
        unembed_bias; by="layer" has embed, layer and bias. In a run with interventions or replaced MLPs, rest
        is what these parts do not explain, such as a patched residual stream.

    Raises
    ------
    ValueError
        If an array was not recorded, a text is not one token, or the number of tokens is not that of prompts.
    IndexError
        For a token or position out of range.
    RuntimeError
        If the weights changed after the run.

    Notes
    -----
    TransformerLens folds b_V into b_O when it processes weights, so that heads there have no value bias (nor
    what the LayerNorm's bias adds to it through W_V, which here remains with the heads). A gated pattern does
    not sum to 1, b_V counts as much as it does, and cannot be folded: here heads are without it and it has
    rows of its own. `ActivationCache.stack_head_results` leaves it in the heads.
    """
    _check.choice(by, "by", NEEDED)
    tables.require(run, (*NEEDED[by], *ALWAYS), "attribute")
    rows = chosen_rows(run, position, base)
    tokens = _tokens(run, right, "right", rows)
    against = None if wrong is None else _tokens(run, wrong, "wrong", rows)
    found = run._core.attribute(rows.row, tokens, against, _parts(by))
    return _table(run, rows, _pieces(run, rows, found, by), found["value"], by, base, texts)


def _tokens(run: Run, given: str | int | Sequence[str | int], name: str, rows: Rows) -> np.ndarray:
    """The token of each row: the same everywhere, or one for each prompt."""
    if isinstance(given, (str, int, np.integer)):
        return np.full(len(rows.row), tables.token_id(run, given), np.int32)
    items = _check.items(given, name, "a token, or one for each prompt")
    if len(items) != len(run):
        raise ValueError(f"{name} must be one token or one for each of {len(run)} prompts, got {len(items)}")
    ids = np.array([tables.token_id(run, item) for item in items], np.int32)
    found: np.ndarray = ids[rows.number]
    return found


def _parts(by: str) -> tuple[str, ...]:
    """Names of the core's parts."""
    heads = {"position": "key"}.get(by, "head")
    mlps = ("neuron", "mlp_bias") if by == "neuron" else ("mlp",)
    return ("value", "embed", "pos_embed", heads, "value_bias", "attn_bias", *mlps, "ln_bias", "unembed_bias")


def _pieces(run: Run, rows: Rows, found: dict[str, np.ndarray], by: str) -> list[_Piece]:
    c = run.model.config
    layers, before, after = np.arange(c.n_layer), np.array([_BEFORE]), np.array([_AFTER])
    ends = {name: found[name][:, None] for name in ("embed", "pos_embed", "ln_bias", "unembed_bias")}
    if by == "layer":
        attention = found["head"].sum(axis=-1) + found["value_bias"] + found["attn_bias"]
        return [
            _Piece("embed", ends["embed"] + ends["pos_embed"], before),
            _Piece("layer", attention + found["mlp"], layers),
            _Piece("bias", ends["ln_bias"] + ends["unembed_bias"], after),
        ]
    pieces = [_Piece("embed", ends["embed"], before), _Piece("pos_embed", ends["pos_embed"], before)]
    if by == "head":
        per_head = found["head"].reshape(len(found["head"]), -1)
        numbers = np.tile(np.arange(c.n_head), c.n_layer)
        pieces.append(_Piece("head", per_head, np.repeat(layers, c.n_head), numbers))
    elif by == "position":
        keys = np.arange(rows.position.max() + 1)  # the core has columns for the longest prompt of the batch
        pieces.append(_Piece("position", found["key"][:, keys], np.full(len(keys), _BEFORE), keys))
    else:
        pieces.append(_Piece("attn", found["head"].sum(axis=-1), layers))
    if c.bias:
        pieces += [_Piece(name, found[name], layers) for name in ("value_bias", "attn_bias")]
    if by == "neuron":
        neurons = found["neuron"].reshape(len(found["neuron"]), -1)
        numbers = np.tile(np.arange(c.d_mlp), c.n_layer)
        pieces.append(_Piece("neuron", neurons, np.repeat(layers, c.d_mlp), numbers))
    name = "mlp_bias" if by == "neuron" else "mlp"
    if c.bias or by != "neuron":
        pieces.append(_Piece(name, found[name], layers))
    if c.bias:
        pieces.append(_Piece("ln_final_bias", ends["ln_bias"], after))
    if c.unembed_bias:
        pieces.append(_Piece("unembed_bias", ends["unembed_bias"], after))
    return pieces


def _table(
    run: Run, rows: Rows, pieces: list[_Piece], value: np.ndarray, by: str, base: int, texts: bool
) -> pd.DataFrame:
    import pandas as pd

    if run._altered:
        explained = np.sum([piece.values.sum(axis=1) for piece in pieces], axis=0)
        pieces = [*pieces, _Piece("rest", (value - explained)[:, None], np.array([_AFTER]))]
    layer = np.concatenate([piece.layer for piece in pieces])
    order = np.argsort(layer, kind="stable")
    layer = layer[order]
    number = np.concatenate([np.full(len(p.layer), -1) if p.number is None else p.number for p in pieces])[
        order
    ]
    names = np.concatenate([[piece.component] * len(piece.layer) for piece in pieces])[order]
    values = np.concatenate([piece.values for piece in pieces], axis=1)[:, order]
    n, k = values.shape
    number, repeated = np.tile(number, n), np.repeat(np.arange(n), k)
    inside = np.ones(n * k, bool)
    if by == "position":  # keys after the query, of shorter prompts too
        inside = number <= rows.position[repeated]
    outside = (layer == _BEFORE) | (layer == _AFTER)
    columns = tables.first_columns(
        run, rows.number[repeated], rows.prompt[repeated], _check.flag(texts, "texts")
    )
    columns |= {
        "position": rows.position[repeated] + base,
        "component": text_column(np.tile(names, n)),
        "layer": pd.arrays.IntegerArray(np.tile(np.where(outside, 0, layer), n), np.tile(outside, n)),
    }
    of_one = number >= 0
    numbers = pd.arrays.IntegerArray(np.where(of_one, number, 0) + base * (by == "position"), ~of_one)
    if by == "head":
        columns["head_index"] = numbers
        heads = zip(np.tile(layer, n).tolist(), number.tolist(), strict=True)
        columns["label"] = text_column([Head(*head).label if head[1] >= 0 else "" for head in heads])
    elif by == "position":
        columns["key_position"] = numbers
        columns["key_token"] = text_column(_key_tokens(run, rows, number, repeated))
    elif by == "neuron":
        columns["neuron"] = numbers
    columns["contribution"] = values.ravel() + 0.0  # so that no -0.0 is shown
    table: pd.DataFrame = text_table(columns)[inside].reset_index(drop=True)
    table.attrs.update(origin(run, base))
    return table


def _key_tokens(run: Run, rows: Rows, number: np.ndarray, repeated: np.ndarray) -> np.ndarray:
    """The token at each key; an empty text for parts that belong to no key."""
    prompts = [one.token_strings for one in run]
    longest = max(map(len, prompts))
    shown = np.array([[*tokens, *[""] * (longest - len(tokens)), ""] for tokens in prompts], object)
    found: np.ndarray = shown[rows.number[repeated], number]  # -1: the empty text at the end
    return found
