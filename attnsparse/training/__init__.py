"""The trainer, its data, options, schedules and checkpoints."""

from .data import Data, SequenceData, TokenData
from .held_out import HeldOutResult
from .options import TrainingOptions
from .schedules import (
    Constant,
    PerLayer,
    Pieces,
    Warmup,
    as_schedule,
    from_dict,
    jump,
    layer_values,
    linear,
    per_layer,
)
from .text import TextData
from .text_tokens import TextFile
from .trainer import Trainer

__all__ = [
    "Constant",
    "Data",
    "HeldOutResult",
    "PerLayer",
    "Pieces",
    "SequenceData",
    "TextData",
    "TextFile",
    "TokenData",
    "Trainer",
    "TrainingOptions",
    "Warmup",
    "as_schedule",
    "from_dict",
    "jump",
    "layer_values",
    "linear",
    "per_layer",
]
