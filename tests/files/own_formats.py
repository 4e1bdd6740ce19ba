"""Every format that attnsparse writes to keep something: how to save one of two versions, and what a folder
holds when it is read again. For tests of failing disks, lost power and files of earlier releases."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiny_training
from fake_circuit import fake_circuit

import attnsparse as asp
from attnsparse.training.trainer import Trainer

SIZES = {"n_layer": 1, "n_head": 2, "d_model": 4, "d_head": 2, "d_mlp": 6, "n_ctx": 9, "n_vocab": 11}
STEPS = 9


class Format(NamedTuple):
    """`make` gives version 0 or 1 of a thing, `save` writes it into a folder, `load` reads what is there."""

    make: Callable[[int], Any]
    save: Callable[[Any, Path], None]
    load: Callable[[Path], Any]


def content(thing: Any) -> str:
    """A checksum of all that a loaded thing holds."""
    total = hashlib.sha256()
    for value in _parts(thing):
        array = isinstance(value, np.ndarray)
        total.update(value.dtype.str.encode() + value.tobytes() if array else repr(value).encode())
        total.update(b"|")
    return total.hexdigest()


def _parts(thing: Any) -> list[Any]:
    if isinstance(thing, Trainer):
        moments = [m for name in thing.model.parameters() for m in thing._engine.moments(name)]
        state = (thing.step_count, thing.multiplier, thing._engine.ema, thing.options, thing._history.results)
        return [*moments, *_parts(thing.model), state]
    if isinstance(thing, asp.Model):
        vocabulary = None if thing.tokenizer is None else thing.tokenizer.to_json()
        return [*thing.parameters().values(), thing.config, vocabulary]
    if isinstance(thing, asp.Transcoders):
        source, layers = thing.source, range(thing.n_layer)
        arrays = [a for i in layers for a in (source.encoder(i).w_enc, source.encoder(i).b_enc)]
        arrays += [source.decoder_rows(i, np.arange(thing.n_features[i])) for i in layers]
        arrays += [source.output_bias(i) for i in layers]
        return [*arrays, thing.activation, thing.cross_layer, thing.model_name, thing.scan]
    return [value for _, value in sorted(vars(thing).items())]


# ---- training


def trainer(version: int) -> Trainer:
    """After 3 or 6 of its steps."""
    model = asp.Model(asp.Config(**SIZES, gated=True), initial(version), name="tiny")
    begun = Trainer(model, tiny_training.data(), options(), threads=1)
    return begun.train(progress=False, until=3 + 3 * version)


def options() -> Any:
    return tiny_training.options(STEPS, gate_bias=1.0, edge_weight=1.0)


def initial(seed: int) -> dict[str, np.ndarray]:
    from attnsparse.model.initial_weights import initial_weights

    return initial_weights(asp.Config(**SIZES, gated=True), seed, std=0.3)


def resumed(folder: Path) -> Trainer:
    return Trainer.resume(folder / "a", tiny_training.data(), threads=1)


def run(version: int, folder: Path) -> None:
    """A run that saves by itself and keeps only its last checkpoint: up to step 3, or on to step 6."""
    how: dict[str, Any] = {"threads": 1, "folder": folder, "checkpoint_every": 3, "keep": 1}
    model = asp.Model(asp.Config(**SIZES, gated=True), initial(0), name="tiny")
    if version:
        begun = Trainer.resume(folder, tiny_training.data(), **how)
    else:
        begun = Trainer(model, tiny_training.data(), options(), **how)
    begun.train(progress=False, until=3 + 3 * version)


# ---- the others


def model(version: int) -> asp.Model:
    words = [*"abcdefghij", "<bos>"]
    tokenizer = asp.Tokenizer.from_words(words[:: 1 - 2 * version], split="characters", bos="<bos>")
    return asp.Model(asp.Config(**SIZES, gated=True), initial(version), name="tiny", tokenizer=tokenizer)


def transcoders(version: int) -> asp.Transcoders:
    """Cross-layer, so that there are several files to each layer."""
    random = np.random.default_rng(version)

    def draw(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    source = asp.ArraySource(
        [draw(5, 4), draw(5, 4)], [draw(5), draw(5)], [draw(5, 2, 4), draw(5, 1, 4)], [draw(4), draw(4)]
    )
    return asp.Transcoders(source, model_name="tiny", scan=f"set {version}")


def circuit(version: int) -> asp.Circuit:
    return fake_circuit([0, 0.5, 0.9, 1] if version else [0, 0.7, 1], n_prompts=4, name=f"tiny {version}")


def graph(version: int) -> asp.Graph:
    from graph_toys import PROMPT, toy

    options = {"max_feature_nodes": 4, "max_n_logits": 1 + version, "progress": False}
    return asp.attribution_graph(*toy(), PROMPT[:2], **options)


FORMATS = {
    "training": Format(trainer, lambda thing, folder: thing.save(folder / "a"), resumed),
    "model": Format(model, lambda thing, folder: thing.save(folder), asp.load),
    "transcoders": Format(transcoders, asp.save_transcoders, asp.load_transcoders),
    "circuit": Format(
        circuit, lambda thing, folder: thing.save(folder / "c"), lambda folder: asp.load_circuit(folder / "c")
    ),
    "graph": Format(
        graph, lambda thing, folder: thing.save(folder / "g"), lambda folder: asp.load_graph(folder / "g")
    ),
}
#: the last checkpoint of a folder in which a run saves and removes; its history.csv differs every time
RUN = {"run": Format(int, run, lambda folder: Trainer.resume(folder, tiny_training.data(), threads=1))}
