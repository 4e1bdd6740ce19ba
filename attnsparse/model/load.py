"""Loads a model from everything that GPT-2-like weights come in, and saves one as a Hugging Face folder.

All checks that need no data (config, names, shapes, sizes, tokenizer) are made before the weights are
allocated; then each tensor is read straight into the model's own memory.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .. import _check
from ..errors import ConfigError, FormatError, NonFiniteError, file_error, file_label, printable, quoted
from ..io.atomic import File, write_together
from ..io.bundle import Bundle
from ..io.folder_commit import read_whole
from ..io.foreign import family_of
from ..io.limits import DEFAULT_LIMITS, Limits
from ..io.safetensors_file import safetensors_pieces
from ..io.tensor_source import TensorSource
from . import hub
from .config import Config
from .hf_config import (
    derive_head_width,
    hugging_face_config,
    is_hugging_face,
    is_ours,
    read_config,
    read_config_json,
)
from .locate import MODELS_FOLDER, TRAINING, Found, find, is_training, open_weights, tensor_shapes
from .model import Model
from .tensor_names import BRIDGE, TRANSFORMER_LENS, Names, Placement
from .tokenizer import Tokenizer, token_texts
from .tokenizer.files import FILES
from .tokenizer.sidecars import GPT2_BOS
from .travel import Origin

GPT2_VOCAB, GPT2_PADDED_VOCAB = 50_257, 50_304
# fields that must be known -> the key of config.json that says them
_ASKED = {"n_layer": "n_layer", "n_head": "n_head", "d_model": "n_embd", "d_mlp": "n_inner",
          "n_ctx": "n_positions", "activation": "activation_function"}  # fmt: skip
# how a value of one of them is written, and which others there are
_EXAMPLES = {
    "activation_function": ("'gelu_new'", "; it may be 'gelu' or 'relu' too"),
    "normalization_type": (
        "'LNPre'",
        "; 'LNPre' means folded LayerNorms, and a model without any LayerNorm is not read",
    ),
}
# files of an earlier model in the folder, beyond those that `save` writes
_WEIGHT = "weight/"  # begins the names of weights in a training checkpoint
_INDEX = "model.safetensors.index.json"
_COMMIT = re.compile("[0-9a-f]{40}")  # name of a folder in the cache of the hub
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def load(
    what: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    allow_nonfinite: bool = False,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    revision: str | None = None,
    gated: bool | None = None,
    config: Mapping[str, Any] | None = None,
    strict: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Model:
    """Load a model from everything that GPT-2-like weights come in.

    Files are read as data: nothing in them is ever run. A folder into which a model is saved meanwhile is
    read again, so that the old model or the new one is found.

    Parameters
    ----------
    what : str or path
        The name of a model that comes with the package; a folder in Hugging Face format (safetensors, in one
        file or several, or pytorch_model.bin), or with one weight file of another kind; a single
        .safetensors, .bin, .pth, .pt or .ckpt file (config.json beside it, or `config`); a file ending in
        .checkpoint.safetensors that a `Trainer` saved, which holds no tokenizer; or ``owner/name`` on the
        Hugging Face hub (needs ``pip install attnsparse[hub]``), for which
        "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl" and "distilgpt2" are short. docs/howto.md lists
        the layouts.
    dtype : {"float32", "float64"}
        Of weights and activations.
    allow_nonfinite : bool, default False
        Load weights with NaN or infinity too.
    tokenizer : Tokenizer, str or path, optional
        In place of the one beside the weights: what `Tokenizer.load` takes, such as "gpt2"; without either
        the model has none.
    revision : str, optional
        Branch, tag or commit of a repository on the hub.
    gated : bool, optional
        Whether attention is gated. By default the config says so; if it does not, weights in a file ending in
        final.pth are gated, except in a folder or repository whose name begins with "Dense" (the published
        pairs are named like that).
    config : mapping, optional
        Keys of config.json, of any layout that is read (transformers, nanoGPT, ``cfg.to_dict()`` of
        TransformerLens); they override the file. It must say what neither file nor weights show: `n_head`,
        `activation_function` and, without LayerNorm weights, `normalization_type`. These are never guessed.
        What is inside a config of transformers or nanoGPT may be absent as there, with their defaults.
    strict : bool, default False
        Refuse tensors that no logit needs (value, score and classifier heads, losses and metrics, state of an
        optimizer). Otherwise a UserWarning names them and they are left out. A tensor that is unknown and may
        change logits is always refused.
    limits : Limits, optional
        Largest sizes that are read.

    Returns
    -------
    Model

    Raises
    ------
    FormatError
        For bad files; UnsafeFileError and LimitError are FormatErrors.
    ConfigError
        Where config, weights and tokenizer do not fit together.
    NonFiniteError
        For NaN or infinity, unless `allow_nonfinite`.
    FileNotFoundError
        If nothing is found; other OSErrors pass unchanged.
    """
    _check.choice(dtype, "dtype", ("float32", "float64"))
    if gated is not None:
        _check.flag(gated, "gated")
    _check.flag(allow_nonfinite, "allow_nonfinite")
    _check.flag(strict, "strict")
    _check.instance(limits, Limits, "limits")
    given = _checked_config(config)
    path = Path(_check.path(what, "the model"))

    def read() -> Model:
        found = find(what, revision)
        if is_training(found.weights):
            _refuse_config(found.weights, gated, given)
            model = _read_training(found, dtype, allow_nonfinite, tokenizer, limits)
        else:
            model = _read_model(found, dtype, allow_nonfinite, tokenizer, gated, given, strict, limits)
        own = None if tokenizer is None else model.tokenizer
        where = _where(found, path, revision)
        model._set_origin(Origin(*where, allow_nonfinite, own, gated, given, strict, limits), model.tokenizer)
        return model

    return read_whole(path if path.is_dir() else path.parent, read)


def _where(found: Found, path: Path, revision: str | None) -> tuple[str, str | None]:
    """What to load, and which revision, to find the same in another process: the commit where it is known."""
    if found.from_hub:
        commit = found.folder.name
        return found.name, commit if _COMMIT.fullmatch(commit) else revision
    if found.folder.parent == MODELS_FOLDER:
        return found.folder.name, revision
    return os.path.abspath(path), revision


def _read_model(
    found: Found,
    dtype: str,
    allow_nonfinite: bool,
    tokenizer: Tokenizer | str | os.PathLike[str] | None,
    gated: bool | None,
    given: dict[str, Any],
    strict: bool,
    limits: Limits,
) -> Model:
    config_path, values = read_config_json(found.folder, limits)
    tokens = _tokenizer(tokenizer, found, limits)
    with open_weights(found.weights, limits) as source:
        names = Names(tensor_shapes(source.tensors), source.path, source.shared)
        if values is None and source.config is not None:
            config_path, values = found.weights, dict(source.config)
        if given:
            config_path, values = (config_path, values) if values else (Path("config"), {})
            values = values | given
        _check_family(names, source.path)
        fields = read_config(values, config_path, names.sizes()) if values is not None else {}
        if gated is not None or "gated" not in fields:
            fields["gated"] = _is_gated(found) if gated is None else gated
        rows = _settle_vocabulary(fields, names, tokens, ours=values is not None and is_ours(values))
        settled = _complete(fields, names, source, config_path, values, released=found.sparse_release)
        linear = names.bridge_is_linear((values or {}).get("architecture"))
        placements = names.place(settled, rows, linear)
        _report_left_out([*source.left_out, *names.left_out], source.path, strict=strict)
        n_bytes = settled.n_parameters() * np.dtype(dtype).itemsize
        limits.check(
            "max_weight_bytes", n_bytes, source.path, f"a model of {n_bytes:,} bytes", code="weight_limit"
        )
        model = Model(settled, dtype=dtype)
        _fill(model, source, placements, names)
        if not allow_nonfinite:
            _check_finite(model, source.path, placements)
    model.name = found.name
    model.tokenizer = tokens
    _warn_of_tokens_without_rows(model, names.path)
    return model


def _refuse_config(path: Path, gated: bool | None, given: Mapping[str, Any]) -> None:
    if gated is not None or given:
        text = "a training checkpoint has its own configuration; load it without gated= and config="
        raise file_error(ConfigError, "config_value", path, text)


def _read_training(
    found: Found,
    dtype: str,
    allow_nonfinite: bool,
    tokenizer: Tokenizer | str | os.PathLike[str] | None,
    limits: Limits,
) -> Model:
    """The model of a training checkpoint, whose other parts are checked and left."""
    with Bundle(found.weights, TRAINING, limits=limits) as bundle:
        config = bundle.fields.get("config")
        if not isinstance(config, dict):
            raise file_error(
                FormatError, "header_value", bundle.path, "'config' must be an object", field="config"
            )
        settled = Config.from_dict(config)
        n_bytes = settled.n_parameters() * np.dtype(dtype).itemsize
        limits.check(
            "max_weight_bytes", n_bytes, bundle.path, f"a model of {n_bytes:,} bytes", code="weight_limit"
        )
        tokens = _tokenizer(tokenizer, found, limits)
        weights = {name.removeprefix(_WEIGHT): array for name, array in bundle.read_all(_WEIGHT).items()}
        model = Model(settled, weights, tokens, found.name, dtype)
        bad = None if allow_nonfinite else model._core.nonfinite()
        if bad is not None:
            text = f"{quoted(bad[0])} has non-finite values; pass allow_nonfinite=True to load it anyway"
            raise file_error(NonFiniteError, "nonfinite", bundle.path, text, field=bad[0])
    return model


def save(model: Model, folder: str | os.PathLike[str]) -> None:
    """Write model.safetensors, config.json and, if the model has one, its tokenizer to `folder`.

    The files are written beside their places, flushed to the disk and then moved there, config.json last, so
    that `load` finds the old model or the new one, whatever stops the save and whoever else saves into the
    folder. Files of a model that the folder held before, its tokenizer or shards, are removed.

    Parameters
    ----------
    model : Model
    folder : path
        Made if it does not exist.

    Raises
    ------
    OSError
        With errno and file name.
    RuntimeError
        While another thread trains the model.

    Notes
    -----
    Weights are stored as float32. ``GPT2LMHeadModel.from_pretrained(folder)`` of transformers reads the
    folder without missing or unexpected weights, if the model is one that it can express: not gated,
    with all biases, without a bias of the unembedding, and n_head * d_head = d_model. The rest is kept
    in config.json under names that begin with `attnsparse_`, which only attnsparse reads; transformers
    would run a gated model as an ordinary one.
    """
    _check.instance(model, Model, "model")
    folder = Path(_check.path(folder, "folder"))
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    weights = {
        name if name.startswith("lm_head") else "transformer." + name: model.parameter(name)
        for name in config.parameter_shapes()
    }
    bos_id = model.tokenizer.bos_id if model.tokenizer is not None else None
    text = json.dumps(hugging_face_config(config, bos_id), indent=2) + "\n"
    files: list[File] = [(folder / "model.safetensors", safetensors_pieces(weights, {"format": "pt"}))]
    if model.tokenizer is not None:
        texts = model.tokenizer.to_files()
        files += [(folder / name, [text.encode()]) for name, text in texts.items()]
    files.append((folder / "config.json", [text.encode()]))
    with model._core.reading():
        write_together(files, _of_another_model(folder))


def _of_another_model(folder: Path) -> list[str]:
    """Files of a folder that would be taken for a part of the model that is saved there."""
    return [*FILES, _INDEX, *(name for name in os.listdir(folder) if _SHARD.fullmatch(name))]


def _tokenizer(
    given: Tokenizer | str | os.PathLike[str] | None, found: Found, limits: Limits
) -> Tokenizer | None:
    """The tokenizer given, else the one beside the weights, else GPT-2's for a sparse release of the hub."""
    if isinstance(given, Tokenizer):
        return given
    if given is not None:
        return Tokenizer.load(given, limits=limits)
    if Tokenizer.is_in(found.folder):
        return Tokenizer.load(found.folder, limits=limits)
    if found.from_hub and found.sparse_release:
        folder = hub.fetch_gpt2_tokenizer()
        return Tokenizer.load(folder, limits=limits) if folder is not None else None
    return None


