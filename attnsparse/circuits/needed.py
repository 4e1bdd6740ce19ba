"""How many of the best items a circuit needs, and how many times more than another, with intervals."""

from __future__ import annotations

from typing import NamedTuple


class Needed(NamedTuple):
    """How many of the best items reach a fraction of the effect; every number is one of the sizes.

    None: not reached; for an end of an interval, not reached by that share of the resamples, or there are no
    resamples.

    Attributes
    ----------
    first : int or None
        The smallest n with f >= fraction.
    stays : int or None
        The smallest n from which f stays >= fraction, up to the largest size.
    first_low : int or None
        Lower end of the bootstrap interval of `first`.
    first_high : int or None
        Upper end of the bootstrap interval of `first`.
    stays_low : int or None
        Lower end of the bootstrap interval of `stays`.
    stays_high : int or None
        Upper end of the bootstrap interval of `stays`.
    """

    first: int | None
    stays: int | None
    first_low: int | None
    first_high: int | None
    stays_low: int | None
    stays_high: int | None


class Ratio(NamedTuple):
    """How many times more items one circuit needs than another, with an interval over prompts.

    Attributes
    ----------
    value : float
        The number of times; NaN if one of the circuits never reaches the fraction.
    low : float
        Lower end of the bootstrap interval; may be infinite.
    high : float
        Upper end of the bootstrap interval; may be infinite.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """`9.1 [7.8, 11.1]`."""
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"
