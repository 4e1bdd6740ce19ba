"""attnsparse: which attention heads, and which attention edges, do the work in a GPT-2-class model."""

from ._version import __version__
from .checkpoint import load, save
from .circuit import Circuit, find_circuit, load_circuit
from .config import Config
from .engine import build_info, get_num_threads, set_num_threads
from .errors import (
    CheckpointError,
    ConfigError,
    FormatError,
    LimitError,
    NonFiniteError,
    TrainingDiverged,
    UnsafeFileError,
)
from .feature_label_files import load_feature_labels, write_feature_details
from .feature_labels import FeatureLabels, describe_features
from .gradients import Gradients
from .graph import Graph, attribution_graph
from .graph_file import load_graph
from .graph_groups import Group, group_nodes, token_groups
from .graph_json_read import read_graph_json
from .interventions import Ablation, HeadPosition, Mlp, Resid
from .labels import Edge, Head
from .limits import Limits
from .model import Model
from .run import Run
from .tokenizer import Tokenizer
from .trainer import Trainer
from .training_data import SequenceData, TokenData
from .training_options import TrainingOptions
from .transcoder import ArraySource, Encoder, Transcoders
from .transcoder_features import Features
from .transcoder_files import load_transcoders
from .transcoder_options import TranscoderOptions
from .transcoder_train import train_transcoders
from .transcoder_write import save_transcoders

__all__ = [
    "Ablation",
    "ArraySource",
    "CheckpointError",
    "Circuit",
    "Config",
    "ConfigError",
    "Edge",
    "Encoder",
    "FeatureLabels",
    "Features",
    "FormatError",
    "Gradients",
    "Graph",
    "Group",
    "Head",
    "HeadPosition",
    "LimitError",
    "Limits",
    "Mlp",
    "Model",
    "NonFiniteError",
    "Resid",
    "Run",
    "SequenceData",
    "TokenData",
    "Tokenizer",
    "Trainer",
    "TrainingDiverged",
    "TrainingOptions",
    "TranscoderOptions",
    "Transcoders",
    "UnsafeFileError",
    "__version__",
    "attribution_graph",
    "build_info",
    "describe_features",
    "find_circuit",
    "get_num_threads",
    "group_nodes",
    "load",
    "load_circuit",
    "load_feature_labels",
    "load_graph",
    "load_transcoders",
    "read_graph_json",
    "save",
    "save_transcoders",
    "set_num_threads",
    "token_groups",
    "train_transcoders",
    "write_feature_details",
]


# They import matplotlib or pandas, so each is imported when first used.
_MODULES = (
    "carriers", "effects", "evaluation", "figures", "graph_edge", "recipes", "schedules", "tables", "tasks",
)  # fmt: skip


def __dir__():
    return sorted({*globals(), *_MODULES})


def __getattr__(name: str):
    if name in _MODULES:
        import importlib

        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
