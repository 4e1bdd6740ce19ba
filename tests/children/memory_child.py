"""A process of test_memory.py: lets Python's own allocations fail, one after the other, in calls of the core.

Prints how many calls failed with which exception and how many bytes of the core were left over. Only
allocations of the call itself are hit: the hooks are removed before anything else happens. Calls of the
extension alone: NumPy crashes by itself when its own methods in Python meet such a failure (2.4, `var`).
"""

from __future__ import annotations

import _testcapi
import json
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import reliability
from public_calls_core import CORE_CALLS
from public_objects import Everything, small_transcoders
from reliability import TOKENS, counters

from attnsparse import _core
from attnsparse._core_types import Substitute

#: after so many calls in a row that met no failure there are no more allocations to fail
ENOUGH = 30
OFFSETS = np.array([0, len(TOKENS)])


def lost_by_numpy(error: BaseException) -> bool:
    """NumPy's methods in Python (`max`) return without the exception, while arguments of a call are made."""
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, SystemError) and Path(where).is_relative_to(Path(np.__file__).parent)


def failures(call: Callable[[], Any], most: int = 400) -> Counter[str]:
    """How often a call ended with which exception when the n-th allocation fails, n = 0, 1, ..."""
    found: Counter[str] = Counter()
    fine = 0
    for n in range(most):
        if fine == ENOUGH:
            break
        fine += 1
        _testcapi.set_nomemory(n, n + 1)
        try:
            call()
        except BaseException as error:
            _testcapi.remove_mem_hooks()
            found[type(error).__name__] += not lost_by_numpy(error)
            fine = 0
        finally:
            _testcapi.remove_mem_hooks()
    return found


class Answers:
    """Weights of transcoders as the core asks for them; all five features are always active."""

    def __init__(self) -> None:
        f = np.float32
        self.outputs = np.ones(64, f), None
        self.encoders = np.ones((5, 64), f), np.full(5, 1000, f), np.ones(5, f)
        self.decoders = np.ones((5, 2, 64), f), np.ones((5, 1, 64), f)

    def output(self, layer: int) -> tuple[Any, ...]:
        return self.outputs

    def encoder(self, layer: int) -> tuple[Any, ...]:
        return self.encoders

    def rows(self, layer: int, features: np.ndarray) -> np.ndarray:
        return self.decoders[layer]


def main() -> None:
    model = reliability.model()
    core, batch, options = model._core, reliability.micro_batch(), reliability.step_options()
    trainer = _core.Trainer(model.copy()._core)
    run = core.run(TOKENS, OFFSETS, ("pattern", "qkv"), edge_threshold=0.0)
    gradients = core.gradients(*batch[:2], ("z",), True, None, *batch[2:])
    config, record, bias = core.config, ("pattern", "qkv"), [0.5, 0.5]
    inputs = core.run(TOKENS, OFFSETS, ("ln2_normalized", "mlp_out"))
    errors = small_transcoders().features(model, TOKENS).error
    answers = Answers()

    def found() -> Any:
        features = _core.Features(core, len(TOKENS), "jump_relu", cross_layer=True)
        features.fill(inputs, 0, answers, 1)
        return features.array("feature"), features.array("error")

    def replaced() -> Any:
        features = _core.Features(core, len(TOKENS), "jump_relu", cross_layer=True)
        return core.run(TOKENS, OFFSETS, (), threads=1, substitute=Substitute(features, answers, errors))

    calls: list[Callable[[], Any]] = [
        lambda: _core.Model(config),
        lambda: core.run(TOKENS, OFFSETS, record, edge_threshold=0.0, threads=1),
        lambda: core.gradients(*batch[:2], ("z",), True, None, *batch[2:], threads=1),
        lambda: trainer.step([batch, batch], gate_bias=bias, **options),
        lambda: trainer.moments("wte.weight"),
        lambda: (run.array("pattern"), run.edges(), run.names, run.value_norms(None, 0, 1)),
        lambda: (gradients.array("z"), gradients.parameter("wte.weight"), gradients.names),
        lambda: (core.names, core.config, core.shape("wte.weight"), core.parameter("wte.weight")),
        lambda: (_core.machine(), _core._debug_stats(), _core.Trainer(core)),
        found,
        replaced,
    ]
    with Everything() as everything:
        for entry in CORE_CALLS.values():
            calls += [lambda call=call: call(everything) for call in entry.right]
        for call in calls:
            call()
        before = counters()
        found = sum((failures(call) for call in calls), Counter())
        print(json.dumps({"failures": +found, "kept": counters()[0] - before[0], "calls": len(calls)}))


if __name__ == "__main__":
    main()
