"""What runs ablate, patch and steer."""

from .compile import ABLATIONS, POINTS, Ablate, Ablation, Add, Patch
from .steering import KINDS, Change, Changes, SteeredFeature, SteeredWeights, compile_changes

__all__ = [
    "ABLATIONS",
    "KINDS",
    "POINTS",
    "Ablate",
    "Ablation",
    "Add",
    "Change",
    "Changes",
    "Patch",
    "SteeredFeature",
    "SteeredWeights",
    "compile_changes",
]
