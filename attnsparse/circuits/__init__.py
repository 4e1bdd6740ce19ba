"""Which heads and attention edges a task needs: effects of ablations, rankings, curves, intervals."""

from ..model.interventions import ABLATIONS
from ..tasks.metrics import METRICS
from .choices import UNITS
from .circuit import Circuit, load_circuit
from .effects import attribution, candidates, keep_only, knock_out, leave_one_out, metric_values
from .entry_effects import EntryEffects, entry_effects
from .find import find_circuit
from .needed import Needed, Ratio
from .patching import PatchingSweep, patching_sweep
from .paths import PathPatch, path_patch

__all__ = [
    "ABLATIONS",
    "METRICS",
    "UNITS",
    "Circuit",
    "EntryEffects",
    "Needed",
    "PatchingSweep",
    "PathPatch",
    "Ratio",
    "attribution",
    "candidates",
    "entry_effects",
    "find_circuit",
    "keep_only",
    "knock_out",
    "leave_one_out",
    "load_circuit",
    "metric_values",
    "patching_sweep",
    "path_patch",
]
