"""run_with_hooks: Python functions that see activations while the model runs, and may replace them.

The core shows an activation where it computes it, under TransformerLens's hook names, and continues with
what the function makes of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import _check
from .._core_types import Functions
from .batch import as_batch
from .interventions import Ablate, Patch, compile_changes
from .run import DEFAULT_MAX_BYTES, Freeze, Run, compute_run
from .transformer_lens import full_name, hook_names

if TYPE_CHECKING:
    from .model import Model

# In the order of `asp_place` in csrc/asp.h; those of a block without its number.
PLACES = (
    "hook_embed", "hook_pos_embed", "hook_resid_pre", "ln1.hook_scale", "ln1.hook_normalized", "attn.hook_q",
    "attn.hook_k", "attn.hook_v", "attn.hook_attn_scores", "attn.hook_sparse_mask", "attn.hook_pattern",
    "attn.hook_z", "attn.hook_result", "hook_attn_out", "hook_resid_mid", "ln2.hook_scale",
    "ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out", "hook_resid_post",
    "ln_final.hook_scale", "ln_final.hook_normalized",
)  # fmt: skip

SQUARES = ("attn.hook_attn_scores", "attn.hook_sparse_mask", "attn.hook_pattern")

# Names of TransformerLens that have no place here, and what to use.
_ABSENT = {
    "attn.hook_rot_q": "no query is rotated in GPT-2; use attn.hook_q",
    "attn.hook_rot_k": "no key is rotated in GPT-2; use attn.hook_k",
    "hook_attn_in": "all heads read one input; use ln1.hook_normalized, or circuits.path_patch",
    "hook_q_input": "q, k and v read one input; use attn.hook_q, or circuits.path_patch",
    "hook_k_input": "q, k and v read one input; use attn.hook_k, or circuits.path_patch",
    "hook_v_input": "q, k and v read one input; use attn.hook_v, or circuits.path_patch",
    "hook_mlp_in": "the MLP reads the residual stream; use ln2.hook_normalized",
}

Function: TypeAlias = "Callable[[np.ndarray, HookPoint], Any]"
HookName: TypeAlias = "str | tuple[Any, ...] | Callable[[str], bool]"
Hooks: TypeAlias = "Iterable[tuple[HookName, Function]] | Mapping[Any, Function]"


class HookPoint:
    """Where a function of `Model.run_with_hooks` is called.

    Attributes
    ----------
    name : str
        The hook, such as "blocks.5.attn.hook_z".
    prompts : range
        Numbers of the prompts whose activations the function sees, in the order of its first axis; of
        `Model.generate` those of the texts.
    positions : range
        Positions that the function sees: all of the prompt, or that of a new token.
    """

    __slots__ = ("name", "positions", "prompts")

    def __init__(self, name: str, prompts: range, positions: range) -> None:
        self.name = name  #: the hook
        self.prompts = prompts  #: numbers of the prompts
        self.positions = positions  #: those that the function sees

    def layer(self) -> int:
        """The layer of this hook.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            For a hook outside the blocks.
        """
        if not self.name.startswith("blocks."):
            raise ValueError(f"{self.name} belongs to no layer")
        return int(self.name.split(".")[1])

    def __repr__(self) -> str:
        prompts, positions = self.prompts, self.positions
        return (
            f"HookPoint({self.name!r}, prompts {prompts.start}..{prompts.stop - 1}, "
            f"positions {positions.start}..{positions.stop - 1})"
        )


def run_with_hooks(
    self: Model,
    prompts: Any,
    hooks: Hooks | None = None,
    record: str | Sequence[str] = "attention",
    *,
    fwd_hooks: Hooks | None = None,
    logits: str = "all",
    prepend_bos: bool = False,
    edge_threshold: float = 0.0,
    ablate: Ablate | None = None,
    patch: Patch | None = None,
    freeze: Freeze | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
) -> Run:
    """One forward pass in which functions see activations and may replace them.

    Parameters
    ----------
    prompts : str, sequence of int, or a list of these
        As for `run`.
    hooks : sequence of (name, function), or mapping of name to function
        A name is one of `run_with_cache`, such as "blocks.5.attn.hook_z", ("z", 5), or a filter: a function
        of names that is true for those wanted. ``function(value, hook)`` gets an array of its own, which it
        may change and keep, and a `HookPoint`. It returns None, or an array of the same shape that replaces
        the activation; a change in place counts as well. Functions at one name are called in their order.
    record : str or sequence of str, default "attention"
        As for `run`. Recorded arrays are those of the changed run.
    fwd_hooks : sequence of (name, function), optional
        TransformerLens's name of `hooks`; give one of the two.
    logits, prepend_bos, edge_threshold, ablate, patch, freeze, max_bytes, threads
        As for `run`. At one place, functions come after `ablate`, `patch` and `freeze`; only ablated and
        patched edges stay so, whatever a function makes of the pattern.

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        For an unknown hook, a filter that matches none, an array of another shape, values that are not
        finite, weights of keys after their query, and a LayerNorm scale that is not above 0.
    TypeError
        For what is no function, and for values that are not real numbers.
    Exception
        What a function raises ends the run and is raised as it is.

    Notes
    -----
    Arrays are [batch, pos, ...] as in `run_with_cache`: q, k, v, z [batch, pos, head, D], scores, patterns
    and the mask [batch, head, query, key]. Prompts of one length come in one call; otherwise the function is
    called once for each prompt, in their order, with a batch of 1, and ``hook.prompts`` says which one it is.

    What is computed later follows from the new values: a changed q changes scores, gates and pattern; changed
    scores (-inf at later keys) go through the gate and the softmax; a changed mask closes or opens entries of
    the pattern, also in a dense model; a changed pattern is used as it is, without gate and without
    renormalisation. Changed heads' results replace the output of attention by their sum and the bias;
    a changed scale divides x - mean. "hook_resid_post" of a layer and "hook_resid_pre" of the next one are
    the same array, seen twice.

    Functions that change nothing leave every bit of the run as it is. Each call takes the GIL and copies the
    activation to the function and back. Scores, mask and pattern cost the attention of their layer once more
    for each of the three; what is not recorded is held for one layer at a time. Hooks that are not asked for
    cost nothing.
    """
    given = fwd_hooks if hooks is None else hooks
    if given is None or (hooks is not None and fwd_hooks is not None):
        raise ValueError("give hooks=[(name, function), ...], or the same as fwd_hooks=")
    batch = as_batch(self, prompts, prepend_bos)
    functions = compile_functions(self, given)
    changes = compile_changes(self, batch, ablate, patch)
    return compute_run(
        self,
        batch,
        record,
        logits,
        edge_threshold,
        max_bytes,
        threads,
        changes,
        functions=functions,
        freeze=freeze,
    )


def compile_functions(model: Model, hooks: Hooks) -> Functions:
    """What the core takes for `Model.run_with_hooks(hooks=)`."""
    n_layer = model.config.n_layer
    names = hook_names(n_layer)
    calls: dict[tuple[int, int], list[Function]] = {}
    for wanted, function in _pairs(hooks):
        for name in _matching(wanted, names, n_layer):
            calls.setdefault(_place(name, n_layer), []).append(function)
    places = np.zeros(n_layer + 1, np.int32)
    for place, layer in calls:
        places[layer] |= 1 << place
    return Functions(places, _Caller(calls, model.dtype))


def _pairs(hooks: Hooks) -> list[tuple[HookName, Function]]:
    pairs = hooks.items() if isinstance(hooks, Mapping) else hooks
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise TypeError(f"hooks must be pairs (name, function), got {type(hooks).__name__}")
    found = []
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"hooks must be pairs (name, function), got {pair!r:.60}")
        if not callable(pair[1]):
            raise TypeError(f"hooks: {pair[0]!r:.60} needs a function of (value, hook), got {pair[1]!r:.60}")
        found.append((pair[0], pair[1]))
    return found


def _matching(wanted: HookName, names: list[str], n_layer: int) -> list[str]:
    """The hooks of a name or filter; ValueError if there is none."""
    if callable(wanted):
        found = [name for name in names if wanted(name)]
        if not found:
            raise ValueError("hooks: the filter matches no hook; see attnsparse.model.hook_names(n_layer)")
        return found
    try:
        name = full_name(wanted, n_layer)
    except KeyError as error:
        raise ValueError(f"hooks: {error.args[0]}") from None
    if name in names:
        return [name]
    end = name.split(".", 2)[-1] if name.startswith("blocks.") else name
    if end in _ABSENT:
        raise ValueError(f"hooks: there is no {name!r} here: {_ABSENT[end]}")
    near = difflib.get_close_matches(name, names, 1, 0.0)
    raise ValueError(
        f"hooks: unknown hook {name!r:.80}; did you mean {near[0]!r}? "
        "See attnsparse.model.hook_names(n_layer)"
    )


def _place(name: str, n_layer: int) -> tuple[int, int]:
    """(place, layer) of a hook as the core counts them."""
    if name.startswith("blocks."):
        _, layer, end = name.split(".", 2)
        return PLACES.index(end), int(layer)
    return PLACES.index(name), n_layer if name.startswith("ln_final") else 0


class _Caller:
    """Calls the functions of a place, one after the other, and checks what they give."""

    def __init__(self, calls: Mapping[tuple[int, int], list[Function]], dtype: np.dtype[Any]) -> None:
        self.calls, self.dtype = calls, dtype

    def __call__(self, place: int, layer: int, first: int, position: int, value: np.ndarray) -> np.ndarray:
        end = PLACES[place]
        name = end if "embed" in end or end.startswith("ln_final") else f"blocks.{layer}.{end}"
        shape = value.shape
        queries = shape[2] if end in SQUARES else shape[1]
        hook = HookPoint(name, range(first, first + shape[0]), range(position, position + queries))
        for function in self.calls[place, layer]:
            answer = function(value, hook)
            value = self._checked(name, value if answer is None else answer, shape)
        return value

    def _checked(self, name: str, answer: Any, shape: tuple[int, ...]) -> np.ndarray:
        what = f"what the function at {name!r} gives"
        array = _check.reals(answer, what, np.float64 if name.endswith("sparse_mask") else self.dtype)
        if array.shape != shape:
            raise ValueError(f"{what} must have shape {shape}, got {array.shape}")
        if name.endswith("sparse_mask"):
            return _checked_mask(array, what)
        if name.endswith("attn_scores"):
            return _checked_scores(array, what)
        _need(np.isfinite(array), array, what, "must be finite")
        if name.endswith("pattern"):
            _need(_looks_back(array) | (array == 0), array, what, "must be 0 at keys after their query")
        if name.endswith("hook_scale"):
            _need(array > 0, array, what, "must be above 0")
        return array


def _looks_back(array: np.ndarray) -> np.ndarray:
    """True where the key, the last axis, is not after the query; the last query is the last key."""
    queries, keys = array.shape[-2:]
    return np.broadcast_to(np.tri(queries, keys, keys - queries, dtype=bool), array.shape)


def _checked_mask(array: np.ndarray, what: str) -> np.ndarray:
    _need((array == 0) | (array == 1), array, what, "must be True or False")
    _need(_looks_back(array) | (array == 0), array, what, "must be False at keys after their query")
    return array.astype(bool)


def _checked_scores(array: np.ndarray, what: str) -> np.ndarray:
    back = _looks_back(array)
    _need(
        np.where(back, array < np.inf, array == -np.inf),
        array,
        what,
        "must be finite or -inf, and -inf at keys after their query",
    )
    some = (array > -np.inf).any(axis=-1, keepdims=True)
    _need(np.broadcast_to(some, array.shape), array, what, "must be above -inf at one key of each query")
    return array


def _need(good: np.ndarray, array: np.ndarray, what: str, rule: str) -> None:
    """ValueError with the first value that is not good."""
    if not good.all():
        at = tuple(int(i) for i in np.argwhere(~good)[0])
        raise ValueError(f"{what} {rule}, got {array[at]} at index {at}")
