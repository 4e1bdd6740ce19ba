"""What this build is, what machine it runs on, and what that means for the bits of a result."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from .._engine import core_for
from .._version import __version__
from .config import Config

if TYPE_CHECKING:
    from .. import _core

# (heads, head width, model width, MLP width, vocabulary): below and above every block, even and odd
_TRIED = (
    (4, 16, 64, 256, 14),
    (12, 8, 96, 192, 800),
    (12, 64, 768, 3072, 1000),
    (3, 16, 48, 1, 2),
    (3, 11, 33, 37, 7),
    (1, 5, 257, 3, 1201),
)


def build_info() -> dict[str, Any]:
    """What this build is and what it found on this machine.

    Returns
    -------
    dict
        Version, instruction set, BLAS and threads. ``batch_invariant`` says whether a prompt alone has the
        same bits in float32 as in any batch; it is tried here with widths of every kind, because it depends
        on the kernels that OpenBLAS has for the CPU.
    """
    machine = core_for("float32").machine()
    return {"version": __version__, **machine, "batch_invariant": batch_invariant()}


def batch_invariant() -> bool:
    """Try on this CPU whether a prompt's float32 logits are the same bits alone and among other prompts."""
    rng = np.random.default_rng(0)
    for shape in _TRIED:
        model = _random_core(rng, *shape)
        lengths = (1, 5, 8, 11, 30, 64, 64, 3)
        prompts = [rng.integers(0, shape[-1], n).astype(np.int32) for n in lengths]
        offsets = np.cumsum([0, *map(len, prompts)]).astype(np.int64)
        together = model.run(np.concatenate(prompts), offsets, ()).array("logits")
        for prompt, first, last in zip(prompts, offsets[:-1], offsets[1:]):
            alone = model.run(prompt, np.array([0, len(prompt)]), ()).array("logits")
            if not np.array_equal(alone, together[first:last]):
                return False
    return True


def _random_core(
    rng: np.random.Generator, n_head: int, d_head: int, d_model: int, d_mlp: int, n_vocab: int
) -> _core.Model:
    config = Config(
        n_layer=1, n_head=n_head, d_model=d_model, d_head=d_head, d_mlp=d_mlp, n_ctx=64, n_vocab=n_vocab
    )
    model: _core.Model = core_for("float32").Model(dataclasses.asdict(config))
    for name in model.names:
        model._writable(name)[...] = 0.05 * rng.standard_normal(model.shape(name), dtype=np.float32)
    return model
