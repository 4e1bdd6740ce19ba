"""Features: what transcoders find active in one prompt; and the model with its MLPs replaced by them.

The arithmetic is the C core's (csrc/features.c); this file hands it the weights it asks for, one layer at a
time, and gives what it found names and tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from .._core_types import Substitute
from .._display import SHOWN, html_table, progress_bar
from .._engine import core_for
from ..errors import ConfigError
from ..items import token_label
from ..model.batch import Batch, as_batch
from ..model.gradients import loss_targets, loss_weights
from ..model.interventions import compile_interventions
from ..model.run import DEFAULT_MAX_BYTES, PRESETS, Run, compute_run
from .arrays import layers_text

if TYPE_CHECKING:
    import pandas as pd

    from ..model.model import Model
    from .transcoders import Transcoders

RECORDED = (
    "pattern", "ln1_scale", "ln2_scale", "ln_final_scale", "ln2_normalized", "embed", "pos_embed",
    "resid_pre", "resid_mid", "resid_post", "mlp_out",
)  # fmt: skip
NO_MLP = ("mlp_pre", "mlp_post")
_TOKENS_AT_ONCE = 2048  # of an evaluation


class Features:
    """The active features of one prompt, and what they leave unexplained.

    With n active features, sorted by (layer, position, feature), L layers, T tokens and E model width. Arrays
    are read-only views of the core's memory; real is float32 (float64 for a float64 model):

    * layer, position, feature int32 [n], counted from 0; activation real [n], never 0; layers are
      the model's;
    * start int64 [L + 1]: features of layer l are start[l] .. start[l + 1] - 1;
    * reconstruction real [L, T, E]: what the transcoders write to each MLP output, with skip and output_bias;
      0 in layers without a transcoder;
    * error real [L, T, E]: mlp_out - reconstruction; all of mlp_out in layers without a transcoder;
    * run: the `Run` they were found in; transcoders: the `Transcoders`.
    """

    def __init__(self, core: Any, run: Run, transcoders: Transcoders) -> None:
        """Made by `Transcoders.features`."""
        self._core = core
        self.run = run
        self.transcoders = transcoders

    def __len__(self) -> int:
        return len(self.layer)

    @property
    def n_tokens(self) -> int:
        """T, the number of tokens."""
        return self.error.shape[1]

    @property
    def l0(self) -> np.ndarray:
        """float64 [L]: active features per token; NaN for layers without a transcoder."""
        return self._of_layers(np.diff(self.start) / self.n_tokens)

    def _of_layers(self, values: np.ndarray) -> np.ndarray:
        """float64 [L]: values where a layer has a transcoder, else NaN."""
        return np.where(np.isin(np.arange(len(values)), self.transcoders.layers), values, np.nan)

    @property
    def explained_variance(self) -> np.ndarray:
        """float64 [L]: 1 - sum error**2 / sum (mlp_out - its mean over positions)**2; NaN for one token and
        for layers without a transcoder."""
        centred = self.run.mlp_out - self.run.mlp_out.mean(axis=1, dtype=np.float64, keepdims=True)
        total, error = (np.square(a, dtype=np.float64).sum(axis=(1, 2)) for a in (centred, self.error))
        return self._of_layers(np.where(total > 0, 1 - error / np.where(total > 0, total, 1), np.nan))

    def to_pandas(self, base: int = 0) -> pd.DataFrame:
        """One row per active feature: layer, position (from `base`, 0 or 1), token, feature, activation."""
        import pandas as pd

        base = _check.base(base)
        tokens = np.array([token_label(token) for token in self.run.token_strings], object)
        columns = {
            "layer": self.layer,
            "position": self.position + base,
            "token": tokens[self.position],
            "feature": self.feature,
            "activation": self.activation,
        }
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        known = self.explained_variance[np.isfinite(self.explained_variance)]
        explained = known.mean() if len(known) else np.nan
        layers, n_layer = self.transcoders.layers, len(self.error)
        where = "" if len(layers) == n_layer else f" and {layers_text(layers)} of {n_layer}"
        return (
            f"Features({len(self):,} active in {self.n_tokens} tokens{where}, "
            f"{np.nansum(self.l0):.1f} per token, "
            f"explained variance {explained:.3f}, transcoders={self.transcoders.name!r})"
        )

    def _repr_html_(self) -> str:
        return html_table(self, self.to_pandas().nlargest(SHOWN, "activation"))


def _array_property(name: str) -> property:
    return property(lambda features: features._core.array(name), doc=f"The array {name}; see `Features`.")


for _name in ("layer", "position", "feature", "activation", "start", "reconstruction", "error"):
    setattr(Features, _name, _array_property(_name))


# ------------------------------------------------------------------------------------------- one prompt


def find_features(
    transcoders: Transcoders,
    model: Model,
    prompt: Any,
    prepend_bos: bool,
    record: str | Sequence[str],
    max_bytes: int,
    threads: int | None,
    progress: bool | None,
) -> Features:
    """See `Transcoders.features`."""
    transcoders.check(model, weights=False)
    threads, max_bytes = _check.threads(threads), _check.byte_limit(max_bytes)
    if isinstance(prompt, Run):
        run = prompt
        if run.model is not model:
            raise ValueError("features: the run is of another model")
        if prepend_bos and as_batch(model, run.tokens, True).lengths[0] != run.n_tokens:
            raise ValueError(
                "prepend_bos=True, but the run has no BOS token; run the prompt with prepend_bos=True"
            )
        _need(run, (input_record(transcoders), "mlp_out"))
    else:
        names = (*RECORDED, *_check.names(record, "record"))
        run = model.run(prompt, names, prepend_bos=prepend_bos, max_bytes=max_bytes, threads=threads or None)
    if len(run) != 1:
        raise ValueError(f"features are of one prompt, got {len(run)}; use run[i], or one prompt at a time")
    first, last = run._range(0 if run._index is None else run._index)
    with progress_bar(progress, len(transcoders.layers), "features", "layer") as bar:
        core = new_core(transcoders, model, last - first, max_bytes)
        core.fill(run._core, first, _Weights(transcoders, model, bar), threads)
    return Features(core, run if run._index is not None else run[0], transcoders)


def input_record(transcoders: Transcoders) -> str:
    """What a run calls the encoders' input."""
    return "resid_mid" if transcoders.input_hook == "hook_resid_mid" else "ln2_normalized"


