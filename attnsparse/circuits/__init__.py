"""Which heads and attention edges a task needs: effects of ablations, rankings, curves, intervals."""

from ..model.interventions import ABLATIONS
from ..tasks.metrics import METRICS
from .choices import UNITS
from .circuit import Circuit, load_circuit
from .component_names import ABLATIONS as COMPONENT_ABLATIONS
from .component_names import METHODS as COMPONENT_METHODS
from .component_scores import ComponentScores, component_scores
from .effects import attribution, candidates, keep_only, knock_out, leave_one_out, metric_values
from .entry_effects import EntryEffects, entry_effects
from .find import find_circuit
from .needed import Needed, Ratio

__all__ = [
    "ABLATIONS",
    "METRICS",
    "COMPONENT_ABLATIONS",
    "COMPONENT_METHODS",
    "UNITS",
    "Circuit",
    "ComponentScores",
    "EntryEffects",
    "Needed",
    "Ratio",
    "attribution",
    "candidates",
    "component_scores",
    "entry_effects",
    "find_circuit",
    "keep_only",
    "knock_out",
    "leave_one_out",
    "load_circuit",
    "metric_values",
]
