"""Held-out rows that a training run is measured on: with hard gates and nothing dropped, as in use."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import _check
from ..io.checksums import update
from ..model.config import Config
from ..model.evaluation import SequenceMeasured, checked_rows, evaluated, measured
from ..model.model import Model
from .processes import OneProcess, share


class HeldOutResult(NamedTuple):
    """What a `Trainer` found on held-out sequences.

    Attributes
    ----------
    step : int
        Optimiser steps done.
    ce : float
        Cross-entropy in nats.
    edges_per_token : float
        Open edges of all heads for each token; in a dense model all entries.
    self_edges_per_token : float
        Of these, edges from a token to itself.
    """

    step: int
    ce: float
    edges_per_token: float
    self_edges_per_token: float


FIELDS = len(HeldOutResult._fields)
_BATCH = 256  # sequences of a pass


@dataclass(frozen=True)
class Limit:
    """What a result must keep to be a candidate for the best one of a gated model.

    Attributes
    ----------
    ce : callable or None
        Largest cross-entropy after so many steps.
    edges_per_token : callable or None
        Largest number of open edges for each token after so many steps.
    """

    ce: Callable[[int], float] | None
    edges_per_token: Callable[[int], float] | None

    def admits(self, result: HeldOutResult) -> bool:
        """Whether the limits are kept."""
        within_ce = self.ce is None or result.ce <= self.ce(result.step)
        return within_ce and (
            self.edges_per_token is None or result.edges_per_token <= self.edges_per_token(result.step)
        )


class HeldOut:
    """Rows, and what was measured on them so far.

    Parameters
    ----------
    config : Config
        Of the model that is measured.
    sequences : list of int arrays, or int array [n, T]
        Token ids.
    loss_weights : like `sequences`, optional
        As in `Model.evaluate`.
    every : int
        Optimiser steps between two measurements.
    steps : int
        Of the whole run, after the last of which there is one more.
    """

    def __init__(self, config: Config, sequences: Any, loss_weights: Any, every: int, steps: int) -> None:
        names = ("held_out", "held_out_weights")
        rows, weights = checked_rows(config, sequences, loss_weights, names)
        self._sequences, self._weights = [row.copy() for row in rows], [row.copy() for row in weights]
        self._every, self._steps = _check.integer(every, "evaluate_every", 1), steps
        self.results: list[HeldOutResult] = []
        sha = hashlib.sha256()
        for row in [*self._sequences, *self._weights]:
            sha.update(f"{len(row)} ".encode())
            update(sha, np.ascontiguousarray(row))
        self.digest = sha.hexdigest()

    def due(self, step: int) -> bool:
        """Whether there is a measurement after so many steps that has not been made."""
        at = step > 0 and (step % self._every == 0 or step == self._steps)
        return at and not (self.results and self.results[-1].step == step)

    def measure(self, model: Model, step: int, parts: int, processes: OneProcess) -> None:
        """Measure the model as it is after so many steps; the rows are cut into `parts`, which processes
        share."""

        def measure_parts(chosen: range) -> list[SequenceMeasured]:
            rows = [share(len(self._sequences), part, parts) for part in chosen]
            cuts = [slice(first, first + n) for first, n in rows]
            return [
                found
                for cut in cuts
                for found in measured(
                    model, self._sequences[cut], self._weights[cut], _BATCH, processes.threads()
                )
            ]

        found = evaluated(self._sequences, self._weights, processes.spread(parts, measure_parts))
        edges, own = int(found.open_edges.sum()), int(found.self_edges.sum())
        n = found.n_tokens
        self.results.append(HeldOutResult(step, found.cross_entropy, edges / n, own / n))

    def latest(self) -> float:
        """The last cross-entropy; NaN before the first."""
        return self.results[-1].ce if self.results else math.nan

    def best(self, gated: bool, limit: Limit) -> HeldOutResult | None:
        """The best result, the first of equals.

        Of a gated model the fewest edges within a limit of the cross-entropy, or the least cross-entropy
        within one of the edges; of a dense model the least cross-entropy.
        """
        if not gated:
            return min(self.results, key=lambda result: result.ce, default=None)
        admitted = [result for result in self.results if limit.admits(result)]
        fewest = limit.edges_per_token is None
        return min(admitted, key=lambda r: r.edges_per_token if fewest else r.ce, default=None)

    def without_a_new_best(self, gated: bool, limit: Limit) -> int:
        """Measurements since the best one; 0 while there is none."""
        best = self.best(gated, limit)
        return 0 if best is None else len(self.results) - 1 - self.results.index(best)


def held_out_digest(config: Config, sequences: Any, loss_weights: Any) -> str | None:
    """Digest of held-out sequences, as `HeldOut` has it; None for none."""
    return None if sequences is None else HeldOut(config, sequences, loss_weights, 1, 1).digest
