"""Which heads and attention edges a task needs: effects of ablations, rankings, curves, intervals."""

from ..model.interventions import ABLATIONS
from ..tasks.metrics import METRICS
from .choices import UNITS
from .circuit import Circuit, load_circuit
from .component_acdc import AcdcSweep, component_acdc, component_acdc_sweep
from .component_circuit import (
    ComponentCircuit,
    component_circuit,
    load_component_circuit,
)
from .component_curve import Area, ComponentCurve, Roc
from .component_find import FoundComponents, find_component_circuit
from .component_gradients import component_mask_gradients
from .component_masks import (
    MASK_METHODS,
    ComponentMasks,
    component_masks,
)
from .component_names import ABLATIONS as COMPONENT_ABLATIONS
from .component_names import METHODS as COMPONENT_METHODS
from .component_nodes import NodeCircuit, NodeCurve, node_circuit, node_values
from .component_scores import ComponentScores, component_scores
from .component_values import component_values
from .effects import attribution, candidates, keep_only, knock_out, leave_one_out, metric_values
from .entry_effects import EntryEffects, entry_effects
from .entry_sweep import EntrySweep
from .find import find_circuit
from .long_table import table
from .needed import Needed, Ratio
from .patching import PatchingSweep, patching_sweep
from .paths import PathPatch, path_patch

__all__ = [
    "ABLATIONS",
    "COMPONENT_ABLATIONS",
    "COMPONENT_METHODS",
    "MASK_METHODS",
    "METRICS",
    "UNITS",
    "AcdcSweep",
    "Area",
    "Circuit",
    "ComponentCircuit",
    "ComponentCurve",
    "ComponentMasks",
    "ComponentScores",
    "EntryEffects",
    "EntrySweep",
    "FoundComponents",
    "Needed",
    "NodeCircuit",
    "NodeCurve",
    "PatchingSweep",
    "PathPatch",
    "Ratio",
    "Roc",
    "attribution",
    "candidates",
    "component_acdc",
    "component_acdc_sweep",
    "component_circuit",
    "component_mask_gradients",
    "component_masks",
    "component_scores",
    "component_values",
    "entry_effects",
    "find_circuit",
    "find_component_circuit",
    "keep_only",
    "knock_out",
    "leave_one_out",
    "load_circuit",
    "load_component_circuit",
    "metric_values",
    "node_circuit",
    "node_values",
    "patching_sweep",
    "path_patch",
    "table",
]
