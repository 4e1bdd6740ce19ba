"""TransformerLens's stacks of the residual stream and their logits, for `ActivationCache`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import _check
from ..._engine import core_for
from ...items import Head
from .. import tables

if TYPE_CHECKING:
    from ..transformer_lens import ActivationCache

MODES = ("all", "mlp", "attn")
Slice = int | slice | Sequence[int] | np.ndarray | None


def accumulated_resid(
    cache: ActivationCache,
    layer: int | None = None,
    incl_mid: bool = False,
    apply_ln: bool = False,
    pos_slice: Slice = None,
    mlp_input: bool = False,
    return_labels: bool = False,
) -> Any:
    """The residual stream before each layer, one upon the other: what a logit lens reads.

    Parameters
    ----------
    layer : int, optional
        The last layer before which it is taken; None or -1: all, and the stream at the end.
    incl_mid : bool, default False
        Also between attention and MLP.
    apply_ln : bool, default False
        Normalise as in `apply_ln_to_stack`: at the end each by its own statistics, before a layer all by
        those of its LayerNorm in this run.
    pos_slice : int, slice, (start, stop[, step]) or sequence of int, optional
        Positions to keep; an integer leaves out their axis.
    mlp_input : bool, default False
        Up to the input of the MLP of `layer`.
    return_labels : bool, default False
        Return labels too.

    Returns
    -------
    stack : numpy.ndarray
        [layers, batch, pos, d_model], without the axes that the cache or `pos_slice` leaves out.
    labels : list of str
        "0_pre", "0_mid", ..., "final_post"; only if they are asked for.
    """
    last = _last_layer(cache, layer)
    parts, labels = [], []
    for at in range(last + 1):
        if at == cache.run.model.config.n_layer:
            parts.append(cache["resid_post", at - 1])
            labels.append("final_post")
            continue
        parts.append(cache["resid_pre", at])
        labels.append(f"{at}_pre")
        if (incl_mid and at < last) or (mlp_input and at == last):
            parts.append(cache["resid_mid", at])
            labels.append(f"{at}_mid")
    stack = _stacked(parts, pos_slice)
    if apply_ln:
        at_end = last == cache.run.model.config.n_layer
        stack = apply_ln_to_stack(cache, stack, last, mlp_input, pos_slice, recompute_ln=at_end)
    return (stack, labels) if return_labels else stack


def decompose_resid(
    cache: ActivationCache,
    layer: int | None = None,
    mlp_input: bool = False,
    mode: str = "all",
    apply_ln: bool = False,
    pos_slice: Slice = None,
    incl_embeds: bool = True,
    return_labels: bool = False,
) -> Any:
    """What embeddings, attention and MLPs wrote into the residual stream before a layer.

    Parameters
    ----------
    layer : int, optional
        The layer before which it is taken; None or -1: at the end.
    mlp_input : bool, default False
        Before the MLP of `layer`: with its attention.
    mode : {"all", "mlp", "attn"}, default "all"
        Outputs of both, of MLPs, or of attention.
    apply_ln : bool, default False
        Normalise as in `apply_ln_to_stack`.
    pos_slice : int, slice, (start, stop[, step]) or sequence of int, optional
        Positions to keep; an integer leaves out their axis.
    incl_embeds : bool, default True
        With the embeddings.
    return_labels : bool, default False
        Return labels too.

    Returns
    -------
    stack : numpy.ndarray
        [parts, batch, pos, d_model], without the axes that the cache or `pos_slice` leaves out; in mode "all"
        with the embeddings it adds up to the residual stream.
    labels : list of str
        "embed", "pos_embed", "0_attn_out", "0_mlp_out", ...; only if they are asked for.
    """
    last = _last_layer(cache, layer)
    _check.choice(mode, "mode", MODES)
    names = ["hook_embed", "hook_pos_embed"] if incl_embeds else []
    labels = ["embed", "pos_embed"] if incl_embeds else []
    kinds = [kind for kind in ("attn", "mlp") if mode in ("all", kind)]
    places = [(at, kind) for at in range(last) for kind in kinds]
    if mlp_input and "attn" in kinds:
        places.append((last, "attn"))
    parts = [cache[name] for name in names] + [cache[f"{kind}_out", at] for at, kind in places]
    if not parts:
        raise ValueError("nothing is written before this layer; raise layer or include the embeddings")
    stack = _stacked(parts, pos_slice)
    labels += [f"{at}_{kind}_out" for at, kind in places]
    if apply_ln:
        stack = apply_ln_to_stack(cache, stack, last, mlp_input, pos_slice)
    return (stack, labels) if return_labels else stack


def stack_head_results(
    cache: ActivationCache,
    layer: int = -1,
    return_labels: bool = False,
    incl_remainder: bool = False,
    pos_slice: Slice = None,
    apply_ln: bool = False,
) -> Any:
    """What each head wrote into the residual stream before a layer, its value bias included.

    Parameters
    ----------
    layer : int, default -1
        The layer before which it is taken; -1: at the end.
    return_labels : bool, default False
        Return labels too.
    incl_remainder : bool, default False
        With what the heads leave of the residual stream there as the last entry.
    pos_slice : int, slice, (start, stop[, step]) or sequence of int, optional
        Positions to keep; an integer leaves out their axis.
    apply_ln : bool, default False
        Normalise as in `apply_ln_to_stack`.

    Returns
    -------
    stack : numpy.ndarray
        [heads, batch, pos, d_model], without the axes that the cache or `pos_slice` leaves out.
    labels : list of str
        "L0H0", "L0H1", ..., "remainder"; only if they are asked for.
    """
    last = _last_layer(cache, layer)
    if last == 0:
        raise ValueError("there are no heads before layer 0")
    n_head = cache.run.model.config.n_head
    labels = [Head(at, head).label for at in range(last) for head in range(n_head)]
    results = [cache["result", at] for at in range(last)]
    parts = [array[..., head, :] for array in results for head in range(n_head)]
    if incl_remainder:
        after: np.ndarray = cache["resid_post", last - 1]
        for array in results:
            after = after - array.sum(axis=-2)
        parts.append(after)
        labels.append("remainder")
    stack = _stacked(parts, pos_slice)
    if apply_ln:
        stack = apply_ln_to_stack(cache, stack, last, pos_slice=pos_slice)
    return (stack, labels) if return_labels else stack


def apply_ln_to_stack(
    cache: ActivationCache,
    residual_stack: np.ndarray,
    layer: int | None = None,
    mlp_input: bool = False,
    pos_slice: Slice = None,
    batch_slice: Slice = None,
    has_batch_dim: bool = True,
    recompute_ln: bool = False,
) -> np.ndarray:
    """``(x - mean) / scale`` of each part of a stack, with the scale of a LayerNorm in this run.

    Weight and bias of the LayerNorm are left out, as where TransformerLens folds them into the next weights;
    parts of the residual stream remain parts of its normalised form.

    Parameters
    ----------
    residual_stack : array of float [parts, batch, pos, d_model]
        With the positions of `pos_slice`, without the axes that the cache leaves out.
    layer : int, optional
        Whose LayerNorm; None or -1: the final one.
    mlp_input : bool, default False
        The one before the MLP, not before the attention.
    pos_slice : int, slice, (start, stop[, step]) or sequence of int, optional
        Positions that the stack has; an integer: it has no axis of them.
    batch_slice : int, slice, (start, stop[, step]) or sequence of int, optional
        Prompts to keep, of the stack and of the scale.
    has_batch_dim : bool, default True
        Whether the stack has a batch axis; not if the cache has none.
    recompute_ln : bool, default False
        For the final LayerNorm: divide each row by its own standard deviation.

    Returns
    -------
    numpy.ndarray
        A new array like `residual_stack` after `batch_slice`.

    Raises
    ------
    ValueError
        If the stack does not fit the scale.
    """
    model = cache.run.model
    last = _last_layer(cache, layer)
    stack, scale = _with_scale(cache, residual_stack, last, mlp_input, pos_slice, batch_slice, has_batch_dim)
    own = recompute_ln and last == model.config.n_layer
    rows = stack.reshape(len(stack), -1, stack.shape[-1])
    core = core_for(model.dtype)
    flat = core.lens_normalize(rows, None if own else scale.ravel(), model.config.ln_eps)
    found: np.ndarray = flat.reshape(stack.shape)
    return found


def logit_attrs(
    cache: ActivationCache,
    residual_stack: np.ndarray,
    tokens: Any,
    incorrect_tokens: Any = None,
    pos_slice: Slice = None,
    batch_slice: Slice = None,
    has_batch_dim: bool = True,
) -> np.ndarray:
    """What each part of a stack adds to the logit of a token, or to a logit difference.

    The final LayerNorm, its weight included, with its scale held at its value in this run. `Run.attribute`
    does the same without a stack, and has the biases.

    Parameters
    ----------
    residual_stack : array of float [parts, batch, pos, d_model]
        As for `apply_ln_to_stack`, before any LayerNorm.
    tokens : str, int, or array of int [batch] or [batch, pos]
        The token, or one for each prompt, or for each position.
    incorrect_tokens : like `tokens`, optional
        Tokens whose logits are subtracted.
    pos_slice, batch_slice, has_batch_dim
        As for `apply_ln_to_stack`.

    Returns
    -------
    numpy.ndarray
        float64 [parts, batch, pos], without the axes that the stack does not have.

    Raises
    ------
    ValueError
        If shapes do not fit each other, or a text is not one token.
    IndexError
        For a token out of range.
    """
    model = cache.run.model
    last = model.config.n_layer
    stack, scale = _with_scale(cache, residual_stack, last, False, pos_slice, batch_slice, has_batch_dim)
    right = _tokens(cache, tokens, scale.shape, "tokens")
    wrong = (
        None
        if incorrect_tokens is None
        else _tokens(cache, incorrect_tokens, scale.shape, "incorrect_tokens")
    )
    rows = stack.reshape(len(stack), -1, stack.shape[-1])
    found = model._core.lens_project(rows, scale.ravel(), right, wrong)
    return found.reshape(stack.shape[:-1])


def _last_layer(cache: ActivationCache, layer: int | None) -> int:
    n_layer = cache.run.model.config.n_layer
    return n_layer if layer is None or layer == -1 else _check.integer(layer, "layer", 0, n_layer)


def _sliced(array: np.ndarray, which: Slice, axis: int) -> np.ndarray:
    """TransformerLens's slices: nothing, a position, a slice or its (start, stop[, step]), or positions."""
    if which is None:
        return array
    if isinstance(which, tuple):
        which = slice(*which)
    if not isinstance(which, (slice, int, np.integer)):
        which = _check.array(which, "a slice")
    index: list[Any] = [slice(None)] * array.ndim
    index[axis] = which
    found: np.ndarray = array[tuple(index)]
    return found


