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
from .trainer import Trainer

__all__ = [
    "Constant",
    "Data",
    "HeldOutResult",
    "PerLayer",
    "Pieces",
    "SequenceData",
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
