"""Runs and circuits for pages of attention, and models whose names and tokens are attacks."""

from __future__ import annotations

import functools

import numpy as np
import oracle
from small_graph import HOSTILE

import attnsparse as asp
from attnsparse.tasks.task import Task

SHAPE = {"n_layer": 3, "n_head": 4, "n_ctx": 24, "d_model": 16, "d_head": 4, "d_mlp": 24, "tied": False}
WORDS = ("The", " opposite", " of", ' "', "large", '"', " is", " small", " big")
PROMPT = 'The opposite of "large" is "'
ATTACKS = tuple(text for text in HOSTILE if "\ud800" not in text)  # no tokenizer has a half of a pair


@functools.cache
def toy_model(
    gated: bool = True, words: tuple[str, ...] = WORDS, name: str = "toy", **changes: int
) -> asp.Model:
    """A small model with random weights, in which about half of the gates are open."""
    config = oracle.full_config(**(SHAPE | {"gated": gated, "n_vocab": len(words)} | changes))
    weights = oracle.random_model(np.random.default_rng(3), config)
    return asp.Model(asp.Config.from_dict(config), weights, asp.Tokenizer.from_words(list(words)), name)


def toy_task(n: int = 6) -> Task:
    """Prompts of eight tokens with an answer and a wrong one."""
    rng = np.random.default_rng(5)
    clean = tuple(rng.integers(0, len(WORDS), 8).astype(np.int32) for _ in range(n))
    corrupted = tuple(row[::-1].copy() for row in clean)
    answers, wrong = ((np.array([token], np.int32),) * n for token in (7, 8))
    halves = np.arange(n) % 2 == 0
    return Task("toy", "logit_diff", None, clean, corrupted, answers, wrong, ("",) * n, halves)


def hostile_model() -> asp.Model:
    """Attacks as tokens and as the name."""
    return toy_model(words=(*ATTACKS, " a"), name=ATTACKS[0])
