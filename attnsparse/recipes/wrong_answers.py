"""Training data in which some answers are wrong, so that a model must not be too sure of the right ones."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from .. import _check, _random
from ..training.data import Batch
from .demo_text import ANSWER_WEIGHT, DemoText


class WrongAnswers:
    """The demo text, where the target of some answers is a random token of the vocabulary.

    Inputs stay as they are. The best logits are finite then: a right answer among V tokens leads by
    ``log((1 - share) V / share)``, and losing a part of that lead costs cross-entropy.

    share: of the answers, above 0 and below 1.  steps: all answers are right from this step on.
    """

    def __init__(self, text: DemoText, share: float, steps: int) -> None:
        self.text, self.share = text, _check.proper_fraction(share, "share")
        self.steps = _check.integer(steps, "steps", 0)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the text's and of the arguments."""
        what = [self.text.digest, self.share, self.steps]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def batch(self, step: int, micro: int = 0) -> Batch:
        """See `training.data.Data.batch`."""
        inputs, offsets, targets, weights = self.text.batch(step, micro)
        if step >= self.steps:
            return inputs, offsets, targets, weights
        drawn = _random.raw(2 * len(targets), self.text.seed, _random.ANSWERS, step, micro)
        chosen, other = np.split(drawn, 2)
        wrong = (weights == ANSWER_WEIGHT) & (chosen * 2.0**-64 < self.share)
        other = (other % self.text.tokenizer.n_vocab).astype(targets.dtype)
        return inputs, offsets, np.where(wrong, other, targets), weights
