"""The model, its runs, gradients and interventions; loading, saving and naming."""

from .config import Config, LensConfig
from .evaluation import Evaluation
from .generation import Generation, GenerationInterrupted
from .gradients import Gradients
from .hooks import HookPoint
from .interventions import Ablation, Add
from .lens.factored import FactoredMatrix
from .model import Model
from .run import Run
from .tokenizer import Tokenizer
from .transformer_lens import ActivationCache, hook_names

__all__ = [
    "Ablation",
    "ActivationCache",
    "Add",
    "Config",
    "Evaluation",
    "FactoredMatrix",
    "Generation",
    "GenerationInterrupted",
    "Gradients",
    "HookPoint",
    "LensConfig",
    "Model",
    "Run",
    "Tokenizer",
    "hook_names",
]