def _need(run: Run, names: tuple[str, ...]) -> None:
    if missing := [name for name in names if name not in run.recorded]:
        raise ValueError(
            f"features need a run that recorded {' and '.join(names)}; this one has no {missing[0]}"
        )


def new_core(transcoders: Transcoders, model: Model, n_tokens: int, max_bytes: int) -> Any:
    """An empty `_core.Features` of `n_tokens` rows."""
    return core_for(str(model.dtype)).Features(
        model._core,
        n_tokens,
        transcoders.activation,
        transcoders.top_k or 0,
        transcoders.cross_layer,
        input_record(transcoders) == "resid_mid",
        max_bytes,
        absent_layers(transcoders, model),
    )


def absent_layers(transcoders: Transcoders, model: Model) -> bytes | None:
    """For each layer of the model 1 if it has no transcoder, else 0; None if all have one."""
    absent = bytes(layer not in transcoders.layers for layer in range(model.config.n_layer))
    return absent if any(absent) else None


class _Weights:
    """What the core asks for, in the model's dtype; shapes are checked before anything is used."""

    def __init__(self, transcoders: Transcoders, model: Model, bar: Any = None) -> None:
        self.transcoders, self.dtype, self.bar = transcoders, model.dtype, bar

    def encoder(self, layer: int) -> tuple[Any, ...]:
        """(w_enc, b_enc, threshold or None)."""
        t = self.transcoders
        encoder, f = t.source.encoder(layer), t.n_features[layer]
        threshold = None
        if t.activation == "jump_relu":
            threshold = self._array("threshold", layer, encoder.threshold, (f,))
        return (
            self._array("w_enc", layer, encoder.w_enc, (f, t.d_model)),
            self._array("b_enc", layer, encoder.b_enc, (f,)),
            threshold,
        )

    def rows(self, layer: int, features: np.ndarray) -> np.ndarray:
        """[n, W, E]."""
        t = self.transcoders
        rows = t.source.decoder_rows(layer, features)
        return self._array("w_dec", layer, rows, (len(features), t.writes(layer), t.d_model))

    def output(self, layer: int) -> tuple[Any, ...]:
        """(output_bias, skip or None)."""
        t = self.transcoders
        skip, e = t.source.skip(layer), t.d_model
        if self.bar is not None:
            self.bar.update()
        return (
            self._array("output_bias", layer, t.source.output_bias(layer), (e,)),
            None if skip is None else self._array("skip", layer, skip, (e, e)),
        )

    def _array(self, name: str, layer: int, value: Any, shape: tuple[int, ...]) -> np.ndarray:
        if np.shape(value) != shape:
            found = "is missing" if value is None else f"has shape {np.shape(value)}"
            text = f"{name} of layer {layer} {found}, expected shape {shape}"
            raise ConfigError(text, code="config_value", field=f"{name}.{layer}")
        return _check.reals(value, f"{name} of layer {layer}", self.dtype)


