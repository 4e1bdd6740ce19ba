"""How `Model.generate` draws a token, in NumPy: which can come, how probable each is, by which number."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from oracle import Array

GENERATION = 9  # the use of random numbers, part of their counter
MASK = 2**64 - 1


def kept(
    logits: ArrayLike, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> Array:
    """Probability of each token: 0 for those that top_k and top_p leave out. Of equal logits the lower id
    comes first."""
    logits = np.asarray(logits, np.float64)
    weights = np.exp((logits - logits.max()) / temperature)
    order = np.lexsort((np.arange(len(logits)), -logits))
    order = order[: top_k or len(order)]
    if top_p is not None and top_p < 1:
        sums = np.cumsum(weights[order]) / weights[order].sum()
        order = order[: np.argmax(sums >= top_p) + 1]
    found = np.zeros(len(logits))
    found[order] = weights[order]
    return found / found.sum()


def splitmix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def uniforms(prompt: ArrayLike, sample: int, n: int, seed: int) -> NDArray[np.float64]:
    """The numbers in [0, 1) that choose the first n new tokens of a sample of a prompt."""
    tokens = np.asarray(prompt).tolist()
    digest = len(tokens)
    for token in tokens:
        digest = splitmix(digest ^ token)
    counter = np.array([0, sample, digest, GENERATION], np.uint64)
    raw = np.random.Philox(key=seed, counter=counter).random_raw(n)
    return (raw >> np.uint64(11)) * 2.0**-53


def draw(probabilities: Array, uniform: float) -> int:
    """The first token, in the order of ids, up to which the probabilities add up to more than the number."""
    return int(np.argmax(np.cumsum(probabilities) > uniform))
