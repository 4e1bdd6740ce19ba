"""A process that saves a model over and over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attnsparse as asp
from attnsparse.model.initial_weights import initial_weights


def made(gated: bool = False, n_vocab: int = 32) -> asp.Model:
    config = asp.Config(
        n_layer=2, n_head=2, d_model=16, d_head=8, d_mlp=32, n_ctx=16, n_vocab=n_vocab, gated=gated
    )
    return asp.Model(config, initial_weights(config, int(gated)))


def save_until(stop: Any, gated: bool, folder: Path) -> None:
    """Save until the event `stop` is set."""
    while not stop.is_set():
        made(gated).save(folder)
