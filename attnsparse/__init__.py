"""attnsparse finds the attention heads and attention edges that a GPT-2-class model needs for a task."""

import typing as _typing

from . import circuits, graphs, model, pages, sweeps, tasks, training, transcoders
from ._engine import get_num_threads, set_num_threads
from ._version import __version__
from .circuits.circuit import Circuit, load_circuit
from .circuits.find import find_circuit
from .errors import (
    CheckpointError,
    ConfigError,
    FormatError,
    LimitError,
    NonFiniteError,
    TrainingDiverged,
    UnsafeFileError,
)
from .graphs.build import attribution_graph
from .graphs.graph import Graph, load_graph
from .graphs.groups import Group, group_nodes, token_groups
from .graphs.neuronpedia_read import read_graph_json
from .io.limits import Limits
from .items import Edge, Head, HeadPosition, Mlp, Resid
from .model.build_info import build_info
from .model.config import Config
from .model.gradients import Gradients
from .model.interventions import Ablation, Add
from .model.load import load, save
from .model.model import Model
from .model.run import Run
from .model.tokenizer import Tokenizer
from .sweeps.run import sweep
from .sweeps.status import sweep_status
from .training.data import SequenceData, TokenData
from .training.options import TrainingOptions
from .training.text import TextData
from .training.trainer import Trainer
from .transcoders.arrays import ArraySource, Encoder
from .transcoders.describe import describe_features
from .transcoders.features import Features
from .transcoders.label_files import load_feature_labels, write_feature_details
from .transcoders.labels import FeatureLabels
from .transcoders.load import load_transcoders
from .transcoders.options import TranscoderOptions
from .transcoders.save import save_transcoders
from .transcoders.trainer import train_transcoders
from .transcoders.transcoders import Transcoders

__all__ = [
    "Ablation",
    "Add",
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
    "TextData",
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
    "circuits",
    "describe_features",
    "find_circuit",
    "get_num_threads",
    "graphs",
    "group_nodes",
    "load",
    "load_circuit",
    "load_feature_labels",
    "load_graph",
    "load_transcoders",
    "model",
    "pages",
    "read_graph_json",
    "save",
    "save_transcoders",
    "set_num_threads",
    "sweep",
    "sweep_status",
    "sweeps",
    "tasks",
    "token_groups",
    "train_transcoders",
    "training",
    "transcoders",
    "write_feature_details",
]


# Packages of figures and recipes import matplotlib, so each is imported when first used.
_LATE = ("figures", "recipes", "reproduce")

if _typing.TYPE_CHECKING:
    from . import figures as figures
    from . import recipes as recipes
    from . import reproduce as reproduce
else:

    def __getattr__(name):
        if name in _LATE:
            import importlib

            return importlib.import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