# ------------------------------------------------------------------------------------------- replaced MLPs


def replacement_run(
    transcoders: Transcoders,
    model: Model,
    prompts: Any,
    errors: Features | None,
    prepend_bos: bool,
    ablate: Any,
    patch: Any,
    record: str | Sequence[str],
    logits: str,
    edge_threshold: float,
    max_bytes: int,
    threads: int | None,
) -> Run:
    """See `Transcoders.replacement_run`."""
    transcoders.check(model, weights=False)
    batch = as_batch(model, prompts, prepend_bos)
    names = _check.names(record, "record")
    if wrong := [name for name in NO_MLP if name in names]:
        raise ValueError(f"record: a run with replaced MLPs has no {wrong[0]}")
    if "all" in names:
        names = [
            *(name for name in names if name != "all"),
            *(name for name in PRESETS["all"] if name not in NO_MLP),
        ]
    given = None if errors is None else _given_errors(transcoders, model, batch, errors)
    core = new_core(transcoders, model, len(batch.tokens), _check.byte_limit(max_bytes))
    substitute = Substitute(core, _Weights(transcoders, model), given)
    changes = compile_interventions(model, batch, ablate, patch)
    return compute_run(model, batch, names, logits, edge_threshold, max_bytes, threads, changes, substitute)


def _given_errors(transcoders: Transcoders, model: Model, batch: Batch, errors: Any) -> np.ndarray:
    if not isinstance(errors, Features):
        raise TypeError(f"errors must be Features, got {type(errors).__name__}")
    if errors.transcoders is not transcoders or errors.run.model is not model:
        raise ValueError("errors must be Features that these transcoders found in this model")
    if len(batch) != 1 or not np.array_equal(batch.tokens, errors.run.tokens):
        raise ValueError("errors are those of one prompt, and this is another one; make Features of it")
    return errors.error


# ------------------------------------------------------------------------------------------- how good


def evaluate(
    transcoders: Transcoders,
    model: Model,
    prompts: Any,
    targets: Any,
    loss_mask: Any,
    prepend_bos: bool,
    threads: int | None,
    progress: bool | None,
) -> pd.DataFrame:
    """See `Transcoders.evaluate`."""
    import pandas as pd

    transcoders.check(model, weights=False)
    batch = as_batch(model, prompts, prepend_bos)
    wanted = loss_targets(batch, targets)
    if len(wanted) != len(batch.tokens):
        raise ValueError(
            f"targets must have one id for each of the {len(batch.tokens)} tokens, got {len(wanted)}"
        )
    weights = loss_weights(batch, loss_mask, targets is not None, np.dtype(np.float64))
    if np.any((wanted < 0) | (wanted >= model.config.n_vocab), where=weights > 0):
        raise IndexError(f"targets must be in 0..{model.config.n_vocab - 1}")
    if not weights.sum() > 0:
        raise ValueError("no token to be predicted has a loss weight above 0")
    wanted = np.where(weights > 0, wanted, 0)
    sums = _Sums(transcoders)
    groups = _groups(batch)
    with progress_bar(progress, len(groups), "transcoders", "batch") as bar:
        for part, rows in groups:
            sums.add(model, part, wanted[rows], weights[rows], threads)
            if bar is not None:
                bar.update()
    return pd.DataFrame(sums.columns(len(batch.tokens), float(weights.sum())))


