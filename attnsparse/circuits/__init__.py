"""Which heads and attention edges a task needs: effects of ablations, rankings, curves, intervals."""

from ..model.interventions import ABLATIONS
from ..tasks.metrics import METRICS
from .choices import UNITS
from .circuit import Circuit, load_circuit
from .components.acdc import AcdcSweep, component_acdc, component_acdc_sweep
from .components.circuit import (
    ComponentCircuit,
    component_circuit,
    load_component_circuit,
)
from .components.curve import Area, ComponentCurve, Roc
from .components.find import FoundComponents, find_component_circuit
from .components.gradients import component_mask_gradients
from .components.masks import (
    MASK_METHODS,
    ComponentMasks,
    component_masks,
)
from .components.names import ABLATIONS as COMPONENT_ABLATIONS
from .components.names import METHODS as COMPONENT_METHODS
from .components.nodes import NodeCircuit, NodeCurve, node_circuit, node_values
from .components.patching import PatchingSweep, patching_sweep
from .components.paths import PathPatch, path_patch
from .components.scores import ComponentScores, component_scores
from .components.values import component_values
from .effects import attribution, candidates, keep_only, knock_out, leave_one_out, metric_values
from .entry_effects import EntryEffects, entry_effects
from .entry_sweep import EntrySweep
from .find import find_circuit
from .long_table import table
from .needed import Needed, Ratio

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
