"""What `attnsparse info` prints."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from .. import build_info, load, load_transcoders
from ..errors import ConfigError, FormatError
from ..model.locate import embedded_names
from ..model.model import Model
from ..transcoders.arrays import shape_text
from ..transcoders.load import embedded_transcoders
from ..transcoders.transcoders import Transcoders

# Names that OpenBLAS gives to its kernels for CPUs without AVX, and without AVX2. On a newer machine they
# mean that the library did not know the CPU, which costs a factor of up to 5.
_BEFORE_AVX = {
    "Prescott", "Core2", "Penryn", "Dunnington", "Nehalem", "Atom", "Opteron", "Opteron_SSE3", "Barcelona",
    "Bobcat", "Katmai", "Coppermine", "Northwood", "Banias", "Athlon", "Nano", "Generic",
}  # fmt: skip
_BEFORE_AVX2 = {"Sandybridge", "Bulldozer", "Piledriver", "Steamroller"}

Lines = list[tuple[str, str]]


def describe_build() -> tuple[Lines, list[str]]:
    """(name, value) of what is installed and how it computes, and notes to be given as warnings."""
    info = build_info()
    same = info["batch_invariant"]
    lines = [
        ("attnsparse", str(info["version"])),
        ("instruction set", str(info["isa"])),
        ("BLAS core", str(info["blas_core"])),
        ("BLAS configuration", str(info["blas_config"])),
        ("threads", f"{info['threads']} (this process may use {info['default_threads']})"),
        ("prompt alone = in batch", "yes, bit for bit" if same else "no"),
        ("models inside", ", ".join(embedded_names()) or "none"),
        ("transcoders inside", ", ".join(embedded_transcoders()) or "none"),
    ]
    note = old_blas_core(info)
    return lines, [note] if note else []


def old_blas_core(info: Mapping[str, object]) -> str | None:
    """A sentence if BLAS runs kernels for an older kind of CPU than ours, else None."""
    old = {"avx2": _BEFORE_AVX | _BEFORE_AVX2, "avx512": _BEFORE_AVX | _BEFORE_AVX2}
    if info["blas_core"] not in old.get(str(info["isa"]), set()):
        return None
    return (
        f"BLAS takes this CPU for a {info['blas_core']}, which is older than {info['isa']}: matrix products "
        "run several times slower than they could; a newer OpenBLAS knows the CPU"
    )


def describe(name: str) -> Lines:
    """(name, value) about a model or a set of transcoders; what `load` raises if it is neither."""
    try:
        return _of_model(load(name))
    except (OSError, FormatError, ConfigError) as error:
        with contextlib.suppress(OSError, FormatError, ConfigError):
            return _of_transcoders(load_transcoders(name))
        raise error


def _of_transcoders(transcoders: Transcoders) -> Lines:
    top_k = f", k = {transcoders.top_k}" if transcoders.top_k else ""
    return [
        ("transcoders", transcoders.name),
        ("of the model", transcoders.model_name or "(the files do not say)"),
        ("kind", "cross-layer" if transcoders.cross_layer else "one per layer"),
        ("shape", f"{shape_text(transcoders.n_features)}, width {transcoders.d_model}"),
        ("activation", f"{transcoders.activation}{top_k}"),
        ("reads", transcoders.input_hook),
        ("writes", transcoders.output_hook),
    ]


def _of_model(model: Model) -> Lines:
    config = model.config
    gate = f"gated, gate_bias {config.gate_bias:g}" if config.gated else "dense"
    if config.self_closed:
        gate += ", no self edges"
    tokenizer = model.tokenizer
    return [
        ("model", model.name),
        (
            "shape",
            f"{config.n_layer} layers x {config.n_head} heads, width {config.d_model}, MLP {config.d_mlp}",
        ),
        ("attention", gate),
        ("context", f"{config.n_ctx:,} tokens"),
        ("vocabulary", f"{config.n_vocab:,}" + ("" if tokenizer is None else f", {tokenizer!r}")),
        ("weights", f"{config.n_parameters():,}"),
        ("SHA-256", model.digest),
    ]
