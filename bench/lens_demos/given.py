"""What both tools begin with: random weights, the demo models' tokenizer, texts, repeated random tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

import attnsparse
from attnsparse import Config, Model

from ..work import GPT2_SMALL

SMALL = Config(n_layer=2, n_head=4, d_model=64, d_head=16, d_mlp=256, n_ctx=256, n_vocab=2000)
TEXT = (
    "The cat sat in the garden and the dog slept in the house. In the morning the cat went to the market, "
    "and the dog went with the cat to the school, where they found a book, a ball and a letter."
)
MAIN = {
    "text": TEXT,
    "cats": "The cat sat in the garden. The dog sat on the cat.",
    "clean": "After Tom and Emma met in the garden, Emma gave the letter to",
    "corrupted": "After Tom and Emma met in the garden, Tom gave the letter to",
}
IOI = {
    "prompt": "After Tom and Emma met in the garden, Emma gave the letter to",
    "formats": ["When Peter and Anna went to the market,{} gave the book to"],
    "names": [(" Peter", " Anna")],
}


def given(demo: str, small: bool) -> tuple[Model, dict[str, Any]]:
    """The model and the texts of a demo."""
    config = SMALL if small else GPT2_SMALL
    n_prompts, length = (10, 50) if demo == "main" else (2, 100)
    half = np.random.default_rng(1).integers(100, min(config.n_vocab, 10000), (n_prompts, length))
    repeated = np.tile(half, 2).astype(np.int32)
    return _model(config), {**(MAIN if demo == "main" else IOI), "repeated": repeated, "half": length}


def _model(config: Config) -> Model:
    """Everything random, biases and LayerNorms too, and large enough that each part changes the logits."""
    demo = attnsparse.load("demo-dense")
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in config.parameter_shapes().items():
        values = rng.standard_normal(shape, dtype=np.float32)
        is_layer = len(shape) == 2 and name.startswith("h.")
        values *= np.float32(shape[0] ** -0.5 if is_layer else 0.1)
        weights[name] = values + np.float32(len(shape) == 1 and not name.endswith(".bias"))
    return Model(config, weights, demo.tokenizer, "random")