def _groups(batch: Batch) -> list[tuple[Batch, slice]]:
    """The prompts in batches of at most some thousand tokens (a longer prompt alone), with their rows."""
    bounds = [0]
    for i in range(len(batch)):
        if i > bounds[-1] and batch.offsets[i + 1] - batch.offsets[bounds[-1]] > _TOKENS_AT_ONCE:
            bounds.append(i)
    found = []
    for first, last in zip(bounds, [*bounds[1:], len(batch)]):
        offsets = batch.offsets[first : last + 1]
        rows = slice(int(offsets[0]), int(offsets[-1]))
        part = Batch(
            batch.tokens[rows], offsets - offsets[0], batch.texts[first:last], False, batch.prepend_bos
        )
        found.append((part, rows))
    return found


class _Sums:
    """What an evaluation adds up over batches."""

    def __init__(self, transcoders: Transcoders) -> None:
        layers = transcoders.layers
        self.transcoders = transcoders
        self.active, self.error, self.square = np.zeros((3, len(layers)))
        self.out = np.zeros((len(layers), transcoders.d_model))
        self.seen = [np.zeros(transcoders.n_features[layer], bool) for layer in layers]
        self.loss = np.zeros(2)  # of the model, and of the model with replaced MLPs

    def add(self, model: Model, batch: Batch, targets: np.ndarray, weights: np.ndarray, threads: Any) -> None:
        """One batch; targets and weights [N]."""
        t, n = self.transcoders, _check.threads(threads)
        names = (input_record(t), "mlp_out")
        run = compute_run(model, batch, names, "all", 0.0, DEFAULT_MAX_BYTES, threads)
        core = new_core(t, model, len(batch.tokens), DEFAULT_MAX_BYTES)
        core.fill(run._core, 0, _Weights(t, model), n)
        start, feature, error = core.array("start"), core.array("feature"), core.array("error")
        out = run._core.array("mlp_out")
        for i, layer in enumerate(t.layers):
            self.seen[i][feature[start[layer] : start[layer + 1]]] = True
            self.error[i] += np.square(error[layer], dtype=np.float64).sum()
            self.square[i] += np.square(out[layer], dtype=np.float64).sum()
            self.out[i] += out[layer].sum(axis=0, dtype=np.float64)
            self.active[i] += start[layer + 1] - start[layer]
        core = new_core(t, model, len(batch.tokens), DEFAULT_MAX_BYTES)
        substitute = Substitute(core, _Weights(t, model), None)
        replaced = compute_run(model, batch, (), "all", 0.0, DEFAULT_MAX_BYTES, threads, None, substitute)
        for i, each in enumerate((run, replaced)):
            self.loss[i] += _cross_entropy(each._core.array("logits"), targets) @ weights

    def columns(self, n_tokens: int, weight: float) -> dict[str, Any]:
        """The columns of the table."""
        total = self.square - (self.out**2).sum(axis=1) / n_tokens
        return {
            "layer": np.array(self.transcoders.layers),
            "n_features": np.array([len(seen) for seen in self.seen]),
            "l0": self.active / n_tokens,
            "explained_variance": np.where(total > 0, 1 - self.error / np.where(total > 0, total, 1), np.nan),
            "dead": np.array([1 - seen.mean() for seen in self.seen]),
            "cross_entropy": self.loss[0] / weight,
            "cross_entropy_replaced": self.loss[1] / weight,
        }


def _cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """float64 [N] in nats; logits [N, V], some rows at a time."""
    found = np.empty(len(targets))
    for first in range(0, len(targets), 256):
        rows = slice(first, min(first + 256, len(targets)))
        shifted = logits[rows].astype(np.float64) - logits[rows].max(axis=1, keepdims=True)
        chosen = np.take_along_axis(shifted, targets[rows, None].astype(np.int64), axis=1)[:, 0]
        found[rows] = np.log(np.exp(shifted).sum(axis=1)) - chosen
    return found
