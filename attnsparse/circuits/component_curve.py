"""Faithfulness of circuits of component edges: the curve over their sizes, and its areas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import _check
from .._core_types import Curve
from .._engine import core_for
from .choices import MAX_RESAMPLES

if TYPE_CHECKING:
    import pandas as pd

_CORE = core_for("float64")


class Area(NamedTuple):
    """An area under a curve, with its percentile interval over resamples of the prompts; NaN without one.

    Attributes
    ----------
    value : float
        Of all prompts.
    low : float
        Lower end of the interval.
    high : float
        Upper end of the interval.
    """

    value: float
    low: float
    high: float


class Roc(NamedTuple):
    """How a ranking agrees with a given circuit: one point for every threshold of the score.

    Attributes
    ----------
    false_rate : numpy.ndarray
        float64, ascending from 0 to 1: the share of the component edges outside that are taken.
    true_rate : numpy.ndarray
        float64, ascending from 0 to 1: the share of those inside that are taken.
    area : float
        Probability that one inside scores higher than one outside; ties count half.
    """

    false_rate: np.ndarray
    true_rate: np.ndarray
    area: float


@dataclass(frozen=True, eq=False, repr=False)
class ComponentCurve:
    """Circuits of S sizes, evaluated on P prompts. Made by `ComponentCircuit.evaluate`.

    Attributes
    ----------
    shares : numpy.ndarray
        float64 [S]: requested shares of all component edges, ascending.
    requested : numpy.ndarray
        int64 [S]: numbers of component edges that were taken.
    kept : numpy.ndarray
        int64 [S]: how many of them are left without dangling nodes.
    values : numpy.ndarray
        float64 [S, P]: the metric of each circuit on each prompt.
    full : numpy.ndarray
        float64 [P]: the metric with every component edge in the circuit.
    empty : numpy.ndarray
        float64 [P]: the metric with none.
    ablation : str
        One of `COMPONENT_ABLATIONS`.
    direction : str
        "noising" or "denoising".
    gate : str
        "held" or "recomputed"; "none" in a dense model.
    metric : str
        Name of the metric.
    model : str
        Name of the model.
    task : str
        Name of the task.
    """

    shares: np.ndarray
    requested: np.ndarray
    kept: np.ndarray
    values: np.ndarray
    full: np.ndarray
    empty: np.ndarray
    ablation: str
    direction: str
    gate: str
    metric: str
    model: str
    task: str

    def _curve(self) -> Curve:
        return Curve(self.values, self.full, self.empty, "mib")

    @property
    def faithfulness(self) -> np.ndarray:
        """float64 [S]: (m(C) - m(empty)) / (m(full) - m(empty)), of means over prompts."""
        effect: np.ndarray = _CORE.curve_effect(self._curve())
        return effect

    def cpr(self, *, n_bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0) -> Area:
        """The circuit performance ratio of MIB: the area under the faithfulness.

        Parameters
        ----------
        n_bootstrap : int, default 1000
            Resamples of the prompts, 0..1,000,000.
        confidence : float, default 0.95
            Share of the resamples inside the interval, above 0 and below 1.
        seed : int, default 0
            Of the resamples.

        Returns
        -------
        Area
            Trapezoids over `shares`, from the first one on, which on MIB's grid is 0.001; higher is better.
        """
        return self._area(0, n_bootstrap, confidence, seed)

    def cmd(self, *, n_bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0) -> Area:
        """The circuit-model distance of MIB: the area of ``|1 - faithfulness|``.

        Parameters
        ----------
        n_bootstrap, confidence, seed
            As in `cpr`.

        Returns
        -------
        Area
            Lower is better; 0 for circuits that do what the model does.
        """
        return self._area(1, n_bootstrap, confidence, seed)

    def _area(self, which: int, n_bootstrap: int, confidence: float, seed: int) -> Area:
        n_bootstrap = _check.integer(n_bootstrap, "n_bootstrap", 0, MAX_RESAMPLES)
        confidence, seed = _check.proper_fraction(confidence, "confidence"), _check.seed(seed)
        value = _CORE.component_areas(self.faithfulness[None], self.shares)[0, which]
        curves = _CORE.curve_bootstrap(self._curve(), n_bootstrap, seed)
        low, high = _CORE.curve_band(_CORE.component_areas(curves, self.shares), confidence)
        return Area(float(value), float(low[which]), float(high[which]))

    def band(
        self, *, n_bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Percentile intervals of the faithfulness over resamples of the prompts.

        Parameters
        ----------
        n_bootstrap, confidence, seed
            As in `cpr`.

        Returns
        -------
        tuple of numpy.ndarray
            Lower and upper ends, float64 [S]; NaN without resamples.
        """
        n_bootstrap = _check.integer(n_bootstrap, "n_bootstrap", 0, MAX_RESAMPLES)
        confidence, seed = _check.proper_fraction(confidence, "confidence"), _check.seed(seed)
        found: tuple[np.ndarray, np.ndarray] = _CORE.curve_band(
            _CORE.curve_bootstrap(self._curve(), n_bootstrap, seed), confidence
        )
        return found

    def to_pandas(self) -> pd.DataFrame:
        """One row per size.

        Returns
        -------
        pandas.DataFrame
            Columns share, requested, kept, metric (mean over prompts), faithfulness, low and high, the ends
            of its interval by `band()`.
        """
        import pandas as pd

        low, high = self.band()
        table: dict[str, np.ndarray] = {"share": self.shares, "requested": self.requested, "kept": self.kept}
        table |= {"metric": self.values.mean(1), "faithfulness": self.faithfulness, "low": low, "high": high}
        frame: pd.DataFrame = pd.DataFrame(table)
        return frame

    def __repr__(self) -> str:
        n_sizes, n_prompts = self.values.shape
        return (
            f"ComponentCurve({self.model!r} on {self.task!r}: {n_sizes} sizes, {n_prompts} prompts, "
            f"ablation={self.ablation!r}, direction={self.direction!r}, gate={self.gate!r}, "
            f"metric={self.metric!r})"
        )
