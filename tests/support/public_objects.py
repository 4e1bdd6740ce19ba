"""One of each object of the package, and how uses of it are written down; see public_calls.py."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import reliability
from reliability import PROMPTS, TOKENS

import attnsparse as asp
from attnsparse import _core
from attnsparse._core_types import Reads
from attnsparse.circuits import effects
from attnsparse.graphs.targets import feature_targets, logit_targets
from attnsparse.model import gradients
from attnsparse.tasks.task import Task
from attnsparse.training.data import SequenceData

ALL = ("all", "edges")
WRT = ("parameters", *gradients.ACTIVATIONS)
CORE_GRAPH_ARRAYS = (
    "kind", "layer", "position", "feature", "value", "probability", "start", "source", "weights", "carried",
    "received", "received_alone",
)  # fmt: skip


def small_transcoders(dtype: str = "float32", **fields: Any) -> asp.Transcoders:
    """Random ones for the model of reliability.py: cross-layer, a skip in layer 1, 40 features a layer."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return (0.3 * random.standard_normal(shape)).astype(dtype)

    arrays = [[draw(*s), draw(*s)] for s in ((40, 64), (40,))]
    fields = {"activation": "jump_relu"} | fields
    source = asp.ArraySource(
        *arrays,
        [draw(40, 2, 64), draw(40, 1, 64)],
        [draw(64), draw(64)],
        threshold=arrays[1] if fields["activation"] == "jump_relu" else None,
        skip=[None, draw(64, 64)],
    )
    return asp.Transcoders(source, **fields)


def small_task(n_vocab: int = 96) -> Task:
    """Four prompts of eight tokens, two in each half."""
    clean = tuple(((TOKENS + 7 * i) % n_vocab).astype(np.int32) for i in range(4))
    corrupted = tuple(((row + 1) % n_vocab).astype(np.int32) for row in clean)
    answers, wrong = ((np.array([token], np.int32),) * 4 for token in (5, 7))
    halves = np.array([True, False, True, False])
    return Task("small", "logit_diff", None, clean, corrupted, answers, wrong, ("",) * 4, halves)  # type: ignore


class Everything:
    """One of each object; on leaving the `with` block it lets go of all of them."""

    def __enter__(self) -> Everything:
        self.folder = Path(tempfile.mkdtemp())
        self.model = reliability.model()
        self.one = self.model.run(TOKENS, record=ALL, threads=1)
        self.ragged = self.model.run(PROMPTS, record=ALL, threads=1)
        self.even = self.model.run([TOKENS, TOKENS], record=ALL, threads=1)
        self.plain = self.model.run(TOKENS, "none", logits="none", threads=1)
        self.gradients = self.model.gradients(TOKENS, wrt=WRT, threads=1)
        self.many_gradients = self.model.gradients(PROMPTS, wrt=WRT, threads=1)
        self.cache = self.model.run_with_cache(TOKENS)[1]
        self.stack = self.cache.decompose_resid()
        self.short_cache = self.model.run_with_cache(TOKENS, "hook_embed")[1]
        self.core = self.model._core
        self.changing = self.model.copy()
        self.batch = reliability.micro_batch()
        self.trained = reliability.model(seed=1)
        self.core_trainer = _core.Trainer(self.trained._core)
        self.core_trainer.step([self.batch], **reliability.step_options())
        self.data = SequenceData([np.arange(n) for n in (5, 9, 2)], batch=2)
        self.dense = reliability.model(seed=2, gated=False)
        self.task = small_task()
        self.edges = effects.candidates(self.model, self.task, "edge")
        self.circuit = asp.find_circuit(self.model, self.task, n_bootstrap=5, n_random=1, threads=1)
        self.circuit.save(self.folder / "circuit")
        self.other = self.dense._core.run(TOKENS, np.array([0, 8]), ("resid", "qkv", "z", "pattern"))
        self.clean = self.core.run(TOKENS, np.array([0, 8]), ("resid", "qkv", "z", "pattern"))
        self.trainer = asp.Trainer(self.dense, self.data, steps=10**9, threads=1)
        self.trainer.step()
        self.transcoders = small_transcoders()
        self.features = self.transcoders.features(self.model, TOKENS, threads=1)
        self.graph = asp.attribution_graph(self.model, self.transcoders, TOKENS, n_splits=1, threads=1)
        self.pruned, self.sources = self.graph.prune(), self.graph.origin[0]
        self.coder = _core.CoderTrainer(4, 5, np.array([6]))
        self.coder.load("w_enc", np.arange(24, dtype=np.float32).reshape(6, 4) - 10)
        self.reads = Reads(np.array([4], np.int32), np.array([7], np.int32), np.array([2], np.int32),
                           np.ones((1, 64), np.float32))  # fmt: skip
        self._prepare_graphs()
        self.model.save(self.folder / "saved")
        self.trainer.save(self.folder / "saved.safetensors")
        return self

    def _prepare_graphs(self) -> None:
        """Arguments of the core, ready: calls that let Python's allocations fail may not make them."""
        self.last_logits = self.one.logits[-1].copy()
        self.n_outputs = np.array([2, 1])
        self.graph_arrays = {name: self.graph._core.array(name) for name in CORE_GRAPH_ARRAYS}
        self.group = np.isin(np.arange(len(self.graph)), self.graph.logits).astype(np.int64)
        self.no_group = np.full(len(self.graph), -1)
        logits = logit_targets(self.model, self.features.run, 5, [7], 1, 0.5)
        self.ingredients = {
            "frozen": self.sources.frozen, "writes": self.sources.writes, "tokens": TOKENS.astype(np.int32),
            "features": feature_targets(self.features), "logits": logits.targets,
            "probability": logits.probability, "most": 4, "max_bytes": 2**30,
        }  # fmt: skip

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)
        self.__dict__.clear()


Call = Callable[[Everything], Any]


@dataclass(frozen=True)
class Uses:
    """Calls that work, calls that must raise, and about how many times a cheap call's time they take."""

    right: tuple[Call, ...]
    wrong: tuple[Call, ...] = ()
    cost: int = 1


def uses(*right: Call, wrong: tuple[Call, ...] = (), cost: int = 1) -> Uses:
    return Uses(right, wrong, cost)
