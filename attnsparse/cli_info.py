"""What `attnsparse info` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    from . import build_info

    info = build_info()
    same = info["batch_invariant"]
    lines = [
        ("attnsparse", str(info["version"])),
        ("instruction set", str(info["isa"])),
        ("BLAS core", str(info["blas_core"])),
        ("BLAS configuration", str(info["blas_config"])),
        ("threads", f"{info['threads']} (this process may use {info['default_threads']})"),
        ("prompt alone = in batch", "yes, bit for bit" if same else "no"),
        ("models inside", ", ".join(embedded_models()) or "none"),
    ]
    note = old_blas_core(info)
    return lines, [note] if note else []


def embedded_models() -> list[str]:
    """Names of the models inside the package."""
    from importlib.resources import files

    folder = files(__package__) / "models"
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def old_blas_core(info: Mapping[str, Any]) -> str | None:
    """A sentence if BLAS runs kernels for an older kind of CPU than ours, else None."""
    old = {"avx2": _BEFORE_AVX | _BEFORE_AVX2, "avx512": _BEFORE_AVX | _BEFORE_AVX2}
    if info["blas_core"] not in old.get(info["isa"], set()):
        return None
    return (
        f"BLAS takes this CPU for a {info['blas_core']}, which is older than {info['isa']}: matrix products "
        "run several times slower than they could; a newer OpenBLAS knows the CPU"
    )


def describe_model(name: str) -> Lines:
    """(name, value) about one model."""
    from . import load

    model = load(name)
    config = model.config
    gate = f"gated, gate_bias {config.gate_bias:g}" if config.gated else "dense"
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