def _is_gated(found: Found) -> bool:
    folder = found.name.rsplit("/")[-1] if found.from_hub else found.folder.resolve().name
    return found.sparse_release and not folder.startswith("Dense")


def _settle_vocabulary(fields: dict[str, Any], names: Names, tokens: Tokenizer | None, *, ours: bool) -> int:
    """Set fields["n_vocab"] and return the number of rows stored: GPT-2's padding to 50,304 is cut off."""
    rows: int = names.sizes().get("n_vocab", 1)
    declared: int = fields.get("n_vocab", rows)
    if not ours and rows == GPT2_PADDED_VOCAB and declared in (GPT2_VOCAB, GPT2_PADDED_VOCAB):
        known = tokens.n_vocab if tokens is not None else GPT2_VOCAB
        fields["n_vocab"] = min(max(known, GPT2_VOCAB), GPT2_PADDED_VOCAB)
    else:
        fields["n_vocab"] = rows = declared
    return rows


def _warn_of_tokens_without_rows(model: Model, path: str) -> None:
    """A token that was added without a row, such as a padding token, does no harm until it is used."""
    tokens, rows = model.tokenizer, model.config.n_vocab
    ids = range(rows, rows if tokens is None else tokens.n_vocab)
    # GPT-2's class of transformers adds its own token where a vocabulary lacks it, and so it is there unasked
    named = [(i, text) for i, text in zip(ids, token_texts(tokens, ids)) if text != GPT2_BOS]
    if tokens is None or not named:
        return
    listed = ", ".join(f"{quoted(text)} ({i:,})" for i, text in named[:5])
    warnings.warn(
        f"{file_label(tokens.path or path)}: the embedding has {rows:,} rows; tokens that cannot be used: "
        f"{listed}{f' and {len(named) - 5:,} more' if len(named) > 5 else ''}",
        stacklevel=6,
    )


