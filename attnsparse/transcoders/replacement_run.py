"""Runs of a model with its MLPs replaced by transcoders, whose features may be changed on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._core_types import FeatureChanges, Substitute
from ..model.batch import Batch, as_batch
from ..model.interventions import KINDS, compile_changes
from ..model.model import Model
from ..model.run import DEFAULT_MAX_BYTES, PRESETS, Freeze, Run, compute_run
from .features import Features
from .replacement import CheckedWeights, new_core
from .steer import place_of

if TYPE_CHECKING:
    from .transcoders import Transcoders

NO_MLP = ("mlp_pre", "mlp_post")


def replacement_run(
    self: Transcoders,
    model: Model,
    prompts: Any,
    *,
    errors: Features | None = None,
    changes: Mapping[tuple[int, ...], float] | None = None,
    how: str = "add",
    constrained_layers: Iterable[int] = (),
    freeze: Freeze | None = None,
    record: str | Sequence[str] = "attention",
    logits: str = "all",
    prepend_bos: bool = False,
    edge_threshold: float = 0.0,
    ablate: Any = None,
    patch: Any = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int | None = None,
) -> Run:
    """Run a model with every MLP replaced by these transcoders, which read the replaced activations.

    Layers without a transcoder keep their MLP. Features may be changed: all that is computed later, features
    of later layers included, sees the change, but for what is frozen or constrained.

    Parameters
    ----------
    model : Model
        The model of these transcoders.
    prompts
        What `Model.run` takes.
    errors : Features, optional
        Features of the same one prompt, whose errors are added to the outputs: without ablation and changes
        the logits are then the model's to rounding.
    changes : mapping of (layer, feature) or (layer, feature, position) to float, optional
        What happens to each feature, after everything that the activation function does. Without a position:
        at all positions. Negative positions count from the end of each prompt.
    how : {"add", "set", "scale"}, default "add"
        The number is added to the activation, takes its place, or multiplies it.
    constrained_layers : iterable of int, optional
        Layers whose features have the activations that `errors` has, whatever is changed before them; then
        `changes` are made. A skip matrix still reads the changed activations.
    freeze : {"pattern", "gate", "ln_scale"}, several of these, or mapping to Run, optional
        As `Model.run`: what stays as it is in a clean run of the model as it is, or in the runs given.
    record : str or sequence of str, default "attention"
        As `Model.run`. There is no mlp_pre and mlp_post; "all" leaves them out.
    logits, prepend_bos, edge_threshold
        As `Model.run`.
    ablate, patch
        As `Model.run`. Means and counterfactuals are those of the model as it is; an Mlp item takes the
        place of the replaced output.
    max_bytes : int
        Limit of the run's memory, and once more of the features'.
    threads : int, optional
        Default: the number set by `set_num_threads`.

    Returns
    -------
    Run

    Raises
    ------
    ConfigError
        If these do not fit the model.
    IndexError
        For a layer, feature or position that is not there.
    ValueError
        For errors of another prompt, model or set, for a feature that is named twice, for constrained layers
        without `errors`, and as `Model.run`.

    Notes
    -----
    With ``constrained_layers=range(n_layer)`` and ``freeze=("pattern", "gate", "ln_scale")`` the run is
    linear in the changes, and what they do to a logit is what `attribution_graph` says: a feature that is
    scaled to 0 takes its edge to that logit away. With layers 0 to l - 1 constrained, the same holds for what
    features of layer l read. `Transcoders.steer` makes the same changes in the model with its own MLPs.
    """
    self.check(model, weights=False)
    batch, names = as_batch(model, prompts, prepend_bos), _recordable(record)
    substitute = Substitute(
        new_core(self, model, len(batch.tokens), _check.byte_limit(max_bytes)),
        CheckedWeights(self, model),
        _given_errors(self, model, batch, errors),
        _compile(self, model, batch, {} if changes is None else changes, how, constrained_layers, errors),
    )
    experiment = compile_changes(model, batch, ablate, patch)
    if experiment.steering is not None:
        raise ValueError("steered features are for runs of the model itself; here they are changes=")
    return compute_run(
        model,
        batch,
        names,
        logits,
        edge_threshold,
        max_bytes,
        threads,
        experiment,
        substitute,
        freeze=freeze,
    )


def _compile(
    transcoders: Transcoders,
    model: Model,
    batch: Batch,
    changes: Mapping[tuple[int, ...], float],
    how: str,
    constrained_layers: Iterable[int],
    errors: Features | None,
) -> FeatureChanges | None:
    """What the core takes for `changes` and constrained layers; None for neither."""
    _check.choice(how, "how", KINDS)
    if not isinstance(changes, Mapping):
        raise TypeError(f"changes must be a mapping from features to numbers, got {type(changes).__name__}")
    constrained = _check.items(constrained_layers, "constrained_layers", "a sequence of layers")
    held = {_check.layer(layer, transcoders.n_layer) for layer in constrained}
    if held and errors is None:
        raise ValueError("constrained_layers needs errors=, the Features whose activations are kept")
    if not changes and not held:
        return None
    numbers = _numbers(transcoders, batch, changes)
    at = np.array(sorted(numbers), np.int32).reshape(-1, 3)
    values = np.array([numbers[key] for key in sorted(numbers)], model.dtype)
    return FeatureChanges(
        layer=np.ascontiguousarray(at[:, 0]),
        row=np.ascontiguousarray(at[:, 1]),
        feature=np.ascontiguousarray(at[:, 2]),
        factor=values if how == "scale" else np.full_like(values, how == "add"),
        added=np.zeros_like(values) if how == "scale" else values,
        held=errors._core if errors is not None and held else None,
        held_layers=bytes(layer in held for layer in range(model.config.n_layer)),
    )


def _numbers(
    transcoders: Transcoders, batch: Batch, changes: Mapping[tuple[int, ...], float]
) -> dict[tuple[int, int, int], float]:
    """(layer, row among all tokens, feature) -> the number of its change."""
    found: dict[tuple[int, int, int], float] = {}
    for place, number in changes.items():
        layer, feature, position = place_of(transcoders, place)
        number = _check.number(number, f"changes[{place!r:.40}]")
        for row in _rows(batch, position):
            if (layer, row, feature) in found:
                raise ValueError(
                    f"changes: feature {feature} of layer {layer} is named twice at one position"
                )
            found[layer, row, feature] = number
    return found


def _rows(batch: Batch, position: int | None) -> list[int]:
    """The rows of a position among all tokens; None: all of them."""
    if position is None:
        return list(range(len(batch.tokens)))
    rows = []
    for first, n in zip(batch.offsets[:-1].tolist(), batch.lengths.tolist()):
        if not -n <= position < n:
            raise IndexError(f"position {position} is out of range: a prompt has {n} tokens")
        rows.append(first + position % n)
    return rows


def _recordable(record: str | Sequence[str]) -> list[str]:
    """The records of a run with replaced MLPs; ValueError for a record that it does not have."""
    names = _check.names(record, "record")
    if wrong := [name for name in NO_MLP if name in names]:
        raise ValueError(f"record: a run with replaced MLPs has no {wrong[0]}")
    if "all" not in names:
        return names
    return [
        *(name for name in names if name != "all"),
        *(name for name in PRESETS["all"] if name not in NO_MLP),
    ]


def _given_errors(transcoders: Transcoders, model: Model, batch: Batch, errors: Features | None) -> Any:
    """What is added to the outputs; ValueError for errors of another prompt, model or set."""
    if errors is None:
        return None
    _check.instance(errors, Features, "errors")
    if errors.transcoders is not transcoders or errors.run.model is not model:
        raise ValueError("errors must be Features that these transcoders found in this model, got others")
    if len(batch) != 1 or not np.array_equal(batch.tokens, errors.run.tokens):
        raise ValueError("errors must be Features of the same one prompt, got those of another")
    return errors.error
