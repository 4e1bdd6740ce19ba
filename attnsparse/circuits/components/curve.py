"""Faithfulness of circuits of component edges: the curve over their sizes, and its areas."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ... import _check
from ..._core_types import Curve
from ..._engine import core_for
from ..choices import MAX_RESAMPLES

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
    random_values : numpy.ndarray
        float64 [R, S, P]: the metric of the circuits of R random rankings; R is 0 without them.
    random_kept : numpy.ndarray
        int64 [R, S]: as `kept`, of random rankings.
    prompts : tuple of str
        `Task.prompt_digests` of the prompts.
    n_shared : int, optional
        How many of the prompts the circuit was ranked on as well; None if that is not known.
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
    random_values: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0)))
    random_kept: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int64))
    prompts: tuple[str, ...] = ()
    n_shared: int | None = None

    def _curve(self) -> Curve:
        return Curve(self.values, self.full, self.empty, "mib")

    @property
    def faithfulness(self) -> np.ndarray:
        """float64 [S]: (m(C) - m(empty)) / (m(full) - m(empty)), of means over prompts."""
        effect: np.ndarray = _CORE.curve_effect(self._curve())
        return effect

    @property
    def random_faithfulness(self) -> np.ndarray:
        """float64 [R, S]: the faithfulness of each random ranking."""
        n_random, n_sizes = len(self.random_values), len(self.shares)
        rows = np.ascontiguousarray(self.random_values.reshape(n_random * n_sizes, len(self.full)))
        effect: np.ndarray = _CORE.curve_effect(Curve(rows, self.full, self.empty, "mib"))
        return effect.reshape(n_random, n_sizes)

    @property
    def random_effect(self) -> np.ndarray:
        """float64 [S]: the faithfulness of random rankings, their mean; NaN without them."""
        return self.random_faithfulness.mean(0) if len(self.random_values) else self._nothing

    @property
    def random_low(self) -> np.ndarray:
        """float64 [S]: the smallest faithfulness of the random rankings; NaN without them."""
        return self.random_faithfulness.min(0) if len(self.random_values) else self._nothing

    @property
    def random_high(self) -> np.ndarray:
        """float64 [S]: the largest faithfulness of the random rankings; NaN without them."""
        return self.random_faithfulness.max(0) if len(self.random_values) else self._nothing

    @property
    def _nothing(self) -> np.ndarray:
        return np.full(len(self.shares), np.nan)

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
            of its interval by `band()`, and random, random_low and random_high: mean, smallest and largest
            faithfulness of random rankings.
        """
        import pandas as pd

        low, high = self.band()
        table: dict[str, np.ndarray] = {"share": self.shares, "requested": self.requested, "kept": self.kept}
        table |= {"metric": self.values.mean(1), "faithfulness": self.faithfulness, "low": low, "high": high}
        table |= {"random": self.random_effect, "random_low": self.random_low}
        table["random_high"] = self.random_high
        frame: pd.DataFrame = pd.DataFrame(table)
        return frame

    def __repr__(self) -> str:
        n_sizes, n_prompts = self.values.shape
        shared = f" ({self.n_shared} of them ranked on)" if self.n_shared else ""
        return (
            f"ComponentCurve({self.model!r} on {self.task!r}: {n_sizes} sizes, {n_prompts} prompts{shared}, "
            f"ablation={self.ablation!r}, direction={self.direction!r}, gate={self.gate!r}, "
            f"metric={self.metric!r})"
        )