def _stacked(parts: Sequence[np.ndarray], pos_slice: Slice) -> np.ndarray:
    return np.stack([_sliced(part, pos_slice, -2) for part in parts])


def _with_scale(
    cache: ActivationCache,
    residual_stack: np.ndarray,
    layer: int,
    mlp_input: bool,
    pos_slice: Slice,
    batch_slice: Slice,
    has_batch_dim: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The stack as the core takes it, and the scale of each of its rows, [batch, pos]."""
    model = cache.run.model
    at_end = layer == model.config.n_layer
    scale = cache["ln_final.hook_scale"] if at_end else cache["scale", layer, "ln2" if mlp_input else "ln1"]
    stack = _check.reals(residual_stack, "residual_stack", model.dtype)
    scale = _sliced(scale, pos_slice, -2)[..., 0]
    if cache.has_batch_dim and has_batch_dim:
        scale = _sliced(scale, batch_slice, 0)
        stack = stack if batch_slice is None or stack.ndim < 2 else _sliced(stack, batch_slice, 1)
    if stack.ndim < 2 or stack.shape[1:] != (*scale.shape, model.config.d_model):
        wanted = ("parts", *scale.shape, model.config.d_model)
        raise ValueError(f"residual_stack must have shape ({', '.join(map(str, wanted))}), got {stack.shape}")
    return np.ascontiguousarray(stack), np.ascontiguousarray(scale)


def _tokens(cache: ActivationCache, given: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The token of each row of a stack."""
    if isinstance(given, str):
        given = tables.token_id(cache.run, given)
    ids = _check.array(given, name)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} must be a single token, or integers, got {ids.dtype}")
    if ids.ndim == 1 and len(shape) == 2:
        ids = ids[:, None]
    try:
        ids = np.broadcast_to(ids, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {np.shape(given)}, the stack has rows {shape}") from None
    if ids.size and (ids.min() < 0 or ids.max() >= cache.run.model.config.n_vocab):
        raise IndexError(f"{name} must be in 0..{cache.run.model.config.n_vocab - 1}")
    return np.ascontiguousarray(ids, np.int32).ravel()