def _checked_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    if config is None:
        return {}
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise TypeError(f"config must be a dict of keys of config.json, got {type(config).__name__}")
    return dict(config)


def _check_family(names: Names, path: str) -> None:
    """Say whose weights these are if they are not GPT-2's."""
    if not any(map(names.has, ("wte.weight", "wpe.weight", "embed.W_E", "embed.weight"))):
        family = family_of(names.source.values())
        if family:
            raise file_error(ConfigError, "other_model", path, family)


def _report_left_out(left_out: list[str], path: str, *, strict: bool) -> None:
    if not left_out:
        return
    more = f" and {len(left_out) - 4:,} more" if len(left_out) > 4 else ""
    listed = ", ".join(map(quoted, left_out[:4])) + more
    if strict:
        text = f"strict=True refuses what no logit needs: {listed}; pass strict=False to leave it out"
        raise file_error(ConfigError, "unexpected_tensor", path, text, field=left_out[0])
    text = f"{file_label(path)}: left out, because no logit needs it: {listed}"
    warnings.warn(printable(text), UserWarning, stacklevel=6)


def _complete(
    fields: dict[str, Any],
    names: Names,
    source: TensorSource,
    config_path: Path,
    values: Mapping[str, Any] | None,
    *,
    released: bool,
) -> Config:
    """Fill in what the config leaves open from the names and shapes of the tensors."""
    fields = {**names.sizes(), **fields}
    derive_head_width(fields, config_path if values is not None else source.path)
    if names.layout in (TRANSFORMER_LENS, BRIDGE):
        head = "unembed.W_U" if names.layout == TRANSFORMER_LENS else "unembed.weight"
        bias = "unembed.b_U" if names.layout == TRANSFORMER_LENS else "unembed.bias"
        fields["tied"] = not names.has(head)
        fields["bias"] = True
        fields["unembed_bias"] = names.has(bias) and bool(np.any(source.read(names.source[bias])))
    else:
        if names.layout != "hugging_face":
            fields.setdefault("bias", any(name.endswith(".bias") for name in names.shapes))
        if fields.get("tied") is not False:
            names.share_head()
        fields["tied"] = _is_tied(fields.get("tied"), names, source)
        fields.setdefault("unembed_bias", names.has("lm_head.bias"))
    missing = [key for name, key in _ASKED.items() if name not in fields]
    if names.layernorm_folded and not released:
        missing += _unsaid_normalization(values, config_path)
    if missing:
        _ask_for(missing, source.path, None if values is None else config_path)
    return Config(**fields)


