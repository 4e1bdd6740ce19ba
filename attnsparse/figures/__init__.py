"""Figures of runs, of circuits and of training.

A function that draws one picture takes ax=None, draws on it and returns the Axes; one that lays out several
returns the Figure. All are vector graphics that colour-blind people can read, labelled with tokens.
`save` writes PNG, SVG and PDF with the same bytes every time.
"""

from .attention_figure import attention_map, head_grid, head_grids
from .edge_figure import addition_figure, edge_lines
from .effect_figure import effect_curves
from .figure_style import save
from .graph_figure import graph
from .groups_figure import graph_sketch
from .history_figure import training_history
from .sketch_figure import attention_sketch

__all__ = [
    "addition_figure",
    "attention_map",
    "attention_sketch",
    "edge_lines",
    "effect_curves",
    "graph",
    "graph_sketch",
    "head_grid",
    "head_grids",
    "save",
    "training_history",
]
