"""Attribution graphs: building, heads behind an edge, pruning, checks, groups, files, the page."""

from .build import attribution_graph
from .graph import Graph, load_graph
from .groups import Group, group_nodes, token_groups
from .heads import ScoreSplit
from .long_table import table
from .neuronpedia_read import read_graph_json
from .neuronpedia_upload import upload_to_neuronpedia
from .word_effect import Loadings, WordEffect, word_effect

__all__ = [
    "Graph",
    "Group",
    "Loadings",
    "ScoreSplit",
    "WordEffect",
    "attribution_graph",
    "group_nodes",
    "load_graph",
    "read_graph_json",
    "table",
    "token_groups",
    "upload_to_neuronpedia",
    "word_effect",
]