def _ask_for(keys: list[str], path: str, config_path: Path | None) -> NoReturn:
    """Say what neither the config (if there is one) nor the weights show, and how to say it."""
    where = f"{config_path.name} does not say" if config_path else "there is no config.json beside it to say"
    examples = [_EXAMPLES.get(key, ("...", "")) for key in keys]
    given = ", ".join(f"{key!r}: {value}" for key, (value, _) in zip(keys, examples))
    meaning = "".join(text for _, text in examples)
    text = f"{where} {', '.join(keys)}, nor do the weights; pass config={{{given}}}{meaning}"
    raise file_error(ConfigError, "config_missing", config_path or path, text, field=keys[0])


def _unsaid_normalization(values: Mapping[str, Any] | None, path: Path) -> list[str]:
    """What to ask where no LayerNorm has weights: they were folded, or there are none in the model."""
    kind = (values or {}).get("normalization_type")
    if kind == "LN":
        text = 'is "LN" but the weights hold no LayerNorm; if they were folded, it is "LNPre"'
        raise file_error(
            ConfigError, "config_value", path, f"normalization_type {text}", field="normalization_type"
        )
    return [] if kind is not None or is_hugging_face(values or {}) else ["normalization_type"]


def _is_tied(declared: bool | None, names: Names, source: TensorSource) -> bool:
    if not names.has("lm_head.weight") or declared is False or not names.has("wte.weight"):
        return declared is not False
    head, table = names.source["lm_head.weight"], names.source["wte.weight"]
    same = head == table or source.same_values(head, table)
    if declared and not same:
        text = "lm_head.weight is not wte.weight but tie_word_embeddings is true; set it to false"
        raise file_error(ConfigError, "tied_mismatch", source.path, text, field=head)
    return same


def _fill(model: Model, source: TensorSource, placements: list[Placement], names: Names) -> None:
    """Read every tensor into its place; a folded LayerNorm becomes scale 1 and shift 0."""
    core = model._core
    for item in placements:
        out = item.view(core._writable(item.ours))
        source.read_into(item.source, out)
    if names.layernorm_folded:
        for name in core.names:
            if name.endswith((".ln_1.weight", ".ln_2.weight")) or name == "ln_f.weight":
                core._writable(name)[...] = 1


def _check_finite(model: Model, path: str, placements: list[Placement]) -> None:
    found = model._core.nonfinite()
    if found is None:
        return
    for item in placements:
        if item.ours != found[0]:
            continue
        bad = ~np.isfinite(item.view(model._core._writable(item.ours)))
        if bad.any():
            first = [int(at) for at in np.unravel_index(int(np.argmax(bad)), bad.shape)]
            text = (
                f"{quoted(item.source)} has {int(bad.sum()):,} non-finite values, first at {first}; "
                "pass allow_nonfinite=True to load it anyway"
            )
            raise file_error(NonFiniteError, "nonfinite", path, text, field=item.source)
