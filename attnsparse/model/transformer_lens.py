"""run_with_cache: a forward pass under TransformerLens's hook names and shapes.

Names and shapes follow TransformerLens 3 (HookedRootModule, ActivationCache); `ln*.hook_normalized` is
(x - mean) / scale before weight and bias, and `hook_scale` is [batch, pos, 1], as there.
`blocks.L.attn.hook_sparse_mask` is the gate, 1 for an open entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .batch import as_batch, listed
from .interventions import Ablate, Patch, compile_changes
from .lens import stacks
from .run import DEFAULT_MAX_BYTES, Freeze, Run, compute_run, stop_layer

if TYPE_CHECKING:
    from .model import Model

# hook name within a block -> name in Run
BLOCK_HOOKS = {
    "hook_resid_pre": "resid_pre", "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out", "hook_mlp_out": "mlp_out", "ln1.hook_scale": "ln1_scale",
    "ln1.hook_normalized": "ln1_normalized", "ln2.hook_scale": "ln2_scale",
    "ln2.hook_normalized": "ln2_normalized",
    "attn.hook_q": "q", "attn.hook_k": "k", "attn.hook_v": "v", "attn.hook_z": "z",
    "attn.hook_attn_scores": "scores", "attn.hook_pattern": "pattern", "attn.hook_sparse_mask": "gate",
    "attn.hook_result": "result", "mlp.hook_pre": "mlp_pre", "mlp.hook_post": "mlp_post",
}  # fmt: skip
OTHER_HOOKS = {
    "hook_embed": "embed", "hook_pos_embed": "pos_embed", "ln_final.hook_scale": "ln_final_scale",
    "ln_final.hook_normalized": "ln_final_normalized",
}  # fmt: skip
# the short names of TransformerLens's get_act_name
SHORT = {hook.split("hook_")[-1]: hook for hook in BLOCK_HOOKS if not hook.startswith("ln")}
LAYER_TYPES = {"a": "attn.", "attn": "attn.", "m": "mlp.", "mlp": "mlp.", "ln1": "ln1.", "ln2": "ln2."}


def hook_names(n_layer: int) -> list[str]:
    """All hook names that `Model.run_with_cache` can return.

    Parameters
    ----------
    n_layer : int
        Layers of the model.

    Returns
    -------
    list of str
        TransformerLens's names, in the order of the forward pass.
    """
    blocks = [f"blocks.{layer}.{hook}" for layer in range(n_layer) for hook in BLOCK_HOOKS]
    return ["hook_embed", "hook_pos_embed", *blocks, "ln_final.hook_scale", "ln_final.hook_normalized"]


class ActivationCache(Mapping[Any, np.ndarray]):
    """Activations by hook name, a mapping that copies nothing.

    Made by `Model.run_with_cache`. Arrays are [batch, pos, ...], patterns and scores
    [batch, head, query, key]; without the batch axis if it was removed.
    ``cache["blocks.5.attn.hook_pattern"]``, ``cache["pattern", 5]`` and ``cache["resid_post", -1]`` all
    work; ``cache["scale", 3, "ln1"]`` names a hook that exists more than once in a block.

    Attributes
    ----------
    run : Run
        The run whose arrays these are.
    has_batch_dim : bool
        Whether arrays have a batch axis.
    """

    def __init__(self, run: Run, names: Sequence[str], has_batch_dim: bool = True) -> None:
        self.run = run  #: the `Run`
        self.has_batch_dim = has_batch_dim  #: whether arrays have a batch axis
        self._names = dict.fromkeys(names)

    def __getitem__(self, key: str | tuple[Any, ...]) -> np.ndarray:
        name = full_name(key, self.run.model.config.n_layer)
        if name not in self._names:
            stop = self.run.stop_at_layer
            ended = "" if stop is None else f" of a run that stopped before layer {stop}"
            raise KeyError(
                f"{name!r} is not in this cache{ended}; it holds {len(self._names)} hooks, see list(cache)"
            )
        block, _, hook = (
            name.partition(".")[2].partition(".") if name.startswith("blocks.") else ("", "", name)
        )
        array: np.ndarray = getattr(self.run, BLOCK_HOOKS[hook] if block else OTHER_HOOKS[hook])
        array = array[:, int(block)] if block else array
        if hook.endswith("hook_scale"):
            array = array[..., None]
        return array if self.has_batch_dim else array[0]

    accumulated_resid = stacks.accumulated_resid
    apply_ln_to_stack = stacks.apply_ln_to_stack
    decompose_resid = stacks.decompose_resid
    logit_attrs = stacks.logit_attrs
    stack_head_results = stacks.stack_head_results

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"ActivationCache with {len(self)} hooks: {', '.join(list(self)[:4])}, ..."


SHORT_OTHER = {"embed": "hook_embed", "pos_embed": "hook_pos_embed"}


def full_name(key: Any, n_layer: int) -> str:
    """The hook name of a key in any of its forms, which need not exist; KeyError for what is no key."""
    if isinstance(key, str):
        return SHORT_OTHER.get(key, key)
    if not isinstance(key, tuple) or not 2 <= len(key) <= 3 or not isinstance(key[0], str):
        raise KeyError(
            f"a key must be a hook name, (name, layer) or (name, layer, layer type), got {key!r:.60}"
        )
    name, layer, layer_type = (*key, None)[:3]
    if layer is None:
        return SHORT_OTHER.get(str(name), str(name))
    if not isinstance(layer, (int, np.integer)) or not -n_layer <= layer < n_layer:
        raise KeyError(f"layer must be an integer in {-n_layer}..{n_layer - 1}, got {layer!r:.60}")
    layer %= n_layer
    if layer_type is not None:
        if layer_type not in LAYER_TYPES:
            raise KeyError(f"layer type must be one of {', '.join(LAYER_TYPES)}, got {layer_type!r:.60}")
        return f"blocks.{layer}.{LAYER_TYPES[layer_type]}hook_{name}"
    return f"blocks.{layer}.{SHORT.get(name, name)}"


def run_with_cache(
    self: Model,
    prompts: Any,
    names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
    *,
    return_type: str | None = "logits",
    remove_batch_dim: bool = False,
    prepend_bos: bool = False,
    ablate: Ablate | None = None,
    patch: Patch | None = None,
    freeze: Freeze | None = None,
    stop_at_layer: int | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
) -> tuple[Any, ActivationCache]:
    """A forward pass under TransformerLens's hook names and shapes.

    Parameters
    ----------
    prompts : str, sequence of int, or a list of these
        As for `run`, all of one length: TransformerLens would pad them, and padding changes results.
    names_filter : str, sequence of str or callable, optional
        Hooks to keep; None keeps all.
    return_type : {"logits", "loss", None}
        First value that is returned.
    remove_batch_dim : bool, default False
        Leave out the batch axis of a single prompt.
    prepend_bos, ablate, patch, freeze
        As for `run`. The cache holds the activations of the changed run.
    stop_at_layer : int, optional
        As for `run`: only hooks of the layers before it are computed, and there are no logits.
    max_bytes, threads
        As for `run`.

    Returns
    -------
    result : numpy.ndarray, float or None
        Logits [batch, pos, vocabulary], or the mean next-token loss in nats, or None. With `stop_at_layer`
        the residual stream where the run stopped, [batch, pos, d_model], unless `return_type` is None.
    cache : ActivationCache
    """
    if return_type is not None and return_type not in ("logits", "loss"):
        raise ValueError(f"return_type must be 'logits', 'loss' or None, got {_check.shown(return_type)}")
    batch = as_batch(self, listed(prompts)[0], prepend_bos)
    lengths = set(batch.lengths.tolist())
    if len(lengths) > 1:
        raise ValueError(
            f"run_with_cache needs prompts of one length, got {sorted(lengths)} tokens; nothing is padded "
            "here, use model.run and run[i]"
        )
    if remove_batch_dim and len(batch) != 1:
        raise ValueError(f"remove_batch_dim=True needs one prompt, got {len(batch)}")
    stop = stop_layer(self, stop_at_layer)
    names = _chosen(hook_names(self.config.n_layer), names_filter, stop)
    records = {BLOCK_HOOKS[n.split(".", 2)[-1]] if n.startswith("blocks.") else OTHER_HOOKS[n] for n in names}
    if stop is not None and return_type is not None:
        records.add("resid_post")
    elif return_type == "loss":
        records.add("token_loss")
    logits = "all" if return_type == "logits" else "none"
    changes = compile_changes(self, batch, ablate, patch)
    run = compute_run(
        self, batch, tuple(sorted(records)), logits, 0.0, max_bytes, threads, changes, freeze=freeze,
        stop_at_layer=stop_at_layer,
    )  # fmt: skip
    cache = ActivationCache(run, names, not remove_batch_dim)
    if return_type is None:
        return None, cache
    if stop is not None:
        return run.resid_post[0, -1] if remove_batch_dim else run.resid_post[:, -1], cache
    if return_type == "loss":
        return run.loss, cache
    return run.logits[0] if remove_batch_dim else run.logits, cache


def _chosen(names: list[str], names_filter: Any, stop: int | None) -> list[str]:
    computed = names if stop is None else [name for name in names if _is_before(name, stop)]
    if names_filter is None:
        return computed
    if callable(names_filter):
        return [name for name in computed if names_filter(name)]
    wanted = _check.names(names_filter, "names_filter")
    known = set(names)
    for name in wanted:
        if name not in known:
            raise ValueError(
                f"names_filter: unknown hook {name!r:.80}; see attnsparse.model.hook_names(n_layer)"
            )
        if stop is not None and not _is_before(name, stop):
            raise ValueError(f"names_filter: {name!r} is not computed: the run stops before layer {stop}")
    return [name for name in names if name in set(wanted)]


def _is_before(name: str, stop: int) -> bool:
    return not name.startswith("ln_final") and (
        not name.startswith("blocks.") or int(name.split(".")[1]) < stop
    )
