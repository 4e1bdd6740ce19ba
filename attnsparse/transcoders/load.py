"""Loads transcoders from every layout that they come in: finds out which it is, reads names and shapes, and
converts what was trained on another form of the same input."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from ..errors import ConfigError, FormatError, file_error
from ..io.folder_commit import read_whole
from ..io.limits import DEFAULT_LIMITS, Limits
from ..items import name_of
from ..model.locate import MODELS_FOLDER
from .formats import circuit_tracer, clt_forge, dunefsky, saelens
from .formats.layout import INPUT_HOOKS, MLP_IN, NORMALIZED, RESID_MID, StoredSet, check_size
from .stored import InputChange, StoredWeights
from .transcoders import Transcoders

if TYPE_CHECKING:
    from ..model.model import Model

_CONFIG = circuit_tracer.CONFIG
# in this order; the first that finds its files decides
_READERS = (clt_forge, circuit_tracer, saelens, dunefsky)
_VERIFIED_ROWS = 1024


def embedded_transcoders() -> tuple[str, ...]:
    """Names of the sets that come with the package."""
    if not MODELS_FOLDER.is_dir():
        return ()
    return tuple(sorted(item.name for item in MODELS_FOLDER.iterdir() if (item / _CONFIG).is_file()))


def load_transcoders(
    what: str | os.PathLike[str],
    model: Model | None = None,
    *,
    input_hook: str | None = None,
    processed: bool | None = None,
    verify: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Transcoders:
    """Load transcoders from files, which stay where they are: weights are read when they are needed.

    Parameters
    ----------
    what : str or path
        The name of a set that comes with the package, or a path:

        * a folder of circuit-tracer, per layer or cross-layer, or the YAML file of one (v0.1 to v0.4), with
          its own files or GemmaScope's;
        * a folder with one SAELens folder (cfg.json, sae_weights.safetensors) per layer;
        * a folder with the `.pt` files of Dunefsky et al. (2024), one per layer, or one such file;
        * a CLT-Forge checkpoint (clt_cfg.json), also one split over ranks.

        Sets of one transcoder per layer may have some layers only; `Transcoders.layers` says which.
    model : Model, optional
        Raise ConfigError now if the set does not fit it, and take the number of layers from it. Needed for
        sets that read mlp.hook_in, the LayerNorm's output with weight and bias, which are folded into the
        encoder.
    input_hook : {"ln2.hook_normalized", "hook_resid_mid", "hook_mlp_in", "mlp.hook_in"}, optional
        What the encoders read, where no file says so: the MLP's LayerNorm before weight and bias; the
        residual stream before it, by two names; the LayerNorm's output.
    processed : bool, optional
        Whether the set was trained on a model with TransformerLens's weight processing (LayerNorm folded,
        writing weights centred), where no file says so and it matters, which is for every hook but
        ln2.hook_normalized. If so, the encoder is changed to read the raw model.
    verify : bool, default False
        Read every weight once now; otherwise each is checked when it is read.
    limits : Limits
        Of the sizes that files may have.

    Returns
    -------
    Transcoders

    Raises
    ------
    FormatError
        For bad files; UnsafeFileError, LimitError and NonFiniteError are kinds of it. The same errors come
        later, when weights are read, for files that changed since.
    ConfigError
        If configuration, weights and model do not fit together, if files of a layer, or layers of a
        cross-layer transcoder, are missing, if `input_hook` or `processed` is needed or contradicts the
        files.
    FileNotFoundError
        If nothing is found; other OSErrors are unchanged.

    Notes
    -----
    Only names and shapes stay in memory; one layer's encoder, or the rows of the decoder that are asked for,
    are read at a time and widened to float32. Files are read as data: nothing in them is ever run. MLP
    outputs without their mean, which sets of processed models were trained on, cannot be converted: the
    mean stays in the error, where nothing behind a LayerNorm sees it.
    """
    if input_hook is not None:
        _check.choice(input_hook, "input_hook", INPUT_HOOKS)
    if processed is not None:
        _check.flag(processed, "processed")
    _check.flag(verify, "verify")
    path, limits = _find(what), _check.instance(limits, Limits, "limits")
    stored = read_whole(path if path.is_dir() else path.parent, lambda: _read(path, limits))
    check_size(stored.layers, stored.d_model, stored.path, limits)
    hook = _settle_hook(stored, input_hook)
    changes = _input_changes(stored, hook, _settle_processing(stored, hook, processed), model)
    source = StoredWeights(stored.layers, stored.d_model, changes, _count_layers(stored, model))
    transcoders = Transcoders(
        source,
        kind=stored.kind,
        input_hook=RESID_MID if hook == RESID_MID else NORMALIZED,
        activation=stored.activation,
        top_k=stored.top_k,
        name=name_of(path.with_suffix("") if path.is_file() else path.resolve()),
        model_name=stored.model_name,
        scan=stored.scan,
    )
    if model is not None:
        transcoders.check(model, weights=False)
    if verify:
        _read_all(source)
    return transcoders


def _find(what: Any) -> Path:
    """The folder or file that is meant; FileNotFoundError lists what was tried."""
    if isinstance(what, str) and what in embedded_transcoders():
        return MODELS_FOLDER / what
    path = Path(_check.path(what, "the set"))
    if not path.exists():
        names = ", ".join(embedded_transcoders()) or "none in this build"
        text = f"no file or folder {str(what)[:200]!r}; transcoders that come with attnsparse: {names}"
        raise FileNotFoundError(errno.ENOENT, text)
    return path


def _count_layers(stored: StoredSet, model: Model | None) -> int | None:
    """Layers of the model, by the files or else by the model; None if neither is given."""
    if stored.n_layer is not None or model is None:
        return stored.n_layer
    return max(model.config.n_layer, max(stored.layers) + 1)


def _read(path: Path, limits: Limits) -> StoredSet:
    if path.is_dir():
        for reader in _READERS:
            if reader.is_here(path):
                found: StoredSet = reader.read(path, limits)
                return found
        text = (
            f"no transcoders in this folder; looked for {clt_forge.CONFIG}, {_CONFIG}, "
            f"layer_0.safetensors, W_enc_0.safetensors, {saelens.CONFIG} in folders, .pt files"
        )
        raise FileNotFoundError(errno.ENOENT, text, os.fspath(path))
    if path.suffix in (".yaml", ".yml"):
        return circuit_tracer.read(path, limits)
    if path.suffix == ".pt":
        return dunefsky.read(path, limits)
    text = "not a kind of file that describes a set; give the folder, or a .yaml or .pt file"
    raise file_error(FormatError, "magic", path, text)


def _settle_hook(stored: StoredSet, given: str | None) -> str:
    """What the encoders read, by the files or else by the argument."""
    wanted = INPUT_HOOKS[given] if given is not None else None
    if stored.input_hook is None and wanted is None:
        text = f"no {_CONFIG} says what the encoders read; pass input_hook='ln2.hook_normalized' or another"
        raise file_error(ConfigError, "config_missing", stored.path, text, field="input_hook")
    if None not in (stored.input_hook, wanted) and stored.input_hook != wanted:
        text = f"the files say that the encoders read {stored.input_hook}, input_hook says {given}"
        raise file_error(ConfigError, "hook", stored.path, text, field="input_hook")
    return stored.input_hook or str(wanted)


def _settle_processing(stored: StoredSet, hook: str, given: bool | None) -> bool:
    """Whether the set was trained on a model with processed weights, as far as that matters."""
    if hook == NORMALIZED:
        return False
    if stored.processed is None and given is None:
        text = (
            f"reads {hook}, and no file says whether the model had TransformerLens's weight processing; "
            "pass processed=True or processed=False"
        )
        raise file_error(ConfigError, "processing", stored.path, text, field="processed")
    return bool(stored.processed if given is None else given)


def _input_changes(
    stored: StoredSet, hook: str, processed: bool, model: Model | None
) -> dict[int, InputChange]:
    """What each layer was trained on, in terms of what it will read."""
    layers = tuple(stored.layers)
    if hook == RESID_MID and processed:
        return dict.fromkeys(layers, InputChange(centred=True))
    if hook != MLP_IN or processed:
        return {}
    if model is None:
        text = (
            "reads mlp.hook_in, the LayerNorm's output with weight and bias; pass the model, which holds them"
        )
        raise file_error(ConfigError, "hook", stored.path, text, field="model")
    for field, own in (("n_layer", _count_layers(stored, model)), ("d_model", stored.d_model)):
        if own != getattr(model.config, field):
            text = f"the transcoders have {field}={own}, the model has {getattr(model.config, field)}"
            raise file_error(ConfigError, "config_value", stored.path, text, field=field)
    parameters = model.parameters()
    changes = {}
    for layer in layers:
        scale, shift = (parameters.get(f"h.{layer}.ln_2.{part}") for part in ("weight", "bias"))
        shift = None if shift is None else np.array(shift, np.float32)
        changes[layer] = InputChange(np.array(scale, np.float32), shift)
    return changes


def _read_all(source: StoredWeights) -> None:
    """Read every weight once; whatever is wrong with one raises."""
    for layer, stored in source.layers.items():
        n = stored.n_features
        source.encoder(layer)
        source.output_bias(layer)
        source.skip(layer)
        for begin in range(0, n, _VERIFIED_ROWS):
            source.decoder_rows(layer, np.arange(begin, min(begin + _VERIFIED_ROWS, n)))
