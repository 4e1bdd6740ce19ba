"""Figures of runs, of circuits and of training.

A function that draws one picture takes ax=None, draws on it and returns the Axes; one that lays out several
returns the Figure. All are vector graphics that colour-blind people can read, labelled with tokens.
`save` writes PNG, SVG and PDF with the same bytes every time.
"""

from .attention import attention_map, head_grid, head_grids
from .bars import bars
from .component_curve import component_and_attention, component_curve
from .component_graph import component_graph
from .component_matrix import component_matrix
from .edges import addition_figure, edge_lines
from .effects import effect_curves
from .entry_overview import entry_overview
from .frontier import frontier
from .graph import graph
from .graph_overview import graph_overview
from .heat_map import heat_map
from .history import training_history
from .style import save
from .sweeps import circuit_agreement, needed_by_task, needed_over_training
from .text_edges import edge_kinds, edges_by_position, text_edges

__all__ = [
    "addition_figure",
    "attention_map",
    "bars",
    "circuit_agreement",
    "component_and_attention",
    "component_curve",
    "component_graph",
    "component_matrix",
    "edge_kinds",
    "edge_lines",
    "edges_by_position",
    "effect_curves",
    "entry_overview",
    "frontier",
    "graph",
    "graph_overview",
    "head_grid",
    "head_grids",
    "heat_map",
    "needed_by_task",
    "needed_over_training",
    "save",
    "text_edges",
    "training_history",
]
