"""What a trainer found at each step, as rows of its history."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..model.config import Config
from .checkpoint import RESULTS
from .held_out import HeldOutResult
from .options import TrainingOptions

HISTORY = "history.csv"
_HELD_OUT = ("held_out_ce", "held_out_edges_per_token", "held_out_self_edges_per_token")


class History:
    """Results of the steps of a run, and how long each took.

    Parameters
    ----------
    options : TrainingOptions
        Of the run.
    config : Config
        Of the model.
    """

    columns = ("step", *RESULTS, "seconds", "lr", "gate_bias", "tau", *_HELD_OUT)

    def __init__(self, options: TrainingOptions, config: Config) -> None:
        self._options, self._config = options, config
        self.results: list[dict[str, Any]] = []
        self.seconds: dict[int, float] = {}
        self._scheduled: dict[int, list[float]] = {}

    def restore(self, rows: np.ndarray) -> None:
        """Take over what `array` gave."""
        self.results = [
            {"step": step, **dict.fromkeys(RESULTS, math.nan), **dict(zip(RESULTS, row))}
            for step, row in enumerate(rows.tolist())
        ]

    def array(self) -> np.ndarray:
        """What a checkpoint keeps: float64 [steps, RESULTS]."""
        rows = [[float(result[key]) for key in RESULTS] for result in self.results]
        return np.array(rows, np.float64).reshape(len(rows), len(RESULTS))

    def rows(self, evaluations: Sequence[HeldOutResult]) -> list[list[float]]:
        """One row for each step, in the order of `columns`."""
        evaluated = {result.step - 1: result[1:] for result in evaluations}
        missing = (math.nan,) * len(_HELD_OUT)
        return [
            [*self._row(step, result), *evaluated.get(step, missing)]
            for step, result in enumerate(self.results)
        ]

    def text(self, evaluations: Sequence[HeldOutResult]) -> bytes:
        """The rows as a CSV file."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows(evaluations))
        return file.getvalue().encode()

    def _row(self, step: int, result: dict[str, Any]) -> list[float]:
        """One step of it. What follows from the options is kept, because every save asks for all steps."""
        results = [float(result[key]) for key in RESULTS]
        if not self._config.gated:
            results[2:5] = [math.nan] * 3  # edges and multiplier
            results[6:] = [math.nan] * 2
        if step not in self._scheduled:
            config = self._config
            arguments = self._options.at(step, config.n_layer, config.gated, config.gate_bias)
            biases = arguments.get("gate_bias", [math.nan])
            self._scheduled[step] = [
                arguments["lr"], sum(biases) / len(biases), arguments.get("tau", math.nan)
            ]  # fmt: skip
        return [step, *results, self.seconds.get(step, math.nan), *self._scheduled[step]]


def progress_text(result: dict[str, Any], gated: bool) -> str:
    """A step's result in a few words."""
    text = f"ce {result['ce']:.4f}"
    if not gated:
        return text
    edges, share = result["edges_per_token"], f"{100 * result['open_edges']:.2f} %"
    if math.isnan(edges):  # a step of a checkpoint that kept the share alone
        return f"{text}, open {share}"
    return f"{text}, {edges:.1f} edges per token ({share})"
