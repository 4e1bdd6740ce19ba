"""Attribution graphs: building, heads behind an edge, pruning, checks, groups, files, the page."""

from .build import attribution_graph
from .graph import Graph
from .graph_file import load_graph
from .groups import Group, group_nodes, token_groups
from .heads import ScoreSplit
from .neuronpedia_read import read_graph_json
from .neuronpedia_write import write_graph_json
from .word_effect import GroupEdge, Loadings, arrows_table, find_group_edge, groups_table, heads_table

__all__ = [
    "Graph",
    "Group",
    "GroupEdge",
    "Loadings",
    "ScoreSplit",
    "arrows_table",
    "attribution_graph",
    "find_group_edge",
    "group_nodes",
    "groups_table",
    "heads_table",
    "load_graph",
    "read_graph_json",
    "token_groups",
    "write_graph_json",
]
