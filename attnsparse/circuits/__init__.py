"""Which heads and attention edges a task needs: effects of ablations, rankings, curves, intervals."""

from .circuit import Circuit, Needed
from .circuit_file import load_circuit
from .effects import (
    ABLATIONS,
    METRICS,
    UNITS,
    attribution,
    candidates,
    keep_only,
    keep_without,
    knock_out,
    metric_values,
)
from .entry_effects import Carriers, find_carriers
from .find import find_circuit
from .ratio import Ratio, needed_ratio

__all__ = [
    "ABLATIONS",
    "METRICS",
    "UNITS",
    "Carriers",
    "Circuit",
    "Needed",
    "Ratio",
    "attribution",
    "candidates",
    "find_carriers",
    "find_circuit",
    "keep_only",
    "keep_without",
    "knock_out",
    "load_circuit",
    "metric_values",
    "needed_ratio",
]
