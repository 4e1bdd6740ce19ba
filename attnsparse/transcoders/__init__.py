"""Transcoders of the MLPs: the set, its features, files of several tools, training, labels."""

from .arrays import ArraySource, Encoder, TranscoderWeights
from .describe import describe_features
from .features import Features
from .label_files import load_feature_labels, write_feature_details
from .labels import FeatureLabels
from .load import load_transcoders
from .options import TranscoderOptions
from .save import save_transcoders
from .trainer import train_transcoders
from .transcoders import Transcoders

__all__ = [
    "ArraySource",
    "Encoder",
    "FeatureLabels",
    "Features",
    "TranscoderOptions",
    "TranscoderWeights",
    "Transcoders",
    "describe_features",
    "load_feature_labels",
    "load_transcoders",
    "save_transcoders",
    "train_transcoders",
    "write_feature_details",
]
